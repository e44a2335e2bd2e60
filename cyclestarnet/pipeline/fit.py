"""From spectra to fit results: what fits of one star, of many, and samplings have in common.

`fit_stars` takes a list of spectra through the same steps together: pixels,
latents, a start, the solver, the errors and the flags. A spectrum that cannot be
used becomes the exception that says why, and the others do not notice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch

from cyclestarnet.exceptions import CycleStarNetError, FitWarning, GridError, SpectrumError
from cyclestarnet.fitting.lbfgs import lbfgs
from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.optimum import Optimum
from cyclestarnet.fitting.solvers import levenberg_marquardt
from cyclestarnet.grid import SPEED_OF_LIGHT
from cyclestarnet.networks.kinematics import Kinematics
from cyclestarnet.networks.predictor import (
    EmulatorPredictor,
    FreeSplitLatentPredictor,
    MovingPredictor,
    ObservedPredictor,
)
from cyclestarnet.networks.threads import one_thread
from cyclestarnet.pipeline.columns import SurveySetup
from cyclestarnet.pipeline.diagnostics import ShiftSearch
from cyclestarnet.pipeline.options import MOTION, FitOptions
from cyclestarnet.pipeline.parts import ModelParts
from cyclestarnet.pipeline.report import make_result
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.pipeline.stars import Stars
from cyclestarnet.results import FitFlag, FitResult
from cyclestarnet.spectra import Spectrum

__all__ = ["fit_numbered", "fit_one", "fit_stars", "make_objective", "prepare_stars", "settled"]

Solver: TypeAlias = Callable[[Objective, np.ndarray], Optimum]

SOLVERS = {"lm": levenberg_marquardt, "lbfgs": lbfgs}
AIR_SHIFT = (-92.0, -72.0)  # km/s: where lines appear if air wavelengths are taken for vacuum
STILL = 2.0  # km/s, half a pixel: continuum pixels of faster stars have moved
SLOW = 50.0  # km/s: edges of chips that slower stars move are hardly a dozen pixels
# What a fit warns of, and what to do
ADVICE = {
    FitFlag.POOR_FIT: "the model does not fit within its errors; look at result.plot(), and do not take the labels at "
    "face value",
    FitFlag.UNFAMILIAR: "the model has seen no such spectra in training; check the spectrum, its wavelengths and its "
    "continuum, or use a model for stars of this kind",
    FitFlag.AT_BOUND: "a label is held back by a bound (result.meta['at_bound']), and would go beyond; widen `bounds`, "
    "or take its value for a limit",
    FitFlag.VELOCITY: "the lines are shifted, and the spectrum is not at rest; fit with motion='velocity', or shift it",
    FitFlag.CONTINUUM: "wide stretches lie above or below the model; look at the continuum, or `ignore` them",
}
SEARCHES = WeakKeyDictionary()  # of the models that are still there
ROUGH_ERROR = 0.01  # of a translated spectrum, before its own residuals tell


# -- stars -----------------------------------------------------------------------
def prepare_stars(
    parts: ModelParts, spectra: Sequence[Spectrum], setup: FitSetup
) -> tuple[Stars, list[int | Exception]]:
    """Put spectra on the model's pixels and encode them.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    spectra : sequence of `~specutils.Spectrum`
        One per star, as `~cyclestarnet.CalibratedModel.fit` takes them.
    setup : `~cyclestarnet.pipeline.FitSetup`
        Of the fits.

    Returns
    -------
    stars : `~cyclestarnet.pipeline.stars.Stars`
        Of the spectra that can be used.
    places : list of int or Exception
        For each spectrum its row in ``stars``, or the exception that says why there is none.

    Examples
    --------
    ::

        setup = FitSetup.of(model, FitOptions())
        stars, places = prepare_stars(model, [spectrum], setup)
    """
    search, good, places = _shift_search(parts), [], []
    for spectrum in spectra:
        try:
            chosen = {"normalise": setup.options.normalise, "ignore": setup.ignore}
            pixels = parts.pixels_of(spectrum, **chosen)
            used = _used(parts, pixels, setup)
            velocity = _velocity(pixels, search, fitted=setup.fits_velocity)
            if setup.fits_velocity and pixels.continuum is not None and abs(velocity) > STILL:
                pixels = parts.pixels_of(spectrum, velocity=velocity, **chosen)
                used = _used(parts, pixels, setup)
        except (CycleStarNetError, TypeError, ValueError) as error:
            places.append(error)
            continue
        places.append(len(good))
        variance = parts.noise.data_variance(pixels.sigma, used) * setup.options.inflation**2
        filled = parts.noise.filled_flux(pixels.raw, used)
        if setup.fits_velocity and abs(velocity) > SLOW:
            variance = np.where(_moved_in(parts.grid, velocity), np.inf, variance)
        variance = np.where(setup.uncompared, np.inf, variance)
        if setup.fits_velocity and velocity:  # encoders know spectra at rest
            wavelength = parts.grid.wavelength.value
            filled = np.interp(wavelength * (1 + velocity / SPEED_OF_LIGHT), wavelength, filled)
        good.append((spectrum, pixels, variance, filled, velocity))
    return _encoded(parts, good), places


def _shift_search(parts):
    """What finds the velocity of a model's stars, made once: it takes as long as two evaluations of the networks."""
    if parts not in SEARCHES:
        template = EmulatorPredictor(parts.emulator).flux(parts.prior.mean)
        SEARCHES[parts] = ShiftSearch(parts.grid.wavelength.value, template, reach=_reach(parts.grid))
    return SEARCHES[parts]


