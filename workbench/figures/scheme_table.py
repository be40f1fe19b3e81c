"""Panel of the scan tab: every scheme on one stage's map, to sort and to choose from."""

from __future__ import annotations

import math

from workbench.figures.theme import Json, significant
from workbench.labels import scan_in_text
from workbench.results import SchemeRow, SchemeTableResult

TONES = ("a", "b", "c")
# Key in SchemeRow.metrics, header, unit, kind, explanation.
READ_COLUMNS = (
    ("n_sequences", "sequences", "", "int", "Sequences that are scanned side by side"),
    ("length", "length", "steps", "int", "Steps of one sequence: the serial depth"),
    ("tokens_scanned", "tokens", "read", "int", "Visits of tokens over all sequences"),
    ("n_pads", "pads", "", "int", "Steps that read no token"),
    ("visits_min", "visits", "fewest", "int", "How often the least read token is read"),
    ("visits_max", "visits", "most", "int", "How often the most read token is read"),
    ("n_parameter_sets", "sets", "", "int", "Parameter sets of the operator that are used"),
    ("mean_reach", "reach", "mean, %", "percent", "Share of tokens that can influence a token"),
)
TIME_COLUMNS = (
    ("p50_ms", "latency", "ms", "number", "Median of one scan forward on this device"),
    ("p20_ms", "20 %", "ms", "number", "A fifth of the runs was faster"),
    ("p80_ms", "80 %", "ms", "number", "A fifth of the runs was slower"),
)
PATH_COLUMNS = (
    ("n_jumps", "jumps", "", "int", "Moves that do not go to one of the four neighbours"),
    ("mean_jump", "move", "mean, tokens", "number", "Mean Manhattan distance of a move"),
    ("max_jump", "move", "max, tokens", "int", "Largest Manhattan distance of a move"),
    ("mean_gap", "gap", "mean, steps", "number", "Mean steps between two 4-neighbours"),
    ("max_gap", "gap", "max, steps", "int", "Most steps between two 4-neighbours"),
)
COST_COLUMNS = (
    ("flops", "FLOPs", "", "si", "Of one scan forward at batch 1, cost model"),
    ("bytes", "bytes", "B", "si", "Moved by one scan forward at batch 1, cost model"),
    ("error", "error", "rel. L2", "number", "Against the reference"),
    ("status", "status", "", "text", "Whether models here run it, and whether it was measured"),
)


def scheme_table_panel(result: SchemeTableResult, current: tuple[str, ...]) -> Json:
    """The table; `current` are the `ScanSpec` texts of schemes A, B and, if there is one, C."""
    panel: Json = {
        "id": "lab_schemes",
        "title": "All schemes",
        "stage": result.stage,
        "input": list(result.provenance.input_size),
    }
    if not result.rows:
        return panel | {
            "badges": [{"text": f"stage {result.stage}", "tone": "muted"}],
            "empty": {
                "title": f"Stage {result.stage} has no scan",
                "text": "Pick a stage whose blocks scan to compare the schemes on its map.",
            },
            "sentence": result.note,
        }
    columns: list[Json] = [
        {"key": "label", "text": "scheme", "unit": "", "kind": "text", "tip": "Name of the scheme"}
    ]
    for key, text, unit, kind, tip in READ_COLUMNS + TIME_COLUMNS + PATH_COLUMNS + COST_COLUMNS:
        columns.append({"key": key, "text": text, "unit": unit, "kind": kind, "tip": tip})
    columns.append(
        {"key": "why_not", "text": "note", "unit": "", "kind": "text", "tip": "Why it does not run"}
    )
    where = f"stage {result.stage}, {result.height} × {result.width} tokens"
    size = f"{result.channels} channels, {result.states} states"
    clock = result.clock if result.is_final else "times follow"
    return panel | {
        "badges": [{"text": f"{where} · {size} · {clock}".rstrip(" ·"), "tone": "muted"}],
        "columns": columns,
        "rows": [_row(row, current) for row in result.rows],
        "sort": None,
        "choose": {"id": "scheme", "key": "scan", "slots": list(TONES)},
        "csv_name": f"schemes-stage{result.stage}-{result.height}x{result.width}.csv",
        "sentence": _sentence(result, current),
    }


def _row(row: SchemeRow, current: tuple[str, ...]) -> Json:
    cells: Json = {"label": {"value": row.label, "tip": f"{row.scan}: {row.definition}"}}
    for key, _, _, kind, _ in READ_COLUMNS + PATH_COLUMNS:
        cells[key] = _number(row.metrics.get(key), kind)
    cells["n_parameter_sets"] = row.n_parameter_sets
    cells |= {"flops": row.flops, "bytes": row.bytes}
    cells |= {key: _number(getattr(row, key), "number") for key in ("p20_ms", "p80_ms", "error")}
    cells["p50_ms"] = _latency(row)
    cells["status"] = {"value": row.status, "tip": row.why_not or row.status}
    cells["why_not"] = row.why_not or {"value": None, "text": ""}
    slots = [tone for tone, scan in zip(TONES, current, strict=False) if scan == row.scan]
    entry: Json = {
        "id": row.scan,
        "cells": cells,
        "slots": slots,
        "tone": slots[0] if slots else "",
    }
    if not row.is_runnable:
        entry |= {"faint": True, "note": row.why_not}
    return entry


def _number(value: float | int | None, kind: str) -> float | int | None:
    """An exact number for the table; JSON knows no nan, so what is missing is None."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if kind == "int" else float(value)


def _latency(row: SchemeRow) -> Json | float:
    if not math.isfinite(row.p50_ms):
        return {"value": None, "text": "not measured", "tip": row.why_not or row.status}
    text = significant(row.p50_ms)
    tip = f"20 to 80 %: {significant(row.p20_ms)} to {significant(row.p80_ms)} ms"
    return {"value": row.p50_ms, "text": text, "tip": tip}


def _sentence(result: SchemeTableResult, current: tuple[str, ...]) -> str:
    runnable = [row for row in result.rows if row.is_runnable]
    text = f"{len(result.rows)} schemes, {len(runnable)} of them run in these models"
    timed = {row.scan: row for row in runnable if math.isfinite(row.p50_ms)}
    if len(current) > 1 and current[0] in timed and current[1] in timed:
        a, b = timed[current[0]], timed[current[1]]
        text += (
            f"; one scan of {scan_in_text(b.scan)} takes {significant(b.p50_ms / a.p50_ms, 2)} "
            f"times as long as one of {scan_in_text(a.scan)}"
        )
        if max(a.p20_ms, b.p20_ms) <= min(a.p80_ms, b.p80_ms):
            text += ", within the spread"
    elif not timed:
        text += "; none is measured yet"
    text += ". A, B and C put a row into the comparison above."
    return f"{text} {result.note}".strip()
