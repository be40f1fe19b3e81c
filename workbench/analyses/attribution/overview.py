"""Grad-CAM on the four stages, and how much of the evidence came through each path of each EVSS
block.

Grad-CAM of a stage with output a `[H, W, C]` and g = d logit / d a: `alpha_c = mean_hw g`, map =
`relu(sum_c alpha_c a_c)` (Selvaraju et al., arXiv:1610.02391). Captum's LayerGradCam sums dimension
1, which is a spatial one in these channels-last maps, and needs one pass per layer; here all stages
come from one forward and one backward pass. The tests hold the result against Captum with the
layout put right.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from models import with_scan
from workbench.analyses.checks import explain_non_finite
from workbench.errors import BadInputError
from workbench.progress import CancelToken
from workbench.results import AttributionResult, BlockEvidence, Provenance

DEFINITION = (
    "Grad-CAM: relu(sum_c mean_hw(d logit / d a_c) a_c) of each stage's output a before patch "
    "merging, not normalised"
)
# The three paths must add up to the block's output. Relative to sum |g * output|, in which nothing
# cancels, float32 rounding stays below 1e-6; more than this is a defect.
MAX_EVIDENCE_ERROR = 1e-4


def attribution(
    model: Any,
    image: np.ndarray,
    classes: Sequence[str],
    *,
    target: int | None = None,
    provenance: Provenance,
    token: CancelToken | None = None,
) -> AttributionResult:
    """Maps and evidence for class `target` (None: the most probable) of one normalised `[3, H, W]`
    image."""
    started = time.perf_counter()
    n_classes = len(classes)
    if target is not None and not 0 <= target < n_classes:
        raise BadInputError(
            f"Class {target} does not exist: this model knows {n_classes} classes, "
            f"0 to {n_classes - 1}."
        )
    # A twin on the same weights: hooks that are set here can never be seen by another session.
    twin = with_scan(model, model.scan_spec)
    evss = [block for block in twin.blocks() if block.kind == "evss"]
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = []
    try:
        for block in evss:
            module = twin.get_submodule(block.name)

            def keep(_: Any, inputs: Any, output: torch.Tensor, name: str = block.name) -> None:
                if token is not None:
                    token.check()
                seen[name] = (inputs[0], output)

            hooks.append(module.register_forward_hook(keep))
        with torch.enable_grad():
            pixels = torch.from_numpy(image)[None].to(next(twin.parameters()).device)
            last, stages = twin.forward_intermediates(
                pixels.requires_grad_(True), output_fmt="NHWC"
            )
            logits = twin.forward_head(last)[0]
            if target is None:
                target = int(logits.argmax())
            if token is not None:
                token.check()
            outputs = [*stages, *(seen[block.name][1] for block in evss)]
            gradients = torch.autograd.grad(logits[target], outputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not torch.isfinite(logits).all() or not all(torch.isfinite(g).all() for g in gradients):
        raise BadInputError(explain_non_finite(model, "the gradient of the attribution"))
    maps = tuple(
        grad_cam(a.detach()[0], g[0]) for a, g in zip(stages, gradients[: len(stages)], strict=True)
    )
    evidence = []
    for block, g in zip(evss, gradients[len(stages) :], strict=True):
        if token is not None:
            token.check()
        block_input, block_output = (t.detach() for t in seen[block.name])
        with torch.no_grad():
            paths = twin.get_submodule(block.name).forward_paths(block_input)
        evidence.append(_evidence(block.stage, block.block, g, block_output, paths))
    probability = float(logits.detach().softmax(0)[target])
    shapes = [tuple(a.shape[1:]) for a in stages]
    return AttributionResult(
        provenance=replace(
            provenance,
            definition=DEFINITION,
            parameters={**provenance.parameters, "target": target},
            seconds=time.perf_counter() - started,
        ),
        target=target,
        target_name=classes[target],
        probability=probability,
        method="Grad-CAM",
        maps=tuple(m.float().cpu().numpy() for m in maps),
        strides=tuple(info["reduction"] for info in twin.feature_info),
        layers=tuple(
            f"output of stage {i} before patch merging ({h} x {w} tokens, {c} channels)"
            if i < len(shapes)
            else f"output of stage {i} ({h} x {w} tokens, {c} channels)"
            for i, (h, w, c) in enumerate(shapes, start=1)
        ),
        evidence=tuple(evidence),
        note=_note(maps),
    )


def grad_cam(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """`relu(sum_c mean_hw(g)_c a_c)`: activation and gradient `[H, W, C]` -> `[H, W]`."""
    return torch.relu(a @ g.mean((0, 1)))


def _evidence(
    stage: int,
    block: int,
    g: torch.Tensor,
    output: torch.Tensor,
    paths: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> BlockEvidence:
    """`sum g * path` for the three addends of a block and for their sum, in float64."""
    g = g.double()
    residual, scan, conv = (float((g * path.double()).sum()) for path in paths)
    total = float((g * output.double()).sum())
    difference = abs(residual + scan + conv - total)
    if difference > MAX_EVIDENCE_ERROR * float((g * output.double()).abs().sum()):
        raise RuntimeError(
            f"the paths of block {block} in stage {stage} do not add up to its output: "
            f"{residual + scan + conv:.6g} instead of {total:.6g}"
        )
    scale = abs(residual) + abs(scan) + abs(conv)
    return BlockEvidence(
        stage=stage,
        block=block,
        scan=scan,
        conv=conv,
        residual=residual,
        total=total,
        error=difference / scale if scale > 0 else 0.0,
    )


def _note(maps: Sequence[torch.Tensor]) -> str:
    """Maps that are zero everywhere look like a fault; say that they are a result."""
    empty = [str(i) for i, m in enumerate(maps, start=1) if not bool((m > 0).any())]
    if not empty:
        return ""
    which = f"stage {empty[0]}" if len(empty) == 1 else f"stages {', '.join(empty)}"
    return f"The map of {which} is zero everywhere: nothing there speaks for this class."
