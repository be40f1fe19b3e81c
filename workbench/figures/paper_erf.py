"""Receptive fields as figures for a paper: maps, curves and differences; phases of a cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import FuncNorm, LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter

from workbench.figures.erf_curves import uniform_radial
from workbench.figures.erf_lab import REACH_COLOUR, difference_stops
from workbench.figures.erf_maps import (
    DECADES,
    EXPONENT,
    MASSES,
    SCALE_NAMES,
    Scale,
    field_names,
    images_text,
    mass_contours,
    outline,
    scale_of,
    tiny,
)
from workbench.figures.erf_numbers import with_band
from workbench.figures.erf_phases import phase_name
from workbench.figures.paper_parts import (
    AXIS,
    BAR,
    CAPTION,
    FOCUS,
    GAP,
    LEFT,
    MAP_INCHES,
    SMALL,
    TITLE,
    UNDER,
    Sheet,
    caption,
    map_axes,
    signed_norm,
)
from workbench.figures.theme import (
    CIVIDIS,
    LIGHT,
    block_sum,
    percent,
    resolve,
    significant,
)
from workbench.results import ErfPhasesResult, ErfResult

CIVIDIS_MAP = LinearSegmentedColormap.from_list("cividis10", CIVIDIS)
LETTERS = "abcdefgh"  # of the panels of one figure
DASHES = {"a": "-", "b": "-", "c": "-", "d": (0, (5, 2))}


def erf_figure(fields: Sequence[ErfResult], keys: Sequence[str], scale: str = "log") -> Figure:
    """Fields on one scale, the radial curves, and each rival's difference to the first.

    One or two fields make one row; with more, curves and differences make a second.
    """
    names = field_names(fields)
    shown = scale_of(fields, scale)
    n = len(fields)
    w, h = _map_size(fields[0])
    is_tall = n > 2
    left = AXIS if is_tall else LEFT
    columns = n if is_tall else 2 * n
    # Beside the maps the curves need room for the numbers of their axis.
    width = left + columns * (w + GAP) + (0 if is_tall else AXIS - GAP)
    sheet = Sheet(width, (TITLE + h + UNDER) * (1 + is_tall), _provenance(fields, names))
    letters = iter(LETTERS)
    shape: tuple[int, int] = fields[0].mass.shape
    for i, (result, name, key) in enumerate(zip(fields, names, keys, strict=True)):
        axes = sheet.axes(left + i * (w + GAP), TITLE, w, h)
        image = _field(axes, result, shown)
        map_axes(axes, f"({next(letters)}) {name}", *shape, f"@{key}")
        caption(axes, _under(result))
    bar = sheet.axes(left, TITLE + h + CAPTION, min(n, 2) * (w + GAP) - GAP, BAR)
    _mass_bar(sheet.figure, image, bar, shown)
    top = TITLE + (TITLE + h + UNDER if is_tall else 0)
    start = left if is_tall else left + n * (w + GAP) + AXIS - GAP
    curves = sheet.axes(start, top, w, h)
    _curves(curves, fields, names, keys)
    _title(curves, f"({next(letters)}) mass within a distance")
    for i in range(1, n):
        place = start + i * (w + GAP)
        axes = sheet.axes(place, top, w, h)
        bar = sheet.axes(place, top + h + CAPTION, w, BAR)
        # The panels' letters: the names of two networks do not fit above one map.
        pair = LETTERS[0], LETTERS[i]
        _difference(axes, bar, (fields[0], fields[i]), pair, (keys[0], keys[i]), shown.cell)
        map_axes(axes, f"({next(letters)}) difference, {pair[0]} − {pair[1]}", *shape)
    return sheet.figure


def _map_size(result: ErfResult) -> tuple[float, float]:
    height, width = result.mass.shape
    longest = max(height, width)
    return MAP_INCHES * width / longest, MAP_INCHES * height / longest


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=8, loc="left", color=LIGHT["@ink"])


def _provenance(fields: Sequence[ErfResult], names: Sequence[str]) -> str:
    """Everything that one needs to repeat the figure, in a line."""
    first = fields[0]
    p = first.provenance
    height, width = first.mass.shape
    networks = "; ".join(
        f"{name}: {r.provenance.model}, {r.provenance.weights}"
        for name, r in zip(names, fields, strict=True)
    )
    where = dict.fromkeys(f"{r.unit_label}, token ({r.y}, {r.x})" for r in fields)
    parts = [
        networks,
        "; ".join(where),
        f"{images_text(first)} of {height} × {width} px",
        "" if p.seed is None else f"seed {p.seed}",
        f"gates {first.gates}",
        "lines: densest 50 % (solid) and 90 % (dotted)",
    ]
    if any(r.reach.size and not r.reach.all() for r in fields):
        parts.append("dashed: pixels that can matter at all, gates frozen")
    if n := max(r.n_bootstrap for r in fields):
        parts.append(f"bands and brackets: 90 % interval, {n:,} resamples of the images")
    return " · ".join(part for part in [*parts, p.device, p.backend, p.definition] if part)


def _norm(scale: Scale) -> Normalize:
    """The page's scale, with true shares at the ticks of a bar."""
    if scale.key == "log":
        return LogNorm(scale.top * 10.0**-DECADES, scale.top, clip=True)
    if scale.key == "power":
        return FuncNorm((_power, _unpower), vmin=0, vmax=scale.top)
    return Normalize(0, scale.top)


