"""Mean map, its uncertainty and its convergence, from images that pass by one at a time.

Nothing here grows with the number of images but their names. The bootstrap over images is the
Poisson one: in each of R resamples an image counts as often as a Poisson(1) draw says, so the
resampled means can be summed up as the images come. The draws are a function of the seed and the
image's number, so they are the same in whatever process the image is looked at.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from workbench.analyses.erf.definitions import Definition
from workbench.analyses.erf.metrics import (
    Numbers,
    Ruler,
    border_share,
    numbers,
    total_variation,
)

BOOTSTRAP_BYTES = 128 << 20
# Measuring a resample takes a hundredth of what a pass of a small network takes; few images get few
# resamples, so that the band never costs more than some per cent.
FEWEST_RESAMPLES = 32
MOST_RESAMPLES = 64
PENDING = 8  # maps that are added to the resamples together
CHUNK = 1 << 18  # pixels of resampled maps that are measured at once: 1 MiB stays in the cache
DEVIATIONS = 1.645  # of a normal distribution: 5 and 95 %
# Total variation from uniform on an 8 x 8 grid below which a field says nothing about its size.
UNIFORM = 0.05
# Share of the mass in the outermost sixteenth of each side that says that the border cuts.
CUT_OFF = 0.10


class Group(Protocol):
    """Processes that share the images; `distributed` has the one of torchrun."""

    rank: int
    world: int

    def sum(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The sums over all processes; every process must call it with the same keys and shapes."""
        ...


@dataclass(frozen=True, slots=True)
class Band:
    """Where 90 % of the numbers of as many other images would lie; empty without resamples.

    The number itself, 1.64 standard deviations of the resamples up and down (the normal bootstrap
    interval). Not their percentiles: a resample holds fewer different images, so its densest area,
    for one, is smaller throughout; and a deviation needs a quarter of the resamples that a
    percentile needs to be as well known (64: to 9 %).
    """

    n: int
    low: dict[str, float]
    high: dict[str, float]
    radial_low: np.ndarray
    radial_high: np.ndarray
    noise: float  # 95 % of the resamples are nearer to the field than this, on the 8 x 8 grid


NO_BAND = Band(0, {}, {}, np.zeros(0, np.float32), np.zeros(0, np.float32), float("nan"))


def n_resamples(height: int, width: int, n_images: int) -> int:
    """Two for each image, as many as fit; none for one image."""
    if n_images < 2:
        return 0
    fit = BOOTSTRAP_BYTES // (4 * height * width)
    return max(min(2 * n_images, fit, MOST_RESAMPLES), FEWEST_RESAMPLES)


def poisson_weights(seed: int, index: int, n: int) -> np.ndarray:
    """How often image `index` counts in each of `n` resamples, float32."""
    generator = np.random.Generator(np.random.Philox(key=[seed, index]))
    return generator.poisson(1.0, n).astype(np.float32)


