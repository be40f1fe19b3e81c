"""Small image folders and trainers: every run takes a second or two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.training.config import TrainConfig
from models.training.data import find_split, open_store
from models.training.engine import Data, Trainer
from models.training.export import build_model

CLASSES = ("blue", "green", "red")

# torch lists the functions that `with torch.device(...)` steers once, at the first use; that must
# be before `poisoned_memory` puts its replacements in.
with torch.device("meta"):
    torch.empty(1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def make_folder(root: Path, n_train: int = 6, n_val: int = 3) -> Path:
    """`root/{train,val}/{blue,green,red}/N.png`: noisy images tinted by their class."""
    rng = np.random.default_rng(0)
    for split, n in (("train", n_train), ("val", n_val)):
        for name, channel in zip(CLASSES, (2, 1, 0), strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(n):
                pixels = rng.integers(0, 120, (40, 48, 3))
                pixels[..., channel] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """18 training and 9 validation images of three classes, 48 x 40 pixels."""
    return make_folder(tmp_path / "images")


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(
        model="efficientvmamba_test",
        sizes="32:2",
        batch_size=4,
        warmup_epochs=0.5,
        eval_size=32,
        ema_decay=0.9,
    )


@pytest.fixture
def make_trainer(images: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """`make_trainer(config, "folder", maps=None, **options)` on `images`."""

    def make(
        config: TrainConfig, out: str = "out", maps: np.ndarray | None = None, **options: object
    ) -> Trainer:
        train = find_split(images, "train")
        val = find_split(images, "val", train.classes)
        data = Data(train, val, open_store(train, None, 64), open_store(val, None, 64), maps)
        model = build_model(config, len(train.classes))
        return Trainer(
            config,
            model,
            data,
            tmp_path / out,
            device=torch.device("cpu"),
            **options,  # type: ignore[arg-type]
        )

    return make
