"""Observed minus synthetic flux of many label sets or stars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cyclestarnet.blanks import floats_of
from cyclestarnet.exceptions import GridError, LabelError, SpectrumError
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.lines.protocols import Model
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import Spectrum, row_of

__all__ = ["FluxDifferences", "model_differences", "require_rows", "star_differences"]

ROWS = 64


@dataclass(frozen=True, eq=False, repr=False)
class FluxDifferences:
    """Observed minus synthetic flux of many stars or label sets.

    `model_differences` and `star_differences` make them; make them yourself
    of spectra that you have compared in another way.

    Parameters
    ----------
    grid : `~cyclestarnet.WavelengthGrid`
        The pixels of all spectra.
    label_set : `~cyclestarnet.LabelSet`
        What the columns of ``values`` are.
    values : array, shape (n, n_labels)
        Labels of the synthetic spectra, in the units of the label set.
    flux : array, shape (n, n_pixels)
        The differences, as fractions of the continuum; NaN where a pixel is masked.
    error : array, shape (n, n_pixels), optional
        Their errors, 1 σ; without meaning where a pixel is masked. Default: None, for spectra without noise.
    synthetic : array, shape (n_pixels,), optional
        Mean of the synthetic spectra. Default: None, where it is not known.

    Raises
    ------
    GridError
        If an array has not a row per label set and a column per pixel.
    LabelError
        If ``values`` has not a column per label.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from cyclestarnet import LabelSet, WavelengthGrid
    >>> from cyclestarnet.lines import FluxDifferences
    >>> grid = WavelengthGrid([1500.0, 1500.1, 1500.2] * u.nm)
    >>> label_set = LabelSet(("teff", "mg_h"), [4000, -1], [5500, 0.5])
    >>> values = [[4500, 0.0], [4600, 0.1]]
    >>> differences = FluxDifferences(grid, label_set, values, np.array([[0, -0.1, 0], [0, np.nan, 0]]))
    >>> differences
    <FluxDifferences of 2 spectra, 3 pixels>
    >>> differences.mean()
    array([ 0. , -0.1,  0. ])
    """

    grid: WavelengthGrid
    label_set: LabelSet
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
        if np.shape(self.values)[1:] != (len(self.label_set),):
            raise LabelError(
                f"values must have a column for each of {len(self.label_set)} labels: {np.shape(self.values)}"
            )

    def mean(self) -> np.ndarray:
        """Mean over the spectra that have seen a pixel.

        Returns
        -------
        array, shape (n_pixels,)
            NaN is left out; 0 where nobody has seen the pixel.

        Examples
        --------
        What a model adds on average, without most of its noise::

            mean = model_differences(model).mean()
        """
        seen = np.isfinite(self.flux).sum(0)
        return np.where(seen, np.nansum(self.flux, axis=0, dtype=float) / np.maximum(seen, 1), 0.0)

    def __len__(self):
        return len(self.values)

    def __repr__(self):
        return f"<FluxDifferences of {len(self)} spectra, {self.grid.n_pixels} pixels>"


def model_differences(
    model: Model,
    *,
    labels: ArrayLike | Mapping | None = None,
    n: int = 1_000,
    seed: int | np.random.Generator = 0,
    progress: bool = True,
) -> FluxDifferences:
    """What a translation adds to synthetic spectra.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        Its spectra are predicted in both domains.
    labels : array, shape (n, n_labels), or mapping of str to `~astropy.units.Quantity`, optional
        Where to look; an array is in the units and order of ``model.labels``. Default: ``n``
        draws from the model's label prior, moved to the edge of the labels' range if they are beyond.
    n : int, optional
        Draws, if no labels are given. Default: 1000.
    seed : int or `numpy.random.Generator`, optional
        Of the draws.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    `FluxDifferences`
        Without errors; ``synthetic`` is the mean of the synthetic spectra.

    Raises
    ------
    LabelError
        If ``labels`` have not a column per label of the model, or no row.
    ValueError
        If ``n`` is less than 1.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.lines import model_differences
    >>> model_differences(CalibratedModel.from_pretrained(), n=2, progress=False)
    <FluxDifferences of 2 spectra, 7167 pixels>
    """
    values = _values(model, labels, n, seed)
    model.labels.check_range(values)
    shift = np.zeros(len(model.labels)) if model.zero_points is None else model.zero_points
    values = values.clip(model.labels.lower + shift.clip(min=0), model.labels.upper + shift.clip(max=0))

    def flux(part: np.ndarray, domain: str) -> np.ndarray:
        return model.predict(model.labels.to_quantities(part), domain=domain).flux.value

    parts, total = [], np.zeros(model.grid.n_pixels)
    for start in tqdm(range(0, len(values), ROWS), desc="differences", disable=not progress):
        part = values[start : start + ROWS]
        # one spectrum and its translation: zero points of labels, which only one of them has, would look like lines
        synthetic, observed = flux(part, "synthetic"), flux(part - shift, "observed")
        parts.append((observed - synthetic).astype(np.float32))
        total += synthetic.sum(0)
    return FluxDifferences(model.grid, model.labels, values, np.concatenate(parts), synthetic=total / len(values))


def _values(model, labels, n, seed):
    """Labels (n, n_labels) as they were given, or draws from the model's prior."""
    if labels is None:
        if n < 1:
            raise ValueError(f"n must be 1 or more, but is {n}")
        values = np.random.default_rng(seed).multivariate_normal(model.prior.mean, model.prior.covariance, n)
        return values.clip(model.labels.lower, model.labels.upper)
    values = np.atleast_2d(model.labels.to_array(labels) if isinstance(labels, Mapping) else floats_of(labels))
    if values.ndim != 2 or values.shape[1] != len(model.labels) or not len(values):
        raise LabelError(
            f"labels must have shape (n, {len(model.labels)}), a row per label set, but have {values.shape}"
        )
    return values


