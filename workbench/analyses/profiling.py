"""Where the time of one forward pass goes; measured only after the output agreed with the
reference.

Four parts, each yielded as progress: correctness gate, warm-up, repeats, operator table. Every
repeat is one plain pass (the latency) and one pass with clocks at the borders of blocks and scans
(the shares), so the clocks' own cost is measured too and stated.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from kernels import scan_order
from models import complexity, with_scan
from models.layers import PatchMerging, Scan2d
from workbench.analyses.checks import explain_non_finite
from workbench.analyses.maps import stage_shape
from workbench.errors import BadInputError
from workbench.progress import CancelToken, Pace, Progress
from workbench.results import BlockTime, OpTime, ProfileResult, Provenance

DEFINITION = (
    "wall time of one forward pass on one photo (it does not depend on which), batch 1, eval mode, "
    "no gradients; p20/p50/p80 over the repeats; block times are medians of a second set of passes "
    "with clocks at the block borders"
)
WARMUP = 2
REPEATS = 12
# A slow network or a busy machine gets fewer repeats, never fewer than MIN_REPEATS.
MIN_REPEATS = 5
BUDGET_S = 2.5
TRACED = 2  # forward passes under torch.profiler
N_OPS = 24
# Relative L2 distance from the reference backend; float32 rounding stays below 1e-5.
TOLERANCE = 1e-4
# The reference takes its steps one by one, about 0.2 ms each; beyond this many the gate uses a
# smaller input.
MAX_REFERENCE_STEPS = 8_000

# torch's tracer otherwise writes to stderr at every start, and an error on every machine without a
# GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def profile_forward(
    model: Any,
    image: np.ndarray,
    *,
    provenance: Provenance,
    token: CancelToken | None = None,
    repeats: int = REPEATS,
) -> Iterator[Progress | ProfileResult]:
    """Profile `model` on one normalised `[3, H, W]` image; the last item is the result.

    Between two items the device is free and no hook or torch mode of ours is active on `model`: the
    clocks sit on a twin that shares its weights.
    """
    started = time.perf_counter()
    token = token or CancelToken()
    pace = Pace(2 + WARMUP + repeats)
    height, width = image.shape[-2:]
    device = next(model.parameters()).device
    pixels = torch.from_numpy(image)[None].to(device)
    yield pace.at(0, "comparing with the reference")
    token.check()
    gate = _gate(model, pixels)

    clocks = Clocks(device)
    twin = with_scan(model, model.scan_spec)
    try:
        clocks.watch(twin)
        for i in range(WARMUP):
            yield pace.at(1 + i, "warming up")
            token.check()
            _timed(model, pixels, clocks)
            clocks.run(twin, pixels)
        plain: list[float] = []
        watched: list[Lap] = []
        began = time.perf_counter()
        for i in range(repeats):
            if i >= MIN_REPEATS and time.perf_counter() - began > BUDGET_S:
                break
            yield pace.at(1 + WARMUP + i, f"timing forward passes ({i} of {repeats})")
            token.check()
            plain.append(_timed(model, pixels, clocks))
            watched.append(clocks.run(twin, pixels))
    finally:
        clocks.remove()
    yield pace.at(1 + WARMUP + repeats, "listing the operators")
    token.check()
    ops = _operator_table(model, pixels)
    p20, p50, p80 = np.percentile(plain, [20, 50, 80])
    overhead = float(np.median([lap.total for lap in watched])) - float(p50)
    orders = [
        scan_order(model.scan_spec, *stage_shape(model, block.stage, height, width)[:2])
        for block in model.blocks()
        if block.has_scan
    ]
    costs = complexity(model, (height, width))
    yield ProfileResult(
        provenance=replace(
            provenance,
            definition=DEFINITION,
            parameters={
                **provenance.parameters,
                "batch": 1,
                "warmup": WARMUP,
                "repeats": len(plain),
            },
            seconds=time.perf_counter() - started,
        ),
        batch=1,
        warmup=WARMUP,
        repeats=len(plain),
        p20_ms=float(p20),
        p50_ms=float(p50),
        p80_ms=float(p80),
        blocks=_block_times(model, watched),
        ops=ops,
        max_abs_error=gate.max_abs,
        is_correct=gate.is_correct,
        macs=float(costs.macs),
        n_parameters=int(costs.n_parameters),
        scan_tokens=sum(order.index.size for order in orders),
        scan_depth=max((order.length for order in orders), default=0),
        clock=f"{clocks.name}; the clocks inside add {max(overhead, 0.0):.2f} ms, not in the total",
        note=gate.note,
    )


@dataclass(frozen=True)
class Gate:
    """Distance from the reference backend on the same input."""

    max_abs: float  # of the logits
    is_correct: bool
    note: str  # what a reader must know


def _gate(model: Any, pixels: torch.Tensor) -> Gate:
    """Compare the logits, and every scan's output on the very input that the reference got.

    The logits alone would forgive too much: a layer norm follows each scan and hides its scale.
    """
    notes = []
    height, width = pixels.shape[-2:]
    size = _gate_size(model, height, width)
    if size != (height, width):
        notes.append(
            f"Compared with the reference at {size[0]} x {size[1]} px, not {height} x {width}: the "
            "reference takes its steps one by one and would be slow."
        )
        pixels = torch.nn.functional.interpolate(pixels, size=size, mode="area")
    reference = with_scan(model, model.scan_spec)
    distances: dict[str, float] = {}
    handles = []
    for name, module in reference.named_modules():
        if isinstance(module, Scan2d):
            module.backend = "reference"

            def compare(_: Any, inputs: Any, expected: torch.Tensor, name: str = name) -> None:
                given = model.get_submodule(name)(*inputs)
                distances[name] = _relative(given, expected)

            handles.append(module.register_forward_hook(compare))
    try:
        with torch.no_grad(), _one_thread():
            given, expected = model(pixels)[0], reference(pixels)[0]
    finally:
        for handle in handles:
            handle.remove()
    if not torch.isfinite(expected).all():
        raise BadInputError(explain_non_finite(model, "the logits"))
    for name, distance in distances.items():
        if not distance < TOLERANCE:
            notes.append(
                f"The output of {name} differs from the reference by {distance:.1e} (relative); "
                f"at most {TOLERANCE:.0e} is rounding."
            )
    distances["logits"] = _relative(given, expected)
    return Gate(
        float((given - expected).abs().max()),
        all(distance < TOLERANCE for distance in distances.values()),
        " ".join(notes),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread for the block: the reference's thousands of small steps only wait for more.

    Measured on two busy cores: 1.8 s of processor time instead of 29 s.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _relative(given: torch.Tensor, expected: torch.Tensor) -> float:
    """L2 distance over the L2 norm of `expected`."""
    given, expected = given.double(), expected.double()
    return float((given - expected).norm() / expected.norm().clamp_min(1e-30))


def _reference_steps(model: Any, height: int, width: int) -> int:
    return sum(
        scan_order(model.scan_spec, *stage_shape(model, block.stage, height, width)[:2]).length
        for block in model.blocks()
        if block.has_scan
    )


def _gate_size(model: Any, height: int, width: int) -> tuple[int, int]:
    """The input's size, or the largest smaller one of the same proportions that the reference can
    afford.

    Sides stay congruent modulo 64, so every stage keeps the parity of its map and pads stay pads.
    """
    found = (height, width)
    while _reference_steps(model, *found) > MAX_REFERENCE_STEPS:
        smaller = (_shrink(found[0]), _shrink(found[1]))
        if smaller == found:
            break
        found = smaller
    return found


def _shrink(side: int) -> int:
    """About three quarters of `side`, congruent to it modulo 64, at least 32 px."""
    target = max(side * 3 // 4, 32)
    smaller = side - -(-(side - target) // 64) * 64
    return smaller if smaller >= 32 else side


@dataclass
class Lap:
    """One pass with clocks: milliseconds between consecutive marks."""

    total: float
    spans: dict[tuple[str, str], float]  # ("block" | "scan", module path) -> ms
    before: dict[str, float]  # module path -> ms between the block before it (or the start) and it
    after_last: float


@dataclass
class Clocks:
    """Hooks that note the time at the borders of blocks and scans of one network."""

    device: torch.device
    handles: list[Any] = field(default_factory=list)
    marks: list[tuple[str, str, bool, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "CUDA events" if self.device.type == "cuda" else "time.perf_counter"

    def now(self) -> Any:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    def ms(self, start: Any, end: Any) -> float:
        if self.device.type == "cuda":
            return start.elapsed_time(end)
        return (end - start) * 1e3

    def watch(self, model: Any) -> None:
        for block in model.blocks():
            module = model.get_submodule(block.name)
            self._hook(module, "block", block.name)
            for part in module.modules():
                if isinstance(part, Scan2d):
                    self._hook(part, "scan", block.name)

    def _hook(self, module: torch.nn.Module, kind: str, name: str) -> None:
        def start(*_: Any) -> None:
            self.marks.append((kind, name, True, self.now()))

        def end(*_: Any) -> None:
            self.marks.append((kind, name, False, self.now()))

        self.handles.append(module.register_forward_pre_hook(start))
        self.handles.append(module.register_forward_hook(end))

    def remove(self) -> None:
        while self.handles:
            self.handles.pop().remove()

    def run(self, model: Any, pixels: torch.Tensor) -> Lap:
        """One forward pass with the clocks on; hooks must have been set by `watch`."""
        self.marks.clear()
        self._synchronise()
        with torch.no_grad():
            first = self.now()
            model(pixels)
            last = self.now()
        self._synchronise()
        spans: dict[tuple[str, str], float] = {}
        before: dict[str, float] = {}
        started: dict[tuple[str, str], Any] = {}
        border = first
        for kind, name, is_start, at in self.marks:
            if is_start:
                started[kind, name] = at
                if kind == "block":
                    before[name] = self.ms(border, at)
            else:
                spans[kind, name] = self.ms(started[kind, name], at)
                if kind == "block":
                    border = at
        return Lap(self.ms(first, last), spans, before, self.ms(border, last))

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _timed(model: Any, pixels: torch.Tensor, clocks: Clocks) -> float:
    """Milliseconds of one pass without any hook."""
    clocks._synchronise()
    with torch.no_grad():
        first = clocks.now()
        model(pixels)
        last = clocks.now()
    clocks._synchronise()
    return clocks.ms(first, last)


def _block_times(model: Any, laps: list[Lap]) -> tuple[BlockTime, ...]:
    """Medians over the laps, in the order in which the parts run: stem, blocks, merging, head."""
    merging = {
        name.split(".")[1]: name
        for name, module in model.named_modules()
        if isinstance(module, PatchMerging)
    }
    found: list[BlockTime] = []
    blocks = model.blocks()
    for i, block in enumerate(blocks):
        gap = float(np.median([lap.before[block.name] for lap in laps]))
        if i == 0:
            found.append(_time(0, 0, "patch_embed", "stem", gap))
        elif block.stage != blocks[i - 1].stage:
            stage = blocks[i - 1].stage
            found.append(_time(stage, 0, merging[str(stage - 1)], "downsample", gap))
        whole = float(np.median([lap.spans["block", block.name] for lap in laps]))
        scan = float(np.median([lap.spans.get(("scan", block.name), 0.0) for lap in laps]))
        found.append(_time(block.stage, block.block, block.name, block.kind, whole, scan))
    head = float(np.median([lap.after_last for lap in laps]))
    found.append(_time(5, 0, "classifier", "head", head))
    return tuple(found)


def _time(
    stage: int, block: int, name: str, kind: str, p50_ms: float, scan_ms: float = 0.0
) -> BlockTime:
    return BlockTime(stage=stage, block=block, name=name, kind=kind, p50_ms=p50_ms, scan_ms=scan_ms)


def _operator_table(model: Any, pixels: torch.Tensor) -> tuple[OpTime, ...]:
    """Operators by self time per forward pass, as torch.profiler counts them; largest first."""
    is_cuda = pixels.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with torch.no_grad(), profile(activities=activities, acc_events=True) as trace:
        for _ in range(TRACED):
            model(pixels)
    rows = []
    for event in trace.key_averages():
        micros = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        if micros > 0:
            rows.append((event.key, micros / 1e3 / TRACED, max(1, round(event.count / TRACED))))
    rows.sort(key=lambda row: -row[1])
    return tuple(
        OpTime(name=name, self_ms=float(self_ms), calls=calls)
        for name, self_ms, calls in rows[:N_OPS]
    )
