"""What figures share: colours, axes, gaps."""

from __future__ import annotations

import astropy.units as u
import numpy as np

from cyclestarnet.exceptions import GridError

# Okabe and Ito's colours, which all kinds of colour vision tell apart.
DOMAIN_STYLES = {"synth": ("synthetic", "#0072B2"), "obs": ("observed", "#D55E00")}
NEUTRAL, SHADE = "0.25", "0.88"
# All kinds of colour vision tell the six colours apart, and marks tell apart the elements of one colour.
ELEMENT_COLORS = ("#117733", "#AA3377", "#E69F00", "#56B4E9", "#332288", "#000000")
ELEMENT_MARKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
ELEMENTS = (
    *("Fe", "Mg", "Si", "C", "O", "N"),
    *("Al", "Ca", "Ni", "Mn", "K", "Ti"),
    *("Cr", "S", "V", "Co", "Na", "Ce"),
    *("P", "Cu", "Nd", "Yb", "Rb", "Ge"),
)
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def pyplot():
    """Import Matplotlib, or say how to get it."""
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "cyclestarnet[matplotlib]"') from error
    return plt


def element_style(element):
    """Colour, line style and marker of an element, the same in all figures; rare elements share those of others."""
    k = ELEMENTS.index(element) if element in ELEMENTS else sum(map(ord, element))
    linestyle, marker = ELEMENT_MARKS[k // len(ELEMENT_COLORS) % len(ELEMENT_MARKS)]
    return ELEMENT_COLORS[k % len(ELEMENT_COLORS)], linestyle, marker


def pixels_of(grid, window):
    """Both ends of a window [Angstrom], or those of the grid, and which pixels lie in it."""
    wavelength = grid.wavelength.to_value(u.AA)
    low, high = wavelength[[0, -1]] if window is None else [u.Quantity(edge).to_value(u.AA) for edge in window]
    show = (wavelength >= low) & (wavelength <= high)
    if not show.any():
        raise GridError(f"window {low:g} to {high:g} Angstrom holds no pixel of {grid!r}")
    return low, high, show


def with_gaps(grid, array, show=True):
    """Pixels with NaN in between where one chip ends, so that no line bridges chips, and where they are not shown."""
    return np.insert(np.where(show, array, np.nan), [start for start, _ in grid.chips[1:]], np.nan)


def plain_log_ticks(ax):
    """Write 1, 2, 5, 10, ... at a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def mark_guess(ax, value, text, *, below=False):
    """Dotted line of judges that can only guess."""
    ax.axhline(value, color=NEUTRAL, lw=1, ls=":", zorder=1)
    ax.annotate(
        text, (1, value), (0, -8 if below else 2), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", fontsize=7, color=NEUTRAL,
    )  # fmt: skip
