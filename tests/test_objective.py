"""The posterior of one star against closed forms, on a predictor that is linear in the labels."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from cyclestarnet import GaussianPrior

PRIOR = GaussianPrior([4500, 2, 0], [[1e4, 10, 0], [10, 0.09, 0], [0, 0, 0.04]])
HERE, THERE = np.array([4550.0, 2.3, 0.05]), np.array([4620.0, 1.8, -0.1])


class Watched:
    """A predictor that keeps the labels it was asked for."""

    def __init__(self, predictor):
        self.predictor, self.n_labels, self.seen = predictor, predictor.n_labels, []

    def flux(self, labels):
        self.seen.extend(np.atleast_2d(labels).tolist())
        return self.predictor.flux(labels)


# -- values --------------------------------------------------------------------------------
def test_log_likelihood_is_that_of_independent_normal_errors(make_objective, linear_predictor):
    objective, good = make_objective(), make_objective().ivar > 0
    true = [
        norm.logpdf(objective.flux, linear_predictor.flux(at), objective.ivar.clip(1e-9) ** -0.5)[good].sum()
        for at in (HERE, THERE)
    ]
    found = objective.log_likelihood(np.stack([HERE, THERE]))
    assert found[0] - found[1] == pytest.approx(true[0] - true[1], rel=1e-10)


def test_log_likelihood_of_a_perfect_fit_is_zero(make_objective, linear_predictor):
    assert make_objective(flux=linear_predictor.flux(HERE)).log_likelihood(HERE) == 0


def test_log_prior_is_the_gaussian_within_the_bounds(make_objective):
    objective, true = make_objective(prior=PRIOR), multivariate_normal(PRIOR.mean, PRIOR.covariance)
    found = objective.log_prior(HERE) - objective.log_prior(THERE)
    assert found == pytest.approx(true.logpdf(HERE) - true.logpdf(THERE), rel=1e-10)


@pytest.mark.parametrize("prior", [None, PRIOR], ids=["flat", "gaussian"])
@pytest.mark.parametrize("outside", [[3999, 2, 0], [5001, 2, 0], [4500, 4.01, 0], [4500, 2, -1.01], [4500, np.nan, 0]])
def test_log_prior_outside_the_bounds_is_minus_infinity(make_objective, prior, outside):
    assert make_objective(prior=prior).log_prior(np.array(outside)) == -np.inf


def test_bounds_belong_to_the_inside(make_objective):
    objective = make_objective()
    assert objective.log_prior(np.stack([objective.lower, objective.upper])).tolist() == [0, 0]


def test_log_posterior_is_the_sum(make_objective):
    objective, labels = make_objective(prior=PRIOR), np.stack([HERE, THERE])
    expected = objective.log_likelihood(labels) + objective.log_prior(labels)
    np.testing.assert_allclose(objective.log_posterior(labels), expected, rtol=1e-14)


def test_networks_see_only_labels_inside_the_bounds(make_objective, linear_predictor):
    watched = Watched(linear_predictor)
    value = make_objective(predictor=watched).log_posterior(np.array([[4100.0, 5.0, 0.0], HERE, [0.0, 0.0, 0.0]]))
    assert np.isfinite(value).tolist() == [False, True, False]
    assert watched.seen == [HERE.tolist()]


def test_networks_are_not_called_if_nothing_is_inside(make_objective, linear_predictor):
    watched = Watched(linear_predictor)
    assert make_objective(predictor=watched).log_posterior(np.zeros((2, 3))).tolist() == [-np.inf] * 2
    assert watched.seen == []


def test_posterior_has_its_maximum_at_the_normal_equations(make_objective, linear_predictor):
    objective = make_objective(prior=PRIOR)
    mean, covariance = linear_predictor.posterior(objective.flux, objective.ivar, PRIOR)
    around = mean + 0.1 * np.concatenate([np.diag(np.diag(covariance) ** 0.5), -np.diag(np.diag(covariance) ** 0.5)])
    assert (objective.log_posterior(around) < objective.log_posterior(mean)).all()


def test_unused_pixels_do_not_matter(make_objective):
    objective = make_objective()
    spoilt = make_objective(flux=np.where(objective.ivar > 0, objective.flux, 1e6))
    assert spoilt.log_likelihood(HERE) == objective.log_likelihood(HERE)
    assert spoilt.value_and_gradient(HERE)[0] == objective.value_and_gradient(HERE)[0]


# -- derivatives -----------------------------------------------------------------------------
@pytest.mark.parametrize("prior", [None, PRIOR], ids=["flat", "gaussian"])
def test_value_is_minus_the_log_posterior(make_objective, prior):
    objective = make_objective(prior=prior)
    assert objective.value_and_gradient(HERE)[0] == pytest.approx(-objective.log_posterior(HERE)[0], rel=1e-12)


@pytest.mark.parametrize("prior", [None, PRIOR], ids=["flat", "gaussian"])
def test_gradient_equals_finite_differences(make_objective, prior):
    objective, steps = make_objective(prior=prior), np.diag([0.1, 1e-3, 1e-3])
    expected = [
        (objective.log_posterior(HERE - h)[0] - objective.log_posterior(HERE + h)[0]) / (2 * h.sum()) for h in steps
    ]
    np.testing.assert_allclose(objective.value_and_gradient(HERE)[1], expected, rtol=1e-6)


@pytest.mark.parametrize("prior", [None, PRIOR], ids=["flat", "gaussian"])
def test_gauss_newton_is_the_inverse_covariance(make_objective, linear_predictor, prior):
    objective = make_objective(prior=prior)
    _, covariance = linear_predictor.posterior(objective.flux, objective.ivar, prior)
    np.testing.assert_allclose(objective.gauss_newton(HERE), np.linalg.inv(covariance), rtol=1e-9)


# -- priors ------------------------------------------------------------------------------------
def test_distance_of_the_prior_is_that_of_mahalanobis():
    expected = [(x - PRIOR.mean) @ np.linalg.inv(PRIOR.covariance) @ (x - PRIOR.mean) for x in (HERE, THERE)]
    np.testing.assert_allclose(PRIOR.distance2(np.stack([HERE, THERE])), expected, rtol=1e-10)


def test_prior_keeps_a_copy():
    mean = np.zeros(2)
    prior = GaussianPrior(mean, np.eye(2))
    mean += 1
    assert prior.mean.tolist() == [0, 0]


def test_units_of_very_different_size_are_no_hindrance():
    assert GaussianPrior([0, 0], np.diag([1e8, 1e-12])).distance2(np.array([1e4, 1e-6])) == pytest.approx(2)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        ([0, 0], np.eye(3), r"a mean \(n,\) and a covariance \(n, n\), but has \(2,\), \(3, 3\)"),
        ([[0, 0]], np.eye(2), "a prior needs a mean"),
        ([0, 0], [[1, 0.5], [0.1, 1]], "symmetric and positive definite"),
        ([0, 0], [[1, 2], [2, 1]], "symmetric and positive definite"),
        ([0, 0], [[1, 1], [1, 1]], "symmetric and positive definite"),
        ([0, 0], [[1, 0], [0, 0]], "symmetric and positive definite"),
        ([0, 0], [[1, 0], [0, -1]], "symmetric and positive definite"),
        ([0, np.nan], np.eye(2), "finite"),
    ],
)
def test_impossible_priors_are_refused(mean, covariance, message):
    with pytest.raises(ValueError, match=message):
        GaussianPrior(mean, covariance)


def test_prior_must_have_the_labels_of_the_predictor(make_objective):
    with pytest.raises(ValueError, match="prior of 2 labels, but the predictor has 3"):
        make_objective(prior=GaussianPrior([0, 0], np.eye(2)))
