"""Strong features of elements, found by their derivatives, and masks that take some of them away (S1, Section 4.2).

Line lists of synthetic spectra lack lines. A study of what translation makes of
that takes known lines away on purpose: features of a model are found, some are
chosen at random, and their pixels are set to the continuum.

S1 is O'Briain et al. (2021).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike

import astropy.units as u
import numpy as np
from astropy.table import QTable
from numpy.typing import ArrayLike

from cyclestarnet.derivatives import DerivativeSpectra, require_one_star
from cyclestarnet.exceptions import FileFormatError, GridError
from cyclestarnet.files import write_atomically
from cyclestarnet.labels import LabelSet
from cyclestarnet.lines.elements import elements_of, label_of, symbol_of
from cyclestarnet.lines.protocols import Gaussian, Model
from cyclestarnet.reading.tables import read_table

__all__ = ["Feature", "FeatureMask", "Features", "find_features", "k_giant"]

# The star at which S1 looks for features; its abundances are solar.
K_GIANT = {"teff": 4750.0, "logg": 2.5}
FORMAT = "cyclestarnet-features-1"


@dataclass(frozen=True)
class Feature:
    """A stretch of pixels in which one element matters.

    Parameters
    ----------
    element : str
        Symbol of the element, such as ``"Mg"``.
    start, stop : int
        Its pixels, half-open.
    peak : int
        The pixel with the steepest derivative.
    wavelength : `~astropy.units.Quantity`
        Of the peak, in vacuum.
    extent : `~astropy.units.Quantity`
        From the blue edge of the first pixel to the red edge of the last.
    depth : float
        1 − flux at the peak, to which other elements may contribute.
    slope : `~astropy.units.Quantity`
        ∂flux/∂[X/H] at the peak, in 1/dex; negative.

    Examples
    --------
    `find_features` makes them; what the slope says of one of them:

    >>> import astropy.units as u
    >>> from cyclestarnet.lines import Feature
    >>> line = Feature("Mg", 3, 8, 5, 15753.2 * u.AA, 1.1 * u.AA, depth=0.3, slope=-0.2 / u.dex)
    >>> print(f"0.1 dex more of {line.element}: {line.slope * 0.1 * u.dex:.2f} of the continuum")
    0.1 dex more of Mg: -0.02 of the continuum
    >>> line.label, line.pixels
    ('mg_h', slice(3, 8, None))
    """

    element: str
    start: int
    stop: int
    peak: int
    wavelength: u.Quantity
    extent: u.Quantity
    depth: float
    slope: u.Quantity

    @property
    def label(self) -> str:
        """Name of the element's label, such as ``"mg_h"``."""
        return label_of(self.element)

    @property
    def pixels(self) -> slice:
        """Its pixels, as a slice."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """Strong features of elements, element by element and from blue to red; see `find_features`.

    Features of *different* elements may share pixels, as molecules of C, N
    and O do. Those of one element do not.

    Parameters
    ----------
    features : sequence of `Feature`
        In any order; `find_features` gives that of the elements, and of wavelengths.
    n_pixels : int
        Of the spectra in which they are.
    settings : dict, optional
        How they were found; kept in tables and files.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.lines import Feature, Features
    >>> about = (15753.2 * u.AA, 1.1 * u.AA, 0.3, -0.2 / u.dex)
    >>> features = Features([Feature("Mg", start, start + 3, start + 1, *about) for start in (0, 4)], n_pixels=9)
    >>> features
    <Features 2: 2 of Mg>
    >>> [feature.peak for feature in features]
    [1, 5]
    """

    features: tuple[Feature, ...]
    n_pixels: int
    settings: Mapping = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "features", tuple(self.features))

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    def __getitem__(self, index: int) -> Feature:
        return self.features[index]

    @property
    def counts(self) -> dict[str, int]:
        """Number of features of each element, by name."""
        return dict(Counter(feature.element for feature in self))

    def choose(self, fraction: float, seed: int | np.random.Generator) -> FeatureMask:
        """Choose a fraction of the features of each element, to be masked.

        Parameters
        ----------
        fraction : float
            0 to 1; the number per element is rounded, halves to even.
        seed : int or `numpy.random.Generator`
            With the same seed, a larger fraction contains the features of a smaller one.

        Returns
        -------
        `FeatureMask`
            With the fraction and the seed among its settings; of a generator, no seed is known.

        Raises
        ------
        ValueError
            If the fraction is not between 0 and 1.

        Examples
        --------
        Synthetic spectra that lack three in ten features of each element::

            mask = find_features(model).choose(0.3, seed=1)
            lacking = mask.apply(flux)
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be between 0 and 1, but is {fraction}")
        rng, chosen = np.random.default_rng(seed), np.zeros(len(self), dtype=bool)
        elements = np.array([feature.element for feature in self])
        for element in self.counts:
            mine = rng.permutation(np.flatnonzero(elements == element))
            chosen[mine[: round(fraction * len(mine))]] = True
        known = isinstance(seed, int | np.integer)
        return FeatureMask(self, chosen, {"fraction": float(fraction), "seed": int(seed) if known else None})

    def to_table(self) -> QTable:
        """Put the features into a table.

        Returns
        -------
        `~astropy.table.QTable`
            A row per feature, with the columns of `Feature`; the settings and ``n_pixels`` are ``meta``.

        Examples
        --------
        The ten strongest features of iron::

            table = find_features(model).to_table()
            iron = table[table["element"] == "Fe"]
            print(iron[iron["slope"].argsort()[:10]])
        """
        columns = {
            "element": np.array([f.element for f in self], dtype=str),
            **{name: np.array([getattr(f, name) for f in self], dtype=int) for name in ("start", "stop", "peak")},
            "wavelength": u.Quantity([f.wavelength for f in self], u.AA),
            "extent": u.Quantity([f.extent for f in self], u.AA),
            "depth": np.array([f.depth for f in self], dtype=float),
            "slope": u.Quantity([f.slope for f in self], 1 / u.dex),
        }
        return QTable(columns, meta={"n_pixels": self.n_pixels} | dict(self.settings))

    def __repr__(self):
        return f"<Features {len(self)}: {', '.join(f'{n} of {element}' for element, n in self.counts.items())}>"

    def _repr_html_(self):
        return self.to_table()._repr_html_()


