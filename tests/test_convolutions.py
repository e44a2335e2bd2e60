"""The fast form of the networks against the plain modules: values and gradients."""

import pytest
import torch
from torch import nn

from cyclestarnet.networks import convolutions
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork

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
    """A sub-network, and an input of the right shape, as array and as maps."""
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
    return layers, x, convolutions.RowMaps.from_channels(x, padded, dtype)


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
        assert_close(convolutions.run(layers, maps, {}).channels(), layers(x), tolerance)

    def test_gradients_of_inputs_and_weights(self, settings, part, dtype, tolerance):
        layers, x, maps = case(settings, part, dtype)
        variables = [x, *layers.parameters()]
        expected = layers(x)
        cotangent = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, variables, cotangent)
        found = torch.autograd.grad(convolutions.run(layers, maps, {}).channels(), variables, cotangent)
        scale = max(gradient.abs().max() for gradient in wanted)
        for a, b in zip(found, wanted, strict=True):  # a bias before a normalisation has a gradient of 0
            assert (a - b).abs().max() <= tolerance * max(b.abs().max(), 0.1 * scale)


def test_result_is_in_the_dtype_of_the_maps():
    layers, _, maps = case(SETTINGS["no padding"], "decoder_synth", torch.float64)
    assert convolutions.run(layers, maps, {}).data.dtype == torch.float64


@pytest.mark.parametrize("part", PARTS)
def test_bfloat16_is_within_two_percent_of_float32(part):
    """Root mean square over the values; a product of bfloat16 is good to 0.4 %."""
    layers, x, maps = case(SETTINGS["the paper's layers, one row of padding"], part, torch.float32)
    rounded = convolutions.RowMaps(maps.data.bfloat16(), maps.batch, maps.length)
    expected = layers(x)
    difference = convolutions.run(layers, rounded, {}).channels().float() - expected
    assert 0 < difference.square().mean() < 0.02**2 * expected.square().mean()


# -- the joined rows ---------------------------------------------------------------
def test_joined_puts_the_next_rows_beside():
    found = convolutions.joined_rows(torch.arange(10.0).view(5, 2), 3)
    assert found.tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8], [8, 9, 0]]


@pytest.mark.parametrize(("n_joined", "starts"), [(3, [0]), (7, [0, 3, 6]), (6, [0, 3])])
def test_reaches_cover_all_columns(n_joined, starts):
    reaches = convolutions.row_reaches(n_joined, 3)
    assert [columns.start for _, columns in reaches] == starts
    assert [c for _, columns in reaches for c in range(n_joined)[columns]] == list(range(n_joined))


# -- maps --------------------------------------------------------------------------
def test_spectra_survive_the_layout():
    flux = torch.randn(3, 415)
    maps = convolutions.RowMaps.from_spectra(flux, 32, torch.float32)
    assert maps.padded == 416
    assert torch.equal(maps.spectra(), flux)


@pytest.mark.parametrize("layout", [convolutions.ChannelMaps, convolutions.RowMaps])
def test_join_and_slice_are_inverse(layout):
    first, second = (layout.from_channels(torch.randn(n, 4, 10), 12, torch.float32) for n in (2, 3))
    joined = layout.join(first, second)
    assert torch.equal(joined[:2].channels(), first.channels())
    assert torch.equal(joined[2:].channels(), second.channels())


@pytest.mark.parametrize("part", PARTS)
def test_rows_beyond_the_valid_ones_are_zero(part):
    layers, _, maps = case(SETTINGS["the paper's layers, one row of padding"], part, torch.float32)
    found = convolutions.run(layers[:-1], maps, {})
    assert found.padded > found.length
    assert found.data.view(found.batch, found.padded, -1)[:, found.length :].abs().max() == 0


def test_layers_used_twice_add_their_gradients():
    layers, x, maps = case(SETTINGS["no padding"], "encoder_sh", torch.float64)
    other, matrices = convolutions.RowMaps(-0.5 * maps.data, maps.batch, maps.length), {}
    found = convolutions.run(layers, maps, matrices).channels().square().sum()
    found = found + convolutions.run(layers, other, matrices).channels().square().mean()
    expected = layers(x).square().sum() + layers(-0.5 * x).square().mean()
    for a, b in zip(*(torch.autograd.grad(y, list(layers.parameters())) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_unknown_layer_is_refused():
    maps = convolutions.RowMaps.from_spectra(torch.ones(1, 8), 4, torch.float32)
    with pytest.raises(TypeError, match="no fast form of Dropout"):
        convolutions.run(nn.Sequential(nn.Dropout()), maps, {})
