"""Chains of posteriors of all shapes against the exact distributions, and what the sampler expects of them."""

import numpy as np
import pytest
from scipy import stats
from shapes import SHAPES, agreement
from toys import GaussianLine, LinearPredictor, noisy_objective

from cyclestarnet.fitting.approximation import Approximation, approximate
from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.parameters import Parameters
from cyclestarnet.fitting.sampling import sample_posterior


# -- the right distribution, however wrong the approximation --------------------------------
@pytest.mark.parametrize("name", SHAPES)
def test_samples_have_the_exact_distribution(name):
    pytest.importorskip("emcee")
    shape = SHAPES[name]
    chain = sample_posterior(
        shape.log_density, shape.lower, shape.upper, shape.centre, shape.covariance,
        rng=np.random.default_rng(5), n_walkers=40, max_steps=2000,
    )  # fmt: skip
    p, tau, n = agreement(shape, chain)
    assert n >= 150
    assert p > 0.005, f"p {p:.1e} of {n} draws, {tau:.1f} steps apart"


@pytest.mark.parametrize("name", ["correlated Gaussian, 8", "cut at a bound", "falling off from a bound"])
def test_short_chains_together_have_the_exact_distribution(name):
    """Forty chains of ten autocorrelation times, as ranks are taken from, and thirty samples of each."""
    pytest.importorskip("emcee")
    shape, rng, draws = SHAPES[name], np.random.default_rng(1), []
    for seed in range(40):
        chain = sample_posterior(
            shape.log_density, shape.lower, shape.upper, shape.centre, shape.covariance,
            rng=np.random.default_rng(seed), n_walkers=40, length=10, check_every=10,
        )  # fmt: skip
        assert chain.converged
        draws.append(rng.choice(chain.samples, 30, replace=False))
    for function, cumulative in shape.known.values():
        assert stats.kstest(function(np.concatenate(draws)), cumulative).pvalue > 0.005


# -- the approximation -----------------------------------------------------------------------
def truth_of(near, k):
    """Cumulative distribution of coordinate k that `log_density` implies within the bounds of two coordinates."""
    axes = [np.linspace(low, high, 801) for low, high in zip(near.lower, near.upper, strict=True)]
    density = np.exp(near.log_density(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)))
    marginal = density.reshape(801, 801).sum(1 - k)
    total = np.concatenate([[0], np.cumsum(0.5 * (marginal[1:] + marginal[:-1]))])
    return lambda v: np.interp(v, axes[k], total / total[-1])


@pytest.mark.parametrize("upper", [[6.0, 6.0], [0.5, 6.0], [-1.0, 0.2]])
def test_draws_have_the_density_that_is_claimed(upper):
    """Also where bounds cut off a part of it, or the centre lies on the bound."""
    near = Approximation([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]], [-6.0, -6.0], upper)
    draws = near.draw(50_000, np.random.RandomState(1))
    assert (draws <= near.upper).all()
    for k in (0, 1):
        assert stats.kstest(draws[:, k], truth_of(near, k)).pvalue > 0.001


def test_tails_are_heavier_than_those_of_a_gaussian():
    near = Approximation([0.0], [[1.0]], [-50.0], [50.0])
    fall = near.log_density([[0.0]]) - near.log_density([[10.0]])
    assert 5 < fall[0] < 25  # of a Gaussian, 50


def test_bounds_hold_what_is_not_constrained():
    """It is drawn from all of the range, and one draw in ten or more is within it."""
    near = Approximation([0.9] * 6, np.eye(6) * 1e8, [-1.0] * 6, [1.0] * 6)
    assert np.abs(near.centre).max() < 0.01
    assert near.draw(200, np.random.RandomState(1)).std() == pytest.approx(0.54, abs=0.05)


def test_draws_that_find_no_place_are_outside():
    """The bounds are a needle's eye: the sampler refuses such proposals."""
    near = Approximation([0.0], [[1.0]], [-1.0], [1.0])
    near.centre = np.array([50.0])
    assert (near.draw(5, np.random.RandomState(1)) > 1).all()


def test_approximation_of_a_linear_model_is_its_posterior():
    truth = LinearPredictor()
    objective = noisy_objective(truth)
    mean, covariance = truth.posterior(objective.flux[0].numpy(), objective.ivar[0].numpy())
    centre, found = approximate(objective, mean)
    np.testing.assert_array_equal(centre, mean)
    size = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found / np.outer(size, size), covariance / np.outer(size, size), atol=1e-3)


def test_approximation_at_a_bound_is_as_wide_as_the_slope():
    """The optimum is far beyond: the density falls off by e within the width."""
    line = GaussianLine()
    flux = line.flux(np.array([0.9, 30.0, 4.0]))
    parameters = Parameters.of_labels([0, 29, 3], [0.5, 31, 5], [0.5, 30, 4], free=[True, False, False])
    objective = Objective(line, flux, np.full(60, 1e4), parameters)
    _, covariance = approximate(objective, [0.5])
    fall = objective.log_posterior([[0.5]]) - objective.log_posterior([[0.5 - np.sqrt(covariance[0, 0])]])
    assert fall[0] == pytest.approx(1, rel=0.1)


def test_approximation_without_data_is_finite():
    parameters = Parameters.of_labels([0, 29, 3], [0.5, 31, 5], [0.4, 30, 4])
    objective = Objective(GaussianLine(), np.ones(60), np.zeros(60), parameters)
    _, covariance = approximate(objective, [0.4, 30.0, 4.0])
    assert (np.sqrt(np.diag(covariance)) > parameters.upper - parameters.lower).all()
    assert np.isfinite(covariance).all()
