"""Which pixels count and with what error: one rule, against closed forms, and the same in every room."""

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty
from stars import with_noise

from cyclestarnet import NoiseModel, SpectrumError, WavelengthGrid
from cyclestarnet.spectra import Spectrum, to_pixels
from cyclestarnet.training.datasets import ObservedSpectra
from cyclestarnet.training.settings import TrainingSettings

SIGMA = np.array([0, -0.01, 0.02, 0.06, np.nan, 0.05, np.inf])
USED = np.array([False, False, True, False, False, True, False])


def test_pixels_count_that_have_a_possible_error_below_the_largest():
    np.testing.assert_array_equal(NoiseModel().used_pixels(np.full(7, 0.9), SIGMA), USED)


def test_masked_and_infinite_pixels_do_not_count():
    flux, mask = np.array([0.9, np.nan, np.inf, 0.9]), np.array([False, False, False, True])
    used = NoiseModel().used_pixels(flux, np.full(4, 0.01), mask)
    np.testing.assert_array_equal(used, [True, False, False, False])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_error_counts_in_any_precision(dtype):
    sigma = np.array([0.05, 0.0501, 0.01, 0.01], dtype=dtype)
    by_variance = (1 / (1 / sigma.astype(float) ** 2)) ** 0.5
    for error in (sigma, by_variance):
        np.testing.assert_array_equal(NoiseModel().used_pixels(np.ones(4), error), [True, False, True, True])


def test_a_spectrum_noisier_than_the_training_keeps_its_usual_pixels():
    sigma = np.array([[0.06, 0.07, 0.08, 0.2, 0.3], [0.01, 0.01, 0.04, 0.06, 0.3]])
    used = NoiseModel().used_pixels(np.ones((2, 5)), sigma)
    # the median of the first is 0.08: up to 0.24; of the second, half and more lie below the limit
    np.testing.assert_array_equal(used, [[True, True, True, True, False], [True, True, True, False, False]])


def test_a_row_is_judged_without_its_company(rng):
    sigma, flux = rng.uniform(0.001, 0.2, (6, 50)), np.ones((6, 50))
    together = NoiseModel().used_pixels(flux, sigma)
    for k in range(6):
        np.testing.assert_array_equal(NoiseModel().used_pixels(flux[k], sigma[k]), together[k])


@pytest.mark.parametrize(("fill", "expected"), [(1.0, [0.9, 1.0, 1.0]), (0.0, [0.9, 0, 0]), (None, [0.9, 7.0, 1.0])])
def test_networks_see_the_filled_value(fill, expected):
    flux, used = np.array([0.9, 7.0, np.nan]), np.array([True, False, False])
    np.testing.assert_array_equal(NoiseModel(fill=fill).filled_flux(flux, used), expected)


def test_variances_add():
    noise = NoiseModel(
        sigma_floor=0.01, scatter={"observed": np.array([0.03, 0.03, 0.03])}, scatter_inflation={"observed": 2.0}
    )
    variance = noise.data_variance(np.array([0.001, 0.04, 0.04]), np.array([True, True, False]))
    np.testing.assert_allclose(variance, [1e-4, 16e-4, np.inf])
    np.testing.assert_allclose(noise.total_variance(variance, "observed", inflated=False), [1e-3, 25e-4, np.inf])
    np.testing.assert_allclose(noise.total_variance(variance, "observed"), [37e-4, 52e-4, np.inf])
    np.testing.assert_allclose(noise.total_variance(variance, "emulator"), variance)


