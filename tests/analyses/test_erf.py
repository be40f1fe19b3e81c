"""The receptive field's numbers against values that can be computed without a network, and its
errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import models
from workbench.analyses.erf import (
    centred_square,
    erf,
    highest_density,
    input_gradient,
    mass_radius,
    metrics,
    radial_mass,
)
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken


def uniform(side: int) -> np.ndarray:
    return np.full((side, side), 1.0 / side**2)


def gaussian(side: int, sigma: float) -> np.ndarray:
    at = np.arange(side) - side // 2
    bell = np.exp(-(at**2) / (2 * sigma**2))
    mass = np.outer(bell, bell)
    return mass / mass.sum()


@pytest.mark.parametrize(
    ("side", "percents"),
    [(224, (20.33, 30.15, 50.38, 99.11)), (1024, (20.09, 30.01, 50.13, 99.03))],
)
def test_centred_squares_of_a_uniform_map(side, percents):
    mass = uniform(side)
    found = [100 * centred_square(mass, share) for share in (0.2, 0.3, 0.5, 0.99)]
    np.testing.assert_allclose(found, percents, atol=0.005)
    if side == 224:
        assert np.isnan(centred_square(mass, 0.995))


def test_centred_squares_of_a_gaussian():
    mass = gaussian(1024, 60.0)
    found = [100 * centred_square(mass, share) for share in (0.2, 0.3, 0.5, 0.99)]
    np.testing.assert_allclose(found, (0.51, 0.79, 1.54, 10.83), atol=0.005)


def test_centred_square_of_a_map_that_is_not_square():
    wide = np.full((40, 80), 1.0 / 3200)
    assert centred_square(wide, 0.2) == 27 * 27 / 3200  # 25 x 25 holds 19.5 %
    assert np.isnan(centred_square(wide, 0.5))  # no square inside the image holds half


def test_highest_density_area():
    mass = np.array([[0.5, 0.25], [0.15, 0.1]])
    assert highest_density(mass, 0.5) == (0.25, 0.5)
    assert highest_density(mass, 0.6) == (0.5, 0.25)
    area, level = highest_density(uniform(100), 0.9)
    assert area == pytest.approx(0.9, abs=1e-4) and level == pytest.approx(1e-4)
    # For a Gaussian the region of share p is a disc of radius sigma sqrt(-2 ln(1 - p)).
    area, _ = highest_density(gaussian(512, 40.0), 0.5)
    assert area * 512**2 == pytest.approx(np.pi * 40**2 * 2 * np.log(2), rel=0.01)


def test_radii():
    mass = gaussian(512, 40.0)
    centre = (256.5, 256.5)  # the middle of pixel 256
    assert mass_radius(mass, centre, 0.5) == pytest.approx(40 * np.sqrt(2 * np.log(2)), abs=0.5)
    radii, within = radial_mass(mass, centre)
    assert within[0] == pytest.approx(mass[256, 256]) and within[-1] == pytest.approx(1.0)
    assert np.all(np.diff(within) >= 0)
    assert within[radii == 80][0] == pytest.approx(1 - np.exp(-(80**2) / (2 * 40**2)), abs=0.01)
    found = metrics(mass, centre)
    assert found["com_y_px"] == pytest.approx(256.5) and found["com_x_px"] == pytest.approx(256.5)
    assert found["nonzero"] == 1.0


def test_squares_are_for_the_centre_token_only():
    assert np.isnan(metrics(uniform(64), (3.0, 3.0), is_centre_token=False)["square20"])


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_gradient_is_that_of_the_definition(network, photo, stage):
    image = torch.from_numpy(photo(72, 104))[None]
    pixels = image.clone().requires_grad_(True)
    feature = network.forward_intermediates(pixels, intermediates_only=True)[stage - 1]
    y, x = feature.shape[2] // 2, feature.shape[3] // 3
    (wanted,) = torch.autograd.grad(feature[0, :, y, x].clamp(min=0).sum(), pixels)
    found = input_gradient(network, image, stage, y, x)
    torch.testing.assert_close(found, wanted.abs().sum(1))


@pytest.mark.parametrize("spec", ["es2d:step=1", "es2d:step=3", "ss2d"])
def test_field_is_the_mean_of_normalised_maps(network, photo, provenance, spec):
    model = models.with_scan(network, spec)
    images = [(f"image {i}", photo(64, 96, seed=i)) for i in range(4)]
    results = list(erf(model, images, 2, 3, 5, 8, provenance=provenance))
    assert [r.is_final for r in results] == [False] * (len(results) - 1) + [True]
    assert results[0].n_images == 1, "the first picture comes after one image"
    for result in results:
        wanted = np.zeros((64, 96))
        for _, image in images[: result.n_images]:
            one = input_gradient(model, torch.from_numpy(image)[None], 2, 3, 5)[0].double().numpy()
            wanted += one / one.sum() / result.n_images
        np.testing.assert_allclose(result.mass, wanted, rtol=1e-4, atol=1e-9)
        assert result.mass.sum() == pytest.approx(1.0, abs=1e-5)
        assert result.radial_mass[-1] == pytest.approx(1.0, abs=1e-5)
    assert results[-1].image_names == tuple(name for name, _ in images)
    assert results[-1].provenance.parameters == {"stage": 2, "y": 3, "x": 5}


def test_one_scan_reaches_only_what_lies_before(fresh_network, photo):
    """With step 1 and the other paths cut, no token sees rows below its convolution's reach."""
    block = fresh_network.get_submodule("layers.0.blocks.0")
    block.se = None  # its mean over the map would reach everything
    block.conv_branch = None
    model = models.with_scan(fresh_network, "es2d", step=1)
    field = input_gradient(model, torch.from_numpy(photo(64, 64))[None], 1, 6, 6)[0]
    assert field[: 6 * 4].amax() > 0
    assert field[8 * 4 :].abs().max() == 0, (
        "row 7 is seen by the 3 x 3 convolution, row 8 by nobody"
    )


