"""The kernel tab's roofline: all that the browser needs to answer its sliders by itself."""

from __future__ import annotations

import math

import numpy as np

from workbench.figures.kernel_floors import LETTERS, LIMITER_WORDS, PASS_WORDS, what_if_sentence
from workbench.figures.theme import Json
from workbench.floors import DEPTHS, LIMITERS, WIDTHS, Setting, position, rates_of
from workbench.kernel_results import CostGrid, MeasuredScan, Rates, RooflineResult
from workbench.labels import scan_in_text, scan_label, scan_short
from workbench.view import HERE, WHAT_BATCHES, WHAT_STEPS

STEP_SCAN = "es2d:step="  # the scheme that the step slider moves
STAGE_MARKERS = ("circle", "square", "diamond", "triangle-up")
MARKER_SIGNS = ("○", "□", "◇", "△")
WAITING = "This machine's ceilings are being measured: copy, matrix product, exp."
WHAT_A_FLOOR_IS = (
    "A floor is a time that no kernel can beat: bytes over the memory's rate, multiply-adds and "
    "exponentials over theirs, whichever takes longest. {launch}Only the scans are in it, not the "
    "rest of the network. The depth, steps that wait for each other, is no floor: chunks of a scan "
    "can run side by side."
)


def roofline_panel(result: RooflineResult, a: str, b: str, setting: Setting) -> Json:
    """Costs of every scheme and size, rates of every device, and what was measured here.

    `a` and `b` are scan texts of the grid, `a` ES2D with the setting's step. BadInputError for a
    device, size, type or scheme that the grid has not.
    """
    grid = result.grid
    rates = rates_of(grid, str(setting["device"]))
    for scan in (a, b):
        position("scheme", scan, grid.schemes)
    panel: Json = {
        "id": "lab_kern_roof",
        "title": "Roofline and what-if",
        "badges": _badges(result),
        "is_live": not result.is_final,
        "notes": _notes(result),
        "sentence": WAITING,
        "waiting": WAITING,
        "setting": dict(setting),
        "here": HERE,
        "model": grid.model,
        "a": a,
        "b": b,
        "schemes": [
            {"scan": s, "label": scan_label(s), "short": scan_short(s), "inline": scan_in_text(s)}
            for s in grid.schemes
        ],
        "sizes": list(grid.sizes),
        "batches": list(WHAT_BATCHES),
        "steps": _steps(grid, a),
        "step_scan": STEP_SCAN,
        "dtypes": [{"key": name, "width": width} for name, width in WIDTHS.items()],
        "passes": [
            {"key": key, "text": text, "depth": DEPTHS[key]} for key, text in PASS_WORDS.items()
        ],
        "stages": [
            {
                "stage": stage,
                "blocks": blocks,
                "marker": STAGE_MARKERS[stage - 1],
                "sign": MARKER_SIGNS[stage - 1],
            }
            for stage, blocks in zip(grid.stages, grid.blocks, strict=True)
        ],
        "limiters": [
            {"key": key, "letter": letter, "words": words}
            for key, letter, words in zip(LIMITERS, LETTERS, LIMITER_WORDS, strict=True)
        ],
        "devices": [_device(r) for r in grid.devices],
        # [scheme] -> numbers in the order [size, stage, pass, value] and [size, stage].
        "values": [np.rint(v).astype(np.int64).ravel().tolist() for v in grid.values],
        "sequences": [v.ravel().tolist() for v in grid.sequences],
        "lengths": [v.ravel().tolist() for v in grid.length],
        "measured": [_measured(m) for m in result.measured],
        "csv_name": f"floors-{grid.model}.csv",
    }
    if rates is not None:
        panel["sentence"] = what_if_sentence(grid, rates, setting, a, b)
    return panel


def _steps(grid: CostGrid, a: str) -> list[int]:
    """Steps of ES2D that the grid holds; none where scheme A is another, which has no such
    slider."""
    if not a.startswith(STEP_SCAN):
        return []
    return [step for step in WHAT_STEPS if f"{STEP_SCAN}{step}" in grid.schemes]


def _device(rates: Rates) -> Json:
    is_here = rates.kind == "measured"
    return {
        "key": HERE if is_here else rates.device,
        "name": rates.device,
        "text": f"This machine: {rates.device}" if is_here else rates.device,
        "is_here": is_here,
        "memory": rates.memory_bytes_per_s,
        "fma": rates.fma_per_s,
        "exp": rates.exp_per_s,
        "launch": rates.launch_s,
        "has_exp_unit": rates.has_exp_unit,
        "source": rates.source,
    }


def _measured(m: MeasuredScan) -> Json:
    return {
        "scan": m.scan,
        "stage": m.stage,
        "passes": m.passes,
        "size": m.size,
        "batch": m.batch,
        "dtype": m.dtype,
        "device": m.device,
        "backend": m.backend,
        "status": m.status,
        "n": int(m.samples_ms.size),
        "clock": m.clock,
        **{
            name: value if math.isfinite(value) else None
            for name, value in (
                ("p20", m.p20_ms),
                ("p50", m.p50_ms),
                ("p80", m.p80_ms),
                ("error", m.error),
            )
        },
    }


def _badges(result: RooflineResult) -> list[Json]:
    badges: list[Json] = [
        {
            "text": f"cost model · {result.grid.model.removeprefix('efficientvmamba_')}",
            "tone": "muted",
            "tip": "Bytes, operations and exponentials are counted, not measured",
        }
    ]
    done = [m for m in result.measured if not m.status]
    if done:
        badges[0]["text"] += f" · scans measured on {done[0].device}"
        if errors := [m.error for m in done if math.isfinite(m.error)]:
            badges.append(
                {
                    "text": f"✓ within {max(errors):.0e} of the reference",
                    "tone": "ok",
                    "tip": "Relative L2 distance from the float64 reference, the largest",
                }
            )
    return badges


def _notes(result: RooflineResult) -> list[str]:
    launch = max((r.launch_s for r in result.grid.devices), default=0.0)
    words = f"Starting a kernel on a GPU takes {1e6 * launch:g} µs whatever it does. "
    notes = [WHAT_A_FLOOR_IS.format(launch=words if launch else "")]
    notes += [
        f"{scan_label(m.scan)}, stage {m.stage} was not measured: {m.status}."
        for m in result.measured
        if m.status
    ]
    return [*notes, result.note] if result.note else notes
