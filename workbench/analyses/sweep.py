"""Times of a network, or of its first scan, along one axis, for two scans side by side.

Every point is compared with the float32 reference first and then timed, the lines of a point in
turns. A result comes after every point, so Stop keeps what was measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from kernels import ScanSpec
from kernels._bench.timing import calls_in_window
from workbench.analyses.clocks import Clocks
from workbench.analyses.environment import available_bytes, environment
from workbench.analyses.sweep_request import (
    AXES,
    SweepRequest,
    check_request,
    checked_value,
    request_parameters,
    value_words,
)
from workbench.analyses.sweep_subject import (
    Make,
    Setting,
    Subject,
    WrongOutputError,
    build,
    gate_size,
    peak_bytes,
    scan_work,
)
from workbench.errors import CancelledError, WorkbenchError
from workbench.profiler_results import SweepFit, SweepPoint, SweepResult
from workbench.progress import CancelToken, Pace, Progress
from workbench.results import Provenance

WARMUP = 2  # calls that do not count
# A point stops early after FEW_REPEATS once BUDGET_S have passed, after MIN_REPEATS once four
# times as much has.
BUDGET_S = 1.2
FEW_REPEATS = 5
MIN_REPEATS = 3
# A call that is expected to take longer, or more of the free memory, is not tried.
LONGEST_CALL_S = 10.0
MEMORY_SHARE = 0.7
PROBE_SIZE = 64  # pixels of the small call from which the first point's cost is estimated
N_BOOTSTRAP = 2000
YIELD_S = 0.25
# What a point may fail with and the sweep goes on: memory, types, shapes, a backend's own refusal.
PROBLEMS = (RuntimeError, ValueError, TypeError, MemoryError, WorkbenchError)

WORDS = {
    "model": "one pass of the whole network",
    "scan": "one scan (gather, projections, S6, merge) of the network's first block, on the input "
    "that it gets",
    "forward": "without gradients",
    "train": "forward and backward",
}


class _Cost(NamedTuple):
    """What one call took: `work` in input pixels of all images."""

    work: int
    seconds: float
    n_bytes: float


@dataclass
class _Line:
    """One line at one value, while it is measured."""

    series: str
    setting: Setting
    backend: str  # that was asked for, then the one that runs
    subject: Subject | None = None
    tokens: int = 0
    depth: int = 0
    status: str = ""
    error: float = math.nan
    peak: float = math.nan
    n_calls: int = 1  # in one window of the clock
    samples: list[float] = field(default_factory=list)


def sweep(
    request: SweepRequest,
    make: Make,
    *,
    device: torch.device,
    backend: str = "auto",
    provenance: Provenance,
    token: CancelToken | None = None,
) -> Iterator[Progress | SweepResult]:
    """Measure along the axis; a growing result after every value, the last one `is_final`.

    `make(model, scan)` gives a network in float32; it is never changed. `backend` runs the scans
    unless the axis is "backend". A point that is wrong, too large or not possible here has its
    reason as status, and the sweep goes on.
    """
    request = check_request(request)
    checked_value("backend", backend, "auto")
    token = token or CancelToken()
    assert request.values is not None
    axis = AXES[request.axis]
    started = time.perf_counter()
    run = _Run(request, make, device, token)
    card = environment(device, backend)
    points: list[SweepPoint] = []

    def result(is_final: bool) -> SweepResult:
        ran = dict.fromkeys(p.backend for p in points if p.is_measured)
        return SweepResult(
            provenance=replace(
                provenance,
                definition=definition(request),
                parameters={
                    **provenance.parameters,
                    **request_parameters(request),
                    "warmup": WARMUP,
                },
                backend=", ".join(ran) or backend,
                seconds=time.perf_counter() - started,
            ),
            subject=request.subject,
            axis=request.axis,
            axis_label=axis.label,
            is_numeric=axis.is_numeric,
            passes=request.passes,
            series=tuple(dict.fromkeys(p.series for p in points)),
            points=tuple(points),
            fits=fits(points) if axis.is_numeric else (),
            environment=card,
            clock=run.clock,
            is_final=is_final,
            note=run.note,
        )

    for i, value in enumerate(request.values):
        lines = lines_at(request, value, backend)
        yield from run.measure(lines, i, value_words(request.axis, value))
        points += [_point(line, request.axis, i, value) for line in lines]
        yield result(i + 1 == len(request.values))


def definition(request: SweepRequest) -> str:
    return (
        f"time of {WORDS[request.subject]}, {WORDS[request.passes]}, on seeded noise; p20/p50/p80 "
        f"over up to {request.repeats} calls of each line in turns after {WARMUP} that do not "
        "count; error: relative L2 distance from the float32 reference, of gradients too where "
        "there are some"
    )


def lines_at(request: SweepRequest, value: Any, backend: str) -> list[_Line]:
    """The settings that are compared at one value of the axis."""
    base = Setting(
        subject=request.subject,
        passes=request.passes,
        model=request.model,
        scan=request.scans[0],
        size=request.size,
        batch=request.batch,
        dtype=request.dtype,
        backend=backend,
    )
    if request.axis == "step":
        stepped = replace(base, scan=str(ScanSpec("es2d", {"step": value})))
        named = {"es2d": stepped, "ss2d": replace(base, scan="ss2d")}
    elif request.axis == "scan":
        named = {"scan": replace(base, scan=value)}
    else:
        at = replace(base, **{request.axis: value})
        named = {scan: replace(at, scan=scan) for scan in request.scans}
    return [_Line(series, setting, setting.backend) for series, setting in named.items()]


class _Run:
    """What a sweep learns on its way: errors of settings compared before, costs of calls."""

    def __init__(
        self, request: SweepRequest, make: Make, device: torch.device, token: CancelToken
    ) -> None:
        assert request.values is not None
        self._repeats = request.repeats
        self._make = make
        self._device = device
        self._token = token
        self._errors: dict[Setting, float] = {}
        self._costs: dict[Setting, list[_Cost]] = {}
        self._smaller: set[int] = set()  # sizes that were compared on a smaller input
        self._n_early = 0
        self._pace = Pace(len(request.values) * (4 + request.repeats))

    @property
    def clock(self) -> str:
        return f"{Clocks(self._device).name}, taking turns"

    @property
    def note(self) -> str:
        notes = []
        if self._smaller:
            sizes = ", ".join(str(size) for size in sorted(self._smaller))
            notes.append(
                f"The networks of {sizes} px were compared with the reference on smaller inputs: "
                "it takes its steps one by one and would be slow."
            )
        if self._n_early:
            points = "point has" if self._n_early == 1 else "points have"
            notes.append(f"{self._n_early} {points} fewer repeats, because a call takes long.")
        return " ".join(notes)

    def measure(self, lines: list[_Line], i: int, words: str) -> Iterator[Progress]:
        """Fill in all lines of the `i`-th value."""
        first = i * (4 + self._repeats)
        for k, line in enumerate(lines):
            yield self._at(first + k, f"comparing {words} with the reference")
            self._try(line, self._compare)
        for k, line in enumerate(lines):
            yield self._at(first + 2 + k, f"warming up, {words}")
            self._try(line, self._warm)
        running = [line for line in lines if line.status == ""]
        began = shown = time.perf_counter()
        n = 0
        for n in range(self._repeats if running else 0):
            spent = time.perf_counter() - began
            if (n >= FEW_REPEATS and spent > BUDGET_S) or (
                n >= MIN_REPEATS and spent > 4 * BUDGET_S
            ):
                self._n_early += 1
                break
            # The lines change places, so that none always runs after the same other.
            for line in running if n % 2 == 0 else running[::-1]:
                if time.perf_counter() - shown > YIELD_S:
                    yield self._at(first + 4 + n, f"timing {words} ({n} of {self._repeats})")
                    shown = time.perf_counter()
                self._token.check()
                if line.status == "":
                    self._try(line, self._sample)
        for line in lines:
            line.subject = None  # its memory
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _at(self, done: int, what: str) -> Progress:
        return self._pace.at(done, what)

    def _try(self, line: _Line, what: Callable[[_Line], None]) -> None:
        """Do one part of the work; what goes wrong becomes the line's status."""
        self._token.check()
        if line.status:
            return
        try:
            what(line)
        except CancelledError:
            raise
        except PROBLEMS as problem:
            line.status = status_of(problem)
            line.subject = None
            if isinstance(problem, WrongOutputError):
                line.error = problem.distance

    def _compare(self, line: _Line) -> None:
        setting = key = line.setting
        shared = self._make(setting.model, setting.scan)
        line.tokens, line.depth = scan_work(shared, setting)
        self._check_affordable(line)
        line.subject = subject = build(setting, self._make, self._device)
        line.backend = subject.backend
        if setting.subject == "model":
            # Above some size all are compared at the same smaller one.
            size = gate_size(shared, setting.scan, setting.size, setting.batch)
            if size != setting.size:
                self._smaller.add(setting.size)
                key = replace(setting, size=size)
        if key not in self._errors:
            self._errors[key] = subject.compare(self._token)
        line.error = self._errors[key]

    def _check_affordable(self, line: _Line) -> None:
        """Raise in words if a call would take too long or too much memory, by smaller calls."""
        setting = line.setting
        known = self._costs.setdefault(setting.line, [])
        work = _work(setting)
        if not known and work > 2 * PROBE_SIZE**2:
            small = build(replace(setting, size=PROBE_SIZE, batch=1), self._make, self._device)
            known.append(self._cost(small))
        if not known:
            return
        nearest = min(known, key=lambda cost: abs(math.log(work / cost.work)))
        ratio = work / nearest.work
        if nearest.seconds * ratio > LONGEST_CALL_S:
            raise ValueError(f"not run: one call would take about {nearest.seconds * ratio:.0f} s")
        free = available_bytes(self._device)
        n_bytes = nearest.n_bytes * ratio
        if free is not None and n_bytes > MEMORY_SHARE * free:
            raise ValueError(
                f"not run: a call would take about {n_bytes / 2**30:.1f} GiB, "
                f"{free / 2**30:.1f} GiB are free"
            )

    def _cost(self, subject: Subject) -> _Cost:
        """Time and memory of one call, after calls that compile what there is to compile."""
        for _ in range(WARMUP - 1):
            subject.run()
        n_bytes = peak_bytes(subject)
        clocks = Clocks(subject.device)
        return _Cost(_work(subject.setting), _window(subject, clocks, 1) / 1e3, n_bytes)

    def _warm(self, line: _Line) -> None:
        assert line.subject is not None
        cost = self._cost(line.subject)
        self._costs[line.setting.line].append(cost)
        line.peak = cost.n_bytes
        if line.subject.device.type == "cuda":
            line.n_calls = calls_in_window(cost.seconds)

    def _sample(self, line: _Line) -> None:
        assert line.subject is not None
        clocks = Clocks(line.subject.device)
        line.samples.append(_window(line.subject, clocks, line.n_calls))


