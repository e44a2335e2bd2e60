"""Fits of many stars: read ahead, fitted block by block, written as they come, resumed after a kill.

This room knows no network: it is handed a function that fits a list of spectra,
and sees that every star gets one row, in order, whatever happens to it, to its
file or to the computer. Memory holds two blocks of spectra and the rows.

On a cluster the blocks go to the workers of a `dask.distributed.Client`. With
Slurm, for example, one thread for each worker, because threads would share a model::

    from dask.distributed import Client
    from dask_jobqueue import SLURMCluster

    cluster = SLURMCluster(cores=1, processes=1, memory="4GB", walltime="04:00:00",
                           job_script_prologue=["export OMP_NUM_THREADS=1"])
    cluster.adapt(maximum_jobs=100)
    model.fit_many("spectra/apStar-*.fits", output="labels.parquet", client=Client(cluster))

The driver needs the paths only; files are read where they are fitted, so that
workers must see them under the same names.

Processes of this machine (``workers=N``) are those of ``cyclestarnet.processes``.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from astropy.table import QTable

from cyclestarnet.descriptions import described
from cyclestarnet.exceptions import CycleStarNetError, OtherRunError
from cyclestarnet.files import check_no_folder
from cyclestarnet.journal import Journal
from cyclestarnet.labels import LabelSet, difference_unit
from cyclestarnet.pipeline.journal import check_suffix, write_results
from cyclestarnet.pipeline.options import ManyOptions
from cyclestarnet.processes import run_in_processes
from cyclestarnet.progress import tqdm
from cyclestarnet.results import FitFlag
from cyclestarnet.spectra import Spectrum

log = logging.getLogger(__name__)

__all__ = ["Star", "Tabled", "failed_row", "fit_survey"]

NO_STARS_FAULT = (ImportError, OSError, OtherRunError)  # of a fit: all stars would fail, and no row could help


class Star(Protocol):
    """A star that is read when its turn comes, such as `~cyclestarnet.io.StarSource`.

    Examples
    --------
    >>> from cyclestarnet.io.stars import star_sources
    >>> [star.name for star in star_sources(["apStar-a.fits"])]
    ['apStar-a.fits']
    """

    @property
    def name(self) -> str:
        """What its row is called unless the spectrum knows better."""

    @property
    def identity(self) -> str:
        """By which a resumed run knows it."""

    def read(self) -> Spectrum:
        """Read its spectrum.

        Returns
        -------
        `~specutils.Spectrum`

        Examples
        --------
        ::

            spectrum = star.read()
        """


class Tabled(Protocol):
    """A result that makes its row, such as `~cyclestarnet.FitResult`.

    Examples
    --------
    ::

        fitted: list[Tabled] = [model.fit(spectrum)]
    """

    def to_table(self) -> QTable:
        """Make a table of one row.

        Returns
        -------
        `~astropy.table.QTable`

        Examples
        --------
        ::

            row = result.to_table()
        """


# -- from spectra to rows --------------------------------------------------------
def _read(stars):
    """Names, and spectra or the errors that came instead."""
    return [(star.name, _attempt(star.read)) for star in stars]


def _attempt(function, *arguments):
    """What a function returns or raises: a file can be damaged in ways that no list of exceptions covers."""
    try:
        return function(*arguments)
    except Exception as error:
        return error.with_traceback(None)  # which would keep the spectra of a whole block alive


@dataclass(frozen=True, eq=False)
class _BlockFitter:
    """Turns spectra into rows of plain values, in the columns of a failed row and with the seconds of each star."""

    fit_stars: Callable
    failed_row: Callable

    def __call__(self, numbers, block):
        template, outcomes = self.failed_row("", ""), [outcome for _, outcome in block]
        good = [k for k, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)]
        began = time.perf_counter()
        fitted = self._fitted([outcomes[k] for k in good], [numbers[k] for k in good]) if good else []
        seconds = (time.perf_counter() - began) / max(len(good), 1)
        for k, result in zip(good, fitted, strict=True):
            outcomes[k] = result if isinstance(result, Exception) else _attempt(result.to_table)
        rows = []
        for k, ((name, _), outcome) in enumerate(zip(block, outcomes, strict=True)):
            row = self.failed_row(name, outcome) if isinstance(outcome, Exception) else outcome
            values = {column: _plain(row[column], template[column].unit) for column in template.colnames}
            values["object"] = values["object"] or name
            rows.append([*values.values(), seconds if k in good else 0.0])
        return rows

    def _fitted(self, spectra, numbers):
        try:
            return self.fit_stars(spectra, numbers)
        except NO_STARS_FAULT:
            raise
        except Exception as error:
            if len(spectra) == 1:
                return [error]
        pairs = zip(spectra, numbers, strict=True)
        return [self._fitted([spectrum], [number])[0] for spectrum, number in pairs]  # only the bad one is lost


def _plain(column, unit):
    """The one value of a column, as JSON has it."""
    value = np.asarray(column.value if unit is None else column.to_value(unit))[0].tolist()
    return value.strip() if isinstance(value, str) else value


class _Rows:
    """The table to be: an array for each column, filled in any order, and as long as there are stars."""

    def __init__(self, template):
        self.units = {name: template[name].unit for name in template.colnames} | {"seconds": None}
        self.columns = {
            name: np.empty((0, *column.shape[1:]), object if column.dtype.kind in "OSU" else column.dtype)
            for name, column in template.items()
        } | {"seconds": np.empty(0)}
        self.filled, self.n_stars = np.zeros(0, dtype=bool), 0

    def reach(self, n_stars):
        """Make room for so many stars."""
        self.n_stars = max(self.n_stars, n_stars)
        if n_stars > len(self.filled):
            more = max(n_stars, 2 * len(self.filled)) - len(self.filled)
            self.filled = np.append(self.filled, np.zeros(more, dtype=bool))
            for name, array in self.columns.items():
                self.columns[name] = np.concatenate([array, np.empty((more, *array.shape[1:]), array.dtype)])

    def put(self, stars, rows):
        self.reach(max(stars, default=-1) + 1)
        for column, values in zip(self.columns.values(), zip(*rows, strict=True), strict=True):
            column[stars] = values
        self.filled[stars] = True

    def to_table(self, meta):
        columns = {}
        for name, array in self.columns.items():
            array = array[: self.n_stars]
            array = array.astype(str) if array.dtype == object else array
            columns[name] = array if self.units[name] is None else array << self.units[name]
        return described(QTable(columns, copy=False, meta=dict(meta or {})))


# -- the engine ------------------------------------------------------------------
def fit_survey(
    stars: Sequence[Star] | Iterator[Star],
    fit_stars: Callable[[list[Spectrum], list[int]], list[Tabled | Exception]],
    failed_row: Callable[[str, Exception | str], QTable],
    many: ManyOptions | None = None,
    *,
    run: Mapping[str, Any] | None = None,
    meta: Mapping[str, str] | None = None,
    block_size: int = 32,
    retries: int = 3,
    task: str = "fitting",
) -> QTable:
    """Fit stars block by block; whatever fails is a row that says why.

    Parameters
    ----------
    stars : sequence or iterator of `Star`
        See `~cyclestarnet.io.star_sources`. An iterator is read as far as stars are needed.
    fit_stars : callable
        Takes a list of `~specutils.Spectrum` and one of their numbers in ``stars``, and returns a list of
        `~cyclestarnet.FitResult`, or what else has ``to_table()``, or Exception, aligned with it. A star's result
        must not depend on the others. If it raises, the block is fitted star by star; but errors that
        no star can help, `OSError`, `ImportError` and `~cyclestarnet.exceptions.OtherRunError`, end the run.
    failed_row : callable
        Takes a name and an error and returns a one-row `~astropy.table.QTable`.
        Its columns are those of the table.
    many : `~cyclestarnet.ManyOptions`, optional
        Where the table goes, and who fits. With several workers, or those of a client,
        the callables must be picklable. Its ``selection`` is the caller's business.
    run : mapping, optional
        What makes these fits these fits: model, options. An unfinished run is
        resumed only if it is the same.
    meta : mapping of str to str, optional
        What the table says of its origin.
    block_size : int, optional
        Stars that are fitted at once.
    retries : int, optional
        How often dask tries a block again whose task failed.
    task : str, optional
        What the progress bar says is being done.

    Returns
    -------
    `~astropy.table.QTable`
        A row per star, in order: the columns of ``failed_row``, and
        ``seconds``, the time of the star's block divided by its stars.

    Raises
    ------
    FileExistsError
        If the output exists, or the ``.partial`` file is that of another run.
    IsADirectoryError
        If the output is a folder.
    CycleStarNetError
        If workers died over a block: of a cluster again and again, of this machine once.

    Examples
    --------
    ::

        stars = star_sources("spectra/apStar-*.fits")
        setup = SurveySetup.of(model, FitOptions())
        fit_survey(stars, partial(fit_numbered, setup=setup), partial(failed_row, model.labels))
    """
    many = ManyOptions() if many is None else many
    if block_size < 1:
        raise ValueError(f"block_size must be 1 or more, but is {block_size}")
    rows, n_stars = _Rows(failed_row("", "")), len(stars) if isinstance(stars, Sequence) else None
    rows.reach(n_stars or 0)
    options = {
        "fit_block": _BlockFitter(fit_stars, failed_row),
        "block_size": block_size,
        "retries": retries,
        "task": task,
    }
    output = many.output
    if output is None:
        _fit_rest(stars, rows, many, **options)
        return _summed_up(rows.to_table(meta))
    check_no_folder(output)  # raises now rather than after the last star
    check_suffix(output)
    partial_path = Path(f"{os.fspath(output)}.partial")
    if Path(output).exists() and not many.overwrite and not partial_path.exists():
        raise FileExistsError(f"{output} exists; use overwrite=True to replace it, or another name")
    known = "as they come" if n_stars is None else [star.identity for star in stars]
    run = {"columns": list(rows.columns), **(run or {}), "stars": known}
    with Journal(partial_path, run) as journal:
        if n_stars is None:
            stars, keep = _recorded_one_by_one(stars, rows, journal)
        else:
            keep = journal.append
            for block, values in journal.recorded():
                rows.put(block, values)
        _fit_rest(stars, rows, many, **options, keep=keep)
        table = rows.to_table(meta)
        write_results(table, output)
    partial_path.unlink()
    return _summed_up(table)


def _summed_up(table):
    """The table, after the log has been told how many stars carry which flag."""
    if len(table):
        names = np.array([",".join(FitFlag(int(flags)).names) for flags in table["flags"]])
        counts = {flag.name: sum(flag.name in text.split(",") for text in names) for flag in FitFlag}
        told = ", ".join(f"{name} {number}" for name, number in counts.items() if number) or "none"
        log.log(
            logging.INFO if told == "none" else logging.WARNING,
            "flags of %d stars (%d with any): %s", len(table), int((names != "").sum()), told,
        )  # fmt: skip
    return table


def _recorded_one_by_one(stars, rows, journal):
    """Stars whose number nobody knows before they have come, and a function that keeps their rows with who they are."""
    identities = {}
    for block, values in journal.recorded():
        identities.update(zip(block, (value[-1] for value in values), strict=True))
        rows.put(block, [value[:-1] for value in values])

    def again():
        last = -1
        for last, star in enumerate(stars):
            if identities.setdefault(last, star.identity) != star.identity:
                raise FileExistsError(
                    f"star {last} was {identities[last]!r:.80} in the unfinished run of {journal.path}, but is "
                    f"{star.identity!r:.80} now; delete the file to begin anew, or choose another output"
                )
            yield star
        if len(identities) > last + 1:
            raise FileExistsError(
                f"{last + 1} stars came, but {journal.path} has rows of {len(identities)}; delete the file to begin "
                "anew, or choose another output"
            )

    def keep(block, values):
        journal.append(block, [[*value, identities[k]] for k, value in zip(block, values, strict=True)])

    return again(), keep


def _blocks(stars, rows, block_size):
    """Numbers and stars of each block of those whose rows are not filled; stars are asked for as they are needed."""
    numbers, block = [], []
    for k, star in enumerate(stars):
        rows.reach(k + 1)
        if rows.filled[k]:
            continue
        numbers.append(k)
        block.append(star)
        if len(block) == block_size:
            yield numbers, block
            numbers, block = [], []
    if block:
        yield numbers, block


def _fit_rest(stars, rows, many, *, fit_block, block_size, retries, task, keep=None):
    """Fit the stars whose rows are not filled; ``keep`` is handed each block before it counts."""
    total, done = len(stars) if isinstance(stars, Sequence) else None, int(rows.filled.sum())
    blocks = _blocks(stars, rows, block_size)
    if many.client is not None:
        fitted = _fit_on_cluster(blocks, fit_block, many.client, retries)
    elif many.workers > 1:
        work = partial(_read_and_fit, fit_block)
        jobs = ((numbers, (numbers, block)) for numbers, block in blocks)
        fitted = run_in_processes(work, jobs, many.workers, what="its stars were fitted")
    else:
        fitted = _fit_here(blocks, fit_block)
    bar = tqdm(total=total, initial=done, desc=task, unit=" stars", disable=not many.progress)
    with bar, closing(fitted):  # an interrupt stops the reading, too
        for block, values in fitted:
            if keep is not None:
                keep(block, values)
            rows.put(block, values)
            bar.update(len(block))


def _fit_here(blocks, fit_block):
    """Blocks and their rows; a thread reads the next block while one is fitted."""
    with ThreadPoolExecutor(1, thread_name_prefix="reading") as thread:
        reads = ((numbers, thread.submit(_read, stars)) for numbers, stars in blocks)
        coming = next(reads, None)
        while coming is not None:
            numbers, spectra = coming[0], coming[1].result()  # the block before goes
            coming = next(reads, None)
            yield numbers, fit_block(numbers, spectra)


def _fit_on_cluster(blocks, fit_block, client, retries):
    """Blocks and their rows as they come; two blocks for each thread of the workers are under way."""
    from distributed import KilledWorker, as_completed

    def submit(function, *arguments):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)  # large, but once
            return client.submit(function, *arguments, retries=retries, pure=False)

    client.wait_for_workers(1)
    # The result of a task, which dask makes again where all workers that had it are lost; scattered data are not.
    fitter = submit(_itself, fit_block)
    waiting, under_way, done = iter(blocks), {}, as_completed(loop=client.loop)
    try:
        while True:
            n_free = 2 * max(sum(client.nthreads().values()), 1) - len(under_way)
            for block, stars in islice(waiting, max(n_free, 0)):
                future = submit(_read_and_fit, fitter, (block, stars))
                under_way[future] = block
                done.add(future)
            if not under_way:
                return
            future = next(done)
            block = under_way.pop(future)
            try:
                values = future.result()
            except KilledWorker as error:
                raise CycleStarNetError(
                    f"stars {block[0]} to {block[-1]} were lost with every worker that fitted them; do they need more "
                    f"memory than a worker has? {error}"
                ) from error
            yield block, values
    finally:
        client.cancel(list(under_way))


def _itself(value):
    return value


def _read_and_fit(fit_block, job):
    numbers, stars = job
    return fit_block(numbers, _read(stars))


# -- rows ------------------------------------------------------------------------
def failed_row(labels: LabelSet, name: str, error: Exception | str) -> QTable:
    """Make the row of a star without a fit.

    Parameters
    ----------
    labels : `~cyclestarnet.LabelSet`
        Whose columns the table has.
    name : str
        Of the star.
    error : Exception or str
        Why there is no fit.

    Returns
    -------
    `~astropy.table.QTable`
        One row: NaN labels, the flag ``FAILED``, and the reason in ``message``.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.pipeline.many import failed_row
    >>> failed_row(CalibratedModel.from_pretrained().labels, "star 1", "the file is empty")["flag_names"][0]
    np.str_('FAILED')
    """
    nothing = labels.to_quantities(np.full((1, len(labels)), np.nan))
    columns = {"object": [name]}
    for label, value in nothing.items():
        columns[label] = value
        columns[f"{label}_err"] = [np.nan] * difference_unit(label)
    ours = isinstance(error, CycleStarNetError | str)
    columns |= {
        "reduced_chi2": [np.nan], "reduced_chi2_total": [np.nan], "dof": [0], "snr": [np.nan], "success": [False],
        "flags": [FitFlag.FAILED.value], "flag_names": ["FAILED"],
        "prior_dominated": [""], "upper_limits": [""], "continuum": [""],
        "message": [str(error) if ours else f"{type(error).__name__}: {error}"],
    }  # fmt: skip
    return QTable(columns)
