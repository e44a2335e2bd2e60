"""Several spectra of the same stars: do labels scatter from one to the next as their errors say?

No label need be known. What all spectra of a star share, a wrong translation for one, is not seen: errors that
pass here can still be too small.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
from astropy.table import QTable
from scipy.optimize import brentq

from cyclestarnet.blanks import floats_of
from cyclestarnet.exceptions import LabelError, SpectrumError
from cyclestarnet.labels import difference_unit
from cyclestarnet.model import CalibratedModel
from cyclestarnet.model_file import digest_of

__all__ = ["Repeatability", "repeatability"]


@dataclass(frozen=True, eq=False)
class Repeatability:
    """How labels of repeated spectra scatter.

    Parameters
    ----------
    table : `~astropy.table.QTable`
        A row per label and combination: ``label``; ``unit`` of ``scatter``, ``error`` and ``floor``, which are
        numbers; ``n_stars`` with two spectra or more, and ``n_spectra`` of them; ``scatter``, the standard deviation
        within stars; ``error``, the root mean square of the errors that differ from spectrum to spectrum; ``ratio``,
        by which errors must be multiplied to explain the scatter, and ``ratio_err``, its own error by chance;
        ``floor``, what must be added to them in squares instead, 0 if the ratio is 1 or less.

    Examples
    --------
    ::

        found = repeatability(model, model.fit_many("visits/apVisit-*.fits"))
        print(found.table["label", "scatter", "error", "ratio", "ratio_err"])
    """

    table: QTable

    def applied_to(self, model: CalibratedModel) -> CalibratedModel:
        """Give a model errors that explain the scatter of repeated spectra.

        Parameters
        ----------
        model : `~cyclestarnet.CalibratedModel`
            The model whose fits were compared.

        Returns
        -------
        `~cyclestarnet.CalibratedModel`
            With the squares of the floors of its labels on the diagonal of ``noise.label_error``, which fits in the
            observed space add to their covariance, and which is saved with the model.

        Examples
        --------
        ::

            better = repeatability(model, table).applied_to(model)
            better.save("giants.safetensors")
        """
        floor = {row["label"]: float(row["floor"]) for row in self.table}
        added = np.diag([floor.get(name, 0.0) ** 2 for name in model.labels])
        own = model.noise.label_error
        return replace(model, noise=replace(model.noise, label_error=added if own is None else own + added))


def repeatability(model: CalibratedModel, table: QTable, *, by: str = "object") -> Repeatability:
    """Compare the scatter of labels between spectra of the same star with their errors.

    The errors that count are those that differ from spectrum to spectrum: the model's hidden errors of labels,
    which a fit adds and all spectra of a star share, are taken off. The prior pulls all labels to its mean, so
    that labels that spectra hardly tell scatter less than their errors: a ratio below 1 shows nothing.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        That fitted the spectra.
    table : `~astropy.table.QTable`
        Of `~cyclestarnet.CalibratedModel.fit_many` in the observed space, a row per spectrum. Rows without finite
        labels, and stars with a single row, do not count.
    by : str, optional
        Column that tells stars apart. Default: ``"object"``.

    Returns
    -------
    `Repeatability`

    Raises
    ------
    LabelError
        If the table lacks a label of the model, its error, or the column ``by``, or is of another model or of fits
        with the emulator alone.
    SpectrumError
        If no star has two spectra.

    Examples
    --------
    Errors that are too small, by which factor, and a model that quotes larger ones::

        table = model.fit_many("visits/apVisit-*.fits")
        found = repeatability(model, table)
        print(found.table["label", "n_stars", "ratio", "ratio_err", "floor"])
        better = found.applied_to(model)
    """
    names = [*model.labels, *model.labels.combinations]
    missing = [n for n in (by, *(c for name in model.labels for c in (name, f"{name}_err"))) if n not in table.colnames]
    if missing:
        raise LabelError(
            f"the table must have a row per spectrum, as fit_many makes it, but lacks {', '.join(missing)}"
        )
    _require_fits_of(model, table)
    names = [name for name in names if name in table.colnames and f"{name}_err" in table.colnames]
    values, errors = (np.column_stack([floats_of(table[f"{name}{end}"]) for name in names]) for end in ("", "_err"))
    independent = errors**2 - _hidden(model, values, names)
    small = ((independent <= 0) & (errors > 0)).any(axis=0)
    if small.any():
        raise LabelError(
            f"errors of {', '.join(np.array(names)[small])} are smaller than the hidden ones of {model.name}: fit the "
            "spectra with this model, in the observed space"
        )
    finite = np.isfinite(values).all(axis=1) & np.isfinite(errors).all(axis=1)
    stars, star = np.unique(np.asarray(table[by]).astype(str)[finite], return_inverse=True)
    values, variance = values[finite], independent[finite].clip(min=0)
    repeated = np.bincount(star, minlength=len(stars))[star] > 1
    if not repeated.any():
        raise SpectrumError(f"no star has two fitted spectra: {len(stars)} values of {by!r} in {len(star)} rows")
    _, star = np.unique(star[repeated], return_inverse=True)
    rows = [
        _row(name, star, values[repeated, k], variance[repeated, k])
        for k, name in enumerate(names)
        if (variance[repeated, k] > 0).all()  # those of fixed labels are 0
    ]
    found = QTable(rows=rows)
    for name in ("scatter", "error", "floor"):
        found[name].info.format = ".4g"
    for name in ("ratio", "ratio_err"):
        found[name].info.format = ".2f"
    return Repeatability(found)


def _require_fits_of(model: CalibratedModel, table: QTable) -> None:
    """Raise if the table says that it is of another model, or of the emulator alone, whose errors hold others."""
    if table.meta.get("weights", own := digest_of(model)) != own:
        raise LabelError(f"the table was fitted with another model than {model.name}; fit the spectra with this one")
    if json.loads(table.meta.get("options", "{}")).get("space") == "emulator":
        raise LabelError("the table was fitted with space='emulator', without hidden errors; fit in the observed space")


def _hidden(model: CalibratedModel, values: np.ndarray, names: list[str]) -> np.ndarray:
    """Variance of the hidden errors that fits have added, of labels and combinations, (n_spectra, n_names)."""
    labels = model.labels
    if model.noise.label_error is None:
        return np.zeros(values.shape)
    matrix = np.vstack([np.eye(len(labels)), labels.combination_matrix])
    matrix = matrix[[[*labels, *labels.combinations].index(name) for name in names]]
    own = np.where(np.isfinite(values[:, : len(labels)]), values[:, : len(labels)], model.prior.mean)
    return np.array([np.diag(matrix @ model.noise.hidden_covariance(row) @ matrix.T) for row in own])


def _row(name: str, star: np.ndarray, value: np.ndarray, variance: np.ndarray) -> dict[str, object]:
    """A row of the table: ``star`` numbers the stars from 0, and each has two values or more."""
    free = len(value) - star.max() - 1  # independent differences

    def misfit(added: float) -> float:
        """χ² of the values about the weighted means of their stars, per independent difference, less 1."""
        weight = 1 / (variance + added)
        mean = np.bincount(star, weight * value) / np.bincount(star, weight)
        return float((weight * (value - mean[star]) ** 2).sum() / free - 1)

    mean = np.bincount(star, value) / np.bincount(star)
    scatter2, chi2 = ((value - mean[star]) ** 2).sum() / free, misfit(0.0) + 1
    most = 4 * scatter2 * free  # so much explains any scatter
    return {
        "label": name,
        "unit": difference_unit(name).to_string(),
        "n_stars": int(star.max() + 1),
        "n_spectra": len(value),
        "scatter": float(np.sqrt(scatter2)),
        "error": float(np.sqrt(variance.mean())),
        "ratio": float(np.sqrt(chi2)),
        "ratio_err": float(np.sqrt(chi2 / (2 * free))),
        "floor": float(np.sqrt(brentq(misfit, 0.0, most))) if chi2 > 1 else 0.0,
    }
