"""Missing lines: found in differences that are made of known dips, and given to elements by known slopes."""

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable
from mocks import LINES, NAMES, profile, true_model, truth

from cyclestarnet import GaussianPrior, GridError, LabelError, LabelSet, SpectrumError, WavelengthGrid
from cyclestarnet.derivatives import DerivativeSpectra
from cyclestarnet.lines import (
    Feature,
    FeatureMask,
    Features,
    FluxDifferences,
    MissingLines,
    attribute,
    dip_centre,
    find_missing_lines,
    model_differences,
    score_missing_lines,
    star_differences,
    with_elements,
)
from cyclestarnet.lines.attribution import _attribute, _Regression
from cyclestarnet.lines.dips import false_discovery, find_dips
from cyclestarnet.spectra import Spectrum, to_spectrum

N, EDGE = 4800, 2000
GRID = WavelengthGrid(10 ** (4.18 + 6e-6 * (np.arange(N) + 60 * (np.arange(N) >= EDGE))) * u.AA, ((0, EDGE), (EDGE, N)))
PIXEL = np.gradient(GRID.wavelength.value)  # Å
NOISE = 1e-3
WIDTH = 1.4  # pixels, σ: a line at APOGEE's resolution
STELLAR, ELEMENTS = ("teff", "logg", "vmicro", "m_h"), ("c_h", "n_h", "mg_h", "si_h", "fe_h")
MEAN = np.array([4700, 2.3, 1.5, -0.2, *[-0.2] * len(ELEMENTS)])


def label_set(elements=ELEMENTS):
    n = len(elements)
    return LabelSet((*STELLAR, *elements), [3000, -2, 0, -3, *[-3] * n], [7000, 7, 4, 2, *[2] * n])


def population(elements=ELEMENTS):
    """Mean and covariance of giants: cool ones have low gravity, and elements follow the metallicity."""
    n = len(elements)
    mix = np.zeros((4 + n, 4 + n))  # from independent normal numbers
    mix[0, 0], mix[1, :2], mix[2, 2] = 250, (0.6, 0.3), 0.2
    mix[3:, 3] = 0.2
    mix[4:, 4:] = 0.1 * np.eye(n)
    return np.array([*MEAN[:4], *[-0.2] * n]), mix @ mix.T


def gaussian(centres, width=WIDTH, n=N):
    """Dips of depth 1 around each centre: (n_lines, n)."""
    return np.exp(-0.5 * ((np.arange(n) - np.reshape(centres, (-1, 1))) / width) ** 2)


class Known:
    """A model whose translation is known: it deepens lines of some elements, in a difference that has an offset.

    ``depths`` are at the mean labels; ``slopes`` (n_lines, n_elements) in 1/dex say how they grow.
    """

    zero_points = None

    def __init__(
        self, centres=(), depths=0.0, *, slopes=None, offset=0.0, width=WIDTH, synthetic=1.0, name="known", grid=GRID
    ):
        self.name, self.grid, self.labels, self.prior = name, grid, label_set(), GaussianPrior(*population())
        self.profiles = gaussian(centres, width)
        self.depths = np.broadcast_to(depths, len(self.profiles))
        self.slopes = np.zeros((len(self.profiles), len(ELEMENTS))) if slopes is None else np.asarray(slopes)
        self.offset, self.synthetic = np.broadcast_to(offset, N), np.broadcast_to(synthetic, N)

    def difference(self, values):
        return self.offset - (self.depths + (values[:, 4:] - MEAN[4:]) @ self.slopes.T) @ self.profiles

    def predict(self, labels, domain):
        added = self.difference(self.labels.to_array(labels))
        return to_spectrum(self.synthetic + (added if domain == "observed" else 0 * added), GRID)

    def derivative_spectra(self, labels, *, domain, names):
        assert domain == "difference"
        n = len(self.labels.to_array(labels))
        slopes = dict(zip(ELEMENTS, -self.slopes.T @ self.profiles, strict=True))
        return DerivativeSpectra(GRID, np.zeros((n, N)), {name: np.tile(slopes[name], (n, 1)) for name in names})


def noise(seed):
    return np.random.default_rng(seed).normal(0, NOISE, N)


def find(model, **options):
    return find_missing_lines(model, **({"n": 60, "progress": False} | options))


def apart(rng, n, least=24):
    """Centres of lines, no two of which touch, nor an edge of a chip."""
    places = np.arange(least, N - least, least)
    places = places[abs(places - EDGE) > least]
    return np.sort(rng.choice(places, n, replace=False) + rng.uniform(-0.5, 0.5, n))


# -- where -----------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=[15, 30])
def measured(request):
    """Rows of 320 lines that were found, with the true centre of each, and the true depth in its deepest pixel."""
    tables, centres = [], []
    for seed in range(4):
        true = apart(np.random.default_rng(seed), 80)
        table = find(Known(true, request.param * NOISE, offset=noise(seed))).table
        nearest = abs(table["peak"][:, None] - true).argmin(0)
        tables.append(table[nearest])
        centres.append(true)
    names = ["wavelength", "wavelength_err", "depth", "depth_err", "width", "peak", "start", "stop"]
    columns = {name: np.concatenate([np.asarray(table[name]) for table in tables]) for name in names}
    columns["centre"] = np.concatenate(centres)
    columns["true depth"] = request.param * NOISE * np.exp(-0.5 * ((columns["peak"] - columns["centre"]) / WIDTH) ** 2)
    return columns


def test_dips_are_found_where_they_are(measured):
    true = np.interp(measured["centre"], np.arange(N), GRID.wavelength.value)
    pulls = (measured["wavelength"] - true) / measured["wavelength_err"]
    assert abs(pulls.mean()) < 4 / np.sqrt(len(pulls))
    assert 0.8 < pulls.std() < 1.15


