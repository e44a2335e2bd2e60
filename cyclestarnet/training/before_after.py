"""What held-out stars look like to a model before and after an adaptation: misfits, latents and labels.

No label of a star is known. What can be measured is how well its spectrum is fitted,
whether both domains have the same latents, and whether the labels that are found have
the distribution that the training took them to have.
"""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from astropy.table import QTable

from cyclestarnet.exceptions import FitWarning, SpectrumError
from cyclestarnet.files import write_atomically
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.model import CalibratedModel
from cyclestarnet.pipeline.fit import fit_stars
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import Spectrum, row_of
from cyclestarnet.training.datasets import ObservedSpectra, SyntheticSource
from cyclestarnet.training.domains import Stars
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.watch import alignment_scores

__all__ = ["AdaptationReport", "Standing", "compare_models"]

log = logging.getLogger(__name__)

BATCH = 16  # stars that are fitted side by side
N_SCORED = 200  # spectra per domain whose latents are compared


@dataclass(frozen=True, eq=False)
class Standing:
    """What a model makes of held-out stars.

    Parameters
    ----------
    name : str
        Name of the model.
    values : array, shape (n_stars, n_labels)
        Labels that fits found, in the units of the labels.
    reduced_chi2 : array, shape (n_stars,)
        Of those fits, from the quoted errors of the spectra alone.
    residual : array, shape (n_stars, n_pixels)
        Data − model, in units of the continuum; NaN at pixels that do not count.
    scores : dict of float
        Of `~cyclestarnet.training.watch.alignment_scores`; empty without scikit-learn.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training import Standing
    >>> left = np.random.default_rng(0).normal(0, 0.02, (5, 1000))
    >>> standing = Standing("giants", np.zeros((5, 1)), np.array([1.0, 1.2, 0.9, 1.3, 1.1]), left, {})
    >>> standing.chi2, round(standing.half_width, 3), standing.accuracy
    (1.1, 0.02, nan)
    """

    name: str
    values: np.ndarray
    reduced_chi2: np.ndarray
    residual: np.ndarray
    scores: dict[str, float]

    @property
    def chi2(self) -> float:
        """Median reduced χ²."""
        return float(np.median(self.reduced_chi2))

    @property
    def half_width(self) -> float:
        """Half the 16-84 % range of all residuals, in units of the continuum."""
        low, high = np.nanpercentile(self.residual, [16, 84])
        return float(high - low) / 2

    @property
    def accuracy(self) -> float:
        """How often a classifier tells the shared latents of both domains apart; 0.5 is best, NaN if not measured."""
        return self.scores.get("c2st_latent", np.nan)


