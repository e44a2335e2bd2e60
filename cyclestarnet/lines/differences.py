"""Observed minus synthetic flux of many label sets or stars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cyclestarnet.exceptions import GridError, LabelError, SpectrumError
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import to_pixels

__all__ = ["FluxDifferences", "model_differences", "star_differences"]

ROWS = 64


@dataclass(frozen=True, eq=False, repr=False)
class FluxDifferences:
    """Observed minus synthetic flux of many stars or label sets.

    Parameters
    ----------
    grid : `~cyclestarnet.WavelengthGrid`
    labels : `~cyclestarnet.LabelSet`
    values : array, shape (n, n_labels)
        Labels of the synthetic spectra.
    flux : array, shape (n, n_pixels)
        The differences; NaN where a pixel is masked.
    error : array, shape (n, n_pixels), optional
        Their errors, 1 σ.
    synthetic : array, shape (n_pixels,), optional
        Mean of the synthetic spectra.
    """

    grid: WavelengthGrid
    labels: LabelSet
    values: np.ndarray
    flux: np.ndarray
    error: np.ndarray | None = None
    synthetic: np.ndarray | None = None

    def __post_init__(self):
        expected = (len(self.values), self.grid.n_pixels)
        for name in ("flux", "error"):
            array = getattr(self, name)
            if array is not None and np.shape(array) != expected:
                raise GridError(f"{name} must have shape {expected}, a row per label set, but has {np.shape(array)}")
        if np.shape(self.values)[1:] != (len(self.labels),):
            raise LabelError(
                f"values must have a column for each of {len(self.labels)} labels: {np.shape(self.values)}"
            )

    def __len__(self):
        return len(self.values)

    def __repr__(self):
        return f"<FluxDifferences of {len(self)} spectra, {self.grid.n_pixels} pixels>"


def model_differences(model, *, labels=None, n=1_000, seed=0, progress=True):
    """What a translation adds to synthetic spectra.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
    labels : array, shape (n, n_labels), optional
        Where to look, in the units and order of ``model.labels``. Default: ``n``
        draws from the model's label prior, moved to the edge of the labels' range if they are beyond.
    n : int, optional
    seed : int or `numpy.random.Generator`, optional
    progress : bool, optional

    Returns
    -------
    `FluxDifferences`
    """
    labels = label_sets(model, labels, n, seed)
    parts, total = [], np.zeros(model.grid.n_pixels)
    for start in tqdm(range(0, len(labels), ROWS), desc="differences", disable=not progress):
        where = model.labels.to_quantities(labels[start : start + ROWS])
        synthetic, observed = (model.predict(where, domain=domain).flux.value for domain in ("synthetic", "observed"))
        parts.append((observed - synthetic).astype(np.float32))
        total += synthetic.sum(0)
    mean = total / len(labels)
    return FluxDifferences(model.grid, model.labels, np.asarray(labels), np.concatenate(parts), synthetic=mean)


def label_sets(model, labels, n, seed):
    """Labels (n, n_labels) as they were given, or draws from the model's prior."""
    if labels is None:
        if n < 1:
            raise ValueError(f"n must be 1 or more, but is {n}")
        labels = np.random.default_rng(seed).multivariate_normal(model.prior.mean, model.prior.covariance, n)
        return labels.clip(model.labels.lower, model.labels.upper)
    labels = np.atleast_2d(model.labels.to_array(labels) if isinstance(labels, Mapping) else np.asarray(labels))
    if labels.ndim != 2 or labels.shape[1] != len(model.labels) or not len(labels):
        raise LabelError(
            f"labels must have shape (n, {len(model.labels)}), a row per label set, but have {labels.shape}"
        )
    return labels


def as_list(argument, given):
    """One model or several, as a list."""
    models = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for model in models:
        if not hasattr(model, "derivative_spectra"):
            raise TypeError(
                f"{argument} must be a CalibratedModel or several, but is {model!r:.60}; a name is read by "
                "CalibratedModel.from_pretrained, a file by CalibratedModel.load"
            )
    return models


def require_rows(spectra):
    if not hasattr(spectra, "flux") or np.ndim(spectra.flux) != 2:
        shape = np.shape(spectra.flux) if hasattr(spectra, "flux") else f"a {type(spectra).__name__}"
        raise SpectrumError(
            f"stars must be one Spectrum with a row per star, flux of shape (n, n_pixels), but are {shape}"
        )


def star_differences(model, spectra, *, ignore=None, space="emulator", progress=True):
    """What observed stars have beyond the synthetic spectra of their own labels, which are fitted.

    Fitted with the label prior of the training, a star's labels are the means
    of their posterior. A regression on such means is not diluted by the
    labels' errors, as one on best-fitting labels would be.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
    spectra : `~specutils.Spectrum`, a row per star
        Normalised, on the model's grid, with an uncertainty.
    ignore : array of bool, shape (n_pixels,), optional
        Pixels that the fits must not use, such as those of lines already found.
    space : {"emulator", "observed"}, optional
        How to fit: with the synthetic spectra as they are (default), or translated.
    progress : bool, optional

    Returns
    -------
    `FluxDifferences`
        Of the stars that could be fitted.

    Raises
    ------
    SpectrumError
        If none could, or the spectra are one.
    """
    require_rows(spectra)
    table = model.fit_many(spectra, space=space, ignore=ignore, progress=progress)
    values = np.column_stack([np.asarray(table[name].value, dtype=float) for name in model.labels])
    fitted = np.isfinite(values).all(1) & np.asarray(table["success"])
    values = values.clip(model.labels.lower, model.labels.upper)
    if not fitted.any():
        raise SpectrumError(f"none of {len(fitted)} stars could be fitted; of the first: {table['message'][0]}")
    rows, values = np.flatnonzero(fitted), values[fitted]
    flux, error = (np.empty((len(rows), model.grid.n_pixels), dtype=np.float32) for _ in range(2))
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        synthetic = model.predict(model.labels.to_quantities(values[part]), domain="synthetic").flux.value
        for k, (row, expected) in enumerate(zip(rows[part], synthetic, strict=True), start):
            pixels = to_pixels(spectra[int(row)], model.grid, recipe=model.recipe)
            good = pixels.ivar > 0
            flux[k] = np.where(good, pixels.flux - expected, np.nan)
            error[k] = np.where(good, pixels.ivar, 1.0) ** -0.5
    return FluxDifferences(model.grid, model.labels, values, flux, error)
