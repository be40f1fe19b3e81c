"""Frozen results of the profiler: sweeps, traces, and the comparison of two runs.

As in `results`: numpy arrays and plain values, never torch. Times of traces are whole nanoseconds,
those of sweeps milliseconds of one call on the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.results import Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One setting of a sweep, measured after its output agreed with the reference."""

    series: str  # the line it belongs to: a scan as `ScanSpec` text, or what the axis compares
    x: float  # its place on the axis: pixels, images, the step; of names their place in the list
    label: str  # the value in words: "224", "float32", "cpu"
    model: str
    scan: str
    size: int  # input pixels
    batch: int
    dtype: str  # "float32", "bfloat16", "float16"
    backend: str
    status: str  # "": measured; else why not, in words
    samples_ms: np.ndarray  # float64 [repeats] in the order measured; empty where not measured
    p20_ms: float  # nan where not measured, as the next five
    p50_ms: float
    p80_ms: float
    images_per_second: float  # batch over the median
    peak_bytes: float  # most memory that one call needs beyond its inputs; nan where not known
    error: float  # relative L2 distance from the reference; nan where not compared
    tokens: int  # read by all scans of one image, pads included
    depth: int  # longest sequence of dependent steps

    @property
    def is_measured(self) -> bool:
        return self.status == ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFit:
    """time = c * x^slope through a line's medians, least squares of the logarithms."""

    series: str
    slope: float
    low: float  # 95 % interval by bootstrap over the samples of each point
    high: float
    n_points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """Times along one axis, for two scans or for all names of the axis."""

    provenance: Provenance
    subject: str  # "model": the whole network; "scan": the scan of its first block
    axis: str  # "size", "batch", "step", "dtype", "scan", "model" or "backend"
    axis_label: str  # "input side, px"
    is_numeric: bool  # log-log with slopes; else names side by side
    passes: str  # "forward" or "train": forward and backward
    series: tuple[str, ...]
    points: tuple[SweepPoint, ...]  # of every line, in the order measured
    fits: tuple[SweepFit, ...]  # of lines with three numeric points or more
    environment: dict[str, str]  # the card: device, threads, clocks if known, versions, system
    clock: str
    is_final: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRow:
    name: str
    calls: int
    self_cpu_ns: int
    total_cpu_ns: int  # of a recursive operator its outermost calls only
    self_gpu_ns: int  # kernels, copies and fills that it launched itself
    total_gpu_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    name: str
    kind: str  # "kernel", "memcpy", "memset"
    calls: int
    total_ns: int
    min_ns: int
    max_ns: int
    operator: str  # that launched it most often; "" where not known
    grid: str  # "24x4x1", of the longest call; "" where not known, as the next
    block: str
    registers: int  # per thread; -1 where not known, as the next two
    shared_bytes: int
    occupancy: float  # estimated by the profiler, per cent; nan where not known


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRow:
    """One module of the network; rows come in the order of the tree, parents first."""

    path: str  # "stages.0.blocks.1.op"
    kind: str  # class, such as "ES2D"
    depth: int  # 0 = the network itself
    stage: int  # 1-based; 0 = of no stage
    block: int  # 1-based; 0 = of no block
    calls: int
    self_cpu_ns: int
    total_cpu_ns: int
    self_gpu_ns: int
    total_gpu_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One step, or the whole trace where it has no steps. The parts add up to its duration."""

    name: str
    start_ns: int
    duration_ns: int
    parts: dict[str, int]  # "kernel", "memcpy", "memset", "communication", "operator", ... -> ns


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchGap:
    """The device (a CPU trace: the thread that runs the operators) had nothing to do."""

    start_ns: int
    duration_ns: int
    after: str  # what ended before it
    before: str  # what began after it


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOwner:
    name: str  # operator that allocated it
    module: str  # "" where not known
    n_bytes: int  # still held at the peak


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMemory:
    """Allocated memory of one device over time, as the profiler's marks say."""

    device: str  # "CPU", "GPU 0"
    time_ns: np.ndarray  # int64 [M]
    n_bytes: np.ndarray  # int64 [M] allocated after each mark
    peak_bytes: int
    peak_ns: int
    owners: tuple[MemoryOwner, ...]  # of the peak, largest first
    unowned_bytes: int  # held at the peak, allocated before the trace began or by no operator


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What to draw: at most `MAX_EVENTS` events, the longest ones; times from the trace's start."""

    lanes: tuple[str, ...]  # "thread 1234", "GPU 0, stream 7"
    names: tuple[str, ...]
    categories: tuple[str, ...]
    start_ns: np.ndarray  # int64 [E], rising in each lane
    duration_ns: np.ndarray  # int64 [E]
    lane: np.ndarray  # int32 [E]
    depth: np.ndarray  # int32 [E] nesting within the lane
    name: np.ndarray  # int32 [E]
    category: np.ndarray  # int32 [E]
    n_all: int  # events of the trace that could be drawn
    shortest_ns: int  # events shorter than this are left out; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceResult:
    """Tables of one trace of torch.profiler (Chrome trace format), recorded here or brought."""

    provenance: Provenance
    source: str  # "profiled here", or the name of the file
    device: str  # "CPU", or the GPU's name as the trace gives it
    kind: str  # "cpu", "cuda" or "rocm"
    passes: str  # "forward", "train"; "" where not known
    span_ns: int  # from the first event to the end of the last
    n_events: int
    operators: tuple[OperatorRow, ...]  # largest self time first: GPU's where there is a GPU
    kernels: tuple[KernelRow, ...]  # largest total first
    modules: tuple[ModuleRow, ...]
    steps: tuple[StepRow, ...]
    gaps: tuple[LaunchGap, ...]  # largest first
    idle_ns: int  # all gaps together
    memory: tuple[TraceMemory, ...]
    timeline: Timeline
    operator_steps_ns: np.ndarray  # int64 [operators, steps] self time in each step
    module_steps_ns: np.ndarray  # int64 [modules, steps] total time in each step
    notes: tuple[str, ...]  # what was left out or mended, in words
    file: str = ""  # token under which the page serves the trace itself; "" where it is not kept


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRow:
    table: str  # "total", "point", "module", "operator" or "kernel"
    name: str
    a_ms: float  # median; nan where the run has no such row
    b_ms: float
    ratio: float  # b over a
    low: float  # 95 % interval of the ratio; nan where samples are too few
    high: float
    verdict: str  # "slower", "faster", "no different", "not known", "only a", "only b"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Two runs of a kind: b beside a."""

    provenance: Provenance  # of run a
    kind: str  # "sweep" or "trace"
    a: str  # names of the runs
    b: str
    device_a: str
    device_b: str
    rows: tuple[ComparedRow, ...]  # totals first, then each table by the larger time
    notes: tuple[str, ...]  # other devices, other settings, missing rows
