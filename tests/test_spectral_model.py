"""The forward model in `astropy.modeling`: the same flux and slopes, and joined with other components."""

import copy

import astropy.units as u
import numpy as np
import pytest
from astropy.modeling.fitting import TRFLSQFitter
from astropy.modeling.models import Gaussian1D
from stars import SIGMA, STAR, spectrum

from cyclestarnet import GridError, LabelError


@pytest.fixture(scope="module")
def star(tiny_model):
    return tiny_model.as_spectral_model(STAR)


@pytest.mark.parametrize("domain", ["observed", "synthetic"])
def test_flux_is_that_of_predict(tiny_model, domain):
    star = tiny_model.as_spectral_model(STAR, domain=domain)
    flux = tiny_model.predict(STAR, domain=domain).flux.value
    np.testing.assert_allclose(star(tiny_model.grid.wavelength), flux, atol=2e-6)
    np.testing.assert_allclose(star(tiny_model.grid.wavelength.value), flux, atol=2e-6)


def test_split_latent_is_that_of_the_star(tiny_model):
    like = spectrum(tiny_model, 0.98 * tiny_model.predict(STAR).flux.value)
    star = tiny_model.as_spectral_model(STAR, like=like)
    flux = tiny_model.predict(STAR, like=like).flux.value
    np.testing.assert_allclose(star(tiny_model.grid.wavelength), flux, atol=2e-6)


def test_begins_at_the_mean_of_the_prior(tiny_model):
    star = tiny_model.as_spectral_model()
    np.testing.assert_array_equal(star.parameters, tiny_model.prior.mean)
    assert star.bounds == {
        name: (low, high)
        for name, low, high in zip(tiny_model.labels, tiny_model.labels.lower, tiny_model.labels.upper, strict=True)
    }


def test_derivatives_are_those_of_the_flux(star):
    """Central differences, which float64 has the digits for."""
    x = np.linspace(15140, 15160, 200)
    for k, (slope, step) in enumerate(zip(star.fit_deriv(x, *star.parameters), (1e-2, 1e-6, 1e-6), strict=True)):
        low, high = star.parameters.copy(), star.parameters.copy()
        low[k], high[k] = low[k] - step, high[k] + step
        difference = (star.evaluate(x, *high) - star.evaluate(x, *low)) / (2 * step)
        np.testing.assert_allclose(slope, difference, atol=1e-5 * np.abs(slope).max())


def test_splines_join_the_pixels(star, tiny_model):
    """Between pixels it lies within what its neighbours span, or little beyond."""
    pixels = tiny_model.grid.wavelength.value[20:180]
    middle, flux = (pixels[1:] + pixels[:-1]) / 2, star(pixels)
    curvature = np.abs(np.diff(flux, 2)).max()
    assert np.abs(star(middle) - (flux[1:] + flux[:-1]) / 2).max() < curvature


def test_other_units_of_wavelength(star):
    np.testing.assert_allclose(star([1514.5, 1515.0] * u.nm), star([15145.0, 15150.0]), rtol=1e-9)


def test_joined_with_an_emission_line_both_are_found(star, tiny_model):
    x = tiny_model.grid.wavelength.value[:200]
    joined = star + Gaussian1D(0.0, mean=15145.0, stddev=0.4)
    for fixed in (joined.logg_0, joined.mean_1, joined.stddev_1):
        fixed.fixed = True
    true = copy.deepcopy(joined)
    true.teff_0, true.mg_h_0, true.amplitude_1 = star.teff.value + 150, star.mg_h.value + 0.1, 0.05
    found = TRFLSQFitter()(joined, x, true(x), weights=np.full(x.shape, 1 / SIGMA))
    assert found.teff_0.value == pytest.approx(true.teff_0.value, abs=0.5)
    assert found.mg_h_0.value == pytest.approx(true.mg_h_0.value, abs=1e-3)
    assert found.amplitude_1.value == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("x", [15000.0, [15140.0, 15210.0, 15300.0]])
def test_wavelengths_without_pixels_are_refused(star, x):
    with pytest.raises(GridError, match=rf"1 of {np.size(x)} wavelengths, the first .* not in the range of the model"):
        star(x)


def test_wrong_labels_are_refused(tiny_model):
    with pytest.raises(LabelError, match="must be a Quantity in K"):
        tiny_model.as_spectral_model(dict(STAR) | {"teff": 4700})
    with pytest.raises(ValueError, match="domain must be one of"):
        tiny_model.as_spectral_model(STAR, domain="sky")
