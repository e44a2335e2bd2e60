"""What ships with the package: spectra of real stars to try things on, and pretrained models."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from astropy.utils.data import clear_download_cache, download_file

from cyclestarnet.exceptions import ModelFileError
from cyclestarnet.io import read_apvisit
from cyclestarnet.spectra import Spectrum

__all__ = ["k_giant", "list_models"]

DATA = resources.files("cyclestarnet.data")
K_GIANT = "apVisit-r13-9518-57729-104.fits"
SUFFIX = ".safetensors"


def k_giant() -> Spectrum:
    """Read the spectrum of a real K giant: one visit of APOGEE, at rest, with errors and mask.

    Returns
    -------
    `~specutils.Spectrum`
        Not normalised. A fit with the packaged model finds 4523 K and log g 2.3.

    Examples
    --------
    >>> from cyclestarnet import datasets
    >>> datasets.k_giant().flux.unit
    Unit("1e-17 erg / (Angstrom s cm2)")
    """
    with resources.as_file(DATA / K_GIANT) as path:
        return read_apvisit(path)


def list_models() -> list[str]:
    """List the models that ship with the package.

    Returns
    -------
    list of str
        Names that `~cyclestarnet.CalibratedModel.from_pretrained` takes.

    Examples
    --------
    >>> from cyclestarnet import datasets
    >>> datasets.list_models()
    ['apogee-dwarfs', 'apogee-giants', 'apogee-giants-anchored']
    """
    return sorted(p.name.removesuffix(SUFFIX) for p in DATA.iterdir() if p.name.endswith(SUFFIX))


@contextmanager
def pretrained_file(name: str) -> Iterator[Path]:
    """Lend the file of a model that ships with the package, or that somebody publishes.

    Parameters
    ----------
    name : str
        One of `list_models`, or an address, see `fetch_model`.

    Yields
    ------
    path
        There while the context lasts.

    Raises
    ------
    ValueError
        If there is no such model; the message lists those that exist.
    OSError, ModelFileError
        As `fetch_model`.

    Examples
    --------
    >>> from cyclestarnet.datasets import pretrained_file
    >>> with pretrained_file("apogee-giants") as path:
    ...     path.suffix
    '.safetensors'
    """
    if "://" in name:
        yield fetch_model(name)
        return
    if name not in list_models():
        raise ValueError(
            f"no embedded model {name!r}; there are {list_models()}. For a file use CalibratedModel.load(path), for "
            "a model that somebody publishes its address, https://…"
        )
    with resources.as_file(DATA / f"{name}{SUFFIX}") as path:
        yield path


def fetch_model(url: str) -> Path:
    """Fetch the file of a model, once: from then on it is in the download cache of astropy.

    Parameters
    ----------
    url : str
        Where the file is. ``#sha256=`` and the 64 hexadecimal digits of the file's SHA-256 may follow: then no other
        file is taken for it. A file in the cache that does not fit is fetched anew.

    Returns
    -------
    `~pathlib.Path`
        In the cache.

    Raises
    ------
    OSError
        If it is not in the cache and cannot be fetched: there is no network, or
        ``astropy.utils.data.conf.allow_internet`` is False.
    ModelFileError
        If it is another file than the address says.
    ValueError
        If what follows ``#`` is no SHA-256.

    Examples
    --------
    ::

        path = fetch_model("https://survey.example/models/optical-1.safetensors#sha256=0f3c…")
    """
    address, mark, fragment = url.partition("#")
    expected = fragment.lower().removeprefix("sha256=")
    if mark and not (fragment.lower().startswith("sha256=") and re.fullmatch("[0-9a-f]{64}", expected)):
        raise ValueError(f"#sha256= and 64 hexadecimal digits may follow an address, but {fragment!r} does")
    path = _fetched(address)
    if mark and _sha256(path) != expected:  # the cached one may be of an earlier day
        path = _fetched(address, cache="update")
    if mark and (found := _sha256(path)) != expected:
        clear_download_cache(address)
        raise ModelFileError(f"{address} is another file than was asked for: its sha256 is {found}, not {expected}")
    return path


def _fetched(address: str, *, cache: bool | str = True) -> Path:
    try:
        return Path(download_file(address, cache=cache, show_progress=False))
    except (OSError, ValueError) as error:  # a URLError is an OSError; ValueError: an address of an unknown kind
        raise OSError(
            f"{address} is not in the download cache of astropy, and cannot be fetched ({error}); give an address that "
            "can be reached, or fetch the file by other means and use CalibratedModel.load(path)"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
