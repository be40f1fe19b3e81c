"""The receptive field's numbers against values that can be computed without a network."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.analyses.erf.definitions import DEFINITIONS
from workbench.analyses.erf.metrics import (
    Ruler,
    border_share,
    centred_square,
    gaussian_fit,
    highest_density,
    mass_radius,
    metrics,
    n_to_reach,
    numbers,
    radial_mass,
)

SHARES = (0.2, 0.3, 0.5, 0.99)


def uniform(height: int, width: int | None = None) -> np.ndarray:
    shape = height, width or height
    return np.full(shape, 1.0 / np.prod(shape))


def gaussian(side: int, sigma: float) -> np.ndarray:
    """Round, its middle on pixel side // 2, sums to 1."""
    at = np.arange(side) - side // 2
    bell = np.exp(-(at**2) / (2 * sigma**2))
    mass = np.outer(bell, bell)
    return mass / mass.sum()


def turned(shape: tuple[int, int], middle, long: float, short: float, degrees: float) -> np.ndarray:
    """A Gaussian whose long axis points `degrees` counter-clockwise from horizontal, as seen."""
    rows, columns = np.indices(shape) + 0.5
    up, right = middle[0] - rows, columns - middle[1]
    angle = np.radians(degrees)
    along = right * np.cos(angle) + up * np.sin(angle)
    across = -right * np.sin(angle) + up * np.cos(angle)
    mass = np.exp(-(along**2) / (2 * long**2) - across**2 / (2 * short**2))
    return mass / mass.sum()


# Centred squares


@pytest.mark.parametrize(
    ("side", "percents"),
    [(224, (20.33, 30.15, 50.38, 99.11)), (1024, (20.09, 30.01, 50.13, 99.03))],
)
def test_centred_squares_of_a_uniform_map(side, percents):
    mass = uniform(side)
    found = [100 * centred_square(mass, share) for share in SHARES]
    np.testing.assert_allclose(found, percents, atol=0.005)
    if side == 224:
        assert np.isnan(centred_square(mass, 0.995))


@pytest.mark.parametrize(
    ("definition", "peak", "percents"),
    [
        (None, 1.0, (0.51, 0.79, 1.54, 10.83)),
        ("replknet", 1.0, (0.57, 0.93, 1.74, 11.35)),
        ("replknet", 100.0, (1.26, 1.95, 3.55, 16.11)),
        ("replknet", 1e4, (2.23, 3.41, 6.20, 24.32)),
        ("vmamba", 1.0, (2.47, 3.93, 7.64, 53.79)),
        ("vmamba", 1e4, (2.47, 3.93, 7.64, 53.79)),
    ],
)
def test_one_gaussian_has_five_sizes(definition, peak, percents):
    """Sigma 60 in 1024 px, as in the workbench's reference."""
    values = gaussian(1024, 60.0)
    values *= peak / values.max()
    if definition:
        values = DEFINITIONS[definition].shown(values)
    found = [100 * centred_square(values, share) for share in SHARES]
    np.testing.assert_allclose(found, percents, atol=0.006)


def test_centred_square_of_a_map_that_is_not_square():
    wide = np.full((40, 80), 1.0 / 3200)
    assert centred_square(wide, 0.2) == 27 * 27 / 3200  # 25 x 25 holds 19.5 %
    assert np.isnan(centred_square(wide, 0.5))  # no square inside the image holds half


