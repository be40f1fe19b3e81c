"""Bands, convergence and the saturation warning, on maps whose truth is known."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from workbench.analyses.erf import Target, fields
from workbench.analyses.erf.definitions import DEFINITIONS
from workbench.analyses.erf.metrics import Ruler, highest_density, metrics
from workbench.analyses.erf.statistics import (
    BOOTSTRAP_BYTES,
    NO_BAND,
    Accumulator,
    gathered,
    n_resamples,
    poisson_weights,
    saturation,
)
from workbench.analyses.scan_network import ScanNetwork
from workbench.errors import BadInputError

MASS = DEFINITIONS["mass"]


def bell(side: int, sigma: float) -> np.ndarray:
    at = np.arange(side) + 0.5 - side / 2
    one = np.exp(-(at**2) / (2 * sigma**2))
    return np.outer(one, one)


def sample(side: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """An image's map: a bell of its own width with speckle, sums to 1."""
    found = bell(side, sigma * rng.uniform(0.7, 1.3)) * rng.gamma(1.0, size=(side, side))
    return (found / found.sum()).astype(np.float32)


def accumulated(maps, seed=0, n_planned=None) -> Accumulator:
    sums = Accumulator(*maps[0].shape, n_planned or len(maps), seed)
    for index, one in enumerate(maps):
        sums.add(index, one)
    return sums


def warned(mass: np.ndarray, n: int = 0, seed: int = 0) -> str:
    """The warning for a field: exact (n = 0), or the mean of n maps with heavy speckle."""
    side = len(mass)
    ruler = Ruler(mass.shape, (side / 2, side / 2))
    band = NO_BAND
    if n:
        rng = np.random.default_rng(seed)
        noisy = [mass * rng.gamma(0.3, size=mass.shape) for _ in range(n)]
        sums = accumulated([(m / m.sum()).astype(np.float32) for m in noisy], seed)
        band = sums.band(ruler, MASS, is_centre_token=True)
        mass = sums.mean()
    mass = mass / mass.sum()
    return saturation(ruler, mass, metrics(mass, ruler.centre, ruler=ruler), band)


# Resamples


def test_weights_are_a_function_of_seed_and_image():
    a = poisson_weights(0, 17, 200)
    np.testing.assert_array_equal(a, poisson_weights(0, 17, 200))
    assert not np.array_equal(a, poisson_weights(0, 18, 200))
    assert not np.array_equal(a, poisson_weights(1, 17, 200))
    many = np.concatenate([poisson_weights(0, i, 200) for i in range(200)])
    assert many.mean() == pytest.approx(1, abs=0.02) and many.var() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("side", "n_images", "wanted"),
    [(224, 1, 0), (224, 2, 32), (224, 24, 48), (224, 900, 64), (512, 900, 64), (1024, 900, 32)],
)
def test_resamples_fit_into_the_memory_they_may_take(side, n_images, wanted):
    assert n_resamples(side, side, n_images) == wanted
    assert 4 * side * side * wanted <= BOOTSTRAP_BYTES


def test_resampled_means_are_the_weighted_means():
    rng = np.random.default_rng(0)
    maps = [sample(16, 4.0, rng) for _ in range(21)]
    sums = accumulated(maps, seed=5)
    ruler = Ruler((16, 16), (8.0, 8.0))
    band = sums.band(ruler, MASS, is_centre_token=True)
    weights = np.stack([poisson_weights(5, i, 42) for i in range(21)])
    means = np.einsum("ir,ihw->rhw", weights, np.stack(maps)) / weights.sum(0)[:, None, None]
    areas = np.array([highest_density(mean, 0.9)[0] for mean in means])
    own = highest_density(np.mean(maps, axis=0), 0.9)[0]
    assert band.n == 42
    half = 1.645 * areas.std(ddof=1)
    assert band.low["area90"] == pytest.approx(own - half, abs=1e-3)
    assert band.high["area90"] == pytest.approx(own + half, abs=1e-3)
    assert half > 0.01


