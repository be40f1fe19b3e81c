"""Where the tokens of a convolutional network lie on its input, by receptive-field arithmetic.

Not every token (i, j) of stride s lies around ((i + 1/2) s, (j + 1/2) s) as those of a network of
patches do: in a ResNet, whose convolutions are padded on both sides, token (0, 0) lies around the
corner pixel. The forward pass is followed operator by operator: a window of k places, stride s and
p pads in front moves the reach of the first token from [low, high] to [low - p jump,
high + (k - 1 - p) jump] and makes the jump s times as large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
REDUCTIONS = {aten.mean, aten.sum, aten.amax}
# What comes out has other places: pooling to a fixed size, enlargement.
FORGET = {
    aten.adaptive_max_pool2d,
    aten._adaptive_avg_pool2d,
    aten.upsample_nearest2d,
    aten.upsample_bilinear2d,
    aten.upsample_bicubic2d,
}


@dataclass(frozen=True, eq=False)
class Extent:
    """Input pixels that the first token reaches, and the step to the next token; (y, x) each."""

    low: np.ndarray  # index of the first pixel; negative in the padding
    high: np.ndarray  # of the last one
    jump: np.ndarray
    pads: np.ndarray  # just put in front of the first token, for the window that comes next

    def through(
        self, size: np.ndarray, stride: np.ndarray, pads: np.ndarray, dilation: np.ndarray
    ) -> Extent:
        """After windows of `size` with `pads` of their own in front."""
        before = pads + self.pads
        return Extent(
            self.low - before * self.jump,
            self.high + ((size - 1) * dilation - before) * self.jump,
            self.jump * stride,
            np.zeros(2),
        )

    def joined(self, others: Sequence[Extent]) -> Extent:
        """With parallel branches; one of another resolution does not say where the tokens are."""
        same = [self, *(e for e in others if (e.jump == self.jump).all())]
        low, high = np.min([e.low for e in same], axis=0), np.max([e.high for e in same], axis=0)
        return replace(self, low=low, high=high)

    def merged(self, stride: int) -> Extent:
        """After cells of tokens were joined to one without a window: Swin's patch merging."""
        return replace(self, high=self.high + (stride - self.jump), jump=self.jump * 0 + stride)

    @property
    def centre(self) -> tuple[float, float]:
        """(y, x) input pixels; pixel i spans [i, i + 1]."""
        y, x = (self.low + self.high + 1) / 2
        return float(y), float(x)


def origins(
    run: Callable[[Tensor], Sequence[Tensor]], x: Tensor, strides: Sequence[int]
) -> list[tuple[list[int], tuple[float, float]]]:
    """Shape and centre of token (0, 0) for each map that `run` makes of the images `x`
    `[B, 3, H, W]`, whose tokens are `strides` pixels apart.

    `x` may be on the meta device: only shapes are looked at. A map whose operators cannot be
    followed gets the centre of its first patch, `(stride / 2, stride / 2)`.
    """
    with torch.no_grad(), _Follow(x) as follow:
        maps = run(x)
    found = []
    for values, stride in zip(maps, strides, strict=True):
        extent = follow.of(values)
        if extent is None or ((stride % extent.jump) != 0).any():
            centre = (stride / 2, stride / 2)
        else:
            centre = extent.merged(stride).centre
        found.append((list(values.shape), centre))
    return found


class _Follow(TorchDispatchMode):
    """Watches every operator and keeps the extent of each tensor that comes from the images."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self._extents = WeakTensorKeyDictionary()
        zero = np.zeros(2)
        self._extents[images] = Extent(zero, zero, zero + 1, zero)

    def of(self, tensor: Tensor) -> Extent | None:
        return self._extents.get(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket
        known = [extent for t in _tensors(args) if (extent := self.of(t)) is not None]
        if not known or name in FORGET or (name in REDUCTIONS and _is_over_places(args)):
            return result
        first = self.of(args[0]) if isinstance(args[0], Tensor) and args[0].dim() == 4 else None
        after = None if first is None else _after_window(name, first, args)
        if after is None:
            after = replace(known[0], pads=np.zeros(2)).joined(known[1:])
        for tensor in _tensors([result]):
            self._extents[tensor] = after
        return result


def _after_window(name: Any, extent: Extent, args: tuple[Any, ...]) -> Extent | None:
    """`extent` of the map that a window or pads were applied to; None for any other operator."""
    if name is aten.convolution and not args[6]:  # not transposed
        size = args[1].shape[2:]
        return extent.through(*map(_pair, (size, args[3], args[4], args[5])))
    if name in (aten.max_pool2d_with_indices, aten.avg_pool2d):
        return extent.through(*map(_pair, _pooling(name, args)))
    if name is aten.constant_pad_nd:
        left, top = ([*args[1]] + [0] * 4)[0:3:2]
        return replace(extent, pads=np.array([top, left]))
    return None


def _is_over_places(args: tuple[Any, ...]) -> bool:
    """Whether a mean or sum runs over rows or columns, the last two dimensions."""
    dims = args[1] if len(args) > 1 else None
    if not dims:
        return True
    n = args[0].dim()
    return any(dim % n >= n - 2 for dim in dims)


def _pooling(name: Any, args: tuple[Any, ...]) -> tuple[Any, Any, Any, Any]:
    given = dict(enumerate(args))
    stride = given.get(2) or given[1]
    dilation = 1 if name is aten.avg_pool2d else given.get(4, 1)
    return given[1], stride, given.get(3, 0), dilation


def _pair(value: Any) -> np.ndarray:
    values = [value] if isinstance(value, int) else list(value)
    return np.broadcast_to(np.array(values, dtype=float), (2,))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
