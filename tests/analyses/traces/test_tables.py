"""Operators, kernels, modules, steps and gaps: sums that have to agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tests.analyses.traces.builder import launch, mark, op, read, timed
from workbench.analyses.traces import read_trace
from workbench.progress import result_of


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A profiler object and the tables of the trace that it wrote."""
    torch.manual_seed(42)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    head = torch.nn.Linear(4 * 36, 5)
    x = torch.randn(2, 3, 8, 8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for step in range(3):
            with record_function(f"ProfilerStep#{step}"):
                with record_function("module:|Net"):
                    with record_function("module:stages.0|Stage"):
                        y = net(x)
                    with record_function("module:head|Linear"):
                        y = head(y)
                y.square().sum().backward()
    path = tmp_path_factory.mktemp("trace") / "t.json.gz"
    profiler.export_chrome_trace(str(path))
    return profiler, result_of(read_trace(path))


def test_operators_agree_with_torch(recorded):
    profiler, result = recorded
    torchs = {a.key: a for a in profiler.key_averages()}
    assert len(result.operators) > 20
    for row in result.operators:
        theirs = torchs[row.name]
        assert abs(row.self_cpu_ns / 1000 - theirs.self_cpu_time_total) <= row.calls, row
        assert abs(row.total_cpu_ns / 1000 - theirs.cpu_time_total) <= row.calls, row
    marks = {
        "ProfilerStep*",  # as torch sums the steps
        "module:|Net",
        "module:stages.0|Stage",
    }
    assert set(torchs) - {r.name for r in result.operators} == marks | {"module:head|Linear"}


def test_recorded_modules_and_steps_add_up(recorded):
    _, result = recorded
    assert [s.name for s in result.steps] == ["ProfilerStep#0", "ProfilerStep#1", "ProfilerStep#2"]
    for step in result.steps:
        assert sum(step.parts.values()) == step.duration_ns
    rows = {(r.path, r.kind): r for r in result.modules}
    root, stage, head = rows["", "Net"], rows["stages.0", "Stage"], rows["head", "Linear"]
    assert (root.depth, stage.depth, head.depth) == (0, 1, 1)
    assert (stage.stage, stage.block, head.stage) == (1, 0, 0)
    assert root.total_cpu_ns == root.self_cpu_ns + stage.total_cpu_ns + head.total_cpu_ns
    assert rows["(backward)", "no module"].self_cpu_ns > 0  # AccumulateGrad and the loss
    # The convolution's backward is the stage's, the product's that of the head.
    by = {o.name: o.total_cpu_ns for o in result.operators}
    assert stage.self_cpu_ns > by["ConvolutionBackward0"] + by["aten::conv2d"]
    assert head.self_cpu_ns > by["AddmmBackward0"] + by["aten::linear"]
    assert result.passes == "train" and result.kind == "cpu" and result.device == "CPU"
    total = sum(r.self_cpu_ns for r in result.modules)
    assert sum(r.total_cpu_ns for r in result.modules if r.depth == 0) == total
    in_steps = result.module_steps_ns[[i for i, r in enumerate(result.modules) if r.depth == 0]]
    assert in_steps.sum() == total
    selfs = [o.self_cpu_ns for o in result.operators]
    assert result.operator_steps_ns.sum(1).tolist() == selfs


def test_recorded_memory_is_owned(recorded):
    _, result = recorded
    (memory,) = result.memory
    assert memory.device == "CPU" and memory.peak_bytes == memory.n_bytes.max() > 0
    owned = sum(o.n_bytes for o in memory.owners)
    assert owned + memory.unowned_bytes == memory.peak_bytes
    assert any(o.module in ("stages.0", "head", "Net") for o in memory.owners)


def cuda_like(rocm: bool, with_ids: bool = True):
    """Two steps of a block with a nested operator, backward on another thread, one lone kernel."""
    events = []
    for step in range(2):
        at = 1_000_000 * step
        ids = (10 + 100 * step, 11 + 100 * step, 12 + 100 * step)
        a, b, c = ids if with_ids else (-1, -1, -1)
        numbers = [100 * step + n for n in (1, 2, 3, 4)]
        events += [
            mark(f"ProfilerStep#{step + 5}", at, 900_000),
            mark("module:|Net", at + 10_000, 300_000),
            mark("module:stages.1.blocks.0|Block", at + 20_000, 200_000),
            op("aten::linear", at + 30_000, 100_000, a, **{"Sequence number": 7 + step}),
            op("aten::addmm", at + 40_000, 50_000, b, **{"Sequence number": 7 + step}),
            *launch(numbers[0], at + 50_000, at + 200_000, 40_000, ident=b, rocm=rocm),
            *launch(numbers[1], at + 110_000, at + 300_000, 20_000, ident=a, name="add", rocm=rocm),
            op(
                "autograd::engine::evaluate_function: AddmmBackward0", at + 500_000, 100_000,
                tid=88, **{"Sequence number": 7 + step, "Fwd thread id": 1},
            ),
            op("aten::mm", at + 510_000, 50_000, c, tid=88),
            *launch(numbers[2], at + 520_000, at + 600_000, 90_000, ident=c, rocm=rocm, tid=88),
            *launch(numbers[3], at + 700_000, at + 720_000, 5_000, name="Memset (Device)",
                    kind="gpu_memset", rocm=rocm),
        ]  # fmt: skip
    return events


@pytest.mark.parametrize("rocm", [False, True], ids=["cuda", "rocm"])
@pytest.mark.parametrize("with_ids", [True, False], ids=["external id", "by time"])
def test_gpu_work_is_linked(tmp_path, rocm, with_ids):
    name = "AMD Instinct MI250X" if rocm else "NVIDIA H100"
    result = read(tmp_path, cuda_like(rocm, with_ids), deviceProperties=[{"id": 0, "name": name}])
    assert (result.device, result.kind) == (name, "rocm" if rocm else "cuda")
    rows = {o.name: o for o in result.operators}
    assert (rows["aten::addmm"].self_gpu_ns, rows["aten::linear"].self_gpu_ns) == (80_000, 40_000)
    assert rows["aten::linear"].total_gpu_ns == 120_000
    assert rows["aten::mm"].self_gpu_ns == 180_000
    assert result.operators[0].name == "aten::mm"
    assert any("2 of 8 kernels" in n for n in result.notes)  # the fills
    kernels = {k.name: k for k in result.kernels}
    gemm = kernels["gemm"]
    assert (gemm.calls, gemm.total_ns, gemm.min_ns, gemm.max_ns) == (4, 260_000, 40_000, 90_000)
    assert (gemm.grid, gemm.block, gemm.shared_bytes) == ("64x2x1", "128x1x1", 1024)
    assert gemm.registers == (-1 if rocm else 90)
    assert kernels["Memset (Device)"].kind == "memset" and kernels["add"].operator == "aten::linear"
    modules = {m.path: m for m in result.modules}
    block = modules["stages.1.blocks.0"]
    # Forward 60 us and, through the sequence number, backward 90 us; nothing is lost.
    assert (block.stage, block.block, block.total_gpu_ns) == (2, 1, 300_000)
    assert modules["(outside)"].self_gpu_ns == 10_000
    assert sum(m.self_gpu_ns for m in result.modules) == sum(k.total_ns for k in result.kernels)
    assert modules[""].total_cpu_ns == 2 * (300_000 + 100_000)
    assert result.module_steps_ns.sum(1).tolist() == [m.total_gpu_ns for m in result.modules]
    assert result.operator_steps_ns.sum() == 300_000


def test_parts_of_a_step_and_gaps_by_hand(tmp_path):
    result = read(tmp_path, cuda_like(False))
    first = result.steps[0]
    assert first.parts == {
        "kernel": 150_000,
        "memset": 5_000,
        "runtime": 2_000,
        # linear 100 less 2 launches, engine 100 less its launch and the 0 that a kernel covers
        "operator": 100_000 - 1_000 + 100_000 - 500,
        "other": 900_000 - 150_000 - 5_000 - 2_000 - 99_000 - 99_500,
    }
    gaps = [(g.start_ns, g.duration_ns, g.after, g.before) for g in result.gaps]
    assert (320_000, 280_000, "add", "gemm") in gaps and (240_000, 60_000, "gemm", "add") in gaps
    # Across the border of the steps only what lies inside them: 725..900 and 1000..1200.
    assert (725_000, 175_000, "Memset (Device)", "gemm") in gaps
    assert (1_000_000, 200_000, "Memset (Device)", "gemm") in gaps
    assert result.idle_ns == 2 * (60_000 + 280_000 + 30_000) + 375_000 == sum(g[1] for g in gaps)


def test_a_collective_is_communication_only_where_nothing_computes(tmp_path):
    events = [
        mark("ProfilerStep#0", 0, 1_000),
        op("aten::x", 0, 10),
        *launch(1, 0, 100, 300),
        *launch(2, 1, 200, 500, name="ncclDevKernel_AllReduce", stream=9),
        *launch(3, 2, 350, 100, kind="gpu_memcpy", name="Memcpy HtoD", stream=11),
    ]
    parts = read(tmp_path, events).steps[0].parts
    assert (parts["kernel"], parts["memcpy"], parts["communication"]) == (300, 50, 250)
    assert sum(parts.values()) == 1_000


def test_old_traces_whose_external_id_is_the_correlation(tmp_path):
    events = [
        op("aten::mm", 0, 10_000, 5),
        op("aten::other", 20_000, 5_000, 6),
        *launch(6, 2_000, 30_000, 700, ident=6),  # not of the operator whose id is 6
    ]
    rows = {o.name: o.self_gpu_ns for o in read(tmp_path, events).operators}
    assert rows == {"aten::mm": 700, "aten::other": 0}


def test_a_recursive_operator_counts_once(tmp_path):
    events = [op("f", 0, 100), op("g", 10, 80), op("f", 20, 50), op("f", 200, 10)]
    rows = {o.name: o for o in read(tmp_path, events).operators}
    assert (rows["f"].calls, rows["f"].total_cpu_ns, rows["f"].self_cpu_ns) == (3, 110, 80)
    assert rows["g"].self_cpu_ns == 30


def test_arrows_from_forward_to_backward_win_over_numbers(tmp_path):
    events = [
        mark("module:|Net", 0, 1_000),
        mark("module:a|A", 10, 100),
        mark("module:b|B", 200, 100),
        op("aten::fa", 20, 10),
        op("aten::fb", 210, 10, **{"Sequence number": 3}),
        op("autograd::engine::evaluate_function: F", 2_000, 50, **{"Sequence number": 3}),
        *({"ph": phase, "id": 4, "cat": "fwdbwd", "name": "fwdbwd", "pid": 77, "tid": 77,
           "ts": e["ts"]} for phase, e in (("s", op("", 20, 0)), ("f", op("", 2_000, 0)))),
    ]  # fmt: skip
    rows = {m.path: m.self_cpu_ns for m in read(tmp_path, events).modules}
    assert rows == {"": 800, "a": 150, "b": 100}


def test_modules_as_torch_marks_them(tmp_path):
    events = [
        timed("python_function", "nn.Module: Net_0", 0, 100),
        timed("python_function", "torch/nn/x.py(3): forward", 1, 98),
        timed("python_function", "nn.Module: Conv2d_0", 10, 30),
        timed("python_function", "nn.Module: Conv2d_1", 50, 20),
        op("aten::conv2d", 12, 10),
    ]
    result = read(tmp_path, events)
    rows = [(m.path, m.kind, m.depth, m.self_cpu_ns, m.total_cpu_ns) for m in result.modules]
    assert rows == [
        ("Net_0", "Net", 0, 50, 100),
        ("Net_0.Conv2d_0", "Conv2d", 1, 30, 30),
        ("Net_0.Conv2d_1", "Conv2d", 1, 20, 20),
    ]
    assert any("4 Python functions" in n for n in result.notes)


def test_without_steps_and_modules(tmp_path):
    result = read(tmp_path, [op("a", 0, 50), op("b", 80, 20)])
    assert [(s.name, s.duration_ns, s.parts) for s in result.steps] == [
        ("whole trace", 100, {"operator": 70, "other": 30})
    ]
    assert result.modules == () and result.module_steps_ns.shape == (0, 1)
    assert [(g.duration_ns, g.after, g.before) for g in result.gaps] == [(30, "a", "b")]
    assert np.array_equal(result.operator_steps_ns, [[50], [20]])
