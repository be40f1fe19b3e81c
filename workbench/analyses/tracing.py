"""Records a trace of torch.profiler (Chrome trace format) of what a network really runs.

Modules are marked by wrapping `forward` on a twin, not by hooks: a hook on a part makes a block of
this network take its plain path, and the trace would be of something else.
"""

from __future__ import annotations

import copy
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from models import EfficientVMamba, with_scan
from models.layers import ES2D, ChannelGate, SqueezeExcite
from models.scan_share import wait
from workbench.analyses.maps import stage_shape
from workbench.errors import BadInputError
from workbench.progress import CancelToken, Pace, Progress

PASSES = ("forward", "train")
MAX_STEPS = 50
MODULE = "module:"  # mark of a module: "module:<path>|<class>"
STEP = "ProfilerStep#"  # and the number of a step, from 0; TensorBoard knows this name

# torch's tracer otherwise writes to stderr at every start, and an error on every machine without a
# GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def record_trace(
    model: EfficientVMamba,
    pixels: Tensor,
    *,
    passes: str,
    steps: int,
    path: Path,
    token: CancelToken | None = None,
) -> Iterator[Progress | Path]:
    """Record `steps` passes over normalised `pixels` `[B, 3, H, W]`; the last item is `path`.

    `passes`: "forward" (eval mode, no gradients) or "train" (forward, cross-entropy, backward in
    training mode, on a copy of the weights). The file is a gzipped Chrome trace, whatever its
    name. Stopped or failed, nothing is written. `model` is never changed.

    All steps run between two items, because torch has one profiler for the whole process: another
    session's would end ours while this generator is paused. `token` is asked before every step.
    """
    _check(model, pixels, passes, steps)
    token = token or CancelToken()
    pace = Pace(steps + 2)
    yield pace.at(0, "warming up")
    token.check()
    network, run = _runner(model, pixels, passes)
    run()
    if passes == "train":
        network.zero_grad()  # else the trace frees what it never saw allocated
    yield pace.at(1, f"recording {steps} step{'s' if steps > 1 else ''}")
    token.check()
    facts = {
        "passes": passes,
        "steps": steps,
        "scan": str(model.scan_spec),
        "input": list(pixels.shape),
    }
    # torch compresses by the name's end; the file gets its own name when it is whole.
    part = path.with_name(f".{uuid.uuid4().hex}.json.gz")
    try:
        with marked(network), profiler(pixels.device, profile_memory=True) as trace:
            trace.add_metadata_json("workbench", json.dumps(facts))
            for k in range(steps):
                token.check()
                with record_function(f"{STEP}{k}"):
                    run()
        token.check()
        trace.export_chrome_trace(str(part))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    yield path


def batch_of(image: np.ndarray, n: int, device: torch.device) -> Tensor:
    """One normalised image `[3, H, W]` `n` times, `[n, 3, H, W]`."""
    return torch.from_numpy(image)[None].to(device).expand(n, -1, -1, -1).contiguous()


