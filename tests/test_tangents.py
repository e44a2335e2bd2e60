"""Forward tangents against central differences and torch's own forward mode, through networks of several shapes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TINY_NETWORK
from torch.func import jacfwd

from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.tangents import linearise_emulator, linearise_translation
from cyclestarnet.networks.translation import TranslationNetwork

SHAPES = {
    "tiny": TINY_NETWORK,
    "no split": replace(TINY_NETWORK, split_filters=0),
    "no norm": replace(TINY_NETWORK, latent_norm=False),
    "other strides": replace(TINY_NETWORK, n_pixels=308, domain=((6, 5, 3),), shared=((9, 6, 2), (10, 3, 1)),
                             split=((4, 4, 1), (4, 7, 2)), shared_filters=5, split_filters=3),
    "no overlap": replace(TINY_NETWORK, n_pixels=320, domain=((5, 4, 4),), shared=((7, 2, 2), (6, 2, 2)),
                          split=((3, 4, 4),)),
    "two in the domain": replace(TINY_NETWORK, n_pixels=415, domain=((4, 7, 4), (6, 7, 4)), shared=((8, 7, 2),),
                                 split=((4, 7, 2),)),
    "steep": replace(TINY_NETWORK, slope=0.7),
}  # fmt: skip
N = 3


def make_network(settings, dtype=torch.float64):
    torch.manual_seed(21)
    network = TranslationNetwork(settings).to(dtype)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)


# with few parameters, layers are pushed through one by one; with more, those next to the spectra are folded
@pytest.fixture(params=[4, 20], ids=lambda d: f"{d} parameters", scope="module")
def n_parameters(request):
    return request.param


@pytest.fixture(params=SHAPES.values(), ids=SHAPES, scope="module")
def case(request, n_parameters):
    """A network, spectra with slopes, and split latents."""
    settings = request.param
    network = make_network(settings)
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    split = draw(N, settings.split_filters, settings.latent_length) if network.has_split else None
    return network, draw(N, settings.n_pixels), draw(N, n_parameters, settings.n_pixels), split


def hidden(network, split):
    return None if split is None else network.decoder_sp(split)


def translate(network, flux, slopes, split, k):
    """Function of parameters to the translation of one star's flux + parameters @ slopes."""
    z = None if split is None else split[k : k + 1]
    return lambda p: network.synth_to_obs((flux[k] + p @ slopes[k])[None], z)[0]


# -- the translation -------------------------------------------------------------------------
def test_value_is_that_of_the_plain_network(case):
    network, flux, slopes, split = case
    found, _ = linearise_translation(network, flux, slopes, hidden(network, split), torch.float64)
    torch.testing.assert_close(found, network.synth_to_obs(flux, split), rtol=1e-12, atol=1e-12)


def test_tangents_equal_torchs_forward_mode(case):
    network, flux, slopes, split = case
    _, found = linearise_translation(network, flux, slopes, hidden(network, split), torch.float64)
    for k in range(N):
        at = torch.zeros(slopes.shape[1], dtype=torch.float64)
        expected = jacfwd(translate(network, flux, slopes, split, k))(at).T
        torch.testing.assert_close(found[k], expected, rtol=0, atol=1e-12 * expected.abs().max().item())


def test_tangents_equal_central_differences(case):
    """Steps so small that no unit of these networks passes the kink of its activation."""
    network, flux, slopes, split = case
    _, found = linearise_translation(network, flux, slopes, hidden(network, split), torch.float64)
    for k in range(N):
        function = translate(network, flux, slopes, split, k)
        steps = 1e-7 * torch.eye(slopes.shape[1], dtype=torch.float64)
        expected = torch.stack([(function(h) - function(-h)) / 2e-7 for h in steps])
        torch.testing.assert_close(found[k], expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_bfloat16_is_within_one_percent(case):
    """Of the largest value of each derivative, root mean square; and the flux is exact."""
    network, flux, slopes, split = case
    exact = linearise_translation(network, flux, slopes, hidden(network, split), torch.float64)
    coarse = linearise_translation(network, flux, slopes, hidden(network, split), torch.bfloat16)
    torch.testing.assert_close(coarse[0], exact[0], rtol=0, atol=0)
    error = (coarse[1] - exact[1]).pow(2).mean(2).sqrt() / exact[1].abs().amax(2)
    assert 0 < error.max() < 0.01


def test_tangents_are_linear_in_the_slopes(case):
    network, flux, slopes, split = case
    mixing = torch.randn(2, slopes.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    _, found = linearise_translation(network, flux, mixing @ slopes, hidden(network, split), torch.float64)
    _, apart = linearise_translation(network, flux, slopes, hidden(network, split), torch.float64)
    torch.testing.assert_close(found, mixing @ apart, rtol=1e-9, atol=1e-11)


def test_each_star_has_its_own_tangents(case):
    network, flux, slopes, split = case
    _, together = linearise_translation(network, flux, slopes, hidden(network, split), torch.float64)
    for k in range(N):
        z = None if split is None else hidden(network, split[k : k + 1])
        _, alone = linearise_translation(network, flux[k : k + 1], slopes[k : k + 1], z, torch.float64)
        torch.testing.assert_close(alone[0], together[k], rtol=1e-12, atol=1e-12)


# -- the emulator --------------------------------------------------------------------------------
@pytest.mark.parametrize("activation", ["silu", "sigmoid", "leaky_relu"])
@pytest.mark.parametrize("hidden_layers", [(), (7,), (9, 8, 6)])
def test_slopes_of_an_emulator_equal_torchs_forward_mode(activation, hidden_layers):
    torch.manual_seed(1)
    emulator = Emulator([4000, -1], [5000, 1], 30, hidden_layers, activation).double().requires_grad_(False)
    labels = torch.from_numpy(np.random.default_rng(1).uniform([4000, -1], [5000, 1], (5, 2)))
    flux, slopes = linearise_emulator(emulator, labels)
    torch.testing.assert_close(flux, emulator(labels), rtol=1e-13, atol=1e-13)
    for k in range(5):
        torch.testing.assert_close(slopes[k], jacfwd(emulator)(labels[k]).T, rtol=1e-10, atol=1e-15)


def test_nothing_to_differentiate_by_is_an_error():
    network = make_network(replace(TINY_NETWORK, split_filters=0))
    with pytest.raises(ValueError, match="nothing to differentiate by"):
        linearise_translation(network, torch.zeros(1, 415).double(), None, None, torch.float64)
