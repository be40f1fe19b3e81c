"""Paths through the blocks as a figure for a paper: shares by block, signed maps of one block."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from workbench.figures.erf_maps import tiny
from workbench.figures.erf_paths import BEYOND, PATHS, default_block, signed_limits
from workbench.figures.paper_parts import (
    AXIS,
    BAR,
    CAPTION,
    GAP,
    SMALL,
    TITLE,
    UNDER,
    Sheet,
    caption,
    map_axes,
    signed_norm,
)
from workbench.figures.theme import LIGHT, SIGNED, percent, resolve
from workbench.results import ErfPathsResult

PATH_INCHES, BARS = 1.5, 2.3


def paths_figure(result: ErfPathsResult, block: int | None = None) -> Figure:
    """Shares of the paths in every block; signed maps of one block, the deepest with a scan."""
    chosen = default_block(result) if block is None else block
    shown = result.blocks[chosen]
    height, width = result.provenance.input_size
    longest = max(height, width)
    w, h = PATH_INCHES * width / longest, PATH_INCHES * height / longest
    tall = max(h, 0.16 * len(result.blocks))
    start = AXIS + BARS + 2 * GAP
    maps = [*zip(shown.paths, shown.maps, strict=True), ("", result.total)]
    worst = max(b.error for b in result.blocks)
    p = result.provenance
    text = (
        f"{p.model}, {p.weights} · {result.unit_label}, token ({result.y}, {result.x}) · gates "
        f"{result.gates} · {result.n_images} images of {height} × {width} px · the paths add up to "
        f"the gradient within {worst:.0e} (relative L2, worst block and image) · {p.device}"
    )
    below = TITLE + max(tall + CAPTION, h + UNDER)
    sheet = Sheet(start + len(maps) * (w + GAP), below, text)
    _path_bars(sheet.axes(AXIS, TITLE, BARS, tall), result, chosen)
    limit, largest = signed_limits(result)
    centre = ((result.x + 0.5) * result.stride, (result.y + 0.5) * result.stride)
    for i, (path, values) in enumerate(maps):
        axes = sheet.axes(start + i * (w + GAP), TITLE, w, h)
        image = axes.imshow(
            values,
            cmap=LinearSegmentedColormap.from_list("signed", resolve(SIGNED)),
            norm=signed_norm(limit),
            extent=(0, width, height, 0),
            interpolation="nearest",
        )
        map_axes(axes, PATHS[path][0] if path else "all paths", height, width)
        axes.plot(*centre, "+", color=LIGHT["@ink"], markersize=5, markeredgewidth=0.8)
        if path:
            at = shown.paths.index(path)
            share = f"{percent(shown.shares[at])} of |gradient|"
            caption(axes, f"{share}\nsigned share {_signed_share(shown.signed[at])}")
        else:
            total = _signed_share(sum(shown.signed))
            caption(axes, f"block {shown.stage}.{shown.block}\nsum {total}")
    bar_axes = sheet.axes(start, TITLE + h + CAPTION, min(3, len(maps)) * (w + GAP) - GAP, BAR)
    bar = sheet.figure.colorbar(
        image,
        cax=bar_axes,
        orientation="horizontal",
        extend="neither" if limit == largest else "both",
    )
    bar.set_ticks([-limit, -limit / 9, 0, limit / 9, limit])
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _signed(value)))
    label = f"signed share of the whole per {result.cell} × {result.cell} px, drawn as its root"
    if limit < largest:
        label += f"; {BEYOND:.1%} of the cells lie beyond, up to {tiny(largest)}"
    bar.set_label(label, fontsize=SMALL, labelpad=1.5)
    bar.outline.set_linewidth(0.5)
    return sheet.figure


def _path_bars(axes: Axes, result: ErfPathsResult, chosen: int) -> None:
    """Every block's shares side by side from 0 to 100 %."""
    names = [f"{b.stage}.{b.block}" for b in result.blocks]
    for path, (label, colour) in PATHS.items():
        if not any(path in b.paths for b in result.blocks):
            continue
        values = [
            100 * b.shares[b.paths.index(path)] if path in b.paths else 0.0 for b in result.blocks
        ]
        before = [100 * _share_before(b.paths, b.shares, path) for b in result.blocks]
        axes.barh(names, values, left=before, color=LIGHT[colour], height=0.72, label=label)
    axes.get_yticklabels()[chosen].set_fontweight("bold")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the paths' |gradient|, %", fontsize=SMALL, labelpad=2)
    axes.set_ylabel("stage.block", fontsize=SMALL, labelpad=2)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    axes.legend(
        fontsize=6, loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=4, frameon=False,
        handlelength=0.8, columnspacing=0.8, handletextpad=0.4, borderaxespad=0.1, borderpad=0.2,
    )  # fmt: skip


def _signed_share(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _signed(value: float) -> str:
    return ("−" if value < 0 else "") + tiny(abs(value))


def _share_before(paths: Sequence[str], shares: Sequence[float], path: str) -> float:
    """Sum of the shares that are drawn left of this path's."""
    order = list(PATHS)
    return sum(
        share
        for other, share in zip(paths, shares, strict=True)
        if order.index(other) < order.index(path)
    )
