"""The cost grid, then with what this machine reaches: its ceilings and the scans of two schemes.

The scan of a stage is measured alone, its projections given, as the cost model counts it. Each is
compared with the float64 reference first, then all are timed in turns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np
import torch

from kernels import resolve_backend, scan_order
from kernels._bench.alone import AloneSizes, ScanAlone
from kernels._bench.timing import calls_in_window
from kernels.compiled import TARGETS
from kernels.cost import LAUNCH_S
from kernels.rates import measure
from kernels.scan_order import ScanOrder
from workbench.analyses.clocks import Clocks
from workbench.analyses.cost_grid import check_setting, map_side
from workbench.analyses.environment import available_bytes
from workbench.analyses.gate import one_thread
from workbench.analyses.sweep import PROBLEMS, status_of
from workbench.analyses.sweep_subject import DTYPES, TOLERANCES, WrongOutputError
from workbench.device import device_label
from workbench.errors import CancelledError
from workbench.floors import position
from workbench.kernel_results import CostGrid, MeasuredScan, Rates, RooflineResult
from workbench.progress import CancelToken, Pace, Progress

REPEATS = 15
# Timing ends early once so many seconds have passed, after FEW_REPEATS turns.
BUDGET_S = 1.5
FEW_REPEATS = 5
# A scan is compared on its own map where one image has at most so many steps in a sequence, else
# on a smaller one whose sides leave the same remainder by 56 (windows of 7, steps of 2, 4 and 8).
MAX_COMPARED_STEPS = 3_200
SMALLER_SIDE, SIDE_MODULUS = 28, 56
# A call that is expected to take longer, or more of the free memory, is not tried.
LONGEST_CALL_S = 3.0
MEMORY_SHARE = 0.6
YIELD_S = 0.25
CPU_NOTE = (
    "A CPU has no exp unit: exponentials are polynomials on the multiply-add units, and their "
    "ceiling is the rate measured here. The two ceilings share the hardware: no scan reaches both."
)


def machine_rates(device: torch.device) -> Rates:
    """Ceilings of the device that is here, measured once in a process and number of threads.

    About a second on a CPU; ValueError for a device that is neither a CPU nor CUDA.
    """
    return _machine_rates(device, torch.get_num_threads())


@lru_cache(maxsize=8)
def _machine_rates(device: torch.device, n_threads: int) -> Rates:
    del n_threads  # part of the key: the CPU's rates depend on it
    found = measure(device)
    is_gpu = device.type == "cuda"
    target = ""
    if is_gpu:
        facts = torch.cuda.get_device_properties(device)
        target = f"sm_{facts.major}{facts.minor}"
        if torch.version.hip:
            target = facts.gcnArchName.partition(":")[0]
    return Rates(
        device=device_label(device),
        kind="measured",
        memory_bytes_per_s=found.memory_bytes_per_s,
        fma_per_s=found.fma_per_s,
        exp_per_s=found.exp_per_s,
        launch_s=LAUNCH_S if is_gpu else 0.0,
        has_exp_unit=is_gpu,
        target=target if target in TARGETS else "",
        source=found.words,
        seconds=found.seconds,
    )


@dataclass
class _Point:
    """The scan of one stage for one scheme, while it is measured."""

    scan: str
    stage: int
    sizes: AloneSizes
    status: str = ""
    error: float = math.nan
    n_calls: int = 1
    samples: list[float] = field(default_factory=list)
    alone: ScanAlone | None = None


def roofline(
    grid: CostGrid,
    *,
    size: int,
    batch: int,
    dtype: str,
    passes: str,
    device: torch.device,
    backend: str,
    scans: tuple[str, str],
    token: CancelToken | None = None,
) -> Iterator[Progress | RooflineResult]:
    """The grid at once, then with this machine's rates, then with the measured scans of both.

    `passes` is "forward" or "train". `backend` may be "auto". The last result `is_final`. What
    cannot be measured says why in its `status`. BadInputError for what is not in the grid.
    """
    token = token or CancelToken()
    check_setting(batch, dtype, passes)
    started = time.perf_counter()
    points = [
        _Point(scan, stage, _sizes(grid, scan, stage, size, batch, dtype, passes))
        for scan in dict.fromkeys(scans)
        for stage in grid.stages
    ]
    yield RooflineResult(provenance=grid.provenance, grid=grid, measured=(), is_final=False)

    token.check()
    pace = Pace(1 + 2 * len(points) + REPEATS)
    yield pace.at(0, f"measuring what {device_label(device)} reaches")
    rates = machine_rates(device)
    others = tuple(known for known in grid.devices if known.kind != "measured")
    grid = replace(grid, devices=(*others, rates))
    if backend == "auto":
        backend, _ = resolve_backend(backend, device, DTYPES[dtype])

    def result(is_final: bool) -> RooflineResult:
        measured = tuple(_measured(p, size, batch, dtype, passes, rates.device, backend, clock)
                         for p in points) if is_final else ()  # fmt: skip
        return RooflineResult(
            provenance=replace(
                grid.provenance,
                device=rates.device,
                backend=backend,
                seconds=time.perf_counter() - started,
            ),
            grid=grid,
            measured=measured,
            is_final=is_final,
            note="" if rates.has_exp_unit else CPU_NOTE,
        )

    clock = f"{Clocks(device).name}, taking turns"
    yield result(is_final=False)
    for i, point in enumerate(points):
        words = f"{point.scan}, stage {point.stage}"
        yield pace.at(1 + 2 * i, f"comparing {words} with the reference")
        _attempt(point, token, partial(_compare, backend=backend, device=device, dtype=dtype))
        yield pace.at(2 + 2 * i, f"warming up, {words}")
        _attempt(point, token, _warm)
    yield from _time(points, pace, 1 + 2 * len(points), token)
    yield result(is_final=True)


def _sizes(
    grid: CostGrid, scan: str, stage: int, size: int, batch: int, dtype: str, passes: str
) -> AloneSizes:
    """What a point measures; BadInputError for what is not in the grid."""
    position("scheme", scan, grid.schemes)
    position("size", size, grid.sizes)
    side, at = map_side(size, stage), position("stage", stage, grid.stages)
    return AloneSizes(
        order=scan_order(scan, side, side),
        batch=batch,
        channels=grid.channels[at],
        rank=grid.ranks[at],
        states=grid.states,
        dtype=DTYPES[dtype],
        is_training=passes == "train",
    )


def _attempt(point: _Point, token: CancelToken, what: Callable[[_Point], None]) -> None:
    """Do one part of the work; what goes wrong becomes the point's status."""
    token.check()
    if point.status:
        return
    try:
        what(point)
    except CancelledError:
        raise
    except PROBLEMS as problem:
        point.status = status_of(problem)
        point.alone = None
        if isinstance(problem, WrongOutputError):
            point.error = problem.distance


