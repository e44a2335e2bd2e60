"""Lines that observed spectra have and synthetic ones lack: found, measured, and given to elements.

A trained translation turns synthetic spectra into observed-looking ones. What
it adds in narrow dips are lines that the synthetic models miss. Three questions
are kept apart:

* *Where?* In the mean difference of both domains over many label sets.
* *By chance?* As many dips are false as there are bumps of the same size, or
  dips in models that were trained with nothing missing.
* *Which element?* The one whose abundance changes the difference most: a regression over
  many stars, observed ones if there are any. They know what elements do also where the network has not learnt it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement

import astropy.units as u
import numpy as np
from astropy.table import QTable
from scipy.ndimage import gaussian_filter1d, median_filter
from scipy.signal import find_peaks, peak_widths
from scipy.stats import multivariate_normal, norm
from tqdm.auto import tqdm

from cyclestarnet.backend.checkpoint import write_atomically
from cyclestarnet.derivatives import require_alike, require_one_star
from cyclestarnet.exceptions import CycleStarNetWarning, GridError, LabelError, SpectrumError
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.lines import elements_of
from cyclestarnet.spectra import to_pixels

__all__ = [
    "FluxDifferences",
    "MissingLines",
    "Score",
    "attribute",
    "dip_centre",
    "find_missing_lines",
    "model_differences",
    "score_missing_lines",
    "star_differences",
    "with_elements",
]

log = logging.getLogger(__name__)

SMOOTHING = 0.8  # pixels, σ: half of APOGEE's resolution, so that a line stays one dip
BACKGROUND = 301  # pixels, over which the difference of two continua may change
LEAST_NOISE = 1e-6  # single precision knows no better
BELIEVED = 0.05  # false-discovery rate up to which lines are kept out of fits
CORE = 1  # pixels on either side of the peak that tell a line's depth
RIDGE = 3.0  # 1/dex: far more than any line has, for elements that do not vary
LINE, LEAST_LINE = 0.3, 0.02  # 1/dex: usual derivatives of an absorber's elements, in strong and in the weakest lines
BYSTANDER = 1 / 15  # of that: usual derivatives of all others
MOLECULES = (("C", "N"), ("C", "O"))  # CN, CO; that of OH is O, because H is no label
CREDIBLE = 0.95
SHARE = 0.5  # of a line: what synthetic spectra must have of it, or beside it, to tell what is wrong
LEAST_PER_TERM = 8  # spectra per coefficient of a regression
ROWS = 64


@dataclass(frozen=True, eq=False, repr=False)
class FluxDifferences:
    """Observed minus synthetic flux of many stars or label sets.

    Parameters
    ----------
    grid : `~cyclestarnet.WavelengthGrid`
    labels : `~cyclestarnet.LabelSet`
    values : array, shape (n, n_labels)
        Labels of the synthetic spectra.
    flux : array, shape (n, n_pixels)
        The differences; NaN where a pixel is masked.
    error : array, shape (n, n_pixels), optional
        Their errors, 1 σ.
    synthetic : array, shape (n_pixels,), optional
        Mean of the synthetic spectra.
    """

    grid: WavelengthGrid
    labels: LabelSet
    values: np.ndarray
    flux: np.ndarray
    error: np.ndarray | None = None
    synthetic: np.ndarray | None = None

    def __post_init__(self):
        expected = (len(self.values), self.grid.n_pixels)
        for name in ("flux", "error"):
            array = getattr(self, name)
            if array is not None and np.shape(array) != expected:
                raise GridError(f"{name} must have shape {expected}, a row per label set, but has {np.shape(array)}")
        if np.shape(self.values)[1:] != (len(self.labels),):
            raise LabelError(
                f"values must have a column for each of {len(self.labels)} labels: {np.shape(self.values)}"
            )

    def __len__(self):
        return len(self.values)

    def __repr__(self):
        return f"<FluxDifferences of {len(self)} spectra, {self.grid.n_pixels} pixels>"


def model_differences(model, *, labels=None, n=1_000, seed=0, progress=True):
    """What a translation adds to synthetic spectra.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
    labels : array, shape (n, n_labels), optional
        Where to look, in the units and order of ``model.labels``. Default: ``n``
        draws from the model's label prior, moved to the edge of the labels' range if they are beyond.
    n : int, optional
    seed : int or `numpy.random.Generator`, optional
    progress : bool, optional

    Returns
    -------
    `FluxDifferences`
    """
    labels = _label_sets(model, labels, n, seed)
    parts, total = [], np.zeros(model.grid.n_pixels)
    for start in tqdm(range(0, len(labels), ROWS), desc="differences", disable=not progress):
        where = model.labels.to_quantities(labels[start : start + ROWS])
        synthetic, observed = (model.predict(where, domain=domain).flux.value for domain in ("synthetic", "observed"))
        parts.append((observed - synthetic).astype(np.float32))
        total += synthetic.sum(0)
    mean = total / len(labels)
    return FluxDifferences(model.grid, model.labels, np.asarray(labels), np.concatenate(parts), synthetic=mean)


def _label_sets(model, labels, n, seed):
    """Labels (n, n_labels) as they were given, or draws from the model's prior."""
    if labels is None:
        if n < 1:
            raise ValueError(f"n must be 1 or more, but is {n}")
        labels = np.random.default_rng(seed).multivariate_normal(model.prior.mean, model.prior.covariance, n)
        return labels.clip(model.labels.lower, model.labels.upper)
    labels = np.atleast_2d(model.labels.to_array(labels) if isinstance(labels, Mapping) else np.asarray(labels))
    if labels.ndim != 2 or labels.shape[1] != len(model.labels) or not len(labels):
        raise LabelError(
            f"labels must have shape (n, {len(model.labels)}), a row per label set, but have {labels.shape}"
        )
    return labels


