"""Line-spread functions as matrices, and spectra of lower resolution: against closed forms and astropy."""

import astropy.units as u
import numpy as np
import pytest
from astropy.convolution import Gaussian1DKernel, convolve
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from astropy.stats import gaussian_fwhm_to_sigma
from numpy.polynomial import hermite_e

from cyclestarnet import LineSpreadFunction, TabulatedLineSpreadFunction, WavelengthGrid, degrade_resolution
from cyclestarnet.exceptions import GridError, SpectrumError
from cyclestarnet.spectra import Spectrum

AXIS = np.arange(5000.0, 5040.0, 0.05)
CENTRE = 5020.0
SIGMA = 0.3  # Angstrom, 6 pixels
FWHM = SIGMA / gaussian_fwhm_to_sigma * u.AA
APOGEE = 10 ** (4.179 + 6e-6 * np.arange(3000))


def spectrum(flux, axis=AXIS, *, sigma=0.01, mask=None):
    error = StdDevUncertainty(np.full(np.shape(flux), sigma))
    return Spectrum(flux=flux * u.one, spectral_axis=axis * u.AA, uncertainty=error, mask=mask, meta={"object": "X"})


def line(sigma, axis=AXIS, centre=CENTRE, depth=0.5):
    """A Gaussian line in a continuum of 1."""
    return 1 - depth * np.exp(-0.5 * ((axis - centre) / sigma) ** 2)


def moments(flux, axis=AXIS, centre=None):
    """Area, mean and variance of a profile."""
    step = np.gradient(axis)
    area = (flux * step).sum()
    mean = (axis * flux * step).sum() / area
    return area, mean, ((axis - mean) ** 2 * flux * step).sum() / area


# -- functions of known shape -----------------------------------------------------------------
def delta(axis=AXIS, centre=CENTRE):
    """A line that is narrower than a pixel, of area 1."""
    flux, place = np.zeros(len(axis)), np.argmin(abs(axis - centre))
    flux[place] = 1 / np.gradient(axis)[place]
    return flux, axis[place]


def test_a_narrow_line_takes_the_shape_of_the_function():
    flux, centre = delta()
    seen = LineSpreadFunction(FWHM).operator(AXIS * u.AA) @ flux
    expected = np.exp(-0.5 * ((AXIS - centre) / SIGMA) ** 2) / (np.sqrt(2 * np.pi) * SIGMA)
    np.testing.assert_allclose(seen, expected, atol=1e-6 * expected.max())


@pytest.mark.parametrize("pixels", [0.02, 0.15, 0.3, 0.34, 0.4, 0.6, 1.0, 3.0, 12.0])
def test_area_mean_and_variance_are_right_however_few_pixels_there_are(pixels):
    """Of σ in pixels; a function that is sampled only would be a line or nothing below half a pixel."""
    flux, centre = delta()
    seen = LineSpreadFunction(0.05 * pixels / gaussian_fwhm_to_sigma * u.AA).operator(AXIS * u.AA) @ flux
    area, mean, variance = moments(seen)
    assert area == pytest.approx(1, abs=1e-9)
    assert mean == pytest.approx(centre, abs=1e-7)
    assert variance == pytest.approx((0.05 * pixels) ** 2, rel=1e-6)


HERMITE = [0.05, 0.02, -0.03, 0.04]


