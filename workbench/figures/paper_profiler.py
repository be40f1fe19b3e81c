"""Sweeps, traces and comparisons as figures for a paper."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from workbench.figures.paper_parts import LEFT, SMALL, TITLE, Sheet
from workbench.figures.profiler_csv import provenance_line
from workbench.figures.profiler_runs import ratio_text, ratio_ticks, reach
from workbench.figures.profiler_sweep import (
    PASSES,
    SUBJECTS,
    colour_of,
    log_values,
    ratios,
    series_points,
    slope_text,
    tone_of,
)
from workbench.figures.profiler_trace import (
    COLOURS,
    category_group,
    cut,
    has_gpu,
    part_names,
    time_text,
)
from workbench.figures.theme import LIGHT
from workbench.labels import scan_short
from workbench.profiler_results import (
    ComparedRow,
    RunComparison,
    SweepPoint,
    SweepResult,
    TraceResult,
)

PLOT_W, PLOT_H = 3.1, 2.1  # inches
UNDER = 0.42  # numbers and name of an axis below a plot
MAX_OPERATORS = 12  # bars of a trace's figure
MAX_STEPS = 12
MAX_COMPARED = 40  # rows of a comparison's figure
ROW_INCHES = 0.17


def sweep_figure(result: SweepResult) -> Figure:
    """Times along the axis, and beside them their ratio with what the counts expect."""
    found = [r for r in ratios(result) if math.isfinite(r.ratio)]
    n = 2 if found else 1
    left = 0.62 if result.is_numeric else 1.1
    width = left + n * PLOT_W + (n - 1) * 0.55 + 0.12
    how = (
        f"{SUBJECTS.get(result.subject, result.subject)}, "
        f"{PASSES.get(result.passes, result.passes)}, median with 20 to 80 %"
    )
    text = provenance_line(result.provenance, how, result.clock)
    sheet = Sheet(width, TITLE + PLOT_H + UNDER, text)
    axes = sheet.axes(left, TITLE, PLOT_W, PLOT_H)
    if result.is_numeric:
        _lines(axes, result)
    else:
        _bars(axes, result)
    _title(axes, "(a) time of one call" if found else "time of one call")
    if found:
        _ratio(sheet.axes(left + PLOT_W + 0.55, TITLE, PLOT_W, PLOT_H), result)
    return sheet.figure


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=8, loc="left", color=LIGHT["@ink"])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _colour(result: SweepResult, series: str) -> str:
    return LIGHT[colour_of(tone_of(result, series))]


def _lines(axes: Axes, result: SweepResult) -> None:
    for series in result.series:
        points = series_points(result, series)
        if not points:
            continue
        colour = _colour(result, series)
        x = [p.x for p in points]
        low, high = [p.p20_ms for p in points], [p.p80_ms for p in points]
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        label = ", ".join(filter(None, (scan_short(series), slope_text(result, series))))
        medians = [p.p50_ms for p in points]
        axes.plot(x, medians, "o-", color=colour, linewidth=1.2, markersize=3, label=label)
    _log_x(axes, result)
    axes.set_yscale("log")
    ends = [v for p in result.points if p.is_measured for v in (p.p20_ms, p.p80_ms)]
    bottom, top = axes.get_ylim()
    ticks = zip(*(log_values(ends).get(key, ()) for key in ("tickvals", "ticktext")), strict=True)
    shown = [(at, text) for at, text in ticks if bottom <= at <= top]
    axes.set_yticks([at for at, _ in shown], [text for _, text in shown])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("ms, log scale", fontsize=SMALL, labelpad=1)
    axes.grid(color=LIGHT["@line"], linewidth=0.4)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, frameon=False, loc="upper left")


def _log_x(axes: Axes, result: SweepResult) -> None:
    places = {p.x: p.label for p in result.points if p.is_measured and p.x > 0}
    axes.set_xscale("log")
    axes.set_xticks(list(places), list(places.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(result.axis_label, fontsize=SMALL, labelpad=2)


def _bars(axes: Axes, result: SweepResult) -> None:
    """Bars from zero, first name on top; a missing time says why."""
    labels = [label for _, label in sorted({(p.x, p.label) for p in result.points})]
    most = max((p.p80_ms for p in result.points if p.is_measured), default=1.0)
    ticks = []
    y = 0.0
    named: set[str] = set()
    for label in labels:
        points = [p for p in result.points if p.label == label]
        points.sort(key=lambda p: result.series.index(p.series))
        ticks.append(y + (len(points) - 1) / 2)
        for p in points:
            _one_bar(axes, result, p, y, most, named)
            y += 1
        y += 0.6
    axes.set_yticks(ticks, [cut(scan_short(label), 22) for label in labels])
    axes.set_ylim(y - 0.9, -0.7)
    axes.set_xlim(0, 1.08 * most)
    axes.set_xlabel("ms", fontsize=SMALL, labelpad=2)
    if len(named) > 1:
        axes.legend(fontsize=6, frameon=False, loc="lower right")


def _one_bar(
    axes: Axes, result: SweepResult, p: SweepPoint, y: float, most: float, named: set[str]
) -> None:
    if not p.is_measured:
        axes.text(
            0.01 * most, y, cut(p.status, 60), fontsize=5.5, va="center", color=LIGHT["@muted"]
        )
        return
    label = scan_short(p.series) if p.series not in named else None
    named.add(p.series)
    axes.barh(y, p.p50_ms, height=0.85, color=_colour(result, p.series), label=label)
    axes.plot([p.p20_ms, p.p80_ms], [y, y], color=LIGHT["@ink"], linewidth=0.8)


def _ratio(axes: Axes, result: SweepResult) -> None:
    found = [r for r in ratios(result) if math.isfinite(r.ratio)]
    names = [scan_short(series) for series in result.series[:2]]
    x = [r.x for r in found] if result.is_numeric else list(range(len(found)))
    for key, words, dash, colour in (
        ("tokens", "expected by tokens read", "--", LIGHT["@c"]),
        ("depth", "expected by serial depth", ":", LIGHT["@d"]),
    ):
        values = [getattr(r, key) for r in found]
        if all(map(math.isfinite, values)):
            style = dash if result.is_numeric and len(x) > 1 else "_"
            axes.plot(x, values, style, color=colour, linewidth=1, markersize=12, label=words)
    spread = [[r.ratio - r.low for r in found], [r.high - r.ratio for r in found]]
    axes.errorbar(
        x,
        [r.ratio for r in found],
        yerr=np.maximum(spread, 0),
        fmt="o-" if result.is_numeric else "o",
        color=LIGHT["@ink"],
        linewidth=1.2,
        markersize=3,
        elinewidth=0.6,
        capsize=1.5,
        label="measured",
    )
    axes.axhline(1, color=LIGHT["@muted"], linewidth=0.6)
    if result.is_numeric:
        _log_x(axes, result)
    else:
        axes.set_xticks(x, [cut(scan_short(r.label), 14) for r in found])
        axes.set_xlim(-0.6, len(found) - 0.4)
    axes.set_ylim(0, None)
    axes.grid(color=LIGHT["@line"], linewidth=0.4)
    axes.legend(fontsize=6, frameon=False, loc="best")
    _title(axes, f"(b) {names[1]} : {names[0]}")


def trace_figure(result: TraceResult) -> Figure:
    """The operators with the most self time, and what each step's time went to; from zero."""
    gpu = has_gpu(result)
    operators = sorted(
        result.operators, key=lambda o: o.self_gpu_ns if gpu else o.self_cpu_ns, reverse=True
    )[:MAX_OPERATORS]
    steps = result.steps[:MAX_STEPS]
    left, between = 1.75, 0.95
    height = max(1.0, ROW_INCHES * max(len(operators), len(steps), 3))
    text = provenance_line(
        result.provenance,
        result.source,
        result.passes,
        f"{result.n_events:,} events in {time_text(result.span_ns)}",
        result.device if not result.provenance.device else "",
        f"the first {MAX_STEPS} of {len(result.steps)} steps" if len(result.steps) > 12 else "",
    )
    sheet = Sheet(left + 2 * PLOT_W + between + LEFT, TITLE + height + 0.62, text)
    axes = sheet.axes(left, TITLE, PLOT_W, height)
    times = [(o.self_gpu_ns if gpu else o.self_cpu_ns) / 1e6 for o in operators]
    axes.barh(range(len(times)), times, height=0.7, color=LIGHT["@d"])
    axes.set_yticks(range(len(times)), [cut(o.name, 34) for o in operators])
    axes.set_ylim(max(len(times), 1) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"self time on the {'GPU' if gpu else 'CPU'}, ms", fontsize=SMALL, labelpad=2)
    _title(axes, "(a) operators")
    right = sheet.axes(left + PLOT_W + between, TITLE, PLOT_W, height)
    _steps(right, result, len(steps), height)
    return sheet.figure


