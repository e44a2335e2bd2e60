"""First guesses and expected derivatives: exact where they can be, harmless where they cannot."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stars import assert_same_labels, observed, quantities, spectrum
from tiny import TINY_NETWORK

from cyclestarnet import CalibratedModel, GaussianPrior
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.predictor import ObservedPredictor
from cyclestarnet.networks.translation import TranslationNetwork
from cyclestarnet.networks.translator import Translator
from cyclestarnet.training.shortcuts import learn_shortcuts

LOWER, UPPER = np.array([4000.0, 0.5, -1.0]), np.array([5500.0, 3.5, 0.5])
PRIOR = GaussianPrior([4750, 2, -0.25], [[3e4, 40, 0], [40, 0.2, -0.02], [0, -0.02, 0.04]])
SPLIT_LATENT = np.linspace(-1, 1, 20).reshape(2, 10)


class FluxAsLatent(Translator):
    """The latent of a spectrum is its flux, magnified."""

    def encode_synth(self, flux):
        return 1e4 * (np.asarray(flux, dtype=float)[:, :30] - 1)


@pytest.fixture(scope="module", autouse=True)
def as_many_as_users():
    """Derivatives are learnt from as many draws as outside of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cyclestarnet.training.shortcuts.N_SLOPES", 300)
        yield


