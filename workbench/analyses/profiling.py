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
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from kernels import scan_order
from models import complexity, with_scan
from models.layers import PatchMerging
from workbench.analyses.clocks import Clocks, Lap
from workbench.analyses.gate import compare_with_reference
from workbench.analyses.maps import stage_shape
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
    gate = compare_with_reference(model, pixels, token)

    clocks = Clocks(device)
    twin = with_scan(model, model.scan_spec)
    try:
        clocks.watch(twin)
        for i in range(WARMUP):
            yield pace.at(1 + i, "warming up")
            token.check()
            clocks.plain(model, pixels)
            clocks.run(twin, pixels)
        plain: list[float] = []
        watched: list[Lap] = []
        began = time.perf_counter()
        for i in range(repeats):
            if i >= MIN_REPEATS and time.perf_counter() - began > BUDGET_S:
                break
            yield pace.at(1 + WARMUP + i, f"timing forward passes ({i} of {repeats})")
            token.check()
            plain.append(clocks.plain(model, pixels))
            watched.append(clocks.run(twin, pixels))
    finally:
        clocks.remove()
    yield pace.at(1 + WARMUP + repeats, "listing the operators")
    token.check()
    ops = _operator_table(model, pixels)
    p20, p50, p80 = np.percentile(plain, [20, 50, 80])
    # The fastest of both kinds: on a busy machine medians differ by more than the marks cost.
    overhead = min(lap.total for lap in watched) - min(plain)
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
        clock=(
            f"{clocks.name}; the marks at the blocks add {max(overhead, 0.0):.2f} ms to their own "
            "passes, nothing to the total"
        ),
        note=gate.note,
    )


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
