"""Distances of samples, label transport and label priors against closed forms and simulated truth."""

import sys
import warnings

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import sqrtm
from scipy.optimize import brentq
from scipy.stats import norm

from cyclestarnet.exceptions import CycleStarNetWarning
from cyclestarnet.training.alignment import (
    classifier_accuracy,
    gaussian_transport,
    mmd,
    overlap_weights,
    principal_components,
    prior_mismatch,
    regress_labels,
    sliced_wasserstein,
    tsne,
)

DISTANCES = {
    "classifier": lambda a, b: classifier_accuracy(a, b, seed=0)[0],
    "wasserstein": lambda a, b: sliced_wasserstein(a, b, seed=0, n_projections=20),
    "mmd": mmd,
}


# -- samples that differ in one way only -----------------------------------------------------------
def shifted(rng, n):
    return rng.normal(size=(n, 3)), rng.normal([1.5, 0, 0], 1, (n, 3))


def anticorrelated(rng, n):
    return tuple(rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n) for rho in (0.8, -0.8))


def bent(rng, n):
    """Same mean and covariance; the second follows a parabola."""
    a, b = rng.normal(size=(2, n, 2))
    b[:, 1] = 0.9 * (b[:, 0] ** 2 - 1) / np.sqrt(2) + np.sqrt(1 - 0.81) * b[:, 1]
    return a, b


def ring(rng, n):
    angle = rng.uniform(0, 2 * np.pi, n)
    return rng.normal(size=(n, 2)), np.sqrt(2) * np.column_stack([np.cos(angle), np.sin(angle)])


# -- classifier ---------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [shifted, anticorrelated, bent, ring])
def test_classifier_sees_every_kind_of_difference(make, rng):
    accuracy, error = classifier_accuracy(*make(rng, 250), seed=1)
    assert accuracy > 0.5 + 5 * error


def test_classifier_reaches_the_optimum_of_shifted_normals(rng):
    """The best of all classifiers is right Φ(d / 2) of the time."""
    a, b = rng.normal(size=(1000, 2)), rng.normal([1.5, 0], 1, (1000, 2))
    accuracy, error = classifier_accuracy(a, b, seed=0)
    assert accuracy == pytest.approx(norm.cdf(0.75), abs=4 * error)


@pytest.mark.parametrize("sizes", [(40, 40), (60, 20)])
def test_classifier_guesses_at_equal_samples(sizes, rng):
    """0.5 on average, whatever the sizes, with about the scatter that is said."""
    draws = [classifier_accuracy(*(rng.normal(size=(n, 3)) for n in sizes), seed=k) for k in range(16)]
    accuracy, (error, *_) = np.transpose(draws)
    assert accuracy.mean() == pytest.approx(0.5, abs=4 * error / np.sqrt(16) + 0.01)  # folds bias it a little down
    assert 0.6 * error < accuracy.std() < 1.7 * error


def test_error_of_the_classifier_is_binomial(rng):
    a, b = rng.normal(size=(2, 50, 2))
    assert classifier_accuracy(a, b, seed=0)[1] == pytest.approx(np.sqrt(0.25 / 100))


def test_classifier_sees_what_only_pairs_show(rng):
    """Spectra and latents that are alike each for themselves, but belong together in one sample only."""
    a, b, other = rng.normal(size=(3, 300, 2))
    together, apart = (a, a + 0.3 * other), (b, rng.permutation(b) + 0.3 * other)
    assert classifier_accuracy(together, apart, seed=0)[0] > 0.7
    assert classifier_accuracy(together[1], apart[1], seed=0)[0] < 0.6


def test_classifier_learns_a_few_numbers_of_large_spectra(rng, monkeypatch):
    """On 7000 pixels it would take minutes."""
    neural_network, shapes = pytest.importorskip("sklearn.neural_network"), set()
    fit = neural_network.MLPClassifier.fit
    monkeypatch.setattr(neural_network.MLPClassifier, "fit", lambda self, x, y: shapes.add(x.shape) or fit(self, x, y))
    classifier_accuracy(*rng.normal(size=(2, 50, 7000)), seed=0)
    assert shapes == {(80, 20)}