def test_centred_square_is_that_of_the_loop():
    rng = np.random.default_rng(0)
    for shape in ((33, 48), (40, 40)):
        mass = rng.random(shape) ** 3
        height, width = shape
        for share in SHARES:
            wanted = np.nan
            for half in range(1, min(shape) // 2):
                rows = slice(height // 2 - half, height // 2 + half + 1)
                columns = slice(width // 2 - half, width // 2 + half + 1)
                if mass[rows, columns].sum() / mass.sum() > share:
                    wanted = (2 * half + 1) ** 2 / mass.size
                    break
            np.testing.assert_equal(centred_square(mass, share), wanted)


def test_squares_are_for_the_centre_token_only():
    found = metrics(uniform(64), (3.0, 3.0), is_centre_token=False)
    assert np.isnan(found["square20"]) and np.isnan(found["named20"])


# Densest area, radii


def test_highest_density_area():
    mass = np.array([[0.5, 0.25], [0.15, 0.1]])
    assert highest_density(mass, 0.5) == (0.25, 0.5)
    assert highest_density(mass, 0.6) == (0.5, 0.25)
    area, level = highest_density(uniform(100), 0.9)
    assert area == pytest.approx(0.9, abs=1e-4) and level == pytest.approx(1e-4)
    # For a Gaussian the region of share p is a disc of radius sigma sqrt(-2 ln(1 - p)).
    area, _ = highest_density(gaussian(512, 40.0), 0.5)
    assert area * 512**2 == pytest.approx(np.pi * 40**2 * 2 * np.log(2), rel=0.01)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 5000])
def test_sums_in_blocks_find_the_same_number_of_values(n):
    rng = np.random.default_rng(n)
    values = np.sort(rng.random((3, n)) ** 6, axis=1)[:, ::-1]
    running = np.cumsum(values, axis=1)
    for percent, found in zip((0, 20, 99, 100), n_to_reach(values, (0, 20, 99, 100)), strict=True):
        if percent == 100:  # reached with the last value, up to rounding
            assert np.all(running[np.arange(3), found - 1] >= running[:, -1] * (1 - 1e-12))
            continue
        wanted = [np.searchsorted(row, percent / 100 * row[-1]) + 1 for row in running]
        np.testing.assert_array_equal(found, wanted)


def test_a_long_tail_of_small_values_counts():
    """A sum of float32 would lose it: a million times 1e-9 beside a value of 1."""
    values = np.full((1, 1 << 20), 1e-9, dtype=np.float32)
    values[0, 0] = 0.001
    n = n_to_reach(values, (50,))[0, 0]
    total = 0.001 + 1e-9 * ((1 << 20) - 1)
    assert n == pytest.approx(1 + max(0.5 * total - 0.001, 0) / 1e-9, rel=0.02)


def test_radii():
    mass = gaussian(512, 40.0)
    centre = (256.5, 256.5)  # the middle of pixel 256
    assert mass_radius(mass, centre, 0.5) == pytest.approx(40 * np.sqrt(2 * np.log(2)), abs=0.5)
    radii, within = radial_mass(mass, Ruler(mass.shape, centre))
    assert within[0] == pytest.approx(mass[256, 256]) and within[-1] == pytest.approx(1.0)
    assert np.all(np.diff(within) >= 0)
    assert within[radii == 80][0] == pytest.approx(1 - np.exp(-(80**2) / (2 * 40**2)), abs=0.01)


@pytest.mark.parametrize("centre", [(6.0, 10.0), (6.5, 0.5), (0.0, 20.0)])
def test_radial_curve_is_the_sum_of_the_pixels_within(centre):
    rng = np.random.default_rng(3)
    mass = rng.random((12, 20))
    rows, columns = np.indices(mass.shape) + 0.5
    distance = np.hypot(rows - centre[0], columns - centre[1])
    radii, within = radial_mass(mass, Ruler(mass.shape, centre))
    wanted = [mass[distance <= radius].sum() / mass.sum() for radius in radii]
    np.testing.assert_allclose(within, wanted, atol=1e-12)


# Place and shape


@pytest.mark.parametrize("degrees", [0, 30, 90, -45])
def test_moments_of_a_turned_gaussian(degrees):
    mass = turned((160, 200), (70.0, 90.0), 18.0, 9.0, degrees)
    found = metrics(mass, (80.0, 90.0))
    assert found["com_y_px"] == pytest.approx(70, abs=0.01)
    assert found["com_x_px"] == pytest.approx(90, abs=0.01)
    assert found["com_shift_px"] == pytest.approx(10, abs=0.01)
    assert found["anisotropy"] == pytest.approx(2.0, rel=0.01)
    assert found["spread_px"] == pytest.approx(np.hypot(18, 9), rel=0.01)
    assert found["axis_deg"] == pytest.approx(degrees, abs=0.1)
    rows, columns = np.indices(mass.shape)
    assert mass[rows[mass == mass.max()][0], columns[mass == mass.max()][0]] == mass.max()
    assert abs(found["peak_y_px"] - 70) <= 0.5 and abs(found["peak_x_px"] - 90) <= 0.5


def test_a_round_field_has_no_long_axis():
    found = metrics(gaussian(101, 9.0), (50.5, 50.5))
    assert found["anisotropy"] == pytest.approx(1.0, abs=1e-6) and np.isnan(found["axis_deg"])


def test_one_pixel_has_the_width_of_a_pixel():
    mass = np.zeros((32, 32))
    mass[16, 16] = 1.0
    found = metrics(mass, (16.0, 16.0))
    assert found["spread_px"] == pytest.approx(np.sqrt(1 / 6))
    assert found["entropy_bits"] == pytest.approx(0.0) and found["nonzero"] == 1 / 1024
    assert found["area99"] == found["entropy_area"] == pytest.approx(1 / 1024)


def test_entropy_of_an_even_half():
    mass = np.zeros((64, 64))
    mass[:32] = 1 / 2048
    found = metrics(mass, (32.0, 32.0))
    assert found["entropy_bits"] == pytest.approx(11.0)
    assert found["entropy_area"] == pytest.approx(0.5)
    assert found["uniform_distance"] == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(64, 64), (61, 47), (5, 3)])
