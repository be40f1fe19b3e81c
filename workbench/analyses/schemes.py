"""Every scheme on one stage's map: metrics, cost on paper and, once it is right, measured time.

A time is shown only for a scheme whose output agrees with the reference on the same input; the
reference takes its steps one by one, so on a map of more than a few hundred tokens both run on a
part of it. Schemes are timed in turn, one scan each per round, so that whatever else the machine
does meets all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import ScanSpec, resolve_backend, scan2d, scan_order
from kernels.cost import order_cost
from workbench.analyses.clocks import Clocks
from workbench.analyses.gate import TOLERANCE, one_thread, relative_distance
from workbench.analyses.maps import stage_shape
from workbench.analyses.reach import ScanInput, scan_input
from workbench.analyses.scan import no_scan
from workbench.choices import ScanChoice
from workbench.progress import CancelToken, Pace, Progress
from workbench.results import Provenance, SchemeRow, SchemeTableResult

DEFINITION = (
    "time of one scan (gather, projections, S6, merge) of the stage's first scanning block at "
    "batch 1 on this photo's input, without gradients; p20/p50/p80 over rounds in which every "
    "scheme runs once; FLOPs, bytes and exponentials by the cost model"
)
REPEATS = 12
MIN_REPEATS = 5
BUDGET_S = 3.0  # of all rounds together
# A scheme whose rounds would take longer, or whose sequences would need more memory, is not run.
LARGEST_ROW_S = 3.0
LARGEST_ROW_BYTES = 2 << 30
GATE_SIDE = 16  # tokens; the compared map keeps each side's remainder by 8: pads stay pads
YIELD_S = 0.15


@dataclass
class _Candidate:
    """A runnable scheme while it is compared and timed."""

    row: SchemeRow
    spec: ScanSpec
    ms: list[float] = field(default_factory=list)


def scheme_table(
    model: Any,
    image: np.ndarray,
    stage: int,
    schemes: Sequence[ScanChoice],
    *,
    provenance: Provenance,
    token: CancelToken | None = None,
    measure: bool = True,
    repeats: int = REPEATS,
) -> Iterator[Progress | SchemeTableResult]:
    """Table of `schemes` for `stage` (1-based) and one normalised `[3, H, W]` image.

    With `measure` a table without times comes first (`is_final` False); the last item is final.
    `model` may run any scan: its weights count.
    """
    started = time.perf_counter()
    token = token or CancelToken()
    rows, columns, _ = stage_shape(model, stage, *image.shape[-2:])
    device = next(model.parameters()).device
    clocks = Clocks(device)

    def result(**fields: Any) -> SchemeTableResult:
        return SchemeTableResult(
            provenance=replace(
                provenance,
                definition=DEFINITION,
                parameters={**provenance.parameters, "stage": stage, "measured": measure},
                seconds=time.perf_counter() - started,
            ),
            stage=stage,
            height=rows,
            width=columns,
            **fields,
        )

    yield Progress(0, 1, "reading what the block scans")
    token.check()
    given = scan_input(model, image, stage)
    if given is None:
        nothing = {"channels": 0, "states": 0, "rank": 0, "rows": (), "clock": ""}
        yield result(**nothing, note=no_scan(stage))
        return
    sizes = {
        "channels": given.x.shape[0],
        "states": given.A_logs.shape[1],
        "rank": given.dt_projs_weight.shape[2],
    }
    total = len(schemes) * (2 + repeats if measure else 1)
    pace = Pace(total)
    found: list[SchemeRow] = []
    for i, scheme in enumerate(schemes):
        yield pace.at(i, f"counting {scheme.label}")
        token.check()
        found.append(_count(scheme, rows, columns, **sizes))
    if not measure:
        yield result(**sizes, rows=tuple(found), clock="")
        return
    backend = _backend(model, stage, device)
    note = _gate_note(rows, columns)
    yield result(**sizes, rows=tuple(found), clock=clocks.name, note=note, is_final=False)

    part = given.x[:, : _gate_side(rows), : _gate_side(columns)]
    running: list[_Candidate] = []
    places: dict[int, _Candidate] = {}
    for i, row in enumerate(found):
        if not row.is_runnable:
            continue
        yield pace.at(len(schemes) + i, f"comparing {row.label} with the reference")
        token.check()
        candidate = _Candidate(row, ScanSpec.parse(row.scan))
        places[i] = candidate
        _compare(candidate, given, part, backend, clocks, rows, columns)
        if candidate.row.status == "not measured":
            running.append(candidate)

    # One round that does not count: caches, allocations, the compiler.
    began = shown = time.perf_counter()
    n_rounds = 0
    for n in range(1 + repeats):
        if n == 1:
            began = time.perf_counter()
        if n > MIN_REPEATS and time.perf_counter() - began > BUDGET_S:
            break
        for i, candidate in enumerate(running):
            if time.perf_counter() - shown > YIELD_S or (n, i) == (0, 0):
                done = 2 * len(schemes) + len(schemes) * max(0, n - 1)
                yield pace.at(done, f"timing, round {n} of {repeats}" if n else "warming up")
                shown = time.perf_counter()
            token.check()
            ms = clocks.plain(_Run(candidate.spec, given, backend), given.x[None])
            if n:
                candidate.ms.append(ms)
        n_rounds = n
    for candidate in running:
        p20, p50, p80 = (float(p) for p in np.percentile(candidate.ms, [20, 50, 80]))
        candidate.row = replace(
            candidate.row, p20_ms=p20, p50_ms=p50, p80_ms=p80, status="measured"
        )
    final = tuple(places[i].row if i in places else row for i, row in enumerate(found))
    clock = f"{clocks.name}, {n_rounds} rounds after one that does not count, {backend} backend"
    yield result(**sizes, rows=final, clock=clock, note=note)


def _count(
    scheme: ScanChoice, height: int, width: int, channels: int, states: int, rank: int
) -> SchemeRow:
    """What follows from the order alone; a path of another network has no cost in this one."""
    order = scan_order(scheme.name, height, width)
    cost = order_cost(order, 1, channels, states, rank) if order.is_runnable else None
    nan = float("nan")
    return SchemeRow(
        scan=scheme.name,
        label=scheme.label,
        definition=scheme.definition,
        is_runnable=order.is_runnable,
        why_not=order.why_not_runnable,
        metrics=order.metrics(),
        n_parameter_sets=int(np.unique(order.parameter_set).size),
        flops=cost.flops if cost else 0,
        bytes=cost.bytes if cost else 0,
        exps=cost.exps if cost else 0,
        p20_ms=nan,
        p50_ms=nan,
        p80_ms=nan,
        error=nan,
        status="not measured" if order.is_runnable else "path only",
    )


@dataclass(frozen=True)
class _Run:
    """One scheme with the block's parameters, called on a map `[1, C, H, W]`."""

    spec: ScanSpec
    given: ScanInput
    backend: str

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return scan2d(x, *self.given.parameters, order=self.spec, backend=self.backend)