def test_hermite_moments_are_those_of_their_orthogonality():
    """∫ He_m He_n φ = n! δ gives mean h1 σ, second moment 1 + 2 h2, third 3 h1 + 6 h3, fourth 3 + 12 h2 + 24 h4."""
    flux, centre = delta()
    seen = LineSpreadFunction(FWHM, hermite=HERMITE).operator(AXIS * u.AA) @ flux * 0.05
    h1, h2, h3, h4 = HERMITE
    y = (AXIS - centre) / SIGMA
    raw = [float((seen * y**n).sum()) for n in range(5)]
    np.testing.assert_allclose(raw, [1, h1, 1 + 2 * h2, 3 * h1 + 6 * h3, 3 + 12 * h2 + 24 * h4], atol=2e-5)
    expected = hermite_e.hermeval(y, [1, *HERMITE]) * np.exp(-0.5 * y**2) / np.sqrt(2 * np.pi) / SIGMA * 0.05
    np.testing.assert_allclose(seen, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("unit", [u.AA, u.km / u.s])
def test_a_tabulated_gaussian_is_one(unit):
    offset = np.linspace(-6, 6, 241) * SIGMA
    scaled = offset * u.AA if unit == u.AA else (offset / CENTRE * 299792.458) * unit
    table = TabulatedLineSpreadFunction(scaled, 7 * np.exp(-0.5 * (offset / SIGMA) ** 2))
    one, other = (f.operator(AXIS * u.AA) @ line(0.2) for f in (table, LineSpreadFunction(FWHM)))
    inner = (AXIS > 5002) & (AXIS < 5038)
    np.testing.assert_allclose(one[inner], other[inner], atol=2e-4)


def test_a_box_has_the_moments_of_a_box():
    flux, centre = delta()
    box = TabulatedLineSpreadFunction([-0.4, -0.399, 0.599, 0.6] * u.AA, [0, 1, 1, 0])
    area, mean, variance = moments(box.operator(AXIS * u.AA) @ flux)
    assert area == pytest.approx(1, abs=1e-6)
    assert mean == pytest.approx(centre + 0.1, abs=1e-6)
    assert variance == pytest.approx(0.999**2 / 12 + 0.001**2 / 12, rel=1e-4)


def test_light_goes_where_the_offsets_of_a_table_say():
    flux, centre = delta()
    seen = TabulatedLineSpreadFunction([0, 0.25, 0.5] * u.AA, [0, 1, 0]).operator(AXIS * u.AA) @ flux
    assert AXIS[np.argmax(seen)] == pytest.approx(centre + 0.25, abs=0.026)
    skewed = LineSpreadFunction(FWHM, hermite=[0, 0, 0.1]).operator(AXIS * u.AA) @ flux
    assert (skewed * (AXIS - centre) ** 3).sum() > 0


def test_the_width_follows_the_wavelength():
    widths, at = np.array([0.5, 1.5]), np.array([5000.0, 5040.0])
    function = LineSpreadFunction(widths * u.AA, at=at * u.AA)
    for centre in (5008.0, 5020.0, 5030.0):
        flux, place = delta(centre=centre)
        _, _, variance = moments(function.operator(AXIS * u.AA) @ flux)
        expected = np.interp(place, at, widths) * gaussian_fwhm_to_sigma
        assert np.sqrt(variance) == pytest.approx(expected, rel=0.01)  # it is that of the place where light is seen
    tables = TabulatedLineSpreadFunction([-1, 0, 1] * u.AA, [[0, 1, 0], [1, 1, 1]], at=at * u.AA)
    flux, _ = delta(centre=5010.0)
    _, _, variance = moments(tables.operator(AXIS * u.AA) @ flux)
    assert variance == pytest.approx(0.75 / 6 + 0.25 / 3, rel=0.03)  # of a triangle and a box


def test_a_resolution_is_that_of_every_wavelength():
    function = LineSpreadFunction(20_000)
    for centre in (15300.0, 15600.0):
        flux, place = delta(APOGEE, centre)
        _, _, variance = moments(function.operator(APOGEE * u.AA) @ flux, APOGEE)
        assert place / np.sqrt(variance) * gaussian_fwhm_to_sigma == pytest.approx(20_000, rel=1e-4)
    velocity = LineSpreadFunction(299792.458 / 20_000 * u.km / u.s)
    np.testing.assert_allclose(velocity.fwhm(APOGEE * u.AA).value, function.fwhm(APOGEE * u.AA).value)


FUNCTIONS = {
    "Gaussian": LineSpreadFunction(12_000),
    "one that varies": LineSpreadFunction([8_000, 14_000], at=[5000, 5040] * u.AA),
    "Gauss-Hermite": LineSpreadFunction(FWHM, hermite=HERMITE),
    "table": TabulatedLineSpreadFunction([-1, 0.2, 1] * u.AA, [0, 1, 0.5]),
    "narrow": LineSpreadFunction(300_000),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_constant_stays_constant_and_a_slope_a_slope(function):
    matrix = function.operator(AXIS * u.AA)
    np.testing.assert_allclose(matrix @ np.full(len(AXIS), 3.0), 3.0, rtol=1e-12)
    inner = (AXIS > 5006) & (AXIS < 5034)
    seen = (matrix @ AXIS)[inner]
    np.testing.assert_allclose(np.diff(seen), 0.05, rtol=0.05)
    if not np.any(getattr(function, "hermite", 1)):
        np.testing.assert_allclose(seen, AXIS[inner], atol=1e-7)


def test_even_pixels_give_what_astropy_does(rng):
    flux = rng.normal(1, 0.1, len(AXIS))
    ours = LineSpreadFunction(FWHM).operator(AXIS * u.AA) @ flux
    theirs = convolve(flux, Gaussian1DKernel(6.0, x_size=73), boundary="extend")
    np.testing.assert_allclose(ours[50:-50], theirs[50:-50], atol=1e-6)


def test_the_matrix_brings_a_fine_grid_to_the_pixels_of_a_model():
    fine = np.arange(5005.0, 5035.0, 0.01)
    grid = WavelengthGrid(np.r_[5010:5018:0.11, 5021:5030:0.13] * u.AA, chips=[(0, 73), (73, 143)])
    function = LineSpreadFunction(FWHM)
    matrix = function.operator(fine * u.AA, grid)
    assert matrix.shape == (143, 3000)
    assert matrix.nnz < 0.15 * 143 * 3000
    wide = np.hypot(0.2, SIGMA)
    expected = line(wide, grid.wavelength.value, centre=5024.03, depth=0.5 * 0.2 / wide)
    np.testing.assert_allclose(matrix @ line(0.2, fine, centre=5024.03), expected, atol=1e-6)
    stack = np.stack([line(0.2, fine, centre=5024.03), np.ones(3000)])
    np.testing.assert_allclose(stack @ matrix.T, [expected, np.ones(143)], atol=1e-6)


def test_nothing_is_spread_across_gaps_and_chips():
    axis = np.r_[5000:5010:0.05, 5012:5020:0.05]
    matrix = LineSpreadFunction(3_000).operator(axis * u.AA).toarray()
    assert not matrix[:200, 200:].any()
    assert not matrix[200:, :200].any()
    grid = WavelengthGrid(np.arange(5000, 5010, 0.1) * u.AA, chips=[(0, 40), (40, 100)])
    matrix = LineSpreadFunction(3_000).operator(grid).toarray()
    assert not matrix[:40, 40:].any()
    np.testing.assert_allclose(matrix.sum(1), 1)
    with pytest.raises(GridError, match=r"2 of 2 pixels, first at 5010\.90 Angstrom, .* or in a gap of them"):
        LineSpreadFunction(3_000).operator(axis * u.AA, [5010.9, 5011] * u.AA)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LineSpreadFunction(0), ValueError, "width must be positive"),
        (lambda: LineSpreadFunction(np.nan), ValueError, "width must be positive"),
        (lambda: LineSpreadFunction(-1 * u.AA), ValueError, "width must be positive"),
        (lambda: LineSpreadFunction(2 * u.K), u.UnitConversionError, "as a length or a velocity, but has unit 'K'"),
        (lambda: LineSpreadFunction([2e4, 3e4]), ValueError, "say at which wavelengths, by at="),
        (lambda: LineSpreadFunction([2e4, 3e4], at=[6000, 5000] * u.AA), ValueError, "two wavelengths or more that"),
        (lambda: LineSpreadFunction([2e4, 3e4], at=[5000, 5500, 6000] * u.AA), ValueError, "for each value of width"),
        (lambda: LineSpreadFunction(2e4, hermite=[np.inf]), ValueError, "hermite must be numbers"),
        (lambda: LineSpreadFunction(2e4, hermite=np.zeros((3, 2))), ValueError, "hermite must be numbers"),
        (lambda: TabulatedLineSpreadFunction([-1, 1, 0] * u.AA, [1, 1, 1]), ValueError, "offset must have two values"),
        (lambda: TabulatedLineSpreadFunction([-1, 0, 1] * u.AA, [1, 1]), ValueError, "a finite value for each of 3"),
        (lambda: TabulatedLineSpreadFunction([-1, 0, 1] * u.AA, [0, -1, 0]), ValueError, "area of kernel must be"),
        (lambda: TabulatedLineSpreadFunction([-1, 0, 1], [0, 1, 0]), u.UnitConversionError, "a length or a velocity"),
        (lambda: LineSpreadFunction(2e4).operator([5000, 4999] * u.AA), GridError, "2 pixels or more, and rise"),
        (lambda: LineSpreadFunction(2e4, hermite=[0, -1]).operator(AXIS * u.AA), ValueError, "is negative: is h2"),
    ],
)  # fmt: skip
def test_functions_that_make_no_sense_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# -- spectra of lower resolution -----------------------------------------------------------------
@pytest.mark.parametrize(("before", "after"), [(0.4, 0.7), (0.4, 0.41), (0.4, 2.0), (0.0, 0.5)])
def test_lines_get_the_width_of_the_closed_form_and_keep_their_area(before, after):
    """Lines of a star, σ 0.2, that an instrument has widened, in FWHM."""
    widths = [np.hypot(0.2, fwhm * gaussian_fwhm_to_sigma) for fwhm in (before, after)]
    sharp, expected = (line(width, depth=0.1 / width) for width in widths)
    blunt = degrade_resolution(spectrum(sharp), before * u.AA, after * u.AA)
    good = ~blunt.mask
    assert good.sum() > 0.9 * len(AXIS)
    np.testing.assert_allclose(blunt.flux.value[good], expected[good], atol=1e-6)
    assert ((1 - blunt.flux.value) * 0.05)[good].sum() == pytest.approx(0.1 * np.sqrt(2 * np.pi), rel=1e-6)


