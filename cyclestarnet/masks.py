"""Where synthetic spectra are wrong whatever the star: a mask of wavelengths, made of what fits leave over.

A pixel of a star is bad because of its data, and readers and `~cyclestarnet.NoiseModel` see to that. A pixel of this
mask has good data, which the synthetic spectra do not describe: a line that their list lacks, or has too strong. Fits
leave it out of the comparison of model and data; networks that read spectra see it as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import astropy.units as u
import numpy as np
from astropy.table import QTable

from cyclestarnet.blanks import floats_of
from cyclestarnet.exceptions import FileFormatError, GridError
from cyclestarnet.files import write_atomically
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.reading.tables import read_table
from cyclestarnet.residuals import ResidualDensity, ResidualMap
from cyclestarnet.storage import storable

__all__ = ["SpectroscopicMask", "model_errors"]

THRESHOLD, SIGNIFICANCE = 0.03, 5.0
MASKED = ", masked"  # after the space of fits that leave out the pixels of a mask
# Standard errors of Gaussian samples of n, times √n / σ: of the median, and of half the 16-84 % range
MEDIAN_ERROR, WIDTH_ERROR = np.sqrt(np.pi / 2), 0.962
COLUMNS = ("low", "high", "n_pixels", "bias", "error")


def model_errors(
    residuals: ResidualMap | ResidualDensity,
    in_sigma: ResidualMap | ResidualDensity,
    *,
    significance: float = SIGNIFICANCE,
) -> np.ndarray:
    """How wrong a model is at each pixel, of which only counts what noise does not explain.

    The error of a pixel is √(b² + s²). b is the median of the residuals, by which all stars are off. s is their
    scatter beyond the noise, by which one star is off one way and the next the other: s² = w² (1 − 1/q²), where w
    is half the 16-84 % range of the residuals, and q the same in units of the quoted errors, 1 if these are all
    there is. Each of both counts if it is significant, and is 0 if it is not: ``|b|`` must be larger than
    ``significance`` times 1.25 w / √n, the standard error of a median of n stars, and q − 1 than ``significance`` times
    0.96 / √n, that of such a half-width.

    Parameters
    ----------
    residuals : `~cyclestarnet.residuals.ResidualMap` or `~cyclestarnet.residuals.ResidualDensity`
        Data − model of many stars, in units of the continuum.
    in_sigma : the same
        Of the same stars and pixels, in units of the quoted errors.
    significance : float, optional
        In standard errors. Default: 5.

    Returns
    -------
    array, shape (n_pixels,)
        1 σ, in units of the continuum; NaN at pixels that fewer than 3 stars have.

    Raises
    ------
    GridError
        If the residuals are on different pixels.
    ValueError
        If they are not in these units, or ``significance`` is not positive.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from cyclestarnet import WavelengthGrid
    >>> from cyclestarnet.masks import model_errors
    >>> from cyclestarnet.residuals import ResidualMap
    >>> grid, rng = WavelengthGrid([1500.0, 1500.1, 1500.2] * u.nm), np.random.default_rng(0)
    >>> values = rng.normal([0.0, 0.05, 0.0], [0.01, 0.01, 0.03], (400, 3))  # noise is 0.01
    >>> model_errors(ResidualMap(values, grid, in_sigma=False), ResidualMap(values / 0.01, grid)).round(2)
    array([0.  , 0.05, 0.03])
    """
    if residuals.grid != in_sigma.grid:
        raise GridError(f"both residuals must be on the same pixels, but are on {residuals.grid} and {in_sigma.grid}")
    if residuals.in_sigma or not in_sigma.in_sigma:
        raise ValueError("residuals must be in units of the continuum first, and in units of the errors second")
    if not significance > 0:
        raise ValueError(f"significance must be positive, but is {significance}")
    table, relative = residuals.to_table(), np.asarray(in_sigma.to_table()["half_width"])
    bias, width = np.asarray(table["bias"]), np.asarray(table["half_width"])
    with np.errstate(divide="ignore", invalid="ignore"):
        enough = significance / np.sqrt(np.asarray(table["n_values"]))
        scatter2 = np.where(relative - 1 > enough * WIDTH_ERROR, width**2 * (1 - relative**-2), 0.0)
        bias2 = np.where(np.abs(bias) > enough * MEDIAN_ERROR * width, bias**2, 0.0)
    return np.where(np.isfinite(bias), np.sqrt(bias2 + scatter2), np.nan)


@storable
@dataclass(frozen=True, eq=False)
class SpectroscopicMask:
    """Windows of wavelength at which synthetic and observed spectra disagree, whatever the star.

    Fits take it as ``ignore``: its pixels do not count in χ², but, other than those of plain ranges, networks that read
    the spectrum see them.

    Parameters
    ----------
    table : `~astropy.table.QTable`
        A row per window: ``low`` and ``high``, its vacuum wavelengths, halfway between pixels; ``n_pixels`` of the grid
        that it was made on; ``error`` of the model at the worst of them (see `model_errors`), and ``bias`` there, the
        median of data − model, both in units of the continuum. ``meta`` says how it was made.

    Raises
    ------
    GridError
        If the table lacks a column, or a window does not begin before it ends.

    See Also
    --------
    cyclestarnet.training.find_mask : makes one of a model and a set of spectra.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.table import QTable
    >>> from cyclestarnet import CalibratedModel, SpectroscopicMask, datasets
    >>> columns = {"low": [15700.0, 16100.0] * u.AA, "high": [15701.0, 16104.0] * u.AA}
    >>> mask = SpectroscopicMask(QTable(columns | {"n_pixels": [4, 18], "bias": [0.1, -0.1], "error": [0.1, 0.1]}))
    >>> model = CalibratedModel.from_pretrained()
    >>> int(mask.pixels(model.grid).sum())
    23
    >>> result = model.fit(datasets.k_giant(), space="emulator", ignore=mask)
    >>> bool(result.spectrum.mask[mask.pixels(model.grid)].all())
    True
    """

    table: QTable

    def __post_init__(self) -> None:
        missing = [name for name in COLUMNS if name not in self.table.colnames]
        if missing:
            raise GridError(f"a mask has the columns {', '.join(COLUMNS)}, but this table lacks {', '.join(missing)}")
        try:
            low, high = (u.Quantity(self.table[name]).to_value(u.AA) for name in ("low", "high"))
        except (u.UnitConversionError, TypeError) as error:
            raise GridError("low and high of a mask must be wavelengths, such as in Angstrom") from error
        wrong = np.flatnonzero(~(low < high))
        if len(wrong):
            raise GridError(f"window {wrong[0]} of the mask must begin before it ends, but is {low[wrong[0]]:g} to "
                            f"{high[wrong[0]]:g} Angstrom")  # fmt: skip

    @classmethod
    def of(
        cls,
        residuals: ResidualMap | ResidualDensity,
        in_sigma: ResidualMap | ResidualDensity,
        *,
        threshold: float = THRESHOLD,
        significance: float = SIGNIFICANCE,
    ) -> Self:
        """Make a mask of the pixels at which the error of a model is larger than a threshold.

        Parameters
        ----------
        residuals, in_sigma, significance
            As `model_errors` takes them: of fits with the emulator alone (S1, Eq. 9).
        threshold : float, optional
            In units of the continuum. Default: 0.03, three times the noise of a spectrum of S/N 100.

        Returns
        -------
        `SpectroscopicMask`
            Neighbouring pixels of a chip are one window. Pixels that fewer than 3 stars have are not masked.

        Raises
        ------
        GridError, ValueError
            As `model_errors`, and if ``threshold`` is not positive.

        Examples
        --------
        ::

            fits = [model.fit(star, space="emulator") for star in stars]
            left = [ResidualMap.of(fits, model.grid, in_sigma=unit) for unit in (False, True)]
            SpectroscopicMask.of(*left).write("mask.ecsv")
        """
        if not threshold > 0:
            raise ValueError(f"threshold must be positive, but is {threshold}")
        errors, table, rows = model_errors(residuals, in_sigma, significance=significance), residuals.to_table(), []
        bias, wrong = np.asarray(table["bias"]), np.nan_to_num(errors) > threshold
        for chip in residuals.grid.chips:
            begin, stop = chip
            edges, inside = residuals.grid.edges(chip), np.concatenate([[False], wrong[begin:stop], [False]])
            for first, end in np.flatnonzero(np.diff(inside)).reshape(-1, 2):
                worst = begin + first + int(np.argmax(errors[begin + first : begin + end]))
                rows.append((edges[first], edges[end], end - first, bias[worst], errors[worst]))
        low, high, n_pixels, offset, error = np.array(rows, dtype=float).reshape(-1, len(COLUMNS)).T
        columns = (low * u.AA, high * u.AA, n_pixels.astype(int), offset, error)
        meta = {
            "threshold": float(threshold), "significance": float(significance),
            "n_stars": int(np.max(table["n_values"])), "share": float(wrong.mean()),
        }  # fmt: skip
        return cls(QTable(dict(zip(COLUMNS, columns, strict=True)), meta=meta))

    @property
    def windows(self) -> list[tuple[float, float]]:
        """Edges of the windows, in Angstrom."""
        low, high = (u.Quantity(self.table[name]).to_value(u.AA).tolist() for name in ("low", "high"))
        return list(zip(low, high, strict=True))

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[tuple[float, float]]:
        return iter(self.windows)

    def __repr__(self) -> str:
        return f"<SpectroscopicMask of {len(self)} windows, {int(np.sum(self.table['n_pixels']))} pixels>"

    def pixels(self, grid: WavelengthGrid) -> np.ndarray:
        """Tell which pixels of a grid are masked.

        Parameters
        ----------
        grid : `~cyclestarnet.WavelengthGrid`
            It need not be the one that the mask was made on.

        Returns
        -------
        array of bool, shape (n_pixels,)
            True where the centre of a pixel lies in a window.

        Examples
        --------
        ::

            1 - mask.pixels(model.grid).mean()
        """
        wavelength, masked = grid.wavelength.to_value(u.AA), np.zeros(grid.n_pixels, dtype=bool)
        for low, high in self:
            masked |= (wavelength >= low) & (wavelength <= high)
        return masked

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the mask to a file, in one step.

        Parameters
        ----------
        path : path-like
            ``.ecsv``, text that a person can read. An existing file is replaced.

        Raises
        ------
        ValueError
            If the name has another ending.
        OSError
            If the file cannot be written.

        Examples
        --------
        ::

            mask.write("mask.ecsv")
        """
        if os.path.splitext(path)[1] != ".ecsv":
            raise ValueError(f"the name of a mask must end in .ecsv, but is {os.fspath(path)!r}")
        write_atomically(path, lambda file: self.table.write(file, format="ascii.ecsv", overwrite=True))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `write` wrote.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        `SpectroscopicMask`

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        FileFormatError
            If it is damaged, or no mask.

        Examples
        --------
        ::

            model.fit(star, ignore=SpectroscopicMask.read("mask.ecsv"))
        """
        table = read_table(path)
        try:
            mask = cls(table)
            for name in ("n_pixels", "bias", "error"):
                floats_of(table[name])
            return mask
        except (GridError, KeyError, ValueError, TypeError) as error:
            raise FileFormatError(f"{path} is no mask: {error}") from error
