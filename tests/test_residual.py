"""The residual form of the translation: the network supplies the gap, the spectrum what the latents lose."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from stars import SIGMA, STAR, VALUES, N, spectrum

from cyclestarnet import CalibratedModel
from cyclestarnet.networks.predictor import FreeSplitLatentPredictor, ObservedPredictor
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.networks.translator import Translator


def make_translator(settings, split_filters=2, translation="residual"):
    torch.manual_seed(11)
    network = TranslationNetwork(NetworkSettings(**(settings.to_dict() | {"split_filters": split_filters}))).double()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return Translator(network, 0.92, 0.11, translation)


@pytest.fixture(params=[2, 0], ids=["split", "no split"], scope="module")
def translator(request, tiny_settings):
    return make_translator(tiny_settings, request.param)


@pytest.fixture(scope="module")
def split_latent(translator):
    return np.random.default_rng(3).normal(size=(2, 10)) if translator.network.has_split else None


@pytest.fixture(scope="module")
def emulator(tiny_emulator):
    return deepcopy(tiny_emulator).double()


@pytest.fixture
def flux(rng):
    return rng.normal(0.92, 0.11, (3, N))


def decoded(translator, flux, split_latent, source):
    """What the two decoders make of the latents of flux, in units of flux, from plain modules."""
    network = translator.network
    x = torch.as_tensor((flux - 0.92) / 0.11)
    with torch.no_grad():
        if source == "synthetic":
            shared, split = network.encoder_sh(network.encoder_synth(x[:, None])), None
            if split_latent is not None:
                split = torch.as_tensor(split_latent).expand(len(x), -1, -1)
        else:
            first = network.encoder_obs(x[:, None])
            shared = network.encoder_sh(first)
            split = network.encoder_sp(first) if network.has_split else None
        hidden = network.decoder_sh(shared)
        both = hidden if split is None else torch.cat([hidden, network.decoder_sp(split)], 1)
        observed, synthetic = network.decoder_obs(both)[:, 0], network.decoder_synth(hidden)[:, 0]
    return (0.11 * part.numpy() + 0.92 for part in (observed, synthetic))


def test_translation_is_the_spectrum_and_the_gap(translator, flux, split_latent):
    observed, synthetic = decoded(translator, flux, split_latent, "synthetic")
    found = translator.synth_to_obs(flux, split_latent)
    np.testing.assert_allclose(found, flux + observed - synthetic, rtol=0, atol=1e-12)


def test_translation_back_takes_the_gap_away(translator, flux, split_latent):
    observed, synthetic = decoded(translator, flux, split_latent, "observed")
    np.testing.assert_allclose(translator.obs_to_synth(flux), flux + synthetic - observed, rtol=0, atol=1e-12)


def test_what_the_latents_do_not_see_comes_through(translator, flux, split_latent):
    """A change of the spectrum that leaves the latents as they are: here no change of the networks' input at all."""
    translator = deepcopy(translator)
    for layer in (translator.network.encoder_synth[0],):
        layer.weight.data[:] = 0
    change = np.random.default_rng(0).normal(0, 0.01, flux.shape)
    found = [translator.synth_to_obs(one, split_latent) for one in (flux, flux + change)]
    np.testing.assert_allclose(found[1] - found[0], change, atol=1e-12)


def test_unknown_form_is_refused(translator):
    with pytest.raises(ValueError, match="translation must be one of 'paper', 'residual', but is 'gap'"):
        Translator(translator.network, 0.9, 0.1, "gap")


# -- predictions and derivatives -------------------------------------------------------------
@pytest.fixture(scope="module")
def predictor(emulator, translator, split_latent):
    return ObservedPredictor(emulator, translator, split_latent)


def test_prediction_is_the_translated_emulator(predictor, emulator, translator, split_latent):
    with torch.no_grad():
        synthetic = emulator(torch.as_tensor(VALUES[None])).numpy()
    expected = translator.synth_to_obs(synthetic, split_latent)[0]
    np.testing.assert_allclose(predictor.flux(VALUES), expected, rtol=0, atol=1e-12)


def central_differences(function, x, steps):
    return np.array([(function(x + s) - function(x - s)) / (2 * abs(s).sum()) for s in np.diag(steps)])


