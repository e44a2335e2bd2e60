"""What must hold of any spectrum that the public functions of ``cyclestarnet.spectra`` are given."""

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty

from cyclestarnet import WavelengthGrid
from cyclestarnet.exceptions import CycleStarNetError
from cyclestarnet.spectra import Pixels, Spectrum, to_pixels, to_spectrum

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402

settings.register_profile("short", max_examples=40, deadline=None, derandomize=True, database=None)
settings.load_profile("short")

GRID = WavelengthGrid(np.linspace(15000, 15030, 31) * u.AA)
anything = st.floats(width=64, allow_nan=True, allow_infinity=True)
plausible = st.floats(0.01, 10)
KINDS = {StdDevUncertainty: lambda s: s, VarianceUncertainty: lambda s: s**2, InverseVariance: lambda s: s**-2.0}


def spectrum(flux, sigma, mask, wavelength=None, kind=StdDevUncertainty):
    wavelength = GRID.wavelength if wavelength is None else wavelength
    return Spectrum(flux=flux * u.one, spectral_axis=wavelength, uncertainty=kind(KINDS[kind](sigma)), mask=mask)


def of_grid(values):
    return arrays(float, 31, elements=values)


masks = arrays(bool, 31)


@given(of_grid(anything), of_grid(anything), masks, st.floats(-2, 2), st.floats(0.3, 3))
def test_pixels_are_plain_numbers_or_an_error(flux, sigma, mask, shift, step):
    wavelength = (15000 + shift + step * np.arange(31)) * u.AA
    with np.errstate(all="ignore"):
        try:
            pixels = to_pixels(spectrum(flux, sigma, mask, wavelength), GRID)
        except CycleStarNetError:
            return
    assert pixels.flux.shape == pixels.ivar.shape == (31,)
    assert np.all(np.isfinite(pixels.flux))
    assert np.all(np.isfinite(pixels.ivar))
    assert np.all(pixels.ivar >= 0)
    assert np.all(pixels.flux[pixels.ivar == 0] == 1)
    assert pixels.n_good > 0


@given(of_grid(plausible), of_grid(plausible), masks, of_grid(anything), st.floats(0, 0.9))
def test_what_masked_pixels_hold_does_not_matter(flux, sigma, mask, other, shift):
    hypothesis.assume(not mask.all())
    wavelength = GRID.wavelength + shift * u.AA
    with np.errstate(all="ignore"):
        try:
            first = to_pixels(spectrum(flux, sigma, mask, wavelength), GRID)
        except CycleStarNetError:  # the few good pixels lie beside those of the grid
            return
        second = to_pixels(spectrum(np.where(mask, other, flux), sigma, mask, wavelength), GRID)
    np.testing.assert_array_equal(first.flux, second.flux)
    np.testing.assert_array_equal(first.ivar, second.ivar)


@given(of_grid(plausible), of_grid(plausible), st.sampled_from(list(KINDS)))
def test_kinds_of_uncertainty_tell_the_same(flux, sigma, kind):
    first, second = (
        to_pixels(spectrum(flux, sigma, np.zeros(31, bool), kind=k), GRID) for k in (StdDevUncertainty, kind)
    )
    np.testing.assert_allclose(first.ivar, second.ivar, rtol=1e-10)


@given(of_grid(plausible), of_grid(plausible), masks)
def test_there_and_back(flux, sigma, mask):
    hypothesis.assume(not mask.all())
    ivar = np.where(mask, 0, sigma**-2.0)
    back = to_pixels(to_spectrum(flux, GRID, ivar=ivar), GRID)
    np.testing.assert_allclose(back.ivar, ivar, rtol=1e-12)
    np.testing.assert_array_equal(back.flux, np.where(mask, 1, flux))


@given(of_grid(plausible), of_grid(plausible), masks, st.sampled_from([u.AA, u.nm, u.um, u.Hz, 1 / u.cm]))
def test_unit_and_direction_of_the_axis_do_not_matter(flux, sigma, mask, unit):
    hypothesis.assume(not mask.all())
    axis = GRID.wavelength.to(unit, u.spectral())
    first = to_pixels(spectrum(flux, sigma, mask), GRID)
    second = to_pixels(spectrum(flux, sigma, mask, axis), GRID)
    third = to_pixels(spectrum(flux[::-1], sigma[::-1], mask[::-1], axis[::-1]), GRID)
    for other in (second, third):
        np.testing.assert_allclose(other.flux, first.flux, rtol=1e-6)
        np.testing.assert_allclose(other.ivar, first.ivar, rtol=1e-6)


@given(st.floats(0.5, 2), of_grid(plausible), st.floats(0.2, 2.5))
def test_a_constant_stays_one_when_it_is_resampled(level, sigma, step):
    wavelength = (14990 + step * np.arange(round(60 / step))) * u.AA
    n = len(wavelength)
    pixels = to_pixels(spectrum(np.full(n, level), np.resize(sigma, n), np.zeros(n, bool), wavelength), GRID)
    np.testing.assert_allclose(pixels.flux[pixels.ivar > 0], level, rtol=1e-12)


@given(of_grid(anything), of_grid(anything))
def test_pixels_refuse_impossible_weights(flux, ivar):
    possible = bool(np.all((ivar >= 0) & (ivar < np.inf)))
    try:
        Pixels(flux, ivar)
    except CycleStarNetError:
        assert not possible
    else:
        assert possible
