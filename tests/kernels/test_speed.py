"""Speed and memory against yardsticks that our code cannot move. CPU time of one thread: what else
runs on the machine matters little."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import scan2d, selective_scan
from kernels._bench.cases import Case

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def plain_memory(request, monkeypatch) -> None:
    """Undo the poisoning of fresh memory, which costs more than the kernels."""
    monkeypatch.undo()


def best(run: Callable[[], object], repeats: int = 15) -> float:
    run()
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        run()
        times.append(time.thread_time() - started)
    return min(times)


def operate(case: Case, inputs: list[torch.Tensor]) -> torch.Tensor:
    if case.operator == "scan2d":
        return scan2d(*inputs, order=case.order, backend="cpu")
    return selective_scan(*inputs, True, backend="cpu")


def forward_and_both(case: Case) -> tuple[float, float]:
    inputs = case.inputs()
    leaves = [t.clone().requires_grad_() for t in inputs]
    grad_y = torch.ones_like(inputs[0])

    def forward() -> None:
        with torch.no_grad():
            operate(case, inputs)

    def both() -> None:
        torch.autograd.grad(operate(case, leaves), leaves, grad_y)

    return best(forward), best(both)


@pytest.mark.parametrize("operator", ["selective_scan", "scan2d"])
def test_time_against_exp_of_as_many_numbers(operator: str) -> None:
    case = Case("tiny", 1, 1, operator)
    numbers = torch.randn(case.n_states)
    room = torch.empty_like(numbers)
    yardstick = best(lambda: torch.exp(numbers, out=room))
    forward, both = forward_and_both(case)
    assert forward <= 0.8 * yardstick, f"{forward / yardstick:.2f}"
    assert both <= 3 * yardstick, f"{both / yardstick:.2f}"


def test_time_is_linear_in_tokens() -> None:
    sides = (14, 28, 56, 112, 224)
    times = np.array([forward_and_both(Case("tiny", 1, 1, size=4 * side)) for side in sides])
    tokens = np.log([side * side for side in sides])
    for column, what in enumerate(("forward", "forward+backward")):
        exponent = np.polyfit(tokens, np.log(times[:, column]), 1)[0]
        assert exponent <= 1.05, f"{what}: time grows with tokens to the power {exponent:.2f}"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts pages as Linux does")
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(
    ("operator", "order", "batch", "size"),
    [
        ("selective_scan", "es2d", 8, 448),
        ("scan2d", "es2d", 8, 448),
        ("scan2d", "ss2d", 8, 448),
        # One image: threads share the blocks of channels and each has its part of a gradient.
        ("scan2d", "ss2d", 1, 896),
    ],
)
def test_peak_memory(operator: str, order: str, batch: int, size: int, n_threads: int) -> None:
    code = f"""
        import torch
        from pathlib import Path
        from kernels import scan2d, selective_scan
        from kernels._bench.cases import Case
        torch.set_num_threads({n_threads})
        def operate(inputs):
            if "{operator}" == "scan2d":
                return scan2d(*inputs, order="{order}", backend="cpu")
            return selective_scan(*inputs, True, backend="cpu")
        def status(name):
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * next(int(l.split()[1]) for l in lines if l.startswith(name))
        def run(case):
            leaves = [t.requires_grad_() for t in case.inputs()]
            grad_y = torch.ones_like(leaves[0])
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            y = operate(leaves)
            gradients = torch.autograd.grad(y, leaves, grad_y)
            given = sum(4 * t.numel() for t in (*leaves, grad_y))
            made = sum(4 * t.numel() for t in (y, *gradients))
            return (status("VmHWM") - before + given) / (given + made)
        run(Case("tiny", 2, 1, "{operator}", order="{order}"))
        print(run(Case("tiny", 1, {batch}, "{operator}", size={size}, order="{order}")))
    """
    # Freed memory goes back at once, so that what is counted is in use.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    ratio = float(done.stdout)
    assert math.isfinite(ratio) and ratio <= 1.5