class Accumulator:
    """Sums over images of maps `[H, W]`: of all, of every other one, of each resample."""

    def __init__(self, height: int, width: int, n_planned: int, seed: int) -> None:
        self.shape = height, width
        self.seed = seed
        # Of the images with an even and with an odd number.
        self.sums: np.ndarray = np.zeros((2, height * width))
        self.counts: np.ndarray = np.zeros(2)
        n = n_resamples(height, width, n_planned)
        self._resamples = torch.zeros(n, height * width)
        self._weights: np.ndarray = np.zeros(n)  # images in each resample
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    def add(self, index: int, image_map: np.ndarray, divide_by: float = 1.0) -> None:
        """Map float32 `[H, W]` of image number `index`, over `divide_by`."""
        half = index % 2
        flat = image_map.reshape(-1)
        self.sums[half] += flat.astype(np.float64) / divide_by
        self.counts[half] += 1
        if n := len(self._weights):
            weights = poisson_weights(self.seed, index, n)
            self._weights += weights
            self._pending.append((weights / np.float32(divide_by), flat))
            if len(self._pending) == PENDING:
                self._flush()

    def _flush(self) -> None:
        if self._pending:
            weights, maps = (np.stack(values) for values in zip(*self._pending, strict=True))
            self._resamples.addmm_(torch.from_numpy(weights.T.copy()), torch.from_numpy(maps))
            self._pending.clear()

    def mean(self) -> np.ndarray:
        """Float64 `[H, W]`."""
        return self.sums.sum(axis=0).reshape(self.shape) / self.n

    def split_distance(self) -> float:
        """Total variation between the fields of the even and of the odd images; nan without
        both."""
        totals = self.sums.sum(axis=1)
        if not (totals > 0).all():
            return float("nan")
        return total_variation(*(self.sums / totals[:, None]))

    def band(self, ruler: Ruler, definition: Definition, is_centre_token: bool) -> Band:
        """The spread of the numbers over the resamples."""
        self._flush()
        if np.count_nonzero(self._weights) < 2 or self.n < 2:
            return NO_BAND
        own, own_radial, own_cells = self._measured(
            ruler, definition, is_centre_token, self.sums.sum(axis=0)[None], np.array([self.n])
        )
        sums = self._resamples.numpy()
        step = max(1, CHUNK // sums.shape[1])

        # A resample of few images may hold none of them.
        filled = np.flatnonzero(sums.max(axis=1) > 0)
        if not filled.size:
            return NO_BAND

        def measured(start: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
            rows = filled[start : start + step]
            values, radial, cells = self._measured(
                ruler, definition, is_centre_token, sums[rows], self._weights[rows]
            )
            return values, radial, 0.5 * abs(cells - own_cells).sum(axis=1)

        # numpy lets go of the interpreter's lock in all that takes long here.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            parts = list(pool.map(measured, range(0, filled.size, step)))
        low, high = {}, {}
        for name, (value,) in own.items():
            values = np.concatenate([of_each[name] for of_each, _, _ in parts])
            # A square that a resample does not reach has no number; a band needs most of them.
            reached = values[np.isfinite(values)]
            if name == "axis_deg" or np.isnan(value) or reached.size < 0.9 * values.size:
                continue
            half = DEVIATIONS * float(reached.std(ddof=1))
            low[name] = max(float(value) - half, 1.0 if name == "anisotropy" else 0.0)
            high[name] = float(value) + half
        radials = np.concatenate([radial for _, radial, _ in parts])
        half_radial = DEVIATIONS * radials.std(axis=0, ddof=1)
        away = np.concatenate([of_each for _, _, of_each in parts])
        return Band(
            len(radials),
            low,
            high,
            np.maximum(own_radial[0] - half_radial, 0.0).astype(np.float32),
            np.minimum(own_radial[0] + half_radial, 1.0).astype(np.float32),
            float(away.mean() + DEVIATIONS * away.std(ddof=1)),
        )

    @staticmethod
    def _measured(
        ruler: Ruler,
        definition: Definition,
        is_centre_token: bool,
        sums: np.ndarray,
        weights: np.ndarray,
    ) -> Numbers:
        """`numbers` of the sums `[R, H * W]` of so many images each."""
        shown = None
        if definition.transform.of is not None:
            shown = definition.transform.of(sums / weights[:, None].astype(sums.dtype))
        return numbers(ruler, sums, shown, is_centre_token=is_centre_token)

    def merged(self, group: Group, with_resamples: bool) -> Accumulator:
        """The sums over all processes, as a new accumulator."""
        self._flush()
        state = {"sums": self.sums, "counts": self.counts}
        if with_resamples:
            state |= {"resamples": self._resamples.numpy(), "weights": self._weights}
        state = group.sum(state)
        whole = Accumulator(*self.shape, 1, self.seed)
        whole.sums, whole.counts = state["sums"], state["counts"]
        if with_resamples:
            whole._resamples = torch.from_numpy(state["resamples"])
            whole._weights = state["weights"]
        return whole


def gathered(group: Group, value: Any) -> list[Any]:
    """The values (as JSON can hold them) of all processes, in the order of their ranks."""
    text = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
    lengths = np.zeros(group.world, dtype=np.int64)
    lengths[group.rank] = text.size
    lengths = group.sum({"lengths": lengths})["lengths"]
    rows = np.zeros((group.world, int(lengths.max())), dtype=np.uint8)
    rows[group.rank, : text.size] = text
    rows = group.sum({"rows": rows})["rows"]
    return [json.loads(bytes(row[:n])) for row, n in zip(rows, lengths, strict=True)]


def saturation(
    ruler: Ruler,
    mass: np.ndarray,
    found: dict[str, float],
    band: Band,
) -> str:
    """Why the size of this field means little, in words with the number; "" where it does.

    Three findings, the first that holds: (1) the field is no farther from uniform, as total
    variation on an 8 x 8 grid, than 5 %, or than resampled fields are from their mean; (2) half of
    its mass needs a radius around the token that is no smaller than an even spread needs, up to its
    band; (3) the outermost sixteenth along the sides holds more than a tenth of the mass: the
    border cuts the field off, and what lies outside is not counted.

    The share of pixels that the densest area takes is no test: noise of single pixels makes it
    small for an even field too.
    """
    distance = found["uniform_distance"]
    noise = max(UNIFORM, band.noise if band.n else 0.0)
    remedy = "Use 512 px or more, or an earlier stage."
    if distance <= noise:
        return (
            f"The field cannot be told from a uniform map: it differs from an even spread by "
            f"{100 * distance:.1f} % of its mass (noise: {100 * noise:.1f} %), so its size is the "
            f"image's. {remedy}"
        )
    radius, even = found["radius50_px"], ruler.uniform["radius50_px"]
    if band.high.get("radius50_px", radius) >= even:
        return (
            f"The field is not gathered around its token: half of its mass needs a radius of "
            f"{radius:.0f} px, an even spread {even:.0f} px, so its size is the image's. {remedy}"
        )
    share, area = border_share(mass)
    if share > CUT_OFF:
        return (
            f"The border cuts the field off: {100 * share:.0f} % of its mass lies in the outermost "
            f"sixteenth along the sides ({100 * area:.0f} % of the area). Sizes are too small and "
            f"the order of networks can reverse. {remedy}"
        )
    return ""
