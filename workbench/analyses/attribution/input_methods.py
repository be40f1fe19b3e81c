"""Maps of the input: gradients of the photo, averages of them, occlusion; and the baselines.

Captum computes saliency, input x gradient, integrated gradients, occlusion by squares and guided
backprop. Two of its methods are written out here on its plain gradient: NoiseTunnel and
GradientShap draw from the process's own random generators, which other sessions use at the same
time, so that the same seed would not give the same map (and NoiseTunnel on Saliency averages
|gradient|, which is not SmoothGrad). Runs of a scan overlap and have a baseline per pixel:
Captum's FeatureAblation takes no overlap, its ImageMaskInput one colour in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import GuidedBackprop, InputXGradient, Occlusion, Saliency
from torch import Tensor, nn

from kernels import scan_order
from models import EfficientVMamba
from models.efficientvmamba import IMAGENET_MEAN, IMAGENET_STD
from workbench.analyses.attribution.methods import BASELINES
from workbench.analyses.attribution.stage_methods import (
    BATCH,
    ExplainedNetwork,
    integrated_gradients,
    to_map,
)
from workbench.analyses.maps import stage_shape
from workbench.errors import BadInputError

N_OCCLUDED = 16  # images in one pass without gradients
Objective = Callable[[Tensor], Tensor]


def make_baseline(pixels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """The picture without evidence, normalised `[1, 3, H, W]` as `pixels`; kinds: `BASELINES`."""
    mean, std = (
        torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(1, 3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    if kind == "mean":
        return torch.zeros_like(pixels)
    if kind == "black":
        return (-mean / std).expand_as(pixels).contiguous()
    if kind == "noise":
        noise = torch.rand(pixels.shape, generator=generator, dtype=pixels.dtype)
        return (noise.to(pixels.device) - mean) / std
    if kind == "blur":
        return _blurred(pixels)
    raise BadInputError(
        f"There is no baseline {str(kind)[:60]!r}. Choose one of {', '.join(BASELINES)}."
    )


def _blurred(pixels: Tensor) -> Tensor:
    """Gaussian blur, sigma a tenth of the shorter side, edge pixels repeated beyond the edge."""
    sigma = min(pixels.shape[2:]) / 10
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    rows = F.conv2d(F.pad(pixels, (radius, radius, 0, 0), "replicate"), weights, groups=3)
    columns = F.pad(rows, (0, 0, radius, radius), "replicate")
    return F.conv2d(columns, weights.transpose(2, 3), groups=3)


def _gradient(objective: Objective, pixels: Tensor) -> Tensor:
    """d objective / d pixels of every image, `[B, 3, H, W]`."""
    return Saliency(objective).attribute(pixels.detach().requires_grad_(True), abs=False).detach()


def saliency(objective: Objective, pixels: Tensor) -> Tensor:
    return to_map(_gradient(objective, pixels), "NCHW", "largest")


def input_gradient(objective: Objective, pixels: Tensor) -> Tensor:
    values = InputXGradient(objective).attribute(pixels.detach().requires_grad_(True))
    return to_map(values, "NCHW")


def integrated(objective: Objective, pixels: Tensor, baseline: Tensor, steps: int) -> Tensor:
    return to_map(integrated_gradients(objective, pixels, baseline, steps), "NCHW")


def gradient_shap(
    objective: Objective,
    pixels: Tensor,
    baselines: Callable[[], Tensor],
    samples: int,
    noise: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The map, and the baselines' mean objective, which completeness needs; `baselines` gives one
    per call."""
    total = torch.zeros_like(pixels)
    objectives = pixels.new_zeros(())
    for noisy in _noisy(pixels, samples, noise, generator):
        starts = torch.cat([baselines() for _ in noisy])
        shares = torch.rand((len(noisy), 1, 1, 1), generator=generator, dtype=pixels.dtype)
        differences = noisy - starts
        gradients = _gradient(objective, starts + shares.to(pixels.device) * differences)
        total += (differences * gradients).sum(0, keepdim=True)
        with torch.no_grad():
            objectives += objective(starts).sum()
    return to_map(total / samples, "NCHW"), objectives / samples


def smoothgrad(
    objective: Objective, pixels: Tensor, samples: int, noise: float, generator: torch.Generator
) -> Tensor:
    total = torch.zeros_like(pixels)
    for noisy in _noisy(pixels, samples, noise, generator):
        total += _gradient(objective, noisy).sum(0, keepdim=True)
    return to_map(total / samples, "NCHW", "largest")


