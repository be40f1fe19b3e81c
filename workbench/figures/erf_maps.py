"""What every picture of receptive fields shares: scales, contours, outlines, names, notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from contourpy import contour_generator

from workbench.figures.theme import CIVIDIS, Json, block_sum, heatmap, significant
from workbench.labels import scan_in_text, scan_short
from workbench.results import ErfResult

TONES = ("a", "b", "c", "d")
DECADES = 4  # of the log scale; what lies lower gets the darkest colour, which the bar says
EXPONENT = 0.2  # of the power scale: VMamba's
MAX_CELLS = 128  # cells a side sent to the browser
MASSES = ((0.5, "solid"), (0.9, "dot"))  # shares of the mass that the contours hold
CONTOUR_CELL_PX = 8  # contours of a few images' gradients are noise at single pixels
CONTOUR_CELLS = 40  # a side at most: larger inputs get larger cells, so lines stay lines
MAX_OUTLINE_EDGES = 12_000
SCALE_NAMES = {"log": "log", "linear": "linear", "power": f"x^{EXPONENT:g}"}
DEFINITION_NAMES = {
    "mass": "scale-invariant mass",
    "replknet": "RepLKNet",
    "vmamba": "VMamba",
    "openerf": "OpenERF",
}
# What a named definition draws, and which of our scales is the same up to the normalisation.
OWN_TRANSFORM = {"replknet": "log10(x + 1) / max", "vmamba": "x^0.2 / max", "openerf": "linear"}
SAME_SCALE = {"vmamba": "power", "openerf": "linear"}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Line = list[tuple[float, float]]  # (y, x) input pixels


def density_level(mass: np.ndarray, share: float) -> float:
    """Smallest cell mass of the densest cells that together hold `share` of the total."""
    ordered = np.sort(mass.ravel())[::-1]
    cumulative = np.cumsum(ordered, dtype=np.float64)
    reached = np.searchsorted(cumulative, share * cumulative[-1])
    return float(ordered[min(reached, len(ordered) - 1)])


def bin_px(result: ErfResult, max_cells: int = MAX_CELLS) -> int:
    """Side of a drawn cell in input pixels: the smallest of 2, 4, 8, ... that fits the budget."""
    size = 2
    while max(result.mass.shape) / size > max_cells:
        size *= 2
    return size


@dataclass(frozen=True, slots=True)
class Scale:
    """One colour scale for several fields: the mass of a cell of `cell` x `cell` input pixels."""

    key: str  # "log" | "linear" | "power"
    cell: int
    top: float  # largest mass of any cell of any field

    @property
    def low(self) -> float:
        return math.log10(self.top) - DECADES if self.key == "log" else 0.0

    @property
    def high(self) -> float:
        return float(self.shown(np.array(self.top)))

    def shown(self, mass: np.ndarray) -> np.ndarray:
        """What is coloured for cells of that mass."""
        if self.key == "log":
            with np.errstate(divide="ignore"):
                shown: np.ndarray = np.maximum(np.log10(mass), self.low)
            return shown
        return mass**EXPONENT if self.key == "power" else mass

    def trace(self, result: ErfResult, **extra: object) -> Json:
        z = self.shown(block_sum(result.mass.astype(np.float64), self.cell))
        return heatmap(z, self.cell, self.low, self.high, **extra)

    def read(self) -> Json:
        """How the page turns a colour back into a number."""
        read: Json = {"trace": 0, "cell": self.cell, "unit": "of the mass"}
        if self.key == "log":
            return read | {"power": 10, "floor": self.low}
        return read | ({"exponent": 1 / EXPONENT} if self.key == "power" else {})

    def ticks(self) -> list[Json]:
        """Marks of the bar: where (0 to 1) and what."""
        if self.key == "log":
            decades = range(math.ceil(self.low), math.floor(self.high) + 1)
            return [
                {"at": (at - self.low) / DECADES, "text": f"10{str(at).translate(SUPERSCRIPTS)}"}
                for at in decades
            ]
        return [
            {
                "at": share if self.key == "linear" else share**EXPONENT,
                "text": tiny(share * self.top),
            }
            for share in self.marks()
        ]

    def marks(self) -> tuple[float, ...]:
        """Marks of a bar that is not in decades, as shares of the top."""
        return (0.0, 0.5, 1.0) if self.key == "linear" else (0.0, 0.005, 0.1, 1.0)


def tiny(value: float) -> str:
    """Two significant digits for a bar's end: "0.0012", "1.7·10⁻⁶"."""
    if value == 0 or not math.isfinite(value) or 1e-4 <= abs(value) < 1e5:
        return significant(value, 2)
    exponent = math.floor(math.log10(abs(value)))
    return f"{value / 10.0**exponent:.1f}·10{str(exponent).translate(SUPERSCRIPTS)}"


