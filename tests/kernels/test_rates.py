"""Measured ceilings: the programs compute what they are timed for, and the rates are those times.

No rate is compared with a number: other work may run on the machine that tests.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
import torch

from kernels import rates
from kernels._cpu import run
from kernels._triton.configs import KernelConfig
from kernels.compiled import available_targets, compile_config
from tests.kernels import triton_worker as worker

CPU = torch.device("cpu")
linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="triton's wheel exists for Linux only"
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the work."""
    for name, value in (
        ("REPEATS", 2),
        ("SMALLEST_COPY", 1 << 20),
        ("LARGEST_COPY", 1 << 20),
        ("PRODUCT", 64),
        ("ROUNDS", 4),
        ("ITEMS", 4),
        ("TORCH_FLOATS", 1 << 12),
    ):
        monkeypatch.setattr(rates, name, value)


def test_the_exponentials_are_computed() -> None:
    x = torch.linspace(-30, 5, 6 * rates.BLOCK_FLOATS)
    y = torch.empty_like(x)
    rates.exponentials(x, y, 3)
    np.testing.assert_allclose(y.numpy(), np.exp2(x.double().numpy()), rtol=3e-7)


def test_every_round_is_computed() -> None:
    """The compiler does not leave out rounds whose answer is known: more rounds, more time."""
    x = torch.linspace(-30, 0, 4 * rates.BLOCK_FLOATS)
    y = torch.empty_like(x)

    def cpu_seconds(rounds: int) -> float:
        taken = []
        for _ in range(5):
            started = time.process_time()
            rates.exponentials(x, y, rounds)
            taken.append(time.process_time() - started)
        return min(taken)

    cpu_seconds(1)
    assert 4 < cpu_seconds(6400) / cpu_seconds(400) < 64


def test_a_rate_is_the_work_of_the_fastest_call(quick: None) -> None:
    calls = []

    def best(call: Callable[[], object]) -> float:
        call()
        calls.append(call)
        return 0.5

    n_threads = torch.get_num_threads()
    assert rates.copy_rate(CPU, best)[0] == 2 * (1 << 20) / 0.5
    assert rates.product_rate(CPU, best)[0] == 64**3 / 0.5
    rate, words = rates.cpu_exp_rate(CPU, best)
    ours = 4 * rates.BLOCK_FLOATS * 4 * n_threads
    torchs = rates.TORCH_CALLS * (1 << 12) * n_threads
    assert rate == max(ours, torchs) / 0.5
    assert ("exp2 of the scan" in words) and ("torch.exp" in words) and len(calls) == 4


def test_the_faster_exponential_is_taken(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, name in (((1e-6, 1.0), "exp2 of the scan"), ((1.0, 1e-6), "torch.exp")):
        times = iter(seconds)
        _, words = rates.cpu_exp_rate(CPU, lambda call, times=times: next(times))
        assert words.startswith(name)
    monkeypatch.setattr(run, "unavailable_reason", lambda: "numba cannot be imported")
    _, words = rates.cpu_exp_rate(CPU, lambda call: 1.0)
    assert words.startswith("torch.exp") and "exp2" not in words


def test_this_machine_has_rates(quick: None) -> None:
    found = rates.measure(CPU)
    for rate in (found.memory_bytes_per_s, found.fma_per_s, found.exp_per_s):
        assert 1e5 < rate < 1e15
    assert 0 < found.seconds < 20
    assert all(word in found.words for word in ("best of 2", "copy", "64 x 64", "exp"))


def test_float32_products_use_no_tf32_and_the_choice_is_given_back() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with rates._full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="cpu and cuda, not on meta"):
        rates.measure(torch.device("meta"))


def test_the_largest_cache_is_read(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_CACHES", tmp_path)
    assert rates.largest_cache() == 0
    for name, text in (("index0", "32K"), ("index3", "48M")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(text + "\n")
    assert rates.largest_cache() == 48 << 20


def check_gpu_exponentials() -> None:
    """In the interpreter: the kernel's numbers, and how many exponentials they took."""
    from kernels._triton.rates import UNROLLED, exponentials_kernel

    x = torch.rand(3 * 64)
    y = torch.full_like(x, float("nan"))
    exponentials_kernel[(3,)](x, y, 2, BLOCK=64)
    expected = x.numpy()
    for _ in range(2 * UNROLLED.value):
        expected = np.exp2(-expected)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6)
    assert np.allclose(expected, 0.6411857, atol=1e-6)
    exponentials_kernel[(3,)](x, y, 0, BLOCK=64)
    assert torch.equal(x, y), "no turn, no exponential"
    # The GPU's branch itself, small and with a clock of its own.
    calls = []
    with patch.multiple(rates, GPU_PROGRAMS=2, GPU_BLOCK=16, GPU_TURNS=3):
        rate, words = rates.gpu_exp_rate(CPU, lambda call: calls.append(call()) or 0.5)
    assert rate == 2 * 16 * 3 * 32 / 0.5 and len(calls) == 1 and "Triton" in words


@linux_only
def test_the_gpu_kernel_computes_its_exponentials() -> None:
    spawn = multiprocessing.get_context("spawn")
    with (
        patch.dict(os.environ, {"TRITON_INTERPRET": "1"}),
        ProcessPoolExecutor(1, mp_context=spawn, initializer=worker.start) as pool,
    ):
        pool.submit(check_gpu_exponentials).result(timeout=100)


@linux_only
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_the_gpu_kernel_is_compiled_to_exponentials(target: str) -> None:
    """Its loop is nothing but the special-function unit's instruction and what feeds it."""
    if reason := available_targets()[target]:
        pytest.skip(reason)
    config = KernelConfig(
        name="exponentials",
        module="kernels._triton.rates",
        function="exponentials_kernel",
        signature={"X": "*fp32", "Y": "*fp32", "n_turns": "i32", "BLOCK": "constexpr"},
        constexprs={"BLOCK": rates.GPU_BLOCK},
        num_warps=rates.GPU_WARPS,
        num_stages=1,
        divisible_by_16=("X", "Y"),
    )
    kernel = compile_config(config, target)
    lanes = 64 if target.startswith("gfx") else 32
    per_thread = rates.GPU_BLOCK // (rates.GPU_WARPS * lanes)
    assert kernel.exp2_in_loops == 32 * per_thread and kernel.spill_bytes == 0
    assert kernel.exp2_in_loops > 0.95 * kernel.instructions_in_loops
