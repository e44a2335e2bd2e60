"""Files of weights: atomic writing, and reading that runs no code of the file's."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from cyclestarnet.exceptions import ModelFileError
from cyclestarnet.files import write_atomically
from cyclestarnet.networks.saved import read_saved

__all__ = ["arrays_of", "check_sizes", "load_arrays", "load_state", "save_arrays", "save_state"]

FORMAT = "cyclestarnet-model-1"


def save_state(state: dict, path: str | os.PathLike[str]) -> None:
    """Save the state of a training; the one before is kept, as ``.previous``.

    Parameters
    ----------
    state : dict
        Tensors and plain values, also in dictionaries and lists.
    path : path-like
        File to write, atomically. If there is one, it is renamed: to
        ``state.pt.previous`` for ``state.pt``.

    Examples
    --------
    >>> import tempfile, torch
    >>> from cyclestarnet.networks.checkpoint import load_state, save_state
    >>> path = tempfile.mkdtemp() + "/state.pt"
    >>> save_state({"weights": torch.ones(3), "iteration": 7}, path)
    >>> load_state(path)
    {'weights': tensor([1., 1., 1.]), 'iteration': 7}
    """
    path = Path(path)
    if path.exists():
        _keep(path, path.with_suffix(path.suffix + ".previous"))
    buffer = io.BytesIO()  # written by torch, a full disk would be "unexpected pos 576 vs 534"
    torch.save(state, buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, and the content under that name away."""
    previous.unlink(missing_ok=True)
    try:
        os.link(path, previous)
    except OSError:  # a file system without hard links
        write_atomically(previous, lambda temporary: shutil.copyfile(path, temporary))


def load_state(path: str | os.PathLike[str]) -> dict:
    """Load a state of tensors and plain values; anything else in the file is refused.

    Parameters
    ----------
    path : path-like
        File that `save_state` wrote, or another of ``torch.save``.

    Returns
    -------
    dict
        With its tensors in the memory of the processor.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged, holds code, or is no dictionary.

    Notes
    -----
    All checksums of the file are verified. Files of torch before 1.6 have none.

    Examples
    --------
    A file that would build an object of any class is refused:

    >>> import tempfile, torch
    >>> from fractions import Fraction
    >>> from cyclestarnet.networks.checkpoint import load_state
    >>> path = tempfile.mkdtemp() + "/foreign.pt"
    >>> torch.save({"half": Fraction(1, 2)}, path)
    >>> load_state(path)
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.ModelFileError: ...foreign.pt is damaged or no file of plain weights: ...
    """
    try:
        state = read_saved(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # a different class for each kind of damage
        raise ModelFileError(f"{path} is damaged or no file of plain weights: {error}") from error
    if not isinstance(state, dict):
        raise ModelFileError(f"{path} holds a {type(state).__name__}, where a dictionary of weights was expected")
    return state


def save_arrays(arrays: dict[str, np.ndarray], metadata: dict, path: str | os.PathLike[str]) -> None:
    """Write arrays and plain metadata to one safetensors file, atomically.

    Parameters
    ----------
    arrays : dict of array
        Arrays of numbers by name; NaN is kept.
    metadata : dict
        What JSON can hold.
    path : path-like
        File to write. An old one is replaced.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from cyclestarnet.networks.checkpoint import load_arrays, save_arrays
    >>> path = tempfile.mkdtemp() + "/model.safetensors"
    >>> save_arrays({"bias": np.zeros(2)}, {"name": "giants"}, path)
    >>> load_arrays(path)
    ({'bias': array([0., 0.])}, {'name': 'giants'})
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {"format": FORMAT, "metadata": json.dumps(metadata)}
    header["sha256"] = _digest(contiguous, header["metadata"])
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata=header))


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict]:
    """Read what `save_arrays` wrote.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    arrays : dict of array
        By name.
    metadata : dict
        As it was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is truncated, no safetensors file, not one of ours, or
        was altered since it was written.

    Examples
    --------
    ::

        arrays, metadata = load_arrays("giants.safetensors")
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no model file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # a type of numbers that numpy lacks, for one, is an AttributeError
        raise ModelFileError(f"{path} is truncated or no safetensors file: {error}") from error
    if header.get("format") != FORMAT:
        raise ModelFileError(
            f"{path} is a safetensors file of another program (format {header.get('format')!r}, expected {FORMAT!r})"
        )
    text = header.get("metadata", "")
    digest = _digest(arrays, text)
    if header.get("sha256") != digest:
        raise ModelFileError(f"{path} was altered or damaged after it was written: its contents do not fit its sha256")
    try:
        return arrays, json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"the metadata of {path} are damaged: {error}") from error


def arrays_of(part: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of a part of a file, by their names within it.

    Parameters
    ----------
    part : str
        What their names begin with, without the dot that follows.
    arrays : dict of array
        All arrays of the file.

    Returns
    -------
    dict of array

    Examples
    --------
    >>> from cyclestarnet.networks.checkpoint import arrays_of
    >>> arrays_of("grid", {"grid.wavelength": [1.5, 1.6], "scatter": [0.0, 0.0]})
    {'wavelength': [1.5, 1.6]}
    """
    return {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}


def check_sizes(part: str, network: torch.nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Raise if arrays of a file are not the weights of a network.

    Parameters
    ----------
    part : str
        What their names begin with.
    network : `torch.nn.Module`
        Of the sizes that the file names; best made on the device ``"meta"``, as a file can claim
        networks that no memory holds.
    arrays : dict of array
        All arrays of the file.

    Raises
    ------
    ValueError
        If there are others, or they have other shapes.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from cyclestarnet.networks.checkpoint import check_sizes
    >>> with torch.device("meta"):
    ...     layer = torch.nn.Linear(3, 1)
    >>> check_sizes("layer", layer, {"layer.weight": np.zeros((1, 3)), "layer.bias": np.zeros(1)})
    """
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: value.shape for key, value in arrays_of(part, arrays).items()}
    if wrong := sorted(key for key in wanted | found if wanted.get(key) != found.get(key)):
        raise ValueError(f"the arrays of the {part} are not of the sizes that it names: {', '.join(wrong[:5])}")


def _digest(arrays: dict[str, np.ndarray], text: str) -> str:
    """SHA-256 of arrays and metadata, whatever order a file has them in."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
