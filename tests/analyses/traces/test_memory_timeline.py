"""The memory curve and what is drawn of a trace, and the benchmark's own trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np

from tests.analyses.traces.builder import launch, mark, memory, op, read, timed
from workbench import bench_trace
from workbench.analyses.traces import memory as memory_module
from workbench.analyses.traces import timeline


def test_owners_of_the_peak(tmp_path):
    events = [
        mark("module:|Net", 0, 1_000),
        op("aten::empty", 10, 100),
        memory(20, 4_000, 0xA, 5_000),  # 1,000 were there before
        memory(50, 500, 0xB, 5_500),
        op("aten::cat", 200, 100),
        memory(210, -500, 0xB, 5_000),
        memory(220, 3_000, 0xC, 8_000),
        memory(400, 200, 0xD, 8_200),  # by no operator
        memory(2_000, -4_000, 0xA, 4_200),
        memory(2_100, 64, 0xE, 64, **{"Device Type": 1, "Device Id": 2}),
    ]
    cpu, gpu = read(tmp_path, events).memory
    assert (cpu.device, cpu.peak_bytes, cpu.peak_ns) == ("CPU", 8_200, 400)
    assert [(o.name, o.module, o.n_bytes) for o in cpu.owners] == [
        ("aten::empty", "Net", 4_000),
        ("aten::cat", "Net", 3_000),
    ]
    assert cpu.unowned_bytes == 1_200
    assert (gpu.device, gpu.peak_bytes, gpu.unowned_bytes) == ("GPU 2", 64, 64)


def test_a_long_curve_keeps_its_peak(tmp_path):
    rng = np.random.default_rng(42)
    total = rng.integers(1, 10**6, 9_000)
    total[4_321] = 10**6 + 7
    events = [op("a", 0, 5), *(memory(10 * i, 1, i, int(t)) for i, t in enumerate(total))]
    result = read(tmp_path, events)
    (cpu,) = result.memory
    assert len(cpu.time_ns) <= memory_module.MAX_POINTS
    assert cpu.peak_bytes == cpu.n_bytes.max() == 10**6 + 7 and cpu.peak_ns == 43_210
    assert cpu.n_bytes.min() == total.min() and (np.diff(cpu.time_ns) > 0).all()
    assert any("of 9,000 marks" in n for n in result.notes)


def test_the_timeline_keeps_the_longest(tmp_path, monkeypatch):
    monkeypatch.setattr(timeline, "MAX_EVENTS", 5)
    events = [op(f"n{d}", 1_000 * d, d) for d in range(1, 10)]
    drawn = read(tmp_path, events).timeline
    assert (drawn.n_all, drawn.shortest_ns) == (9, 5)
    assert sorted(drawn.duration_ns.tolist()) == [5, 6, 7, 8, 9]
    result = read(tmp_path, [op("same", 1_000 * d, 50) for d in range(9)])
    assert len(result.timeline.start_ns) == 5
    assert any("5 of the 9 events of 50 ns" in n for n in result.notes)


def test_lanes_are_named_and_nested(tmp_path):
    def named(pid, tid, name):
        return {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "ts": 0,
                "args": {"name": name}}  # fmt: skip

    events = [
        named(77, 77, "thread 77 (python)"),
        named(0, 7, "stream 7 "),
        op("aten::a", 0, 100),
        op("aten::b", 10, 50),
        op("aten::c", 20, 10),
        op("aten::d", 70, 20, tid=78),
        *launch(1, 30, 200, 50),
        timed("Trace", "PyTorch Profiler (0)", -10_000, 10**9, pid="Spans", tid="PyTorch Profiler"),
    ]
    result = read(tmp_path, events)
    drawn = result.timeline
    assert drawn.lanes == ("thread 77 (python)", "thread 78", "GPU 0, stream 7")
    assert result.span_ns == 530 and drawn.shortest_ns == 0
    names = [drawn.names[i] for i in drawn.name]
    assert dict(zip(names, drawn.depth.tolist(), strict=True)) == {
        "aten::a": 0, "aten::b": 1, "aten::c": 2, "cudaLaunchKernel": 2, "aten::d": 0, "gemm": 0,
    }  # fmt: skip
    for lane in range(3):
        assert (np.diff(drawn.start_ns[drawn.lane == lane]) >= 0).all()
    assert [drawn.categories[i] for i in drawn.category[-1:]] == ["kernel"]


def test_python_functions_only_where_there_is_nothing_else(tmp_path):
    result = read(tmp_path, [timed("python_function", "f", 0, 5)])
    assert len(result.timeline.start_ns) == 1


def test_the_benchmark_reads_what_it_wrote(tmp_path):
    wanted = bench_trace.write_trace(tmp_path / "t.json.gz", 0.3)
    command = [sys.executable, "-m", "workbench.bench_trace", "--read", str(tmp_path / "t.json.gz")]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    measured = json.loads(found.stdout)
    assert measured["sums"] == wanted and wanted["steps"] > 1
    # 100 MB may take 1,000 MB: the interpreter alone is some thirty of them, torch would be 200.
    assert 0 < measured["peak_mb"] < 150
