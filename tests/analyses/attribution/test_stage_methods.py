"""Stage maps against formulas written out by hand and against Captum with its axes put right."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from captum.attr import LayerActivation, LayerConductance, LayerGradientXActivation
from captum.attr import LayerIntegratedGradients as CaptumLayerIG

import models
from workbench.analyses.attribution import attribution, stage_methods
from workbench.analyses.attribution.explain import explain
from workbench.analyses.attribution.stage_methods import ExplainedNetwork, to_map
from workbench.analyses.attribution.targets import Target

CLASSES = tuple(f"class {i}" for i in range(10))
TARGET, OTHER = 3, 5
SPECS = ["es2d:step=2", "ss2d"]


def explained(model, token=None) -> ExplainedNetwork:
    network = ExplainedNetwork(model, token)
    network.target = Target(TARGET, OTHER)
    return network


def inputs(photo, height=64, width=96) -> tuple[torch.Tensor, torch.Tensor]:
    """A photo and another one as its baseline."""
    return tuple(torch.from_numpy(photo(height, width, seed))[None] for seed in (0, 1))


def contrasted(model):
    """The objective as Captum wants it."""
    return lambda x: model(x)[:, TARGET] - model(x)[:, OTHER]


def layers(model) -> list[torch.nn.Module]:
    return [model.get_submodule(info["module"]) for info in model.feature_info]


class Contrast(torch.nn.Module):
    """Captum wants a module where it hooks layers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)
        return logits[:, TARGET] - logits[:, OTHER]


def hand_map(values: torch.Tensor) -> np.ndarray:
    """Sum over channels of `[1, H, W, C]`, cell by cell."""
    found = np.zeros(values.shape[1:3])
    for y in range(values.shape[1]):
        for x in range(values.shape[2]):
            found[y, x] = sum(values[0, y, x].tolist())
    return found


def test_the_channel_axis_is_the_only_one_that_is_reduced():
    values = torch.randn(1, 3, 4, 5)
    for y in range(3):
        for x in range(4):
            line = values[0, y, x].tolist()
            assert to_map(values, "NHWC")[y, x].item() == pytest.approx(sum(line), abs=1e-6)
            size = to_map(values, "NHWC", "size")[y, x].item()
            assert size == pytest.approx(sum(map(abs, line)) / 5, abs=1e-6)
            assert to_map(values, "NHWC", "largest")[y, x].item() == max(map(abs, line))
    assert to_map(values.permute(0, 3, 1, 2), "NCHW").equal(to_map(values, "NHWC"))


