"""The GPU clock's rules on a device that is made up: what is timed how, and in which windows."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from kernels._bench.timing import SHORTEST_WINDOW, GpuClock

LAUNCH = 40e-6  # seconds that a call costs on the host unless it is replayed from a graph


class FakeGpu:
    """Time passes in calls only; graphs replay calls without their launches."""

    def __init__(self, kernel: float, can_capture: bool = True) -> None:
        self.kernel = kernel
        self.can_capture = can_capture
        self.now = 0.0
        self.calls = 0
        self.flushes = 0
        self.captured: int | None = None

    def run(self) -> None:
        if self.captured is not None:
            if not self.can_capture:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.captured += 1
            return
        self.calls += 1
        self.now += max(self.kernel, LAUNCH)

    def install(self, monkeypatch) -> GpuClock:
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.now

            def elapsed_time(self, other: Event) -> float:
                return 1e3 * (other.at - self.at)

        class Graph:
            calls = 0

            def replay(self) -> None:
                gpu.now += self.calls * gpu.kernel

        @contextmanager
        def graph(made: Graph):
            gpu.captured = 0
            try:
                yield
                made.calls = gpu.captured
            finally:
                gpu.captured = None

        def flush() -> None:
            self.flushes += 1

        stream = SimpleNamespace(wait_stream=lambda other: None)
        fakes = {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": graph,
            "Stream": lambda device: stream,
            "stream": lambda s: nullcontext(),
            "current_stream": lambda device: stream,
            "synchronize": lambda device=None: None,
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=64),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        clock = GpuClock(torch.device("cpu"))
        clock._flush = SimpleNamespace(zero_=flush)
        return clock


def test_long_kernels_are_timed_call_by_call_with_a_cold_cache(monkeypatch) -> None:
    gpu = FakeGpu(kernel=3e-3)
    timing = gpu.install(monkeypatch).measure(gpu.run, 10)
    assert timing.clock == "CUDA events, cold L2"
    assert timing.seconds == pytest.approx([3e-3] * 10)
    assert gpu.flushes == 10


@pytest.mark.parametrize("kernel", [2e-6, 20e-6, 300e-6])
def test_short_kernels_are_replayed_without_their_launches(kernel: float, monkeypatch) -> None:
    gpu = FakeGpu(kernel)
    timing = gpu.install(monkeypatch).measure(gpu.run, 5)
    assert timing.seconds == pytest.approx([kernel] * 5)
    words = timing.clock.split()
    assert timing.clock.startswith("CUDA graph of ") and "warm L2" in timing.clock
    assert int(words[3]) * kernel >= SHORTEST_WINDOW * (1 - 1e-9)


def test_what_cannot_be_captured_is_timed_in_windows(monkeypatch) -> None:
    gpu = FakeGpu(kernel=2e-6, can_capture=False)
    timing = gpu.install(monkeypatch).measure(gpu.run, 5)
    assert timing.seconds == pytest.approx([LAUNCH] * 5)
    assert timing.clock == "CUDA events, 2 calls, warm L2, with launch time"
    longer = FakeGpu(kernel=200e-6, can_capture=False)
    timing = longer.install(monkeypatch).measure(longer.run, 5)
    assert timing.clock == "CUDA events, cold L2, with launch time"
    assert timing.seconds == pytest.approx([200e-6] * 5)
