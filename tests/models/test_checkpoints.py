"""Checkpoints: the authors' containers, strictness in words, hostile files, saving, the hub."""

from __future__ import annotations

import argparse
import errno
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors
import torch
from torch import Tensor

import models
from models import checkpoint_files
from models.checkpoints import read_checkpoint

NAME = "efficientvmamba_test"


def random_state(seed: int = 5, num_classes: int = 10) -> dict[str, Tensor]:
    return models.create_model(NAME, seed=seed, num_classes=num_classes).state_dict()


def save(folder: Path, content: Any, name: str = "model.pth") -> str:
    torch.save(content, folder / name)
    return str(folder / name)


def load(weights: str, **options: Any) -> models.EfficientVMamba:
    return models.create_model(NAME, weights, **options)


def holds(model: torch.nn.Module, state: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[k], state[k]) for k in own)


@pytest.mark.parametrize("key", [None, "model", "state_dict", "ema_model", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_containers_and_prefixes(tmp_path: Path, key: str | None, prefix: str) -> None:
    state = random_state()
    named = {prefix + k: v for k, v in state.items()}
    model = load(save(tmp_path, named if key is None else {key: named, "epoch": 3}))
    assert holds(model, state)
    info = model.weights_info
    assert (info.n_classes, info.is_random, info.classes) == (10, False, None)
    assert info.trained_scan == "es2d:step=2"
    assert len(info.sha256) == 64
    if key is not None:
        assert f"'{key}'" in info.description


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    plain, averaged = random_state(1), random_state(2)
    both = save(tmp_path, {"model": plain, "model_ema": averaged, "optimizer": {"step": 1}})
    model = load(both)
    assert holds(model, averaged)
    assert "averaged weights (EMA) from entry 'model_ema'; 'model' left aside" in (
        model.weights_info.details
    )
    assert holds(load(f"{both}#model"), plain)
    wrapped = save(tmp_path, {"state_dict": plain, "ema_model": {"module": averaged}}, "w.pth")
    assert holds(load(wrapped), averaged)
    without = save(tmp_path, {"model": plain, "model_ema": None}, "none.pth")
    assert holds(load(without), plain)
    with pytest.raises(models.CheckpointError, match=r"'best'; its entries: 'model', 'model_ema'"):
        load(f"{both}#best")


def test_a_name_with_a_hash_sign_is_a_name(tmp_path: Path) -> None:
    state = random_state()
    assert holds(load(save(tmp_path, state, "run#2.pth")), state)


def test_backbone_only(tmp_path: Path) -> None:
    """The authors' detection backbone: no classifier, a norm per stage instead."""
    state = random_state()
    backbone = {k: v for k, v in state.items() if not k.startswith("classifier.")}
    backbone |= {f"outnorm{i}.weight": torch.ones(16 * 2**i) for i in range(4)}
    file = save(tmp_path, {"state_dict": {f"backbone.{k}": v for k, v in backbone.items()}})
    full, bare = load(save(tmp_path, state, "full.pth")).eval(), load(file).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = bare.forward_intermediates(x, intermediates_only=True)
        theirs = full.forward_intermediates(x, intermediates_only=True)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
        assert bare(x).shape == (1, bare.num_features)
    assert bare.num_classes == 0
    assert "backbone only" in bare.weights_info.description
    assert any("outnorm3.weight" in d for d in bare.weights_info.details)
    with pytest.raises(models.CheckpointError, match=r"no head \(0 classes\), num_classes=10"):
        load(file, num_classes=10)
    tuned = load(file, num_classes=10, reset_head=True).eval()
    assert tuned(x).shape == (1, 10)
    assert not any(torch.isnan(v).any() for v in tuned.state_dict().values())


def test_differences_are_listed(tmp_path: Path) -> None:
    state = random_state()
    del state["layers.0.blocks.0.op.Ds"]
    state["layers.0.blocks.0.op.D"] = torch.ones(3)
    state["patch_embed.0.bias"] = torch.ones(17)
    with pytest.raises(models.CheckpointError) as caught:
        load(save(tmp_path, state))
    message = str(caught.value)
    assert "1 missing: layers.0.blocks.0.op.Ds" in message
    assert "1 unexpected: layers.0.blocks.0.op.D\n" in message
    assert "1 of another shape: patch_embed.0.bias (file [17], model [16])" in message
    assert "fits no released size" in message


def test_the_fitting_size_is_named(tmp_path: Path) -> None:
    file = save(tmp_path, random_state())
    with pytest.raises(models.CheckpointError, match="It fits efficientvmamba_test"):
        models.create_model("efficientvmamba_tiny", file)


def test_thousand_classes_get_their_names(tmp_path: Path) -> None:
    info = load(save(tmp_path, random_state(num_classes=1000))).weights_info
    assert info.classes is not None
    assert (info.classes[0], info.classes[217]) == ("tench", "English springer")


class CfgNode(dict):  # yacs is not installed: the same kind of class under the same name
    pass


def test_harmless_classes_are_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the authors' training code stores beside the weights, numpy 1 and 2."""
    yacs = types.ModuleType("yacs.config")
    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    yacs.CfgNode = CfgNode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", yacs)
    config = CfgNode({"DATA": CfgNode({"IMG_SIZE": 224})})
    config.__dict__["__immutable__"] = True
    state = random_state()
    content = {
        "model": state,
        "args": argparse.Namespace(lr=1e-3, resume=None),
        "config": config,
        "max_accuracy": np.float64(76.5),
        "epoch": np.int64(299),
        "done": np.bool_(True),
    }
    file = save(tmp_path, content)
    monkeypatch.undo()
    assert "yacs" not in sys.modules
    assert holds(load(file), state)
    allowed_before = set(torch.serialization.get_safe_globals())
    loaded = checkpoint_files.read_pickle(Path(file))
    assert type(loaded["args"]) is not argparse.Namespace
    assert not vars(loaded["args"])
    assert set(torch.serialization.get_safe_globals()) == allowed_before
    old = tmp_path / "numpy1.pth"
    old.write_bytes(Path(file).read_bytes().replace(b"numpy._core", b"numpy.core "))
    with pytest.raises(models.CheckpointError):
        load(str(old))  # a damaged archive is no reason for a traceback either


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["beside", "instead"])
def test_hostile_pickles_run_nothing(tmp_path: Path, is_zip: bool, place: str) -> None:
    target = tmp_path / "owned"
    bad = Hostile(target)
    content = {"model": random_state(), "args": bad} if place == "beside" else bad
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(models.CheckpointError, match=r"bad.pth wants to run posix.system.*refused"):
        load(str(tmp_path / "bad.pth"))
    assert not target.exists()


def test_plain_pickles_and_tricks_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    file = tmp_path / "plain.pth"
    file.write_bytes(pickle.dumps({"model": Hostile(target)}))
    with pytest.raises(models.CheckpointError):
        load(str(file))
    # An object array would unpickle what is inside it, if numpy's own function were called.
    inner = pickle.dumps(Hostile(target))
    program = (
        b"\x80\x02cnumpy._core.multiarray\nscalar\nq\x00cnumpy\ndtype\nq\x01"
        b"U\x02O8\x89\x88\x87R" + b"U" + bytes([len(inner)]) + inner + b"\x86R."
    )
    file.write_bytes(program)
    with pytest.raises(models.CheckpointError):
        load(str(file))
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pth", b"not a checkpoint at all", "a.pth"),
        ("a.safetensors", b"not a checkpoint at all", "not a whole safetensors file"),
        ("a.pth", b"", "a.pth"),
        ("a.safetensors", b"", "not a whole safetensors file"),
    ],
)
def test_other_files_get_a_sentence(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(models.CheckpointError, match=words):
        load(str(tmp_path / name))


def test_truncated_files_get_a_sentence(tmp_path: Path) -> None:
    whole = Path(save(tmp_path, {"model": random_state()}))
    whole.write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(models.CheckpointError, match="model.pth"):
        load(str(whole))
    file = tmp_path / "m.safetensors"
    models.save_safetensors(models.create_model(NAME), file, model_name=NAME)
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(models.CheckpointError, match=r"m\.safetensors"):
        load(str(file))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "holds no weights"),
        ({"fc.weight": torch.ones(3, 3)}, "not an EfficientVMamba checkpoint.*fc.weight"),
        (
            {"a": {"w": torch.ones(2, 2)}, "b": {"w": torch.ones(2, 2)}},
            "several weights.*'a', 'b'.*#ENTRY",
        ),
    ],
)
def test_other_contents_get_a_sentence(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(models.CheckpointError, match=words):
        load(save(tmp_path, content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(models.CheckpointError, match="no checkpoint file"):
        load(str(tmp_path / "none.pth"))
    with pytest.raises(models.CheckpointError, match="is a folder"):
        load(str(tmp_path))


def test_safetensors_round_trip(tmp_path: Path) -> None:
    model = models.create_model(NAME, num_classes=2, scan="ss2d")
    file = tmp_path / "ours.safetensors"
    facts: dict[str, Any] = {"model_name": NAME, "classes": ("cat", "dog")}
    facts["recipe"] = {"epochs": 4}
    sha256 = models.save_safetensors(model, file, **facts, description="Toys", top1=90.5)
    kept = ("A_logs", "running_mean", "running_var", "num_batches_tracked")
    with safetensors.safe_open(file, framework="pt") as stored:
        for key in stored.keys():  # noqa: SIM118 (not a dictionary)
            own = model.state_dict()[key]
            expected = own.dtype if key.endswith(kept) else torch.float16
            assert stored.get_tensor(key).dtype == expected, key
    checkpoint = read_checkpoint(str(file))
    assert checkpoint.metadata["recipe"] == {"epochs": 4}
    again = load(str(file))
    assert all(p.dtype == torch.float32 for p in again.parameters())
    info = again.weights_info
    assert (info.trained_scan, info.classes, info.top1) == ("ss2d", ("cat", "dog"), 90.5)
    assert (info.description, info.sha256) == ("Toys", sha256)
    own = model.state_dict()
    for key, value in again.state_dict().items():
        torch.testing.assert_close(value, own[key], rtol=1e-3, atol=1e-6)
    twice = tmp_path / "twice.safetensors"
    models.save_safetensors(model, twice, **facts, description="Toys", top1=90.5)
    assert twice.read_bytes() == file.read_bytes()
    exact = tmp_path / "exact.safetensors"
    models.save_safetensors(model, exact, model_name=NAME, fp16=False)
    assert holds(load(str(exact)), own)
    with pytest.raises(models.CheckpointError, match="one set of weights"):
        load(f"{exact}#model")


def test_numbers_beyond_half_precision(tmp_path: Path) -> None:
    model = models.create_model(NAME)
    with torch.no_grad():
        model.patch_embed["0"].weight[0, 0, 0, 0] = 1e6
    with pytest.raises(models.CheckpointError, match=r"patch_embed.0.weight.*fp16=False"):
        models.save_safetensors(model, tmp_path / "m.safetensors", model_name=NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.safetensors"
    models.save_safetensors(models.create_model(NAME), file, model_name=NAME)
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        models.save_safetensors(models.create_model(NAME, seed=1), file, model_name=NAME)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


# The hub


@pytest.mark.parametrize("weights", ["hf:TerryPei/EfficientVMamba-Tiny", "hf:a/b@v1:m.pth#model"])
def test_offline_is_one_clear_sentence(weights: str) -> None:
    """HF_HUB_OFFLINE=1 is set for all tests."""
    with pytest.raises(models.CheckpointError, match="not on this machine and Hugging Face cannot"):
        load(weights)


@pytest.mark.parametrize("weights", ["hf:", "hf:only-a-name", "hf:a/b/c", "hf:a/../b"])
def test_wrong_hub_names(weights: str) -> None:
    with pytest.raises(models.CheckpointError, match="hf:Org/Repo@revision"):
        load(weights)


def test_hub_cache_serves_when_offline(tmp_path: Path) -> None:
    """A process with a cache of its own, as an earlier download leaves it."""
    state = random_state()
    repo = tmp_path / "hub" / "models--Org--Net"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save(snapshot, {"model": state}, "net.pth")
    (snapshot / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    code = (
        "import models\n"
        f"m = models.create_model('{NAME}', 'hf:Org/Net')\n"
        "assert m.weights_info.name == 'hf:Org/Net', m.weights_info\n"
        f"models.create_model('{NAME}', 'hf:Org/Net@{'0' * 40}:net.pth#model')\n"
        "try:\n"
        f"    models.create_model('{NAME}', 'hf:Org/Net@v2')\n"
        "except models.CheckpointError as error:\n"
        "    assert 'cannot be reached' in str(error)\n"
        "else:\n"
        "    raise SystemExit('a revision that is not there')\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    root = Path(models.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_hub_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hub that answers: the one checkpoint of the repository, at the pinned revision."""
    state = random_state()
    save(tmp_path, {"model": state}, "net.pth")
    asked: list[tuple[str, str, str | None]] = []
    files = ["README.md", "net.pth"]

    def download(repo: str, file: str, *, revision: str | None) -> str:
        asked.append((repo, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, *, revision: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = load("hf:Org/Net@abc123")
    assert holds(model, state)
    assert asked == [("Org/Net", "net.pth", "abc123")]
    assert model.weights_info.name == "hf:Org/Net@abc123"
    files.append("other.ckpt")
    with pytest.raises(models.CheckpointError, match=r"several checkpoints: net.pth, other.ckpt"):
        load("hf:Org/Net")
    files[:] = ["README.md"]
    with pytest.raises(models.CheckpointError, match="holds no checkpoint"):
        load("hf:Org/Net")
