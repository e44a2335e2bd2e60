"""Samplings of many stars: rows and resumption are those of fits, chains go to a folder, a file for each star.

While a run lasts, two files of a star are in the folder: ``<number>-<name>.h5`` is its chain, which is continued
after a kill, and ``<number>-<name>.fits`` has the samples of a finished one. At the end of the run the first go,
but for chains that are too short.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import QTable

from cyclestarnet.exceptions import CycleStarNetError, FileFormatError, FitWarning
from cyclestarnet.files import locked
from cyclestarnet.labels import LabelSet, difference_unit
from cyclestarnet.networks.threads import one_thread
from cyclestarnet.pipeline.chains import ChainFile
from cyclestarnet.pipeline.columns import SurveySetup
from cyclestarnet.pipeline.fit import fit_numbered
from cyclestarnet.pipeline.many import Star, fit_survey
from cyclestarnet.pipeline.options import ManyOptions, SampleManyOptions, SampleOptions, check_choice
from cyclestarnet.pipeline.sample import sample_one
from cyclestarnet.results import FitFlag, FitResult, Posterior, signed
from cyclestarnet.spectra import Spectrum, star_name
from cyclestarnet.storage import origin

__all__ = ["sample_survey"]

log = logging.getLogger(__name__)

LONG_NAME = 60  # characters of a star's name that the names of its files have


def sample_survey(
    stars: Sequence[Star] | Iterator[Star],
    setup: SurveySetup,
    sampling: SampleManyOptions,
    many: ManyOptions,
    *,
    digest: str,
) -> QTable:
    """Sample posteriors of many stars; see `~cyclestarnet.CalibratedModel.sample_many`.

    Parameters
    ----------
    stars : sequence or iterator of `~cyclestarnet.pipeline.many.Star`
        As for `~cyclestarnet.pipeline.many.fit_survey`.
    setup : `~cyclestarnet.pipeline.columns.SurveySetup`
        Of the fits from which samplings start, with the model.
    sampling : `~cyclestarnet.pipeline.options.SampleManyOptions`
        How to sample.
    many : `~cyclestarnet.ManyOptions`
        Where the table goes, and who samples.
    digest : str
        Of the model.

    Returns
    -------
    `~astropy.table.QTable`
        A row per star.

    Examples
    --------
    ::

        setup = SurveySetup.of(model, FitOptions())
        sample_survey(star_sources("apStar-*.fits"), setup, SampleManyOptions(), ManyOptions(), digest=digest_of(model))
    """
    check_choice("space", setup.options.space, ("observed", "emulator"))
    told = {"model": setup.parts.name, "weights": digest}
    settings = {"seed": sampling.seed, "n_walkers": sampling.n_walkers, "max_steps": sampling.max_steps}
    with locked(sampling.chains):
        _check_folder(sampling.chains, overwrite=many.overwrite)
        table = fit_survey(
            stars,
            partial(_sampled, setup=setup, sampling=sampling, digest=digest),
            partial(_failed_row, setup.label_set),
            many,
            run=told | vars(setup.options) | settings | {"chains": sampling.chains is not None},
            meta=origin(told, setup.options),
            block_size=1,
            task="sampling",
        )
        _remove_finished(sampling.chains, table)
    return table


# -- one star --------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Sampled:
    """A posterior with what its row needs besides."""

    posterior: Posterior
    fit: FitResult
    seed: int

    def to_table(self) -> QTable:
        """Make the row: that of the posterior, with labels that were not sampled as they were held, and flags."""
        row, fit = self.posterior.to_table(), self.fit
        columns = {name: row[name] for name in row.colnames}
        for name, held in fit.labels.items():
            if name not in columns:
                columns |= {name: held.reshape(1), f"{name}_err": np.zeros(1) * difference_unit(name)}
                columns |= {f"{name}_{end}": held.reshape(1) for end in ("low", "high")}
        columns |= {
            "reduced_chi2": [fit.reduced_chi2], "reduced_chi2_total": [fit.reduced_chi2_total],
            "snr": [fit.meta.get("snr", np.nan)], "flags": [fit.flags.value], "flag_names": [",".join(fit.flags.names)],
            "seed": [self.seed], "message": [self.posterior.headline],
        }  # fmt: skip
        return QTable(columns)


def _sampled(
    spectra: Sequence[Spectrum], numbers: Sequence[int], *, setup: SurveySetup, sampling: SampleManyOptions, digest: str
) -> list[_Sampled | Exception]:
    """Fit and sample stars one after the other; what is random about one follows from the seed and its number."""
    found: list[_Sampled | Exception] = []
    for spectrum, number in zip(spectra, numbers, strict=True):
        (fit,) = fit_numbered([spectrum], [number], setup=setup)
        if isinstance(fit, Exception):
            found.append(fit)
            continue
        seed = int(np.random.SeedSequence([sampling.seed, number]).generate_state(1)[0])
        stem = None if sampling.chains is None else Path(sampling.chains) / _stem(number, star_name(spectrum))
        options = SampleOptions(
            seed=seed, n_walkers=sampling.n_walkers, max_steps=sampling.max_steps, progress=False,
            backend=None if stem is None else _sound(Path(f"{stem}.h5")),
        )  # fmt: skip
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # the row says it
            posterior = sample_one(setup.parts, spectrum, options, {"start": fit}, digest=digest)
        posterior = signed(posterior, digest)
        if stem is not None:
            posterior.write(f"{stem}.fits")
        found.append(_Sampled(posterior, fit, seed))
    return found


def _failed_row(labels: LabelSet, name: str, error: Exception | str) -> QTable:
    """The row of a star without a posterior."""
    columns: dict[str, Any] = {"object": [name]}
    for label, value in labels.to_quantities(np.full((1, len(labels)), np.nan)).items():
        columns |= {label: value, f"{label}_err": [np.nan] * difference_unit(label)}
        columns |= {f"{label}_low": value, f"{label}_high": value}
    ours = isinstance(error, CycleStarNetError | str)
    return QTable(
        columns
        | {
            "converged": [False], "n_steps": [0], "acceptance_fraction": [np.nan], "autocorrelation_time": [np.nan],
            "n_nan": [0], "reduced_chi2": [np.nan], "reduced_chi2_total": [np.nan], "snr": [np.nan],
            "flags": [FitFlag.FAILED.value], "flag_names": ["FAILED"], "seed": [-1],
            "message": [str(error) if ours else f"{type(error).__name__}: {error}"],
        }
    )  # fmt: skip


# -- files -----------------------------------------------------------------------
def _stem(number: int, name: str) -> str:
    """Name of the files of a star, without suffix."""
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "_", name).strip("_.")[:LONG_NAME]
    return f"{number:06d}-{plain}" if plain else f"{number:06d}"


def _sound(path: Path) -> Path:
    """The file of a chain, which is removed if it is damaged: there is nothing in it to go on with."""
    try:
        ChainFile(path).load()
    except FileFormatError as error:
        log.warning("a chain is begun anew: %s", error)
        path.unlink()
    return path


def _check_folder(folder: str | os.PathLike[str] | None, *, overwrite: bool) -> None:
    """Raise if a folder has samples of a run that has ended, which this one might replace."""
    if folder is None or overwrite:
        return
    for path in sorted(Path(folder).glob("*.fits")):
        if not path.with_suffix(".h5").exists():
            raise FileExistsError(
                f"{path} was there before; use overwrite=True to replace such files, or another folder for the chains"
            )


def _remove_finished(folder: str | os.PathLike[str] | None, table: QTable) -> None:
    """Remove the chains that are long enough, once their rows are safe: their samples are in files of their own."""
    if folder is None:
        return
    for path in Path(folder).glob("*.h5"):
        number = re.match(r"\d+", path.name)
        samples = path.with_suffix(".fits")
        if number and samples.exists() and int(number[0]) < len(table) and table["converged"][int(number[0])]:
            path.unlink()
