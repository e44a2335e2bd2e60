"""Options of a fit, checked against a model before any star is fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real

import astropy.units as u
import numpy as np

from cyclestarnet.exceptions import GridError, LabelError
from cyclestarnet.fitting.lbfgs import lbfgs
from cyclestarnet.fitting.objective import Parameters
from cyclestarnet.fitting.priors import GaussianConstraints, GaussianPrior, LeadingLabels, Prior, ProductPrior
from cyclestarnet.fitting.solvers import levenberg_marquardt
from cyclestarnet.labels import LabelSet
from cyclestarnet.results import FitResult

__all__ = ["FitSetup"]

SPACES = ("observed", "synthetic", "emulator")
METHODS = {"lbfgs": lbfgs, "lm": levenberg_marquardt}
SPLIT_LATENTS = ("own", "typical", "fitted")
REACH = 10.0  # σ of training stars: bounds of fitted coordinates of the split latent
MOTION = {"velocity": (-150.0, 150.0, 0.0), "broadening": (0.0, 60.0, 3.0)}  # km/s: bounds, and start


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
    split_latent: str
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
        motion=(), prior="training", split_latent="own", ignore=None, inflation=1.0,
    ):  # fmt: skip
        """Check options against a model."""
        tied, motion = (() if given is None else given for given in (tied, motion))
        options = {
            "space": space, "start": start, "fixed": fixed, "bounds": bounds, "tied": tied, "motion": motion,
            "prior": prior, "split_latent": split_latent, "ignore": ignore, "inflation": inflation, "method": method,
        }  # fmt: skip
        check_choice("space", space, SPACES)
        check_choice("method", method, METHODS)
        check_choice("split_latent", split_latent, SPLIT_LATENTS)
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
        n_model, n_coordinates = len(model.labels), _n_coordinates(model, space, split_latent)
        layout = Layout.of(n_model, n_coordinates, len(labels) - n_model)
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
            space=space, method=method, split_latent=split_latent, inflation=float(inflation), labels=labels,
            begin=begin, given=set(given) - set(fixed), free=free, layout=layout, parameters=parameters, prior=chosen,
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


def _n_coordinates(model, space, split_latent):
    """How many coordinates of the split latent a fit has."""
    if split_latent != "fitted" or space != "observed":
        return 0
    if model.split_latent_cloud is None:
        raise ValueError(
            f"split_latent='fitted' needs to know how split latents scatter, but model {model.name!r} does not: it "
            "comes from an older file, or has no split latent. Learn it from observed training spectra: "
            "dataclasses.replace(model, split_latent_cloud=SplitLatentCloud.from_latents(latents)), where latents are "
            "model.translator.encode_obs(flux)[1]; or use split_latent='own'"
        )
    return len(model.split_latent_cloud.variance)


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
