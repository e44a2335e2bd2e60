"""Errors of the continuum that a fit marginalises over: against explicit parameters, and on tilted spectra."""

import astropy.units as u
import numpy as np
import pytest
import torch
from stars import SIGMA, STAR, assert_same_labels, spectrum
from toys import LinearPredictor, noisy_objective

from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.parameters import Parameters
from cyclestarnet.fitting.predictor import LinearPredictor as Linear
from cyclestarnet.fitting.priors import GaussianConstraints
from cyclestarnet.fitting.solvers import levenberg_marquardt

N = 40


@pytest.fixture
def problem(rng):
    """Slopes of two labels, two templates, data and errors of three stars; a pixel does not count."""
    slopes, templates = rng.normal(size=(2, N)), 0.3 * rng.normal(size=(3, 2, N))
    ivar = rng.uniform(50, 200, (3, N))
    ivar[:, 7] = 0
    flux = 1 + np.array([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.0]]) @ slopes
    flux += np.einsum("ij,ijn->in", rng.normal(size=(3, 2)), templates) + rng.normal(size=flux.shape) * 0.1
    flux[:, 7] = 50
    return slopes, templates, flux, ivar


def marginal(problem):
    slopes, templates, flux, ivar = problem
    bounds = Parameters.of_labels([-3] * 2, [3] * 2, [0.0] * 2)
    return Objective(Linear(np.ones(N), slopes.T), flux, ivar, bounds, templates=templates)


def explicit(problem, star):
    """The same star with the coefficients of the templates as parameters, and their prior."""
    slopes, templates, flux, ivar = problem
    bounds = Parameters.of_labels([-3] * 2 + [-9] * 2, [3] * 2 + [9] * 2, [0.0] * 4)
    prior = GaussianConstraints(np.eye(4)[2:], np.zeros(2), np.ones(2))
    every = np.concatenate([slopes, templates[star]])
    return Objective(Linear(np.ones(N), every.T), flux[star], ivar[star], bounds, prior)


def test_optimum_and_errors_are_those_of_explicit_coefficients(problem):
    found = levenberg_marquardt(marginal(problem), np.zeros((3, 2)), tolerance=1e-9)
    for star in range(3):
        other = levenberg_marquardt(explicit(problem, star), np.zeros((1, 4)), tolerance=1e-9)
        np.testing.assert_allclose(found.inputs[star], other.inputs[0, :2], atol=1e-7)
        np.testing.assert_allclose(found.covariance[star], other.covariance[0, :2, :2], rtol=1e-6)


def test_chi2_is_that_of_the_whole_covariance(problem):
    _, templates, flux, ivar = problem
    objective, good = marginal(problem), ivar[0] > 0
    values = torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    predicted = objective.predict(values, torch.tensor([1]))
    difference = (flux[1] - predicted.numpy()[0])[good]
    covariance = np.diag(1 / ivar[1, good]) + templates[1][:, good].T @ templates[1][:, good]
    expected = difference @ np.linalg.solve(covariance, difference)
    assert float(objective.chi2(predicted, torch.tensor([1]))[0]) == pytest.approx(expected, rel=1e-9)


def test_gradients_are_those_of_the_loss(problem):
    objective, star = marginal(problem), torch.tensor([2])
    place = torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    _, gradient = objective.loss_and_gradient(place, star)
    for k in range(2):
        step = 1e-5 * torch.eye(2, dtype=torch.float64)[k]
        low, high = (float(objective.loss_and_gradient(place + way * step, star)[0][0]) for way in (-1, 1))
        assert float(gradient[0, k]) == pytest.approx((high - low) / 2e-5, rel=1e-6)


def test_what_is_absorbed_is_what_explicit_coefficients_make(problem):
    objective = marginal(problem)
    values = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    predicted = objective.predict(values, torch.tensor([0]))
    held = explicit(problem, 0)
    free = Parameters.of_labels(*(getattr(held.parameters, s) for s in ("lower", "upper")), [0.3, -0.2, 0, 0],
                                free=[False, False, True, True])  # fmt: skip
    found = levenberg_marquardt(
        Objective(held.predictor, held.flux, held.ivar, free, held.prior), [[0.3, -0.2, 0, 0]], tolerance=1e-9
    )
    expected = found.inputs[0, 2:] @ problem[1][0]
    np.testing.assert_allclose(objective.absorbed(predicted, torch.tensor([0]))[0], expected, atol=1e-7)


def test_a_star_does_not_feel_its_company(problem):
    slopes, templates, flux, ivar = problem
    together = levenberg_marquardt(marginal(problem), np.zeros((3, 2)))
    alone = levenberg_marquardt(
        marginal((slopes, templates[1:2], flux[1:2], ivar[1:2])), np.zeros((1, 2))
    )  # fmt: skip
    np.testing.assert_array_equal(together.inputs[1], alone.inputs[0])


def test_nothing_is_absorbed_without_templates():
    objective = noisy_objective(LinearPredictor())
    assert not objective.absorbed(torch.ones_like(objective.flux), torch.tensor([0])).any()


# -- of spectra --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tilted(tiny_model):
    """A star whose flux is off by a slope in one chip and a step in the other."""
    off = np.r_[1 + 0.03 * np.linspace(-1, 1, 200), np.full(215, 0.98)]
    flux = tiny_model.predict(STAR).flux.value
    return spectrum(tiny_model, flux * off, noise=np.random.default_rng(4)), off


def test_labels_are_right_where_the_continuum_is_not(tiny_model, tilted):
    star, off = tilted
    options = {"normalise": False, "split_latent": "typical", "prior": None}
    trusted, found = (tiny_model.fit(star, continuum_degree=degree, **options) for degree in (None, 1))
    for name, truth in STAR.items():
        assert abs((found.labels[name] - truth) / found.uncertainties[name]) < 3, name
        assert found.uncertainties[name] < trusted.uncertainties[name]  # which are as large as the misfit
    assert found.reduced_chi2 < 1.3 < trusted.reduced_chi2
    clean = tiny_model.predict(found.labels, like=None).flux.value
    np.testing.assert_allclose(found.model_spectrum.flux.value / clean, off, atol=0.01)


def test_both_methods_and_samples_agree(tiny_model, tilted):
    options = {"normalise": False, "continuum_degree": 1, "split_latent": "typical"}
    one, other = (tiny_model.fit(tilted[0], method=method, **options) for method in ("lm", "lbfgs"))
    assert_same_labels(one, other, 0.2)
    posterior = tiny_model.sample(tilted[0], start=one, length=10, seed=1, progress=False)
    assert abs((posterior.labels["teff"] - one.labels["teff"]) / one.uncertainties["teff"]) < 0.5


@pytest.mark.parametrize("degree", [-1, 1.5, 99, True, "high"])
def test_degrees_that_make_no_sense_are_refused(tiny_model, tilted, degree):
    with pytest.raises(ValueError, match="continuum_degree must be a whole number from 0 to 10"):
        tiny_model.fit(tilted[0], continuum_degree=degree)


def test_right_continuum_costs_little(tiny_model):
    star = spectrum(tiny_model, tiny_model.predict(STAR).flux.value, noise=np.random.default_rng(5))
    fit = tiny_model.fit(star, normalise=False, continuum_degree=1)
    assert abs(fit.labels["teff"] - STAR["teff"]) < 4 * fit.uncertainties["teff"]
    assert fit.uncertainties["teff"] < 200 * u.K
    assert SIGMA == pytest.approx(fit.spectrum.uncertainty.array[0])
