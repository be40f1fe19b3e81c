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
from workbench.analyses.attribution.evidence import evidence_maps, watched_blocks
from workbench.analyses.checks import explain_non_finite
from workbench.errors import BadInputError
from workbench.progress import CancelToken
from workbench.results import AttributionResult, BlockEvidence, EvidenceMaps, Provenance

DEFINITION = (
    "Grad-CAM: relu(sum_c mean_hw(d logit / d a_c) a_c) of each stage's output a before patch "
    "merging, not normalised"
)


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
    with torch.enable_grad(), watched_blocks(twin, token) as watched:
        pixels = torch.from_numpy(image)[None].to(next(twin.parameters()).device)
        last, stages = twin.forward_intermediates(pixels.requires_grad_(True), output_fmt="NHWC")
        logits = twin.forward_head(last)[0]
        if target is None:
            target = int(logits.argmax())
        if token is not None:
            token.check()
        outputs = [*stages, *(seen.output for seen in watched)]
        gradients = torch.autograd.grad(logits[target], outputs)
    if not torch.isfinite(logits).all() or not all(torch.isfinite(g).all() for g in gradients):
        raise BadInputError(explain_non_finite(model, "the gradient of the attribution"))
    maps = tuple(
        grad_cam(a.detach()[0], g[0]) for a, g in zip(stages, gradients[: len(stages)], strict=True)
    )
    evidence = evidence_maps(watched, gradients[len(stages) :], token)
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
        evidence=tuple(_evidence(maps) for maps in evidence),
        note=_note(maps),
    )


def grad_cam(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """`relu(sum_c mean_hw(g)_c a_c)`: activation and gradient `[H, W, C]` -> `[H, W]`."""
    return torch.relu(a @ g.mean((0, 1)))


def _evidence(maps: EvidenceMaps) -> BlockEvidence:
    """The sums of a block's evidence over its tokens; a path that it does not have adds 0."""
    sums = {"scan": 0.0, "conv": 0.0, "residual": 0.0} | dict(
        zip(maps.paths, maps.sums, strict=True)
    )
    difference = abs(sum(sums.values()) - maps.total)
    scale = sum(abs(value) for value in sums.values())
    return BlockEvidence(
        stage=maps.stage,
        block=maps.block,
        **sums,
        total=maps.total,
        error=difference / scale if scale > 0 else 0.0,
    )


def _note(maps: Sequence[torch.Tensor]) -> str:
    """Maps that are zero everywhere look like a fault; say that they are a result."""
    empty = [str(i) for i, m in enumerate(maps, start=1) if not bool((m > 0).any())]
    if not empty:
        return ""
    which = f"stage {empty[0]}" if len(empty) == 1 else f"stages {', '.join(empty)}"
    return f"The map of {which} is zero everywhere: nothing there speaks for this class."