def _compare(
    candidate: _Candidate,
    given: ScanInput,
    part: Tensor,
    backend: str,
    clocks: Clocks,
    height: int,
    width: int,
) -> None:
    """Fill in the distance from the reference, and why a scheme is not to be timed if so."""
    run = _Run(candidate.spec, given, backend)
    with torch.no_grad():
        found = run(part[None])
        # The first call may have compiled; the least of three is the least disturbed.
        ms = min(clocks.plain(run, part[None]) for _ in range(3))
        with one_thread():
            wanted = _Run(candidate.spec, given, "reference")(part[None])
    error = relative_distance(found, wanted)
    status = "not measured"
    if not error < TOLERANCE:
        status = (
            f"wrong: differs from the reference by {error:.1e} (relative), at most "
            f"{TOLERANCE:.0e} is rounding"
        )
    else:
        small = scan_order(candidate.spec, *part.shape[1:])
        large = scan_order(candidate.spec, height, width)
        seconds = ms / 1e3 * large.index.size / small.index.size
        n_bytes = 4 * large.index.size * given.x.shape[0]
        if seconds * (1 + MIN_REPEATS) > LARGEST_ROW_S:
            status = f"not run: one scan would take about {seconds:.1f} s"
        elif n_bytes > LARGEST_ROW_BYTES:
            status = f"not run: its sequences would take {n_bytes / 2**30:.1f} GiB"
    candidate.row = replace(candidate.row, error=error, status=status)


def _backend(model: Any, stage: int, device: torch.device) -> str:
    """The backend that runs the stage's scans, by name."""
    block = next(b for b in model.blocks() if b.stage == stage and b.has_scan)
    return resolve_backend(model.get_submodule(block.name).op.scan.backend, device)[0]


def _gate_side(side: int) -> int:
    return side if side < GATE_SIDE + 8 else GATE_SIDE + side % 8


def _gate_note(height: int, width: int) -> str:
    rows, columns = _gate_side(height), _gate_side(width)
    if (rows, columns) == (height, width):
        return ""
    return (
        f"Compared with the reference on {rows} x {columns} of the {height} x {width} tokens: the "
        "reference takes its steps one by one and would be slow."
    )