def _window(subject: Subject, clocks: Clocks, n_calls: int) -> float:
    """Milliseconds of one call, from `n_calls` one after the other."""
    is_cuda = subject.device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(subject.device)
    first = clocks.now()
    for _ in range(n_calls):
        subject.run()
    last = clocks.now()
    if is_cuda:
        torch.cuda.synchronize(subject.device)
    return clocks.ms(first, last) / n_calls


def _work(setting: Setting) -> int:
    return setting.batch * setting.size**2


def status_of(problem: BaseException) -> str:
    """Why a point was not measured, in one line."""
    text = (str(problem).strip() or type(problem).__name__).splitlines()[0][:300]
    if isinstance(problem, torch.OutOfMemoryError):
        return "not run: the GPU has not enough memory"
    if isinstance(problem, MemoryError) or "can't allocate memory" in text:
        return "not run: the machine has not enough memory"
    return text if text.startswith(("not run", "wrong")) else f"not run: {text}"


def _point(line: _Line, axis: str, i: int, value: Any) -> SweepPoint:
    setting, nan = line.setting, math.nan
    is_measured = line.status == "" and bool(line.samples)
    samples = np.array(line.samples if is_measured else [], dtype=np.float64)
    p20, p50, p80 = (
        (float(p) for p in np.percentile(samples, [20, 50, 80])) if is_measured else (nan,) * 3
    )
    return SweepPoint(
        series=line.series,
        x=float(value) if AXES[axis].is_numeric else float(i),
        label=value_words(axis, value),
        model=setting.model,
        scan=setting.scan,
        size=setting.size,
        batch=setting.batch,
        dtype=setting.dtype,
        backend=line.backend,
        status=line.status,
        samples_ms=samples,
        p20_ms=p20,
        p50_ms=p50,
        p80_ms=p80,
        images_per_second=1e3 * setting.batch / p50 if is_measured else nan,
        peak_bytes=line.peak if is_measured else nan,
        error=line.error,
        tokens=line.tokens,
        depth=line.depth,
    )


def fits(points: list[SweepPoint]) -> tuple[SweepFit, ...]:
    """Slope of each line with three measured points or more, with a bootstrap interval.

    Every draw takes each point's samples anew, with replacement, and fits their medians.
    """
    found = []
    for series in dict.fromkeys(p.series for p in points):
        line = [p for p in points if p.series == series and p.is_measured]
        if len({p.x for p in line}) < 3:
            continue
        rng = np.random.default_rng(0)
        xs = np.log([p.x for p in line])
        weights = (xs - xs.mean()) / ((xs - xs.mean()) ** 2).sum()
        slope = float(weights @ np.log([p.p50_ms for p in line]))
        drawn = np.zeros(N_BOOTSTRAP)
        for weight, point in zip(weights, line, strict=True):
            n = point.samples_ms.size
            again = point.samples_ms[rng.integers(n, size=(N_BOOTSTRAP, n))]
            drawn += weight * np.log(np.median(again, axis=1))
        low, high = (float(v) for v in np.percentile(drawn, [2.5, 97.5]))
        found.append(SweepFit(series=series, slope=slope, low=low, high=high, n_points=len(line)))
    return tuple(found)