def test_components_keep_relative_sizes(rng):
    """Along the axes of correlated columns, which have variances 1 + ρ and 1 - ρ."""
    a, b = (rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 20_000) for _ in range(2))
    scatter = np.concatenate(principal_components(a, b, seed=0)).std(0)
    np.testing.assert_allclose(scatter, [1, 0.5], rtol=0.02)


# -- distances ------------------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_wasserstein_of_shifted_normals(shift, rng):
    """In one dimension the shift itself, over the scatter of both samples together."""
    a, b = rng.normal(size=(20_000, 1)), rng.normal(shift, 1, (20_000, 1))
    expected = shift / np.sqrt(1 + shift**2 / 4)
    assert sliced_wasserstein(a, b, seed=0, n_projections=2) == pytest.approx(expected, rel=0.03)


def test_wasserstein_is_a_mean_over_directions(rng):
    """In two dimensions a shift along one axis counts |cos| of the angle: 2/π on average."""
    a = np.array([[-1.0, -1.0], [-1.0, 1.0]])
    b = a + np.array([2.0, 0.0])  # already standardised
    assert sliced_wasserstein(a, b, seed=0, n_projections=4000) == pytest.approx(2 * 2 / np.pi, rel=0.03)


def test_wasserstein_of_widths(rng):
    """E|X| |s - t| for zero-mean normals of scatters s and t."""
    a, b = rng.normal(0, 3.0, (20_000, 1)), rng.normal(0, 1.0, (10_000, 1))
    expected = np.sqrt(2 / np.pi) * 2 / np.sqrt(5)
    assert sliced_wasserstein(a, b, seed=0, n_projections=2) == pytest.approx(expected, rel=0.03)


def test_mmd_of_shifted_normals(rng):
    """Closed form for a Gaussian kernel as wide as the median distance of both samples together."""
    shift, n = 4.0, 1000
    unit = np.sqrt(1 + shift**2 / 4)
    d, s2 = shift / unit, 2 / unit**2  # differences within a sample are normal with variance s2

    def below(r):
        within, between = norm.cdf(r / np.sqrt(s2)), norm.cdf([r, -r], d, np.sqrt(s2))
        return 0.5 * (2 * within - 1) + 0.5 * (between[0] - between[1]) - 0.5

    h2 = brentq(below, 0.01, 5) ** 2
    expected = 2 * np.sqrt(h2 / (h2 + s2)) * (1 - np.exp(-0.5 * d**2 / (h2 + s2)))
    kernel = quad(lambda x: np.exp(-0.5 * x**2 / h2) * norm.pdf(x, d, np.sqrt(s2)), -20, 20)[0]
    assert kernel == pytest.approx(np.sqrt(h2 / (h2 + s2)) * np.exp(-0.5 * d**2 / (h2 + s2)))
    assert mmd(rng.normal(size=(n, 1)), rng.normal(shift, 1, (n, 1))) == pytest.approx(expected, rel=0.04)


