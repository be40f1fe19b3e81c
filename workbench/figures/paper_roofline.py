"""Roofline, what-if and token costs as figures for a paper; tables are in `kernel_csv`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.errors import NotAvailableError
from workbench.figures.kernel_csv import roofline_csv, token_csv, what_if_csv
from workbench.figures.kernel_floors import LETTERS, PASS_WORDS, shown_measurements
from workbench.figures.kernel_token import KINDS
from workbench.figures.paper_parts import LEFT, SMALL, TITLE, Sheet
from workbench.figures.profiler_csv import provenance_line
from workbench.figures.theme import LIGHT, significant
from workbench.floors import LIMITERS, Setting, floors, known_rates, position
from workbench.kernel_results import CostGrid, Rates, RooflineResult, TokenCost
from workbench.labels import scan_in_text, scan_short
from workbench.view import WHAT_BATCHES

__all__ = [
    "pays",
    "roofline_csv",
    "roofline_figure",
    "token_csv",
    "token_figure",
    "what_if_csv",
]

PLOT_W, PLOT_H = 3.35, 2.35  # inches
MARKERS = ("o", "s", "D", "^")


def roofline_figure(result: RooflineResult, a: str, b: str, setting: Setting) -> Figure:
    """The roofline with both schemes, and where A pays by size and batch.

    NotAvailableError for this machine before it was measured.
    """
    rates = known_rates(result.grid, setting)
    left, between = 0.55, 0.62
    how = (
        f"{setting['size']} px, batch {setting['batch']}, {setting['dtype']}, "
        f"{PASS_WORDS[setting['passes']]}"
    )
    kind = "peak rates published" if rates.kind == "published" else "rates measured"
    text = provenance_line(
        result.provenance, rates.device, how, f"hollow: cost model, {kind}; filled: measured"
    )
    sheet = Sheet(left + 2 * PLOT_W + between + LEFT, TITLE + PLOT_H + 0.45, text)
    _roofline(sheet.axes(left, TITLE, PLOT_W, PLOT_H), result, rates, a, b, setting)
    _pays(sheet.axes(left + PLOT_W + between, TITLE, PLOT_W, PLOT_H), result, rates, a, b, setting)
    return sheet.figure


def _roofline(
    axes: Axes, result: RooflineResult, rates: Rates, a: str, b: str, setting: Setting
) -> None:
    grid = result.grid
    found = floors(grid, rates, setting)
    i, j = (position("scheme", scan, grid.schemes) for scan in (a, b))
    mix = found.network("flops", i, grid.blocks)
    ceilings = {
        "peak": 2 * rates.fma_per_s,
        "FMA": rates.fma_per_s * mix / found.network("fmas", i, grid.blocks),
        "exp unit" if rates.has_exp_unit else "exp as polynomials": rates.exp_per_s
        * mix
        / found.network("exps", i, grid.blocks),
    }
    intensity, reached = found.flops / found.bytes, found.flops / found.least_s
    lowest, memory = min(ceilings.values()), rates.memory_bytes_per_s
    points = shown_measurements(result, setting)
    left = min(float(intensity.min()), lowest / memory) / 2.5
    right = max(float(intensity.max()), ceilings["peak"] / memory) * 25
    ranked = sorted(ceilings.items(), key=lambda item: -item[1])
    for n, (name, level) in enumerate(ranked):
        # The highest is named above its line, the lowest below, the middle one where it has room.
        is_above = n == 0 or (n == 1 and ranked[2][1] > 0.8 * level)
        style = ":" if name == "peak" else "-"
        axes.plot([level / memory, right], [level] * 2, style, color=LIGHT["@conv"], linewidth=0.7)
        axes.annotate(
            f"{name}, {_si(level)}FLOP/s",
            (right, level),
            xytext=(-2, 2 if is_above else -2),
            textcoords="offset points",
            ha="right",
            va="bottom" if is_above else "top",
            fontsize=5.5,
            color=LIGHT["@muted"],
        )
    roof_x = [left, lowest / memory, right]
    axes.plot(
        [left, ceilings["peak"] / memory],
        [left * memory, ceilings["peak"]],
        color=LIGHT["@conv"],
        linewidth=0.7,
    )
    axes.plot(roof_x, [left * memory, lowest, lowest], color=LIGHT["@ink"], linewidth=1.4)
    for scheme in range(len(grid.schemes)):
        is_a, is_b = scheme == i, scheme == j
        colour = LIGHT["@a"] if is_a else LIGHT["@b"] if is_b else LIGHT["@residual"]
        for s, stage in enumerate(grid.stages):
            axes.plot(
                intensity[scheme, s],
                reached[scheme, s],
                MARKERS[stage - 1],
                markerfacecolor="none",
                markeredgecolor=colour,
                markersize=7 if is_a else 4,
                markeredgewidth=1.2 if is_a or is_b else 0.5,
                zorder=4 if is_a or is_b else 2,
                label=f"{scan_short(grid.schemes[scheme])}, stage {stage}"
                if is_a or is_b
                else None,
            )
    for m in points:
        if m.scan not in (a, b) or m.stage not in grid.stages:
            continue
        scheme, s = (i if m.scan == a else j), grid.stages.index(m.stage)
        at = found.flops[scheme, s] / m.p50_ms * 1e3
        ends = [found.flops[scheme, s] / ms * 1e3 for ms in (m.p80_ms, m.p20_ms)]
        axes.errorbar(
            intensity[scheme, s],
            at,
            yerr=[[at - ends[0]], [ends[1] - at]],
            fmt=MARKERS[m.stage - 1],
            color=LIGHT["@a" if m.scan == a else "@b"],
            markersize=4,
            elinewidth=0.6,
            capsize=1.5,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(top=ceilings["peak"] * 2)
    axes.set_xlabel("FLOP for each byte that must move", fontsize=SMALL, labelpad=2)
    axes.set_ylabel("FLOP/s", fontsize=SMALL, labelpad=1)
    axes.minorticks_off()
    axes.grid(color=LIGHT["@line"], linewidth=0.4)
    axes.legend(fontsize=5.5, frameon=False, loc="upper left")
    _title(axes, f"(a) roofline, {rates.device}")


def _pays(
    axes: Axes, result: RooflineResult, rates: Rates, a: str, b: str, setting: Setting
) -> None:
    grid = result.grid
    ratio, letters = pays(grid, rates, a, b, setting)
    far = max(2.0, float(np.maximum(ratio, 1 / ratio).max()))
    colours = LinearSegmentedColormap.from_list("pays", [LIGHT[f"@d{k}"] for k in (6, 5, 4, 3, 2)])
    axes.imshow(
        ratio, cmap=colours, norm=LogNorm(1 / far, far), aspect="auto", interpolation="nearest"
    )
    for y, x in np.ndindex(ratio.shape):
        axes.text(
            x,
            y,
            f"{ratio[y, x]:.{1 if ratio[y, x] < 9.95 else 0}f} {letters[y][x]}",
            fontsize=5,
            ha="center",
            va="center",
            color=LIGHT["@ink"],
        )
    batches = list(reversed(WHAT_BATCHES))
    axes.set_xticks(range(len(grid.sizes)), [str(n) for n in grid.sizes])
    axes.set_yticks(range(len(batches)), [str(n) for n in batches])
    if setting["batch"] in batches:
        place = (grid.sizes.index(setting["size"]) - 0.5, batches.index(setting["batch"]) - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=LIGHT["@ink"], linewidth=1.2))
    axes.tick_params(length=0)
    key = ", ".join(f"{letter} {name}" for letter, name in zip(LETTERS, LIMITERS, strict=True))
    axes.set_xlabel(f"input px (limiter of A: {key})", fontsize=SMALL, labelpad=2)
    axes.set_ylabel("batch", fontsize=SMALL, labelpad=1)
    _title(axes, f"(b) time of {scan_in_text(b)} over {scan_in_text(a)}, model")


def pays(
    grid: CostGrid, rates: Rates, a: str, b: str, setting: Setting
) -> tuple[np.ndarray, list[list[str]]]:
    """Time of B over that of A `[batches, sizes]`, the largest batch first, and A's limiters."""
    i, j = (position("scheme", scan, grid.schemes) for scan in (a, b))
    ratio = np.empty((len(WHAT_BATCHES), len(grid.sizes)))
    letters = []
    for y, batch in enumerate(reversed(WHAT_BATCHES)):
        row = []
        for x, size in enumerate(grid.sizes):
            found = floors(grid, rates, {**setting, "batch": batch, "size": size})
            times = [found.network("least_s", scheme, grid.blocks) for scheme in (i, j)]
            ratio[y, x] = times[1] / times[0]
            longest = int(np.argmax(found.least_s[i] * np.asarray(grid.blocks)))
            row.append(LETTERS[found.limiter[i, longest]])
        letters.append(row)
    return ratio, letters


