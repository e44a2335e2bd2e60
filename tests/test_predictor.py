"""The door of the networks: flux against the plain modules, derivatives against finite differences, in float64."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from cyclestarnet.backend.networks import NetworkSettings, TranslationNetwork
from cyclestarnet.backend.predictor import BATCH, EmulatorPredictor, ObservedPredictor, Translator

KINDS = ("synthetic", "observed", "observed without split")


@pytest.fixture(scope="module")
def emulator(tiny_emulator):
    return deepcopy(tiny_emulator).double()


def make_translator(settings, split_filters=2):
    torch.manual_seed(11)
    network = TranslationNetwork(NetworkSettings(**(settings.to_dict() | {"split_filters": split_filters}))).double()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return Translator(network, 0.92, 0.11)


@pytest.fixture(scope="module")
def translator(tiny_settings):
    return make_translator(tiny_settings)


@pytest.fixture(scope="module")
def z_split():
    return np.random.default_rng(3).normal(size=(2, 10))


@pytest.fixture(params=KINDS, scope="module")
def predictor(request, emulator, translator, tiny_settings, z_split):
    if request.param == "synthetic":
        return EmulatorPredictor(emulator)
    if request.param == "observed":
        return ObservedPredictor(emulator, translator, z_split)
    return ObservedPredictor(emulator, make_translator(tiny_settings, split_filters=0), None)


@pytest.fixture
def labels(line_family, rng):
    return line_family.draw(1, rng)[0]


# -- flux ------------------------------------------------------------------------------------
def test_synthetic_flux_is_the_emulators(emulator, labels):
    expected = emulator(torch.from_numpy(labels)).numpy()
    np.testing.assert_array_equal(EmulatorPredictor(emulator).flux(labels), expected)


def test_observed_flux_is_the_translated_emulator(emulator, translator, z_split, labels):
    standardised = (emulator(torch.from_numpy(labels)[None]) - 0.92) / 0.11
    with torch.no_grad():
        translated = translator.network.synth_to_obs(standardised, torch.from_numpy(z_split)[None])
    found = ObservedPredictor(emulator, translator, z_split).flux(labels)
    np.testing.assert_allclose(found, 0.92 + 0.11 * translated[0].numpy(), rtol=1e-13)


def test_split_latent_matters(emulator, translator, z_split, labels):
    one, other = (ObservedPredictor(emulator, translator, z).flux(labels) for z in (z_split, -z_split))
    assert np.abs(one - other).max() > 1e-3


def test_batch_equals_single(predictor, line_family, rng):
    many = line_family.draw(2 * BATCH + 3, rng)
    singly = np.stack([predictor.flux(one) for one in many])
    np.testing.assert_allclose(predictor.flux(many), singly, rtol=1e-12)


def test_leading_dimensions_are_kept(predictor, line_family, rng):
    many = line_family.draw(6, rng)
    np.testing.assert_array_equal(predictor.flux(many.reshape(2, 3, 3)), predictor.flux(many).reshape(2, 3, 415))


# -- derivatives -------------------------------------------------------------------------------
def finite_differences(predictor, labels, scale):
    """Central, steps of 1e-5 of the range: good to about 1e-8 in float64."""
    steps = np.diag(1e-5 * scale)
    return np.stack([(predictor.flux(labels + h) - predictor.flux(labels - h)) / (2 * h.sum()) for h in steps], axis=1)


def test_jacobian_equals_finite_differences(predictor, line_family, labels):
    flux, slopes = predictor.jacobian(labels)
    expected = finite_differences(predictor, labels, line_family.labels.scale)
    assert slopes.shape == (415, 3)
    np.testing.assert_allclose(slopes / np.abs(expected).max(0), expected / np.abs(expected).max(0), atol=1e-6)
    np.testing.assert_allclose(flux, predictor.flux(labels), rtol=1e-12)


def test_pullback_equals_the_transposed_jacobian(predictor, labels, rng):
    _, slopes = predictor.jacobian(labels)
    cotangent = rng.normal(size=415)
    flux, pull = predictor.pullback(labels)
    np.testing.assert_allclose(pull(cotangent), slopes.T @ cotangent, rtol=1e-10)
    np.testing.assert_allclose(flux, predictor.flux(labels), rtol=1e-12)


def test_pullback_can_be_used_again(predictor, labels, rng):
    _, pull = predictor.pullback(labels)
    cotangent = rng.normal(size=415)
    np.testing.assert_allclose(pull(2 * cotangent), 2 * pull(cotangent), rtol=1e-12)


def test_labels_are_left_alone(predictor, labels):
    before = labels.copy()
    predictor.flux(labels), predictor.jacobian(labels), predictor.pullback(labels)
    np.testing.assert_array_equal(labels, before)


# -- the translator ------------------------------------------------------------------------------
@pytest.fixture
def flux(line_family, rng):
    return line_family(line_family.draw(BATCH + 5, rng))


def plain(translator, method, flux, *latents):
    """A method of the plain network on the whole batch at once."""
    with torch.no_grad():
        return getattr(translator.network, method)(torch.from_numpy((flux - 0.92) / 0.11), *latents)


def test_obs_to_synth_equals_the_plain_network(translator, flux):
    expected = 0.92 + 0.11 * plain(translator, "obs_to_synth", flux).numpy()
    np.testing.assert_allclose(translator.obs_to_synth(flux), expected, rtol=1e-12)


def test_synth_to_obs_uses_one_split_latent_for_all(translator, flux, z_split):
    split = torch.from_numpy(z_split)[None].expand(len(flux), -1, -1)
    expected = 0.92 + 0.11 * plain(translator, "synth_to_obs", flux, split).numpy()
    np.testing.assert_allclose(translator.synth_to_obs(flux, z_split), expected, rtol=1e-12)


def test_latents_equal_the_plain_network(translator, flux):
    shared, split = plain(translator, "encode_obs", flux)
    found = translator.encode_obs(flux)
    np.testing.assert_allclose(found[0], shared.numpy(), atol=1e-12)
    np.testing.assert_allclose(found[1], split.numpy(), atol=1e-12)
    np.testing.assert_allclose(translator.encode_synth(flux), plain(translator, "encode_synth", flux), atol=1e-12)


def test_reconstructions_stay_in_their_domain(translator, flux):
    network = translator.network
    with torch.no_grad():
        obs = network.decode_obs(*network.encode_obs(translator.standardise(flux)))
        synth = network.decode_synth(network.encode_synth(translator.standardise(flux)))
    np.testing.assert_allclose(translator.reconstruct_obs(flux), 0.92 + 0.11 * obs.numpy(), rtol=1e-12)
    np.testing.assert_allclose(translator.reconstruct_synth(flux), 0.92 + 0.11 * synth.numpy(), rtol=1e-12)


def test_without_split_latent_there_is_none(tiny_settings, flux):
    shared, split = make_translator(tiny_settings, split_filters=0).encode_obs(flux)
    assert shared.shape == (len(flux), 8, 10)
    assert split is None


def test_results_are_float64_of_float32_networks(tiny_model, line_family, labels):
    assert tiny_model.translator.dtype == torch.float32
    assert tiny_model.translator.obs_to_synth(line_family(labels)).dtype == np.float64
