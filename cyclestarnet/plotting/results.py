"""Figures of results and of trainings, for the ``matplotlib`` extra."""

from __future__ import annotations

import warnings
from dataclasses import replace

import astropy.units as u
import numpy as np

from cyclestarnet.exceptions import GridError
from cyclestarnet.plotting.axes import (
    DOMAIN_STYLES,
    NEUTRAL,
    SHADE,
    element_style,
    pixels_of,
    pyplot,
    with_gaps,
)

__all__ = ["plot_derivatives", "plot_fit", "plot_posterior"]

N_STEEPEST = 5  # elements shown, unless they are chosen




def plot_fit(result, axes=None, *, window=None):
    """Plot data, model and residual of a fit, chip by chip.

    Parameters
    ----------
    result : `~cyclestarnet.FitResult`
    axes : sequence of `~matplotlib.axes.Axes`, optional
        Two (flux, residual) per panel. Default: a new figure, a pair per chip.
    window : (`~astropy.units.Quantity`, `~astropy.units.Quantity`), optional
        Show this wavelength range in one panel instead.

    Returns
    -------
    `~matplotlib.figure.Figure`
    """
    plt = pyplot()
    wavelength = result.spectrum.spectral_axis.to_value(u.AA)
    ranges = [window] if window is not None else None
    if ranges is None:
        breaks = np.flatnonzero(np.diff(wavelength) > 5 * np.median(np.diff(wavelength))) + 1
        ranges = [(part[0] * u.AA, part[-1] * u.AA) for part in np.split(wavelength, breaks)]
    if axes is None:
        _, axes = plt.subplots(
            2 * len(ranges),
            1,
            figsize=(12, 3.2 * len(ranges)),
            height_ratios=[3, 1] * len(ranges),
            layout="constrained",
        )
    axes = np.ravel(axes)
    flux = np.where(result.spectrum.mask, np.nan, result.spectrum.flux.value)
    model, residual = result.model_spectrum.flux.value, result.residual.value
    with np.errstate(invalid="ignore"):
        sigma = np.where(result.spectrum.mask, np.nan, result.spectrum.uncertainty.array)
    for k, (low, high) in enumerate(ranges):
        low, high = (edge.to_value(u.AA) for edge in (low, high))
        show = (wavelength >= low) & (wavelength <= high)
        top, bottom = axes[2 * k], axes[2 * k + 1]
        top.plot(wavelength[show], flux[show], color="0.35", lw=0.8, label="data")
        top.plot(wavelength[show], model[show], color="C3", lw=0.8, label="model")
        floor = np.nanmin(np.where(np.isfinite(flux[show]), np.minimum(flux, model)[show], np.nan))
        top.set(xlim=(low, high), ylim=(max(min(floor - 0.05, 0.8), 0), 1.12), ylabel="normalised flux")
        top.tick_params(labelbottom=False)
        bottom.fill_between(wavelength[show], -sigma[show], sigma[show], color="0.75", lw=0, label="±1σ of the data")
        bottom.plot(wavelength[show], residual[show], color="C0", lw=0.7)
        bottom.set(xlim=(low, high), ylim=(-0.1, 0.1), ylabel="residual")
    handles = [*axes[0].get_legend_handles_labels()[0], *axes[1].get_legend_handles_labels()[0]]
    axes[-1].legend(handles=handles, loc="upper right", bbox_to_anchor=(1, -0.35), ncols=3, frameon=False, fontsize=9)
    axes[-1].set_xlabel("vacuum wavelength [Å]")
    labels, errors = result.labels, result.uncertainties
    shown = [n for n in ("teff", "logg", "m_h", "alpha_m") if n in labels]
    text = ", ".join(f"{n} = {labels[n].value:.{0 if n == 'teff' else 2}f} ± "
                     f"{errors[n].value:.{0 if n == 'teff' else 2}f}" for n in shown)  # fmt: skip
    axes[0].set_title(
        f"{result.meta.get('object', '')}  {text}  (χ²/dof {result.reduced_chi2:.2f})", fontsize=10, loc="left"
    )
    return axes[0].figure


