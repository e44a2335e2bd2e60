"""The plain networks: sizes of the paper, and an independent float64 computation from the definitions."""

import numpy as np
import pytest
import torch
from torch import nn

from cyclestarnet.exceptions import GridError
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.translation import Critic, NetworkSettings, TranslationNetwork

PAPER = NetworkSettings()


# -- independent truth: loops over the definitions ---------------------------------
def convolution(x, weight, bias, stride):
    """x (channels, length); y[o, i] = b[o] + Σ w[o, c, k] x[c, i stride + k]."""
    kernel = weight.shape[2]
    n = (x.shape[1] - kernel) // stride + 1
    windows = np.stack([x[:, i * stride : i * stride + kernel] for i in range(n)])
    return np.einsum("ock,ick->oi", weight, windows) + bias[:, None]


def transposed_convolution(x, weight, bias, stride):
    """Each input position adds its kernel to the output, at a distance of one stride."""
    kernel, length = weight.shape[2], x.shape[1]
    y = np.zeros((weight.shape[1], (length - 1) * stride + kernel)) + bias[:, None]
    for i in range(length):
        y[:, i * stride : i * stride + kernel] += np.einsum("c,cok->ok", x[:, i], weight)
    return y


def walk(layers, x):
    """Apply a sequence of torch layers to x (channels, length), in numpy."""
    for layer in layers:
        if isinstance(layer, nn.LeakyReLU):
            x = np.where(x > 0, x, layer.negative_slope * x)
        elif isinstance(layer, nn.InstanceNorm1d):
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        else:
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            function = transposed_convolution if isinstance(layer, nn.ConvTranspose1d) else convolution
            x = function(x, weight, bias, layer.stride[0])
    return x


@pytest.fixture(scope="module")
def network(tiny_settings):
    torch.manual_seed(4)
    network = TranslationNetwork(tiny_settings).double()
    for parameter in network.parameters():  # biases that matter
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


# -- sizes -----------------------------------------------------------------------
def test_encoders_and_decoders_have_the_parameters_of_the_paper():
    assert count(TranslationNetwork(PAPER)) == 2_686_815


@pytest.mark.parametrize(("n_latent", "n_parameters"), [(25, 494_945), (29, 495_073)])
def test_critics_have_the_parameters_of_the_paper(n_latent, n_parameters):
    assert count(Critic(PAPER, n_latent)) == n_parameters


def test_emulator_has_the_parameters_of_the_paper():
    assert count(Emulator(np.zeros(25), np.ones(25), 7214, hidden=(300, 300))) == 2_269_514


def test_latents_of_the_paper():
    with torch.no_grad():
        shared, split = TranslationNetwork(PAPER).encode_obs(torch.zeros(1, 7167))
    assert (shared.shape, split.shape) == ((1, 25, 24), (1, 4, 24))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("encoder_synth", ["C 1-32 7/4", "L", "C 32-64 7/4", "L"]),
        ("encoder_obs", ["C 1-32 7/4", "L", "C 32-64 7/4", "L"]),
        ("encoder_sh", ["C 64-128 7/4", "L", "C 128-256 7/2", "L", "C 256-512 7/2", "L", "C 512-25 1/1", "N"]),
        ("encoder_sp", ["C 64-32 7/4", "L", "C 32-32 7/2", "L", "C 32-32 7/2", "L", "C 32-4 1/1", "N"]),
        ("decoder_sp", ["T 4-32 7/2", "L", "T 32-32 7/2", "L", "T 32-32 7/4", "L"]),
        ("decoder_sh", ["T 25-512 7/2", "L", "T 512-256 7/2", "L", "T 256-128 7/4", "L"]),
        ("decoder_synth", ["T 128-64 7/4", "L", "T 64-32 7/4", "L", "C 32-1 1/1"]),
        ("decoder_obs", ["T 160-64 7/4", "L", "T 64-32 7/4", "L", "C 32-1 1/1"]),
    ],
)
def test_layers_of_the_paper(part, expected):
    assert [describe(layer) for layer in getattr(TranslationNetwork(PAPER), part)] == expected


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("discriminator_x", ["C 1-16 7/4", "C 16-32 7/4", "C 32-64 7/4", "C 64-128 7/4", "C 128-256 7/4"]),
        ("discriminator_z", ["C 29-32 1/1", "C 32-64 1/1", "C 64-128 1/1", "C 128-256 1/1", "C 256-512 1/1"]),
    ],
)
def test_layers_of_the_critics(part, expected):
    described = [describe(layer) for layer in getattr(Critic(PAPER, 29), part)]
    assert described == [entry for layer in expected for entry in (layer, "L")]


