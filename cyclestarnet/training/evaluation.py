"""Stars of known labels: how well a model finds them, and the errors of labels that residuals do not show.

A wrong label can hide in the translation: the spectrum fits, and nothing in its
residuals tells. Stars whose labels are known from elsewhere do tell.
`compare_labels` fits them, `label_table` sums up what was found, and
`learn_label_error` gives a model the error by which its labels are off beyond
what it quotes. Learn from one set of stars and judge by another.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import QTable
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from cyclestarnet.blanks import floats_of
from cyclestarnet.exceptions import FitWarning, LabelError, SpectrumError
from cyclestarnet.labels import LabelSet, difference_unit
from cyclestarnet.model import CalibratedModel
from cyclestarnet.noise import STEEPEST, ErrorTrend
from cyclestarnet.pipeline.fit import fit_stars
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import Spectrum, row_of

__all__ = [
    "LabelOffsets",
    "compare_labels",
    "covering_factor",
    "label_error",
    "label_table",
    "learn_label_error",
    "offset_figures",
]

log = logging.getLogger(__name__)

BATCH = 16  # stars that are fitted side by side
COVERED = 0.683  # of a Gaussian within 1 σ
TREND_LABELS = ("teff", "logg", "fe_h", "m_h")  # what label errors may depend on
LEAST_FOR_TREND = 200  # stars: fewer do not tell a trend
SLOPE = 0.5  # of the logarithm of an error, 1 σ, that is expected
TAIL = 6.0  # robust σ, at which offsets are cut before a trend is learnt: where errors are large, 3 are common
OUTLIER = 3.0  # robust σ, beyond which a star has no say in the covariance of label errors
LEAST_KNOWN = 8  # fewer do not tell 68 % from 50 %


@dataclass(frozen=True, eq=False)
class LabelOffsets:
    """Labels that fits found less the known ones, and the errors that the fits quoted.

    Parameters
    ----------
    names : tuple of str
        Labels, or combinations of labels, that are known.
    offset : array, shape (n_stars, n_names)
        Found − known, in the units of the labels; NaN where nothing is known.
    covariance : array, shape (n_stars, n_names, n_names)
        That the fits quoted.
    reduced_chi2 : array, shape (n_stars,)
        From the quoted errors of the spectra alone.
    success : array of bool, shape (n_stars,)
        Whether the optimiser converged.
    flagged : array of bool, shape (n_stars,)
        Whether the result has a flag.
    labels : array, shape (n_stars, n_labels), optional
        All labels of the model that the fits found, in their units. Default: they were not kept.
    rows : array of int, shape (n_stars,), optional
        Of the spectra that were given, rising: stars that cannot be fitted are not here. Default: not kept either.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.evaluation import LabelOffsets
    >>> every = np.ones(2, dtype=bool)
    >>> offset, covariance = np.array([[0.1], [0.0]]), np.full((2, 1, 1), 0.04)
    >>> offsets = LabelOffsets(("fe_h",), offset, covariance, 1.0 * every, every, ~every)
    >>> offsets.error
    array([[0.2],
           [0.2]])
    """

    names: tuple[str, ...]
    offset: np.ndarray
    covariance: np.ndarray
    reduced_chi2: np.ndarray
    success: np.ndarray
    flagged: np.ndarray
    labels: np.ndarray | None = None
    rows: np.ndarray | None = None

    @property
    def error(self) -> np.ndarray:
        """Quoted errors, 1 σ, shape (n_stars, n_names)."""
        return np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2))


def compare_labels(
    model: CalibratedModel,
    spectra: Spectrum,
    truth: Mapping[str, ArrayLike | u.Quantity] | QTable,
    *,
    progress: bool = True,
    **options: Any,
) -> LabelOffsets:
    """Fit stars of known labels, and compare.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model.
    spectra : `~specutils.Spectrum`, a row per star
        Observed spectra, best of stars that neither training nor validation has seen.
    truth : dict of `~astropy.units.Quantity`, or `~astropy.table.QTable`
        Known labels or combinations (such as ``m_h``) by name, each of shape
        (n_stars,). Those in dex may be plain numbers. NaN: not known of this star.
    progress : bool, optional
        Show a bar. Default: True.
    **options
        Fields of `~cyclestarnet.FitOptions`, such as ``space``.

    Returns
    -------
    `LabelOffsets`
        Of the stars that can be fitted; ``rows`` says which these are.

    Raises
    ------
    LabelError
        If ``truth`` is empty, or has a name that the model does not know or another number of stars.
    SpectrumError
        If no star can be fitted.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet import CalibratedModel, datasets
    >>> from cyclestarnet.spectra import Spectrum, row_of
    >>> from cyclestarnet.training.evaluation import compare_labels, label_table
    >>> model, star = CalibratedModel.from_pretrained(), datasets.k_giant()
    >>> known = model.fit(star)
    >>> spectra = Spectrum(
    ...     flux=known.spectrum.flux[None],
    ...     spectral_axis=known.spectrum.spectral_axis,
    ...     uncertainty=known.spectrum.uncertainty[None],
    ...     mask=known.spectrum.mask[None],
    ... )
    >>> offsets = compare_labels(model, spectra, {"teff": [known.labels["teff"].value - 30] * u.K}, progress=False)
    >>> offsets.names, offsets.offset.round()
    (('teff',), array([[30.]]))
    """
    n_stars = spectra.flux.shape[0]
    known = _known_values(model.labels, truth, n_stars)
    matrix = _rows_of(model.labels, tuple(known))
    fits = fitted_labels(model, spectra, progress=progress, about="stars of known labels", **options)
    return LabelOffsets(
        tuple(known),
        fits.values @ matrix.T - np.column_stack(list(known.values()))[fits.rows],
        matrix @ fits.covariance @ matrix.T,
        fits.reduced_chi2,
        fits.success,
        fits.flagged,
        fits.values,
        fits.rows,
    )


@dataclass(frozen=True, eq=False)
class FittedLabels:
    """All labels of the stars of a set that can be fitted.

    Parameters
    ----------
    rows : array of int, shape (n_stars,)
        Of the spectra, rising.
    values : array, shape (n_stars, n_labels)
        All labels of the model, in their units.
    covariance : array, shape (n_stars, n_labels, n_labels)
        That the fits quoted.
    reduced_chi2, success, flagged : array, shape (n_stars,)
        As `LabelOffsets` has them.

    Examples
    --------
    ::

        fitted_labels(model, spectra).values.mean(axis=0)
    """

    rows: np.ndarray
    values: np.ndarray
    covariance: np.ndarray
    reduced_chi2: np.ndarray
    success: np.ndarray
    flagged: np.ndarray


def fitted_labels(
    model: CalibratedModel, spectra: Spectrum, *, progress: bool = True, about: str = "stars", **options: Any
) -> FittedLabels:
    """Fit a stack of spectra, and leave out those that cannot be fitted.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model.
    spectra : `~specutils.Spectrum`, a row per star
        Observed spectra.
    progress : bool, optional
        Show a bar. Default: True.
    about : str, optional
        What the bar and the log call them. Default: ``"stars"``.
    **options
        Fields of `~cyclestarnet.FitOptions`, such as ``space``.

    Returns
    -------
    `FittedLabels`

    Raises
    ------
    SpectrumError
        If no star can be fitted.

    Examples
    --------
    ::

        fitted_labels(model, spectra).covariance
    """
    n_stars, n, rows = spectra.flux.shape[0], len(model.labels), []
    found: list[tuple] = []  # of each star what is needed: results of thousands with their spectra would fill a memory
    setup = FitSetup.of(model, FitOptions(**options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # the flags say it
        for first in tqdm(range(0, n_stars, BATCH), desc=about, disable=not progress):
            block = range(first, min(first + BATCH, n_stars))
            for row, result in zip(
                block, fit_stars(model, [row_of(spectra, row) for row in block], setup), strict=True
            ):
                if isinstance(result, Exception):
                    log.warning("left out star %d of the %s: %s", row, about, result)
                    continue
                labels = result.values[:n], result.covariance[:n, :n]
                found.append((*labels, result.reduced_chi2, result.success, bool(result.flags)))
                rows.append(row)
    if not found:
        raise SpectrumError(f"none of the {n_stars} {about} can be fitted")
    return FittedLabels(np.array(rows), *(np.array(column) for column in zip(*found, strict=True)))


def _known_values(labels: LabelSet, truth: Mapping | QTable, n_stars: int) -> dict[str, np.ndarray]:
    """Known labels by name, in the units of the labels, each of shape (n_stars,)."""
    names = list(truth.colnames if isinstance(truth, QTable) else truth)
    every = (*labels.names, *labels.combinations)
    strange = [name for name in names if name not in every]
    if strange or not names:
        raise LabelError(f"truth must have some of {', '.join(every)}, but has {', '.join(names) or 'nothing'}")
    return {name: _column(name, truth[name], n_stars) for name in names}


def _column(name: str, given: u.Quantity | ArrayLike, n_stars: int) -> np.ndarray:
    """Values (n_stars,) of a label or a combination, in its unit; NaN where they are not known."""
    plain = np.array(floats_of(given))
    if plain.shape != (n_stars,):
        raise LabelError(f"truth of {name} must have the shape ({n_stars},), but has {plain.shape}")
    finite = np.isfinite(plain)
    plain[~finite] = np.nan
    plain[finite] = LabelSet((name,), np.zeros(1), np.ones(1)).value(name, np.asanyarray(given)[finite])
    return plain


def _rows_of(labels: LabelSet, names: tuple[str, ...]) -> np.ndarray:
    """Matrix (n_names, n_labels) from labels to some labels and combinations."""
    every = [*labels.names, *labels.combinations]
    return np.vstack([np.eye(len(labels)), labels.combination_matrix])[[every.index(name) for name in names]]


# -- what is found ------------------------------------------------------------------
def offset_figures(offset: ArrayLike, error: ArrayLike) -> dict[str, float]:
    """Sum up offsets from the truth and the errors that were quoted for them.

    Parameters
    ----------
    offset : array, shape (n,)
        Found − known. NaN does not count.
    error : array, shape (n,)
        Quoted, 1 σ.

    Returns
    -------
    dict of float
        ``n``, the number of stars; ``bias``, the median offset; ``scatter``,
        half the 16-84 % range of offsets; ``error``, the median quoted error;
        ``cover_68`` and ``cover_95``, the fraction of offsets within 1 and
        1.96 σ; ``pull_width``, half the 16-84 % range of offset over error:
        above 1, errors are too small.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.stats import norm
    >>> from cyclestarnet.training.evaluation import offset_figures
    >>> offset = 0.1 + norm.ppf((np.arange(1000) + 0.5) / 1000)  # of a normal distribution, evenly
    >>> {name: round(value, 2) for name, value in offset_figures(offset, np.full(1000, 0.5)).items()}
    {'n': 1000, 'bias': 0.1, 'scatter': 0.99, 'error': 0.5, 'cover_68': 0.38, 'cover_95': 0.67, 'pull_width': 1.99}
    """
    pairs = np.array([offset, error], dtype=float)
    offsets, errors = pairs[:, np.isfinite(pairs).all(axis=0)]
    if not len(offsets):
        return {"n": 0} | dict.fromkeys(("bias", "scatter", "error", "cover_68", "cover_95", "pull_width"), np.nan)
    pull = offsets / errors
    return {
        "n": len(offsets),
        "bias": float(np.median(offsets)),
        "scatter": _half_range(offsets),
        "error": float(np.median(errors)),
        "cover_68": float((np.abs(pull) < 1).mean()),
        "cover_95": float((np.abs(pull) < 1.96).mean()),
        "pull_width": _half_range(pull),
    }


def _half_range(values: np.ndarray) -> float:
    low, high = np.percentile(values, [16, 84])
    return float(high - low) / 2


def label_table(offsets: LabelOffsets) -> QTable:
    """Sum up what fits of stars of known labels found, a row per label.

    Parameters
    ----------
    offsets : `LabelOffsets`
        Of `compare_labels`.

    Returns
    -------
    `~astropy.table.QTable`
        Columns ``label``, ``unit`` (of ``bias``, ``scatter`` and ``error``, which are numbers),
        and those of `offset_figures`. ``meta`` has the number of stars, the median
        ``reduced_chi2``, and the fractions that ``converged`` and are ``flagged``.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.evaluation import LabelOffsets, label_table
    >>> rng, every = np.random.default_rng(0), np.ones(500, dtype=bool)
    >>> offset, covariance = rng.normal(20, 40, (500, 1)), np.full((500, 1, 1), 40.0**2)
    >>> table = label_table(LabelOffsets(("teff",), offset, covariance, 1.0 * every, every, ~every))
    >>> print(table["label", "unit", "n", "bias", "scatter", "error"])
    label unit  n   bias  scatter error
    ----- ---- --- ------ ------- -----
     teff    K 500 17.992  41.234    40
    """
    columns = zip(offsets.names, offsets.offset.T, offsets.error.T, strict=True)
    rows = [
        {"label": name, "unit": difference_unit(name).to_string(), **offset_figures(*pair)} for name, *pair in columns
    ]
    table = QTable(rows=rows)
    for name in ("bias", "scatter", "error"):
        table[name].info.format = ".5g"
    for name in ("cover_68", "cover_95", "pull_width"):
        table[name].info.format = ".3f"
    table.meta = {
        "stars": len(offsets.offset),
        "reduced_chi2": float(np.median(offsets.reduced_chi2)),
        "converged": float(offsets.success.mean()),
        "flagged": float(offsets.flagged.mean()),
    }
    return table


# -- what residuals do not show ---------------------------------------------------
def learn_label_error(
    model: CalibratedModel,
    spectra: Spectrum,
    truth: Mapping[str, ArrayLike | u.Quantity] | QTable,
    *,
    progress: bool = True,
) -> CalibratedModel:
    """Give a model the covariance of label errors that stars of known labels bear out.

    Fits in the observed space add it to the covariance that they quote.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model. A label error that it has is replaced.
    spectra : `~specutils.Spectrum`, a row per star
        Observed spectra that training has not seen; 100 or more. Not those by
        which the model is to be judged.
    truth : dict of `~astropy.units.Quantity`, or `~astropy.table.QTable`
        Known labels by name; see `compare_labels`. Combinations do not count,
        and a star that lacks one of the labels does not either.
    progress : bool, optional
        Show a bar. Default: True.

    Returns
    -------
    `~cyclestarnet.CalibratedModel`
        With ``noise.label_error``, which is 0 for labels that are not known of any star, and, of 200
        stars or more, ``noise.label_error_trend``.

    Raises
    ------
    LabelError
        If no label of the model is known.
    SpectrumError
        If fewer than 8 stars can be used.

    Examples
    --------
    ::

        model = learn_label_error(model, spectra, {"teff": teff, "logg": logg, "fe_h": fe_h})
        offsets = compare_labels(model, other_spectra, other_truth)
        print(label_table(offsets)["label", "cover_68"])
    """
    names = [name for name in (truth.colnames if isinstance(truth, QTable) else truth) if name in model.labels]
    if not names:
        raise LabelError(f"truth must have some of the labels {', '.join(model.labels.names)}")
    known = {name: truth[name] for name in names}
    return with_label_error(model, compare_labels(without_label_error(model), spectra, known, progress=progress))


def without_label_error(model: CalibratedModel) -> CalibratedModel:
    """A model that quotes the errors of its fits alone.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model.

    Returns
    -------
    `~cyclestarnet.CalibratedModel`
        Without hidden errors of labels.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.training.evaluation import without_label_error
    >>> without_label_error(CalibratedModel.from_pretrained()).noise.label_error is None
    True
    """
    return replace(model, noise=replace(model.noise, label_error=None, label_error_trend=None))


def with_label_error(model: CalibratedModel, offsets: LabelOffsets) -> CalibratedModel:
    """Give a model the hidden errors of labels that offsets bear out, those of quoted errors alone.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model. A label error that it has is replaced.
    offsets : `LabelOffsets`
        Of stars of known labels; of labels of the model, not of combinations.

    Returns
    -------
    `~cyclestarnet.CalibratedModel`
        As of `learn_label_error`.

    Raises
    ------
    SpectrumError
        If fewer than 8 stars can be used.

    Examples
    --------
    ::

        offsets = compare_labels(without_label_error(model), spectra, truth)
        model = with_label_error(model, offsets)
    """
    names = offsets.names
    places = [model.labels.index(name) for name in names]
    error, trend = np.zeros((len(model.labels), len(model.labels))), None
    own = label_error(offsets.offset, offsets.covariance)
    columns = [model.labels.index(name) for name in TREND_LABELS if name in names]
    if columns and offsets.labels is not None and np.isfinite(offsets.offset).all(axis=1).sum() >= LEAST_FOR_TREND:
        slopes = np.zeros((len(model.labels), 2 * len(columns)))
        scale = np.sqrt(np.diag(model.prior.covariance))[columns]
        trend = ErrorTrend(tuple(columns), np.asarray(model.prior.mean)[columns], scale, slopes)
        slopes[places], own = error_trend(offsets.offset, offsets.covariance, own, trend.terms(offsets.labels))
    error[np.ix_(places, places)] = own
    log.info("label errors: %s", dict(zip(names, np.sqrt(np.diag(error)[places]).round(3).tolist(), strict=True)))
    return replace(model, noise=replace(model.noise, label_error=error, label_error_trend=trend))


def error_trend(
    offset: np.ndarray, covariance: np.ndarray, own: np.ndarray, terms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How an error that is added to quoted ones must depend on the stars to explain their offsets.

    The most likely slopes of its logarithm, label by label, with a weak prior that there are none.

    Parameters
    ----------
    offset, covariance : array, shapes (n_stars, n_labels) and (n_stars, n_labels, n_labels)
        As for `label_error`.
    own : array, shape (n_labels, n_labels)
        Of `label_error`: the added error without a trend.
    terms : array, shape (n_stars, n_terms)
        What it may depend on, of order 1.

    Returns
    -------
    slopes : array, shape (n_labels, n_terms)
        0 for labels to which nothing is added.
    own : array, shape (n_labels, n_labels)
        The added error where all terms are 0, such that 68.3 % of offsets lie within the total one.

    Examples
    --------
    An error that doubles over one unit of something:

    >>> import numpy as np
    >>> from cyclestarnet.training.evaluation import error_trend
    >>> rng = np.random.default_rng(0)
    >>> place = rng.uniform(-1, 1, (5000, 1))
    >>> offset = rng.normal(size=(5000, 1)) * 2**place
    >>> slopes, own = error_trend(offset, np.full((5000, 1, 1), 1e-4), np.eye(1), place)
    >>> np.exp(slopes).round(1), own.round(1)
    (array([[2.]]), array([[1.]]))
    """
    known = np.isfinite(offset).all(axis=1)
    offset, variance, terms = offset[known], np.diagonal(covariance[known], axis1=1, axis2=2), terms[known]
    slopes, size = np.zeros((offset.shape[1], terms.shape[1])), np.ones(offset.shape[1])
    for k, added in enumerate(np.diag(own)):
        if added <= 0:
            continue
        low, middle, high = np.percentile(offset[:, k], [16, 50, 84])
        reach = TAIL * (high - low) / 2
        square = offset[:, k].clip(middle - reach, middle + reach) ** 2

        def loss(
            x: np.ndarray, square: np.ndarray = square, quoted: np.ndarray = variance[:, k], added: float = added
        ) -> float:
            total = quoted + added * np.exp(2 * (x[0] + terms @ x[1:]).clip(-5, 5))
            return float(0.5 * (square / total + np.log(total)).sum() + 0.5 * ((x[1:] / SLOPE) ** 2).sum())

        slopes[k] = minimize(loss, np.zeros(1 + terms.shape[1]), method="L-BFGS-B").x[1:]
        shaped = added * np.exp(2 * (terms @ slopes[k]).clip(-STEEPEST, STEEPEST))
        size[k] = _factor(offset[:, k], variance[:, k], shaped)
    return slopes, own * np.outer(size, size)


