"""Our networks as the receptive-field analysis sees them: units, gates, paths of a block.

The forward pass is written out here, block by block, on the model's own modules: no hooks, nothing
is set on the model, so threads may share it. Values are the running network's to rounding; what
changes is which way a gradient may take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from models import EfficientVMamba
from models.efficientvmamba import MIN_SIZE
from models.layers import EVSSBlock, InvertedResidual, to_nchw, to_nhwc
from workbench.analyses.maps import stage_shape
from workbench.analyses.networks import PATHS, Grid, Unit
from workbench.errors import BadInputError

PATH_WORDS = {
    "residual": "residual path",
    "scan": "scan path",
    "conv": "convolution path",
    "gate": "gate path",
}
Place = tuple[int, int]  # stage and block, both from 1


class ScanNetwork:
    """A `Network` on an `EfficientVMamba` in eval mode."""

    def __init__(self, model: EfficientVMamba, label: str) -> None:
        self.module: nn.Module = model
        self.model = model
        self.label = label
        self._units = {unit.name: unit for unit in _units(model)}
        self.has_gates = any(unit.path == "gate" for unit in self._units.values())

    def units(self) -> tuple[Unit, ...]:
        return tuple(self._units.values())

    def unit(self, name: str) -> Unit:
        if name not in self._units:
            raise BadInputError(
                f"{self.label} has no unit {name[:60]!r}. Choose a stage (stage1 to "
                f"stage{len(self.model.depths)}), a block (stage1.block1) or a path of a block "
                f"(stage1.block1.scan, .conv, .residual, .gate)."
            )
        return self._units[name]

    def place(self, unit: Unit) -> Place:
        """The block whose output the unit is, or a path of it."""
        return unit.stage, unit.block or self.model.depths[unit.stage - 1]

    def grid(self, unit: str, height: int, width: int) -> Grid:
        if min(height, width) < MIN_SIZE:
            raise BadInputError(
                f"The images are {height} x {width} px. {self.label} needs {MIN_SIZE} px or more "
                "on both sides, its last stage's stride: choose a larger input size."
            )
        rows, columns, stride = stage_shape(self.model, self.unit(unit).stage, height, width)
        return Grid(rows, columns, stride, (stride / 2, stride / 2))

    def features(self, x: Tensor, units: Sequence[str], gates: str = "live") -> list[Tensor]:
        wanted = [self.unit(name) for name in units]
        is_frozen = gates == "frozen"
        if is_frozen and any(unit.path == "gate" for unit in wanted):
            raise BadInputError(
                "With the gates frozen nothing passes through a gate path. Choose live gates or "
                "another path."
            )
        found: dict[str, Tensor] = {}
        split = {self.place(unit) for unit in wanted if unit.path is not None}
        deepest = max(self.place(unit) for unit in wanted)
        for place, output, parts in self.run(x, deepest, is_frozen, split):
            for unit in wanted:
                if self.place(unit) == place:
                    found[unit.name] = output
                    if unit.path is not None:
                        assert parts is not None
                        found[unit.name] = parts.through(unit.path)
        return [to_nchw(found[name]) for name in units]

    def run(
        self, x: Tensor, deepest: Place, is_frozen: bool, split: Collection[Place] = ()
    ) -> Iterator[tuple[Place, Tensor, BlockParts | None]]:
        """Every block up to `deepest`: (where, output `[B, H, W, C]`, its parts for those of
        `split`). Images `[B, 3, H, W]` in."""
        x = self.model.stem(x)
        for stage, layer in enumerate(self.model.stages(), start=1):
            for number, (_, block) in enumerate(layer.named_blocks(), start=1):
                parts = None
                if is_frozen or (stage, number) in split:
                    parts = block_parts(block, x, is_frozen)
                x = block(x) if parts is None else parts.whole
                yield (stage, number), x, parts
                if (stage, number) == deepest:
                    return
            merging = layer.merging()
            x = x if merging is None else merging(x)

    def reach(
        self, unit: str, y: int, x: int, height: int, width: int
    ) -> tuple[np.ndarray | None, str]:
        # Not at the top: that package's phases and paths know this class.
        from workbench.analyses.erf.geometry import reach_pixels

        return reach_pixels(self.model, self.unit(unit), y, x, height, width), ""


@dataclass(frozen=True)
class BlockParts:
    """A block's output as a sum of what its paths add, `[B, H, W, C]`.

    `addends` are the paths' parts of the sum before `finish` (which is affine), the gate's of value
    zero: the gradient through all of them is the block's own.
    """

    kind: str  # as in `models.BlockInfo`
    residual: Tensor
    addends: dict[str, Tensor]
    finish: nn.Module | None  # of an inverted residual: the last convolution and its norm

    @property
    def paths(self) -> tuple[str, ...]:
        """In the order of `networks.PATHS`."""
        return tuple(path for path in PATHS if path == "residual" or path in self.addends)

    @property
    def whole(self) -> Tensor:
        return self._sum(self.residual, self.addends)

    def through(self, path: str) -> Tensor:
        """The block's output; its gradient goes through `path` alone."""
        residual = self.residual if path == "residual" else self.residual.detach()
        kept = {name: v if name == path else v.detach() for name, v in self.addends.items()}
        return self._sum(residual, kept)

    def _sum(self, residual: Tensor, addends: dict[str, Tensor]) -> Tensor:
        added = reduce(torch.add, addends.values())
        if self.finish is not None:
            added = to_nhwc(self.finish(to_nchw(added)))
        return residual + added