@pytest.mark.parametrize("pixel", [500.0, 500.3, 499.6])
def test_error_of_a_centre_is_that_of_its_three_depths(pixel):
    """By finite differences."""
    depths, step = -0.1 * gaussian([pixel])[0], 1e-7 * np.eye(N)[499:502]
    ends = [[dip_centre(depths + sign * s, GRID, 500, NOISE)[0] for s in step] for sign in (1, -1)]
    expected = NOISE * np.linalg.norm(np.subtract(*ends) / 2e-7)
    assert dip_centre(depths, GRID, 500, NOISE)[1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("peak", "neighbour"), [(0, 1), (EDGE - 1, EDGE - 2), (EDGE, EDGE + 1), (N - 1, N - 2)])
def test_centre_at_the_edge_of_a_chip_is_known_to_a_pixel(peak, neighbour):
    wavelength = GRID.wavelength.value
    expected = wavelength[peak], abs(wavelength[peak] - wavelength[neighbour])
    assert dip_centre(-gaussian([peak])[0], GRID, peak, NOISE) == pytest.approx(expected, rel=1e-9)


def test_centre_of_what_is_no_dip_is_known_to_a_pixel():
    centre, error = dip_centre(gaussian([500])[0], GRID, 500, NOISE)
    assert (centre, error) == pytest.approx((GRID.wavelength.value[500], PIXEL[500]))


def test_depths_are_those_of_the_deepest_pixels(measured):
    pulls = (measured["depth"] - measured["true depth"]) / measured["depth_err"]
    assert abs(pulls.mean()) < 4 / np.sqrt(len(pulls)) + 0.1  # the deepest of pixels has noise that deepens it
    assert 0.8 < pulls.std() < 1.15


def test_the_noise_is_that_of_pixels_without_lines():
    lines = find(Known(apart(np.random.default_rng(1), 30), 30 * NOISE, offset=noise(1)))
    assert lines.noise == pytest.approx(NOISE, rel=0.1)


def test_widths_are_those_before_smoothing(measured):
    found = measured["width"] / PIXEL[measured["peak"]]
    assert np.median(found) == pytest.approx(2.355 * WIDTH, rel=0.04)


def test_pixels_of_a_line_are_those_of_a_fifth_of_its_depth():
    dips = find_dips(-gaussian([500]).sum(0), GRID.chips, NOISE)
    reach = np.sqrt(2 * np.log(5)) * np.hypot(WIDTH, 0.8)  # 2.9 pixels, with the smoothing
    assert (dips.start[0], dips.peak[0], dips.stop[0]) == (500 - round(reach), 500, 500 + round(reach) + 1)


@pytest.mark.parametrize("background", [0.02, 1e-5 * np.arange(N), 0.02 * np.sin(np.arange(N) / 700)])
def test_a_difference_of_continua_is_no_line_and_changes_none(background):
    true = apart(np.random.default_rng(2), 60)
    tables = [find(Known(true, 20 * NOISE, offset=noise(2) + b)).strongest(60).table for b in (background, 0)]
    assert all(abs(table["peak"] - true).max() <= 1.5 for table in tables)
    np.testing.assert_allclose(tables[0]["depth"], tables[1]["depth"], atol=1.5 * NOISE)


def test_no_line_crosses_the_edge_of_a_chip():
    narrow = noise(3) - 40 * NOISE * gaussian([EDGE - 5, EDGE + 4], width=3).sum(0)
    dips = find_dips(narrow, GRID.chips, NOISE)
    assert {EDGE - 5, EDGE + 4} <= set(dips.peak[dips.significance > 10])
    assert ((dips.start < EDGE) == (dips.stop <= EDGE)).all()
    assert (dips.start >= 0).all()
    assert (dips.stop <= N).all()


def test_chips_may_have_different_continua():
    step = np.where(np.arange(N) < EDGE, 0.05, -0.05)
    one, other = (find(Known([*CENTRES, EDGE - 12], 40 * NOISE, offset=noise(9) + s)).table for s in (0, step))
    np.testing.assert_allclose(one["depth"], other["depth"], atol=1e-6)


def test_the_space_between_two_deep_dips_is_no_bump():
    pairs = np.add.outer(apart(np.random.default_rng(5), 25), [-4, 4]).ravel()
    lines = find(Known(pairs, 200 * NOISE, offset=noise(5)))
    assert all(abs(lines.table["peak"] - centre).min() <= 1 for centre in pairs)


def test_synthetic_lines_that_are_too_strong_are_no_missing_lines():
    true = apart(np.random.default_rng(6), 60)
    assert len(find(Known(true, -30 * NOISE, offset=noise(6)))) == 0


# -- by chance -------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_there_is_no_line_in_noise(seed):
    assert len(find(Known(offset=noise(seed)), fdr=0.05)) == 0


def test_no_more_lines_are_false_than_the_rate_says():
    shares, recall = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        true = apart(rng, 60)
        peaks = np.asarray(find(Known(true, rng.exponential(8 * NOISE, 60), offset=noise(seed))).table["peak"])
        near = abs(peaks[:, None] - true) <= 2
        shares.append(1 - near.any(1).mean())
        recall.append(near.any(0).mean())
    assert np.mean(shares) < 0.05
    assert np.mean(recall) > 0.5


def test_false_discovery_rates_by_hand():
    # as bumps, of 2 and 0.5, and one more: 1 of 1, 1 of 2, and 2 of 3; what is more significant is no worse
    rates = false_discovery(np.array([1.0, 5.0, 3.0]), np.array([2.0, 0.5]), 1)
    np.testing.assert_allclose(rates, [2 / 3, 1 / 2, 1 / 2])


def test_false_discovery_rates_of_several_models_by_hand():
    # in four spectra: none is above 5 or 4.5, four are at 3 or above, and one more
    chance = np.array([4.0, 4.0, 4.0, 3.0, 2.0, 2.0])
    np.testing.assert_allclose(false_discovery(np.array([5.0, 4.5, 3.0]), chance, 4), [1 / 8, 1 / 8, 5 / 12])


