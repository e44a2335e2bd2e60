"""What figures share: colours, axes, gaps.

All functions that plot return what they have drawn on: the `~matplotlib.axes.Axes` of one panel, or a list of them.
"""

from __future__ import annotations

import weakref
from types import ModuleType
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np
from numpy.typing import ArrayLike

from cyclestarnet.exceptions import GridError
from cyclestarnet.grid import WavelengthGrid, Window, range_of
from cyclestarnet.labels import unit_of_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "breaks_of",
    "element_style",
    "label_text",
    "mark_guess",
    "new_axes",
    "new_figure",
    "one_axes",
    "pixels_of",
    "plain_log_ticks",
    "pyplot",
    "telling_ranges",
    "tidy",
    "with_gaps",
]

# Okabe and Ito's colours, which all kinds of colour vision tell apart.
DOMAIN_STYLES = {"synth": ("synthetic", "#0072B2"), "obs": ("observed", "#D55E00")}
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
NEUTRAL, SHADE = "0.25", "0.88"
# Colour vision tells these six apart, too, and marks tell apart the elements of one colour.
ELEMENT_COLORS = ("#117733", "#AA3377", "#E69F00", "#56B4E9", "#332288", "#000000")
ELEMENT_MARKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
ELEMENTS = (
    *("Fe", "Mg", "Si", "C", "O", "N"),
    *("Al", "Ca", "Ni", "Mn", "K", "Ti"),
    *("Cr", "S", "V", "Co", "Na", "Ce"),
    *("P", "Cu", "Nd", "Yb", "Rb", "Ge"),
)


def pyplot() -> ModuleType:
    """Import Matplotlib, or say how to get it.

    Returns
    -------
    module
        ``matplotlib.pyplot``.

    Raises
    ------
    ImportError
        If Matplotlib is not installed; the message tells which extra has it.

    Examples
    --------
    Where a figure is drawn, so that the package does without Matplotlib elsewhere::

        figure, axes = pyplot().subplots()
    """
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "cyclestarnet[matplotlib]"') from error
    return plt


WITHOUT_WINDOW = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}  # backends of Matplotlib
_last: dict[str, weakref.ref[Figure]] = {}


def new_figure(figsize: tuple[float, float], **options: Any) -> Figure:
    """Make a figure, and close the one that was made before: at most one is open.

    A figure that was closed can still be saved. Windows stay; in a notebook the one before is shown first, as
    it would be at the end of its cell.

    Parameters
    ----------
    figsize : (float, float)
        Width and height, in inches.
    **options
        For `matplotlib.pyplot.figure`.

    Returns
    -------
    `~matplotlib.figure.Figure`
        Without axes.

    Examples
    --------
    ::

        figure = new_figure((7, 5))
    """
    plt = pyplot()
    before = _last["figure"]() if _last else None
    if before is not None and plt.fignum_exists(before.number):
        backend = plt.get_backend().lower()
        in_notebook = "inline" in backend
        if in_notebook:
            from IPython.display import display

            display(before)
        if in_notebook or backend in WITHOUT_WINDOW:
            plt.close(before)
    figure = plt.figure(figsize=figsize, **options)
    _last["figure"] = weakref.ref(figure)
    return figure


def new_axes(n_rows: int = 1, n_columns: int = 1, *, figsize: tuple[float, float], **options: Any) -> list[Axes]:
    """Make panels in a new figure; see `new_figure`.

    Parameters
    ----------
    n_rows, n_columns : int, optional
        How many.
    figsize : (float, float)
        Width and height of the figure, in inches.
    **options
        For `matplotlib.figure.Figure.subplots`.

    Returns
    -------
    list of `~matplotlib.axes.Axes`
        Row by row.

    Examples
    --------
    ::

        top, bottom = new_axes(2, figsize=(7, 5))
    """
    figure = new_figure(figsize, layout="constrained")
    return figure.subplots(n_rows, n_columns, squeeze=False, **options).ravel().tolist()


