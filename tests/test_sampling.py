"""emcee on a posterior that is known: a linear predictor with normal errors."""

import numpy as np
import pytest

from cyclestarnet import GaussianPrior
from cyclestarnet.fitting.sampling import sample_posterior

pytest.importorskip("emcee")

PRIOR = GaussianPrior([4500, 2, 0], np.diag([1e3, 0.01, 0.002]))
TWO_FREE = np.array([True, False, True])


def sample(objective, *, seed=1, centre=None, covariance=None, **options):
    mean, spread = objective.predictor.posterior(objective.flux, objective.ivar, objective.prior)
    centre = mean if centre is None else np.asarray(centre)
    spread = spread if covariance is None else covariance
    options = {"max_steps": 400, "progress": False} | options
    return sample_posterior(objective, centre, spread, rng=np.random.default_rng(seed), **options)


@pytest.fixture(scope="module", params=[None, PRIOR], ids=["flat", "gaussian"])
def long_chain(request, make_objective):
    """About 1000 independent samples, and the mean and covariance that they should have."""
    objective = make_objective(prior=request.param)
    truth = objective.predictor.posterior(objective.flux, objective.ivar, request.param)
    return sample(objective, max_steps=6000, n_walkers=16), *truth


def n_independent(chain):
    return 16 * chain["n_steps"] / chain["autocorrelation_time"].max()


# -- the right distribution ----------------------------------------------------------------
def test_mean_is_that_of_the_posterior(long_chain):
    chain, mean, covariance = long_chain
    deviation = (chain["samples"].mean(0) - mean) / np.sqrt(np.diag(covariance))
    assert (np.abs(deviation) < 4 / np.sqrt(n_independent(chain))).all()


def test_covariance_is_that_of_the_posterior(long_chain):
    chain, _, covariance = long_chain
    size = np.sqrt(np.diag(covariance))
    difference = (np.cov(chain["samples"].T) - covariance) / np.outer(size, size)
    assert (np.abs(difference) < 4 * np.sqrt(2 / n_independent(chain))).all()


def test_sampling_stops_at_50_autocorrelation_times(long_chain):
    chain, _, _ = long_chain
    assert chain["converged"]
    assert 50 * chain["autocorrelation_time"].max() < chain["n_steps"] < 6000
    assert 0.3 < chain["acceptance_fraction"] < 0.8


def test_log_posterior_belongs_to_the_samples(make_objective):
    objective = make_objective(prior=PRIOR)
    chain = sample(objective, max_steps=1000)  # thinned
    assert len(chain["samples"]) < 8 * 500
    np.testing.assert_allclose(chain["log_posterior"], objective.log_posterior(chain["samples"]), rtol=1e-12)


def test_too_short_a_chain_is_not_converged(make_objective):
    chain = sample(make_objective(), max_steps=200)
    assert not chain["converged"]
    assert chain["n_steps"] == 200


def test_burn_in_is_left_out(make_objective):
    """Walkers that start 30 sigma away, and end in the right place."""
    objective = make_objective()
    mean, covariance = objective.predictor.posterior(objective.flux, objective.ivar)
    size = np.sqrt(np.diag(covariance))
    chain = sample(objective, centre=mean - 5 * size, max_steps=1000)
    assert (np.abs(chain["samples"] - mean).max(0) < 5 * size).all()


# -- bounds and fixed labels -----------------------------------------------------------------
def test_samples_stay_within_the_bounds(make_objective):
    """The data want 4600 K, the bound is at 4550 K."""
    objective = make_objective(upper=np.array([4550.0, 4.0, 1.0]))
    samples = sample(objective, centre=[4549.0, 2.2, 0.1])["samples"]
    assert (samples <= objective.upper).all()
    assert samples[:, 0].max() > 4545


def test_walkers_start_within_the_bounds(make_objective):
    """Even if the optimum lies on a bound and the covariance reaches far beyond."""
    objective = make_objective(upper=np.array([4550.0, 4.0, 1.0]))
    wide = np.diag([1e6, 1.0, 1.0])
    chain = sample(objective, centre=[4550.0, 2.2, 0.1], covariance=wide, max_steps=4)
    assert np.isfinite(chain["log_posterior"]).all()


def test_fixed_labels_keep_their_value(make_objective):
    chain = sample(make_objective(free=TWO_FREE), centre=[4600.0, 2.345, 0.1])
    assert (chain["samples"][:, 1] == 2.345).all()
    assert chain["samples"][:, [0, 2]].std(0).min() > 0
    assert len(chain["autocorrelation_time"]) == 2


def test_default_number_of_walkers(make_objective):
    chain = sample(make_objective(free=TWO_FREE), max_steps=20)
    assert len(chain["samples"]) == 2 * (2 + 1) * 10  # half of the steps


def test_too_few_walkers_are_refused(make_objective):
    with pytest.raises(ValueError, match="n_walkers must be at least 6 for 3 free labels, but is 4"):
        sample(make_objective(), n_walkers=4)


# -- the same numbers ----------------------------------------------------------------------------
def test_same_seed_same_chain(make_objective):
    first, second = (sample(make_objective(), max_steps=60)["samples"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_other_seed_other_chain(make_objective):
    first, second = (sample(make_objective(), max_steps=60, seed=seed)["samples"] for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_global_random_state_does_not_matter(make_objective):
    np.random.seed(3)  # noqa: NPY002
    first = sample(make_objective(), max_steps=60)["samples"]
    np.random.seed(4)  # noqa: NPY002
    np.testing.assert_array_equal(sample(make_objective(), max_steps=60)["samples"], first)


# -- the file --------------------------------------------------------------------------------------
def test_resumed_chain_equals_an_uninterrupted_one(make_objective, tmp_path):
    path, whole = tmp_path / "chain.h5", sample(make_objective(), max_steps=120)
    sample(make_objective(), max_steps=70, backend=path)
    resumed = sample(make_objective(), max_steps=120, backend=path, seed=99)
    np.testing.assert_array_equal(resumed["samples"], whole["samples"])


def test_resumed_chain_is_continued_not_repeated(make_objective, tmp_path):
    for max_steps in (150, 250):
        chain = sample(make_objective(), max_steps=max_steps, backend=tmp_path / "chain.h5")
        assert chain["n_steps"] == max_steps


def test_finished_chain_is_read_again(make_objective, tmp_path):
    first, again = (sample(make_objective(), backend=tmp_path / "chain.h5") for _ in range(2))
    assert again["n_steps"] == first["n_steps"] == 400
    np.testing.assert_array_equal(again["samples"], first["samples"])


def test_chain_of_other_labels_is_refused(make_objective, tmp_path):
    sample(make_objective(), max_steps=10, backend=tmp_path / "chain.h5")
    with pytest.raises(ValueError, match=r"incompatible"):
        sample(make_objective(free=TWO_FREE), max_steps=10, backend=tmp_path / "chain.h5")
