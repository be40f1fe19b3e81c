"""What the receptive-field analysis asks of a network; one adapter per family implements it.

`scan_network.ScanNetwork` wraps our models, `timm_network.TimmNetwork` any timm model whose
features are maps. Positions are `(y, x)`; `stage` counts from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn

PATHS = ("residual", "scan", "conv", "gate")


@dataclass(frozen=True, slots=True)
class Unit:
    """Something whose token can have a receptive field."""

    name: str  # "stage2", "stage1.block2", "stage1.block2.scan"
    label: str  # "stage 2", "stage 1, block 2, scan path"
    stage: int
    block: int | None = None  # 1-based within the stage; None = the stage's output
    path: str | None = None  # one of PATHS: gradient through this path of the block alone


@dataclass(frozen=True, slots=True)
class Grid:
    """Tokens of a unit's map for one input size."""

    rows: int
    columns: int
    stride: int  # input pixels per token
    # (y, x) input pixels: the centre of token (0, 0); pixel i spans [i, i+1]
    origin: tuple[float, float]

    def centre(self, y: int, x: int) -> tuple[float, float]:
        """The point of the input that token `(y, x)` is the centre of."""
        return self.origin[0] + y * self.stride, self.origin[1] + x * self.stride


class Network(Protocol):
    """A network in eval mode whose parameters need no gradient; never changed by an analysis."""

    label: str  # for a legend: "Tiny", "resnet18"
    module: nn.Module
    has_gates: bool  # squeeze-excitation gates that can be frozen

    def units(self) -> tuple[Unit, ...]:
        """Every unit, stages first, then blocks, then their paths."""
        ...

    def grid(self, unit: str, height: int, width: int) -> Grid:
        """Raises `BadInputError` for an unknown unit or an input smaller than the stride."""
        ...

    def features(self, x: Tensor, units: Sequence[str], gates: str = "live") -> list[Tensor]:
        """`[B, C, rows, columns]` of each unit from one forward pass that ends at the deepest.

        Values are the running network's own; with `gates="frozen"` no gradient passes through a
        squeeze-excitation gate, and a path unit passes gradient through its path alone.
        """
        ...

    def reach(
        self, unit: str, y: int, x: int, height: int, width: int
    ) -> tuple[np.ndarray | None, str]:
        """Pixels (bool `[H, W]`) that can matter for the token with gates frozen, by the rules of
        the layers; None and why where the rule is not known. The second value is a note."""
        ...