@pytest.fixture(scope="module")
def linear():
    """An emulator and a translation that are linear, so that spectra are linear in the labels, and their shortcuts."""
    torch.manual_seed(3)
    emulator = Emulator(LOWER, UPPER, 415, hidden=())
    network = TranslationNetwork(replace(TINY_NETWORK, slope=1.0, latent_norm=False))
    with torch.no_grad():
        for layer in emulator.layers:
            layer.weight.normal_(0, 0.1)
            layer.bias.fill_(1.0)
    translator = FluxAsLatent(network, 0.9, 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cyclestarnet.networks.predictor.has_fast_bfloat16", lambda device: False)
        return emulator, translator, learn_shortcuts(emulator, translator, PRIOR, LOWER, UPPER, SPLIT_LATENT)


@pytest.fixture
def labels(rng):
    return rng.multivariate_normal(PRIOR.mean, PRIOR.covariance, 20).clip(LOWER, UPPER)


def test_guess_is_exact_where_latents_are_linear_in_the_labels(linear, labels):
    emulator, translator, shortcuts = linear
    with torch.no_grad():
        latents = translator.encode_synth(emulator(torch.tensor(labels, dtype=torch.float32)))
    offset = (shortcuts.first_guess(latents) - labels) / np.sqrt(np.diag(PRIOR.covariance))
    np.testing.assert_allclose(offset, 0, atol=1e-3)


def test_expected_slopes_are_exact_where_spectra_are_linear_in_the_labels(linear, labels):
    """But for a ridge of 0.1 / 300."""
    emulator, translator, shortcuts = linear
    _, true = ObservedPredictor(emulator, translator, SPLIT_LATENT).jacobian(labels)
    found = shortcuts.expected_slopes(torch.from_numpy(labels)).numpy()
    np.testing.assert_allclose(found / np.abs(true).max(2, keepdims=True), true / np.abs(true).max(2, keepdims=True),
                               atol=2e-3)  # fmt: skip


def test_directions_whiten_the_prior(linear, rng):
    drawn = rng.multivariate_normal(PRIOR.mean, PRIOR.covariance, 100_000) - PRIOR.mean
    np.testing.assert_allclose(np.cov((drawn @ linear[2].directions).T), np.eye(3), atol=0.02)


@pytest.fixture(scope="module")
def shortcuts(tiny_model):
    labels = tiny_model.labels
    parts = tiny_model.emulator, tiny_model.translator, tiny_model.prior, labels.lower, labels.upper
    return learn_shortcuts(*parts, tiny_model.population.typical_split_latent)


def test_far_from_the_prior_slopes_are_those_of_its_edge(shortcuts, tiny_model):
    """3 σ along the widest direction."""
    away = np.linalg.pinv(shortcuts.directions)[0]
    at = [torch.from_numpy(tiny_model.prior.mean + factor * away)[None] for factor in (2.9, 3.0, 30.0)]
    inside, edge, outside = (shortcuts.expected_slopes(labels).numpy() for labels in at)
    np.testing.assert_allclose(outside, edge, rtol=1e-4, atol=1e-9)
    assert not np.allclose(inside, edge, rtol=1e-4, atol=1e-9)


def test_slopes_follow_the_labels(shortcuts, tiny_model, line_family, rng):
    """The changes that are expected explain a good part of the true ones; others are jumps at kinks."""
    labels = line_family.draw(30, rng)
    typical = tiny_model.population.typical_split_latent
    _, true = ObservedPredictor(tiny_model.emulator, tiny_model.translator, typical).jacobian(labels)
    found = shortcuts.expected_slopes(torch.from_numpy(labels)).numpy()
    size = np.abs(true).max((0, 2))[:, None]
    error = (((found - true) / size) ** 2).mean()
    assert error < 0.7 * (((true - true.mean(0)) / size) ** 2).mean()


def test_guess_from_observed_spectra_is_better_than_the_prior(shortcuts, tiny_model, line_family, rng):
    labels = line_family.draw(50, rng)
    flux = line_family(labels, width=rng.uniform(2.0, 2.4, 50), depth=1.1)
    error = (shortcuts.first_guess(tiny_model.translator.encode_obs(flux)[0]) - labels) / labels.std(0)
    assert (np.sqrt((error**2).mean(0)) < 0.6).all()


def test_no_bit_depends_on_the_company(shortcuts, line_family, rng):
    latents, labels = rng.normal(size=(5, 8, 10)), torch.from_numpy(line_family.draw(5, rng))
    np.testing.assert_array_equal(shortcuts.first_guess(latents)[3], shortcuts.first_guess(latents[3:4])[0])
    np.testing.assert_array_equal(shortcuts.expected_slopes(labels)[3], shortcuts.expected_slopes(labels[3:4])[0])


def test_same_seed_same_shortcuts(linear, monkeypatch):
    monkeypatch.setattr("cyclestarnet.training.shortcuts.N_SLOPES", 20)
    emulator, translator, _ = linear
    one, again, other = (
        learn_shortcuts(emulator, translator, PRIOR, LOWER, UPPER, SPLIT_LATENT, seed=seed) for seed in (1, 1, 2)
    )
    for name, array in vars(one).items():
        np.testing.assert_array_equal(getattr(again, name), array)
    assert not np.array_equal(one.guess, other.guess)


# -- in a model -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def quick(tiny_model, shortcuts):
    return replace(tiny_model, shortcuts=shortcuts)


def test_files_keep_shortcuts(quick, tmp_path):
    quick.save(tmp_path / "quick.safetensors")
    again = CalibratedModel.load(tmp_path / "quick.safetensors").shortcuts
    for name in ("latent_mean", "guess", "centre", "directions"):
        np.testing.assert_allclose(getattr(again, name), getattr(quick.shortcuts, name), rtol=1e-6)
    slopes, size = quick.shortcuts.slopes, np.abs(quick.shortcuts.slopes[0]).max(1)[:, None]
    np.testing.assert_allclose(again.slopes / size, slopes / size, atol=2e-3)  # float16


def test_models_without_shortcuts_stay_so(tiny_model, tmp_path):
    tiny_model.save(tmp_path / "plain.safetensors")
    assert CalibratedModel.load(tmp_path / "plain.safetensors").shortcuts is None


@pytest.fixture(scope="module")
def stars(tiny_model, line_family):
    rng = np.random.default_rng(41)
    return [spectrum(tiny_model, observed(tiny_model, quantities(tiny_model, v)), noise=rng)
            for v in line_family.draw(6, rng)]  # fmt: skip


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
def test_shortcuts_do_not_move_the_optimum(tiny_model, quick, stars, method):
    for star in stars:
        assert_same_labels(tiny_model.fit(star, method=method), quick.fit(star, method=method), 0.25)


def test_shortcuts_save_jacobians(tiny_model, quick, stars):
    plain, short = (sum(m.fit(star, method="lm").meta["n_jacobians"] for star in stars) for m in (tiny_model, quick))
    assert short < 0.5 * plain


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
def test_a_guess_that_is_wrong_does_not_matter(tiny_model, quick, stars, method):
    """All stars in one corner of the labels."""
    corner = np.zeros_like(quick.shortcuts.guess)
    corner[0] = [5400, 0.7, 0.4]
    misled = replace(quick, shortcuts=replace(quick.shortcuts, guess=corner))
    for star in stars[:3]:
        assert_same_labels(tiny_model.fit(star, method=method), misled.fit(star, method=method), 0.25)


@pytest.mark.parametrize("size", ["of each label", "of all labels"])
def test_slopes_that_are_wrong_do_not_matter(tiny_model, quick, stars, size):
    """Noise, where one label's slopes may be a thousand times too large, and a step in it seems to promise nothing."""
    slopes = quick.shortcuts.slopes
    scale = slopes.std((0, 2))[:, None] if size == "of each label" else slopes.std()
    noise = (np.random.default_rng(1).normal(size=slopes.shape) * scale).astype(np.float32)
    misled = replace(quick, shortcuts=replace(quick.shortcuts, slopes=noise))
    for star in stars:
        assert_same_labels(tiny_model.fit(star, method="lm"), misled.fit(star, method="lm"), 0.25)
