"""Floors of the cost model in words, for figures and files."""

from __future__ import annotations

import math
from typing import Any

from workbench.figures.theme import significant
from workbench.floors import LAUNCH, Floors, Setting, floors, position, rates_of
from workbench.kernel_results import CostGrid, MeasuredScan, Rates, RooflineResult, WhatIfResult
from workbench.labels import scan_in_text
from workbench.view import HERE

PASS_WORDS = {"forward": "forward", "train": "forward and backward"}
LIMITER_WORDS = ("memory bandwidth", "multiply-adds", "exponentials", "launch latency")
LETTERS = ("M", "F", "E", "L")
TIME_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def setting_of(result: WhatIfResult) -> dict[str, Any]:
    """The setting that a what-if was asked with; scheme A tells the step."""
    _, is_step, step = result.scan_a.partition("step=")
    return {
        "device": HERE if result.device.kind == "measured" else result.device.device,
        "size": result.size,
        "batch": result.batch,
        "step": int(step.partition(",")[0]) if is_step else 0,
        "dtype": result.dtype,
        "passes": result.passes,
    }


def time_text(seconds: float) -> str:
    """Three significant digits in the unit that fits: "16.6 µs"."""
    if not math.isfinite(seconds):
        return "n/a"
    size, unit = next((u for u in TIME_UNITS if abs(seconds) >= u[0]), TIME_UNITS[-1])
    return f"{significant(seconds / size)} {unit}"


def limiter_words(found: Floors, scheme: int, stages: tuple[int, ...]) -> str:
    """ "exponentials", or by stage where they differ."""
    names = [LIMITER_WORDS[i] for i in found.limiter[scheme]]
    if len(set(names)) == 1:
        return names[0]
    return " and ".join(f"{n} (stage {s})" for n, s in zip(names, stages, strict=True))


def what_if_sentence(grid: CostGrid, rates: Rates, setting: Setting, a: str, b: str) -> str:
    """What the model says about two schemes at a setting, in plain words with its numbers."""
    found = floors(grid, rates, setting)
    i, j = (position("scheme", scan, grid.schemes) for scan in (a, b))
    times = [found.network("least_s", scheme, grid.blocks) for scheme in (i, j)]
    where = (
        f"{setting['size']} px, batch {setting['batch']}, {setting['dtype']}, "
        f"{PASS_WORDS[setting['passes']]} on {rates.device}"
    )
    how = (
        "Model with published peak rates: nothing was run."
        if rates.kind == "published"
        else "Model with rates measured on this machine."
    )
    names = [scan_in_text(scan) for scan in (a, b)]
    if (found.limiter[[i, j]] == LAUNCH).all():
        return (
            f"At {where} the scans are done before a kernel has started: "
            f"{sum(grid.blocks)} launches take {time_text(times[0])} with {names[0]} and with "
            f"{names[1]} alike, so reading fewer tokens buys no time. {how}"
        )
    return (
        f"At {where} the network's scans take at least {time_text(times[0])} with {names[0]}, "
        f"limited by {limiter_words(found, i, grid.stages)}, and {time_text(times[1])} with "
        f"{names[1]}, {significant(times[1] / times[0])} times as long. {how}"
    )


def shown_measurements(result: RooflineResult, setting: Setting) -> list[MeasuredScan]:
    """The measured points that belong to the setting: of its device, size, batch, type, passes."""
    rates = rates_of(result.grid, setting["device"])
    if rates is None or rates.kind != "measured":
        return []
    return [
        m
        for m in result.measured
        if not m.status
        and all(getattr(m, name) == setting[name] for name in ("size", "batch", "dtype", "passes"))
    ]
