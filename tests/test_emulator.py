"""The emulator: its function, and its training on lines whose depths are known functions of the labels."""

import numpy as np
import pytest
import torch

from cyclestarnet.networks.emulator import Emulator, EmulatorSettings, _unfold, train_emulator

QUICK = {"hidden": (16,), "n_components": 8, "batch_size": 32, "learning_rate": 1e-2, "n_epochs": 30, "patience": 30}


@pytest.fixture(scope="module")
def grid(line_family):
    labels = np.random.default_rng(9).uniform(line_family.labels.lower, line_family.labels.upper, (120, 3))
    return labels, line_family(labels)


def quick(grid, **changes):
    options = {name: changes.pop(name) for name in ("lower", "upper") if name in changes}
    return train_emulator(*grid, settings=EmulatorSettings(**(QUICK | changes)), progress=False, **options)


# -- the function --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("leaky_relu", lambda x: np.where(x > 0, x, 0.01 * x)),
        ("silu", lambda x: x / (1 + np.exp(-x))),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    ],
)
def test_flux_follows_the_definition(rng, activation, function):
    torch.manual_seed(1)
    lower, upper = np.array([4000.0, -1.0]), np.array([5000.0, 1.0])
    emulator = Emulator(lower, upper, 6, hidden=(5, 4), activation=activation).double()
    labels = rng.uniform(lower, upper, (7, 2))
    x, layers = (labels - lower) / (upper - lower) - 0.5, emulator.layers[::2]
    for layer in layers:
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        x = x if layer is layers[-1] else function(x)
    with torch.no_grad():
        np.testing.assert_allclose(emulator(torch.from_numpy(labels)).numpy(), x, rtol=1e-12)


def test_unit_of_a_label_is_scaled_away():
    emulator, in_kilo = Emulator([4000.0], [5000.0], 9, (8,)), Emulator([4.0], [5.0], 9, (8,))
    in_kilo.layers.load_state_dict(emulator.layers.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(emulator(torch.tensor([[4321.0]])), in_kilo(torch.tensor([[4.321]])))


def test_leading_dimensions_are_kept(tiny_emulator):
    assert tiny_emulator(torch.zeros(2, 5, 3)).shape == (2, 5, 415)


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation must be one of .*'silu'.*, but got 'relu'"):
        Emulator([0], [1], 9, activation="relu")


# -- the training ------------------------------------------------------------------------------
def test_training_reaches_a_small_error(tiny_emulator, line_family, rng):
    """On spectra that it has not seen: their scatter is 0.008, the lines are up to 0.4 deep."""
    labels = rng.uniform(line_family.labels.lower, line_family.labels.upper, (200, 3))
    error = np.abs(tiny_emulator(torch.from_numpy(labels).float()).numpy() - line_family(labels))
    assert error.mean() < 4e-4
    assert error.max() < 0.02


def test_derivatives_are_those_of_the_grid(tiny_emulator, line_family):
    """Central differences of the analytic spectra, half the range apart in every label."""
    middle, scale = 0.5 * (line_family.labels.lower + line_family.labels.upper), line_family.labels.scale
    for k in range(3):
        ends = middle + 0.25 * scale * np.eye(3)[k] * np.array([[-1.0], [1.0]])
        true = np.diff(line_family(ends), axis=0)[0]
        found = np.diff(tiny_emulator(torch.from_numpy(ends).float()).numpy(), axis=0)[0]
        assert np.abs(found - true).max() < 0.05 * np.abs(true).max()


def test_folding_the_components_keeps_the_flux(rng):
    torch.manual_seed(2)
    reduced = Emulator([0.0, 0.0], [1.0, 2.0], 4, (6, 5))
    basis, mean = torch.randn(30, 4), torch.randn(30)
    labels = torch.from_numpy(rng.uniform(0, 1, (8, 2))).float()
    expected = reduced(labels) @ basis.T + mean
    torch.testing.assert_close(_unfold(reduced, basis, mean)(labels), expected, rtol=1e-5, atol=1e-5)


def test_same_seed_same_weights(grid):
    first, second = (quick(grid, n_epochs=3)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_global_random_state_is_left_alone(grid):
    before = torch.get_rng_state()
    quick(grid, n_epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_seed_other_weights(grid):
    first, second = (quick(grid, n_epochs=3, seed=seed)[0].layers[0].weight for seed in (0, 1))
    assert not torch.equal(first, second)


def test_validation_error_is_that_of_the_result(grid):
    """The weights of the best epoch are kept, not those of the last."""
    emulator, history = quick(grid, n_epochs=400, learning_rate=0.3, patience=20)
    held = np.random.default_rng(0).permutation(len(grid[0]))[: round(0.05 * len(grid[0]))]
    with torch.no_grad():
        error = np.abs(emulator(torch.from_numpy(grid[0][held]).float()).numpy() - grid[1][held]).mean()
    best = min(row["validation"] for row in history)
    assert history[-1]["validation"] > 1.01 * best
    assert error == pytest.approx(best, rel=1e-3)


def test_training_stops_early(grid):
    _, history = quick(grid, n_epochs=400, learning_rate=0.3, patience=20)
    assert history[-1]["epoch"] < 400


def test_default_range_is_that_of_the_labels(grid):
    emulator, _ = quick(grid, n_epochs=1)
    np.testing.assert_allclose(emulator.lower.numpy(), grid[0].min(0), rtol=1e-6)
    np.testing.assert_allclose(emulator.upper.numpy(), grid[0].max(0), rtol=1e-6)


def test_given_range_is_used(grid, line_family):
    emulator, _ = quick(grid, n_epochs=1, lower=line_family.labels.lower, upper=line_family.labels.upper)
    np.testing.assert_allclose(emulator.upper.numpy(), line_family.labels.upper)


def test_result_is_frozen(tiny_emulator):
    assert not any(parameter.requires_grad for parameter in tiny_emulator.parameters())


# -- bad inputs ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("labels", "flux", "message"),
    [
        (np.ones(5), np.ones((5, 9)), r"must be \(n, n_labels\) and \(n, n_pixels\), but are \(5,\)"),
        (np.ones((5, 2)), np.ones((4, 9)), r"but are \(5, 2\), \(4, 9\)"),
        (np.full((5, 2), np.nan), np.ones((5, 9)), "must be finite"),
        (np.ones((5, 2)), np.full((5, 9), np.inf), "must be finite"),
        (np.ones((5, 2)), np.ones((5, 9)), "every label needs a range"),
        (np.ones((1, 2)), np.ones((1, 9)), "2 spectra or more, but got 1"),
    ],
)
def test_bad_arrays_are_refused(labels, flux, message):
    with pytest.raises(ValueError, match=message):
        train_emulator(labels, flux, progress=False)


def test_range_of_wrong_shape_is_refused(grid):
    with pytest.raises(ValueError, match="every label needs a range"):
        quick(grid, lower=[0.0])


def test_divergence_is_an_error(grid):
    with pytest.raises(FloatingPointError, match="lower the learning_rate"):
        quick(grid, learning_rate=1e30, n_epochs=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_components": 0}, "n_components must be at least 1, but is 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"n_epochs": 0}, "n_epochs must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"validation_fraction": 0.0}, "validation_fraction must be between 0 and 1, but is 0.0"),
        ({"validation_fraction": 1.0}, "validation_fraction must be between 0 and 1"),
        ({"activation": "tanh"}, "activation must be one of"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        EmulatorSettings(**change)
