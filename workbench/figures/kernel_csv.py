"""Floors, what-if and token costs as CSV: exact numbers, nothing where a number is not known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from workbench.figures.kernel_floors import PASS_WORDS
from workbench.figures.profiler_csv import csv_table
from workbench.floors import LIMITERS, Setting, floors, known_rates, position
from workbench.kernel_results import RooflineResult, TokenCost, WhatIfResult

FLOOR_HEAD = (
    *("kind", "scan", "stage", "blocks", "device", "size", "batch", "dtype", "passes"),
    *("sequences", "length", "depth", "bytes", "flops", "fmas", "exps", "memory_s", "fma_s"),
    *("exp_s", "floor_s", "with_launch_s", "limiter", "backend", "status", "repeats", "p20_ms"),
    *("p50_ms", "p80_ms", "error", "samples_ms"),
)


def roofline_csv(result: RooflineResult, setting: Setting) -> bytes:
    """Floors of every scheme, stage and pass at the setting, then every measured row."""
    grid = result.grid
    rates = known_rates(grid, setting)
    size = position("size", setting["size"], grid.sizes)
    rows: list[list[object]] = []
    for passes in PASS_WORDS:
        found = floors(grid, rates, {**setting, "passes": passes})
        for i, j in np.ndindex(found.floor_s.shape):
            rows.append(
                [
                    *("model", grid.schemes[i], grid.stages[j], grid.blocks[j], rates.device),
                    *(setting["size"], setting["batch"], setting["dtype"], passes),
                    *(grid.sequences[i, size, j], grid.length[i, size, j], found.depth[i, j]),
                    *(found.bytes[i, j], found.flops[i, j], found.fmas[i, j], found.exps[i, j]),
                    *(found.memory_s[i, j], found.fma_s[i, j], found.exp_s[i, j]),
                    *(found.floor_s[i, j], found.least_s[i, j], LIMITERS[found.limiter[i, j]]),
                    *([""] * 8),
                ]
            )
    for m in result.measured:
        blocks = dict(zip(grid.stages, grid.blocks, strict=True)).get(m.stage, "")
        rows.append(
            [
                *(
                    "measured",
                    m.scan,
                    m.stage,
                    blocks,
                    m.device,
                    m.size,
                    m.batch,
                    m.dtype,
                    m.passes,
                ),
                *([""] * 13),
                *(m.backend, m.status, m.samples_ms.size, m.p20_ms, m.p50_ms, m.p80_ms, m.error),
                " ".join(repr(float(v)) for v in m.samples_ms),
            ]
        )
    return csv_table(FLOOR_HEAD, rows)


def what_if_csv(result: WhatIfResult) -> bytes:
    """Rows of A, then of B; the ratio of the networks' times stands in each."""
    head = (
        *("slot", "scan", "stage", "device", "size", "batch", "dtype", "passes", "sequences"),
        *("length", "depth", "bytes", "flops", "fmas", "exps", "memory_s", "fma_s", "exp_s"),
        *("floor_s", "limiter", "ratio_of_networks"),
    )
    n = len(result.rows) // 2  # as many stages of A as of B, which may be the same scheme
    rows = [
        [
            *("a" if i < n else "b", r.scan, r.stage, result.device.device, result.size),
            *(result.batch, result.dtype, r.passes, r.sequences, r.length, r.depth, r.bytes),
            *(r.flops, r.fmas, r.exps, r.memory_s, r.fma_s, r.exp_s, r.seconds, r.limiter),
            result.ratio,
        ]
        for i, r in enumerate(result.rows)
    ]
    return csv_table(head, rows)


def token_csv(costs: Mapping[str, TokenCost]) -> bytes:
    """One row for each number of each scheme's token."""
    head = (
        *("slot", "scan", "stage", "y", "x", "device", "batch", "kernel", "target", "quantity"),
        *("value", "unit"),
    )
    rows = []
    for slot, c in costs.items():
        numbers: list[tuple[str, object, str]] = [
            ("visits", len(c.visits), ""),
            *((f"visit {n + 1}: sequence", v.sequence, "") for n, v in enumerate(c.visits)),
            *((f"visit {n + 1}: step", v.step, "") for n, v in enumerate(c.visits)),
            ("programs of the launch", c.n_programs, ""),
            ("state updates", c.state_updates, ""),
            *((f"reads {k}", v, "B") for k, v in c.loads.items()),
            *((f"writes {k}", v, "B") for k, v in c.stores.items()),
            ("at least, model", c.least_bytes, "B"),
            ("FLOP", c.flops, ""),
            ("multiply-adds", c.fmas, ""),
            ("exponentials", c.exps, ""),
            *((f"instructions in loops: {k}", v, "") for k, v in c.loop_instructions.items()),
        ]
        shared = (slot, c.scan, c.stage, c.y, c.x, c.device, c.batch, c.kernel, c.target)
        rows += [[*shared, *number] for number in numbers]
    return csv_table(head, rows)
