"""Which input pixels can matter for one token of our networks at all: exact, by the layers' rules.

With squeeze-excitation gates frozen (live, they are global means and everything matters). From the
token back to the pixels: a scan brings in what its sequences read earlier, a 3x3 convolution the
neighbours, patch merging the 2x2 tokens that it joined, the stem the 4x4 pixels of the patch. No
gradient, no weights: a pixel outside the set has no influence, whatever the photo.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from kernels import scan_order
from models import EfficientVMamba
from models.efficientvmamba import PATCH
from models.layers import EVSSBlock
from workbench.analyses.maps import stage_shape
from workbench.analyses.networks import Unit
from workbench.analyses.propagation import through_block, through_convolution, through_op
from workbench.errors import BadInputError


def reach_pixels(
    model: EfficientVMamba, unit: Unit, y: int, x: int, height: int, width: int
) -> np.ndarray:
    """Pixels of a `height` x `width` px input that can matter for token `(y, x)` of `unit`.

    Bool `[height, width]`. Of a path unit, what comes through that path of its block alone:
    nothing for "gate", which is frozen.
    """
    rows, columns, _ = stage_shape(model, unit.stage, height, width)
    if not (0 <= y < rows and 0 <= x < columns):
        raise BadInputError(
            f"There is no token ({y}, {x}) in {unit.label}. Its map has {rows} x {columns} tokens: "
            f"choose y from 0 to {rows - 1} and x from 0 to {columns - 1}."
        )
    wanted = np.zeros((rows, columns), dtype=bool)
    wanted[y, x] = True
    for stage in range(unit.stage, 0, -1):
        blocks = _blocks(model, stage)
        if stage == unit.stage:
            blocks = blocks[: unit.block]  # None: all of them
            if unit.path is not None:
                wanted = _through_path(blocks.pop(), unit.path, wanted)
        for block in reversed(blocks):
            wanted = _before_block(block, wanted)
        if stage > 1:
            # An odd side was padded before merging: the pads are no tokens.
            before = stage_shape(model, stage - 1, height, width)
            wanted = _enlarged(wanted, 2)[: before[0], : before[1]]
    pixels = np.zeros((height, width), dtype=bool)  # an incomplete last patch is not read
    patches = _enlarged(wanted, PATCH)
    pixels[: patches.shape[0], : patches.shape[1]] = patches
    return pixels


def _blocks(model: EfficientVMamba, stage: int) -> list[nn.Module]:
    return [block for _, block in list(model.stages())[stage - 1].named_blocks()]


def _before_block(block: nn.Module, wanted: np.ndarray) -> np.ndarray:
    """Tokens at the block's input that can matter for one of `wanted` at its output."""
    if isinstance(block, EVSSBlock):
        order = scan_order(block.op.scan.spec, *wanted.shape)
        return through_block(order, wanted, block.conv_branch is not None)
    return through_convolution(wanted)  # an inverted residual


def _through_path(block: nn.Module, path: str, wanted: np.ndarray) -> np.ndarray:
    """As `_before_block`, through one of the paths that the block has."""
    if path == "gate":
        return np.zeros_like(wanted)
    if path == "residual":
        return wanted
    if path == "scan":
        assert isinstance(block, EVSSBlock)
        return through_op(scan_order(block.op.scan.spec, *wanted.shape), wanted)
    return through_convolution(wanted)


def _enlarged(tokens: np.ndarray, factor: int) -> np.ndarray:
    """Each token as `factor` x `factor` places of the finer map."""
    return tokens.repeat(factor, axis=0).repeat(factor, axis=1)
