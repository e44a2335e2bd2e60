"""The posterior of stars against closed forms, on a predictor that is linear in the labels."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from toys import LinearPredictor, data, noisy_objective

from cyclestarnet import GaussianPrior
from cyclestarnet.fitting.parameters import Parameters

PRIOR = GaussianPrior([4500, 2, 0], [[1e4, 10, 0], [10, 0.09, 0], [0, 0, 0.04]])
PRIORS = pytest.mark.parametrize("prior", [None, PRIOR], ids=["flat", "gaussian"])
ERRORS = pytest.mark.parametrize("errors", ["quoted", "minimum", "unknown"])
HERE, THERE = np.array([4550.0, 2.3, 0.05]), np.array([4620.0, 1.8, -0.1])
BOTH = np.stack([HERE, THERE])
STAR = torch.tensor([0])


def tensor(labels):
    return torch.as_tensor(np.atleast_2d(labels))


def loss_and_gradient(objective, labels):
    loss, gradient = objective.loss_and_gradient(tensor(labels), STAR)
    return loss[0].item(), gradient[0].numpy()


def normal_equations(objective, labels):
    flux, slopes = objective.linearise(tensor(labels), STAR)
    return [part[0].numpy() for part in objective.normal_equations(tensor(labels), flux, slopes, STAR)]


def two_stars(**changes):
    """The usual star, and one with other flux and errors."""
    one = noisy_objective(LinearPredictor())
    flux, ivar = data(one)
    return noisy_objective(
        LinearPredictor(), flux=np.stack([flux, flux**2]), ivar=np.stack([ivar, ivar[::-1] / 3]), **changes
    )


# -- values --------------------------------------------------------------------------------
def test_posterior_without_a_prior_is_that_of_independent_normal_errors(make_objective, linear_predictor):
    objective = make_objective()
    flux, ivar = data(objective)
    good = ivar > 0
    true = [norm.logpdf(flux, linear_predictor.flux(at), ivar.clip(1e-9) ** -0.5)[good].sum() for at in BOTH]
    found = objective.log_posterior(BOTH)
    assert found[0] - found[1] == pytest.approx(true[0] - true[1], rel=1e-10)


def test_log_posterior_of_a_perfect_fit_is_zero(make_objective, linear_predictor):
    assert make_objective(flux=linear_predictor.flux(HERE)).log_posterior(HERE)[0] == pytest.approx(0, abs=1e-20)


def test_prior_adds_its_gaussian(make_objective):
    added = make_objective(prior=PRIOR).log_posterior(BOTH) - make_objective().log_posterior(BOTH)
    true = multivariate_normal(PRIOR.mean, PRIOR.covariance).logpdf(BOTH)
    assert added[0] - added[1] == pytest.approx(true[0] - true[1], rel=1e-10)


@PRIORS
@pytest.mark.parametrize("outside", [[3999, 2, 0], [5001, 2, 0], [4500, 4.01, 0], [4500, 2, -1.01], [4500, np.nan, 0]])
def test_log_posterior_outside_the_bounds_is_minus_infinity(make_objective, prior, outside):
    assert make_objective(prior=prior).log_posterior(np.array(outside)) == -np.inf


def test_bounds_belong_to_the_inside(make_objective):
    objective = make_objective()
    ends = np.stack([objective.parameters.lower, objective.parameters.upper])
    assert np.isfinite(objective.log_posterior(ends)).all()


def test_networks_see_only_labels_inside_the_bounds(make_objective, linear_predictor):
    objective = make_objective()
    linear_predictor.asked.clear()
    value = objective.log_posterior(np.array([[4100.0, 5.0, 0.0], HERE, [0.0, 0.0, 0.0]]))
    assert np.isfinite(value).tolist() == [False, True, False]
    assert linear_predictor.asked == [("flux", [HERE.tolist()], [0])]


def test_networks_are_not_called_if_nothing_is_inside(make_objective, linear_predictor):
    objective = make_objective()
    linear_predictor.asked.clear()
    assert objective.log_posterior(np.zeros((2, 3))).tolist() == [-np.inf] * 2
    assert linear_predictor.asked == []


def test_posterior_has_its_maximum_at_the_normal_equations(make_objective, linear_predictor):
    objective = make_objective(prior=PRIOR)
    mean, covariance = linear_predictor.posterior(*data(objective), PRIOR)
    around = mean + 0.1 * np.concatenate([np.diag(np.diag(covariance) ** 0.5), -np.diag(np.diag(covariance) ** 0.5)])
    assert (objective.log_posterior(around) < objective.log_posterior(mean)).all()


@ERRORS
def test_unused_pixels_do_not_matter(make_objective, errors):
    objective = make_objective(errors=errors)
    flux, ivar = data(objective)
    spoilt = make_objective(errors=errors, flux=np.where(ivar > 0, flux, 1e6))
    for one, other in zip(normal_equations(objective, HERE), normal_equations(spoilt, HERE), strict=True):
        np.testing.assert_array_equal(one, other)
    assert loss_and_gradient(spoilt, HERE)[0] == loss_and_gradient(objective, HERE)[0]


@ERRORS
@PRIORS
def test_each_star_has_its_own_data(errors, prior):
    both, stars = two_stars(errors=errors, prior=prior), torch.tensor([1, 0])
    together = both.loss_and_gradient(tensor(BOTH), stars)
    for row, star in enumerate((1, 0)):
        flux, ivar = data(both, star)
        alone = noisy_objective(LinearPredictor(), flux=flux, ivar=ivar, errors=errors, prior=prior)
        loss, gradient = loss_and_gradient(alone, BOTH[row])
        assert loss == pytest.approx(together[0][row].item(), rel=1e-12)
        np.testing.assert_allclose(gradient, together[1][row].numpy(), rtol=1e-10)


def test_rows_of_data_are_stars():
    assert two_stars().n_stars == 2


@pytest.mark.parametrize("given", ["f4", "f8"])
def test_data_are_double_and_keep_all_their_bits(make_objective, given):
    flux, ivar = (array.astype(given) for array in data(make_objective()))
    objective = make_objective(flux=flux, ivar=ivar)
    assert objective.flux.dtype == objective.ivar.dtype == torch.float64
    for found, expected in zip(data(objective), (flux, ivar), strict=True):
        np.testing.assert_array_equal(found, expected)


# -- errors that are larger than quoted -----------------------------------------------------
def minimised_over_scale(objective, labels, lowest):
    """min over s of χ²/2s² + dof ln s, by brute force."""
    flux, ivar = data(objective)
    chi2 = (flux - objective.predictor.flux(labels)) ** 2 @ ivar
    scale = np.geomspace(lowest, 1e3, 2_000_001)
    return (0.5 * chi2 / scale**2 + (np.count_nonzero(ivar) - 3) * np.log(scale)).min()


@pytest.mark.parametrize(("errors", "lowest"), [("minimum", 1.0), ("unknown", 1e-3)])
@pytest.mark.parametrize("quoted", [0.1, 3.0], ids=["too small", "too large"])
def test_loss_has_the_most_likely_scale_of_the_errors(make_objective, errors, lowest, quoted):
    flux, ivar = data(make_objective())
    objective = make_objective(flux=flux, ivar=ivar / quoted**2, errors=errors)
    expected = minimised_over_scale(objective, HERE, lowest)
    assert loss_and_gradient(objective, HERE)[0] == pytest.approx(expected, rel=1e-8)


def test_minimum_leaves_errors_that_hold(make_objective, linear_predictor):
    """Where χ² is below the degrees of freedom."""
    flux, ivar = data(make_objective())
    quoted, minimum = (make_objective(flux=flux, ivar=ivar / 100, errors=e) for e in ("quoted", "minimum"))
    np.testing.assert_array_equal(quoted.log_posterior(BOTH), minimum.log_posterior(BOTH))


def test_degrees_of_freedom_are_used_pixels_less_parameters(make_objective):
    assert make_objective(free=np.array([True, False, True])).dof.tolist() == [34 - 2]  # 6 of 40 are not used


# -- derivatives -----------------------------------------------------------------------------
@ERRORS
@PRIORS
def test_loss_is_minus_the_log_posterior(make_objective, prior, errors):
    objective = make_objective(prior=prior, errors=errors)
    expected = -objective.log_posterior(HERE)[0]
    assert loss_and_gradient(objective, HERE)[0] == pytest.approx(expected, rel=1e-12)
    assert normal_equations(objective, HERE)[0] == pytest.approx(expected, rel=1e-12)


@ERRORS
@PRIORS
def test_gradients_equal_finite_differences(make_objective, prior, errors):
    ivar = data(make_objective())[1]
    objective, steps = make_objective(prior=prior, errors=errors, ivar=4 * ivar), np.diag([1e-3, 1e-6, 1e-6])
    expected = [
        (objective.log_posterior(HERE - h)[0] - objective.log_posterior(HERE + h)[0]) / (2 * h.sum()) for h in steps
    ]
    np.testing.assert_allclose(loss_and_gradient(objective, HERE)[1], expected, rtol=1e-6)
    np.testing.assert_allclose(normal_equations(objective, HERE)[1], expected, rtol=1e-6)


@PRIORS
def test_gauss_newton_is_the_inverse_covariance(make_objective, linear_predictor, prior):
    objective = make_objective(prior=prior)
    _, covariance = linear_predictor.posterior(*data(objective), prior)
    np.testing.assert_allclose(normal_equations(objective, HERE)[2], np.linalg.inv(covariance), rtol=1e-9)


def test_labels_are_left_alone(make_objective):
    labels = HERE.copy()
    objective = make_objective(prior=PRIOR)
    loss_and_gradient(objective, labels), normal_equations(objective, labels), objective.log_posterior(labels)
    np.testing.assert_array_equal(labels, HERE)


class AskedForCoarse(LinearPredictor):
    def jacobian(self, labels, stars=None, *, coarse=False):
        self.coarse = coarse
        return super().jacobian(labels, stars)


@pytest.mark.parametrize(("told", "asked"), [({}, True), ({"coarse": True}, True), ({"coarse": False}, False)])
def test_slopes_may_be_coarse_unless_told_otherwise(told, asked):
    objective = noisy_objective(AskedForCoarse())
    objective.linearise(tensor(HERE), STAR, **told)
    assert objective.predictor.coarse is asked


# -- parameters ----------------------------------------------------------------------------------
LOWER, UPPER, START = np.array([0.0, 0, 0, 0]), np.array([1.0, 2, 3, 4]), np.array([0.2, 0.5, 1.0, 3.0])


def test_free_labels_are_parameters():
    parameters, labels = Parameters.of_labels(LOWER, UPPER, START), np.array([0.3, 0.1, 2.0, 3.5])
    np.testing.assert_array_equal(parameters.values(labels), labels)
    np.testing.assert_array_equal(parameters.labels(labels), labels)
    np.testing.assert_array_equal([parameters.lower, parameters.upper], [LOWER, UPPER])


def test_fixed_labels_stay_where_they_start():
    parameters = Parameters.of_labels(LOWER, UPPER, START, free=np.array([True, False, True, False]))
    np.testing.assert_array_equal(parameters.labels(np.array([[0.9, 2.5]])), [[0.9, 0.5, 2.5, 3.0]])


def test_tied_labels_keep_their_differences_and_stay_within_all_bounds():
    """The second and fourth start at 0.5 and 3 and may move by −0.5 to 1.5 and −3 to 1."""
    parameters = Parameters.of_labels(LOWER, UPPER, START, tied=[(1, 3)])
    np.testing.assert_array_equal(parameters.labels(np.array([0.1, 0.2, 0.7])), [0.1, 1.2, 0.2, 3.7])
    assert (parameters.lower[-1], parameters.upper[-1]) == (-0.5, 1.0)


def test_a_fixed_member_does_not_move_with_its_group():
    free = np.array([True, True, True, False])
    parameters = Parameters.of_labels(LOWER, UPPER, START, free=free, tied=[(1, 3)])
    np.testing.assert_array_equal(parameters.labels(np.array([0.1, 0.2, 0.7])), [0.1, 1.2, 0.2, 3.0])


def test_labels_outside_go_to_the_nearest_parameters():
    parameters = Parameters.of_labels(LOWER, UPPER, START, tied=[(1, 3)])
    np.testing.assert_allclose(parameters.values(np.array([9.0, 0.6, 0.5, 3.3])), [1.0, 0.5, 0.2], rtol=1e-12)


def test_parameters_of_tensors_are_those_of_arrays(rng):
    parameters = Parameters.of_labels(LOWER, UPPER, START, tied=[(1, 3)])
    values = rng.random((5, 3))
    np.testing.assert_array_equal(parameters.labels(torch.from_numpy(values)).numpy(), parameters.labels(values))


def test_parameters_of_a_star_do_not_depend_on_its_company(rng):
    """To the last bit, also in groups of many."""
    n = 24
    parameters = Parameters.of_labels(np.zeros(n), np.ones(n), rng.random(n), tied=[range(0, 13), range(13, 22)])
    labels = rng.random((7, n))
    together = parameters.values(labels)
    np.testing.assert_array_equal(together, np.concatenate([parameters.values(row[None]) for row in labels]))
    np.testing.assert_array_equal(parameters.labels(together)[3], parameters.labels(together[3]))


@PRIORS
@ERRORS
def test_derivatives_by_tied_parameters_equal_finite_differences(make_objective, prior, errors):
    objective = make_objective(prior=prior, errors=errors, tied=[(1, 2)], start=HERE)
    at, steps = np.array([4560.0, 0.05]), np.diag([1e-3, 1e-6])
    expected = [
        (objective.log_posterior(at - h)[0] - objective.log_posterior(at + h)[0]) / (2 * h.sum()) for h in steps
    ]
    np.testing.assert_allclose(loss_and_gradient(objective, at)[1], expected, rtol=1e-6)
    np.testing.assert_allclose(normal_equations(objective, at)[1], expected, rtol=1e-6)


# -- what cannot be ---------------------------------------------------------------------------------
def test_parameters_must_be_of_the_labels_of_the_predictor(make_objective):
    with pytest.raises(ValueError, match="parameters of 2 labels, but the predictor has 3"):
        make_objective(parameters=Parameters.of_labels(np.zeros(2), np.ones(2), np.zeros(2)))


def test_unknown_kind_of_errors_is_refused(make_objective):
    with pytest.raises(ValueError, match="errors must be one of quoted, minimum, unknown, but is 'scaled'"):
        make_objective(errors="scaled")
