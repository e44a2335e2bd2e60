"""From spectra to fit results: what `CalibratedModel.fit`, ``fit_many`` and ``sample`` have in common.

`FitSetup` holds the checked options of a fit. `fit_stars` takes a list of
spectra through the same steps together: pixels, latents, a start, the solver,
the errors and the flags. A spectrum that cannot be used becomes the exception
that says why, and the others do not notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real

import astropy.units as u
import numpy as np
import torch

from cyclestarnet.backend.kinematics import Kinematics
from cyclestarnet.backend.predictor import (
    EmulatorPredictor,
    FreeNuisancePredictor,
    MovingPredictor,
    ObservedPredictor,
)
from cyclestarnet.diagnostics import LIMITS, SPEED_OF_LIGHT, ShiftSearch, continuum_misfit, local_misfit
from cyclestarnet.exceptions import CycleStarNetError, GridError, LabelError, SpectrumError
from cyclestarnet.fitting.objective import Objective, Parameters
from cyclestarnet.fitting.priors import GaussianConstraints, GaussianPrior, LeadingLabels, Prior, ProductPrior
from cyclestarnet.fitting.solvers import Optimum, lbfgs, levenberg_marquardt
from cyclestarnet.labels import LabelSet
from cyclestarnet.results import FitFlag, FitResult
from cyclestarnet.spectra import to_pixels, to_spectrum

__all__ = ["FitSetup", "fit_stars", "make_objective", "prepare_stars"]

SPACES = ("observed", "synthetic", "emulator")
METHODS = {"lbfgs": lbfgs, "lm": levenberg_marquardt}
NUISANCES = ("own", "typical", "fitted")
REACH = 10.0  # σ of training stars: bounds of fitted coordinates of the split latent
MOTION = {"velocity": (-150.0, 150.0, 0.0), "broadening": (0.0, 60.0, 3.0)}  # km/s: bounds, and start
AIR_SHIFT = (-92.0, -72.0)  # km/s: where lines appear if air wavelengths are taken for vacuum
REST = 10.0  # km/s
HELD_BACK = 2.0  # σ: noise alone seldom carries a label that far beyond a bound
ROUGH_ERROR = 0.01  # of a translated spectrum, before its own residuals tell


# -- options -------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Layout:
    """What stands where in the rows of numbers that solvers see: labels of the model, coordinates, motion.

    Attributes
    ----------
    labels : array of int, shape (n_labels,)
        Places of the labels, motion included.
    coordinates : array of int, shape (n_coordinates,)
        Places of the coordinates of a fitted split latent.
    """

    labels: np.ndarray
    coordinates: np.ndarray

    @classmethod
    def of(cls, n_model, n_coordinates, n_motion):
        """Lay out the labels of a model, coordinates and motion in this order."""
        places = np.split(np.arange(n_model + n_coordinates + n_motion), [n_model, n_model + n_coordinates])
        return cls(np.concatenate([places[0], places[2]]), places[1])

    def __len__(self):
        return len(self.labels) + len(self.coordinates)

    def row(self, labels, coordinates):
        """Join labels (..., n_labels) and coordinates (..., n_coordinates)."""
        labels = np.asarray(labels)
        out = np.empty((*labels.shape[:-1], len(self)), dtype=labels.dtype)
        out[..., self.labels], out[..., self.coordinates] = labels, coordinates
        return out


@dataclass(frozen=True, eq=False)
class FitSetup:
    """Options of a fit, checked against a model; see `~cyclestarnet.CalibratedModel.fit` for what they mean.

    Attributes
    ----------
    labels : `~cyclestarnet.LabelSet`
        Of the model, and ``velocity`` and ``broadening`` if they are fitted.
    begin : array, shape (n_labels,)
        Values of fixed and tied labels, and the start of others.
    given : set of str
        Free labels of which the caller chose the start.
    layout : `Layout`
    parameters : `~cyclestarnet.fitting.objective.Parameters`
        Of labels and coordinates.
    prior : `~cyclestarnet.fitting.priors.Prior` or None
        Of labels and coordinates.
    prior_name : str
    ignore : array of bool, shape (n_pixels,)
        Pixels that no star may use.
    options : dict
        As they were given.
    """

    space: str
    method: str
    nuisance: str
    inflation: float
    labels: LabelSet
    begin: np.ndarray
    given: set
    free: np.ndarray
    layout: Layout
    parameters: Parameters
    prior: Prior | None
    prior_name: str
    ignore: np.ndarray
    options: dict = field(default_factory=dict)

    @classmethod
    def of(
        cls, model, *, space="observed", method="lbfgs", start=None, fixed=None, bounds=None, tied=(),
        motion=(), prior="training", nuisance="own", ignore=None, inflation=1.0,
    ):  # fmt: skip
        """Check options against a model."""
        tied, motion = (() if given is None else given for given in (tied, motion))
        options = {
            "space": space, "start": start, "fixed": fixed, "bounds": bounds, "tied": tied, "motion": motion,
            "prior": prior, "nuisance": nuisance, "ignore": ignore, "inflation": inflation, "method": method,
        }  # fmt: skip
        check_choice("space", space, SPACES)
        check_choice("method", method, METHODS)
        check_choice("nuisance", nuisance, NUISANCES)
        if not (isinstance(inflation, Real) and 0 < inflation < np.inf):
            raise ValueError(f"inflation must be a positive factor on the errors of the data, but is {inflation!r}")
        labels = _with_motion(model.labels, motion, space)
        lower, upper = _bounds(labels, bounds)
        begin = np.concatenate([model.prior.mean, [MOTION[name][2] for name in labels.names[len(model.labels) :]]])
        if isinstance(start, FitResult):  # its motion need not be fitted again
            start = {name: v for name, v in start.labels.items() if name in labels or name not in MOTION}
            options["start"] = start  # not the whole result, which would be kept with the next one
        given = _numbers("start", labels, {} if start is None else labels.known(start))
        fixed = _numbers("fixed", labels, _mapping("fixed", fixed))
        for name, value in {**given, **fixed}.items():
            begin[labels.index(name)] = value
        free = np.ones(len(labels), dtype=bool)
        free[[labels.index(name) for name in fixed]] = False
        groups, loose = _groups(labels, tied, fixed), free.copy()
        loose[[label for group in groups for label in group]] = False  # where others begin decides little
        labels.check_range(np.where(loose, np.clip(begin, labels.lower, labels.upper), begin))
        if not free.any():
            raise LabelError("all labels are fixed; nothing is left to fit")
        layout = Layout.of(len(model.labels), _n_coordinates(model, space, nuisance), len(labels) - len(model.labels))
        parameters = Parameters.of_labels(
            layout.row(lower, -REACH), layout.row(upper, REACH),
            layout.row(np.clip(begin, labels.lower, labels.upper), 0.0), free=layout.row(free, True),
            tied=[layout.labels[group] for group in groups],
        )  # fmt: skip
        if not (parameters.lower < parameters.upper).all():
            raise LabelError(
                f"tied labels {tied} cannot keep their differences within the bounds; start them closer to each other"
            )
        chosen, name = _prior(prior, model)
        if chosen is not None and len(layout) > len(model.labels):
            chosen = LeadingLabels(chosen, len(layout))
        if len(layout.coordinates):
            ones = np.ones(len(layout.coordinates))
            unit = GaussianConstraints(np.eye(len(layout))[layout.coordinates], 0 * ones, ones)
            chosen = unit if chosen is None else ProductPrior([chosen, unit])
        return cls(
            space=space, method=method, nuisance=nuisance, inflation=float(inflation), labels=labels, begin=begin,
            given=set(given) - set(fixed), free=free, layout=layout, parameters=parameters, prior=chosen,
            prior_name=name, ignore=_ignored(ignore, model.grid), options=options,
        )  # fmt: skip

    @property
    def motion(self):
        """Names of the motions that are fitted."""
        return tuple(name for name in self.labels if name in MOTION)


def check_choice(argument, value, choices):
    """Raise if the value of an argument is none of its choices."""
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}, but is {value!r}")


def _mapping(argument, given):
    if not isinstance(given, Mapping | None):
        raise TypeError(f"{argument} must be a mapping by name of label, but is {given!r}")
    return given or {}


def _numbers(argument, labels, given):
    """Values of labels by name, one each."""
    values = {name: labels.value(name, value) for name, value in given.items()}
    for name, value in values.items():
        if value.ndim:
            raise LabelError(f"{argument} must have one value of '{name}', but has shape {value.shape}")
    return {name: float(value) for name, value in values.items()}


def _n_coordinates(model, space, nuisance):
    """How many coordinates of the split latent a fit has."""
    if nuisance != "fitted" or space != "observed":
        return 0
    if model.nuisance_cloud is None:
        raise ValueError(
            f"nuisance='fitted' needs to know how split latents scatter, but model {model.name!r} does not: it comes "
            "from an older file, or has no split latent. Learn it from observed training spectra: "
            "dataclasses.replace(model, nuisance_cloud=NuisanceCloud.from_latents(latents)), where latents are "
            "model.translator.encode_obs(flux)[1]; or use nuisance='own'"
        )
    return len(model.nuisance_cloud.variance)


def _with_motion(labels, motion, space):
    motion = (motion,) if isinstance(motion, str) else tuple(motion)
    for name in motion:
        check_choice("motion", name, MOTION)
    if motion and space == "synthetic":
        raise ValueError('motion cannot be fitted with space="synthetic": a translated spectrum is at rest')
    if not motion:
        return labels
    motion = [name for name in MOTION if name in motion]
    low, high = ([*array, *(MOTION[n][k] for n in motion)] for k, array in enumerate((labels.lower, labels.upper)))
    return LabelSet([*labels.names, *motion], low, high, labels.combinations)


def _bounds(labels, bounds):
    lower, upper = labels.lower.copy(), labels.upper.copy()
    for name, pair in _mapping("bounds", bounds).items():
        k = labels.index(name)
        try:
            low, high = pair
        except (TypeError, ValueError):
            raise LabelError(f"bounds of '{name}' must be a pair (low, high), but are {pair!r}") from None
        low, high = (_numbers("bounds", labels, {name: edge})[name] for edge in (low, high))
        if not low < high or high <= lower[k] or low >= upper[k]:
            raise LabelError(
                f"bounds of '{name}' must be (low, high) that overlap the training range "
                f"{lower[k]:g} to {upper[k]:g}, but are {low:g}, {high:g}"
            )
        lower[k], upper[k] = max(low, lower[k]), min(high, upper[k])
    return lower, upper


def _groups(labels, tied, fixed):
    if isinstance(tied, str) or any(isinstance(group, str) for group in tied):
        raise TypeError("tied must be a sequence of groups of labels, such as [('o_h', 'mg_h', 'si_h')]")
    groups, seen = [[labels.index(name) for name in group] for group in tied], set()
    for names, group in zip(tied, groups, strict=True):
        twice = seen.intersection(group) or len(set(group)) < len(group)
        held = sorted(set(names).intersection(fixed))
        if twice or held:
            why = f"{held} are fixed" if held else "a label is in two groups, or twice in one"
            raise LabelError(f"tied labels {tuple(names)} cannot move together: {why}")
        seen.update(group)
    return groups


def _prior(prior, model):
    """The prior that an option stands for, and what results say of it."""
    if isinstance(prior, str) and prior == "training":
        return model.prior, "training"
    if prior is None:
        return None, "none"
    if isinstance(prior, Mapping):
        return GaussianConstraints.of(prior, model.labels), "Gaussian on " + ", ".join(prior)
    if isinstance(prior, list | tuple) and prior:
        parts, names = zip(*(_prior(part, model) for part in prior), strict=True)
        parts = [part for part in parts if part is not None]
        return ProductPrior(parts) if parts else None, " x ".join(names)
    if not all(hasattr(prior, method) for method in ("log_density", "derivatives")):
        raise TypeError(
            'prior must be "training", None, a mapping of label to (mean, sigma), an object with log_density and '
            f"derivatives such as GaussianPrior, or a list of these, but is {prior!r}"
        )
    if getattr(prior, "n_labels", len(model.labels)) != len(model.labels):
        raise ValueError(f"a prior of {prior.n_labels} labels, but the model has {len(model.labels)}")
    return prior, "Gaussian, user's own" if isinstance(prior, GaussianPrior) else f"{type(prior).__name__}, user's own"


def _ignored(ignore, grid):
    """Pixels that are not to be used, from a mask or from regions of wavelength."""
    if ignore is None:
        return np.zeros(grid.n_pixels, dtype=bool)
    if isinstance(ignore, np.ndarray) and ignore.dtype == bool:
        if ignore.shape != (grid.n_pixels,):
            raise GridError(f"ignore must have a value for each of the model's {grid.n_pixels} pixels, "
                            f"but has shape {ignore.shape}")  # fmt: skip
        return ignore
    mask = np.zeros(grid.n_pixels, dtype=bool)
    for region in ignore:
        try:
            low, high = (u.Quantity(edge).to_value(u.AA) for edge in region)
            if not low < high:
                raise ValueError("a region must begin before it ends")
        except (u.UnitConversionError, TypeError, ValueError) as error:
            raise GridError(
                "ignore must be a mask of the model's pixels, True = ignore, or (low, high) wavelengths with units, "
                f"but holds {region!r}"
            ) from error
        mask |= (grid.wavelength.value >= low) & (grid.wavelength.value <= high)
    return mask


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
        cloud = model.nuisance_cloud
        predictor = FreeNuisancePredictor(
            model.emulator,
            model.translator,
            cloud.mean,
            cloud.directions,
            together=_together(model),
            shortcuts=model.shortcuts,
        )
    elif space == "observed":
        split = stars.split
        if setup.nuisance == "typical" and split is not None:
            split = np.repeat(model.typical_nuisance[None], len(stars), axis=0)
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
    return model.nuisance_cloud.coordinates(stars.split).clip(-3, 3)


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


def _covariance(model, stars, row, objective, optimum, setup):
    """Covariance of a star's labels: Laplace, and what residuals do not show."""
    labels = setup.layout.labels
    covariance = optimum.covariance[row][np.ix_(labels, labels)]  # marginal over the coordinates
    if setup.space == "synthetic":
        return _propagated(model, stars, row, objective, optimum)
    if setup.space == "observed" and model.label_error is not None:
        n, matrix = len(model.labels), setup.parameters.matrix
        onto = (matrix @ np.linalg.pinv(matrix))[:n, :n]  # tied labels share their error; fixed ones have none
        # It was learnt with the training prior. A hidden error e moves the optimum of another prior, whose
        # precision differs by D, by (1 - C D) e: a strong prior holds it back, and none lets it grow.
        pull = onto - covariance[:n, :n] @ _extra_precision(model, row, objective, optimum) @ onto
        covariance[:n, :n] += pull @ model.label_error @ pull.T
        # what nothing holds back is as uncertain as its range
        shrink = np.minimum(1.0, setup.labels.scale / np.sqrt(12 * np.diag(covariance).clip(1e-300)))
        covariance *= np.outer(shrink, shrink)
    return covariance


