"""The forward model as one of `astropy.modeling`, to be joined with components of one's own."""

from __future__ import annotations

import copy
from typing import Any

import astropy.units as u
import numpy as np
from astropy.modeling import Fittable1DModel, Parameter
from scipy.interpolate import CubicSpline

from cyclestarnet.exceptions import GridError
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import unit_of_label
from cyclestarnet.networks.predictor import EmulatorPredictor, ObservedPredictor
from cyclestarnet.networks.translator import Translator
from cyclestarnet.pipeline.options import check_choice
from cyclestarnet.pipeline.parts import ModelParts
from cyclestarnet.pipeline.translate import DOMAINS

__all__ = ["spectral_model"]


def spectral_model(
    parts: ModelParts, values: np.ndarray, *, domain: str = "observed", split_latent: np.ndarray | None = None
) -> Fittable1DModel:
    """Make a model of `astropy.modeling` that has the labels as parameters; see `CalibratedModel.as_spectral_model
    <cyclestarnet.CalibratedModel.as_spectral_model>`.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    values : array, shape (n_labels,)
        Labels to begin with.
    domain : {"observed", "synthetic"}, optional
        Whose spectra.
    split_latent : array, shape (split_filters, latent_length), optional
        Of observed spectra. Default: the typical one.

    Returns
    -------
    `~astropy.modeling.Fittable1DModel`

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.pipeline.spectral_model import spectral_model
    >>> model = CalibratedModel.from_pretrained()
    >>> spectral_model(model, model.prior.mean).param_names[:3]
    ('teff', 'logg', 'c_h')
    """
    labels = parts.labels
    parameters: dict[str, Any] = {
        name: Parameter(
            default=float(value),
            bounds=(float(low), float(high)),
            description=f"in {unit_of_label(name).to_string() or 'units of 1'}",
        )
        for name, value, low, high in zip(labels, values, labels.lower, labels.upper, strict=True)
    }
    kind = type("SpectralModel", (_SpectralModel,), parameters | {"__doc__": _SpectralModel.__doc__})
    made = kind(name=parts.name)
    made.source = _Source(_precise(parts, domain, split_latent), parts.grid)
    return made


def _precise(parts: ModelParts, domain: str, split_latent: np.ndarray | None) -> EmulatorPredictor | ObservedPredictor:
    """A predictor in float64: fitters take differences over steps that are lost in float32."""
    check_choice("domain", domain, DOMAINS)
    emulator = copy.deepcopy(parts.translated_emulator if domain == "observed" else parts.emulator).double()
    if domain == "synthetic":
        return EmulatorPredictor(emulator)
    old = parts.translator
    translator = Translator(copy.deepcopy(old.network).double(), old.flux_mean, old.flux_std, old.translation)
    typical = parts.population.typical_split_latent
    return ObservedPredictor(emulator, translator, typical if split_latent is None else split_latent)


class _Source:
    """Flux and derivatives at any wavelengths within the chips; copies of a model share it."""

    def __init__(self, predictor: EmulatorPredictor | ObservedPredictor, grid: WavelengthGrid):
        self.predictor, self.grid, self.wavelength = predictor, grid, grid.wavelength.to_value(u.AA)

    def __deepcopy__(self, memo: dict) -> _Source:
        return self

    def at(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rows (..., n_pixels) at wavelengths x, by cubic splines within each chip."""
        found = np.full((*rows.shape[:-1], x.size), np.nan)
        for first, stop in self.grid.chips:
            pixels = self.wavelength[first:stop]
            here = (x.ravel() >= pixels[0]) & (x.ravel() <= pixels[-1])
            if here.any():
                found[..., here] = CubicSpline(pixels, rows[..., first:stop], axis=-1)(x.ravel()[here])
        lost = np.isnan(found).any(axis=tuple(range(found.ndim - 1)))
        if lost.any():
            chips = ", ".join(f"{self.wavelength[a]:.1f}-{self.wavelength[b - 1]:.1f}" for a, b in self.grid.chips)
            raise GridError(
                f"{lost.sum()} of {x.size} wavelengths, the first {x.ravel()[lost][0]:.2f} Angstrom, are not in the "
                f"range of the model: {chips} Angstrom (vacuum)"
            )
        return found.reshape(*rows.shape[:-1], *x.shape)


class _SpectralModel(Fittable1DModel):
    """Flux of a star, normalised, as a function of vacuum wavelength (Angstrom, if it has no unit) and labels."""

    source: _Source
    input_units = {"x": u.AA}  # noqa: RUF012  # as astropy.modeling has it
    input_units_equivalencies = {"x": u.spectral()}  # noqa: RUF012
    _input_units_strict = True
    _input_units_allow_dimensionless = True

    def evaluate(self, x, *labels):  # astropy.modeling takes annotations for units
        values = np.array([np.ravel(value)[0] for value in labels], dtype=float)
        return self.source.at(_plain(x), self.source.predictor.flux(values))

    def fit_deriv(self, x, *labels):
        values = np.array([np.ravel(value)[0] for value in labels], dtype=float)
        return list(self.source.at(_plain(x), self.source.predictor.jacobian(values)[1]))

    def _parameter_units_for_data_units(self, inputs_unit, outputs_unit):
        return {}  # parameters are numbers, in the units of the labels


def _plain(x: Any) -> np.ndarray:
    return x.to_value(u.AA, u.spectral()) if isinstance(x, u.Quantity) else np.asarray(x, dtype=float)