@dataclass(frozen=True, eq=False, repr=False)
class FeatureMask:
    """Features that are chosen to be absent.

    A mask acts on pixels: a feature that was *not* chosen loses those that it
    shares with chosen ones. `touched` tells which do.

    Parameters
    ----------
    features : `Features`
        All of them.
    chosen : array_like of bool, shape (n_features,)
        Which are absent.
    settings : dict, optional
        How they were chosen; kept in tables and files.

    Raises
    ------
    ValueError
        If ``chosen`` has not a value per feature.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.lines import Feature, FeatureMask, Features
    >>> about = (15753.2 * u.AA, 1.1 * u.AA, 0.3, -0.2 / u.dex)
    >>> features = Features([Feature("Mg", start, start + 3, start + 1, *about) for start in (0, 4)], n_pixels=9)
    >>> mask = FeatureMask(features, [False, True])
    >>> mask
    <FeatureMask 1 of 2 features, 3 of 9 pixels, 0 other features touched>
    >>> mask.apply([0.9] * 9)
    array([0.9, 0.9, 0.9, 0.9, 1. , 1. , 1. , 0.9, 0.9])
    """

    features: Features
    chosen: np.ndarray
    settings: Mapping = field(default_factory=dict)

    def __post_init__(self):
        chosen = np.array(self.chosen, dtype=bool)
        if chosen.shape != (len(self.features),):
            raise ValueError(f"chosen must have a value for each of {len(self.features)} features, got {chosen.shape}")
        chosen.flags.writeable = False
        object.__setattr__(self, "chosen", chosen)

    @cached_property
    def pixels(self) -> np.ndarray:
        """Masked pixels: array of bool, shape (n_pixels,)."""
        pixels = np.zeros(self.features.n_pixels, dtype=bool)
        for feature in self.masked:
            pixels[feature.pixels] = True
        pixels.flags.writeable = False
        return pixels

    @property
    def masked(self) -> list[Feature]:
        """The chosen features, as a list."""
        return [feature for feature, chosen in zip(self.features, self.chosen, strict=True) if chosen]

    @property
    def touched(self) -> list[Feature]:
        """Features that were not chosen and lose pixels all the same, as a list."""
        others = zip(self.features, self.chosen, strict=True)
        return [feature for feature, chosen in others if not chosen and self.pixels[feature.pixels].any()]

    def apply(self, flux: ArrayLike) -> np.ndarray:
        """Spectra with the continuum, 1, in masked pixels.

        Parameters
        ----------
        flux : array_like, shape (..., n_pixels)
            Normalised; it is not changed.

        Returns
        -------
        array, shape (..., n_pixels)
            A copy with 1 in masked pixels, also where the flux was NaN.

        Raises
        ------
        GridError
            If the spectra have another number of pixels.

        Examples
        --------
        Spectra of a model without the features that were chosen::

            lacking = mask.apply(model.predict(labels, domain="synthetic").flux.value)
        """
        flux = np.asarray(flux)
        if flux.shape[-1:] != self.pixels.shape:
            raise GridError(f"flux must have shape (..., {len(self.pixels)}), as the mask has, but has {flux.shape}")
        return np.where(self.pixels, 1.0, flux)

    def to_table(self) -> QTable:
        """Put all features into a table, and which of them are masked.

        Returns
        -------
        `~astropy.table.QTable`
            That of `Features.to_table` with a column ``masked``, and the settings of both as ``meta``.

        Examples
        --------
        How many features of each element are masked::

            table = mask.to_table()
            print(table[table["masked"]].group_by("element").groups.aggregate(len)["element", "masked"])
        """
        table = self.features.to_table()
        table["masked"] = self.chosen
        table.meta |= dict(self.settings)
        return table

    def write(self, path: str | PathLike) -> None:
        """Write the features, which of them are masked, and all settings to an ECSV file, atomically.

        Parameters
        ----------
        path : path-like
            An existing file is replaced.

        Examples
        --------
        Kept with what was made with it, and read again::

            mask.write("mask.ecsv")
            mask = FeatureMask.read("mask.ecsv")
        """
        table = self.to_table()
        table.meta = {"format": FORMAT, "found": dict(self.features.settings), "chosen": dict(self.settings)} | {
            "n_pixels": self.features.n_pixels
        }
        write_atomically(path, lambda temporary: table.write(temporary, format="ascii.ecsv", overwrite=True))

    @classmethod
    def read(cls, path: str | PathLike) -> FeatureMask:
        """Read a mask that `write` wrote.

        Parameters
        ----------
        path : path-like
            An ECSV file.

        Returns
        -------
        `FeatureMask`
            With the features and all settings.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        FileFormatError
            If the file is damaged or another one.

        Examples
        --------
        Score a catalogue against what its model did not see::

            score = score_missing_lines(lines, FeatureMask.read("mask.ecsv"))
        """
        try:
            table = read_table(path)
            if table.meta["format"] != FORMAT:
                raise ValueError(f"its format is {table.meta['format']!r}")
            chosen = np.asarray(table["masked"])
            table.remove_column("masked")
            rows = [Feature(**{name: _plain(row[name]) for name in table.colnames}) for row in table]
            features = Features(rows, int(table.meta["n_pixels"]), table.meta["found"])
            return cls(features, chosen, table.meta["chosen"])
        except FileNotFoundError:
            raise
        except Exception as error:  # astropy raises a different class for each kind of damage
            raise FileFormatError(f"{path} is no file of masked features, or is damaged: {error}") from error

    def __repr__(self):
        return (
            f"<FeatureMask {len(self.masked)} of {len(self.features)} features, {self.pixels.sum()} of "
            f"{len(self.pixels)} pixels, {len(self.touched)} other features touched>"
        )

    def _repr_html_(self):
        return self.to_table()._repr_html_()