def _several(argument, given):
    """One model or several, as a list."""
    models = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for model in models:
        if not hasattr(model, "derivative_spectra"):
            raise TypeError(
                f"{argument} must be a CalibratedModel or several, but is {model!r:.60}; a name is read by "
                "CalibratedModel.from_pretrained, a file by CalibratedModel.load"
            )
    return models


def _require_rows(spectra):
    if not hasattr(spectra, "flux") or np.ndim(spectra.flux) != 2:
        shape = np.shape(spectra.flux) if hasattr(spectra, "flux") else f"a {type(spectra).__name__}"
        raise SpectrumError(
            f"stars must be one Spectrum with a row per star, flux of shape (n, n_pixels), but are {shape}"
        )


def star_differences(model, spectra, *, ignore=None, space="emulator", progress=True):
    """What observed stars have beyond the synthetic spectra of their own labels, which are fitted.

    Fitted with the label prior of the training, a star's labels are the means
    of their posterior. A regression on such means is not diluted by the
    labels' errors, as one on best-fitting labels would be.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
    spectra : `~specutils.Spectrum`, a row per star
        Normalised, on the model's grid, with an uncertainty.
    ignore : array of bool, shape (n_pixels,), optional
        Pixels that the fits must not use, such as those of lines already found.
    space : {"emulator", "observed"}, optional
        How to fit: with the synthetic spectra as they are (default), or translated.
    progress : bool, optional

    Returns
    -------
    `FluxDifferences`
        Of the stars that could be fitted.

    Raises
    ------
    SpectrumError
        If none could, or the spectra are one.
    """
    _require_rows(spectra)
    table = model.fit_many(spectra, space=space, ignore=ignore, progress=progress)
    values = np.column_stack([np.asarray(table[name].value, dtype=float) for name in model.labels])
    fitted = np.isfinite(values).all(1) & np.asarray(table["success"])
    values = values.clip(model.labels.lower, model.labels.upper)
    if not fitted.any():
        raise SpectrumError(f"none of {len(fitted)} stars could be fitted; of the first: {table['message'][0]}")
    rows, values = np.flatnonzero(fitted), values[fitted]
    flux, error = (np.empty((len(rows), model.grid.n_pixels), dtype=np.float32) for _ in range(2))
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        synthetic = model.predict(model.labels.to_quantities(values[part]), domain="synthetic").flux.value
        for k, (row, expected) in enumerate(zip(rows[part], synthetic, strict=True), start):
            pixels = to_pixels(spectra[int(row)], model.grid, recipe=model.recipe)
            good = pixels.ivar > 0
            flux[k] = np.where(good, pixels.flux - expected, np.nan)
            error[k] = np.where(good, pixels.ivar, 1.0) ** -0.5
    return FluxDifferences(model.grid, model.labels, values, flux, error)


