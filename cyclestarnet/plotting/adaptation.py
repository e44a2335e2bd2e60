"""Adaptations: held-out stars before and after, as a figure and as a page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.table import Table

from cyclestarnet.plotting.axes import DOMAIN_STYLES, NEUTRAL, label_text, new_axes, pyplot, tidy, with_gaps
from cyclestarnet.plotting.pages import html_table, image, page, png_of
from cyclestarnet.residuals import ResidualMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["adaptation_page", "plot_adaptation"]

COLORS = {"before": DOMAIN_STYLES["synth"][1], "after": DOMAIN_STYLES["obs"][1]}
SMOOTH = 25  # pixels over which residuals are averaged to be seen


def plot_adaptation(report: Any, *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Plot what held-out stars look like before and after an adaptation.

    Panels: reduced χ² of the stars; half the 16-84 % range of the residuals
    against wavelength; their median against wavelength; and the labels'
    medians less the label prior, in its σ. Lines over wavelength are running
    means over 25 pixels.

    Parameters
    ----------
    report : `~cyclestarnet.training.before_after.AdaptationReport`
        Of `~cyclestarnet.adapt`.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        Four. Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        One per panel, in the order above.

    Raises
    ------
    ValueError
        If there are fewer than four ``axes``.

    Examples
    --------
    ::

        adapted, report = cyclestarnet.adapt(model, "mine.h5")
        plot_adaptation(report)[0].figure.savefig("adaptation.png")
    """
    if axes is None:
        axes = new_axes(4, figsize=(9.5, 12))
    axes = list(np.ravel(axes))
    if len(axes) < 4:
        raise ValueError(f"4 axes are needed, but got {len(axes)}")
    standings = {"before": report.before, "after": report.after}
    _chi2_panel(axes[0], standings)
    tables = {
        when: ResidualMap(standing.residual, report.grid, in_sigma=False).to_table()
        for when, standing in standings.items()
    }
    curves = {axes[1]: ("half_width", "half-width of residuals (16-84 %)"), axes[2]: ("bias", "median residual")}
    for ax, (name, text) in curves.items():
        _wavelength_panel(ax, report.grid, {when: table[name] for when, table in tables.items()}, text)
    axes[2].axhline(0, color=NEUTRAL, lw=0.8, ls=":")
    _label_panel(axes[3], report, standings)
    for ax in axes[:4]:
        tidy(ax)
        ax.legend(frameon=False, fontsize=9)
    return axes[:4]


def _chi2_panel(ax, standings):
    chi2 = {when: standing.reduced_chi2 for when, standing in standings.items()}
    every = np.concatenate(list(chi2.values())).clip(1e-3)
    edges = np.geomspace(every.min() / 1.01, every.max() * 1.01, 30)
    for when, values in chi2.items():
        ax.hist(values, edges, histtype="step", lw=1.5, color=COLORS[when], label=f"{when}: {np.median(values):.2f}")
    ax.set_xscale("log")
    ax.set(xlabel="reduced χ² of held-out stars", ylabel="stars")


def _wavelength_panel(ax, grid, curves, ylabel):
    wavelength = with_gaps(grid, grid.wavelength.value)
    for when, values in curves.items():
        smooth = np.full(grid.n_pixels, np.nan)
        for start, stop in grid.chips:
            smooth[start:stop] = _running_mean(values[start:stop])
        ax.plot(wavelength, with_gaps(grid, smooth), color=COLORS[when], lw=1, label=when)
    ax.set(xlabel="vacuum wavelength (Å)", ylabel=ylabel)


def _running_mean(values):
    known, kernel = np.isfinite(values), np.ones(min(SMOOTH, len(values)))
    total, number = (np.convolve(a, kernel, "same") for a in (np.where(known, values, 0.0), known.astype(float)))
    return np.where(known, total / np.maximum(number, 1), np.nan)


def _label_panel(ax, report, standings):
    places = np.arange(len(report.labels))
    ax.axhline(0, color=NEUTRAL, lw=0.8, ls=":")
    for when, standing in standings.items():
        ax.plot(places, report.shift(standing), "o", color=COLORS[when], label=when)
    ax.set_xticks(places, [label_text(name) for name in report.labels.names], rotation=60, ha="right")
    ax.set_ylabel("median − prior (σ of the prior)")


# -- the page ------------------------------------------------------------------------------
def adaptation_page(report: Any) -> str:
    """Write a page about an adaptation, which needs no other file.

    Parameters
    ----------
    report : `~cyclestarnet.training.before_after.AdaptationReport`
        Of `~cyclestarnet.adapt`.

    Returns
    -------
    str
        HTML with tables, provenance, and the figure of `plot_adaptation` if Matplotlib is installed.

    Examples
    --------
    ::

        page = adaptation_page(report)
    """
    n_stars = len(report.before.reduced_chi2)
    facts = Table(
        rows=[(str(key), str(value)) for key, value in report.provenance.items()], names=("", " "), dtype=("U", "U")
    )
    parts = [
        f"<p>Trained on {report.n_trained:,} observed spectra; the figures are those of {n_stars} held-out stars, "
        "each fitted with both models. Labels of single stars are not known here: their medians are compared with the "
        "label prior, which zero points follow.</p>",
        html_table(report.to_table()),
        _figure(report),
        "<h2>Labels</h2>",
        "<p>Medians of the held-out stars; shifts are in σ of the prior; change and scatter are those of the single "
        "stars, after − before.</p>",
        html_table(report.to_label_table()),
        "<h2>The new model</h2>",
        html_table(facts),
    ]
    return page(f"{report.before.name} → {report.after.name}", parts)


def _figure(report):
    try:
        plt = pyplot()
    except ImportError as error:
        return f"<p>{html.escape(str(error))}</p>"
    figure = plot_adaptation(report)[0].figure
    try:
        return image(png_of(figure), "Held-out stars before and after")
    finally:
        plt.close(figure)
