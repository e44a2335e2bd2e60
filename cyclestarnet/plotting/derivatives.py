"""Derivative spectra of two domains: side by side, and what a translation makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np

from cyclestarnet.derivatives import DerivativeSpectra
from cyclestarnet.exceptions import GridError
from cyclestarnet.grid import Window
from cyclestarnet.lines.elements import symbol_of
from cyclestarnet.lines.features import Feature
from cyclestarnet.plotting.axes import (
    DOMAIN_STYLES,
    NEUTRAL,
    SHADE,
    element_style,
    label_text,
    new_axes,
    pixels_of,
    with_gaps,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_derivatives", "plot_recovery"]

N_STEEPEST = 5  # elements shown, unless they are chosen


def plot_derivatives(
    synthetic: DerivativeSpectra,
    observed: DerivativeSpectra,
    *,
    difference: DerivativeSpectra | None = None,
    names: Sequence[str] | None = None,
    window: Window | None = None,
    features: Iterable[Feature] = (),
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Plot the spectra of both domains and their derivatives by abundances.

    Four panels above each other, as in O'Briain et al. (2021, Figures 12 and 14): flux; derivatives
    in the synthetic domain; in the observed domain; and observed − synthetic. The last three share
    their scale. Bands are uncertainties, if there are any.

    Parameters
    ----------
    synthetic, observed : `~cyclestarnet.derivatives.DerivativeSpectra`
        Of one star, on one grid.
    difference : `~cyclestarnet.derivatives.DerivativeSpectra`, optional
        Observed − synthetic. Default: that of the two, without uncertainties.
    names : sequence of str, optional
        Labels to show, of one unit. Default: up to five elements with the
        steepest synthetic derivatives in the window.
    window : (low, high), optional
        Vacuum wavelengths to show, in Angstrom if they have no unit. Default: all.
    features : iterable of `~cyclestarnet.lines.Feature`, optional
        To be shaded, such as ``mask.masked``.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        Four. Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        From the top.

    Raises
    ------
    GridError
        If the window holds no pixel, or the domains have different grids.
    ValueError
        If the derivatives are of several stars, have different units, or there are not four axes.

    Examples
    --------
    Lines of manganese in both domains::

        both = [model.derivative_spectra(labels, domain=domain) for domain in ("synthetic", "observed")]
        axes = plot_derivatives(*both, window=(15200, 15280))
        axes[0].figure.savefig("derivatives.png")
    """
    panels = {"synthetic": synthetic, "observed": observed}
    panels |= _difference_of(panels) if difference is None else {"observed − synthetic": difference}
    linestyles = {"synthetic": "-", "observed": "--"}
    styles = {text: {"color": color, "ls": linestyles[text]} for text, color in DOMAIN_STYLES.values()}
    return _draw(panels, styles, steepest=[synthetic], names=names, window=window, features=features, axes=axes)