def test_a_band_is_where_other_images_lead():
    """It is as wide as 90 % of the numbers of other images of the same kind."""
    truth = np.random.default_rng(100)
    ruler = Ruler((24, 24), (12.0, 12.0))
    names = ("area50", "radius50_px", "spread_px", "com_y_px")
    others: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(60):
        mean = np.mean([sample(24, 3.0, truth) for _ in range(12)], axis=0)
        found = metrics(mean, ruler.centre, ruler=ruler)
        for name in names:
            others[name].append(found[name])
    ratios = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        sums = accumulated([sample(24, 3.0, rng) for _ in range(12)], seed)
        band = sums.band(ruler, MASS, is_centre_token=True)
        for name in names:
            low, high = np.percentile(others[name], (5, 95))
            ratios.append((band.high[name] - band.low[name]) / (high - low))
    assert 0.75 < np.median(ratios) < 1.25, ratios


def test_one_image_has_no_band():
    sums = accumulated([sample(16, 4.0, np.random.default_rng(0))])
    assert sums.band(Ruler((16, 16), (8, 8)), MASS, True) is NO_BAND
    sums = accumulated([sample(16, 4.0, np.random.default_rng(0))], n_planned=5)
    assert sums.band(Ruler((16, 16), (8, 8)), MASS, True) is NO_BAND


def test_equal_images_have_a_band_of_no_width():
    one = sample(16, 4.0, np.random.default_rng(0))
    sums = accumulated([one] * 6)
    band = sums.band(Ruler((16, 16), (8.0, 8.0)), MASS, is_centre_token=True)
    for name, low in band.low.items():
        assert band.high[name] == pytest.approx(low, rel=1e-3, abs=1e-4), name
    np.testing.assert_allclose(band.radial_low, band.radial_high, atol=1e-5)
    assert sums.split_distance() == pytest.approx(0.0, abs=1e-6)


def test_a_band_needs_the_number_itself():
    """A square that the field does not reach has neither a value nor a band."""
    flat = np.full((16, 16), 1 / 256, dtype=np.float32)
    band = accumulated([flat] * 4).band(Ruler((16, 16), (8.0, 8.0)), MASS, is_centre_token=True)
    assert "square99" not in band.low and "square50" in band.low
    band = accumulated([flat] * 4).band(Ruler((16, 16), (8.0, 8.0)), MASS, is_centre_token=False)
    assert "square50" not in band.low and "axis_deg" not in band.low


def test_memory_does_not_grow_with_the_images():
    sums = Accumulator(16, 16, 500, 0)
    rng = np.random.default_rng(0)

    def held() -> int:
        arrays = [sums.sums, sums.counts, sums._weights, sums._resamples.numpy()]
        return sum(a.nbytes for a in arrays) + sum(m.nbytes for _, m in sums._pending)

    sizes = []
    for index in range(500):
        sums.add(index, sample(16, 4.0, rng))
        sizes.append(held())
    assert max(sizes[250:]) == max(sizes[:250])


# Convergence


def test_the_trace_follows_the_images(network, photo, provenance):
    images = [(str(i), photo(64, 64, seed=i)) for i in range(11)]
    target = Target("stage2", 4, 4)
    *_, (found,) = fields(ScanNetwork(network, "Test"), images, [target], provenance=provenance)
    assert found.convergence_n.tolist() == [1, 2, 4, 8, 11]
    assert np.isnan(found.convergence_split[0])
    assert found.convergence_split[-1] < found.convergence_split[1]
    assert found.convergence_split[-1] == pytest.approx(found.metrics["split_distance"])
    for n, area in zip(found.convergence_n, found.convergence_area50, strict=True):
        *_, (first,) = fields(
            ScanNetwork(network, "Test"), images[:n], [target], provenance=provenance
        )
        assert area == pytest.approx(first.metrics["area50"], abs=2 / 64**2)


# Saturation


def test_a_uniform_field_is_told():
    for side in (64, 224):
        assert "cannot be told from a uniform map" in warned(np.ones((side, side)))
        text = warned(np.ones((side, side)), n=8)
        assert "cannot be told" in text and "Use 512 px or more, or an earlier stage" in text


@pytest.mark.parametrize("n", [0, 8])
@pytest.mark.parametrize(
    ("widths", "wanted"),
    [(0.03, ""), (0.1, ""), (0.2, ""), (0.3, "The border cuts"), (1.2, "cannot be told")],
)
def test_gaussians_of_several_widths(widths, wanted, n):
    """Width: sigma over the image's side."""
    text = warned(bell(96, 96 * widths), n)
    assert text.startswith("The field cannot be told") if "told" in wanted else wanted in text
    assert bool(text) == bool(wanted)


