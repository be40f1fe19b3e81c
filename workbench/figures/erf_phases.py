"""The ERF tab's phases: the fields of the tokens of one cell, each in a scan group of its own."""

from __future__ import annotations

from workbench.figures.erf_maps import (
    Scale,
    contour_traces,
    images_text,
    scale_json,
    scale_of,
)
from workbench.figures.theme import CIVIDIS, Json, colorscale, map_layout, percent
from workbench.results import ErfPhase, ErfPhasesResult

PHASE_CELLS = 96  # cells a side of a phase's small map


def erf_phases_panel(result: ErfPhasesResult, scale: str) -> Json:
    """The fields of one step x step cell as a grid in the cell's own order, on one scale."""
    panel: Json = {
        "id": "lab_erf_phases",
        "title": "The phases of one cell",
        "stage": result.stage,
        "input": list(result.provenance.input_size),
    }
    if not result.phases:
        return panel | {
            "badges": [{"text": f"stage {result.stage}", "tone": "muted"}],
            "empty": {"title": "No phases here", "text": result.note},
            "sentence": "Pick a token of stage 1 or 2 of a network that scans with ES2D to see "
            "its neighbours' fields.",
        }
    fields = [phase.field for phase in result.phases]
    shown = scale_of(fields, scale, PHASE_CELLS)
    bar = scale_json(shown, "")
    return panel | {
        "badges": [
            {
                "text": f"{fields[0].unit_label} · {result.step} × {result.step} tokens · "
                f"{images_text(fields[0])}",
                "tone": "muted",
            }
        ],
        "columns": result.step,
        "maps": [_phase_map(phase, shown, result.step) for phase in result.phases],
        "scale": bar,
        "table": {
            "columns": [{"text": t} for t in ("token", "group", "50 % on", "90 % on")],
            "rows": [
                [
                    f"({phase.field.y}, {phase.field.x})",
                    _group(phase),
                    *(percent(phase.field.metrics[key]) for key in ("area50", "area90")),
                ]
                for phase in result.phases
            ],
        },
        "sentence": _phases_sentence(result),
        "notes": [result.note] if result.note else [],
        "is_live": not result.is_final,
    }


def _group(phase: ErfPhase) -> str:
    """ "1, rows": groups count from 1, as on the scan tab."""
    number = str(phase.group + 1) if phase.group >= 0 else "several"
    direction = {"row-major": "rows", "column-major": "cols"}.get(phase.direction, "")
    return f"{number}, {direction}" if direction else number


def phase_name(phase: ErfPhase) -> str:
    """ "token (14, 15), group 2, column-major"."""
    group = f"group {phase.group + 1}" if phase.group >= 0 else "several groups"
    parts = [f"token ({phase.field.y}, {phase.field.x})", group, phase.direction]
    return ", ".join(part for part in parts if part)


def _phase_map(phase: ErfPhase, scale: Scale, step: int) -> Json:
    result = phase.field
    height, width = result.mass.shape
    data = [scale.trace(result, colorscale=colorscale(CIVIDIS)), *contour_traces(result)]
    spec: Json = {
        "key": f"phase-{phase.row}-{phase.column}",
        "figure": {"data": data, "layout": map_layout(height, width)},
        "read": scale.read(),
        "cell": result.stride,
        "token": {"centre": list(result.centre), "stride": result.stride, "is_small": True},
        "alt": phase_name(phase),
    }
    if step <= 2:
        spec["left"] = {"text": f"({result.y}, {result.x})"}
        spec["right"] = {"text": f"group {phase.group + 1}" if phase.group >= 0 else ""}
    return spec


def _phases_sentence(result: ErfPhasesResult) -> str:
    areas = [phase.field.metrics["area50"] for phase in result.phases]
    low, high = min(areas), max(areas)
    part = {4: "a quarter", 9: "a ninth", 16: "a sixteenth"}.get(len(result.phases), "a part")
    text = (
        f"Half of the mass lies on {percent(low)} to {percent(high)} of the image, by phase: one "
        f"token alone shows {part} of what the stage does."
    )
    if not result.is_final:
        first = result.phases[0].field
        return f"So far, {images_text(first)}: " + text[0].lower() + text[1:]
    return text
