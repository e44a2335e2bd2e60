"""Which elements make the lines of a catalogue."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from scipy.stats import multivariate_normal, norm

from cyclestarnet.exceptions import CycleStarNetWarning
from cyclestarnet.labels import LabelSet
from cyclestarnet.lines.differences import FluxDifferences
from cyclestarnet.lines.elements import elements_of, symbol_of

__all__ = ["attribute"]

CORE = 1  # pixels on either side of the peak that tell a line's depth
RIDGE = 3.0  # 1/dex: far more than any line has, for elements that do not vary
LINE, LEAST_LINE = 0.3, 0.02  # 1/dex: usual derivatives of an absorber's elements, in strong and in the weakest lines
BYSTANDER = 1 / 15  # of that: usual derivatives of all others
MOLECULES = (("C", "N"), ("C", "O"))  # CN, CO; that of OH is O, because H is no label
CREDIBLE = 0.95
LEAST_PER_TERM = 8  # spectra per coefficient of a regression


@dataclass(frozen=True, eq=False)
class _Regression:
    """Least squares of depths on labels: what each element does while everything else is held.

    Line strengths bend with temperature, gravity and metallicity far more
    than an element's own small changes show; a polynomial in those takes it up,
    and each element is left with the slope of its own.
    """

    design: np.ndarray  # (n, 1 + n_elements + n_terms)
    n_elements: int

    @classmethod
    def on(cls, values: np.ndarray, label_set: LabelSet) -> _Regression:
        elements = elements_of(label_set)
        columns = [label_set.index(name) for name in elements]
        own = values[:, columns] - values[:, columns].mean(0)
        others = [values[:, k] for k, name in enumerate(label_set) if k not in columns and name != "m_h"]
        shape = np.column_stack([*others, own.mean(1)])
        spread = shape.std(0)
        shape = (shape - shape.mean(0))[:, spread > 0] / spread[spread > 0]
        abundance = (int((spread[:-1] > 0).sum()),)  # the last, whose linear term is the sum of the elements'
        for degree in (3, 2, 1):
            terms = [
                shape[:, list(powers)].prod(1)
                for order in range(1, degree + 1)
                for powers in combinations_with_replacement(range(shape.shape[1]), order)
                if powers != abundance
            ]
            needed = LEAST_PER_TERM * (1 + len(elements) + len(terms))
            if len(values) >= needed or degree == 1:
                if len(values) < needed / 2:
                    warnings.warn(
                        f"{len(values)} spectra hardly tell the elements of lines; {needed} or more do",
                        CycleStarNetWarning,
                        stacklevel=3,
                    )
                return cls(np.column_stack([np.ones(len(values)), own, *terms]), len(elements))

    def slopes(self, depth, variance):
        """Derivatives of a depth (n,) by the elements (n_elements,), in 1/dex, and their covariance."""
        seen = np.isfinite(depth)
        freedom = int(seen.sum()) - self.design.shape[1]
        if freedom < 1:  # too few have seen it
            return np.zeros(self.n_elements), np.diag(np.full(self.n_elements, RIDGE**2))
        design, depth = self.design[seen], depth[seen]
        precision = np.zeros(design.shape[1])
        precision[1 : 1 + self.n_elements] = 1.0
        scatter = max(float(np.var(depth) if variance is None else np.mean(variance[seen])), 1e-10)
        for _ in range(3):  # what the polynomial cannot follow adds to the noise
            weight = 1 / (scatter if variance is None else np.maximum(variance[seen], 1e-12) + scatter)
            weight = np.broadcast_to(weight, depth.shape)
            normal = (design * weight[:, None]).T @ design + np.diag(precision / RIDGE**2)
            normal += 1e-9 * np.diag(np.diag(normal))  # a label that does not vary
            coefficients = np.linalg.solve(normal, (design * weight[:, None]).T @ depth)
            left = (depth - design @ coefficients) ** 2 * len(depth) / freedom
            scatter = max(float(np.mean(left if variance is None else left - variance[seen])), 1e-10)
        own = slice(1, 1 + self.n_elements)
        return coefficients[own], np.linalg.inv(normal)[own, own]


def _absorbers(names):
    """What may make a line: each element by itself, and the molecules of two."""
    pairs = [tuple(names.index(name) for name in pair) for pair in MOLECULES if set(pair) <= set(names)]
    return [(k,) for k in range(len(names))] + pairs


def _attribute(slopes, covariance, depth, absorbers):
    """Compare what may make a line: evidence of each for the derivatives (n_elements,) of its depth.

    Under each hypothesis the elements of the absorber have derivatives like
    those of lines, and positive ones, and all others such as bystanders have:
    what lies in the wings, or what the regression got wrong.

    Returns
    -------
    probability : array, shape (n_elements,)
        A molecule's is shared in proportion to the derivatives.
    needed : array of bool, shape (n_elements,)
        Elements of the likeliest absorbers that hold 95 % together.
    """
    line = np.clip(np.log(10) * depth, LEAST_LINE, LINE)  # the depth of a weak line is proportional to the abundance
    evidence, means = np.empty(len(absorbers)), np.empty((len(absorbers), len(slopes)))
    for k, members in enumerate(absorbers):
        members = list(members)
        prior = np.full(len(slopes), (BYSTANDER * line) ** 2)
        prior[members] = line**2
        gain = prior[:, None] * np.linalg.inv(covariance + np.diag(prior))
        means[k], posterior = gain @ slopes, np.diag(prior) - gain * prior
        evidence[k] = multivariate_normal.logpdf(slopes, cov=covariance + np.diag(prior))
        evidence[k] += norm.logcdf(means[k][members] / np.sqrt(posterior.diagonal()[members])).sum()
        evidence[k] += np.log(2 ** len(members))  # the prior has no derivatives of the other sign
    weight = np.exp(evidence - evidence.max())
    weight /= weight.sum()
    probability, needed = np.zeros(len(slopes)), np.zeros(len(slopes), dtype=bool)
    order = np.argsort(-weight)
    for rank, k in enumerate(order):
        members = list(absorbers[k])
        share = means[k][members].clip(1e-9)
        probability[members] += weight[k] * share / share.sum()
        needed[members] |= weight[order[:rank]].sum() < CREDIBLE
    return probability, needed


def attribute(
    differences: FluxDifferences, peaks: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tell which element makes lines, by a regression of their depth over many stars.

    Parameters
    ----------
    differences : `FluxDifferences`
        Of some hundred spectra or more, of different labels. A spectrum in which a pixel of a line is
        NaN does not count for this line.
    peaks : sequence of int
        Pixels of the deepest points of the lines. Depths are means of three pixels around them.

    Returns
    -------
    slopes : array, shape (n_lines, n_elements)
        Derivatives of the flux with respect to the elements, in 1/dex; negative where an element absorbs.
    probabilities : array, shape (n_lines, n_elements)
        Of each element to absorb; of molecules, in proportion to the slopes.
    sets : array of bool, shape (n_lines, n_elements)
        Elements of the absorbers that hold 95 % of the probability.

    Raises
    ------
    LabelError
        If none of the labels is an element.

    Warns
    -----
    CycleStarNetWarning
        If there are so few spectra that even a linear regression hardly tells elements apart.

    Notes
    -----
    The depths are regressed on all elements at once, with a polynomial in
    the other labels and in the mean abundance: cubic, or of lower degree if there are less than
    8 spectra per coefficient. Then single elements and the molecules CN and CO are compared
    as hypotheses, all equally likely beforehand: an absorber has a slope of
    some 0.3 per dex, all others some 0.02. So lines of slopes below some 0.05 per dex are given to no
    element with confidence, however precise their slopes are.

    O'Briain et al. (2021, Section 4.2) read elements off the derivatives of the translated spectra of a
    single star; `cyclestarnet.lines.mock_study.compare_attributions` compares both ways.

    Examples
    --------
    A line of magnesium, three pixels wide, in 200 stars:

    >>> import astropy.units as u
    >>> import numpy as np
    >>> from cyclestarnet import LabelSet, WavelengthGrid
    >>> from cyclestarnet.lines import FluxDifferences, attribute
    >>> rng = np.random.default_rng(1)
    >>> values = rng.normal(0, 0.2, (200, 2))
    >>> flux = rng.normal(0, 0.01, (200, 7))
    >>> flux[:, 2:5] -= 0.1 + 0.3 * values[:, [0]]
    >>> grid = WavelengthGrid((1500 + 0.02 * np.arange(7)) * u.nm)
    >>> label_set = LabelSet(("mg_h", "fe_h"), [-1, -1], [1, 1])
    >>> slopes, probabilities, sets = attribute(FluxDifferences(grid, label_set, values, flux), peaks=[3])
    >>> probabilities.round(2), sets
    (array([[1., 0.]]), array([[ True, False]]))
    """
    elements = elements_of(differences.label_set)
    absorbers = _absorbers([symbol_of(name) for name in elements])
    regression = _Regression.on(differences.values, differences.label_set) if len(peaks) else None
    found = [], [], []
    for peak in peaks:
        depth, variance = _depths(differences, peak)
        slopes, covariance = regression.slopes(depth, variance)
        size = np.nanmean(depth) if np.isfinite(depth).any() else 0.0
        for column, value in zip(found, (-slopes, *_attribute(slopes, covariance, size, absorbers)), strict=True):
            column.append(value)
    slopes, probabilities, sets = (
        np.array(column, dtype=kind).reshape(-1, len(elements))
        for column, kind in zip(found, (float, float, bool), strict=True)
    )
    return slopes, probabilities, sets


def _depths(differences, peak):
    """Depth of a line in each spectrum (n,), NaN where any of its pixels is masked, and its variance or None."""
    core = slice(max(peak - CORE, 0), peak + CORE + 1)
    with np.errstate(invalid="ignore"):
        depth = -differences.flux[:, core].astype(float).mean(1)
        if differences.error is None:
            return depth, None
        return depth, (differences.error[:, core].astype(float) ** 2).sum(1) / (core.stop - core.start) ** 2
