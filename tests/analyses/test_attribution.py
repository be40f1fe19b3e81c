"""Grad-CAM against its formula and against Captum with the layout put right; evidence adds up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

import models
from workbench.analyses.attribution import attribution
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken

CLASSES = tuple(f"class {i}" for i in range(10))


class Tapped(nn.Module):
    """A block whose output passes an identity layer in `[B, C, H, W]`, where Captum can read it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.tap = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tap(self.block(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def tapped(model: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """A twin of `model` and the taps at its four stage outputs."""
    twin = models.with_scan(model, models.get_scan(model))
    taps = []
    for info in model.feature_info:
        parent, _, child = info["module"].rpartition(".")
        tap = Tapped(twin.get_submodule(info["module"]))
        twin.get_submodule(parent)._modules[child] = tap
        taps.append(tap.tap)
    return twin, taps


@pytest.mark.parametrize("spec", ["es2d:step=2", "es2d:step=3", "ss2d"])
@pytest.mark.parametrize("size", [(64, 64), (72, 104)], ids=str)
def test_maps_are_captums_with_the_layout_put_right(network, photo, provenance, spec, size):
    model = models.with_scan(network, spec)
    image = photo(*size)
    result = attribution(model, image, CLASSES, target=3, provenance=provenance)
    twin, taps = tapped(model)
    for found, tap in zip(result.maps, taps, strict=True):
        wanted = LayerGradCam(twin, tap).attribute(
            torch.from_numpy(image)[None], target=3, relu_attributions=True
        )
        np.testing.assert_allclose(
            found, wanted[0, 0].detach().numpy(), rtol=1e-4, atol=1e-7 + 1e-5 * found.max()
        )


def test_captum_on_the_channels_last_stage_itself_is_another_map(network, photo):
    """Why the maps are not made by LayerGradCam directly: it averages over rows and columns of
    channels."""
    stage = network.get_submodule("layers.0.blocks.0")
    wrong = LayerGradCam(network, stage).attribute(torch.from_numpy(photo())[None], target=3)
    assert wrong.shape == (1, 1, 16, 16)  # columns x channels, a map only by chance


def test_maps_are_the_formula(network, photo, provenance):
    image = photo(64, 96)
    result = attribution(network, image, CLASSES, provenance=provenance)
    pixels = torch.from_numpy(image)[None].requires_grad_(True)
    last, stages = network.forward_intermediates(pixels, output_fmt="NHWC")
    logits = network.forward_head(last)[0]
    assert result.target == int(logits.argmax()) and result.target_name == CLASSES[result.target]
    assert result.probability == pytest.approx(logits.softmax(0).max().item(), rel=1e-5)
    gradients = torch.autograd.grad(logits[result.target], stages)
    for found, a, g in zip(result.maps, stages, gradients, strict=True):
        wanted = np.zeros(found.shape)
        for c in range(a.shape[-1]):
            wanted += g[0, :, :, c].mean().item() * a[0, :, :, c].detach().numpy()
        np.testing.assert_allclose(found, np.maximum(wanted, 0), rtol=1e-4, atol=1e-6)
    assert [m.shape for m in result.maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert result.strides == (4, 8, 16, 32)
    assert result.layers[0].startswith("output of stage 1 before patch merging (16 x 24 tokens, 16")


@pytest.mark.parametrize("spec", ["es2d:step=1", "es2d:step=2", "es2d:step=4", "ss2d"])
def test_evidence_adds_up(network, photo, provenance, spec):
    model = models.with_scan(network, spec)
    result = attribution(model, photo(72, 104), CLASSES, target=7, provenance=provenance)
    assert [(e.stage, e.block) for e in result.evidence] == [(1, 1), (2, 1)]
    for e in result.evidence:
        assert e.error < 1e-4
        assert e.scan + e.conv + e.residual == pytest.approx(e.total, abs=1e-4 * abs(e.residual))
        assert e.scan != 0 and e.conv != 0 and e.residual != 0


def test_evidence_follows_the_blocks_of_the_model(photo, provenance):
    late = models.create_model("efficientvmamba_test", num_classes=10, evss_stages=(3, 4)).eval()
    result = attribution(late, photo(), CLASSES, provenance=provenance)
    assert [(e.stage, e.block) for e in result.evidence] == [(3, 1), (3, 2), (4, 1)]


def test_one_forward_pass_makes_all_maps(network, photo, provenance, monkeypatch):
    passes = []
    run = models.EfficientVMamba.forward_stages
    monkeypatch.setattr(
        models.EfficientVMamba,
        "forward_stages",
        lambda self, x, n: passes.append(n) or run(self, x, n),
    )
    attribution(network, photo(), CLASSES, provenance=provenance)
    assert passes == [4]


def test_a_class_that_does_not_exist_is_refused(network, photo, provenance):
    with pytest.raises(BadInputError, match="Class 10 does not exist: this model knows 10 classes"):
        attribution(network, photo(), CLASSES, target=10, provenance=provenance)


def test_weights_that_overflow_are_named(fresh_network, photo, provenance):
    with torch.no_grad():
        fresh_network.classifier.head.weight[2] = float("inf")
    with pytest.raises(BadInputError, match="'classifier.head.weight'"):
        attribution(fresh_network, photo(), CLASSES, target=2, provenance=provenance)


def test_a_map_without_evidence_is_explained(fresh_network, photo, provenance):
    with torch.no_grad():
        fresh_network.classifier.head.weight.zero_()
    result = attribution(fresh_network, photo(), CLASSES, target=2, provenance=provenance)
    assert "stages 1, 2, 3, 4 is zero everywhere" in result.note


def test_cancelling_leaves_no_hook(network, photo, provenance, n_hooks):
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        attribution(network, photo(), CLASSES, provenance=provenance, token=token)
    assert n_hooks(network) == 0