def test_rates_fall_as_lines_get_significant():
    table = find(Known(apart(np.random.default_rng(7), 60), 8 * NOISE, offset=noise(7)), fdr=0.5).table
    rates = table["fdr"][np.argsort(-table["significance"])]
    assert (np.diff(rates) >= 0).all()
    assert 0 < rates[0] < 0.05 < rates[-1] <= 0.5


@pytest.mark.parametrize(("n_null", "sign"), [(1, 1), (1, -1), (2, 1)])
def test_null_models_tell_what_arises_by_chance(n_null, sign):
    model = Known(apart(np.random.default_rng(8), 12), np.linspace(60, 38, 12) * NOISE, offset=noise(8))
    null = [Known([500.0], sign * 40.5 * NOISE, offset=noise(seed)) for seed in range(20, 20 + n_null)]
    rates = np.sort(find(model, null=null, fdr=0.15).strongest(12).table["fdr"])
    # some ten are deeper than all that arises by chance; each null model counts twice, by its dips and its bumps
    assert rates[0] == pytest.approx(1 / (2 * n_null) / 10, rel=0.15)
    assert rates[-1] == pytest.approx((1 + n_null) / (2 * n_null) / 12)


# -- which element ---------------------------------------------------------------------------
SIGMA = 0.02  # of a star's pixels


def simulate(slopes, *, n=400, sigma=SIGMA, seed=0, bent=True, elements=ELEMENTS, errors=None):
    """Flux differences of stars with a line per row of ``slopes``, five pixels apart, and its true labels.

    The lines bend with temperature, gravity and metallicity. With ``errors``
    of the labels, values are the means of their posterior.
    """
    slopes, rng = np.atleast_2d(slopes), np.random.default_rng([seed, 1])
    mean, covariance = population(elements)
    true = rng.multivariate_normal(mean, covariance, n)
    t, g, m = ((true - mean)[:, [0, 1, 3]] / np.sqrt(np.diag(covariance))[[0, 1, 3]]).T
    depth = 0.05 + (true - mean)[:, 4:] @ slopes.T
    if bent:
        depth += (0.02 * t + 0.01 * t**2 - 0.003 * t**3 + 0.01 * t * g + 0.01 * g**2 + 0.004 * m**2 * t)[:, None]
    flux = rng.normal(-np.repeat(depth, 5, axis=1), sigma)
    values = true
    if errors is not None:
        seen = true + rng.normal(0, errors, true.shape)
        gain = covariance @ np.linalg.inv(covariance + np.diag(np.square(errors)))
        values = mean + (seen - mean) @ gain.T
    grid = WavelengthGrid(np.linspace(15100, 15200, flux.shape[1]) * u.AA)
    return FluxDifferences(grid, label_set(elements), values, flux, np.full(flux.shape, sigma)), true


def peaks_of(differences):
    return np.arange(2, differences.grid.n_pixels, 5)


def line_of(*elements, slope=0.3, n=1):
    """Slopes of the depth (n, n_elements): those of some elements."""
    return np.tile([slope * (name in elements) for name in ELEMENTS], (n, 1))


def pulls(differences, slopes, variance):
    """(found − true) / error of all slopes."""
    regression = _Regression.on(differences.values, differences.label_set)
    out = []
    for peak, true in zip(peaks_of(differences), np.atleast_2d(slopes), strict=True):
        found, covariance = regression.slopes(-differences.flux[:, peak - 1 : peak + 2].mean(1), variance)
        out.append((found - true) / np.sqrt(np.diag(covariance)))
    return np.array(out)


@pytest.mark.parametrize("variance", [None, np.full(400, SIGMA**2 / 3), np.full(400, SIGMA**2 / 6)])
def test_slopes_of_lines_that_bend_are_right_within_their_errors(variance):
    slopes = np.random.default_rng(1).normal(0, 0.3, (100, len(ELEMENTS)))
    found = pulls(simulate(slopes)[0], slopes, variance)  # errors are known, or not, or half of the truth
    assert abs(found.mean()) < 0.2
    assert found.std() == pytest.approx(1, abs=0.1)


def test_slopes_are_those_of_the_flux():
    slopes = line_of("mg_h", n=20)
    differences, _ = simulate(slopes, sigma=0.002)
    found, _, _ = attribute(differences, peaks_of(differences))
    np.testing.assert_allclose(found.mean(0), -slopes[0], atol=0.005)


@pytest.mark.parametrize("element", ["mg_h", "si_h", "fe_h", "c_h", "n_h"])
def test_the_element_of_a_line_is_found(element):
    differences, _ = simulate(line_of(element, n=10))
    _, probabilities, sets = attribute(differences, peaks_of(differences))
    k = ELEMENTS.index(element)
    assert (probabilities.argmax(1) == k).all()
    assert (probabilities[:, k] > 0.9).all()
    assert sets[:, k].all()


def test_of_a_molecule_both_elements_are_found():
    differences, _ = simulate(line_of("c_h", "n_h", n=10) * [1, 0.5, 0, 0, 0])
    _, probabilities, sets = attribute(differences, peaks_of(differences))
    np.testing.assert_allclose(probabilities[:, :2], np.tile([2 / 3, 1 / 3], (10, 1)), atol=0.1)  # as their slopes
    assert sets.tolist() == [[True, True, False, False, False]] * 10


def test_posterior_means_do_not_dilute_slopes():
    slopes = np.random.default_rng(1).normal(0, 0.3, (60, len(ELEMENTS)))
    errors = np.array([60, 0.15, 0.1, 0.05, *[0.1] * len(ELEMENTS)])
    differences, true = simulate(slopes, n=1500, errors=errors, bent=False)
    found = -attribute(differences, peaks_of(differences))[0]
    ratio = (found * slopes).sum() / (slopes**2).sum()
    assert ratio == pytest.approx(1, abs=0.03)
    assert np.corrcoef(differences.values[:, 4] - true[:, 4], true[:, 6])[0, 1] < 0.9  # there are errors