def find_features(
    source: Model | DerivativeSpectra,
    labels: Mapping[str, u.Quantity] | None = None,
    *,
    strong: float = -0.1,
    edge: float = -0.02,
    least: int = 4,
) -> Features:
    """Find the strong features of each element by derivatives of the flux (S1, Section 4.2).

    A feature is a stretch of pixels with ∂flux/∂[X/H] below ``edge``, at least
    one of them below ``strong``. Lines that are so close that the derivative
    stays below ``edge`` between them are one feature. None crosses the edge of
    a chip. A feature is of one element; where several absorb, each has its own.

    Parameters
    ----------
    source : `~cyclestarnet.CalibratedModel` or `~cyclestarnet.derivatives.DerivativeSpectra`
        A model, of which the synthetic domain is meant, or derivatives of one
        star. Elements are the labels ``c_h``, ``mg_h``, ..., without ``m_h``.
    labels : mapping of str to `~astropy.units.Quantity`, optional
        Of a model: where to take the derivatives. Default: a K giant of 4750 K
        and log g 2.5 with solar abundances; other labels are as the model's
        prior expects them of such a star.
    strong, edge : float, optional
        Derivatives in 1/dex, negative, that a feature must reach, and at which it ends. Default:
        −0.1 and −0.02.
    least : int, optional
        Elements with fewer strong features are left out. Default: 4.

    Returns
    -------
    `Features`
        With the thresholds, the labels and what is known of the derivatives as settings.

    Raises
    ------
    LabelError
        If there is no element among the labels, or ``labels`` are outside the model's range.
    ValueError
        If a threshold has the wrong sign, or the derivatives are of several stars.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.lines import find_features
    >>> model = CalibratedModel.from_pretrained()
    >>> features = find_features(model)
    >>> features.counts["Fe"] > 4
    True
    >>> mask = features.choose(0.3, seed=1)
    >>> mask.apply(model.predict(model.labels.to_quantities(model.prior.mean)).flux.value).shape
    (7167,)
    """
    if not strong <= edge < 0:
        raise ValueError(f"strong and edge must be negative, and strong not above edge, but are {strong} and {edge}")
    if not isinstance(source, DerivativeSpectra):
        source = _derivatives(source, labels)
    elif labels is not None:
        raise ValueError("labels can be given for a model only; these derivatives were already taken somewhere")
    require_one_star(source, "features are those of")
    features = []
    for name in elements_of(source):
        found = _features_of(source, name, strong, edge)
        features += found if len(found) >= least else []
    labels = {name: float(value.value) for name, value in source.labels.items()}
    settings = {"strong": float(strong), "edge": float(edge), "least": int(least), "labels": labels}
    return Features(features, source.grid.n_pixels, settings | source.meta | {"domain": source.domain})


