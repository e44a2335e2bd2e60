"""Derivative spectra of one star or many: what each label does to each pixel (S1, Eq. 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import astropy.units as u
import numpy as np
from astropy.table import QTable

from cyclestarnet.exceptions import GridError, LabelError
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import difference_unit

__all__ = ["DerivativeSpectra", "ensemble_derivatives"]


@dataclass(frozen=True, eq=False, repr=False)
class DerivativeSpectra:
    """Derivatives of spectra with respect to labels.

    `~cyclestarnet.CalibratedModel.derivative_spectra` makes them of many
    stars, and `ensemble_derivatives` of several models. Make them yourself of
    a model of another kind.

    Parameters
    ----------
    grid : `~cyclestarnet.WavelengthGrid`
    flux : array, shape (..., n_pixels)
        Spectra of which these are the derivatives; in the domain
        ``"difference"`` that of the observed and the synthetic ones.
    slopes : mapping of str to `~astropy.units.Quantity`, each of shape (..., n_pixels)
        Derivatives by label, in 1 / (unit of the label); arrays have that unit.
    labels : mapping of str to `~astropy.units.Quantity`, each of shape (...), optional
        Where the derivatives were taken.
    uncertainties : mapping of str to `~astropy.units.Quantity`, optional
        1 σ of the slopes: scatter of the models of an ensemble.
    domain : {"observed", "synthetic", "difference"}, optional
    meta : dict, optional

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

    def __post_init__(self):
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
    def wavelength(self):
        """Vacuum wavelengths, shape (n_pixels,)."""
        return self.grid.wavelength

    @property
    def names(self):
        """Labels of the derivatives, as a tuple."""
        return tuple(self.slopes)

    @property
    def shape(self):
        """That of the stars: () is one."""
        return self.flux.shape[:-1]

    def __getitem__(self, name):
        if name not in self.slopes:
            raise LabelError(f"no derivative with respect to {name!r}; there are {', '.join(self.names)}")
        return self.slopes[name]

    def __iter__(self):
        return iter(self.slopes)

    def star(self, index):
        """Derivative spectra of one star.

        Parameters
        ----------
        index : int, or tuple of int
            Along the axes of `shape`.

        Returns
        -------
        `DerivativeSpectra`
        """
        parts = {
            attribute: given and {name: array[index] for name, array in given.items()}
            for attribute in ("slopes", "labels", "uncertainties")
            for given in [getattr(self, attribute)]
        }
        return DerivativeSpectra(self.grid, self.flux[index], domain=self.domain, meta=self.meta, **parts)

    def to_table(self):
        """Derivatives of one star as a `~astropy.table.QTable` with a row per pixel.

        Columns are ``wavelength``, one per label, and ``<label>_err`` where
        there are uncertainties.

        Raises
        ------
        ValueError
            If these are derivatives of several stars.
        """
        require_one_star(self, "a table has a row per pixel of")
        columns = {"wavelength": self.wavelength, **self.slopes}
        columns |= {f"{name}_err": error for name, error in (self.uncertainties or {}).items()}
        return QTable(columns, meta=self.meta | {"domain": self.domain})

    def __repr__(self):
        return (
            f"<DerivativeSpectra with respect to {', '.join(self.names)}: {self.domain}, stars of shape {self.shape}, "
            f"{self.grid.n_pixels} pixels{'' if self.uncertainties is None else ', with uncertainties'}>"
        )


def require_one_star(derivatives, purpose):
    """Raise if derivatives are of several stars."""
    if derivatives.shape != ():
        raise ValueError(f"{purpose} one star, but these are of shape {derivatives.shape}; take one by .star(index)")


def require_alike(first, others):
    """Raise if models have other pixels or other labels than the first."""
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


def ensemble_derivatives(models, labels, **options):
    """Mean and scatter of the derivatives that several models have, such as those of several seeds.

    Parameters
    ----------
    models : sequence of `~cyclestarnet.CalibratedModel`
        Two or more, of the same labels and grid.
    labels : mapping of str to `~astropy.units.Quantity`
    **options
        ``domain``, ``names`` and ``like`` of `~cyclestarnet.CalibratedModel.derivative_spectra`.

    Returns
    -------
    `DerivativeSpectra`
        Means, also of the flux; ``uncertainties`` are the standard deviation
        of one model. What all models get wrong together is not in it.

    Raises
    ------
    ValueError
        If there are fewer than two models.
    GridError, LabelError
        If models have other pixels or other labels than the first.
    """
    models = list(models)
    if len(models) < 2:
        raise ValueError(f"models must be two or more, for a scatter between them, but there are {len(models)}")
    first = models[0]
    require_alike(first, models[1:])
    values = first.labels.to_array(labels)
    several = first.labels.to_quantities(values[None])  # one star, too, comes as a stack
    members = [model.derivative_spectra(several, **options) for model in models]
    slopes = {name: np.stack([member[name] for member in members]) for name in members[0]}
    ensemble = DerivativeSpectra(
        first.grid,
        np.mean([member.flux for member in members], axis=0),
        {name: array.mean(0) for name, array in slopes.items()},
        members[0].labels,
        {name: array.std(0, ddof=1) for name, array in slopes.items()},
        members[0].domain,
        {"models": [model.name for model in models]},
    )
    return ensemble.star(0)
