"""What is explained: the logit of a class, or how far it lies above that of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workbench.errors import BadInputError


@dataclass(frozen=True, slots=True)
class Target:
    """A class, or one class against another."""

    index: int
    contrast: int | None = None

    def of(self, logits: Tensor) -> Tensor:
        """The objective, `[B, n] -> [B]`: logit of the class minus that of the contrast."""
        if self.contrast is None:
            return logits[:, self.index]
        return logits[:, self.index] - logits[:, self.contrast]

    @property
    def words(self) -> str:
        """For a definition."""
        return "logit" if self.contrast is None else "difference of the two logits"


def resolve_target(logits: Tensor, target: int | None, contrast: int | None = None) -> Target:
    """The classes asked for, checked against logits `[n]`; no target means the most probable."""
    n_classes = logits.shape[0]
    for index in (target, contrast):
        if index is not None and not 0 <= index < n_classes:
            raise BadInputError(
                f"Class {index} does not exist: this model knows {n_classes} classes, "
                f"0 to {n_classes - 1}."
            )
    if target is None:
        order = logits.detach().argsort(descending=True).tolist()
        target = next(index for index in order if index != contrast)
    if target == contrast:
        raise BadInputError(
            f"Class {target} cannot be compared with itself. Choose another class, or none, as "
            "the contrast."
        )
    return Target(target, contrast)


def target_fields(target: Target, logits: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """The fields of a result that say what was explained; `logits` `[n]` at the photo."""
    logits = logits.detach()
    return {
        "target": target.index,
        "target_name": classes[target.index],
        "contrast": target.contrast,
        "contrast_name": "" if target.contrast is None else classes[target.contrast],
        "probability": float(logits.softmax(0)[target.index]),
        "objective": float(target.of(logits[None])),
    }
