"""Results of fits and of sampling."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import astropy.units as u
import numpy as np

from cyclestarnet.exceptions import GridError
from cyclestarnet.grid import Window, range_of
from cyclestarnet.plotting.axes import (
    DOMAIN_STYLES,
    OTHERS,
    breaks_of,
    label_text,
    new_axes,
    new_figure,
    telling_ranges,
    tidy,
)
from cyclestarnet.results import FitResult, Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_fit", "plot_fits", "plot_posterior"]

WIDE, MOST_WINDOWS = 30.0, 3  # Angstrom; of windows that are chosen


def plot_fit(
    result: FitResult,
    axes: Sequence[Axes] | None = None,
    *,
    window: Window | None = None,
) -> list[Axes]:
    """Plot data, model and residual of a fit, chip by chip.

    Parameters
    ----------
    result : `~cyclestarnet.FitResult`
        Of one star. Pixels that are masked are not drawn.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        Two (flux, residual) per panel. Default: a new figure, a pair per chip.
    window : (low, high), optional
        Show these vacuum wavelengths, in Angstrom if they have no unit, in one panel instead.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        Flux and residual of each panel, from blue to red. Labels and reduced χ² are in the title of the first.

    Raises
    ------
    GridError
        If the window holds no pixel.
    ValueError
        If there are not two axes per panel.

    Examples
    --------
    Lines of magnesium in the packaged star::

        result = CalibratedModel.from_pretrained().fit(datasets.k_giant())
        plot_fit(result, window=(15740, 15780))[0].figure.savefig("magnesium.png")
    """
    wavelength = result.spectrum.spectral_axis.to_value(u.AA)
    if window is None:
        ranges = [(part[0], part[-1]) for part in np.split(wavelength, breaks_of(wavelength))]
    else:
        low, high = range_of(window)
        if not ((wavelength >= low) & (wavelength <= high)).any():
            raise GridError(
                f"window {low:g} to {high:g} Angstrom holds no pixel of the fit, which covers {wavelength[0]:g} to "
                f"{wavelength[-1]:g} Angstrom"
            )
        ranges = [(low, high)]
    if axes is None:
        n = len(ranges)
        axes = new_axes(2 * n, figsize=(12, 3.2 * n), height_ratios=[3, 1] * n)
    axes = list(np.ravel(axes))
    if len(axes) != 2 * len(ranges):
        raise ValueError(f"axes must be two per panel, {2 * len(ranges)}, but are {len(axes)}")
    for k, (low, high) in enumerate(ranges):
        _fit_panels(axes[2 * k], axes[2 * k + 1], result, wavelength, low, high)
    handles = [*axes[0].get_legend_handles_labels()[0], *axes[1].get_legend_handles_labels()[0]]
    axes[-1].legend(handles=handles, loc="upper right", bbox_to_anchor=(1, -0.35), ncols=3, frameon=False, fontsize=9)
    axes[-1].set_xlabel("vacuum wavelength [Å]")
    axes[0].set_title(_fit_title(result), fontsize=10, loc="left")
    return axes


def _fit_panels(top, bottom, result, wavelength, low, high):
    """Data and model in one panel, and the residual below it, within a range [Angstrom]."""
    flux = np.where(result.spectrum.mask, np.nan, result.spectrum.flux.value)
    model, residual = result.model_spectrum.flux.value, result.residual.value
    sigma = np.where(result.spectrum.mask, np.nan, result.spectrum.uncertainty.array)
    show = (wavelength >= low) & (wavelength <= high)
    top.plot(wavelength[show], flux[show], color="0.35", lw=0.8, label="data")
    top.plot(wavelength[show], model[show], color="C3", lw=0.8, label="model")
    floor = np.nanmin(np.where(np.isfinite(flux[show]), np.minimum(flux, model)[show], np.nan))
    top.set(xlim=(low, high), ylim=(max(min(floor - 0.05, 0.8), 0), 1.12), ylabel="normalised flux")
    top.tick_params(labelbottom=False)
    bottom.fill_between(wavelength[show], -sigma[show], sigma[show], color="0.75", lw=0, label="±1σ of the data")
    bottom.plot(wavelength[show], residual[show], color="C0", lw=0.7)
    bottom.set(xlim=(low, high), ylim=(-0.1, 0.1), ylabel="residual")


def _fit_title(result):
    """The star, its labels with errors, and how well the model fits."""
    labels, errors = result.labels, result.uncertainties
    shown = [(n, 0 if n == "teff" else 2) for n in ("teff", "logg", "m_h", "alpha_m") if n in labels]
    told = {n: f"{labels[n].value:.{digits}f} ± {errors[n].value:.{digits}f}" for n, digits in shown}
    text = ", ".join(f"{label_text(n)} = {value}" + " K" * (n == "teff") for n, value in told.items())
    return f"{result.meta.get('object', '')}  {text}  (χ²/dof {result.reduced_chi2:.2f})".lstrip()


def plot_fits(
    results: Mapping[str, FitResult],
    *,
    windows: Sequence[Window] | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Plot fits of one star beside each other, with their residuals, in some windows (S1, Figure 7).

    Parameters
    ----------
    results : mapping of str to `~cyclestarnet.FitResult`
        Fits of the same star with the same grid, such as with the emulator alone and with its translation.
    windows : sequence of (low, high), optional
        Vacuum wavelengths, in Angstrom if they have no unit. Default: in each of the first three chips the 30 Å where
        the models differ most, or where the lines of a single one are deepest.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        Two per window, first all of the fluxes, then all of the residuals. Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        As above. The legend of the figure has the reduced χ² of the fits, its title the labels of the last.

    Raises
    ------
    GridError
        If a window holds no pixel, or the fits have different grids.
    ValueError
        If there is no result, or there are not two axes per window.

    Examples
    --------
    ::

        star = datasets.k_giant()
        texts = {"emulator": "emulator alone", "observed": "translated"}
        plot_fits({text: model.fit(star, space=space) for space, text in texts.items()})
    """
    results = dict(results)
    if not results:
        raise ValueError("there are no fits to plot")
    first, last = (list(results.values())[k] for k in (0, -1))
    wavelength = first.spectrum.spectral_axis.to_value(u.AA)
    if any(not np.array_equal(own.spectrum.spectral_axis.to_value(u.AA), wavelength) for own in results.values()):
        raise GridError("fits that are compared must have the same wavelengths")
    if windows is None:
        models = np.array([own.model_spectrum.flux.value for own in results.values()])
        signal = np.ptp(models, axis=0) if len(models) > 1 else 1 - models[0]
        ranges = telling_ranges(wavelength, signal, width=WIDE)[:MOST_WINDOWS]
    else:
        ranges = [range_of(window) for window in windows]
    for low, high in ranges:
        if not ((wavelength >= low) & (wavelength <= high)).any():
            raise GridError(f"window {low:g} to {high:g} Angstrom holds no pixel of the fits")
    n = len(ranges)
    if axes is None:
        axes = new_axes(2, n, figsize=(1 + 4.0 * n, 4.8), height_ratios=[2, 1], sharey="row")
    axes = list(np.ravel(axes))
    if len(axes) != 2 * n:
        raise ValueError(f"axes must be two per window, {2 * n}, but are {len(axes)}")
    plain, translated = (color for _, color in DOMAIN_STYLES.values())
    colors = [*(plain, *OTHERS)[: len(results) - 1], translated]
    data, sigma = (
        np.where(first.spectrum.mask, np.nan, values)
        for values in (first.spectrum.flux.value, first.spectrum.uncertainty.array)
    )
    for (low, high), top, bottom in zip(ranges, axes[:n], axes[n:], strict=True):
        show = (wavelength >= low) & (wavelength <= high)
        top.plot(wavelength[show], data[show], color="0.6", lw=2, label="data")
        bottom.fill_between(wavelength[show], -sigma[show], sigma[show], color="0.85", lw=0, label="±1σ of the data")
        bottom.axhline(0, color="0.6", lw=0.6, ls=":")
        for (name, own), color in zip(results.items(), colors, strict=True):
            text = f"{name}, χ²/dof {own.reduced_chi2:.2f}"
            top.plot(wavelength[show], own.model_spectrum.flux.value[show], color=color, lw=0.9, label=text)
            bottom.plot(wavelength[show], own.residual.value[show], color=color, lw=0.8)
        top.set(xlim=(low, high))
        top.tick_params(labelbottom=False)
        bottom.set(xlim=(low, high), xlabel="vacuum wavelength [Å]")
        tidy(top)
        tidy(bottom)
    axes[0].set_ylabel("normalised flux")
    axes[n].set_ylabel("data − model")
    handles = [*axes[0].get_legend_handles_labels()[0], *axes[n].get_legend_handles_labels()[0]]
    figure = axes[0].figure  # a title as wide as this of one panel would push the others away
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.suptitle(_fit_title(last), fontsize=10, x=0.01, ha="left")
    return axes


