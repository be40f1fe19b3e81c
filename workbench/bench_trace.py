"""`python -m workbench.bench_trace`: reading a large trace on this machine, correctness first.

A trace in torch.profiler's own form and of the wanted size is written to a temporary folder and
read by a fresh process. Its sums have to be those that were written before a time is reported:
seconds, MB/s and the most memory that the process held.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from workbench.analyses.traces import read_trace
from workbench.profiler_results import TraceResult
from workbench.progress import result_of

MEGABYTES = 100
# Of 100 MB: what it may take at most; other sizes in proportion.
MAX_SECONDS = 15.0  # of the processor
MAX_MEMORY_MB = 1000.0
BASE_US = 5_011_527_836_460  # as torch writes it: 13 digits and three decimals
BLOCKS = 8


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.read is not None:
        say(json.dumps(measure(options.read)))
        return 0
    # The process that reads must not hold torch: its memory is measured.
    import torch

    from kernels._bench.report import describe, write

    environment = describe(torch.device("cpu"))
    say(" · ".join(f"{key} {value}" for key, value in environment.items()))
    rows = []
    for row in read_rows(options):
        say(sentence(row))
        rows.append(row)
    write(options.out, "trace", environment, rows)
    return 0 if all(row["is_correct"] for row in rows) else 1


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def read_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each size plain and as gzip, every reading in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in options.megabytes:
            for suffix in (".json", ".json.gz"):
                path = Path(folder) / f"trace{suffix}"
                wanted = write_trace(path, megabytes)
                found = [_in_process(path) for _ in range(options.repeats)]
                path.unlink()
                seconds = sorted(f["cpu_s"] for f in found)
                memory = max(f["peak_mb"] for f in found)
                limit = MAX_SECONDS * max(megabytes, 10) / 100
                yield {
                    "case": f"{megabytes} MB of text, {suffix}",
                    "is_correct": all(f["sums"] == wanted for f in found),
                    "events": wanted["events"],
                    "cpu_s": seconds[len(seconds) // 2],
                    "wall_s": min(f["wall_s"] for f in found),
                    "mb_per_s": megabytes / seconds[len(seconds) // 2],
                    "peak_mb": memory,
                    "limit_s": limit,
                    "is_met": seconds[len(seconds) // 2] <= limit and memory <= MAX_MEMORY_MB,
                }


def measure(path: Path) -> dict[str, Any]:
    """Read one trace here: seconds of the processor and of the clock, MB at the peak, its sums."""
    started, wall = time.process_time(), time.perf_counter()
    result = result_of(read_trace(path))
    return {
        "cpu_s": time.process_time() - started,
        "wall_s": time.perf_counter() - wall,
        "peak_mb": _peak_mb(),
        "sums": sums_of(result),
    }


def _peak_mb() -> float:
    """Most memory of this process (getrusage would tell that of its parent, if it held more)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def sums_of(result: TraceResult) -> dict[str, int]:
    """What a written trace is known to hold: counts and whole nanoseconds."""
    return {
        "events": result.n_events,
        "calls": sum(o.calls for o in result.operators),
        "self_cpu_ns": sum(o.self_cpu_ns for o in result.operators),
        "gpu_ns": sum(k.total_ns for k in result.kernels),
        "operator_gpu_ns": sum(o.self_gpu_ns for o in result.operators),
        "module_gpu_ns": sum(m.self_gpu_ns for m in result.modules),
        "steps": len(result.steps),
        "steps_ns": sum(sum(s.parts.values()) for s in result.steps),
        "peak_bytes": max((m.peak_bytes for m in result.memory), default=0),
    }


def write_trace(path: Path, megabytes: float) -> dict[str, int]:
    """Write steps of marked blocks until the text is this long; the sums it holds.

    A block: a mark, two nested operators, a launch, its kernel and arrow, an allocation and its
    release.
    """
    wanted = dict.fromkeys(
        ("events", "calls", "self_cpu_ns", "gpu_ns", "operator_gpu_ns", "module_gpu_ns"), 0
    )
    wanted |= {"steps": 0, "steps_ns": 0, "peak_bytes": 4096}
    written, limit = 0, int(megabytes * 1e6)
    opened: IO[bytes]
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as opened:  # type: ignore[assignment]
        head = '{\n  "schemaVersion": 1,\n  "deviceProperties": [{"id": 0, "name": "NVIDIA H100"}],'
        written += opened.write((head + '\n  "traceEvents": [\n').encode())
        separator = b"\n"
        step = 0
        while written < limit:
            for event in _step(step):
                text = separator + b"  " + json.dumps(event, indent=2).encode()
                # Not a float: it would not keep the third decimal.
                text = text.replace(b'"@', b"").replace(b'@"', b"")
                written += opened.write(text)
                separator = b",\n"
                wanted["events"] += 1
            step += 1
        opened.write(b'\n  ],\n  "displayTimeUnit": "ms"\n}\n')
    blocks = step * BLOCKS
    wanted |= {"calls": 2 * blocks, "self_cpu_ns": 60_123 * blocks, "steps": step}
    for key in ("gpu_ns", "operator_gpu_ns", "module_gpu_ns"):
        wanted[key] = 35_501 * blocks
    wanted["steps_ns"] = step * (100_000 * BLOCKS + 50)
    return wanted