@pytest.mark.parametrize("spec", SPECS)
def test_the_network_after_a_stage_is_the_rest_of_the_network(network, photo, spec):
    net = explained(models.with_scan(network, spec))
    pixels, _ = inputs(photo, 72, 104)  # maps of odd sides: patch merging pads
    with torch.no_grad():
        stages, objective = net.with_stages(pixels)
        for stage, output in enumerate(stages, start=1):
            torch.testing.assert_close(net.after(stage)(output), objective, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(net(pixels), objective, rtol=1e-4, atol=1e-6)
        logits = network.__class__.forward(net.network, pixels)
        assert float(objective) == pytest.approx(float(logits[0, TARGET] - logits[0, OTHER]), 1e-4)


def test_grad_cam_is_the_overviews(network, photo, provenance):
    image = photo()
    found = explain(network, image, CLASSES, "grad_cam", target=TARGET, provenance=provenance)
    wanted = attribution(network, image, CLASSES, target=TARGET, provenance=provenance)
    for a, b in zip(found.maps, wanted.maps, strict=True):
        np.testing.assert_allclose(a.values, b, rtol=1e-5, atol=1e-8)
    assert [m.layer for m in found.maps] == list(wanted.layers)
    assert [m.stride for m in found.maps] == list(wanted.strides)


@pytest.mark.parametrize("spec", SPECS)
def test_gradient_x_activation_is_captums_summed_over_channels(network, photo, spec):
    model = models.with_scan(network, spec)
    pixels, _ = inputs(photo)
    found = stage_methods.gradient_maps(explained(model), pixels, "gradient_activation")
    for values, layer in zip(found, layers(model), strict=True):
        wanted = LayerGradientXActivation(Contrast(model), layer).attribute(pixels)
        np.testing.assert_allclose(values, hand_map(wanted.detach()), rtol=1e-3, atol=1e-7)


def test_activation_is_the_mean_size(network, photo):
    pixels, _ = inputs(photo)
    found = stage_methods.activation(explained(network), pixels)
    for values, layer in zip(found, layers(network), strict=True):
        wanted = LayerActivation(network, layer).attribute(pixels).abs().detach()
        channels = wanted.shape[-1]
        np.testing.assert_allclose(values, hand_map(wanted) / channels, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_layer_integrated_gradients_are_captums(network, photo, spec):
    model = models.with_scan(network, spec)
    pixels, baseline = inputs(photo)
    found = stage_methods.layer_integrated_gradients(explained(model), pixels, baseline, 10)
    for values, layer in zip(found, layers(model), strict=True):
        wanted = CaptumLayerIG(Contrast(model), layer).attribute(pixels, baseline, n_steps=10)
        wanted = hand_map(wanted.detach())
        np.testing.assert_allclose(values, wanted, atol=1e-3 * np.abs(wanted).max())


def test_layer_integrated_gradients_are_the_formula_in_float64(network, photo):
    model = copy.deepcopy(network).double()
    pixels, baseline = (t.double() for t in inputs(photo, 64, 64))
    net = explained(model)
    found = stage_methods.layer_integrated_gradients(net, pixels, baseline, 6)[2]
    points, weights = np.polynomial.legendre.leggauss(6)
    with torch.no_grad():
        end, start = net.with_stages(pixels)[0][2], net.with_stages(baseline)[0][2]
    total = torch.zeros_like(end)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        a = (start + point * (end - start)).requires_grad_(True)
        x = model.layers[2].merging()(a)
        last = model.classifier.norm(model.layers[3](x)[0])
        logits = model.forward_head(last)[0]
        total += weight * torch.autograd.grad(logits[TARGET] - logits[OTHER], a)[0]
    wanted = hand_map(total * (end - start))
    # Captum keeps its weights in float32.
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("steps", [3, 8, 17])
def test_conductance_is_the_mean_of_captums_two_ends(network, photo, steps):
    """Captum takes the gradient at the left end of each section; run from the photo to the
    baseline it takes the right end, with the opposite sign. Half the difference is the trapezoid
    rule. Steps below, at and above the size of a batch."""
    pixels, baseline = inputs(photo, 64, 64)
    found = stage_methods.conductance(explained(network), pixels, baseline, steps)
    for values, layer in zip(found, layers(network), strict=True):
        method = LayerConductance(Contrast(network), layer)
        there, back = (
            method.attribute(*ends, n_steps=steps, method="riemann_trapezoid").detach()
            for ends in ((pixels, baseline), (baseline, pixels))
        )
        wanted = hand_map((there - back) / 2)
        np.testing.assert_allclose(values, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("method", ["layer_ig", "conductance"])
@pytest.mark.parametrize("spec", SPECS)
def test_completeness_gap_shrinks_with_the_steps(network, photo, provenance, method, spec):
    model = models.with_scan(network, spec)
    sizes = []
    for steps in (1, 64):
        found = explain(
            model,
            photo(),
            CLASSES,
            method,
            target=TARGET,
            contrast=OTHER,
            parameters={"steps": steps, "baseline": "black"},
            provenance=provenance,
        )
        sizes.append(max(map(abs, found.gaps)))
        expected = found.objective - found.baseline_objective
        for values, gap in zip(found.maps, found.gaps, strict=True):
            assert float(values.values.sum()) - expected == pytest.approx(gap, abs=1e-5)
    assert sizes[1] < 0.3 * sizes[0] and sizes[1] < 0.02 * abs(expected)
    assert found.verdict.startswith("Complete: ")


@pytest.mark.parametrize("method", ["grad_cam", "gradient_activation"])
def test_all_stages_come_from_one_pass_with_gradients(
    network, photo, provenance, method, monkeypatch
):
    passes = []
    run = models.EfficientVMamba.forward_stages
    monkeypatch.setattr(
        models.EfficientVMamba,
        "forward_stages",
        lambda self, x, n: passes.append(torch.is_grad_enabled()) or run(self, x, n),
    )
    explain(network, photo(), CLASSES, method, provenance=provenance)
    assert passes == [False, True]


def test_conductance_of_all_stages_shares_its_passes(network, photo):
    pixels, baseline = inputs(photo)
    net = explained(network)
    n_images = []
    run = net.network.forward_intermediates
    net.network.forward_intermediates = lambda x, **k: n_images.append(len(x)) or run(x, **k)
    stage_methods.conductance(net, pixels, baseline, 16)
    assert n_images == [8, 8, 1]
