"""A time is shown only beside its correctness; the parts add up; Stop works at every step."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

import models
from models.layers import Scan2d
from workbench.analyses import gate, profiling
from workbench.analyses.clocks import Clocks
from workbench.analyses.profiling import profile_forward
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken, Progress
from workbench.results import ProfileResult


def run(model, image, provenance, **options) -> tuple[list[Progress], ProfileResult]:
    *progress, result = profile_forward(model, image, provenance=provenance, **options)
    return progress, result


@pytest.mark.parametrize("spec", ["es2d:step=2", "es2d:step=3", "ss2d"])
def test_profile_of_one_pass(network, photo, provenance, spec, n_hooks):
    model = models.with_scan(network, spec)
    progress, result = run(model, photo(72, 104), provenance, repeats=3)
    assert all(isinstance(item, Progress) for item in progress)
    assert progress[-1].done == progress[-1].total - 1
    assert progress[3].seconds_left is not None and progress[3].seconds_left >= 0
    assert result.is_correct and result.max_abs_error < 1e-5
    assert 0 < result.p20_ms <= result.p50_ms <= result.p80_ms
    assert (result.batch, result.repeats) == (1, 3)
    assert [(b.stage, b.kind) for b in result.blocks] == [
        (0, "stem"),
        (1, "evss"),
        (1, "downsample"),
        (2, "evss"),
        (2, "downsample"),
        (3, "inverted residual"),
        (3, "inverted residual"),
        (3, "downsample"),
        (4, "inverted residual"),
        (5, "head"),
    ]
    for block in result.blocks:
        assert block.p50_ms >= block.scan_ms >= 0
        assert (block.scan_ms > 0) == (block.kind == "evss")
        if block.kind != "stem":
            network.get_submodule(block.name)
    steps = [op.self_ms for op in result.ops]
    assert steps == sorted(steps, reverse=True) and all(op.calls >= 1 for op in result.ops)
    assert any("conv" in op.name for op in result.ops)
    tokens = {"es2d:step=2": 468 + 4 * 5 * 7, "es2d:step=3": 9 * 6 * 9 + 9 * 3 * 5}
    assert result.scan_tokens == tokens.get(spec, 4 * (18 * 26 + 9 * 13))
    assert result.scan_depth == {"es2d:step=2": 117, "es2d:step=3": 54}.get(spec, 468)
    assert result.macs > 0 and result.n_parameters == sum(p.numel() for p in model.parameters())
    assert result.clock.startswith("time.perf_counter")
    assert n_hooks(model) == 0


def test_blocks_add_up_to_the_pass(network, photo):
    """Within one watched pass nothing is left out between the parts."""
    clocks = Clocks(torch.device("cpu"))
    twin = models.with_scan(network, "es2d")
    clocks.watch(twin)
    lap = clocks.run(twin, torch.from_numpy(photo())[None])
    blocks = sum(ms for (kind, _), ms in lap.spans.items() if kind == "block")
    assert blocks + sum(lap.before.values()) + lap.after_last == pytest.approx(lap.total)
    assert all(lap.spans["scan", b.name] > 0 for b in twin.blocks() if b.has_scan)


def test_a_wrong_kernel_is_not_called_correct(network, photo, provenance, monkeypatch):
    forward = Scan2d.forward

    def wrong(self, *args):
        return forward(self, *args) * (1.0 if self.backend == "reference" else 1.01)

    monkeypatch.setattr(Scan2d, "forward", wrong)
    _, result = run(network, photo(), provenance, repeats=1)
    assert not result.is_correct, "the layer norm after the scan must not hide a wrong scale"
    assert "layers.0.blocks.0.op.scan differs from the reference by 1.0e-02" in result.note


def test_a_slow_network_gets_fewer_repeats(network, photo, provenance, monkeypatch):
    monkeypatch.setattr(profiling, "BUDGET_S", 0.0)
    _, result = run(network, photo(), provenance)
    assert result.repeats == result.provenance.parameters["repeats"] == profiling.MIN_REPEATS


@pytest.mark.parametrize("size", [(512, 512), (1024, 768), (1024, 128)], ids=str)
def test_the_gate_of_a_large_input_is_smaller_with_the_same_parities(network, size):
    full = models.with_scan(network, "ss2d")
    found = gate.gate_size(full, *size)
    assert found < size and min(found) >= 32
    assert gate.reference_steps(full, *found) <= gate.MAX_REFERENCE_STEPS
    assert all((a - b) % 64 == 0 for a, b in zip(size, found, strict=True))


def test_the_note_says_at_which_size_the_gate_ran(network, photo, provenance, monkeypatch):
    monkeypatch.setattr(gate, "MAX_REFERENCE_STEPS", 60)
    _, result = run(network, photo(160, 160), provenance, repeats=1)
    assert "at 32 x 32 px, not 160 x 160" in result.note and result.is_correct


def test_nan_weights_are_named(fresh_network, photo, provenance):
    with torch.no_grad():
        fresh_network.classifier.norm.bias[1] = float("nan")
    with pytest.raises(BadInputError, match=r"'classifier.norm.bias'"):
        run(fresh_network, photo(), provenance)


def test_cancelled_anywhere_no_hook_is_left(network, photo, provenance, n_hooks):
    """Thirty runs stopped at random places; the network predicts the same number afterwards."""
    pixels = torch.from_numpy(photo())[None]
    with torch.no_grad():
        before = network(pixels).numpy()
    rng = random.Random(0)
    for i in range(30):
        token = CancelToken()
        if i % 2:
            timer = threading.Timer(rng.uniform(0, 0.05), token.cancel)
            timer.start()
            with pytest.raises(CancelledError):
                list(
                    profile_forward(
                        network, photo(), provenance=provenance, token=token, repeats=10**6
                    )
                )
            timer.join()
        else:
            items = profile_forward(network, photo(), provenance=provenance, token=token, repeats=4)
            for _ in range(rng.randrange(1, 7)):
                next(items)
            if i % 4:
                token.cancel()
                with pytest.raises(CancelledError):
                    next(items)
            else:
                items.close()
        assert n_hooks(network) == 0
    with torch.no_grad():
        np.testing.assert_array_equal(network(pixels).numpy(), before)
