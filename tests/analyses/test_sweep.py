"""A point of a sweep is compared before it is timed; what fails is said and the rest goes on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import models
from kernels import scan_order
from models.layers import Scan2d
from workbench.analyses import environment as environment_module
from workbench.analyses import sweep as sweep_module
from workbench.analyses import sweep_subject
from workbench.analyses.environment import available_bytes, environment
from workbench.analyses.sweep import fits, status_of, sweep
from workbench.analyses.sweep_request import AXES, SUBJECTS, SweepRequest, check_request
from workbench.analyses.sweep_subject import Setting, Subject, build, gate_size, peak_bytes
from workbench.errors import BadInputError, CancelledError
from workbench.profiler_results import SweepPoint, SweepResult
from workbench.progress import CancelToken, Progress

CPU = torch.device("cpu")
NAME = "efficientvmamba_test"


@pytest.fixture
def make(network):
    return lambda _, scan: models.with_scan(network, scan)


def request(**fields) -> SweepRequest:
    defaults = {
        "subject": "model",
        "axis": "size",
        "passes": "forward",
        "model": NAME,
        "scans": ("es2d", "ss2d"),
        "size": 64,
        "values": None,
        "repeats": 2,
    }
    return SweepRequest(**(defaults | fields))


def run(make, provenance, token=None, **fields) -> list[SweepResult]:
    items = list(sweep(request(**fields), make, device=CPU, provenance=provenance, token=token))
    return [item for item in items if not isinstance(item, Progress)]


def setting(**fields) -> Setting:
    defaults = {
        "subject": "model",
        "passes": "forward",
        "model": NAME,
        "scan": "es2d:step=2",
        "size": 64,
        "batch": 1,
        "dtype": "float32",
        "backend": "auto",
    }
    return Setting(**(defaults | fields))


def test_results_grow_along_the_axis(network, make, provenance, n_hooks):
    results = run(make, provenance, values=(96, 32, 64))
    assert [r.is_final for r in results] == [False, False, True]
    assert [len(r.points) for r in results] == [2, 4, 6]
    last = results[-1]
    assert last.series == ("es2d:step=2", "ss2d") and last.is_numeric
    assert [p.x for p in last.points] == [32, 32, 64, 64, 96, 96], "in the axis' order"
    for p in last.points:
        assert p.is_measured and p.samples_ms.size == 2 and p.error < 1e-5
        assert 0 < p.p20_ms <= p.p50_ms <= p.p80_ms and p.backend == "cpu"
        assert p.images_per_second == pytest.approx(1e3 / p.p50_ms)
        assert p.peak_bytes > 4 * 16 * (p.size // 4) ** 2, "one map of the first stage at least"
        orders = [scan_order(p.scan, p.size // s, p.size // s) for s in (4, 8)]
        assert p.tokens == sum(o.index.size for o in orders)
        assert p.depth == orders[0].length
    assert [f.series for f in last.fits] == ["es2d:step=2", "ss2d"]
    assert last.environment["threads"] == "1" and "perf_counter" in last.clock
    assert last.provenance.parameters["values"] == "32, 64, 96"
    assert n_hooks(network) == 0 and not network.training


@pytest.mark.parametrize("subject", SUBJECTS)
def test_training_is_compared_by_its_gradients(network, make, provenance, subject):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    (result,) = run(make, provenance, subject=subject, passes="train", values=(64,))
    assert all(p.is_measured and p.error < 1e-4 for p in result.points)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("passes", ["forward", "train"])
def test_a_wrong_kernel_is_not_timed(make, provenance, monkeypatch, subject, passes):
    from kernels import torch_ops

    right = torch_ops.scan2d

    def wrong(tokens, *rest):
        y = right(tokens, *rest)
        # Right values, wrong gradients in training.
        return y * 1.01 if passes == "forward" else y + 0.01 * (y - y.detach())

    monkeypatch.setattr(torch_ops, "scan2d", wrong)
    (result,) = run(make, provenance, subject=subject, passes=passes, values=(64,))
    for p in result.points:
        assert p.status.startswith("wrong: ") and p.samples_ms.size == 0
        assert p.error == pytest.approx(0.01, rel=0.5) and math.isnan(p.p50_ms)


def test_steps_stand_beside_the_full_scan(make, provenance):
    result = run(make, provenance, axis="step", subject="scan", values=(1, 3), repeats=1)[-1]
    assert [(p.series, p.scan, p.x) for p in result.points] == [
        ("es2d", "es2d:step=1", 1),
        ("ss2d", "ss2d", 1),
        ("es2d", "es2d:step=3", 3),
        ("ss2d", "ss2d", 3),
    ]
    assert [p.depth for p in result.points] == [256, 256, 36, 256]
    assert result.fits == ()


@pytest.mark.parametrize("passes", ["forward", "train"])
def test_types_differ_from_the_reference_by_their_rounding(make, provenance, passes):
    small = {"size": 32, "batch": 2, "scans": ("es2d", "es2d"), "repeats": 1}
    result = run(make, provenance, axis="dtype", passes=passes, **small)[-1]
    error = {p.label: p.error for p in result.points if p.is_measured}
    assert error["float32"] < 1e-4 < error["float16"] < error["bfloat16"] < 5e-2


def test_kernels_that_are_not_here_say_why(make, provenance):
    result = run(make, provenance, axis="backend", subject="scan", scans=("es2d",) * 2)[-1]
    status = {p.label: p.status for p in result.points}
    assert status["reference"] == status["cpu"] == ""
    if not torch.cuda.is_available():
        assert status["triton"] == "not run: no CUDA device"
    assert [p.x for p in result.points] == [0, 1, 2, 3, 4] and result.fits == ()
    (result,) = run(make, provenance, axis="backend", values=("mamba_ssm",))
    assert "choose the scan alone" in result.points[0].status


def test_all_runnable_scans_and_the_networks(make, provenance):
    result = run(make, provenance, axis="scan", subject="scan", size=32, repeats=1)[-1]
    assert len(result.points) == len(AXES["scan"].values) > 4 and result.series == ("scan",)
    assert all(p.is_measured for p in result.points), [p.status for p in result.points]
    (result,) = run(make, provenance, axis="model", subject="scan", values=(NAME,), repeats=1)
    assert [p.label for p in result.points] == ["Test", "Test"]


def test_a_point_that_fails_leaves_the_others(network, provenance):
    def make(_, scan):
        if scan == "ss2d":
            raise RuntimeError("[enforce fail] can't allocate memory: you tried 1 byte")
        return models.with_scan(network, scan)

    (result,) = run(make, provenance, values=(64,))
    a, b = result.points
    assert a.is_measured and b.status == "not run: the machine has not enough memory"


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [("MEMORY_SHARE", 0.0, "GiB are free"), ("LONGEST_CALL_S", 0.0, "one call would take")],
)
def test_what_is_too_large_is_not_tried(make, provenance, monkeypatch, limit, value, words):
    monkeypatch.setattr(sweep_module, limit, value)
    (result,) = run(make, provenance, values=(96,))
    assert all(words in p.status for p in result.points)
    assert all(p.tokens > 0 for p in result.points), "known without a call"


def test_stop_keeps_what_was_measured(make, provenance, n_hooks, network):
    token = CancelToken()
    kept = []
    with pytest.raises(CancelledError):
        for item in sweep(
            request(values=(32, 64)), make, device=CPU, provenance=provenance, token=token
        ):
            if isinstance(item, SweepResult):
                kept.append(item)
                token.cancel()
    assert len(kept) == 1 and not kept[0].is_final and len(kept[0].points) == 2
    assert n_hooks(network) == 0


def test_large_inputs_are_compared_on_smaller_ones(network, monkeypatch):
    assert gate_size(network, "es2d", 224, 1) == 224
    large = gate_size(network, "ss2d", 1024, 1)
    assert large < 384 and large % 64 == 0
    assert gate_size(network, "ss2d", 224, 32) < gate_size(network, "ss2d", 224, 1)


def test_peak_memory_of_known_allocations():
    def run() -> torch.Tensor:
        a = torch.empty(1000, 1000)
        b = torch.empty(500, 1000)
        del a
        return torch.cat([b, b[:100]])

    subject = Subject(setting(), "cpu", CPU, run, lambda: None, lambda _: 0.0)
    assert peak_bytes(subject) == pytest.approx(6e6, rel=1e-3)


def test_training_needs_more_memory_and_the_peak_repeats(make):
    forward = build(setting(), make, CPU)
    train = build(setting(passes="train"), make, CPU)
    for subject in (forward, train):
        subject.run()
    first, again = peak_bytes(train), peak_bytes(train)
    n_bytes = sum(4 * p.numel() for p in make(NAME, "es2d").parameters())
    assert first == again > n_bytes, "gradients are part of it, though the call before left some"
    assert first > 2 * peak_bytes(forward)


def test_the_scan_gets_what_the_block_gives_it(network, make):
    x = sweep_subject.images(1, 64, CPU, torch.float32)
    given = sweep_subject._scan_input(models.with_scan(network, "es2d"), x)
    seen = []
    twin = models.with_scan(network, "es2d")
    first = next(m for m in twin.modules() if isinstance(m, Scan2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    with torch.no_grad():
        twin(x)
    assert all(torch.equal(a, b) for a, b in zip(given, seen, strict=True))


def point(x: float, samples: list[float], series: str = "a") -> SweepPoint:
    p20, p50, p80 = np.percentile(samples, [20, 50, 80])
    fields = dict.fromkeys(("images_per_second", "peak_bytes", "error"), 0.0)
    words = dict.fromkeys(("label", "model", "scan", "dtype", "backend", "status"), "")
    return SweepPoint(
        series=series, x=x, size=1, batch=1, samples_ms=np.array(samples), tokens=1, depth=1,
        p20_ms=float(p20), p50_ms=float(p50), p80_ms=float(p80), **fields, **words,
    )  # fmt: skip


def test_slopes_and_their_intervals():
    rng = np.random.default_rng(0)
    exact = [point(x, [x**2] * 5) for x in (1.0, 2.0, 8.0)]
    noisy = [point(x, list(3 * x * rng.lognormal(0, 0.1, 12)), "b") for x in (1, 2, 4, 8)]
    a, b = fits([*exact, *noisy, point(1.0, [1.0], "c")])
    assert (a.slope, a.low, a.high) == pytest.approx((2, 2, 2)) and a.n_points == 3
    assert b.low < 1 < b.high and 0.01 < b.high - b.low < 0.3
    assert fits([*exact, *noisy]) == (a, b), "seeded"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"axis": "colour"}, "size, batch"),
        ({"subject": "block"}, "model, scan"),
        ({"passes": "backward"}, "forward, train"),
        ({"values": ()}, "give 1 to 24"),
        ({"values": (16,)}, "32 to 1024"),
        ({"values": (64.5,)}, "whole numbers"),
        ({"axis": "batch", "values": (0,)}, "1 to 256"),
        ({"axis": "step", "values": (9,)}, "1 to 8"),
        ({"axis": "dtype", "values": ("int8",)}, "float32, bfloat16"),
        ({"axis": "scan", "values": ("nothing",)}, "nothing"),
        ({"axis": "model", "values": ("resnet",)}, NAME),
        ({"axis": "backend", "values": ("magic",)}, "mamba_ssm"),
        ({"repeats": 0}, "1 to 100"),
        ({"scans": ("es2d", "nothing")}, "nothing"),
    ],
)
def test_bad_requests_say_what_is_allowed(fields, words):
    with pytest.raises(BadInputError, match=words):
        check_request(request(**fields))


def test_every_axis_takes_its_own_values():
    for axis in AXES:
        checked = check_request(request(axis=axis))
        assert checked.values == AXES[axis].values
    assert check_request(request(values=(96, 64, 96))).values == (64, 96)


def test_status_is_one_line_of_words():
    assert "GPU" in status_of(torch.OutOfMemoryError("CUDA out of memory. Tried"))
    assert status_of(RuntimeError("first\nsecond")) == "not run: first"
    assert status_of(TypeError()) == "not run: TypeError"


def test_the_environment_is_read_from_the_system(tmp_path, monkeypatch):
    card = environment(CPU, "cpu")
    assert card["threads"] == str(torch.get_num_threads()) and card["torch"] == torch.__version__
    assert all(isinstance(v, str) and v for v in card.values())
    free = available_bytes(CPU)
    assert free is None or free > 2**20
    for name, text in {
        "memory.max": "3000000\n",
        "memory.current": "1000000\n",
        "memory.stat": "anon 5\ninactive_file 500000\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(environment_module, "_CGROUP", tmp_path)
    assert available_bytes(CPU) == 2_500_000, "a container's limit counts"
