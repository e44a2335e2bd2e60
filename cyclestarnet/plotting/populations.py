"""Many stars at once: maps of both domains, and their labels.

S1 is O'Briain et al. (2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike

from cyclestarnet.blanks import floats_of
from cyclestarnet.exceptions import LabelError
from cyclestarnet.labels import unit_of_label
from cyclestarnet.plotting.axes import DOMAIN_STYLES, NEUTRAL, label_text, new_axes, plain_log_ticks, pyplot, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_embeddings", "plot_kiel"]

COLORS, METALLICITIES = "viridis", ("m_h", "fe_h")
COLOR_TEXTS = {"reduced_chi2": "reduced χ²", "reduced_chi2_total": "reduced χ², with the model's scatter", "snr": "S/N"}


def plot_embeddings(
    maps: Mapping[str, tuple[ArrayLike, ArrayLike]], *, axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Plot maps of synthetic and observed stars side by side (S1, Figure 10).

    Where the domains are translated well, their spectra lie apart, and their shared latents are mixed.

    Parameters
    ----------
    maps : mapping of str to (array, array), shapes (n_synth, 2) and (n_obs, 2)
        Places of the stars of both domains, by the title of the panel; see `~cyclestarnet.training.alignment.tsne`.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        One per map. Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        One per map. Axes of such maps have no meaning, and no numbers.

    Raises
    ------
    ValueError
        If there is no map, places are not (n, 2), or there are not as many axes as maps.

    Examples
    --------
    Of a model, with spectra of its emulator and of observed stars::

        synthetic = model.encode(model.predict(labels, domain="synthetic"), domain="synthetic")
        observed = model.encode(stars)
        plot_embeddings({
            "spectra": tsne(synthetic.flux, observed.flux, seed=0),
            "shared latents": tsne(synthetic.shared_latent, observed.shared_latent, seed=0),
        })
    """
    if not maps:
        raise ValueError("there are no maps to plot")
    shapes = {name: [np.shape(places) for places in pair] for name, pair in maps.items()}
    wrong = {name: own for name, own in shapes.items() if any(len(shape) != 2 or shape[1] != 2 for shape in own)}
    if wrong:
        raise ValueError(f"places must have the shape (n, 2), but have {wrong}")
    if axes is None:
        axes = new_axes(1, len(maps), figsize=(4.6 * len(maps), 4.6))
    axes = list(np.ravel(axes))
    if len(axes) != len(maps):
        raise ValueError(f"axes must be one per map, {len(maps)}, but are {len(axes)}")
    for ax, (title, pair) in zip(axes, maps.items(), strict=True):
        # Together in a random order: which domain lies on top must not depend on which is drawn last.
        places = np.concatenate([np.asarray(part, dtype=float) for part in pair])
        colors = np.repeat([color for _, color in DOMAIN_STYLES.values()], [len(part) for part in pair])
        order = np.random.default_rng(0).permutation(len(places))
        ax.scatter(*places[order].T, c=colors[order], s=12, alpha=0.7, lw=0)
        for name, color in DOMAIN_STYLES.values():
            ax.plot([], [], "o", color=color, ms=4, label=name)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=10, loc="left")
    axes[0].legend(frameon=False, fontsize=9, ncols=2, loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=0.2)
    return axes


