"""The attribution tab's results as figures for a paper."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine

from workbench.figures.attention import DECADES
from workbench.figures.attribution_lab import (
    beyond,
    drawn_maps,
    limits,
    names_of,
    target_words,
    unit_of,
)
from workbench.figures.attribution_paths import WORDS
from workbench.figures.faithfulness import NAMES, map_words, stage_colour
from workbench.figures.paper_parts import focus, map_axes
from workbench.figures.theme import CIVIDIS, DIVERGING, LIGHT, SIGNED, resolve, significant
from workbench.labels import scan_short
from workbench.results import (
    AttentionResult,
    EvidenceResult,
    FaithfulnessResult,
    MapsResult,
    Provenance,
    RandomisationResult,
)

MAP_INCHES = 1.75
OVER_PHOTO = 0.65  # opacity of a map
LEAST_WIDTH = 3.4  # of a figure: one narrow map still has its title and the footer


def _colours(stops: tuple[str, ...]) -> Colormap:
    return LinearSegmentedColormap.from_list("stops", resolve(stops))


def maps_figure(found: Mapping[str, MapsResult], rgb: np.ndarray) -> Figure:
    """Rows of maps under one scale, and with two results of one shape their difference.

    `rgb` is the first result's network input; a rival on another photo is drawn without one.
    """
    first = found["a"]
    height, width = first.provenance.input_size
    shown = {key: drawn_maps(result) for key, result in found.items()}
    is_alike = "b" in found and [d.values.shape for d in shown["a"]] == [
        d.values.shape for d in shown["b"]
    ]
    is_signed = any(result.is_signed for result in found.values())
    values = [d.values for maps in shown.values() for d in maps]
    end, _ = limits(values)
    norm = Normalize(-end if is_signed else 0, end)
    n_rows, n_columns = len(found) + is_alike, len(first.maps)
    # The longer side of a map is MAP_INCHES.
    across, down = (MAP_INCHES * side / max(height, width) for side in (width, height))
    size = (max(LEAST_WIDTH, across * n_columns + 1.1), (down + 0.45) * n_rows)
    text = f"{first.label} for {target_words(first)}"
    figure = _sheet(*size, first.provenance, f"{text}, {first.verdict}" if first.verdict else text)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    names = names_of(found)
    extend = ("both" if is_signed else "max") if beyond(values, end) else "neither"
    for row, (key, result) in zip(axes, found.items(), strict=False):
        for i, (ax, source, own) in enumerate(zip(row, result.maps, shown[key], strict=True)):
            if result.provenance.image == first.provenance.image:
                ax.imshow(rgb, extent=(0, width, height, 0))
            image = ax.imshow(
                own.values,
                cmap=_colours(SIGNED if is_signed else CIVIDIS),
                norm=norm,
                alpha=OVER_PHOTO,
                extent=_extent(own.values, own.cell),
                interpolation="nearest",
            )
            title = _titled(names[key], i, source.name)
            map_axes(ax, title, *result.provenance.input_size, f"@{key}")
            ax.set_anchor("W")
        _bar(figure, image, row, extend, unit_of(first))
    if is_alike:
        deltas = [a.values - b.values for a, b in zip(shown["a"], shown["b"], strict=True)]
        most, _ = limits(deltas)
        words = f"{names['b']} −{' ' if n_columns > 1 else chr(10)}{names['a']}"
        listed = zip(axes[-1], first.maps, shown["a"], deltas, strict=True)
        for i, (ax, source, own, delta) in enumerate(listed):
            image = ax.imshow(
                -delta,
                cmap=_colours(DIVERGING),
                norm=Normalize(-most, most),
                extent=_extent(delta, own.cell),
                interpolation="nearest",
            )
            map_axes(ax, _titled(words, i, source.name), height, width)
            ax.set_anchor("W")
        extend = "both" if beyond(deltas, most) else "neither"
        _bar(figure, image, axes[-1], extend, unit_of(first))
    return figure


def _titled(words: str, column: int, name: str) -> str:
    """The row's words stand above its first map only: narrow maps leave no room for more."""
    return f"{'' if column else words}\n{map_words(name)}"


