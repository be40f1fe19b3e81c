"""The images of a receptive field: the view's photo first, then seeded crops of the gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from workbench.cache import run_key
from workbench.photos import PhotoLibrary, Prepared, normalise

SMALLEST_SHARE = 0.6  # of the largest crop that fits; smaller crops are mostly blown-up texture


@dataclass(frozen=True, slots=True)
class Crop:
    photo: str
    top: int
    left: int
    height: int
    width: int

    @property
    def name(self) -> str:
        return (
            f"{self.photo}, {self.height} x {self.width} px at row {self.top}, column {self.left}"
        )


class ErfImages(Sequence[tuple[str, np.ndarray]]):
    """`n` pairs (name, normalised input `[3, h, w]`), all of the view's input size; cut when asked
    for.

    The gallery is gone through in its order, again from the start with other crops where `n` is
    larger.
    """

    def __init__(
        self, library: PhotoLibrary, first: str, prepared: Prepared, n: int, seed: int
    ) -> None:
        self._library = library
        self._first = first
        self._prepared = prepared
        height, width = prepared.rgb.shape[:2]
        rng = np.random.default_rng(seed)
        photos = [photo for photo in library.list() if photo.id != first] or list(library.list())
        self.crops: list[Crop] = []
        for i in range(n - 1):
            photo = photos[i % len(photos)]
            share = rng.uniform(SMALLEST_SHARE, 1.0) * min(
                photo.height / height, photo.width / width
            )
            h, w = (max(1, round(side * share)) for side in (height, width))
            top = int(rng.integers(photo.height - h + 1)) if photo.height > h else 0
            left = int(rng.integers(photo.width - w + 1)) if photo.width > w else 0
            self.crops.append(Crop(photo.id, top, left, h, w))

    @property
    def digest(self) -> str:
        """Equal for equal images."""
        return run_key(
            "images",
            first=self._library.get(self._first).sha256,
            crop=self._prepared.crop,
            crops=[(crop.name, self._library.get(crop.photo).sha256) for crop in self.crops],
        )

    def __len__(self) -> int:
        return 1 + len(self.crops)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index == 0:
            return self._first, normalise(self._prepared.rgb)
        crop = self.crops[index - 1]
        rgb = self._library.get(crop.photo).rgb
        cut = rgb[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        height, width = self._prepared.rgb.shape[:2]
        resized = Image.fromarray(cut).resize((width, height), Image.Resampling.BICUBIC)
        return crop.name, normalise(np.asarray(resized))
