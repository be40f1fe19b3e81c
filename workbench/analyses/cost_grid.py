"""What every scan of a network costs by the cost model, and what a device needs for it at least.

Nothing here is measured; rates are published ones unless a machine's own are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from kernels import ScanSpec, scan_order
from kernels.cost import LAUNCH_S, CostParts, backward_cost, forward_cost, parts
from kernels.gpus import GPUS
from models.efficientvmamba import MIN_SIZE, PATCH
from models.layers import D_STATE
from models.registry import ModelSpec, model_spec
from workbench.analyses.maps import stage_shape
from workbench.errors import BadInputError, NotAvailableError
from workbench.floors import LIMITERS, PASSES, WIDTHS, floors, known_rates, position
from workbench.kernel_results import COST_VALUES, CostGrid, FloorRow, Rates, WhatIfResult
from workbench.results import Provenance

DEFINITION = (
    "least time that a device needs for a scan, by the cost model: the largest of bytes over "
    "memory rate, multiply-adds over their rate and exponentials over theirs; fused, projections "
    "given; a scan takes no less than starting a kernel"
)
SCAN_STAGES = (1, 2)  # of the released networks; the others are convolutions
COSTS = {"forward": forward_cost, "backward": backward_cost}
FLOOR_VALUES = ("bytes", "flops", "fmas", "exps", "memory_s", "fma_s", "exp_s")


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
    check_setting(batch, dtype, passes)
    rates = known_rates(grid, {"device": device})
    setting = {"size": size, "batch": batch, "dtype": dtype, "passes": passes}
    found = floors(grid, rates, setting)
    schemes = [position("scheme", scan, grid.schemes) for scan in (scan_a, scan_b)]
    at = position("size", size, grid.sizes)
    rows = tuple(
        FloorRow(
            scan=grid.schemes[i],
            stage=stage,
            passes=passes,
            sequences=int(grid.sequences[i, at, j]),
            length=int(grid.length[i, at, j]),
            depth=int(found.depth[i, j]),
            limiter=LIMITERS[found.limiter[i, j]],
            seconds=float(found.floor_s[i, j]),
            **{name: float(getattr(found, name)[i, j]) for name in FLOOR_VALUES},
        )
        for i in schemes
        for j, stage in enumerate(grid.stages)
    )
    a, b = (found.network("least_s", scheme, grid.blocks) for scheme in schemes)
    return WhatIfResult(
        provenance=grid.provenance,
        device=rates,
        size=size,
        batch=batch,
        dtype=dtype,
        passes=passes,
        scan_a=scan_a,
        scan_b=scan_b,
        rows=rows,
        ratio=b / a,
    )


def check_setting(batch: int, dtype: str, passes: str) -> None:
    """Raise `BadInputError` unless it is a batch, a type and passes that the model knows."""
    position("type", dtype, tuple(WIDTHS))
    position("passes", passes, tuple(PASSES))
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise BadInputError(f"The batch is {batch!r}. It must be a whole number of at least 1.")
