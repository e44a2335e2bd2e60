"""The signs of unfamiliar spectra: distances in a known cloud, and shifts of lines."""

import numpy as np
import pytest

from cyclestarnet.grid import SPEED_OF_LIGHT
from cyclestarnet.networks.clouds import LatentCloud
from cyclestarnet.pipeline.diagnostics import ShiftSearch, continuum_misfit, local_misfit
from cyclestarnet.training.assembly import Residuals, misfits

WAVELENGTH = 10 ** (4.18 + 6e-6 * np.arange(1500))
IVAR = np.full(1500, 1e4)


@pytest.fixture(scope="module")
def cloud_of_latents():
    """4000 latents (5, 12): 6 directions of standard deviation 6 ... 1, and 0.1 in all others."""
    rng = np.random.default_rng(21)
    size = np.concatenate([np.arange(6, 0, -1), np.full(54, 0.1)])
    rotation = np.linalg.qr(rng.normal(size=(60, 60)))[0]

    def draw(n, seed=1):
        return (3 + (np.random.default_rng(seed).normal(size=(n, 60)) * size) @ rotation.T).reshape(n, 5, 12)

    return draw, size, rotation


@pytest.fixture(scope="module")
def cloud(cloud_of_latents):
    return LatentCloud.from_latents(cloud_of_latents[0](4000, seed=0), n_components=6)


# -- the cloud -------------------------------------------------------------------------------
def test_distances_are_those_of_the_gaussian(cloud, cloud_of_latents):
    """Root mean square of the standardised coordinates, from the covariance that the latents were drawn with."""
    draw, size, rotation = cloud_of_latents
    latents = draw(200)
    expected = np.sqrt(np.mean((((latents.reshape(200, -1) - 3) @ rotation) / size) ** 2, axis=1))
    np.testing.assert_allclose(cloud.distance(latents), expected, rtol=0.03)


def test_distance_is_about_one_inside(cloud, cloud_of_latents):
    assert np.mean(cloud.distance(cloud_of_latents[0](500)) ** 2) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("direction", [0, 5, 30])
def test_distance_of_a_point_along_one_direction(cloud, cloud_of_latents, direction):
    """20 sigma along one of 60 directions."""
    _, size, rotation = cloud_of_latents
    point = 3 + 20 * size[direction] * rotation[:, direction]
    assert cloud.distance(point.reshape(1, 5, 12))[0] == pytest.approx(20 / 60**0.5, rel=0.1)


def test_threshold_lets_its_own_kind_pass(cloud, cloud_of_latents):
    assert (cloud.distance(cloud_of_latents[0](1000)) < cloud.threshold).mean() > 0.995


def test_threshold_stops_the_strange(cloud, cloud_of_latents):
    _, _, rotation = cloud_of_latents
    assert cloud.distance((3 + 2 * rotation[:, 40]).reshape(1, 5, 12))[0] > cloud.threshold


def test_threshold_is_the_margin_times_the_quantile(cloud_of_latents):
    latents = cloud_of_latents[0](300)
    cloud = LatentCloud.from_latents(latents, n_components=6, quantile=0.9, margin=1.5)
    assert cloud.threshold == pytest.approx(1.5 * np.quantile(cloud.distance(latents), 0.9))


# -- shifts --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def lines():
    """30 lines at random places, as a function of wavelength."""
    rng = np.random.default_rng(22)
    centres, depths = rng.uniform(WAVELENGTH[60], WAVELENGTH[-60], 30), rng.uniform(0.1, 0.4, 30)
    return lambda wavelength: (
        1 - np.einsum("l,lp->p", depths, np.exp(-0.5 * ((wavelength - centres[:, None]) / 0.35) ** 2))
    )


@pytest.fixture(scope="module")
def search(lines):
    return ShiftSearch(WAVELENGTH, lines(WAVELENGTH))


def shifted(lines, velocity, noise=0.0):
    flux = lines(WAVELENGTH / (1 + velocity / SPEED_OF_LIGHT))
    return flux + noise * np.random.default_rng(23).normal(size=flux.shape)


@pytest.mark.parametrize("velocity", [-140.0, -82.4, -31.7, -12.0, 14.3, 41.0, 133.3])
def test_shift_is_recovered(lines, search, velocity):
    found, correlation = search(shifted(lines, velocity, 0.02), IVAR)
    assert found == pytest.approx(velocity, abs=0.7)
    assert correlation > 0.9


