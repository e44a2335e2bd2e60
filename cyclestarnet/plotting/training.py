"""Trainings.

S1 is O'Briain et al. (2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cyclestarnet.plotting.axes import (
    DOMAIN_STYLES,
    NEUTRAL,
    OTHERS,
    mark_guess,
    new_axes,
    plain_log_ticks,
    tidy,
)
from cyclestarnet.training.logs import read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_training"]

GUESS = {"cross_entropy": np.log(2), "least_squares": 0.25}  # what a critic's guess costs, per adversarial loss
KINDS = ("rec", "cyc", "gen", "critic")  # of terms that each domain has


def plot_training(
    run: str | PathLike | Mapping[str, ArrayLike],
    *,
    scores: Mapping[str, ArrayLike] | None = None,
    weights: Mapping[str, float] | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Plot the progress of a training (S1, Figure B1).

    Panels against the iteration: weighted reconstruction and cycle losses of
    both domains, generator and critic losses, accuracy of the critics, further
    terms, and label-free scores where there are any. Pale lines are the rows of
    the log, strong ones their running means, dots are held-out spectra. Dotted
    lines mark judges that can only guess; a vertical line marks the best score.

    Parameters
    ----------
    run : path-like, or mapping of str to array
        Folder of a training, with ``losses.csv`` and perhaps ``scores.csv``;
        or the columns of the former, ``iteration`` among them, of a training
        with the paper's adversarial loss. NaN leaves a gap.
    scores : mapping of str to array, optional
        Columns of the table of scores. Default: read from the folder.
    weights : mapping of str to float, optional
        λ of the terms: ``synth``, ``obs``, ``adversarial``. Default: those in
        the folder's checkpoint, or else 1.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        One per panel: 4 (2 of a training without critics), one for further terms, and up to 3 for scores.
        Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        One per panel, in the order above.

    Raises
    ------
    FileNotFoundError
        If the folder has no log.
    ValueError
        If the log has no column ``iteration``, or there are fewer ``axes`` than panels.

    Examples
    --------
    Of a training that is running, or was::

        axes = plot_training("run")
        axes[0].figure.savefig("progress.png")

    Of columns that lie in memory::

        log = {"iteration": np.arange(3), "rec_synth": np.array([0.3, 0.2, np.nan])}
        plot_training(log)
    """
    adversarial = "cross_entropy"
    if not isinstance(run, Mapping):
        record = read_run(run)
        if not record.losses:
            raise FileNotFoundError(f"{run} has no log to plot: losses.csv is missing or empty")
        adversarial = record.settings.get("adversarial", adversarial)
        run, scores = record.losses, record.scores if scores is None else scores
        if weights is None:
            weights = {name: record.settings.get(f"weight_{name}", 1.0) for name in ("synth", "obs", "adversarial")}
    if "iteration" not in run:
        raise ValueError(f"the log must have a column 'iteration', but has {sorted(run)}")
    weights = {"synth": 1.0, "obs": 1.0, "adversarial": 1.0} | dict(weights or {})
    scores = scores if scores is not None and len(scores.get("iteration", ())) else {}
    panels = _panels(run, scores, weights, GUESS[adversarial])
    if axes is None:
        axes = _panel_axes(len(panels))
    axes = list(np.ravel(axes))[: len(panels)]
    if len(axes) < len(panels):
        raise ValueError(f"{len(panels)} axes are needed, for {', '.join(panels)}, but got {len(axes)}")
    best = None
    if np.isfinite(scores.get("score", np.nan)).any():
        best = scores["iteration"][np.nanargmin(scores["score"])]
    end = max(int(np.max(run["iteration"], initial=1)), 1)
    for ax, (title, draw) in zip(axes, panels.items(), strict=True):
        draw(ax)
        if best is not None:
            label = "best score" if title == "Label-free score" else None
            ax.axvline(best, color=NEUTRAL, lw=1, alpha=0.4, zorder=0, label=label)
        _finish_panel(ax, title, end)
    return axes


def _panels(run, scores, weights, guess):
    """Functions that draw the panels, by title."""
    styles = _styles(run)
    panels = {
        "Reconstruction": lambda ax: _autoencoder_panel(ax, run, scores, weights, "rec", styles),
        "Cycle": lambda ax: _autoencoder_panel(ax, run, scores, weights, "cyc", styles),
    }
    if weights["adversarial"]:  # else there are no critics
        panels["Adversarial"] = lambda ax: _adversarial_panel(ax, run, weights["adversarial"], guess, styles)
        panels["Critics"] = lambda ax: _accuracy_panel(ax, run)
    usual = {"iteration", "critic_accuracy"} | {f"{kind}_{domain}" for kind in KINDS for domain in styles}
    further = [name for name in run if name not in usual]
    if further:
        panels["Further terms"] = lambda ax: _columns_panel(ax, run, further, "loss, unweighted")
    return panels | _score_panels(scores)


def _styles(run):
    """Title and colour of each domain: of a model's two, or of those that a translation has, by their names."""
    named = [name.removeprefix("rec_") for name in run if name.startswith("rec_")]
    named = [name for name in named if name not in DOMAIN_STYLES]
    colors = [color for _, color in DOMAIN_STYLES.values()] + list(OTHERS)
    return {name: (name, color) for name, color in zip(named, cycle(colors), strict=False)} or DOMAIN_STYLES