def test_a_resolution_on_logarithmic_pixels():
    centre, star = APOGEE[1500], 0.15
    has, shall = (np.hypot(star, centre / r * gaussian_fwhm_to_sigma) for r in (45_000, 22_500))
    blunt = degrade_resolution(spectrum(line(has, APOGEE, centre, 0.1 / has), APOGEE), 45_000, 22_500)
    expected = line(shall, APOGEE, centre, 0.1 / shall)
    np.testing.assert_allclose(blunt.flux.value[100:-100], expected[100:-100], atol=2e-5)
    assert blunt.meta == {"object": "X", "resolution": "from R = 45000 to R = 22500"}


def test_a_hermite_series_is_reached_from_a_gaussian_in_closed_form():
    flux, _ = delta()
    has = LineSpreadFunction(0.4 * u.AA)
    shall = LineSpreadFunction(0.8 * u.AA, hermite=[0, 0, 0.05, 0.03])
    blunt = degrade_resolution(spectrum(has.operator(AXIS * u.AA) @ flux), has, shall)
    expected = shall.operator(AXIS * u.AA) @ flux
    good = ~blunt.mask
    np.testing.assert_allclose(blunt.flux.value[good], expected[good], atol=1e-5 * expected.max())


def test_the_same_resolution_changes_nothing(rng):
    flux, mask = rng.normal(1, 0.1, len(AXIS)), rng.uniform(size=len(AXIS)) < 0.1
    same = degrade_resolution(spectrum(flux, mask=mask), 20_000, 20_000)
    np.testing.assert_array_equal(same.mask, mask)
    np.testing.assert_allclose(same.flux.value[~mask], flux[~mask], rtol=1e-12)
    np.testing.assert_allclose(same.uncertainty.array[~mask], 0.01, rtol=1e-9)


