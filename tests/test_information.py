"""What data and prior say about labels, against fits of stars whose labels were changed, and other priors."""

import numpy as np
import pytest
import torch
from stars import STAR, VALUES, N, observed, spectrum, with_noise

from cyclestarnet import FitFlag, GaussianPrior
from cyclestarnet.fitting import LinearPredictor, Objective, Parameters, levenberg_marquardt
from cyclestarnet.pipeline.information import Information, with_other_prior

N_LABELS = 4
SLOPES = np.random.default_rng(5).normal(size=(N_LABELS, 12)) * np.array([[1.0], [0.3], [0.05], [0.0]])
SPREAD = np.random.default_rng(6).normal(size=(N_LABELS, N_LABELS)) / 2
PRIOR = GaussianPrior(np.array([0.1, -0.2, 0.3, 0.0]), SPREAD @ SPREAD.T + 0.05 * np.eye(N_LABELS))
SIGMA = 0.3
WIDE = 100.0


def fitted(truth, prior=PRIOR, tied=(), fixed=()):
    """Optimum of a linear model of twelve pixels without noise, its objective and its parameters."""
    predictor = LinearPredictor(np.ones(12), SLOPES.T)
    flux = predictor.flux(torch.as_tensor(truth)[None]).numpy()
    free = [k not in fixed for k in range(N_LABELS)]
    parameters = Parameters.of_labels([-WIDE] * N_LABELS, [WIDE] * N_LABELS, [0.0] * N_LABELS, free=free, tied=tied)
    objective = Objective(predictor, flux, np.full(flux.shape, SIGMA**-2), parameters, prior)
    return levenberg_marquardt(objective, np.zeros((1, N_LABELS)), tolerance=1e-9), parameters


def information(optimum, parameters, prior=PRIOR):
    precision = np.zeros((N_LABELS, N_LABELS)) if prior is None else prior.precision
    width = parameters.upper - parameters.lower
    return Information.of(optimum.hessian[0], precision, parameters.matrix, width)


@pytest.mark.parametrize("changed", range(3))
def test_resolution_is_how_far_a_label_follows_the_star(changed):
    truth = np.array([0.5, 0.2, -0.4, 0.3])
    begin, parameters = fitted(truth)
    end, _ = fitted(truth + 0.5 * (np.arange(N_LABELS) == changed))
    moved = (end.inputs - begin.inputs)[0, changed] / 0.5
    assert information(begin, parameters).resolution[changed] == pytest.approx(moved, rel=1e-3)


def test_resolution_of_what_the_data_do_not_see_is_zero():
    optimum, parameters = fitted(np.zeros(N_LABELS))
    found = information(optimum, parameters)
    assert abs(found.resolution[3]) < 1e-3
    assert found.resolution[0] > 0.9
    assert found.data_error[3] == pytest.approx(2 * WIDE / np.sqrt(12), rel=1e-3)


def test_without_a_prior_data_tell_all():
    optimum, parameters = fitted(np.zeros(N_LABELS), prior=None, fixed=(3,))
    found = information(optimum, parameters, None)
    np.testing.assert_allclose(found.resolution[:3], 1, atol=1e-3)
    assert np.isnan(found.resolution[3])
    assert np.isnan(found.data_error[3])


def test_data_errors_are_those_of_least_squares():
    optimum, parameters = fitted(np.zeros(N_LABELS), fixed=(3,))
    expected = SIGMA * np.sqrt(np.diag(np.linalg.inv(SLOPES[:3] @ SLOPES[:3].T)))
    np.testing.assert_allclose(information(optimum, parameters).data_error[:3], expected, rtol=1e-3)


def test_tied_labels_share_their_resolution():
    truth = np.array([0.5, 0.2, 0.2, 0.0])
    begin, parameters = fitted(truth, tied=[[1, 2]])
    end, _ = fitted(truth + 0.5 * np.array([0, 1, 1, 0]), tied=[[1, 2]])
    moved = (end.inputs - begin.inputs)[0, 1:3] / 0.5
    np.testing.assert_allclose(information(begin, parameters).resolution[1:3], moved, rtol=1e-3)


