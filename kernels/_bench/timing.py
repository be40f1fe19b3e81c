"""Clocks: turns of `perf_counter` on the CPU, CUDA events and graphs on a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

Run = Callable[[], object]
T = TypeVar("T")
SHORTEST_WINDOW = 50e-6  # seconds; events tick in half microseconds and launches cost several
# Below this a call is mostly the host's launches: a graph shows what the device needs.
GRAPH_BELOW = 1e-3
MAX_WINDOW_CALLS = 1000
# What else the machine does slows the first and leaves the second.
CPU_CLOCKS = {
    "wall": (time.perf_counter, "perf_counter, taking turns"),
    "process": (time.process_time, "CPU time of all threads, taking turns"),
}


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat, and by which clock."""

    seconds: tuple[float, ...]
    clock: str

    def columns(self) -> dict[str, float | int | str]:
        p20, p50, p80 = np.percentile(self.seconds, (20, 50, 80)) * 1e3
        return {
            "p20_ms": float(p20),
            "p50_ms": float(p50),
            "p80_ms": float(p80),
            "min_ms": 1e3 * min(self.seconds),
            "repeats": len(self.seconds),
            "clock": self.clock,
        }


def interleaved(
    runs: Mapping[str, Run],
    repeats: Mapping[str, int],
    clock: Callable[[], float] = time.perf_counter,
    words: str = "",
) -> dict[str, Timing]:
    """Times on the CPU, taking turns: what disturbs the machine disturbs all.

    Every run was called before. One with fewer repeats takes part in turns spread over all.
    """
    turns = max(repeats.values(), default=0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns):
        for name, run in runs.items():
            if (turn + 1) * repeats[name] // turns == turn * repeats[name] // turns:
                continue
            started = clock()
            run()
            times[name].append(clock() - started)
    return {name: Timing(tuple(taken), words) for name, taken in times.items()}


def calls_in_window(one_call: float) -> int:
    """How many calls one after the other last `SHORTEST_WINDOW` at least."""
    return min(MAX_WINDOW_CALLS, max(1, math.ceil(SHORTEST_WINDOW / max(one_call, 1e-9))))


class GpuClock:
    """CUDA events around one call with a cold L2 cache, as `triton.testing.do_bench` does it; for
    short calls around a CUDA graph of several, which leaves the L2 cache warm."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(4 * l2_bytes, dtype=torch.int8, device=device)

    def measure(self, run: Run, repeats: int) -> Timing:
        """`run` was called before, so everything is compiled."""
        cold = self._events(run, repeats, is_cold=True)
        one_call = float(np.median(cold))
        if one_call >= GRAPH_BELOW:
            return Timing(tuple(cold), "CUDA events, cold L2")
        calls = calls_in_window(one_call)
        graph = self._captured(run, calls)
        if graph is None:
            if one_call >= SHORTEST_WINDOW:
                return Timing(tuple(cold), "CUDA events, cold L2, with launch time")

            def window() -> None:
                for _ in range(calls):
                    run()

            times = self._events(window, repeats, is_cold=False)
            clock = f"CUDA events, {calls} calls, warm L2, with launch time"
            return Timing(tuple(t / calls for t in times), clock)
        # The launches are gone now: more calls may be needed to fill the window.
        replay = graph.replay
        replay()
        inside = float(np.median(self._events(replay, 3, is_cold=False)))
        if inside < SHORTEST_WINDOW:
            more = calls_in_window(inside / calls)
            again = self._captured(run, more)
            if again is not None:
                calls, replay = more, again.replay
        times = self._events(replay, repeats, is_cold=False)
        return Timing(tuple(t / calls for t in times), f"CUDA graph of {calls} calls, warm L2")

    def _events(self, run: Run, repeats: int, is_cold: bool) -> list[float]:
        starts, ends = (
            [torch.cuda.Event(enable_timing=True) for _ in range(repeats)] for _ in range(2)
        )
        for start, end in zip(starts, ends, strict=True):
            if is_cold:
                self._flush.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize(self._device)
        return [s.elapsed_time(e) * 1e-3 for s, e in zip(starts, ends, strict=True)]

    def _captured(self, run: Run, calls: int) -> torch.cuda.CUDAGraph | None:
        """None where the run cannot be captured: it waits for the host or allocates by itself."""
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream(self._device).wait_stream(side)
        try:
            with torch.cuda.graph(graph):
                for _ in range(calls):
                    run()
        except RuntimeError:
            torch.cuda.synchronize(self._device)
            return None
        return graph


def seconds_of(run: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Time of one call until the device has finished, and what it returned."""
    started = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, result