# -- where ---------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Dips:
    """Narrow minima of a mean difference, by pixel."""

    peak: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    width: np.ndarray  # pixels, FWHM
    significance: np.ndarray


def _mean_difference(flux):
    """Mean over the spectra (n_pixels,), NaN left out; 0 where nobody has seen the pixel."""
    seen = np.isfinite(flux).sum(0)
    return np.where(seen, np.nansum(flux, axis=0, dtype=float) / np.maximum(seen, 1), 0.0)


def _without_background(mean, chips):
    """A mean difference without what is wider than lines: differences of continua."""
    parts = [mean[a:b] - median_filter(mean[a:b], min(BACKGROUND, b - a), mode="nearest") for a, b in chips]
    return np.concatenate(parts)


def _noise(narrow):
    """1 σ of what is no line in a difference, from the median of its size: lines are few."""
    return max(1.4826 * float(np.median(np.abs(narrow))), LEAST_NOISE)


def _dips(narrow, chips, noise):
    """All dips of a difference below zero, however small.

    What is above zero is cut off, or the space between two deep dips would
    be a high bump when bumps are looked for as dips of the other sign.
    """
    parts = []
    for low, high in chips:
        depth = gaussian_filter1d(-narrow[low:high], SMOOTHING, mode="nearest").clip(0)
        peaks, found = find_peaks(depth, prominence=0.0)
        smooth = peak_widths(depth, peaks, rel_height=0.5)[0]
        width = np.sqrt((smooth**2 - 8 * np.log(2) * SMOOTHING**2).clip(1))
        edges = peak_widths(depth, peaks, rel_height=0.8)[2:]
        start, stop = (np.rint(edge).astype(int) for edge in edges)
        parts.append((peaks + low, start + low, stop + low + 1, width, found["prominences"] / noise))
    return _Dips(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _false_discovery(significance, null, n_null):
    """Expected share of false ones among dips of this significance or more, by target and decoy; never below 1 / n."""
    order = np.argsort(-significance)
    found = np.arange(1, len(order) + 1)
    chance = (len(null) - np.searchsorted(np.sort(null), significance[order]) + 1) / n_null
    rate = np.empty(len(order))
    rate[order] = np.minimum.accumulate((chance / found)[::-1])[::-1].clip(0, 1)
    return rate


def dip_centre(mean, grid, peak, noise):
    """Return the wavelength of a dip, by the parabola through its deepest pixels, and its error.

    Parameters
    ----------
    mean : array, shape (n_pixels,)
        Difference of fluxes.
    grid : `~cyclestarnet.WavelengthGrid`
    peak : int
        Its deepest pixel.
    noise : float
        1 σ of the difference.

    Returns
    -------
    wavelength, error : float
        In Angstrom.
    """
    wavelength = grid.wavelength.value
    if any(peak in (start, stop - 1) for start, stop in grid.chips):  # a neighbour is missing
        return wavelength[peak], abs(wavelength[peak] - wavelength[peak + 1 if peak + 1 < len(mean) else peak - 1])
    left, middle, right = (-mean[peak + k] for k in (-1, 0, 1))
    curvature = left - 2 * middle + right
    step = (wavelength[peak + 1] - wavelength[peak - 1]) / 2
    if curvature >= 0:  # smoothing has moved the peak to a pixel that is none by itself
        return wavelength[peak], step
    shift = 0.5 * (left - right) / curvature
    slopes = np.array([0.5 - shift, 2 * shift, -0.5 - shift]) / curvature  # of the shift with the three depths
    shift = np.clip(shift, -1, 1)
    return wavelength[peak] + shift * step, min(float(np.linalg.norm(slopes)) * noise, 1.0) * step


# -- which element -------------------------------------------------------------------------
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
    def on(cls, values, labels):
        elements = elements_of(labels)
        columns = [labels.index(name) for name in elements]
        own = values[:, columns] - values[:, columns].mean(0)
        others = [values[:, k] for k, name in enumerate(labels) if k not in columns and name != "m_h"]
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


def _names(labels):
    """Elements among the labels, such as "Mg"."""
    return [name.removesuffix("_h").capitalize() for name in elements_of(labels)]


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


# -- the catalogue -------------------------------------------------------------------------
@dataclass(frozen=True, eq=False, repr=False)
class MissingLines:
    """A catalogue of lines that the synthetic domain lacks; see `find_missing_lines`.

    Attributes
    ----------
    table : `~astropy.table.QTable`
        A row per line, from blue to red. ``wavelength`` (vacuum) with
        ``wavelength_err``; ``depth`` of the mean spectrum below what is around, as a fraction of the
        continuum, with ``depth_err``; ``synthetic_depth`` at the same place; ``kind``:
        "missing", "weak" if synthetic spectra have a line there whose depth is half of
        ``depth`` or more, or "shifted" if they have too much just beside it;
        ``width`` (FWHM, 1 pixel at least); ``significance``, the
        prominence of the dip over the noise of the mean difference; ``fdr``, the
        expected share of false lines among those of this significance or more;
        ``element``, the likeliest, with its ``probability``; ``elements``, the
        names of all that may be needed; ``agreement``, the correlation over
        the line's pixels of the flux difference with the difference of the
        element's derivatives; ``start``, ``stop`` and ``peak``, its pixels;
        ``slopes`` and ``probabilities`` of all elements in ``meta["elements"]``.
    grid : `~cyclestarnet.WavelengthGrid`
    difference : array, shape (n_pixels,)
        Mean of observed − synthetic flux.
    noise : float
        1 σ of the difference where there is no line.
    derivatives : mapping of str to array, shape (n_pixels,)
        Mean difference of the derivatives, observed − synthetic, by elements such as ``"mg_h"``, in 1/dex.
    """

    table: QTable
    grid: WavelengthGrid
    difference: np.ndarray
    noise: float
    derivatives: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self):
        return len(self.table)

    @property
    def pixels(self):
        """Pixels of all lines: array of bool, shape (n_pixels,)."""
        pixels = np.zeros(self.grid.n_pixels, dtype=bool)
        for start, stop in zip(self.table["start"], self.table["stop"], strict=True):
            pixels[start:stop] = True
        return pixels

    def at(self, fdr):
        """The lines with a false-discovery rate of at most ``fdr``, as another `MissingLines`."""
        return replace(self, table=self.table[self.table["fdr"] <= fdr])

    def strongest(self, n):
        """The ``n`` most significant lines, as another `MissingLines`."""
        chosen = np.sort(np.argsort(-self.table["significance"])[:n])
        return replace(self, table=self.table[chosen])

    def write(self, path):
        """Write the table to an ECSV file, atomically; `astropy.table.QTable.read` reads it.

        Parameters
        ----------
        path : path-like
            An existing file is replaced.
        """
        # columns of arrays can be read back from one row on
        columns = [name for name, column in self.table.items() if len(self) or column.ndim == 1]
        table = self.table[columns]
        write_atomically(path, lambda temporary: table.write(temporary, format="ascii.ecsv", overwrite=True))

    def __repr__(self):
        believed = int((self.table["fdr"] <= 0.05).sum())
        return f"<MissingLines {len(self)}, {believed} of them at a false-discovery rate of 5 %>"

    def _repr_html_(self):
        return self.table._repr_html_()