def test_an_element_that_does_not_vary_is_not_chosen():
    differences, _ = simulate(line_of("mg_h", n=10))
    differences.values[:, 4 + ELEMENTS.index("fe_h")] = -0.2
    slopes, probabilities, _ = attribute(differences, peaks_of(differences))
    assert (probabilities.argmax(1) == ELEMENTS.index("mg_h")).all()
    np.testing.assert_allclose(slopes[:, ELEMENTS.index("fe_h")], 0, atol=1e-6)


def test_a_label_that_does_not_vary_does_no_harm():
    differences, _ = simulate(line_of("mg_h", n=10))
    differences.values[:, [2, 3]] = 1.5, -0.2
    slopes, _, _ = attribute(differences, peaks_of(differences))
    np.testing.assert_allclose(slopes.mean(0), -line_of("mg_h")[0], atol=0.03)


def test_masked_pixels_do_not_matter(rng):
    slopes = np.random.default_rng(1).normal(0, 0.3, (60, len(ELEMENTS)))
    differences, _ = simulate(slopes, n=800)
    differences.flux[rng.random(differences.flux.shape) < 0.1] = np.nan  # 27 % of the depths
    differences.error[np.isnan(differences.flux)] = 1.0
    found, _, _ = attribute(differences, peaks_of(differences))
    np.testing.assert_allclose(found, -slopes, atol=6 * SIGMA / np.sqrt(3 * 0.73 * 800) / 0.09)


def test_stars_that_do_not_show_a_weak_line_do_not_change_what_it_is():
    """Its depth, which is the scale of its slopes, is that in the others."""
    differences, _ = simulate(line_of("mg_h", slope=0.02), n=401, sigma=0.01)
    differences.flux[0] = np.nan
    others = FluxDifferences(
        differences.grid, differences.label_set, differences.values[1:], differences.flux[1:], differences.error[1:]
    )
    seen, expected = (attribute(d, [2])[1] for d in (differences, others))
    np.testing.assert_allclose(seen, expected, atol=1e-3)


@pytest.mark.parametrize("n_seen", [0, 1, 20])
def test_of_a_pixel_that_nobody_has_seen_nothing_is_known(n_seen):
    differences, _ = simulate(line_of("mg_h"))
    differences.flux[n_seen:] = np.nan
    slopes, probabilities, sets = attribute(differences, [2])
    np.testing.assert_array_equal(slopes, 0)
    # five elements, and CN: the sixth of it is of C and N
    np.testing.assert_allclose(probabilities, [np.array([1.5, 1.5, 1, 1, 1]) / 6], atol=0.01)
    assert sets.all()


METALS = ("mg_h", "si_h", "fe_h", "ti_h", "al_h", "ca_h")


@pytest.fixture(scope="module")
def weak():
    """Probabilities, sets and true elements of 600 weak lines of noisy stars: as their slopes are expected to be."""
    out = [], [], []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        slopes, true = rng.normal(0, 0.02, (300, 6)), rng.integers(6, size=300)
        slopes[np.arange(300), true] = abs(rng.normal(0, 0.3, 300))
        differences, _ = simulate(slopes, n=250, sigma=0.15, seed=seed, elements=METALS)
        _, probabilities, sets = attribute(differences, peaks_of(differences))
        for column, value in zip(out, (probabilities, sets, true), strict=True):
            column.append(value)
    return [np.concatenate(column) for column in out]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0)])
def test_probabilities_are_shares(weak, low, high):
    probabilities, _, true = weak
    right = np.arange(6) == true[:, None]
    chosen = (probabilities >= low) & (probabilities <= high)
    assert chosen.sum() > 30
    error = np.sqrt((probabilities * (1 - probabilities))[chosen].sum()) / chosen.sum()
    assert abs(right[chosen].mean() - probabilities[chosen].mean()) < 4 * error


@pytest.mark.parametrize("found", [(0.10, 0.06, -0.02), (-0.05, 0.02, 0.04), (0.3, 0.25, 0.0)])
def test_probabilities_are_those_of_bayes(found, rng):
    covariance = 0.05**2 * np.array([[1, 0.5, 0], [0.5, 1, -0.3], [0, -0.3, 1]])
    likelihoods = []
    for k in range(3):  # an absorber has slopes of some 0.3, positive, and bystanders have of some 0.02
        slopes = rng.normal(0, 0.02, (400_000, 3))
        slopes[:, k] = abs(rng.normal(0, 0.3, 400_000))
        pulls = (found - slopes) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
        likelihoods.append(np.exp(-0.5 * (pulls**2).sum(1)).mean())
    probabilities, _ = _attribute(np.array(found), covariance, 0.3, [(0,), (1,), (2,)])
    np.testing.assert_allclose(probabilities, np.array(likelihoods) / sum(likelihoods), atol=0.01)


def test_scales_of_slopes_follow_the_depth_of_a_weak_line():
    slopes = 2.3 * 0.02 * np.array([0.0, 1.0, 0.0])  # in proportion to the abundance
    probabilities, needed = _attribute(slopes, 1e-3**2 * np.eye(3), 0.02, [(0,), (1,), (2,)])
    assert probabilities[1] > 0.99
    assert needed.tolist() == [False, True, False]


def test_sets_hold_the_truth(weak):
    _, sets, true = weak
    assert sets[np.arange(600), true].mean() > 0.94
    assert sets.sum(1).mean() < 4


def test_probabilities_sum_to_one(weak):
    np.testing.assert_allclose(weak[0].sum(1), 1)


