"""Fits of a survey that know something of each star: columns of fixed labels, of starts and of priors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import astropy.units as u
import numpy as np

from cyclestarnet.blanks import floats_of
from cyclestarnet.exceptions import CycleStarNetError, LabelError
from cyclestarnet.fitting.conversion import values_of, weights_of
from cyclestarnet.labels import LabelSet, difference_unit, unit_of_label
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.parts import ModelParts
from cyclestarnet.pipeline.setup import FitSetup, labels_of_fit

__all__ = ["SurveySetup"]

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class SurveySetup:
    """The fits of a survey: one setup for all stars, or one for each.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    options : `~cyclestarnet.FitOptions`
        As they were chosen; columns are quantities of shape (n_stars,), NaN where there is no value.
    n_stars : int or None
        Values in each column; None if there is no column.
    label_set : `~cyclestarnet.LabelSet`
        Labels of all fits.
    common : `~cyclestarnet.pipeline.FitSetup` or None
        Of all stars, if there is no column.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.pipeline import FitOptions
    >>> from cyclestarnet.pipeline.columns import SurveySetup
    >>> options = FitOptions(fixed={"teff": [4500, 4600] * u.K})
    >>> setup = SurveySetup.of(CalibratedModel.from_pretrained(), options)
    >>> setup.of_star(1).options.fixed
    {'teff': <Quantity 4600. K>}
    """

    parts: ModelParts
    options: FitOptions
    n_stars: int | None
    label_set: LabelSet
    common: FitSetup | None

    @classmethod
    def of(cls, parts: ModelParts, options: FitOptions) -> SurveySetup:
        """Check options against a model.

        Parameters
        ----------
        parts : `~cyclestarnet.pipeline.ModelParts`
            The model.
        options : `~cyclestarnet.FitOptions`
            Values in ``fixed``, in ``start`` and in pairs of ``prior`` may have the shape (n_stars,).

        Returns
        -------
        `SurveySetup`

        Raises
        ------
        LabelError
            If a column has no label, a wrong unit or another length than the others, or no star can be fitted so.
        GridError, ValueError, TypeError
            As of `~cyclestarnet.pipeline.FitSetup.of`.

        Examples
        --------
        >>> from cyclestarnet import CalibratedModel
        >>> from cyclestarnet.pipeline import FitOptions
        >>> from cyclestarnet.pipeline.columns import SurveySetup
        >>> SurveySetup.of(CalibratedModel.from_pretrained(), FitOptions()).n_stars is None
        True
        """
        labels = labels_of_fit(parts.labels, options.motion)
        found = _Columns(labels, parts.labels)
        fixed, start = found.by_label("fixed", options.fixed), found.by_label("start", options.start)
        prior, lengths = found.in_prior(options.prior), found.lengths
        if not lengths:
            return cls(parts, options, None, labels, FitSetup.of(parts, options))
        if len(set(lengths.values())) > 1:
            raise LabelError(f"columns must have a value for each star, but their lengths are {lengths}")
        columns = replace(options, fixed=fixed, start=start, prior=prior)
        setup = cls(parts, columns, next(iter(lengths.values())), labels, None)
        setup._require_one()
        return setup

    def _require_one(self):
        """Raise what the first star has wrong, if no star can be fitted: then it is the options, and not a star."""
        first = None
        for k in range(self.n_stars or 0):
            try:
                self.of_star(k)
                return
            except CycleStarNetError as error:
                first = first or error
        if first is not None:
            raise first

    def of_star(self, k: int) -> FitSetup:
        """Setup of the fit of one star.

        Parameters
        ----------
        k : int
            Its number.

        Returns
        -------
        `~cyclestarnet.pipeline.FitSetup`
            As `~cyclestarnet.CalibratedModel.fit` would have it, with the values of this star.

        Raises
        ------
        LabelError
            If a value of this star is out of range.

        Examples
        --------
        ::

            setup.of_star(3).options.fixed["teff"]
        """
        if self.common is not None:
            return self.common
        options = self.options
        own = {name: _of_star(getattr(options, name), k) for name in ("fixed", "start")}
        return FitSetup.of(self.parts, replace(options, prior=_prior_of_star(options.prior, k), **own))

    def paired(self, stars: Iterable[Item]) -> Sequence[Item] | Iterator[Item]:
        """Check that there are as many stars as values in columns.

        Parameters
        ----------
        stars : sequence or iterator
            Stars of the survey.

        Returns
        -------
        sequence or iterator
            The same stars. An iterator raises as soon as it has more or fewer stars.

        Raises
        ------
        LabelError
            If a sequence has another number of stars.

        Examples
        --------
        ::

            stars = setup.paired(star_sources("spectra/apStar-*.fits"))
        """
        if self.n_stars is None:
            return stars
        if not isinstance(stars, Sequence):
            return self._counted(stars)
        if len(stars) != self.n_stars:
            raise self._mismatch(len(stars))
        return stars

    def _counted(self, stars):
        count = 0
        for count, star in enumerate(stars, 1):
            if count > self.n_stars:
                raise self._mismatch(f"{count} or more")
            yield star
        if count < self.n_stars:
            raise self._mismatch(count)

    def _mismatch(self, n_stars):
        return LabelError(
            f"columns of fixed, start and prior have {self.n_stars} values, but there are {n_stars} stars; "
            "give one value for all, or one for each in the order of the stars"
        )


class _Columns:
    """Turns values of labels into plain quantities, and notes which are columns, and of how many stars."""

    def __init__(self, labels: LabelSet, own: LabelSet):
        self.labels, self.own, self.lengths = labels, own, dict[str, int]()

    def by_label(self, argument: str, given: Any) -> dict[str, u.Quantity] | None:
        """Values of ``fixed`` or ``start``, by name: those of a table are columns."""
        if given is None:
            return None
        if hasattr(given, "colnames"):
            given = {name: given[name] for name in self.labels if name in given.colnames}
            if not given:
                raise LabelError(f"no column of the table {argument} is a label of {', '.join(self.labels)}")
        elif argument == "start":
            given = self.labels.known(given)
        for name in given:
            self.labels.index(name)
        return {name: self._column(f"{argument}[{name!r}]", name, value) for name, value in given.items()}

    def in_prior(self, prior: Any) -> Any:
        """A prior, with the pairs of its mappings as quantities; all else as it is."""
        if isinstance(prior, list | tuple):
            return [self.in_prior(factor) for factor in prior]
        if not isinstance(prior, Mapping):
            return prior
        pairs = {}
        for name, pair in prior.items():
            weights_of(self.own, name)  # raises if there is no such label
            try:
                mean, sigma = pair
            except (TypeError, ValueError):
                raise LabelError(f"the prior of '{name}' must be a pair (mean, sigma), but is {pair!r}") from None
            place = f"prior[{name!r}]"
            pairs[name] = (self._column(place, name, mean), self._column(place, name, sigma, difference_unit(name)))
        return pairs

    def _column(self, place, name, value, unit=None):
        """Values in the unit of the label; NaN and infinity stay, for the stars to say so."""
        if isinstance(value, list | tuple) and any(isinstance(item, u.Quantity) for item in value):
            value = u.Quantity(value)
        if np.ndim(value) == 0:
            return values_of(name, value) * (unit or unit_of_label(name))
        try:
            plain = floats_of(value)
        except (TypeError, ValueError) as error:
            raise LabelError(f"{place} must hold numbers, but is {value!r:.60}") from error
        if plain.ndim > 1:
            raise LabelError(f"{place} must be one value, or one for each star, but has the shape {plain.shape}")
        self.lengths[place] = len(plain)
        finite, given = np.isfinite(plain), getattr(value, "unit", None)
        filled = np.where(finite, plain, 1.0)
        converted = values_of(name, filled if given is None else filled * given)
        return np.where(finite, converted, plain) * (unit or unit_of_label(name))


def _of_star(columns, k):
    """Values of one star; None if none is known."""
    if columns is None:
        return None
    values = {name: value[k] if value.ndim else value for name, value in columns.items()}
    return {name: value for name, value in values.items() if not np.isnan(value.value)} or None


def _prior_of_star(prior, k):
    """The prior of one star: flat where its mean is not known."""
    if isinstance(prior, list):
        factors = [_prior_of_star(factor, k) for factor in prior]
        return [factor for factor in factors if factor is not None] or None
    if not isinstance(prior, Mapping):
        return prior
    means, sigmas = (_of_star({name: pair[part] for name, pair in prior.items()}, k) or {} for part in (0, 1))
    lacking = [name for name in means if name not in sigmas]
    if lacking:
        raise LabelError(f"the prior of '{lacking[0]}' has a mean, but no sigma; leave out both, or give both")
    return {name: (mean, sigmas[name]) for name, mean in means.items()} or None
