"""What a fit or a sampling gives back: labels with errors, flags, and the spectra that led to them."""

from __future__ import annotations

import enum
import html
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable, Table
from scipy.optimize import brentq
from scipy.special import ndtr
from specutils import SpectrumList

from cyclestarnet.descriptions import described
from cyclestarnet.exceptions import LabelError
from cyclestarnet.labels import LabelSet, LabelValues, difference_unit, html_of
from cyclestarnet.spectra import PortableSpectrum, Spectrum
from cyclestarnet.storage import origin, read_object, storable, write_object

__all__ = ["FitFlag", "FitResult", "Posterior", "Result", "signed", "spectrum_header"]

NORMALISED = "cyclestarnet normalised"  # in the header of files of spectra

storable(LabelSet)

MEASURED = 0.5  # resolution from which a label is more the star's than the prior's
UNDETECTED = 1 / (2 * np.log(10))  # dex: d ln(depth) = ln(10) d[X/H] in weak lines, so that 2 σ of depth are all of it


@storable
class FitFlag(enum.Flag):
    """Reasons for doubt about a fit; ``FitFlag(0)`` is none.

    Examples
    --------
    >>> from cyclestarnet import FitFlag
    >>> bool(FitFlag.POOR_FIT & (FitFlag.AT_BOUND | FitFlag.POOR_FIT))
    True
    """

    NOT_CONVERGED = enum.auto()
    """The optimiser stopped before the optimum."""
    AT_BOUND = enum.auto()
    """A free label is held back by a bound: without it, it would go beyond by more than twice its error."""
    OUTSIDE_TRAINING = enum.auto()
    """The labels lie outside the cloud or the range of the training labels: the answer is an extrapolation."""
    POOR_FIT = enum.auto()
    """χ² is larger than the model's own error explains."""
    UNFAMILIAR = enum.auto()
    """The encoder has not seen such spectra: the star is not of the kind that the model knows."""
    FEW_PIXELS = enum.auto()
    """Less than half of the model's pixels are good."""
    LOW_SNR = enum.auto()
    """The median signal-to-noise ratio per pixel is below 20; training spectra have 30 or more."""
    VELOCITY = enum.auto()
    """The lines are shifted by more than 10 km/s: the spectrum is not at rest."""
    FAILED = enum.auto()
    """No fit was possible; the message says why (rows of `~cyclestarnet.CalibratedModel.fit_many`)."""
    LOCAL_MISFIT = enum.auto()
    """One stretch fits far worse than the rest: emission, a cosmic ray, a missing feature."""
    CONTINUUM = enum.auto()
    """Wide stretches lie above or below the model as a whole: the continuum is suspect."""

    @property
    def names(self):
        """Names of the flags that are set, as a list."""
        return [flag.name for flag in self]


def _combined(labels: LabelSet, values, covariance):
    """Values and errors of labels and combinations, as dictionaries of Quantity."""
    transform = np.vstack([np.eye(len(labels)), labels.combination_matrix])
    errors = np.sqrt(np.einsum("ki,ij,kj->k", transform, covariance, transform).clip(0))
    names = (*labels.names, *labels.combinations)
    uncertainties = {n: e * difference_unit(n) for n, e in zip(names, errors, strict=True)}
    return LabelValues(labels.to_quantities(values)), LabelValues(uncertainties)


def spectrum_header(told: Mapping[str, str]) -> fits.Header:
    """Header of a spectrum of ours, which specutils writes into its files, and by which they are known again.

    Parameters
    ----------
    told : mapping of str to str
        Words by keyword, such as `~cyclestarnet.storage.origin` has them.

    Returns
    -------
    `~astropy.io.fits.Header`

    Examples
    --------
    >>> from cyclestarnet.results import spectrum_header
    >>> spectrum_header({"model": "apogee-giants"})["MODEL"]
    'apogee-giants'
    """
    words = {name.upper(): text.encode("ascii", "backslashreplace").decode() for name, text in told.items()}
    return fits.Header({"FORMAT": NORMALISED} | words)


