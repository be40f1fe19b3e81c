"""What this machine reaches in a second: the measured ceilings of its roofline.

A ceiling is the best of some repeats: what else runs here can only slow them, so it is a lower
bound of what the hardware can do and never above it. Each takes a fraction of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kernels._bench.timing import GpuClock
from kernels._cpu import run
from kernels._triton.launch import on_device

REPEATS = 5
# Bytes of each of the two buffers of the copy: four times the largest cache, between these.
SMALLEST_COPY, LARGEST_COPY = 64 << 20, 512 << 20
GPU_COPY = 1 << 30
PRODUCT, GPU_PRODUCT = 1024, 4096  # rows and columns of the matrices
# One item of the exponentials' program: 8 KiB in and 8 KiB out, so often.
BLOCK_FLOATS, ROUNDS, ITEMS = 2048, 256, 32
TORCH_FLOATS, TORCH_CALLS = 1 << 18, 4  # for torch.exp: of one thread; calls in a repeat
# The GPU's exponentials: eight chains for each thread, programs to fill any GPU many times.
GPU_BLOCK, GPU_WARPS, GPU_PROGRAMS, GPU_TURNS = 1024, 4, 1 << 14, 16
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_MAX_CACHE = 128 << 20


@dataclass(frozen=True)
class MeasuredRates:
    """Best of `REPEATS` repeats each; `*_words` say how it was measured."""

    memory_bytes_per_s: float  # bytes read and bytes written
    fma_per_s: float  # float32 multiply-adds
    exp_per_s: float  # float32 exponentials
    memory_words: str
    fma_words: str
    exp_words: str
    seconds: float  # that measuring took, compilation included

    @property
    def words(self) -> str:
        """All three in one line."""
        return f"best of {REPEATS} repeats: {self.memory_words}; {self.fma_words}; {self.exp_words}"


def measure(device: torch.device) -> MeasuredRates:
    """Copy, matrix product and exponentials on a CPU or a GPU, one after the other.

    On a CPU under 2 s with torch's number of threads, about 1 s more where numba has not compiled
    the exponentials before. ValueError for any other kind of device.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"rates are measured on the devices cpu and cuda, not on {device}")
    started = time.perf_counter()
    best = _best_on_gpu(device) if device.type == "cuda" else _best
    memory, memory_words = copy_rate(device, best)
    fma, fma_words = product_rate(device, best)
    exp, exp_words = (gpu_exp_rate if device.type == "cuda" else cpu_exp_rate)(device, best)
    seconds = time.perf_counter() - started
    return MeasuredRates(memory, fma, exp, memory_words, fma_words, exp_words, seconds)


Best = Callable[[Callable[[], object]], float]  # seconds of the fastest call


def _best(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _best_on_gpu(device: torch.device) -> Best:
    clock = GpuClock(device)

    def best(call: Callable[[], object]) -> float:
        call()
        return min(clock.measure(call, REPEATS).seconds)

    return best


def copy_rate(device: torch.device, best: Best) -> tuple[float, str]:
    """Bytes per second, read and written, of a copy that no cache holds."""
    n_bytes = GPU_COPY
    if device.type == "cpu":
        n_bytes = min(LARGEST_COPY, max(SMALLEST_COPY, 4 * largest_cache()))
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.zeros_like(source)
    seconds = best(lambda: target.copy_(source))
    return 2 * n_bytes / seconds, f"copy of {n_bytes >> 20} MiB, bytes read and written"


def product_rate(device: torch.device, best: Best) -> tuple[float, str]:
    """float32 multiply-adds per second of a matrix product."""
    n = PRODUCT if device.type == "cpu" else GPU_PRODUCT
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator).to(device) for _ in range(2))
    out = torch.empty_like(a)
    with _full_float32():
        seconds = best(lambda: torch.mm(a, b, out=out))
    return n**3 / seconds, f"float32 product of {n} x {n} matrices, n^3 multiply-adds"


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32, whose tensor cores are not what a scan's multiply-adds run on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def cpu_exp_rate(device: torch.device, best: Best) -> tuple[float, str]:
    """float32 exponentials per second: our exp2 or torch.exp, whichever is faster here."""
    del device
    n_threads = torch.get_num_threads()
    found = []
    if run.unavailable_reason() is None:
        items = ITEMS * n_threads
        x = torch.linspace(-20, 0, BLOCK_FLOATS * items)
        y = torch.empty_like(x)
        seconds = best(lambda: exponentials(x, y, ROUNDS))
        rate = ROUNDS * x.numel() / seconds
        found.append(
            (rate, f"exp2 of the scan's CPU kernel in the first cache, {n_threads} threads")
        )
    x = torch.linspace(-20, 0, TORCH_FLOATS * n_threads)
    y = torch.empty_like(x)

    def many() -> None:
        for _ in range(TORCH_CALLS):
            torch.exp(x, out=y)

    found.append((TORCH_CALLS * x.numel() / best(many), f"torch.exp, {n_threads} threads"))
    (rate, words), *slower = sorted(found, reverse=True)
    beside = "".join(f" ({words.partition(',')[0]}: {r:.2g}/s)" for r, words in slower)
    return rate, words + beside


def exponentials(x: torch.Tensor, y: torch.Tensor, rounds: int) -> None:
    """`y = 2**x`, `rounds` times over blocks of `BLOCK_FLOATS`, on torch's number of threads.

    x, y: contiguous float32 on the CPU, a multiple of `BLOCK_FLOATS` long.
    """
    from kernels._cpu import rates as program

    assert x.numel() % BLOCK_FLOATS == 0 and x.numel() == y.numel()
    table = np.zeros(program.N_COLUMNS, dtype=np.int64)
    table[program.N_ITEMS] = x.numel() // BLOCK_FLOATS
    table[program.ROUNDS] = rounds
    table[program.VECTORS] = BLOCK_FLOATS // program.LANES
    table[program.X], table[program.Y] = x.data_ptr(), y.data_ptr()
    n_threads = max(1, min(torch.get_num_threads(), int(table[program.N_ITEMS])))
    compiled = run.compiled_program("exponentials", program.__name__)
    run.run_on_threads(compiled, table.ctypes.data, n_threads)


def gpu_exp_rate(device: torch.device, best: Best) -> tuple[float, str]:
    """float32 exponentials per second of chains of exp2 in registers."""
    from kernels._triton.rates import UNROLLED, exponentials_kernel

    x = torch.rand(GPU_PROGRAMS * GPU_BLOCK, device=device)
    y = torch.empty_like(x)

    def call() -> None:
        with on_device(x):
            exponentials_kernel[(GPU_PROGRAMS,)](
                x, y, GPU_TURNS, BLOCK=GPU_BLOCK, num_warps=GPU_WARPS
            )

    n_exps = x.numel() * GPU_TURNS * UNROLLED.value
    return n_exps / best(call), "exp2 in registers, a Triton kernel"


def largest_cache() -> int:
    """Bytes of the largest cache as the system tells it, at most 128 MiB; 0 where it does not."""
    found = [0]
    for path in _CACHES.glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        unit = {"K": 10, "M": 20}.get(text[-1:], 0)
        if text[:-1].isdigit():
            found.append(int(text[:-1]) << unit)
    return min(_MAX_CACHE, max(found))