def block_parts(block: nn.Module, x: Tensor, is_frozen: bool) -> BlockParts:
    """The paths of a block for its input `[B, H, W, C]`.

    A gate is a factor of the other paths, so the gradient of a product is split in two: through the
    gated value with the gate held, and through the gate with the value held (path "gate"; absent
    with `is_frozen`, and for a block without gates).
    """
    if isinstance(block, EVSSBlock):
        values, gates = block.values_and_gates(x)
        kind, finish = "evss", None
    else:
        assert isinstance(block, InvertedResidual)
        value, gate = block.value_and_gate(x)
        values, gates = {"conv": to_nhwc(value)}, {"conv": gate.permute(0, 2, 3, 1)}
        kind, finish = "inverted residual", block.conv_pw2
    addends = {}
    through_gates = []
    for path, value in values.items():
        if path not in gates:
            addends[path] = value
            continue
        gate = gates[path]
        addends[path] = value * gate.detach()
        if not is_frozen:
            through_gates.append(value.detach() * (gate - gate.detach()))
    if through_gates:
        addends["gate"] = reduce(torch.add, through_gates)
    return BlockParts(kind, x, addends, finish)


def _units(model: EfficientVMamba) -> Iterator[Unit]:
    """Stages, blocks, paths."""
    for stage in range(1, len(model.depths) + 1):
        yield Unit(f"stage{stage}", f"stage {stage}", stage)
    blocks = model.blocks()
    for info in blocks:
        name, label = f"stage{info.stage}.block{info.block}", _label(info.stage, info.block)
        yield Unit(name, label, info.stage, info.block)
    for info in blocks:
        block = model.get_submodule(info.name)
        for path in PATHS:
            if path in _paths_of(block):
                name = f"stage{info.stage}.block{info.block}.{path}"
                label = f"{_label(info.stage, info.block)}, {PATH_WORDS[path]}"
                yield Unit(name, label, info.stage, info.block, path)


def _label(stage: int, block: int) -> str:
    return f"stage {stage}, block {block}"


def _paths_of(block: nn.Module) -> set[str]:
    if not isinstance(block, EVSSBlock):
        return {"residual", "conv", "gate"}
    found = {"residual", "scan"}
    if block.conv_branch is not None:
        found.add("conv")
    if block.se is not None:
        found.add("gate")
    return found