def signed(result: FitResult | Posterior, weights: str) -> FitResult | Posterior:
    """Let a result say with which weights it was made.

    Parameters
    ----------
    result : `FitResult` or `Posterior`
        The result.
    weights : str
        Digest of the model.

    Returns
    -------
    `FitResult` or `Posterior`
        The same with ``meta["weights"]``, also in what its spectra or samples say.

    Examples
    --------
    ::

        result = signed(fit_one(model, spectrum, FitOptions()), digest_of(model))
    """
    result = replace(result, meta=result.meta | {"weights": weights})
    told = origin(result.meta, result.options)
    if isinstance(result, Posterior):
        result.samples.meta.update(told)
    else:
        for spectrum in (result.spectrum, result.model_spectrum):
            spectrum.meta["header"] = spectrum_header(told)
    return result


@storable
@dataclass(frozen=True, eq=False)
class SplitLatentEstimate:
    """Coordinates of a fitted split latent, in σ of training stars.

    Parameters
    ----------
    values : array, shape (n_coordinates,)
        At the optimum.
    errors : array, shape (n_coordinates,)
        1 σ, marginal over the labels.

    Examples
    --------
    ::

        result = model.fit(spectrum, split_latent="fitted")
        result.split_latent.values / result.split_latent.errors
    """

    values: np.ndarray
    errors: np.ndarray


class Result:
    """What a fit and a sampling have in common: they can be kept in a file.

    Examples
    --------
    ::

        posterior.write("star.samples.fits")
        Posterior.read("star.samples.fits").interval("teff", 0.95)
    """

    meta: dict
    options: object

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write all of it to one FITS file, in one step; `read` brings it back to the last bit.

        The file says model, weights, version, options and date in its primary header. For other readers of FITS, that
        of a fit has a table ``LABELS`` and the extensions ``COVARIANCE``, ``SPECTRUM`` and ``MODEL_SPECTRUM``, that
        of a sampling the extension ``SAMPLES``.

        Parameters
        ----------
        path : path-like
            Of the file, which is replaced if it exists.

        Raises
        ------
        OSError
            If the file cannot be written.

        Warns
        -----
        CycleStarNetWarning
            If the prior of the fit, or what else there is in options, is of a class that files do not know.

        Examples
        --------
        >>> import tempfile
        >>> from cyclestarnet import CalibratedModel, FitResult, datasets
        >>> result = CalibratedModel.from_pretrained().fit(datasets.k_giant(), space="emulator")
        >>> path = tempfile.mkdtemp() + "/star.fits"
        >>> result.write(path)
        >>> bool(FitResult.read(path)["teff"] == result["teff"])
        True
        """
        told = {"object": str(self.meta.get("object", ""))} | origin(self.meta, self.options)
        write_object(self, path, told=told, tables=self._tables())

    def _tables(self) -> dict[str, Table]:
        """Tables of the file, for people."""
        return {}

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `write` wrote.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        `FitResult` or `Posterior`
            Of the class that was asked.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        FileFormatError
            If the file is damaged, or holds something else.

        Examples
        --------
        ::

            FitResult.read("star.fits").labels["teff"]
        """
        return read_object(path, cls)


