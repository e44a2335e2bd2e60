"""From spectra to fit results: what `CalibratedModel.fit`, ``fit_many`` and ``sample`` have in common.

`FitSetup` holds the checked options of a fit. `fit_stars` takes a list of
spectra through the same steps together: pixels, latents, a start, the solver,
the errors and the flags. A spectrum that cannot be used becomes the exception
that says why, and the others do not notice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cyclestarnet.exceptions import CycleStarNetError, GridError, SpectrumError
from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.solvers import levenberg_marquardt
from cyclestarnet.networks.kinematics import Kinematics
from cyclestarnet.networks.predictor import (
    EmulatorPredictor,
    FreeSplitLatentPredictor,
    MovingPredictor,
    ObservedPredictor,
)
from cyclestarnet.pipeline.diagnostics import SPEED_OF_LIGHT, ShiftSearch
from cyclestarnet.pipeline.options import METHODS, FitSetup
from cyclestarnet.pipeline.report import _result
from cyclestarnet.spectra import to_pixels

__all__ = ["fit_stars", "make_objective", "prepare_stars"]

AIR_SHIFT = (-92.0, -72.0)  # km/s: where lines appear if air wavelengths are taken for vacuum
ROUGH_ERROR = 0.01  # of a translated spectrum, before its own residuals tell


# -- options -------------------------------------------------------------------


# -- stars -----------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Stars:
    """Spectra on the model's pixels, a row per star, and what the encoders make of them."""

    spectra: list
    pixels: list
    flux: np.ndarray
    ivar: np.ndarray  # of the data, with the floor of training
    filled: np.ndarray  # flux for the encoders
    velocity: np.ndarray  # km/s, of the lines
    latent: np.ndarray
    split: np.ndarray | None

    def __len__(self):
        return len(self.spectra)

    def part(self, rows):
        """Some of the stars."""
        return Stars(
            [self.spectra[k] for k in rows], [self.pixels[k] for k in rows],
            *(None if array is None else array[rows]
              for array in (self.flux, self.ivar, self.filled, self.velocity, self.latent, self.split)),
        )  # fmt: skip


def prepare_stars(model, spectra, setup):
    """Put spectra on the model's pixels and encode them.

    Returns
    -------
    Stars
    list
        For each spectrum its row in the stars, or the exception that says why there is none.
    """
    template = EmulatorPredictor(model.emulator).flux(model.prior.mean)
    search = ShiftSearch(model.grid.wavelength.value, template)
    good, places = [], []
    for spectrum in spectra:
        try:
            pixels = _without(to_pixels(spectrum, model.grid, recipe=model.recipe), setup.ignore)
            ivar = model._data_ivar(pixels) / setup.inflation**2
            if np.count_nonzero(ivar) <= len(setup.parameters):
                raise SpectrumError(
                    f"{np.count_nonzero(ivar)} good pixels are left, too few for {len(setup.parameters)} parameters"
                )
            velocity = _velocity(pixels, search, fitted="velocity" in setup.motion)
        except (CycleStarNetError, TypeError, ValueError) as error:
            places.append(error)
            continue
        places.append(len(good))
        filled = model._filled(pixels)
        if "velocity" in setup.motion and velocity:  # encoders know spectra at rest
            wavelength = model.grid.wavelength.value
            filled = np.interp(wavelength * (1 + velocity / SPEED_OF_LIGHT), wavelength, filled)
        good.append((spectrum, pixels, pixels.flux, ivar, filled, velocity))
    empty = np.zeros((0, model.grid.n_pixels))
    flux, ivar, filled = (np.array([row[k] for row in good]) if good else empty for k in (2, 3, 4))
    latent, split = model.translator.encode_obs(filled, together=_together(model)) if good else (empty, None)
    velocity = np.array([row[5] for row in good])
    return Stars([r[0] for r in good], [r[1] for r in good], flux, ivar, filled, velocity, latent, split), places


def _without(pixels, ignore):
    """Pixels of which some are bad, too."""
    flux, ivar = np.where(ignore, 1.0, pixels.flux), np.where(ignore, 0.0, pixels.ivar)
    return replace(pixels, flux=flux, ivar=ivar)


def _velocity(pixels, search, *, fitted):
    """Velocity of the lines against a mean star; air wavelengths raise, unless a velocity is fitted."""
    velocity, _ = search(pixels.flux, pixels.ivar)
    if AIR_SHIFT[0] < velocity < AIR_SHIFT[1] and not fitted:
        raise GridError(
            f"The lines appear at {velocity:.0f} km/s, as they do when air wavelengths are taken for vacuum. "
            "Convert the spectral axis with cyclestarnet.air_to_vacuum, or shift the spectrum to rest; if it moves "
            "at that velocity, fit it: motion='velocity'"
        )
    return velocity


def _together(model):
    """Rows that go through the networks at once: one on a processor, where a star must not feel its company."""
    return 1 if model.translator.device.type == "cpu" else 64