def test_of_a_blend_the_steeper_element_is_chosen_and_slopes_tell_of_both():
    blend = line_of("mg_h", slope=0.3, n=10) + line_of("si_h", slope=0.2, n=10)
    differences, _ = simulate(blend)
    slopes, probabilities, _ = attribute(differences, peaks_of(differences))
    assert (probabilities.argmax(1) == ELEMENTS.index("mg_h")).all()
    np.testing.assert_allclose(slopes.mean(0), -blend[0], atol=0.03)


def test_no_line_has_no_element():
    differences, _ = simulate(line_of("mg_h"))
    shapes = [array.shape for array in attribute(differences, [])]
    assert shapes == [(0, 5)] * 3


# -- observed stars --------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model():
    return true_model()


PRIOR = GaussianPrior([4700, 2.0, 1.5, -0.2, -0.2, -0.2], np.diag(np.square([100, 0.2, 0.1, 0.05, 0.05, 0.05])))
MISSING = 65  # a pixel without other lines
STAR_SIGMA = 0.01


def stars(model, labels, *, extra=0.0, mask=None):
    """Spectra of labels (n, n_labels) with noise, and a line of which the model knows nothing."""
    flux = np.random.default_rng(5).normal(truth(labels) - extra * profile(MISSING), STAR_SIGMA)
    return to_spectrum(flux, model.grid, ivar=np.full(flux.shape, STAR_SIGMA**-2), mask=mask)


@pytest.fixture(scope="module")
def true_labels():
    return np.random.default_rng(6).multivariate_normal(PRIOR.mean, PRIOR.covariance, 4)


def test_labels_of_stars_are_means_of_their_posterior(model, true_labels):
    spectra = stars(model, true_labels)
    found = star_differences(model, spectra, progress=False)
    slopes = truth(PRIOR.mean + np.eye(6)) - truth(PRIOR.mean)  # the emulator is linear
    variance = STAR_SIGMA**2 + 0.001**2  # and that of the model
    covariance = np.linalg.inv(slopes @ slopes.T / variance + np.linalg.inv(PRIOR.covariance))
    expected = PRIOR.mean + (spectra.flux.value - truth(PRIOR.mean)) @ slopes.T / variance @ covariance
    assert (abs(found.values - expected) / np.sqrt(np.diag(covariance))).max() < 0.02


def test_differences_of_stars_are_from_the_spectra_of_their_labels(model, true_labels):
    spectra = stars(model, true_labels, extra=0.1)
    found = star_differences(model, spectra, progress=False)
    np.testing.assert_allclose(found.flux, spectra.flux.value - truth(found.values), atol=1e-5)
    np.testing.assert_allclose(found.error, STAR_SIGMA, rtol=1e-6)
    assert (found.label_set.names, found.grid, len(found)) == (NAMES, model.grid, 4)


def test_differences_of_stars_in_units_are_those_of_their_normalised_flux(model, true_labels):
    """By the recipe of the model, which a wrong slope of the continuum does not reach."""
    normalised = stars(model, true_labels)
    slope = 3e-15 * np.linspace(0.8, 1.2, model.grid.n_pixels)
    flux, error = slope * normalised.flux.value, slope * np.full(normalised.shape, STAR_SIGMA)
    spectra = to_spectrum(flux, model.grid, ivar=error**-2)
    spectra = Spectrum(
        flux=flux * u.Unit("erg / (s cm2 AA)"),
        spectral_axis=spectra.spectral_axis,
        uncertainty=StdDevUncertainty(error),
    )
    found, continuum = star_differences(model, spectra, progress=False), model.recipe(flux, error**-2)
    np.testing.assert_allclose(found.flux, flux / continuum - truth(found.values), atol=1e-5)
    np.testing.assert_allclose(found.error, error / continuum, rtol=1e-5)


def test_masked_pixels_of_a_star_are_nan(model, true_labels):
    mask = np.zeros((4, model.grid.n_pixels), dtype=bool)
    mask[1, 100:120] = True
    found = star_differences(model, stars(model, true_labels, mask=mask), progress=False)
    np.testing.assert_array_equal(np.isnan(found.flux), mask)
    assert np.isfinite(found.error).all()


def test_ignored_pixels_do_not_change_labels_of_stars(model, true_labels):
    ignore = np.zeros(model.grid.n_pixels, dtype=bool)
    line = LINES["mg_h"][0]  # which has a false depth, of which the star knows nothing
    ignore[line - 8 : line + 9] = True
    spoilt = np.where(ignore, 0.3, 1.0) * stars(model, true_labels).flux.value
    ivar = np.full(spoilt.shape, STAR_SIGMA**-2)
    one, other = (
        star_differences(model, to_spectrum(flux, model.grid, ivar=ivar), ignore=ignore, progress=False)
        for flux in (spoilt, stars(model, true_labels).flux.value)
    )
    np.testing.assert_allclose(one.values, other.values, rtol=1e-6)
    assert (one.flux[:, line] < -0.2).all()


def test_more_stars_than_fit_at_once_keep_their_order(model, true_labels, monkeypatch):
    together = star_differences(model, stars(model, true_labels), progress=False)
    monkeypatch.setattr("cyclestarnet.lines.differences.ROWS", 3)
    apart = star_differences(model, stars(model, true_labels), progress=False)
    np.testing.assert_allclose(apart.flux, together.flux, atol=1e-6)


def test_stars_that_cannot_be_fitted_are_left_out(model, true_labels):
    mask = np.zeros((4, model.grid.n_pixels), dtype=bool)
    mask[1] = True
    found = star_differences(model, stars(model, true_labels, mask=mask), progress=False)
    assert len(found) == 3
    whole = star_differences(model, stars(model, true_labels), progress=False)
    np.testing.assert_allclose(found.flux, whole.flux[[0, 2, 3]], atol=1e-6)


def test_no_star_that_can_be_fitted_is_an_error(model, true_labels):
    nothing = stars(model, true_labels, mask=np.ones((4, model.grid.n_pixels), dtype=bool))
    with pytest.raises(SpectrumError, match="none of 4 stars could be fitted; of the first: "):
        star_differences(model, nothing, progress=False)


