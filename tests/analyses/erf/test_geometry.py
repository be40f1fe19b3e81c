"""Exact reach against autograd with the gates frozen, and against numbers known without weights."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

import models
from models.efficientvmamba import EfficientVMamba
from models.initial_weights import init_weights
from workbench.analyses.erf.geometry import reach_pixels
from workbench.analyses.networks import Unit
from workbench.analyses.scan_network import ScanNetwork
from workbench.errors import BadInputError

N_INPUTS = 2


def stage_unit(stage: int) -> Unit:
    return Unit(f"stage{stage}", f"stage {stage}", stage)


def block_unit(stage: int, block: int, path: str | None = None) -> Unit:
    name = f"stage{stage}.block{block}" + (f".{path}" if path else "")
    return Unit(name, name, stage, block, path)


def small_network(scan: str = "es2d", depths=(2, 1, 1, 1), **options) -> EfficientVMamba:
    """Float64; two blocks in stage 1, so that a block can be followed through another."""
    model = EfficientVMamba((8, 16, 32, 64), depths, 0, scan, "reference", **options)
    init_weights(model, 3)
    return model.double().eval().requires_grad_(False)


def supports(
    network: ScanNetwork, unit: str, tokens: list[tuple[int, int]], size: tuple[int, int]
) -> list[np.ndarray]:
    """For each token the pixels whose gradient is not zero for one of a few random inputs."""
    generator = torch.Generator().manual_seed(0)
    n = len(tokens)
    # One copy of the images for each token: one backward pass for all of them.
    images = torch.randn(N_INPUTS, 1, 3, *size, generator=generator, dtype=torch.float64)
    images = images.expand(-1, n, -1, -1, -1).flatten(0, 1).requires_grad_(True)
    (features,) = network.features(images, [unit], "frozen")
    features = features.unflatten(0, (N_INPUTS, n))
    wanted = torch.stack([features[:, i, :, y, x] for i, (y, x) in enumerate(tokens)])
    # Random factors for the channels: their plain sum is constant after some layers.
    objective = (wanted * torch.randn(wanted.shape, generator=generator)).sum()
    (gradient,) = torch.autograd.grad(objective, images)
    assert torch.isfinite(gradient).all()
    return list((gradient.unflatten(0, (N_INPUTS, n)) != 0).any(2).any(0).numpy())


def check(model: EfficientVMamba, unit: str, tokens: list[tuple[int, int]], size) -> None:
    network = ScanNetwork(model, "small")
    for token, found in zip(tokens, supports(network, unit, tokens, size), strict=True):
        reach = reach_pixels(model, network.unit(unit), *token, *size)
        assert reach.dtype == bool and reach.shape == size
        np.testing.assert_array_equal(found, reach, f"{unit}, token {token}")


@pytest.mark.parametrize("size", [(48, 48), (40, 72), (39, 54)], ids=["square", "wide", "odd"])
@pytest.mark.parametrize("scan", ["es2d:step=2", "es2d:step=3", "ss2d", "windows", "raster"])
def test_the_reach_is_the_support_of_the_gradient(scan, size):
    model = small_network(scan)
    for stage in (1, 2, 3, 4):
        rows, columns = (-(-(side // 4) // 2 ** (stage - 1)) for side in size)
        tokens = [(rows // 2, columns // 2), (0, columns - 1), (rows - 1, 0)]
        check(model, f"stage{stage}", tokens, size)


@pytest.mark.parametrize(
    "unit",
    [
        "stage1.block1",
        "stage1.block2",
        *(f"stage1.block2.{path}" for path in ("residual", "scan", "conv")),
        *(f"stage2.block1.{path}" for path in ("residual", "scan", "conv")),
        *(f"stage3.block1.{path}" for path in ("residual", "conv")),
    ],
)
def test_blocks_and_paths(unit):
    check(small_network("es2d:step=2"), unit, [(1, 2), (2, 1), (2, 3)], (56, 64))


def test_a_frozen_gate_reaches_nothing():
    model = small_network()
    for unit in (block_unit(1, 1, "gate"), block_unit(4, 1, "gate")):
        assert not reach_pixels(model, unit, 0, 0, 64, 64).any()


@pytest.mark.parametrize(
    "options",
    [{"conv_branch": False}, {"se": False}, {"evss_stages": (3, 4)}, {"evss_stages": (4,)}],
    ids=lambda options: str(options),
)
def test_ablations(options):
    model = small_network("raster", **options)
    for stage in (1, 2, 3, 4):
        check(model, f"stage{stage}", [(1, 1), (0, 1)], (48, 64))


# Numbers known without weights: a map of 12 x 12 tokens, the paper's reference of check values


def shares_of_patches(pixels: np.ndarray) -> float:
    """Share of the stage-1 tokens; whole patches only."""
    patches = pixels.reshape(pixels.shape[0] // 4, 4, pixels.shape[1] // 4, 4)
    assert (patches.any((1, 3)) == patches.all((1, 3))).all()
    return float(patches.any((1, 3)).mean())


@pytest.mark.parametrize(
    ("token", "percent"), [((6, 6), 61), ((6, 7), 62), ((7, 6), 62), ((7, 7), 71)]
)
def test_mixer_with_its_convolution(token, percent):
    reach = reach_pixels(small_network(), block_unit(1, 1, "scan"), *token, 48, 48)
    assert round(100 * shares_of_patches(reach)) == percent
    tokens = reach[::4, ::4]
    if token[0] % 2 == 0:  # even rows are scanned row by row: everything above, to row 7
        assert tokens[:6].all() and not tokens[8:].any()
    else:  # odd rows column by column: everything to the left
        assert tokens[:, :6].all() and not tokens[:, 9:].any()


def test_convolution_branch_reaches_nine_tokens():
    reach = reach_pixels(small_network(), block_unit(1, 1, "conv"), 5, 5, 48, 48)
    assert reach.sum() == 9 * 16
    assert reach[16:28, 16:28].all()


def test_full_scan_reaches_everything_and_a_residual_its_patch():
    model = small_network("ss2d")
    assert reach_pixels(model, block_unit(1, 1, "scan"), 0, 0, 48, 48).all()
    residual = reach_pixels(model, block_unit(1, 1, "residual"), 2, 3, 48, 48)
    assert residual.sum() == 16 and residual[8:12, 12:16].all()


def test_an_incomplete_last_patch_is_never_reached():
    reach = reach_pixels(small_network("ss2d"), stage_unit(4), 0, 0, 67, 66)
    assert reach[:64, :64].all() and not reach[64:].any() and not reach[:, 64:].any()


def test_speed():
    model = models.create_model("efficientvmamba_base", num_classes=10)
    for size, seconds in ((224, 0.2), (1024, 2.0)):
        started = time.perf_counter()
        reach_pixels(model, stage_unit(1), 7, 8, size, size)
        assert time.perf_counter() - started < seconds


def test_bad_input():
    model = small_network()
    with pytest.raises(BadInputError, match="stage 2. Its map has 8 x 8 tokens.*y from 0 to 7"):
        reach_pixels(model, stage_unit(2), 8, 0, 64, 64)