def profiler(device: torch.device, *, profile_memory: bool = False) -> profile:
    """torch's profiler of the CPU and, on a GPU, of the GPU; shapes and stacks are not recorded."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities, record_shapes=False, profile_memory=profile_memory)


def module_marks(model: EfficientVMamba) -> dict[str, nn.Module]:
    """The modules that get a mark, by their path in the trace, parents first.

    "" is the network, "stages.S" a stage and "stages.S.blocks.B" a block (both from 0, the same
    for both kinds of stage), below a block its direct parts and those of its ES2D operator,
    "stages.S.downsample" the patch merging; stem and head keep their names.
    """
    found: dict[str, nn.Module] = {"": model}
    for name, child in model.patch_embed.named_children():
        found[f"patch_embed.{name}"] = child
    for s, stage in enumerate(model.stages()):
        found[f"stages.{s}"] = stage
        for b, (_, block) in enumerate(stage.named_blocks()):
            path = f"stages.{s}.blocks.{b}"
            found[path] = block
            for name, child in block.named_children():
                found[f"{path}.{name}"] = child
                if isinstance(child, ES2D):
                    found |= {f"{path}.{name}.{n}": part for n, part in child.named_children()}
        merging = stage.merging()
        if merging is not None:
            found[f"stages.{s}.downsample"] = merging
    for name, child in model.classifier.named_children():
        found[f"classifier.{name}"] = child
    return found


@contextmanager
def marked(model: EfficientVMamba) -> Iterator[None]:
    """Within the block every call of a marked module is a `record_function` of its path and class.

    `model` must be the caller's own twin or copy. What it computes, and by which operators, stays
    the same.
    """
    wrapped: list[tuple[nn.Module, str]] = []
    try:
        for path, module in module_marks(model).items():
            label = f"{MODULE}{path}|{type(module).__name__}"
            # A gate's factors are taken without calling the gate where the product is fused.
            methods = ["forward"]
            if isinstance(module, ChannelGate | SqueezeExcite):
                methods.append("gate")
            is_open = [False]
            for method in methods:
                call = _marking(getattr(module, method), label, is_open)
                module.__dict__[method] = call
                wrapped.append((module, method))
        yield
    finally:
        for module, method in wrapped:
            del module.__dict__[method]


def _marking(call: Callable[..., Any], label: str, is_open: list[bool]) -> Callable[..., Any]:
    """`call` inside a mark, once where the marked methods of a module call one another."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if is_open[0]:
            return call(*args, **kwargs)
        is_open[0] = True
        try:
            with record_function(label):
                return call(*args, **kwargs)
        finally:
            is_open[0] = False

    return run


def unlisted_note(model: EfficientVMamba, listed: Iterable[str]) -> str:
    """Which modules have no row although they work, in words; "" if all have one.

    `listed`: the paths of a recorded trace's modules (`ModuleRow.path`).
    """
    known = set(listed)
    parts: dict[tuple[str, str], list[str]] = {}  # (name, parent's class) -> paths
    marks = module_marks(model)
    for path in marks:
        if path not in known:
            parent, _, name = path.rpartition(".")
            kind = type(marks[parent]).__name__ if parent in marks else parent
            parts.setdefault((name, kind), []).append(path)
    if not parts:
        return ""
    words = [f"{name} of {kind} ({len(paths)})" for (name, kind), paths in sorted(parts.items())]
    return (
        f"No row of their own, because they run fused with their neighbours: {', '.join(words)}. "
        "Their time is in the module around them."
    )


def _runner(
    model: EfficientVMamba, pixels: Tensor, passes: str
) -> tuple[EfficientVMamba, Callable[[], None]]:
    """A network of its own, and one pass of it until the device has finished."""
    twin = with_scan(model, model.scan_spec)
    if passes == "forward":
        twin.eval()

        def forward() -> None:
            with torch.no_grad():
                twin(pixels)
            wait(pixels.device)

        return twin, forward
    network = copy.deepcopy(twin).requires_grad_(True).train()
    return network, training_pass(network, pixels)


def training_pass(network: nn.Module, pixels: Tensor) -> Callable[[], None]:
    """Forward, cross-entropy with made-up labels and backward, gradients from nothing.

    The weights stay what they are: there is no optimiser.
    """

    def run() -> None:
        network.zero_grad(set_to_none=True)
        with torch.enable_grad():
            logits = network(pixels)
            labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
            F.cross_entropy(logits.float(), labels).backward()
        wait(pixels.device)

    return run


def check_passes(passes: str) -> None:
    if passes not in PASSES:
        raise BadInputError(
            f"There are no passes {passes[:60]!r}. Choose one of: {', '.join(PASSES)}."
        )


def check_batch_norm(model: EfficientVMamba, pixels: Tensor) -> None:
    """Training needs more than one token for the statistics of the last stage."""
    batch, _, height, width = pixels.shape
    rows, columns, _ = stage_shape(model, len(model.dims), height, width)
    if batch * rows * columns == 1:
        raise BadInputError(
            f"One image of {height} x {width} px leaves one token in the last stage, and batch "
            "norm cannot train on one value. Take a larger input or two images."
        )


def _check(model: EfficientVMamba, pixels: Tensor, passes: str, steps: int) -> None:
    check_passes(passes)
    if not 1 <= steps <= MAX_STEPS:
        raise BadInputError(
            f"{steps} steps cannot be recorded; allowed are 1 to {MAX_STEPS}. A few are enough: "
            "every step shows the same operators."
        )
    if passes == "train":
        check_batch_norm(model, pixels)
