"""Faithfulness against models whose answer is known, hand formulas, scipy and Captum."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max
from scipy import ndimage, stats

from workbench.analyses import faithfulness as lab
from workbench.analyses.attribution.input_methods import make_baseline
from workbench.analyses.attribution.methods import BASELINES
from workbench.analyses.controls import LUMINANCE, MEAN, STD, Cells, edges
from workbench.analyses.faithfulness import faithfulness
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken, Progress, result_of
from workbench.results import AttributionMap, MapsResult

SIZE = 32
CLASSES = tuple(f"class {i}" for i in range(10))


class Linear(torch.nn.Module):
    """Logit 0 is w . x, the others are 0."""

    def __init__(self, weight: np.ndarray, n_classes: int = 2) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(weight))
        self.n_classes = n_classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = (x * self.weight).flatten(1).sum(1)
        others = logit.new_zeros(len(x), self.n_classes - 1)
        return torch.cat((logit[:, None], others), 1)


@pytest.fixture
def linear() -> Linear:
    rng = np.random.default_rng(5)
    return Linear((0.01 * rng.standard_normal((3, SIZE, SIZE))).astype(np.float32))


@pytest.fixture
def maps_of(provenance):
    def make(values: np.ndarray, stride: int = 1, target: int = 0, contrast=None) -> MapsResult:
        shown = AttributionMap(
            name="input", values=values.astype(np.float32), stride=stride, layer="the input"
        )
        return MapsResult(
            provenance=provenance,
            method="test",
            label="Test",
            where="input",
            target=target,
            target_name=CLASSES[target],
            contrast=contrast,
            contrast_name="" if contrast is None else CLASSES[contrast],
            probability=0.5,
            objective=0.0,
            is_signed=True,
            maps=(shown,),
            baseline="",
            baseline_objective=float("nan"),
            bias_share=float("nan"),
            gaps=(),
            verdict="",
        )

    return make


@pytest.fixture
def run(provenance):
    def make(model, image, maps, explain=None, **options):
        return faithfulness(
            model, image, CLASSES, maps, "input", explain, provenance=provenance, **options
        )

    return make


def baseline_image(image: np.ndarray, name: str) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return make_baseline(torch.from_numpy(image)[None], name, generator)[0].numpy()


def sigmoid(values):
    return 1 / (1 + np.exp(-np.asarray(values, dtype=np.float64)))


def exact_map(linear: Linear, image: np.ndarray, baseline: str) -> np.ndarray:
    """Gradient x (photo - baseline): for a linear model what each pixel is worth, exactly."""
    weight = linear.weight.detach().numpy().astype(np.float64)
    return (weight * (image - baseline_image(image, baseline))).sum(0)


# Known answers


@pytest.mark.parametrize("baseline", BASELINES)
def test_curves_of_a_linear_model_are_those_of_the_closed_form(
    linear, photo, maps_of, run, baseline
):
    image = photo(SIZE, SIZE)
    worth = exact_map(linear, image, baseline)
    result = result_of(run(linear, image, maps_of(worth), baseline=baseline))
    own = result.curves[0]
    falling = np.concatenate(([0], np.sort(worth.ravel())[::-1].cumsum()))
    cuts = np.rint(result.shares * SIZE * SIZE).astype(int)
    with torch.no_grad():
        full = float(linear(torch.from_numpy(image)[None])[0, 0])
    empty = full - worth.sum()
    np.testing.assert_allclose(own.insertion, sigmoid(empty + falling[cuts]), atol=1e-5)
    np.testing.assert_allclose(own.deletion, sigmoid(full - falling[cuts]), atol=1e-5)
    area = np.trapezoid(sigmoid(empty + falling[cuts]), cuts / cuts[-1])
    assert own.insertion_auc == pytest.approx(area, abs=1e-5)


def test_the_exact_map_of_a_linear_model_foretells_everything(linear, photo, maps_of, run):
    image = photo(SIZE, SIZE)
    worth = exact_map(linear, image, "blur")
    for scale, expected in ((1.0, 0.0), (3.0, 0.0), (-1.0, 1.0)):
        result = result_of(run(linear, image, maps_of(scale * worth)))
        assert result.curves[0].infidelity == pytest.approx(expected, abs=1e-8)
    for control in result.curves[1:]:
        assert 0.3 < control.infidelity <= 1


def test_no_order_beats_the_exact_map_and_the_verdict_says_so(linear, photo, maps_of, run):
    image = photo(SIZE, SIZE)
    worth = exact_map(linear, image, "blur")
    best = result_of(run(linear, image, maps_of(worth)))
    worst = result_of(run(linear, image, maps_of(-worth)))
    own, chance, edge = best.curves
    assert [c.name for c in best.curves] == ["map", "random", "edges"]
    assert own.insertion_auc > max(chance.insertion_auc, edge.insertion_auc)
    assert own.deletion_auc < min(chance.deletion_auc, edge.deletion_auc)
    assert best.verdict.startswith("Against random orders: better. Against edges: better.")
    # A signed map is ranked by its sign: of the negated one the first pixels speak against.
    assert worst.verdict.startswith("Against random orders: worse. Against edges: worse.")


def test_a_map_that_says_nothing_is_no_different_from_a_random_order(linear, photo, maps_of, run):
    """Its order is a random one: insertion and deletion fall outside in one case of twenty each."""
    image, blank = photo(SIZE, SIZE), maps_of(np.zeros((SIZE, SIZE)))
    results = [result_of(run(linear, image, blank, steps=6, seed=seed)) for seed in range(40)]
    same = [r.verdict.startswith("Against random orders: no different.") for r in results]
    assert sum(same) >= 34
    assert "the same everywhere" in results[0].note
    assert results[0].curves[0].infidelity == 1


def test_a_model_that_looks_at_one_pixel(photo, maps_of, run):
    """Nothing happens until this pixel comes, then everything."""
    image = photo(SIZE, SIZE)
    image[:, 20, 7] = 2.0
    weight = np.zeros((3, SIZE, SIZE), dtype=np.float32)
    weight[:, 20, 7] = 1.0
    model = Linear(weight)
    values = np.zeros((SIZE, SIZE))
    values[20, 7] = 1.0
    result = result_of(run(model, image, maps_of(values), baseline="mean", steps=8))
    own = result.curves[0]
    np.testing.assert_allclose(own.insertion, sigmoid([0] + [6] * 8), rtol=1e-6)
    np.testing.assert_allclose(own.deletion, sigmoid([6] + [0] * 8), rtol=1e-6)
    # One trapezoid of width 1/8 between the two levels.
    levels = sigmoid([0, 6])
    assert own.insertion_auc == pytest.approx(levels[1] - (levels[1] - levels[0]) / 16, abs=1e-6)
    assert own.deletion_auc == pytest.approx(levels[0] + (levels[1] - levels[0]) / 16, abs=1e-6)
    # On average a random order finds the pixel half way: a square hides it or not, as foretold.
    assert own.infidelity == pytest.approx(0, abs=1e-8)


def test_random_orders_find_the_one_pixel_half_way_on_average(photo, maps_of, run):
    image = photo(SIZE, SIZE)
    image[:, 20, 7] = 2.0
    weight = np.zeros((3, SIZE, SIZE), dtype=np.float32)
    weight[:, 20, 7] = 1.0
    values = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    result = result_of(
        run(Linear(weight), image, maps_of(values), baseline="mean", steps=16, n_random=100)
    )
    chance = result.curves[1]
    half = sigmoid([0, 6]).mean()
    # Standard deviation of the mean of 100 uniform places: 0.5 / sqrt(12) / 10.
    assert chance.insertion_auc == pytest.approx(half, abs=4 * 0.0144)
    assert chance.deletion_auc == pytest.approx(chance.insertion_auc, abs=1e-6)
    assert (chance.insertion_low <= chance.insertion).all()
    assert (chance.insertion <= chance.insertion_high).all()


# Against an independent computation


def test_curves_of_the_network_are_those_of_a_plain_loop(network, photo, maps_of, run):
    height, width, stride = 45, 52, 8
    image = photo(height, width)
    values = np.random.default_rng(3).permutation(6 * 7).reshape(6, 7)
    result = result_of(run(network, image, maps_of(values, stride, target=4), steps=5))
    blank = baseline_image(image, "blur")
    pixels = sorted(
        ((y, x) for y in range(height) for x in range(width)),
        key=lambda at: (-values[at[0] // stride, at[1] // stride], at),
    )
    for i, share in enumerate(result.shares):
        first = pixels[: round(float(share) * height * width)]
        inserted, deleted = blank.copy(), image.copy()
        for y, x in first:
            inserted[:, y, x] = image[:, y, x]
            deleted[:, y, x] = blank[:, y, x]
        with torch.no_grad():
            both = network(torch.from_numpy(np.stack((inserted, deleted)))).softmax(1)[:, 4]
        assert result.curves[0].insertion[i] == pytest.approx(float(both[0]), abs=1e-6)
        assert result.curves[0].deletion[i] == pytest.approx(float(both[1]), abs=1e-6)


def test_infidelity_is_captums(network, photo, maps_of, run):
    image = photo(64, 64)
    difference = torch.from_numpy(image - baseline_image(image, "blur"))
    inputs = torch.from_numpy(image)[None].requires_grad_(True)
    gradient = torch.autograd.grad(network(inputs)[0, 2], inputs)[0][0]
    values = (gradient * difference).sum(0).reshape(16, 4, 16, 4).sum((1, 3)).numpy()
    result = result_of(run(network, image, maps_of(values, 4, target=2)))
    masks = torch.from_numpy(lab.square_masks((64, 64), np.random.default_rng([0, 2])))
    pixels = torch.from_numpy(image)[None]
    blank = torch.from_numpy(baseline_image(image, "blur"))
    per_pixel = torch.from_numpy(values.repeat(4, 0).repeat(4, 1).astype(np.float32) / 16)

    def perturb(inputs):
        # One channel carries the map, so that a pixel is counted once.
        counted = torch.zeros(len(masks), 3, 64, 64)
        counted[:, 0] = masks
        return counted, torch.where(masks[:, None], blank, inputs)

    attribution = torch.zeros_like(pixels)
    attribution[:, 0] = per_pixel
    theirs = captum_infidelity(
        network,
        perturb,
        pixels,
        attribution,
        target=2,
        n_perturb_samples=len(masks),
        normalize=True,
    )
    with torch.no_grad():
        changes = (network(pixels) - network(torch.where(masks[:, None], blank, pixels)))[:, 2]
    ours = result.curves[0].infidelity
    assert 0 < ours < 1  # the map is scaled by b > 0, as Captum's
    assert ours == pytest.approx(float(theirs / changes.square().mean()), rel=1e-4)


def test_sensitivity_is_captums(network, photo):
    image = photo(64, 64)
    seen = []

    def gradient(x):
        with torch.enable_grad():  # Captum asks without
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(network(x)[:, 2].sum(), x)[0]

    def explain(inputs):
        # A tuple for a tuple: of a bare tensor Captum would take the batch for a list of inputs.
        return (gradient(inputs[0]),) if isinstance(inputs, tuple) else gradient(inputs)

    def perturb(inputs):
        noisy = inputs + torch.from_numpy(
            np.random.default_rng(1).uniform(-0.02, 0.02, inputs.shape).astype(np.float32)
        )
        seen.append(noisy)
        return noisy

    pixels = torch.from_numpy(image)[None]
    theirs = sensitivity_max(explain, pixels, perturb_func=perturb, n_perturb_samples=10)
    values = gradient(pixels)[0].numpy()
    others = [gradient(x[None])[0].numpy() for batch in seen for x in batch]
    assert len(others) == 10
    assert lab.sensitivity(values, others) == pytest.approx(float(theirs), rel=1e-4)


def test_the_method_is_asked_about_slightly_changed_photos(linear, photo, maps_of, run):
    image = photo(SIZE, SIZE)
    values = exact_map(linear, image, "mean")
    asked = []

    def explain(other):
        asked.append(other)
        return values if len(asked) > 1 else 1.5 * values

    result = result_of(run(linear, image, maps_of(values), explain))
    largest = max(float(np.abs(other - image).max()) for other in asked)
    assert 0.9 * lab.NOISE < largest <= 1.001 * lab.NOISE
    own, chance, edge = result.curves
    assert own.sensitivity == pytest.approx(0.5)
    assert 0 < edge.sensitivity < 0.5
    assert "noise" not in result.note
    fewer = result_of(run(linear, image, maps_of(values), explain, n_noises=2))
    assert "2 photos with noise, not 10" in fewer.note
    assert chance.sensitivity > 1  # unrelated maps of zero mean differ by about sqrt(2)


def test_a_contrast_makes_it_the_two_classes_alone(network, photo, maps_of, run):
    image = photo(64, 64)
    maps = maps_of(np.arange(16 * 16).reshape(16, 16), 4, target=1, contrast=6)
    result = result_of(run(network, image, maps, steps=4))
    with torch.no_grad():
        logits = network(torch.from_numpy(image)[None])[0].double().numpy()
    assert result.curves[0].insertion[-1] == pytest.approx(sigmoid(logits[1] - logits[6]), abs=1e-6)
    assert "sigmoid of the difference" in result.provenance.definition


# Cells and controls


@pytest.mark.parametrize(
    "height, width, stride, rows, columns", [(45, 52, 8, 6, 7), (66, 35, 4, 16, 8)]
)
def test_cells_cut_at_the_border_and_none_is_left_out(height, width, stride, rows, columns):
    values = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    shown = AttributionMap(name="stage1", values=values, stride=stride, layer="")
    cells = Cells.of(shown, height, width)
    assert cells.n_pixels.sum() == height * width
    assert cells.spread(values).sum() == pytest.approx(values.sum(dtype=float))
    np.testing.assert_allclose(cells.mean(values.ravel()[cells.index]), values, rtol=1e-6)
    ranks = cells.ranks(values, np.random.default_rng(0))
    assert sorted(ranks.ravel()) == list(range(height * width))
    by_rank = values.ravel()[cells.index].ravel()[np.argsort(ranks.ravel())]
    assert (np.diff(by_rank) <= 0).all()


def test_equal_cells_follow_in_random_order():
    values = np.zeros((8, 8), dtype=np.float32)
    cells = Cells.of(AttributionMap(name="", values=values, stride=4, layer=""), 32, 32)
    first = {
        tuple(np.argwhere(cells.ranks(values, np.random.default_rng(i)) == 0)[0]) for i in range(20)
    }
    assert len(first) > 10


def test_edges_are_the_mean_sobel_magnitude(photo):
    image = photo(40, 48)
    cells = Cells.of(AttributionMap(name="", values=np.zeros((5, 6)), stride=8, layer=""), 40, 48)
    grey = (LUMINANCE[:, None, None] * (image * STD + MEAN)).sum(0).astype(np.float64)
    magnitude = np.hypot(*(ndimage.sobel(grey, axis=axis, mode="nearest") for axis in (0, 1)))
    expected = magnitude.reshape(5, 8, 6, 8).mean((1, 3))
    np.testing.assert_allclose(edges(image, cells), expected, rtol=1e-4)


@pytest.mark.parametrize("n", [4, 6, 20, 100])
def test_the_margin_is_students_prediction_interval(n):
    values = np.random.default_rng(n).standard_normal(n)
    exact = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / n)
    assert lab.chance_margin(values) == pytest.approx(exact, rel=0.01)


# Running, stopping, refusing


def test_progress_and_growing_results(network, photo, maps_of, run):
    image = photo(64, 64)
    values = np.arange(256).reshape(16, 16)
    items = list(run(network, image, maps_of(values, 4), lambda other: values))
    steps = [item for item in items if isinstance(item, Progress)]
    results = [item for item in items if not isinstance(item, Progress)]
    assert [s.done for s in steps] == sorted(s.done for s in steps)
    assert steps[-1].done == steps[-1].total == 2 + 10 * 23 + 48 + 10
    assert [len(r.curves) for r in results] == [1, 2, 3, 3]
    assert [r.is_final for r in results] == [False, False, False, True]
    np.testing.assert_array_equal(results[0].curves[0].insertion, results[-1].curves[0].insertion)


def test_a_repeat_gives_the_same_and_more_orders_leave_the_map_alone(network, photo, maps_of, run):
    image = photo(64, 64)
    maps = maps_of(np.zeros((16, 16)), 4)
    one, two = (result_of(run(network, image, maps, steps=4)) for _ in range(2))
    more = result_of(run(network, image, maps, steps=4, n_random=9))
    for a, b in zip(one.curves, two.curves, strict=True):
        np.testing.assert_array_equal(a.insertion, b.insertion)
        assert a.infidelity == b.infidelity or np.isnan(a.infidelity)
    np.testing.assert_array_equal(one.curves[0].insertion, more.curves[0].insertion)
    np.testing.assert_array_equal(one.curves[2].deletion, more.curves[2].deletion)


@pytest.mark.parametrize("after", [0, 1, 5, 20, 30, 40, 46])
def test_stop_ends_it_before_the_next_pass(network, photo, maps_of, run, n_hooks, after):
    image = photo(64, 64)
    values = np.arange(256).reshape(16, 16)
    token = CancelToken()
    before = n_hooks(network)
    items = run(network, image, maps_of(values, 4), lambda other: values, token=token)
    for _ in range(after):
        next(items)
    token.cancel()
    started = time.perf_counter()
    # A result that is ready may still come; no further pass does.
    with pytest.raises(CancelledError):
        while not isinstance(next(items), Progress):
            pass
    assert time.perf_counter() - started < 1
    assert n_hooks(network) == before


def test_what_cannot_be_done_is_refused_with_a_sentence(
    network, fresh_network, photo, maps_of, run, provenance
):
    image = photo(64, 64)
    maps = maps_of(np.zeros((16, 16)), 4)
    for options, words in (
        ({"steps": 1}, "steps is 1: choose a number from 2"),
        ({"n_random": 3}, "n_random is 3: choose a number from 4"),
        ({"baseline": "grey"}, "Choose one of blur, mean, black, noise"),
    ):
        with pytest.raises(BadInputError, match=words):
            next(run(network, image, maps, **options))
    with pytest.raises(BadInputError, match="has no map 'stage9'. Choose one of input"):
        next(faithfulness(network, image, CLASSES, maps, "stage9", None, provenance=provenance))
    with pytest.raises(BadInputError, match="do not cover a photo of 96 x 64 px"):
        next(run(network, photo(96, 64), maps))
    with pytest.raises(BadInputError, match="NaN or infinity"):
        next(run(network, image, maps_of(np.full((16, 16), np.nan), 4)))
    with torch.no_grad():
        fresh_network.classifier.head.weight[0, 0] = float("nan")
    with pytest.raises(BadInputError, match=r"classifier\.head\.weight"):
        next(run(fresh_network, image, maps))