@storable
@dataclass(frozen=True, eq=False, repr=False)
class FitResult(Result):
    """Labels of one star with their errors.

    Attributes
    ----------
    label_set : `~cyclestarnet.LabelSet`
        Labels of the fit: those of the model, and motions that were fitted.
    values : array, shape (n_labels,)
        Of the labels in ``label_set.names``, in their units.
    labels, uncertainties : dict of `~astropy.units.Quantity`
        By name; combinations such as ``m_h`` and ``alpha_m`` are included.
        Uncertainties are 1 σ: photon noise, the model's own scatter and the
        prior, and in the observed space the model's ``label_error``. They do
        not contain an error of the labels' zero points.
    covariance : array, shape (n_labels, n_labels)
        Of the labels in ``label_set.names``, in their units; 0 for fixed labels.
    chi2, dof, reduced_chi2 : float
        From the quoted errors alone (floored as in training), as in the paper.
        In the synthetic space the residuals are those of the *translated*
        spectrum, which has lost most of its noise: expect values below 1.
        Degrees of freedom count independent data: of a spectrum that was resampled from coarser pixels
        these, not those of the model.
    chi2_total, dof_total, reduced_chi2_total : float
        With the model's scatter in the error budget; about 1 for a good fit. Each pixel of the model has that scatter
        for itself, so that resampling makes less difference to ``dof_total``.
    success : bool
        Whether the optimiser converged.
    message : str
        How it ended.
    flags : `FitFlag`
        Reasons for doubt.
    spectrum, model_spectrum : `~specutils.Spectrum`
        Normalised data and best-fit model on the model's pixels.
    residual : `~astropy.units.Quantity`, shape (n_pixels,)
        Data − model; NaN at masked pixels.
    residual_spectrum : `~specutils.Spectrum`
        The same with wavelengths, errors of the data and mask.
    space : {"observed", "synthetic", "emulator"}
        Where the fit was done (S1, Eq. 11, 10, 9).
    options : `~cyclestarnet.FitOptions`
        As they were chosen; a sampling that starts here has the same.
    split_latent : `SplitLatentEstimate` or None
        With ``split_latent="fitted"``.
    resolution : array, shape (n_labels,), or None
        By how much a fitted label moves if the star's own one moves by 1 and its others stay, by the
        model's derivatives: 1 if the data tell it, 0 if only the prior speaks. NaN for fixed labels.
    data_error : array, shape (n_labels,), or None
        Error of each label if there were no prior; without ``label_error``. NaN for fixed labels.
    prior_dominated : tuple of str
        Labels whose resolution is below 0.5: more than half of what is special about this star is lost in them.
    upper_limits : tuple of str
        Abundances whose lines are not seen: their depth is within 2 σ of none, as long as lines are
        weak (``data_error`` above 1 / (2 ln 10) = 0.22 dex). Take label + 2 uncertainties as a limit.
    meta : dict
        Model, digest of its weights, version of the package, date (UTC), prior, numbers of evaluations, S/N, and what
        the flags are made of, for people; nothing reads it.

    Notes
    -----
    ``result["teff"]`` is ``result.labels["teff"]``. Results can be pickled, and kept in files:
    `~cyclestarnet.results.Result.write`.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel, datasets
    >>> result = CalibratedModel.from_pretrained().fit(datasets.k_giant())
    >>> result.labels["teff"].unit, result.uncertainties["mg_h"].unit
    (Unit("K"), Unit("dex"))
    """

    label_set: LabelSet
    values: np.ndarray
    covariance: np.ndarray
    chi2: float
    chi2_total: float
    dof: int
    success: bool
    message: str
    flags: FitFlag
    spectrum: object
    model_spectrum: object
    space: str
    options: object = None
    split_latent: SplitLatentEstimate | None = None
    resolution: np.ndarray | None = None
    data_error: np.ndarray | None = None
    dof_total: float | None = None
    meta: dict = field(default_factory=dict)

    @property
    def prior_dominated(self):
        return self._names_where(self.resolution, lambda name, value: value < MEASURED)

    @property
    def upper_limits(self):
        return self._names_where(self.data_error, lambda name, value: name.endswith("_h") and value > UNDETECTED)

    def _names_where(self, figures, holds):
        if figures is None:
            return ()
        return tuple(name for name, value in zip(self.label_set, figures, strict=True) if holds(name, value))

    @property
    def labels(self):
        return _combined(self.label_set, self.values, self.covariance)[0]

    @property
    def uncertainties(self):
        return _combined(self.label_set, self.values, self.covariance)[1]

    @property
    def reduced_chi2(self):
        return self.chi2 / self.dof

    @property
    def reduced_chi2_total(self):
        return self.chi2_total / (self.dof if self.dof_total is None else self.dof_total)

    @property
    def residual(self):
        residual = self.spectrum.flux - self.model_spectrum.flux
        return np.where(self.spectrum.mask, np.nan, residual.value) * residual.unit

    @property
    def residual_spectrum(self) -> Spectrum:
        error = self.spectrum.uncertainty
        return Spectrum(
            flux=self.residual,
            spectral_axis=self.spectrum.spectral_axis,
            uncertainty=None if error is None else StdDevUncertainty(error.represent_as(StdDevUncertainty).array),
            mask=self.spectrum.mask,
            meta={"header": spectrum_header(origin(self.meta, self.options))},
        )

    def to_spectra(self) -> SpectrumList:
        """Return data, model and residual as other programs take them.

        Returns
        -------
        `~specutils.SpectrumList`
            Three spectra on the same pixels, named by ``meta["name"]``: ``data`` and ``residual`` with errors and
            mask, and ``model``, what was fitted to the data. Masked pixels of the data are 1.

        Notes
        -----
        Specviz shows them; jdaviz takes them one by one, and of a list the first only::

            import jdaviz

            for spectrum in result.to_spectra():
                jdaviz.load(spectrum, format="1D Spectrum", data_label=spectrum.meta["name"])
            jdaviz.show()

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel, datasets
        >>> result = CalibratedModel.from_pretrained().fit(datasets.k_giant(), space="emulator")
        >>> [spectrum.meta["name"] for spectrum in result.to_spectra()]
        ['data', 'model', 'residual']
        """
        parts = {"data": self.spectrum, "model": self.model_spectrum, "residual": self.residual_spectrum}
        return SpectrumList(
            Spectrum(
                flux=own.flux, spectral_axis=own.spectral_axis, uncertainty=own.uncertainty, mask=own.mask,
                meta=dict(own.meta) | {"name": name},
            )
            for name, own in parts.items()
        )  # fmt: skip

    def __getitem__(self, name: str) -> u.Quantity:
        return self.labels[name]

    def __getstate__(self) -> dict:
        state = vars(self)
        return {key: PortableSpectrum(own) if isinstance(own, Spectrum) else own for key, own in state.items()}

    def __copy__(self) -> Self:  # a shallow copy knows nothing of pickles
        return replace(self)

    def _tables(self) -> dict[str, Table]:
        labels, errors = self.labels, self.uncertainties
        shown = {
            "label": list(labels),
            "value": [value.value for value in labels.values()],
            "uncertainty": [error.value for error in errors.values()],
            "unit": [str(value.unit) for value in labels.values()],
        }
        return {"labels": Table(shown)}

    def correlation(self, first: str, second: str) -> float:
        """Correlation coefficient of the errors of two labels.

        Parameters
        ----------
        first, second : str
            Names of labels; combinations have none.

        Returns
        -------
        float
            NaN if one of the labels was fixed.

        Raises
        ------
        LabelError
            If there is no such label.

        Examples
        --------
        ::

            result.correlation("teff", "logg")
        """
        i, j = self.label_set.index(first), self.label_set.index(second)
        with np.errstate(invalid="ignore"):
            return float(self.covariance[i, j] / np.sqrt(self.covariance[i, i] * self.covariance[j, j]))

    def to_table(self) -> QTable:
        """Make a table of one row.

        Returns
        -------
        `~astropy.table.QTable`
            Labels with units, their errors as ``<label>_err``, χ², flags, how the flux was normalised; the columns of
            `~cyclestarnet.CalibratedModel.fit_many`.

        Examples
        --------
        ::

            result.to_table().write("star.ecsv")
        """
        labels, errors = self.label_set.to_quantities(self.values[None]), self.uncertainties
        columns = {"object": [str(self.meta.get("object", ""))]}
        for name, value in labels.items():
            columns[name] = value
            columns[f"{name}_err"] = u.Quantity([errors[name]])
        columns |= {
            "reduced_chi2": [self.reduced_chi2],
            "reduced_chi2_total": [self.reduced_chi2_total],
            "dof": [self.dof],
            "snr": [self.meta.get("snr", np.nan)],
            "success": [self.success],
            "flags": [self.flags.value],
            "flag_names": [",".join(self.flags.names)],
            "prior_dominated": [",".join(self.prior_dominated)],
            "upper_limits": [",".join(self.upper_limits)],
            "continuum": [self.meta.get("continuum", "")],
            "message": [self.message],
        }
        return described(QTable(columns, meta=origin(self.meta, self.options)))

    def summary(self) -> Table:
        """Make a table for people, a row per label.

        Returns
        -------
        `~astropy.table.Table`
            ``label``, ``value``, ``uncertainty`` (``fixed`` if the label was) and ``unit``, rounded, as
            text, and a ``note`` on those that are `prior_dominated` or `upper_limits`.

        Examples
        --------
        ::

            result.summary().pprint_all()
        """
        table = _summary(self.labels, self.uncertainties, self.meta.get("fixed", ()))
        notes = dict.fromkeys(self.prior_dominated, "mostly the prior") | dict.fromkeys(
            self.upper_limits, "upper limit"
        )
        table["note"] = [notes.get(name, "") for name in table["label"]]
        return table

    def plot(self, axes=None, *, window=None):
        """Plot data, model and residual; see `cyclestarnet.plotting.plot_fit`.

        Parameters
        ----------
        axes : pair of `~matplotlib.axes.Axes`, optional
            For the spectra and the residual. Default: a new figure.
        window : (low, high), optional
            Vacuum wavelengths to show, in Angstrom if they have no unit. Default: a pair of panels per chip.

        Returns
        -------
        list of `~matplotlib.axes.Axes`
            Flux and residual of each panel, from blue to red.

        Examples
        --------
        ::

            result.plot(window=(15700, 15800))
        """
        from cyclestarnet.plotting.results import plot_fit

        return plot_fit(self, axes, window=window)

    def _headline(self):
        name = self.meta.get("object") or "star"
        flags = ", ".join(self.flags.names) or "none"
        return (
            f"{name}: fit in the {self.space} space with {self.meta.get('model', 'a model')}, "
            f"reduced chi2 {self.reduced_chi2:.2f} ({self.reduced_chi2_total:.2f} with the model's scatter), "
            f"prior: {self.meta.get('prior', 'none')}, flags: {flags}"
        )

    def __repr__(self):
        lines = self.summary().pformat(max_lines=-1, max_width=-1, show_unit=False)
        return "\n".join([f"<FitResult {self._headline()}>", *lines])

    def _repr_html_(self):
        return f"<p><b>FitResult</b> {html.escape(self._headline())}</p>{html_of(self.summary())}"


