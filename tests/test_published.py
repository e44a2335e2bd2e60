"""Readers of The Payne's public files, against the formula of the paper written out in numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from cyclestarnet import ModelFileError
from cyclestarnet.networks.published import adapt_emulator, read_payne_checkpoint, read_payne_npz

N_LABELS, N_HIDDEN, N_PIXELS = 3, 5, 11


@pytest.fixture
def arrays(rng):
    """Weights in The Payne's layout: w (out, in)."""
    sizes = (N_LABELS, N_HIDDEN, N_HIDDEN, N_PIXELS)
    out = {f"w_array_{k}": rng.normal(size=(sizes[k + 1], sizes[k])) for k in range(3)}
    out |= {f"b_array_{k}": rng.normal(size=sizes[k + 1]) for k in range(3)}
    return out | {"x_min": np.array([3500.0, 0.0, -2.5]), "x_max": np.array([6500.0, 5.0, 0.5])}


def payne(arrays, labels, activation):
    """Ting et al. (2019): two hidden layers on labels scaled to -0.5 ... 0.5."""
    x = (labels - arrays["x_min"]) / (arrays["x_max"] - arrays["x_min"]) - 0.5
    for k in range(2):
        x = activation(arrays[f"w_array_{k}"] @ x + arrays[f"b_array_{k}"])
    return arrays["w_array_2"] @ x + arrays["b_array_2"]


def leaky_relu(x):
    return np.where(x > 0, x, 0.01 * x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(("name", "function"), [("leaky_relu", leaky_relu), ("sigmoid", sigmoid)])
def test_npz_gives_the_published_formula(arrays, tmp_path, name, function):
    np.savez(tmp_path / "payne.npz", **arrays)
    emulator = read_payne_npz(tmp_path / "payne.npz", activation=name)
    labels = np.array([4800.0, 2.5, -0.3])
    flux = emulator(torch.tensor(labels, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(flux, payne(arrays, labels, function), rtol=1e-4, atol=1e-5)


def test_npz_without_a_layer_says_which(arrays, tmp_path):
    del arrays["b_array_1"]
    np.savez(tmp_path / "payne.npz", **arrays)
    with pytest.raises(ModelFileError, match=r"lacks the arrays \['b_array_1'\]"):
        read_payne_npz(tmp_path / "payne.npz")


def test_npz_with_wrong_shape_says_what_fits(arrays, tmp_path):
    arrays["b_array_0"] = np.zeros(N_HIDDEN + 1)
    np.savez(tmp_path / "payne.npz", **arrays)
    with pytest.raises(ModelFileError, match=r"shape \(6,\) where \(5,\) fits"):
        read_payne_npz(tmp_path / "payne.npz")


def test_truncated_npz(arrays, tmp_path):
    np.savez(tmp_path / "payne.npz", **arrays)
    content = (tmp_path / "payne.npz").read_bytes()
    (tmp_path / "payne.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match="damaged"):
        read_payne_npz(tmp_path / "payne.npz")


def save_checkpoint(arrays, path):
    """PAYNE.pth.tar: a plain Sequential's state dict, ranges as numpy arrays."""
    network = nn.Sequential(
        nn.Linear(N_LABELS, N_HIDDEN), nn.LeakyReLU(0.01), nn.Linear(N_HIDDEN, N_HIDDEN), nn.LeakyReLU(0.01),
        nn.Linear(N_HIDDEN, N_PIXELS),
    )  # fmt: skip
    state = {}
    for k in range(3):
        state[f"{2 * k}.weight"] = torch.tensor(arrays[f"w_array_{k}"], dtype=torch.float32)
        state[f"{2 * k}.bias"] = torch.tensor(arrays[f"b_array_{k}"], dtype=torch.float32)
    network.load_state_dict(state)
    torch.save({"Payne": network.state_dict(), "y_min": arrays["x_min"], "y_max": arrays["x_max"]}, path)


def test_checkpoint_gives_the_published_formula(arrays, tmp_path):
    save_checkpoint(arrays, tmp_path / "PAYNE.pth.tar")
    emulator = read_payne_checkpoint(tmp_path / "PAYNE.pth.tar")
    labels = np.array([5200.0, 3.5, 0.1])
    flux = emulator(torch.tensor(labels, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(flux, payne(arrays, labels, leaky_relu), rtol=1e-4, atol=1e-5)


def test_adapted_emulator_has_other_units_and_fewer_pixels(arrays, tmp_path):
    save_checkpoint(arrays, tmp_path / "PAYNE.pth.tar")
    scale = np.array([1e-3, 1.0, 2.0])
    emulator = adapt_emulator(read_payne_checkpoint(tmp_path / "PAYNE.pth.tar"), pixels=slice(2, 9), label_scale=scale)
    labels = np.array([5200.0, 3.5, 0.1])
    flux = emulator(torch.tensor(labels * scale, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(flux, payne(arrays, labels, leaky_relu)[2:9], rtol=1e-4, atol=1e-5)


def test_checkpoint_of_something_else(tmp_path):
    torch.save({"cycle_model": {}}, tmp_path / "other.pth.tar")
    with pytest.raises(ModelFileError, match="must hold Payne, y_min and y_max, but holds"):
        read_payne_checkpoint(tmp_path / "other.pth.tar")


class Planted:
    """Would run a command when unpickled."""

    def __reduce__(self):
        return print, ("code ran",)


def test_checkpoint_with_code_is_refused(tmp_path, capsys):
    torch.save({"Payne": Planted(), "y_min": 0, "y_max": 1}, tmp_path / "evil.pth.tar")
    with pytest.raises(ModelFileError, match="no file of plain weights"):
        read_payne_checkpoint(tmp_path / "evil.pth.tar")
    assert "code ran" not in capsys.readouterr().out
