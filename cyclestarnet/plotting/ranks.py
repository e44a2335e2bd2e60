"""Ranks of true labels in their posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom

from cyclestarnet.plotting.axes import DOMAIN_STYLES, NEUTRAL, SHADE, label_text, new_axes, tidy
from cyclestarnet.training.ranks import N_RANKS, Ranks, ecdf_band, ecdf_difference, uniformity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_ranks"]

LEVEL = 0.95  # of the bands


def plot_ranks(ranks: Ranks, *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Plot whether ranks of true labels are uniform, as they are if a model's errors are right.

    Two panels per label: a histogram of the ranks, and the difference of their cumulative
    distribution from a uniform one. Grey bands hold 95 % of uniform ranks everywhere. Errors that
    are too small make a histogram high at both ends, errors that are too large one that is high in
    the middle; labels that are too high make it fall.

    Parameters
    ----------
    ranks : `~cyclestarnet.training.ranks.Ranks`
        Of `~cyclestarnet.training.calibration.calibration_ranks`.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        Two per label. Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        Histogram and difference of the first label, of the second, ...

    Raises
    ------
    ValueError
        If there are no ranks, or fewer ``axes`` than panels.

    Examples
    --------
    Of a model's errors::

        axes = plot_ranks(calibration_ranks(model, 500))
        axes[0].figure.savefig("ranks.png")
    """
    n = len(ranks.by_label)
    if not n:
        raise ValueError(f"there are no ranks to plot: {len(ranks.failed)} of {ranks.n_stars} stars failed")
    axes = list(np.ravel(_panel_axes(n) if axes is None else axes))[: 2 * n]
    if len(axes) < 2 * n:
        raise ValueError(f"{2 * n} axes are needed, two per label, but got {len(axes)}")
    for left, right, (name, found) in zip(axes[::2], axes[1::2], ranks.by_label.items(), strict=True):
        _histogram(left, found)
        _difference(right, found)
        left.set_title(f"{label_text(name)}, {len(found)} stars", loc="left", fontsize=10, fontweight="bold")
        for ax in (left, right):
            ax.set_xlim(0, 1)
            tidy(ax)
    for ax in axes[-4:]:
        ax.set_xlabel(f"rank of the truth / {N_RANKS}")
    return axes


def _panel_axes(n):
    """Axes of a new figure, two labels in a row."""
    n_rows = -(-n // 2)
    axes = new_axes(n_rows, 4, figsize=(13, 2.1 * n_rows + 0.6))
    for unused in axes[2 * n :]:
        unused.remove()
    return axes[: 2 * n]


def _histogram(ax, ranks):
    n, n_bins = len(ranks), uniformity(ranks)[1] + 1
    ax.axhspan(*binom.interval(1 - (1 - LEVEL) / n_bins, n, 1 / n_bins), color=SHADE, lw=0)
    ax.axhline(n / n_bins, color=NEUTRAL, lw=0.8)
    ax.stairs(*np.histogram(ranks / N_RANKS, n_bins, (0, 1)), baseline=None, color=DOMAIN_STYLES["synth"][1], lw=1.4)
    ax.set(ylabel="stars", ylim=(0, None))


def _difference(ax, ranks):
    place = np.arange(1, N_RANKS) / N_RANKS
    ax.fill_between(place, *ecdf_band(len(ranks), LEVEL), color=SHADE, lw=0)
    ax.axhline(0, color=NEUTRAL, lw=0.8)
    ax.plot(place, ecdf_difference(ranks), color=DOMAIN_STYLES["obs"][1], lw=1.4)
    ax.set_ylabel("Δ ECDF")