def scale_of(results: Sequence[ErfResult], key: str, max_cells: int = MAX_CELLS) -> Scale:
    """The scale on which all fields are drawn."""
    if key not in SCALE_NAMES:
        raise ValueError(f"scale {key!r}; known are {', '.join(SCALE_NAMES)}")
    cell = max(bin_px(r, max_cells) for r in results)
    return Scale(key, cell, max(float(block_sum(r.mass, cell).max()) for r in results))


def scale_json(scale: Scale, definition: str) -> Json:
    """The bar under the maps, with what the definition's authors draw instead."""
    label = f"share of the mass per {scale.cell} × {scale.cell} px, {SCALE_NAMES[scale.key]}"
    if scale.key == "log":
        label += f", {DECADES} decades"
    tip = label
    own = OWN_TRANSFORM.get(definition)
    if own and SAME_SCALE.get(definition) == scale.key:
        label += f": {DEFINITION_NAMES[definition]}'s own"
        tip = f"{label}, which draws each map over its own maximum; here all maps share one scale"
    elif own:
        label += f", not {DEFINITION_NAMES[definition]}'s own"
        tip = f"{label}: that is {own}"
    low = f"≤ {tiny(10**scale.low)}" if scale.key == "log" else "0"
    return {
        "stops": list(CIVIDIS),
        "low": low,
        "high": tiny(scale.top),
        "ticks": scale.ticks(),
        "label": label,
        "tip": tip,
    }


def contour_cell(result: ErfResult) -> int:
    """Side in input pixels of the cells between which the contours run."""
    cell = max(CONTOUR_CELL_PX, bin_px(result))
    while max(result.mass.shape) / cell > CONTOUR_CELLS:
        cell *= 2
    return cell


def mass_contours(result: ErfResult, share: float) -> list[Line]:
    """Lines around the densest cells that hold `share` of the mass."""
    cell = contour_cell(result)
    mass = block_sum(result.mass.astype(np.float64), cell)
    level = density_level(mass, share)
    height, width = result.mass.shape
    # A frame of the outermost values lets the lines run to the border, not to its cells' centres.
    y = np.concatenate([[0.0], (np.arange(mass.shape[0]) + 0.5) * cell, [height]])
    x = np.concatenate([[0.0], (np.arange(mass.shape[1]) + 0.5) * cell, [width]])
    y, x = np.minimum(y, height), np.minimum(x, width)
    lines = contour_generator(x, y, np.pad(mass, 1, mode="edge")).lines(level)
    return [[(float(py), float(px)) for px, py in np.asarray(line)] for line in lines]


def outline(mask: np.ndarray) -> tuple[list[Line], int]:
    """Closed lines around the pixels of a mask `[H, W]`, and to how many pixels they are exact.

    A mask with very many edges (a comb of rows) is outlined in cells of 2, 4, ... pixels: a cell
    belongs to it if any of its pixels does.
    """
    height, width = mask.shape
    cell = outline_cell(mask)
    pixels = _coarse(mask, cell)
    lines = []
    for loop in _loops(pixels):
        corners = [
            p for p, before, after in _neighbours(loop) if not _is_straight(before, p, after)
        ]
        points = [(float(min(y * cell, height)), float(min(x * cell, width))) for y, x in corners]
        lines.append([*points, points[0]])
    return lines, cell


def outline_cell(mask: np.ndarray) -> int:
    """To how many pixels the outline of a mask is exact."""
    cell = 1
    while _n_edges(_coarse(mask, cell)) > MAX_OUTLINE_EDGES:
        cell *= 2
    return cell


def _coarse(mask: np.ndarray, cell: int) -> np.ndarray:
    if cell == 1:
        return mask.astype(bool)
    some: np.ndarray = block_sum(mask.astype(np.int32), cell) > 0
    return some


def _n_edges(pixels: np.ndarray) -> int:
    padded = np.pad(pixels, 1)
    return int(
        sum(np.diff(padded.astype(np.int8), axis=axis).astype(bool).sum() for axis in (0, 1))
    )


Corner = tuple[int, int]


def _loops(pixels: np.ndarray) -> list[list[Corner]]:
    """Borders walked with the pixels on the right; a corner where two touch is passed twice."""
    after: dict[Corner, list[Corner]] = {}
    padded = np.pad(pixels, 1)
    inside = padded[1:-1, 1:-1]
    # Side of a pixel without a neighbour -> its first and last corner, clockwise.
    sides = (
        (inside & ~padded[:-2, 1:-1], (0, 0), (0, 1)),
        (inside & ~padded[1:-1, 2:], (0, 1), (1, 1)),
        (inside & ~padded[2:, 1:-1], (1, 1), (1, 0)),
        (inside & ~padded[1:-1, :-2], (1, 0), (0, 0)),
    )
    for open_side, (y0, x0), (y1, x1) in sides:
        for y, x in np.argwhere(open_side).tolist():
            after.setdefault((y + y0, x + x0), []).append((y + y1, x + x1))
    loops = []
    while after:
        first = next(iter(after))
        loop, corner = [], first
        while corner in after:
            loop.append(corner)
            following = after[corner]
            corner = following.pop()
            if not following:
                del after[loop[-1]]
        loops.append(loop)
    return loops