def describe(layer):
    kinds = {nn.Conv1d: "C", nn.ConvTranspose1d: "T"}
    if type(layer) in kinds:
        return f"{kinds[type(layer)]} {layer.in_channels}-{layer.out_channels} {layer.kernel_size[0]}/{layer.stride[0]}"
    if isinstance(layer, nn.LeakyReLU):
        return "L" if layer.negative_slope == 0.1 else f"slope {layer.negative_slope}"
    return "N" if isinstance(layer, nn.InstanceNorm1d) and not layer.affine else repr(layer)


# -- lengths ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("n_pixels", "message"), [(7214, "7167 and 7423"), (7168, "7167 and 7423"), (7166, "6911 and 7167")]
)
def test_lengths_that_do_not_fit_name_those_that_do(n_pixels, message):
    with pytest.raises(GridError, match=message):
        NetworkSettings(n_pixels=n_pixels)


@pytest.mark.parametrize("n_pixels", [6911, 7423])
def test_lengths_that_are_named_do_fit(n_pixels):
    network = TranslationNetwork(NetworkSettings(n_pixels=n_pixels))
    with torch.no_grad():
        assert network.obs_to_synth(torch.zeros(1, n_pixels)).shape == (1, n_pixels)


def test_too_short_a_spectrum_names_the_shortest_length():
    with pytest.raises(GridError, match=r"10 pixels do not fit.* shortest length that does is 1535"):
        NetworkSettings(n_pixels=10)


def test_a_latent_of_one_position_cannot_be_normalised(tiny_settings):
    with pytest.raises(GridError, match=r"127 pixels do not fit.* shortest length that does is 159"):
        NetworkSettings(**(tiny_settings.to_dict() | {"n_pixels": 127}))


def test_a_latent_of_one_position_is_fine_without_normalisation(tiny_settings):
    settings = NetworkSettings(**(tiny_settings.to_dict() | {"n_pixels": 127, "latent_norm": False}))
    with torch.no_grad():
        assert TranslationNetwork(settings).obs_to_synth(torch.zeros(3, 127)).shape == (3, 127)


def test_critic_needs_enough_pixels():
    layers = ((16, 7, 4),) * 6
    with pytest.raises(GridError, match="1535 pixels are too few for the critic's 6 layers"):
        NetworkSettings(n_pixels=1535, critic_spectrum=layers)


