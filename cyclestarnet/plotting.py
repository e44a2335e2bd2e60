"""Figures of results, for the ``matplotlib`` extra."""

from __future__ import annotations

import astropy.units as u
import numpy as np

__all__ = ["plot_fit", "plot_posterior"]


def _pyplot():
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install cyclestarnet[matplotlib]") from error
    return pyplot


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
    plt = _pyplot()
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

    Parameters
    ----------
    posterior : `~cyclestarnet.Posterior`
    names : sequence of str
        Labels to show.

    Returns
    -------
    `~matplotlib.figure.Figure`
    """
    plt = _pyplot()
    names, n = list(names), len(names)
    columns = [posterior.samples[name] for name in names]
    figure, axes = plt.subplots(n, n, figsize=(2.2 * n, 2.2 * n), squeeze=False, layout="constrained")
    for i in range(n):
        for j in range(n):
            ax = axes[i, j]
            if j > i:
                ax.axis("off")
            elif i == j:
                ax.hist(columns[i].value, bins=40, color="0.6")
                ax.set_yticks([])
            else:
                ax.hist2d(columns[j].value, columns[i].value, bins=40, cmap="Greys")
            if i == n - 1:
                ax.set_xlabel(f"{names[j]} [{columns[j].unit}]" if str(columns[j].unit) else names[j])
            if j == 0 and i:
                ax.set_ylabel(names[i])
    return figure