def one_axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """Give the axes that a user gave, or those of a new figure.

    Parameters
    ----------
    ax : `~matplotlib.axes.Axes` or None
        As it was given.
    figsize : (float, float)
        Width and height of a new figure, in inches.

    Returns
    -------
    `~matplotlib.axes.Axes`
        To draw on.

    Examples
    --------
    ::

        ax = one_axes(None, (7, 5))
    """
    return new_axes(figsize=figsize)[0] if ax is None else ax


def tidy(ax: Axes) -> None:
    """Take the frame off at the top and at the right, and put the grid behind what is drawn.

    Parameters
    ----------
    ax : `~matplotlib.axes.Axes`
        Changed in place.

    Examples
    --------
    ::

        tidy(ax)
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)


def element_style(element: str) -> tuple[str, str, str]:
    """Look up how an element is drawn, the same in all figures.

    Parameters
    ----------
    element : str
        Its symbol, or the name of any other label. Rare ones share the style of others.

    Returns
    -------
    color, linestyle, marker : str
        As Matplotlib takes them.

    Examples
    --------
    >>> from cyclestarnet.plotting.axes import element_style
    >>> element_style("Mg")
    ('#AA3377', '-', 'o')
    """
    k = ELEMENTS.index(element) if element in ELEMENTS else sum(map(ord, element))
    linestyle, marker = ELEMENT_MARKS[k // len(ELEMENT_COLORS) % len(ELEMENT_MARKS)]
    return ELEMENT_COLORS[k % len(ELEMENT_COLORS)], linestyle, marker


def label_text(name: str, *, unit: bool = False) -> str:
    """Write a label as people do.

    Parameters
    ----------
    name : str
        Of the label.
    unit : bool, optional
        Whether to add its unit, as at an axis; dex goes without saying. Default: no.

    Returns
    -------
    str
        The name itself, if nobody writes it otherwise.

    Examples
    --------
    >>> from cyclestarnet.plotting.axes import label_text
    >>> [label_text(name, unit=True) for name in ("teff", "logg", "m_h", "alpha_m", "mg_h", "vmicro")]
    ['Teff [K]', 'log g', '[M/H]', '[α/M]', '[Mg/H]', 'vmicro [km/s]']
    """
    above, _, below = name.partition("_")
    text = {"teff": "Teff", "logg": "log g", "c12_c13": "¹²C/¹³C"}.get(name, name)
    if below in ("h", "m", "fe"):
        above, below = ("α" if part == "alpha" else part.capitalize() for part in (above, below))
        text = f"[{above}/{below}]"
    shown = unit_of_label(name).to_string().replace(" ", "")
    return text if not unit or not shown or shown.startswith("dex") else f"{text} [{shown}]"


def pixels_of(grid: WavelengthGrid, window: Window | None) -> tuple[float, float, np.ndarray]:
    """Find the pixels of a window.

    Parameters
    ----------
    grid : `~cyclestarnet.WavelengthGrid`
        Of the spectra that are drawn.
    window : (low, high) or None
        Both ends, as vacuum wavelengths; plain numbers are in Angstrom. None is the whole grid.

    Returns
    -------
    low, high : float
        The ends, in Angstrom.
    show : array of bool, shape (n_pixels,)
        Which pixels lie within.

    Raises
    ------
    GridError
        If none does.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet import WavelengthGrid
    >>> from cyclestarnet.plotting.axes import pixels_of
    >>> grid = WavelengthGrid([1500.0, 1500.1, 1500.2] * u.nm)
    >>> low, high, show = pixels_of(grid, (1500.05 * u.nm, 1600 * u.nm))
    >>> show
    array([False,  True,  True])
    """
    wavelength = grid.wavelength.to_value(u.AA)
    low, high = wavelength[[0, -1]] if window is None else range_of(window, "window")
    show = (wavelength >= low) & (wavelength <= high)
    if not show.any():
        raise GridError(f"window {low:g} to {high:g} Angstrom holds no pixel of {grid!r}")
    return low, high, show


def with_gaps(grid: WavelengthGrid, array: ArrayLike, show: ArrayLike = True) -> np.ndarray:
    """Put a NaN between chips, so that no line bridges them.

    Parameters
    ----------
    grid : `~cyclestarnet.WavelengthGrid`
        Of the array.
    array : array, shape (n_pixels,)
        What is drawn: wavelengths as well as fluxes.
    show : array of bool, shape (n_pixels,), optional
        Other pixels become NaN. Default: all are shown.

    Returns
    -------
    array, shape (n_pixels + n_chips − 1,)
        A copy.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet import WavelengthGrid
    >>> from cyclestarnet.plotting.axes import with_gaps
    >>> grid = WavelengthGrid([1500.0, 1500.1, 1600.0, 1600.1] * u.nm, chips=((0, 2), (2, 4)))
    >>> with_gaps(grid, [1.0, 0.9, 0.8, 0.7])
    array([1. , 0.9, nan, 0.8, 0.7])
    """
    return np.insert(np.where(show, array, np.nan), [start for start, _ in grid.chips[1:]], np.nan)


def breaks_of(wavelength: np.ndarray) -> np.ndarray:
    """Find where wavelengths leap from one chip to the next.

    Parameters
    ----------
    wavelength : array, shape (n_pixels,)
        In Angstrom, rising.

    Returns
    -------
    array of int
        First pixels of all chips but the first.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.plotting.axes import breaks_of
    >>> breaks_of(np.array([1.0, 1.1, 1.2, 2.0, 2.1]))
    array([3])
    """
    steps = np.diff(wavelength)
    return np.flatnonzero(steps > 5 * np.median(steps)) + 1


def telling_ranges(wavelength: np.ndarray, signal: np.ndarray, *, width: float) -> list[tuple[float, float]]:
    """Find the stretch of each chip where most is to be seen.

    Parameters
    ----------
    wavelength : array, shape (n_pixels,)
        In Angstrom, rising.
    signal : array, shape (n_pixels,)
        What is to be seen; the sum of its squares counts.
    width : float
        Of the stretches, in Angstrom. A chip that is narrower is taken whole.

    Returns
    -------
    list of (float, float)
        Both ends of a stretch per chip.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.plotting.axes import telling_ranges
    >>> wavelength = np.arange(100.0)
    >>> telling_ranges(wavelength, np.exp(-((wavelength - 50) ** 2)), width=10)  # doctest: +ELLIPSIS
    [(np.float64(4...), np.float64(5...))]
    """
    ranges = []
    for part in np.split(np.arange(len(wavelength)), breaks_of(wavelength)):
        own = wavelength[part]
        span = min(width, own[-1] - own[0])
        total = np.concatenate([[0.0], np.cumsum(signal[part] ** 2)])
        starts = np.flatnonzero(own <= own[-1] - span + 1e-6)
        stops = np.searchsorted(own, own[starts] + span)
        low = own[starts[np.argmax(total[stops] - total[starts])]]
        ranges.append((low, low + span))
    return ranges


def plain_log_ticks(ax: Axes) -> None:
    """Write 1, 2, 5, 10, ... at a logarithmic axis.

    Parameters
    ----------
    ax : `~matplotlib.axes.Axes`
        Its y axis is changed in place.

    Examples
    --------
    ::

        ax.set_yscale("log")
        plain_log_ticks(ax)
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def mark_guess(ax: Axes, value: float, text: str, *, below: bool = False) -> None:
    """Draw a dotted line at what a judge reaches by guessing, and write what it is at its right end.

    Parameters
    ----------
    ax : `~matplotlib.axes.Axes`
        Changed in place.
    value : float
        Height of the line, in units of the y axis.
    text : str
        A few words.
    below : bool, optional
        Whether to write below the line. Default: above it.

    Examples
    --------
    ::

        mark_guess(ax, 0.5, "guess", below=True)
    """
    ax.axhline(value, color=NEUTRAL, lw=1, ls=":", zorder=1)
    ax.annotate(
        text, (1, value), (0, -8 if below else 2), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", fontsize=7, color=NEUTRAL,
    )  # fmt: skip
