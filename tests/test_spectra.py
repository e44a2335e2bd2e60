"""Spectrum to Pixels and back: units, masks, uncertainties, resampling."""

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.wcs import WCS
from specutils import SpectrumList
from specutils.manipulation import FluxConservingResampler

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import CycleStarNetWarning, GridError, SpectrumError
from cyclestarnet.grid import WavelengthGrid, air_to_vacuum, apogee_grid
from cyclestarnet.spectra import Pixels, Spectrum, row_of, to_pixels, to_spectrum

N = 240
CHIPS = ((0, 100), (100, 240))
FLAM = u.Unit("1e-17 erg / (s cm2 Angstrom)")


@pytest.fixture(scope="module")
def grid():
    return WavelengthGrid(10 ** (4.18 + 6e-6 * np.r_[0:100, 180:320]) * u.AA, CHIPS)


@pytest.fixture(scope="module")
def recipe(grid):
    return ContinuumRecipe(grid, np.arange(N) % 6 == 0)


@pytest.fixture
def data():
    rng = np.random.default_rng(7)
    sigma = rng.uniform(0.005, 0.02, N)
    return 1 - rng.uniform(0, 0.3, N), sigma


def make(flux, sigma, axis, *, unit=u.one, mask=None, kind=StdDevUncertainty, meta=None):
    uncertainty = None if sigma is None else kind(sigma)
    return Spectrum(flux=flux * unit, spectral_axis=axis, uncertainty=uncertainty, mask=mask, meta=meta)


def uniform(start, step, n, sigma=0.01):
    """A flat spectrum on an even axis in Angstrom."""
    return make(np.ones(n), np.full(n, sigma), (start + step * np.arange(n)) * u.AA)


# -- the same pixels -------------------------------------------------------
def test_pixels_of_the_grid_are_taken_as_they_are(grid, data):
    pixels = to_pixels(make(*data, grid.wavelength), grid)
    np.testing.assert_array_equal(pixels.flux, data[0])
    np.testing.assert_allclose(pixels.ivar, data[1] ** -2, rtol=1e-14)
    assert pixels.continuum is None
    assert pixels.n_good == N


@pytest.mark.parametrize("unit", [u.nm, u.um, u.Hz, u.eV, u.cm**-1, u.THz])
def test_unit_of_the_axis_does_not_matter(grid, data, unit):
    axis = grid.wavelength.to(unit, u.spectral())
    np.testing.assert_array_equal(to_pixels(make(*data, axis), grid).flux, data[0])


def test_direction_of_the_axis_does_not_matter(grid, data):
    flux, sigma = data
    pixels = to_pixels(make(flux[::-1], sigma[::-1], grid.wavelength[::-1]), grid)
    np.testing.assert_array_equal(pixels.flux, flux)


def test_single_precision_wavelengths_are_the_same_pixels(grid, data):
    axis = grid.wavelength.astype(np.float32)
    np.testing.assert_array_equal(to_pixels(make(*data, axis), grid).flux, data[0])  # resampled, it would be another


def test_longer_spectrum_with_the_same_pixels_is_cut():
    grid = apogee_grid()
    axis = 10 ** (4.179 + 6e-6 * np.arange(8575)) * u.AA
    flux = np.arange(8575.0)
    pixels = to_pixels(make(flux, np.ones(8575), axis), grid)
    np.testing.assert_array_equal(pixels.flux, flux[np.r_[322:3242, 3648:6048, 6412:8306]][:7167])


def test_finer_spectrum_is_averaged_not_thinned_out():
    fine = uniform(15000, 0.1, 401)
    grid = WavelengthGrid(np.arange(15001, 15039, 0.2) * u.AA)  # all centres are pixels of the fine one
    np.testing.assert_allclose(to_pixels(fine, grid).ivar, 2e4, rtol=1e-6)


def test_spectrum_of_the_old_class_is_taken(grid, data):
    class Spectrum1D(Spectrum):
        pass

    spectrum = Spectrum1D(flux=data[0] * u.one, spectral_axis=grid.wavelength, uncertainty=StdDevUncertainty(data[1]))
    assert to_pixels(spectrum, grid).n_good == N


# -- uncertainties and masks -----------------------------------------------
@pytest.mark.parametrize(
    ("kind", "power"),
    [(StdDevUncertainty, 1), (VarianceUncertainty, 2), (InverseVariance, -2)],
    ids=lambda x: str(x)[-22:],
)
@pytest.mark.parametrize("unit_given", [False, True])
def test_kinds_of_uncertainty_agree(grid, recipe, data, kind, power, unit_given):
    flux, sigma = data
    unit = FLAM if unit_given else 1
    spectrum = make(
        flux, sigma**power * unit**power if unit_given else sigma**power, grid.wavelength, unit=FLAM, kind=kind
    )
    reference = to_pixels(make(flux, sigma, grid.wavelength, unit=FLAM), grid, recipe=recipe)
    np.testing.assert_allclose(to_pixels(spectrum, grid, recipe=recipe).ivar, reference.ivar, rtol=1e-12)


def test_uncertainty_in_another_unit_is_converted(grid, recipe, data):
    flux, sigma = data
    other = make(flux, (sigma * FLAM).to(u.W / u.m**2 / u.um), grid.wavelength, unit=FLAM)
    reference = make(flux, sigma, grid.wavelength, unit=FLAM)
    np.testing.assert_allclose(
        to_pixels(other, grid, recipe=recipe).ivar, to_pixels(reference, grid, recipe=recipe).ivar, rtol=1e-12
    )


def test_single_precision_squares_do_not_underflow(grid, recipe, data):
    flux, sigma = (1e-28 * a.astype(np.float32) for a in data)
    pixels = to_pixels(
        make(flux, sigma.astype(np.float32), grid.wavelength, unit=u.W / u.m**2 / u.Hz), grid, recipe=recipe
    )
    assert pixels.n_good == N
    assert pixels.ivar.dtype == np.float64