def _power(values: np.ndarray) -> np.ndarray:
    powered: np.ndarray = np.maximum(values, 0) ** EXPONENT
    return powered


def _unpower(values: np.ndarray) -> np.ndarray:
    mass: np.ndarray = np.maximum(values, 0) ** (1 / EXPONENT)
    return mass


def _field(axes: Axes, result: ErfResult, scale: Scale) -> AxesImage:
    height, width = result.mass.shape
    mass = block_sum(result.mass.astype(np.float64), scale.cell)
    image = axes.imshow(
        mass, cmap=CIVIDIS_MAP, norm=_norm(scale), extent=_extent(result), interpolation="nearest"
    )
    for share, dash in MASSES:
        lines = [[(x, y) for y, x in line] for line in mass_contours(result, share)]
        style = "-" if dash == "solid" else (0, (1.2, 1.6))
        axes.add_collection(
            LineCollection(lines, colors="white", linewidths=0.8, linestyles=[style])
        )
    if result.reach.size and not result.reach.all():
        lines = [[(x, y) for y, x in line] for line in outline(result.reach)[0]]
        dashed = [(0, (4, 2.5))]
        axes.add_collection(
            LineCollection(lines, colors=REACH_COLOUR, linewidths=0.7, linestyles=dashed)
        )
    _token(axes, result)
    return image


def _extent(result: ErfResult) -> tuple[float, float, float, float]:
    """The last cell of a side may reach beyond the image; it is drawn to the image's border."""
    height, width = result.mass.shape
    return (0, width, height, 0)


def _token(axes: Axes, result: ErfResult) -> None:
    y, x = result.centre
    axes.plot(x, y, "+", color=FOCUS, markersize=5, markeredgewidth=0.9)


def _under(result: ErfResult) -> str:
    m = result.metrics
    low, high = (ends.get("area90", np.nan) for ends in (result.metric_low, result.metric_high))
    area = with_band(100 * m["area90"], 100 * low, 100 * high)
    return f"50 % within {significant(m['radius50_px'], 2)} px\n90 % on {area} % of the image"


def _mass_bar(figure: Figure, image: AxesImage, axes: Axes, scale: Scale) -> None:
    is_log = scale.key == "log"
    bar = figure.colorbar(
        image, cax=axes, orientation="horizontal", extend="min" if is_log else "neither"
    )
    label = f"share of the mass per {scale.cell} × {scale.cell} px, {SCALE_NAMES[scale.key]}"
    bar.set_label(label, fontsize=SMALL, labelpad=1.5)
    if not is_log:
        bar.set_ticks([tick * scale.top for tick in scale.marks()])
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tiny(value)))
    bar.outline.set_linewidth(0.5)