def plot_posterior(posterior, names):
    """Corner plot of sampled labels.

    Contours hold 39, 68 and 95 % of the samples: the first is the 1 σ ellipse
    of a Gaussian. Titles and dashed lines are medians with the 68 % interval.

    Parameters
    ----------
    posterior : `~cyclestarnet.Posterior`
    names : sequence of str
        Labels and combinations to show.

    Returns
    -------
    `~matplotlib.figure.Figure`
    """
    pyplot()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it imports ArviZ, which announces changes of its own
            import corner
    except ImportError as error:
        raise ImportError("corner plots need corner: pip install cyclestarnet[matplotlib]") from error
    columns = {name: posterior.chain(name).ravel() for name in names}
    figure = corner.corner(
        np.column_stack([column.value for column in columns.values()]),
        labels=[f"{name} [{column.unit}]" if str(column.unit) else name for name, column in columns.items()],
        quantiles=(0.16, 0.5, 0.84),
        levels=(0.39, 0.68, 0.95),
        smooth=0.8,  # pixels
        max_n_ticks=4,
        labelpad=0.03,
    )
    for k, name in enumerate(columns):
        low, high = (edge.value for edge in posterior.interval(name))
        middle = posterior.labels[name].value
        digits = 4 if low == high else int(np.clip(1 - np.floor(np.log10(high - low)), 0, 4))
        up, down = (f"{abs(edge - middle):.{digits}f}" for edge in (high, low))
        title = f"{name} = ${middle:.{digits}f}^{{+{up}}}_{{-{down}}}$"
        figure.axes[k * (len(columns) + 1)].set_title(title, fontsize=11)
    return figure


def plot_derivatives(synthetic, observed, *, difference=None, names=None, window=None, features=(), axes=None):
    """Plot the spectra of both domains and their derivatives by abundances (S1, Figs 12 and 14).

    Four panels above each other: flux; derivatives in the synthetic domain; in
    the observed domain; and observed − synthetic. The last three share their
    scale. Bands are uncertainties, if there are any.

    Parameters
    ----------
    synthetic, observed : `~cyclestarnet.derivatives.DerivativeSpectra`
        Of one star.
    difference : `~cyclestarnet.derivatives.DerivativeSpectra`, optional
        Default: that of the two, without uncertainties.
    names : sequence of str, optional
        Labels to show, of one unit. Default: up to five elements with the
        steepest synthetic derivatives in the window.
    window : (`~astropy.units.Quantity`, `~astropy.units.Quantity`), optional
        Vacuum wavelengths to show. Default: all.
    features : iterable of `~cyclestarnet.lines.Feature`, optional
        To be shaded, such as ``mask.masked``.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        Four. Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`

    Raises
    ------
    GridError
        If the window holds no pixel, or the domains have different grids.
    ValueError
        If the derivatives are of several stars, have different units, or there are not four axes.
    """
    panels = {"synthetic": synthetic, "observed": observed}
    panels |= difference_of(panels) if difference is None else {"observed − synthetic": difference}
    linestyles = {"synthetic": "-", "observed": "--"}
    styles = {text: {"color": color, "ls": linestyles[text]} for text, color in DOMAIN_STYLES.values()}
    return draw_derivatives(
        panels, styles, steepest=[synthetic], names=names, window=window, features=features, axes=axes
    )


