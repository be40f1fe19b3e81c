"""Reach: exact sets that agree with gradients, steps by counting, decay by a plain loop."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

import kernels
import models
from kernels import scan_order
from workbench.analyses.propagation import mean_shares, through_block, through_op, through_scan
from workbench.analyses.reach import reach, scan_input
from workbench.errors import BadInputError

SPECS = ["es2d", "es2d:step=3", "ss2d", "raster", "windows:size=3", "hilbert:transpose=2"]


def shares(result) -> dict[str, float]:
    return {step.name: step.share for step in result.restored}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("token", [(0, 0), (2, 3), (4, 5)], ids=str)
def test_sets_are_the_support_of_the_gradient(fresh_network, monkeypatch, spec, token):
    """Float64, reference, frozen gates: a token matters exactly if its gradient is not 0."""
    model = models.with_scan(fresh_network, spec)
    block = model.get_submodule("layers.0.blocks.0").double()
    block.op.scan.backend = "reference"
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    monkeypatch.setattr(block.se, "gate", lambda v: torch.ones_like(v[:, :1, :1]) / 2)
    order = scan_order(spec, 5, 6)
    focus = np.zeros((5, 6), dtype=bool)
    focus[token] = True

    def support(run) -> np.ndarray:
        x = torch.randn(1, 5, 6, block.op.dim, dtype=torch.float64, requires_grad=True)
        run(x)[0, token[0], token[1]].square().sum().backward()
        return (x.grad[0].abs().sum(-1) > 0).numpy()

    op = block.op
    assert (support(op) == through_op(order, focus)).all()
    assert (support(block) == through_block(order, focus, has_branch=True)).all()
    twice = through_block(order, through_block(order, focus, True), True)
    assert (support(lambda x: block(block(x))) == twice).all()

    u = torch.randn(1, op.inner, 5, 6, dtype=torch.float64, requires_grad=True)
    y = op.scan(u, *(getattr(op, n) for n in SCAN_PARAMETERS))
    y[0, :, token[0], token[1]].square().sum().backward()
    alone = (u.grad[0].abs().sum(0) > 0).numpy()
    assert (alone == through_scan(order, focus)).all()


SCAN_PARAMETERS = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("branches", [(True,), (True, True), (False, True, True)], ids=str)
def test_means_are_those_of_all_tokens(spec, branches):
    height, width = 9, 14  # more than 64 tokens: two words of sources
    order = scan_order(spec, height, width)
    counts = np.zeros(3)
    for token in range(order.n_tokens):
        focus = np.zeros(order.n_tokens, dtype=bool)
        focus[token] = True
        focus = focus.reshape(height, width)
        through = focus
        for has_branch in reversed(branches):
            through = through_block(order, through, has_branch)
        for i, found in enumerate(
            (through_op(order, focus), through_block(order, focus, branches[0]), through)
        ):
            counts[i] += found.sum()
    means, is_exact = mean_shares(kernels.ScanSpec.parse(spec), height, width, branches)
    assert is_exact
    np.testing.assert_allclose(means, counts / order.n_tokens**2)


def test_the_convolution_before_the_scan_restores_most_of_the_reach(network, provenance, photo):
    """Measured on the original code at 12 x 12 tokens: 61, 62, 62 and 71 %."""
    image = photo(48, 48)
    for token, wanted in zip([(6, 6), (6, 7), (7, 6), (7, 7)], (61, 62, 62, 71), strict=True):
        found = shares(reach(network, image, 1, *token, provenance=provenance))
        assert 100 * found["with the 3x3 convolution before it"] == pytest.approx(wanted, abs=0.6)
        assert found["with the SE gates (global means)"] == 1.0


def test_mean_reach_of_the_headline(provenance, photo):
    image = photo(224, 224)
    model = models.create_model("efficientvmamba_test", seed=0).eval()
    atrous = reach(model, image, 1, 28, 28, provenance=provenance)
    full = reach(models.with_scan(model, "ss2d"), image, 1, 28, 28, provenance=provenance)
    assert atrous.mean_reach == pytest.approx((56 * 56 / 4 + 1) / (2 * 56 * 56))
    assert atrous.restored[0].mean_share == atrous.mean_reach
    assert full.mean_reach == full.restored[0].share == 1.0
    assert (full.steps_back >= 0).all() and (full.steps_on >= 0).all()


@pytest.mark.parametrize("spec", ["es2d", "ss2d", "windows:size=3"])
def test_decay_is_the_product_of_the_gates(fresh_network, provenance, photo, spec):
    model = models.with_scan(fresh_network.double(), spec)
    image = photo(32, 36)
    y, x = 4, 3
    result = reach(model, image, 1, y, x, provenance=provenance)
    order = scan_order(spec, 8, 9)
    given = scan_input(model, image, 1)
    u = given.x.flatten(1).numpy()
    channels, rank = len(u), given.dt_projs_weight.shape[2]
    A = -np.exp(given.A_logs.numpy()).reshape(4, channels, -1)
    wanted = np.zeros(72)
    curves: dict[int, list[np.ndarray]] = {}
    steps_back = np.full(72, -1)
    for row, s in zip(order.index, order.parameter_set, strict=True):
        if y * 9 + x not in row:
            continue
        here = row.tolist().index(y * 9 + x)
        left = np.ones_like(A[s])
        for step in range(here, -1, -1):
            token = row[step]
            curves.setdefault(here - step, []).append(left.reshape(-1))
            if token >= 0:
                wanted[token] = max(wanted[token], left.mean())
                known = steps_back[token]
                steps_back[token] = here - step if known < 0 else min(known, here - step)
            read = u[:, token] if token >= 0 else np.zeros(channels)
            low = given.x_proj_weight[s, :rank].numpy() @ read
            raw = given.dt_projs_weight[s].numpy() @ low + given.dt_projs_bias[s].numpy()
            left = left * np.exp(np.log1p(np.exp(raw))[:, None] * A[s])
    np.testing.assert_allclose(result.decay.reshape(-1), wanted, rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(result.steps_back.reshape(-1), steps_back)
    for i, step in enumerate(result.curve_steps):
        p20, p50, p80 = np.quantile(np.concatenate(curves[int(step)]), (0.2, 0.5, 0.8))
        assert result.curve_p20[i] == pytest.approx(p20, rel=1e-5)
        assert result.curve_p50[i] == pytest.approx(p50, rel=1e-5)
        assert result.curve_p80[i] == pytest.approx(p80, rel=1e-5)
    assert result.curve_steps[0] == 0 and result.curve_p50[0] == 1.0
    above = np.flatnonzero(result.curve_p50 > 0.5)[-1]
    if above + 1 < result.curve_steps.size:
        low, high = result.curve_steps[above : above + 2]
        assert low <= result.half_steps <= high
    else:
        assert np.isnan(result.half_steps)


def test_nothing_stays_behind(network, provenance, photo, n_hooks):
    before = n_hooks(network)
    reach(network, photo(64, 64), 2, 1, 1, provenance=provenance)
    with pytest.raises(BadInputError, match="no token \\(8, 0\\) in stage 2"):
        reach(network, photo(64, 64), 2, 8, 0, provenance=provenance)
    assert n_hooks(network) == before


def test_a_stage_without_a_scan_says_so(network, provenance, photo):
    result = reach(network, photo(64, 64), 3, 1, 1, provenance=provenance)
    assert not result.has_scan and "has no scan" in result.note
    assert (result.steps_back == -1).all() and result.restored == ()


@pytest.mark.parametrize("spec", ["cascade2d", "vim", "groupmamba", "msvmamba"])
def test_a_path_of_another_network_has_steps_but_no_decay(network, provenance, photo, spec):
    spec = kernels.ScanSpec.parse(spec)
    result = reach(network, photo(64, 64), 1, 3, 5, provenance=provenance, spec=spec)
    assert result.note.startswith("Path only: needs another network")
    assert result.steps_back[3, 5] == 0 and np.isnan(result.decay).all()
    assert [step.name for step in result.restored] == ["scan alone"]
    assert result.curve_steps.size == 0 and result.layer == ""


def test_one_row_of_tokens(provenance, photo):
    late = models.create_model("efficientvmamba_test", evss_stages=(3, 4)).eval()
    result = reach(late, photo(32, 128), 4, 0, 3, provenance=provenance)
    assert result.steps_back.tolist() == [[-1, 1, -1, 0]]
    assert np.isfinite(result.decay).all()


def test_reach_is_quick(provenance):
    """0.15 s of a processor for 56 x 56 tokens, here with room for the forward pass before it."""
    model = models.create_model("efficientvmamba_tiny", scan="ss2d").eval()
    image = np.zeros((3, 224, 224), dtype=np.float32)
    seconds = []
    for _ in range(4):
        started = time.thread_time()
        reach(model, image, 1, 28, 28, provenance=provenance)
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.3