@pytest.mark.parametrize("dtype", [bool, np.int16, np.uint8, np.int64])
def test_any_bit_of_a_mask_is_bad(grid, data, dtype):
    mask = np.zeros(N, dtype)
    mask[[3, 50]] = [1, np.bool_(1) if dtype is bool else 64]
    assert set(np.flatnonzero(to_pixels(make(*data, grid.wavelength, mask=mask), grid).ivar == 0)) == {3, 50}


@pytest.mark.parametrize("shift", [0.0, 0.04], ids=["selected", "resampled"])
@pytest.mark.parametrize("value", [1e30, -5.0, np.nan, np.inf])
def test_values_of_masked_pixels_do_not_matter(grid, data, value, shift):
    axis, mask = grid.wavelength + shift * u.AA, np.arange(N) % 9 == 4
    reference = to_pixels(make(*data, axis, mask=mask), grid)
    flux, sigma = (np.where(mask, value, a) for a in data)
    pixels = to_pixels(make(flux, sigma, axis, mask=mask), grid)
    np.testing.assert_array_equal(pixels.flux, reference.flux)
    np.testing.assert_array_equal(pixels.ivar, reference.ivar)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_flux_that_is_not_finite_is_ignored(grid, data, value):
    flux, sigma = data
    flux[10], sigma[10] = value, np.nan
    pixels = to_pixels(make(flux, sigma, grid.wavelength, mask=np.zeros(N, bool)), grid)
    assert pixels.ivar[10] == 0
    assert pixels.n_good == N - 1


@pytest.mark.parametrize(
    ("kind", "value"), [(StdDevUncertainty, np.inf), (VarianceUncertainty, np.inf), (InverseVariance, 0.0)]
)
def test_infinite_error_means_ignored(grid, data, kind, value):
    values = np.ones(N)
    values[10] = value
    assert np.flatnonzero(to_pixels(make(data[0], values, grid.wavelength, kind=kind), grid).ivar == 0) == [10]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *[(kind, value) for kind in (StdDevUncertainty, VarianceUncertainty) for value in (np.nan, 0.0, -1.0)],
        *[(InverseVariance, value) for value in (np.nan, np.inf, -1.0)],
    ],
)
def test_impossible_uncertainty_is_located(grid, data, kind, value):
    values = np.ones(N)
    values[[20, 30]] = value
    message = rf"at 2 of 240 unmasked pixels, .* first at {grid.wavelength[20].value:.2f} Angstrom; set mask to True"
    with pytest.raises(SpectrumError, match=message):
        to_pixels(make(data[0], values, grid.wavelength, kind=kind), grid)


def test_ignored_pixels_hold_the_continuum(grid, data):
    flux = data[0]
    flux[10] = 77
    pixels = to_pixels(make(flux, data[1], grid.wavelength, mask=np.arange(N) == 10), grid)
    assert pixels.flux[10] == 1


@pytest.mark.parametrize("offset", [0.0, 0.05], ids=["selected", "resampled"])
@pytest.mark.parametrize("step", [1, -1], ids=["rising", "falling"])
def test_spectrum_is_not_changed(grid, recipe, data, offset, step):
    flux, sigma = (a[::step].copy() for a in data)
    flux[10] = np.nan
    spectrum = make(flux, sigma, grid.wavelength[::step] + offset * u.AA, unit=FLAM, mask=np.arange(N) == 5)
    before = [spectrum.flux.value.copy(), spectrum.uncertainty.array.copy(), spectrum.mask.copy()]
    to_pixels(spectrum, grid, recipe=recipe)
    after = [spectrum.flux.value, spectrum.uncertainty.array, spectrum.mask]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert spectrum.uncertainty.parent_nddata is spectrum


def test_pixels_do_not_share_memory_with_the_spectrum(grid, data):
    spectrum = make(*data, grid.wavelength)
    to_pixels(spectrum, grid).flux[:] = 0
    np.testing.assert_array_equal(spectrum.flux.value, data[0])


# -- flux units ------------------------------------------------------------
@pytest.mark.parametrize(
    "unit",
    [
        "1e-17 erg / (s cm2 Angstrom)",
        "W / (m2 um)",
        "mJy",
        "erg / (s cm2 Hz)",
        "MJy / sr",
        "erg / (s cm2 Angstrom arcsec2)",
        "Jy / beam",
        "photon / (s cm2 Angstrom)",
        "erg / (s cm2)",
        "adu",
        "ct / s",
        "electron / (s pix)",
        "DN",
        "photon / Angstrom",
        "nmgy",
    ],
)
def test_fluxes_and_counts_are_normalised(grid, recipe, data, unit):
    flux, sigma = data
    pixels = to_pixels(make(50 * flux, 50 * sigma, grid.wavelength, unit=u.Unit(unit)), grid, recipe=recipe)
    reference = recipe(flux, sigma**-2)
    np.testing.assert_allclose(pixels.flux, flux / reference, rtol=1e-9)
    np.testing.assert_allclose(pixels.ivar, (reference / sigma) ** 2, rtol=1e-9)


@pytest.mark.parametrize("unit", ["K", "Angstrom", "mag", "dex", "rad", "erg", "1 / s", "m2", "ct2", "adu kg"])
def test_units_that_are_no_flux_are_named(grid, recipe, data, unit):
    with pytest.raises(SpectrumError, match=r"flux has the unit '.*', which is no flux"):
        to_pixels(make(*data, grid.wavelength, unit=u.Unit(unit)), grid, recipe=recipe)


def test_continuum_is_in_the_unit_that_came(grid, recipe, data):
    flux, sigma = data
    pixels = to_pixels(make(80 * flux, 80 * sigma, grid.wavelength, unit=u.adu), grid, recipe=recipe)
    np.testing.assert_allclose(pixels.flux * pixels.continuum, 80 * flux, rtol=1e-12)