def _extra_precision(model, row, objective, optimum):
    """Curvature of the prior of a fit at the optimum, over the model's labels, minus that of the training prior."""
    n, extra = len(model.labels), -model.prior.precision
    if objective.prior is not None:
        at = torch.as_tensor(optimum.labels[row][None], dtype=torch.float64)
        extra = extra + objective.prior.derivatives(at)[2][0].numpy()[:n, :n]
    return extra


def _propagated(model, stars, row, objective, optimum, n_draws=64):
    """Covariance of Eq. 10: noise of the data, sent through the translation and the linearised fit.

    The residuals of a translated spectrum say little: the translation
    removes most of the noise, and correlates the rest.
    """
    ivar = model._total_ivar(stars.ivar[row], "observed")
    seen = model._encoded(stars.pixels[row])  # others hold the continuum, without noise
    sigma = np.where(seen, 1 / np.sqrt(np.where(seen, ivar, 1.0)), 0.0)
    noise = np.random.default_rng(0).standard_normal((n_draws, model.grid.n_pixels)) * sigma
    translated = model.translator.obs_to_synth(stars.filled[row] + noise)
    _, slopes = objective.predictor.jacobian(optimum.labels[row])
    weight = objective.ivar[row].cpu().numpy() / optimum.error_scale[row] ** 2
    gain = optimum.covariance[row] @ (slopes * weight)  # d labels / d translated flux
    return np.cov(gain @ translated.T)


