"""Residuals of many spectra against wavelength.

S1 is O'Briain et al. (2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import astropy.units as u
import numpy as np

from cyclestarnet.grid import Window
from cyclestarnet.plotting.axes import DOMAIN_STYLES, NEUTRAL, new_axes, pixels_of, tidy
from cyclestarnet.residuals import ResidualDensity, ResidualMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_residuals"]

N_COLUMNS, N_ROWS = 500, 81  # of the density, at most; an odd number of rows has a middle
BEYOND = 4.0  # half-widths of the widest panel that are shown


def plot_residuals(
    maps: ResidualMap | ResidualDensity | Mapping[str, ResidualMap | ResidualDensity],
    *,
    window: Window | None = None,
    limit: float | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Plot the density of residuals against wavelength, with their mean, bias and width (S1, Figures 5, 6 and 8).

    Each column of pixels has the same sum of grey, however many stars see it.
    Lines are the mean, and the 16th and 84th percentile. The title has the
    figures of all pixels in the window.

    Parameters
    ----------
    maps : `~cyclestarnet.residuals.ResidualMap` or `~cyclestarnet.residuals.ResidualDensity`, or mapping of str to such
        One panel each, with its name: fits before and after the translation, or both autoencoders.
    window : (low, high), optional
        Vacuum wavelengths to show, in Angstrom if they have no unit. Default: all.
    limit : float, optional
        Of the residuals that are shown, on either side of 0. Default: 4 half-widths of the widest panel.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        One per panel. Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        One per panel, in the order of the maps.

    Raises
    ------
    GridError
        If the window holds no pixel.
    ValueError
        If there is no map, there are not as many axes as maps, or ``limit`` is not positive.

    Examples
    --------
    Of fits with the emulator alone and with its translation::

        results = {space: [model.fit(star, space=space) for star in stars] for space in ("emulator", "observed")}
        plot_residuals({space: ResidualMap.of(own, model.grid) for space, own in results.items()})
    """
    maps = {"": maps} if isinstance(maps, ResidualMap | ResidualDensity) else dict(maps)
    if not maps:
        raise ValueError("there are no residuals to plot")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be positive, but is {limit}")
    parts = {name: _within(residuals, window) for name, residuals in maps.items()}
    widest = max(part.statistics.half_width for part in parts.values())
    limit = (BEYOND * widest or 1.0) if limit is None else limit
    if axes is None:
        axes = new_axes(len(maps), figsize=(11, 1 + 2.6 * len(maps)), sharex=True, sharey=True)
    axes = list(np.ravel(axes))
    if len(axes) != len(maps):
        raise ValueError(f"axes must be one per panel, {len(maps)}, but are {len(axes)}")
    for ax, (name, part) in zip(axes, parts.items(), strict=True):
        _panel(ax, part, limit)
        _title(ax, name, part)
    axes[-1].set_xlabel("vacuum wavelength [Å]")
    axes[0].legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    return axes


def _within(residuals, window):
    """The residuals in a window, NaN elsewhere."""
    _, _, show = pixels_of(residuals.grid, window)
    return residuals.within(show)


def _title(ax, name, residuals):
    own, unit = residuals.statistics, 1 if residuals.in_sigma else 100
    figures = {"mean": own.mean, "mean |r|": own.mean_abs, "bias": own.bias, "half-width": own.half_width}
    told = ", ".join(text + f" {unit * value:.2f}".replace("-", "−") for text, value in figures.items())
    told += " σ" if residuals.in_sigma else " %"
    ax.set_title(f"{name}:  {told}" if name else told, fontsize=9, loc="left")


def _panel(ax, residuals, limit):
    seen = np.flatnonzero(residuals.seen)
    width = max(1, len(seen) // N_COLUMNS)
    table, (edges, starts) = residuals.to_table(width=width), _columns(residuals.grid, width)
    levels = np.linspace(-limit, limit, N_ROWS + 1)
    peak = min(
        2 * limit / N_ROWS / (1.6 * max(residuals.statistics.half_width, 1e-9)), 1.0
    )  # 1.6 times that of a Gaussian
    for chip, columns in zip(edges, starts, strict=True):
        density = np.array([residuals.shares(part, levels) for part in columns])
        if density.any():
            ax.pcolormesh(chip, levels, density.T, cmap="Greys", vmin=0, vmax=peak, rasterized=True)
    color, x = DOMAIN_STYLES["obs"][1], table["wavelength"].to_value(u.AA)
    breaks = np.cumsum([len(columns) for columns in starts])[:-1]

    def line(values, **style):
        ax.plot(np.insert(x, breaks, np.nan), np.insert(np.asarray(values), breaks, np.nan), color=color, **style)

    line(table["mean"], lw=1.2, label="mean")
    for k, side in enumerate((-1, 1)):
        line(table["bias"] + side * table["half_width"], lw=0.7, ls="--", label=None if k else "bias ± half-width")
    ax.axhline(0, color=NEUTRAL, lw=0.6, ls=":")
    wavelength = residuals.grid.wavelength.to_value(u.AA)[seen]
    ax.set(xlim=(wavelength[0], wavelength[-1]), ylim=(-limit, limit))
    ax.set_ylabel("data − model [σ]" if residuals.in_sigma else "data − model\n[of the continuum]")
    tidy(ax)


def _columns(grid, width):
    """Of each chip the edges [Angstrom] of its columns of pixels, and their pixels."""
    edges, parts = [], []
    for chip in grid.chips:
        begin, stop = chip
        own = [slice(first, min(first + width, stop)) for first in range(begin, stop, width)]
        borders = grid.edges(chip)
        edges.append(borders[[part.start - begin for part in own] + [stop - begin]])
        parts.append(own)
    return edges, parts
