"""Stars of known labels: figures of offsets in closed form, and errors of labels that were planted and are found."""

from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable
from scipy.stats import norm

from cyclestarnet.exceptions import LabelError, SpectrumError
from cyclestarnet.noise import ErrorTrend
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training.evaluation import (
    LabelOffsets,
    compare_labels,
    covering_factor,
    error_trend,
    label_error,
    label_table,
    learn_label_error,
    offset_figures,
)

N = 20_000


def posteriors(rng, planted=None):
    """Offsets (N, 2) and covariances of a linear Gaussian model, with an error of labels that it does not know.

    Data y = A x + noise of covariance 1 and a flat prior: the posterior of x has the covariance inv(A' A),
    and its mean is off by a draw of that covariance.
    """
    design = np.array([[3.0, 1.0], [0.0, 2.0], [1.0, -1.0]])
    quoted = np.linalg.inv(design.T @ design)
    offset = rng.normal(size=(N, 3)) @ (design @ quoted)
    if planted is not None:
        offset += rng.multivariate_normal([0, 0], planted, N)
    return offset, np.broadcast_to(quoted, (N, 2, 2))


# -- figures ------------------------------------------------------------------------
@pytest.mark.parametrize(("error", "shift"), [(1.0, 0.0), (0.5, 0.0), (1.0, 2.0)])
def test_figures_of_gaussian_offsets(error, shift):
    """Evenly spaced quantiles of N(shift, 1), and errors that are right, too small, or do not know the shift."""
    offset = norm.ppf((np.arange(N) + 0.5) / N) + shift
    found = offset_figures(offset, np.full(N, error))
    expected = [norm.cdf(limit * error - shift) - norm.cdf(-limit * error - shift) for limit in (1, 1.96)]
    np.testing.assert_allclose([found["cover_68"], found["cover_95"]], expected, atol=1e-3)
    np.testing.assert_allclose([found["bias"], found["scatter"]], [shift, 0.9945], atol=1e-3)
    np.testing.assert_allclose([found["error"], found["pull_width"]], [error, 0.9945 / error], rtol=2e-3)


def test_offsets_that_are_not_known_do_not_count():
    found = offset_figures([1.0, np.nan, 3.0], [1.0, 1.0, 1.0])
    assert (found["n"], found["bias"]) == (2, 2.0)


def test_figures_of_nothing_are_nan():
    found = offset_figures([np.nan], [1.0])
    assert found.pop("n") == 0
    assert np.isnan(list(found.values())).all()


def test_linear_gaussian_model_is_covered_exactly(rng):
    offset, covariance = posteriors(rng)
    table = label_table(offsets_of(offset, covariance))
    np.testing.assert_allclose(table["cover_68"], 0.6827, atol=4 * np.sqrt(0.68 * 0.32 / N))
    np.testing.assert_allclose(table["pull_width"], 0.9945, rtol=0.02)


def offsets_of(offset, covariance):
    every = np.ones(len(offset), dtype=bool)
    return LabelOffsets(("teff", "logg"), offset, covariance, 1.5 * every, every, ~every)


def test_table_tells_units_and_what_the_fits_were(rng):
    table = label_table(offsets_of(*posteriors(rng)))
    assert table["label", "unit"].as_array().tolist() == [("teff", "K"), ("logg", "dex")]
    assert table.meta == {"stars": N, "reduced_chi2": 1.5, "converged": 1.0, "flagged": 0.0}


# -- errors of labels ---------------------------------------------------------------
def test_planted_label_error_is_recovered(rng):
    planted = np.array([[0.9, -0.5], [-0.5, 0.6]])
    np.testing.assert_allclose(label_error(*posteriors(rng, planted)), planted, atol=0.03)


def test_added_label_error_makes_coverage_right(rng):
    offset, covariance = posteriors(rng, np.diag([0.9, 0.0]))
    total = covariance + label_error(offset, covariance)
    for k in range(2):
        found = offset_figures(offset[:, k], np.sqrt(total[:, k, k]))
        assert found["cover_68"] == pytest.approx(0.683, abs=4 * np.sqrt(0.68 * 0.32 / N))


def test_errors_that_are_right_need_nothing(rng):
    """What is left is the chance in the second moments of N stars."""
    offset, covariance = posteriors(rng)
    assert np.diag(label_error(offset, covariance)).max() < 0.03 * covariance[0].max()


def test_errors_that_are_too_large_are_not_made_smaller(rng):
    offset, covariance = posteriors(rng)
    np.testing.assert_allclose(label_error(offset, 4 * covariance), 0, atol=1e-12)


def test_an_outlier_does_not_widen_the_errors_of_all(rng):
    offset, covariance = posteriors(rng, np.diag([0.9, 0.6]))
    wild = offset.copy()
    wild[:20] += 1000
    np.testing.assert_allclose(label_error(wild, covariance), label_error(offset, covariance), atol=0.02)