def _noisy(
    pixels: Tensor, samples: int, noise: float, generator: torch.Generator
) -> Iterator[Tensor]:
    """`samples` copies with Gaussian noise, `BATCH` at a time; drawn on the CPU, so that every
    device gets the same."""
    deviation = noise * float(pixels.max() - pixels.min())
    for first in range(0, samples, BATCH):
        shape = (min(BATCH, samples - first), *pixels.shape[1:])
        drawn = torch.randn(shape, generator=generator, dtype=pixels.dtype)
        yield pixels + deviation * drawn.to(pixels.device)


def occlusion(
    objective: Objective, pixels: Tensor, baseline: Tensor, window: int, stride: int
) -> Tensor:
    """Captum's occlusion by squares of `window` px, every `stride` px."""
    side = min(pixels.shape[2:])
    if window > side:
        raise BadInputError(
            f"Occlusion: a square of {window} px does not fit a photo whose shorter side has "
            f"{side} px. Choose a smaller square."
        )
    if stride > window:
        raise BadInputError(
            f"Occlusion: a shift of {stride} px leaves pixels between squares of {window} px that "
            f"are never covered. Choose a shift of {window} px or less."
        )
    values = Occlusion(objective).attribute(
        pixels,
        sliding_window_shapes=(3, window, window),
        strides=(3, stride, stride),
        baselines=baseline,
        perturbations_per_eval=N_OCCLUDED,
    )
    return to_map(values, "NCHW") / 3  # a square covers the three colours: one value, three times


def occlusion_scan(
    network: ExplainedNetwork,
    pixels: Tensor,
    baseline: Tensor,
    stage: int,
    pieces: int,
    overlap: str,
) -> tuple[Tensor, int]:
    """One value per token of `stage`, `[H, W]`, and the token's side in input pixels."""
    height, width = pixels.shape[2:]
    rows, columns, stride = _scanned_shape(network.network, stage, height, width)
    index = scan_order(network.network.scan_spec, rows, columns).index
    runs = scan_runs(index, pieces, overlap)
    total, count = np.zeros(rows * columns), np.zeros(rows * columns)
    with torch.no_grad():
        whole = float(network(pixels))
        for first in range(0, len(runs), N_OCCLUDED):
            part = runs[first : first + N_OCCLUDED]
            masks = torch.stack([_covered(run, rows, columns, stride) for run in part])
            masks = masks[:, None, :height, :width].to(pixels.device)
            # A map of tokens may end before the photo does; what no token reads stays.
            masks = F.pad(masks, (0, width - masks.shape[3], 0, height - masks.shape[2]))
            left = network(torch.where(masks, baseline, pixels)).tolist()
            for run, objective in zip(part, left, strict=True):
                total[run] += whole - objective
                count[run] += 1
    values = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return torch.from_numpy(values.reshape(rows, columns)), stride


def scan_runs(index: np.ndarray, pieces: int, overlap: str) -> list[np.ndarray]:
    """The tokens of each run of consecutive steps, each once, pads left out, for an order `[K, L]`.

    `pieces` equal runs per sequence; with `overlap` "half" also those that start half a run later.
    """
    length = index.shape[1]
    parts = 2 if overlap == "half" else 1
    edges = np.linspace(0, length, min(pieces, length) * parts + 1).round().astype(int)
    runs = []
    for sequence in index:
        for start, stop in zip(edges[:-parts], edges[parts:], strict=True):
            tokens = np.unique(sequence[start:stop])
            tokens = tokens[tokens >= 0]
            if tokens.size:
                runs.append(tokens)
    return runs


def _covered(tokens: np.ndarray, rows: int, columns: int, stride: int) -> Tensor:
    """The pixels of some tokens, bool `[rows * stride, columns * stride]`."""
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[torch.from_numpy(tokens).long()] = True
    mask = mask.view(rows, columns)
    return mask.repeat_interleave(stride, 0).repeat_interleave(stride, 1)


def _scanned_shape(
    model: EfficientVMamba, stage: int, height: int, width: int
) -> tuple[int, int, int]:
    """(rows, columns, stride) of a stage that scans."""
    with_scans = sorted({block.stage for block in model.blocks() if block.has_scan})
    if stage not in with_scans:
        raise BadInputError(
            f"Stage {stage} of this network has no scan to cut into pieces. "
            f"Choose stage {' or '.join(str(s) for s in with_scans)}, or occlusion by squares."
        )
    return stage_shape(model, stage, height, width)


def guided_backprop(network: ExplainedNetwork, pixels: Tensor) -> Tensor:
    values = GuidedBackprop(network).attribute(pixels.detach().requires_grad_(True))
    return to_map(values, "NCHW", "largest")


def relu_stages(model: EfficientVMamba) -> Sequence[int]:
    """Stages (from 1) with ReLU modules: where guided backprop differs from the gradient."""
    return [
        number
        for number, stage in enumerate(model.stages(), start=1)
        if any(isinstance(module, nn.ReLU) for module in stage.modules())
    ]
