"""The images that a receptive field is averaged over: crops of the gallery, uploads, a folder.

An image set is a sequence of pairs (name, normalised input float32 `[3, h, w]`), all of one size,
cut and decoded when asked for: memory does not grow with their number. One that cannot be read
raises `BadInputError` when it is asked for, and only that one.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from workbench.cache import run_key
from workbench.errors import BadInputError
from workbench.photos import SUFFIXES, PhotoLibrary, Prepared, decode, normalise
from workbench.view import MAX_ERF_IMAGES

SMALLEST_SHARE = 0.6  # of the largest crop that fits; smaller crops are mostly blown-up texture
MAX_FILE_BYTES = 256 * 2**20  # a photo of the largest size that is decoded needs less
Item = tuple[str, np.ndarray]


class ImageSet(Sequence[Item]):
    """Pairs (name, normalised input `[3, h, w]`) of one size."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Name of each image, known without reading it."""

    @property
    @abstractmethod
    def words(self) -> str:
        """Which images these are, in one line."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Equal for equal images."""

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """Normalised input float32 `[3, h, w]`; `index` from 0."""

    def name(self, index: int) -> str:
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self.names[index], self.image(index)


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


class ErfImages(ImageSet):
    """The view's photo first, then `n - 1` seeded crops of the gallery, all of its input size.

    The gallery is gone through in its order, again from the start with other crops where `n` is
    larger.
    """

    def __init__(
        self, library: PhotoLibrary, first: str, prepared: Prepared, n: int, seed: int
    ) -> None:
        if not 1 <= n <= MAX_ERF_IMAGES:
            raise BadInputError(f"{n} images were asked for. Choose from 1 to {MAX_ERF_IMAGES:,}.")
        self._library = library
        self._first = first
        self._prepared = prepared
        self._seed = seed
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

    @cached_property
    def names(self) -> tuple[str, ...]:
        return (self._first, *(crop.name for crop in self.crops))

    @property
    def words(self) -> str:
        if not self.crops:
            return f"{self._first} alone"
        n_photos = len({crop.photo for crop in self.crops})
        return (
            f"{self._first} and {_count(len(self.crops), 'seeded crop')} of "
            f"{_count(n_photos, 'photo')} (seed {self._seed})"
        )

    @cached_property
    def digest(self) -> str:
        return run_key(
            "images",
            first=self._library.get(self._first).sha256,
            crop=self._prepared.crop,
            shape=self._prepared.rgb.shape,
            crops=[(crop.name, self._library.get(crop.photo).sha256) for crop in self.crops],
        )

    def image(self, index: int) -> np.ndarray:
        if index == 0:
            return normalise(self._prepared.rgb)
        crop = self.crops[index - 1]
        rgb = self._library.get(crop.photo).rgb
        cut = rgb[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        return normalise(_resized(cut, self._prepared.rgb.shape[:2]))


class PhotoSet(ImageSet):
    """Photos of the library by id, each cut to its centre at the aspect of `shape` (h, w) px."""

    def __init__(self, library: PhotoLibrary, ids: Sequence[str], shape: tuple[int, ...]) -> None:
        ids = tuple(dict.fromkeys(ids))
        if not 1 <= len(ids) <= MAX_ERF_IMAGES:
            raise BadInputError(
                f"The set holds {len(ids)} photos. Choose from 1 to {MAX_ERF_IMAGES:,}."
            )
        # The photos themselves: an upload may be dropped from the library while the run goes on.
        self._photos = [library.get(photo_id) for photo_id in ids]
        self._shape = shape[0], shape[1]

    @cached_property
    def names(self) -> tuple[str, ...]:
        n = Counter(photo.title for photo in self._photos)
        return tuple(p.title if n[p.title] == 1 else f"{p.title} ({p.id})" for p in self._photos)

    @property
    def words(self) -> str:
        n = len(self._photos)
        return f"{_count(n, 'chosen photo')}, {_cut_words(n, self._shape)}"

    @cached_property
    def digest(self) -> str:
        hashes = [photo.sha256 for photo in self._photos]
        return run_key("photos", shape=self._shape, photos=hashes)

    def image(self, index: int) -> np.ndarray:
        return normalise(_centre(self._photos[index].rgb, self._shape))


class FolderImages(ImageSet):
    """Photos below `folder` in an order drawn by `seed`: `n` of them, or all where `n` is None or
    larger than their number.

    The first of them are a random sample at every moment of a running mean, and the same ones
    whatever `n` is. Names are paths below the folder. Links to folders are not followed.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, ...], n: int | None = None, seed: int = 0
    ) -> None:
        if n is not None and n < 1:
            raise BadInputError(f"{n} images were asked for. Choose 1 or more.")
        found = [path.relative_to(folder).as_posix() for path in pictures_below(folder)]
        self._folder = folder
        self._shape = shape[0], shape[1]
        self._asked = n
        self._seed = seed
        self.n_found = len(found)
        order = np.random.default_rng(seed).permutation(len(found))[:n]
        self._files = [found[i] for i in order]
        self._names = tuple(map(_printable, self._files))

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def words(self) -> str:
        n = len(self._names)
        if n < self.n_found:
            which = f"{n:,} of {self.n_found:,} photos"
        else:
            which = f"all {self.n_found:,} photos" if n > 1 else "the only photo"
        asked = f" ({self._asked:,} asked for)" if (self._asked or 0) > self.n_found else ""
        return (
            f"{which} below {self._folder}{asked}, order by seed {self._seed}, "
            f"{_cut_words(n, self._shape)}"
        )

    @cached_property
    def digest(self) -> str:
        hashes = [self._hash(index) for index in range(len(self))]
        return run_key("folder", shape=self._shape, files=hashes)

    def image(self, index: int) -> np.ndarray:
        decoded = decode(self._read(index), self._names[index])
        return normalise(_centre(decoded.rgb, self._shape))

    def _hash(self, index: int) -> str:
        """Of the file's bytes; of a file that cannot be read, of the reason: it is left out."""
        try:
            return hashlib.sha256(self._read(index)).hexdigest()
        except BadInputError as error:
            return str(error)

    def _read(self, index: int) -> bytes:
        name, path = self._names[index], self._folder / self._files[index]
        try:
            # A named pipe or a device would block or never end.
            if not path.is_file():
                raise BadInputError(f"{name} is no longer there, or no file.")
            if (n_bytes := path.stat().st_size) > MAX_FILE_BYTES:
                raise BadInputError(
                    f"{name} has {n_bytes / 2**20:,.0f} MB; at most {MAX_FILE_BYTES // 2**20} MB "
                    "are read."
                )
            return path.read_bytes()
        except OSError as error:
            raise BadInputError(f"{name} cannot be read: {error.strerror}.") from error


def pictures_below(folder: Path) -> list[Path]:
    """Photos of a folder and of those in it, sorted; a sentence where there are none."""
    if not folder.is_dir():
        raise BadInputError(f"There is no folder {str(folder)!r}. Give a folder with photos.")
    found = sorted(_pictures(folder), key=lambda path: path.relative_to(folder).as_posix())
    if not found:
        raise BadInputError(
            f"There is no photo in {str(folder)!r} or below it. Give a folder with files whose "
            f"names end in {', '.join(SUFFIXES)}."
        )
    return found


def names_below(files: Sequence[Path]) -> tuple[str, ...]:
    """Paths below the folder that all files share, fit for one line: no two look alike because
    they lie in different folders."""
    if not files:
        return ()
    root = os.path.commonpath([path.parent for path in files])
    return tuple(_printable(path.relative_to(root).as_posix()) for path in files)


def _pictures(folder: Path) -> Iterator[Path]:
    """Files with a picture's name, hidden ones left out (macOS puts "._photo.jpg" beside each)."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(parent, name)


def _centre(rgb: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The largest centred part of `[H, W, 3]` with the aspect of `shape`, resized to it."""
    share = min(rgb.shape[0] / shape[0], rgb.shape[1] / shape[1])
    height, width = (max(1, round(side * share)) for side in shape)
    top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
    return _resized(rgb[top : top + height, left : left + width], shape)


def _resized(rgb: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def _cut_words(n: int, shape: tuple[int, int]) -> str:
    each = "each cut" if n > 1 else "cut"
    return f"{each} to its centre and resized to {shape[0]} x {shape[1]} px"


def _printable(name: str) -> str:
    """A file's name fit for one line and for any encoding."""
    return "".join(c if c.isprintable() else "?" for c in name)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' if n != 1 else ''}"