def test_a_constant_bias_is_an_error_of_labels():
    """Offsets that are all 2 ± 0.1: the error bar must reach the truth."""
    offset = 2 + 0.1 * norm.ppf((np.arange(N) + 0.5) / N)[:, None]
    found = label_error(offset, np.full((N, 1, 1), 0.01))
    assert np.sqrt(found[0, 0]) == pytest.approx(2.05, abs=0.01)  # 68.3 % of N(2, 0.1) lie below 2.048


def test_covering_factor_of_heavy_tails():
    """A Cauchy distribution has 68.3 % within tan(0.683 π / 2) = 1.84."""
    offset = np.tan(np.pi * ((np.arange(N) + 0.5) / N - 0.5))
    assert covering_factor(offset, np.zeros(N), own=1.0) == pytest.approx(np.tan(0.683 * np.pi / 2), rel=1e-3)


@pytest.mark.parametrize(("variance", "own"), [(1.0, 0.0), (4.0, 1.0)])
def test_covering_factor_is_1_if_nothing_is_to_be_covered(variance, own):
    offset = norm.ppf((np.arange(N) + 0.5) / N)
    assert covering_factor(offset, np.full(N, variance), own) == 1


def test_too_few_stars_are_refused():
    with pytest.raises(SpectrumError, match="8 or more stars of known labels, but there are 7"):
        label_error(np.ones((9, 1)) * np.r_[np.ones(7), np.nan, np.nan][:, None], np.ones((9, 1, 1)))


# -- trends of them ---------------------------------------------------------------------
def trended(rng, slopes, n=6000):
    """Offsets of two labels whose hidden errors (1, 0.5) depend on two terms, quoted errors of 0.3, and the terms."""
    terms = rng.normal(size=(n, len(slopes[0]))).clip(-2, 2)
    hidden = np.array([1.0, 0.5]) * np.exp(terms @ np.transpose(slopes))
    return rng.normal(0, np.hypot(hidden, 0.3)), np.tile(0.09 * np.eye(2), (n, 1, 1)), terms, hidden


def test_planted_trend_of_label_errors_is_recovered(rng):
    slopes = [[0.5, -0.2], [0.0, 0.3]]
    offset, covariance, terms, _ = trended(rng, slopes)
    found, own = error_trend(offset, covariance, label_error(offset, covariance), terms)
    np.testing.assert_allclose(found, slopes, atol=0.05)
    np.testing.assert_allclose(np.sqrt(np.diag(own)), [1.0, 0.5], rtol=0.06)


def test_trends_make_coverage_right_everywhere(rng):
    """In each tenth of what the errors depend on; one error for all fails at both ends."""
    offset, covariance, terms, _ = trended(rng, [[0.6, 0.0], [0.6, 0.0]])
    plain = label_error(offset, covariance)
    slopes, own = error_trend(offset, covariance, plain, terms)
    shaped = own[0, 0] * np.exp(2 * terms @ slopes[0])
    order = np.argsort(terms[:, 0])
    for tenth in np.array_split(order, 10):
        assert np.mean(offset[tenth, 0] ** 2 < 0.09 + shaped[tenth]) == pytest.approx(0.683, abs=0.075)
    assert np.mean(offset[order[-600:], 0] ** 2 < 0.09 + plain[0, 0]) < 0.5


def test_label_errors_without_trend_get_none(rng):
    offset, covariance = posteriors(rng, np.diag([0.9, 0.0]))
    slopes, own = error_trend(offset, covariance, np.diag([0.9, 0.0]), rng.normal(size=(N, 3)))
    assert np.abs(slopes).max() < 0.05
    assert own[1, 1] == 0
    assert own[0, 0] == pytest.approx(0.9, rel=0.05)


def test_model_learns_trends_of_many_stars_only(tiny_model, known, monkeypatch):
    spectra, values = known
    truth = {"teff": values[:, 0] * u.K, "logg": values[:, 1] + 0.5}
    assert learn_label_error(tiny_model, spectra, truth, progress=False).noise.label_error_trend is None
    monkeypatch.setattr("cyclestarnet.training.evaluation.LEAST_FOR_TREND", 24)
    trend = learn_label_error(tiny_model, spectra, truth, progress=False).noise.label_error_trend
    assert trend.columns == (0, 1)
    assert trend.slopes.shape == (3, 4)
    assert not trend.slopes[2].any()


