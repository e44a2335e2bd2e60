"""The optimiser against normal equations and SciPy's least squares, and the coverage of its errors."""

import numpy as np
import pytest
from scipy.optimize import least_squares, lsq_linear

from cyclestarnet import GaussianPrior
from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.solvers import minimise

CENTRE = np.array([4500.0, 2.0, 0.0])
PRIORS = {"flat": None, "gaussian": GaussianPrior(CENTRE, np.diag([1e3, 0.01, 0.002]))}
STARTS = {"centre": CENTRE, "corner": [4001, 3.9, -0.99], "other corner": [4999, 0.01, -0.99], "outside": [9000, -3, 0]}


class GaussianLine:
    """One line: depth, centre and width in pixels. Not linear, and every derivative is known."""

    n_labels, n_pixels = 3, 60
    pixel = np.arange(60.0)

    def flux(self, labels):
        depth, centre, width = np.moveaxis(np.asarray(labels)[..., None], -2, 0)
        return 1 - depth * np.exp(-0.5 * ((self.pixel - centre) / width) ** 2)

    def jacobian(self, labels):
        depth, centre, width = labels
        offset = (self.pixel - centre) / width
        profile = np.exp(-0.5 * offset**2)
        slopes = [-profile, -depth * profile * offset / width, -depth * profile * offset**2 / width]
        return 1 - depth * profile, np.stack(slopes, axis=1)

    def pullback(self, labels):
        flux, slopes = self.jacobian(labels)
        return flux, lambda cotangent: slopes.T @ cotangent


TRUE, SIGMA = np.array([0.4, 31.3, 3.2]), 0.02
LOWER, UPPER = np.array([0.05, 25.0, 1.0]), np.array([0.9, 35.0, 8.0])


def line(flux, *, predictor=None, **changes):
    parts = {"lower": LOWER, "upper": UPPER, "free": np.ones(3, bool), "prior": None} | changes
    return Objective(predictor or GaussianLine(), flux, np.full(60, SIGMA**-2), **parts)


@pytest.fixture
def noisy(rng):
    return rng.normal(GaussianLine().flux(TRUE), SIGMA)


def size(covariance):
    return np.sqrt(np.diag(covariance))


# -- against the normal equations ------------------------------------------------------------
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_optimum_of_a_linear_predictor(make_objective, linear_predictor, prior, start):
    objective = make_objective(prior=prior)
    mean, covariance = linear_predictor.posterior(objective.flux, objective.ivar, prior)
    found = minimise(objective, start)
    assert found.success
    np.testing.assert_allclose((found.labels - mean) / size(covariance), 0, atol=0.02)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_fixed_label_is_conditioned_on(make_objective, linear_predictor, prior):
    """The optimum of the others moves along the posterior; the block of the precision is inverted."""
    objective, at = make_objective(prior=prior, free=np.array([True, False, True])), 2.5
    mean, covariance = linear_predictor.posterior(objective.flux, objective.ivar, prior)
    moved = mean + covariance[:, 1] / covariance[1, 1] * (at - mean[1])
    block = np.linalg.inv(np.linalg.inv(covariance)[np.ix_([0, 2], [0, 2])])
    found = minimise(objective, [4500, at, 0])
    assert found.labels[1] == at
    np.testing.assert_allclose((found.labels - moved) / size(covariance), 0, atol=0.02)
    np.testing.assert_allclose(found.covariance[np.ix_([0, 2], [0, 2])], block, rtol=1e-9)


def test_fixed_label_has_no_covariance(make_objective):
    found = minimise(make_objective(free=np.array([True, False, True])), CENTRE)
    assert not found.covariance[1].any()
    assert not found.covariance[:, 1].any()


# -- against SciPy -----------------------------------------------------------------------------
@pytest.mark.parametrize("start", [TRUE, [0.1, 28, 6], [0.8, 34, 1.2]], ids=["near", "far", "farther"])
def test_optimum_of_a_line_equals_least_squares(noisy, start):
    expected = least_squares(
        lambda y: (GaussianLine().flux(y) - noisy) / SIGMA, TRUE, xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    covariance = np.linalg.inv(expected.jac.T @ expected.jac)
    found = minimise(line(noisy), start)
    assert found.success
    np.testing.assert_allclose((found.labels - expected.x) / size(covariance), 0, atol=0.02)
    np.testing.assert_allclose(found.covariance / np.outer(size(covariance), size(covariance)),
                               covariance / np.outer(size(covariance), size(covariance)), atol=0.01)  # fmt: skip


def test_optimum_at_a_bound_equals_bounded_least_squares(make_objective):
    """The data want 4600 K; they may not."""
    objective = make_objective(upper=np.array([4300.0, 4.0, 1.0]))
    weight = np.sqrt(objective.ivar)
    design, target = (
        objective.predictor.matrix * weight[:, None],
        (objective.flux - objective.predictor.offset) * weight,
    )
    scale = np.array([1000, 1, 1])
    expected = lsq_linear(design * scale, target, (objective.lower / scale, objective.upper / scale)).x * scale
    assert expected[0] == pytest.approx(4300)
    found = minimise(objective, CENTRE)
    np.testing.assert_allclose((found.labels - expected) / size(found.covariance), 0, atol=0.1)


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({}, [False] * 3),
        ({"upper": np.array([4300.0, 4, 1])}, [True, False, False]),
        ({"lower": np.array([4000.0, 2.5, -1])}, [False, True, False]),
        ({"upper": np.array([4300.0, 4, 1]), "free": np.array([False, True, True])}, [False] * 3),
    ],
    ids=["none", "upper", "lower", "fixed"],
)
def test_labels_at_a_bound_are_flagged(make_objective, change, flags):
    objective = make_objective(**change)
    start = np.array([4300.0 if "free" in change else 4200.0, 3.7 if "lower" in change else 2.2, 0.0])
    assert minimise(objective, start).at_bound.tolist() == flags