@pytest.mark.parametrize("velocity", [-480.0, -162.0, 155.0, 203.5, 371.0])
def test_far_shifts_are_found_in_wide_steps(lines, search, velocity):
    """As exactly as near ones; and a search that does not reach them finds something else."""
    far = ShiftSearch(WAVELENGTH, lines(WAVELENGTH), reach=500.0)
    assert far(shifted(lines, velocity, 0.02), IVAR)[0] == pytest.approx(velocity, abs=1)
    assert abs(search(shifted(lines, velocity, 0.02), IVAR)[0] - velocity) > 2


def test_spectrum_at_rest_has_no_shift(lines, search):
    assert search(shifted(lines, 0, 0.02), IVAR)[0] == 0


@pytest.mark.parametrize("seed", range(4))
def test_noise_has_no_shift(search, seed):
    noise = 1 + 0.05 * np.random.default_rng(seed).normal(size=1500)
    assert search(noise, IVAR)[0] == 0


@pytest.mark.parametrize("flux", [1.0, 0.0])
def test_flat_spectrum_has_no_shift(search, flux):
    velocity, correlation = search(np.full(1500, flux), IVAR)
    assert velocity == 0
    assert abs(correlation) < 1e-6


def test_limit_bounds_the_search(lines):
    velocity, _ = ShiftSearch(WAVELENGTH, lines(WAVELENGTH), limit=60)(shifted(lines, 120), IVAR)
    assert abs(velocity) <= 60


@pytest.mark.parametrize("value", [0.0, 50.0, -3.0])
def test_unused_pixels_do_not_matter(lines, search, value):
    flux, ivar = shifted(lines, 41.0), np.where(np.arange(1500) % 5 == 0, 0, IVAR)
    spoilt = np.where(ivar > 0, flux, value)
    assert search(spoilt, ivar) == search(flux, ivar)


def test_one_wild_pixel_does_not_decide(lines, search):
    flux = shifted(lines, -55.0)
    flux[700] = 1e4
    assert search(flux, IVAR)[0] == pytest.approx(-55, abs=1)


def test_one_search_serves_many_spectra(lines, search):
    for velocity in (-55.0, 0.0, 80.0):
        assert search(shifted(lines, velocity), IVAR)[0] == pytest.approx(velocity, abs=0.7)


# -- misfits ---------------------------------------------------------------------------------------
CHIPS = ((0, 900), (900, 1500))


def test_local_misfit_of_a_single_feature():
    """6 pixels of 5 sigma: 6 · 25 / 30, in a window that holds them all."""
    residual = np.zeros(1500)
    residual[700:706] = 0.05
    value, pixel = local_misfit(residual, IVAR)
    assert value == pytest.approx(5.0)
    assert abs(pixel - 703) <= 15


@pytest.mark.parametrize("measure", [lambda *a: local_misfit(*a)[0], lambda *a: continuum_misfit(*a, CHIPS)])
def test_a_spectrum_bad_all_over_has_no_special_place(measure, rng):
    residual = rng.normal(0, 0.02, 1500)  # twice the errors, and ten times
    assert measure(5 * residual, IVAR) == pytest.approx(measure(residual, IVAR))


@pytest.mark.parametrize("measure", [lambda *a: local_misfit(*a)[0], lambda *a: continuum_misfit(*a, CHIPS)])
def test_pixels_that_are_not_used_do_not_misfit(measure, rng):
    ivar = np.where(np.arange(1500) % 4 == 0, 0.0, IVAR)
    residual = rng.normal(0, 0.01, 1500)
    assert measure(np.where(ivar > 0, residual, 9.0), ivar) == measure(residual, ivar)


def test_continuum_misfit_is_that_of_the_worst_chip():
    """Levels 0.2 and 0.5 sigma off."""
    assert continuum_misfit(np.where(np.arange(1500) < 900, 0.002, -0.005), IVAR, CHIPS) == pytest.approx(0.5)


def test_a_wide_line_is_no_continuum():
    residual = np.zeros(1500)
    residual[500:580] = 0.5
    assert continuum_misfit(residual, IVAR, CHIPS) == 0


def test_no_pixels_no_misfit():
    nothing = np.zeros(1500)
    assert local_misfit(nothing, nothing)[0] == continuum_misfit(nothing, nothing, CHIPS) == 0


def test_misfits_of_validation_stars_count_the_scatter_of_the_model():
    """Errors 0.006 and scatter 0.008 make 0.01; masked pixels are NaN."""
    residual = np.full((2, 1500), [[0.004], [0.0]])
    residual[1, 700:706] = 0.05
    residual[:, 100:200] = np.nan
    found = misfits(Residuals(residual, np.full(residual.shape, 0.006), np.ones(2)), np.full(1500, 0.008), CHIPS)
    np.testing.assert_allclose(found["continuum_misfit"], [0.4, 0.0])
    np.testing.assert_allclose(found["local_misfit"], [0.16, 5.0])