def _used(parts, pixels, setup):
    """Which pixels count; raises if they are too few."""
    used = parts.noise.used_pixels(pixels.flux, pixels.sigma)
    compared = used & ~setup.uncompared
    n_used = round(pixels.share[compared].sum())  # of resampled pixels, several are one measurement
    if n_used <= len(setup.parameters):
        raise SpectrumError(f"{n_used} good pixels are left, too few for {len(setup.parameters)} parameters")
    return used


def _encoded(parts, rows):
    """Stars of the rows of `prepare_stars`."""
    empty = np.zeros((0, parts.grid.n_pixels))
    spectra, pixels, variance, filled, velocity = zip(*rows, strict=True) if rows else ((), (), empty, empty, ())
    filled = np.array(filled)
    latent, split = parts.translator.encode_obs(filled, together=_together(parts)) if rows else (empty, None)
    flux = np.array([p.flux for p in pixels]) if rows else empty
    return Stars(list(spectra), list(pixels), flux, np.array(variance), filled, np.array(velocity), latent, split)


def _reach(grid):
    """Largest velocity that is looked for, in km/s: a quarter of the narrowest chip, or the largest that is fitted."""
    wavelength = grid.wavelength.value
    narrowest = min(np.log(wavelength[stop - 1] / wavelength[start]) for start, stop in grid.chips)
    return min(MOTION["velocity"][1], 0.25 * narrowest * SPEED_OF_LIGHT)


def _moved_in(grid, velocity):
    """Pixels (n_pixels,) to which the motion brings flux from beyond the edge of their chip, which no model knows."""
    wavelength, beyond = grid.wavelength.value, np.zeros(grid.n_pixels, dtype=bool)
    for start, stop in grid.chips:
        emitted = wavelength[start:stop] / (1 + velocity / SPEED_OF_LIGHT)
        beyond[start:stop] = (emitted < wavelength[start]) | (emitted > wavelength[stop - 1])
    return beyond


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


def _together(parts):
    """Rows that go through the networks at once: one on a processor, where a star must not feel its company."""
    return 1 if parts.translator.device.type == "cpu" else 64


def make_objective(
    parts: ModelParts,
    stars: Stars,
    setup: FitSetup,
    *,
    together: int | None = None,
    model_flux: np.ndarray | None = None,
) -> Objective:
    """Make the posterior of the stars' parameters, with the data that it compares with.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    stars : `~cyclestarnet.pipeline.stars.Stars`
        Of `prepare_stars`.
    setup : `~cyclestarnet.pipeline.FitSetup`
        Of the fits.
    together : int, optional
        Rows that go through the networks at once. Default: one on a processor, where a star must not
        feel its company, and 64 on a GPU.
    model_flux : array, shape (n_stars, n_pixels), optional
        Predicted flux near the optimum, which terms of the continuum are multiplied by; see `settled`. Default: the
        data.

    Returns
    -------
    `~cyclestarnet.fitting.objective.Objective`

    Examples
    --------
    ::

        objective = make_objective(model, stars, setup)
        objective.log_posterior(setup.parameters.values(setup.layout.row(setup.begin, [])))
    """
    space, noise, flux, errors = setup.options.space, parts.noise, stars.flux, "minimum"
    together, shortcuts = together or _together(parts), parts.shortcuts
    if len(setup.layout.coordinate_places):
        cloud = parts.population.split_latents
        predictor = FreeSplitLatentPredictor(
            parts.translated_emulator,
            parts.translator,
            cloud.mean,
            cloud.directions,
            together=together,
            shortcuts=shortcuts,
        )
    elif space == "observed":
        split = stars.split_latent
        if setup.options.split_latent == "typical" and split is not None:
            split = np.repeat(parts.population.typical_split_latent[None], len(stars), axis=0)
        predictor = ObservedPredictor(
            parts.translated_emulator, parts.translator, split, together=together, shortcuts=shortcuts
        )
    else:
        emulator = parts.emulator if space == "emulator" else parts.translated_emulator
        predictor = EmulatorPredictor(emulator, together=together)
    if space == "synthetic":
        flux = np.concatenate([parts.translator.obs_to_synth(row[None]) for row in stars.filled])
    if space == "synthetic" and not parts.translator.is_residual:
        variance, errors = np.where(stars.variance < np.inf, ROUGH_ERROR**2, np.inf), "unknown"
    else:  # a residual translation keeps the noise of the data, and has the error of the gap
        variance = noise.total_variance(stars.variance, space) if setup.options.model_scatter else stars.variance
    if setup.options.motion:
        kinematics = Kinematics(parts.grid.wavelength.value, parts.grid.chips)
        predictor = MovingPredictor(predictor, kinematics, setup.options.motion)
    n_data = stars.n_data(1 / (stars.variance if errors == "unknown" else variance))
    templates = windows = None
    if setup.continuum is not None:
        bent = flux
        if model_flux is not None:
            bent = np.where(np.isfinite(model_flux).all(1, keepdims=True), model_flux, flux)
        templates, windows = bent[:, None] * setup.continuum.polynomials(parts.grid), setup.continuum.pixels(parts.grid)
    return Objective(
        predictor, flux, 1 / variance, setup.parameters, setup.prior,
        errors=errors, n_data=n_data, templates=templates, windows=windows,
    )  # fmt: skip


