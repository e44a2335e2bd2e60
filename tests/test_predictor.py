"""The door of the networks: flux against the plain modules, derivatives against finite differences, in float64."""

import pickle
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch

from cyclestarnet.networks.kinematics import Kinematics
from cyclestarnet.networks.predictor import EmulatorPredictor, MovingPredictor, ObservedPredictor
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.networks.translator import BATCH, Translator

KINDS = ("synthetic", "observed", "observed without split", "moving", "moving, other order")
CHIPS, MOTION = ((0, 200), (200, 415)), ("velocity", "broadening")
WAVELENGTH = 10 ** (4.18 + 6e-6 * np.r_[0:200, 260:475])


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


@pytest.fixture(scope="module")
def kinematics():
    return Kinematics(WAVELENGTH, CHIPS)


@pytest.fixture(params=KINDS, scope="module")
def predictor(request, emulator, translator, tiny_settings, z_split, kinematics):
    if request.param == "synthetic":
        return EmulatorPredictor(emulator)
    if request.param == "observed":
        return ObservedPredictor(emulator, translator, z_split)
    if request.param == "observed without split":
        return ObservedPredictor(emulator, make_translator(tiny_settings, split_filters=0), None)
    names = MOTION if request.param == "moving" else MOTION[::-1]
    return MovingPredictor(ObservedPredictor(emulator, translator, z_split), kinematics, names)


@pytest.fixture
def labels(line_family, rng):
    return line_family.draw(1, rng)[0]


def rows(predictor, line_family, n, rng):
    """Labels (n, n_labels) of a predictor, motion included, whose broadening is not 0."""
    drawn = line_family.draw(n, rng)
    if predictor.n_labels == 3:
        return drawn
    motion = {"velocity": rng.uniform(-40, 40, n), "broadening": rng.uniform(3, 12, n)}
    order = [MOTION[k] for k in predictor.columns]
    return np.column_stack([drawn, *(motion[name] for name in order)])


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
    many = rows(predictor, line_family, 2 * BATCH + 3, rng)
    singly = np.stack([predictor.flux(one) for one in many])
    np.testing.assert_allclose(predictor.flux(many), singly, rtol=1e-12)


def test_leading_dimensions_are_kept(predictor, line_family, rng):
    many = rows(predictor, line_family, 6, rng)
    flux, slopes = predictor.jacobian(many)
    shaped = predictor.jacobian(many.reshape(2, 3, -1))
    np.testing.assert_array_equal(predictor.flux(many.reshape(2, 3, -1)), predictor.flux(many).reshape(2, 3, 415))
    np.testing.assert_array_equal(shaped[0], flux.reshape(2, 3, 415))
    np.testing.assert_array_equal(shaped[1], slopes.reshape(2, 3, predictor.n_labels, 415))


def test_tensors_come_out_as_tensors(predictor, line_family, rng):
    many = rows(predictor, line_family, 2, rng)
    flux, slopes = predictor.jacobian(torch.from_numpy(many))
    assert flux.dtype == torch.float64
    np.testing.assert_array_equal(predictor.flux(torch.from_numpy(many)).numpy(), predictor.flux(many))
    np.testing.assert_array_equal(slopes.numpy(), predictor.jacobian(many)[1])


# -- derivatives -------------------------------------------------------------------------------
@pytest.fixture
def place(predictor, line_family, rng):
    return rows(predictor, line_family, 1, rng)[0]


def finite_differences(predictor, labels, scale):
    """Central, steps of 1e-5 of the range: good to about 1e-8 in float64."""
    steps = np.diag(1e-5 * scale)
    return np.stack([(predictor.flux(labels + h) - predictor.flux(labels - h)) / (2 * h.sum()) for h in steps])


def test_jacobian_equals_finite_differences(predictor, line_family, place):
    flux, slopes = predictor.jacobian(place)
    scale = np.concatenate([line_family.labels.scale, np.full(predictor.n_labels - 3, 10.0)])  # km/s
    expected = finite_differences(predictor, place, scale)
    size = np.abs(expected).max(1, keepdims=True)
    assert slopes.shape == (predictor.n_labels, 415)
    np.testing.assert_allclose(slopes / size, expected / size, atol=1e-6)
    np.testing.assert_allclose(flux, predictor.flux(place), rtol=1e-12)


def test_pullback_equals_the_transposed_jacobian(predictor, place, rng):
    _, slopes = predictor.jacobian(place)
    cotangent = rng.normal(size=415)
    flux, pull = predictor.pullback(place)
    np.testing.assert_allclose(pull(cotangent), slopes @ cotangent, rtol=1e-9)
    np.testing.assert_allclose(flux, predictor.flux(place), rtol=1e-12)


def test_pullback_of_many_is_that_of_each(predictor, line_family, rng):
    many, cotangent = rows(predictor, line_family, 5, rng), rng.normal(size=(5, 415))
    _, pull = predictor.pullback(many)
    singly = [predictor.pullback(one)[1](row) for one, row in zip(many, cotangent, strict=True)]
    np.testing.assert_allclose(pull(cotangent), singly, rtol=1e-9)


def test_pullback_can_be_used_again(predictor, place, rng):
    _, pull = predictor.pullback(place)
    cotangent = rng.normal(size=415)
    np.testing.assert_allclose(pull(2 * cotangent), 2 * pull(cotangent), rtol=1e-12)


def test_labels_are_left_alone(predictor, place):
    before = place.copy()
    predictor.flux(place), predictor.jacobian(place), predictor.pullback(place)
    np.testing.assert_array_equal(place, before)