def _digits(error):
    """Digits after the point that show two figures of an error."""
    return 4 if error == 0 else int(np.clip(1 - np.floor(np.log10(error)), 0, 4))


def _summary(labels, errors, fixed=()):
    rows = []
    for name, value in labels.items():
        error = errors[name]
        digits = _digits(error.value)
        shown = "fixed" if name in fixed else f"{error.value:.{digits}f}"
        rows.append((name, f"{value.value:.{digits}f}", shown, str(value.unit)))
    return Table(rows=rows, names=["label", "value", "uncertainty", "unit"])


@storable
@dataclass(frozen=True, eq=False, repr=False)
class Posterior(Result):
    """Samples of the posterior of one star's labels, which can be kept in a file: `~cyclestarnet.results.Result.write`.

    Attributes
    ----------
    samples : `~astropy.table.QTable`
        A row per sample, a column per free label and combination, and
        ``log_posterior``. The walkers' first draws come first, then their
        second ones, and so on.
    acceptance_fraction : float
        Mean of all walkers; 0.2 or more is healthy.
    autocorrelation_time : array, shape (n_free,)
        In steps, of the parameters that were sampled; NaN if the chain is too
        short to tell.
    converged : bool
        Whether the chain is longer than 50 autocorrelation times, or as many as were asked for, these are
        stable, and all walkers move.
    free : tuple of str
        Labels that were sampled.
    n_steps : int
        Steps of each walker until the chain was long enough, or until ``max_steps``; burn-in included. Two
        autocorrelation times of them are left out of the samples.
    options : `~cyclestarnet.FitOptions`
        What was sampled, as options of a fit.
    meta : dict
        That of the fit from which the walkers started.
    n_walkers : int
        Walkers of the ensemble.
    thin : int
        Steps from draw to draw.
    lowest_acceptance : float
        Of the walker that moved least; 0 if one got stuck where it started.
    n_nan : int
        Positions at which the posterior was not a number; they count as impossible.
    label_autocorrelation_time : mapping of str to float
        In steps, of the draws of each label and combination, at least ``thin``;
        NaN or missing if the chain is too short to tell.
    hidden_errors : mapping of str to float
        Errors of each label and combination that residuals do not show (``model.noise.label_error``), as the
        uncertainties of a fit contain them, in the unit of the label's differences. The samples do not contain them.

    Examples
    --------
    ::

        posterior = model.sample(spectrum, seed=1)
        posterior.labels["teff"], posterior.interval("teff", 0.95)
    """

    samples: QTable
    acceptance_fraction: float
    autocorrelation_time: np.ndarray
    converged: bool
    free: tuple[str, ...]
    n_steps: int
    options: object = None
    meta: dict = field(default_factory=dict)
    n_walkers: int = 1
    thin: int = 1
    lowest_acceptance: float = np.nan
    n_nan: int = 0
    label_autocorrelation_time: Mapping[str, float] = field(default_factory=dict)
    hidden_errors: Mapping[str, float] = field(default_factory=dict)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, name: str) -> u.Quantity:
        return self.labels[name]

    @property
    def labels(self):
        """Median of each label."""
        columns = {name: self._column(name) for name in self._names}
        return LabelValues({n: np.percentile(c.value, 50) * c.unit for n, c in columns.items()})

    @property
    def uncertainties(self):
        """Half the 16-84 % range of each label."""
        out = {}
        for name in self._names:
            low, high = np.percentile(self._column(name).value, [16, 84])
            out[name] = 0.5 * (high - low) * difference_unit(name)
        return LabelValues(out)

    def interval(self, name, level=0.68, *, total=False):
        """Central interval that holds a label with a given probability.

        Parameters
        ----------
        name : str
            Label or combination.
        level : float, optional
            The probability, between 0 and 1.
        total : bool, optional
            Whether the errors that residuals do not show (``hidden_errors``) count, as in the uncertainties of a
            fit: each sample then stands for a Gaussian of that width. Default: the samples alone.

        Returns
        -------
        low, high : `~astropy.units.Quantity`

        Raises
        ------
        LabelError
            If the label was not sampled.
        ValueError
            If the level is not between 0 and 1.

        Examples
        --------
        ::

            low, high = posterior.interval("mg_h", 0.95, total=True)
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, but is {level}")
        column = self._column(name)
        edges, hidden = (0.5 - level / 2, 0.5 + level / 2), self.hidden_errors.get(name, 0.0) if total else 0.0
        low, high = np.quantile(column.value, edges)
        if hidden > 0:
            far = 10 * hidden + np.ptp(column.value)
            low, high = (
                brentq(lambda x, edge=edge: ndtr((x - column.value) / hidden).mean() - edge, low - far, high + far)
                for edge in edges
            )
        return low * column.unit, high * column.unit

    def to_table(self) -> QTable:
        """Make a table of one row, in the form of that of a fit.

        Returns
        -------
        `~astropy.table.QTable`
            Medians of the labels with units; ``<label>_err``, half of the central 68 % interval with the errors
            that residuals do not show, as a fit has them; ``<label>_low`` and ``<label>_high``, its ends; and what
            tells whether the chain can be trusted.

        Examples
        --------
        ::

            posterior.to_table().write("star.ecsv")
        """
        columns = {"object": [str(self.meta.get("object", ""))]}
        for name, value in self.labels.items():
            low, high = self.interval(name, total=True)
            error = 0.5 * (high.value - low.value) * difference_unit(name)
            parts = {name: value, f"{name}_err": error, f"{name}_low": low, f"{name}_high": high}
            columns |= {column: quantity.reshape(1) for column, quantity in parts.items()}
        columns |= {
            "converged": [self.converged],
            "n_steps": [self.n_steps],
            "acceptance_fraction": [self.acceptance_fraction],
            "autocorrelation_time": [np.max(self.autocorrelation_time)],
            "n_nan": [self.n_nan],
        }
        return described(QTable(columns, meta=origin(self.meta, self.options)))

    def chain(self, name):
        """Draws of one label by walker.

        Parameters
        ----------
        name : str
            Label or combination.

        Returns
        -------
        `~astropy.units.Quantity`, shape (n_walkers, n_draws)

        Raises
        ------
        LabelError
            If the label was not sampled.

        Examples
        --------
        ::

            plt.plot(posterior.chain("teff").T)
        """
        return self._column(name).reshape(-1, self.n_walkers).T

    @property
    def _names(self):
        return [name for name in self.samples.colnames if name != "log_posterior"]

    def _column(self, name):
        if name not in self._names:
            raise LabelError(f"Label '{name}' was not sampled; sampled: {', '.join(self._names)}")
        return self.samples[name]

    def summary(self):
        """Table of labels, one row each.

        Returns
        -------
        `~astropy.table.Table`
            Median and 16th and 84th percentile, rounded to the label's
            uncertainty, as text; ``unit``; autocorrelation time ``tau`` in
            steps and the number of independent samples ``n_effective``, both
            NaN if the chain is too short to tell.

        Examples
        --------
        ::

            posterior.summary().pprint_all()
        """
        rows = []
        for name, error in self.uncertainties.items():
            low, high = self.interval(name)
            values = (self.labels[name].value, low.value, high.value)
            digits = _digits(error.value)
            tau = self.label_autocorrelation_time.get(name, np.nan)
            unit = str(self._column(name).unit)
            rows.append((name, *(f"{v:.{digits}f}" for v in values), unit, tau, len(self) * self.thin / tau))
        table = Table(rows=rows, names=["label", "median", "p16", "p84", "unit", "tau", "n_effective"])
        table["tau"].format = table["n_effective"].format = ".0f"
        return table

    def to_arviz(self):
        """Samples for ArviZ, which has more diagnostics and figures.

        Returns
        -------
        `arviz.InferenceData`
            ``posterior`` with a variable per label, (chain, draw) = (walker,
            draw), its unit in the attribute ``units``; ``lp`` in ``sample_stats``.

        Raises
        ------
        ImportError
            If arviz is not installed.

        Examples
        --------
        ::

            arviz.plot_trace(posterior.to_arviz(), var_names=["teff"])
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # it announces changes of its own, once a day
                import arviz
        except ImportError as error:
            raise ImportError('to_arviz needs arviz: pip install "cyclestarnet[sampling]"') from error
        draws = {name: self.chain(name) for name in self._names}
        log_posterior = np.asarray(self.samples["log_posterior"]).reshape(-1, self.n_walkers).T
        data = arviz.from_dict({name: q.value for name, q in draws.items()}, sample_stats={"lp": log_posterior})
        for name, quantity in draws.items():
            data.posterior[name].attrs["units"] = str(quantity.unit)
        return data

    def plot(self, names=None):
        """Corner plot; see `cyclestarnet.plotting.plot_posterior`.

        Parameters
        ----------
        names : sequence of str, optional
            Default: ``teff``, ``logg``, ``m_h`` and ``alpha_m``, or all labels if none of these was sampled.

        Returns
        -------
        list of `~matplotlib.axes.Axes`
            Row by row, a row and a column per label.

        Raises
        ------
        LabelError
            If a label was not sampled.

        Examples
        --------
        ::

            posterior.plot(["teff", "logg"])
        """
        from cyclestarnet.plotting.results import plot_posterior

        usual = [name for name in ("teff", "logg", "m_h", "alpha_m") if name in self._names]
        return plot_posterior(self, usual or self._names if names is None else names)

    @property
    def headline(self) -> str:
        """One line that says how many samples there are and whether they can be trusted."""
        tau = np.nanmax(self.autocorrelation_time) if np.isfinite(self.autocorrelation_time).any() else np.nan
        state = "converged" if self.converged else "NOT converged: sample longer"
        stuck = ", some walkers never moved" if self.lowest_acceptance == 0 else ""
        return (
            f"{len(self)} samples of {len(self.free)} labels, {self.n_steps} steps, acceptance "
            f"{self.acceptance_fraction:.2f}, longest autocorrelation time {tau:.0f} steps ({state}{stuck})"
        )

    def __repr__(self):
        return "\n".join([f"<Posterior {self.headline}>", *self.summary().pformat(max_lines=-1, max_width=-1)])

    def _repr_html_(self):
        return f"<p><b>Posterior</b> {html.escape(self.headline)}</p>{html_of(self.summary())}"
