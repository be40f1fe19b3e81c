"""Folders, samples and batches: the same numbers for any number of workers and processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from models.training.data import (
    CachedStore,
    FileStore,
    SampleKey,
    TrainBatches,
    TrainSamples,
    centre_batches,
    centre_square,
    collate,
    find_split,
    normalise,
    open_store,
)
from models.training.errors import TrainingError


def test_split_lists_classes_and_files_in_order(images: Path) -> None:
    split = find_split(images, "train")
    assert split.classes == ("blue", "green", "red")
    assert split.labels == (0,) * 6 + (1,) * 6 + (2,) * 6
    assert [f.name for f in split.files[:2]] == ["0.png", "1.png"]


def test_fingerprint_changes_with_the_files(images: Path) -> None:
    before = find_split(images, "val").fingerprint()
    file = images / "val" / "red" / "0.png"
    os.utime(file, (1, 1))
    assert find_split(images, "val").fingerprint() == before, "a copy of the files is the same set"
    pixels = bytearray(file.read_bytes())
    pixels[len(pixels) // 2] ^= 1
    file.write_bytes(pixels)
    assert find_split(images, "val").fingerprint() != before
    before = find_split(images, "val").fingerprint()
    (images / "val" / "red" / "0.png").unlink()
    assert find_split(images, "val").fingerprint() != before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no split", "is not a folder"),
        ("one class", "at least two"),
        ("empty class", "holds no image"),
        ("other classes", "Both splits need the same"),
    ],
)
def test_bad_folders_are_named(tmp_path: Path, images: Path, damage: str, message: str) -> None:
    known = None
    if damage == "no split":
        images = tmp_path / "nothing"
    elif damage == "one class":
        for name in ("blue", "green"):
            (images / "train" / name).rename(tmp_path / name)
    elif damage == "empty class":
        (images / "train" / "yellow").mkdir()
    else:
        known = ("blue", "green", "violet")
    with pytest.raises(TrainingError, match=message):
        find_split(images, "train", known)


def test_cache_holds_the_decoded_files(images: Path, tmp_path: Path) -> None:
    split = find_split(images, "train")
    cached = CachedStore.build(split, tmp_path / "cache", side=64)
    for index, image in enumerate(FileStore(split.files)):  # type: ignore[arg-type]
        assert torch.equal(cached[index], image)
        if index == 5:
            break
    small = CachedStore.build(split, tmp_path / "cache", side=20)
    assert small[0].shape == (3, 20, 24)
    again = CachedStore.build(split, tmp_path / "cache", side=20)
    assert torch.equal(again[3], small[3])


@pytest.mark.parametrize("is_cached", [False, True], ids=["files", "cache"])
def test_a_corrupt_image_is_left_out_and_named(
    images: Path, tmp_path: Path, is_cached: bool
) -> None:
    broken = images / "train" / "green" / "0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    split = find_split(images, "train")
    store = open_store(split, tmp_path / "cache" if is_cached else None, 64)
    samples = TrainSamples(store, split.labels, seed=0, min_scale=0.5)
    batch = collate([samples[SampleKey(0, i, 32)] for i in (5, 6, 7)])
    assert batch.indices.tolist() == [5, 7] and batch.images.shape == (2, 3, 32, 32)
    assert list(batch.problems) == [6] and batch.problems[6]


def test_a_sample_depends_on_seed_epoch_and_index_alone(images: Path) -> None:
    split = find_split(images, "train")
    store = FileStore(split.files)

    def draw(seed: int, epoch: int, state: int) -> torch.Tensor:
        torch.manual_seed(state)
        sample = TrainSamples(store, split.labels, seed, 0.2, randaugment=5)
        image = sample[SampleKey(epoch, 4, 32)].image
        assert image is not None
        return image

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = draw(0, 0, 3)
    assert torch.equal(torch.get_rng_state(), before), "the global generator must not move"
    assert torch.equal(draw(0, 0, 4), first)
    assert not torch.equal(draw(1, 0, 3), first)
    assert not torch.equal(draw(0, 1, 3), first)


def test_box_says_which_part_of_the_image_was_cropped(images: Path) -> None:
    split = find_split(images, "train")

    class Ramp:
        """Brightness rises from left to right, so a crop shows where it came from."""

        def __len__(self) -> int:
            return len(split.labels)

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.arange(200, dtype=torch.uint8).expand(3, 100, 200).contiguous()

    samples = TrainSamples(Ramp(), split.labels, seed=0, min_scale=0.1)
    seen = set()
    for index in range(12):
        sample = samples[SampleKey(0, index, 32)]
        assert sample.image is not None
        row = sample.image[0, 16].float()
        left, right = (row[-1], row[0]) if sample.is_flipped else (row[0], row[-1])
        assert left == pytest.approx(200 * sample.box[1], abs=4)
        assert right == pytest.approx(200 * sample.box[3], abs=4)
        seen.add(sample.is_flipped)
    assert seen == {True, False}


def test_workers_change_nothing(images: Path) -> None:
    split = find_split(images, "train")
    samples = TrainSamples(FileStore(split.files), split.labels, seed=0, min_scale=0.3)

    def load(n_workers: int) -> list[torch.Tensor]:
        batches = TrainBatches(18, 4, seed=0)
        batches.start(epoch=3, size=32)
        loader = DataLoader(
            samples, batch_sampler=batches, collate_fn=collate, num_workers=n_workers
        )
        return [batch.images for batch in loader]

    here, elsewhere = load(0), load(1)
    assert len(here) == 4
    assert all(torch.equal(a, b) for a, b in zip(here, elsewhere, strict=True))


def test_processes_share_the_steps_of_one() -> None:
    """Batch n of two processes holds the images of batches 2n and 2n + 1 of one process."""
    alone = TrainBatches(20, 3, seed=7)
    alone.start(2, 32)
    first, second = (TrainBatches(20, 3, seed=7, rank=rank, world=2) for rank in (0, 1))
    first.start(2, 32)
    second.start(2, 32)
    pairs = [batch for pair in zip(first, second, strict=True) for batch in pair]
    assert pairs == list(alone)[: len(pairs)] and len(pairs) == 6
    images = [key.image for batch in alone for key in batch]
    assert len(set(images)) == len(images) == 18


def test_batches_continue_in_the_middle() -> None:
    batches = TrainBatches(20, 3, seed=7)
    batches.start(1, 32)
    whole = list(batches)
    batches.start(1, 32, first_batch=4)
    assert list(batches) == whole[4:]
    batches.start(2, 32)
    assert list(batches) != whole


def test_too_few_images_for_a_step() -> None:
    with pytest.raises(TrainingError, match="fewer than one step of 4 x 2"):
        TrainBatches(7, 4, seed=0, world=2)


def test_centre_square_keeps_the_middle() -> None:
    image = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image[:, :, 10:20] = 200
    assert torch.equal(centre_square(image, 10), torch.full((3, 10, 10), 200, dtype=torch.uint8))
    assert centre_square(image, 5).shape == (3, 5, 5)


def test_centre_batches_hold_every_image_once(images: Path) -> None:
    split = find_split(images, "val")
    batches = list(centre_batches(FileStore(split.files), split.labels, 32, 4))
    assert torch.cat([b.indices for b in batches]).tolist() == list(range(9))
    assert torch.cat([b.labels for b in batches]).tolist() == list(split.labels)


def test_normalise_is_imagenet_s() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    out = normalise(images)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    torch.testing.assert_close(out[0, :, 0, 0], -mean / std)
    torch.testing.assert_close(out[1, :, 1, 1], (1 - mean) / std)
