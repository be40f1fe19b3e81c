"""The method table, its checks, and a demonstration for every method that is not offered."""

from __future__ import annotations

import subprocess
import sys

import captum.attr
import pytest
import torch

import models
from workbench.analyses.attribution.methods import (
    METHODS,
    NOT_OFFERED,
    check_parameters,
    method_of,
)
from workbench.errors import BadInputError

TARGET = 3


@pytest.fixture(scope="module")
def pixels(photo) -> torch.Tensor:
    return torch.from_numpy(photo())[None]


@pytest.fixture(scope="module")
def difference(network, pixels) -> float:
    """f(photo) - f(0), which a complete method's map sums to."""
    with torch.no_grad():
        return float((network(pixels) - network(torch.zeros_like(pixels)))[0, TARGET])


def stage_output(network, stage: int) -> torch.nn.Module:
    return network.get_submodule(network.feature_info[stage - 1]["module"])


def test_every_method_of_the_issue_is_listed():
    assert [m.name for m in METHODS.values() if m.where == "stage"] == [
        "grad_cam",
        "gradient_activation",
        "layer_ig",
        "conductance",
        "activation",
    ]
    assert [m.name for m in METHODS.values() if m.where == "input"] == [
        "saliency",
        "input_gradient",
        "integrated_gradients",
        "gradient_shap",
        "smoothgrad",
        "occlusion",
        "occlusion_scan",
        "guided_backprop",
        "lrp",
    ]


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_defaults_pass_their_own_check(method):
    assert check_parameters(method.name, {}) == {f.name: f.default for f in method.fields}
    given = {f.name: str(f.default) for f in method.fields}
    assert check_parameters(method.name, given) == {f.name: f.default for f in method.fields}
    for field in method.fields:
        assert field.tip and field.label and field.kind in ("int", "float", "choice")
        if field.kind != "choice":
            ends = (field.low, field.high)
            assert [check_parameters(method.name, {field.name: e})[field.name] for e in ends] == [
                *ends
            ]


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("integrated_gradients", {"steps": 0}, "steps is '0'. Give a whole number from 1 to 1024"),
        ("integrated_gradients", {"steps": "-3"}, "from 1 to 1024"),
        ("integrated_gradients", {"steps": 2.5}, "a whole number"),
        ("integrated_gradients", {"steps": "many"}, "'many'"),
        ("integrated_gradients", {"steps": True}, "'True'"),
        ("integrated_gradients", {"steps": None}, "'None'"),
        ("integrated_gradients", {"steps": 10**400}, "a whole number"),
        ("smoothgrad", {"noise": "nan"}, "Give a number from 0 to 1"),
        ("smoothgrad", {"noise": "inf"}, "Give a number from 0 to 1"),
        ("layer_ig", {"baseline": "white"}, "Choose one of blur, mean, black, noise"),
        ("layer_ig", {"baseline": ["blur"]}, "Choose one of blur, mean, black, noise"),
        ("layer_ig", {"stride": 3}, "no field 'stride'. Its fields: steps, baseline"),
        ("grad_cam", {"steps": 3}, "Its fields: none"),
        ("cam", {}, "no attribution method 'cam'. Choose one of grad_cam, "),
        ("deep_lift", {}, "'deep_lift' is not offered. DeepLift needs a rule"),
    ],
)
def test_bad_fields_are_named(method, given, message):
    with pytest.raises(BadInputError) as caught:
        check_parameters(method, given)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_methods_that_do_not_apply_give_their_reason(name):
    assert name not in METHODS
    with pytest.raises(BadInputError, match="is not offered"):
        method_of(name)


def test_the_table_needs_no_torch():
    code = (
        "import sys, types\n"
        "package = types.ModuleType('workbench.analyses.attribution')\n"
        "package.__path__ = ['workbench/analyses/attribution']\n"
        "sys.modules['workbench.analyses.attribution'] = package\n"
        "import workbench.analyses.attribution.methods\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Why a method is not offered: the failure itself, or its wrong number


def test_captum_layer_grad_cam_returns_no_map(network, pixels):
    stage = stage_output(network, 1)
    found = captum.attr.LayerGradCam(network, stage).attribute(pixels, target=TARGET)
    last, stages = network.forward_intermediates(pixels, output_fmt="NHWC")
    assert stages[0].shape == (1, 16, 16, 16) and found.shape == (1, 1, 16, 16)
    # What it computed: one weight per row, summed over rows; the result is [columns, channels].
    (g,) = torch.autograd.grad(network.forward_head(last)[0, TARGET], [stages[0]])
    by_row = (g[0].mean((1, 2))[:, None, None] * stages[0][0]).sum(0)
    torch.testing.assert_close(found[0, 0], by_row, rtol=1e-3, atol=1e-7)


def test_guided_grad_cam_multiplies_by_that(network, pixels):
    stage = stage_output(network, 1)
    wrong = captum.attr.LayerGradCam(network, stage).attribute(
        pixels, target=TARGET, relu_attributions=True
    )
    guided = captum.attr.GuidedBackprop(network).attribute(pixels, target=TARGET)
    factor = captum.attr.LayerAttribution.interpolate(wrong, (64, 64))
    found = captum.attr.GuidedGradCam(network, stage).attribute(pixels, target=TARGET)
    torch.testing.assert_close(found, guided * factor, rtol=1e-3, atol=1e-9)


def test_deep_lift_misses_completeness(network, pixels, difference):
    found = captum.attr.DeepLift(network).attribute(pixels, torch.zeros_like(pixels), target=TARGET)
    assert abs(float(found.detach().sum()) - difference) > 0.2 * abs(difference)


def test_layer_deep_lift_misses_completeness(network, pixels, difference):
    method = captum.attr.LayerDeepLift(network, stage_output(network, 1))
    found = method.attribute(pixels, torch.zeros_like(pixels), target=TARGET)
    assert abs(float(found.detach().sum()) - difference) > 0.2 * abs(difference)


def test_captum_lrp_has_no_rule(network, pixels):
    twin = models.with_scan(network, network.scan_spec)
    with pytest.raises(TypeError, match=r"PatchConv.*no rule"):
        captum.attr.LRP(twin).attribute(pixels, target=TARGET)


def test_deconvolution_ignores_which_units_were_active():
    net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.ReLU()).eval()
    with torch.no_grad():
        net[0].weight.fill_(2.0)
    x = torch.tensor([[-1.0]], requires_grad=True)  # the unit is off: f is constant here
    assert float(captum.attr.Deconvolution(net).attribute(x, target=0)) == 2.0
    assert float(captum.attr.GuidedBackprop(net).attribute(x, target=0)) == 0.0


def test_deconvolution_is_the_gradient_where_there_is_no_relu(photo):
    net = models.create_model(
        "efficientvmamba_test", num_classes=10, evss_stages=(1, 2, 3, 4), seed=1
    ).eval()
    x = torch.from_numpy(photo())[None].requires_grad_(True)
    found = captum.attr.Deconvolution(net).attribute(x, target=TARGET)
    (wanted,) = torch.autograd.grad(net(x)[0, TARGET], x)
    torch.testing.assert_close(found, wanted)