def test_only_the_stages_up_to_the_one_asked_for_run(fresh_network, photo):
    with torch.no_grad():
        for parameter in fresh_network.layers[2].parameters():
            parameter.fill_(float("nan"))
    image = torch.from_numpy(photo())[None]
    assert torch.isfinite(input_gradient(fresh_network, image, 2, 4, 4)).all()


def test_nan_weights_are_named(fresh_network, photo, provenance):
    with torch.no_grad():
        fresh_network.get_submodule("layers.1.blocks.0.op.out_proj").weight[3, 3] = float("nan")
    with pytest.raises(BadInputError, match=r"1 such value\(s\) in 'layers.1.blocks.0.op.out_proj"):
        list(erf(fresh_network, [("a", photo())], 2, 4, 4, 8, provenance=provenance))


def test_a_field_that_is_empty_says_so(fresh_network, photo, provenance):
    with torch.no_grad():
        fresh_network.patch_embed["0"].weight.zero_()
    with pytest.raises(BadInputError, match="every gradient is zero"):
        list(erf(fresh_network, [("a", photo())], 1, 4, 4, 4, provenance=provenance))


def test_a_token_outside_the_map_is_refused(network, photo, provenance):
    with pytest.raises(BadInputError, match="outside stage 4, which has 2 x 2 tokens"):
        list(erf(network, [("a", photo())], 4, 2, 0, 32, provenance=provenance))


def test_no_images_is_refused(network, provenance):
    with pytest.raises(BadInputError, match="at least one"):
        list(erf(network, [], 4, 0, 0, 32, provenance=provenance))


def test_cancelling_keeps_what_was_yielded(network, photo, provenance, n_hooks):
    token = CancelToken()
    images = [(str(i), photo(seed=i)) for i in range(20)]
    run = erf(network, images, 2, 4, 4, 8, provenance=provenance, token=token)
    assert next(run).n_images == 1
    token.cancel()
    with pytest.raises(CancelledError):
        next(run)
    assert n_hooks(network) == 0 and torch.is_grad_enabled()