def test_errors_of_a_fit_follow_the_trend(tiny_model, known):
    """Twice the hidden error one standard deviation above the mean in Teff: the covariance tells."""
    slopes = np.array([[0.0, 0.0], [np.log(2), 0.0], [0.0, 0.0]])
    trend = ErrorTrend((0,), tiny_model.prior.mean[:1], np.array([100.0]), slopes)
    star, found = known[0][0], {}
    for name, own in (("none", None), ("plain", None), ("trend", trend)):
        error = None if name == "none" else np.diag([0.0, 0.04, 0.0])
        model = replace(tiny_model, noise=replace(tiny_model.noise, label_error=error, label_error_trend=own))
        found[name] = model.fit(star, method="lm")
    added = [found[name].covariance[1, 1] - found["none"].covariance[1, 1] for name in ("plain", "trend")]
    place = np.clip((found["trend"].values[0] - tiny_model.prior.mean[0]) / 100, -2.5, 2.5)
    assert added[1] / added[0] == pytest.approx(np.clip(2**place, 1 / 4, 4) ** 2, rel=1e-6)


# -- models -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def known(tiny_model):
    """Spectra of 24 stars that are the model's own, with noise, and their labels."""
    rng, labels = np.random.default_rng(7), tiny_model.labels
    values = rng.multivariate_normal(tiny_model.prior.mean, 0.2 * tiny_model.prior.covariance, 24)
    values = values.clip(labels.lower, labels.upper)
    clean = np.array([tiny_model.predict(labels.to_quantities(row)).flux.value for row in values])
    return to_spectrum(rng.normal(clean, 0.01), tiny_model.grid, ivar=np.full(clean.shape, 1e4)), values


def first(model, spectra, number):
    """The first of some stars."""
    flux = spectra.flux.value[:number]
    return to_spectrum(flux, model.grid, ivar=np.full(flux.shape, 1e4))


def test_offsets_are_those_of_the_fits(tiny_model, known):
    spectra, values = known
    truth = {"logg": values[:2, 1], "alpha_m": values[:2, 2]}
    found = compare_labels(tiny_model, first(tiny_model, spectra, 2), truth, progress=False)
    for row in range(2):
        fit = tiny_model.fit(spectra[row], method="lm")
        np.testing.assert_array_equal(found.offset[row], fit.values[1:] - values[row, 1:])
        np.testing.assert_array_equal(found.covariance[row], fit.covariance[1:, 1:])
        assert found.reduced_chi2[row] == fit.reduced_chi2


def test_units_of_the_truth_are_understood(tiny_model, known):
    spectra, values = known
    found, same = (
        compare_labels(tiny_model, first(tiny_model, spectra, 1), truth, progress=False)
        for truth in (QTable({"teff": values[:1, 0] / 1000 * u.kK}), {"teff": values[:1, 0] * u.K})
    )
    np.testing.assert_allclose(found.offset, same.offset, atol=1e-9)


def test_a_star_that_cannot_be_fitted_is_left_out(tiny_model, known, caplog):
    spectra, values = known
    flux, ivar = spectra.flux.value[:3], np.full((3, tiny_model.grid.n_pixels), 1e4)
    ivar[1] = 0
    three = to_spectrum(flux, tiny_model.grid, ivar=ivar)
    found = compare_labels(tiny_model, three, {"logg": values[:3, 1]}, progress=False)
    assert found.offset.shape == (2, 1)
    assert found.rows.tolist() == [0, 2]
    assert "left out star 1" in caplog.text


def test_label_that_is_not_the_models_is_refused(tiny_model, known):
    with pytest.raises(LabelError, match="truth must have some of teff, logg, mg_h, alpha_m, but has na_h"):
        compare_labels(tiny_model, known[0], {"na_h": known[1][:, 0]}, progress=False)


def test_labels_that_are_not_known_of_a_star_have_no_offset(tiny_model, known):
    truth = {"logg": np.array([np.nan, known[1][1, 1]])}
    found = compare_labels(tiny_model, first(tiny_model, known[0], 2), truth, progress=False)
    assert np.isfinite(found.offset).tolist() == [[False], [True]]


def test_truth_of_another_number_of_stars_is_refused(tiny_model, known):
    with pytest.raises(LabelError, match=r"truth of logg must have the shape \(24,\), but has \(3,\)"):
        compare_labels(tiny_model, known[0], {"logg": known[1][:3, 1]}, progress=False)


def test_model_learns_an_offset_of_known_labels(tiny_model, known):
    """Known log g that is 0.5 off for all: its error becomes as large, and labels that are not known have none."""
    spectra, values = known
    before = replace(tiny_model, noise=replace(tiny_model.noise, label_error=np.eye(3)))  # is forgotten
    model = learn_label_error(before, spectra, {"logg": values[:, 1] + 0.5, "alpha_m": values[:, 2]}, progress=False)
    error = model.noise.label_error
    assert np.sqrt(error[1, 1]) == pytest.approx(0.5, abs=0.1)
    assert np.count_nonzero(error) == 1


def test_errors_are_not_learnt_from_combinations_alone(tiny_model, known):
    with pytest.raises(LabelError, match="some of the labels teff, logg, mg_h"):
        learn_label_error(tiny_model, known[0], {"alpha_m": known[1][:, 2]}, progress=False)