def _step(step: int) -> Iterator[dict[str, Any]]:
    first = step * (100_000 * BLOCKS + 1_000)
    yield _event("user_annotation", f"ProfilerStep#{step}", first, 100_000 * BLOCKS + 50)
    for block in range(BLOCKS):
        number = 10 * (step * BLOCKS + block) + 10
        start = first + 100_000 * block
        mark = f"module:stages.{block // 2}.blocks.{block % 2}|EVSSBlock"
        yield _event("user_annotation", mark, start + 100, 90_000, **{"External id": number})
        call = {"External id": number + 1, "Record function id": 0, "Ev Idx": number}
        shapes = {"Input Dims": [[1, 48, 56, 56], [48]], "Input type": ["float", "float"]}
        yield _event("cpu_op", "aten::linear", start + 1_000, 60_123, **call, **shapes)
        inner = {"External id": number + 2, "Record function id": 0, "Ev Idx": number + 1}
        yield _event("cpu_op", "aten::addmm", start + 2_000, 40_007, **inner, **shapes)
        launch = {"External id": number + 2, "cbid": 211, "correlation": number}
        yield _event("cuda_runtime", "cudaLaunchKernel", start + 3_000, 5_000, **launch)
        arrow = {"id": number, "cat": "ac2g", "name": "ac2g", "ts": _us(start + 3_000)}
        yield {"ph": "s", "pid": 77, "tid": 77, **arrow}
        work = _event("kernel", "sgemm_128x64_tn", start + 20_000, 35_501, **_LAUNCH, **launch)
        yield {**work, "pid": 0, "tid": 7}
        for n_bytes, at in ((4096, 2_500), (-4096, 80_000)):
            memory = {"Total Allocated": max(n_bytes, 0), "Bytes": n_bytes, "Addr": 4096 + block}
            yield {
                "ph": "i", "cat": "cpu_instant_event", "s": "t", "name": "[memory]", "pid": 77,
                "tid": 77, "ts": _us(start + at),
                "args": {**memory, "Device Type": 1, "Device Id": 0},
            }  # fmt: skip


_LAUNCH = {
    "queued": 0, "device": 0, "context": 1, "stream": 7, "registers per thread": 90,
    "shared memory": 49152, "blocks per SM": 0.5925926, "warps per SM": 2.3703704,
    "grid": [64, 1, 1], "block": [128, 1, 1], "est. achieved occupancy %": 4,
}  # fmt: skip


def _event(category: str, name: str, start: int, duration: int, **args: Any) -> dict[str, Any]:
    return {
        "ph": "X", "cat": category, "name": name, "pid": 77, "tid": 77, "ts": _us(start),
        "dur": f"@{duration // 1000}.{duration % 1000:03d}@", "args": args,
    }  # fmt: skip


def _us(ns: int) -> str:
    return f"@{BASE_US + ns // 1000}.{ns % 1000:03d}@"


def _in_process(path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "workbench.bench_trace", "--read", str(path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(found.stdout)
    return measured


def sentence(row: dict[str, Any]) -> str:
    if not row["is_correct"]:
        return f"{row['case']}: WRONG sums: no time is reported"
    met = "as wanted" if row["is_met"] else "NOT as wanted"
    return (
        f"{row['case']}: {row['events']:,} events, {row['cpu_s']:.3g} s of the processor "
        f"({row['mb_per_s']:.0f} MB/s; {row['wall_s']:.3g} s by the clock), "
        f"{row['peak_mb']:.0f} MB at the peak, {met}"
    )


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m workbench.bench_trace",
        description=(__doc__ or "").partition(":")[2].strip(),
    )
    p.add_argument("megabytes", nargs="*", type=float, default=[MEGABYTES], help="of JSON text")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--read", type=Path, help="only read this trace here and print what it took")
    p.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="folder for trace.{json,csv}"
    )
    return p


if __name__ == "__main__":
    sys.exit(main())