def k_giant(label_set: LabelSet, prior: Gaussian) -> np.ndarray:
    """Labels of the paper's K giant (S1, Section 4.2): 4750 K, log g 2.5, solar abundances.

    Parameters
    ----------
    label_set : `~cyclestarnet.LabelSet`
        The labels that are wanted.
    prior : `~cyclestarnet.GaussianPrior`
        Tells what such a star usually has of other labels, such as
        micro-turbulence and broadening. Of the same labels, in their order.

    Returns
    -------
    array, shape (n_labels,)
        In the units of the label set. Values beyond its range are moved to its edge.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import GaussianPrior, LabelSet
    >>> from cyclestarnet.lines import k_giant
    >>> label_set = LabelSet(("teff", "logg", "vmicro", "mg_h"), [4000, 0.5, 0.5, -1], [5500, 3.5, 2.5, 0.5])
    >>> k_giant(label_set, GaussianPrior([4800, 2.2, 1.4, -0.1], np.diag([1e4, 0.1, 0.01, 0.01]))).tolist()
    [4750.0, 2.5, 1.4, 0.0]
    """
    values = prior.mean.copy()
    solar = {name: 0.0 for name in label_set if name.endswith(("_h", "_m"))}
    known = np.array([name in K_GIANT | solar for name in label_set])
    values[known] = [(K_GIANT | solar)[name] for name in label_set if name in K_GIANT | solar]
    precision = prior.precision  # of a Gaussian, the conditional mean of some values given the others
    pull = precision[np.ix_(~known, known)] @ (values - prior.mean)[known]
    values[~known] -= np.linalg.solve(precision[np.ix_(~known, ~known)], pull)
    return values.clip(label_set.lower, label_set.upper)


def _derivatives(model, labels):
    """Derivatives of a model's synthetic spectra with respect to its elements, at one star."""
    values = k_giant(model.labels, model.prior) if labels is None else model.labels.to_array(labels)
    star = model.labels.to_quantities(values)
    return model.derivative_spectra(star, domain="synthetic", names=elements_of(model.labels))


def _features_of(source, name, strong, edge):
    """Features of one element, from blue to red."""
    slope, features = source[name].value, []
    for low, high in source.grid.chips:
        below = np.concatenate([[False], slope[low:high] < edge, [False]])
        edges = source.grid.edges((low, high))
        for start, stop in np.flatnonzero(below[1:] != below[:-1]).reshape(-1, 2):
            peak = low + start + int(np.argmin(slope[low + start : low + stop]))
            if slope[peak] < strong:
                features.append(
                    Feature(
                        element=symbol_of(name),
                        start=int(low + start),
                        stop=int(low + stop),
                        peak=peak,
                        wavelength=source.wavelength[peak],
                        extent=(edges[stop] - edges[start]) * u.AA,
                        depth=float(1 - source.flux[peak]),
                        slope=source[name][peak],
                    )
                )
    return features


def _plain(value):
    """A number or text of a table's row as Python's own."""
    return value if isinstance(value, u.Quantity) else value.item()
