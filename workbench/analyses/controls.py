"""What an attribution map is held against, on the map's own cells: edges of the photo, chance.

A map has one value per cell of `stride` x `stride` input pixels. Ordering pixels by a map, and the
controls beside it, share the cells, so that none gains from being finer than another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import conv2d, pad

from models.efficientvmamba import IMAGENET_MEAN, IMAGENET_STD
from workbench.errors import BadInputError
from workbench.results import AttributionMap

MEAN = np.array(IMAGENET_MEAN, dtype=np.float32)[:, None, None]
STD = np.array(IMAGENET_STD, dtype=np.float32)[:, None, None]
LUMINANCE = np.array((0.299, 0.587, 0.114), dtype=np.float32)  # of RGB, ITU-R BT.601


@dataclass(frozen=True)
class Cells:
    """Which cell of a map each input pixel belongs to."""

    index: np.ndarray  # int64 [H, W]: row * columns + column of the pixel's cell
    rows: int
    columns: int
    n_pixels: np.ndarray  # int64 [rows * columns], of each cell; at the border fewer

    @classmethod
    def of(cls, shown: AttributionMap, height: int, width: int) -> Cells:
        """Cells of a map on an input of `height` x `width` pixels.

        A cell that reaches beyond the input is cut; pixels beyond the last cell, which are fewer
        than a cell, belong to the last one.
        """
        places = []
        for n_cells, n_pixels in zip(shown.values.shape, (height, width), strict=True):
            if not (n_cells - 1) * shown.stride < n_pixels < (n_cells + 1) * shown.stride:
                rows, columns = shown.values.shape
                raise BadInputError(
                    f"The map {shown.name!r} has {rows} x {columns} cells of {shown.stride} px, "
                    f"which do not cover a photo of {height} x {width} px. Give the photo that "
                    "the map was made from, in the size that the network saw."
                )
            places.append(np.minimum(np.arange(n_pixels) // shown.stride, n_cells - 1))
        rows, columns = shown.values.shape
        index = places[0][:, None] * columns + places[1]
        return cls(index, rows, columns, np.bincount(index.ravel(), minlength=rows * columns))

    def ranks(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Place of each pixel, int64 `[H, W]`, 0 = first, by falling value of its cell `[h, w]`.

        Cells of the same value follow in random order, the pixels of one cell in reading order.
        """
        shuffled = rng.permutation(values.size)
        order = shuffled[np.argsort(-values.ravel()[shuffled], kind="stable")]
        place = np.empty(values.size, dtype=np.int64)
        place[order] = np.arange(values.size)
        pixels = np.argsort(place[self.index].ravel(), kind="stable")
        ranks = np.empty(self.index.size, dtype=np.int64)
        ranks[pixels] = np.arange(self.index.size)
        return ranks.reshape(self.index.shape)

    def mean(self, picture: np.ndarray) -> np.ndarray:
        """Mean of a picture `[H, W]` over each cell, float32 `[h, w]`."""
        sums = np.bincount(self.index.ravel(), picture.ravel(), minlength=self.n_pixels.size)
        return (sums / self.n_pixels).astype(np.float32).reshape(self.rows, self.columns)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Each cell's value `[h, w]` divided among its pixels, float64 `[H, W]`: the sum stays."""
        return (values.ravel().astype(np.float64) / self.n_pixels)[self.index]


def edges(image: np.ndarray, cells: Cells) -> np.ndarray:
    """Edge detector: mean over each cell of the Sobel magnitude of a normalised `[3, H, W]` image.

    sqrt(gx^2 + gy^2) of the luminance, the border repeated; float32 `[h, w]`. It knows neither the
    network nor the class.
    """
    grey = np.tensordot(LUMINANCE, image * STD + MEAN, axes=1)
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack((across, across.T))[:, None]
    padded = pad(torch.from_numpy(grey)[None, None], (1, 1, 1, 1), mode="replicate")
    gradient = conv2d(padded, kernels)[0]  # [2, H, W]
    return cells.mean(gradient.square().sum(0).sqrt().numpy())
