"""Maps of the four stages: Grad-CAM, gradient x activation, layer integrated gradients,
conductance, activation.

The network is written out as a chain of stages, so every method reads and feeds the stages' outputs
`[B, H, W, C]` themselves: no hook, no replay of the stages before, and the order of the axes is
known. Captum reads a layer by hooks and runs the whole network for each; the tests hold its numbers
against these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from models import EfficientVMamba, with_scan
from workbench.analyses.attribution.overview import grad_cam
from workbench.analyses.attribution.targets import Target
from workbench.progress import CancelToken

BATCH = 8  # images in one pass with gradients


class ExplainedNetwork(nn.Module):
    """The objective as a function of pixels `[B, 3, H, W]` -> `[B]`, on a twin of the model.

    Whatever is hooked here is never seen by another session.
    """

    def __init__(self, model: EfficientVMamba, token: CancelToken | None = None) -> None:
        super().__init__()
        self.network = with_scan(model, model.scan_spec)
        self.token = token
        self.target = Target(0)

    def forward(self, pixels: Tensor) -> Tensor:
        self.check()
        return self.target.of(self.network(pixels))

    def check(self) -> None:
        """Stop here if the user has stopped."""
        if self.token is not None:
            self.token.check()

    def with_stages(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """The stages' outputs before patch merging, `[B, H, W, C]` each, and the objective."""
        self.check()
        features: Any = self.network.forward_intermediates(pixels, output_fmt="NHWC")
        last, stages = features
        return stages, self.target.of(self.network.forward_head(last))

    def after(self, stage: int) -> Callable[[Tensor], Tensor]:
        """The objective as a function of the output of `stage` (1-based), `[B, H, W, C]`."""

        def objective(x: Tensor) -> Tensor:
            self.check()
            stages = list(self.network.stages())
            merging = stages[stage - 1].merging()
            x = x if merging is None else merging(x)
            output = x
            for later in stages[stage:]:
                output, x = later(x)
            normed = self.network.classifier.norm(output)
            return self.target.of(self.network.forward_head(normed))

        return objective


def to_map(values: Tensor, layout: str, how: str = "sum") -> Tensor:
    """One map `[H, W]` of a tensor with a batch of one: the sum ("sum"), the mean size ("size") or
    the largest size ("largest") over the channels of `layout` "NHWC" or "NCHW".

    The only place where the channel axis of a layer is named.
    """
    axis = {"NHWC": 2, "NCHW": 0}[layout]
    values = values.detach()[0]
    if how == "sum":
        return values.sum(axis)
    sizes = values.abs()
    return sizes.mean(axis) if how == "size" else sizes.amax(axis)


def gradient_maps(network: ExplainedNetwork, pixels: Tensor, method: str) -> list[Tensor]:
    """Grad-CAM or gradient x activation of all stages: one forward and one backward pass."""
    with torch.enable_grad():
        stages, objective = network.with_stages(pixels.detach().requires_grad_(True))
        gradients = torch.autograd.grad(objective.sum(), stages)
    pairs = [(a.detach(), g) for a, g in zip(stages, gradients, strict=True)]
    if method == "grad_cam":
        return [grad_cam(a[0], g[0]) for a, g in pairs]
    return [to_map(a * g, "NHWC") for a, g in pairs]


@torch.no_grad()
def activation(network: ExplainedNetwork, pixels: Tensor) -> list[Tensor]:
    """`mean_c |a_c|` of all stages: one forward pass."""
    stages, _ = network.with_stages(pixels)
    return [to_map(a, "NHWC", "size") for a in stages]


def layer_integrated_gradients(
    network: ExplainedNetwork, pixels: Tensor, baseline: Tensor, steps: int
) -> list[Tensor]:
    """Captum's integrated gradients of the part of the network after each stage."""
    with torch.no_grad():
        ends, _ = network.with_stages(pixels)
        starts, _ = network.with_stages(baseline)
    return [
        to_map(integrated_gradients(network.after(stage), end, start, steps), "NHWC")
        for stage, (end, start) in enumerate(zip(ends, starts, strict=True), start=1)
    ]


def integrated_gradients(
    objective: Callable[[Tensor], Tensor], end: Tensor, start: Tensor, steps: int
) -> Tensor:
    """`(end - start) * integral of the gradient` on the line between the two, `BATCH` at a time."""
    return IntegratedGradients(objective).attribute(
        end, baselines=start, n_steps=steps, internal_batch_size=BATCH
    )


def conductance(
    network: ExplainedNetwork, pixels: Tensor, baseline: Tensor, steps: int
) -> list[Tensor]:
    """`sum_k (a_{k+1} - a_k) (g_k + g_{k+1}) / 2` over the points k = 0..steps of the line from
    the baseline to the photo, of all stages from the same passes.

    Captum's LayerConductance takes g_k alone, the left end of each section, and one run per layer.
    """
    totals: list[Tensor] = []
    previous: list[tuple[Tensor, Tensor]] = []
    for points in _line(baseline, pixels, steps):
        with torch.enable_grad():
            stages, objective = network.with_stages(points.requires_grad_(True))
            gradients = torch.autograd.grad(objective.sum(), stages)
        current = [(a.detach(), g) for a, g in zip(stages, gradients, strict=True)]
        if previous:
            current = [
                (torch.cat([old_a, a]), torch.cat([old_g, g]))
                for (old_a, old_g), (a, g) in zip(previous, current, strict=True)
            ]
        sums = [(a.diff(dim=0) * (g[1:] + g[:-1]) / 2).sum(0, keepdim=True) for a, g in current]
        totals = [t + s for t, s in zip(totals, sums, strict=True)] if totals else sums
        previous = [(a[-1:], g[-1:]) for a, g in current]
    return [to_map(total, "NHWC") for total in totals]


def _line(start: Tensor, end: Tensor, steps: int) -> Iterator[Tensor]:
    """The `steps` + 1 points from start to end, both included, `BATCH` at a time."""
    shares = torch.linspace(0, 1, steps + 1, dtype=end.dtype, device=end.device)
    for part in shares.split(BATCH):
        yield start + part.view(-1, 1, 1, 1) * (end - start)