def test_coarse_slopes_are_close_and_their_flux_is_exact(predictor, place):
    flux, slopes = predictor.jacobian(place)
    coarse_flux, coarse = predictor.jacobian(place, coarse=True)
    np.testing.assert_array_equal(coarse_flux, flux)
    np.testing.assert_allclose(coarse / np.abs(slopes).max(1, keepdims=True),
                               slopes / np.abs(slopes).max(1, keepdims=True), atol=0.03)  # fmt: skip


# -- stars that differ in more than their labels -------------------------------------------------
@pytest.fixture(params=["at rest", "moving"])
def of_stars(request, emulator, translator, kinematics):
    """Function that makes a predictor of split latents (n, 2, 10)."""

    def make(splits, **options):
        predictor = ObservedPredictor(emulator, translator, splits, **options)
        return predictor if request.param == "at rest" else MovingPredictor(predictor, kinematics, MOTION)

    return make


def test_each_row_has_the_split_latent_of_its_star(of_stars, line_family, rng):
    splits, stars = rng.normal(size=(4, 2, 10)), np.array([2, 0, 2, 3])
    together = of_stars(splits)
    many, cotangent = rows(together, line_family, 4, rng), rng.normal(size=(4, 415))
    flux, (_, slopes), (_, pull) = (f(many, stars) for f in (together.flux, together.jacobian, together.pullback))
    for k, star in enumerate(stars):
        alone = of_stars(splits[star])
        np.testing.assert_allclose(flux[k], alone.flux(many[k]), rtol=1e-12)
        np.testing.assert_allclose(slopes[k], alone.jacobian(many[k])[1], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(pull(cotangent)[k], alone.pullback(many[k])[1](cotangent[k]), rtol=1e-9)


def test_one_by_one_no_bit_depends_on_the_company(tiny_model, line_family, rng):
    """In float32, where sums over a batch of other shape end otherwise."""
    labels, stars = line_family.draw(7, rng), np.arange(7)
    split = rng.normal(size=(7, 2, 10))
    predictor = ObservedPredictor(tiny_model.emulator, tiny_model.translator, split, together=1)
    flux, slopes = predictor.jacobian(labels, stars)
    for k in (0, 3, 6):
        one = predictor.jacobian(labels[k : k + 1], stars[k : k + 1])
        np.testing.assert_array_equal(one[0][0], flux[k])
        np.testing.assert_array_equal(one[1][0], slopes[k])
        np.testing.assert_array_equal(predictor.flux(labels, stars)[k], predictor.flux(labels[k][None], stars[[k]])[0])


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("translation", ["paper", "residual"])
def test_products_of_matrices_are_the_layers_of_torch_to_single_precision(
    tiny_model, line_family, rng, translation, together
):
    labels, split, translator = line_family.draw(7, rng), rng.normal(size=(2, 10)), tiny_model.translator
    translator = Translator(translator.network, translator.flux_mean, translator.flux_std, translation)
    synthetic = translator.standardise(tiny_model.emulator(torch.from_numpy(labels).float()))
    layers = translator.to_observed(synthetic, translator.as_tensor(split).expand(7, -1, -1))
    found = ObservedPredictor(tiny_model.emulator, translator, split, together=together).flux(labels)
    np.testing.assert_allclose(found, translator.restore(layers).numpy(), rtol=0, atol=3e-6)


def test_weights_that_have_changed_are_noticed(emulator, translator, z_split, labels):
    translator = deepcopy(translator)
    before = ObservedPredictor(emulator, translator, z_split).flux(labels)
    with torch.no_grad():
        translator.network.decoder_sh[0].weight.mul_(1.5)
    found = ObservedPredictor(emulator, translator, z_split).flux(labels)
    synthetic = translator.standardise(emulator(torch.from_numpy(labels)[None]))
    layers = translator.restore(translator.to_observed(synthetic, torch.from_numpy(z_split)[None]))
    assert np.abs(found - before).max() > 1e-4
    np.testing.assert_allclose(found, layers[0].numpy(), rtol=1e-12)


def test_copies_of_a_translator_do_not_carry_what_can_be_made_again(emulator, translator, z_split, labels):
    size = len(pickle.dumps(translator))
    ObservedPredictor(emulator, translator, z_split).flux(labels)
    assert len(pickle.dumps(translator)) == size


# -- motion ----------------------------------------------------------------------------------------
def test_motion_is_that_of_the_kinematics(emulator, kinematics, line_family, rng):
    labels, velocity, broadening = line_family.draw(3, rng), np.array([30.0, -5, 0]), np.array([4.0, 8, 2])
    moving = MovingPredictor(EmulatorPredictor(emulator), kinematics, MOTION)
    at_rest = torch.from_numpy(EmulatorPredictor(emulator).flux(labels))
    expected = kinematics.apply(at_rest, torch.from_numpy(velocity), torch.from_numpy(broadening))
    found = moving.flux(np.column_stack([labels, velocity, broadening]))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("name", MOTION)
def test_motion_that_is_not_asked_for_is_none(emulator, kinematics, line_family, rng, name):
    labels = line_family.draw(2, rng)
    one = MovingPredictor(EmulatorPredictor(emulator), kinematics, [name])
    both = MovingPredictor(EmulatorPredictor(emulator), kinematics, MOTION)
    zeros = np.insert(np.full((2, 1), 5.0), 1 - MOTION.index(name), 0.0, axis=1)
    np.testing.assert_array_equal(one.flux(np.column_stack([labels, [5.0, 5]])), both.flux(np.hstack([labels, zeros])))
    assert one.jacobian(np.column_stack([labels, [5.0, 5]]))[1].shape == (2, 4, 415)


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


def test_gradients_import_no_computer_algebra(predictor, place, monkeypatch):
    """Half a second of the first fit."""
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.symbolic_shapes", None)
    flux, pull = predictor.pullback(place)
    assert pull(np.ones_like(flux)).shape == place.shape