def test_masks_spread_as_far_as_a_bad_pixel_weighs():
    mask = np.arange(len(AXIS)) == 400
    bad = np.where(mask, 1e9, line(0.2))
    kernel = np.sqrt(0.7**2 - 0.4**2) * gaussian_fwhm_to_sigma / 0.05  # pixels
    blunt = degrade_resolution(spectrum(bad, mask=mask), 0.4 * u.AA, 0.7 * u.AA)
    far = np.abs(np.arange(len(AXIS)) - 400)
    weight = np.exp(-0.5 * (far / kernel) ** 2) / np.sqrt(2 * np.pi) / kernel
    inner = (AXIS > 5003) & (AXIS < 5037)
    np.testing.assert_array_equal(blunt.mask[inner], weight[inner] > 0.05)
    assert np.isnan(blunt.flux.value[blunt.mask]).all()
    clean = degrade_resolution(spectrum(line(0.2)), 0.4 * u.AA, 0.7 * u.AA).flux.value
    assert np.abs(blunt.flux.value - clean)[inner & ~blunt.mask].max() < 0.05 * 0.5
    assert blunt.mask[[0, -1]].all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_without_a_flux_or_an_error_are_bad(bad):
    flux, sharp = line(0.2), spectrum(line(0.2))
    flux[300], sharp.uncertainty.array[500] = bad, np.inf
    hidden = spectrum(flux)
    hidden.uncertainty.array[500] = np.inf
    blunt = degrade_resolution(hidden, 0.4 * u.AA, 0.7 * u.AA)
    assert blunt.mask[[300, 500]].all()
    assert np.isfinite(blunt.flux.value[~blunt.mask]).all()


