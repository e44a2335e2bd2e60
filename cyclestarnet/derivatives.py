"""Derivative spectra of one star or many: what each label does to each pixel (S1, Eq. 8)."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import astropy.units as u
import numpy as np
from astropy.table import QTable

from cyclestarnet.exceptions import GridError, LabelError
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet, difference_unit
from cyclestarnet.spectra import Spectrum

__all__ = ["DerivativeSpectra", "ensemble_derivatives", "predictor_derivatives"]

STARS_AT_ONCE = 32  # bounds the memory: a Jacobian has the derivatives by all labels, wanted or not


@dataclass(frozen=True, eq=False, repr=False)
class DerivativeSpectra:
    """Derivatives of spectra with respect to labels.

    `~cyclestarnet.CalibratedModel.derivative_spectra` makes them of one star or many, and
    `ensemble_derivatives` of several models. Make them yourself of a model of another kind.
    ``derivatives["mg_h"]`` are those by a label, ``derivatives["wavelength"]`` the wavelengths of the pixels.

    Parameters
    ----------
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of the spectra.
    flux : array, shape (..., n_pixels)
        Normalised spectra of which these are the derivatives; in the domain
        ``"difference"`` that of the observed and the synthetic ones.
    slopes : mapping of str to `~astropy.units.Quantity`, each of shape (..., n_pixels)
        Derivatives by label, in 1 / (unit of the label); arrays have that unit.
    labels : mapping of str to `~astropy.units.Quantity`, each of shape (...), optional
        Where the derivatives were taken.
    uncertainties : mapping of str to `~astropy.units.Quantity`, optional
        1 σ of the slopes: scatter of the models of an ensemble.
    domain : {"observed", "synthetic", "difference"}, optional
        What the spectra are: observed, synthetic (default), or the difference
        of both.
    meta : dict, optional
        Kept with the derivatives, such as the name of the model.

    Raises
    ------
    GridError
        If flux and slopes do not have the same shape, with a pixel of the grid along the last axis.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from cyclestarnet import WavelengthGrid
    >>> from cyclestarnet.derivatives import DerivativeSpectra
    >>> grid = WavelengthGrid([1500.0, 1500.1, 1500.2] * u.nm)
    >>> slopes = {"teff": np.full((2, 3), 1e-5), "mg_h": np.full((2, 3), -0.1)}
    >>> derivatives = DerivativeSpectra(grid, np.ones((2, 3)), slopes)
    >>> derivatives["mg_h"].shape, derivatives["mg_h"].unit
    ((2, 3), Unit("1 / dex"))
    >>> derivatives.star(0).to_table().colnames
    ['wavelength', 'teff', 'mg_h']
    """

    grid: WavelengthGrid
    flux: np.ndarray
    slopes: Mapping[str, u.Quantity]
    labels: Mapping[str, u.Quantity] = field(default_factory=dict)
    uncertainties: Mapping[str, u.Quantity] | None = None
    domain: str = "synthetic"
    meta: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "flux", np.asarray(self.flux, dtype=float))
        for attribute in ("slopes", "uncertainties"):
            given = getattr(self, attribute)
            if given is None:
                continue
            arrays = {name: u.Quantity(array, 1 / difference_unit(name), copy=None) for name, array in given.items()}
            object.__setattr__(self, attribute, arrays)
            shapes = {"flux": self.flux.shape} | {name: array.shape for name, array in arrays.items()}
            if {*shapes.values()} != {(*self.flux.shape[:-1], self.grid.n_pixels)}:
                raise GridError(
                    f"flux and {attribute} must have the shape (..., n_pixels), the same for all, on a grid of "
                    f"{self.grid.n_pixels} pixels, but have {shapes}"
                )

    @property
    def wavelength(self) -> u.Quantity:
        """Vacuum wavelengths, shape (n_pixels,)."""
        return self.grid.wavelength

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the derivatives, as a tuple."""
        return tuple(self.slopes)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the stars: () is one."""
        return self.flux.shape[:-1]

    def __getitem__(self, name: str) -> u.Quantity:
        if name == "wavelength":
            return self.wavelength
        if name not in self.slopes:
            raise LabelError(f"no derivative with respect to {name!r}; there are {', '.join(self.names)}")
        return self.slopes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.slopes)

    def star(self, index: int | tuple[int, ...]) -> DerivativeSpectra:
        """Derivative spectra of one star.

        Parameters
        ----------
        index : int, or tuple of int
            Along the axes of `shape`.

        Returns
        -------
        `DerivativeSpectra`
            Of shape ().

        Examples
        --------
        >>> import astropy.units as u
        >>> import numpy as np
        >>> from cyclestarnet import WavelengthGrid
        >>> from cyclestarnet.derivatives import DerivativeSpectra
        >>> grid = WavelengthGrid([1500.0, 1500.1, 1500.2] * u.nm)
        >>> slopes = np.outer([1, 2], [-0.1, -0.2, -0.3])  # of two stars
        >>> DerivativeSpectra(grid, np.ones((2, 3)), {"mg_h": slopes}).star(1)["mg_h"]
        <Quantity [-0.2, -0.4, -0.6] 1 / dex>
        """
        parts = {
            attribute: given and {name: array[index] for name, array in given.items()}
            for attribute in ("slopes", "labels", "uncertainties")
            for given in [getattr(self, attribute)]
        }
        return DerivativeSpectra(self.grid, self.flux[index], domain=self.domain, meta=self.meta, **parts)

    def to_table(self) -> QTable:
        """Derivatives of one star as a table with a row per pixel.

        Returns
        -------
        `~astropy.table.QTable`
            Columns are ``wavelength``, one per label, and ``<label>_err`` where
            there are uncertainties.

        Raises
        ------
        ValueError
            If these are derivatives of several stars.

        Examples
        --------
        >>> import astropy.units as u
        >>> import numpy as np
        >>> from cyclestarnet import WavelengthGrid
        >>> from cyclestarnet.derivatives import DerivativeSpectra
        >>> grid = WavelengthGrid([15000, 15001, 15002] * u.AA)
        >>> print(DerivativeSpectra(grid, np.ones(3), {"mg_h": [-0.1, -0.2, -0.3]}).to_table())
        wavelength  mg_h
         Angstrom  1 / dex
        ---------- -------
           15000.0    -0.1
           15001.0    -0.2
           15002.0    -0.3
        """
        require_one_star(self, "a table has a row per pixel of")
        columns = {"wavelength": self.wavelength, **self.slopes}
        columns |= {f"{name}_err": error for name, error in (self.uncertainties or {}).items()}
        return QTable(columns, meta=self.meta | {"domain": self.domain})

    def __repr__(self) -> str:
        return (
            f"<DerivativeSpectra with respect to {', '.join(self.names)}: {self.domain}, stars of shape {self.shape}, "
            f"{self.grid.n_pixels} pixels{'' if self.uncertainties is None else ', with uncertainties'}>"
        )

    def _repr_html_(self) -> str:
        table = self.to_table()._repr_html_() if self.shape == () else ""
        return f"<p>{html.escape(repr(self))}</p>{table}"


class _Differentiable(Protocol):
    """What `predictor_derivatives` asks of a predictor: flux (n, n_pixels) and its Jacobian at labels (n, n_labels)."""

    def jacobian(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


def predictor_derivatives(
    predictors: Iterable[tuple[float, _Differentiable]],
    values: np.ndarray,
    names: Sequence[str],
    *,
    label_set: LabelSet,
    grid: WavelengthGrid,
    domain: str = "synthetic",
    meta: Mapping[str, Any] | None = None,
) -> DerivativeSpectra:
    """Derivative spectra of a predictor, or of a weighted sum of several.

    Parameters
    ----------
    predictors : iterable of (float, predictor)
        Weights and predictors, such as +1 for the observed and −1 for the
        synthetic domain. A predictor has a method ``jacobian``, which gives the
        flux (n, n_pixels) and its derivatives (n, n_labels, n_pixels) at labels
        (n, n_labels), as those of `cyclestarnet.networks.predictor` have.
    values : array, shape (..., n_labels)
        Where derivatives are taken, in the units and order of the label set.
    names : sequence of str
        Labels to differentiate by.
    label_set : `~cyclestarnet.LabelSet`
        The labels that the predictors take.
    grid : `~cyclestarnet.WavelengthGrid`
        The predictors' pixels.
    domain : {"observed", "synthetic", "difference"}, optional
        What the sum is called. Default: ``"synthetic"``.
    meta : mapping, optional
        Kept with the derivatives.

    Returns
    -------
    `DerivativeSpectra`
        Of stars of shape (...).

    Raises
    ------
    LabelError
        If a name is not one of the label set.

    Examples
    --------
    A predictor whose flux is 1 + 0.1 m_h in every pixel:

    >>> import astropy.units as u
    >>> import numpy as np
    >>> from cyclestarnet import LabelSet, WavelengthGrid
    >>> from cyclestarnet.derivatives import predictor_derivatives
    >>> class Grey:
    ...     def jacobian(self, labels):
    ...         return 1 + 0.1 * labels * np.ones(3), np.full((len(labels), 1, 3), 0.1)
    >>> labels = LabelSet(["m_h"], [-1], [1])
    >>> grid = WavelengthGrid([1500, 1501, 1502] * u.nm)
    >>> derivatives = predictor_derivatives([(1, Grey())], np.array([-0.5]), ["m_h"], label_set=labels, grid=grid)
    >>> derivatives["m_h"]
    <Quantity [0.1, 0.1, 0.1] 1 / dex>
    """
    chosen = [label_set.index(name) for name in names]
    rows = values.reshape(-1, len(label_set))
    flux, slopes = np.zeros((len(rows), len(grid))), np.zeros((len(chosen), len(rows), len(grid)))
    for weight, predictor in predictors:
        for k in range(0, len(rows), STARS_AT_ONCE):
            part = slice(k, k + STARS_AT_ONCE)
            found_flux, found_slopes = predictor.jacobian(rows[part])
            flux[part] += weight * found_flux
            slopes[:, part] += weight * found_slopes.swapaxes(0, 1)[chosen]
    shape = (*values.shape[:-1], len(grid))
    return DerivativeSpectra(
        grid,
        flux.reshape(shape),
        {name: slope.reshape(shape) for name, slope in zip(names, slopes, strict=True)},
        label_set.to_quantities(values),
        domain=domain,
        meta=dict(meta or {}),
    )


class _Model(Protocol):
    """What `ensemble_derivatives` asks of a model."""

    name: str
    labels: LabelSet
    grid: WavelengthGrid

    def derivative_spectra(
        self,
        labels: Mapping[str, u.Quantity],
        *,
        domain: str,
        names: Sequence[str] | None,
        like: Spectrum | None,
    ) -> DerivativeSpectra: ...


def require_one_star(derivatives: DerivativeSpectra, purpose: str) -> None:
    """Raise if derivatives are of several stars.

    Parameters
    ----------
    derivatives : `DerivativeSpectra`
        What is to be of one star.
    purpose : str
        Beginning of the message, to which "one star, but these are ..." is added.

    Raises
    ------
    ValueError
        If their shape is not ().

    Examples
    --------
    ::

        require_one_star(derivatives, "features are found by the derivatives of")
    """
    if derivatives.shape != ():
        raise ValueError(f"{purpose} one star, but these are of shape {derivatives.shape}; take one by .star(index)")


def require_alike(first: _Model, others: Iterable[_Model]) -> None:
    """Raise if models have other pixels or other labels than the first.

    Parameters
    ----------
    first : `~cyclestarnet.CalibratedModel`
        To which the others are compared.
    others : iterable of `~cyclestarnet.CalibratedModel`
        Any number of models.

    Raises
    ------
    GridError, LabelError
        With the names of the two models that differ.

    Examples
    --------
    ::

        require_alike(models[0], models[1:])
    """
    for model in others:
        if model.grid != first.grid:
            raise GridError(
                f"models must have the same grid: {first.name} has {first.grid!r}, {model.name} {model.grid!r}"
            )
        if model.labels.names != first.labels.names:
            raise LabelError(
                f"models must have the same labels: {first.name} has {', '.join(first.labels)}; "
                f"{model.name} has {', '.join(model.labels)}"
            )


def ensemble_derivatives(
    models: Iterable[_Model],
    labels: Mapping[str, u.Quantity],
    *,
    domain: str = "observed",
    names: Sequence[str] | None = None,
    like: Spectrum | None = None,
) -> DerivativeSpectra:
    """Mean and scatter of the derivatives that several models have, such as those of several seeds.

    Parameters
    ----------
    models : iterable of `~cyclestarnet.CalibratedModel`
        Two or more, of the same labels and grid.
    labels : mapping of str to `~astropy.units.Quantity`
        Where the derivatives are taken; arrays are those of many stars.
    domain : {"observed", "synthetic", "difference"}, optional
        Whose spectra; see `~cyclestarnet.CalibratedModel.derivative_spectra`.
    names : sequence of str, optional
        Labels to differentiate by. Default: all.
    like : `~specutils.Spectrum`, optional
        Observed spectrum whose split latent is used. Default: a typical one of each model.

    Returns
    -------
    `DerivativeSpectra`
        Of the shape of the labels, () for one star. Means, also of the flux;
        ``uncertainties`` are the standard deviation of one model. What all
        models get wrong together is not in it.

    Raises
    ------
    ValueError
        If there are fewer than two models.
    GridError, LabelError
        If models have other pixels or other labels than the first.

    Examples
    --------
    Three models trained with different seeds::

        models = [CalibratedModel.load(f"runs/seed_{seed}/giants.safetensors") for seed in range(3)]
        derivatives = ensemble_derivatives(models, {**star, "teff": 4500 * u.K}, names=["mg_h"])
        significance = derivatives["mg_h"] / derivatives.uncertainties["mg_h"]
    """
    models = list(models)
    if len(models) < 2:
        raise ValueError(f"models must be two or more, for a scatter between them, but there are {len(models)}")
    first = models[0]
    require_alike(first, models[1:])
    values = first.labels.to_array(labels)
    where = first.labels.to_quantities(values)
    members = [model.derivative_spectra(where, domain=domain, names=names, like=like) for model in models]
    slopes = {name: np.stack([member[name] for member in members]) for name in members[0]}
    return DerivativeSpectra(
        first.grid,
        np.mean([member.flux for member in members], axis=0),
        {name: array.mean(0) for name, array in slopes.items()},
        members[0].labels,
        {name: array.std(0, ddof=1) for name, array in slopes.items()},
        members[0].domain,
        {"models": [model.name for model in models]},
    )