def _neighbours(loop: list[Corner]) -> zip[tuple[Corner, Corner, Corner]]:
    return zip(loop, [loop[-1], *loop[:-1]], [*loop[1:], loop[0]], strict=True)


def _is_straight(a: Corner, b: Corner, c: Corner) -> bool:
    return (b[0] - a[0]) * (c[1] - b[1]) == (b[1] - a[1]) * (c[0] - b[0])


def line_trace(lines: Sequence[Line], colour: str, dash: str, width: float = 1.4) -> Json:
    """Lines on a map; gaps between them are nulls."""
    points: list[tuple[float | None, float | None]] = []
    for line in lines:
        points += [(round(y, 1), round(x, 1)) for y, x in line]
        points.append((None, None))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for _, x in points],
        "y": [y for y, _ in points],
        "line": {"color": colour, "width": width, "dash": dash},
        "hoverinfo": "skip",
    }


def contour_traces(result: ErfResult, colour: str = "#ffffff") -> list[Json]:
    """Lines around the densest cells that hold 50 % (solid) and 90 % (dotted) of the mass."""
    traces = []
    for share, dash in MASSES:
        trace = line_trace(mass_contours(result, share), colour, dash)
        trace["line"] |= {"shape": "spline", "smoothing": 0.5}
        traces.append(trace | {"name": f"{share:.0%} of the mass"})
    return traces


def signed_root(delta: np.ndarray) -> np.ndarray:
    """The root of a difference with its sign: small ones stay visible, zero stays zero."""
    rooted: np.ndarray = np.sign(delta) * np.sqrt(np.abs(delta))
    return rooted


def is_swapped(result: ErfResult) -> bool:
    """Whether the scan that ran is not the one that the weights were trained with."""
    p = result.provenance
    return not p.is_random and bool(p.scan) and p.trained_scan != p.scan


def field_names(fields: Sequence[ErfResult]) -> list[str]:
    """The shortest names that tell the fields apart: "ES2D" and "Full scan, swapped in" of one
    network, "Tiny" and "Base" with one scan, "Tiny, ES2D" and "Base, Full scan" where both differ.

    The state of the weights is named where it differs; equal fields have equal names.
    """
    parts = [_parts(result) for result in fields]
    networks, scans, states = ({part[i] for part in parts} for i in range(3))
    names = []
    for network, scan, state in parts:
        words = [network] if len(networks) > 1 else []
        words += [scan] if len(scans - {""}) > 1 else []
        words = [word for word in words if word] or [scan or network]
        words += [state] if len(states) > 1 and state else []
        names.append(", ".join(words))
    return names


def _parts(result: ErfResult) -> tuple[str, str, str]:
    """Network, scan where it has one, and what is unusual about the weights.

    `ErfResult.network` may say the last two itself: "Tiny, ES2D, random".
    """
    scan = scan_short(result.provenance.scan) if result.provenance.scan else ""
    state = "random" if result.provenance.is_random else "swapped in" if is_swapped(result) else ""
    network = result.network.removesuffix(f", {state}").removesuffix(f", {scan}")
    return network, scan, state


def in_text(name: str) -> str:
    """A field's name inside a sentence."""
    if name.startswith("Full scan"):
        return "the f" + name[1:]
    return name.replace(", Full scan", ", full scan")


def weights_note(fields: Sequence[ErfResult]) -> str:
    """What a reader must know about the weights before reading anything into the fields."""
    random = [r for r in fields if r.provenance.is_random]
    if len(random) == len(fields):
        return "Random weights: the imprint of the scan, nothing learned."
    notes = []
    if random:
        names = dict(zip(map(id, fields), field_names(fields), strict=True))
        listed = " and ".join(names[id(r)] for r in random)
        notes.append(f"{listed}: nothing learned.")
    swapped = sorted({scan_in_text(r.provenance.scan) for r in fields if is_swapped(r)})
    if swapped:
        same = "Same weights; " if len({r.provenance.weights_sha256 for r in fields}) == 1 else ""
        text = f"{' and '.join(swapped)} is not what it was trained with."
        notes.append(same + (text if same else text[0].upper() + text[1:]))
    if not notes and len(fields) == 1:
        notes.append("With the weights trained for it.")
    elif not notes:
        scans = {r.provenance.scan for r in fields}
        each = "scheme" if len(scans) == len(fields) else "network"
        notes.append(f"Each {each} with the weights trained for it.")
    return " ".join(notes)


def images_text(result: ErfResult) -> str:
    """ "32 images", and while it runs "12 of 32 images"."""
    if not result.is_final and result.n_images < result.n_planned:
        return f"{result.n_images:,} of {result.n_planned:,} images"
    return f"{result.n_images:,} image" + ("" if result.n_images == 1 else "s")
