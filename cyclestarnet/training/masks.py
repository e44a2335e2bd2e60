"""A spectroscopic mask of a model and observed stars: where its emulator is wrong whatever the star.

S1 is O'Briain et al. (2021).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cyclestarnet.io.stars import StarSource, survey_sources
from cyclestarnet.io.training_set import TrainingSet
from cyclestarnet.journal import run_folder
from cyclestarnet.masks import SIGNIFICANCE, THRESHOLD, SpectroscopicMask
from cyclestarnet.model import CalibratedModel
from cyclestarnet.model_file import digest_of
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training.fitted_sets import FITS_FILES, RESIDUALS_FILE, FittedSet, LeftOver, state_of_stars

__all__ = ["find_mask", "mask_of_stars"]

WAY = "mask"


def find_mask(
    model: CalibratedModel,
    spectra: str | os.PathLike[str] | TrainingSet | Spectrum | Iterable[Spectrum | str | os.PathLike[str]],
    *,
    n_stars: int = 500,
    split: str | None = None,
    threshold: float = THRESHOLD,
    significance: float = SIGNIFICANCE,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    workers: int = 1,
    progress: bool = True,
) -> SpectroscopicMask:
    """Find where synthetic and observed spectra disagree, whatever the star.

    Stars are fitted with the emulator alone (S1, Eq. 9). A pixel is masked if what the fits leave over there tells of
    an error of the emulator that is larger than ``threshold``: √(b² + s²) of the stars' median offset b and of
    their scatter s beyond the noise, each of which counts only if it is ``significance`` times its standard error.
    `~cyclestarnet.masks.model_errors` has the formulas.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model.
    spectra : path-like, or all that `~cyclestarnet.CalibratedModel.fit_many` takes
        Observed spectra, best of other stars than those that are to be fitted with the mask. Also a folder of FITS
        files, or a text file with a path in each line.
    n_stars : int, optional
        Stars to draw, at most. Default: 500. Of fewer than 100, small errors are not significant.
    split : str, optional
        Of an HDF5 file. Default: the only one.
    threshold : float, optional
        Error of the emulator that is too large, in units of the continuum. Default: 0.03, three times the noise of
        a spectrum of S/N 100.
    significance : float, optional
        In standard errors. Default: 5, which chance reaches at less than one in a hundred thousand pixels.
    seed : int, optional
        Of the stars. Default: 0.
    folder : path-like, optional
        For what is done so far: the same call after a kill goes on. Default: a kill costs everything.
    workers : int, optional
        Processes of this machine that work side by side. A script that wants several must call this under
        ``if __name__ == "__main__":``. Default: 1, this one.
    progress : bool, optional
        Show bars. Default: True.

    Returns
    -------
    `~cyclestarnet.SpectroscopicMask`
        For ``ignore`` of fits.

    Raises
    ------
    FileExistsError
        If the folder has another run.
    FileNotFoundError, FileFormatError, GridError
        If the spectra are not there, damaged, or on unknown pixels.
    SpectrumError
        If none of the stars can be fitted.
    ValueError
        If a number is not positive, or there are no spectra.

    See Also
    --------
    collect_evidence : fits with and without a mask.

    Examples
    --------
    ::

        mask = find_mask(model, "observed.h5", split="val")
        mask.write("mask.ecsv")
        model.fit_many("stars/apStar-*.fits", space="emulator", ignore=mask)
    """
    if n_stars < 1:
        raise ValueError(f"n_stars must be 1 or more, but is {n_stars}")
    every = survey_sources(spectra, grid=model.grid, split=split)
    rows = np.sort(np.random.default_rng([seed, 0]).permutation(len(every))[:n_stars])
    return mask_of_stars(
        model, [every[row] for row in rows], threshold=threshold, significance=significance,
        folder=None if folder is None else Path(folder), workers=workers, progress=progress,
    )  # fmt: skip


def mask_of_stars(
    model: CalibratedModel,
    stars: list[StarSource],
    *,
    threshold: float = THRESHOLD,
    significance: float = SIGNIFICANCE,
    folder: Path | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> SpectroscopicMask:
    """Find where synthetic and observed spectra of some stars disagree; see `find_mask`.

    Parameters
    ----------
    model, threshold, significance, workers, progress
        As `find_mask` takes them.
    stars : list of `~cyclestarnet.io.stars.StarSource`
        All of them are used.
    folder : path, optional
        For what is done so far.
    overwrite : bool, optional
        Begin anew if the folder has another run. Default: False.

    Returns
    -------
    `~cyclestarnet.SpectroscopicMask`

    Examples
    --------
    ::

        mask_of_stars(model, survey_sources("spectra", grid=model.grid))
    """
    for name, value in {"threshold": threshold, "significance": significance}.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, but is {value}")
    if folder is None:
        return _mask(FittedSet(model, stars, None, workers, progress), threshold, significance)
    run = {"task": WAY, "model": model.name, "weights": digest_of(model), "spectra": state_of_stars(stars)}
    with run_folder(folder, run, [FITS_FILES, RESIDUALS_FILE], overwrite=overwrite):
        return _mask(FittedSet(model, stars, folder, workers, progress), threshold, significance)


def _mask(fitted: FittedSet, threshold: float, significance: float) -> SpectroscopicMask:
    table = fitted.table(WAY, FitOptions(space="emulator"))
    wanted = {unit: LeftOver(WAY, in_sigma=unit == "sigma") for unit in ("continuum", "sigma")}
    left = fitted.left_over({WAY: ("emulator", table)}, wanted)
    mask = SpectroscopicMask.of(left["continuum"], left["sigma"], threshold=threshold, significance=significance)
    mask.table.meta["model"] = fitted.model.name
    return mask
