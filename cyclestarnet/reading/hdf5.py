"""HDF5 files: looked at in a process of its own before this one trusts libhdf5 with them.

A damaged file can keep libhdf5 busy for ever, or end the process, where no
exception can be caught. So the first look at a file, at all of its names,
shapes, attributes and tables of chunks, is that of a forked process, under a
limit of time. What it finds is remembered as long as the file is the same.
Where processes cannot be forked, as on Windows, this process looks itself.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cyclestarnet.exceptions import CycleStarNetError, FileFormatError

__all__ = ["dataset_of", "open_hdf5", "texts_of"]

LONGEST_LOOK = 15.0  # seconds, and one more for each 50 MB
BYTES_PER_SECOND = 50e6
LARGEST_CHUNK = 2**28  # bytes
LARGEST_ATTRIBUTE = 2**20  # bytes
MOST_OBJECTS = 10_000
DEEPEST = 8
MOST_REMEMBERED = 1000

_remembered: dict[tuple, dict[str, str]] = {}


@contextmanager
def open_hdf5(path: str | os.PathLike[str], what: str = "file") -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; whatever goes wrong within the block is an error of this package.

    Parameters
    ----------
    path : path-like
        The file.
    what : str, optional
        What it should be, for the message if it is not there.

    Yields
    ------
    `h5py.File`
        Take its datasets by `dataset_of`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is truncated or no HDF5 file, or is damaged.

    Examples
    --------
    >>> import tempfile, h5py
    >>> from cyclestarnet.reading.hdf5 import dataset_of, open_hdf5
    >>> path = tempfile.mkdtemp() + "/labels.h5"
    >>> with h5py.File(path, "w") as file:
    ...     file["teff"] = [4500.0, 4600.0]
    >>> with open_hdf5(path) as file:
    ...     dataset_of(file, "teff")[1]
    np.float64(4600.0)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} {path}")
    try:
        _problems(path)
        with h5py.File(path, "r") as file:
            yield file
    except CycleStarNetError:
        raise
    except Exception as error:  # libhdf5 has no class of its own, and numpy and h5py raise what they like
        said = " ".join(str(error).split()) or type(error).__name__
        raise FileFormatError(f"{path} is truncated or no HDF5 file, or is damaged: {said}") from error


def dataset_of(file: h5py.File, name: str) -> h5py.Dataset:
    """Take a dataset of numbers that is whole, and within the file.

    Parameters
    ----------
    file : `h5py.File`
        As `open_hdf5` gives it.
    name : str
        Of the dataset.

    Returns
    -------
    `h5py.Dataset`

    Raises
    ------
    FileFormatError
        If there is none, if it is a link to somewhere else, holds no numbers, or is not all there.

    Examples
    --------
    ::

        with open_hdf5("observed.h5") as file:
            flux = dataset_of(file, "spectra train")[:8]
    """
    path = Path(file.filename)
    problems = _problems(path)
    if f"/{name}" in problems:
        raise FileFormatError(f"{name!r} of {path} {problems[f'/{name}']}")
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise FileFormatError(f"{path} has no dataset {name!r}; it has {', '.join(map(repr, file)) or 'nothing'}")
    if found.dtype.kind not in "fiub":
        raise FileFormatError(f"{name!r} of {path} must hold numbers, but holds {found.dtype}")
    return found


def texts_of(file: h5py.File, name: str) -> list[str]:
    """Read a dataset of texts.

    Parameters
    ----------
    file : `h5py.File`
        As `open_hdf5` gives it.
    name : str
        Of the dataset, which has one axis.

    Returns
    -------
    list of str

    Raises
    ------
    FileFormatError
        If it is a link to somewhere else, holds no texts, or is not all there.

    Examples
    --------
    ::

        with open_hdf5("observed.h5") as file:
            names = texts_of(file, "names train")
    """
    path = Path(file.filename)
    found, problems = file.get(name), _problems(path)
    if f"/{name}" in problems:
        raise FileFormatError(f"{name!r} of {path} {problems[f'/{name}']}")
    if not isinstance(found, h5py.Dataset) or h5py.check_string_dtype(found.dtype) is None or found.ndim != 1:
        raise FileFormatError(f"{name!r} of {path} must be a list of texts")
    return found.asstr()[()].tolist()


# -- the first look ---------------------------------------------------------------------
def _problems(path: Path) -> dict[str, str]:
    """What is wrong with which member of a file."""
    stat = path.stat()
    identity = (str(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if identity not in _remembered:
        if len(_remembered) >= MOST_REMEMBERED:
            _remembered.clear()
        _remembered[identity] = _look(path, LONGEST_LOOK + stat.st_size / BYTES_PER_SECOND)
    return _remembered[identity]


def _look(path: Path, seconds: float) -> dict[str, str]:
    """`_survey` of a file, by a forked process if there can be one."""
    if not hasattr(os, "fork"):
        return _survey(path)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child uses none, and h5py knows of forks
        child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            try:
                said: Any = {"problems": _survey(path)}
            except Exception as error:
                said = {"error": " ".join(str(error).split()) or type(error).__name__}
            with os.fdopen(writer, "w") as pipe:
                json.dump(said, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    answer, ended = bytearray(), False
    os.set_blocking(reader, False)
    until, pause = time.monotonic() + seconds, 0.0005
    try:
        while not ended and time.monotonic() < until:
            try:
                part = os.read(reader, 65536)
                answer += part
                ended = not part
            except BlockingIOError:
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
    finally:
        os.close(reader)
        if not ended:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not ended:
        raise FileFormatError(f"{path} is damaged: libhdf5 does not come to an end with it in {seconds:.0f} s")
    if not answer:
        raise FileFormatError(f"{path} is damaged: libhdf5 crashes on it")
    said = json.loads(answer)
    if "error" in said:
        raise FileFormatError(f"{path} is truncated or no HDF5 file, or is damaged: {said['error']}")
    return said["problems"]


def _survey(path: Path) -> dict[str, str]:
    """Go through a file, and say what is wrong with which member."""
    problems: dict[str, str] = {}
    size = path.stat().st_size
    seen: set[int] = set()

    def go(group: h5py.Group, prefix: str, depth: int) -> None:
        if depth > DEEPEST or len(seen) > MOST_OBJECTS:
            raise ValueError(f"it has more than {MOST_OBJECTS} members, or more than {DEEPEST} levels")
        for name in group:
            where = f"{prefix}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                problems[where] = "is a link to somewhere else, which is not followed; copy the data into the file"
                continue
            try:
                member = group[name]
                address = h5py.h5o.get_info(member.id).addr
            except Exception as error:
                problems[where] = f"is damaged ({' '.join(str(error).split())})"
                continue
            if address in seen and isinstance(member, h5py.Group):
                raise ValueError(f"{where} lies within itself")
            seen.add(address)
            if isinstance(member, h5py.Dataset):
                try:
                    problem = _problem(member, size)
                    if not problem:
                        _check_texts(member)
                except Exception as error:
                    problem = f"is damaged ({' '.join(str(error).split())})"
                if problem:
                    problems[where] = problem
            elif isinstance(member, h5py.Group):
                _check_attributes(member)
                go(member, where, depth + 1)

    with h5py.File(path, "r") as file:
        _check_attributes(file)
        go(file, "", 0)
    return problems


def _check_attributes(member: h5py.Group) -> None:
    if len(member.attrs) > MOST_OBJECTS:
        raise ValueError(f"it has more than {MOST_OBJECTS} attributes")
    for name in member.attrs:
        attribute = member.attrs.get_id(name)
        if attribute.get_storage_size() > LARGEST_ATTRIBUTE:
            raise ValueError(f"the attribute {name!r:.80} is larger than {LARGEST_ATTRIBUTE} bytes")
        if attribute.dtype.kind in "fiubSUO" and h5py.check_ref_dtype(attribute.dtype) is None:
            np.asarray(member.attrs[name]).tolist()  # texts are read and decoded here, or raise


def _problem(dataset: h5py.Dataset, file_size: int) -> str:
    """What is wrong with a dataset, or nothing."""
    if dataset.shape is None:
        return "is empty"
    text = h5py.check_string_dtype(dataset.dtype)
    if dataset.dtype.kind not in "fiub" and text is None:
        return f"must hold numbers, but holds {dataset.dtype}"
    if dataset.external is not None or dataset.is_virtual:
        return "has its data in other files, which are not opened; copy them into the file"
    # A text of any length is a length and a place in the file.
    item = 16 if text is not None and text.length is None else dataset.dtype.itemsize
    n_bytes = math.prod(dataset.shape) * item
    if dataset.chunks is None:
        stored, start = dataset.id.get_storage_size(), dataset.id.get_offset()
        if stored != n_bytes or (start is not None and start + n_bytes > file_size) or n_bytes > file_size:
            return f"shall have {n_bytes} bytes, but they are not in the file"
        return ""
    chunk = math.prod(dataset.chunks) * item
    if chunk > LARGEST_CHUNK:
        return f"has chunks of {chunk} bytes; {LARGEST_CHUNK} are the most that are read"
    wanted = math.prod(-(-n // step) for n, step in zip(dataset.shape, dataset.chunks, strict=True))
    if wanted > file_size or dataset.id.get_num_chunks() != wanted:
        return f"shall have {wanted} chunks of data, but they are not all in the file"
    filtered = bool(dataset._filters)
    beyond: list[str] = []

    def check(info: Any) -> None:
        if info.byte_offset is None or info.byte_offset + info.size > file_size:
            beyond.append("has chunks that lie beyond the end of the file")
        elif not filtered and info.size != chunk:
            beyond.append("has chunks of another size than its header says")
        elif any(
            at % step or at >= n for at, step, n in zip(info.chunk_offset, dataset.chunks, dataset.shape, strict=True)
        ):
            beyond.append("has chunks in places where none belong")

    dataset.id.chunk_iter(check)
    return beyond[0] if beyond else ""


def _check_texts(dataset: h5py.Dataset) -> None:
    if h5py.check_string_dtype(dataset.dtype) is not None:
        dataset.asstr()[()]  # what does not end here, would not end there
