"""Chains that follow gradients: exact distributions of many shapes, and what must stop them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shapes import SHAPES, agreement
from stars import SIGMA, STAR, spectrum
from toys import LinearPredictor, noisy_objective

from cyclestarnet import CalibratedModel, datasets
from cyclestarnet.fitting.nuts import sample_by_gradients
from cyclestarnet.fitting.parameters import Parameters

pytest.importorskip("mici")


class Known:
    """What the sampler asks of an objective, of a density in closed form."""

    n_stars, predictor = 1, SimpleNamespace(device="cpu")

    def __init__(self, shape):
        self.shape, k = shape, len(shape.lower)
        self.parameters = Parameters(np.zeros(k), np.eye(k), shape.lower, shape.upper)

    def loss_and_gradient(self, values, stars):
        x, step = values.numpy(), 1e-6 * np.eye(values.shape[1])
        slopes = self.shape.log_density(x + step) - self.shape.log_density(x - step)
        return torch.tensor(-self.shape.log_density(x)), torch.tensor(-slopes / 2e-6)[None]


def chain_of(objective, centre, covariance, **options):
    return sample_by_gradients(objective, centre, covariance, rng=np.random.default_rng(3), **options)


# -- the right distribution --------------------------------------------------------------------
@pytest.mark.parametrize("name", ["correlated Gaussian, 8", "cut at a bound", "banana", "not constrained"])
def test_samples_have_the_exact_distribution(name):
    shape = SHAPES[name]
    chain = chain_of(Known(shape), shape.centre, shape.covariance, n_walkers=8, length=100, max_steps=300)
    p, tau, n = agreement(shape, chain)
    assert n >= 75
    assert p > 0.005, f"p {p:.1e} of {n} draws, {tau:.1f} steps apart"


def test_posterior_of_a_linear_model():
    truth = LinearPredictor()
    objective = noisy_objective(truth)
    mean, covariance = truth.posterior(objective.flux[0].numpy(), objective.ivar[0].numpy())
    chain = chain_of(objective, mean, covariance)
    size, n = np.sqrt(np.diag(covariance)), len(chain.samples) / chain.autocorrelation_time.max()
    assert chain.converged
    np.testing.assert_allclose(chain.samples.mean(0), mean, atol=5 * size.max() / n**0.5)
    np.testing.assert_allclose(
        np.cov(chain.samples.T) / np.outer(size, size), covariance / np.outer(size, size), atol=0.2
    )
    np.testing.assert_allclose(chain.log_posterior, objective.log_posterior(chain.samples), rtol=0, atol=1e-9)


def test_same_seed_same_samples():
    shape = SHAPES["banana"]
    first, again = (chain_of(Known(shape), shape.centre, shape.covariance, max_steps=15) for _ in range(2))
    np.testing.assert_array_equal(first.samples, again.samples)
    assert (first.n_steps, first.n_walkers, first.converged) == (15, 4, False)


# -- what is wrong -----------------------------------------------------------------------------
def test_places_without_a_density_are_counted_and_never_kept():
    shape = SHAPES["correlated Gaussian, 8"]
    objective = Known(shape)
    good = objective.loss_and_gradient

    def holed(values, stars):
        loss, gradient = good(values, stars)
        return (loss if values[0, 0] < 2 else loss * np.nan), gradient

    objective.loss_and_gradient = holed
    chain = chain_of(objective, shape.centre, shape.covariance, max_steps=60)
    assert chain.n_nan > 0
    assert chain.samples[:, 0].max() < 2
    assert np.isfinite(chain.log_posterior).all()


def test_no_start_with_a_density_is_said():
    shape = SHAPES["banana"]
    objective = Known(shape)
    objective.loss_and_gradient = lambda values, stars: (torch.full((1,), np.nan), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="not finite around the centre"):
        chain_of(objective, shape.centre, shape.covariance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_walkers": 1}, "n_walkers must be at least 2"),
        ({"length": 3}, "length must be 10"),
        ({"max_steps": 0}, "max_st"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    shape = SHAPES["banana"]
    with pytest.raises(ValueError, match=message):
        chain_of(Known(shape), shape.centre, shape.covariance, **options)


def test_a_survey_of_stars_is_refused():
    objective = noisy_objective(LinearPredictor())
    object.__setattr__(objective, "flux", objective.flux.repeat(2, 1))
    with pytest.raises(ValueError, match="one star can be sampled, but the objective has 2"):
        chain_of(objective, [0.0, 0.0], np.eye(2))


# -- of a spectrum -----------------------------------------------------------------------------
def test_a_star_has_the_same_posterior_by_both_samplers(tiny_model, rng):
    star = spectrum(tiny_model, rng.normal(tiny_model.predict(STAR).flux.value, SIGMA))
    fitted = tiny_model.fit(star, method="lm")
    chains = [tiny_model.sample(star, start=fitted, sampler=name, seed=1, progress=False) for name in ("emcee", "nuts")]
    for name in STAR:
        values = [chain.samples[name].value for chain in chains]
        width = values[0].std()
        assert abs(values[0].mean() - values[1].mean()) < 0.2 * width, name
        assert values[1].std() == pytest.approx(width, rel=0.2), name


def test_nuts_keeps_no_backend(tmp_path):
    with pytest.raises(ValueError, match="keeps no backend"):
        CalibratedModel.from_pretrained().sample(datasets.k_giant(), sampler="nuts", backend=tmp_path / "chain.h5")
    with pytest.raises(ValueError, match="sampler must be one of 'emcee', 'nuts', but is 'stan'"):
        CalibratedModel.from_pretrained().sample(datasets.k_giant(), sampler="stan")