@pytest.mark.parametrize("own", [PRIOR, None], ids=["gaussian", "none"])
def test_labels_with_another_prior_are_those_of_a_fit_with_it(own):
    other = GaussianPrior(np.array([1.0, 0.0, -1.0, 2.0]), np.diag([0.1, 0.2, 0.3, 0.4]))
    truth, none = np.array([0.5, 0.2, -0.4, 0.3]), np.zeros((N_LABELS, N_LABELS))
    mine, theirs = fitted(truth, own)[0], fitted(truth, other)[0]
    gradient, precision = np.zeros(N_LABELS), none
    if own is not None:
        gradient, precision = own.precision @ (own.mean - mine.inputs[0]), own.precision
    found = with_other_prior(mine.inputs[0], mine.covariance[0], gradient, precision, other.mean, other.precision)
    np.testing.assert_allclose(found, theirs.inputs[0], atol=2e-3)


# -- in fits -------------------------------------------------------------------------------
def test_labels_of_a_fit_follow_the_star_by_their_resolution(tiny_model):
    """With noise as large as makes the prior count. The model is not linear: within a tenth."""
    sigma = 0.08

    def fit(values):
        flux = tiny_model.predict(tiny_model.labels.to_quantities(values), domain="synthetic").flux.value
        return tiny_model.fit(spectrum(tiny_model, flux, sigma=sigma), method="lm", space="emulator")

    step = np.array([60.0, 0.15, 0.05])
    for k in range(3):
        change = step * (np.arange(3) == k)
        low, high = fit(VALUES - change), fit(VALUES + change)
        moved = (high.values - low.values)[k] / (2 * step[k])
        assert 0.1 < moved < 0.98
        assert fit(VALUES).resolution[k] == pytest.approx(moved, rel=0.1)


def test_stars_without_prior_are_not_outside_training_for_that(tiny_model, rng):
    """A star like those of the training, in noise in which labels wander: its distance is as with the prior."""
    flux = observed(tiny_model, STAR)
    found = []
    for _ in range(10):
        star = spectrum(tiny_model, flux, sigma=0.04, noise=rng)
        fits = [tiny_model.fit(star, prior=prior, method="lm") for prior in ("training", None)]
        assert not any(FitFlag.OUTSIDE_TRAINING in fit.flags for fit in fits)
        found.append([fit.meta["prior_distance"] for fit in fits])
    with_prior, without = np.transpose(found)
    np.testing.assert_allclose(without, with_prior, rtol=0.25)


def test_without_scatter_the_data_alone_weigh(tiny_model, rng):
    """The fit is that of a model which has none, and another one than with it."""
    star = spectrum(tiny_model, observed(tiny_model, STAR), noise=rng)
    silent = with_noise(tiny_model, scatter={}, scatter_inflation={})
    plain = tiny_model.fit(star, model_scatter=False, prior=None, method="lm")
    expected = silent.fit(star, prior=None, method="lm")
    np.testing.assert_allclose(plain.values, expected.values, rtol=1e-6)
    assert not np.allclose(plain.values, tiny_model.fit(star, prior=None, method="lm").values, rtol=1e-6)
    with pytest.raises(TypeError, match="model_scatter must be True or False, but is 0"):
        tiny_model.fit(star, model_scatter=0)


def test_fits_of_many_name_what_the_prior_tells(tiny_model, rng):
    flux = tiny_model.predict(STAR, domain="synthetic").flux.value
    noisy, clear = (spectrum(tiny_model, flux, sigma=sigma, noise=rng) for sigma in (0.3, 0.005))
    table = tiny_model.fit_many(
        [noisy, clear, spectrum(tiny_model, np.full(N, np.nan))], space="emulator", progress=False
    )
    assert table["prior_dominated"].tolist() == ["teff,logg,mg_h", "", ""]
    assert table["upper_limits"].tolist() == ["mg_h", "", ""]