def _bar(figure: Figure, image: AxesImage, axes: Iterable[Axes], extend: str, text: str) -> None:
    bar = figure.colorbar(image, ax=list(axes), shrink=0.8, extend=extend)
    bar.set_label(text, fontsize=6)
    bar.ax.tick_params(labelsize=6)


def _sheet(width: float, height: float, p: Provenance, text: str) -> Figure:
    """A figure of `width` x `height` inches above as many lines of provenance as there are."""
    parts = (p.model, p.weights, text, f"photo {p.image}", p.device, p.backend, p.definition)
    lines = textwrap.wrap(" · ".join(part for part in parts if part), max(40, int(27 * width)))
    foot = 0.1 + 0.09 * len(lines)
    layout = ConstrainedLayoutEngine(rect=(0, foot / (height + foot), 1, height / (height + foot)))
    figure = Figure(figsize=(width, height + foot), layout=layout)
    figure.text(
        0.01,
        0.05 / (height + foot),
        "\n".join(lines),
        fontsize=5,
        color=LIGHT["@muted"],
        va="bottom",
    )
    return figure


def _extent(values: np.ndarray, cell: int) -> tuple[int, int, int, int]:
    rows, columns = values.shape
    return (0, columns * cell, rows * cell, 0)


def evidence_figure(result: EvidenceResult) -> Figure:
    """Evidence of each path over the depth, and the maps of the last EVSS block."""
    block = result.blocks[-1]
    height, width = result.provenance.input_size
    n = len(block.paths)
    text = f"for {target_words(result)}"
    figure = _sheet(3.0 + MAP_INCHES * n, 2.3, result.provenance, text)
    axes = figure.subplots(1, 1 + n, width_ratios=[1.5] + [1.0] * n)
    names = [f"{b.stage}.{b.block}" for b in result.blocks]
    for i, path in enumerate(block.paths):
        label, colour = WORDS[path]
        place = np.arange(len(names)) + 0.26 * (i - (n - 1) / 2)
        values = [b.sums[b.paths.index(path)] for b in result.blocks]
        axes[0].barh(place, values, height=0.24, color=LIGHT[colour], label=label)
    axes[0].set_yticks(range(len(names)), names, fontsize=6)
    axes[0].invert_yaxis()
    axes[0].axvline(0, color=LIGHT["@muted"], linewidth=0.5)
    axes[0].set_xlabel("evidence, logit", fontsize=6)
    axes[0].tick_params(labelsize=6)
    axes[0].legend(fontsize=5)
    end, _ = limits(list(block.maps))
    extend = "both" if beyond(list(block.maps), end) else "neither"
    for ax, path, values in zip(axes[1:], block.paths, block.maps, strict=True):
        image = ax.imshow(
            values,
            cmap=_colours(SIGNED),
            norm=Normalize(-end, end),
            extent=_extent(values, block.stride),
            interpolation="nearest",
        )
        map_axes(ax, f"{WORDS[path][0]}, block {names[-1]}", height, width)
    _bar(figure, image, axes[1:], extend, "logit per token")
    return figure