def _beyond_bounds(objective, optimum, row):
    """How far labels would go without bounds, by a Newton step from the optimum, and their errors without bounds.

    0 for all if none is at a bound.
    """
    matrix, device, hessian = objective.parameters.matrix, objective.predictor.device, optimum.hessian[row]
    if not (optimum.at_bound[row].any() and np.isfinite(hessian).all()):
        return np.zeros((2, len(matrix)))
    values = torch.as_tensor(objective.parameters.values(optimum.labels[row])[None], device=device)
    _, gradient = objective.loss_and_gradient(values, torch.tensor([row], device=device))
    size = np.sqrt(np.diag(hessian))
    size = np.where(size > 0, size, 1.0)
    size = np.outer(size, size)
    onto = matrix @ (np.linalg.pinv(hessian / size, hermitian=True) / size)
    return np.stack([np.abs(onto @ gradient[0].cpu().numpy()), np.sqrt(np.einsum("lp,lp->l", onto, matrix).clip(0))])


def _result(model, stars, row, objective, optimum: Optimum, setup):
    space, data_ivar, pixels, spectrum = setup.space, stars.ivar[row], stars.pixels[row], stars.spectra[row]
    flux, fit_ivar = objective.flux[row].cpu().numpy(), objective.ivar[row].cpu().numpy()
    layout = setup.layout
    values, at_bound = optimum.labels[row][layout.labels], optimum.at_bound[row][layout.labels]
    good, n = fit_ivar > 0, len(model.labels)
    residual = np.where(good, flux - optimum.flux[row], 0.0)
    dof = max(int(good.sum()) - len(setup.parameters), 1)
    total_ivar = (
        fit_ivar / optimum.error_scale[row] ** 2 if space == "synthetic" else model._total_ivar(data_ivar, space)
    )
    chi2, chi2_total = float(residual**2 @ data_ivar), float(residual**2 @ total_ivar)
    snr = float(np.median((pixels.flux * np.sqrt(pixels.ivar))[pixels.ivar > 0]))
    distance = float(model.cloud.distance(stars.latent[row][None])[0])
    prior_distance = float(np.sqrt(model.prior.distance2(values[:n]) / n))
    velocity = stars.velocity[row]
    covariance = _covariance(model, stars, row, objective, optimum, setup)
    beyond, unbounded_error = _beyond_bounds(objective, optimum, row)[:, layout.labels]
    held_back = at_bound & (beyond > HELD_BACK * np.maximum(np.sqrt(np.diag(covariance)), unbounded_error))
    misfit, worst_pixel = local_misfit(residual, total_ivar)
    continuum = continuum_misfit(residual, total_ivar, model.grid.chips)
    limits = LIMITS | dict(model.limits)
    reasons = {
        FitFlag.NOT_CONVERGED: not optimum.success[row],
        FitFlag.AT_BOUND: held_back.any(),
        FitFlag.OUTSIDE_TRAINING: prior_distance > limits["prior_distance"],
        FitFlag.POOR_FIT: space == "observed" and chi2_total / dof > limits["reduced_chi2_total"],
        FitFlag.UNFAMILIAR: distance > model.cloud.threshold,
        FitFlag.FEW_PIXELS: good.sum() < 0.5 * model.grid.n_pixels,
        FitFlag.LOW_SNR: snr < 20,
        FitFlag.VELOCITY: abs(velocity) > REST and "velocity" not in setup.motion,
        FitFlag.LOCAL_MISFIT: space == "observed" and misfit > limits["local_misfit"],
        FitFlag.CONTINUUM: space == "observed" and continuum > limits["continuum_misfit"],
    }
    flags = FitFlag(0)
    for flag, holds in reasons.items():
        flags |= flag if holds else FitFlag(0)
    source = spectrum.meta or {}
    meta = {
        "object": str(source.get("object", source.get("apogee_id", ""))),
        "model": model.name,
        "method": setup.method,
        "prior": setup.prior_name,
        "fixed": tuple(setup.options["fixed"] or ()),
        "n_evaluations": int(optimum.n_evaluations[row]),
        "n_jacobians": int(optimum.n_jacobians[row]),
        "condition": float(optimum.condition[row]),
        "snr": snr,
        "normalised_here": pixels.continuum is not None,
        "error_scale": float(optimum.error_scale[row]),
        "options": setup.options,
        "velocity": velocity * u.km / u.s,
        "latent_distance": distance,
        "prior_distance": prior_distance,
        "at_bound": [name for name, hit in zip(setup.labels, at_bound, strict=True) if hit],
        "local_misfit": misfit,
        "worst_wavelength": model.grid.wavelength[worst_pixel],
        "continuum_misfit": continuum,
    }
    if len(layout.coordinates):
        errors = np.sqrt(np.diag(optimum.covariance[row]))
        meta["nuisance"] = {k: a[layout.coordinates] for k, a in (("values", optimum.labels[row]), ("errors", errors))}
    return FitResult(
        label_set=setup.labels,
        values=values,
        covariance=covariance,
        chi2=chi2,
        chi2_total=chi2_total,
        dof=dof,
        success=bool(optimum.success[row]),
        message=optimum.message[row],
        flags=flags,
        spectrum=to_spectrum(flux, model.grid, ivar=data_ivar, meta={"model": model.name}),
        model_spectrum=to_spectrum(optimum.flux[row], model.grid, meta={"model": model.name, "domain": space}),
        space=space,
        meta=meta,
    )