def find_missing_lines(model, *, labels=None, stars=None, null=(), fdr=0.05, n=1_000, seed=0, progress=True):
    """Find lines that observed spectra have and synthetic ones lack.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel` or sequence of them
        Trained. Several, such as of several seeds, are averaged, which
        leaves less of what each has made up.
    labels : array, shape (n, n_labels), optional
        Where to compare the domains, as for `model_differences`. Default: ``n`` draws
        from the label prior of the first model.
    stars : `~specutils.Spectrum`, a row per star, optional
        Observed spectra, normalised and on the model's grid, 500 or more. They
        are fitted, and tell which element makes a line. Without them the
        model's own spectra tell, of which a network that has not learnt what single
        elements do knows less.
    null : sequence of `~cyclestarnet.CalibratedModel`, optional
        Models that were trained in the same way where nothing was missing:
        their dips and bumps are what arises by chance. Default: the bumps of ``model``, as
        many of which arise by chance as dips, if synthetic lines are not too strong.
    fdr : float, optional
        Lines up to this false-discovery rate are attributed to elements and
        returned; 1 is all, most of them false.
    n : int, optional
        Draws of labels.
    seed : int, optional
    progress : bool, optional

    Returns
    -------
    `MissingLines`

    Raises
    ------
    LabelError
        If no label is an element, or models have different labels.
    GridError
        If models have different grids.
    SpectrumError
        If no star can be fitted.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.missing import find_missing_lines
    >>> lines = find_missing_lines(CalibratedModel.from_pretrained(), n=32, progress=False)
    >>> lines.table["wavelength"].unit, lines.table.meta["elements"][:3]
    (Unit("Angstrom"), ['C', 'N', 'O'])
    """
    models, null = _several("model", model), _several("null", null)
    if not models:
        raise ValueError("model must be a trained model or several, but is empty")
    if not 0 <= fdr <= 1:
        raise ValueError(f"fdr is a share, from 0 to 1 (5 % is 0.05), but is {fdr}")
    if stars is not None:
        _require_rows(stars)
    first = models[0]
    require_alike(first, [*models[1:], *null])
    elements_of(first.labels)  # or an exception, before anything takes time
    grid, labels = first.grid, _label_sets(first, labels, n, seed)
    several = [model_differences(one, labels=labels, progress=progress) for one in models]
    members = [one.flux for one in several]
    own = replace(several[0], flux=np.mean(members, axis=0))
    mean = _mean_difference(own.flux)
    narrow = _without_background(mean, grid.chips)
    noise = _noise(narrow)
    found = _dips(narrow, grid.chips, noise)
    if null:
        bare = [_mean_difference(model_differences(one, labels=labels, progress=progress).flux) for one in null]
        bare = [_without_background(array, grid.chips) for array in bare]
        chance = np.concatenate(
            [_dips(sign * array, grid.chips, noise).significance for array in bare for sign in (1, -1)]
        )
        rate = _false_discovery(found.significance, chance, 2 * len(null))
    else:
        rate = _false_discovery(found.significance, _dips(-narrow, grid.chips, noise).significance, 1)
    kept = np.flatnonzero(rate <= fdr)
    lines = _Dips(*(getattr(found, name)[kept] for name in found.__dataclass_fields__))
    table = _measured(lines, rate[kept], narrow, grid, noise, members)
    catalogue = MissingLines(table, grid, mean, noise, _mean_derivatives(models, labels) if len(table) else {})
    catalogue.table["synthetic_depth"] = 1 - own.synthetic[lines.peak]
    catalogue.table["kind"] = _kinds(lines, narrow, own.synthetic)
    catalogue.table.meta = {
        "models": [one.name for one in models],
        "n_labels": len(labels),
        "false_discoveries_by": f"{len(null)} null models" if null else "bumps of the same size",
        "seed": seed,
    }
    evidence = (
        own
        if stars is None
        else star_differences(first, stars, ignore=catalogue.at(BELIEVED).pixels, progress=progress)
    )
    return with_elements(catalogue, evidence)


