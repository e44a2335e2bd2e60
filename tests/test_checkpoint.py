"""Files of weights: written at once or not at all, and read without running code."""

import errno
import json
import os
import pickle
import stat

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from cyclestarnet.exceptions import ModelFileError
from cyclestarnet.networks import checkpoint

ARRAYS = {"weight": np.arange(6.0).reshape(2, 3), "mask": np.array([True, False]), "half": np.ones(3, np.float16)}


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def fail(path):
    path.write_bytes(b"half of it")
    raise OSError("disk full")


# -- atomic writing ----------------------------------------------------------------------
def test_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(path, fail)
    assert path.read_bytes() == b"old"


def test_write_that_fails_leaves_no_temporary_file(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(tmp_path / "file", fail)
    assert list(tmp_path.iterdir()) == []


def test_folder_is_made(tmp_path):
    checkpoint.write_atomically(tmp_path / "a" / "b", lambda path: path.write_bytes(b"new"))
    assert (tmp_path / "a" / "b").read_bytes() == b"new"


def test_file_can_be_read_by_others(tmp_path):
    previous = os.umask(0o022)
    try:
        checkpoint.write_atomically(tmp_path / "file", lambda path: path.write_bytes(b"new"))
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


# -- training states -----------------------------------------------------------------------
def test_state_round_trip(tmp_path):
    state = {"weights": {"a": torch.arange(3.0)}, "iteration": 7, "settings": {"betas": (0.5, 0.999), "clip": None}}
    checkpoint.save_state(state, tmp_path / "state.pt")
    read = checkpoint.load_state(tmp_path / "state.pt")
    assert torch.equal(read["weights"].pop("a"), state["weights"].pop("a"))
    assert read == state


def test_previous_state_is_kept(tmp_path):
    for iteration in (1, 2, 3):
        checkpoint.save_state({"iteration": iteration}, tmp_path / "state.pt")
    assert checkpoint.load_state(tmp_path / "state.pt")["iteration"] == 3
    assert checkpoint.load_state(tmp_path / "state.pt.previous")["iteration"] == 2


def test_state_survives_a_failed_save(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    checkpoint.save_state({"iteration": 1}, path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*state\.pt'"):
        checkpoint.save_state({"iteration": 2}, path)
    assert checkpoint.load_state(path)["iteration"] == 1


@pytest.mark.parametrize("n_bytes", [0, 10, 300, -1])
def test_truncated_state_is_damaged(tmp_path, n_bytes):
    path = tmp_path / "state.pt"
    checkpoint.save_state({"weight": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ModelFileError, match=r"state.pt is damaged"):
        checkpoint.load_state(path)


@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_code_in_a_state_does_not_run(tmp_path, write):
    write({"weight": Evil(tmp_path / "made")}, tmp_path / "state.pt")
    with pytest.raises(ModelFileError, match=r"no file of plain weights"):
        checkpoint.load_state(tmp_path / "state.pt")
    assert not (tmp_path / "made").exists()


def test_missing_state_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load_state(tmp_path / "state.pt")


# -- arrays ------------------------------------------------------------------------------------
def test_arrays_round_trip(tmp_path):
    meta = {"name": "x", "limits": {"a": 0.1}, "chips": [[0, 3]]}
    checkpoint.save_arrays(ARRAYS | {"strided": np.arange(8.0)[::2]}, meta, tmp_path / "m.safetensors")
    arrays, read = checkpoint.load_arrays(tmp_path / "m.safetensors")
    assert read == meta
    np.testing.assert_array_equal(arrays.pop("strided"), [0, 2, 4, 6])
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_missing_arrays_are_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file"):
        checkpoint.load_arrays(tmp_path / "m.safetensors")


@pytest.mark.parametrize("n_bytes", [0, 5, 100, -1])
def test_truncated_arrays_are_damaged(tmp_path, n_bytes):
    path = tmp_path / "m.safetensors"
    checkpoint.save_arrays(ARRAYS, {}, path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ModelFileError, match=r"m.safetensors is truncated or no safetensors file"):
        checkpoint.load_arrays(path)


@pytest.mark.parametrize("position", [-1, -30, -56])
def test_one_flipped_bit_is_found(tmp_path, position):
    path = tmp_path / "m.safetensors"
    checkpoint.save_arrays(ARRAYS, {}, path)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="altered"):
        checkpoint.load_arrays(path)


def test_altered_metadata_are_found(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save_arrays(ARRAYS, {"name": "mine"}, path)
    path.write_bytes(path.read_bytes().replace(b"mine", b"thei"))
    with pytest.raises(ModelFileError, match="altered"):
        checkpoint.load_arrays(path)


def test_arrays_of_another_program_are_foreign(tmp_path):
    save_file(ARRAYS, tmp_path / "m.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match=r"another program \(format 'pt'"):
        checkpoint.load_arrays(tmp_path / "m.safetensors")


def test_arrays_without_readable_metadata_are_damaged(tmp_path):
    text = "{no json"
    header = {"format": checkpoint.FORMAT, "metadata": text, "sha256": checkpoint._digest(ARRAYS, text)}
    save_file(ARRAYS, tmp_path / "m.safetensors", metadata=header)
    with pytest.raises(ModelFileError, match=r"metadata of .* are damaged"):
        checkpoint.load_arrays(tmp_path / "m.safetensors")


def test_arrays_without_a_digest_are_refused(tmp_path):
    header = {"format": checkpoint.FORMAT, "metadata": json.dumps({"name": "unsealed"})}
    save_file(ARRAYS, tmp_path / "m.safetensors", metadata=header)
    with pytest.raises(ModelFileError, match="do not fit its sha256"):
        checkpoint.load_arrays(tmp_path / "m.safetensors")


def test_pickle_of_arrays_is_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(pickle.dumps({"weight": Evil(tmp_path / "made")}))
    with pytest.raises(ModelFileError, match="no safetensors file"):
        checkpoint.load_arrays(tmp_path / "m.safetensors")
    assert not (tmp_path / "made").exists()