@pytest.mark.parametrize("wrong", [{"sigma_floor": 0}, {"sigma_floor": 0.1}, {"sigma_max": np.inf}, {"fill": np.nan}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        NoiseModel(**wrong)


def test_other_shapes_are_refused():
    with pytest.raises(SpectrumError, match=r"\(3,\), \(4,\)"):
        NoiseModel().used_pixels(np.ones(3), np.ones(4))


def test_training_and_fits_use_the_same_pixels(tiny_model):
    """Weights of a training, and weights of a fit, of the same flux, errors and mask."""
    n = tiny_model.grid.n_pixels
    sigma, flux = np.full(n, 0.02), np.full(n, 0.9)
    sigma[[3, 50, 100]], flux[7] = [0.06, np.inf, 0.05], np.nan
    mask = np.zeros(n, dtype=bool)
    mask[200] = True
    settings = TrainingSettings()
    _, weight = ObservedSpectra(flux[None], sigma[None], mask[None], settings).draw(1)
    spectrum = Spectrum(
        flux=flux * u.one, spectral_axis=tiny_model.grid.wavelength, uncertainty=StdDevUncertainty(sigma), mask=mask
    )
    fitted = tiny_model.fit(spectrum, space="emulator", method="lm").spectrum
    expected = np.ones(n, dtype=bool)
    expected[[3, 7, 50, 200]] = False
    np.testing.assert_array_equal(weight[0].numpy() > 0, expected)
    np.testing.assert_array_equal(~fitted.mask, expected)


# -- what networks see -------------------------------------------------------------------
def spoilt(model, value):
    """A spectrum whose masked pixels hold a value."""
    n = model.grid.n_pixels
    flux, mask = np.full(n, 0.9), np.zeros(n, dtype=bool)
    flux[20:30], mask[20:30] = value, True
    sigma = StdDevUncertainty(np.full(n, 0.01))
    return Spectrum(flux=flux * u.one, spectral_axis=model.grid.wavelength, uncertainty=sigma, mask=mask)


def test_masked_values_do_not_matter_unless_the_model_shows_them(tiny_model):
    fill, raw = (with_noise(tiny_model, fill=fill) for fill in (1.0, None))
    for model, same in ((fill, True), (raw, False)):
        one, other = (model.fit(spoilt(model, value), method="lm") for value in (0.5, 1.2))
        assert (one.meta["latent_distance"] == other.meta["latent_distance"]) is same


@pytest.mark.parametrize("resampled", [False, True])
def test_raw_flux_is_that_of_the_spectrum(tiny_model, resampled):
    spectrum = spoilt(tiny_model, 0.5)
    grid = tiny_model.grid
    if resampled:  # the masked pixels are lost, and have no flux
        grid = WavelengthGrid(grid.wavelength * (1 + 5e-6), grid.chips)
    raw = to_pixels(spectrum, grid).raw
    np.testing.assert_allclose(raw[22:28], np.nan if resampled else 0.5)
    np.testing.assert_allclose(raw[40:100], 0.9)


def test_raw_flux_is_divided_by_the_continuum(tiny_model):
    spectrum = spoilt(tiny_model, 0.45)
    physical = Spectrum(
        flux=3 * spectrum.flux.value * u.Jy,
        spectral_axis=spectrum.spectral_axis,
        uncertainty=StdDevUncertainty(3 * spectrum.uncertainty.array),
        mask=spectrum.mask,
    )
    pixels = to_pixels(physical, tiny_model.grid, recipe=tiny_model.recipe)
    np.testing.assert_allclose(pixels.raw[20:30], 0.5, rtol=1e-6)  # half of a continuum of 0.9


def test_ignored_pixels_are_not_seen_even_by_a_model_of_raw_flux(tiny_model):
    model, ignore = with_noise(tiny_model, fill=None), np.zeros(tiny_model.grid.n_pixels, dtype=bool)
    ignore[20:30] = True
    one, other = (model.fit(spoilt(model, value), method="lm", ignore=ignore) for value in (0.5, 1.2))
    assert one.meta["latent_distance"] == other.meta["latent_distance"]


def test_a_training_may_show_raw_flux():
    sigma, flux = np.full((1, 4), 0.01), np.array([[0.9, 0.5, np.nan, 0.9]])
    mask = np.array([[False, True, True, False]])
    settings = TrainingSettings(fill=None, flux_mean=0.0, flux_std=1.0)
    seen, weight = ObservedSpectra(flux, sigma, mask, settings).draw(1)
    np.testing.assert_allclose(seen[0].numpy(), [0.9, 0.5, 1.0, 0.9], rtol=1e-6)
    np.testing.assert_array_equal(weight[0].numpy() > 0, [True, False, False, True])
