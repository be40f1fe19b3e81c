"""Models by name: seeds, heads, shipped weights, scan schemes, and the registration with timm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import timm.data
import torch

import models
from kernels import ScanSpec
from models import registry
from models.bench import enliven

NAME = "efficientvmamba_test"
CLASSES = ("cat", "dog", "fox")


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def is_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_names() -> None:
    assert models.list_models() == [
        "efficientvmamba_tiny",
        "efficientvmamba_small",
        "efficientvmamba_base",
        "efficientvmamba_test",
    ]
    with pytest.raises(ValueError, match=r"'efficientvmamba_huge'.*efficientvmamba_tiny"):
        models.create_model("efficientvmamba_huge")
    with pytest.raises(ValueError, match=r"'fast'.*reference"):
        models.create_model(NAME, backend="fast")
    with pytest.raises(ValueError, match="es2d"):
        models.create_model(NAME, scan="zigzag")


def test_random_weights_come_from_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first = models.create_model(NAME, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = models.create_model(NAME, seed=3)
    other = models.create_model(NAME, seed=4)
    assert is_equal(state(first), state(again))
    assert not is_equal(state(first), state(other))
    assert first.weights_info.is_random
    assert first.weights_info.description == "random, seed 3"
    assert first.weights_info.sha256 == again.weights_info.sha256 != other.weights_info.sha256
    # Ablations start from the same numbers wherever they have the same tensors.
    ablated, full = state(models.create_model(NAME, seed=3, se=False)), state(first)
    assert all(torch.equal(value, full[key]) for key, value in ablated.items())


def test_initial_values_are_the_authors() -> None:
    model = models.create_model("efficientvmamba_tiny")
    op = model.get_submodule("layers.0.blocks.0.op")
    torch.testing.assert_close(op.A_logs.exp(), torch.arange(1.0, 17.0).expand(384, 16))
    assert (op.Ds == 1).all()
    dt = torch.nn.functional.softplus(op.dt_projs_bias)
    assert 0.001 <= dt.min() < 0.002
    assert 0.05 < dt.max() <= 0.1001
    assert op.dt_projs_weight.abs().max() <= 3**-0.5
    assert op.x_proj_weight.abs().max() <= 96**-0.5
    assert 0.015 < op.in_proj.weight.std() < 0.025
    assert not model.get_parameter("classifier.head.bias").any()
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


def test_set_scan_and_with_scan() -> None:
    model = models.create_model(NAME, scan="es2d:step=3").eval()
    enliven(model)
    x = torch.randn(1, 3, 64, 64)
    assert models.get_scan(model) == ScanSpec.parse("es2d:step=3") == model.scan_spec
    with torch.no_grad():
        before = model(x)
        full = models.with_scan(model, "ss2d")
        assert (full(x) - before).norm() > 1e-3 * before.norm()
        assert torch.equal(model(x), before)
        models.set_scan(model, "ss2d")
        assert torch.equal(model(x), full(x))
        models.set_scan(model, "es2d", step=3)
        assert torch.equal(model(x), before)
    with pytest.raises(ValueError, match="step"):
        models.set_scan(model, "es2d", step=0)


def test_twin_shares_tensors_and_nothing_else() -> None:
    model = models.create_model(NAME).train()
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("model"))
    twin = models.with_scan(model, "ss2d")
    ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[k] is theirs[k] for k in ours)
    assert all(a is b for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert twin.weights_info is model.weights_info
    twin.eval()
    twin.register_forward_hook(lambda *_: calls.append("twin"))
    twin.reset_classifier(2)
    twin(torch.zeros(1, 3, 32, 32))
    assert calls == ["twin"]
    assert model.training
    assert all(m.training for m in model.modules())
    assert model.num_classes == 1000
    assert model.get_classifier().out_features == 1000
    # A scan's hook on one is not a hook on the other.
    assert model.get_submodule("layers.0.blocks.0.op.scan") is not twin.get_submodule(
        "layers.0.blocks.0.op.scan"
    )


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two entries in place of the shipped weights: one per scan scheme."""
    for scan in ("ss2d", "es2d"):
        model = models.create_model(NAME, num_classes=len(CLASSES), scan=scan, seed=len(scan))
        file = tmp_path / f"test_{scan}.safetensors"
        spec = str(model.scan_spec)
        description = f"Toys, trained with {spec}, top-1 90.0 % at 64 px"
        sha256 = models.save_safetensors(model, file, model_name=NAME, classes=CLASSES)
        card = {"model": NAME, "scan": spec, "classes": CLASSES, "description": description}
        card |= {"sha256": sha256, "top1": 90.0}
        file.with_suffix(".json").write_text(json.dumps(card))
    monkeypatch.setattr(registry, "WEIGHTS_DIR", tmp_path)
    return tmp_path


