"""Through which path of each EVSS block the evidence for a class came.

A block's output is a sum: residual + gated scan path + gated convolution path. With g the gradient
of the objective at that sum, `g * residual`, `g * scan` and `g * conv` are what each path
contributes to the first-order evidence `g * output`; being products with the same g they add up to
it exactly. Gates are part of their path's value here; g is the plain gradient.

A norm does not feel the length of its input (but for its eps), so the gradient at what a norm alone
reads is at right angles to it: after the last block of a stage, which only patch merging or the
head's norm reads, `g * output` is about 0 and the paths' evidence cancels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import BlockInfo, EfficientVMamba, with_scan
from models.layers import EVSSBlock
from workbench.analyses.attribution.targets import Target, resolve_target, target_fields
from workbench.analyses.checks import explain_non_finite
from workbench.errors import BadInputError
from workbench.progress import CancelToken
from workbench.results import EvidenceMaps, EvidenceResult, Provenance

# Relative to sum_c |g * output| of a token, in which nothing cancels, float32 rounding stays below
# 1e-6; more than this is a defect.
MAX_ERROR = 1e-4
# Below this share of its paths' summed size a block's total is called cancelled.
CANCELLED = 0.02


@dataclass(frozen=True)
class WatchedBlock:
    """An EVSS block that ran, and what went in and came out, `[1, H, W, C]`."""

    info: BlockInfo
    module: EVSSBlock
    stride: int  # input pixels per token
    input: Tensor
    output: Tensor


def evidence(
    model: Any,
    image: np.ndarray,
    classes: Sequence[str],
    *,
    target: int | None = None,
    contrast: int | None = None,
    provenance: Provenance,
    token: CancelToken | None = None,
) -> EvidenceResult:
    """Evidence per block, path and token for one normalised image `[3, H, W]`; `target` None: the
    most probable class. One forward and one backward pass."""
    started = time.perf_counter()
    if not isinstance(model, EfficientVMamba):
        raise BadInputError(
            f"{type(model).__name__} has no EVSS blocks, so no paths to tell apart. Choose an "
            "EfficientVMamba, or an attribution method that needs the input only."
        )
    # A twin on the same weights: hooks that are set here can never be seen by another session.
    twin = with_scan(model, model.scan_spec)
    weight = next(twin.parameters())
    pixels = torch.tensor(image)[None].to(weight.device, weight.dtype).requires_grad_(True)
    with torch.enable_grad(), watched_blocks(twin, token) as watched:
        logits = twin(pixels)[0]
        chosen = resolve_target(logits, target, contrast)
        if token is not None:
            token.check()
        gradients = torch.autograd.grad(
            chosen.of(logits[None])[0], [seen.output for seen in watched]
        )
    if not torch.isfinite(logits).all() or not all(torch.isfinite(g).all() for g in gradients):
        raise BadInputError(explain_non_finite(model, "the gradient of the evidence"))
    blocks = evidence_maps(watched, gradients, token)
    return EvidenceResult(
        provenance=replace(
            provenance,
            definition=definition_of(chosen),
            parameters={
                **provenance.parameters,
                "target": chosen.index,
                "contrast": chosen.contrast,
            },
            seconds=time.perf_counter() - started,
        ),
        **target_fields(chosen, logits, classes),
        blocks=blocks,
        note=_note(blocks),
    )


def definition_of(target: Target) -> str:
    return (
        f"sum over channels of g * path, with g the gradient of the {target.words} at the sum of "
        "an EVSS block; paths: gated scan, gated convolution, residual"
    )


@contextmanager
def watched_blocks(
    twin: EfficientVMamba, token: CancelToken | None
) -> Iterator[list[WatchedBlock]]:
    """The EVSS blocks of `twin`, each added to the list as it runs."""
    strides = [info["reduction"] for info in twin.feature_info]
    watched: list[WatchedBlock] = []
    hooks = []
    try:
        for info in twin.blocks():
            module = twin.get_submodule(info.name)
            if not isinstance(module, EVSSBlock):
                continue

            def keep(block: Any, inputs: Any, output: Tensor, info: BlockInfo = info) -> None:
                if token is not None:
                    token.check()
                stride = strides[info.stage - 1]
                watched.append(WatchedBlock(info, block, stride, inputs[0], output))

            hooks.append(module.register_forward_hook(keep))
        yield watched
    finally:
        for hook in hooks:
            hook.remove()


def evidence_maps(
    watched: Sequence[WatchedBlock],
    gradients: Sequence[Tensor],
    token: CancelToken | None = None,
) -> tuple[EvidenceMaps, ...]:
    """For each block seen and the gradient at its output, `[1, H, W, C]`."""
    found = []
    for seen, g in zip(watched, gradients, strict=True):
        if token is not None:
            token.check()
        with torch.no_grad():
            residual, scan, conv = seen.module.forward_paths(seen.input.detach())
        paths = {"scan": scan, "conv": conv, "residual": residual}
        if seen.module.conv_branch is None:
            del paths["conv"]
        found.append(_split(seen, g[0], seen.output.detach()[0], paths))
    return tuple(found)


def _split(seen: WatchedBlock, g: Tensor, output: Tensor, paths: dict[str, Tensor]) -> EvidenceMaps:
    """`sum_c g * path` for each addend `[1, H, W, C]` of the block's output, in float64."""
    g = g.double()
    maps = torch.stack([(g * path[0].double()).sum(-1) for path in paths.values()])
    whole = g * output.double()
    difference = float((maps.sum(0) - whole.sum(-1)).abs().max())
    size = float(whole.abs().sum(-1).max())
    error = difference / size if size > 0 else difference
    if not error <= MAX_ERROR:
        raise RuntimeError(
            f"the paths of block {seen.info.block} in stage {seen.info.stage} do not add up to its "
            f"output: a token is off by {difference:.3g} of {size:.3g}"
        )
    return EvidenceMaps(
        stage=seen.info.stage,
        block=seen.info.block,
        stride=seen.stride,
        paths=tuple(paths),
        maps=maps.float().cpu().numpy(),
        sums=tuple(maps.sum((1, 2)).tolist()),
        total=float(whole.sum()),
        error=error,
    )


def _note(blocks: Sequence[EvidenceMaps]) -> str:
    """A total of 0 between large paths looks like a fault; say that it is a result."""
    cancelled = [
        f"{b.stage}.{b.block}"
        for b in blocks
        if abs(b.total) <= CANCELLED * sum(abs(s) for s in b.sums)
    ]
    if not cancelled:
        return ""
    which = f"block {cancelled[0]}" if len(cancelled) == 1 else f"blocks {', '.join(cancelled)}"
    return (
        f"The paths of {which} cancel to about 0. This is so wherever only a norm reads the "
        "block's output (the last block of a stage): a norm does not feel the length of what it "
        "reads. Compare the paths with each other, not with the total."
    )
