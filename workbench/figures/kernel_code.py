"""The kernel inspector: what compiling a kernel ahead of time tells, as tables of the page.

Nothing here was run: registers, occupancy and instruction counts are the compiler's, and the only
times are those of compiling. The listings are fetched by the page, one stage at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from workbench.figures.kernel_words import (
    CLASS_WORDS,
    NOT_RUN,
    apart,
    count,
    most_registers,
    sentence,
    signed,
    tile_text,
    verdict,
)
from workbench.figures.theme import Json, percent, significant
from workbench.kernel_results import InspectResult, KernelChoice, KernelNumbers, TuneTrial

PANEL = "lab_kern_code"
LISTINGS = "/kernel-listings/"
ORIGINS = {
    "shipped": "shipped",
    "candidate": "candidates for tuning",
    "ruled out": "ruled out by the resource model",
}
# Stages of lowering by the place in the pipeline, whatever the vendor calls them.
STAGE_PLACES = {"ptx": "assembly", "amdgcn": "assembly", "cubin": "binary", "hsaco": "binary"}
NO_TRIALS = (
    "No GPU has run `python -m kernels.bench --tune` here, so there are no measured tiles; shipped "
    "tiles are chosen by the resource model."
)


def inspect_panel(result: InspectResult, choices_b: Sequence[KernelChoice] = ()) -> Json:
    """The panel; `choices_b` are those of B's target where it is not A's, () for the same."""
    rows = [numbers for _, numbers in _slots(result)]
    panel: Json = {
        "id": PANEL,
        "kind": "kerncode",
        "title": "Kernel inspector",
        "badges": _badges(result),
        "input": [1, 1],
        "sentence": sentence(result),
        "listings": LISTINGS,
        "targets": [
            {"name": name, "product": _product(result, name), "why": why}
            for name, why in result.targets.items()
        ],
        "origins": [{"key": key, "text": text} for key, text in ORIGINS.items()],
        "choices": [_choice(choice) for choice in result.choices],
        "choices_b": [_choice(choice) for choice in choices_b],
        "rows": [_row(slot, numbers, result) for slot, numbers in _slots(result)],
        "waiting": _waiting(result),
        "obstacle": _obstacle(rows),
        "classes": CLASS_WORDS,
        "difference": _difference(result.a, result.b),
        "mix": _mix(result.a, result.b),
        "compile_stages": _compile_stages(rows),
        "trials": [_trial(trial, result) for trial in result.trials],
        "trials_note": "" if result.trials else NO_TRIALS,
        "is_live": not result.is_final,  # rows that are there are not dimmed
        "notes": _notes(result),
    }
    return panel


def _slots(result: InspectResult) -> list[tuple[str, KernelNumbers]]:
    found = [("a", result.a)]
    if result.b is not None:
        found.append(("b", result.b))
    return [*found, *(("", numbers) for numbers in result.others)]


def _product(result: InspectResult, target: str) -> str:
    return next((n.product for _, n in _slots(result) if n.target == target), "")


def _choice(choice: KernelChoice) -> list[object]:
    tile = f"{choice.channels} × {choice.steps}, " if choice.channels else ""
    text = f"{tile}{count(choice.num_warps, 'warp', 'warps')}"
    held = f"{choice.elements} elements a thread" if choice.elements else ""
    place = list(ORIGINS).index(choice.origin)
    return [choice.name, choice.kernel, choice.layout, choice.dtype, text, place, held]


def _badges(result: InspectResult) -> list[Json]:
    version = next((n.triton_version for _, n in _slots(result) if n.triton_version), "")
    badges = []
    if version:
        badges.append({"text": f"compiled by triton {version}", "tone": "plain"})
    badges.append({"text": "not run, no GPU needed", "tone": "plain", "tip": NOT_RUN})
    if any(n.is_compiled and n.spill_bytes for _, n in _slots(result)[: 2 if result.b else 1]):
        badges.insert(0, {"text": "spills", "tone": "bad"})
    return badges


def _waiting(result: InspectResult) -> list[Json]:
    """Targets that are still being compiled for."""
    if result.is_final:
        return []
    there = {n.target for n in (result.a, *result.others)}
    return [
        {"target": name, "text": "compiling"}
        for name, why in result.targets.items()
        if name not in there and not why
    ]


def _obstacle(rows: Sequence[KernelNumbers]) -> Json | None:
    """What stands instead of tables and listings where nothing at all can be compiled here."""
    if any(n.is_compiled for n in rows) or rows[0].error_kind not in ("triton", "backend"):
        return None
    title = "No compiler here" if rows[0].error_kind == "triton" else "No compiler for this GPU"
    return {"title": title, "text": rows[0].status}


def _row(slot: str, n: KernelNumbers, result: InspectResult) -> Json:
    row: Json = {
        "slot": slot,
        "config": n.config,
        "target": n.target,
        "product": n.product,
        "apart": apart(n.config, result.a.config),
        "tile": tile_text(n.config) or n.config,
        "status": n.status,
        "kind": n.error_kind,
        "key": n.key,
        "stages": list(n.stages),
    }
    if not n.is_compiled:
        return row
    text, tone, tip = verdict(n, result.baseline_triton)
    most = most_registers(n.target)
    return row | {
        "registers": n.registers,
        "most_registers": most,
        "scalars": n.scalar_registers,
        "spills": n.spill_bytes,
        "stack": n.stack_bytes,
        "shared": n.shared_bytes,
        "occupancy": n.occupancy,
        "occupancy_text": percent(n.occupancy) if n.blocks else "cannot be launched",
        "resident": f"{count(n.blocks, 'block', 'blocks')}, {count(n.warps, 'warp', 'warps')}",
        "limiter": n.limiter,
        "instructions": sum(n.instructions.values()),
        "in_loops": sum(n.loop_instructions.values()),
        "exp2": n.exp2_in_loops,
        "compile_ms": _compile_ms(n),
        "cached": n.is_cached,
        "binary": n.binary_bytes,
        "verdict": {"text": text, "tone": tone, "tip": tip},
    }


def _compile_ms(n: KernelNumbers) -> float:
    return sum(n.stage_ms.values()) if n.stage_ms else 1e3 * n.compile_s


def _difference(a: KernelNumbers, b: KernelNumbers | None) -> list[Json]:
    """Signed change of each number from A to B; "tone" says where less or more of it is better."""
    if b is None or not (a.is_compiled and b.is_compiled):
        return []
    listed: list[tuple[str, float, float, str, int]] = [
        ("registers", a.registers, b.registers, "", -1),
        ("spill bytes", a.spill_bytes, b.spill_bytes, "B", -1),
        ("shared per block", a.shared_bytes, b.shared_bytes, "B", 0),
        ("occupancy", 100 * a.occupancy, 100 * b.occupancy, "%", 1),
        ("instructions", sum(a.instructions.values()), sum(b.instructions.values()), "", 0),
        ("in loops", sum(a.loop_instructions.values()), sum(b.loop_instructions.values()), "", 0),
        ("exp2 in loops", a.exp2_in_loops, b.exp2_in_loops, "", 0),
        ("binary", a.binary_bytes, b.binary_bytes, "B", 0),
        ("compile time", _compile_ms(a), _compile_ms(b), "ms", 0),
    ]
    rows = []
    for text, left, right, unit, wanted in listed:
        change = right - left
        tone = "" if not change or not wanted else ("ok" if change * wanted > 0 else "bad")
        values = [_plain(value) for value in (left, right)]
        points = " pt" if unit == "%" and change else ""
        rows.append(
            {"text": text, "unit": unit, "a": values[0], "b": values[1], "tone": tone}
            | {"change": signed(change) + points}
        )
    return rows


def _plain(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else significant(value)


def _mix(a: KernelNumbers, b: KernelNumbers | None) -> list[Json]:
    """Instructions by class, whole and in loops, of A and B; classes that neither has left out."""
    pair = [n for n in (a, b) if n is not None]
    rows = []
    for name, words in CLASS_WORDS.items():
        whole = [n.instructions.get(name, 0) if n.is_compiled else None for n in pair]
        loops = [n.loop_instructions.get(name, 0) if n.is_compiled else None for n in pair]
        if any(whole):
            rows.append({"key": name, "text": words, "whole": whole, "loops": loops})
    return rows


def _compile_stages(rows: Sequence[KernelNumbers]) -> Json:
    """Milliseconds of each lowering stage; the vendors' last two share a colour each."""
    places: dict[str, list[str]] = {}
    bars = []
    for n in rows:
        if not n.is_compiled or not n.stage_ms:
            continue
        parts = []
        for name, ms in n.stage_ms.items():
            place = STAGE_PLACES.get(name, name)
            names = places.setdefault(place, [])
            if name not in names:
                names.append(name)
            parts.append({"place": place, "text": name, "ms": round(ms, 1)})
        bars.append({"config": n.config, "target": n.target, "parts": parts})
    legend = [{"place": place, "text": " or ".join(names)} for place, names in places.items()]
    return {"bars": bars, "legend": legend}


