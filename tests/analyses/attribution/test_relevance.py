"""LRP: conservation, its rules propagated by hand in float64, and Captum where both have rules."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LRP
from torch import nn

import models
from kernels import ScanSpec, scan_order
from models.layers import ES2D, Scan2d
from workbench.analyses.attribution import relevance as module
from workbench.analyses.attribution.relevance import LinearisedNetwork, Rules, gated, relevance
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken

CLASSES = tuple(f"class {i}" for i in range(10))
OPTIONS = [
    {"scan": "es2d:step=1"},
    {"scan": "es2d:step=2"},
    {"scan": "es2d:step=3"},
    {"scan": "ss2d"},
    {"evss_stages": (1, 3, 4)},
    {"conv_branch": False},
    {"se": False},
    {"evss_stages": (2,), "conv_branch": False, "se": False},
]


def make(seed: int = 1, **options) -> models.EfficientVMamba:
    """In float64, with biases and norms' statistics as after training: none is at its start."""
    model = models.create_model("efficientvmamba_test", num_classes=10, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith((".bias", "running_mean")):
                value += 0.2 * torch.randn(value.shape, generator=generator)
            elif name.endswith("running_var") or "norm.weight" in name:
                value *= 0.5 + torch.rand(value.shape, generator=generator)
            elif ".head.weight" in name or "in_proj" in name:
                value *= 10
    return model.eval().double()


def without_constants(model: models.EfficientVMamba) -> models.EfficientVMamba:
    """A copy whose biases and running means are 0; dt's bias, a coefficient, stays."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in [*copied.named_parameters(), *copied.named_buffers()]:
            if name.endswith((".bias", "running_mean")):
                value.zero_()
    return copied


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_relevance_of_a_network_without_constants_is_the_logit(photo, provenance, options):
    model = without_constants(make(**options))
    image = photo(40, 56).astype(np.float64)
    result = relevance(model, image, CLASSES, target=3, provenance=provenance)
    with torch.no_grad():
        logit = float(model(torch.from_numpy(image)[None])[0, 3])
    assert abs(logit) > 1e-3
    assert result.bias_share == 0.0
    for m in result.maps:
        assert m.values.sum(dtype=np.float64) == pytest.approx(logit, rel=1e-5)
    assert max(map(abs, result.gaps)) < 1e-10 * abs(logit)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_biases_take_what_pixels_do_not(photo, provenance, options):
    model = make(**options)
    image = photo(45, 58).astype(np.float64)
    result = relevance(model, image, CLASSES, target=3, contrast=5, provenance=provenance)
    with torch.no_grad():
        logits = model(torch.from_numpy(image)[None])[0]
    objective = float(logits[3] - logits[5])
    assert result.objective == pytest.approx(objective, rel=1e-12)
    assert abs(result.bias_share) > 1e-3
    added = result.maps[-1].values.sum(dtype=np.float64) + result.bias_share
    assert added == pytest.approx(objective, abs=1e-5)
    assert max(map(abs, result.gaps)) < 1e-10
    assert result.verdict.startswith("Conserved: ") and "difference of the two" in result.verdict


def test_every_constant_of_the_model_is_counted():
    """One leaf for each bias outside dt's and each running mean, with the model's own values; the
    gate of an EVSS block runs twice."""
    model = make()
    run = LinearisedNetwork(model)
    run(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    wanted = []
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith((".bias", "running_mean")):
            n = 2 if ".se." in name and "blocks" in name else 1
            wanted += [value.abs().sum().item()] * n
    found = [c.abs().sum().item() for c in run.constants.found]
    np.testing.assert_allclose(sorted(found), sorted(wanted), rtol=1e-12)


def test_a_black_input_leaves_everything_to_the_biases(provenance):
    result = relevance(make(), np.zeros((3, 32, 32)), CLASSES, target=1, provenance=provenance)
    assert result.bias_share == pytest.approx(result.objective, rel=1e-10)
    assert not result.maps[-1].values.any()
    assert "belongs to no pixel" in result.note


@pytest.mark.parametrize("size", [(32, 32), (45, 70)], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_are_the_models(photo, options, size):
    model = make(**options)
    x = torch.from_numpy(photo(*size)).double()[None]
    with torch.no_grad():
        wanted = model(x)
        found = LinearisedNetwork(model)(x)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


# Rules by hand


def propagate(
    jacobian: torch.Tensor, x: torch.Tensor, y: torch.Tensor, relevance: torch.Tensor
) -> torch.Tensor:
    """LRP-0 of a linear step: `R_x[i] = sum_j x_i J_ji R_y[j] / y_j`, on flat tensors."""
    return x * (jacobian.T @ (relevance / y))


def matrix_of(function, n: int) -> torch.Tensor:
    """The matrix of a linear function of n numbers, column by column."""
    return torch.stack([function(e).flatten() for e in torch.eye(n, dtype=torch.float64)], dim=1)


def scan_matrix(op: ES2D, u: torch.Tensor, spec: ScanSpec) -> torch.Tensor:
    """`[C*H*W, C*H*W]` of the scan of u `[C, H, W]`: alpha of every sequence, by its definition."""
    channels, height, width = u.shape
    order = scan_order(spec, height, width)
    n = height * width
    flat = u.reshape(channels, n).T
    rank, states = op.dt_rank, op.d_state
    whole = torch.zeros(channels, n, channels, n, dtype=torch.float64)
    for sequence, s in zip(order.index, order.parameter_set, strict=True):
        A = -op.A_logs.view(-1, channels, states)[s].exp()
        skip = op.Ds.view(-1, channels)[s]
        tokens = [flat[t] if t >= 0 else torch.zeros_like(flat[0]) for t in sequence]
        projected = [op.x_proj_weight[s] @ token for token in tokens]
        dt = [F.softplus(op.dt_projs_weight[s] @ p[:rank] + op.dt_projs_bias[s]) for p in projected]
        for i, token in enumerate(sequence):
            if token < 0:
                continue
            C = projected[i][rank + states :]
            decay = torch.ones(channels, states, dtype=torch.float64)
            for j in range(i, -1, -1):
                if sequence[j] >= 0:
                    B = projected[j][rank : rank + states]
                    alpha = dt[j] * ((decay * B) @ C)
                    for c in range(channels):
                        whole[c, token, c, sequence[j]] += alpha[c]
                decay = decay * torch.exp(dt[j][:, None] * A)
            for c in range(channels):
                whole[c, token, c, token] += skip[c]
    return whole.reshape(channels * n, channels * n)


@pytest.mark.parametrize("scan", ["es2d:step=2", "ss2d"])
@torch.no_grad()
def test_the_mixers_relevance_propagated_step_by_step(scan):
    dim, height, width = 4, 3, 4
    inner, n = 2 * dim, height * width
    torch.manual_seed(0)
    spec = ScanSpec.of(scan)
    op = ES2D(dim, spec, "reference").double()
    for p in op.parameters():
        p.copy_(0.5 * torch.randn_like(p))
    x = torch.randn(1, height, width, dim, dtype=torch.float64)

    with torch.enable_grad():
        pixels = x.clone().requires_grad_(True)
        out = Rules()(op, pixels)
        weights = torch.randn_like(out)
        found = pixels.detach() * torch.autograd.grad((weights * out).sum(), pixels)[0]
    torch.testing.assert_close(out.detach(), op(x), rtol=1e-9, atol=1e-12)

    # Forward, every intermediate value in [tokens, channels].
    tokens = x.reshape(n, dim)
    both = tokens @ op.in_proj.weight.T
    u, z = both[:, :inner], both[:, inner:]
    to_map = lambda t: t.T.reshape(1, inner, height, width)  # noqa: E731
    convolved = op.conv2d(to_map(u))[0].flatten(1).T
    activated = F.silu(convolved)
    alpha = scan_matrix(op, to_map(activated)[0], spec)
    scanned = (alpha @ activated.T.flatten()).view(inner, n).T
    normed = op.out_norm(scanned)
    product = normed * F.silu(z)
    # Backward, one rule after the other.
    R = (weights[0] * out.detach()[0]).reshape(n, dim)
    R = torch.stack(
        [
            propagate(op.out_proj.weight, product[t], op.out_proj.weight @ product[t], R[t])
            for t in range(n)
        ]
    )
    R_z, R = R / 2, R / 2
    deviation = (scanned.var(-1, unbiased=False) + op.out_norm.eps).sqrt()
    centre = torch.eye(inner, dtype=torch.float64) - 1 / inner
    R = torch.stack(
        [
            propagate(
                op.out_norm.weight[:, None] * centre / deviation[t], scanned[t], normed[t], R[t]
            )
            for t in range(n)
        ]
    )
    R = propagate(alpha, activated.T.flatten(), scanned.T.flatten(), R.T.flatten())
    kernel = matrix_of(
        lambda e: F.conv2d(
            e.view(1, inner, height, width), op.conv2d.weight, padding=1, groups=inner
        ),
        inner * n,
    )
    R = propagate(kernel, u.T.flatten(), convolved.T.flatten(), R).view(inner, n).T
    R = torch.cat([R, R_z], dim=1)
    wanted = torch.stack(
        [propagate(op.in_proj.weight, tokens[t], both[t], R[t]) for t in range(n)]
    ).view(1, height, width, dim)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_a_gate_gets_relevance_only_as_far_as_it_is_not_one_half():
    v = torch.tensor([[2.0, -3.0], [1.0, 4.0]], dtype=torch.float64, requires_grad=True)
    s = torch.tensor([0.0, 1.5], dtype=torch.float64, requires_grad=True)
    y = gated(v, s)
    g_v, g_s = torch.autograd.grad(y.sum(), [v, s])
    sigmoid = 1 / (1 + math.exp(-1.5))
    wanted = [[2.0 / 2, -3.0 * (1 / 2 + sigmoid) / 2], [1.0 / 2, 4.0 * (1 / 2 + sigmoid) / 2]]
    torch.testing.assert_close(v.detach() * g_v, torch.tensor(wanted, dtype=torch.float64))
    wanted = torch.tensor([0.0, (4.0 - 3.0) * (sigmoid - 1 / 2) / 2], dtype=torch.float64)
    torch.testing.assert_close(s.detach() * g_s, wanted)
    torch.testing.assert_close(y.detach(), (v * torch.sigmoid(s)).detach())


def test_convolutions_and_relu_are_captums_lrp(photo):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 4, stride=4), nn.ReLU(),
        nn.Conv2d(6, 5, 4),
    ).double()  # fmt: skip
    x = torch.from_numpy(photo(16, 16)).double()[None].requires_grad_(True)
    found = x.detach() * torch.autograd.grad(Rules()(net, x)[0, 2, 0, 0], x)[0]
    wanted = LRP(net).attribute(x, target=(2, 0, 0)).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_captums_lrp_does_not_run_on_the_network(network, photo):
    with pytest.raises(TypeError, match="PatchConv.*has no rule defined"):
        LRP(copy.deepcopy(network)).attribute(torch.from_numpy(photo())[None], target=1)


@pytest.mark.parametrize("function", [F.silu, F.gelu, F.relu, F.hardswish])
def test_held_ratios_keep_value_and_relevance(function):
    x = torch.tensor([-2.0, -1e-30, 0.0, 1e-30, 3.0], requires_grad=True)
    y = module.held_ratio(function, x)
    gradient = torch.autograd.grad(y.sum(), x)[0]
    torch.testing.assert_close(y, function(x))
    torch.testing.assert_close(gradient * x, function(x))


# The result


def test_maps_and_fields(network, photo, provenance):
    image = photo(66, 102)
    result = relevance(network, image, CLASSES, provenance=provenance)
    with torch.no_grad():
        logits = network(torch.from_numpy(image)[None])[0]
    assert result.target == int(logits.argmax()) and result.contrast is None
    assert result.objective == pytest.approx(float(logits.max()), rel=1e-6)
    assert [m.name for m in result.maps] == ["stage1", "stage2", "stage3", "stage4", "input"]
    assert [m.stride for m in result.maps] == [4, 8, 16, 32, 1]
    shapes = [(16, 25), (8, 13), (4, 7), (2, 4), (66, 102)]
    assert [m.values.shape for m in result.maps] == shapes
    assert all(m.values.dtype == np.float32 for m in result.maps)
    pixels = result.maps[-1].values
    assert not pixels[64:].any() and not pixels[:, 100:].any() and pixels.min() < 0 < pixels.max()
    assert len(result.gaps) == 5 and max(map(abs, result.gaps)) < 1e-5
    assert result.provenance.parameters["method"] == "lrp" and math.isnan(result.baseline_objective)


def test_relevance_against_a_class_is_the_difference(network, photo, provenance):
    image = photo()
    one, two, both = (
        relevance(network, image, CLASSES, target=t, contrast=c, provenance=provenance)
        for t, c in ((1, None), (2, None), (1, 2))
    )
    for a, b, c in zip(one.maps, two.maps, both.maps, strict=True):
        np.testing.assert_allclose(c.values, a.values - b.values, atol=2e-6 * abs(a.values).max())


def test_the_model_is_left_as_it_was(fresh_network, photo, provenance, n_hooks):
    network, image = fresh_network, photo()
    before = network(torch.from_numpy(image)[None]).detach()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    trained = relevance(network, image, CLASSES, target=1, provenance=provenance)
    assert network.training and all(m.training for m in network.modules())
    network.eval()
    assert trained.objective == pytest.approx(float(before[0, 1]), rel=1e-5)
    assert n_hooks(network) == 0 and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, weights[n]) for n, value in network.state_dict().items())
    assert torch.equal(before, network(torch.from_numpy(image)[None]).detach())


@pytest.mark.parametrize("n_checks", [0, 1, 4, 6])
def test_it_stops_at_any_block(network, photo, provenance, n_checks):
    class Later(CancelToken):
        def __init__(self) -> None:
            super().__init__()
            self.left = n_checks

        def check(self) -> None:
            if self.left == 0:
                self.cancel()
            self.left -= 1
            super().check()

    with pytest.raises(CancelledError):
        relevance(network, photo(), CLASSES, provenance=provenance, token=Later())


def test_errors_say_what_to_do(fresh_network, photo, provenance):
    with pytest.raises(BadInputError, match="Class 10 does not exist"):
        relevance(fresh_network, photo(), CLASSES, target=10, provenance=provenance)
    with pytest.raises(BadInputError, match="Linear is another network"):
        relevance(nn.Linear(2, 2), photo(), CLASSES, provenance=provenance)
    head = fresh_network.classifier.head
    fresh_network.classifier.head = nn.Sequential(head, nn.Tanh())
    with pytest.raises(BadInputError, match="no rule for Tanh"):
        relevance(fresh_network, photo(), CLASSES, provenance=provenance)
    fresh_network.classifier.head = head
    with torch.no_grad():
        head.weight[2] = float("inf")
    with pytest.raises(BadInputError, match=r"'classifier.head.weight'"):
        relevance(fresh_network, photo(), CLASSES, target=2, provenance=provenance)


def test_a_scan_of_another_kind_is_refused(fresh_network, photo, provenance):
    class Foreign(nn.Module):
        def __init__(self, scan: Scan2d) -> None:
            super().__init__()
            self.spec, self.backend, self.scan = scan.spec, scan.backend, scan

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.scan(*inputs)

    op = fresh_network.get_submodule("layers.0.blocks.0.op")
    op.scan = Foreign(op.scan)
    with pytest.raises(BadInputError, match="no rule for the scan Foreign"):
        relevance(fresh_network, photo(), CLASSES, provenance=provenance)


def test_a_rule_that_changes_values_is_a_defect(network, photo, provenance, monkeypatch):
    monkeypatch.setattr(module, "half_each", lambda a, b: a * b.detach() * 1.01)
    with pytest.raises(RuntimeError, match="logits differ"):
        relevance(network, photo(), CLASSES, provenance=provenance)