def _curves(
    axes: Axes,
    fields: Sequence[ErfResult],
    names: Sequence[str],
    keys: Sequence[str],
) -> None:
    first = fields[0]
    grey = LIGHT["@muted"]
    axes.plot(first.radius_px, 100 * uniform_radial(first), ":", color=grey, linewidth=0.8)
    axes.annotate(
        "uniform", _half_way(first.radius_px, uniform_radial(first)), fontsize=6, color=grey,
        xytext=(3, -6), textcoords="offset points",
    )  # fmt: skip
    for result, name, key in zip(fields, names, keys, strict=True):
        colour = LIGHT[f"@{key}"]
        if result.radial_low.size:
            low, high = 100 * result.radial_low, 100 * result.radial_high
            axes.fill_between(result.radius_px, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            result.radius_px,
            100 * result.radial_mass,
            color=colour,
            linestyle=DASHES[key],
            linewidth=1.2,
            label=name,
        )
    axes.set_xlim(0, max(float(r.radius_px[-1]) for r in fields))
    axes.set_ylim(0, 102)
    axes.set_yticks([0, 50, 90, 100])
    axes.set_xlabel("distance from the token, px", fontsize=SMALL)
    axes.set_ylabel("mass within, %", fontsize=SMALL, labelpad=1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(color=LIGHT["@line"], linewidth=0.4)
    axes.legend(fontsize=6, loc="lower right", frameon=False)


def _half_way(radius: np.ndarray, curve: np.ndarray) -> tuple[float, float]:
    at = min(int(np.searchsorted(curve, 0.5)), len(radius) - 1)
    return float(radius[at]), float(100 * curve[at])


def _difference(
    axes: Axes,
    bar_axes: Axes,
    fields: tuple[ErfResult, ErfResult],
    letters: tuple[str, str],
    keys: tuple[str, str],
    cell: int,
) -> None:
    """First minus rival, coloured by its signed root: the first's colour where it has more."""
    masses = [block_sum(r.mass.astype(np.float64), cell) for r in fields]
    delta = masses[1] - masses[0]  # the first at the low end, as on the page
    limit = float(np.abs(delta).max()) or 1.0
    stops = [(at, colour) for at, colour in resolve(difference_stops(keys[1]))]
    image = axes.imshow(
        delta,
        cmap=LinearSegmentedColormap.from_list("difference", stops),
        norm=signed_norm(limit),
        extent=_extent(fields[0]),
        interpolation="nearest",
    )
    _token(axes, fields[0])
    caption(axes, f"{percent(float(np.abs(delta).sum() / 2))} of the mass lies elsewhere")
    bar = axes.figure.colorbar(image, cax=bar_axes, orientation="horizontal")
    bar.set_ticks([-limit, -limit / 9, 0, limit / 9, limit])  # ninths lie at thirds of the root
    bar.ax.set_xticklabels([tiny(limit), tiny(limit / 9), "0", tiny(limit / 9), tiny(limit)])
    first, *_, last = bar.ax.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    bar.outline.set_linewidth(0.5)
    for at, letter, key in zip((0, 1), letters, keys, strict=True):
        bar_axes.text(
            at, -3.3, f"more: {letter}", color=LIGHT[f"@{key}"], fontsize=SMALL, va="top",
            ha="right" if at else "left", transform=bar_axes.transAxes,
        )  # fmt: skip


def phases_figure(result: ErfPhasesResult, scale: str = "log") -> Figure:
    """The fields of one cell's tokens in the cell's own order, on one scale."""
    fields = [phase.field for phase in result.phases]
    shown = scale_of(fields, scale)
    w, h = _map_size(fields[0])
    row = TITLE + h + CAPTION
    text = f"phases of one {result.step} × {result.step} cell · "
    text += _provenance(fields[:1], field_names(fields[:1]))
    width = LEFT + result.step * (w + GAP)
    sheet = Sheet(width, result.step * row + UNDER - CAPTION, text)
    for phase in result.phases:
        axes = sheet.axes(LEFT + phase.column * (w + GAP), TITLE + phase.row * row, w, h)
        image = _field(axes, phase.field, shown)
        map_axes(axes, phase_name(phase), *phase.field.mass.shape)
        axes.title.set_fontsize(SMALL)
        caption(axes, _under(phase.field))
    bar = sheet.axes(LEFT, result.step * row, 2 * (w + GAP) - GAP, BAR)
    _mass_bar(sheet.figure, image, bar, shown)
    return sheet.figure
