"""Zero points that a population tells: planted offsets, and models that were given them."""

from dataclasses import replace

import numpy as np
import pytest

from cyclestarnet import CalibratedModel, GaussianPrior
from cyclestarnet.exceptions import LabelError, SpectrumError
from cyclestarnet.lines import model_differences
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training import learn_zero_points, population_offset
from cyclestarnet.training.zero_points import with_zero_points


# -- the population ---------------------------------------------------------------------
def fits(rng, prior, offset, precision, n=40_000):
    """Fits of a linear Gaussian model to stars of a population, all labels of which are measured off by ``offset``."""
    truth = rng.multivariate_normal(prior.mean, prior.covariance, n)
    noise = np.where(precision > 0, 1 / np.sqrt(np.maximum(precision, 1e-300)), 0.0)
    measured = truth + offset + noise * rng.normal(size=truth.shape)
    covariance = np.linalg.inv(np.diag(precision) + prior.precision)
    labels = (measured * precision + prior.precision @ prior.mean) @ covariance
    return labels, np.broadcast_to(covariance, (n, *covariance.shape))


PRIOR = GaussianPrior([4500.0, 2.0, 0.1], [[250.0**2, 80.0, 5.0], [80.0, 0.5, 0.05], [5.0, 0.05, 0.04]])


def test_offset_is_found_through_the_pull_of_the_prior(rng):
    """The second label is measured worse than the prior knows it, so that fits keep less than half of its offset."""
    offset = np.array([-30.0, 0.1, -0.03])
    labels, covariance = fits(rng, PRIOR, offset, precision=np.array([1e-4, 1.0, 400.0]))
    assert abs((labels[:, 1] - PRIOR.mean[1]).mean()) < 0.6 * offset[1]
    chance = 4 * np.array([270.0, 1.3, 0.22]) / np.sqrt(len(labels))
    np.testing.assert_array_less(np.abs(population_offset(labels, covariance, PRIOR) - offset), chance)


def test_label_that_is_not_measured_gets_no_offset(rng):
    """What is known of it comes from the others, and so would its offset."""
    prior = GaussianPrior([4500.0, 2.0], np.diag([250.0**2, 0.5]))
    labels, covariance = fits(rng, prior, np.array([-30.0, 5.0]), precision=np.array([1e-3, 0.0]))
    found = population_offset(labels, covariance, prior)
    assert found[0] == pytest.approx(-30, abs=6)
    assert abs(found[1]) < 1e-9


def test_few_stars_tell_nothing():
    with pytest.raises(SpectrumError, match="8 or more stars, but there are 3"):
        population_offset(np.zeros((3, 3)), np.zeros((3, 3, 3)), PRIOR)


def test_strange_stars_are_not_the_population(rng):
    """One in a thousand fits has gone wrong: its labels lie at an edge, far from all others."""
    labels, covariance = fits(rng, PRIOR, np.zeros(3), precision=np.array([1e-2, 100.0, 1e4]))
    labels[::1000] = PRIOR.mean + 100 * np.sqrt(np.diag(PRIOR.covariance))
    assert (np.abs(population_offset(labels, covariance, PRIOR)) < 0.02 * np.sqrt(np.diag(PRIOR.covariance))).all()


# -- models -----------------------------------------------------------------------------
OFFSET = np.array([60.0, 0.1, 0.04])


@pytest.fixture(scope="module")
def stars(tiny_model):
    """Spectra of 200 stars that are the model's own, of labels drawn from its prior."""
    rng, labels = np.random.default_rng(8), tiny_model.labels
    values = rng.multivariate_normal(tiny_model.prior.mean, tiny_model.prior.covariance, 200)
    values = values.clip(labels.lower, labels.upper)
    clean = tiny_model.predict(labels.to_quantities(values)).flux.value
    return to_spectrum(rng.normal(clean, 0.01), tiny_model.grid, ivar=np.full(clean.shape, 1e4)), values


def test_spectra_of_labels_are_those_of_labels_and_zero_points(tiny_model):
    model, mean = with_zero_points(tiny_model, OFFSET), np.asarray(tiny_model.prior.mean)
    moved, here = (tiny_model.labels.to_quantities(values) for values in (mean + OFFSET, mean))
    np.testing.assert_allclose(model.predict(here).flux, tiny_model.predict(moved).flux, atol=1e-6)
    same = model.predict(here, domain="synthetic"), tiny_model.predict(here, domain="synthetic")
    np.testing.assert_array_equal(same[0].flux, same[1].flux)  # the emulator has no say in what the networks do
    slopes = model.derivative_spectra(here, domain="observed")["teff"]
    np.testing.assert_allclose(slopes, tiny_model.derivative_spectra(moved, domain="observed")["teff"], atol=1e-8)


@pytest.mark.parametrize("space", ["observed", "synthetic", "emulator"])
def test_fits_of_translated_spectra_find_as_much_less(tiny_model, stars, space):
    """Without a prior, so that it does not pull; the emulator's own labels stay."""
    model, options = with_zero_points(tiny_model, OFFSET), {"method": "lm", "prior": None, "space": space}
    star = stars[0][int(np.argmin((((stars[1] - tiny_model.prior.mean) / OFFSET) ** 2).sum(1)))]
    found = tiny_model.fit(star, **options).values - model.fit(star, **options).values
    expected = 0 * OFFSET if space == "emulator" else OFFSET
    np.testing.assert_allclose(found / OFFSET, expected / OFFSET, atol=0.06)


def test_planted_zero_points_are_taken_off(tiny_model, stars):
    """A model that finds 60 K less of stars of its prior is put right, but for the chance in the mean of 200 stars."""
    learnt = learn_zero_points(with_zero_points(tiny_model, OFFSET), stars[0], progress=False)
    left = (stars[1] - tiny_model.prior.mean).mean(0)
    width = np.sqrt(np.diag(tiny_model.prior.covariance))
    np.testing.assert_array_less(np.abs(learnt.zero_points - left), 0.07 * width)
    assert (OFFSET > 0.14 * width).all()  # so that nothing learnt would show


def test_zero_points_do_not_look_like_lines(tiny_model):
    """Differences are of spectra and their translations; between spectra of the same labels there is more."""
    model, labels = with_zero_points(tiny_model, OFFSET), np.asarray(tiny_model.prior.mean)[None]
    found, plain = (model_differences(m, labels=labels, progress=False).flux for m in (model, tiny_model))
    np.testing.assert_allclose(found, plain, atol=1e-6)
    here = tiny_model.labels.to_quantities(labels)
    both = [model.predict(here, domain=domain).flux.value for domain in ("observed", "synthetic")]
    assert np.abs(both[0] - both[1] - plain).max() > 1e-3


def test_file_keeps_zero_points(tiny_model, tmp_path):
    with_zero_points(tiny_model, OFFSET).save(tmp_path / "model.safetensors")
    model = CalibratedModel.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(model.zero_points, OFFSET)


def test_zero_points_of_other_labels_are_refused(tiny_model):
    with pytest.raises(LabelError, match="3 labels, but zero points of the shape"):
        replace(tiny_model, zero_points=np.zeros(4))
