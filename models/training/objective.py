"""What a step minimises: targets, mixing, loss, and the learning rate over the run."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from models.training.config import TrainConfig
from models.training.data import Batch, normalise
from models.training.teacher import crop_logits, distillation_loss


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a cosine to `min_lr`; `step` counts from 0 over the whole run."""
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup - 1, 1)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


class Objective:
    """The loss of a batch: cross-entropy with smoothed labels, plus distillation with a teacher.

    `maps` are the teacher's logits per training image, `[n, T, h, w]` float16.
    """

    def __init__(
        self, config: TrainConfig, n_classes: int, maps: np.ndarray | None, device: torch.device
    ) -> None:
        self.config, self.n_classes, self.maps, self.device = config, n_classes, maps, device
        self.mixers = [
            kind(alpha=alpha)
            for kind, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
            if alpha > 0
        ]
        self.eraser = v2.RandomErasing(p=config.erasing, value=0) if config.erasing else None

    def autocast(self) -> AbstractContextManager[object]:
        if self.config.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def targets(self, batch: Batch) -> Tensor:
        """Smoothed labels and, beside them, the teacher's softened answer: `[B, K + T]`."""
        hard = F.one_hot(batch.labels, self.n_classes).float()
        hard = hard * (1 - self.config.smoothing) + self.config.smoothing / self.n_classes
        if self.maps is None:
            return hard.to(self.device)
        maps = torch.from_numpy(self.maps[batch.indices.numpy()]).to(self.device)
        logits = crop_logits(maps.float(), batch.boxes.to(self.device))
        soft = (logits / self.config.distill_temperature).softmax(1)
        return torch.cat((hard.to(self.device), soft), 1)

    def augment(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Erasing per image, then mixup or cutmix of the whole batch with some probability."""
        if self.eraser is not None:
            images = torch.stack([self.eraser(image) for image in images])
        if self.mixers and torch.rand(()) < self.config.mix_probability:
            mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
            images, targets = mixer(images, targets)
        return images.contiguous(memory_format=torch.channels_last), targets

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Total loss and its distillation part, each the mean over the batch."""
        images, targets = self.augment(
            normalise(batch.images.to(self.device, non_blocking=True)), self.targets(batch)
        )
        with self.autocast():
            logits, teacher_logits = network(images)
        total = F.cross_entropy(logits.float(), targets[:, : self.n_classes])
        distilled = total.new_zeros(())
        if teacher_logits is not None:
            distilled = distillation_loss(
                teacher_logits, targets[:, self.n_classes :], self.config.distill_temperature
            )
            total = total + self.config.distill_weight * distilled
        return total, distilled
