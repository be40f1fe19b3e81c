"""What every scan of a network costs by the cost model, and what a device needs for it at least.

Nothing here is measured; rates are published ones unless a machine's own are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from kernels import ScanSpec, scan_order
from kernels.cost import LAUNCH_S, CostParts, backward_cost, forward_cost, parts
from kernels.gpus import GPUS
from models.efficientvmamba import MIN_SIZE, PATCH
from models.layers import D_STATE
from models.registry import ModelSpec, model_spec
from workbench.analyses.maps import stage_shape
from workbench.errors import BadInputError, NotAvailableError
from workbench.kernel_results import COST_VALUES, CostGrid, FloorRow, Rates, WhatIfResult
from workbench.results import Provenance

DEFINITION = (
    "least time that a device needs for a scan, by the cost model: the largest of bytes over "
    "memory rate, multiply-adds over their rate and exponentials over theirs; fused, projections "
    "given; a scan takes no less than starting a kernel"
)
SCAN_STAGES = (1, 2)  # of the released networks; the others are convolutions
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of an activation
COSTS = {"forward": forward_cost, "backward": backward_cost}
PASSES = {"forward": ("forward",), "train": ("forward", "backward")}


class ScanShape(NamedTuple):
    """Sizes of the scans of one stage; `blocks` of them follow each other."""

    channels: int  # D
    rank: int  # R
    states: int  # N
    blocks: int


def scan_shape(spec: ModelSpec, stage: int) -> ScanShape:
    """The scans of a stage (1-based); NotAvailableError where it has none."""
    if stage not in SCAN_STAGES:
        raise NotAvailableError(
            f"Stage {stage} has no scan: its blocks are convolutions. Choose stage 1 or 2."
        )
    dim = spec.dims[stage - 1]
    return ScanShape(2 * dim, -(-dim // 16), D_STATE, spec.depths[stage - 1])


def map_side(size: int, stage: int) -> int:
    """Tokens along one side of the map of a stage, for a square input of `size` pixels."""
    strides = [{"reduction": PATCH * 2**i} for i in range(stage)]
    return stage_shape(SimpleNamespace(feature_info=strides), stage, size, size)[0]


@lru_cache(maxsize=4096)
def walk_of(scheme: str, side: int) -> tuple[int, int]:
    """Sequences and their length, pads included, on a map of `side` x `side` tokens."""
    order = scan_order(scheme, side, side)
    return order.n_sequences, order.length


@lru_cache(maxsize=1 << 14)
def _parts(direction: str, sequences: int, length: int, shape: ScanShape) -> CostParts:
    cost = COSTS[direction]
    return parts(cost, sequences, length, shape.channels, shape.states, shape.rank)


def cost_grid(
    model_name: str,
    schemes: Sequence[str],
    sizes: Sequence[int],
    provenance: Provenance,
    machine: Rates | None = None,
) -> CostGrid:
    """Costs of schemes at square inputs of `sizes` pixels, for a registered model by name.

    BadInputError for a model, a scheme or a size that no network runs.
    """
    try:
        spec = model_spec(model_name)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    names = tuple(dict.fromkeys(_checked_scheme(scheme) for scheme in schemes))
    too_small = [size for size in sizes if size < MIN_SIZE]
    if too_small or not names or not sizes:
        given = f"the input size {too_small[0]}" if too_small else "no scheme or no size"
        raise BadInputError(
            f"The cost grid got {given}. Give one scheme or more, and sizes of {MIN_SIZE} px or "
            "more."
        )
    shapes = [scan_shape(spec, stage) for stage in SCAN_STAGES]
    grid = (len(names), len(sizes), len(shapes))
    sequences, length = (np.zeros(grid, dtype=np.int32) for _ in range(2))
    values = np.zeros((*grid, len(COSTS), len(COST_VALUES)))
    for at in np.ndindex(grid):
        side = map_side(sizes[at[1]], SCAN_STAGES[at[2]])
        sequences[at], length[at] = walk = walk_of(names[at[0]], side)
        for i, direction in enumerate(COSTS):
            found = _parts(direction, *walk, shapes[at[2]])
            values[(*at, i)] = [getattr(found, name) for name in COST_VALUES]
    return CostGrid(
        provenance=provenance,
        model=model_name,
        schemes=names,
        sizes=tuple(sizes),
        stages=SCAN_STAGES,
        blocks=tuple(shape.blocks for shape in shapes),
        channels=tuple(shape.channels for shape in shapes),
        ranks=tuple(shape.rank for shape in shapes),
        states=D_STATE,
        passes=tuple(COSTS),
        sequences=sequences,
        length=length,
        values=values,
        devices=(*published_rates(), *([machine] if machine else [])),
    )


def _checked_scheme(scheme: str) -> str:
    """Full text of a scheme that a network can run."""
    try:
        spec = ScanSpec.parse(scheme)
        spec.check_runnable()
    except ValueError as error:
        raise BadInputError(str(error)) from error
    return str(spec)


@lru_cache(maxsize=1)
def published_rates() -> tuple[Rates, ...]:
    """Peak rates of `kernels.gpus`, from data sheets."""
    return tuple(
        Rates(
            device=gpu.name,
            kind="published",
            memory_bytes_per_s=gpu.memory_bytes_per_s,
            fma_per_s=gpu.fma_per_s,
            exp_per_s=gpu.exp_per_s,
            launch_s=LAUNCH_S,
            has_exp_unit=True,
            target=gpu.target or "",
            source=gpu.source,
        )
        for gpu in GPUS.values()
    )


def floor_row(
    grid: CostGrid,
    scan: str,
    stage: int,
    passes: str,
    size: int,
    batch: int,
    dtype: str,
    rates: Rates,
) -> FloorRow:
    """One scan of a stage on a device; `passes` is "forward" or "train".

    BadInputError for what is not in the grid. `depth` counts one chain of steps for each pass:
    a backward pass that also computes states anew has them twice (`kernels.cost`).
    """
    check_setting(batch, dtype, passes)
    at = (
        _position("scheme", scan, grid.schemes),
        _position("input size", size, grid.sizes),
        _position("stage", stage, grid.stages),
    )
    listed = PASSES[passes]
    values = sum(grid.values[(*at, grid.passes.index(name))] for name in listed)
    part = dict(zip(COST_VALUES, np.asarray(values).tolist(), strict=True))
    moved = batch * (part["activations"] * WIDTHS[dtype] + part["bytes"]) + part["once"]
    fmas, exps = batch * part["fmas"], batch * part["exps"]
    times = {
        "memory": moved / rates.memory_bytes_per_s,
        "FMA": fmas / rates.fma_per_s,
        "exp": exps / rates.exp_per_s,
    }
    limiter = max(times, key=times.__getitem__)
    seconds = times[limiter]
    length = int(grid.length[at])
    return FloorRow(
        scan=scan,
        stage=stage,
        passes=passes,
        sequences=int(grid.sequences[at]),
        length=length,
        depth=length * len(listed),
        bytes=moved,
        flops=batch * part["flops"],
        fmas=fmas,
        exps=exps,
        memory_s=times["memory"],
        fma_s=times["FMA"],
        exp_s=times["exp"],
        seconds=seconds,
        limiter="launch latency" if seconds < rates.launch_s else limiter,
    )


def what_if(
    grid: CostGrid,
    device: str,
    size: int,
    batch: int,
    dtype: str,
    passes: str,
    scan_a: str,
    scan_b: str,
) -> WhatIfResult:
    """Floors of two schemes on a device of the grid, by its name.

    `ratio` is of all scans of the network, each stage times its blocks, a scan taking no less than
    starting a kernel. BadInputError for what is not in the grid.
    """
    rates = grid.devices[_position("device", device, tuple(r.device for r in grid.devices))]
    setting = (passes, size, batch, dtype, rates)
    rows = [floor_row(grid, scan, stage, *setting) for scan in (scan_a, scan_b)
            for stage in grid.stages]  # fmt: skip
    n = len(grid.stages)
    a, b = (
        sum(
            blocks * max(row.seconds, rates.launch_s)
            for blocks, row in zip(grid.blocks, half, strict=True)
        )
        for half in (rows[:n], rows[n:])
    )
    return WhatIfResult(
        provenance=grid.provenance,
        device=rates,
        size=size,
        batch=batch,
        dtype=dtype,
        passes=passes,
        scan_a=scan_a,
        scan_b=scan_b,
        rows=tuple(rows),
        ratio=b / a,
    )


def check_setting(batch: int, dtype: str, passes: str) -> None:
    """Raise `BadInputError` unless it is a batch, a type and passes that the model knows."""
    _position("type", dtype, tuple(WIDTHS))
    _position("passes", passes, tuple(PASSES))
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise BadInputError(f"The batch is {batch!r}. It must be a whole number of at least 1.")


def _position(kind: str, value: Any, allowed: tuple[Any, ...]) -> int:
    """Index of `value`; BadInputError names what there is instead."""
    if value not in allowed:
        listed = ", ".join(map(str, allowed))
        raise BadInputError(
            f"The cost model has no {kind} {value!r} here. Choose one of: {listed}."
        )
    return allowed.index(value)