def _finish_panel(ax, title, end):
    """Title, axis of iterations and legend of a panel that is drawn."""
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    ax.set(xlabel="iteration", xlim=(0, end))
    ax.xaxis.set_major_formatter(_short_number)
    ax.grid(axis="y", color="0.92", lw=0.6)
    tidy(ax)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)


def _panel_axes(n):
    """Axes of a new figure, two in a row."""
    n_rows = -(-n // 2)
    axes = new_axes(n_rows, 2, figsize=(10.5, 2.9 * n_rows))
    for unused in axes[n:]:
        unused.remove()
    return axes[:n]


def _short_number(value, _position=None):
    """10000 and more in thousands: 50k."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def _curve(ax, table, name, *, factor=1.0, color, label, linestyle="-"):
    """One column against the iteration: pale as it is, strong as its running mean."""
    if name not in table:
        return
    x, y = np.asarray(table["iteration"]), factor * np.asarray(table[name], dtype=float)
    y = np.where(np.isfinite(y), y, np.nan)
    width = len(x) // 40
    if width > 1:
        ax.plot(x, y, color=color, lw=0.6, alpha=0.3)
        y = _running_mean(y, width)
    ax.plot(x, y, color=color, lw=1.5, ls=linestyle, label=label, marker="o" if len(x) < 3 else None, ms=4)


def _running_mean(values, width):
    """Mean over ``width`` neighbours, as many as there are at the ends and beside NaN; NaN where values are."""
    known, kernel = np.isfinite(values), np.ones(width)
    total, number = (np.convolve(a, kernel, "same") for a in (np.where(known, values, 0.0), known.astype(float)))
    return np.where(known, total / np.maximum(number, 1), np.nan)


def _log_scale(ax):
    """Make the axis logarithmic if all that it shows is positive and varies by more than a few."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.lines] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    if values.size and 0 < 4 * values.min() < values.max():
        ax.set_yscale("log")
        if values.max() < 30 * values.min():  # else all numbers are powers of ten, and few or none of them are shown
            plain_log_ticks(ax)


def _autoencoder_panel(ax, table, scores, weights, kind, styles):
    for place, (domain, (name, color)) in enumerate(styles.items()):
        column, weight = f"{kind}_{domain}", weights["obs" if place else "synth"]  # that of the first domain, or others
        _curve(ax, table, column, factor=weight, color=color, label=f"{name}, λ = {weight:g}")
        if column in scores:
            held_out = weight * np.asarray(scores[column], dtype=float)
            ax.plot(scores["iteration"], held_out, "o", color=color, ms=3.5, mec="black", mew=0.5, label="held out")
    _log_scale(ax)
    ax.set_ylabel("λ × loss")


def _adversarial_panel(ax, table, weight, guess, styles):
    for domain, (name, color) in styles.items():
        _curve(ax, table, f"gen_{domain}", factor=weight, color=color, label=f"generator, {name}")
        _curve(ax, table, f"critic_{domain}", factor=weight, color=color, label=f"critic, {name}", linestyle="--")
    # A critic's loss is the sum of two, over true and fake spectra.
    mark_guess(ax, weight * guess, "generator, if critics guess")
    mark_guess(ax, 2 * weight * guess, "critic that guesses")
    _log_scale(ax)
    ax.set_ylabel("loss" if weight == 1 else f"λ × loss, λ = {weight:g}")


def _accuracy_panel(ax, table):
    _curve(ax, table, "critic_accuracy", color=NEUTRAL, label=None)
    mark_guess(ax, 0.5, "guess", below=True)
    ax.set(ylim=(0.4, 1.01), ylabel="fraction judged right")


def _score_panels(scores):
    """Functions that draw the panels of a table of scores, by title."""
    numbers = [
        name for name, column in scores.items() if name != "iteration" and np.asarray(column).dtype.kind in "fiu"
    ]
    judges = [name for name in numbers if name.startswith("c2st_") and name != "c2st_error"]
    distances = [name for name in numbers if name.startswith("sw_")]
    panels = {}
    if judges:
        panels["Classifiers"] = lambda ax: _judges_panel(ax, scores, judges)
    if distances:
        panels["Distances"] = lambda ax: _columns_panel(ax, scores, distances, "sliced Wasserstein")
    others = ["score"] if "score" in numbers else [] if panels else numbers
    if others:
        panels["Label-free score"] = lambda ax: _columns_panel(ax, scores, others, "score, less is better")
    return panels


def _judges_panel(ax, scores, names):
    _columns_panel(ax, scores, names, "fraction judged right")
    mark_guess(ax, 0.5, "guess", below=True)
    ax.set_yscale("linear")
    ax.set_ylim(0.4, 1.01)


def _columns_panel(ax, table, names, ylabel):
    for name, color in zip(names, cycle(OTHERS), strict=False):
        place = name.partition("_")[2]  # of c2st_obs, sw_latent, ...
        label, color = {"latent": ("latents", color), **DOMAIN_STYLES}.get(place, (name.replace("_", " "), color))
        _curve(ax, table, name, color=color, label=label)
    _log_scale(ax)
    ax.set_ylabel(ylabel)