@dataclass(frozen=True, eq=False)
class AdaptationReport:
    """Held-out stars before and after an adaptation, by two models.

    Parameters
    ----------
    before, after : `Standing`
        Of the model that the adaptation began with, and of the one that it ended in; the same stars.
    labels : `~cyclestarnet.LabelSet`
        Names and units of the labels.
    prior : `~cyclestarnet.GaussianPrior`
        Of the labels of the synthetic spectra.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of the residuals.
    noise : float
        What `Standing.half_width` is if nothing but the quoted errors of the spectra is left over.
    n_trained : int
        Observed spectra that were trained on.
    provenance : dict of str
        Of the new model.

    Examples
    --------
    ::

        adapted, report = cyclestarnet.adapt(model, "mine.h5")
        print(report)
        report.to_label_table()
        report.write("mine.html")
    """

    before: Standing
    after: Standing
    labels: LabelSet
    prior: GaussianPrior
    grid: WavelengthGrid
    noise: float
    n_trained: int
    provenance: dict[str, str]

    def to_table(self) -> QTable:
        """Sum up both models, a row per measure.

        Returns
        -------
        `~astropy.table.QTable`
            ``measure``, ``before``, ``after`` and ``best``, the value of a perfect model.

        Examples
        --------
        ::

            report.to_table()["after"]
        """
        shifts = [float(np.sqrt(np.mean(self.shift(standing) ** 2))) for standing in (self.before, self.after)]
        rows = [
            ("median reduced chi2", self.before.chi2, self.after.chi2, 1.0),
            ("residual half-width (16-84 %)", self.before.half_width, self.after.half_width, self.noise),
            ("two-sample accuracy of latents", self.before.accuracy, self.after.accuracy, 0.5),
            ("label shifts against the prior, rms in sigma", *shifts, 0.0),
        ]
        return _short(QTable(rows=rows, names=("measure", "before", "after", "best")))

    def shift(self, standing: Standing) -> np.ndarray:
        """Median labels of the held-out stars less the mean of the label prior, in σ of the prior.

        Parameters
        ----------
        standing : `Standing`
            ``before`` or ``after``.

        Returns
        -------
        array, shape (n_labels,)

        Examples
        --------
        ::

            report.shift(report.after)
        """
        size = np.sqrt(np.diag(self.prior.covariance))
        return (np.median(standing.values, axis=0) - self.prior.mean) / size

    def to_label_table(self) -> QTable:
        """Sum up the labels, a row per label.

        Returns
        -------
        `~astropy.table.QTable`
            ``label``, ``unit``, ``prior`` and ``prior_sigma``; ``before`` and ``after``, medians of the
            held-out stars; ``shift_before`` and ``shift_after``, those less the prior, in its σ;
            ``change``, the median of after − before of the single stars, and ``scatter``, half
            the 16-84 % range of that.

        Examples
        --------
        ::

            report.to_label_table()["label", "shift_before", "shift_after"]
        """
        change = self.after.values - self.before.values
        low, middle, high = np.percentile(change, [16, 50, 84], axis=0)
        columns = {
            "label": list(self.labels.names),
            "unit": [str(self.labels.units[name]) for name in self.labels.names],
            "prior": self.prior.mean,
            "prior_sigma": np.sqrt(np.diag(self.prior.covariance)),
            "before": np.median(self.before.values, axis=0),
            "after": np.median(self.after.values, axis=0),
            "shift_before": self.shift(self.before),
            "shift_after": self.shift(self.after),
            "change": middle,
            "scatter": (high - low) / 2,
        }
        return _short(QTable(columns))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML page, which needs no other file; with figures, if Matplotlib is installed.

        Parameters
        ----------
        path : path-like
            Of the page, which is replaced if it exists.

        Examples
        --------
        ::

            report.write("mine.html")
        """
        from cyclestarnet.plotting.adaptation import adaptation_page

        page = adaptation_page(self)
        write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))

    def __repr__(self) -> str:
        n = len(self.before.reduced_chi2)
        names = f"{self.before.name} → {self.after.name}"
        head = f"<AdaptationReport {names}: {self.n_trained} spectra, {n} held-out stars>"
        table = self.to_table()
        for name in ("before", "after", "best"):
            table[name].info.format = ".4g"
        return "\n".join([head, *table.pformat(max_lines=-1, max_width=-1)])

    def _repr_html_(self) -> str:
        return self.to_table()._repr_html_()


def _short(table: QTable) -> QTable:
    """Let a table show four digits of its numbers; it holds all."""
    for name in table.colnames:
        if table[name].dtype.kind == "f":
            table[name].info.format = ".4g"
    return table


def compare_models(
    before: CalibratedModel,
    after: CalibratedModel,
    held_out: Stars,
    *,
    synthetic: SyntheticSource,
    n_trained: int,
    n_stars: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> AdaptationReport:
    """Fit held-out stars with two models of one kind, and compare.

    Parameters
    ----------
    before, after : `~cyclestarnet.CalibratedModel`
        Models with the same labels and grid.
    held_out : `~cyclestarnet.training.domains.Stars`
        Observed spectra that training has not seen.
    synthetic : `~cyclestarnet.training.datasets.SyntheticSource`
        Where synthetic spectra come from.
    n_trained : int
        Observed spectra that were trained on.
    n_stars : int, optional
        Stars to fit, at most. Default: 100.
    seed : int, optional
        Of the synthetic spectra and the classifiers. Default: 0.
    progress : bool, optional
        Show bars over the fits. Default: True.

    Returns
    -------
    `AdaptationReport`

    Raises
    ------
    SpectrumError
        If no star can be fitted with both.

    Examples
    --------
    ::

        report = compare_models(
            model, adapted, domains.held_out, synthetic=domains.synthetic, n_trained=len(domains.observed)
        )
    """
    spectra = held_out.spectra(n_stars, before.grid)
    scores = _scores((before, after), held_out, synthetic, seed)
    fits = {model: _fits(model, spectra, progress) for model in (before, after)}
    fitted = np.all([np.isfinite(chi2) for _, chi2, *_ in fits.values()], axis=0)
    if not fitted.any():
        raise SpectrumError(f"none of the {len(fitted)} held-out stars can be fitted")
    first, second = (
        Standing(model.name, values[fitted], chi2[fitted], residual[fitted], scores[model])
        for model, (values, chi2, residual, _) in fits.items()
    )
    sigma = fits[after][3][fitted]
    noise = np.random.default_rng(seed).normal(0, np.where(np.isfinite(sigma), sigma, 0.0))
    low, high = np.percentile(noise[np.isfinite(sigma)], [16, 84])
    return AdaptationReport(
        first, second, before.labels, before.prior, before.grid, float(high - low) / 2, n_trained,
        dict(after.provenance),
    )  # fmt: skip


def _fits(model: CalibratedModel, spectra: Spectrum, progress: bool) -> tuple[np.ndarray, ...]:
    """Labels, reduced χ², residuals and errors of all stars; NaN of those that cannot be fitted."""
    n_stars, n_labels = spectra.flux.shape[0], len(model.labels)
    shapes = ((n_labels,), (), (model.grid.n_pixels,), (model.grid.n_pixels,))
    values, chi2, residual, sigma = (np.full((n_stars, *shape), np.nan) for shape in shapes)
    setup = FitSetup.of(model, FitOptions())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        for first in tqdm(range(0, n_stars, BATCH), desc=f"stars, {model.name}", disable=not progress):
            block = range(first, min(first + BATCH, n_stars))
            for row, result in zip(
                block, fit_stars(model, [row_of(spectra, row) for row in block], setup), strict=True
            ):
                if isinstance(result, Exception):
                    log.warning("left out held-out star %d: %s", row, result)
                    continue
                values[row], chi2[row] = result.values[:n_labels], result.reduced_chi2
                residual[row] = result.residual.value
                used: Any = result.spectrum
                sigma[row] = np.where(np.isfinite(residual[row]), used.uncertainty.array, np.nan)
    return values, chi2, residual, sigma


def _scores(
    models: tuple[CalibratedModel, ...], held_out: Stars, synthetic: SyntheticSource, seed: int
) -> dict[CalibratedModel, dict[str, float]]:
    """Scores of the networks of models on the same spectra."""
    if find_spec("sklearn") is None:
        log.warning('latents are not compared, which needs scikit-learn: pip install "cyclestarnet[training]"')
        return {model: {} for model in models}
    translator, noise = models[0].translator, models[0].noise
    settings = TrainingSettings(
        flux_mean=translator.flux_mean,
        flux_std=translator.flux_std,
        sigma_floor=noise.sigma_floor,
        sigma_max=noise.sigma_max,
        fill=noise.fill,
    )
    observed = ObservedSpectra.from_table(held_out.table, settings, rows=held_out.spread(N_SCORED))
    flux, weight = observed.rows(torch.arange(len(observed)))
    x_synth, _ = synthetic.draw(len(observed), torch.Generator().manual_seed(seed))
    weight_synth = settings.flux_std / settings.synthetic_sigma
    return {
        model: alignment_scores(model.translator.network, x_synth, flux, weight, seed=seed, weight_synth=weight_synth)
        for model in models
    }
