"""From the files of a survey to a training set: read, cut, normalised, split and written, with a row for each file.

Files are read block by block, by several processes if wanted. What passes the
cuts goes to a file of rows beside the set, and a line for each block to a
journal: a run that is killed goes on after the last block. At the end, when all
stars are known, one spectrum of each is copied to the set. Memory holds some
blocks, and half a kilobyte for each file.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from types import MappingProxyType

import astropy.units as u
import h5py
import numpy as np
from astropy.table import QTable

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import CycleStarNetWarning, FileFormatError, GridError, SpectrumError
from cyclestarnet.files import as_json, check_no_folder, write_atomically, write_hdf5
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.io.catalogue import BAD_FLAGS, Catalogue, CatalogueRow
from cyclestarnet.io.readers import read
from cyclestarnet.io.stars import StarSource, survey_sources
from cyclestarnet.io.training_set import BLOCK_ROWS, Selection, arrays_of_row
from cyclestarnet.journal import Journal
from cyclestarnet.processes import run_in_processes
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import Spectrum, to_pixels

__all__ = ["StarCuts", "prepare_training_set", "summarise_preparation"]

READ_ROWS = 32  # files between two lines of the journal: what a kill costs
SPLITS = MappingProxyType({"train": 0.8, "val": 0.1, "test": 0.1})
_NAME_IN_FILE = re.compile(r"(2M|AP)\d{8}[+-]\d{6,7}")  # the end of names of files of APOGEE

CANNOT_BE_READ, OFF_THE_GRID, UNUSABLE = "cannot be read", "not on the grid", "no usable spectrum"
UNKNOWN, SNR, CHI2, BROADENING, FLAGS = "not in the catalogue", "S/N", "chi2", "broadening", "flags"
DUPLICATE = "duplicate"


# -- what passes -------------------------------------------------------------------
@dataclass(frozen=True)
class StarCuts(Selection):
    """Which stars of a survey go into a training set; the defaults are the paper's (S1, Section 4.1.1).

    χ², broadening and flags are those of a catalogue. There is no cut on what
    it does not have a column for; a star of which it does not know the value
    passes no cut on it.

    Parameters
    ----------
    snr : (float, float) or None
        The signal-to-noise ratio per pixel must lie between these. None: no cut.
        Default: (30, 500).
    chi2_max : float or None
        The reduced χ² must be below. None: no cut. Default: 50.
    broadening_max : `~astropy.units.Quantity` or None
        The total broadening, VSINI and VMACRO added in squares, must be below.
        None: no cut. Default: 10 km/s.
    flags : bool
        Leave out stars whose flags say that star, spectrum or fit are bad:
        `~cyclestarnet.io.catalogue.BAD_FLAGS` lists the bits. Default: True.
    one_per_star : bool
        Of several spectra of a star take the one of the highest signal-to-noise
        ratio. False: take all; they go to the same split. Default: True.

    Raises
    ------
    ValueError
        If the interval is empty, or a limit is not positive.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.io import StarCuts
    >>> StarCuts(snr=(100, 500), broadening_max=15 * u.km / u.s).chi2_max
    50.0
    """

    broadening_max: u.Quantity | None = 10 * u.km / u.s
    flags: bool = True
    one_per_star: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.broadening_max is not None:
            try:
                positive = u.Quantity(self.broadening_max).to_value(u.km / u.s) > 0
            except (u.UnitConversionError, TypeError):
                positive = False
            if not positive:
                raise ValueError(
                    f"broadening_max must be a positive velocity, for example 10 * u.km / u.s, or None, "
                    f"but is {self.broadening_max}"
                )

    def reason(self, snr: float, known: CatalogueRow | None, columns: Sequence[str]) -> tuple[str, str]:
        """Say why a spectrum does not pass.

        Parameters
        ----------
        snr : float
            Its signal-to-noise ratio.
        known : `~cyclestarnet.io.catalogue.CatalogueRow` or None
            What the catalogue knows of the star.
        columns : sequence of str
            What the catalogue has columns for; none if there is no catalogue.

        Returns
        -------
        reason, detail : str
            Empty if it passes.

        Examples
        --------
        >>> from cyclestarnet.io import StarCuts
        >>> StarCuts().reason(20.0, None, ())
        ('S/N', '20 is not between 30 and 500')
        """
        if columns and known is None:
            return UNKNOWN, "the catalogue does not have this star"
        if self.snr is not None and not self.snr[0] < snr < self.snr[1]:  # NaN is not
            return SNR, f"{snr:.4g} is not between {self.snr[0]:g} and {self.snr[1]:g}"
        if known is None:
            return "", ""
        if self.chi2_max is not None and "chi2" in columns and not known.chi2 < self.chi2_max:
            return CHI2, f"{known.chi2:.4g} is not below {self.chi2_max:g}"
        if self.broadening_max is not None and {"vsini", "vmacro"} & set(columns):
            limit = self.broadening_max.to_value(u.km / u.s)
            if not known.broadening < limit:
                return BROADENING, f"{known.broadening:.4g} km/s is not below {limit:g} km/s"
        if self.flags and known.flags:
            return FLAGS, ", ".join(known.flags)
        return "", ""

    def not_made(self, columns: Sequence[str]) -> dict[str, str]:
        """Tell which of the wanted cuts cannot be made, and why.

        Parameters
        ----------
        columns : sequence of str
            What the catalogue has columns for; none if there is no catalogue.

        Returns
        -------
        dict of str to str
            Reasons, by the name of the cut.

        Examples
        --------
        >>> from cyclestarnet.io import StarCuts
        >>> StarCuts(chi2_max=None, flags=False).not_made(["apogee_id", "chi2"])
        {'broadening': 'the catalogue has no vsini or vmacro'}
        """
        needed = {
            CHI2: (self.chi2_max is not None, ("chi2",)),
            BROADENING: (self.broadening_max is not None, ("vsini", "vmacro")),
            FLAGS: (self.flags, tuple(BAD_FLAGS)),
        }
        return {
            name: f"the catalogue has no {' or '.join(names)}" if columns else "there is no catalogue"
            for name, (wanted, names) in needed.items()
            if wanted and not set(names) & set(columns)
        }


# -- reading -----------------------------------------------------------------------
@dataclass(eq=False)
class _Outcome:
    """What became of a file; ``slot`` is its place among the rows, -1 of what was left out."""

    star: str = ""
    apogee_id: str = ""
    sdss_id: int = 0
    telescope: str = ""
    snr: float = np.nan
    chi2: float = np.nan
    broadening: float = np.nan
    reason: str = ""
    detail: str = ""
    slot: int = -1
    split: str = ""
    row: int = -1

    def to_record(self) -> list:
        """Values for the journal."""
        return [getattr(self, name) for name in _RECORDED]


_RECORDED = ("star", "apogee_id", "sdss_id", "telescope", "snr", "chi2", "broadening", "reason", "detail", "slot")


@dataclass(frozen=True, eq=False)
class _RowMaker:
    """Reads spectra to rows of a set, or says why not; in this process or in others."""

    grid: WavelengthGrid
    recipe: ContinuumRecipe

    def __call__(self, stars: list[StarSource]) -> list[tuple[_Outcome, dict[str, np.ndarray] | None]]:
        return [self._row(star) for star in stars]

    def _row(self, star):
        outcome = _Outcome()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                path = getattr(star, "path", None)
                if path is not None and os.path.exists(path) and not os.path.isfile(path):
                    raise FileFormatError(f"{path} is no file")  # a pipe would be waited for, for ever
                spectrum = star.read()
                _note_names(outcome, spectrum, path)
                snr = spectrum.meta.get("snr")
                pixels = to_pixels(spectrum, self.grid, recipe=self.recipe)
                row = arrays_of_row(pixels, snr if isinstance(snr, Real) and snr > 0 else None)
        except Exception as error:  # a file can be damaged in ways that no list of exceptions covers
            kinds = {GridError: OFF_THE_GRID, SpectrumError: UNUSABLE, np.linalg.LinAlgError: UNUSABLE}
            outcome.reason = next((r for kind, r in kinds.items() if isinstance(error, kind)), CANNOT_BE_READ)
            ours = isinstance(error, OSError | GridError | SpectrumError)
            outcome.detail = " ".join((str(error) if ours else f"{type(error).__name__}: {error}").split())
            return outcome, None
        outcome.snr = float(row.pop("snr"))
        texts = (str(w.message) for w in caught if isinstance(w.message, CycleStarNetWarning))
        outcome.detail = " ".join("; ".join(texts).split())
        return outcome, row


def _note_names(outcome, spectrum, path):
    meta = spectrum.meta
    outcome.apogee_id = str(meta.get("apogee_id") or "").strip()
    outcome.sdss_id = int(meta.get("sdss_id") or 0)
    outcome.telescope = str(meta.get("telescope") or "").strip()
    outcome.star = str(meta.get("object") or outcome.apogee_id or outcome.sdss_id or "").strip()
    named = None if outcome.star or path is None else _NAME_IN_FILE.search(os.path.basename(path))
    if named:  # headers of some releases do not name the star
        outcome.star = outcome.apogee_id = named.group()


# -- the rows of an unfinished set -------------------------------------------------
class _Rows:
    """Rows of pixels in a file, in the order in which they came."""

    def __init__(self, path: Path, n_pixels: int):
        self.path = path
        self.dtype = np.dtype(
            [("spectra", "<f4", n_pixels), ("spectra_err", "<f4", n_pixels), ("spectra_msk", "u1", n_pixels)]
        )
        self.n = 0

    def __enter__(self):
        self._file = open(self.path, "ab+", buffering=0)
        return self

    def __exit__(self, *_):
        self._file.close()

    def keep(self, n: int) -> None:
        """Forget what came after the first ``n`` rows: no line of the journal tells of it."""
        if os.fstat(self._file.fileno()).st_size < n * self.dtype.itemsize:
            raise FileFormatError(
                f"{self.path} lacks rows of which the unfinished run beside it tells; delete both to begin anew"
            )
        self._file.truncate(n * self.dtype.itemsize)
        self.n = n

    def append(self, rows: list[dict[str, np.ndarray]]) -> None:
        """Add rows, which are on the disk when this returns."""
        block = np.empty(len(rows), self.dtype)
        for k, row in enumerate(rows):
            for name in self.dtype.names:
                block[name][k] = row[name]
        rest = memoryview(block.tobytes())
        while rest:  # a full disk takes a part, and raises the next time
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())
        self.n += len(rows)

    def read(self, slots: Sequence[int]) -> np.ndarray:
        """Some rows, in the order of their numbers in ``slots``."""
        block = np.empty(len(slots), self.dtype)
        for k, slot in enumerate(slots):
            self._file.seek(slot * self.dtype.itemsize)
            block[k] = np.frombuffer(self._file.read(self.dtype.itemsize), self.dtype)[0]
        return block


# -- the engine ----------------------------------------------------------------------
def prepare_training_set(
    path: str | os.PathLike[str],
    spectra: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Spectrum],
    *,
    grid: WavelengthGrid,
    recipe: ContinuumRecipe,
    catalogue: str | os.PathLike[str] | None = None,
    cuts: StarCuts | None = None,
    splits: Mapping[str, float] = SPLITS,
    seed: int = 0,
    reader: Callable[[str], Spectrum] = read,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> QTable:
    """Make a training set of the files of a survey.

    A file that cannot be used is a row of the report that says why, and never
    ends the run. A run that is killed goes on where it was if it is called
    again, and gives the same set, byte by byte; until then there is nothing
    under the name of the set.

    Parameters
    ----------
    path : path-like
        HDF5 file to write, ``.h5`` or ``.hdf5``, in the layout of
        `write_training_set`. While it is unfinished there are ``PATH.partial`` and
        ``PATH.partial.rows`` beside it; the latter takes about as much of the disk as the set.
    spectra : path-like or iterable of path-like or `~specutils.Spectrum`
        A folder, whose FITS files are taken, also those of its folders; a text
        file with a path in each line, relative to its own folder (``#`` begins a
        comment); a pattern; or files or spectra.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of the set.
    recipe : `~cyclestarnet.ContinuumRecipe`
        Made for ``grid``. It normalises all spectra, also those that come normalised.
    catalogue : path-like, optional
        Table with what cuts need, see `~cyclestarnet.io.catalogue.Catalogue`. Stars
        that it does not have are left out. Its χ² goes into the set.
    cuts : `StarCuts`, optional
        Which stars to take. Default: the paper's cuts.
    splits : mapping of str to float, optional
        Names of the splits and their shares, which sum up to 1. Default: train 0.8,
        val 0.1, test 0.1.
    seed : int, optional
        Of the splits. Each star is drawn by itself, by its name: all of its spectra
        are in one split, and it stays there if stars are added to the set.
    reader : callable, optional
        Reads a path to a `~specutils.Spectrum`; importable if there are several
        workers. Default: `read`.
    workers : int, optional
        Processes of this machine that read. A script that wants several must call
        this under ``if __name__ == "__main__":``. Default: 1, this one.
    overwrite : bool, optional
        Replace an existing file, with all its splits. Default: False.
    progress : bool, optional
        Show progress bars. Default: True.

    Returns
    -------
    `~astropy.table.QTable`
        The report, with a row per file: ``file``, ``star``, ``telescope``, ``snr``,
        ``chi2``, ``broadening``, ``split`` and ``row`` in it (empty and -1 of what was
        left out), ``reason`` (empty of what went in) and ``detail``. It is also written, as
        ``NAME.report.ecsv`` beside ``NAME.h5``.

    Raises
    ------
    FileExistsError
        If the file exists and ``overwrite`` is False, or ``PATH.partial`` is that of another
        call, or another process is at it.
    FileNotFoundError
        If nothing matches the pattern, or there is no such folder or catalogue.
    FileFormatError
        If the catalogue cannot be read, or the rows of an unfinished run are damaged.
    GridError
        If ``recipe`` is made for another grid.
    SpectrumError
        If nothing passes. The report is written.
    ValueError
        If an argument is impossible.
    CycleStarNetError
        If a worker process died.

    See Also
    --------
    write_training_set : writes one split of spectra that were chosen before.
    summarise_preparation : the report in a few lines.

    Notes
    -----
    The signal-to-noise ratio is that of the file, or else the median of flux over
    error of the good pixels. The set also has ``names SPLIT``, the names of its stars.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, astropy.units as u
    >>> from astropy.nddata import StdDevUncertainty
    >>> from specutils import Spectrum
    >>> from cyclestarnet import ContinuumRecipe, WavelengthGrid
    >>> from cyclestarnet.io import TrainingSet, prepare_training_set, summarise_preparation
    >>> grid = WavelengthGrid(np.linspace(1500, 1510, 101) * u.nm)
    >>> def star(name, snr):
    ...     error = StdDevUncertainty(np.full(101, 100 / snr))
    ...     flux, meta = np.full(101, 100.0) * u.ct, {"object": name}
    ...     return Spectrum(flux, spectral_axis=grid.wavelength, uncertainty=error, meta=meta)
    >>> stars = [star("a", 100), star("b", 200), star("a", 150), star("c", 9)]
    >>> path, recipe = tempfile.mkdtemp() + "/observed.h5", ContinuumRecipe(grid, np.ones(101))
    >>> report = prepare_training_set(path, stars, grid=grid, recipe=recipe, splits={"train": 1}, progress=False)
    >>> print(*report["reason"], sep=", ")
    duplicate, , , S/N
    >>> TrainingSet(path).names
    ('b', 'a')
    """
    path, cuts = Path(path), StarCuts() if cuts is None else cuts
    _check(path, grid, recipe, splits, workers)
    staged, rows_path = Path(f"{path}.partial"), Path(f"{path}.partial.rows")
    if path.exists() and not overwrite and not staged.exists():
        raise FileExistsError(f"{path} exists; use overwrite=True to replace it, or another name")
    known = None if catalogue is None else Catalogue(catalogue)
    stars = survey_sources(spectra, reader=reader)
    run = {
        "task": "prepare",
        "pixels": _digest(grid.wavelength.value, grid.chips, recipe.pixels, recipe.degree),
        "catalogue": None if known is None else _state(known.path),
        "cuts": {name: value for name, value in vars(cuts).items() if name != "one_per_star"},
        "reader": _names_of(reader),
        "stars": [star.identity for star in stars],
    }
    with Journal(staged, run) as journal, _Rows(rows_path, grid.n_pixels) as rows:
        outcomes: list[_Outcome | None] = [None] * len(stars)
        n_rows = 0
        for block, records in journal.recorded():
            for k, record in zip(block, records, strict=True):
                outcomes[k] = _Outcome(**dict(zip(_RECORDED, record, strict=True)))
                n_rows = max(n_rows, outcomes[k].slot + 1)
        rows.keep(n_rows)
        _read_rest(stars, outcomes, journal, rows, _RowMaker(grid, recipe), cuts, known, workers, progress)
        report_path = path.with_name(f"{path.stem}.report.ecsv")
        _choose(stars, outcomes, cuts, splits, seed)
        report = _report(stars, outcomes)
        about = {"splits": dict(splits), "seed": seed, "cuts": vars(cuts), "grid": repr(grid), "degree": recipe.degree}
        report.meta |= {
            "set": path.name,
            "report": report_path.name,
            "splits": {split: int(np.sum(report["split"] == split)) for split in splits},
            "left_out": dict(Counter(reason for reason in report["reason"].tolist() if reason).most_common()),
            "cuts": as_json(vars(cuts)),
            "cuts_not_made": cuts.not_made(() if known is None else known.columns),
            "seed": seed,
        }
        chosen = {split: [o for o in outcomes if o.split == split] for split in splits}
        if any(chosen.values()):
            has_chi2 = known is not None and "chi2" in known.columns
            write_hdf5(path, partial(_write_set, rows, chosen, grid, has_chi2, as_json(about), progress))
        write_atomically(report_path, lambda temporary: report.write(temporary, format="ascii.ecsv", overwrite=True))
    staged.unlink()
    rows_path.unlink()
    if not any(chosen.values()):
        raise SpectrumError(
            f"none of {len(stars)} spectra passes, and no set was written; {report_path} tells why: "
            + ", ".join(f"{reason} ({n})" for reason, n in report.meta["left_out"].items())
        )
    return report


def _check(path, grid, recipe, splits, workers):
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise ValueError(f"the name of the set must end in .h5 or .hdf5, but is {path.name!r}")
    check_no_folder(path)
    if recipe.grid != grid:
        raise GridError("recipe must be made for the grid of the set, but its grid is another one")
    shares = list(splits.values())
    if not shares or min(shares) < 0 or not np.isclose(sum(shares), 1) or "" in splits:
        raise ValueError(f"splits must be names with shares that sum up to 1, but are {dict(splits)}")
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, but is {workers}")


def _digest(*parts):
    return hashlib.sha256(b"".join(np.asarray(part).tobytes() for part in parts)).hexdigest()[:16]


def _state(path):
    """What tells whether a file is the same as then."""
    state = path.stat()
    return [os.fspath(path.resolve()), state.st_size, state.st_mtime_ns]


def _names_of(reader):
    if isinstance(reader, partial):
        return [_names_of(reader.func), list(reader.args), reader.keywords]
    return f"{reader.__module__}.{getattr(reader, '__qualname__', type(reader).__qualname__)}"


def _read_rest(stars, outcomes, journal, rows, row_maker, cuts, known, workers, progress):
    """Read the stars that have no outcome yet; each block is on the disk before it counts."""
    left = [k for k, outcome in enumerate(outcomes) if outcome is None]
    blocks = [left[k : k + READ_ROWS] for k in range(0, len(left), READ_ROWS)]
    work = ((block, [stars[k] for k in block]) for block in blocks)
    if workers > 1 and blocks:
        done = run_in_processes(row_maker, work, workers, what="its files were read")
    else:
        done = _read_here(row_maker, work)
    bar = tqdm(total=len(stars), initial=len(stars) - len(left), desc="reading", unit=" files", disable=not progress)
    with bar, closing(done):
        for block, results in done:
            passed = []
            for k, (outcome, row) in zip(block, results, strict=True):
                _cut(outcome, stars[k], cuts, known)
                if not outcome.reason:
                    outcome.slot = rows.n + len(passed)
                    passed.append(row)
                outcomes[k] = outcome
            if passed:
                rows.append(passed)
            journal.append(block, [outcomes[k].to_record() for k in block])
            bar.update(len(block))


def _read_here(row_maker, work) -> Iterator:
    for block, block_stars in work:
        yield block, row_maker(block_stars)


def _cut(outcome, star, cuts, known):
    """Note what the catalogue knows of a spectrum that was read, and why it does not pass, if so."""
    if outcome.reason:
        return
    row, path = None, getattr(star, "path", None)
    if known is not None:
        row = known.find(
            file=None if path is None else os.path.basename(path),
            apogee_id=outcome.apogee_id or outcome.star,
            sdss_id=outcome.sdss_id,
            telescope=outcome.telescope,
        )
    if row is not None:
        outcome.chi2, outcome.broadening = row.chi2, row.broadening
    reason, detail = cuts.reason(outcome.snr, row, () if known is None else known.columns)
    if reason:
        outcome.reason, outcome.detail = reason, detail


def _choose(stars, outcomes, cuts, splits, seed):
    """Give each spectrum that passed its split, or say of which other one it is a duplicate."""
    best: dict[str, int] = {}
    passed = [k for k, outcome in enumerate(outcomes) if not outcome.reason]
    keys = {k: _key(stars[k], outcomes[k]) for k in passed}
    for k in passed:
        first = best.setdefault(keys[k], k)
        if outcomes[k].snr > outcomes[first].snr:
            best[keys[k]] = k
    numbers = dict.fromkeys(splits, 0)
    for k in passed:
        outcome, other = outcomes[k], best[keys[k]]
        if cuts.one_per_star and other != k:
            outcome.reason = DUPLICATE
            outcome.detail = f"of {stars[other].name or other}, whose S/N is {outcomes[other].snr:.4g}"
            continue
        outcome.split = _split(keys[k], splits, seed)
        outcome.row = numbers[outcome.split]
        numbers[outcome.split] += 1


def _key(star, outcome):
    """What spectra of one star share: its name; a spectrum without one is a star of its own."""
    return outcome.apogee_id or outcome.star or (str(outcome.sdss_id) if outcome.sdss_id else star.identity)


def _split(key, splits, seed):
    """The split of a star, which depends on its name and the seed only."""
    digest = hashlib.blake2b(f"{seed} {key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    place, names = int.from_bytes(digest, "big") / 2**64, [name for name, share in splits.items() if share > 0]
    edges = np.cumsum([splits[name] for name in names])
    return names[min(int(np.searchsorted(edges, place, side="right")), len(names) - 1)]


def _report(stars, outcomes):
    return QTable(
        {
            "file": np.array([star.name for star in stars], dtype=str),
            "star": np.array([o.star for o in outcomes], dtype=str),
            "telescope": np.array([o.telescope for o in outcomes], dtype=str),
            "snr": np.array([o.snr for o in outcomes]),
            "chi2": np.array([o.chi2 for o in outcomes]),
            "broadening": np.array([o.broadening for o in outcomes]) * u.km / u.s,
            "split": np.array([o.split for o in outcomes], dtype=str),
            "row": np.array([o.row for o in outcomes]),
            "reason": np.array([o.reason for o in outcomes], dtype=str),
            "detail": np.array([o.detail for o in outcomes], dtype=str),
        }
    )


def _write_set(rows, chosen, grid, has_chi2, about, progress, file):
    """Copy the rows of each split, block by block."""
    bar = tqdm(total=sum(map(len, chosen.values())), desc="writing", unit=" stars", disable=not progress)
    with bar:
        file["wavelength"] = grid.wavelength.to_value(u.AA)
        file["wavelength"].attrs.update({"unit": "Angstrom", "medium": "vacuum"})
        file.attrs["prepared"] = about
        for split, outcomes in chosen.items():
            if not outcomes:  # a split without spectra cannot be opened
                continue
            n = len(outcomes)
            datasets = {
                name: file.create_dataset(
                    f"{name} {split}",
                    (n, grid.n_pixels),
                    rows.dtype[name].base,
                    chunks=(min(BLOCK_ROWS, n), grid.n_pixels),
                )
                for name in rows.dtype.names
            }
            for start in range(0, n, BLOCK_ROWS):
                part = outcomes[start : start + BLOCK_ROWS]
                block = rows.read([outcome.slot for outcome in part])
                for name, dataset in datasets.items():
                    dataset[start : start + len(part)] = block[name]
                file.flush()  # raises if the disk is full
                bar.update(len(part))
            file[f"snr {split}"] = np.array([outcome.snr for outcome in outcomes], dtype="f4")
            if has_chi2:
                file[f"chi2 {split}"] = np.array([outcome.chi2 for outcome in outcomes], dtype="f4")
            names = [outcome.star.encode("utf-8", "backslashreplace") for outcome in outcomes]
            file[f"names {split}"] = np.array(names, dtype=h5py.string_dtype("utf-8", max(map(len, names)) or 1))


def summarise_preparation(report: QTable) -> str:
    """Write the report of a preparation in a few lines.

    Parameters
    ----------
    report : `~astropy.table.QTable`
        Of `prepare_training_set`, or read from its file.

    Returns
    -------
    str
        How many spectra each split has, how many were left out for which reason, and
        which cuts could not be made.

    Examples
    --------
    >>> from astropy.table import QTable
    >>> from cyclestarnet.io import summarise_preparation
    >>> report = QTable({"reason": ["", "S/N"]})
    >>> report.meta = {"set": "a.h5", "report": "a.report.ecsv", "splits": {"train": 1}, "left_out": {"S/N": 1}}
    >>> print(summarise_preparation(report))
    a.h5: 1 of 2 spectra (train 1)
    left out: 1 (a.report.ecsv tells of each)
        1  S/N
    """
    meta, n_left_out = report.meta, sum(report.meta["left_out"].values())
    splits = ", ".join(f"{split} {n:,}" for split, n in _largest_first(meta["splits"]))
    lines = [
        f"{meta['set']}: {sum(meta['splits'].values()):,} of {len(report):,} spectra ({splits})",
        f"left out: {n_left_out:,} ({meta['report']} tells of each)",
    ]
    width = len(f"{max(meta['left_out'].values(), default=0):,}")
    lines += [f"    {n:>{width},}  {reason}" for reason, n in _largest_first(meta["left_out"])]
    lines += [f"no cut on {name}: {why}" for name, why in sorted(meta.get("cuts_not_made", {}).items())]
    return "\n".join(lines)


def _largest_first(numbers):
    """Items of a mapping in an order that the file of the report does not lose."""
    return sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
