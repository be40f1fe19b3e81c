"""Frozen results of the kernel inspector and the roofline.

As in `results`: numpy arrays and plain values, never torch. Nothing here that is labelled "model"
or "compiled" was measured; what was measured says on which device.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from workbench.results import Provenance

# Last axis of `CostGrid.values`: numbers of one scan over one image, except "once".
COST_VALUES = (
    "activations",  # numbers that are read or written in the activation's type
    "bytes",  # further bytes, whatever that type
    "once",  # bytes of a scan however many images it has: its parameters
    "flops",
    "fmas",  # multiply-adds, additions and products: a fused multiply-add counts once
    "exps",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a device does at best in a second: the ceilings of its roofline."""

    device: str  # "H100 SXM"; of this machine as the provenance has it
    kind: str  # "published" or "measured"
    memory_bytes_per_s: float
    fma_per_s: float  # float32 multiply-adds, additions or products
    exp_per_s: float
    launch_s: float  # starting a kernel takes this long whatever it does; 0: not applicable
    has_exp_unit: bool  # False: exponentials are polynomials on the multiply-add units (a CPU)
    target: str  # of `kernels.compiled`; "" where nothing is compiled for it
    source: str  # where the numbers are from, or how they were measured
    seconds: float = 0.0  # that measuring took