@pytest.mark.parametrize("value", [0.2, 0.6])
def test_no_label_leaves_its_bounds(noisy, value):
    """Wherever the bounds of the depth are; the true one is 0.4."""
    lower, upper = LOWER.copy(), UPPER.copy()
    (upper if value < 0.4 else lower)[0] = value
    found = minimise(line(noisy, lower=lower, upper=upper), TRUE)
    assert (found.labels >= lower).all()
    assert (found.labels <= upper).all()
    assert found.at_bound.tolist() == [True, False, False]


# -- what the data do not tell -------------------------------------------------------------------
class Blind(GaussianLine):
    """The last label changes nothing."""

    def flux(self, labels):
        labels = np.array(labels, dtype=float)
        labels[..., 2] = 3.2
        return super().flux(labels)

    def jacobian(self, labels):
        flux, slopes = super().jacobian(np.array([*labels[:2], 3.2]))
        return flux, slopes * [1, 1, 0]


def test_unconstrained_label_is_as_uncertain_as_its_range(noisy):
    found = minimise(line(noisy, predictor=Blind()), TRUE)
    assert found.success
    assert size(found.covariance)[2] == pytest.approx((UPPER - LOWER)[2] / 12**0.5)


def test_unconstrained_label_leaves_the_others_alone(noisy):
    blind = minimise(line(noisy, predictor=Blind()), TRUE)
    fixed = minimise(line(noisy, free=np.array([True, True, False])), TRUE * [1, 1, 0] + [0, 0, 3.2])
    np.testing.assert_allclose(blind.covariance[:2, :2], fixed.covariance[:2, :2], rtol=0.01)
    np.testing.assert_allclose((blind.labels - fixed.labels)[:2] / size(fixed.covariance)[:2], 0, atol=0.05)


# -- the report ------------------------------------------------------------------------------------
class Counting(GaussianLine):
    n_calls = 0

    def pullback(self, labels):
        self.n_calls += 1
        return super().pullback(labels)


def test_evaluations_are_counted(noisy):
    predictor = Counting()
    assert minimise(line(noisy, predictor=predictor), [0.1, 28, 6]).n_evaluations == predictor.n_calls > 1


def test_rounds_that_run_out_are_no_success(noisy):
    found = minimise(line(noisy), [0.1, 28, 6], max_rounds=1)
    assert not found.success
    assert found.message != "converged"


class Broken(GaussianLine):
    def pullback(self, labels):
        return np.full(60, np.nan), lambda cotangent: np.full(3, np.nan)


def test_flux_that_is_not_finite_is_no_success(noisy):
    found = minimise(line(noisy, predictor=Broken()), TRUE)
    assert not found.success
    assert found.message == "the objective is not finite"


def test_start_is_left_alone(noisy):
    start = np.array([0.1, 50.0, 6.0])
    minimise(line(noisy), start)
    assert start.tolist() == [0.1, 50.0, 6.0]


def test_looser_tolerance_costs_less_and_stays_close(noisy):
    loose, tight = (minimise(line(noisy), [0.1, 28, 6], tolerance=t) for t in (1.0, 1e-6))
    assert loose.n_evaluations <= tight.n_evaluations
    np.testing.assert_allclose((loose.labels - tight.labels) / size(tight.covariance), 0, atol=1.5)


# -- coverage ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pulls():
    """(found - true) / error of 200 stars with other labels each."""
    rng, rows = np.random.default_rng(12), []
    for _ in range(200):
        true = rng.uniform([0.3, 29, 2.5], [0.6, 33, 4])
        found = minimise(line(rng.normal(GaussianLine().flux(true), SIGMA)), [0.4, 30, 3])
        rows.append((found.labels - true) / size(found.covariance))
    return np.array(rows)


def test_errors_cover_68_percent(pulls):
    """Within the 0.3 % tails of the binomial distribution, for each label."""
    within = (np.abs(pulls) < 1).mean(0)
    assert (np.abs(within - 0.683) < 3 * np.sqrt(0.683 * 0.317 / 200)).all()


def test_pulls_have_unit_width_and_no_bias(pulls):
    assert (np.abs(pulls.std(0) - 1) < 3 / np.sqrt(2 * 200)).all()
    assert (np.abs(pulls.mean(0)) < 3 / np.sqrt(200)).all()