def test_a_uniform_map_is_at_no_distance_from_uniform(shape):
    found = metrics(uniform(*shape), (shape[0] / 2, shape[1] / 2))
    assert found["uniform_distance"] == pytest.approx(0.0, abs=1e-12)
    assert found["entropy_area"] == pytest.approx(1.0)


def test_the_border_of_a_uniform_map_holds_its_area():
    share, area = border_share(uniform(64, 96))
    assert share == pytest.approx(area) == pytest.approx(1 - (56 * 84) / (64 * 96))


# Gaussian fit


@pytest.mark.parametrize(
    ("middle", "sigmas"),
    [((64.5, 70.5), (12.0, 20.0)), ((20.0, 100.0), (9.0, 6.0)), ((64.0, 70.0), (1.5, 1.0))],
)
def test_a_gaussian_is_fitted(middle, sigmas):
    rows, columns = np.indices((128, 140)) + 0.5
    mass = np.exp(
        -((rows - middle[0]) ** 2) / (2 * sigmas[0] ** 2)
        - (columns - middle[1]) ** 2 / (2 * sigmas[1] ** 2)
    )
    found = gaussian_fit(mass / mass.sum())
    assert found["gauss_sigma_y_px"] == pytest.approx(sigmas[0], rel=1e-4)
    assert found["gauss_sigma_x_px"] == pytest.approx(sigmas[1], rel=1e-4)
    assert found["gauss_r2"] == pytest.approx(1.0, abs=1e-6)


def test_the_fit_of_noise_on_a_gaussian_is_the_least_squares_one():
    from scipy.optimize import least_squares

    rng = np.random.default_rng(5)
    mass = turned((60, 80), (28.0, 44.0), 9.0, 6.0, 0) * rng.gamma(1.0, size=(60, 80))
    mass /= mass.sum()
    rows, columns = np.indices(mass.shape) + 0.5

    def residual(p):
        bell = np.exp(
            -((rows - p[1]) ** 2) / (2 * p[3] ** 2) - (columns - p[2]) ** 2 / (2 * p[4] ** 2)
        )
        return (p[0] * bell - mass / mass.max()).ravel()

    wanted = least_squares(residual, [0.5, 28, 44, 6, 9], xtol=1e-12, ftol=1e-12)
    found = gaussian_fit(mass)
    assert found["gauss_sigma_y_px"] == pytest.approx(abs(wanted.x[3]), rel=1e-4)
    assert found["gauss_sigma_x_px"] == pytest.approx(abs(wanted.x[4]), rel=1e-4)
    scaled = mass / mass.max()
    r2 = 1 - 2 * wanted.cost / ((scaled - scaled.mean()) ** 2).sum()
    assert found["gauss_r2"] == pytest.approx(r2, abs=1e-6)


def test_a_flat_map_has_no_width():
    assert np.isnan(gaussian_fit(uniform(64))["gauss_sigma_y_px"])
    slope = uniform(64) * np.linspace(1.0, 1.1, 64)
    assert np.isnan(gaussian_fit(slope / slope.sum())["gauss_sigma_y_px"])


# Many at once


@pytest.mark.parametrize("definition", ["mass", "replknet", "vmamba"])
def test_numbers_of_many_maps_are_those_of_each(definition):
    rng = np.random.default_rng(1)
    shape, middle = (48, 64), (24.0, 32.0)
    maps = np.stack([turned(shape, middle, 4 + i, 3.0, 20 * i) for i in range(5)])
    maps *= rng.random(maps.shape)
    maps *= 50 / maps.sum(axis=(1, 2), keepdims=True)
    ruler = Ruler((48, 64), (26.0, 34.0))
    flat = maps.reshape(5, -1).astype(np.float32)
    transform = DEFINITIONS[definition].shown
    many, radial, _ = numbers(ruler, flat, transform(flat), is_centre_token=True)
    for i, one in enumerate(maps):
        alone = metrics(one, (26.0, 34.0), shown=transform(one))
        for name, values in many.items():
            np.testing.assert_allclose(values[i], alone[name], rtol=2e-3, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(radial[i], radial_mass(one, ruler)[1], atol=1e-5)