def test_mmd_of_equal_distributions_is_zero_on_average(rng):
    draws = [mmd(rng.normal(size=(12, 3)), rng.normal(size=(8, 3))) for _ in range(2000)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(len(draws))
    assert np.min(draws) < 0


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_units_do_not_matter(distance, rng):
    a, b = shifted(rng, 60)
    units, zero = np.array([1e-3, 1.0, 1e4]), np.array([5.0, 0.0, -1e3])
    assert distance(a * units + zero, b * units + zero) == pytest.approx(distance(a, b), abs=0.01)


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_columns_without_scatter_do_not_matter(distance, rng):
    a, b = shifted(rng, 60)
    expected = distance(np.column_stack([a, np.zeros(60)]), np.column_stack([b, np.zeros(60)]))
    assert distance(np.column_stack([a, np.full(60, 7.0)]), np.column_stack([b, np.full(60, 7.0)])) == expected


@pytest.mark.parametrize(("distance", "alike"), [*zip(DISTANCES.values(), (0.5, 0.0, 0.0), strict=True)], ids=DISTANCES)
def test_equal_constants_are_alike(distance, alike):
    assert distance(np.full((20, 2), 3.0), np.full((15, 2), 3.0)) == alike


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_nan_is_refused(distance, rng):
    a, b = shifted(rng, 20)
    b[3, 1] = np.nan
    with pytest.raises(ValueError, match="b holds NaN or infinite values"):
        distance(a, b)


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_members_of_different_size_are_refused(distance, rng):
    with pytest.raises(ValueError, match="members of a and b must have the same size, but have 3 and 2"):
        distance(rng.normal(size=(20, 3)), rng.normal(size=(20, 2)))


def test_small_samples_are_refused(rng):
    with pytest.raises(ValueError, match="a and b need at least 10 members each, but have 9 and 20"):
        classifier_accuracy(rng.normal(size=(9, 2)), rng.normal(size=(20, 2)), seed=0)
    with pytest.raises(ValueError, match="b needs at least 2 members, but has 1"):
        mmd(rng.normal(size=(9, 2)), rng.normal(size=(1, 2)))


def test_missing_scikit_learn_names_the_extra(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(ImportError, match=r'pip install "cyclestarnet\[training\]"'):
        classifier_accuracy(*shifted(rng, 20), seed=0)


# -- maps --------------------------------------------------------------------------------------
def own_neighbours(first, second):
    """Fraction of the members whose nearest neighbour is of their own sample."""
    places = np.concatenate([first, second])
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    np.fill_diagonal(distance, np.inf)
    sample = np.repeat([0, 1], [len(first), len(second)])
    return np.mean(sample[distance.argmin(1)] == sample)


@pytest.mark.parametrize(("shift", "low", "high"), [(8.0, 1.0, 1.0), (0.0, 0.3, 0.7)])
def test_a_map_parts_what_is_apart_and_mixes_what_is_alike(rng, shift, low, high):
    a, b = rng.normal(size=(2, 40, 6))
    places = tsne(a, b + shift, seed=1)
    assert low <= own_neighbours(*places) <= high
    again = tsne(a, b + shift, seed=1)
    np.testing.assert_array_equal(places, again)


def test_a_map_needs_neighbours_and_numbers(rng):
    with pytest.raises(ValueError, match="perplexity must be positive, but is 0"):
        tsne(rng.normal(size=(9, 3)), rng.normal(size=(9, 3)), seed=0, perplexity=0)
    with pytest.raises(ValueError, match="b holds NaN"):
        tsne(rng.normal(size=(9, 3)), np.full((9, 3), np.nan), seed=0)


# -- label transport ------------------------------------------------------------------------------------
UNITS = np.array([200.0, 0.5, 0.1])  # K, dex, dex


@pytest.fixture
def label_samples(rng):
    """Correlated labels of two populations, in very different units."""
    centres, sizes, mixings = ([4300, 2, 0], [4500, 2.3, -0.1]), (4000, 3000), rng.normal(size=(2, 3, 3))
    draws = zip(centres, sizes, mixings, strict=True)
    return tuple(centre + rng.normal(size=(n, 3)) @ mixing * UNITS for centre, n, mixing in draws)


def test_transport_is_the_closed_form(label_samples):
    """Σs^-½ (Σs^½ Σt Σs^½)^½ Σs^-½ in units of the target's scatter, with SciPy's matrix root."""
    source, target = label_samples
    unit = target.std(0, ddof=1)
    first, second = (np.cov((sample / unit).T) for sample in (source, target))
    root = sqrtm(first).real
    matrix = np.linalg.inv(root) @ sqrtm(root @ second @ root).real @ np.linalg.inv(root)
    expected = target.mean(0) + (source - source.mean(0)) / unit @ matrix.T * unit
    moved = gaussian_transport(source, target, clip=np.inf)(source)
    np.testing.assert_allclose(moved / unit, expected / unit, atol=1e-6)


def test_transport_carries_moments(label_samples):
    source, target = label_samples
    moved = gaussian_transport(source, target, clip=np.inf)(source)
    np.testing.assert_allclose(moved.mean(0), target.mean(0), rtol=1e-9)
    np.testing.assert_allclose(np.cov(moved.T) / np.cov(target.T), 1, rtol=1e-6)


def test_transport_of_one_label_is_the_quantile_map():
    levels = (np.arange(4000) + 0.5)[:, None] / 4000
    source, target = norm.ppf(levels, 4300, 200), norm.ppf(levels, 4500, 120)
    moved = gaussian_transport(source, target)(norm.ppf([[0.1], [0.5], [0.9]], 4300, 200))
    np.testing.assert_allclose(moved, norm.ppf([[0.1], [0.5], [0.9]], 4500, 120), atol=0.5)


def test_transport_does_not_depend_on_units(label_samples):
    source, target = label_samples
    moved = gaussian_transport(source, target)(source[:5])
    np.testing.assert_allclose(gaussian_transport(source / UNITS, target / UNITS)(source[:5] / UNITS) * UNITS, moved)


def test_transport_carries_errors(label_samples, rng):
    """As the scatter of many labels with those errors."""
    transport = gaussian_transport(*label_samples)
    covariance = np.diag(UNITS) @ [[1.0, 0.3, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 0.5]] @ np.diag(UNITS)
    moved = transport(rng.multivariate_normal([4400, 2, 0], covariance, 200_000))
    expected = np.cov(moved.T)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(transport.covariance(covariance[None])[0] / scale, expected / scale, atol=0.015)


def test_transport_ignores_outliers(label_samples):
    source, target = label_samples
    clean = gaussian_transport(source, target)
    source[:40] += 1e3 * UNITS
    np.testing.assert_allclose(gaussian_transport(source, target)(target) / UNITS, clean(target) / UNITS, atol=0.15)


@pytest.mark.parametrize("spoil", ["few", "constant", "dependent"])
def test_singular_labels_are_refused(label_samples, spoil):
    source, target = label_samples
    if spoil == "few":
        source = source[:3]
    else:
        source[:, 2] = 1.0 if spoil == "constant" else source[:, 0] / 100
    with pytest.raises(ValueError, match=r"source has .* rows of 3 labels, whose covariance is singular"):
        gaussian_transport(source, target)


# -- rough labels, weights, warnings ----------------------------------------------------------------------
@pytest.fixture
def line_samples(line_family, rng):
    """Labels and flux of 600 synthetic and 500 observed spectra of one family, with 1/σ of the observed."""
    labels, truth = line_family.draw(600, rng), line_family.draw(500, rng)
    sigma = rng.uniform(0.02, 0.06, (500, 1)) * np.ones(415)
    weight = np.where(rng.random(sigma.shape) < 0.05, 0.0, 1 / sigma)
    return labels, line_family(labels), truth, rng.normal(line_family(truth), sigma), weight


def test_regression_finds_labels(line_samples):
    labels, synthetic, truth, observed, weight = line_samples
    _, estimate = regress_labels(synthetic, labels, observed, weight, seed=0)
    assert (np.corrcoef(estimate.T, truth.T).diagonal(3) > 0.8).all()


def test_regression_dilutes_both_sides_alike(line_samples):
    """Slopes of estimates against true labels are below 1, by as much."""
    labels, synthetic, truth, observed, weight = line_samples
    estimates = regress_labels(synthetic, labels, observed, weight, seed=0)
    for k in range(3):
        slopes = [np.polyfit(t[:, k], e[:, k], 1)[0] for t, e in zip((labels, truth), estimates, strict=True)]
        assert max(slopes) < 0.98
        assert slopes[0] == pytest.approx(slopes[1], abs=0.1)


def test_synthetic_estimates_do_not_know_their_labels(line_samples, rng):
    """Labels that have nothing to do with the spectra cannot be estimated."""
    _, synthetic, _, observed, weight = line_samples
    noise = rng.normal(size=(600, 1))
    estimate, _ = regress_labels(synthetic, noise, observed, weight, seed=0)
    assert np.corrcoef(estimate[:, 0], noise[:, 0])[0, 1] < 0.1


@pytest.mark.parametrize("value", [0.0, 1e6, np.nan])
def test_bad_pixels_do_not_matter_to_the_regression(line_samples, value):
    labels, synthetic, _, observed, weight = line_samples
    spoilt = np.where(weight > 0, observed, value)
    first, second = (regress_labels(synthetic, labels, x, weight, seed=0)[1] for x in (observed, spoilt))
    np.testing.assert_array_equal(first, second)


def test_regression_refuses_what_does_not_fit(line_samples):
    labels, synthetic, _, observed, weight = line_samples
    with pytest.raises(ValueError, match=r"do not fit together: \(600, 415\), \(600, 3\), \(500, 415\), \(500, 414\)"):
        regress_labels(synthetic, labels, observed, weight[:, 1:], seed=0)
    with pytest.raises(ValueError, match="40 synthetic spectra are too few for 10 components"):
        regress_labels(synthetic[:40], labels[:40], observed, weight, seed=0)


def test_weights_are_the_ratio_of_densities(rng):
    synthetic, observed = rng.normal(0, 1, (20_000, 1)), rng.normal(0.5, 0.7, (20_000, 1))
    weights, _ = overlap_weights(synthetic, observed)
    expected = norm.pdf(synthetic[:, 0], 0.5, 0.7) / norm.pdf(synthetic[:, 0])
    np.testing.assert_allclose(weights, expected, atol=0.1)


def test_weighted_labels_have_the_observed_moments(rng):
    mixing = np.array([[200.0, 0.3], [0.0, 0.4]])
    synthetic = [4400, 2] + rng.normal(size=(6000, 2)) @ mixing
    observed = [4450, 2] + rng.normal(size=(3000, 2)) @ (0.6 * mixing)
    weights, _ = overlap_weights(synthetic, observed)
    np.testing.assert_allclose(np.average(synthetic, axis=0, weights=weights), observed.mean(0), rtol=0.01)
    np.testing.assert_allclose(np.cov(synthetic.T, aweights=weights), np.cov(observed.T), rtol=0.15, atol=1)


def test_effective_size_is_that_of_gaussian_weights(rng):
    """Of unit normals weighted to a width s: n s sqrt(2 - s²), as ∫ q²/p = 1 / (s sqrt(2 - s²))."""
    _, size = overlap_weights(rng.normal(size=(20_000, 1)), rng.normal(0, 0.5, (20_000, 1)))
    assert size == pytest.approx(20_000 * 0.5 * np.sqrt(2 - 0.25), rel=0.03)


def test_ratios_are_clipped(rng):
    synthetic, observed = rng.normal(size=(4000, 1)), rng.normal(2.0, 1, (4000, 1))
    weights, _ = overlap_weights(synthetic, observed, max_ratio=3.0)
    assert (weights == weights.max()).mean() == pytest.approx(norm.sf((np.log(3) + 2) / 2), abs=0.02)


def test_weights_of_samples_apart_warn(rng):
    with pytest.warns(CycleStarNetWarning, match="hardly overlap: 1000 weighted synthetic rows count as"):
        overlap_weights(rng.normal(size=(1000, 1)), rng.normal(5, 1, (1000, 1)))


@pytest.mark.parametrize(
    ("shift", "width", "complaint"),
    [
        (0.8, 1.0, r"'teff' is probably shifted by \+0\.8"),
        (-0.8, 1.0, r"'teff' is probably shifted by -0\.[78]"),
        (0.0, 0.5, r"'teff' is probably too narrow, 0\.[45]"),
        (0.0, 2.0, r"'teff' is probably too wide, [12]\.[90]"),
    ],
)
def test_wrong_prior_is_named(shift, width, complaint, rng):
    observed = rng.normal([4400, 2], [200, 0.5], (2000, 2))
    prior = rng.normal([4400 + 200 * shift, 2], [200 * width, 0.5], (2000, 2))
    with pytest.warns(CycleStarNetWarning, match=complaint) as caught:
        table = prior_mismatch(prior, observed, names=("teff", "logg"))
    assert "logg" not in str(caught[0].message)
    assert "Label zero points follow the prior" in str(caught[0].message)
    np.testing.assert_allclose(table["shift"], [shift, 0], atol=0.15)
    np.testing.assert_allclose(table["width_ratio"], [width, 1], rtol=0.1)


def test_fitting_prior_is_not_complained_about():
    """In a hundred draws of samples so small that chance alone takes some of them past the limits of large ones."""
    rng = np.random.default_rng(5)
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        for _ in range(100):
            prior_mismatch(rng.normal(size=(40, 4)), rng.normal(size=(500, 4)), names="abcd")
    assert not complaints


def test_mismatch_needs_a_name_for_each_label(rng):
    with pytest.raises(ValueError, match="names must name 2 labels, but has 1"):
        prior_mismatch(rng.normal(size=(9, 2)), rng.normal(size=(9, 2)), names=["teff"])