def test_one_spectrum_is_no_survey(model, true_labels):
    with pytest.raises(SpectrumError, match=r"a row per star, .* but are \(415,\)"):
        star_differences(model, stars(model, true_labels)[0], progress=False)


# -- from models to a catalogue --------------------------------------------------------------
CENTRES = apart(np.random.default_rng(9), 30)
OF_LINES = np.array([ELEMENTS[k % 3 + 2] for k in range(30)])  # Mg, Si and Fe in turn
SLOPES = np.array([0.3 * (np.array(ELEMENTS) == name) for name in OF_LINES])


@pytest.fixture(scope="module")
def catalogue():
    """Of 30 lines that are missing, and all that is to know about them."""
    return find(Known(CENTRES, 40 * NOISE, slopes=SLOPES, offset=noise(9)), n=300, seed=4).strongest(30)


def test_a_catalogue_has_the_missing_lines_from_blue_to_red(catalogue):
    assert len(catalogue) == 30
    assert abs(catalogue.table["peak"] - CENTRES).max() <= 1.5
    assert (catalogue.table["fdr"] <= 0.05).all()


def test_a_catalogue_has_their_elements(catalogue):
    expected = [name.removesuffix("_h").capitalize() for name in OF_LINES]
    assert catalogue.table["element"].tolist() == catalogue.table["elements"].tolist() == expected
    assert (catalogue.table["probability"] > 0.99).all()
    assert catalogue.table.meta["elements"] == ["C", "N", "Mg", "Si", "Fe"]


def test_a_catalogue_has_slopes_of_the_flux_in_their_core(catalogue):
    peaks = catalogue.table["peak"]  # the slopes are the mean of three pixels about it
    core = np.array([gaussian([c], WIDTH)[0, p - 1 : p + 2].mean() for c, p in zip(CENTRES, peaks, strict=True)])
    np.testing.assert_allclose(catalogue.table["slopes"].to_value(1 / u.dex), -SLOPES * core[:, None], atol=1e-3)


def test_derivatives_that_look_like_the_line_agree(catalogue):
    assert (catalogue.table["agreement"] > 0.99).all()
    np.testing.assert_allclose(catalogue.derivatives["mg_h"], -SLOPES[:, 2] @ gaussian(CENTRES), atol=1e-12)


def test_columns_have_their_units(catalogue):
    units = {name: str(column.unit) for name, column in catalogue.table.items() if getattr(column, "unit", None)}
    assert units == dict.fromkeys(("wavelength", "wavelength_err", "width"), "Angstrom") | {"slopes": "1 / dex"}


def test_a_catalogue_says_where_it_is_from(catalogue):
    meta = catalogue.table.meta
    assert (meta["models"], meta["n_labels"], meta["seed"]) == (["known"], 300, 4)
    assert (meta["false_discoveries_by"], meta["elements_by"]) == ("bumps of the same size", "300 label sets")


def test_the_difference_is_the_mean_of_the_label_sets(catalogue):
    model = Known(CENTRES, 40 * NOISE, slopes=SLOPES, offset=noise(9))
    drawn = np.random.default_rng(4).multivariate_normal(*population(), 300)
    np.testing.assert_allclose(catalogue.difference, model.difference(drawn).mean(0), atol=1e-6)


def test_label_sets_that_are_given_are_used():
    model = Known(CENTRES, 40 * NOISE, slopes=SLOPES, offset=noise(9))
    rich = [[*MEAN[:4], *(MEAN[4:] + 0.1)]] * 50
    lines = find(model, labels=rich)
    np.testing.assert_allclose(lines.difference, model.difference(np.array(rich))[0], atol=1e-6)
    assert lines.table.meta["n_labels"] == 50


@pytest.mark.parametrize(("kind", "factor"), [("weak", 1.0), ("missing", 0.2)])
def test_lines_that_synthetic_spectra_have_are_weak(kind, factor):
    synthetic = 0.95 - factor * 40 * NOISE * gaussian(CENTRES).sum(0)
    lines = find(Known(CENTRES, 40 * NOISE, offset=noise(9), synthetic=synthetic)).strongest(30)
    assert lines.table["kind"].tolist() == [kind] * 30
    np.testing.assert_allclose(lines.table["synthetic_depth"], 0.05 + factor * 40 * NOISE, atol=factor * 4 * NOISE)


def test_lines_that_are_beside_where_they_should_be_are_shifted():
    moved = 40 * NOISE * (gaussian(CENTRES) - gaussian(CENTRES + 3)).sum(0)
    lines = find(Known(offset=noise(9) - moved), null=[Known(offset=noise(1))]).strongest(30)  # bumps are no chance
    assert abs(lines.table["peak"] - CENTRES).max() <= 1.5
    assert lines.table["kind"].tolist() == ["shifted"] * 30


def test_several_models_are_averaged():
    models = [Known(CENTRES, d * NOISE, slopes=d * SLOPES, offset=noise(d), name=f"{d}") for d in (30, 50)]
    lines = find(models, labels=np.tile(MEAN, (50, 1))).strongest(30)
    assert lines.table["depth"].mean() == pytest.approx(40 * NOISE, rel=0.04)
    # their scatter, 20 / √2, over √2
    np.testing.assert_allclose(lines.table["depth_err"], 10 * NOISE, rtol=0.3)
    np.testing.assert_allclose(lines.derivatives["mg_h"], -40 * SLOPES[:, 2] @ gaussian(CENTRES), atol=1e-12)
    assert lines.table.meta["models"] == ["30", "50"]


def test_what_one_model_has_made_up_counts_half():
    false = CENTRES + 12
    models = [Known(CENTRES, 40 * NOISE, offset=noise(1)), Known([*CENTRES, *false], 40 * NOISE, offset=noise(2))]
    table = find(models).table
    near = abs(np.asarray(table["peak"])[:, None] - false).min(1) < 3
    assert table["depth"][near].mean() == pytest.approx(20 * NOISE, rel=0.05)