def settled(
    parts: ModelParts, stars: Stars, setup: FitSetup, solver: Solver, objective: Objective, optimum: Optimum
) -> tuple[Objective, Optimum]:
    """Go on from an optimum with terms of the continuum that do not know the noise of the data.

    The terms are polynomials times the flux of the star, of which there are only the data at first. Their noise is
    then in both, and is taken for continuum: a level that is free in 2,400 pixels moves labels by 0.3 of their errors
    at a signal-to-noise ratio of 100, and by 0.9 at 30. The flux of the model at the optimum has no such noise.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    stars : `~cyclestarnet.pipeline.stars.Stars`
        Of `prepare_stars`.
    setup : `~cyclestarnet.pipeline.FitSetup`
        Of the fits.
    solver : callable
        Makes an optimum of an objective and of where it begins.
    objective : `~cyclestarnet.fitting.objective.Objective`
        Of `make_objective`, with terms that are made of the data.
    optimum : `~cyclestarnet.fitting.optimum.Optimum`
        Of that objective.

    Returns
    -------
    objective : `~cyclestarnet.fitting.objective.Objective`
        With terms that are made of the model.
    optimum : `~cyclestarnet.fitting.optimum.Optimum`
        Of that one. Both are those that came in where the continuum is trusted.

    Examples
    --------
    ::

        objective = make_objective(model, stars, setup)
        optimum = levenberg_marquardt(objective, begin)
        objective, optimum = settled(model, stars, setup, levenberg_marquardt, objective, optimum)
    """
    if setup.continuum is None:
        return objective, optimum
    objective = make_objective(parts, stars, setup, model_flux=optimum.flux)
    found = solver(objective, optimum.inputs)
    spent = {name: getattr(optimum, name) + getattr(found, name) for name in ("n_evaluations", "n_jacobians")}
    return objective, replace(found, **spent)


def _start_coordinates(parts, stars, setup):
    """Coordinates (n, n_coordinates) of the stars' own split latents; fits begin there, but not far out."""
    if not len(setup.layout.coordinate_places):
        return np.zeros((len(stars), 0))
    return parts.population.split_latents.coordinates(stars.split_latent).clip(-3, 3)


def _starts(parts, stars, setup):
    """Where fits begin, (n, n_labels): as told, or at what the latents suggest, or at a fit of the translated flux."""
    options, begin, n = setup.options, np.repeat(setup.begin[None], len(stars), axis=0), len(parts.labels)
    if setup.fits_velocity and not setup.given & {"velocity"} and setup.free[setup.label_set.index("velocity")]:
        begin[:, setup.label_set.index("velocity")] = stars.velocity
    if setup.given or options.space != "observed" or not setup.free[:n].any():
        return begin
    if parts.shortcuts is not None:
        guess = parts.shortcuts.first_guess(stars.shared_latent)
    else:
        fixed = {name: value for name, value in (options.fixed or {}).items() if name in parts.labels}
        tied = [[name for name in group if name in parts.labels] for group in options.tied]
        rough = FitOptions(space="synthetic", fixed=fixed, tied=tied, prior=options.prior)
        objective = make_objective(parts, stars, FitSetup.of(parts, rough))
        guess = levenberg_marquardt(objective, begin[:, :n], tolerance=0.1).inputs
    begin[:, :n] = np.where(setup.free[:n], np.clip(guess, parts.labels.lower, parts.labels.upper), begin[:, :n])
    return begin