def test_physical_flux_without_recipe_is_refused(grid, data):
    with pytest.raises(SpectrumError, match=r"flux has the unit 'Jy' and there is no continuum recipe"):
        to_pixels(make(*data, grid.wavelength, unit=u.Jy), grid)


@pytest.mark.parametrize(("factor", "unit"), [(1, u.one), (963, u.one), (100, u.percent), (1e-17, FLAM), (963, u.adu)])
def test_recipe_is_applied_whatever_the_unit(grid, recipe, data, factor, unit):
    """Pseudo-continua of others are as good as counts: what comes out is ours."""
    flux, sigma = data
    tilt = factor * np.linspace(0.98, 1.03, N)
    pixels = to_pixels(make(tilt * flux, tilt * sigma, grid.wavelength, unit=unit), grid, recipe=recipe)
    expected = recipe(tilt * flux, (tilt * sigma) ** -2) / tilt
    np.testing.assert_allclose(pixels.flux, flux / expected, rtol=1e-9)
    np.testing.assert_allclose(pixels.ivar, (expected / sigma) ** 2, rtol=1e-9)
    assert pixels.degrees == (4, 4)


@pytest.fixture
def star(recipe):
    """Lines between continuum pixels, and noise."""
    rng = np.random.default_rng(8)
    return rng.normal(np.where(recipe.pixels, 1.0, 1 - rng.uniform(0, 0.3, N)), 0.01), np.full(N, 0.01)


def test_recipe_leaves_what_it_normalised(grid, recipe, star):
    tilt = np.linspace(900, 1000, N)
    once = to_pixels(make(tilt * star[0], tilt * star[1], grid.wavelength), grid, recipe=recipe)
    again = to_pixels(make(once.flux, once.sigma, grid.wavelength), grid, recipe=recipe)
    np.testing.assert_allclose(again.flux, once.flux, atol=3e-4)


def test_without_recipe_flux_is_taken_as_it_is(grid, data):
    pixels = to_pixels(make(*data, grid.wavelength), grid)
    assert pixels.continuum is None
    assert pixels.degrees == ()
    np.testing.assert_array_equal(pixels.flux, data[0])


def test_pixels_without_continuum_are_ignored_and_named(grid, recipe, star):
    """Continuum pixels at one end of a chip are bad: a polynomial would run away there."""
    mask = recipe.pixels & (np.arange(N) < 60)
    with pytest.warns(CycleStarNetWarning, match=r"\d+ of \d+ good pixels are ignored, because .* continuum"):
        pixels = to_pixels(make(*star, grid.wavelength, mask=mask), grid, recipe=recipe)
    good = pixels.ivar > 0
    assert not good[:20].any()
    assert good[100:].all()
    assert np.abs(pixels.flux - star[0])[good].max() < 0.05


def test_continuum_does_not_see_what_is_ignored(grid, recipe, star):
    flux, sigma = star
    emission = np.abs(np.arange(N) - 150) < 12
    spoilt = to_pixels(make(flux + emission, sigma, grid.wavelength), grid, recipe=recipe, ignore=emission)
    masked = to_pixels(make(flux, sigma, grid.wavelength, mask=emission), grid, recipe=recipe)
    np.testing.assert_array_equal(spoilt.flux, masked.flux)
    np.testing.assert_array_equal(spoilt.ivar, masked.ivar)
    assert np.isnan(spoilt.raw[emission]).all()


def test_spectrum_without_continuum_pixels_is_refused(grid, recipe, data):
    with pytest.raises(SpectrumError, match=r"no chip has good continuum pixels enough"):
        to_pixels(make(*data, grid.wavelength, mask=recipe.pixels), grid, recipe=recipe)


def test_percent_is_dimensionless(grid, data):
    flux, sigma = data
    pixels = to_pixels(make(100 * flux, 100 * sigma, grid.wavelength, unit=u.percent), grid)
    np.testing.assert_allclose(pixels.flux, flux)
    np.testing.assert_allclose(pixels.ivar, sigma**-2)


def test_recipe_of_another_grid_is_refused(recipe, data):
    other = WavelengthGrid(np.linspace(15200, 15250, N) * u.AA)
    with pytest.raises(GridError, match=r"recipe must be made for the grid of the model"):
        to_pixels(make(*data, other.wavelength, unit=u.Jy), other, recipe=recipe)


def test_pixels_with_negative_continuum_are_ignored(grid, recipe, data):
    flux = np.r_[np.ones(100), -np.ones(140)]
    pixels = to_pixels(make(flux, data[1], grid.wavelength, unit=u.Jy), grid, recipe=recipe)
    assert pixels.n_good == 100
    assert np.all(pixels.ivar[100:] == 0)


def test_star_without_light_is_refused(grid, recipe, data):
    with pytest.raises(SpectrumError, match=r"continuum is nowhere positive"):
        to_pixels(make(-data[0], data[1], grid.wavelength, unit=u.Jy), grid, recipe=recipe)


# -- what is refused -------------------------------------------------------
@pytest.mark.parametrize("thing", [np.ones(N), np.ones(N) * u.one, "spectrum.fits", None, SpectrumList()])
def test_what_is_no_spectrum_is_named(grid, thing):
    with pytest.raises(TypeError, match=rf"but got {type(thing).__name__}; build one: Spectrum\(flux=.*uncertainty="):
        to_pixels(thing, grid)


@pytest.mark.parametrize("rows", [1, 3])
def test_several_rows_are_refused(grid, rows):
    spectrum = make(np.ones((rows, N)), np.ones((rows, N)), grid.wavelength)
    with pytest.raises(SpectrumError, match=rf"has shape \({rows}, 240\); pass one row"):
        to_pixels(spectrum, grid)


def test_spectrum_without_uncertainty_is_refused(grid, data):
    with pytest.raises(SpectrumError, match=r"no uncertainty"):
        to_pixels(make(data[0], None, grid.wavelength), grid)


