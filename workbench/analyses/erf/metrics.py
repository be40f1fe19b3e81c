"""Numbers of a receptive field: pure numpy, for one map or for many at once.

A map `[H, W]` is a share of mass per input pixel. Points are `(y, x)` in input pixels and pixel i
spans [i, i + 1], so its middle is i + 0.5.

    area20 50 90 99     smallest set of pixels with that share of the mass, over the image area;
                        does not change with the gradient's scale
    level50 90          lowest mass of a pixel in it
    radius50_px 90_px   radius around the token's centre with that share
    square20 30 50 99   smallest square of odd side around pixel (H // 2, W // 2) with more than
                        that share, over the image area (RepLKNet's ratio, on the mass); nan where
                        none reaches it and for a token that is not in the middle
    named20 30 50 99    the same on the map after the definition's transform
    com_y_px com_x_px   centre of mass; com_shift_px: its distance from the token's centre
    spread_px           root of the mean squared distance from the centre of mass
    anisotropy          long axis over short axis of the second moments, 1 or more
    axis_deg            direction of the long axis, from horizontal, counter-clockwise as seen,
                        (-90, 90]; nan for a round field
    gauss_sigma_y_px _x_px, gauss_r2   least-squares Gaussian with axes along the image's; nan where
                        it does not converge
    entropy_bits        of the mass; entropy_area: 2^bits / pixels, the area of an even map with it
    peak_y_px peak_x_px middle of the pixel with the most mass
    nonzero             share of the pixels with any mass
    uniform_distance    total variation from the even map on an 8 x 8 grid, 0 to 1
    split_distance      total variation between the fields of the even and of the odd images (of the
                        engine)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

AREAS = (20, 50, 90, 99)  # per cent of the mass
SQUARES = (20, 30, 50, 99)
RADII = (50, 90)
GRID = 8  # cells a side of the map whose distance from uniform is taken
PIXEL_VARIANCE = 1 / 12  # of a pixel's mass, which is spread evenly over the pixel
BLOCK = 256  # values that are summed together
# The direction of the long axis means nothing where both axes are this near to each other.
ROUND = 1 + 1e-6
FIT_STEPS = 200
# A fitted Gaussian this many times as wide as the image is a flat map, not a width.
WIDEST_FIT = 4.0


# By name `[R]`; radial curves; shares in the cells of the grid.
Numbers = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]


class Ruler:
    """What the numbers of all maps of one size around one point share: distances and their order.

    `centre` is the point that radii are measured from; the squares lie around pixel
    (H // 2, W // 2) as in RepLKNet.
    """

    def __init__(self, shape: tuple[int, int], centre: tuple[float, float]) -> None:
        self.shape = shape
        self.centre = centre

    @cached_property
    def _distance(self) -> np.ndarray:
        rows, columns = np.ogrid[: self.shape[0], : self.shape[1]]
        away = np.hypot(rows + 0.5 - self.centre[0], columns + 0.5 - self.centre[1])
        return away.ravel()

    @cached_property
    def by_distance(self) -> np.ndarray:
        """Pixels from the nearest to the farthest, int32 `[H * W]`."""
        return np.argsort(self._distance, kind="stable").astype(np.int32)

    @cached_property
    def distance(self) -> np.ndarray:
        """Distances of `by_distance`, ascending, in px."""
        return self._distance[self.by_distance]

    @cached_property
    def radii(self) -> np.ndarray:
        """0, 1, 2 ... px, up to the first that holds the whole map."""
        return np.arange(int(np.ceil(self.distance[-1])) + 1)

    @cached_property
    def n_within(self) -> np.ndarray:
        """Pixels within each of `radii`."""
        return np.searchsorted(self.distance, self.radii, side="right")

    @cached_property
    def squares(self) -> np.ndarray:
        """Half sides of the centred squares that lie inside the map: 1, 2 ..."""
        return np.arange(1, min(self.shape) // 2)

    @cached_property
    def offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """Middles of the rows and of the columns, in px from the middle of the map."""
        height, width = self.shape
        return np.arange(height) + 0.5 - height / 2, np.arange(width) + 0.5 - width / 2

    @cached_property
    def grid_edges(self) -> tuple[np.ndarray, np.ndarray]:
        """First rows and first columns of the cells of a `GRID` x `GRID` grid."""
        edges = [np.arange(min(GRID, n)) * n // min(GRID, n) for n in self.shape]
        return edges[0], edges[1]

    @cached_property
    def grid_uniform(self) -> np.ndarray:
        """Share of the area of each cell of that grid, `[cells]`."""
        height, width = (
            np.diff(edges, append=n) / n
            for edges, n in zip(self.grid_edges, self.shape, strict=True)
        )
        return np.outer(height, width).ravel()

    def grid(self, images: np.ndarray) -> np.ndarray:
        """Mass in each cell of that grid: `[R, H, W]` -> float64 `[R, cells]`."""
        rows, columns = self.grid_edges
        tall = np.add.reduceat(images, rows, axis=1).astype(np.float64)
        return np.add.reduceat(tall, columns, axis=2).reshape(len(images), -1)

    @cached_property
    def uniform(self) -> dict[str, float]:
        """`numbers` of the uniform map: what a field cannot be told from."""
        flat = np.full((1, self.shape[0] * self.shape[1]), 1.0)
        found, _, _ = numbers(self, flat, flat, is_centre_token=True)
        return {name: float(values[0]) for name, values in found.items()}


def numbers(
    ruler: Ruler, maps: np.ndarray, shown: np.ndarray | None, *, is_centre_token: bool
) -> Numbers:
    """The numbers that have a bootstrap band, of R maps at once; the radial curves `[R, n]`; the
    shares in the cells of the ruler's grid.

    `maps` `[R, H * W]` need not sum to 1. `shown`: the same maps after the definition's transform,
    None where it changes nothing.
    """
    totals = maps.sum(axis=1, dtype=np.float64)
    found: dict[str, np.ndarray] = {}
    n_pixels = maps.shape[1]
    for percent, n in zip(AREAS, n_to_reach(_descending(maps), AREAS), strict=True):
        found[f"area{percent}"] = n / n_pixels
    outwards = np.take(maps, ruler.by_distance, axis=1)
    for percent, n in zip(RADII, n_to_reach(outwards, RADII), strict=True):
        found[f"radius{percent}_px"] = ruler.distance[n - 1]
    radial = _radial(ruler, outwards)
    raw = _squares(ruler, maps) if is_centre_token else None
    named = raw if shown is None or raw is None else _squares(ruler, shown)
    for kind, squares in (("square", raw), ("named", named)):
        for i, percent in enumerate(SQUARES):
            none = np.full(len(maps), np.nan)
            found[f"{kind}{percent}"] = none if squares is None else squares[i]
    images = maps.reshape(-1, *ruler.shape)
    found |= _moments(ruler, images, totals)
    # With S the sum of the values v, the entropy is log2 S - sum v log2 v / S.
    logs = np.maximum(maps, np.finfo(maps.dtype).tiny)
    np.log2(logs, out=logs)
    logs *= maps
    weighted = logs.sum(axis=1)
    found["entropy_area"] = np.exp2(np.log2(totals) - weighted / totals) / n_pixels
    cells = ruler.grid(images) / totals[:, None]
    found["uniform_distance"] = 0.5 * abs(cells - ruler.grid_uniform).sum(axis=1)
    return found, radial, cells


def metrics(
    mass: np.ndarray,
    centre: tuple[float, float],
    *,
    is_centre_token: bool = True,
    shown: np.ndarray | None = None,
    ruler: Ruler | None = None,
) -> dict[str, float]:
    """All numbers of one field `[H, W]`, by the names that this module's docstring explains.

    `shown` is the field after its definition's transform, for "named*".
    """
    ruler = ruler or Ruler(mass.shape, centre)
    flat = np.asarray(mass, dtype=np.float64).reshape(1, -1)
    as_shown = None if shown is None else np.asarray(shown, dtype=np.float64).reshape(1, -1)
    many, _, _ = numbers(ruler, flat, as_shown, is_centre_token=is_centre_token)
    found = {name: float(values[0]) for name, values in many.items()}
    ordered = _descending(flat)[0]
    for percent in RADII:
        n = round(found[f"area{percent}"] * mass.size)
        found[f"level{percent}"] = float(ordered[n - 1] / flat.sum())
    peak = np.unravel_index(int(flat.argmax()), mass.shape)
    found["peak_y_px"], found["peak_x_px"] = (float(i) + 0.5 for i in peak)
    found["entropy_bits"] = float(np.log2(found["entropy_area"] * mass.size))
    found["nonzero"] = float((flat > 0).mean())
    found |= gaussian_fit(mass)
    return found


def highest_density(mass: np.ndarray, share: float) -> tuple[float, float]:
    """Smallest set of pixels that holds `share` of the mass: (its area / image area, its lowest
    mass)."""
    ordered = _descending(mass.reshape(1, -1))
    n = int(n_to_reach(ordered, (100 * share,))[0, 0])
    return n / mass.size, float(ordered[0, n - 1])


def _descending(maps: np.ndarray) -> np.ndarray:
    return np.sort(maps, axis=1)[:, ::-1]


def n_to_reach(values: np.ndarray, percents: Sequence[float]) -> np.ndarray:
    """How many of the first values of each row add up to each share of its sum: `[R, N]` ->
    `[P, R]`.

    Sums of blocks first, then of the values of one block: running sums over everything cost more
    than the sorting. They are added up in float64: a tail of small values vanishes beside a sum of
    float32.
    """
    starts = np.arange(0, values.shape[1], BLOCK)
    sums = np.add.reduceat(values, starts, axis=1).astype(np.float64)
    ends = np.cumsum(sums, axis=1)
    found = np.empty((len(percents), len(values)), dtype=np.int64)
    for r, row in enumerate(ends):
        for i, percent in enumerate(percents):
            wanted = percent / 100 * row[-1]
            block = min(int(np.searchsorted(row, wanted)), starts.size - 1)
            inside = values[r, starts[block] : starts[block] + BLOCK]
            running = np.cumsum(inside, dtype=np.float64) + (row[block - 1] if block else 0.0)
            n = int(np.searchsorted(running, wanted))
            found[i, r] = starts[block] + min(n, inside.size - 1) + 1
    return found


def _radial(ruler: Ruler, outwards: np.ndarray) -> np.ndarray:
    """Shares within each of the ruler's radii, of values ordered by distance: float64 `[R, n]`."""
    # Radii without pixels of their own (0 px beside a pixel's middle) share a start; `reduceat`
    # would take one value for them.
    counts = np.diff(ruler.n_within, prepend=0)
    rings = np.zeros((len(outwards), counts.size))
    starts = (ruler.n_within - counts)[counts > 0]
    rings[:, counts > 0] = np.add.reduceat(outwards, starts, axis=1)
    within = np.cumsum(rings, axis=1)
    return within / within[:, -1:]


def centred_square(mass: np.ndarray, share: float) -> float:
    """RepLKNet's area ratio: the smallest square of odd side around pixel (H//2, W//2) with more
    than `share` of the mass, over the image area; nan if none inside the image reaches it."""
    ruler = Ruler(mass.shape, (0.0, 0.0))
    return float(_squares(ruler, mass.reshape(1, -1), (100 * share,))[0, 0])


def _squares(ruler: Ruler, maps: np.ndarray, percents: tuple[float, ...] = SQUARES) -> np.ndarray:
    """Area ratios of the centred squares of `[R, H * W]` maps: `[P, R]`."""
    areas = np.append((2 * ruler.squares + 1) ** 2 / maps.shape[1], np.nan)
    inside = (
        _in_squares(maps.reshape(-1, *ruler.shape)) / maps.sum(axis=1, dtype=np.float64)[:, None]
    )
    found = np.empty((len(percents), len(maps)))
    for r, shares in enumerate(inside):
        for i, percent in enumerate(percents):
            found[i, r] = areas[np.searchsorted(shares, percent / 100, side="right")]
    return found


def _in_squares(images: np.ndarray) -> np.ndarray:
    """Sums over the squares of half side 1, 2 ... around the middle pixel of `[R, H, W]`.

    Rows and columns at the same distance from the middle are added first: then a square is a corner
    of the folded map.
    """
    n = min(images.shape[1:]) // 2
    for axis in (1, 2):
        middle = images.shape[axis] // 2
        ahead = np.moveaxis(images, axis, 0)[middle : middle + n]
        behind = np.moveaxis(images, axis, 0)[middle - n + 1 : middle + 1][::-1]
        folded = ahead + behind
        folded[:1] = ahead[:1]  # the middle itself counts once
        images = np.moveaxis(folded, 0, axis)
    lower = np.tril(np.ones((n, n), dtype=images.dtype))
    # Ring k: row k up to column k, column k above row k.
    rings = np.einsum("rij,ij->ri", images, lower) + np.einsum("rij,ij->rj", images, lower.T)
    rings -= np.einsum("rii->ri", images)  # the corner is in both
    return np.cumsum(rings, axis=1, dtype=np.float64)[:, 1:]


def radial_mass(mass: np.ndarray, around: Ruler) -> tuple[np.ndarray, np.ndarray]:
    """Share of the mass within each radius 0, 1, 2 ... px: (radii, shares)."""
    return around.radii, _radial(around, mass.reshape(1, -1)[:, around.by_distance])[0]


def mass_radius(mass: np.ndarray, centre: tuple[float, float], share: float) -> float:
    """Smallest radius in input pixels around `centre` that holds `share` of the mass."""
    ruler = Ruler(mass.shape, centre)
    outwards = mass.reshape(1, -1)[:, ruler.by_distance]
    return float(ruler.distance[n_to_reach(outwards, (100 * share,))[0, 0] - 1])


def _moments(ruler: Ruler, images: np.ndarray, totals: np.ndarray) -> dict[str, np.ndarray]:
    """Centre of mass, rms distance from it, ratio and direction of the axes of the second moments.

    The mass of a pixel lies evenly over the pixel, so a single pixel has a width too.
    """
    rows, columns = ruler.offsets
    by_row = images.sum(axis=2).astype(np.float64) / totals[:, None]
    by_column = images.sum(axis=1).astype(np.float64) / totals[:, None]
    # (einsum: BLAS would start threads for so small a product, inside those of the caller.)
    x_by_row = np.einsum("rhw,w->rh", images, columns.astype(images.dtype)).astype(np.float64)
    y, x = by_row @ rows, by_column @ columns
    yy = by_row @ rows**2 - y**2 + PIXEL_VARIANCE
    xx = by_column @ columns**2 - x**2 + PIXEL_VARIANCE
    xy = x_by_row @ rows / totals - x * y
    mean, half = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
    ratio = np.sqrt((mean + half) / np.maximum(mean - half, 1e-12))
    # Rows count downwards, angles upwards.
    axis = np.degrees(0.5 * np.arctan2(-2 * xy, xx - yy))
    axis = np.where(axis <= -90.0, axis + 180.0, axis)
    height, width = ruler.shape
    com_y, com_x = y + height / 2, x + width / 2
    return {
        "com_y_px": com_y,
        "com_x_px": com_x,
        "com_shift_px": np.hypot(com_y - ruler.centre[0], com_x - ruler.centre[1]),
        "spread_px": np.sqrt(yy + xx),
        "anisotropy": ratio,
        "axis_deg": np.where(ratio > ROUND, axis, np.nan),
    }


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Half the summed difference of two maps that each sum to 1: 0 equal, 1 disjoint."""
    return 0.5 * float(abs(a - b).sum())


def border_share(mass: np.ndarray) -> tuple[float, float]:
    """Share of the mass in the outermost sixteenth along each side, and share of the area there."""
    height, width = mass.shape
    rows, columns = max(1, height // 16), max(1, width // 16)
    inside = mass[rows : height - rows, columns : width - columns]
    return 1 - float(inside.sum() / mass.sum()), 1 - inside.size / mass.size


def gaussian_fit(mass: np.ndarray) -> dict[str, float]:
    """Least squares of A exp(-(y - a)^2 / 2 s^2 - (x - b)^2 / 2 t^2), axes along the image's.

    Levenberg-Marquardt from the moments. The Gaussian is a product of a column and a row, so every
    sum that the normal equations need is a product of small matrices: a step costs one pass over
    the map. nan where it does not converge or is wider than any width that the map could show.
    """
    m = np.asarray(mass, dtype=np.float64) / mass.max()
    total, square = m.sum(), float((m * m).sum())
    variation = square - total**2 / m.size
    nan = {"gauss_sigma_y_px": np.nan, "gauss_sigma_x_px": np.nan, "gauss_r2": np.nan}
    if not variation > 1e-12 * square:
        return nan  # a flat map
    places = [np.arange(n) + 0.5 for n in m.shape]
    start = [1.0]
    for axis, at in enumerate(places):
        weight = m.sum(axis=1 - axis) / total
        middle = weight @ at
        start += [middle, float(np.sqrt(weight @ (at - middle) ** 2 + PIXEL_VARIANCE))]
    p = np.array([start[0], start[1], start[3], start[2], start[4]])  # A, a, b, s, t
    p[0] = _amplitude(m, places, p)
    damping, state = 1e-3, _normal_equations(m, places, p)
    for _ in range(FIT_STEPS):
        loss, gradient, curvature = state
        scaled = curvature + damping * np.diag(np.diag(curvature) + 1e-300)
        try:
            step = np.linalg.solve(scaled, gradient)
        except np.linalg.LinAlgError:
            return nan
        trial = p + step
        is_valid = trial[3] > 1e-3 and trial[4] > 1e-3
        found = _normal_equations(m, places, trial) if is_valid else None
        if found is None or not found[0] <= loss:
            damping *= 8
            if damping > 1e12:
                return nan
            continue
        p, state, damping = trial, found, max(damping / 8, 1e-12)
        if max(p[3] / m.shape[0], p[4] / m.shape[1]) > WIDEST_FIT:
            return nan
        if np.all(abs(step) <= 1e-9 * (abs(p) + 1e-9)) or loss - found[0] <= 1e-14 * square:
            r2 = 1 - (square + found[0]) / variation
            return {
                "gauss_sigma_y_px": float(p[3]),
                "gauss_sigma_x_px": float(p[4]),
                "gauss_r2": float(r2),
            }
    return nan


def _bells(places: list[np.ndarray], p: np.ndarray) -> list[np.ndarray]:
    """For each axis `[n, 3]`: the bell, its derivatives by its middle and by its width."""
    found = []
    for at, middle, width in zip(places, p[1:3], p[3:], strict=True):
        z = (at - middle) / width
        bell = np.exp(-0.5 * z**2)
        found.append(np.stack([bell, bell * z / width, bell * z**2 / width], axis=1))
    return found


def _amplitude(m: np.ndarray, places: list[np.ndarray], p: np.ndarray) -> float:
    tall, wide = (bells[:, 0] for bells in _bells(places, p))
    return float(tall @ m @ wide / ((tall @ tall) * (wide @ wide)))


def _normal_equations(
    m: np.ndarray, places: list[np.ndarray], p: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Sum of squares less that of the map, J^T (map - model) and J^T J for the parameters `p`."""
    tall, wide = _bells(places, p)
    met = tall.T @ (m @ wide)  # sums of the map times each product of two columns
    talls, wides = tall.T @ tall, wide.T @ wide
    # Derivatives by A, a, b, s, t: which column and which row, and whether A is a factor.
    rows, columns = np.array([0, 1, 0, 2, 0]), np.array([0, 0, 1, 0, 2])
    factor = np.array([1.0, p[0], p[0], p[0], p[0]])
    curvature = talls[np.ix_(rows, rows)] * wides[np.ix_(columns, columns)]
    curvature = curvature * np.outer(factor, factor)
    model = p[0] * talls[rows, 0] * wides[columns, 0]
    gradient = factor * (met[rows, columns] - model)
    loss = -2 * p[0] * met[0, 0] + p[0] ** 2 * talls[0, 0] * wides[0, 0]
    return float(loss), gradient, curvature
