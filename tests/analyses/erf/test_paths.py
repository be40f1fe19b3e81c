"""What passes each path of each block adds up to the whole gradient, with its sign."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from workbench.analyses.erf import Target, input_gradients, paths
from workbench.analyses.networks import Grid, Unit
from workbench.analyses.scan_network import ScanNetwork
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken


@pytest.fixture
def images(photo):
    return [(f"image {i}", photo(64, 96, seed=i)) for i in range(3)]


def last(run):
    *_, result = run
    return result


@pytest.mark.parametrize("gates", ["live", "frozen"])
@pytest.mark.parametrize("unit", ["stage4", "stage2", "stage3.block1", "stage4.block1.conv"])
def test_paths_add_up_to_the_whole(gated, images, provenance, unit, gates):
    found = last(paths(gated, images, unit, 1, 2, gates=gates, provenance=provenance))
    assert found.n_images == 3 and found.cell == 1 and found.gates == gates
    wanted = np.zeros((64, 96))
    for _, image in images:
        ((gradient, _),) = input_gradients(
            gated, torch.from_numpy(image)[None], [Target(unit, 1, 2)], gates=gates
        )
        wanted += (gradient[0].double().sum(0) / gradient.double().abs().sum() / 3).numpy()
    np.testing.assert_allclose(found.total, wanted, atol=1e-5 * abs(wanted).max())
    n_blocks = {"stage4": 5, "stage2": 2, "stage3.block1": 3, "stage4.block1.conv": 4}[unit]
    assert len(found.blocks) == n_blocks
    for block in found.blocks:
        assert 0 < block.error < 1e-4, "measured, and small"
        np.testing.assert_allclose(
            block.maps.sum(0), found.total, atol=1e-4 * abs(found.total).max()
        )
        assert sum(block.shares) == pytest.approx(1.0)
        assert sum(block.signed) == pytest.approx(1.0, abs=1e-4)
        evss = ("residual", "scan", "conv", "gate")
        names = evss if block.kind == "evss" else ("residual", "conv", "gate")
        assert block.paths == (names if gates == "live" else names[:-1])
        assert block.maps.shape == (len(block.paths), 64, 96)
        assert min(block.shares) > 1e-4, "a path carries nothing: the test shows nothing"


def test_a_wrong_path_shows_in_the_error(gated, images, provenance, monkeypatch):
    """The error is measured: without one of the paths it is not small."""
    from workbench.analyses.scan_network import BlockParts

    own = BlockParts.paths.fget
    monkeypatch.setattr(
        BlockParts, "paths", property(lambda self: tuple(p for p in own(self) if p != "conv"))
    )
    found = last(paths(gated, images[:1], "stage2", 3, 3, provenance=provenance))
    assert all(block.error > 0.01 for block in found.blocks)


def test_a_map_of_one_path_is_the_field_of_its_unit(gated, images, provenance):
    """In the last block before a unit the split is that of the path units."""
    found = last(paths(gated, images[:1], "stage1", 3, 4, provenance=provenance))
    (block,) = found.blocks
    pixels = torch.from_numpy(images[0][1])[None]
    ((whole, _),) = input_gradients(gated, pixels, [Target("stage1", 3, 4)])
    for path, mine in zip(block.paths, block.maps, strict=True):
        ((one, _),) = input_gradients(gated, pixels, [Target(f"stage1.block1.{path}", 3, 4)])
        wanted = (one[0].double().sum(0) / whole.double().abs().sum()).numpy()
        np.testing.assert_allclose(mine, wanted, atol=1e-4 * abs(wanted).max())


def test_large_maps_are_summed_over_cells(gated, photo, provenance, monkeypatch):
    images = [("a", photo(70, 101))]
    whole = last(paths(gated, images, "stage1", 3, 4, provenance=provenance))
    module = sys.modules["workbench.analyses.erf.paths"]  # the package's `paths` is the function
    monkeypatch.setattr(module, "LARGEST_SIDE", 32)
    found = last(paths(gated, images, "stage1", 3, 4, provenance=provenance))
    assert found.cell == 4 and found.total.shape == (18, 26)
    assert found.blocks[0].maps.shape == (4, 18, 26)
    padded = np.zeros((72, 104))
    padded[:70, :101] = whole.total
    np.testing.assert_allclose(found.total, padded.reshape(18, 4, 26, 4).sum((1, 3)), atol=1e-6)


def test_it_grows_image_by_image(gated, images, provenance):
    results = list(paths(gated, images, "stage1", 3, 4, provenance=provenance))
    assert [r.n_images for r in results] == [1, 2, 3]
    assert [r.is_final for r in results] == [False, False, True]
    assert results[-1].image_names == ("image 0", "image 1", "image 2")


def test_stop_keeps_what_was_yielded(gated, images, provenance, n_hooks):
    token = CancelToken()
    run = paths(gated, images, "stage1", 3, 4, provenance=provenance, token=token)
    assert next(run).n_images == 1
    token.cancel()
    with pytest.raises(CancelledError):
        next(run)
    assert n_hooks(gated.model) == 0 and torch.is_grad_enabled()


def test_an_image_without_gradient_is_left_out(fresh_network, images, provenance):
    black = np.full_like(images[0][1], np.nan)
    net = ScanNetwork(fresh_network, "Test")
    found = last(paths(net, [*images, ("black", black)], "stage1", 3, 4, provenance=provenance))
    assert found.n_images == 3 and found.is_final and "Left out: black: NaN" in found.note
    with pytest.raises(BadInputError, match="every weight is finite"):
        list(paths(net, [("black", black)], "stage1", 3, 4, provenance=provenance))
    with torch.no_grad():
        fresh_network.patch_embed["0"].weight.zero_()
    with pytest.raises(BadInputError, match="every gradient is zero"):
        list(paths(net, images, "stage1", 3, 4, provenance=provenance))


def test_another_network_has_no_paths(images, provenance):
    class Other:
        label, has_gates = "resnet18", False

        def units(self):
            return (Unit("stage1", "stage 1", 1),)

        def grid(self, unit, height, width):
            return Grid(height, width, 1, (0.5, 0.5))

    (found,) = paths(Other(), images, "stage1", 3, 4, provenance=provenance)
    assert found.blocks == () and found.is_final and "resnet18 is not one of our" in found.note


def test_a_token_outside_is_refused(gated, images, provenance):
    with pytest.raises(BadInputError, match="outside stage 1, which has 16 x 24 tokens"):
        list(paths(gated, images, "stage1", 16, 0, provenance=provenance))
