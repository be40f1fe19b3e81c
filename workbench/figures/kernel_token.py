"""From a token to its cost: what reading one token makes a kernel do, for one or two schemes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from workbench.figures.profiler_sweep import bytes_text
from workbench.figures.theme import Json, significant
from workbench.floors import Setting
from workbench.kernel_results import TokenCost
from workbench.labels import scan_in_text, scan_label, scan_short

MAX_PROGRAMS = 4  # ids that a cell lists
MAX_VISITS = 4
NO_BREAK = "\u00a0"
LOOPS = "Machine instructions in the loops of the compiled kernel, each counted once"
# Colours of what moves, the same in the bars of both schemes.
KINDS = {"x": "@d", "dt factors": "@gate", "B": "@c", "C": "@s7", "y": "@conv"}
CLASS_WORDS = {  # classes of `kernels.compiled` whose names alone do not say it
    "load": "loads",
    "store": "stores",
    "local": "spills",
    "shared": "shared memory",
    "atomic": "atomics",
    "fma": "arithmetic",
    "matrix": "matrix products",
    "exp2": "exp2",
    "special": "special functions",
    "shuffle": "shuffles",
    "barrier": "barriers",
    "branch": "branches",
    "other": "others",
}


def token_panel(costs: Mapping[str, TokenCost], setting: Setting, why: str = "") -> Json:
    """A table of the costs of schemes "a" and "b", and their bytes as bars from zero.

    `costs` may hold one scheme or none; `why` says in words why there is none.
    """
    panel: Json = {
        "id": "lab_kern_token",
        "title": "From token to cost",
        "badges": [],
        "notes": [],
        "setting": dict(setting),
    }
    if not costs:
        panel["empty"] = {
            "title": "No token has a cost here",
            "text": why or "Choose stage 1 or 2 and click a token in any picture.",
        }
        panel["sentence"] = "A token costs where a scan reads it."
        return panel
    first = next(iter(costs.values()))
    panel["badges"] = [
        {
            "text": f"as {first.device} would run it · {setting['dtype']}, batch {first.batch}",
            "tone": "muted",
            "tip": "From the launcher and the kernel's source; nothing was run",
        }
    ]
    panel["sentence"] = token_sentence(costs)
    panel["columns"] = [
        {
            "slot": slot,
            "text": scan_label(cost.scan),
            "short": scan_short(cost.scan),
            "config": cost.kernel,
            "target": cost.target,
        }
        for slot, cost in costs.items()
    ]
    panel["groups"] = _groups(costs)
    panel["bars"] = _bars(costs)
    notes = list(dict.fromkeys(c.note for c in costs.values() if c.note))
    if len(notes) > 1:
        notes = [f"{scan_label(c.scan)}: {c.note}" for c in costs.values() if c.note]
    panel["notes"] = [
        "Loads and stores are those that the kernel issues for this token in one image: B, C and "
        "the factors of dt are read again by every block of channels. The mark in a bar is the "
        "least that a perfectly fused scan must move.",
        *notes,
    ]
    return panel


def token_line(cost: TokenCost) -> str:
    """One line for other panels: what this token costs in its kernel."""
    if not cost.visits:
        return f"Token ({cost.y}, {cost.x}): {scan_in_text(cost.scan)} never reads it."
    return (
        f"Token ({cost.y}, {cost.x}) costs {_times(len(cost.visits), 'visit')} in "
        f"{cost.kernel.partition('-')[0]} on {cost.device}: {bytes_text(_read(cost))} read, "
        f"{bytes_text(_written(cost))} written, {cost.exps:,} exps, {cost.flops:,} FLOP"
    )


def token_rows(cost: TokenCost) -> list[list[str]]:
    """Name and value of what the token in focus costs, for the panels that show the path."""
    if not cost.visits:
        return [["token's programs", "none: never read"]]
    ids = _program_ids(cost)
    is_run = ids == list(range(ids[0], ids[-1] + 1)) and len(ids) > 1
    listed = f"{ids[0]:,} to {ids[-1]:,}" if is_run else " ".join(f"{i:,}" for i in ids)
    return [
        ["token's programs", f"{listed} of {cost.n_programs:,}"],
        ["token in, out", f"{bytes_text(_read(cost))}, {bytes_text(_written(cost))}"],
        ["token's exps, FLOP", f"{cost.exps:,}, {cost.flops:,}"],
    ]


def costs_note(cost: TokenCost) -> str:
    """Where `token_rows` are from."""
    return f"Token costs: {cost.device} (model)."


def token_sentence(costs: Mapping[str, TokenCost]) -> str:
    """Where the token stands in the first scheme and what it costs, then in the second."""
    first, *rest = costs.values()
    where = f"Token ({first.y}, {first.x}) of stage {first.stage}"
    if first.visits:
        visit = first.visits[0]
        words = (
            f"{where} is step {visit.step} of sequence {visit.sequence} in "
            f"{scan_in_text(first.scan)}: {_times(len(first.visits), 'visit')}, "
            f"{bytes_text(_read(first))} read"
        )
    else:
        words = f"{where} is never read by {scan_in_text(first.scan)}"
    for cost in rest:
        words += (
            f"; {scan_in_text(cost.scan)} visits it {_times(len(cost.visits), 'time')}: "
            f"{bytes_text(_read(cost))}"
        )
    return f"{words}. Counted from the kernel's source and its launch, not measured."


def bytes_moved(cost: TokenCost) -> int:
    """Loads and stores together."""
    return _read(cost) + _written(cost)


def _times(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _read(cost: TokenCost) -> int:
    return sum(cost.loads.values())


def _written(cost: TokenCost) -> int:
    return sum(cost.stores.values())


def _groups(costs: Mapping[str, TokenCost]) -> list[Json]:
    listed = list(costs.values())

    def words(name: str, say: Callable[[TokenCost], str | Json], tip: str = "") -> Json:
        return {"name": name, "tip": tip, "cells": [say(c) for c in listed], "ratio": ""}

    def counts(name: str, of: Callable[[TokenCost], float], unit: str = "", tip: str = "") -> Json:
        values = [of(c) for c in listed]
        show = bytes_text if unit == "B" else _count
        ratio = significant(values[1] / values[0]) if len(values) > 1 and values[0] else ""
        return {"name": name, "tip": tip, "cells": [show(v) for v in values], "ratio": ratio}

    loads = list(dict.fromkeys(k for c in listed for k in c.loads))
    stores = list(dict.fromkeys(k for c in listed for k in c.stores))
    classes = list(dict.fromkeys(k for c in listed for k in c.loop_instructions))
    groups = [
        {
            "title": "where",
            "rows": [
                words("visits", _visits, "(k, t): step t of sequence k, from 0"),
                words("programs", _programs, "Of the whole launch, those that handle the token"),
                words("their ids", _ids, "In the launch's one-dimensional grid, first image"),
                words("kernel", _kernel),
                words("tile", _tile),
            ],
        },
        {
            "title": "moves",
            "rows": [
                *(counts(f"reads {k}", partial(_of, "loads", k), "B") for k in loads),
                *(counts(f"writes {k}", partial(_of, "stores", k), "B") for k in stores),
                counts("at least", lambda c: c.least_bytes, "B", "A perfectly fused scan, model"),
            ],
        },
        {
            "title": "computes",
            "rows": [
                counts("state updates", lambda c: c.state_updates),
                counts("exponentials", lambda c: c.exps),
                counts("multiply-adds", lambda c: c.fmas, "", "A fused one counts once"),
                counts("FLOP", lambda c: c.flops),
            ],
        },
    ]
    if classes:
        rows = [
            counts(CLASS_WORDS.get(k, k), partial(_of, "loop_instructions", k)) for k in classes
        ]
        for row in rows:  # of two kernels: how many times as many is no statement about the token
            row["ratio"] = ""
        groups.append({"title": "in its loops", "rows": rows, "tip": LOOPS})
    return groups


def _of(part: str, key: str, cost: TokenCost) -> int:
    found: dict[str, int] = getattr(cost, part)
    return found.get(key, 0)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _visits(cost: TokenCost) -> str:
    """ "1: (0, 98)"."""
    places = " ".join(f"({v.sequence},{NO_BREAK}{v.step:,})" for v in cost.visits[:MAX_VISITS])
    more = len(cost.visits) - MAX_VISITS
    return f"{len(cost.visits)}: {places}{f' and {more} more' if more > 0 else ''}".rstrip(": ")


def _program_ids(cost: TokenCost) -> list[int]:
    return sorted({p for v in cost.visits for p in v.programs})


def _programs(cost: TokenCost) -> str:
    return f"{len(_program_ids(cost)):,} of {cost.n_programs:,}"


def _ids(cost: TokenCost) -> Json | str:
    ids = [f"{p:,}" for p in _program_ids(cost)]
    if len(ids) <= MAX_PROGRAMS:
        return " ".join(ids) or "none"
    return {"text": f"{' '.join(ids[: MAX_PROGRAMS - 1])} … {ids[-1]}", "tip": " ".join(ids)}


def _kernel(cost: TokenCost) -> Json:
    return {"text": cost.kernel.partition("-")[0], "tip": f"{cost.kernel} for {cost.target}"}


def _tile(cost: TokenCost) -> str:
    warps = _times(cost.num_warps, "warp")
    tile = f"{cost.tile_channels} channels × {_times(cost.tile_steps, 'step')}"
    return ", ".join(text.replace(" ", NO_BREAK) for text in (tile, warps))


def _bars(costs: Mapping[str, TokenCost]) -> Json:
    """Bytes of the token by kind, on one scale from zero."""
    rows: list[Json] = []
    for slot, cost in costs.items():
        parts = [
            {"text": f"reads {k}", "bytes": v, "colour": KINDS.get(k, "@residual")}
            for k, v in cost.loads.items()
        ] + [
            {"text": f"writes {k}", "bytes": v, "colour": KINDS.get(k, "@residual")}
            for k, v in cost.stores.items()
        ]
        total = bytes_moved(cost)
        least = cost.least_bytes
        rows.append(
            {
                "slot": slot,
                "text": scan_label(cost.scan),
                "short": scan_short(cost.scan),
                "parts": [p for p in parts if p["bytes"]],
                "total": total,
                "total_text": bytes_text(total),
                "least": least,
                "least_text": bytes_text(least),
            }
        )
    longest = max(1.0, *(max(_read(c) + _written(c), c.least_bytes) for c in costs.values()))
    legend = {part["text"]: part["colour"] for row in rows for part in row["parts"]}
    return {
        "heading": "Bytes that this token moves in one image",
        "longest": longest,
        "legend": [{"text": text, "colour": colour} for text, colour in legend.items()],
        "rows": rows,
    }
