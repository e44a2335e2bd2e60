"""Catalogues of missing lines, and studies of what becomes of lines that were taken away.

S1 is O'Briain et al. (2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import astropy.units as u
import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike

from cyclestarnet.exceptions import GridError
from cyclestarnet.grid import Window
from cyclestarnet.lines.features import K_GIANT, FeatureMask
from cyclestarnet.lines.missing import MissingLines
from cyclestarnet.lines.score import Score
from cyclestarnet.plotting.axes import (
    NEUTRAL,
    OTHERS,
    SHADE,
    element_style,
    label_text,
    mark_guess,
    new_axes,
    one_axes,
    pixels_of,
    plain_log_ticks,
    tidy,
    with_gaps,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_error_map", "plot_missing_lines", "plot_precision_recall", "plot_recovery_error"]

# Errors of the paper's Table 1 in %, of the K giant and one seed each: from and to.
PUBLISHED = {10: (0.35, 0.41), 70: (0.35, 0.41), 80: (4.50, 4.50), 90: (4.59, 4.59)}
FALSE_DISCOVERIES = 0.05


def plot_error_map(
    recovery: Table,
    *,
    bins: int | tuple[int, int] | tuple[ArrayLike, ArrayLike] = 30,
    least: int = 5,
    ax: Axes | None = None,
) -> Axes:
    """Map the error of recovered pixels over effective temperature and gravity (S1, Figure 13).

    Parameters
    ----------
    recovery : `~astropy.table.Table`
        A row per label set, with columns ``teff``, ``logg`` and ``error``, the
        mean percentage error of the masked pixels.
    bins : int, or pair of int or of arrays, optional
        Cells along both axes, or their edges in K and dex, as for `numpy.histogram2d`. Default: 30.
    least : int, optional
        Cells with fewer label sets are left blank. Default: 5.
    ax : `~matplotlib.axes.Axes`, optional
        Default: a new figure.

    Returns
    -------
    `~matplotlib.axes.Axes`
        Hot stars are on the left and dwarfs at the bottom; a star marks the K giant.

    Raises
    ------
    ValueError
        If there are so few label sets in all cells.

    Examples
    --------
    Of a training of a mock study, which keeps its errors in a file::

        ax = plot_error_map(QTable.read("mock/masked-30-seed-0/recovery.ecsv"))
        ax.figure.savefig("errors.png")
    """
    teff, logg, error = (_values(recovery[name]) for name in ("teff", "logg", "error"))
    number, *edges = np.histogram2d(teff, logg, bins)
    total, *_ = np.histogram2d(teff, logg, edges, weights=error)
    if number.max() < least:
        raise ValueError(
            f"no cell has {least} of the {len(error)} label sets, at most {number.max():.0f}; ask for fewer bins"
        )
    mean = np.ma.masked_where(number < least, total / np.maximum(number, 1))
    ax = one_axes(ax, (7, 5.2))
    top = np.nanpercentile(mean.compressed(), 98)  # a few bad cells at the edge would hide all differences elsewhere
    image = ax.pcolormesh(*edges, mean.T, cmap="cividis", vmax=top)
    beyond = "max" if mean.max() > top else "neither"
    ax.figure.colorbar(image, ax=ax, label="mean error of masked pixels [%]", extend=beyond)
    giant = K_GIANT["teff"], K_GIANT["logg"]
    ax.plot(
        *giant, "*", ms=15, mfc="white", mec="black", ls="none",
        label=f"K giant: {giant[0]:.0f} K, log g {giant[1]}",
    )  # fmt: skip
    low, high = np.minimum(giant, [edge[0] for edge in edges]), np.maximum(giant, [edge[-1] for edge in edges])
    ax.set(
        xlim=(high[0], low[0]), ylim=(high[1], low[1]), xlabel=label_text("teff", unit=True), ylabel=label_text("logg")
    )
    ax.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    return ax


def plot_recovery_error(table: Table, *, ax: Axes | None = None) -> Axes:
    """Plot the error of recovered pixels against the fraction of features that were masked (S1, Table 1).

    The errors that the paper found are shown, too.

    Parameters
    ----------
    table : `~astropy.table.Table`
        A row per study, with columns ``fraction``, 0 to 1, and ``error`` of the
        K giant in %. Where a column ``network`` has several values, each has
        its own line.
    ax : `~matplotlib.axes.Axes`, optional
        Default: a new figure.

    Returns
    -------
    `~matplotlib.axes.Axes`
        Both axes are in per cent, that of the errors is logarithmic.

    Examples
    --------
    Of a mock study of several fractions and seeds::

        plot_recovery_error(study(read_mock_config("mock.toml")))
    """
    ax = one_axes(ax, (7, 4.6))
    low, high = np.transpose([*PUBLISHED.values()])
    ax.fill_between([*PUBLISHED], low, high, color="0.75", lw=2, label="O'Briain et al. (2021)", zorder=1)
    ax.plot([*PUBLISHED][2:], low[2:], "s", color="0.6", ms=6, zorder=1)
    percent, error = 100 * np.round(_values(table["fraction"]), 6), _values(table["error"])
    networks = np.asarray(table["network"]).astype(str) if "network" in table.colnames else np.full(len(table), "mean")
    for network, color in zip(np.unique(networks), cycle(OTHERS), strict=False):
        mine = networks == network
        fractions = np.unique(percent[mine])
        means = [error[mine & (percent == fraction)].mean() for fraction in fractions]
        ax.plot(fractions, means, "-", color=color, lw=1.5, label=network)
        ax.plot(percent[mine], error[mine], "o", color=color, ms=4.5, alpha=0.6, mew=0)
    ax.set(yscale="log", xlabel="masked features [%]", ylabel="mean error of masked pixels [%]")
    plain_log_ticks(ax)
    handles, names = ax.get_legend_handles_labels()
    ax.legend(
        [*handles[1:], handles[0]], [*names[1:], names[0]], frameon=False, fontsize=9,
        title="dots: single seeds; lines: their mean", title_fontsize=9,
    )  # fmt: skip
    tidy(ax)
    return ax


def plot_missing_lines(
    lines: MissingLines,
    *,
    window: Window | None = None,
    labels: bool = True,
    truth: FeatureMask | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Plot the mean difference of observed and synthetic flux, and the missing lines found in it.

    Markers are at the wavelength and depth of each line, in the colour of its
    element. The band is the 1 σ noise of the difference.

    Parameters
    ----------
    lines : `~cyclestarnet.lines.MissingLines`
        A catalogue, or a part of one, such as ``lines.strongest(100)``.
    window : (low, high), optional
        Show these vacuum wavelengths, in Angstrom if they have no unit, in one panel. Default: a panel per chip.
    labels : bool, optional
        Whether to write elements at the strongest lines, as many as there is room for. Default: yes.
    truth : `~cyclestarnet.lines.FeatureMask`, optional
        Pixels that are known to lack lines, to be shaded. Default: none is known.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        One per panel. Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        One per panel, from blue to red.

    Raises
    ------
    GridError
        If the window holds no pixel, or the truth has another number of pixels.
    ValueError
        If there is another number of axes than of panels.

    Examples
    --------
    The strongest hundred lines of the packaged model, chip by chip::

        lines = find_missing_lines(CalibratedModel.from_pretrained())
        plot_missing_lines(lines.strongest(100))
    """
    grid = lines.grid
    if truth is not None and truth.pixels.shape != (grid.n_pixels,):
        raise GridError(f"truth must have the {grid.n_pixels} pixels of lines, but has {len(truth.pixels)}")
    if window is None:
        ranges = [grid.edges(chip)[[0, -1]] for chip in grid.chips]
    else:
        ranges = [pixels_of(grid, window)[:2]]
    if axes is None:
        axes = new_axes(len(ranges), figsize=(13, 1.3 + 2.6 * len(ranges)), sharey=True)
    axes = list(np.ravel(axes))
    if len(axes) != len(ranges):
        raise ValueError(f"axes must be one per panel, {len(ranges)}, but are {len(axes)}")

    at, depth = lines.table["wavelength"].to_value(u.AA), _values(lines.table["depth"])
    elements, handles, curves = np.asarray(lines.table["element"]).astype(str), {}, []
    for ax, (low, high) in zip(axes, ranges, strict=True):
        if truth is not None:
            handles["known to be missing"] = ax.broken_barh(
                _stretches(grid, truth.pixels), (0, 1), transform=ax.get_xaxis_transform(), color=SHADE, lw=0, zorder=-1
            )
        handles["±1σ"], curve = _difference_panel(ax, lines, low, high)
        curves.append(curve)
        inside = (at >= low) & (at <= high)
        for element in np.unique(elements[inside]):
            mine, (color, _, marker) = inside & (elements == element), element_style(element)
            (handles[element],) = ax.plot(
                at[mine], -depth[mine], marker, color=color, ms=4.5, mec="white", mew=0.3, label=element, zorder=3
            )
        ax.set(xlim=(low, high), ylabel="flux, observed − synthetic\n[of the continuum]")
        tidy(ax)
    limits = np.array([ax.get_ylim() for ax in axes])
    bottom, top = limits[:, 0].min(), limits[:, 1].max()
    for ax in axes:
        ax.set_ylim(bottom - 0.1 * (top - bottom) * labels, top)  # room for a name below the deepest line
    axes[-1].set_xlabel("vacuum wavelength [Å]")
    _element_legend(axes[0], handles, elements)
    if labels:
        axes[0].figure.canvas.figure.draw_without_rendering()  # the layout tells how much room there is
        for ax, curve in zip(axes, curves, strict=True):
            _name_lines(ax, curve, at, -depth, elements)
    return axes


