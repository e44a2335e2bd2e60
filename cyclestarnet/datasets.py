"""What ships with the package: spectra of real stars to try things on, and pretrained models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

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
    """Lend the file of a model that ships with the package.

    Parameters
    ----------
    name : str
        One of `list_models`.

    Yields
    ------
    path
        There while the context lasts.

    Raises
    ------
    ValueError
        If there is no such model; the message lists those that exist.

    Examples
    --------
    >>> from cyclestarnet.datasets import pretrained_file
    >>> with pretrained_file("apogee-giants") as path:
    ...     path.suffix
    '.safetensors'
    """
    if name not in list_models():
        raise ValueError(
            f"no embedded model {name!r}; there are {list_models()}. For a file use CalibratedModel.load(path)"
        )
    with resources.as_file(DATA / f"{name}{SUFFIX}") as path:
        yield path
