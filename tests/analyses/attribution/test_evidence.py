"""Evidence of the paths against finite differences of a network whose paths are scaled by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import models
from models.layers import EVSSBlock
from workbench.analyses.attribution import attribution
from workbench.analyses.attribution.evidence import evidence
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken

CLASSES = tuple(f"class {i}" for i in range(10))
ADDEND = {"residual": 0, "scan": 1, "conv": 2}


class Scaled(torch.nn.Module):
    """A block to whose sum `share * mask` of one of its addends is added; the addend is held."""

    def __init__(self, block: EVSSBlock, path: str, mask: torch.Tensor, share: float) -> None:
        super().__init__()
        self.block, self.path, self.mask, self.share = block, path, mask, share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        addend = self.block.forward_paths(x)[ADDEND[self.path]]
        return self.block(x) + self.share * self.mask[None, :, :, None] * addend


def slope(model, image, name, path, mask, objective, step=1e-6) -> float:
    """d objective / d share at 0, by central differences; a small step, for ReLU has kinks."""
    values = []
    for share in (step, -step):
        changed = models.with_scan(model, model.scan_spec)
        parent, _, child = name.rpartition(".")
        block = changed.get_submodule(name)
        changed.get_submodule(parent)._modules[child] = Scaled(block, path, mask, share)
        with torch.no_grad():
            values.append(float(objective(changed(torch.from_numpy(image)[None])[0])))
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize(
    "options", [{}, {"scan": "ss2d"}, {"evss_stages": (1, 3)}, {"se": False}], ids=str
)
def test_evidence_is_the_slope_of_the_objective_in_a_paths_size(photo, provenance, options):
    model = models.create_model("efficientvmamba_test", num_classes=10, seed=3, **options)
    model = model.eval().double()
    image = photo(40, 56).astype(np.float64)
    result = evidence(model, image, CLASSES, target=4, contrast=2, provenance=provenance)
    names = {(b.stage, b.block): b.name for b in model.blocks() if b.kind == "evss"}
    assert [(b.stage, b.block) for b in result.blocks] == list(names)
    first = result.blocks[0]
    for path, values, total in zip(first.paths, first.maps, first.sums, strict=True):
        for mask in (torch.ones(values.shape), torch.zeros(values.shape)):
            mask[3, 5] = 1.0
            wanted = slope(model, image, names[1, 1], path, mask, lambda z: z[4] - z[2])
            found = total if mask.sum() > 1 else values[3, 5]
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("spec", ["es2d:step=1", "es2d:step=2", "es2d:step=3", "ss2d"])
@pytest.mark.parametrize("size", [(64, 64), (72, 104)], ids=str)
def test_paths_add_up(network, photo, provenance, spec, size):
    model = models.with_scan(network, spec)
    result = evidence(model, photo(*size), CLASSES, target=7, provenance=provenance)
    assert (result.target, result.target_name, result.contrast) == (7, "class 7", None)
    for stage, b in enumerate(result.blocks, start=1):
        assert b.stage == stage and b.paths == ("scan", "conv", "residual")
        assert b.stride == 4 * 2 ** (stage - 1)
        assert b.maps.shape == (3, size[0] // b.stride, size[1] // b.stride)
        assert b.maps.dtype == np.float32
        np.testing.assert_allclose(b.maps.sum((1, 2), dtype=np.float64), b.sums, rtol=1e-4)
        assert 0 < b.error < 1e-5
        assert sum(b.sums) == pytest.approx(b.total, abs=1e-5 * max(map(abs, b.sums)))


def test_evidence_against_a_class_is_the_difference(network, photo, provenance):
    of = {
        key: evidence(network, photo(), CLASSES, **key_of, provenance=provenance)
        for key, key_of in {
            "one": {"target": 1},
            "two": {"target": 2},
            "both": {"target": 1, "contrast": 2},
        }.items()
    }
    for one, two, both in zip(*(of[key].blocks for key in ("one", "two", "both")), strict=True):
        np.testing.assert_allclose(both.maps, one.maps - two.maps, atol=1e-6 * one.maps.max())
    assert of["both"].objective == pytest.approx(of["one"].objective - of["two"].objective)
    assert of["both"].provenance.parameters["contrast"] == 2
    assert "difference of the two logits" in of["both"].provenance.definition


def test_the_first_pages_sums_are_the_same_numbers(network, photo, provenance):
    whole = attribution(network, photo(), CLASSES, provenance=provenance)
    result = evidence(network, photo(), CLASSES, provenance=provenance)
    for sums, b in zip(whole.evidence, result.blocks, strict=True):
        assert (sums.scan, sums.conv, sums.residual) == pytest.approx(b.sums, rel=1e-5)


def test_a_block_without_convolution_has_two_paths(photo, provenance):
    model = models.create_model("efficientvmamba_test", num_classes=10, conv_branch=False).eval()
    result = evidence(model, photo(), CLASSES, provenance=provenance)
    assert all(b.paths == ("scan", "residual") and len(b.maps) == 2 for b in result.blocks)
    whole = attribution(model, photo(), CLASSES, provenance=provenance)
    assert all(e.conv == 0.0 for e in whole.evidence)


def test_evidence_cancels_where_only_a_norm_reads_the_block(photo, provenance):
    """Scaling a map by 1 + s before a norm changes nothing, so g * output sums to 0 there."""
    model = models.create_model(
        "efficientvmamba_test", num_classes=10, seed=1, evss_stages=(1, 3)
    ).eval()
    result = evidence(model, photo(), CLASSES, provenance=provenance)
    size = {(b.stage, b.block): sum(map(abs, b.sums)) for b in result.blocks}
    total = {(b.stage, b.block): abs(b.total) for b in result.blocks}
    assert total[1, 1] < 1e-3 * size[1, 1] and total[3, 2] < 1e-3 * size[3, 2]
    assert total[3, 1] > 0.05 * size[3, 1]
    assert result.note.startswith("The paths of blocks 1.1, 3.2 cancel to about 0.")


def test_paths_that_do_not_add_up_are_a_defect(network, photo, provenance, monkeypatch):
    paths = EVSSBlock.forward_paths

    def wrong(self, x):
        residual, scan, conv = paths(self, x)
        return residual, 1.001 * scan + 0.01, conv

    monkeypatch.setattr(EVSSBlock, "forward_paths", wrong)
    with pytest.raises(RuntimeError, match="block 1 in stage 1 do not add up"):
        evidence(network, photo(), CLASSES, provenance=provenance)


def test_the_model_is_left_as_it_was(network, photo, provenance, n_hooks):
    image = photo()
    before = network(torch.from_numpy(image)[None]).detach()
    evidence(network, image, CLASSES, provenance=provenance)
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        evidence(network, image, CLASSES, provenance=provenance, token=token)
    assert n_hooks(network) == 0
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(before, network(torch.from_numpy(image)[None]).detach())


def test_errors_say_what_to_do(network, photo, provenance):
    with pytest.raises(BadInputError, match="Class 10 does not exist"):
        evidence(network, photo(), CLASSES, target=10, provenance=provenance)
    with pytest.raises(BadInputError, match="Linear has no EVSS blocks"):
        evidence(torch.nn.Linear(2, 2), photo(), CLASSES, provenance=provenance)
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.classifier.head.weight[2] = float("inf")
    with pytest.raises(BadInputError, match=r"'classifier.head.weight'"):
        evidence(broken, photo(), CLASSES, target=2, provenance=provenance)