def with_elements(lines, differences):
    """Give the lines of a catalogue to elements, by other evidence than it had.

    Parameters
    ----------
    lines : `MissingLines`
    differences : `FluxDifferences`
        Such as those of `star_differences`.

    Returns
    -------
    `MissingLines`
    """
    names = np.array(_names(differences.labels))
    slopes, probabilities, sets = attribute(differences, lines.table["peak"])
    table = lines.table.copy()
    element = names[probabilities.argmax(1)] if len(table) else np.zeros(0, dtype=names.dtype)
    table["element"] = element
    table["probability"] = probabilities.max(1, initial=0.0)
    table["elements"] = np.array([" ".join(names[chosen]) for chosen in sets], dtype=str)
    table["slopes"] = slopes / u.dex
    table["probabilities"] = probabilities
    table.meta["elements"] = names.tolist()
    table.meta["elements_by"] = f"{len(differences)} {'label sets' if differences.error is None else 'observed stars'}"
    table["agreement"] = _agreement(table, lines.difference, lines.derivatives)
    return replace(lines, table=table)


def _kinds(lines, narrow, synthetic):
    """What the synthetic spectra have where the observed ones have more: nothing, a weaker line, or one beside it."""
    kinds = []
    for peak, width in zip(lines.peak, lines.width, strict=True):
        reach = max(2, int(np.ceil(2 * width)))
        near = slice(max(peak - reach, 0), peak + reach + 1)
        depth = -narrow[peak]
        core = 1 - synthetic[max(peak - CORE, 0) : peak + CORE + 1].min()
        shoulder = 1 - synthetic[near].max()
        if narrow[near].max() > SHARE * depth:
            kinds.append("shifted")
        elif core - shoulder > SHARE * depth and 1 - synthetic[near].min() == core:
            kinds.append("weak")
        else:
            kinds.append("missing")
    return np.array(kinds, dtype="U7")


