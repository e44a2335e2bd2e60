"""A set of stars that is fitted in several ways, and what the fits leave over, however many stars there are.

Fits are those of `~cyclestarnet.CalibratedModel.fit_many`, with its journal. Residuals of the labels in the tables are
counted afterwards, block by block, in densities that do not grow; these are saved every minute. With a folder, the
same call after a kill goes on where it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.table import QTable

from cyclestarnet.exceptions import FileFormatError, SpectrumError
from cyclestarnet.files import write_hdf5
from cyclestarnet.io.stars import StarSource
from cyclestarnet.labels import LabelSet, unit_of_label
from cyclestarnet.model import CalibratedModel
from cyclestarnet.model_file import digest_of
from cyclestarnet.pipeline.columns import SurveySetup
from cyclestarnet.pipeline.fit import fit_numbered
from cyclestarnet.pipeline.journal import read_results
from cyclestarnet.pipeline.leftovers import residuals_at
from cyclestarnet.pipeline.many import failed_row, fit_survey
from cyclestarnet.pipeline.options import FitOptions, ManyOptions
from cyclestarnet.processes import run_in_processes
from cyclestarnet.progress import tqdm
from cyclestarnet.reading.hdf5 import dataset_of, open_hdf5
from cyclestarnet.residuals import ResidualDensity
from cyclestarnet.spectra import Spectrum
from cyclestarnet.storage import origin

__all__ = ["FittedSet", "LeftOver", "fits_path", "state_of_stars"]

log = logging.getLogger(__name__)

BLOCK = 32  # stars whose residuals are counted together
SAVE_SECONDS = 60.0  # of counting that a kill may cost
FITS_FILES, RESIDUALS_FILE = "tables/fits_*.fits*", "residuals.h5"


@dataclass(frozen=True, eq=False)
class LeftOver:
    """Residuals that are to be counted.

    Parameters
    ----------
    table : str or None
        Name of the fits whose labels are taken. None: what the autoencoder of the observed domain leaves over.
    in_sigma : bool, optional
        In units of the quoted errors (default), or of the continuum.
    hidden : array of bool, shape (n_pixels,), optional
        Pixels that do not count. Default: all do.

    Examples
    --------
    >>> from cyclestarnet.training.fitted_sets import LeftOver
    >>> LeftOver("emulator", in_sigma=False).table
    'emulator'
    """

    table: str | None
    in_sigma: bool = True
    hidden: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class FittedSet:
    """Stars, and the model that fits them.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model.
    stars : list of `~cyclestarnet.io.stars.StarSource`
        The stars.
    folder : path or None
        Where tables and residuals go, as `~cyclestarnet.journal.run_folder` guards it. None: nowhere, and a kill costs
        everything.
    workers : int, optional
        Processes of this machine that work side by side. Default: 1, this one.
    progress : bool, optional
        Show bars. Default: True.

    Examples
    --------
    ::

        stars = FittedSet(model, star_sources("spectra/apStar-*.fits"), Path("work"))
        table = stars.table("emulator", FitOptions(space="emulator"))
        left = stars.left_over({"emulator": ("emulator", table)}, {"emulator": LeftOver("emulator")})
    """

    model: CalibratedModel
    stars: list[StarSource]
    folder: Path | None
    workers: int = 1
    progress: bool = True

    @cached_property
    def _state(self) -> str:
        return state_of_stars(self.stars)

    def table(self, name: str, options: FitOptions) -> QTable:
        """Fit the stars, or go on with that, or read what was done.

        Parameters
        ----------
        name : str
            Of the fits, for the file and the bar.
        options : `~cyclestarnet.FitOptions`
            Of the fits.

        Returns
        -------
        `~astropy.table.QTable`
            As of `~cyclestarnet.CalibratedModel.fit_many`. With a folder it is also in ``tables/fits_NAME.fits`` there.

        Raises
        ------
        SpectrumError
            If none of the stars can be fitted.

        Examples
        --------
        ::

            stars.table("observed", FitOptions())["teff"]
        """
        setup = SurveySetup.of(self.model, options)
        path = None if self.folder is None else fits_path(self.folder, name)
        about = {"model": self.model.name, "weights": digest_of(self.model)}
        meta = origin(about, options) | {"stars": self._state}
        table = None if path is None or Path(f"{path}.partial").exists() else _known(path, meta)
        if table is None:
            fit: Any = partial(fit_numbered, setup=setup)  # mypy takes no list of results for one of what has a row
            table = fit_survey(
                self.stars,
                fit,
                partial(failed_row, setup.label_set),
                ManyOptions(output=path, overwrite=True, workers=self.workers, progress=self.progress),
                run=about | vars(options),
                meta=meta,
                task=name,
            )
        if not np.isfinite(table["reduced_chi2"]).any():
            raise SpectrumError(f"none of the {len(table)} stars can be fitted; the first: {table['message'][0]}")
        return table

    def left_over(
        self, tables: Mapping[str, tuple[str, QTable]], wanted: Mapping[str, LeftOver]
    ) -> dict[str, ResidualDensity]:
        """Count what is left over of all stars.

        Parameters
        ----------
        tables : mapping of str to (str, `~astropy.table.QTable`)
            Fits of these stars by name, with their space.
        wanted : mapping of str to `LeftOver`
            What is to be counted, by any name.

        Returns
        -------
        dict of `~cyclestarnet.residuals.ResidualDensity`
            By these names.

        Examples
        --------
        ::

            stars.left_over({"fits": ("observed", table)}, {"σ": LeftOver("fits")})["σ"].statistics
        """
        counted = _Counted.begun(self, wanted)
        labels = {
            name: (space, _values(self.model.labels, table)) for name, (space, table) in tables.items()
        }  # fmt: skip
        work = _Residuals(self.model, dict(wanted))
        rest = [block for block, done in enumerate(counted.done) if not done]
        jobs = ((block, self._job(block, labels)) for block in rest)
        results: Any  # a generator, of this process or of others
        if self.workers > 1 and rest:
            results = run_in_processes(work, jobs, self.workers, what="residuals were counted")
        else:
            results = ((block, work(job)) for block, job in jobs)
        begun = len(self.stars) - sum(len(self._part(block)) for block in rest)
        bar = tqdm(
            total=len(self.stars), initial=begun, desc="residuals", unit=" stars", disable=not self.progress
        )  # fmt: skip
        saved = time.monotonic()
        try:
            with bar, closing(results):
                for block, values in results:
                    counted.add(block, values)
                    bar.update(len(self._part(block)))
                    if time.monotonic() - saved > SAVE_SECONDS:
                        counted.save()
                        saved = time.monotonic()
        finally:
            counted.save()
        return counted.densities

    def _part(self, block: int) -> list[StarSource]:
        return self.stars[block * BLOCK : (block + 1) * BLOCK]

    def _job(
        self, block: int, labels: Mapping[str, tuple[str, np.ndarray]]
    ) -> tuple[list[StarSource], dict[str, tuple[str, np.ndarray]]]:
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        return self.stars[part], {name: (space, values[part]) for name, (space, values) in labels.items()}


def fits_path(folder: Path, name: str) -> Path:
    """Where the table of some fits is.

    Parameters
    ----------
    folder : path
        Of the set, or of a report.
    name : str
        Of the fits.

    Returns
    -------
    path

    Examples
    --------
    >>> from pathlib import Path
    >>> from cyclestarnet.training.fitted_sets import fits_path
    >>> fits_path(Path("report"), "emulator, masked").name
    'fits_emulator_masked.fits'
    """
    return folder / "tables" / f"fits_{name.replace(', ', '_')}.fits"


def _known(path: Path, meta: Mapping[str, str]) -> QTable | None:
    """A table that was made before, if it is there, whole, and of these fits."""
    try:
        table = read_results(path)
    except FileNotFoundError:
        return None
    except FileFormatError as error:
        log.warning("stars are fitted anew: %s", error)
        return None
    if any(table.meta.get(name) != meta[name] for name in ("weights", "options", "stars")):
        log.warning("stars are fitted anew: %s has other fits", path)
        return None
    return table


def _values(labels: LabelSet, table: QTable) -> np.ndarray:
    """Labels (n, n_labels) of a table of fits, in the units of the model."""
    return np.column_stack([table[name].to_value(unit_of_label(name)) for name in labels])


@dataclass(frozen=True, eq=False)
class _Residuals:
    """Residuals of a block of stars, in this process or in others."""

    model: CalibratedModel
    wanted: dict[str, LeftOver]

    def __call__(self, job: tuple[list[StarSource], dict[str, tuple[str, np.ndarray]]]) -> dict[str, np.ndarray]:
        stars, labels = job
        read = [(k, spectrum) for k, spectrum in enumerate(map(_read, stars)) if spectrum is not None]
        try:
            return self._of(read, labels)
        except Exception:  # of one bad spectrum: only that is lost
            parts = [one for one in (self._attempt([pair], labels) for pair in read) if one is not None]
        nothing = np.empty((0, self.model.grid.n_pixels), dtype=np.float32)
        return {name: np.concatenate([nothing, *(part[name] for part in parts)]) for name in self.wanted}

    def _attempt(
        self, read: list[tuple[int, Spectrum]], labels: Mapping[str, tuple[str, np.ndarray]]
    ) -> dict[str, np.ndarray] | None:
        try:
            return self._of(read, labels)
        except Exception as error:
            log.warning("a star has no residuals: %s", error)
            return None

    def _of(
        self, read: list[tuple[int, Spectrum]], labels: Mapping[str, tuple[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        rows = [k for k, _ in read]
        own = {name: (space, values[rows]) for name, (space, values) in labels.items()}
        autoencoder = any(one.table is None for one in self.wanted.values())
        left, sigma = residuals_at(self.model, [spectrum for _, spectrum in read], own, autoencoder=autoencoder)
        out = {}
        for name, one in self.wanted.items():
            residual = left["autoencoder" if one.table is None else one.table]
            residual = residual / sigma if one.in_sigma else residual
            out[name] = np.where(False if one.hidden is None else one.hidden, np.nan, residual).astype(np.float32)
        return out


def _read(star: StarSource) -> Spectrum | None:
    """The spectrum of a star; why there is none, the fits say."""
    try:
        return star.read()
    except Exception:  # a file can be damaged in ways that no list of exceptions covers
        return None


@dataclass(eq=False)
class _Counted:
    """Densities, and of which blocks they are."""

    densities: dict[str, ResidualDensity]
    done: np.ndarray
    path: Path | None
    unsaved: bool = False
    torn: bool = False  # an interrupt came while a block was counted

    @classmethod
    def begun(cls, fitted: FittedSet, wanted: Mapping[str, LeftOver]) -> _Counted:
        """What an earlier call has counted, or nothing."""
        grid, n_blocks = fitted.model.grid, -(-len(fitted.stars) // BLOCK)
        densities = {name: ResidualDensity(grid, in_sigma=one.in_sigma) for name, one in wanted.items()}
        path = None if fitted.folder is None else fitted.folder / RESIDUALS_FILE
        counted = cls(densities, np.zeros(n_blocks, dtype=bool), path)
        if path is not None and path.exists():
            try:
                counted._load(path)
            except FileFormatError as error:
                log.warning("residuals are counted anew: %s", error)
                return cls({n: ResidualDensity(grid, in_sigma=own.in_sigma) for n, own in densities.items()},
                           np.zeros(n_blocks, dtype=bool), path)  # fmt: skip
        return counted

    def add(self, block: int, values: Mapping[str, np.ndarray]) -> None:
        self.torn = True
        for name, residuals in values.items():
            self.densities[name].add(residuals)
        self.done[block], self.unsaved, self.torn = True, True, False

    def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Arrays by the names of their datasets."""
        for k, density in enumerate(self.densities.values()):
            yield f"counts {k}", density.counts
            yield f"sums {k}", density.sums
        yield "done", self.done

    def _checksum(self) -> int:
        checksum = 0
        for _, array in self._arrays():
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
        return checksum

    def save(self) -> None:
        if self.path is None or not self.unsaved or self.torn:
            return

        def fill(file: h5py.File) -> None:
            for name, array in self._arrays():
                file.create_dataset(name, data=array, compression="gzip", compression_opts=1)
            file["checksum"] = self._checksum()
            file.attrs["names"] = list(self.densities)

        write_hdf5(self.path, fill)
        self.unsaved = False

    def _load(self, path: Path) -> None:
        with open_hdf5(path) as file:
            if list(np.ravel(file.attrs.get("names", []))) != list(self.densities):
                raise FileFormatError(f"{path} holds other residuals")
            for name, array in self._arrays():
                found = dataset_of(file, name)
                if found.shape != array.shape or found.dtype != array.dtype:
                    raise FileFormatError(f"'{name}' of {path} has the shape {found.shape}, not {array.shape}")
                array[...] = found[()]
            if int(dataset_of(file, "checksum")[()]) != self._checksum():
                raise FileFormatError(f"{path} is damaged")


def state_of_stars(stars: Sequence[StarSource]) -> str:
    """A digest that tells whether stars are the same as then: their names, and sizes and times of their files.

    Parameters
    ----------
    stars : sequence of `~cyclestarnet.io.stars.StarSource`
        The stars.

    Returns
    -------
    str

    Examples
    --------
    >>> from cyclestarnet.io.stars import star_sources
    >>> from cyclestarnet.training.fitted_sets import state_of_stars
    >>> len(state_of_stars(star_sources(["apStar-a.fits"])))
    16
    """
    digest, files = hashlib.sha256(), dict[str, Any]()
    for star in stars:
        digest.update(f"{star.identity}\n".encode("utf-8", "surrogateescape"))
        if star.file is not None and star.file not in files:
            files[star.file] = _state(star.file)
            digest.update(f"{files[star.file]}\n".encode())
    return digest.hexdigest()[:16]


def _state(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns
