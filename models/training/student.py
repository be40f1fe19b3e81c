"""What is optimised: the network, its stochastic depth, and the head that listens to a teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.efficientvmamba import EfficientVMamba
from models.layers import EVSSBlock, InvertedResidual


class Student(nn.Module):
    """A model with a second linear head that learns the teacher's classes; dropped on export."""

    def __init__(self, model: EfficientVMamba, n_teacher_classes: int, seed: int) -> None:
        super().__init__()
        self.model = model
        self.teacher_head: nn.Linear | None = None
        if n_teacher_classes:
            self.teacher_head = nn.Linear(model.num_features, n_teacher_classes)
            generator = torch.Generator().manual_seed(seed)
            nn.init.trunc_normal_(self.teacher_head.weight, std=0.02, generator=generator)
            nn.init.zeros_(self.teacher_head.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images `[B, 3, H, W]` -> logits `[B, K]` and, with a teacher, its logits `[B, T]`."""
        features = self.model.forward_features(x)
        pooled = self.model.forward_head(features, pre_logits=True)
        logits = self.model.get_classifier()(pooled)
        return logits, None if self.teacher_head is None else self.teacher_head(pooled)


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Stochastic depth rising linearly from 0 at the first block to `rate` at the last."""
    blocks = [m for m in model.modules() if isinstance(m, EVSSBlock | InvertedResidual)]
    for number, block in enumerate(blocks):
        block.drop_path = rate * number / max(len(blocks) - 1, 1)


def no_decay_names(student: Student) -> tuple[str, ...]:
    """Scan parameters that the model exempts from weight decay, as names within `student`."""
    return tuple(f"model.{name}" for name in student.model.no_weight_decay())