def plot_posterior(posterior: Posterior, names: Sequence[str]) -> list[Axes]:
    """Draw a corner plot of sampled labels.

    Contours hold 39, 68 and 95 % of the samples: the first is the 1 σ ellipse
    of a Gaussian. Titles and dashed lines are medians with the 68 % interval.

    Parameters
    ----------
    posterior : `~cyclestarnet.Posterior`
        Of one star.
    names : sequence of str
        Labels and combinations to show, in this order.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        Row by row, a row and a column per label; those above the diagonal are empty.

    Raises
    ------
    ImportError
        If Matplotlib or corner is not installed.
    LabelError
        If a label was not sampled.

    Examples
    --------
    Temperature against gravity::

        posterior = model.sample(star)
        plot_posterior(posterior, ["teff", "logg"])[0].figure.savefig("corner.png")
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it imports ArviZ, which announces changes of its own
            import corner
    except ImportError as error:
        raise ImportError('corner plots need corner: pip install "cyclestarnet[matplotlib]"') from error
    columns = {name: posterior.chain(name).ravel() for name in names}
    n = len(columns)
    figure = new_figure((2.1 * n + 1.3, 2.1 * n + 1.3))
    corner.corner(
        np.column_stack([column.value for column in columns.values()]),
        labels=[label_text(name, unit=True) for name in columns],
        quantiles=(0.16, 0.5, 0.84),
        levels=(0.39, 0.68, 0.95),
        smooth=0.8,  # pixels
        max_n_ticks=4,
        labelpad=0.03,
        fig=figure,
    )
    axes = list(figure.axes)
    for k, name in enumerate(columns):
        low, high = (edge.value for edge in posterior.interval(name))
        middle = posterior.labels[name].value
        digits = 4 if low == high else int(np.clip(1 - np.floor(np.log10(high - low)), 0, 4))
        up, down = (f"{abs(edge - middle):.{digits}f}" for edge in (high, low))
        title = f"{label_text(name)} = ${middle:.{digits}f}^{{+{up}}}_{{-{down}}}$"
        axes[k * (n + 1)].set_title(title, fontsize=11)
    return axes
