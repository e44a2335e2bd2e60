"""Where the spectra of a survey come from: files, memory or HDF5, each read when its turn comes."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TypeAlias

import astropy.units as u
import numpy as np
from astropy.nddata import StdDevUncertainty

from cyclestarnet.exceptions import FileFormatError, GridError, SpectrumError
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.io.readers import read
from cyclestarnet.io.training_set import Selection, TrainingSet
from cyclestarnet.reading.hdf5 import dataset_of, open_hdf5
from cyclestarnet.spectra import PortableSpectrum, Spectrum, row_of, star_name

__all__ = ["StarSource", "splits_of", "star_sources", "survey_sources"]

FITS_ENDINGS = (".fits", ".fit", ".fits.gz", ".fits.fz", ".fits.bz2")
HDF5_ENDINGS = (".h5", ".hdf5")


class StarSource:
    """One star whose spectrum is read when its turn comes, be it in this process or in another.

    `star_sources` makes them of whatever holds the spectra of many stars.

    Examples
    --------
    ::

        for star in star_sources("spectra/apStar-*.fits"):
            print(star.name, star.read().meta["snr"])
    """

    @property
    def name(self) -> str:
        """What tables call the star: its path, its name in the metadata, or its row. May be empty."""
        raise TypeError("subclasses define name")

    @property
    def identity(self) -> str:
        """Text by which a run that goes on after a kill knows the star again."""
        return self.name

    @property
    def file(self) -> str | None:
        """File that the spectrum is in; None if it is in memory."""
        return None

    def read(self) -> Spectrum:
        """Read the spectrum.

        Returns
        -------
        `~specutils.Spectrum`
            As it is, not yet on the pixels of a model.

        Raises
        ------
        TypeError
            If a list of stars holds something else.
        OSError
            If there is no such file, or it cannot be read.

        Examples
        --------
        ::

            spectrum = star_sources("apStar-star.fits")[0].read()
        """
        raise TypeError("subclasses define read")


@dataclass(frozen=True)
class _File(StarSource):
    path: str
    reader: Callable[[str], Spectrum]

    @property
    def name(self) -> str:
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")  # a file name may be any bytes

    @property
    def file(self) -> str:
        return self.path

    def read(self) -> Spectrum:
        return self.reader(self.path)


@dataclass(frozen=True, eq=False)
class _Given(StarSource):
    spectrum: Spectrum

    def __reduce__(self):
        return _Given, (PortableSpectrum(self.spectrum) if isinstance(self.spectrum, Spectrum) else self.spectrum,)

    @property
    def name(self) -> str:
        return star_name(self.spectrum)

    @property
    def identity(self) -> str:
        if not isinstance(self.spectrum, Spectrum):
            return type(self.spectrum).__name__
        digest = hashlib.sha256()
        arrays = (self.spectrum.flux, self.spectrum.spectral_axis, self.spectrum.mask)
        for array in (*arrays, getattr(self.spectrum.uncertainty, "array", None)):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return f"{self.name} {digest.hexdigest()[:16]}"

    def read(self) -> Spectrum:
        if not isinstance(self.spectrum, Spectrum):
            raise TypeError(f"a star must be a specutils.Spectrum or a path, but is a {type(self.spectrum).__name__}")
        return self.spectrum


@dataclass(frozen=True, eq=False)
class _StackRow(StarSource):
    stack: Spectrum
    row: int

    @property
    def name(self) -> str:
        names = (self.stack.meta or {}).get("object")
        if isinstance(names, list | tuple | np.ndarray) and len(names) == len(self.stack.flux):
            return star_name(SimpleNamespace(meta={"object": names[self.row]}))
        return star_name(self.stack)

    @property
    def identity(self) -> str:
        return _Given(self.read()).identity

    def read(self) -> Spectrum:
        return row_of(self.stack, self.row)

    def __reduce__(self):  # a row travels to a worker without the others
        return _Given, (self.read(),)


@dataclass(frozen=True, eq=False)
class _TrainingRow(StarSource):
    rows: _TrainingRows
    row: int

    @property
    def name(self) -> str:
        return self.rows.name(self.row) or self.identity

    @property
    def identity(self) -> str:
        return f"{self.rows.dataset.path} {self.rows.dataset.split} {self.row}"

    @property
    def file(self) -> str:
        return os.fspath(self.rows.dataset.path)

    def read(self) -> Spectrum:
        return self.rows.read(self.row)


def _stars_first(stack: Spectrum) -> bool:
    """Whether the spectral axis of a stack is the last one; specutils 1 knows no other."""
    return getattr(stack, "spectral_axis_index", stack.flux.ndim - 1) == stack.flux.ndim - 1


class _TrainingRows:
    """Rows of a training file as spectra; neighbours are read together and kept until others are wanted."""

    def __init__(self, dataset: TrainingSet, wavelength: u.Quantity):
        self.dataset, self.wavelength = dataset, wavelength
        self._block: tuple[int, int, tuple] = (0, 0, ())
        self._names: tuple[str, ...] | None = dataset.names

    def name(self, row: int) -> str:
        return "" if self._names is None else self._names[row].strip()

    def read(self, row: int) -> Spectrum:
        start, stop, arrays = self._block
        if not start <= row < stop:
            start = row - row % self.dataset.block_rows
            stop = min(start + self.dataset.block_rows, len(self.dataset))
            try:
                arrays = self.dataset.read(start, stop)
            except FileFormatError:  # damage in one row must not cost the others
                start, stop, arrays = row, row + 1, self.dataset.read(row, row + 1)
            self._block = (start, stop, arrays)
        flux, sigma, mask = (array[row - start] for array in arrays)
        return Spectrum(
            flux=flux * u.one,
            spectral_axis=self.wavelength,
            uncertainty=StdDevUncertainty(sigma),
            mask=mask,
            meta={"object": self.name(row)},
        )

    def __reduce__(self):  # without the rows that were read
        return _TrainingRows, (self.dataset, self.wavelength)


Spectra: TypeAlias = str | os.PathLike[str] | Spectrum | TrainingSet | Iterable[Spectrum | str | os.PathLike[str]]


def star_sources(
    spectra: Spectra,
    *,
    grid: WavelengthGrid | None = None,
    selection: Selection | None = None,
    reader: Callable[[str], Spectrum] = read,
) -> list[StarSource] | Iterator[StarSource]:
    """Turn whatever holds the spectra of stars into a list of stars, none of which is read yet.

    Parameters
    ----------
    spectra : iterable of `~specutils.Spectrum` or path-like, or one of:
        a path; a pattern such as ``"spectra/apStar-*.fits"``, whose matches
        are sorted; a `~specutils.Spectrum` of one star or of many, with the spectral axis where it says;
        an HDF5 file in the layout of `cyclestarnet.io.write_training_set`
        (``.h5`` or ``.hdf5``), or a `~cyclestarnet.io.TrainingSet`, if the file
        has several splits or other pixels.
    grid : `~cyclestarnet.WavelengthGrid`, optional
        Pixels of an HDF5 file that has no dataset ``wavelength``.
    selection : `~cyclestarnet.io.Selection`, optional
        Which spectra of an HDF5 file to take. Default: all.
    reader : callable, optional
        Reads a path to a `~specutils.Spectrum`. It must be importable, not a
        lambda, if other processes are to call it. Default: `cyclestarnet.io.read`.

    Returns
    -------
    list of `StarSource`, or an iterator
        In the order given, that of the sorted matches, or that of the rows. Of a generator or another
        iterator an iterator, which reads it as stars are asked for.

    Raises
    ------
    FileNotFoundError
        If nothing matches the pattern, or there is no such file. A file in a list is looked for when its turn comes.
    IsADirectoryError
        If the path is a folder.
    TypeError
        If ``spectra`` is none of these.
    FileFormatError, GridError
        If the HDF5 file is damaged, or its pixels are not known.
    SpectrumError
        If the HDF5 file has no errors, or none of its spectra passes the selection.

    Examples
    --------
    >>> from cyclestarnet.io.stars import star_sources
    >>> [star.name for star in star_sources(["apStar-a.fits", "apStar-b.fits"])]
    ['apStar-a.fits', 'apStar-b.fits']
    """
    if isinstance(spectra, str | os.PathLike):
        path = os.fspath(spectra)
        if glob.has_magic(path) and not os.path.lexists(path):
            spectra = sorted(glob.glob(path, recursive=True))
            if not spectra:
                raise FileNotFoundError(f"no file matches the pattern {path!r}; the working directory is {os.getcwd()}")
        elif Path(path).suffix.lower() in HDF5_ENDINGS:
            spectra = TrainingSet(path, split=_only_split(path))
        else:
            if os.path.isdir(path):
                raise IsADirectoryError(
                    errno.EISDIR, f"this is a folder; name its files by a pattern such as '{path}/apStar-*.fits'", path
                )
            if not os.path.exists(path):
                raise FileNotFoundError(f"no file {path}; the working directory is {os.getcwd()}")
            spectra = [path]
    if isinstance(spectra, TrainingSet):
        rows = _TrainingRows(spectra, _wavelength(spectra, grid))
        chosen = range(len(spectra)) if selection is None else spectra.rows(selection).tolist()
        return [_TrainingRow(rows, row) for row in chosen]
    if selection is not None:
        raise TypeError(f"selection = {selection} chooses from an HDF5 file, but spectra is no such file")
    if isinstance(spectra, Spectrum):
        if spectra.flux.ndim > 2:
            raise SpectrumError(f"flux must have the shape (n_pixels,) or (n, n_pixels), but has {spectra.flux.shape}")
        if spectra.flux.ndim == 1:
            return [_Given(spectra)]
        n_stars = spectra.flux.shape[0 if _stars_first(spectra) else 1]
        return [_StackRow(spectra, k) for k in range(n_stars)]
    if isinstance(spectra, Mapping) or not isinstance(spectra, Iterable):
        raise TypeError(f"spectra must be spectra or paths, in a list if many, but is a {type(spectra).__name__}")
    stars = (
        _File(os.fspath(item), reader) if isinstance(item, str | os.PathLike) else _Given(item) for item in spectra
    )
    return stars if isinstance(spectra, Iterator) else list(stars)


def survey_sources(
    spectra: Spectra,
    *,
    grid: WavelengthGrid | None = None,
    split: str | None = None,
    reader: Callable[[str], Spectrum] = read,
) -> list[StarSource]:
    """List the stars of whatever a user names on a command line: as `star_sources`, and folders and lists in files.

    Parameters
    ----------
    spectra : path-like, or all that `star_sources` takes
        A folder, whose FITS files are taken, also those of its folders; a text file with a path in each line, relative
        to its own folder (``#`` begins a comment).
    grid : `~cyclestarnet.WavelengthGrid`, optional
        As in `star_sources`.
    split : str, optional
        Of an HDF5 file. Default: the only one.
    reader : callable, optional
        As in `star_sources`.

    Returns
    -------
    list of `StarSource`
        None of them is read yet.

    Raises
    ------
    FileNotFoundError, FileFormatError
        As `star_sources`, and if a folder has no FITS file, or a file of text is no list.
    ValueError
        If there is no star.

    Examples
    --------
    ::

        stars = survey_sources("spectra", grid=model.grid)
    """
    if isinstance(spectra, str | os.PathLike):
        path = Path(spectra)
        if path.is_dir():
            spectra = _files_of_folder(path)
        elif path.suffix.lower() in HDF5_ENDINGS and split is not None:
            spectra = TrainingSet(path, split=split)
        elif path.is_file() and not path.name.lower().endswith((*FITS_ENDINGS, *HDF5_ENDINGS)):
            spectra = _files_of_list(path)
    stars = list(star_sources(spectra, grid=grid, reader=reader))
    if not stars:
        raise ValueError("there are no spectra")
    return stars


def _files_of_folder(folder: Path) -> list[str]:
    files = [
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(FITS_ENDINGS) and not name.startswith(".")
    ]
    if not files:
        raise FileNotFoundError(f"no FITS file in {folder} or its folders")
    return sorted(files)


def _files_of_list(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is no FITS file by its name, and no list of paths by what it holds") from None
    files = [os.path.join(path.parent, line) for line in lines if line and not line.startswith("#")]
    if not files:
        raise FileFormatError(f"{path} lists no files; it must have a path in each line")
    return files


def splits_of(path: str | os.PathLike[str]) -> list[str]:
    """List the splits of a training file.

    Parameters
    ----------
    path : path-like
        HDF5 file in the layout of `cyclestarnet.io.write_training_set`.

    Returns
    -------
    list of str
        Such as ``"train"``; empty if the file has none.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If it is not there, or damaged.

    Examples
    --------
    ::

        splits_of("stars.h5")
    """
    with open_hdf5(path, "training file") as file:
        return [name.removeprefix("spectra ") for name in file if name.startswith("spectra ")]


def _only_split(path: str) -> str:
    """The split of a training file that has one only."""
    splits = splits_of(path)
    if len(splits) > 1:
        raise FileFormatError(
            f"{path} has the splits {', '.join(splits)}; choose one: TrainingSet({path!r}, split={splits[0]!r})"
        )
    return splits[0] if splits else "train"


def _wavelength(dataset: TrainingSet, grid: WavelengthGrid | None) -> u.Quantity:
    """Wavelengths of the pixels of a training set, of its file or else of a grid."""
    if dataset.domain != "observed":
        raise SpectrumError(f"{dataset!r} has no errors, without which no pixel can be weighted; use domain='observed'")
    with open_hdf5(dataset.path) as file:
        found = dataset_of(file, "wavelength")[()] if "wavelength" in file else None
    if found is not None:
        if found.ndim != 1 or len(found) < dataset.pixels.stop:
            n_pixels = dataset.pixels.stop
            raise GridError(f"'wavelength' of {dataset.path} has the shape {found.shape}, not ({n_pixels},) or more")
        return found[dataset.pixels] * u.AA
    if grid is None:
        raise GridError(f"{dataset.path} has no dataset 'wavelength'; give the grid of its pixels")
    TrainingSet(dataset.path, split=dataset.split, pixels=dataset.pixels, grid=grid)  # raises if they do not fit
    return grid.wavelength
