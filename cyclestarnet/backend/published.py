"""Readers of the public files of The Payne and of Cycle-StarNet; nothing in a file is ever executed."""

from __future__ import annotations

import codecs
from pathlib import Path

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct

from cyclestarnet.backend.checkpoint import load_state
from cyclestarnet.backend.emulator import Emulator
from cyclestarnet.exceptions import ModelFileError

__all__ = ["read_payne_checkpoint", "read_payne_npz"]

# The ranges were saved as numpy arrays. These build arrays and nothing else; numpy 1 and 2 name them differently.
_ARRAY_PARTS = [
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    (codecs.encode, "_codecs.encode"),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64")),
]


def read_payne_npz(path, *, activation="leaky_relu"):
    """Read an emulator from The Payne's ``NN_normalized_spectra.npz``.

    Parameters
    ----------
    path : path-like
        Arrays ``w_array_0`` ... ``w_array_2``, ``b_array_0`` ..., ``x_min``, ``x_max``.
    activation : {"leaky_relu", "sigmoid"}, optional
        The file does not say. Files of 2019 and later have leaky ReLU, older ones sigmoids.

    Returns
    -------
    `~cyclestarnet.backend.emulator.Emulator`

    Raises
    ------
    ModelFileError
        If arrays are missing or their shapes do not fit.
    """
    try:
        with Path(path).open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], dtype=np.float32) for name in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and zipfile raise a class of their own for each kind of damage
        raise ModelFileError(f"{path} is damaged or no .npz file of plain arrays: {error}") from error
    needed = [f"{kind}_array_{k}" for k in range(3) for kind in "wb"] + ["x_min", "x_max"]
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ModelFileError(f"{path} lacks the arrays {missing} of The Payne; it has {sorted(arrays)}")
    weights = [(arrays[f"w_array_{k}"], arrays[f"b_array_{k}"]) for k in range(3)]
    return _emulator(weights, arrays["x_min"], arrays["x_max"], activation, path)


def read_payne_checkpoint(path):
    """Read an emulator from the public ``PAYNE.pth.tar`` of Cycle-StarNet.

    Parameters
    ----------
    path : path-like
        A dictionary of ``Payne`` (state dict: two hidden layers and an output
        layer), ``y_min`` and ``y_max``. Read with ``weights_only``.

    Returns
    -------
    `~cyclestarnet.backend.emulator.Emulator`

    Raises
    ------
    ModelFileError
        If the file is damaged, holds code, or has another layout.
    """
    with torch.serialization.safe_globals(_ARRAY_PARTS):
        content = load_state(path)
    if not isinstance(content, dict) or not {"Payne", "y_min", "y_max"} <= set(content):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ModelFileError(f"{path} must hold Payne, y_min and y_max, but holds {found}")
    state = content["Payne"]
    tensors = [np.asarray(value, dtype=np.float32) for value in state.values()]
    weights = [value for value in tensors if value.ndim == 2]
    biases = [value for value in tensors if value.ndim == 1]
    if len(weights) != 3 or len(biases) != 3:
        raise ModelFileError(f"{path}: the emulator must have three linear layers, but its arrays are {list(state)}")
    layers = list(zip(weights, biases, strict=True))
    return _emulator(layers, np.asarray(content["y_min"]), np.asarray(content["y_max"]), "leaky_relu", path)


def _emulator(layers, lower, upper, activation, path: Path) -> Emulator:
    lower, upper = np.ravel(lower), np.ravel(upper)
    sizes = [weight.shape[0] for weight, _ in layers]
    emulator = Emulator(lower, upper, sizes[-1], sizes[:-1], activation)
    state = emulator.state_dict()
    for k, (weight, bias) in enumerate(layers):
        for name, value in ((f"layers.{2 * k}.weight", weight), (f"layers.{2 * k}.bias", bias)):
            if state[name].shape != value.shape:
                wanted = tuple(state[name].shape)
                raise ModelFileError(f"{path}: layer {k} has an array of shape {value.shape} where {wanted} fits")
            state[name] = torch.from_numpy(value.copy())
    emulator.load_state_dict(state)
    return emulator.eval().requires_grad_(False)