def _measured(lines, rate, narrow, grid, noise, members):
    """Table of positions, depths and widths."""
    centres = np.array([dip_centre(narrow, grid, peak, noise) for peak in lines.peak]).reshape(-1, 2)
    steps = np.gradient(grid.wavelength.value)[lines.peak] if len(lines.peak) else np.zeros(0)
    depth_err = np.full(len(lines.peak), noise)
    if len(members) > 1:
        each = np.array([_without_background(_mean_difference(m), grid.chips)[lines.peak] for m in members])
        depth_err = np.hypot(noise, each.std(0, ddof=1) / np.sqrt(len(members)))
    return QTable(
        {
            "wavelength": centres[:, 0] * u.AA,
            "wavelength_err": centres[:, 1] * u.AA,
            "depth": -narrow[lines.peak],
            "depth_err": depth_err,
            "width": lines.width * steps * u.AA,
            "significance": lines.significance,
            "fdr": rate,
            "start": lines.start,
            "stop": lines.stop,
            "peak": lines.peak,
        }
    )


def attribute(differences, peaks):
    """Tell which element makes lines, by a regression of their depth over many stars.

    Parameters
    ----------
    differences : `FluxDifferences`
    peaks : sequence of int
        Pixels of the lines.

    Returns
    -------
    slopes : array, shape (n_lines, n_elements)
        Derivatives of the flux with respect to the elements, in 1/dex.
    probabilities : array, shape (n_lines, n_elements)
        Of each element to absorb; of molecules, in proportion to the slopes.
    sets : array of bool, shape (n_lines, n_elements)
        Elements of the absorbers that hold 95 % of the probability.

    Notes
    -----
    The depths are regressed on all elements at once, with a polynomial in
    the other labels and in the mean abundance: cubic, or of lower degree if there are less than
    8 spectra per coefficient. Then single elements and the molecules CN and CO are compared
    as hypotheses, all equally likely beforehand: an absorber has a slope of
    some 0.3 per dex, all others some 0.02. So lines of slopes below some 0.05 per dex are given to no
    element with confidence, however precise their slopes are.
    """
    absorbers = _absorbers(_names(differences.labels))
    regression = _Regression.on(differences.values, differences.labels) if len(peaks) else None
    found = [], [], []
    for peak in peaks:
        core = slice(max(peak - CORE, 0), peak + CORE + 1)
        with np.errstate(invalid="ignore"):
            depth = -differences.flux[:, core].astype(float).mean(1)  # NaN where any of the pixels is masked
            error = differences.error
            variance = (
                None if error is None else (error[:, core].astype(float) ** 2).sum(1) / (core.stop - core.start) ** 2
            )
        slopes, covariance = regression.slopes(depth, variance)
        size = np.nanmean(depth) if np.isfinite(depth).any() else 0.0
        for column, value in zip(found, (-slopes, *_attribute(slopes, covariance, size, absorbers)), strict=True):
            column.append(value)
    shape = (-1, len(elements_of(differences.labels)))
    slopes, probabilities, sets = (
        np.array(column, dtype=t).reshape(shape) for column, t in zip(found, (float, float, bool), strict=True)
    )
    return slopes, probabilities, sets


def _mean_derivatives(models, labels, n=8):
    """Difference of the derivatives by each element, over some label sets and all models: arrays (n_pixels,)."""
    rows = np.linspace(0, len(labels) - 1, min(n, len(labels))).astype(int)
    where, names = models[0].labels.to_quantities(labels[rows]), elements_of(models[0].labels)
    members = [one.derivative_spectra(where, domain="difference", names=names) for one in models]
    return {name: np.mean([one[name].value for one in members], axis=(0, 1)) for name in names}


def _agreement(table, difference, derivatives):
    """Correlation over each line's pixels of the flux difference with the derivative difference of its element."""
    agreement = np.full(len(table), np.nan)
    for k, row in enumerate(table):
        part = slice(max(row["start"] - CORE, 0), row["stop"] + CORE)
        slope = derivatives.get(f"{row['element'].lower()}_h")
        if slope is not None and slope[part].std() and difference[part].std():
            agreement[k] = np.corrcoef(difference[part], slope[part])[0, 1]
    return agreement