def make_objective(model, stars, setup):
    """Posterior of the stars' parameters, and the data that it compares with (translated for Eq. 10)."""
    space, flux, errors = setup.space, stars.flux, "minimum"
    if len(setup.layout.coordinates):
        cloud = model.split_latent_cloud
        predictor = FreeSplitLatentPredictor(
            model.emulator,
            model.translator,
            cloud.mean,
            cloud.directions,
            together=_together(model),
            shortcuts=model.shortcuts,
        )
    elif space == "observed":
        split = stars.split
        if setup.split_latent == "typical" and split is not None:
            split = np.repeat(model.typical_split_latent[None], len(stars), axis=0)
        predictor = ObservedPredictor(
            model.emulator, model.translator, split, together=_together(model), shortcuts=model.shortcuts
        )
    else:
        predictor = EmulatorPredictor(model.emulator, together=_together(model))
    if space == "synthetic":
        flux = np.concatenate([model.translator.obs_to_synth(row[None]) for row in stars.filled])
        ivar, errors = np.where(stars.ivar > 0, ROUGH_ERROR**-2, 0.0), "unknown"
    else:
        ivar = model._total_ivar(stars.ivar, space, model.scatter_inflation.get(space, 1.0))
    if setup.motion:
        kinematics = Kinematics(model.grid.wavelength.value, model.grid.chips)
        predictor = MovingPredictor(predictor, kinematics, setup.motion)
    return Objective(predictor, flux, ivar, setup.parameters, setup.prior, errors=errors)


def _start_coordinates(model, stars, setup):
    """Coordinates (n, n_coordinates) of the stars' own split latents; fits begin there, but not far out."""
    if not len(setup.layout.coordinates):
        return np.zeros((len(stars), 0))
    return model.split_latent_cloud.coordinates(stars.split).clip(-3, 3)


def _starts(model, stars, setup):
    """Where fits begin, (n, n_labels): as told, or at what the latents suggest, or at a fit of the translated flux."""
    begin = np.repeat(setup.begin[None], len(stars), axis=0)
    if "velocity" in setup.motion and not setup.given & {"velocity"} and setup.free[setup.labels.index("velocity")]:
        begin[:, setup.labels.index("velocity")] = stars.velocity
    n = len(model.labels)
    if setup.given or setup.space != "observed" or not setup.free[:n].any():
        return begin
    if model.shortcuts is not None:
        guess = model.shortcuts.labels(stars.latent)
    else:
        fixed = {name: value for name, value in (setup.options["fixed"] or {}).items() if name in model.labels}
        tied = [[name for name in group if name in model.labels] for group in setup.options["tied"]]
        setup10 = FitSetup.of(
            model, space="synthetic", method="lm", fixed=fixed, tied=tied, prior=setup.options["prior"]
        )
        guess = levenberg_marquardt(make_objective(model, stars, setup10), begin[:, :n], tolerance=0.1).labels
    begin[:, :n] = np.where(setup.free[:n], np.clip(guess, model.labels.lower, model.labels.upper), begin[:, :n])
    return begin


def fit_stars(model, spectra, setup):
    """Fit spectra side by side.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
    spectra : list of `~specutils.Spectrum`
    setup : `FitSetup`

    Returns
    -------
    list of `~cyclestarnet.FitResult` or Exception
        In the order of the spectra; bit by bit the same as of each alone.
    """
    stars, places = prepare_stars(model, spectra, setup)
    if not len(stars):
        return places
    objective, solver = make_objective(model, stars, setup), METHODS[setup.method]
    begin = setup.layout.row(_starts(model, stars, setup), _start_coordinates(model, stars, setup))
    optimum = solver(objective, begin)
    if not setup.given and setup.space == "observed":
        optimum = _second_try(model, stars, setup, optimum)
    results = [_result(model, stars, row, objective, optimum, setup) for row in range(len(stars))]
    return [place if isinstance(place, Exception) else results[place] for place in places]


def _second_try(model, stars, setup, optimum):
    """Fit stars that look bad once more from the mean of the prior, and keep the better optimum."""
    ivar = model._total_ivar(stars.ivar, setup.space)
    dof = np.maximum((ivar > 0).sum(1) - len(setup.parameters), 1)
    poor = ((stars.flux - optimum.flux) ** 2 * ivar).sum(1) / dof > model.limits["reduced_chi2_total"]
    rows = np.flatnonzero(poor | ~optimum.success)
    if not len(rows):
        return optimum
    some = stars.part(rows)
    objective = make_objective(model, some, setup)
    begin = np.repeat(setup.begin[None], len(rows), axis=0)
    if "velocity" in setup.motion:
        velocity = setup.labels.index("velocity")
        begin[:, velocity] = optimum.labels[rows, setup.layout.labels[velocity]]
    begin = setup.layout.row(begin, _start_coordinates(model, some, setup))
    return optimum.improved(rows, METHODS[setup.method](objective, begin))