def require_rows(spectra: Spectrum) -> None:
    """Raise unless spectra are one object with a row per star.

    Parameters
    ----------
    spectra : `~specutils.Spectrum`
        Flux of shape (n, n_pixels).

    Raises
    ------
    SpectrumError
        If they are a list, or of one star.

    Examples
    --------
    >>> from cyclestarnet.lines.differences import require_rows
    >>> require_rows([])
    Traceback (most recent call last):
    ...
    cyclestarnet.exceptions.SpectrumError: stars must be one Spectrum with a row per star, ..., but are a list
    """
    if not hasattr(spectra, "flux") or np.ndim(spectra.flux) != 2:
        shape = np.shape(spectra.flux) if hasattr(spectra, "flux") else f"a {type(spectra).__name__}"
        raise SpectrumError(
            f"stars must be one Spectrum with a row per star, flux of shape (n, n_pixels), but are {shape}"
        )


def star_differences(
    model: Model,
    spectra: Spectrum,
    *,
    ignore: ArrayLike | None = None,
    space: str = "emulator",
    progress: bool = True,
) -> FluxDifferences:
    """What observed stars have beyond the synthetic spectra of their own labels, which are fitted.

    Fitted with the label prior of the training, a star's labels are the means
    of their posterior. A regression on such means is not diluted by the
    labels' errors, as one on best-fitting labels would be.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        It fits the stars, and predicts their synthetic spectra.
    spectra : `~specutils.Spectrum`, a row per star
        Normalised, on the model's grid, with an uncertainty. Masked pixels are NaN in the differences.
    ignore : array of bool, shape (n_pixels,), optional
        Pixels that the fits must not use, such as those of lines already found. Default: none.
    space : {"emulator", "observed"}, optional
        Where to fit: with the synthetic spectra as they are (default), or translated.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    `FluxDifferences`
        Of the stars that could be fitted, in their order, with errors.

    Raises
    ------
    SpectrumError
        If none could, or the spectra are of one star.

    Examples
    --------
    Which element makes the lines that were found, by a thousand stars of a survey::

        lines = find_missing_lines(model)
        stars = star_differences(model, spectra, ignore=lines.pixels)
        lines = with_elements(lines, stars)
    """
    require_rows(spectra)
    table = model.fit_many(spectra, space=space, ignore=ignore, progress=progress)
    values = np.column_stack([floats_of(table[name]) for name in model.labels])
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
            pixels = model.pixels_of(row_of(spectra, int(row)))
            good = pixels.ivar > 0
            flux[k] = np.where(good, pixels.flux - expected, np.nan)
            error[k] = np.where(good, pixels.ivar, 1.0) ** -0.5
    return FluxDifferences(model.grid, model.labels, values, flux, error)