@dataclass(frozen=True, slots=True, kw_only=True)
class CostGrid:
    """What each scan of a network costs by the cost model, for square inputs.

    A floor is `max(bytes / memory, fmas / fma, exps / exp)` with `bytes = batch * (activations *
    width of the type + bytes) + once`, and the others times the batch.
    """

    provenance: Provenance
    model: str
    schemes: tuple[str, ...]  # `ScanSpec` texts
    sizes: tuple[int, ...]  # input pixels
    stages: tuple[int, ...]  # 1-based, those with a scan
    blocks: tuple[int, ...]  # scans of each stage
    channels: tuple[int, ...]  # D of each stage
    ranks: tuple[int, ...]  # R of each stage
    states: int  # N
    passes: tuple[str, ...]  # "forward", "backward"; training is their sum
    sequences: np.ndarray  # int32 [schemes, sizes, stages]: K
    length: np.ndarray  # int32 [schemes, sizes, stages]: L, pads included
    values: np.ndarray  # float64 [schemes, sizes, stages, passes, COST_VALUES]
    devices: tuple[Rates, ...]  # published ones first, this machine last where it was measured


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredScan:
    """The scan of one stage alone, its projections given, after its output was compared."""

    scan: str
    stage: int
    passes: str  # "forward" or "train": forward and backward
    size: int
    batch: int
    dtype: str
    device: str
    backend: str
    status: str  # "": measured; else why not, in words
    samples_ms: np.ndarray  # float64 [repeats]; empty where not measured
    p20_ms: float  # nan where not measured, as the next two
    p50_ms: float
    p80_ms: float
    error: float  # relative L2 distance from the float64 reference; nan where not compared
    clock: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineResult:
    """The cost grid with what was measured on this machine."""

    provenance: Provenance
    grid: CostGrid
    measured: tuple[MeasuredScan, ...]
    is_final: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorRow:
    """One scan of one scheme on one device, by the cost model."""

    scan: str
    stage: int
    passes: str  # "forward" or "train"
    sequences: int
    length: int
    depth: int  # steps that wait for each other: L, three times that with the backward pass
    bytes: float
    flops: float
    fmas: float
    exps: float
    memory_s: float
    fma_s: float
    exp_s: float
    seconds: float  # the largest of the three
    limiter: str  # "memory", "FMA", "exp" or "launch latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIfResult:
    """Two schemes at one setting; `ratio` is B's time over A's, launches included."""

    provenance: Provenance
    device: Rates
    size: int
    batch: int
    dtype: str
    passes: str
    scan_a: str
    scan_b: str
    rows: tuple[FloorRow, ...]  # stages of A, then of B
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenVisit:
    """One step at which a scan reads the token."""

    sequence: int  # k
    step: int  # t
    parameter_set: int
    programs: tuple[int, ...]  # ids in the one-dimensional grid that handle it, for the first image
    chunk: int  # t // steps between stored states


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCost:
    """What one token costs in the kernel that a GPU would run: from the launcher and the source.

    Loads and stores are those that the kernel issues: B, C and the factors of dt are read again by
    every block of channels. `least_*` is the cost model's share of a perfectly fused scan.
    """

    provenance: Provenance
    scan: str
    stage: int
    y: int
    x: int
    batch: int
    device: str  # the GPU whose number of multiprocessors chose the kernel
    regime: str  # "steps" or "chunks"
    kernel: str  # configuration by name, see `kernels.compiled.find`
    target: str
    tile_channels: int
    tile_steps: int
    num_warps: int
    n_programs: int  # of the whole launch
    visits: tuple[TokenVisit, ...]
    state_updates: int  # D * N for each visit
    loads: dict[str, int]  # "x", "dt factors", "B", "C" -> bytes
    stores: dict[str, int]  # "y", ... -> bytes
    least_bytes: float
    flops: int
    fmas: int
    exps: int
    loop_instructions: dict[str, int]  # machine instructions in the kernel's loops by class; {}:
    # not compiled here
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChoice:
    """A configuration that can be inspected."""

    name: str  # "steps_forward-map-rank16-bf16-32x1x1"
    kernel: str  # "steps_forward"
    layout: str  # "map-rank16", "rows", "width64"; "" where the kernel has one
    dtype: str  # "fp32" or "bf16"
    channels: int  # of the tile; 0 where the kernel has one tile
    steps: int
    num_warps: int
    origin: str  # "shipped", "candidate", "ruled out" (by the resource model)
    elements: int  # state elements that one thread holds; 0 where not applicable


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelNumbers:
    """One configuration on one target as its compiler made it. Nothing was run."""

    config: str
    target: str
    product: str  # "H100"
    status: str  # "": compiled; else the compiler's own words, or why it cannot be asked
    error_kind: str  # "" or `kernels.compiled.CompileError.kind`
    is_cached: bool  # False: compiled for this result
    registers: int = 0  # per thread; this and all below 0 or empty where not compiled
    scalar_registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0  # per block
    stack_bytes: int = 0
    num_warps: int = 0
    blocks: int = 0  # at a time on one multiprocessor
    warps: int = 0
    occupancy: float = 0.0  # 0..1
    limiter: str = ""
    instructions: dict[str, int] = field(default_factory=dict)  # by class
    loop_instructions: dict[str, int] = field(default_factory=dict)  # those in loops
    exp2_in_loops: int = 0
    stage_ms: dict[str, float] = field(
        default_factory=dict
    )  # compile time of each lowering stage, in order
    compile_s: float = 0.0
    binary_bytes: int = 0
    triton_version: str = ""
    key: str = ""  # under which its listings are found; "" where there are none
    stages: tuple[str, ...] = ()  # listings: "source", "ttir", ..., "sass" or "amdgcn"
    baseline: dict[str, int] = field(default_factory=dict)  # stored numbers; {}: not in the file

    @property
    def is_compiled(self) -> bool:
        return self.status == ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneTrial:
    """One tile that `python -m kernels.bench --tune` tried on a device."""

    device: str
    kernel: str  # "steps_forward"
    row: str  # the sizes and the type: "channels=128,states=16,fp32"
    channels: int
    steps: int
    num_warps: int
    microseconds: float  # nan where it was not timed
    status: str  # "", or why it was not timed
    is_chosen: bool
    measured_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectResult:
    """A kernel on a target, another beside it, and the first on the other targets."""

    provenance: Provenance
    a: KernelNumbers
    b: KernelNumbers | None
    others: tuple[KernelNumbers, ...]  # a's configuration on each further target
    choices: tuple[KernelChoice, ...]  # for a's target
    targets: dict[str, str]  # name -> "" or why it cannot be compiled for here
    trials: tuple[TuneTrial, ...]  # of a's kernel; empty where no GPU ran it
    baseline_triton: str  # version of the stored baseline
    is_final: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingLine:
    text: str
    frames: tuple[tuple[int, int], ...]  # (file, line), innermost first; (): no place in a source
    kind: str  # class of the instruction (`kernels.compiled.CLASSES`); "": no machine instruction
    in_loop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One stage of a compiled kernel with the place in the sources of each line."""

    stage: str
    files: tuple[
        str, ...
    ]  # paths that `frames` number, relative to the project where they are ours
    lines: tuple[ListingLine, ...]
    n_hidden: int  # lines of debug information that are read and not shown