def _compare(point: _Point, backend: str, device: torch.device, dtype: str) -> None:
    """Compare, on a smaller map where the reference would be slow; then make the real inputs."""
    sizes = point.sizes
    small = ScanAlone(replace(sizes, order=compared_order(sizes.order), batch=1), backend, device)
    small.regime = ScanAlone.regime_of(sizes, backend, device)
    with one_thread():
        point.error = small.compare()
    outputs, gradients = TOLERANCES[dtype]
    tolerance = gradients if sizes.is_training else outputs
    if not point.error <= tolerance:
        raise WrongOutputError("the scan", point.error, tolerance)
    _check_affordable(point, small)
    point.alone = ScanAlone(sizes, backend, device)


def compared_order(order: ScanOrder) -> ScanOrder:
    """The order, or that of its scheme on a smaller map: the reference goes step by step."""
    if order.length <= MAX_COMPARED_STEPS or order.spec is None:
        return order
    height, width = (_smaller(side) for side in (order.height, order.width))
    return scan_order(order.spec, height, width)


def _smaller(side: int) -> int:
    least = SMALLER_SIDE
    return side if side < least else least + (side - least) % SIDE_MODULUS


def _check_affordable(point: _Point, small: ScanAlone) -> None:
    """Raise in words if a call would take too long, by the smaller one, or too much memory."""
    sizes = point.sizes
    free = available_bytes(small.device)
    if free is not None and sizes.n_bytes > MEMORY_SHARE * free:
        raise ValueError(
            f"not run: a call would take about {sizes.n_bytes / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free"
        )
    seconds = _one_call(small) * sizes.n_states / small.sizes.n_states
    if seconds > LONGEST_CALL_S:
        raise ValueError(f"not run: one call would take about {seconds:.0f} s")


def _warm(point: _Point) -> None:
    assert point.alone is not None
    _one_call(point.alone)
    if point.alone.device.type == "cuda":
        point.n_calls = calls_in_window(_one_call(point.alone))


def _one_call(alone: ScanAlone) -> float:
    """Seconds of one call."""
    return _window(alone, 1) / 1e3


def _window(alone: ScanAlone, n_calls: int) -> float:
    """Milliseconds of one call, from `n_calls` one after the other."""
    device = alone.device
    clocks = Clocks(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    first = clocks.now()
    for _ in range(n_calls):
        alone.run()
    last = clocks.now()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clocks.ms(first, last) / n_calls


def _time(points: list[_Point], pace: Pace, first: int, token: CancelToken) -> Iterator[Progress]:
    """Take turns; every second turn backwards, so that none always runs after the same other."""
    began = shown = time.perf_counter()
    for n in range(REPEATS):
        if n >= FEW_REPEATS and time.perf_counter() - began > BUDGET_S:
            return
        for point in points if n % 2 == 0 else points[::-1]:
            if time.perf_counter() - shown > YIELD_S:
                yield pace.at(first + n, f"timing the scans ({n} of {REPEATS})")
                shown = time.perf_counter()
            _attempt(point, token, _sample)


def _sample(point: _Point) -> None:
    assert point.alone is not None
    point.samples.append(_window(point.alone, point.n_calls))


def _measured(
    point: _Point,
    size: int,
    batch: int,
    dtype: str,
    passes: str,
    device: str,
    backend: str,
    clock: str,
) -> MeasuredScan:
    is_measured = point.status == "" and bool(point.samples)
    samples = np.array(point.samples if is_measured else [], dtype=np.float64)
    p20, p50, p80 = np.percentile(samples, [20, 50, 80]).tolist() if is_measured else [math.nan] * 3
    return MeasuredScan(
        scan=point.scan,
        stage=point.stage,
        passes=passes,
        size=size,
        batch=batch,
        dtype=dtype,
        device=device,
        backend=backend,
        status=point.status,
        samples_ms=samples,
        p20_ms=p20,
        p50_ms=p50,
        p80_ms=p80,
        error=point.error,
        clock=clock,
    )