def test_derivatives_equal_finite_differences(predictor):
    flux, slopes = predictor.jacobian(VALUES)
    np.testing.assert_allclose(flux, predictor.flux(VALUES), atol=1e-12)
    expected = central_differences(predictor.flux, VALUES, [1e-2, 1e-6, 1e-6])
    np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-5 * abs(expected).max(1, keepdims=True).max())


def test_gradients_are_the_jacobian_transposed(predictor, rng):
    _, slopes = predictor.jacobian(VALUES)
    cotangent = rng.normal(size=N)
    _, pull = predictor.pullback(VALUES)
    np.testing.assert_allclose(pull(cotangent), slopes @ cotangent, rtol=1e-9)


def test_derivatives_by_coordinates_of_the_split_latent(emulator, tiny_settings, rng):
    translator = make_translator(tiny_settings)
    centre, directions = rng.normal(size=(2, 10)), rng.normal(size=(2, 2, 10))
    predictor = FreeSplitLatentPredictor(emulator, translator, centre, directions)
    at = np.r_[VALUES, 0.4, -0.7]
    _, slopes = predictor.jacobian(at)
    expected = central_differences(predictor.flux, at, [1e-2, 1e-6, 1e-6, 1e-6, 1e-6])
    np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())
    same = translator.synth_to_obs(
        emulator(torch.as_tensor(VALUES[None])).detach().numpy(), centre + np.tensordot(at[3:], directions, 1)
    )
    np.testing.assert_allclose(predictor.flux(at), same[0], atol=1e-12)


def test_expected_derivatives_by_coordinates_are_true(emulator, tiny_settings, rng):
    class Nothing:
        def expected_slopes(self, labels):
            return torch.zeros(len(labels), 3, N, dtype=torch.float64)

    centre, directions = rng.normal(size=(2, 10)), rng.normal(size=(2, 2, 10))
    translator = make_translator(tiny_settings)
    predictor = FreeSplitLatentPredictor(emulator, translator, centre, directions, shortcuts=Nothing())
    at = torch.as_tensor(np.r_[VALUES, 0.4, -0.7])[None]
    _, slopes = predictor.jacobian(at)
    found = predictor.expected_slopes(at)
    scale = slopes[:, 3:].abs().max().item()  # coarse: in bfloat16 where that is quick
    torch.testing.assert_close(found[:, 3:], slopes[:, 3:], rtol=0, atol=0.02 * scale, check_dtype=False)


# -- models --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def residual(tiny_model):
    translator = tiny_model.translator
    return replace(tiny_model, translator=Translator(translator.network, 0.92, 0.11, "residual"), shortcuts=None)


def test_the_form_is_kept_in_files_and_copies(residual, tiny_model, tmp_path):
    residual.save(tmp_path / "model.safetensors")
    for again in (CalibratedModel.load(tmp_path / "model.safetensors"), residual.to("cpu")):
        assert again.translation == "residual"
        np.testing.assert_array_equal(again.predict(STAR).flux, residual.predict(STAR).flux)
    assert tiny_model.translation == "paper"


def test_packaged_model_is_in_the_residual_form(pretrained):
    assert pretrained.translation == "residual"


def test_labels_are_recovered(residual, rng):
    flux = residual.predict(STAR).flux.value
    fit = residual.fit(spectrum(residual, flux, noise=rng), split_latent="typical", prior=None)
    assert fit.success
    assert (np.abs(fit.values - VALUES) < 4 * np.sqrt(np.diag(fit.covariance))).all()


def test_translated_data_keep_their_noise(residual, rng):
    """Translation of many noisy copies: the scatter of a pixel is that of the data, which Eq. 10 then weighs by."""
    flux = residual.predict(STAR).flux.value
    noise = rng.normal(0, SIGMA, (200, N))
    back = residual.translator.obs_to_synth(flux + noise)
    assert np.median(back.std(0)) == pytest.approx(SIGMA, rel=0.25)
    fits = [residual.fit(spectrum(residual, flux, noise=rng), space="synthetic", prior=None) for _ in range(30)]
    pulls = np.array([(f.values - VALUES) / np.sqrt(np.diag(f.covariance)) for f in fits])
    assert 0.5 < np.median(pulls.std(0)) < 1.6  # errors of Eq. 10 are honest
    assert np.median([f.reduced_chi2_total for f in fits]) == pytest.approx(1, abs=0.5)
