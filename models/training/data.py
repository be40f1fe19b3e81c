"""Image folders as batches: `train/<class>/*` and `val/<class>/*`, any size, any number of classes.

A sample is addressed by `SampleKey(epoch, index, size)` and its crop, flip and other random choices
depend on `(seed, epoch, index)` alone, so that batches are the same for any number of workers,
after a resume in the middle of an epoch, and however many processes share the work.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as transforms

from models.training.errors import TrainingError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
# ImageNet statistics: the normalisation that every model of this repository expects.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SAMPLE = 4096  # bytes of each file that tell whether it was edited


class SampleKey(NamedTuple):
    """Which image, in which epoch, at which size in pixels."""

    epoch: int
    image: int  # place in the split
    size: int


class Box(NamedTuple):
    """A crop in pixels of the stored image, (y, x) order."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Split:
    """The files of `train` or `val` in sorted order, with their class numbers."""

    name: str
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """Changes whenever a file is added, removed, renamed or edited; a copy or a fresh mount of
        the same images keeps it. Of each file: name, size and the `SAMPLE` bytes in its middle,
        where the pixels of a JPEG or PNG lie."""
        digest = hashlib.sha256()
        for file, label in zip(self.files, self.labels, strict=True):
            with file.open("rb") as opened:
                size = opened.seek(0, os.SEEK_END)
                opened.seek(max(0, (size - SAMPLE) // 2))
                digest.update(f"{label}/{file.name}:{size}\n".encode() + opened.read(SAMPLE))
        return digest.hexdigest()[:16]


def find_split(root: Path, name: str, classes: tuple[str, ...] | None = None) -> Split:
    """The images below `root/name/<class>/`; with `classes` given, its folders must be those."""
    folder = root / name
    if not folder.is_dir():
        raise TrainingError(
            f"{folder} is not a folder. Expected {root}/train/<class>/*.jpg and "
            f"{root}/val/<class>/*.jpg; give the folder that holds train and val."
        )
    found = tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )
    if classes is not None and found != classes:
        missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        raise TrainingError(
            f"{folder} has {len(found)} class folders, {len(classes)} were expected "
            f"(missing: {missing[:5]}, unknown: {extra[:5]}). "
            "Both splits need the same class folder names."
        )
    if len(found) < 2:
        raise TrainingError(
            f"{folder} has {len(found)} class folder(s); a classifier needs at least two."
        )
    files: list[Path] = []
    labels: list[int] = []
    for number, class_name in enumerate(found):
        images = sorted(
            p for p in (folder / class_name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES
        )
        if not images:
            raise TrainingError(
                f"{folder / class_name} holds no image ({', '.join(IMAGE_SUFFIXES)}). "
                "Add images or remove the folder."
            )
        files += images
        labels += [number] * len(images)
    return Split(name, tuple(files), tuple(labels), found)


def decode(file: Path) -> Tensor:
    """An image file as RGB uint8 `[3, H, W]`."""
    with Image.open(file) as image:
        array = np.array(image.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


class ImageStore(Protocol):
    """Something that yields image `index` as RGB uint8 `[3, H, W]`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


class FileStore:
    """Decodes each file when it is asked for; right for data sets too large to keep decoded."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return decode(self.files[index])


class CachedStore:
    """Every image decoded once into one memory-mapped uint8 file, at most `side` pixels on its
    shorter side. Decoding JPEG costs about 1 ms an image, reading from here about none."""

    def __init__(self, data: Path, table: np.ndarray) -> None:
        self.data = np.memmap(data, np.uint8, "r")
        self.table = table  # [n, 3]: offset in bytes, height, width; width 0 = not decodable

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Tensor:
        offset, height, width = (int(v) for v in self.table[index])
        if width == 0:
            raise OSError("could not be decoded when the cache was built")
        # Copied, because torch refuses memory that it may not write to.
        pixels = np.array(self.data[offset : offset + height * width * 3])
        return torch.from_numpy(pixels).view(height, width, 3).permute(2, 0, 1)

    @classmethod
    def build(cls, split: Split, folder: Path, side: int) -> CachedStore:
        """Opens the cache of this split in `folder`, decoding the images first where needed."""
        stem = folder / f"{split.name}-{side}px-{split.fingerprint()}"
        data, table_file = stem.with_suffix(".bin"), stem.with_suffix(".npy")
        if not table_file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            rows = []
            partial = data.with_suffix(f".partial{os.getpid()}")
            with partial.open("wb") as out:
                for file in split.files:
                    try:
                        image = limit_side(decode(file), side)
                    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                        rows.append((0, 0, 0))
                        continue
                    rows.append((out.tell(), image.shape[1], image.shape[2]))
                    out.write(image.permute(1, 2, 0).contiguous().numpy().tobytes())
            partial.replace(data)
            # The table is written last: its presence says that the data file is complete.
            np.save(table_file, np.array(rows, np.int64))
        return cls(data, np.load(table_file))


def limit_side(image: Tensor, side: int) -> Tensor:
    """Shrinks `[3, H, W]` so that the shorter side is at most `side` pixels."""
    if min(image.shape[-2:]) <= side:
        return image
    return transforms.resize(image, [side], InterpolationMode.BICUBIC, antialias=True)


def open_store(split: Split, cache: Path | None, side: int) -> ImageStore:
    """The decoded cache in `cache`, or the files themselves."""
    return FileStore(split.files) if cache is None else CachedStore.build(split, cache, side)


@dataclass(frozen=True)
class Sample:
    """One image ready for a batch, or the reason why there is none."""

    index: int
    label: int
    image: Tensor | None  # uint8 [3, size, size]
    box: tuple[float, float, float, float]  # y0, x0, y1, x1 as fractions of the stored image
    is_flipped: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Batch:
    """Samples of one step; unreadable ones are left out and named in `problems`."""

    images: Tensor  # uint8 [B, 3, size, size]
    labels: Tensor  # int64 [B]
    indices: Tensor  # int64 [B]
    boxes: Tensor  # float32 [B, 4]: y0, x0, y1, x1 as fractions of the stored image
    flipped: Tensor  # bool [B]
    problems: dict[int, str]


def collate(samples: list[Sample]) -> Batch:
    good = [s for s in samples if s.image is not None]
    images = [s.image for s in good if s.image is not None]
    return Batch(
        torch.stack(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
        torch.tensor([s.label for s in good], dtype=torch.int64),
        torch.tensor([s.index for s in good], dtype=torch.int64),
        torch.tensor([s.box for s in good], dtype=torch.float32).view(-1, 4),
        torch.tensor([s.is_flipped for s in good], dtype=torch.bool),
        {s.index: s.problem for s in samples if s.image is None},
    )


class TrainSamples(Dataset[Sample]):
    """Random resized crop and flip (and RandAugment where asked) of a store's images."""

    def __init__(
        self,
        store: ImageStore,
        labels: tuple[int, ...],
        seed: int,
        min_scale: float,
        randaugment: int = 0,
    ) -> None:
        self.store, self.labels, self.seed = store, labels, seed
        self.scale = (min_scale, 1.0)
        self.randaugment = v2.RandAugment(magnitude=randaugment) if randaugment else None

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index, size = key.epoch, key.image, key.size
        label = self.labels[index]
        try:
            image = self.store[index]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return Sample(index, label, None, (0, 0, 1, 1), problem=str(error))
        state = torch.get_rng_state()
        try:
            # Not torch.manual_seed: that would reseed the accelerators as well.
            torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
            box = Box(*v2.RandomResizedCrop(size, scale=self.scale).make_params([image]).values())
            is_flipped = bool(torch.rand(()) < 0.5)
            height, width = image.shape[-2:]
            image = transforms.resized_crop(
                image, *box, [size, size], InterpolationMode.BILINEAR, antialias=True
            )
            if is_flipped:
                image = transforms.horizontal_flip(image)
            if self.randaugment is not None:
                image = self.randaugment(image)
        finally:
            torch.set_rng_state(state)
        return Sample(
            index,
            label,
            image,
            (
                box.top / height,
                box.left / width,
                (box.top + box.height) / height,
                (box.left + box.width) / width,
            ),
            is_flipped,
        )


class CentreSamples(Dataset[Sample]):
    """The centre square of each image, resized: what accuracy is measured on."""

    def __init__(self, store: ImageStore, labels: tuple[int, ...]) -> None:
        self.store, self.labels = store, labels

    def __getitem__(self, key: SampleKey) -> Sample:
        try:
            image = self.store[key.image]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return Sample(key.image, self.labels[key.image], None, (0, 0, 1, 1), problem=str(error))
        return Sample(
            key.image, self.labels[key.image], centre_square(image, key.size), (0, 0, 1, 1)
        )


def centre_square(image: Tensor, size: int) -> Tensor:
    """The largest centred square of `[3, H, W]`, bicubically resized to `size` pixels."""
    side = min(image.shape[-2:])
    image = transforms.center_crop(image, [side, side])
    if side == size:
        return image
    return transforms.resize(image, [size, size], InterpolationMode.BICUBIC, antialias=True)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A 63-bit seed that differs for every image of every epoch."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class TrainBatches(Sampler[list[SampleKey]]):
    """The batches of one epoch: a permutation by `(seed, epoch)`, cut into steps of
    `batch_size * world` images of which this process takes its share. The rest that fills no
    step is left out, so that all processes do equally many steps."""

    def __init__(
        self, n_images: int, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.n_images, self.batch_size, self.seed = n_images, batch_size, seed
        self.rank, self.world = rank, world
        self.epoch, self.size, self.first_batch = 0, 0, 0
        if len(self) == 0:
            raise TrainingError(
                f"{n_images} training images are fewer than one step of {batch_size} x {world} "
                "images. Choose a smaller --batch-size."
            )

    def start(self, epoch: int, size: int, first_batch: int = 0) -> None:
        """Choose the epoch that the next iteration yields, from which batch on, at which size."""
        self.epoch, self.size, self.first_batch = epoch, size, first_batch

    def __len__(self) -> int:
        return self.n_images // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, -1))
        order = torch.randperm(self.n_images, generator=generator).tolist()
        for number in range(self.first_batch, len(self)):
            start = (number * self.world + self.rank) * self.batch_size
            chosen = order[start : start + self.batch_size]
            yield [SampleKey(self.epoch, index, self.size) for index in chosen]


def centre_batches(
    store: ImageStore,
    labels: tuple[int, ...],
    size: int,
    batch_size: int,
    workers: int = 0,
    images: Iterable[int] | None = None,
) -> Iterable[Batch]:
    """Every image (or those of `images`) once, in order."""
    chosen = range(len(labels)) if images is None else images
    keys = [SampleKey(0, index, size) for index in chosen]
    batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    return DataLoader(
        CentreSamples(store, labels),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
    )


def normalise(images: Tensor) -> Tensor:
    """uint8 `[B, 3, H, W]` to the float32 network input, channels last in memory."""
    mean = torch.tensor(MEAN, device=images.device).mul_(255).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).mul_(255).view(3, 1, 1)
    return images.float().sub(mean).div(std).contiguous(memory_format=torch.channels_last)


def describe(split: Split) -> dict[str, object]:
    """What a log and a card say about the images that were used."""
    return {
        "split": split.name,
        "n_images": len(split.files),
        "classes": list(split.classes),
        "fingerprint": split.fingerprint(),
    }