def _trial(trial: TuneTrial, result: InspectResult) -> Json:
    known = _tile_numbers(trial, result)
    return {
        "tile": f"{trial.channels} × {trial.steps}, {count(trial.num_warps, 'warp', 'warps')}",
        "row": trial.row,
        "us": trial.microseconds if math.isfinite(trial.microseconds) else None,
        "us_text": f"{significant(trial.microseconds)}" if trial.status == "" else "–",
        "status": trial.status,
        "chosen": trial.is_chosen,
        "device": trial.device,
        "when": trial.measured_at,
        "registers": known.registers if known else None,
        "spills": known.spill_bytes if known else None,
        "of": known.target if known else "",
    }


def _tile_numbers(trial: TuneTrial, result: InspectResult) -> KernelNumbers | None:
    """A compiled configuration of this result that has the trial's tile."""
    tile = (trial.kernel, trial.channels, trial.steps, trial.num_warps)
    names = {
        choice.name
        for choice in result.choices
        if (choice.kernel, choice.channels, choice.steps, choice.num_warps) == tile
    }
    found = [n for _, n in _slots(result) if n.is_compiled and n.config in names]
    return found[0] if found else None


def _notes(result: InspectResult) -> list[str]:
    notes = [
        "Counts are static, for one thread: a loop that is unrolled counts more often. "
        "Compile times are those of the compilation that made the listing, on this machine.",
    ]
    if result.b is not None and result.b.target[:3] != result.a.target[:3]:
        notes.append("A and B have different instruction sets, so their classes compare roughly.")
    missing = _unavailable(result.targets)
    if missing:
        notes.append(missing)
    if result.note:
        notes.append(result.note)
    return notes


def _unavailable(targets: Mapping[str, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for name, why in targets.items():
        if why:
            reasons.setdefault(why, []).append(name)
    return " ".join(f"{', '.join(names)}: {why}." for why, names in reasons.items())