def token_figure(costs: Mapping[str, TokenCost]) -> Figure:
    """Bytes that one token moves, by kind and from zero; NotAvailableError without a cost."""
    if not costs:
        raise NotAvailableError("No token has a cost here. Choose stage 1 or 2 and click a token.")
    first = next(iter(costs.values()))
    left, height = 1.2, 0.34 * len(costs) + 0.1
    text = provenance_line(
        first.provenance,
        f"{first.kernel} on {first.device}, batch {first.batch}",
        "counted",
    )
    sheet = Sheet(left + PLOT_W + 0.75, TITLE + height + 0.75, text)
    axes = sheet.axes(left, TITLE, PLOT_W, height)
    named: set[str] = set()
    for y, cost in enumerate(costs.values()):
        start = 0.0
        moved = {f"reads {k}": (k, v) for k, v in cost.loads.items()}
        moved |= {f"writes {k}": (k, v) for k, v in cost.stores.items()}
        for name, (kind, n) in moved.items():
            colour = LIGHT[KINDS.get(kind, "@residual")]
            label = None if name in named else name
            axes.barh(y, n, left=start, height=0.62, color=colour, label=label)
            named.add(name)
            start += n
        label = None if y else "least, model"
        axes.plot([cost.least_bytes] * 2, [y - 0.4, y + 0.4], color=LIGHT["@ink"], label=label)
        axes.text(start, y, f" {start:,.0f} B", fontsize=6, va="center", color=LIGHT["@ink"])
    axes.set_yticks(range(len(costs)), [scan_short(cost.scan) for cost in costs.values()])
    axes.set_ylim(len(costs) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("bytes of one image", fontsize=SMALL, labelpad=2)
    axes.legend(
        fontsize=5.5, frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.36 / height)
    )
    _title(axes, f"token ({first.y}, {first.x}) of stage {first.stage}")
    return sheet.figure


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=8, loc="left", color=LIGHT["@ink"])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _si(value: float) -> str:
    size, letter = next(
        (u for u in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if value >= u[0]), (1, "")
    )
    return f"{significant(value / size)} {letter}"
