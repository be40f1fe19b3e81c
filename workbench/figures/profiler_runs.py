"""The profiler tab's stored runs and the comparison of two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from workbench.figures.profiler_sweep import (
    bytes_text,
    colour_of,
    log_axis,
    log_values,
    series_points,
    tone_of,
)
from workbench.figures.profiler_trace import cut, time_text
from workbench.figures.theme import Json, curve_layout, significant
from workbench.labels import scan_short
from workbench.profiler_results import ComparedRow, RunComparison, SweepResult

MAX_RUNS = 1_000
MAX_ROWS = 800  # of a comparison
TABLES = {
    "total": "totals",
    "point": "points",
    "module": "modules",
    "operator": "operators",
    "kernel": "kernels",
}
LEAST_REACH = math.log(1.25)  # of the axis of ratios, each way: small changes must look small
MOST_REACH = math.log(32)


class RunLike(Protocol):
    """What the list shows of a stored run."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def created(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def n_bytes(self) -> int: ...


def runs_panel(
    runs: Sequence[RunLike],
    comparison: RunComparison | None = None,
    notes: Sequence[str] = (),
    selected: Sequence[str] = (),
    sweeps: tuple[SweepResult, SweepResult] | None = None,
) -> Json:
    """The list of runs, newest first as given; `selected` are the ids of the two compared.

    `sweeps` are the two results behind `comparison` where they are sweeps: they are drawn over
    each other.
    """
    panel: Json = {
        "id": "lab_prof_runs",
        "title": "Runs",
        "badges": [{"text": _count(runs), "tone": "muted"}],
        "runs": [_run(run) for run in runs[:MAX_RUNS]],
        "selected": [*list(selected)[:2]],
        "notes": [*notes, *(comparison.notes if comparison else ())],
        "sentence": _sentence(runs, comparison),
    }
    if len(runs) > MAX_RUNS:
        panel["notes"].append(f"The newest {MAX_RUNS:,} of {len(runs):,} runs are listed.")
    if not runs and comparison is None:
        panel["empty"] = {
            "title": "No run is stored yet",
            "text": "Run a sweep or record a trace and keep it; two kept runs of a kind can be "
            "compared here and on the command line.",
        }
    if comparison is not None:
        panel["comparison"] = _comparison(comparison)
        if sweeps is not None:
            panel["overlay"] = overlay_chart(sweeps, (comparison.a, comparison.b))
    return panel


def _count(runs: Sequence[RunLike]) -> str:
    if not runs:
        return "none stored"
    size = bytes_text(sum(run.n_bytes for run in runs))
    return f"{len(runs):,} stored, {size}"


def _run(run: RunLike) -> Json:
    return {
        "id": run.id,
        "kind": run.kind,
        "name": run.name,
        "title": cut(run.title, 160),
        "device": cut(run.device, 80),
        "created": run.created,
        "when": when(run.created),
        "bytes": run.n_bytes,
        "size": bytes_text(run.n_bytes),
    }


def when(created: str) -> str:
    """ISO time as "2026-11-28 12:20"; what is no time stays as it is."""
    try:
        return f"{datetime.fromisoformat(created):%Y-%m-%d %H:%M}"
    except ValueError:
        return created


def ms_text(ms: float) -> str:
    return time_text(1e6 * ms) if math.isfinite(ms) else "–"


def reach(rows: Sequence[ComparedRow]) -> float:
    """How far the axis of ratios goes each way from 1, as a natural logarithm."""
    ends = [
        abs(math.log(v))
        for row in rows
        for v in (row.ratio, row.low, row.high)
        if math.isfinite(v) and v > 0
    ]
    return min(MOST_REACH, max([LEAST_REACH, *(1.05 * end for end in ends)]))


def ratio_ticks(far: float) -> list[float]:
    """Round ratios within the axis, 1 in the middle."""
    ladder = ((1.1, 1.2), (1.25, 1.5), (1.5, 2.0), (2.0, 4.0), (4.0, 16.0), (5.0, 25.0))
    fitting = [pair for pair in ladder if math.log(pair[1]) <= far]
    chosen = fitting[-1] if fitting else (1.1, 1.2)
    return [1 / chosen[1], 1 / chosen[0], 1.0, chosen[0], chosen[1]]