def plot_recovery(
    synthetic: DerivativeSpectra,
    translated: DerivativeSpectra,
    truth: DerivativeSpectra | None = None,
    *,
    window: Window | None = None,
    names: Sequence[str] | None = None,
    features: Iterable[Feature] = (),
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Plot what translation makes of spectra that lack lines, and the derivatives by abundances.

    Four panels above each other, as in O'Briain et al. (2021, Figures 12 and 14): flux; derivatives
    of the synthetic spectrum; of the translated one; and of the truth. The last three share their
    scale. Bands are uncertainties, if there are any.

    Parameters
    ----------
    synthetic, translated : `~cyclestarnet.derivatives.DerivativeSpectra`
        Of one star, in the synthetic domain, which lacks lines, and in the observed one.
    truth : `~cyclestarnet.derivatives.DerivativeSpectra`, optional
        Of the complete spectrum. Default: the last panel has the difference
        translated − synthetic instead.
    window : (low, high), optional
        Vacuum wavelengths to show, in Angstrom if they have no unit. Default: all.
    names : sequence of str, optional
        Labels to show, of one unit. Default: up to five elements with the
        steepest derivatives in the window, in any of the panels.
    features : iterable of `~cyclestarnet.lines.Feature`, optional
        To be shaded, such as ``mask.masked``.
    axes : sequence of `~matplotlib.axes.Axes`, optional
        Four. Default: a new figure.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        From the top.

    Raises
    ------
    GridError
        If the window holds no pixel, or the spectra have different grids.
    ValueError
        If the derivatives are of several stars, have different units, or there are not four axes.

    Examples
    --------
    Of a training of a mock study, with the features that its synthetic spectra lacked::

        both = [model.derivative_spectra(labels, domain=domain) for domain in ("synthetic", "observed")]
        plot_recovery(*both, domains.derivatives(), features=run.mask.masked)
    """
    panels = {"synthetic": synthetic, "translated": translated}
    panels |= _difference_of(panels) if truth is None else {"truth": truth}
    styles = {"truth": {"color": "black", "lw": 1.8}} if truth is not None else {}
    styles |= {
        "synthetic": {"color": "0.5", "ls": "--"},
        "translated": {"color": DOMAIN_STYLES["obs"][1]},
    }
    return _draw(panels, styles, steepest=[*panels.values()], names=names, window=window, features=features, axes=axes)


def _draw(
    panels: Mapping[str, DerivativeSpectra],
    styles: Mapping[str, Mapping[str, Any]],
    *,
    steepest: Sequence[DerivativeSpectra],
    names: Sequence[str] | None,
    window: Window | None,
    features: Iterable[Feature],
    axes: Sequence[Axes] | None,
) -> list[Axes]:
    """Draw spectra in one panel, and three sets of derivatives, of one star and grid, below it on one scale.

    ``styles`` tells how lines of spectra look, in the order of drawing and
    only of panels whose spectrum is drawn; ``steepest`` decides which
    elements are shown if ``names`` is None.
    """
    _require_alike(panels)
    reference = next(iter(panels.values()))
    grid = reference.grid
    low, high, show = pixels_of(grid, window)
    names = _steepest_elements(steepest, show, N_STEEPEST) if names is None else names
    units = sorted({str(reference[name].unit) for name in names})
    if len(units) != 1:
        raise ValueError(f"names must be labels of one unit, but derivatives by {list(names)} are in {units}")
    if axes is None:
        axes = new_axes(4, figsize=(11, 9), sharex=True)
    axes = list(np.ravel(axes))
    if len(axes) != 4:
        raise ValueError(f"four axes are needed, but got {len(axes)}")

    wavelength = grid.wavelength.to_value(u.AA)
    x = with_gaps(grid, wavelength)
    for text, style in styles.items():
        axes[0].plot(x, with_gaps(grid, panels[text].flux, show), label=text, **{"lw": 1} | style)
    axes[0].set_ylabel("normalised flux")
    for axis, (text, derivatives) in zip(axes[1:], panels.items(), strict=True):
        _derivative_panel(axis, derivatives, names, x, show)
        axis.set_ylabel(f"{text}\nderivative [{units[0]}]")
    limits = np.array([axis.get_ylim() for axis in axes[1:]])
    for axis in axes[1:]:
        axis.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    features = list(features)
    for axis in axes:
        axis.set_xlim(low, high)
        for feature in features:
            axis.axvspan(*wavelength[[feature.start, feature.stop - 1]], color=SHADE, lw=0, zorder=-1)
    for axis in axes[:2]:
        axis.legend(frameon=False, fontsize=9, ncols=8, loc="lower right", bbox_to_anchor=(1, 1), handlelength=3)
    axes[-1].set_xlabel("vacuum wavelength [Å]")
    return axes


def _derivative_panel(ax, derivatives, names, x, show):
    """Derivatives by some labels, each in the style of its element, with bands of their uncertainties."""
    grid = derivatives.grid
    for name in names:
        slope, label = derivatives[name].value, label_text(name)
        color, linestyle, _ = element_style(symbol_of(name) if name.endswith("_h") else name)
        ax.plot(x, with_gaps(grid, slope, show), color=color, ls=linestyle, lw=1, label=label)
        if derivatives.uncertainties:
            error = derivatives.uncertainties[name].value
            band = (with_gaps(grid, edge, show) for edge in (slope - error, slope + error))
            ax.fill_between(x, *band, color=color, alpha=0.25, lw=0)
    ax.axhline(0, color=NEUTRAL, lw=0.5, zorder=0)


def _difference_of(panels):
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