def label_error(offset: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Covariance of label errors that must be added to quoted ones to explain offsets from the truth.

    It is the second moment of the offsets, so that it holds their bias, less
    the mean quoted covariance, without directions in which the quoted one is
    the larger; each label's part is then widened until 68.3 % of its
    offsets lie within the total error (`covering_factor`).

    Parameters
    ----------
    offset : array, shape (n_stars, n_labels)
        Found − known. A row with NaN does not count, and one with an offset
        beyond 3 robust σ from the median counts in the coverage alone.
    covariance : array, shape (n_stars, n_labels, n_labels)
        That the fits quoted.

    Returns
    -------
    array, shape (n_labels, n_labels)
        Positive semi-definite.

    Raises
    ------
    SpectrumError
        If fewer than 8 stars are left.

    Examples
    --------
    Errors of 0.03 that are quoted as 0.02 lack 0.022:

    >>> import numpy as np
    >>> from cyclestarnet.training.evaluation import label_error
    >>> offset = np.random.default_rng(0).normal(0, 0.03, (10_000, 1))
    >>> np.sqrt(label_error(offset, np.full((10_000, 1, 1), 0.02**2))).round(3)
    array([[0.022]])
    """
    known = np.isfinite(offset).all(axis=1)
    offset, covariance = offset[known], covariance[known]
    if len(offset) < LEAST_KNOWN:
        raise SpectrumError(
            f"label errors are learnt from {LEAST_KNOWN} or more stars of known labels, but there are {len(offset)}"
        )
    # Outliers would widen the error bars of everyone.
    low, middle, high = np.percentile(offset, [16, 50, 84], axis=0)
    kept = (np.abs(offset - middle) <= OUTLIER * (high - low) / 2).all(axis=1)
    kept = kept if kept.any() else np.ones(len(offset), dtype=bool)
    quoted = covariance[kept].mean(axis=0)
    scale = np.sqrt(np.diag(quoted))
    scale = np.where(scale > 0, scale, 1.0)
    excess = (offset[kept].T @ offset[kept] / kept.sum() - quoted) / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(excess)
    own = (vectors * values.clip(0)) @ vectors.T * np.outer(scale, scale)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    factor = np.array([covering_factor(*label) for label in zip(offset.T, variance.T, np.diag(own), strict=True)])
    return own * np.outer(factor, factor)


def covering_factor(offset: np.ndarray, variance: np.ndarray, own: float) -> float:
    """Factor on an added error such that 68.3 % of offsets lie within the total one.

    Parameters
    ----------
    offset : array, shape (n_stars,)
        Found − known.
    variance : array, shape (n_stars,)
        Square of the quoted errors.
    own : float
        Variance of the error that is added to them.

    Returns
    -------
    float
        1 if nothing is added, or the quoted errors alone cover more than that.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.stats import norm
    >>> from cyclestarnet.training.evaluation import covering_factor
    >>> offset = 3 * norm.ppf((np.arange(10_000) + 0.5) / 10_000)  # of a width of 3
    >>> round(covering_factor(offset, np.zeros(10_000), own=1.0), 2)
    3.0
    """
    if own <= 0 or np.mean(offset**2 < variance) > COVERED:
        return 1.0
    return _factor(offset, variance, own)


def _factor(offset: np.ndarray, variance: np.ndarray, own: float | np.ndarray) -> float:
    """The factor itself, which is below 1 if less than all of an added error is needed."""
    needed = np.maximum(offset**2 - variance, 0) / own  # square of the factor by which a star is just covered
    return float(np.sqrt(np.quantile(needed, COVERED)))