def attention_figure(results: Mapping[str, AttentionResult], rgb: np.ndarray) -> Figure:
    """What the token reads and who reads it, per scheme; then the decay."""
    found = {key: result for key, result in results.items() if result.has_scan}
    first = next(iter(found.values()))
    height, width = first.provenance.input_size
    where = f"stage {first.stage}, block {first.block}, token ({first.y}, {first.x})"
    figure = _sheet(2.1 * len(found) + 3.0, 4.2, first.provenance, where)
    grid = figure.add_gridspec(2, len(found) + 1, width_ratios=[1.0] * len(found) + [1.3])
    top = max(
        float(getattr(r, f"{kind}_size").sum(0).max())
        for r in found.values()
        for kind in ("rows", "columns")
    )
    norm = LogNorm(top * 10.0**-DECADES, top) if top > 0 else Normalize(0, 1)
    for i, (key, result) in enumerate(found.items()):
        name = scan_short(result.provenance.scan)
        for row, (kind, words) in enumerate((("rows", "reads"), ("columns", "is read by"))):
            ax = figure.add_subplot(grid[row, i])
            ax.imshow(rgb, extent=(0, width, height, 0))
            values = np.maximum(getattr(result, f"{kind}_size").sum(0), top * 10.0**-DECADES)
            image = ax.imshow(
                values,
                cmap="cividis",
                norm=norm,
                alpha=0.85,
                extent=_extent(values, result.stride),
                interpolation="nearest",
            )
            map_axes(ax, f"{name}: {words}", height, width, f"@{key}")
            focus(ax, result.y, result.x, result.stride)
            if i == len(found) - 1:
                _bar(figure, image, [ax], "min" if top > 0 else "neither", "|alpha|")
    curves = figure.add_subplot(grid[:, len(found)])
    for key, result in found.items():
        for n, curve in enumerate(result.decay):
            label = scan_short(result.provenance.scan) if n == 0 else None
            is_drawn = curve > 0  # a logarithm has no 0, and past the start there is nothing
            steps = result.steps[is_drawn] + 1
            curves.plot(steps, curve[is_drawn], color=LIGHT[f"@{key}"], linewidth=0.9, label=label)
    _small(curves, "steps back + 1", "mean |alpha|")
    curves.set_xscale("log")
    curves.set_yscale("log")
    if curves.lines:
        curves.legend(fontsize=6)
    return figure


def faithfulness_figure(
    result: FaithfulnessResult, sanity: RandomisationResult | None = None
) -> Figure:
    """Insertion, deletion and, where it was asked for, the randomisation of the weights."""
    text = f"{result.method}, {map_words(result.map_name)}, “{result.target_name}”, "
    text += f"missing pixels: {result.baseline}, {result.n_random} random orders"
    figure = _sheet(2.5 * (2 + bool(sanity)), 2.3, result.provenance, text)
    axes = figure.subplots(1, 2 + bool(sanity))
    for ax, kind, verb in ((axes[0], "insertion", "inserted"), (axes[1], "deletion", "removed")):
        for curve in result.curves:
            name, token = NAMES[curve.name]
            area = getattr(curve, f"{kind}_auc")
            low, high = (getattr(curve, f"{kind}_{end}") for end in ("low", "high"))
            if low.size:
                ax.fill_between(100 * result.shares, low, high, color=LIGHT[token], alpha=0.2)
            label = f"{name}, area {significant(area)}"
            ax.plot(100 * result.shares, getattr(curve, kind), color=LIGHT[token], label=label)
        _small(ax, f"pixels {verb}, %", "probability")
        ax.set_ylim(0, 1.02)
        ax.legend(fontsize=5)
    if sanity:
        _similarity(axes[2], sanity)
    return figure


def randomisation_figure(result: RandomisationResult) -> Figure:
    """The randomisation of the weights alone."""
    figure = _sheet(4.2, 2.5, result.provenance, f"{result.method}, weights made random")
    _similarity(figure.subplots(), result)
    return figure


def _similarity(ax: Axes, result: RandomisationResult) -> None:
    """Rank correlation with the trained maps (solid) and with edges (dotted); chance as a band."""
    chance = float(np.nanmax(result.chance, initial=0.0))
    ax.axhspan(-chance, chance, color=LIGHT["@muted"], alpha=0.2, linewidth=0)
    for i, name in enumerate(result.map_names):
        colour = LIGHT[stage_colour(i)]
        values, edges = result.similarity[:, i], result.edges[:, i]
        ax.plot(range(len(values)), values, ".-", color=colour, label=map_words(name))
        ax.plot(range(len(edges)), edges, ":", color=colour, linewidth=0.8)
    ax.set_xticks(range(len(result.steps)), result.steps, rotation=35, ha="right")
    _small(ax, "random from the head down to", "rank correlation")
    ax.legend(fontsize=5)


def _small(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=6)
    axes.set_ylabel(y, fontsize=6)
    axes.tick_params(labelsize=6)