def plot_precision_recall(score: Score, *, ax: Axes | None = None) -> Axes:
    """Plot the precision of a catalogue of missing lines against its recall.

    A dot marks what is found at a false-discovery rate of 0.05, and a dotted
    line the precision that this rate promises.

    Parameters
    ----------
    score : `~cyclestarnet.lines.Score`
        Or anything with the arrays ``precision``, ``recall`` and ``fdr``, from strict thresholds to loose ones.
    ax : `~matplotlib.axes.Axes`, optional
        Default: a new figure.

    Returns
    -------
    `~matplotlib.axes.Axes`
        Both axes run from 0 to 1.

    Examples
    --------
    Of a catalogue of all dips, whose model lacked features that are known::

        lines = find_missing_lines(model, fdr=1)
        plot_precision_recall(score_missing_lines(lines, FeatureMask.read("mask.ecsv")))
    """
    ax = one_axes(ax, (5.4, 5))
    precision, recall, fdr = (np.asarray(getattr(score, name), dtype=float) for name in ("precision", "recall", "fdr"))
    color = OTHERS[0]
    ax.plot(recall, precision, color=color, lw=1.5)
    kept = np.flatnonzero(fdr <= FALSE_DISCOVERIES)
    if kept.size:
        here = recall[kept[-1]], precision[kept[-1]]
        text = f"FDR {FALSE_DISCOVERIES}: recall {here[0]:.2f}, precision {here[1]:.2f}"
        ax.plot(*here, "o", color=color, mec="black", ms=8, ls="none", label=text)
        ax.legend(frameon=False, loc="lower left")
    mark_guess(ax, 1 - FALSE_DISCOVERIES, f"what FDR {FALSE_DISCOVERIES} promises", below=True)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02))
    ax.set(
        xlabel="recall: fraction of known lines that are found",
        ylabel="precision: fraction of found lines that are known",
    )
    tidy(ax)
    return ax