# -- against the truth ---------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Score:
    """How a catalogue does against a known mask.

    Attributes
    ----------
    fdr, precision, recall : array, shape (n_lines,)
        As the lines are taken one by one, the most significant first.
        Precision is the share of lines whose peak is a masked pixel or its
        neighbour, recall the share of masked features in which there is the peak of a line.
    chance : float
        Precision of lines at random: the share of masked pixels and their neighbours.
    element_accuracy : float
        Of masked features other than of C, N and O in which there is a line: how often the
        likeliest element of the line nearest to its peak is that of the feature.
    set_accuracy : float
        Of masked features of C, N and O: how often its element is one of that line's ``elements``.
    set_size : float
        Mean number of elements in these sets.
    n_element, n_set : int
        Features that the two rest on.
    steepest_accuracy : float
        Of lines at masked pixels: how often the likeliest element is the one that truly has the
        steepest derivative there, whatever the features say; NaN if the truth was not given.
    """

    fdr: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    chance: float
    element_accuracy: float
    set_accuracy: float
    set_size: float
    n_element: int
    n_set: int
    steepest_accuracy: float = np.nan

    def at(self, fdr):
        """Precision and recall of the lines up to a false-discovery rate."""
        n = int((self.fdr <= fdr).sum())
        return (float(self.precision[n - 1]), float(self.recall[n - 1])) if n else (np.nan, 0.0)


def score_missing_lines(lines, mask, *, truth=None, tolerance=1, fdr=0.05):
    """Score a catalogue against the mask that the synthetic domain had.

    Parameters
    ----------
    lines : `MissingLines`
        With all lines, ``fdr=1``, for the whole curve of precision and recall.
    mask : `~cyclestarnet.lines.FeatureMask`
    truth : `~cyclestarnet.derivatives.DerivativeSpectra`, optional
        Of one star, with nothing masked.
    tolerance : int, optional
        Pixels by which a line may miss.
    fdr : float, optional
        Elements are scored for lines up to this rate.

    Returns
    -------
    `Score`
    """
    if len(mask.pixels) != lines.grid.n_pixels:
        raise GridError(f"the mask is of {len(mask.pixels)} pixels, but the lines of {lines.grid.n_pixels}")
    if truth is not None:
        require_one_star(truth, "the truth must be that of")
    table = lines.table[np.argsort(-lines.table["significance"], kind="stable")]
    peaks = np.asarray(table["peak"], dtype=int)
    masked = np.convolve(mask.pixels, np.ones(2 * tolerance + 1), mode="same") > 0
    true, believed = masked[peaks], np.asarray(table["fdr"]) <= fdr
    first = np.full(len(mask.masked), len(table))  # rank of the first line in each feature
    single, sets, sizes, steepest = [], [], [], []
    for k, feature in enumerate(mask.masked):
        inside = (peaks >= feature.start - tolerance) & (peaks < feature.stop + tolerance)
        first[k] = np.argmax(inside) if inside.any() else len(table)
        known = np.flatnonzero(inside & believed)
        if len(known):
            row = table[known[np.argmin(np.abs(peaks[known] - feature.peak))]]
            if feature.element in {"C", "N", "O"}:
                sets.append(feature.element in row["elements"].split())
                sizes.append(len(row["elements"].split()))
            else:
                single.append(row["element"] == feature.element)
    if truth is not None:
        for row in table[true & believed]:
            core = slice(max(row["peak"] - CORE, 0), row["peak"] + CORE + 1)
            slopes = {name: truth[name].value[core].mean() for name in elements_of(truth.names)}
            steepest.append(f"{row['element'].lower()}_h" == min(slopes, key=slopes.get))
    count = np.arange(1, len(table) + 1)
    recall = np.searchsorted(np.sort(first), count - 1, side="right") / max(len(first), 1)
    means = [float(np.mean(values)) if values else np.nan for values in (single, sets, sizes, steepest)]
    curves = np.asarray(table["fdr"]), np.cumsum(true) / count, recall
    return Score(*curves, float(masked.mean()), *means[:3], len(single), len(sets), means[3])