def test_unknown_uncertainty_is_refused(grid, data):
    with pytest.raises(SpectrumError, match=r"but is UnknownUncertainty"):
        to_pixels(make(*data, grid.wavelength, kind=UnknownUncertainty), grid)


def test_mask_of_another_length_is_refused(grid, data):
    spectrum = make(*data, grid.wavelength)
    spectrum._mask = np.zeros(7, bool)  # specutils 1 lets this pass, 2 does not
    with pytest.raises(SpectrumError, match=r"mask must have the shape of the flux, \(240,\), but has \(7,\)"):
        to_pixels(spectrum, grid)


def test_all_masked_is_refused(grid, data):
    with pytest.raises(SpectrumError, match=r"all 240 pixels are masked"):
        to_pixels(make(*data, grid.wavelength, mask=np.ones(N, bool)), grid)


def test_all_masked_on_the_grid_is_refused(grid):
    axis = np.linspace(15000, 15400, 4001) * u.AA
    with pytest.raises(SpectrumError, match=r"no good pixel between"):
        to_pixels(make(np.ones(4001), np.ones(4001), axis, mask=axis > 15100 * u.AA), grid)


def test_spectrum_in_the_gap_between_chips_is_refused(grid):
    with pytest.raises(SpectrumError, match=r"none is covered"):
        to_pixels(uniform(grid.wavelength[99].value + 2, 0.1, 50), grid)


@pytest.mark.parametrize("start", [5000, 20000])
def test_no_overlap_gives_both_ranges(grid, start):
    with pytest.raises(GridError, match=rf"covers {start}.0 to .* model's 15135.6 to 15202.5 Angstrom"):
        to_pixels(uniform(start, 0.2, 100), grid)


@pytest.mark.filterwarnings("ignore:Physical type may be ambiguous")  # specutils 1, on making the spectrum
@pytest.mark.parametrize("unit", [u.km / u.s, u.pix])
def test_axes_that_are_no_wavelength_are_refused(grid, data, unit):
    with pytest.raises(GridError, match=r"spectral axis has the unit '.*', but must be a wavelength"):
        to_pixels(make(*data, np.arange(1, N + 1) * unit), grid)


def test_spectrum_without_axis_is_refused(grid, data):
    spectrum = Spectrum(flux=data[0] * u.one, uncertainty=StdDevUncertainty(data[1]))
    with pytest.raises(GridError, match=r"has the unit 'pix'"):
        to_pixels(spectrum, grid)


@pytest.mark.parametrize("axis", [np.linspace(-1, 2, N) * u.um, np.linspace(0, 2e14, N) * u.Hz])
def test_axis_must_be_positive(grid, data, axis):
    with pytest.raises(GridError, match=r"finite, positive and rising or falling"):
        to_pixels(make(*data, axis), grid)


def test_one_pixel_is_no_spectrum(grid):
    with pytest.raises(GridError, match=r"2 or more pixels, but has 1"):
        to_pixels(make(np.ones(1), np.ones(1), [15150] * u.AA), grid)


@pytest.mark.parametrize(
    "meta",
    [
        {"AIRORVAC": "air"},
        {"header": {"AIRORVAC": "AIR "}},
        {"header": fits.Header({"AIRORVAC": "air"})},
        {"VACUUM": False},
        {"header": fits.Header({"VACUUM": False})},
        {"header": {"VACUUM": "F"}},
        {"header": {"CTYPE1": "AWAV"}},
        {"header": {"CTYPE1": "AWAV-LOG"}},
        {"medium": "air"},
    ],
    ids=str,
)
def test_air_wavelengths_are_refused(grid, data, meta):
    with pytest.raises(GridError, match=r"air wavelengths \(.* in its metadata\).*air_to_vacuum"):
        to_pixels(make(*data, grid.wavelength, meta=meta), grid)


@pytest.mark.parametrize(
    "meta",
    [
        {"AIRORVAC": "vac"},
        {"header": fits.Header({"VACUUM": True, "CTYPE1": "WAVE"})},
        {"header": "AIRORVAC air"},
        {"header": ["AIRORVAC"]},
        {"header": None},
    ],
    ids=str,
)
def test_other_metadata_are_no_hindrance(grid, data, meta):
    assert to_pixels(make(*data, grid.wavelength, meta=meta), grid).n_good == N


def test_air_wavelengths_of_a_wcs_are_refused(grid):
    wcs = WCS(fits.Header({"CTYPE1": "AWAV", "CUNIT1": "Angstrom", "CRVAL1": 15140, "CDELT1": 0.2, "CRPIX1": 1}))
    spectrum = Spectrum(flux=np.ones(200) * u.one, wcs=wcs, uncertainty=StdDevUncertainty(np.ones(200)))
    with pytest.raises(GridError, match=r"CTYPE = 'AWAV' of its WCS"):
        to_pixels(spectrum, grid)


def test_advice_about_air_works(grid):
    air = make(np.ones(900), np.ones(900), np.linspace(15100, 15250, 900) * u.AA, meta={"AIRORVAC": "air"})
    advised = make(air.flux.value, air.uncertainty.array, air_to_vacuum(u.Quantity(air.spectral_axis)))
    assert to_pixels(advised, grid).n_good == N


def test_axis_that_is_not_at_rest_is_refused(grid, data):
    axis = grid.wavelength * (1 + 1e-4)
    spectrum = Spectrum(
        flux=data[0] * u.one,
        spectral_axis=axis,
        uncertainty=StdDevUncertainty(data[1]),
        radial_velocity=29.98 * u.km / u.s,
    )
    with pytest.raises(GridError, match=r"radial_velocity = 29.980 km / s, so its spectral axis is not at rest"):
        to_pixels(spectrum, grid)
    spectrum.shift_spectrum_to(radial_velocity=0 * u.km / u.s)
    assert to_pixels(spectrum, grid).n_good == N


