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
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import astropy.units as u
import numpy as np
from astropy.table import QTable
from scipy.ndimage import gaussian_filter1d, median_filter
from scipy.signal import find_peaks, peak_widths

from cyclestarnet.derivatives import require_alike
from cyclestarnet.files import write_atomically
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.lines.attribution import CORE, attribute, element_names
from cyclestarnet.lines.differences import as_list, label_sets, model_differences, require_rows, star_differences
from cyclestarnet.lines.features import elements_of

__all__ = ["MissingLines", "dip_centre", "find_missing_lines", "with_elements"]

log = logging.getLogger(__name__)

SMOOTHING = 0.8  # pixels, σ: half of APOGEE's resolution, so that a line stays one dip
BACKGROUND = 301  # pixels, over which the difference of two continua may change
LEAST_NOISE = 1e-6  # single precision knows no better
BELIEVED = 0.05  # false-discovery rate up to which lines are kept out of fits
SHARE = 0.5  # of a line: what synthetic spectra must have of it, or beside it, to tell what is wrong


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
    >>> from cyclestarnet.lines.missing import find_missing_lines
    >>> lines = find_missing_lines(CalibratedModel.from_pretrained(), n=32, progress=False)
    >>> lines.table["wavelength"].unit, lines.table.meta["elements"][:3]
    (Unit("Angstrom"), ['C', 'N', 'O'])
    """
    models, null = as_list("model", model), as_list("null", null)
    if not models:
        raise ValueError("model must be a trained model or several, but is empty")
    if not 0 <= fdr <= 1:
        raise ValueError(f"fdr is a share, from 0 to 1 (5 % is 0.05), but is {fdr}")
    if stars is not None:
        require_rows(stars)
    first = models[0]
    require_alike(first, [*models[1:], *null])
    elements_of(first.labels)  # or an exception, before anything takes time
    grid, labels = first.grid, label_sets(first, labels, n, seed)
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
    names = np.array(element_names(differences.labels))
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


