"""Lines that observed spectra have and synthetic ones lack: found, measured, and given to elements.

A trained translation turns synthetic spectra into observed-looking ones. What
it adds in narrow dips are lines that the synthetic models miss. Three questions
are kept apart:

* *Where?* In the mean difference of both domains over many label sets.
* *By chance?* As many dips are false as there are bumps of the same size, or
  dips in models that were trained with nothing missing.
* *Which element?* The one whose abundance changes the difference most: a regression over
  many stars, observed ones if there are any. They know what elements do also where the network has not learnt it.

O'Briain et al. (2021, Section 4.2) show that a translation restores lines that
were taken away, and which elements they are of; a catalogue is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np
from astropy.table import QTable
from numpy.typing import ArrayLike

from cyclestarnet.derivatives import require_alike
from cyclestarnet.files import write_atomically
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.lines.attribution import CORE, attribute
from cyclestarnet.lines.differences import FluxDifferences, model_differences, require_rows, star_differences
from cyclestarnet.lines.dips import dip_centre, false_discovery, find_dips, noise_of, without_background
from cyclestarnet.lines.elements import elements_of, label_of, symbol_of
from cyclestarnet.lines.protocols import Model
from cyclestarnet.spectra import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MissingLines", "find_missing_lines", "with_elements"]

BELIEVED = 0.05  # false-discovery rate up to which lines are kept out of fits
SHARE = 0.5  # of a line: what synthetic spectra must have of it, or beside it, to tell what is wrong


@dataclass(frozen=True, eq=False, repr=False)
class MissingLines:
    """A catalogue of lines that the synthetic domain lacks; see `find_missing_lines`.

    Parameters
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
        Of the spectra in which they are.
    difference : array, shape (n_pixels,)
        Mean of observed − synthetic flux, as a fraction of the continuum.
    noise : float
        1 σ of the difference where there is no line.
    derivatives : mapping of str to array, shape (n_pixels,)
        Mean difference of the derivatives, observed − synthetic, by elements such as ``"mg_h"``, in 1/dex.
        Default: empty, and no line has an ``agreement``.

    Examples
    --------
    What was found beyond doubt, and the strongest of it::

        lines = find_missing_lines(model, fdr=0.05)
        print(lines.at(0.01).strongest(20).table["wavelength", "depth", "kind", "element", "probability"])
        lines.write("lines.ecsv")
    """

    table: QTable
    grid: WavelengthGrid
    difference: np.ndarray
    noise: float
    derivatives: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def pixels(self) -> np.ndarray:
        """Pixels of all lines: array of bool, shape (n_pixels,)."""
        pixels = np.zeros(self.grid.n_pixels, dtype=bool)
        for start, stop in zip(self.table["start"], self.table["stop"], strict=True):
            pixels[start:stop] = True
        return pixels

    def at(self, fdr: float) -> MissingLines:
        """Choose the lines up to a false-discovery rate.

        Parameters
        ----------
        fdr : float
            The largest rate, 0 to 1; lines of more than the catalogue was made with are not in it.

        Returns
        -------
        `MissingLines`
            Of some 100 of them, 5 are false at ``fdr=0.05``.

        Examples
        --------
        A catalogue of all dips, for curves of precision, and the part of it to believe::

            everything = find_missing_lines(model, fdr=1)
            lines = everything.at(0.05)
        """
        return replace(self, table=self.table[self.table["fdr"] <= fdr])

    def strongest(self, n: int) -> MissingLines:
        """Choose the most significant lines.

        Parameters
        ----------
        n : int
            How many; all, if there are fewer.

        Returns
        -------
        `MissingLines`
            Still from blue to red.

        Examples
        --------
        To look at::

            lines.strongest(30).plot()
        """
        chosen = np.sort(np.argsort(-self.table["significance"])[:n])
        return replace(self, table=self.table[chosen])

    def plot(self, **options: Any) -> list[Axes]:
        """Plot the lines in the difference of observed and synthetic flux.

        Parameters
        ----------
        **options
            ``window``, ``labels``, ``truth`` and ``axes`` of `cyclestarnet.plotting.plot_missing_lines`.

        Returns
        -------
        list of `~matplotlib.axes.Axes`
            One per panel, from blue to red.

        Examples
        --------
        ::

            lines.strongest(100).plot(window=(15900, 16000))
        """
        from cyclestarnet.plotting.lines import plot_missing_lines

        return plot_missing_lines(self, **options)

    def write(self, path: str | PathLike) -> None:
        """Write the table to a file, atomically; `astropy.table.QTable.read` reads it.

        Parameters
        ----------
        path : path-like
            ``.csv`` for a table without units and without the columns that hold several values a line; any other
            name for ECSV. An existing file is replaced.

        Examples
        --------
        ::

            lines.write("lines.ecsv")
            table = QTable.read("lines.ecsv")
        """
        # columns of arrays can be read back from one row on
        plain = Path(path).suffix == ".csv"
        columns = [name for name, column in self.table.items() if column.ndim == 1 or (len(self) and not plain)]
        table, kind = self.table[columns], "ascii.csv" if plain else "ascii.ecsv"
        write_atomically(path, lambda temporary: table.write(temporary, format=kind, overwrite=True))

    def __repr__(self):
        believed = int((self.table["fdr"] <= 0.05).sum())
        return f"<MissingLines {len(self)}, {believed} of them at a false-discovery rate of 5 %>"

    def _repr_html_(self):
        return self.table._repr_html_()


def find_missing_lines(
    model: Model | Sequence[Model],
    *,
    labels: ArrayLike | None = None,
    stars: Spectrum | None = None,
    null: Model | Sequence[Model] = (),
    fdr: float = 0.05,
    n: int = 1_000,
    seed: int = 0,
    progress: bool = True,
) -> MissingLines:
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
        Draws of labels, if none are given. Default: 1000.
    seed : int, optional
        Of these draws.
    progress : bool, optional
        Whether to show progress bars.

    Returns
    -------
    `MissingLines`
        With the lines up to the rate, their kinds and their elements.

    Raises
    ------
    LabelError
        If no label is an element, or models have different labels.
    GridError
        If models have different grids.
    SpectrumError
        If no star can be fitted, or the stars are one.
    ValueError
        If there is no model, or ``fdr`` is not between 0 and 1.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.lines import find_missing_lines
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
        require_rows(stars)
    first, grid = models[0], models[0].grid
    require_alike(first, [*models[1:], *null])
    elements_of(first.labels)  # or an exception, before anything takes time
    members = [model_differences(first, labels=labels, n=n, seed=seed, progress=progress)]
    values = members[0].values
    members += [model_differences(one, labels=values, progress=progress) for one in models[1:]]
    own = replace(members[0], flux=np.mean([one.flux for one in members], axis=0))

    mean = own.mean()
    narrow = without_background(mean, grid.chips)
    noise = noise_of(narrow)
    dips = find_dips(narrow, grid.chips, noise)
    rate = false_discovery(dips.significance, *_chance(null, values, narrow, grid, noise, progress))
    dips, rate = dips[rate <= fdr], rate[rate <= fdr]
    table = _measured(dips, rate, narrow, grid, noise, members)
    table["synthetic_depth"] = 1 - own.synthetic[dips.peak]
    table["kind"] = _kinds(dips, narrow, own.synthetic)
    table.meta = {
        "models": [one.name for one in models],
        "n_labels": len(values),
        "false_discoveries_by": f"{len(null)} null models" if null else "bumps of the same size",
        "seed": seed,
    }
    catalogue = MissingLines(table, grid, mean, noise, _mean_derivatives(models, values) if len(table) else {})
    if stars is None:
        return with_elements(catalogue, own)
    ignore = catalogue.at(BELIEVED).pixels
    return with_elements(catalogue, star_differences(first, stars, ignore=ignore, progress=progress))


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


def _chance(null, values, narrow, grid, noise, progress):
    """Significances of what arises by chance, and in how many spectra: dips and bumps of null models, or own bumps."""
    if not null:
        return find_dips(-narrow, grid.chips, noise).significance, 1
    means = [model_differences(one, labels=values, progress=progress).mean() for one in null]
    bare = [without_background(mean, grid.chips) for mean in means]
    dips = [find_dips(sign * array, grid.chips, noise) for array in bare for sign in (1, -1)]
    return np.concatenate([found.significance for found in dips]), 2 * len(null)


def with_elements(lines: MissingLines, differences: FluxDifferences) -> MissingLines:
    """Give the lines of a catalogue to elements, by other evidence than it had.

    Parameters
    ----------
    lines : `MissingLines`
        A catalogue; it is not changed.
    differences : `FluxDifferences`
        Such as those of `star_differences`, on the grid of the catalogue.

    Returns
    -------
    `MissingLines`
        The same lines with other ``element``, ``probability``, ``elements``, ``slopes``,
        ``probabilities`` and ``agreement``.

    Raises
    ------
    LabelError
        If none of the labels is an element.

    Examples
    --------
    By observed stars, in place of the spectra of the model::

        lines = find_missing_lines(model)
        lines = with_elements(lines, star_differences(model, spectra, ignore=lines.pixels))
    """
    names = np.array([symbol_of(name) for name in elements_of(differences.label_set)])
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


def _kinds(dips, narrow, synthetic):
    """What the synthetic spectra have where the observed ones have more: nothing, a weaker line, or one beside it."""
    kinds = []
    for peak, width in zip(dips.peak, dips.width, strict=True):
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


def _measured(dips, rate, narrow, grid, noise, members):
    """Table of positions, depths and widths."""
    centres = np.array([dip_centre(narrow, grid, peak, noise) for peak in dips.peak]).reshape(-1, 2)
    steps = np.gradient(grid.wavelength.value)[dips.peak] if len(dips) else np.zeros(0)
    depth_err = np.full(len(dips), noise)
    if len(members) > 1:
        each = np.array([without_background(one.mean(), grid.chips)[dips.peak] for one in members])
        depth_err = np.hypot(noise, each.std(0, ddof=1) / np.sqrt(len(members)))
    return QTable(
        {
            "wavelength": centres[:, 0] * u.AA,
            "wavelength_err": centres[:, 1] * u.AA,
            "depth": -narrow[dips.peak],
            "depth_err": depth_err,
            "width": dips.width * steps * u.AA,
            "significance": dips.significance,
            "fdr": rate,
            "start": dips.start,
            "stop": dips.stop,
            "peak": dips.peak,
        }
    )


def _mean_derivatives(models, values, n=8):
    """Difference of the derivatives by each element, over some label sets and all models: arrays (n_pixels,)."""
    rows = np.linspace(0, len(values) - 1, min(n, len(values))).astype(int)
    where, names = models[0].labels.to_quantities(values[rows]), elements_of(models[0].labels)
    members = [one.derivative_spectra(where, domain="difference", names=names) for one in models]
    return {name: np.mean([one[name].value for one in members], axis=(0, 1)) for name in names}


def _agreement(table, difference, derivatives):
    """Correlation over each line's pixels of the flux difference with the derivative difference of its element."""
    agreement = np.full(len(table), np.nan)
    for k, row in enumerate(table):
        part = slice(max(row["start"] - CORE, 0), row["stop"] + CORE)
        slope = derivatives.get(label_of(row["element"]))
        if slope is not None and slope[part].std() and difference[part].std():
            agreement[k] = np.corrcoef(difference[part], slope[part])[0, 1]
    return agreement