# -- resampling ------------------------------------------------------------
def brute_force(centres, flux, variance, good, grid_centres):
    """The rule of the docstring, pixel by pixel, for even axes."""
    step, out_step = centres[1] - centres[0], grid_centres[1] - grid_centres[0]
    result = np.ones((2, len(grid_centres)))
    for i, centre in enumerate(grid_centres):
        overlap = [
            max(0, min(c + step / 2, centre + out_step / 2) - max(c - step / 2, centre - out_step / 2)) * ok
            for c, ok in zip(centres, good, strict=True)
        ]
        covered = sum(overlap)
        if covered < 0.4999 * out_step:  # exactly half is enough, rounding or not
            result[1, i] = 0
            continue
        result[0, i] = np.dot(overlap, flux) / covered
        result[1, i] = covered**2 / (np.dot(overlap, variance) * step)
    return result


@pytest.mark.parametrize("step", [0.05, 0.13, 0.2, 0.5], ids=lambda s: f"step{s}")
@pytest.mark.parametrize("out_step", [0.07, 0.2, 0.3], ids=lambda s: f"grid{s}")
def test_resampling_equals_its_rule_pixel_by_pixel(step, out_step):
    rng = np.random.default_rng(3)
    centres, wanted = 15000 + step * np.arange(100), 15000.4 + out_step * np.arange(30)
    flux, sigma, good = rng.normal(1, 0.1, 100), rng.uniform(0.01, 0.1, 100), rng.uniform(size=100) > 0.15
    pixels = to_pixels(make(flux, sigma, centres * u.AA, mask=~good), WavelengthGrid(wanted * u.AA))
    expected = brute_force(centres, flux, sigma**2, good, wanted)
    np.testing.assert_allclose(pixels.flux, expected[0], rtol=1e-6)
    np.testing.assert_allclose(pixels.ivar, expected[1], rtol=1e-6)


def test_flux_equals_that_of_specutils():
    rng = np.random.default_rng(4)
    spectrum = make(rng.normal(1, 0.1, 400), np.full(400, 0.1), np.linspace(15000, 15080, 400) * u.AA)
    grid = WavelengthGrid(np.geomspace(15003, 15077, 250) * u.AA)
    theirs = FluxConservingResampler()(spectrum, grid.wavelength)
    np.testing.assert_allclose(to_pixels(spectrum, grid).flux, theirs.flux.value, rtol=1e-9)


def test_integral_of_the_flux_is_conserved():
    edges = np.linspace(15000, 15040, 201)
    antiderivative = -np.cos(edges / 3) * 3
    means = np.diff(antiderivative) / np.diff(edges)  # sin(x / 3), averaged over each pixel
    grid = WavelengthGrid(np.arange(15005.15, 15035, 0.3) * u.AA)
    pixels = to_pixels(make(means, np.ones(200), 0.5 * (edges[1:] + edges[:-1]) * u.AA), grid)
    outer = grid.edges(grid.chips[0])[[0, -1]]
    exact = 3 * (np.cos(outer[0] / 3) - np.cos(outer[1] / 3))
    assert np.sum(pixels.flux * 0.3) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_binning_gives_the_mean_over_the_bin(factor):
    edges = np.linspace(15000, 15060, 301)
    means = 2 + np.diff((edges - 15030) ** 3) / 3 / np.diff(edges) / 900  # a parabola
    coarse = edges[::factor]
    grid = WavelengthGrid(0.5 * (coarse[1:] + coarse[:-1]) * u.AA)
    pixels = to_pixels(make(means, np.ones(300), 0.5 * (edges[1:] + edges[:-1]) * u.AA), grid)
    exact = 2 + np.diff((coarse - 15030) ** 3) / 3 / np.diff(coarse) / 900
    np.testing.assert_allclose(pixels.flux, exact, rtol=1e-9)


@pytest.mark.parametrize("factor", [2, 3, 5, 10])
def test_binning_divides_the_variance_by_the_factor(factor):
    grid = WavelengthGrid((15000 + 0.1 * (factor * np.arange(1, 50) + (factor - 1) / 2)) * u.AA)
    np.testing.assert_allclose(to_pixels(uniform(15000, 0.1, 600), grid).ivar, 1e4 * factor, rtol=1e-6)


@pytest.mark.parametrize("shift", [0.1, 0.3, 0.5, 0.9])
def test_shift_conserves_the_inverse_variance(shift):
    rng = np.random.default_rng(5)
    sigma = 0.01 * np.exp(0.1 * rng.normal(size=300))
    spectrum = make(np.ones(300), sigma, (15000 + 0.2 * np.arange(300)) * u.AA)
    pixels = to_pixels(spectrum, WavelengthGrid((15000 + 0.2 * (shift + np.arange(299))) * u.AA))
    assert pixels.ivar.sum() == pytest.approx(np.sum(sigma**-2), rel=0.03)


def test_finer_grid_conserves_the_inverse_variance():
    grid = WavelengthGrid((15000 + 0.05 * np.arange(800)) * u.AA)
    pixels = to_pixels(uniform(15000, 0.2, 200), grid)
    assert pixels.ivar.sum() == pytest.approx(200e4, rel=0.01)


def test_error_bars_of_a_fit_are_right_after_resampling():
    rng = np.random.default_rng(6)
    axis, wanted = 15000 + 0.2 * np.arange(120), 15000.1 + 0.2 * np.arange(119)
    grid, noise = WavelengthGrid(wanted * u.AA), rng.normal(0, 0.01, (400, 120))
    line = np.exp(-0.5 * ((wanted - 15012) / 0.8) ** 2)
    pulls = []
    for flux in noise:
        pixels = to_pixels(make(flux, np.full(120, 0.01), axis * u.AA), grid)
        weight = line * pixels.ivar
        pulls.append((weight @ pixels.flux) / np.sqrt(weight @ line))  # a depth over its error bar; truth 0
    assert np.std(pulls) == pytest.approx(1, abs=0.12)


