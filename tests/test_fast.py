"""The fast form of the networks against the plain modules: values and gradients."""

import pytest
import torch
from torch import nn

from cyclestarnet.backend import fast
from cyclestarnet.backend.networks import NetworkSettings, TranslationNetwork

SMALL = {"shared_filters": 5, "split_filters": 3, "critic_spectrum": ((3, 4, 4),), "critic_latent": ((4, 1, 1),)}
SETTINGS = {
    "the paper's layers, one row of padding": NetworkSettings(
        n_pixels=2815,
        domain=((4, 7, 4), (5, 7, 4)),
        shared=((6, 7, 4), (7, 7, 2), (8, 7, 2)),
        split=((3, 7, 4), (3, 7, 2), (3, 7, 2)),
        **SMALL,
    ),
    "no padding": NetworkSettings(
        n_pixels=320, domain=((6, 4, 4),), shared=((8, 4, 4), (7, 6, 2)), split=((3, 4, 4), (4, 6, 2)), **SMALL
    ),
    "wide kernels, odd strides": NetworkSettings(
        n_pixels=161, domain=((5, 9, 2),), shared=((6, 5, 3), (7, 9, 4)), split=((3, 5, 3), (4, 9, 4)), **SMALL
    ),
    "stride 1": NetworkSettings(
        n_pixels=90, domain=((5, 3, 1),), shared=((6, 4, 2),), split=((4, 4, 2),), **(SMALL | {"latent_norm": False})
    ),
}
PARTS = [f"{kind}_{domain}" for kind in ("encoder", "decoder") for domain in ("synth", "obs", "sh", "sp")]


def case(settings, part, dtype):
    """A sub-network, an input of the right shape with junk beyond its valid rows, as array and as maps."""
    torch.manual_seed(6)
    layers = getattr(TranslationNetwork(settings), part).to(dtype)
    for parameter in layers.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    position = {"encoder_synth": 0, "encoder_obs": 0, "encoder_sh": 1, "encoder_sp": 1, "decoder_synth": 1,
                "decoder_obs": 1, "decoder_sh": 2, "decoder_sp": 2}[part]  # fmt: skip
    length, padded = settings.n_pixels, -(-settings.n_pixels // total_stride(settings)) * total_stride(settings)
    for _, kernel, stride in [(), settings.domain, settings.domain + settings.shared][position]:
        length, padded = (length - kernel) // stride + 1, padded // stride
    x = torch.randn(3, layers[0].in_channels, length, dtype=dtype, requires_grad=True)
    maps = fast.from_channels(x, padded, dtype)
    junk = 10 * torch.randn(3, padded, x.shape[1], dtype=dtype)
    junk[:, :length] = 0
    return layers, x, fast.Maps(maps.data + junk.view(maps.data.shape), 3, length)


def total_stride(settings):
    total = 1
    for _, _, stride in settings.domain + settings.shared:
        total *= stride
    return total


def assert_close(found, expected, tolerance):
    scale = expected.abs().max()
    assert scale > 0
    assert (found - expected).abs().max() <= tolerance * scale


# float64 last: what is left there is rounding, so the formulae are the same
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
class TestRun:
    def test_values(self, settings, part, dtype, tolerance):
        layers, x, maps = case(settings, part, dtype)
        assert_close(fast.run(layers, maps).channels(), layers(x), tolerance)

    def test_gradients_of_inputs_and_weights(self, settings, part, dtype, tolerance):
        layers, x, maps = case(settings, part, dtype)
        variables = [x, *layers.parameters()]
        expected = layers(x)
        cotangent = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, variables, cotangent)
        found = torch.autograd.grad(fast.run(layers, maps).channels(), variables, cotangent)
        scale = max(gradient.abs().max() for gradient in wanted)
        for a, b in zip(found, wanted, strict=True):  # a bias before a normalisation has a gradient of 0
            assert (a - b).abs().max() <= tolerance * max(b.abs().max(), 0.1 * scale)


def test_result_is_in_the_dtype_of_the_maps():
    layers, _, maps = case(SETTINGS["no padding"], "decoder_synth", torch.float64)
    assert fast.run(layers, maps).data.dtype == torch.float64


@pytest.mark.parametrize("part", PARTS)
def test_bfloat16_is_within_two_percent_of_float32(part):
    """Root mean square over the values; a product of bfloat16 is good to 0.4 %."""
    layers, x, maps = case(SETTINGS["the paper's layers, one row of padding"], part, torch.float32)
    rounded = fast.Maps(maps.data.bfloat16(), maps.batch, maps.length)
    expected = layers(x)
    difference = fast.run(layers, rounded).channels().float() - expected
    assert 0 < difference.square().mean() < 0.02**2 * expected.square().mean()


# -- the joined rows ---------------------------------------------------------------
def test_join_following_puts_the_next_rows_beside():
    x = torch.arange(10.0).view(5, 2)
    found = fast._JoinFollowing.apply(x, 2, 3)
    assert found.tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8], [8, 9, 0]]


def test_join_preceding_stays_within_each_spectrum():
    x = torch.arange(1.0, 9.0).view(8, 1)  # two spectra of 4 rows, 3 of them valid
    found = fast._JoinPreceding.apply(x, 2, 2, 3)
    assert found.tolist() == [[1, 0], [2, 1], [3, 2], [0, 3], [5, 0], [6, 5], [7, 6], [0, 7]]


@pytest.mark.parametrize(("n", "width"), [(1, 3), (2, 5), (2, 6), (3, 7)])
def test_gradient_of_join_following(n, width):
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fast._JoinFollowing.apply(x, n, width), x)


@pytest.mark.parametrize(("n", "length"), [(1, 4), (2, 3), (2, 4), (3, 3), (3, 2)])
def test_gradient_of_join_preceding(n, length):
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fast._JoinPreceding.apply(x, n, 2, length), x)


# -- maps --------------------------------------------------------------------------
def test_spectra_survive_the_layout():
    flux = torch.randn(3, 415)
    maps = fast.from_spectra(flux, 32)
    assert maps.padded == 416
    assert torch.equal(maps.spectra(), flux)


def test_join_and_slice_are_inverse():
    first, second = (fast.from_channels(torch.randn(n, 4, 10), 12) for n in (2, 3))
    joined = fast.join(first, second)
    assert torch.equal(joined[:2].channels(), first.channels())
    assert torch.equal(joined[2:].channels(), second.channels())


def test_unknown_layer_is_refused():
    with pytest.raises(TypeError, match="no fast form of Dropout"):
        fast.run(nn.Sequential(nn.Dropout()), fast.from_spectra(torch.ones(1, 8), 4))