def test_observed_stars_tell_elements(monkeypatch):
    slopes = np.zeros((N // 5, len(ELEMENTS)))
    slopes[:, ELEMENTS.index("fe_h")] = 0.3
    evidence, asked = simulate(slopes, n=100)[0], {}
    evidence = FluxDifferences(GRID, evidence.label_set, evidence.values, evidence.flux, evidence.error)

    def fitted(model, spectra, *, ignore, progress):
        asked.update(spectra=spectra, ignore=ignore)
        return evidence

    monkeypatch.setattr("cyclestarnet.lines.missing.star_differences", fitted)
    spectra = to_spectrum(np.ones((2, N)), GRID, ivar=np.ones((2, N)))
    lines = find(Known(CENTRES, 40 * NOISE, slopes=SLOPES, offset=noise(9)), stars=spectra)
    assert set(lines.table["element"]) == {"Fe"}
    assert lines.table.meta["elements_by"] == "100 observed stars"
    np.testing.assert_array_equal(asked["ignore"], lines.pixels)


def test_other_evidence_changes_elements_alone(catalogue):
    slopes = np.tile(0.3 * (np.array(ELEMENTS) == "fe_h"), (N // 5, 1))
    other = simulate(slopes, n=100)[0]
    changed = with_elements(catalogue, FluxDifferences(GRID, other.label_set, other.values, other.flux, other.error))
    assert set(changed.table["element"]) == {"Fe"}
    assert set(catalogue.table["element"]) == {"Mg", "Si", "Fe"}
    for name in ("wavelength", "depth", "significance", "fdr", "kind"):
        np.testing.assert_array_equal(changed.table[name], catalogue.table[name])
    agree = changed.table["agreement"] > 0.99  # with derivatives by Fe
    assert agree.tolist() == (OF_LINES == "fe_h").tolist()


def test_null_models_are_named():
    model = Known(CENTRES, 40 * NOISE, offset=noise(9))
    lines = find(model, null=[Known(offset=noise(1)), Known(offset=noise(2))])
    assert abs(lines.strongest(30).table["peak"] - CENTRES).max() <= 1.5
    assert lines.table.meta["false_discoveries_by"] == "2 null models"


SHORT = WavelengthGrid(GRID.wavelength[:9])


@pytest.mark.parametrize("where", ["model", "null"])
def test_models_of_other_grids_are_refused(where):
    other = Known(name="other", grid=SHORT)
    with pytest.raises(GridError, match=r"known has .*, other .*"):
        find([Known(), other]) if where == "model" else find(Known(), null=[other])


def test_models_of_other_labels_are_refused(model):
    other = Known(name="other")
    other.labels = LabelSet(("teff", "mg_h"), [4000, -1], [5000, 1])
    with pytest.raises(LabelError, match=r"models must have the same labels: known .* other has teff, mg_h"):
        find([Known(), other])


def test_without_a_model_nothing_is_found():
    with pytest.raises(ValueError, match="model must be a trained model or several, but is empty"):
        find([])


def test_labels_without_elements_are_refused():
    model = Known()
    model.labels = LabelSet(("teff", "m_h"), [4000, -1], [5000, 1])
    with pytest.raises(LabelError, match="no element among the labels teff, m_h"):
        find(model)


@pytest.mark.parametrize("shape", [(3, 5), (2, N)])
def test_differences_of_the_wrong_shape_are_refused(shape):
    values = np.tile(MEAN, (3, 1))
    for name in ("flux", "error"):
        arrays = {"flux": np.zeros((3, N)), "error": np.zeros((3, N))} | {name: np.zeros(shape)}
        with pytest.raises(GridError, match=rf"{name} must have shape \(3, {N}\)"):
            FluxDifferences(GRID, label_set(), values, **arrays)


def test_differences_without_labels_are_refused():
    with pytest.raises(LabelError, match="values must have a column for each of 9 labels"):
        FluxDifferences(GRID, label_set(), np.zeros((3, 4)), np.zeros((3, N)))


def test_differences_are_drawn_by_the_prior():
    found = model_differences(Known(), n=200, seed=3, progress=False)
    assert repr(found) == f"<FluxDifferences of 200 spectra, {N} pixels>"
    np.testing.assert_array_equal(found.values, np.random.default_rng(3).multivariate_normal(*population(), 200))


# -- the catalogue ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def empty():
    return find(Known(offset=noise(1)))


def test_an_empty_catalogue_has_all_columns(catalogue, empty):
    assert len(empty) == 0
    assert not empty.pixels.any()
    assert empty.table.colnames == catalogue.table.colnames
    for name, column in catalogue.table.items():
        other = empty.table[name]
        assert (other.dtype.kind, other.shape[1:], other.unit) == (column.dtype.kind, column.shape[1:], column.unit)


def test_a_catalogue_is_read_as_it_was_written(catalogue, tmp_path):
    catalogue.write(tmp_path / "lines.ecsv")
    catalogue.write(tmp_path / "lines.ecsv")  # and once more
    found = QTable.read(tmp_path / "lines.ecsv")
    assert found.meta == catalogue.table.meta
    for name, column in catalogue.table.items():
        np.testing.assert_array_equal(found[name], column)
        assert found[name].unit == column.unit
    assert [path.name for path in tmp_path.iterdir()] == ["lines.ecsv"]


def test_an_empty_catalogue_can_be_read(empty, tmp_path):
    empty.write(tmp_path / "lines.ecsv")
    found = QTable.read(tmp_path / "lines.ecsv")
    assert (len(found), found.meta) == (0, empty.table.meta)
    assert {*empty.table.colnames} - {*found.colnames} == {"slopes", "probabilities"}
    assert found["wavelength"].unit == u.AA


def by_hand():
    """Six lines on 50 pixels."""
    table = QTable(
        {
            "peak": [5, 11, 24, 32, 36, 41],
            "start": [3, 10, 23, 30, 35, 40],
            "stop": [8, 13, 26, 34, 38, 43],
            "significance": [3.0, 10, 8, 6, 4, 5],
            "fdr": [0.5, 0.01, 0.02, 0.03, 0.05, 0.04],
            "element": ["Al", "Fe", "Si", "N", "O", "Si"],
            "elements": ["Al", "Fe", "Mg Si", "C N", "O", "Si"],
        }
    )
    return MissingLines(table, WavelengthGrid(np.arange(15000.0, 15050) * u.AA), np.zeros(50), 1.0)


def test_lines_up_to_a_rate():
    assert by_hand().at(0.04).table["peak"].tolist() == [11, 24, 32, 41]
    assert len(by_hand().at(0)) == 0


def test_the_strongest_lines_stay_in_their_order():
    assert by_hand().strongest(3).table["peak"].tolist() == [11, 24, 32]
    assert len(by_hand().strongest(99)) == 6


def test_pixels_of_all_lines():
    pixels = np.flatnonzero(by_hand().pixels).tolist()
    assert pixels == [3, 4, 5, 6, 7, 10, 11, 12, 23, 24, 25, 30, 31, 32, 33, 35, 36, 37, 40, 41, 42]


def test_a_catalogue_shows_itself():
    assert repr(by_hand()) == "<MissingLines 6, 5 of them at a false-discovery rate of 5 %>"
    assert "<table" in by_hand()._repr_html_()


# -- against the truth -----------------------------------------------------------------------
def mask():
    """Five features of 50 pixels that are masked, and one that is not."""
    stretches = [
        ("Fe", 10, 11, 13), ("Mg", 20, 22, 24), ("C", 30, 32, 34), ("N", 31, 35, 36), ("Ca", 45, 46, 47),
        ("Si", 40, 41, 42),
    ]  # fmt: skip
    features = [
        Feature(element, start, stop, peak, 15000 * u.AA, 3 * u.AA, 0.3, -0.3 / u.dex)
        for element, start, peak, stop in stretches
    ]
    return FeatureMask(Features(features, 50), [True] * 5 + [False])


@pytest.fixture(scope="module")
def score():
    # by significance: Fe; Mg by a neighbour of its pixels; C and N; Si, which is not masked; N by a neighbour; nothing
    return score_missing_lines(by_hand(), mask())


def test_precision_is_the_share_of_lines_in_masked_pixels(score):
    np.testing.assert_allclose(score.precision, [1, 1, 1, 3 / 4, 4 / 5, 4 / 6])
    np.testing.assert_array_equal(score.fdr, [0.01, 0.02, 0.03, 0.04, 0.05, 0.5])


def test_recall_is_the_share_of_features_that_are_found(score):
    np.testing.assert_allclose(score.recall, [1 / 5, 2 / 5, 4 / 5, 4 / 5, 4 / 5, 4 / 5])


def test_elements_are_scored_where_they_are_not_of_molecules(score):
    assert (score.element_accuracy, score.n_element) == (0.5, 2)  # Fe; Si for Mg
    assert (score.set_accuracy, score.set_size, score.n_set) == (0.5, 1.5, 2)  # C N for C; the nearest, O, for N


def test_a_set_without_the_element_is_wrong():
    lines = by_hand()
    lines.table["elements"][3] = "C"
    score = score_missing_lines(lines, mask())
    assert (score.set_accuracy, score.set_size) == (0.5, 1.0)


@pytest.mark.parametrize(("fdr", "share"), [(0.02, 1), (0.03, 2 / 3), (0.05, 1 / 2)])
def test_lines_are_compared_with_what_is_truly_the_steepest(fdr, share):
    """Fe and Si are, though Mg is masked there; not N for Fe, nor O for a bump."""
    slopes = {"fe_h": np.zeros(50), "si_h": np.zeros(50), "o_h": np.zeros(50)}
    slopes["fe_h"][10:13], slopes["si_h"][23:26], slopes["fe_h"][31:34], slopes["o_h"][35:38] = -0.1, -0.2, -0.1, 0.1
    truth = DerivativeSpectra(by_hand().grid, np.ones(50), slopes)
    score = score_missing_lines(by_hand(), mask(), fdr=fdr, truth=truth)
    assert score.steepest_accuracy == pytest.approx(share)


def test_elements_are_scored_up_to_a_rate():
    score = score_missing_lines(by_hand(), mask(), fdr=0.01)
    assert (score.element_accuracy, score.n_element, score.n_set) == (1.0, 1, 0)
    assert np.isnan(score.set_accuracy)


def test_without_tolerance_neighbours_are_no_masked_pixels():
    score = score_missing_lines(by_hand(), mask(), tolerance=0)
    np.testing.assert_allclose(score.precision, [1, 1 / 2, 2 / 3, 2 / 4, 2 / 5, 2 / 6])


@pytest.mark.parametrize(("fdr", "expected"), [(0.03, (1, 0.8)), (0.045, (0.75, 0.8)), (1, (4 / 6, 0.8))])
def test_scores_up_to_a_rate(score, fdr, expected):
    assert score.at(fdr) == pytest.approx(expected)


def test_of_no_line_there_is_no_precision(score):
    precision, recall = score.at(0.001)
    assert np.isnan(precision)
    assert recall == 0
    assert score_missing_lines(by_hand().at(0), mask()).at(1)[1] == 0


def test_a_catalogue_may_be_written_as_csv(tmp_path):
    lines = by_hand()
    lines.write(tmp_path / "lines.csv")
    found = QTable.read(tmp_path / "lines.csv")
    assert found["peak"].tolist() == lines.table["peak"].tolist()
    assert found["elements"].tolist() == lines.table["elements"].tolist()