def test_noisy_neighbour_spoils_the_pixels_that_it_touches():
    sigma = np.full(100, 0.01)
    sigma[50] = 100
    spectrum = make(np.ones(100), sigma, (15000 + 0.2 * np.arange(100)) * u.AA)
    pixels = to_pixels(spectrum, WavelengthGrid((15000.1 + 0.2 * np.arange(99)) * u.AA))
    assert set(np.flatnonzero(pixels.ivar < 1)) == {49, 50}


def test_half_covered_pixel_keeps_half_of_the_information():
    mask = np.arange(100) == 50
    spectrum = make(np.ones(100), np.full(100, 0.01), (15000 + 0.2 * np.arange(100)) * u.AA, mask=mask)
    pixels = to_pixels(spectrum, WavelengthGrid((15000.1 + 0.2 * np.arange(99)) * u.AA))
    np.testing.assert_allclose(pixels.ivar[[48, 49, 50, 51]], [1e4, 0.5e4, 0.5e4, 1e4], rtol=1e-6)


def test_pixel_that_is_covered_less_than_half_is_ignored():
    mask = np.arange(100) == 50
    spectrum = make(np.ones(100), np.full(100, 0.01), (15000 + 0.2 * np.arange(100)) * u.AA, mask=mask)
    pixels = to_pixels(spectrum, WavelengthGrid((15000.08 + 0.2 * np.arange(99)) * u.AA))
    assert list(np.flatnonzero(pixels.ivar == 0)) == [50]


@pytest.mark.parametrize("dropped", [3, 40])
def test_gap_is_not_bridged(dropped):
    keep = np.ones(200, bool)
    keep[90 : 90 + dropped] = False
    axis = (15000 + 0.2 * np.arange(200)) * u.AA
    spectrum = make(np.ones(keep.sum()), np.full(keep.sum(), 0.01), axis[keep])
    pixels = to_pixels(spectrum, WavelengthGrid(axis))
    np.testing.assert_array_equal(np.flatnonzero(pixels.ivar == 0), np.arange(90, 90 + dropped))


@pytest.mark.parametrize("kept", [[0], [0, 1], [100], [199]], ids=str)
def test_lonely_pixels_have_the_usual_width(kept):
    keep = np.zeros(200, bool)
    keep[10:90] = keep[110:190] = True
    keep[kept] = True
    axis = (15000 + 0.2 * np.arange(200)) * u.AA
    spectrum = make(np.ones(keep.sum()), np.full(keep.sum(), 0.01), axis[keep])
    pixels = to_pixels(spectrum, WavelengthGrid(axis))
    np.testing.assert_array_equal(pixels.ivar > 0, keep)
    np.testing.assert_allclose(pixels.ivar[keep], 1e4, rtol=1e-6)


def test_change_of_sampling_is_no_gap():
    axis = np.r_[15000:15010:0.1, 15010:15030:0.25]
    grid = WavelengthGrid(np.arange(15002, 15028, 0.3) * u.AA)
    assert to_pixels(make(np.ones(len(axis)), np.ones(len(axis)), axis * u.AA), grid).n_good == grid.n_pixels


# -- merged exposures --------------------------------------------------------
EVEN = 15000 + 0.2 * np.arange(400)
OFFSETS = {
    "pair": [0, 0.03],
    "near pair": [0, 0.001],
    "half a step": [0, 0.1],
    "five": [0, 0.01, 0.02, 0.03, 0.04],
    "random": np.random.default_rng(1).uniform(-0.1, 0.1, 20),
    "many near": np.random.default_rng(2).normal(0, 0.002, 30),
}


def merged(axes):
    axis = np.sort(np.concatenate(axes))
    return make(np.ones(len(axis)), np.full(len(axis), 0.01), axis * u.AA)


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS.keys())
def test_merged_exposures_lose_no_pixel(offsets):
    grid = WavelengthGrid(EVEN[2:-2] * u.AA)
    pixels = to_pixels(merged([EVEN + 0.01 + offset for offset in offsets]), grid)
    assert pixels.n_good == grid.n_pixels
    assert pixels.n_lost == 0


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS.keys())
def test_gaps_of_merged_exposures_stay_gaps(offsets):
    keep = np.ones(400, dtype=bool)
    for start, stop in ((50, 54), (100, 110), (200, 300)):
        keep[start:stop] = False
    grid = WavelengthGrid(EVEN[2:-2] * u.AA)
    pixels = to_pixels(merged([EVEN[keep] + offset for offset in offsets]), grid)
    gap, bad = ~keep[2:-2], pixels.ivar == 0
    inside = gap & np.roll(gap, 1) & np.roll(gap, -1)  # exposures that are shifted see part of the outer pixels
    assert np.all(bad[inside])
    assert not np.any(bad[~gap])


@pytest.mark.parametrize("offset", [0.001, 0.03, 0.1])
def test_two_exposures_have_twice_the_information(offset):
    grid = WavelengthGrid(EVEN[5:-5] * u.AA)
    np.testing.assert_allclose(to_pixels(merged([EVEN, EVEN + offset]), grid).ivar, 2e4, rtol=1e-6)


def test_exposures_that_overlap_in_part_lose_no_pixel():
    grid = WavelengthGrid(EVEN[2:-2] * u.AA)
    assert to_pixels(merged([EVEN, EVEN[100:200] + 0.03]), grid).n_good == grid.n_pixels


def test_orders_of_other_sampling_lose_no_pixel():
    grid = WavelengthGrid(np.arange(15002, 15078, 0.2) * u.AA)
    pixels = to_pixels(merged([np.arange(15000, 15040, 0.05), np.arange(15035.013, 15080, 0.31)]), grid)
    assert pixels.n_good == grid.n_pixels


