"""Sweeps, traces and comparisons as text: CSV for a spreadsheet, rows of a LaTeX table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

import numpy as np

from workbench.figures.latex import escape
from workbench.figures.profiler_sweep import slope_text
from workbench.figures.theme import significant
from workbench.labels import scan_short
from workbench.profiler_results import RunComparison, SweepResult, TraceResult
from workbench.results import Provenance

SWEEP_HEAD = (
    *("series", "axis", "x", "label", "model", "scan", "size", "batch", "dtype", "backend"),
    *("passes", "status", "repeats", "p20_ms", "p50_ms", "p80_ms", "images_per_second"),
    *("peak_bytes", "error", "tokens", "depth", "samples_ms"),
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def provenance_line(p: Provenance, *parts: str) -> str:
    """Everything that one needs to repeat a figure or a table, in a line."""
    listed = (p.model, p.weights, *parts, p.device, p.backend, p.definition)
    return " · ".join(part for part in listed if part)


def sweep_csv(result: SweepResult) -> bytes:
    """Every point with all its samples; what was not measured is empty and its status says why."""
    rows = [
        [
            *(p.series, result.axis, p.x, p.label, p.model, p.scan, p.size, p.batch, p.dtype),
            *(p.backend, result.passes, p.status, p.samples_ms.size, p.p20_ms, p.p50_ms),
            *(p.p80_ms, p.images_per_second, p.peak_bytes, p.error, p.tokens, p.depth),
            " ".join(repr(float(v)) for v in p.samples_ms),
        ]
        for p in result.points
    ]
    return csv_table(SWEEP_HEAD, rows)


def sweep_latex(result: SweepResult) -> str:
    """Rows of a booktabs table, one per measured point, after comments that say what was
    measured."""
    how = provenance_line(result.provenance, result.subject, result.passes, result.clock)
    fits = "; ".join(
        f"{scan_short(series)}: {slope_text(result, series)}"
        for series in result.series
        if slope_text(result, series)
    )
    lines = [f"% {' '.join(text.split())}" for text in (how, fits) if text]
    lines += ["% \\begin{tabular}{llrrrr}\\toprule"]
    head = ["scan", result.axis_label, "ms", "20 to 80 %", "images/s", "peak MB"]
    lines.append("% " + " & ".join(map(escape, head)) + r" \\ \midrule")
    for p in result.points:
        if not p.is_measured:
            lines.append(f"% {' '.join(f'{p.series} {p.label}: {p.status}'.split())}")
            continue
        cells = [
            *(scan_short(p.series), p.label, significant(p.p50_ms)),
            f"{significant(p.p20_ms)} to {significant(p.p80_ms)}",
            significant(p.images_per_second),
            significant(p.peak_bytes / 1e6) if math.isfinite(p.peak_bytes) else "--",
        ]
        lines.append(" & ".join(map(escape, cells)) + r" \\")
    lines.append("% \\bottomrule\\end{tabular}")
    return "\n".join(lines) + "\n"


def trace_csv(result: TraceResult) -> dict[str, bytes]:
    """{"operators", "kernels", "modules"} -> table with exact times in ns, all rows."""
    cost = ("calls", "self_cpu_ns", "total_cpu_ns", "self_gpu_ns", "total_gpu_ns")
    kernels = (
        *("name", "kind", "calls", "total_ns", "min_ns", "max_ns", "operator", "grid", "block"),
        *("registers", "shared_bytes", "occupancy"),
    )
    modules = ("path", "kind", "depth", "stage", "block", *cost)
    steps = [f"step_{i}_ns" for i in range(result.operator_steps_ns.shape[-1])]
    return {
        "operators": csv_table(
            ("name", *cost, *steps),
            _rows(result.operators, ("name", *cost), result.operator_steps_ns),
        ),
        "kernels": csv_table(kernels, _rows(result.kernels, kernels)),
        "modules": csv_table(
            (*modules, *steps), _rows(result.modules, modules, result.module_steps_ns)
        ),
    }


def _rows(
    listed: Sequence[object], names: Sequence[str], more: np.ndarray | None = None
) -> list[list[object]]:
    rows = [[_known(name, getattr(row, name)) for name in names] for row in listed]
    if more is not None:
        rows = [[*row, *map(int, extra)] for row, extra in zip(rows, more, strict=True)]
    return rows


def _known(name: str, value: object) -> object:
    """-1 stands for "not known" in two columns of the kernels."""
    return "" if name in ("registers", "shared_bytes") and value == -1 else value


def comparison_csv(comparison: RunComparison) -> bytes:
    names = ("table", "name", "a_ms", "b_ms", "ratio", "low", "high", "verdict")
    rows = _rows(comparison.rows, names)
    head = ("run_a", "run_b", *names)
    return csv_table(head, [[comparison.a, comparison.b, *row] for row in rows])


def csv_table(head: Iterable[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A file for a spreadsheet: exact numbers, nothing for nan, and no text runs as a formula."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(head)
    for row in rows:
        writer.writerow([_field(value) for value in row])
    # A name of a brought trace may hold half a surrogate pair, which UTF-8 has not.
    return buffer.getvalue().encode(errors="replace")


def _field(value: object) -> object:
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else ""
    if isinstance(value, str) and value.startswith(FORMULA):
        return "'" + value
    return value