@pytest.mark.parametrize("kind", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
def test_errors_are_of_the_kind_that_came_and_keep_what_is_known(kind, rng):
    """The inverse variance of a mean over many pixels stays what it was, in the errors and in truth."""
    sigma = 0.01 * (1 + 0.5 * np.sin(AXIS))
    error = {StdDevUncertainty: sigma, VarianceUncertainty: sigma**2, InverseVariance: sigma**-2}[kind]
    sharp = Spectrum(flux=np.ones(len(AXIS)) * u.Jy, spectral_axis=AXIS * u.AA, uncertainty=kind(error))
    blunt = degrade_resolution(sharp, 0.4 * u.AA, 0.7 * u.AA)
    assert type(blunt.uncertainty) is kind
    assert blunt.flux.unit == u.Jy
    good, out = ~blunt.mask, blunt.uncertainty.array
    variance = {StdDevUncertainty: out**2, VarianceUncertainty: out, InverseVariance: 1 / np.where(good, out, 1)}[kind]
    matrix = LineSpreadFunction(np.sqrt(0.7**2 - 0.4**2) * u.AA).operator(AXIS * u.AA)
    np.testing.assert_allclose(variance[good], (matrix @ sigma**2)[good], rtol=1e-9)
    draws = rng.normal(1, sigma, (1000, len(AXIS)))
    seen = degrade_resolution(spectrum(draws), 0.4 * u.AA, 0.7 * u.AA).flux.value
    window = slice(200, 600)
    np.testing.assert_allclose(seen[:, window].mean(1).std(), np.sqrt(variance[window].sum()) / 400, rtol=0.08)
    np.testing.assert_allclose(seen[:, window].std(0), np.sqrt((matrix.power(2) @ sigma**2)[window]), rtol=0.15)


def test_spectra_fall_stack_and_come_without_errors():
    flux = np.stack([line(0.3), line(0.4, centre=5015.0)])
    stack = degrade_resolution(spectrum(flux), 0.4 * u.AA, 0.7 * u.AA)
    one = degrade_resolution(spectrum(flux[1]), 0.4 * u.AA, 0.7 * u.AA)
    falling = degrade_resolution(spectrum(flux[1, ::-1], AXIS[::-1]), 0.4 * u.AA, 0.7 * u.AA)
    np.testing.assert_allclose(stack.flux.value[1], one.flux.value, rtol=1e-12)
    np.testing.assert_allclose(falling.flux.value[::-1], one.flux.value, rtol=1e-9)
    bare = Spectrum(flux=flux[1] * u.one, spectral_axis=(AXIS * u.AA).to(u.THz, u.spectral()))
    bare = degrade_resolution(bare, 0.4 * u.AA, 0.7 * u.AA)
    assert bare.uncertainty is None
    np.testing.assert_allclose(bare.flux.value, one.flux.value, rtol=1e-9)


def test_the_object_that_came_is_not_changed():
    sharp = spectrum(line(0.2), mask=np.arange(len(AXIS)) == 9)
    degrade_resolution(sharp, 60_000, 20_000)
    np.testing.assert_array_equal(sharp.flux.value, line(0.2))
    assert sharp.mask.sum() == 1
    assert sharp.meta == {"object": "X"}


@pytest.mark.parametrize(
    ("before", "after", "error", "message"),
    [
        (20_000, 30_000, SpectrumError, r"has a FWHM of 0\.25 .* at 5000 .* get one of 0\.1667: .* interchanged"),
        (0.2 * u.AA, 10 * u.km / u.s, SpectrumError, "resolution can only be lowered"),
        (20_000, TabulatedLineSpreadFunction([-1, 0, 1] * u.AA, [0, 1, 0]), SpectrumError, "resolution=np.inf only"),
        (LineSpreadFunction(3e4, hermite=[0, 0, 0.1]), 20_000, SpectrumError, "from_resolution must be that of"),
        (20_000, LineSpreadFunction(18_500, hermite=[0, 0, 0.1]), SpectrumError, "hardly wider"),
        ([2e4, 3e4], 10_000, ValueError, r"is LineSpreadFunction\(values, at=wavelengths\)"),
        (0, 10_000, ValueError, "width must be positive"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(before, after, error, message):
    with pytest.raises(error, match=message):
        degrade_resolution(spectrum(line(0.2)), before, after)


def test_no_spectrum_is_refused():
    with pytest.raises(TypeError, match=r"must be a specutils\.Spectrum, but is a ndarray"):
        degrade_resolution(line(0.2), 30_000, 20_000)
    pixels = Spectrum(flux=np.ones(5) * u.one, spectral_axis=np.arange(5) * u.pix)
    with pytest.raises(GridError, match="unit 'pix', but must be a wavelength"):
        degrade_resolution(pixels, 30_000, 20_000)


def test_a_synthetic_spectrum_gets_a_tabulated_function():
    slit = TabulatedLineSpreadFunction([-0.5, 0, 0.5] * u.AA, [0, 1, 0])
    blunt = degrade_resolution(spectrum(line(0.2)), np.inf, slit)
    good = ~blunt.mask
    _, _, variance = moments(np.where(good, 1 - blunt.flux.value, 0.0))
    assert variance == pytest.approx(0.2**2 + 0.5**2 / 6, rel=1e-5)