# -- fits ------------------------------------------------------------------------
def fit_stars(parts: ModelParts, spectra: Sequence[Spectrum], setup: FitSetup) -> list[FitResult | Exception]:
    """Fit spectra side by side.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    spectra : sequence of `~specutils.Spectrum`
        One per star.
    setup : `~cyclestarnet.pipeline.FitSetup`
        Of the fits.

    Returns
    -------
    list of `~cyclestarnet.FitResult` or Exception
        In the order of the spectra; bit by bit the same as of each alone.

    Examples
    --------
    ::

        results = fit_stars(model, spectra, FitSetup.of(model, FitOptions()))
    """
    with one_thread():
        return _fitted(parts, spectra, setup)


def _fitted(parts, spectra, setup):
    stars, places = prepare_stars(parts, spectra, setup)
    if not len(stars):
        return places
    objective, solver = make_objective(parts, stars, setup), SOLVERS[setup.options.method]
    begin = setup.layout.row(_starts(parts, stars, setup), _start_coordinates(parts, stars, setup))
    optimum = solver(objective, begin)
    if not setup.given and setup.options.space == "observed":
        optimum = _second_try(parts, stars, setup, objective, optimum)
    objective, optimum = settled(parts, stars, setup, solver, objective, optimum)
    results = [make_result(parts, stars, row, objective, optimum, setup) for row in range(len(stars))]
    return [place if isinstance(place, Exception) else results[place] for place in places]


def fit_numbered(
    spectra: Sequence[Spectrum], numbers: Sequence[int], *, setup: SurveySetup
) -> list[FitResult | Exception]:
    """Fit some spectra of a survey.

    Parameters
    ----------
    spectra : sequence of `~specutils.Spectrum`
        One per star.
    numbers : sequence of int
        Which stars of the survey they are.
    setup : `~cyclestarnet.pipeline.columns.SurveySetup`
        Of the fits.

    Returns
    -------
    list of `~cyclestarnet.FitResult` or Exception
        In the order of the spectra; bit by bit the same as of each alone, with its own values of the columns.

    Examples
    --------
    ::

        results = fit_numbered(spectra, [0, 1], setup=SurveySetup.of(model, FitOptions()))
    """
    if setup.common is not None:
        return fit_stars(setup.parts, spectra, setup.common)
    results = []
    for spectrum, number in zip(spectra, numbers, strict=True):
        try:
            own = setup.of_star(number)
        except CycleStarNetError as error:
            results.append(error)
        else:
            results += fit_stars(setup.parts, [spectrum], own)
    return results


def fit_one(parts: ModelParts, spectrum: Spectrum, options: FitOptions) -> FitResult:
    """Fit one spectrum; see `~cyclestarnet.CalibratedModel.fit`.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    spectrum : `~specutils.Spectrum`
        Of the star.
    options : `~cyclestarnet.FitOptions`
        Of the fit.

    Returns
    -------
    `~cyclestarnet.FitResult`

    Raises
    ------
    SpectrumError, GridError
        If the spectrum cannot be used.

    Examples
    --------
    ::

        result = fit_one(model, spectrum, FitOptions(space="emulator"))
    """
    (result,) = fit_stars(parts, [spectrum], FitSetup.of(parts, options))
    if isinstance(result, Exception):
        raise result
    told = []
    if not result.success:
        told = [f"the fit did not converge: {result.message}"]
    told += [f"{flag.name}: {ADVICE[flag]}" for flag in ADVICE if flag in result.flags]
    if told:
        warnings.warn("; ".join(told), FitWarning, stacklevel=3)
    return result


def _second_try(parts, stars, setup, first: Objective, optimum: Optimum) -> Optimum:
    """Fit stars that look bad once more from the mean of the prior, and keep the better optimum."""
    ivar = 1 / parts.noise.total_variance(stars.variance, setup.options.space, inflated=False)
    dof = np.maximum(stars.n_data(ivar) - len(setup.parameters), 1)
    predicted = torch.as_tensor(optimum.flux, device=first.flux.device)
    absorbed = first.absorbed(predicted, torch.arange(len(stars), device=predicted.device)).cpu().numpy()
    poor = ((stars.flux - optimum.flux - absorbed) ** 2 * ivar).sum(1) / dof > parts.limits.reduced_chi2_total
    rows = np.flatnonzero(poor | ~optimum.success)
    if not len(rows):
        return optimum
    some = stars.part(rows)
    objective = make_objective(parts, some, setup)
    begin = np.repeat(setup.begin[None], len(rows), axis=0)
    if setup.fits_velocity:
        velocity = setup.label_set.index("velocity")
        begin[:, velocity] = optimum.inputs[rows, setup.layout.label_places[velocity]]
    begin = setup.layout.row(begin, _start_coordinates(parts, some, setup))
    return optimum.improved(rows, SOLVERS[setup.options.method](objective, begin))
