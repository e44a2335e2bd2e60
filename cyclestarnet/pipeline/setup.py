"""Options of a fit, bound to a model and checked against it before any star is fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from cyclestarnet.blanks import bools_of
from cyclestarnet.exceptions import GridError, LabelError
from cyclestarnet.fitting.parameters import Parameters
from cyclestarnet.fitting.priors import GaussianConstraints, GaussianPrior, LeadingLabels, Prior, ProductPrior
from cyclestarnet.labels import LabelSet
from cyclestarnet.masks import SpectroscopicMask
from cyclestarnet.pipeline.continuum_terms import ContinuumTerms
from cyclestarnet.pipeline.options import MOTION, FitOptions
from cyclestarnet.pipeline.parts import ModelParts

__all__ = ["FitSetup", "Layout", "labels_of_fit"]

REACH = 10.0  # σ of training stars: bounds of fitted coordinates of the split latent


@dataclass(frozen=True, eq=False)
class Layout:
    """What stands where in the rows of numbers that solvers see: labels of the model, coordinates, motion.

    Parameters
    ----------
    label_places : array of int, shape (n_labels,)
        Places of the labels, motion included.
    coordinate_places : array of int, shape (n_coordinates,)
        Places of the coordinates of a fitted split latent.

    Examples
    --------
    >>> from cyclestarnet.pipeline.setup import Layout
    >>> layout = Layout.of(n_model=2, n_coordinates=3, n_motion=1)
    >>> layout.row([1.0, 2.0, 9.0], 0.0)  # the motion comes last
    array([1., 2., 0., 0., 0., 9.])
    """

    label_places: np.ndarray
    coordinate_places: np.ndarray

    @classmethod
    def of(cls, n_model: int, n_coordinates: int, n_motion: int) -> Layout:
        """Lay out the labels of a model, coordinates of the split latent and motion in this order.

        Parameters
        ----------
        n_model, n_coordinates, n_motion : int
            How many there are of each.

        Returns
        -------
        `Layout`

        Examples
        --------
        >>> from cyclestarnet.pipeline.setup import Layout
        >>> Layout.of(2, 1, 1).label_places
        array([0, 1, 3])
        """
        places = np.split(np.arange(n_model + n_coordinates + n_motion), [n_model, n_model + n_coordinates])
        return cls(np.concatenate([places[0], places[2]]), places[1])

    def __len__(self):
        return len(self.label_places) + len(self.coordinate_places)

    def row(self, labels: ArrayLike, coordinates: ArrayLike) -> np.ndarray:
        """Join labels and coordinates to rows of parameters.

        Parameters
        ----------
        labels : array_like, shape (..., n_labels)
            Motion included.
        coordinates : array_like, shape (..., n_coordinates), or float
            Of the split latent.

        Returns
        -------
        array, shape (..., n_labels + n_coordinates)
            Of the type of ``labels``.

        Examples
        --------
        >>> from cyclestarnet.pipeline.setup import Layout
        >>> Layout.of(2, 1, 0).row([[1, 2], [3, 4]], 7)
        array([[1, 2, 7],
               [3, 4, 7]])
        """
        labels = np.asarray(labels)
        out = np.empty((*labels.shape[:-1], len(self)), dtype=labels.dtype)
        out[..., self.label_places], out[..., self.coordinate_places] = labels, coordinates
        return out


@dataclass(frozen=True, eq=False)
class FitSetup:
    """A fit, ready for stars: options, and what they make of a model.

    Parameters
    ----------
    options : `~cyclestarnet.FitOptions`
        As they were chosen.
    label_set : `~cyclestarnet.LabelSet`
        Labels of the model, and ``velocity`` and ``broadening`` if they are fitted.
    begin : array, shape (n_labels,)
        Values of fixed and tied labels, and the start of others.
    given : set of str
        Free labels of which the caller chose the start.
    free : array of bool, shape (n_labels,)
        Labels that are not fixed.
    layout : `Layout`
        Of labels and coordinates of the split latent in rows of parameters.
    parameters : `~cyclestarnet.fitting.parameters.Parameters`
        Of labels and coordinates.
    prior : `~cyclestarnet.fitting.priors.Prior` or None
        Of labels and coordinates.
    prior_name : str
        What results say of it.
    ignore : array of bool, shape (n_pixels,)
        Pixels that no star may use.
    uncompared : array of bool, shape (n_pixels,)
        Pixels that networks may read, but that do not count in χ².
    continuum : `~cyclestarnet.ContinuumTerms`, optional
        Polynomials by which the data may be off. Default: none.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.pipeline import FitOptions, FitSetup
    >>> setup = FitSetup.of(CalibratedModel.from_pretrained(), FitOptions(motion="velocity"))
    >>> setup.label_set.names[-1], len(setup.parameters)
    ('velocity', 21)
    """

    options: FitOptions
    label_set: LabelSet
    begin: np.ndarray
    given: set[str]
    free: np.ndarray
    layout: Layout
    parameters: Parameters
    prior: Prior | None
    prior_name: str
    ignore: np.ndarray
    uncompared: np.ndarray
    continuum: ContinuumTerms | None = None

    @classmethod
    def of(cls, parts: ModelParts, options: FitOptions) -> FitSetup:
        """Check options against a model.

        Parameters
        ----------
        parts : `~cyclestarnet.pipeline.ModelParts`
            The model.
        options : `~cyclestarnet.FitOptions`
            What is asked of it.

        Returns
        -------
        `FitSetup`

        Raises
        ------
        LabelError
            If ``start``, ``fixed``, ``bounds`` or ``tied`` name unknown labels, have wrong units or
            exclude each other, or nothing is left to fit.
        GridError
            If ``ignore`` is a mask of other pixels, or ranges that hold none of the model's, or a window of the
            continuum holds too few of them, or pixels of two chips.
        ValueError, TypeError
            If the prior is none, or the split latent cannot be fitted.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel
        >>> from cyclestarnet.pipeline import FitOptions, FitSetup
        >>> FitSetup.of(CalibratedModel.from_pretrained(), FitOptions(prior=None)).prior_name
        'none'
        """
        labels = labels_of_fit(parts.labels, options.motion)
        if hasattr(options.fixed, "colnames"):
            options = replace(options, fixed=labels.known(options.fixed))
        held = sorted(set(options.bounds or ()).intersection(options.fixed or ()))
        if held:
            raise LabelError(f"bounds of {held} have no effect, because these labels are fixed; give one of both")
        _check_split_latent(parts, options)
        lower, upper = _bounds(labels, options.bounds)
        start = [MOTION[name][2] for name in labels.names[len(parts.labels) :]]
        begin = np.concatenate([parts.prior.mean, start])
        given = _numbers("start", labels, {} if options.start is None else labels.known(options.start))
        fixed = _numbers("fixed", labels, options.fixed or {})
        for name, value in {**given, **fixed}.items():
            begin[labels.index(name)] = value
        free = np.ones(len(labels), dtype=bool)
        free[[labels.index(name) for name in fixed]] = False
        groups, loose = _groups(labels, options.tied, fixed), free.copy()
        loose[[label for group in groups for label in group]] = False  # where others begin decides little
        labels.check_range(np.where(loose, np.clip(begin, labels.lower, labels.upper), begin))
        if not free.any():
            raise LabelError("all labels are fixed; nothing is left to fit")
        layout = Layout.of(len(parts.labels), _n_coordinates(parts, options), len(labels) - len(parts.labels))
        parameters = Parameters.of_labels(
            layout.row(lower, -REACH), layout.row(upper, REACH),
            layout.row(np.clip(begin, labels.lower, labels.upper), 0.0), free=layout.row(free, True),
            tied=[layout.label_places[group] for group in groups],
        )  # fmt: skip
        if not (parameters.lower < parameters.upper).all():
            raise LabelError(
                f"tied labels {options.tied} cannot keep their differences within the bounds; start them closer to "
                "each other"
            )
        prior, prior_name = _prior(options.prior, parts)
        none = np.zeros(parts.grid.n_pixels, dtype=bool)
        ignored, masks = _ignored(options.ignore, parts.grid), isinstance(options.ignore, SpectroscopicMask)
        return cls(
            options=options, label_set=labels, begin=begin, given=set(given) - set(fixed), free=free, layout=layout,
            parameters=parameters, prior=_of_rows(prior, layout, len(parts.labels)), prior_name=prior_name,
            ignore=none if masks else ignored, uncompared=ignored if masks else none,
            continuum=_continuum(options.continuum_degree, parts.grid),
        )  # fmt: skip

    @property
    def fits_velocity(self) -> bool:
        """Whether the velocity is fitted or given, so that the spectrum need not be at rest."""
        return "velocity" in self.options.motion


def _of_rows(prior, layout, n_model):
    """The prior of rows of parameters: of labels and, normal with unit width, of coordinates."""
    if prior is not None and len(layout) > n_model:
        prior = LeadingLabels(prior, len(layout))
    if not len(layout.coordinate_places):
        return prior
    ones = np.ones(len(layout.coordinate_places))
    unit = GaussianConstraints(np.eye(len(layout))[layout.coordinate_places], 0 * ones, ones)
    return unit if prior is None else ProductPrior([prior, unit])


def _numbers(argument, labels, given):
    """Values of labels by name, one each."""
    values = {name: labels.value(name, value) for name, value in given.items()}
    for name, value in values.items():
        if value.ndim:
            raise LabelError(
                f"{argument} must have one value of '{name}', but has shape {value.shape}; a value per star is "
                "for fit_many, whose fixed, start and prior take columns"
            )
    return {name: float(value) for name, value in values.items()}


def _check_split_latent(parts, options):
    """A choice of the split latent needs a network that has one."""
    if options.split_latent == "typical" and parts.population.typical_split_latent is None:
        raise ValueError(
            f"split_latent='typical' has no effect: model {parts.name!r} has no split latent; leave it out"
        )


def _n_coordinates(parts, options):
    """How many coordinates of the split latent a fit has."""
    if options.split_latent != "fitted" or options.space != "observed":
        return 0
    if parts.population.split_latents is None:
        raise ValueError(
            f"split_latent='fitted' needs to know how split latents scatter, but model {parts.name!r} does not: it "
            "comes from an older file, or has no split latent. Learn it from observed training spectra: "
            "SplitLatentCloud.from_latents(model.translator.encode_obs(flux)[1]) describes them, for the model's "
            "population; or use split_latent='own'"
        )
    return len(parts.population.split_latents.variance)


def labels_of_fit(labels: LabelSet, motion: Sequence[str]) -> LabelSet:
    """Labels of a fit: those of a model, and the motion that is fitted with them.

    Parameters
    ----------
    labels : `~cyclestarnet.LabelSet`
        Of the model.
    motion : sequence of {"velocity", "broadening"}
        Fitted besides.

    Returns
    -------
    `~cyclestarnet.LabelSet`
        The motion comes last.

    Examples
    --------
    >>> from cyclestarnet import LabelSet
    >>> from cyclestarnet.pipeline.setup import labels_of_fit
    >>> labels_of_fit(LabelSet(["teff", "logg"], [3500, 0], [6000, 4]), ["velocity"]).names
    ('teff', 'logg', 'velocity')
    """
    if not motion:
        return labels
    low, high = ([*array, *(MOTION[n][k] for n in motion)] for k, array in enumerate((labels.lower, labels.upper)))
    return LabelSet([*labels.names, *motion], low, high, labels.combinations)


def _bounds(labels, bounds):
    lower, upper = labels.lower.copy(), labels.upper.copy()
    for name, pair in (bounds or {}).items():
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
    groups, seen = [[labels.index(name) for name in group] for group in tied], set()
    for names, group in zip(tied, groups, strict=True):
        twice = seen.intersection(group) or len(set(group)) < len(group)
        held = sorted(set(names).intersection(fixed))
        if twice or held:
            why = f"{held} are fixed" if held else "a label is in two groups, or twice in one"
            raise LabelError(f"tied labels {tuple(names)} cannot move together: {why}")
        seen.update(group)
    return groups


def _prior(prior, parts):
    """The prior that an option stands for, and what results say of it."""
    if isinstance(prior, str) and prior == "training":
        return parts.prior, "training"
    if prior is None:
        return None, "none"
    if isinstance(prior, Mapping):
        return GaussianConstraints.of(prior, parts.labels), "Gaussian on " + ", ".join(prior)
    if isinstance(prior, list | tuple) and prior:
        factors, names = zip(*(_prior(factor, parts) for factor in prior), strict=True)
        factors = [factor for factor in factors if factor is not None]
        return ProductPrior(factors) if factors else None, " x ".join(names)
    if not all(hasattr(prior, method) for method in ("log_density", "derivatives")):
        raise TypeError(
            'prior must be "training", None, a mapping of label to (mean, sigma), an object with log_density and '
            f"derivatives such as GaussianPrior, or a list of these, but is {prior!r}"
        )
    if getattr(prior, "n_labels", len(parts.labels)) != len(parts.labels):
        raise ValueError(f"a prior of {prior.n_labels} labels, but the model has {len(parts.labels)}")
    return prior, "Gaussian, user's own" if isinstance(prior, GaussianPrior) else f"{type(prior).__name__}, user's own"


def _continuum(degree, grid):
    """Terms of the continuum, checked against the pixels; None if it is trusted."""
    if degree is None:
        return None
    terms = degree if isinstance(degree, ContinuumTerms) else ContinuumTerms(degree)
    terms.pixels(grid)
    return terms


def _ignored(ignore, grid):
    """Pixels that are not to be used, from a mask or from ranges of wavelength."""
    if ignore is None:
        return np.zeros(grid.n_pixels, dtype=bool)
    if isinstance(ignore, np.ndarray) and ignore.dtype == bool:
        ignore = bools_of(ignore)
        if ignore.shape != (grid.n_pixels,):
            raise GridError(f"ignore must have a value for each of the model's {grid.n_pixels} pixels, "
                            f"but has shape {ignore.shape}")  # fmt: skip
        return ignore
    mask, ignore = np.zeros(grid.n_pixels, dtype=bool), list(ignore)
    for low, high in ignore:
        mask |= (grid.wavelength.value >= low) & (grid.wavelength.value <= high)
    if len(ignore) and not mask.any():
        told = ", ".join(f"{low:g} to {high:g}" for low, high in ignore[:3])
        raise GridError(f"ignore has no effect: {told} Angstrom holds no pixel of {grid!r}")
    return mask