def _steps(axes: Axes, result: TraceResult, n: int, inches: float) -> None:
    steps = result.steps[:n]
    start = np.zeros(n)
    for name in part_names(result):
        values = np.array([step.parts.get(name, 0) / 1e6 for step in steps])
        colour = LIGHT[COLOURS[category_group(name)]]
        axes.barh(range(n), values, left=start, height=0.7, color=colour, label=name)
        start += values
    axes.set_yticks(range(n), [cut(step.name, 16) for step in steps])
    axes.set_ylim(max(n, 1) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms", fontsize=SMALL, labelpad=2)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            fontsize=SMALL - 1,
            frameon=False,
            ncols=4,
            loc="upper left",
            bbox_to_anchor=(0.0, -0.28 / inches),
        )
    _title(axes, "(b) where the time of a step goes")


def comparison_figure(comparison: RunComparison) -> Figure:
    """Ratios of medians with their 95 % intervals around 1, on a log axis."""
    rows = [r for r in comparison.rows if math.isfinite(r.ratio) and r.ratio > 0][:MAX_COMPARED]
    left, height = 2.1, max(0.8, ROW_INCHES * max(len(rows), 3))
    known = sum(1 for r in comparison.rows if math.isfinite(r.ratio))
    text = provenance_line(
        comparison.provenance,
        f"A: {comparison.a}, {comparison.device_a}",
        f"B: {comparison.b}, {comparison.device_b}",
        "ratio of medians, 95 % interval",
        f"the first {len(rows)} of {known} rows" if known > len(rows) else "",
    )
    sheet = Sheet(left + PLOT_W + 1.75, TITLE + height + UNDER, text)
    axes = sheet.axes(left, TITLE, PLOT_W, height)
    axes.axvline(0, color=LIGHT["@muted"], linewidth=0.6)
    far = reach(rows)
    for y, row in enumerate(rows):
        _whisker(axes, row, y, far)
    axes.set_yticks(range(len(rows)), [cut(row.name, 38) for row in rows])
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.set_xlim(-far, far)
    ticks = ratio_ticks(far)
    axes.set_xticks([math.log(t) for t in ticks], [f"{t:.3g}" for t in ticks])
    axes.set_xlabel("time of B over that of A, log scale", fontsize=SMALL, labelpad=2)
    _title(axes, f"{cut(comparison.b, 30)} beside {cut(comparison.a, 30)}")
    return sheet.figure


def _whisker(axes: Axes, row: ComparedRow, y: int, far: float) -> None:
    colour = {"slower": LIGHT["@s7"], "faster": LIGHT["@d"]}.get(row.verdict, LIGHT["@conv"])
    place = [float(np.clip(math.log(v), -far, far)) for v in (row.ratio,)]
    if math.isfinite(row.low) and math.isfinite(row.high) and row.low > 0:
        ends = np.clip([math.log(row.low), math.log(row.high)], -far, far)
        axes.plot(ends, [y, y], color=colour, linewidth=1)
    fill = "white" if row.verdict == "not known" else colour
    axes.plot(place, [y], "o", color=colour, markerfacecolor=fill, markersize=3.5)
    axes.annotate(
        f"{ratio_text(row)}  {row.verdict}",
        (1.02, y),
        xycoords=("axes fraction", "data"),
        fontsize=6,
        va="center",
        color=LIGHT["@ink"],
        annotation_clip=False,
    )
