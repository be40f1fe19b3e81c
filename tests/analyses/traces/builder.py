"""Small traces in torch.profiler's own form, times in nanoseconds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.analyses.traces import read_trace
from workbench.profiler_results import TraceResult
from workbench.progress import result_of

BASE_US = 5_011_527_836_460
Event = dict[str, Any]


def us(ns: int) -> str:
    """Microseconds with three decimals, as `save` writes them: a float would lose the last."""
    return f"@{ns // 1000}.{ns % 1000:03d}@"


def timed(category: str, name: str, start: int, duration: int, **more: Any) -> Event:
    """One complete event; `more` are its args but for pid, tid."""
    pid, tid = more.pop("pid", 77), more.pop("tid", 77)
    return {
        "ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid,
        "ts": us(BASE_US * 1000 + start), "dur": us(duration), "args": more,
    }  # fmt: skip


def op(name: str, start: int, duration: int, ident: int = -1, **more: Any) -> Event:
    ids = {"External id": ident} if ident >= 0 else {}
    return timed("cpu_op", name, start, duration, **ids, **more)


def mark(name: str, start: int, duration: int, **more: Any) -> Event:
    return timed("user_annotation", name, start, duration, **more)


def launch(
    number: int, at: int, start: int, duration: int, *, ident: int = -1, name: str = "gemm",
    kind: str = "kernel", rocm: bool = False, **more: Any,
) -> list[Event]:  # fmt: skip
    """A runtime call and what it puts on the GPU."""
    ids = {"External id": ident} if ident >= 0 else {}
    call = "hipLaunchKernel" if rocm else "cudaLaunchKernel"
    category = more.pop("runtime", "cuda_runtime")
    tid = more.pop("tid", 77)
    stream = more.pop("stream", 7)
    device = more.pop("device", 0)
    args = {"device": device, "stream": stream, "correlation": number, **ids, **more}
    if kind == "kernel":
        args |= {"grid": [64, 2, 1], "block": [128, 1, 1], "shared memory": 1024}
        args |= {} if rocm else {"registers per thread": 90, "est. achieved occupancy %": 25}
    return [
        timed(category, call, at, 500, correlation=number, tid=tid, **ids),
        timed(kind, name, start, duration, pid=device, **args) | {"tid": stream},
    ]


def memory(at: int, n_bytes: int, address: int, total: int, **more: Any) -> Event:
    args = {"Total Allocated": total, "Bytes": n_bytes, "Addr": address, "Device Type": 0}
    return {
        "ph": "i", "cat": "cpu_instant_event", "s": "t", "name": "[memory]", "pid": 77, "tid": 77,
        "ts": us(BASE_US * 1000 + at), "args": {**args, "Device Id": -1, **more},
    }  # fmt: skip


def save(path: Path, events: Iterable[Any], **header: Any) -> Path:
    """As torch writes it; gzip if the name says so."""
    text = json.dumps({"schemaVersion": 1, **header, "traceEvents": list(events)}, indent=1)
    data = text.replace('"@', "").replace('@"', "").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path, events: Iterable[Any], **header: Any) -> TraceResult:
    """The tables of these events, through a file."""
    return result_of(read_trace(save(path / "trace.json", events, **header)))