def test_shipped_weights_are_chosen_by_scan(shipped: Path) -> None:
    listed = models.available_weights(NAME)
    assert [w.name for w in listed] == ["test_es2d", "test_ss2d"]
    assert models.available_weights("efficientvmamba_tiny") == []
    for scan, expected in (("es2d", 0), ("ss2d", 1), ("es2d:step=3", 0)):
        model = models.create_model(NAME, "default", scan=scan)
        assert model.weights_info == listed[expected]
        assert str(model.scan_spec) == str(ScanSpec.parse(scan))
        assert model.num_classes == 3
    by_name = models.create_model(NAME, "test_ss2d")
    assert by_name.weights_info.trained_scan == "ss2d"
    assert by_name.weights_info.classes == CLASSES
    assert by_name.default_cfg["label_names"] == CLASSES
    with pytest.raises(models.CheckpointError, match=r"efficientvmamba_small; shipped: test_es2d"):
        models.create_model("efficientvmamba_small", "default")


def test_head_of_the_file_or_a_new_one(shipped: Path) -> None:
    with pytest.raises(models.CheckpointError, match=r"head for 3 classes, num_classes=5"):
        models.create_model(NAME, "default", num_classes=5)
    assert models.create_model(NAME, "default", num_classes=3).num_classes == 3
    new = models.create_model(NAME, "default", num_classes=5, reset_head=True)
    assert new.num_classes == 5
    assert new.weights_info.classes is None
    assert new.weights_info.top1 is None
    assert "new random head for 5 classes" in new.weights_info.description
    again = models.create_model(NAME, "default", num_classes=5, reset_head=True)
    assert is_equal(state(new), state(again))
    old = models.create_model(NAME, "default")
    assert torch.equal(new.patch_embed["0"].weight, old.patch_embed["0"].weight)


def test_every_shipped_card_is_true() -> None:
    for name in models.list_models():
        for info in models.available_weights(name):
            model = models.create_model(name, info.name, scan=info.trained_scan)
            assert model.weights_info == info
            assert info.classes is not None
            assert model.num_classes == len(info.classes) == info.n_classes


def test_timm_builds_our_models() -> None:
    torch.manual_seed(1)
    model = timm.create_model(NAME, num_classes=4, drop_path_rate=0.1)
    torch.manual_seed(1)
    assert is_equal(state(model), state(timm.create_model(NAME, num_classes=4)))
    assert model.num_classes == 4
    config = timm.data.resolve_model_data_config(model)
    assert config["mean"] == (0.485, 0.456, 0.406)
    assert config["std"] == (0.229, 0.224, 0.225)
    assert config["input_size"] == (3, 224, 224)
    assert set(models.list_models()) <= set(timm.list_models("efficientvmamba*"))
    with pytest.raises(ValueError, match="in_chans=1"):
        timm.create_model(NAME, in_chans=1)


def test_timm_features_only() -> None:
    net = timm.create_model(NAME, features_only=True, out_indices=(1, 2)).eval()
    assert net.feature_info.channels() == [32, 64]
    assert net.feature_info.reduction() == [8, 16]
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 32, 8, 12), (1, 64, 4, 6)]


def test_timm_pretrained_loads_what_ships(shipped: Path) -> None:
    assert timm.create_model(NAME, pretrained=True).weights_info.name == "test_es2d"
    tuned = timm.create_model(NAME, pretrained=True, num_classes=7)
    assert tuned.num_classes == 7
    overlay = {"file": str(shipped / "test_ss2d.safetensors")}
    given = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)
    assert given.weights_info.trained_scan == "ss2d"