# -- inside --------------------------------------------------------------------------------
def _difference_panel(ax, lines, low, high):
    """The difference within a range [Angstrom] and its noise; returns the band and the curve."""
    grid = lines.grid
    _, _, show = pixels_of(grid, (low * u.AA, high * u.AA))
    x = with_gaps(grid, grid.wavelength.to_value(u.AA))
    edges = (with_gaps(grid, lines.difference + side * lines.noise, show) for side in (-1, 1))
    band = ax.fill_between(x, *edges, color="0.65", lw=0, zorder=1)
    (curve,) = ax.plot(x, with_gaps(grid, lines.difference, show), color=NEUTRAL, lw=0.7, zorder=2)
    ax.axhline(0, color=NEUTRAL, lw=0.5, ls=":", zorder=0)
    return band, curve


def _element_legend(ax, handles, elements):
    """Name the elements, those of most lines first, and then the rest."""
    found = sorted(set(handles) & set(elements), key=lambda name: (-np.sum(elements == name), name))
    order = [*found, *(name for name in handles if name not in found)]
    ax.legend(
        [handles[name] for name in order], order, frameon=False, fontsize=9, ncols=13, loc="lower right",
        bbox_to_anchor=(1, 1), borderaxespad=0.2, columnspacing=1.2, handletextpad=0.4,
    )  # fmt: skip


def _values(column):
    """Numbers of a column, with a unit or without."""
    return np.asarray(getattr(column, "value", column), dtype=float)


def _stretches(grid, pixels):
    """Begin and length [Angstrom] of each stretch of pixels, none of which crosses the edge of a chip."""
    stretches = []
    for chip in grid.chips:
        edges = grid.edges(chip)
        inside = np.concatenate([[False], pixels[slice(*chip)], [False]])
        for start, stop in np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2):
            stretches.append((edges[start], edges[stop] - edges[start]))
    return stretches


def _name_lines(ax, curve, x, y, names):
    """Write names at points of a figure whose layout is known, the farthest from zero first, where there is room."""
    (left, right), room = ax.get_xlim(), ax.get_window_extent()
    path = curve.get_path().transformed(ax.transData)
    points, taken = ax.transData.transform(np.column_stack([x, y])), []
    for k in np.argsort(-np.abs(y), kind="stable"):
        if not left <= x[k] <= right:
            continue
        below = y[k] < 0
        text = ax.annotate(
            names[k], (x[k], y[k]), (0, -5 if below else 5), textcoords="offset points", ha="center",
            va="top" if below else "bottom", fontsize=7, color=NEUTRAL,
        )  # fmt: skip
        box = text.get_window_extent()
        inside = room.x0 <= box.x0 and box.x1 <= room.x1
        crossed = path.intersects_bbox(box, filled=False) or box.count_contains(points)
        if not inside or crossed or any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)