@pytest.mark.parametrize(
    "split",
    [((3, 7, 4),), ((3, 7, 4), (3, 5, 2), (3, 7, 2)), ((3, 7, 4), (3, 6, 2))],
    ids=["fewer", "more", "leaves a pixel over"],
)
def test_split_encoder_must_mirror_the_shared_one(tiny_settings, split):
    with pytest.raises(ValueError, match="split encoder must"):
        NetworkSettings(**(tiny_settings.to_dict() | {"split": split}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": ((32, 7),)}, "domain: each layer is"),
        ({"shared": ((32, 3, 4),)}, "kernel >= stride"),
        ({"critic_latent": ((0, 1, 1),)}, "critic_latent"),
        ({"shared_filters": 0}, "shared_filters must be at least 1"),
        ({"split_filters": -1}, "split_filters at least 0"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NetworkSettings(**change)


def test_settings_survive_plain_data(tiny_settings):
    assert NetworkSettings(**tiny_settings.to_dict()) == tiny_settings


# -- the functions ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("part", "channels", "length"),
    [
        ("encoder_synth", 1, 415),
        ("encoder_obs", 1, 415),
        ("encoder_sh", 8, 103),
        ("encoder_sp", 8, 103),
        ("decoder_sh", 8, 10),
        ("decoder_sp", 2, 10),
        ("decoder_synth", 16, 103),
        ("decoder_obs", 20, 103),
    ],
)
def test_sub_networks_follow_the_definitions(network, rng, part, channels, length):
    layers, x = getattr(network, part), rng.normal(size=(channels, length))
    with torch.no_grad():
        found = layers(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(found, walk(layers, x), rtol=1e-11, atol=1e-12)


def test_synth_to_obs_joins_shared_and_split_channels(network, rng):
    x, z_split = rng.normal(size=(1, 415)), rng.normal(size=(2, 10))
    hidden = walk(network.decoder_sh, walk(network.encoder_sh, walk(network.encoder_synth, x)))
    expected = walk(network.decoder_obs, np.concatenate([hidden, walk(network.decoder_sp, z_split)]))
    with torch.no_grad():
        found = network.synth_to_obs(torch.from_numpy(x), torch.from_numpy(z_split)[None])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-12)


def test_obs_to_synth_uses_the_shared_latent_alone(network, rng):
    x = rng.normal(size=(1, 415))
    hidden = walk(network.decoder_sh, walk(network.encoder_sh, walk(network.encoder_obs, x)))
    with torch.no_grad():
        found = network.obs_to_synth(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), walk(network.decoder_synth, hidden), rtol=1e-11, atol=1e-12)


def test_critic_follows_the_definitions(tiny_settings, rng):
    critic = Critic(tiny_settings, 8).double()
    x, z = rng.normal(size=(1, 415)), rng.normal(size=(8, 10))
    features = np.concatenate([walk(critic.discriminator_x, x).ravel(), walk(critic.discriminator_z, z).ravel()])
    expected = critic.fc.weight.detach().numpy()[0] @ features + critic.fc.bias.item()
    with torch.no_grad():
        found = critic(torch.from_numpy(x), torch.from_numpy(z)[None])
    assert found.item() == pytest.approx(expected, rel=1e-11)


def test_network_without_split_latent(tiny_settings):
    settings = NetworkSettings(**(tiny_settings.to_dict() | {"split_filters": 0}))
    network, x = TranslationNetwork(settings), torch.randn(2, 415)
    shared, split = network.encode_obs(x)
    assert split is None
    assert network.decode_obs(shared, None).shape == (2, 415)


# -- initial weights ---------------------------------------------------------------
@pytest.mark.parametrize("make", [TranslationNetwork, lambda settings: Critic(settings, 29)], ids=["network", "critic"])
def test_initial_weights_fill_the_xavier_range(make):
    torch.manual_seed(0)
    for layer in make(PAPER).modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            n = layer.weight.shape
            bound = np.sqrt(6 / ((n[0] + n[1]) * np.prod(n[2:])))
            largest = layer.weight.abs().max().item()
            assert (0.9 if layer.weight.numel() > 100 else 0.5) * bound < largest  # few draws rarely fill it
            assert largest <= bound * (1 + 1e-6)  # of float32
            assert (layer.bias == 0.01).all()


# -- the table of layers -------------------------------------------------------------
def layers_of(module, x):
    """(filters, kernel, stride, length, parameters) of each layer of a sequence, by torch."""
    rows = []
    for layer in module:
        x = layer(x)
        if hasattr(layer, "kernel_size"):
            n = sum(weight.numel() for weight in layer.parameters())
            rows.append((layer.out_channels, *layer.kernel_size, *layer.stride, x.shape[-1], n))
    return rows, x


@pytest.mark.parametrize("split_filters", [4, 0])
def test_the_table_has_the_layers_of_the_networks(tiny_settings, split_filters):
    settings = NetworkSettings(**(tiny_settings.to_dict() | {"split_filters": split_filters}))
    network, expected, width = TranslationNetwork(settings), {}, 0
    flux, hidden = torch.zeros(2, 1, settings.n_pixels), []
    for domain in ("synth", "obs"):
        expected[f"E_{domain}"], encoded = layers_of(getattr(network, f"encoder_{domain}"), flux)
    for branch in ("sh", "sp") if split_filters else ("sh",):
        expected[f"E_{branch}"], latent = layers_of(getattr(network, f"encoder_{branch}"), encoded)
        expected[f"D_{branch}"], decoded = layers_of(getattr(network, f"decoder_{branch}"), latent)
        hidden.append(decoded)
        width += latent.shape[1]
    expected["D_synth"], _ = layers_of(network.decoder_synth, hidden[0])
    expected["D_obs"], _ = layers_of(network.decoder_obs, torch.cat(hidden, 1))
    for domain, n_latent in (("synth", settings.shared_filters), ("obs", width)):
        critic = Critic(settings, n_latent)
        expected[f"C_{domain}, spectrum"], _ = layers_of(critic.discriminator_x, flux)
        latent = torch.zeros(2, n_latent, settings.latent_length)
        expected[f"C_{domain}, latent"], _ = layers_of(critic.discriminator_z, latent)
        expected[f"C_{domain}"] = [(1, 1, 1, 1, critic.fc.in_features + 1)]
    table = settings.to_table()
    found = {name: [] for name in table["network"]}
    for name, _, *numbers in table.iterrows():
        found[name].append(tuple(numbers))
    assert found == expected


def test_the_figure_of_the_networks_has_their_sizes():
    pytest.importorskip("matplotlib").use("Agg")
    from cyclestarnet.plotting import plot_networks

    layers = {"domain": [(4, 7, 4)], "shared": [(8, 7, 2)], "split": [(5, 7, 2)], "critic_latent": [(9, 1, 1)]}
    ax = plot_networks(NetworkSettings(103, **layers, critic_spectrum=[(6, 7, 4)], split_filters=3))
    text = "\n".join(text.get_text() for text in ax.texts)
    for size in ("103 pixels", "25 × 10", "3 × 10", "spectrum 6\n", "latent 9", "split latent"):
        assert size in text
    alone = plot_networks(NetworkSettings(split_filters=0))
    assert "split latent" not in "\n".join(text.get_text() for text in alone.texts)
