"""Training sets in HDF5: written from spectra row by row, checked when they are opened, read block by block.

The layout is that of the public files of Cycle-StarNet. For each split
(``train``, ``val``, ``test``)::

    spectra SPLIT      (n, n_pixels) float32  normalised flux
    spectra_err SPLIT  (n, n_pixels) float32  its standard deviation
    spectra_msk SPLIT  (n, n_pixels) uint8    1 = good pixel, 0 = bad
    labels SPLIT       (n, n_labels) float32
    snr SPLIT          (n,)          float32
    chi2 SPLIT         (n,)          float32  reduced χ² of a catalogue's fit
    names SPLIT        (n,)          text     of the stars

A synthetic set needs the first only. The mask is turned round at this border:
arrays that come from here are True where a pixel is bad, as everywhere else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
from astropy.table import QTable
from numpy.typing import ArrayLike

from cyclestarnet.blanks import floats_of
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import CycleStarNetError, CycleStarNetWarning, FileFormatError, GridError, SpectrumError
from cyclestarnet.files import write_hdf5
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.io.readers import read
from cyclestarnet.progress import tqdm
from cyclestarnet.reading.hdf5 import dataset_of, open_hdf5, texts_of
from cyclestarnet.spectra import SAME_WAVELENGTH, Pixels, Spectrum, star_name, to_pixels

__all__ = ["Selection", "TrainingSet", "write_training_set"]

# Rows that are read and written at once: 1.8 MB of flux with 7167 pixels, enough for a disk to be efficient.
BLOCK_ROWS = 64
LARGEST_BLOCK_ROWS = 512
# Error of a bad pixel: finite, so that sums over a row stay so, and larger than any limit on good ones.
BAD_SIGMA = 10.0
# A pixel with such an error "looks fine", whatever the mask says of it.
PLAUSIBLE_SIGMA = 0.5
LARGEST_BAD_FRACTION = 0.9

_NEEDED = {"observed": ("spectra", "spectra_err", "spectra_msk"), "synthetic": ("spectra",)}
_PER_PIXEL = ("spectra", "spectra_err", "spectra_msk")
_PER_SPECTRUM = ("snr", "chi2")
_KINDS = (*_PER_PIXEL, "labels", *_PER_SPECTRUM)


# -- reading -----------------------------------------------------------------
@dataclass(frozen=True)
class Selection:
    """Which spectra of a set are good enough to train on; the defaults are the paper's (S1, Section 4.1.1).

    Parameters
    ----------
    snr : (float, float) or None
        The signal-to-noise ratio per pixel must lie between these; a spectrum
        at either end does not pass. None: no cut. Default: (30, 500).
    chi2_max : float or None
        The reduced χ² of the catalogue's fit must be below. None: no cut.
        Default: 50.

    Raises
    ------
    ValueError
        If the interval is empty or ``chi2_max`` is not positive.

    Examples
    --------
    >>> from cyclestarnet.io import Selection
    >>> Selection(snr=(50, 300))
    Selection(snr=(50, 300), chi2_max=50.0)
    """

    snr: tuple[float, float] | None = (30.0, 500.0)
    chi2_max: float | None = 50.0

    def __post_init__(self) -> None:
        if self.snr is not None:
            snr = tuple(self.snr)
            if len(snr) != 2 or not snr[0] < snr[1]:
                raise ValueError(f"snr must be (low, high) with low < high, or None, but is {self.snr}")
            object.__setattr__(self, "snr", snr)
        if self.chi2_max is not None and not self.chi2_max > 0:
            raise ValueError(f"chi2_max must be positive or None, but is {self.chi2_max}")


class TrainingSet:
    """One split of a training file: checked when it is opened, never whole in memory.

    The file is open only while something is read, so that an object can
    cross into threads and forked processes.

    Parameters
    ----------
    path : path-like
        HDF5 file in the layout of `write_training_set`, which is that of the
        public files of Cycle-StarNet.
    split : str, optional
        Part of the file: ``"train"`` (default), ``"val"``, ``"test"``, or
        another name that follows ``spectra`` in its datasets.
    domain : {"observed", "synthetic"}, optional
        Observed (default) or synthetic spectra. An observed set must have
        errors and masks. Those of a synthetic set are not read.
    pixels : slice, optional
        Pixels of the file to use, without a step. Files of 7214 pixels fit
        networks of 7167 with ``slice(0, 7167)`` (cut at the red end, as in the
        paper) or ``slice(47, None)`` (at the blue end, as in the public code).
    grid : `~cyclestarnet.WavelengthGrid`, optional
        What the pixels must be: their number, and their wavelengths if the
        file has a dataset ``wavelength`` (Angstrom, vacuum). Default: not checked.

    Attributes
    ----------
    path : `~pathlib.Path`
        The file.
    split, domain : str
        As given.
    pixels : slice
        Pixels of the file that are used, with both ends.
    n_spectra : int
        Number of spectra, good or not.
    n_pixels : int
        Number of pixels, after the cut by ``pixels``.
    block_rows : int
        How many rows are best read at once.
    label_names : tuple of str or None
        If the file tells (attribute ``label_names``).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is truncated or no HDF5 file, a dataset is missing, has a wrong
        shape or holds no numbers, or a sample of the rows is implausible: no
        finite flux, a mask with other values than 0 and 1, or a mask that
        calls more than 90 % of the pixels bad that look fine.
    GridError
        If the pixels are not those of ``grid``.

    Examples
    --------
    >>> import tempfile, h5py, numpy as np
    >>> from cyclestarnet.io import TrainingSet
    >>> path = tempfile.mkdtemp() + "/synthetic.h5"
    >>> with h5py.File(path, "w") as file:
    ...     file["spectra train"] = np.ones((100, 7214), dtype="f4")
    >>> TrainingSet(path, domain="synthetic", pixels=slice(0, 7167))
    <TrainingSet 'synthetic.h5' train: 100 synthetic spectra of 7167 pixels>
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str = "train",
        domain: str = "observed",
        pixels: slice = slice(None),
        grid: WavelengthGrid | None = None,
    ):
        if domain not in _NEEDED:
            raise ValueError(f"domain must be one of {tuple(_NEEDED)}, but is {domain!r}")
        if not isinstance(pixels, slice) or pixels.step not in (None, 1):
            raise ValueError(f"pixels must be a slice without a step, for example slice(0, 7167), but is {pixels!r}")
        self.path, self.split, self.domain = Path(path), split, domain
        with open_hdf5(self.path, "training file") as file:
            self._check_layout(file)
            shape = dataset_of(file, f"spectra {split}").shape
            start, stop, _ = pixels.indices(shape[1])
            self.pixels = slice(start, stop)
            self.n_spectra, self.n_pixels = shape[0], max(stop - start, 0)
            self._check_grid(file, grid, shape[1])
            chunk = (file[f"spectra {split}"].chunks or (1,))[0]
            self.block_rows = min(max(BLOCK_ROWS // chunk, 1) * chunk, LARGEST_BLOCK_ROWS)
            names = file.attrs.get("label_names")
            self.label_names = None if names is None else tuple(np.ravel(names).astype(str).tolist())
            self._extra = tuple(kind for kind in ("labels", *_PER_SPECTRUM) if f"{kind} {split}" in file)
        self._check_sample()

    def __repr__(self) -> str:
        extra = f", {', '.join(self._extra)}" if self._extra else ""
        return (
            f"<TrainingSet {self.path.name!r} {self.split}: {self.n_spectra} {self.domain} spectra "
            f"of {self.n_pixels} pixels{extra}>"
        )

    def __len__(self) -> int:
        return self.n_spectra

    @property
    def labels(self) -> np.ndarray | None:
        """Values of the labels, (n_spectra, n_labels), float32, as the file has them (NaN included); None without."""
        return self._whole("labels")

    @property
    def snr(self) -> np.ndarray | None:
        """Signal-to-noise ratio per pixel, (n_spectra,), float32; None if the file has none."""
        return self._whole("snr")

    @property
    def chi2(self) -> np.ndarray | None:
        """Reduced χ² of a catalogue's fit, (n_spectra,), float32; None if the file has none."""
        return self._whole("chi2")

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the stars, one per spectrum; None if the file has none."""
        with open_hdf5(self.path, "training file") as file:
            name = f"names {self.split}"
            return tuple(texts_of(file, name)) if name in file else None

    def rows(self, selection: Selection | None = None) -> np.ndarray:
        """Row numbers of the spectra that pass a selection.

        Parameters
        ----------
        selection : `Selection`, optional
            Cuts on S/N and χ². Default: the paper's.

        Returns
        -------
        array of int, shape (n,)
            Rising. A spectrum whose S/N or χ² is NaN passes no cut on it. Files
            without χ² have no cut on χ².

        Raises
        ------
        FileFormatError
            If there is a cut on S/N and the file has none.
        SpectrumError
            If no spectrum passes.

        Examples
        --------
        >>> import tempfile, h5py, numpy as np
        >>> from cyclestarnet.io import Selection, TrainingSet
        >>> path = tempfile.mkdtemp() + "/synthetic.h5"
        >>> with h5py.File(path, "w") as file:
        ...     file["spectra train"], file["snr train"] = np.ones((3, 10)), [20, 100, 300]
        >>> TrainingSet(path, domain="synthetic").rows(Selection(snr=(50, 1000)))
        array([1, 2])
        """
        selection = Selection() if selection is None else selection
        snr, chi2 = self.snr, self.chi2
        good = np.ones(self.n_spectra, dtype=bool)
        if selection.snr is not None:
            if snr is None:
                raise FileFormatError(
                    f"{self.path} has no dataset 'snr {self.split}' to select by; use Selection(snr=None)"
                )
            good &= (snr > selection.snr[0]) & (snr < selection.snr[1])  # False for NaN
        if selection.chi2_max is not None and chi2 is not None:
            good &= chi2 < selection.chi2_max
        if not good.any():
            ranges = [
                f"{name} is {np.nanmin(values):.4g} to {np.nanmax(values):.4g}"
                for name, values in (("snr", snr), ("chi2", chi2))
                if values is not None and np.isfinite(values).any()
            ]
            raise SpectrumError(
                f"no spectrum of {self!r} passes {selection}; in the file {' and '.join(ranges) or 'all are NaN'}"
            )
        return np.flatnonzero(good)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Read neighbouring rows.

        Parameters
        ----------
        start : int
            First row.
        stop : int
            Row after the last.

        Returns
        -------
        flux : array, shape (stop - start, n_pixels), float32
            Normalised, as the file has it, also at bad pixels; NaN included.
        sigma : array, shape (stop - start, n_pixels), float32, or None
            Its standard deviation; None of a synthetic set.
        mask : array of bool, shape (stop - start, n_pixels), or None
            True = bad, as everywhere outside these files; None of a synthetic set.

        Raises
        ------
        FileFormatError
            If the rows cannot be read.

        Examples
        --------
        >>> import tempfile, h5py, numpy as np
        >>> from cyclestarnet.io import TrainingSet
        >>> path = tempfile.mkdtemp() + "/observed.h5"
        >>> with h5py.File(path, "w") as file:
        ...     file["spectra train"], file["spectra_err train"] = np.ones((3, 10)), np.full((3, 10), 0.01)
        ...     file["spectra_msk train"] = np.arange(10) * np.ones((3, 1)) > 0  # pixel 0 is bad
        >>> flux, sigma, mask = TrainingSet(path).read(0, 2)
        >>> mask.sum(axis=1)
        array([1, 1])
        """
        with open_hdf5(self.path, "training file") as file:
            datasets = [dataset_of(file, f"{kind} {self.split}") for kind in _NEEDED[self.domain]]
            try:
                arrays = [dataset[start:stop, self.pixels] for dataset in datasets]
            except OSError as error:
                raise FileFormatError(f"rows {start} to {stop} of {self.path} cannot be read: {error}") from error
        with np.errstate(over="ignore"):  # what is too large for float32 turns infinite
            flux, *errors = (np.asarray(array, dtype=np.float32) for array in arrays[:2])
        return (flux, errors[0], arrays[2] == 0) if errors else (flux, None, None)

    # -- checks ------------------------------------------------------------
    def _whole(self, kind):
        with open_hdf5(self.path, "training file") as file:
            name = f"{kind} {self.split}"
            with np.errstate(over="ignore"):  # what is too large for float32 turns infinite
                return np.asarray(dataset_of(file, name)[()], dtype=np.float32) if name in file else None

    def _check_layout(self, file):
        split = self.split
        missing = [f"{kind} {split}" for kind in _NEEDED[self.domain] if f"{kind} {split}" not in file]
        if missing:
            raise FileFormatError(
                f"{self.path} lacks {', '.join(map(repr, missing))}, which a set of {self.domain} spectra needs; "
                f"it has {', '.join(map(repr, file)) or 'nothing'}"
            )
        shape = dataset_of(file, f"spectra {split}").shape
        if len(shape) != 2 or 0 in shape:
            raise FileFormatError(f"'spectra {split}' of {self.path} must be (n_spectra, n_pixels), but is {shape}")
        for kind in _KINDS:
            name = f"{kind} {split}"
            if name not in file:
                continue
            found = dataset_of(file, name).shape
            n_columns = {"labels": found[1:2] or ("n_labels",), "snr": (), "chi2": ()}.get(kind, shape[1:])
            wanted = (shape[0], *n_columns)
            if found != wanted:
                raise FileFormatError(
                    f"{name!r} of {self.path} must have the shape {wanted}, as 'spectra {split}' has {shape}, "
                    f"but has {found}"
                )
        names, labels = file.attrs.get("label_names"), file.get(f"labels {split}")
        if names is not None and (np.ndim(names) != 1 or len(set(map(str, names))) != len(names)):
            raise FileFormatError(f"the attribute label_names of {self.path} must be different names, but is {names}")
        if names is not None and labels is not None and len(names) != labels.shape[1]:
            raise FileFormatError(
                f"'labels {split}' of {self.path} has {labels.shape[1]} columns, but the attribute label_names "
                f"names {len(names)}"
            )

    def _check_grid(self, file, grid, n_file):
        if self.n_pixels == 0:
            raise GridError(f"pixels = {self.pixels} leaves none of the {n_file} pixels of {self.path}")
        if grid is None:
            return
        if self.n_pixels != grid.n_pixels:
            cut = n_file - grid.n_pixels
            advice = f"; use pixels=slice(0, {grid.n_pixels}) or slice({cut}, None)" if cut > 0 else ""
            raise GridError(f"{self.path} gives {self.n_pixels} pixels, but the grid has {grid.n_pixels}{advice}")
        if "wavelength" in file:
            found = np.asarray(dataset_of(file, "wavelength")[()], dtype=float)[self.pixels]
            if not _same_wavelengths(found, grid):
                ends = f"{found[0]:.2f} to {found[-1]:.2f}" if found.size else "none"
                raise GridError(
                    f"the wavelengths of {self.path} ({ends}) are not those of the grid "
                    f"({grid.wavelength[0]:.2f} to {grid.wavelength[-1]:.2f}, vacuum); check pixels"
                )

    def _check_sample(self):
        """Look at up to 64 rows, 8 at each of 8 places."""
        starts = np.unique(np.linspace(0, max(self.n_spectra - 8, 0), 8).astype(int))
        parts = [self.read(int(start), int(start) + 8) for start in starts]
        flux = np.concatenate([part[0] for part in parts])
        if not np.isfinite(flux).any():
            raise FileFormatError(f"'spectra {self.split}' of {self.path} has no finite value in {len(flux)} rows")
        if self.domain == "synthetic":
            return
        with open_hdf5(self.path, "training file") as file:
            stored = dataset_of(file, f"spectra_msk {self.split}")
            values = np.unique(np.concatenate([stored[start : start + 8, self.pixels] for start in starts.tolist()]))
        if not np.isin(values, (0, 1)).all():
            raise FileFormatError(
                f"'spectra_msk {self.split}' of {self.path} must hold 1 = good and 0 = bad, but holds "
                f"{values[:5].tolist()}{'...' if len(values) > 5 else ''}; is it a bitmask?"
            )
        sigma, mask = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
        fine = np.isfinite(flux) & (sigma > 0) & (sigma < PLAUSIBLE_SIGMA)
        if fine.mean() > 0.05 and mask[fine].mean() > LARGEST_BAD_FRACTION:
            raise FileFormatError(
                f"'spectra_msk {self.split}' of {self.path} calls {mask[fine].mean():.0%} of the pixels bad that have "
                "a finite flux and a small error; in these files 1 = good and 0 = bad: is the mask the wrong way round?"
            )


# -- writing -----------------------------------------------------------------
def write_training_set(
    path: str | os.PathLike[str],
    spectra: Iterable[Spectrum | str | os.PathLike[str]],
    *,
    grid: WavelengthGrid,
    split: str = "train",
    recipe: ContinuumRecipe | None = None,
    labels: ArrayLike | None = None,
    label_names: Sequence[str] | None = None,
    chi2: ArrayLike | None = None,
    mask_bits: Iterable[int | str] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> QTable:
    """Write spectra as one split of a training file, row by row.

    Memory holds a block of 64 spectra at a time. The other splits of an
    existing file are kept: they are copied to a new file, which takes the
    place of the old one once the new split is complete. An error or a kill
    before that leaves the old file as it was. One process may write to a file
    at a time.

    Parameters
    ----------
    path : path-like
        HDF5 file, new or existing.
    spectra : iterable of `~specutils.Spectrum` or path-like
        Files are read as their names tell (`cyclestarnet.io.read`). Spectra
        with an uncertainty of any kind, put on the grid by
        `~cyclestarnet.spectra.to_pixels`.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of the set.
    split : str, optional
        Part of the file to write: ``"train"`` (default), ``"val"`` or ``"test"``.
    recipe : `~cyclestarnet.ContinuumRecipe`, optional
        Normalises all spectra, whatever their unit, and whoever normalised them before. Default: flux is taken as
        normalised, and spectra with a physical unit are skipped.
    labels : array_like, shape (n, n_labels), optional
        Values of the labels of each spectrum that goes in, in the labels' own
        units (teff in K); NaN or masked where one is not known. Default: none are written.
    label_names : sequence of str, optional
        Names of the columns of ``labels``, kept in the file for its readers.
    chi2 : array_like, shape (n,), optional
        Reduced χ² of a catalogue's fit, for `Selection`.
    mask_bits : iterable of int or str, optional
        Of the readers of files: which bits make a pixel bad. Not for spectra in memory. Default: that of the readers.
    overwrite : bool, optional
        Replace the split if the file has it. Default: False.
    progress : bool, optional
        Show a progress bar. Default: True.

    Returns
    -------
    `~astropy.table.QTable`
        The spectra that could not be used, and were skipped with one warning
        for all: ``index`` (position in ``spectra``), ``name`` and ``reason``.

    Raises
    ------
    FileExistsError
        If the file has the split and ``overwrite`` is False.
    FileFormatError
        If the existing file is truncated or no HDF5 file.
    GridError
        If it has another grid.
    SpectrumError
        If no spectrum can be used.
    ValueError
        If ``labels`` or ``chi2`` have another length than ``spectra``, or
        labels are not those of the file's other splits.

    Notes
    -----
    Bad pixels have flux 1, error 10 and mask 0. ``snr`` is that of the
    spectrum's metadata, or else the median of flux over error of its good
    pixels.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, astropy.units as u
    >>> from astropy.nddata import StdDevUncertainty
    >>> from specutils import Spectrum
    >>> from cyclestarnet import WavelengthGrid
    >>> from cyclestarnet.io import TrainingSet, write_training_set
    >>> grid = WavelengthGrid(np.linspace(1500, 1510, 101) * u.nm)
    >>> star = Spectrum(
    ...     flux=np.ones(101) * u.one,
    ...     spectral_axis=grid.wavelength,
    ...     uncertainty=StdDevUncertainty(0.01 * np.ones(101)),
    ... )
    >>> path = tempfile.mkdtemp() + "/observed.h5"
    >>> skipped = write_training_set(path, [star] * 3, grid=grid, progress=False)
    >>> len(skipped), TrainingSet(path).snr
    (0, array([100., 100., 100.], dtype=float32))
    """
    path = Path(path)
    if isinstance(spectra, (str, os.PathLike, Spectrum)):
        raise TypeError("spectra must be an iterable of spectra or paths, but is one of them; write [spectrum]")
    per_row = {"labels": labels, "chi2": chi2}
    per_row = {kind: floats_of(array).astype(np.float32) for kind, array in per_row.items() if array is not None}
    n_given = len(spectra) if hasattr(spectra, "__len__") else None
    for kind, array in per_row.items():
        wanted = 2 if kind == "labels" else 1
        if array.ndim != wanted or n_given not in (None, len(array)):
            n = "n" if n_given is None else n_given
            shape = f"({n}, n_labels)" if kind == "labels" else f"({n},)"
            raise ValueError(f"{kind} must have the shape {shape}, but has {array.shape}")
    if label_names is not None and (labels is None or len(label_names) != per_row["labels"].shape[1]):
        raise ValueError(f"label_names must name the columns of labels, but are {list(label_names)}")

    skipped, n_given = [], 0

    def fill(file):
        nonlocal skipped, n_given
        if path.exists():
            _copy_other_splits(path, file, split, grid, overwrite)
        if "wavelength" not in file:
            file["wavelength"] = grid.wavelength.to_value(u.AA)
            file["wavelength"].attrs.update({"unit": "Angstrom", "medium": "vacuum"})
        if label_names is not None:
            names = [str(name) for name in label_names]
            if list(file.attrs.get("label_names", names)) != names:
                known = list(file.attrs["label_names"])
                raise ValueError(f"label_names are {names}, but those of the other splits of {path} are {known}")
            file.attrs["label_names"] = names
        known = list(file.attrs.get("label_names", ()))
        if labels is not None and known and len(known) != per_row["labels"].shape[1]:
            n_labels = per_row["labels"].shape[1]
            raise ValueError(f"labels has {n_labels} columns, but the other splits of {path} have those of {known}")
        skipped, n_given = _write_rows(file, spectra, grid, split, recipe, per_row, mask_bits, progress)

    write_hdf5(path, fill)
    if skipped:
        shown = "; ".join(f"{index} ({name}): {reason}" for index, name, reason in skipped[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        message = f"{len(skipped)} of {n_given} spectra cannot be used and were skipped: {shown}{more}"
        warnings.warn(message, CycleStarNetWarning, stacklevel=2)
    return QTable(rows=skipped or None, names=("index", "name", "reason"), dtype=(int, str, str))


def _copy_other_splits(path, file, split, grid, overwrite):
    own = [f"{kind} {split}" for kind in (*_KINDS, "names")]
    with open_hdf5(path) as old:
        there = any(name in old for name in own)
    if there and not overwrite:
        raise FileExistsError(f"{path} has the split {split!r} already; use overwrite=True to replace it")
    with open_hdf5(path) as old:
        for name, dataset in old.items():
            if name.startswith("spectra ") and name not in own and dataset.shape[1:] != (grid.n_pixels,):
                raise GridError(f"{name!r} of {path} has {dataset.shape[1]} pixels, but the grid has {grid.n_pixels}")
        if "wavelength" in old and not _same_wavelengths(dataset_of(old, "wavelength")[()], grid):
            raise GridError(f"{path} has another grid (its dataset 'wavelength'); use another file")
        file.attrs.update(old.attrs)
        if not any(name.startswith("labels ") and name not in own for name in old):
            file.attrs.pop("label_names", None)  # they named the labels that are replaced
        for name in old:
            if name not in own:
                old.copy(name, file)


def _write_rows(file, spectra, grid, split, recipe, per_row, mask_bits, progress):
    """Write all spectra that can be used; return the others, and how many there were."""
    shapes = {kind: ((grid.n_pixels,), "u1" if kind == "spectra_msk" else "f4") for kind in _PER_PIXEL}
    shapes |= {kind: (array.shape[1:], "f4") for kind, array in per_row.items()} | {"snr": ((), "f4")}
    datasets = {
        kind: file.create_dataset(
            f"{kind} {split}", (0, *shape), dtype, maxshape=(None, *shape), chunks=(BLOCK_ROWS, *shape)
        )
        for kind, (shape, dtype) in shapes.items()
    }
    block, skipped, names, index = {kind: [] for kind in datasets}, [], [], -1

    def flush():
        for kind, dataset in datasets.items():
            n = len(dataset)
            dataset.resize(n + len(block[kind]), axis=0)
            if block[kind]:
                dataset[n:] = block[kind]
            block[kind].clear()
        file.flush()  # raises if the disk is full

    for index, item in enumerate(tqdm(spectra, desc="writing", disable=not progress)):
        if any(index >= len(array) for array in per_row.values()):
            raise ValueError(f"labels and chi2 are for {index} spectra, but there are more")
        if mask_bits is not None and not isinstance(item, (str, os.PathLike)):
            raise TypeError(
                f"mask_bits choose what is masked of files, but spectrum {index} is in memory; "
                "choose them when you read it, or leave mask_bits out"
            )
        try:
            spectrum = read(item, mask_bits=mask_bits) if isinstance(item, (str, os.PathLike)) else item
            row = arrays_of_row(to_pixels(spectrum, grid, recipe=recipe), spectrum.meta.get("snr"))
        except (CycleStarNetError, TypeError, OSError, FloatingPointError, np.linalg.LinAlgError) as error:
            skipped.append((index, _name(item), str(error)))
            continue
        row |= {kind: array[index] for kind, array in per_row.items()}
        names.append(
            (star_name(spectrum) or (Path(item).name if isinstance(item, (str, os.PathLike)) else "")).encode(
                "utf-8", "backslashreplace"
            )
        )
        for kind, value in row.items():
            block[kind].append(value)
        if len(block["snr"]) == BLOCK_ROWS:
            flush()
    flush()
    n_given = index + 1
    for kind, array in per_row.items():
        if len(array) != n_given:
            raise ValueError(f"{kind} has {len(array)} rows, but there are {n_given} spectra")
    if len(skipped) == n_given:
        first = f"; the first: {skipped[0][2]}" if skipped else ""
        raise SpectrumError(f"none of {n_given} spectra can be used, and nothing was written{first}")
    if any(names):
        longest = max(map(len, names))
        file[f"names {split}"] = np.array(names, dtype=h5py.string_dtype("utf-8", longest))
    return skipped, n_given


def arrays_of_row(pixels: Pixels, snr: float | None) -> dict[str, np.ndarray]:
    """Make a row of a training set of a spectrum.

    Parameters
    ----------
    pixels : `~cyclestarnet.spectra.Pixels`
        On the grid of the set.
    snr : float or None
        Signal-to-noise ratio. If it is no number: the median of flux over error of the good pixels.

    Returns
    -------
    dict of str to array
        ``spectra``, ``spectra_err`` and ``spectra_msk``, shape (n_pixels,), and ``snr``.

    Examples
    --------
    >>> from cyclestarnet.io.training_set import arrays_of_row
    >>> from cyclestarnet.spectra import Pixels
    >>> arrays_of_row(Pixels([0.9, 1.0], [1e4, 0.0]), None)["spectra_err"]
    array([ 0.01, 10.  ])
    """
    good = pixels.ivar > 0
    with np.errstate(divide="ignore"):
        sigma = np.minimum(1 / np.sqrt(pixels.ivar), BAD_SIGMA)
    if not isinstance(snr, Real):
        snr = np.median(pixels.flux[good] / sigma[good])
    return {"spectra": pixels.flux, "spectra_err": sigma, "spectra_msk": good, "snr": snr}


def _name(item):
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item)
    return star_name(item) or type(item).__name__


def _same_wavelengths(found, grid):
    wanted = grid.wavelength.to_value(u.AA)
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol=SAME_WAVELENGTH, atol=0)