def test_a_field_along_the_border_is_not_gathered_around_its_token():
    ring = np.ones((96, 96))
    ring[24:72, 24:72] = 0.1
    text = warned(ring)
    assert "not gathered around its token" in text and "an even spread" in text


def test_noise_decides_what_can_be_told():
    """A slope of 8 % in total variation: told with many images, not with few noisy ones."""
    slope = np.ones((48, 48)) * np.linspace(0.6, 1.4, 48)
    assert "cannot be told" not in warned(slope)
    rng = np.random.default_rng(1)

    def mean_of(n: int) -> str:
        ruler = Ruler((48, 48), (24.0, 24.0))
        maps = []
        for _ in range(n):  # noise of whole cells, as photos make it
            cells = rng.gamma(1.0, size=(8, 8)).repeat(6, 0).repeat(6, 1)
            maps.append((slope * cells / (slope * cells).sum()).astype(np.float32))
        sums = accumulated(maps)
        mass = sums.mean()
        band = sums.band(ruler, MASS, is_centre_token=True)
        return saturation(ruler, mass, metrics(mass, ruler.centre, ruler=ruler), band)

    assert "cannot be told" in mean_of(4)
    assert "cannot be told" not in mean_of(400)


# Several processes


class Thread:
    """Processes of a group, as threads of one: sums meet at a barrier."""

    def __init__(self, rank: int, world: int, shared: dict) -> None:
        self.rank, self.world, self._shared = rank, world, shared

    def sum(self, arrays):
        barrier, given = self._shared["barrier"], self._shared["given"]
        given[self.rank] = arrays
        barrier.wait()
        assert len({tuple(a) for a in given.values()}) == 1, "processes are out of step"
        found = {
            name: sum((given[r][name] for r in range(1, self.world)), given[0][name].copy())
            for name in arrays
        }
        barrier.wait()
        return found


def in_processes(world: int, work) -> list:
    shared = {"barrier": threading.Barrier(world, timeout=60), "given": {}}
    found: list = [None] * world

    def run(rank: int) -> None:
        try:
            found[rank] = work(Thread(rank, world, shared))
        except Exception as error:
            found[rank] = error
            if not isinstance(error, BadInputError):
                shared["barrier"].abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_texts_of_all_processes_are_gathered():
    texts = [{"a": "żółć"}, {}, {"b": "x" * 300}]
    for found in in_processes(3, lambda group: gathered(group, texts[group.rank])):
        assert found == texts


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("definition", ["mass", "replknet"])
def test_processes_find_the_same_field(network, photo, provenance, world, n, definition):
    images = [(f"image {i}", photo(64, 64, seed=i)) for i in range(n)]
    if n == 7:
        images[4][1][0, 0, 0] = np.nan
    target = [Target("stage2", 4, 4), Target("stage1", 3, 3)]
    what = {"definition": definition, "provenance": provenance}
    *_, alone = fields(ScanNetwork(network, "Test"), images, target, **what)

    def work(group):
        return list(fields(ScanNetwork(network, "Test"), images, target, group=group, **what))

    for found in in_processes(world, work):
        assert not isinstance(found, Exception), found
        (last,) = found
        for mine, wanted in zip(last, alone, strict=True):
            np.testing.assert_allclose(mine.mass, wanted.mass, rtol=1e-4, atol=1e-9)
            assert mine.image_names == wanted.image_names and mine.skipped == wanted.skipped
            assert mine.n_bootstrap == wanted.n_bootstrap
            np.testing.assert_array_equal(mine.convergence_n, wanted.convergence_n)
            np.testing.assert_allclose(
                mine.convergence_split, wanted.convergence_split, rtol=1e-3, atol=1e-5
            )
            for name, low in wanted.metric_low.items():
                assert mine.metric_low[name] == pytest.approx(low, rel=0.02, abs=0.002), name


def test_processes_agree_that_a_field_is_empty(fresh_network, photo, provenance):
    import torch

    with torch.no_grad():
        fresh_network.patch_embed["0"].weight.zero_()
    images = [(str(i), photo(64, 64, seed=i)) for i in range(3)]

    def work(group):
        return list(
            fields(
                ScanNetwork(fresh_network, "Test"),
                images,
                [Target("stage1", 3, 3)],
                provenance=provenance,
                group=group,
            )
        )

    for found in in_processes(2, work):
        assert isinstance(found, BadInputError) and "every gradient is zero" in str(found)