def test_sampling_that_turns_six_times_coarser_is_no_gap():
    grid = WavelengthGrid(np.arange(15002, 15078, 0.2) * u.AA)
    spectrum = merged([np.arange(15000, 15030, 0.05), np.arange(15030, 15034, 0.31), np.arange(15034, 15080, 0.05)])
    assert to_pixels(spectrum, grid).n_good == grid.n_pixels


@pytest.mark.parametrize("shift", [0.0, 0.05], ids=["selected", "resampled"])
def test_pixels_of_the_same_wavelength_are_averaged(grid, data, shift):
    rng, (flux, sigma) = np.random.default_rng(3), data
    mask, axis = rng.uniform(size=(2, N)) < 0.2, grid.wavelength.value + shift
    both, errors = np.stack([flux, flux[::-1]]), np.stack([sigma, 2 * sigma])
    order = np.argsort(np.tile(axis, 2), kind="stable")
    arrays = (a.ravel()[order] for a in (both, errors))
    pixels = to_pixels(make(*arrays, np.tile(axis, 2)[order] * u.AA, mask=mask.ravel()[order]), grid)
    ivar = np.where(mask, 0, errors**-2.0)
    mean = (ivar * both).sum(0) / np.where(mask.all(0), 1, ivar.sum(0))
    error = np.where(mask.all(0), np.nan, ivar.sum(0)) ** -0.5
    expected = to_pixels(make(mean, error, axis * u.AA, mask=mask.all(0)), grid)
    np.testing.assert_allclose(pixels.flux, expected.flux, rtol=1e-12)
    np.testing.assert_allclose(pixels.ivar, expected.ivar, rtol=1e-12)


def test_lost_pixels_are_counted_and_warned_of():
    axis = np.r_[EVEN, EVEN + 100]
    mask = (np.arange(800) < 400) & (np.arange(800) % 4 > 0)  # each good pixel of the first half stands alone,
    grid = WavelengthGrid(np.r_[15001:15079:0.5, 15101:15179:0.5] * u.AA, [(0, 156), (156, 312)])
    spectrum = make(np.ones(800), np.full(800, 0.01), axis * u.AA, mask=mask)
    lone = np.count_nonzero(~mask & (axis > 15000.75) & (axis < 15078.75))  # and covers less than half of a pixel
    with pytest.warns(CycleStarNetWarning, match=rf"{lone} good pixels of the spectrum are lost"):
        assert to_pixels(spectrum, grid).n_lost == lone


def test_chips_do_not_mix():
    grid = WavelengthGrid(np.r_[15000:15010:0.2, 15020:15030:0.2] * u.AA, [(0, 50), (50, 100)])
    axis = np.arange(14999, 15031, 0.17)
    spectrum = make(np.where(axis < 15015, 1.0, 5.0), np.ones(len(axis)), axis * u.AA)
    np.testing.assert_allclose(to_pixels(spectrum, grid).flux, np.repeat([1.0, 5.0], 50))


def test_partial_overlap_leaves_the_rest_unused(grid):
    pixels = to_pixels(uniform(15100, 0.15, 300), grid)
    covered = grid.wavelength.value < 15100 + 0.15 * 299
    np.testing.assert_array_equal(pixels.ivar > 0, covered)


@pytest.mark.parametrize("unit", [u.nm, u.Hz, u.eV])
def test_resampling_does_not_depend_on_the_unit_of_the_axis(grid, unit):
    rng = np.random.default_rng(8)
    axis = np.geomspace(15130, 15210, 700) * u.AA
    flux, sigma = rng.normal(1, 0.1, 700), np.full(700, 0.1)
    reference = to_pixels(make(flux, sigma, axis), grid)
    pixels = to_pixels(make(flux, sigma, axis.to(unit, u.spectral())), grid)
    np.testing.assert_allclose(pixels.flux, reference.flux, rtol=1e-9)
    np.testing.assert_allclose(pixels.ivar, reference.ivar, rtol=1e-8)


def test_scale_of_the_flux_commutes_with_resampling(grid, recipe):
    rng = np.random.default_rng(9)
    axis = np.linspace(15130, 15210, 900) * u.AA
    flux, sigma = rng.normal(1, 0.01, 900), np.full(900, 0.01)
    one, other = (to_pixels(make(flux * k, sigma * k, axis, unit=FLAM), grid, recipe=recipe) for k in (1.0, 1e-20))
    np.testing.assert_allclose(one.flux, other.flux, rtol=1e-9)
    np.testing.assert_allclose(one.ivar, other.ivar, rtol=1e-9)


# -- Pixels ----------------------------------------------------------------
def test_pixels_are_float64_and_frozen():
    pixels = Pixels(np.ones(3, np.float32), [1, 0, 2])
    assert pixels.flux.dtype == pixels.ivar.dtype == np.float64
    assert pixels.n_good == 2
    with pytest.raises(AttributeError):
        pixels.flux = None


@pytest.mark.parametrize("arrays", [([1, 1], [1]), ([1, 1], [1, 1], [1]), ([[1, 1]], [[1, 1]]), (1.0, 1.0)], ids=str)
def test_pixels_of_unequal_shapes_are_refused(arrays):
    with pytest.raises(SpectrumError, match=r"must be .* arrays of one length"):
        Pixels(*arrays)


@pytest.mark.parametrize("ivar", [-1.0, np.nan, np.inf])
def test_pixels_with_impossible_ivar_are_refused(ivar):
    with pytest.raises(SpectrumError, match=r"ivar must be finite and 0 or positive"):
        Pixels([1, 1], [1, ivar])


# -- and back --------------------------------------------------------------
def test_way_back_and_forth(grid, data):
    flux, sigma = data
    ivar = np.where(np.arange(N) % 11 == 0, 0.0, sigma**-2)
    pixels = to_pixels(to_spectrum(flux, grid, ivar=ivar), grid)
    np.testing.assert_allclose(pixels.ivar, ivar, rtol=1e-12)
    np.testing.assert_array_equal(pixels.flux[ivar > 0], flux[ivar > 0])