def draw_derivatives(panels, styles, *, steepest, names, window, features, axes):
    """Draw spectra in one panel, and three sets of derivatives below it, on one scale.

    Parameters
    ----------
    panels : mapping of str to `~cyclestarnet.derivatives.DerivativeSpectra`
        Three, of one star and grid, by what they are called.
    styles : mapping of str to dict
        How lines of spectra look; in the order of drawing, and only of panels whose spectrum is drawn.
    steepest : sequence of `~cyclestarnet.derivatives.DerivativeSpectra`
        Those that decide which elements are shown, if ``names`` is None.
    names, window, features, axes
        As for `plot_derivatives`.
    """
    plt = pyplot()
    _require_alike(panels)
    reference = next(iter(panels.values()))
    grid = reference.grid
    low, high, show = pixels_of(grid, window)
    names = _steepest_elements(steepest, show, N_STEEPEST) if names is None else names
    units = sorted({str(reference[name].unit) for name in names})
    if len(units) != 1:
        raise ValueError(f"names must be labels of one unit, but derivatives by {list(names)} are in {units}")
    if axes is None:
        _, axes = plt.subplots(4, 1, figsize=(11, 9), sharex=True, layout="constrained")
    axes = list(np.ravel(axes))
    if len(axes) != 4:
        raise ValueError(f"four axes are needed, but got {len(axes)}")

    wavelength = grid.wavelength.to_value(u.AA)
    x = with_gaps(grid, wavelength)
    for text, style in styles.items():
        axes[0].plot(x, with_gaps(grid, panels[text].flux, show), label=text, **{"lw": 1} | style)
    axes[0].set_ylabel("normalised flux")
    for axis, (text, derivatives) in zip(axes[1:], panels.items(), strict=True):
        for name in names:
            slope, label, element = derivatives[name].value, name, name
            if name.endswith("_h"):
                element = name.removesuffix("_h").capitalize()
                label = f"[{element}/H]"
            color, linestyle, _ = element_style(element)
            axis.plot(x, with_gaps(grid, slope, show), color=color, ls=linestyle, lw=1, label=label)
            if derivatives.uncertainties:
                error = derivatives.uncertainties[name].value
                band = (with_gaps(grid, edge, show) for edge in (slope - error, slope + error))
                axis.fill_between(x, *band, color=color, alpha=0.25, lw=0)
        axis.set_ylabel(f"{text}\nderivative [{units[0]}]")
        axis.axhline(0, color=NEUTRAL, lw=0.5, zorder=0)
    limits = np.array([axis.get_ylim() for axis in axes[1:]])
    for axis in axes[1:]:
        axis.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    for axis in axes:
        axis.set_xlim(low, high)
        for feature in features:
            axis.axvspan(*wavelength[[feature.start, feature.stop - 1]], color=SHADE, lw=0, zorder=-1)
    for axis in axes[:2]:
        axis.legend(frameon=False, fontsize=9, ncols=8, loc="lower right", bbox_to_anchor=(1, 1), handlelength=3)
    axes[-1].set_xlabel("vacuum wavelength [Å]")
    return axes


def difference_of(panels):
    """Second − first of two `DerivativeSpectra`, by its name; in the labels that both have, without uncertainties."""
    _require_alike(panels)
    (name, first), (second_name, second) = panels.items()
    slopes = {label: second[label] - first[label] for label in first if label in second}
    difference = replace(second, flux=second.flux - first.flux, slopes=slopes, uncertainties=None)
    return {f"{second_name} − {name}": difference}


def _require_alike(panels):
    """Raise unless derivatives, by their names, are of one star and have the grid of the first."""
    first, grid = next((text, derivatives.grid) for text, derivatives in panels.items())
    for text, derivatives in panels.items():
        if derivatives.shape != ():
            raise ValueError(f"{text} must be of one star, but has shape {derivatives.shape}; take one by .star(index)")
        if derivatives.grid != grid:
            raise GridError(f"{text} must have the grid of {first}, {grid!r}, but has {derivatives.grid!r}")








def _steepest_elements(several, show, n):
    """Up to n elements with the steepest derivatives in pixels of any of several domains, in their own order."""
    elements = [
        name for name in several[0] if name.endswith("_h") and name != "m_h" and all(name in d for d in several)
    ]
    steepness = {name: max(np.abs(d[name].value[show]).max() for d in several) for name in elements}
    chosen = sorted(steepness, key=steepness.get, reverse=True)[:n]
    return [name for name in elements if name in chosen]