def plot_kiel(
    tables: Table | Mapping[str, Table],
    *,
    color: str = "reduced_chi2",
    bins: int | None = None,
    isochrones: Table | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Plot Kiel diagrams of stars side by side: effective temperature and gravity, coloured (S1, Figures 9 and 11).

    All panels have the same axes and the same colours.

    Parameters
    ----------
    tables : `~astropy.table.Table`, or mapping of str to such
        A panel each, with its title: tables of fits in several spaces, or a catalogue. Columns ``teff`` and
        ``logg``, in K and dex if they have no unit. Rows of stars without a fit do not count.
    color : str, optional
        Column that gives the colour: ``"reduced_chi2"`` (default), whose colours are logarithmic, or a label such as
        ``"fe_h"``. Stars of tables without it are grey.
    bins : int, optional
        Cells along both axes; each shows the median of its stars. Default: the stars themselves.
    isochrones : `~astropy.table.Table`, optional
        Columns ``teff`` and ``logg``, and ``age`` and ``m_h`` if there are several, such as of
        `~cyclestarnet.mist_isochrones`: their points in order. They have the colour of their metallicity where that is
        what colours tell. Default: none.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        One per table. Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        One per table; hot stars are on the left, and dwarfs at the bottom.

    Raises
    ------
    LabelError
        If a table lacks ``teff`` or ``logg``, or has them in another unit, or no table has the column of the colour.
    ValueError
        If a table has no star with finite labels, there are not as many axes as tables, or ``bins`` is less than 1.

    Examples
    --------
    Fits before and after the translation, with isochrones of 10 Gyr::

        tables = {space: model.fit_many(stars, space=space) for space in ("emulator", "observed")}
        lines = mist_isochrones(10 * u.Gyr, [-1.0, -0.5, 0.0, 0.4])
        plot_kiel(tables, isochrones=lines)[0].figure.savefig("kiel.png")
    """
    tables = {"": tables} if isinstance(tables, Table) else dict(tables)
    if bins is not None and bins < 1:
        raise ValueError(f"bins must be 1 or more, but is {bins}")
    stars = {title: _stars(title, table, color) for title, table in tables.items()}
    if all(values is None for *_, values in stars.values()):
        raise LabelError(f"color = {color!r}, but no table has such a column")
    if axes is None:
        figsize = (1.2 + 3.6 * len(tables), 4.4)
        axes = new_axes(1, len(tables), figsize=figsize, sharex=True, sharey=True)
    axes = list(np.ravel(axes))
    if len(axes) != len(tables):
        raise ValueError(f"axes must be one per table, {len(tables)}, but are {len(axes)}")
    norm = _norm([values for *_, values in stars.values() if values is not None], logarithmic="chi2" in color)
    edges = [_edges([pair[k] for pair in stars.values()], bins or 1) for k in range(2)]
    drawn = None
    for ax, (title, (teff, logg, values)) in zip(axes, stars.items(), strict=True):
        if isochrones is not None:
            _isochrones(ax, isochrones, norm if color in METALLICITIES else None, above=bins is not None)
        if values is None:
            ax.plot(teff, logg, "o", color="0.6", ms=2.5, mew=0)
        elif bins is None:
            order = np.argsort(values)  # the worst on top: they are what one looks for
            drawn = ax.scatter(teff[order], logg[order], c=values[order], s=9, lw=0, cmap=COLORS, norm=norm)
        else:
            drawn = ax.pcolormesh(*edges, _medians(teff, logg, values, edges).T, cmap=COLORS, norm=norm)
        ax.set_title(f"{title}\n{len(teff):,} stars" if title else f"{len(teff):,} stars", fontsize=9, loc="left")
        ax.set(xlim=edges[0][[-1, 0]], ylim=edges[1][[-1, 0]], xlabel=label_text("teff", unit=True))
        tidy(ax)
    axes[0].set_ylabel(label_text("logg"))
    text = COLOR_TEXTS.get(color) or label_text(color, unit=True)
    bar = axes[0].figure.colorbar(drawn, ax=axes, pad=0.01, fraction=0.05, aspect=30, extend="both")
    bar.set_label(text if bins is None else f"median {text}")
    if bar.ax.get_yscale() == "log":
        plain_log_ticks(bar.ax)
    return axes


def _stars(title, table, color):
    """Temperature [K], log g and colours of the stars of a table that have them; None without the colour."""
    where = f"the table {title!r}" if title else "the table"
    missing = [name for name in ("teff", "logg") if name not in table.colnames]
    if missing:
        raise LabelError(f"{where} lacks {', '.join(missing)}; it has {', '.join(table.colnames)}")
    columns = [_plain(table[name], name) for name in ("teff", "logg")]
    values = floats_of(table[color]) if color in table.colnames else None
    good = np.isfinite(columns).all(axis=0)
    if values is not None:
        good &= np.isfinite(values)
    if not good.any():
        raise ValueError(f"none of the {len(table)} rows of {where} has finite labels")
    return (*(column[good] for column in columns), None if values is None else values[good])


def _plain(column, name):
    """Values of a label in its own unit."""
    unit = getattr(column, "unit", None)
    if unit is None:
        return floats_of(column)
    try:
        return floats_of(column.to(unit_of_label(name)))
    except Exception as error:
        raise LabelError(f"{name} must be in {unit_of_label(name)}, but is in {unit}") from error


def _norm(values, *, logarithmic):
    """Colours of all but the extreme 2 % at either end."""
    from matplotlib.colors import LogNorm, Normalize

    low, high = np.percentile(np.concatenate(values), [2, 98])
    if logarithmic and low > 0:
        return LogNorm(low, max(high, 1.01 * low))
    return Normalize(low, high)


def _edges(columns, n):
    """Edges of cells over some samples, with a margin."""
    every = np.concatenate(columns)
    margin = 0.03 * np.ptp(every) or 1.0
    return np.linspace(every.min() - margin, every.max() + margin, n + 1)


def _medians(x, y, values, edges):
    """Median of the stars in each cell; NaN where there is none."""
    from scipy.stats import binned_statistic_2d

    return binned_statistic_2d(x, y, values, "median", edges).statistic


def _isochrones(ax, table, norm, *, above):
    """Lines of one age and metallicity each, in the colour of their metallicity if there is a scale for that."""
    names = [name for name in ("age", "m_h") if name in table.colnames]
    keys = np.column_stack([floats_of(table[name]) for name in names]) if names else np.zeros((len(table), 1))
    teff, logg = (_plain(table[name], name) for name in ("teff", "logg"))
    colored = norm is not None and "m_h" in names
    for key in np.unique(keys, axis=0):
        mine = (keys == key).all(axis=1)
        line_color = pyplot().get_cmap(COLORS)(norm(key[-1])) if colored else NEUTRAL
        ax.plot(teff[mine], logg[mine], color=line_color, lw=0.8, zorder=3 if above else 0)