def test_uncertainty_of_ignored_pixels_is_not_a_number(grid):
    spectrum = to_spectrum(np.ones(N), grid, ivar=np.r_[0.0, np.ones(N - 1)])
    assert np.isnan(spectrum.uncertainty.array[0])
    assert spectrum.mask[0]
    assert isinstance(spectrum.uncertainty, StdDevUncertainty)


def test_mask_and_bad_values_are_both_masked(grid):
    flux = np.ones(N)
    flux[5] = np.nan
    spectrum = to_spectrum(flux, grid, mask=np.arange(N) == 7)
    np.testing.assert_array_equal(np.flatnonzero(spectrum.mask), [5, 7])
    assert spectrum.uncertainty is None


def test_to_spectrum_takes_rows(grid):
    spectrum = to_spectrum(np.ones((3, N)), grid, ivar=np.ones(N))
    assert spectrum.flux.shape == spectrum.uncertainty.array.shape == (3, N)


def test_metadata_are_copied(grid):
    meta = {"star": "Arcturus"}
    spectrum = to_spectrum(np.ones(N), grid, meta=meta)
    spectrum.meta["star"] = "Sirius"
    assert meta == {"star": "Arcturus"}
    assert spectrum.flux.unit == u.dimensionless_unscaled


@pytest.mark.parametrize("name", ["flux", "ivar", "mask"])
def test_to_spectrum_checks_lengths(grid, name):
    arrays = {"flux": np.ones(N), name: np.ones(5)}
    with pytest.raises(GridError, match=rf"{name} must have shape \(\.\.\., 240\)"):
        to_spectrum(arrays.pop("flux"), grid, **arrays)


@pytest.mark.parametrize("value", [-1.0, np.nan])
def test_to_spectrum_refuses_impossible_ivar(grid, value):
    with pytest.raises(SpectrumError, match=r"ivar must be 0 or positive"):
        to_spectrum(np.ones(N), grid, ivar=np.full(N, value))


def test_to_spectrum_refuses_units(grid):
    with pytest.raises(SpectrumError, match=r"must be dimensionless"):
        to_spectrum(np.ones(N) * u.Jy, grid)


# -- independent data ------------------------------------------------------------
SAMPLINGS = {
    "seven times coarser": 7.3,
    "three halves": 1.5,
    "the same, shifted": 1.0,
    "finer": 0.4,
}


@pytest.mark.parametrize("step", SAMPLINGS.values(), ids=SAMPLINGS)
def test_share_is_the_variance_of_a_pixel_alone_in_units_of_what_it_says(step, rng):
    """Each output pixel is linear in the input: impulses tell with which weights."""
    grid = WavelengthGrid((15000.0 + np.arange(40)) * u.AA)
    wavelength = np.arange(14996.37, 15044, step)
    sigma = rng.uniform(0.01, 0.03, len(wavelength))
    mask = np.abs(wavelength - 15020) < 0.8

    def pixels(flux):
        uncertainty = StdDevUncertainty(sigma)
        return to_pixels(Spectrum(flux * u.one, wavelength * u.AA, uncertainty=uncertainty, mask=mask), grid)

    weights = np.array([pixels(impulse).flux for impulse in np.eye(len(wavelength))]).T
    found = pixels(np.ones(len(wavelength)))
    good = found.ivar > 0
    np.testing.assert_allclose(found.share[good], ((weights**2 @ sigma**2) * found.ivar)[good], rtol=1e-9)


def test_the_shares_of_coarse_pixels_are_their_number():
    grid = WavelengthGrid((15000.0 + np.arange(60)) * u.AA)
    wavelength = 15002 + 5.0 * np.arange(12)  # of five pixels each
    error = StdDevUncertainty(np.full(12, 0.01))
    coarse = to_pixels(Spectrum(np.ones(12) * u.one, wavelength * u.AA, uncertainty=error), grid)
    np.testing.assert_allclose(coarse.share, 0.2)
    fine = Spectrum(np.ones(60) * u.one, grid.wavelength, uncertainty=StdDevUncertainty(np.full(60, 0.01)))
    np.testing.assert_array_equal(to_pixels(fine, grid).share, 1.0)


# -- stacks ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [StdDevUncertainty, InverseVariance, VarianceUncertainty])
def test_row_of_a_stack_is_what_indexing_gives(kind, rng):
    flux, error = rng.uniform(0.5, 1, (2, 3, 7))
    wavelength = np.array([1.5, 1.51, 1.53, 1.54, 1.56, 1.57, 1.6]) * u.um
    stack = Spectrum(
        flux=flux * u.Jy, spectral_axis=wavelength, uncertainty=kind(error), mask=flux > 0.8, meta={"object": "M 67"}
    )
    for row in range(3):
        ours, theirs = row_of(stack, row), stack[row]
        assert isinstance(ours.uncertainty, kind)
        assert ours.meta["object"] == theirs.meta["object"]
        for name in ("flux", "spectral_axis", "mask"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        np.testing.assert_array_equal(ours.uncertainty.array, theirs.uncertainty.array)
        assert (ours.flux.unit, ours.uncertainty.unit) == (theirs.flux.unit, theirs.uncertainty.unit)


def test_row_of_a_stack_does_not_copy_the_others(rng):
    """Indexing copies the whole stack, for each of its rows."""
    flux = rng.uniform(0.5, 1, (3, 7)) * u.one
    stack = Spectrum(flux=flux, spectral_axis=np.arange(1, 8) * u.um, uncertainty=StdDevUncertainty(0.1 * flux.value))
    row = row_of(stack, 1)
    assert np.shares_memory(row.flux, stack.flux)
    assert row.mask is None
