"""The network on any image size, its features, its options, and what it says to wrong input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import models
from models.bench import enliven
from models.efficientvmamba import MIN_SIZE
from models.layers import EVSSBlock


@pytest.fixture
def model() -> models.EfficientVMamba:
    net = models.create_model("efficientvmamba_test", num_classes=7).eval()
    enliven(net)
    return net


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96), (97, 50), (40, 224)])
def test_any_size_from_32(model: models.EfficientVMamba, size: tuple[int, int]) -> None:
    with torch.no_grad():
        last, stages = model.forward_intermediates(images(1, 3, *size))
        logits = model(images(1, 3, *size))
    height, width = size[0] // 4, size[1] // 4
    for stage, dim in zip(stages, model.dims, strict=True):
        assert stage.shape == (1, dim, height, width)
        height, width = -(-height // 2), -(-width // 2)
    assert last.shape[1:3] == stages[-1].shape[2:]
    assert logits.shape == (1, 7)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(3, 64, 64), ValueError, ["(3, 64, 64)", "4 dimensions", "unsqueeze(0)"]),
        (torch.zeros(1, 1, 64, 64), ValueError, ["1 channels", "expected 3"]),
        (torch.zeros(1, 64, 64, 3), ValueError, ["64 channels", "permute(0, 3, 1, 2)"]),
        (torch.zeros(1, 3, 64, 31), ValueError, ["64 x 31 px", "at least 32", "resize"]),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, ["uint8", "divide by 255"]),
        (torch.zeros(1, 3, 64, 64).double(), TypeError, ["float64", "float32", "images.to("]),
    ],
    ids=["3-D", "grey", "channels last", "too small", "uint8", "float64"],
)
def test_wrong_input_is_named(
    model: models.EfficientVMamba, x: torch.Tensor, error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        model(x)
    for word in words:
        assert word in str(caught.value)
    assert MIN_SIZE == 32


def test_empty_batch(model: models.EfficientVMamba) -> None:
    with torch.no_grad():
        assert model(images(0, 3, 64, 64)).shape == (0, 7)


def test_head_of_features_is_the_output(model: models.EfficientVMamba) -> None:
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, 2, 2, model.num_features)
        torch.testing.assert_close(model.forward_head(features), model(x))
        pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((1, 2)))


def test_forward_intermediates_options(model: models.EfficientVMamba) -> None:
    x = images(1, 3, 64, 64)
    last, stages = model.forward_intermediates(x)
    assert len(stages) == 4
    torch.testing.assert_close(last, model.forward_features(x))
    picked = model.forward_intermediates(x, indices=[2, -4], intermediates_only=True)
    torch.testing.assert_close(picked[0], stages[2])
    torch.testing.assert_close(picked[1], stages[0])
    by_count = model.forward_intermediates(x, indices=2, intermediates_only=True)
    assert [s.shape for s in by_count] == [s.shape for s in stages[2:]]
    nhwc = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
    torch.testing.assert_close(nhwc[1].permute(0, 3, 1, 2), stages[1])
    normed = model.forward_intermediates(x, norm=True, output_fmt="NHWC", intermediates_only=True)
    torch.testing.assert_close(normed[3], last)
    torch.testing.assert_close(normed[0], nhwc[0])
    ran = []
    model.layers[1].register_forward_pre_hook(lambda *_: ran.append("stage"))
    model.get_submodule("layers.1.blocks.0").register_forward_pre_hook(lambda *_: ran.append("2"))
    early, _ = model.forward_intermediates(x, indices=[0], stop_early=True)
    assert ran == []
    assert early.shape[1:3] == stages[0].shape[2:]
    for indices in (5, [4], [-5], []):
        with pytest.raises(ValueError, match="indices"):
            model.forward_intermediates(x, indices=indices)
    with pytest.raises(ValueError, match="NHWC"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_feature_info_names_the_modules(model: models.EfficientVMamba) -> None:
    x = images(1, 3, 64, 96)
    seen: dict[str, torch.Tensor] = {}
    for info in model.feature_info:
        name = info["module"]
        model.get_submodule(name).register_forward_hook(
            lambda _m, _a, out, name=name: seen.update({name: out})
        )
    stages = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
    for info, stage in zip(model.feature_info, stages, strict=True):
        assert stage.shape[3] == info["num_chs"]
        assert stage.shape[1:3] == (64 // info["reduction"], 96 // info["reduction"])
        torch.testing.assert_close(seen[info["module"]], stage)


def test_blocks_are_listed_as_users_count() -> None:
    blocks = models.create_model("efficientvmamba_tiny").blocks()
    assert [(b.stage, b.block) for b in blocks] == [
        *((1, i) for i in (1, 2)),
        *((2, i) for i in (1, 2)),
        *((3, i) for i in (1, 2, 3, 4)),
        *((4, i) for i in (1, 2)),
    ]
    assert [b.has_scan for b in blocks] == [True] * 4 + [False] * 6
    assert blocks[0].name == "layers.0.blocks.0"
    assert blocks[4] == models.BlockInfo(3, 1, "layers.2.1", "inverted residual", False)


def test_block_is_the_sum_of_its_paths(model: models.EfficientVMamba) -> None:
    block = model.get_submodule("layers.1.blocks.0")
    assert isinstance(block, EVSSBlock)
    x = images(2, 5, 7, 32)
    residual, scan_path, conv_path = block.forward_paths(x)
    assert torch.equal(residual, x)
    n = block.norm(x)
    torch.testing.assert_close(scan_path, block.se(block.op(n)))
    conv = block.conv_branch(n.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(conv_path, block.se(conv))
    torch.testing.assert_close(block(x), residual + scan_path + conv_path)


@pytest.mark.parametrize("watched", ["conv_branch.1", "se", None])
def test_shortcuts_without_gradients_change_nothing(
    model: models.EfficientVMamba, watched: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folded norms and images in parts give what the plain modules give, hooks or not."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    monkeypatch.setattr("models.layers.CHUNK_BYTES", 1)
    x = images(5, 3, 64, 64)
    with torch.enable_grad():
        plain = model(x).detach()
    calls = []
    if watched is not None:
        part = model.get_submodule(f"layers.0.blocks.0.{watched}")
        part.register_forward_hook(lambda _m, _a, out: calls.append(len(out)))
    with torch.no_grad():
        quick = model(x)
    torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-5)
    # A hook sees the whole batch; `se` gates both paths.
    assert calls == {"conv_branch.1": [5], "se": [5, 5], None: []}[watched]


def test_weights_may_change_between_calls(model: models.EfficientVMamba) -> None:
    """Nothing that is derived from weights is kept, not even where torch cannot see the change."""
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        model(x)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    plain = model(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    model = models.create_model("efficientvmamba_test", num_classes=5).train()
    model(images(4, 3, 64, 64)).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_float64_and_bfloat16(model: models.EfficientVMamba) -> None:
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
        double = model.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), exact, rtol=1e-4, atol=1e-4)
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_ablations_change_the_network() -> None:
    def keys(**options: object) -> set[str]:
        net = models.create_model("efficientvmamba_test", **options).eval()
        with torch.no_grad():
            assert net(images(1, 3, 64, 64)).shape == (1, 1000)
        return set(net.state_dict())

    full = keys()
    assert not any("conv_branch" in k for k in keys(conv_branch=False))
    no_se = keys(se=False)
    assert not any(k.startswith("layers.0.blocks.0.se") for k in no_se)
    assert any(".se.conv_reduce" in k for k in no_se)  # the inverted residuals keep theirs
    assert keys(conv_branch=False, se=False) < keys(conv_branch=False) < full
    late = models.create_model("efficientvmamba_test", evss_stages=(3, 4))
    assert {b.stage for b in late.blocks() if b.has_scan} == {3, 4}
    with pytest.raises(ValueError, match="1 to 4"):
        models.create_model("efficientvmamba_test", evss_stages=(0, 5))


def test_missing_paths_are_zero() -> None:
    net = models.create_model("efficientvmamba_test", conv_branch=False, se=False).eval()
    block = net.get_submodule("layers.0.blocks.0")
    assert isinstance(block, EVSSBlock)
    x = images(1, 4, 4, 16)
    residual, scan_path, conv_path = block.forward_paths(x)
    assert not conv_path.any()
    torch.testing.assert_close(block(x), residual + scan_path)


def test_drop_path_drops_whole_samples() -> None:
    net = models.create_model("efficientvmamba_test", drop_path_rate=0.5)
    rates = [net.get_submodule(b.name).drop_path for b in net.blocks()]
    assert rates == [0.0, 0.125, 0.25, 0.375, 0.5]
    block = net.get_submodule("layers.3.1").train()
    x = images(64, 2, 2, 128)
    is_dropped = (block(x) == x).flatten(1).all(1)
    assert 0.25 < is_dropped.float().mean() < 0.75
    assert not (block.eval()(x) == x).flatten(1).all(1).any()
    evss = net.get_submodule("layers.1.blocks.0").train()
    evss.drop_path = 0.5
    x = images(64, 2, 2, 32)
    assert 0.25 < (evss(x) == x).flatten(1).all(1).float().mean() < 0.75
    with pytest.raises(ValueError, match="drop_path_rate"):
        models.create_model("efficientvmamba_test", drop_path_rate=1.0)


def test_new_head(model: models.EfficientVMamba) -> None:
    model.reset_classifier(3)
    assert model(images(1, 3, 32, 32)).shape == (1, 3)
    assert model.get_classifier().out_features == model.num_classes == 3
    assert "new random head for 3 classes" in model.weights_info.details
    model.reset_classifier(0)
    assert model(images(1, 3, 32, 32)).shape == (1, model.num_features)
    with pytest.raises(ValueError, match="avg"):
        model.reset_classifier(3, global_pool="max")


def test_parameters_without_weight_decay(model: models.EfficientVMamba) -> None:
    names = model.no_weight_decay()
    assert names == {f"layers.{i}.blocks.0.op.{name}" for i in (0, 1) for name in ("A_logs", "Ds")}