def _comparison(comparison: RunComparison) -> Json:
    rows = comparison.rows[:MAX_ROWS]
    far = reach(rows)
    columns = [
        {"key": "name", "text": "what", "unit": "", "kind": "text", "tip": "Row of both runs"},
        {"key": "a", "text": cut(comparison.a, 24), "unit": "ms", "kind": "number"},
        {"key": "b", "text": cut(comparison.b, 24), "unit": "ms", "kind": "number"},
        {"key": "ratio", "text": "b : a", "unit": "", "kind": "number", "tip": "Of the medians"},
        {"key": "low", "text": "low", "unit": "95 %", "kind": "number", "hidden": True},
        {"key": "high", "text": "high", "unit": "95 %", "kind": "number", "hidden": True},
        {"key": "verdict", "text": "verdict", "unit": "", "kind": "text"},
        {"key": "table", "text": "table", "unit": "", "kind": "text", "hidden": True},
    ]
    found: Json = {
        "a": cut(comparison.a, 60),
        "b": cut(comparison.b, 60),
        "devices": [comparison.device_a, comparison.device_b],
        "columns": columns,
        "rows": [_compared(row) for row in rows],
        "reach": far,
        "ticks": [{"at": math.log(t), "text": f"{t:.3g}"} for t in ratio_ticks(far)],
        "csv_name": "comparison.csv",
        "groups": [
            {"key": key, "text": text}
            for key, text in TABLES.items()
            if any(row.table == key for row in rows)
        ],
    }
    if len(rows) < len(comparison.rows):
        found["note"] = f"The first {len(rows):,} of {len(comparison.rows):,} rows."
    return found


def _compared(row: ComparedRow) -> Json:
    return {
        "table": row.table,
        "name": cut(row.name, 160),
        "a": finite(row.a_ms),
        "b": finite(row.b_ms),
        "a_text": ms_text(row.a_ms),
        "b_text": ms_text(row.b_ms),
        "ratio": finite(row.ratio),
        "low": finite(row.low),
        "high": finite(row.high),
        "ratio_text": ratio_text(row),
        "verdict": row.verdict,
    }


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def ratio_text(row: ComparedRow) -> str:
    if not math.isfinite(row.ratio):
        return "–"
    text = f"{row.ratio:.3g}"
    if math.isfinite(row.low) and math.isfinite(row.high):
        text += f" [{row.low:.3g}, {row.high:.3g}]"
    return text


def overlay_chart(sweeps: tuple[SweepResult, SweepResult], names: tuple[str, str]) -> Json:
    """Both sweeps on one plot: run a solid with full marks, run b dashed with open ones."""
    data: list[Json] = []
    legend: list[Json] = []
    is_numeric = all(sweep.is_numeric for sweep in sweeps)
    for sweep, name, dash, symbol in zip(
        sweeps, names, ("solid", "dash"), ("circle", "circle-open"), strict=True
    ):
        for series in sweep.series:
            points = series_points(sweep, series)
            colour = colour_of(tone_of(sweep, series))
            words = f"{scan_short(series)}, {cut(name, 24)}"
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if is_numeric else "markers",
                    "x": [p.x if is_numeric else scan_short(p.label) for p in points],
                    "y": [p.p50_ms for p in points],
                    "name": words,
                    "line": {"color": colour, "width": 1.8, "dash": dash},
                    "marker": {"size": 8, "symbol": symbol, "color": colour},
                    "hovertemplate": f"{_plain(words)} %{{y:.3g}} ms<extra></extra>",
                }
            )
            if not any(item["text"] == scan_short(series) for item in legend):
                legend.append({"text": scan_short(series), "colour": colour})
    first = sweeps[0]
    layout = curve_layout(first.axis_label if is_numeric else "", "")
    layout["margin"] = {"l": 46, "r": 12, "t": 8, "b": 32}
    if is_numeric:
        layout["xaxis"] |= log_axis(first)
        values = [p.p50_ms for s in sweeps for p in s.points if p.is_measured]
        layout["yaxis"] |= log_values(values)
    else:
        layout["xaxis"] |= {"type": "category"}
        layout["yaxis"] |= {"rangemode": "tozero"}
    return {
        "kind": "plot",
        "key": "overlay",
        "figure": {"data": data, "layout": layout},
        "alt": "Medians of both runs on one plot",
        "heading": f"ms, median · solid: {cut(names[0], 24)}, dashed: {cut(names[1], 24)}",
        "legend": legend,
    }


def _plain(text: str) -> str:
    """A name is the reader's own text: Plotly would read tags and templates in it."""
    return text.replace("%{", "% {").replace("<", "&lt;")


def _sentence(runs: Sequence[RunLike], comparison: RunComparison | None) -> str:
    if comparison is None:
        return "Pick two runs of one kind, A and B, and compare them."
    counts = {
        word: sum(1 for row in comparison.rows if row.verdict == word)
        for word in ("slower", "faster", "no different", "not known")
    }
    said = [f"{n:,} {word}" for word, n in counts.items() if n]
    names = f"Run B ({cut(comparison.b, 40)}) beside A ({cut(comparison.a, 40)})"
    totals = [r for r in comparison.rows if r.table == "total" and math.isfinite(r.ratio)]
    start = f"{names}: {significant(totals[0].ratio)} times the time in all; " if totals else ""
    return f"{start or names + ': '}{', '.join(said) or 'no row is in both'}."
