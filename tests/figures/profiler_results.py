"""Small results of the profiler made by hand: the figures are tested without a measurement."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tests.figures.conftest import provenance
from workbench.profiler_results import (
    ComparedRow,
    KernelRow,
    LaunchGap,
    MemoryOwner,
    ModuleRow,
    OperatorRow,
    RunComparison,
    StepRow,
    SweepFit,
    SweepPoint,
    SweepResult,
    Timeline,
    TraceMemory,
    TraceResult,
)

NAN = float("nan")
SCANS = ("es2d:step=2", "ss2d")


def point(series: str = "ss2d", x: float = 224, median: float = 8.0, **changes: object):
    """A measured point whose samples lie from 0.9 to 1.1 of the median."""
    samples = median * np.array([0.9, 0.95, 1.0, 1.05, 1.1])
    values: dict = {
        "series": series,
        "x": x,
        "label": f"{x:g}",
        "model": "efficientvmamba_test",
        "scan": series,
        "size": 224,
        "batch": 1,
        "dtype": "float32",
        "backend": "cpu",
        "status": "",
        "samples_ms": samples,
        "p20_ms": 0.94 * median,
        "p50_ms": median,
        "p80_ms": 1.06 * median,
        "images_per_second": 1e3 / median,
        "peak_bytes": 4e6,
        "error": 3e-7,
        "tokens": 3136,
        "depth": 784,
    }
    return SweepPoint(**(values | changes))


def missing(series: str, x: float, status: str, **changes: object) -> SweepPoint:
    none = dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "images_per_second", "error"), NAN)
    return point(
        series, x, 1.0, status=status, samples_ms=np.empty(0), peak_bytes=NAN, **none, **changes
    )


def sweep_result(**changes: object) -> SweepResult:
    """Sizes: the full scan reads 4 times and takes 2 to 3.5 times as long; 384 did not fit."""
    points = []
    for i, size in enumerate((64, 128, 224)):
        n = (size // 4) ** 2
        es2d = 0.4 * size**1.5 / 100
        points.append(point(SCANS[0], size, es2d, tokens=n, depth=n // 4))
        ratio = 2 + 0.75 * i
        points.append(point(SCANS[1], size, es2d * ratio, tokens=4 * n, depth=n))
    points.append(missing(SCANS[1], 384, "out of memory: 9.1 GB were asked for"))
    values: dict = {
        "provenance": provenance(SCANS[0], definition="time of one forward pass"),
        "subject": "model",
        "axis": "size",
        "axis_label": "input side, px",
        "is_numeric": True,
        "passes": "forward",
        "series": SCANS,
        "points": tuple(points),
        "fits": (
            SweepFit(series=SCANS[0], slope=1.5, low=1.45, high=1.55, n_points=3),
            SweepFit(series=SCANS[1], slope=1.95, low=1.9, high=2.0, n_points=3),
        ),
        "environment": {"device": "CPU, 2 threads", "torch": "2.14.1", "load at start": "1.9"},
        "clock": "perf_counter",
    }
    return SweepResult(**(values | changes))


def names_result(**changes: object) -> SweepResult:
    """A sweep over names: float16 does not run."""
    points = []
    for i, dtype in enumerate(("float32", "bfloat16")):
        points.append(point(SCANS[0], i, 4.0 + i, label=dtype, dtype=dtype))
        points.append(point(SCANS[1], i, 12.0 + i, label=dtype, dtype=dtype, tokens=12544))
    points.append(missing(SCANS[0], 2, "no float16 on the CPU", label="float16"))
    points.append(missing(SCANS[1], 2, "no float16 on the CPU", label="float16"))
    values: dict = {"axis": "dtype", "axis_label": "number format", "is_numeric": False}
    return sweep_result(**(values | {"points": tuple(points), "fits": ()} | changes))


def operator(name: str, self_cpu: int, self_gpu: int = 0, **changes: object) -> OperatorRow:
    values: dict = {"name": name, "calls": 3, "self_cpu_ns": self_cpu, "self_gpu_ns": self_gpu}
    values |= {"total_cpu_ns": 2 * self_cpu, "total_gpu_ns": 2 * self_gpu}
    return OperatorRow(**(values | changes))


def kernel(name: str, total: int, **changes: object) -> KernelRow:
    values: dict = {
        "name": name,
        "kind": "kernel",
        "calls": 4,
        "total_ns": total,
        "min_ns": total // 8,
        "max_ns": total // 2,
        "operator": "aten::mm",
        "grid": "24x4x1",
        "block": "128x1x1",
        "registers": 64,
        "shared_bytes": 49152,
        "occupancy": 37.5,
    }
    return KernelRow(**(values | changes))


def module(path: str, kind: str, total: int, **changes: object) -> ModuleRow:
    parts = path.split(".") if path else []
    stage = int(parts[1]) + 1 if len(parts) > 1 and parts[0] == "stages" else 0
    block = int(parts[3]) + 1 if len(parts) > 3 else 0
    values: dict = {
        "path": path,
        "kind": kind,
        "depth": len(parts) // 2 + len(parts) % 2,
        "stage": stage,
        "block": block,
        "calls": 3,
        "self_cpu_ns": total // 5,
        "total_cpu_ns": total,
        "self_gpu_ns": 0,
        "total_gpu_ns": total // 3,
    }
    return ModuleRow(**(values | changes))


MODULES = (
    module("", "EfficientVMamba", 9_000_000),
    module("stem", "Stem", 900_000),
    module("stages.0", "Stage", 4_000_000),
    module("stages.0.blocks.0", "EVSSBlock", 2_100_000),
    module("stages.0.blocks.0.op", "ES2D", 1_400_000),
    module("stages.0.blocks.1", "EVSSBlock", 1_900_000),
    module("stages.1", "Stage", 3_000_000),
)


def timeline(n: int = 60, n_all: int | None = None, seed: int = 0, **changes: object) -> Timeline:
    """Two CPU lanes with nesting and a GPU stream of `n` // 3 events each."""
    rng = np.random.default_rng(seed)
    each = n // 3
    start, duration, lane, depth = [], [], [], []
    for i in range(3):
        begin = np.cumsum(rng.integers(20_000, 90_000, each))
        length = rng.integers(1_000, 19_000, each)
        nested = (np.arange(each) % 3 == 2) & (i < 2)
        # A nested event lies inside the one before it.
        begin = np.where(nested, np.roll(begin, 1) + 300, begin)
        length = np.where(nested, np.roll(length, 1) // 2, length)
        start.append(begin)
        duration.append(length)
        lane.append(np.full(each, i))
        depth.append(nested.astype(int))
    kinds = np.concatenate([rng.integers(0, 3, 2 * each), np.full(each, 3)])
    values: dict = {
        "lanes": ("thread 4711", "thread 4712, autograd", "GPU 0, stream 7"),
        "names": ("aten::mm", "aten::conv2d", "step#1", "void gemm<float, 128>(float const*)"),
        "categories": ("cpu_op", "cuda_runtime", "user_annotation", "kernel"),
        "start_ns": np.concatenate(start),
        "duration_ns": np.concatenate(duration),
        "lane": np.concatenate(lane).astype(np.int32),
        "depth": np.concatenate(depth).astype(np.int32),
        "name": kinds.astype(np.int32),
        "category": kinds.astype(np.int32),
        "n_all": n_all or 3 * each,
        "shortest_ns": 4_200 if n_all else 0,
    }
    return Timeline(**(values | changes))


def memory(n: int = 50, device: str = "GPU 0") -> TraceMemory:
    rng = np.random.default_rng(1)
    time = np.cumsum(rng.integers(1_000, 60_000, n))
    held = (np.abs(np.cumsum(rng.normal(size=n))) * 1e6).astype(np.int64)
    at = int(held.argmax())
    return TraceMemory(
        device=device,
        time_ns=time,
        n_bytes=held,
        peak_bytes=int(held[at]),
        peak_ns=int(time[at]),
        unowned_bytes=1_000,
        owners=(MemoryOwner(name="aten::empty", module="stages.0", n_bytes=int(held[at]) - 1_000),),
    )


def trace_result(**changes: object) -> TraceResult:
    steps = tuple(
        StepRow(
            name=f"step#{i}",
            start_ns=3_000_000 * i,
            duration_ns=3_000_000 + 100_000 * i,
            parts={"kernel": 1_200_000, "operator": 1_500_000, "other": 300_000 + 100_000 * i},
        )
        for i in range(3)
    )
    values: dict = {
        "provenance": provenance(SCANS[0], definition="torch.profiler"),
        "source": "profiled here",
        "device": "NVIDIA A100",
        "kind": "cuda",
        "passes": "train",
        "span_ns": 9_300_000,
        "n_events": 5_000,
        "operators": (
            operator("aten::mm", 2_000_000, 3_000_000),
            operator("aten::conv2d", 1_000_000, 1_000_000),
        ),
        "kernels": (kernel("void gemm<float, 128>", 3_000_000), kernel("fill", 40, kind="memset")),
        "modules": MODULES,
        "steps": steps,
        "gaps": (
            LaunchGap(start_ns=100, duration_ns=70_000, after="gemm", before="fill"),
            LaunchGap(start_ns=900_000, duration_ns=20_000, after="fill", before="gemm"),
        ),
        "idle_ns": 93_000,
        "memory": (memory(),),
        "timeline": timeline(),
        "operator_steps_ns": np.full((2, 3), 600_000),
        "module_steps_ns": np.full((len(MODULES), 3), 900_000),
        "notes": ("2 events without a duration were left out.",),
    }
    return TraceResult(**(values | changes))


def cpu_trace(**changes: object) -> TraceResult:
    rows = tuple(replace(o, self_gpu_ns=0, total_gpu_ns=0) for o in trace_result().operators)
    values: dict = {"kind": "cpu", "device": "CPU", "kernels": (), "operators": rows}
    return trace_result(**(values | changes))


def compared(name: str, ratio: float, spread: float = 0.05, **changes: object) -> ComparedRow:
    low, high = ratio * (1 - spread), ratio * (1 + spread)
    verdict = "slower" if low > 1 else "faster" if high < 1 else "no different"
    values: dict = {"table": "point", "name": name, "a_ms": 4.0, "b_ms": 4.0 * ratio}
    values |= {"ratio": ratio, "low": low, "high": high, "verdict": verdict}
    return ComparedRow(**(values | changes))


def comparison(**changes: object) -> RunComparison:
    rows = (
        compared("all points", 1.2, table="total"),
        compared("ES2D, 64", 1.31),
        compared("ES2D, 128", 0.8),
        compared("Full scan, 64", 1.01),
        compared("Full scan, 128", 1.5, low=NAN, high=NAN, verdict="not known"),
        compared("Full scan, 384", NAN, b_ms=NAN, low=NAN, high=NAN, verdict="only a"),
    )
    values: dict = {
        "provenance": provenance(SCANS[0]),
        "kind": "sweep",
        "a": "before",
        "b": "after",
        "device_a": "CPU, 2 threads",
        "device_b": "CPU, 2 threads",
        "rows": rows,
        "notes": ("One point is in run before only.",),
    }
    return RunComparison(**(values | changes))


@dataclass(frozen=True)
class StoredRun:
    id: str
    kind: str = "sweep"
    name: str = ""
    title: str = "size, the whole network, forward"
    created: str = "2026-11-28T12:20:05+00:00"
    device: str = "CPU, 2 threads"
    n_bytes: int = 12_345
