"""The border between specutils and plain arrays: `~specutils.Spectrum` on one side, `Pixels` on the other.

Units, masks and the three kinds of uncertainty come off here, and spectra that
arrive on another grid are resampled with their masks. Nothing here writes into
the caller's arrays.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import astropy.units as u
import numpy as np
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike
from scipy.ndimage import maximum_filter1d, median_filter

from cyclestarnet.blanks import bools_of, floats_of, mask_behind, mask_of
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import CycleStarNetWarning, GridError, SpectrumError
from cyclestarnet.grid import WavelengthGrid

try:
    from specutils import Spectrum
except ImportError:  # specutils 1 knows the class by its old name only
    from specutils import Spectrum1D as Spectrum

__all__ = [
    "Pixels",
    "PortableSpectrum",
    "Spectrum",
    "check_frame",
    "row_of",
    "star_name",
    "to_pixels",
    "to_spectrum",
    "usual_steps",
]

# Between which the median of a normalised flux is, whatever the stars and the recipe
NORMALISED = (0.1, 10.0)
# Single-precision wavelengths of the same grid differ by 6e-8; a hundredth of an APOGEE pixel is 1.4e-7.
SAME_WAVELENGTH = 1e-7
# A step this many times the local one is a gap. Two dropped pixels make a gap, a change of sampling does not.
GAP_FACTOR = 3.0
# Steps at each side of one that tell what is usual there.
SIDE = 3
# Merged exposures and overlapping orders have their pixels in groups, of so many or those of two pixels of the model,
# and steps from group to group that are alike: one of twice the usual size is a gap.
GROUP_SIZE, GROUP_FACTOR = 11, 2.0
GROUPS_AROUND = 4  # at each side: far enough to be more than what is missing around a gap
# With less than half of its width seen, the mean of a pixel tells more about its neighbour than about itself.
LEAST_COVERAGE = 0.5
# Losses of more pixels than the first, and than this fraction of the good pixels of the model, are worth a warning.
FEW_LOST, LARGEST_LOSS = 10, 0.01

_PARTS = ("flux", "spectral_axis", "mask", "meta")  # of a spectrum, beside its uncertainty
_COUNT_UNITS = {"adu", "ct", "DN", "electron", "mgy", "ph"}
_PER_UNITS = {"beam", "bin", "pix", "vox"}
_EXAMPLE = "Spectrum(flux=..., spectral_axis=..., uncertainty=StdDevUncertainty(...))"


@dataclass(frozen=True, eq=False)
class Pixels:
    """A spectrum on the pixels of a model, as plain arrays.

    Parameters
    ----------
    flux : array_like, shape (n_pixels,)
        Continuum-normalised flux. Ignored pixels hold 1.
    ivar : array_like, shape (n_pixels,)
        Inverse variance of ``flux``; 0 = the pixel is ignored.
    continuum : array_like, shape (n_pixels,), optional
        What the flux was divided by, in the unit of the flux that came in; NaN where it is not known.
        None if the flux was taken as normalised.
    raw : array_like, shape (n_pixels,), optional
        Normalised flux as the spectrum has it, also at ignored pixels; NaN where it has none, as between the
        pixels of a spectrum that was resampled. Default: ``flux``.
    n_lost : int, optional
        Good pixels of the spectrum on the chips of the model of which resampling could make nothing: those between
        gaps or bad pixels that cover less than half of any pixel of the model. Default: 0.
    degrees : tuple of int, optional
        Degree of the continuum of each chip, as `~cyclestarnet.ContinuumRecipe.fit` gives it. Default: none.
    share : array_like, shape (n_pixels,), optional
        Of an independent measurement that each pixel stands for: variance of its flux times ``ivar``. Less than 1
        where a spectrum was resampled, because neighbours have their noise in common; 0 where ``ivar`` is.
        Default: 1.

    Raises
    ------
    SpectrumError
        If the shapes differ, or ``ivar`` is negative or not finite.

    Examples
    --------
    >>> from cyclestarnet.spectra import Pixels
    >>> Pixels([1.0, 0.9, 1.0], [1e4, 1e4, 0.0]).n_good
    2
    """

    flux: np.ndarray
    ivar: np.ndarray
    continuum: np.ndarray | None = None
    raw: np.ndarray | None = None
    n_lost: int = 0
    degrees: tuple[int, ...] = ()
    share: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.raw is None:
            object.__setattr__(self, "raw", self.flux)
        if self.share is None:
            object.__setattr__(self, "share", np.ones(np.shape(self.flux)))
        unknown = mask_of(self.flux)
        if unknown is not None and np.shape(self.ivar) == unknown.shape:
            object.__setattr__(self, "ivar", np.where(unknown, 0.0, _ivar_of(self.ivar)))
            object.__setattr__(self, "flux", np.where(unknown, 1.0, floats_of(self.flux)))
        object.__setattr__(self, "ivar", _ivar_of(self.ivar))
        names = ("flux", "ivar", "continuum", "raw", "share")
        for name in names:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, floats_of(getattr(self, name)))
        arrays = {name: getattr(self, name) for name in names}
        if self.share.shape == self.ivar.shape:
            object.__setattr__(self, "share", np.where(self.ivar > 0, self.share, 0.0))
        shapes = {name: np.shape(array) for name, array in arrays.items() if array is not None}
        if len(set(shapes.values())) != 1 or self.flux.ndim != 1:
            raise SpectrumError(f"{', '.join(names)} must be (n_pixels,) arrays of one length, but are {shapes}")
        if not np.all((self.ivar >= 0) & (self.ivar < np.inf)):
            raise SpectrumError("ivar must be finite and 0 or positive; 0 marks a pixel to ignore")

    @property
    def sigma(self) -> np.ndarray:
        """Error of the flux, 1 σ; infinite where the pixel is ignored."""
        with np.errstate(divide="ignore"):
            return self.ivar**-0.5

    @property
    def normalisation(self) -> str:
        """How the flux was normalised, in words: ``"as given"``, or by a recipe with polynomials of such degrees."""
        if self.continuum is None:
            return "as given"
        degrees = ["none" if degree < 0 else str(degree) for degree in self.degrees]
        return f"recipe, degree {degrees[0]}" if len(set(degrees)) == 1 else f"recipe, degrees {', '.join(degrees)}"

    @property
    def n_good(self) -> int:
        """Number of pixels with a positive inverse variance."""
        return int(np.count_nonzero(self.ivar))


def to_pixels(
    spectrum: Spectrum,
    grid: WavelengthGrid,
    *,
    recipe: ContinuumRecipe | None = None,
    ignore: ArrayLike | None = None,
) -> Pixels:
    r"""Put a spectrum on the pixels of a model.

    Wavelengths that agree with the grid's (to 1 part in 10 million) are taken
    as they are, also if the spectrum has more pixels at either side of a chip.
    Otherwise the flux is resampled, chip by chip; see Notes.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        Flux of shape (n,) in any unit of flux or counts, or dimensionless. The
        spectral axis is a vacuum wavelength, frequency, energy or wavenumber
        at rest, rising or falling. The uncertainty is a standard deviation, a
        variance or an inverse variance; without unit it has that of the flux.
        Ignored are pixels whose mask is True (or nonzero), whose flux or
        uncertainty is masked, whose flux is not finite, or that have an infinite sigma or an inverse variance of 0.
        The object is not changed.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of the model.
    recipe : `~cyclestarnet.ContinuumRecipe`, optional
        Divides the flux by its continuum, whatever its unit, also if it came
        normalised: only what went through the same recipe can be compared. Of
        a flux that did, it leaves what it was, but for a second order of its
        slopes. Default: the flux is taken as normalised, and must be dimensionless.
    ignore : array_like of bool, shape (n_pixels,), optional
        Pixels of the model to ignore; the continuum does not see them either. Default: none.

    Returns
    -------
    `Pixels`
        Arrays of shape (n_pixels,), float64. Pixels without data have
        ``flux`` 1 and ``ivar`` 0, and so have pixels whose continuum is not
        known, or not positive.

    Raises
    ------
    TypeError
        If ``spectrum`` is not a `~specutils.Spectrum`.
    GridError
        If the spectral axis is a velocity or pixel axis, holds air wavelengths
        (according to the metadata), is not at rest (according to its
        ``radial_velocity``), or does not overlap with the grid.
    SpectrumError
        If the flux has several rows or no flux unit, the uncertainty is absent
        or impossible at an unmasked pixel, no pixel or no continuum is left, or the flux has a
        physical unit and ``recipe`` is None.

    Warns
    -----
    CycleStarNetWarning
        If more than 1 % of the good pixels, and more than 10, are lost, as ``n_lost`` of the
        result counts them, or more than 1 % have no continuum.

    See Also
    --------
    to_spectrum : the way back.

    Notes
    -----
    Resampling conserves flux: the flux of an output pixel is the mean over the
    good input pixels :math:`j` under it, weighted by the overlaps
    :math:`o_{ij}`. The output pixel is good if they cover at least half of its
    width. A step of more than three times the local one, and of more than a
    pixel of the model, is a gap, which is never bridged. Where exposures were
    merged, or orders overlap, pixels stand in groups: then it is the step from
    group to group that counts, and one of more than twice the usual is a gap.
    Pixels of the same wavelength (to 1 part in 10 million) are averaged, with
    the weights of their inverse variances. Others stand for the wavelengths
    that are nearer to them than to another, so that of many exposures with
    nearly the same wavelengths the outer pixels of a group have most of the
    weight; average such exposures first. Flux per frequency and counts per
    pixel are averaged like flux per wavelength: over one pixel the difference
    is a constant factor, which the continuum takes.

    Resampling correlates neighbours, which an inverse variance per pixel
    cannot tell. The variance that comes out is therefore not that of the pixel
    alone, :math:`\sum_j W_{ij}^2 \sigma_j^2` with
    :math:`W_{ij} = o_{ij}/c_i,\ c_i = \sum_j o_{ij}`, with which the
    information in two half-pixel averages of the same noise counts twice, but

    .. math:: \sigma_i^2 = \sum_j W_{ij} \sigma_j^2 \, w_j / c_i,

    with the input widths :math:`w_j`. It conserves the inverse variance per
    wavelength interval: error bars of labels keep their size on any grid. The
    price is that chi2 per pixel comes out below 1 after resampling: by up to a
    factor of 2 for grids of the same step, and more on a finer one. The ``share`` of each
    pixel tells by how much. It is the variance of the pixel alone in units of this one; their sum is what chi2 of
    the noise is on the average, and, on a much finer grid, the number of input pixels.

    Examples
    --------
    >>> import numpy as np, astropy.units as u
    >>> from astropy.nddata import StdDevUncertainty
    >>> from cyclestarnet.grid import WavelengthGrid
    >>> from cyclestarnet.spectra import Spectrum, to_pixels
    >>> spectrum = Spectrum(
    ...     flux=np.ones(101) * u.one,
    ...     spectral_axis=np.linspace(1500, 1510, 101) * u.nm,
    ...     uncertainty=StdDevUncertainty(0.01 * np.ones(101)),
    ... )
    >>> pixels = to_pixels(spectrum, WavelengthGrid(np.linspace(15010, 15090, 41) * u.AA))
    >>> pixels.ivar[0].round()  # every pixel is the mean of two
    np.float64(20000.0)
    """
    if not isinstance(spectrum, Spectrum):
        raise TypeError(
            f"spectrum must be a specutils.Spectrum, but got {type(spectrum).__name__}; build one: {_EXAMPLE}"
        )
    if spectrum.flux.ndim != 1:
        raise SpectrumError(
            f"flux must have one dimension, but has shape {spectrum.flux.shape}; pass one row, for example spectrum[0]"
        )
    check_frame(spectrum)
    wavelength = _wavelength(spectrum.spectral_axis)
    raw, variance, physical = _flux_and_variance(spectrum, wavelength)
    flux = np.where(variance < np.inf, raw, 0.0)
    if physical and recipe is None:
        raise SpectrumError(
            f"flux has the unit '{spectrum.flux.unit}' and there is no continuum recipe to normalise it; "
            "pass recipe=ContinuumRecipe(...) or divide by the continuum first, so that the flux is dimensionless"
        )
    if recipe is not None and recipe.grid != grid:
        raise GridError("recipe must be made for the grid of the model, but its grid is another one")
    if wavelength[0] > wavelength[-1]:
        wavelength, flux, variance, raw = (array[::-1] for array in (wavelength, flux, variance, raw))
    wavelength, flux, variance, raw = _averaged(wavelength, flux, variance, raw)
    low, high = grid.wavelength.value[[0, -1]]
    if wavelength[-1] < low or wavelength[0] > high:
        raise GridError(
            f"spectrum covers {wavelength[0]:.1f} to {wavelength[-1]:.1f} Angstrom, which does not overlap with the "
            f"model's {low:.1f} to {high:.1f} Angstrom (vacuum); check the unit of the spectral axis"
        )

    selection, n_lost, share = _matching_pixels(wavelength, grid), 0, None
    if selection is not None:
        flux, variance, raw = flux[selection], variance[selection], raw[selection]
    else:
        flux, variance, share, n_lost = _resample(wavelength, flux, variance, grid)
        raw = np.where(variance < np.inf, flux, np.nan)
    if ignore is not None:
        variance, raw = np.where(ignore, np.inf, variance), np.where(ignore, np.nan, raw)
    ivar = 1 / variance  # infinite variance, that of ignored pixels, turns into 0
    if not np.any(ivar):
        raise SpectrumError(
            f"spectrum has no good pixel between {low:.1f} and {high:.1f} Angstrom: "
            "none is covered, or all there are masked, ignored or not finite"
        )

    _warn_of_lost(n_lost, ivar)

    if recipe is not None:
        flux, ivar, raw, continuum, degrees = _normalised(flux, ivar, raw, recipe)
    else:
        continuum, degrees = None, ()
    return Pixels(np.where(ivar > 0, flux, 1.0), ivar, continuum, raw, n_lost, degrees, share)


def _normalised(
    flux: np.ndarray, ivar: np.ndarray, raw: np.ndarray, recipe: ContinuumRecipe
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """Flux divided by its continuum, ivar, raw flux, the continuum and its degrees; pixels without one are bad."""
    continuum, degrees = recipe.fit(flux, ivar)
    usable, good = continuum > 0, ivar > 0
    if not np.any(usable & good):
        raise SpectrumError(
            "no chip has good continuum pixels enough"
            if np.isnan(continuum[good]).all()
            else "the continuum is nowhere positive: is the sky subtracted twice, or is there no star?"
        )
    n_without = np.count_nonzero(good & np.isnan(continuum))
    if n_without > max(FEW_LOST, LARGEST_LOSS * np.count_nonzero(good)):
        warnings.warn(
            f"{n_without} of {np.count_nonzero(good)} good pixels are ignored, because bad pixels leave too few "
            "continuum pixels around them to know their continuum",
            CycleStarNetWarning,
            stacklevel=3,
        )
    scale = np.where(usable, continuum, 1.0)
    flux, ivar = flux / scale, np.where(usable, ivar * scale**2, 0.0)
    raw = np.where(usable, raw / scale, np.nan)
    return flux, ivar, raw, continuum, tuple(degrees.tolist())


def to_spectrum(
    flux: u.Quantity | ArrayLike,
    grid: WavelengthGrid,
    *,
    ivar: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Spectrum:
    """Make a spectrum of pixels.

    Parameters
    ----------
    flux : array_like, shape (..., n_pixels)
        Normalised flux. Values that are not finite are masked.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of the model.
    ivar : array_like, shape (..., n_pixels), optional
        Inverse variance. Pixels with 0 are masked, and their uncertainty is
        NaN, so that nobody takes it for a measurement who ignores the mask.
    mask : array_like of bool, shape (..., n_pixels), optional
        True for further bad pixels.
    meta : mapping, optional
        Metadata; copied. Default: none.

    Returns
    -------
    `~specutils.Spectrum`
        Dimensionless, vacuum wavelengths in Angstrom, with a
        `~astropy.nddata.StdDevUncertainty` if ``ivar`` is given.

    Raises
    ------
    GridError
        If an array has another length than the grid.
    SpectrumError
        If ``flux`` has a unit, or ``ivar`` is negative or NaN.

    Examples
    --------
    >>> import numpy as np, astropy.units as u
    >>> from cyclestarnet.grid import WavelengthGrid
    >>> from cyclestarnet.spectra import to_spectrum
    >>> grid = WavelengthGrid([1500, 1501, 1502] * u.nm)
    >>> to_spectrum(np.ones(3), grid, ivar=[1e4, 1e4, 0]).mask
    array([False, False,  True])
    """
    try:
        unit = getattr(flux, "unit", None) or u.dimensionless_unscaled
        flux = (floats_of(flux) * unit).to_value(u.dimensionless_unscaled)
    except (u.UnitConversionError, TypeError) as error:
        raise SpectrumError("flux must be dimensionless: to_spectrum makes normalised spectra") from error
    given = {"flux": flux, "ivar": ivar, "mask": mask}
    for name, array in given.items():
        if array is not None and (np.ndim(array) == 0 or np.shape(array)[-1] != grid.n_pixels):
            raise GridError(f"{name} must have shape (..., {grid.n_pixels}), as the grid, but has {np.shape(array)}")
    bad = ~np.isfinite(flux)
    if mask is not None:
        bad = bad | bools_of(mask)
    uncertainty = None
    if ivar is not None:
        ivar = np.broadcast_to(_ivar_of(ivar), flux.shape)
        if not np.all(ivar >= 0):
            raise SpectrumError("ivar must be 0 or positive; 0 marks a pixel to ignore")
        bad = bad | (ivar == 0)
        uncertainty = StdDevUncertainty(np.where(ivar > 0, ivar, np.nan) ** -0.5)
    return Spectrum(
        flux=flux * u.dimensionless_unscaled,
        spectral_axis=grid.wavelength.copy(),
        spectral_axis_index=flux.ndim - 1,
        uncertainty=uncertainty,
        mask=bad,
        meta=dict(meta or {}),
    )


def _ivar_of(values: ArrayLike) -> np.ndarray:
    """An inverse variance as plain floats, 0 where it is masked."""
    mask, plain = mask_of(values), floats_of(values)
    return plain if mask is None else np.where(mask, 0.0, plain)


# -- other processes ---------------------------------------------------------
def row_of(stack: Spectrum, row: int) -> Spectrum:
    """One spectrum of a stack.

    Indexing a stack copies all of it, so that a loop over thousands of stars takes longer than their fits.

    Parameters
    ----------
    stack : `~specutils.Spectrum`, flux of shape (n, n_pixels), or (n_pixels, n) if its spectral axis is the first
        Spectra on the same wavelengths.
    row : int
        Which.

    Returns
    -------
    `~specutils.Spectrum`
        Flux, uncertainty, mask and metadata of that spectrum; arrays are views where they can be.

    Examples
    --------
    >>> import numpy as np, astropy.units as u
    >>> from cyclestarnet.spectra import Spectrum, row_of
    >>> stack = Spectrum(flux=np.ones((2, 5)) * u.one, spectral_axis=np.arange(5000, 5005) * u.AA)
    >>> row_of(stack, 1).flux.shape
    (5,)
    """
    last = stack.flux.ndim - 1
    place = row if getattr(stack, "spectral_axis_index", last) == last else (slice(None), row)
    error = stack.uncertainty
    return Spectrum(
        flux=stack.flux[place],
        spectral_axis=stack.spectral_axis,
        uncertainty=None if error is None else type(error)(error.array[place], unit=error.unit),
        mask=None if stack.mask is None else np.broadcast_to(stack.mask, stack.flux.shape)[place],
        meta=stack.meta,
    )


@dataclass(frozen=True, eq=False)
class PortableSpectrum:
    """A spectrum that can be pickled, and is a `~specutils.Spectrum` again after that.

    Those with an irregular spectral axis hold a class that was made on the fly, which no other process knows.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        Any one.

    Examples
    --------
    >>> import pickle
    >>> import numpy as np, astropy.units as u
    >>> from cyclestarnet.spectra import PortableSpectrum, Spectrum
    >>> star = Spectrum(flux=np.ones(3) * u.one, spectral_axis=[5000, 5001, 5003] * u.AA)
    >>> pickle.loads(pickle.dumps(PortableSpectrum(star))).spectral_axis.value
    array([5000., 5001., 5003.])
    """

    spectrum: Spectrum

    def __reduce__(self) -> tuple:
        spectrum = self.spectrum
        try:
            pickle.dumps(spectrum)
        except (pickle.PicklingError, AttributeError, TypeError):
            parts = {name: getattr(spectrum, name, None) for name in _PARTS}
            parts |= {"spectral_axis_index": spectrum.spectral_axis_index} if spectrum.flux.ndim > 1 else {}
            error = spectrum.uncertainty  # knows its spectrum
            made_of = None if error is None else (type(error), error.array, error.unit)
            return _spectrum_of, (parts, made_of)
        return _itself, (spectrum,)


def _itself(spectrum: Spectrum) -> Spectrum:
    return spectrum


def _spectrum_of(parts: Mapping[str, Any], error: tuple | None) -> Spectrum:
    uncertainty = None if error is None else error[0](error[1], unit=error[2])
    return Spectrum(uncertainty=uncertainty, **parts)


NAME_KEYS = ("object", "apogee_id", "objid", "targname", "target", "obj_name", "star", "name", "obj")


def star_name(spectrum: Any) -> str:
    """Name of the star of a spectrum, as its metadata or the header in them tell.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        Or anything else: this never raises.

    Returns
    -------
    str
        Of the first of ``object``, ``apogee_id``, ``objid``, ``targname``, ``target``, ``obj_name``, ``star``, ``name``
        and ``obj``, in capitals or not, that has one. Empty if none does.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.spectra import Spectrum, star_name
    >>> star_name(Spectrum(flux=[1, 1] * u.one, spectral_axis=[1, 2] * u.um, meta={"object": None, "TARGNAME": "Vega"}))
    'Vega'
    """
    meta = getattr(spectrum, "meta", None)
    sources = [meta]
    for key in ("header", "primary_header"):
        try:
            sources.append(meta[key])
        except Exception:  # whatever a user calls metadata
            continue
    for source in sources:
        if not isinstance(source, Mapping):
            continue
        try:
            by_key = {str(key).lower(): key for key in reversed(list(source.keys()))}
        except Exception:
            continue
        for key in NAME_KEYS:
            try:
                text = _text_of(source[by_key[key]])
            except Exception:
                continue
            if text:
                return text
    return ""


def _text_of(value: Any) -> str:
    """Text of a value that may be a name; empty if it is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, np.ndarray) and value.size == 1 and mask_of(value) is None:
        value = value.ravel()[0].item()
        return _text_of(value)
    if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
        return ""
    text = str(value).strip()
    return "" if text.lower() in ("none", "nan", "null", "--") else text


# -- checks ----------------------------------------------------------------
_AIR_CARDS = {
    "AIRORVAC": lambda value: str(value).strip().lower() == "air",
    "MEDIUM": lambda value: str(value).strip().lower() == "air",
    "VACUUM": lambda value: str(value).strip().lower() in ("false", "f", "no", "0"),
    "CTYPE1": lambda value: str(value).strip().upper().startswith("AWAV"),
}


def check_frame(spectrum: Spectrum) -> None:
    """Raise if the metadata of a spectrum say that its wavelengths are in air or not at rest.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        Of one star or many. Without any such entry in its metadata, the header
        that they hold, or its WCS, and without a radial velocity, it is taken
        to be in vacuum and at rest.

    Raises
    ------
    GridError
        With the entry that says so, and what to do.

    Examples
    --------
    >>> import astropy.units as u
    >>> from cyclestarnet.spectra import Spectrum, check_frame
    >>> spectrum = Spectrum(flux=[1, 1] * u.one, spectral_axis=[5000, 5001] * u.AA, meta={"AIRORVAC": "air"})
    >>> check_frame(spectrum)
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.GridError: spectrum has air wavelengths (AIRORVAC = 'air' in its metadata), but the ...
    """
    header = spectrum.meta.get("header")
    for source in (spectrum.meta, header):
        for key, is_air in _AIR_CARDS.items():
            for spelling in (key, key.lower()):
                try:
                    value = source[spelling]
                except (KeyError, TypeError, IndexError):
                    continue
                if is_air(value):
                    _raise_air(f"{spelling} = {value!r} in its metadata")
    # Neither astropy nor specutils turns an AWAV axis into vacuum.
    ctypes = getattr(getattr(spectrum.wcs, "wcs", None), "ctype", None) or ()
    for ctype in ctypes:
        if _AIR_CARDS["CTYPE1"](ctype):
            _raise_air(f"CTYPE = '{ctype}' of its WCS")
    visit = _velocity_of_visit(spectrum.meta, header)
    if visit:
        raise GridError(
            f"spectrum is of an apVisit file (VRAD = {visit:g} km/s in its header), as seen at the telescope; read it "
            'with cyclestarnet.read_apvisit, which brings it to rest, or shift it and say meta["frame"] = "rest"'
        )
    velocity = spectrum.radial_velocity
    if velocity is not None and np.any(velocity.value != 0):
        raise GridError(
            f"spectrum has radial_velocity = {velocity:.3f}, so its spectral axis is not at rest; "
            "call spectrum.shift_spectrum_to(radial_velocity=0 * u.km / u.s) first"
        )


def _velocity_of_visit(meta: Mapping[str, Any], header: Any) -> float:
    """Velocity in the header of an apVisit file that nobody brought to rest; 0 for all others."""
    if str(meta.get("frame", "")).lower() == "rest" or not isinstance(header, Mapping):
        return 0.0
    try:
        survey = f"{header.get('SURVEY', '')} {header.get('HISTORY', '')}"
        velocity = float(header.get("VRAD", 0.0))  # apStar files have VRAD1, VRAD2, ...
    except (TypeError, ValueError):
        return 0.0
    return velocity if "apogee" in survey.lower() else 0.0


def _raise_air(why: str) -> NoReturn:
    raise GridError(
        f"spectrum has air wavelengths ({why}), but the model needs vacuum; make a new one with "
        "spectral_axis=air_to_vacuum(spectrum.spectral_axis) and without that entry"
    )


def _wavelength(axis: u.Quantity) -> np.ndarray:
    """Vacuum wavelengths in Angstrom of a spectral axis, in its own direction."""
    try:
        with np.errstate(divide="ignore"):  # a frequency of 0 is reported below
            # A bare Quantity: a spectral coordinate would ask for a rest value.
            wavelength = u.Quantity(axis.value, axis.unit, dtype=float).to_value(u.AA, u.spectral())
    except u.UnitConversionError:
        raise GridError(
            f"the spectral axis has the unit '{axis.unit}', but must be a wavelength, frequency, energy or wavenumber"
        ) from None
    steps = np.diff(wavelength)
    if len(wavelength) < 2:
        raise GridError(f"the spectral axis must have 2 or more pixels, but has {len(wavelength)}")
    if not np.all(np.isfinite(wavelength) & (wavelength > 0)) or not (np.all(steps >= 0) or np.all(steps <= 0)):
        raise GridError("the spectral axis must be finite, positive and rising or falling; sort merged exposures by it")
    return wavelength


def _warn_of_lost(n_lost: int, ivar: np.ndarray) -> None:
    """Single pixels are lost between bad ones in most spectra; many are lost if the axis was misunderstood."""
    n_good = np.count_nonzero(ivar)
    if n_lost > max(FEW_LOST, LARGEST_LOSS * n_good):
        warnings.warn(
            f"{n_lost} good pixels of the spectrum are lost: they stand between gaps or bad pixels and cover less than "
            f"half of any pixel of the model, of which {n_good} are good; if exposures were merged, average them first",
            CycleStarNetWarning,
            stacklevel=3,
        )


def _is_flux_unit(unit: u.UnitBase) -> bool:
    """Whether a unit is that of a flux, surface brightness or count, per whatever interval."""
    if isinstance(unit, u.LogUnit):
        return False
    powers = dict(zip((base.name for base in unit.decompose().bases), unit.decompose().powers, strict=True))
    rest = {name: power for name, power in powers.items() if not (name in _PER_UNITS and power < 0)}
    if rest.get("rad") == -2:
        del rest["rad"]
    counts = [name for name in rest if name in _COUNT_UNITS]
    if counts:
        time, length = rest.pop("s", 0), rest.pop("m", 0)
        return rest == {counts[0]: 1} and time in (0, -1) and length in (0, -1, -2, -3)
    stripped = u.dimensionless_unscaled
    for name, power in rest.items():
        stripped = stripped * u.Unit(name) ** power
    return stripped.is_equivalent(u.Jy, u.spectral_density(1 * u.um))


def _flux_and_variance(spectrum: Spectrum, wavelength: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Flux (NaN where there is none), variance (inf where ignored), and whether the flux has a physical unit."""
    unit = spectrum.flux.unit
    physical = not (unit.is_equivalent(u.dimensionless_unscaled) and not isinstance(unit, u.LogUnit))
    if physical and not _is_flux_unit(unit):
        raise SpectrumError(
            f"flux has the unit '{unit}', which is no flux: it must be dimensionless (normalised), a spectral flux "
            "density, a surface brightness, or counts; magnitudes must be turned into flux first"
        )
    if not physical:
        unit = u.dimensionless_unscaled
    flux = floats_of(spectrum.flux.to_value(unit))

    given = spectrum.uncertainty
    if given is None:
        raise SpectrumError(
            f"spectrum has no uncertainty, without which no pixel can be weighted; give one: {_EXAMPLE}"
        )
    if not isinstance(given, (StdDevUncertainty, VarianceUncertainty, InverseVariance)):
        raise SpectrumError(
            "uncertainty must be a StdDevUncertainty, VarianceUncertainty or InverseVariance, "
            f"but is {type(given).__name__}"
        )
    raw = floats_of(given.array)  # squares of single-precision errors can underflow
    if raw.shape != flux.shape:
        raise SpectrumError(f"uncertainty must have the shape of the flux, {flux.shape}, but has {raw.shape}")
    with np.errstate(all="ignore"):  # what comes of 0, NaN and inf is sorted out below
        variance = type(given)(raw, unit=given.unit).represent_as(VarianceUncertainty)
        values = np.asarray(variance.array, dtype=float)
        if variance.unit is not None:
            try:
                values = values * variance.unit.to(unit**2)
            except u.UnitConversionError:
                raise SpectrumError(
                    f"uncertainty has the unit '{given.unit}', which does not fit a flux in '{unit}'"
                ) from None

    good = np.isfinite(flux)
    if spectrum.mask is not None:
        try:
            good &= ~np.broadcast_to(bools_of(spectrum.mask), flux.shape)
        except ValueError:
            raise SpectrumError(
                f"mask must have the shape of the flux, {flux.shape}, but has {np.shape(spectrum.mask)}"
            ) from None
    masked = mask_behind(given.array)
    if masked is not None:
        good &= ~masked
    if not np.any(good):
        raise SpectrumError(f"all {len(flux)} pixels are masked or not finite; mask is True where a pixel is bad")
    impossible = good & ((raw < 0) | ~(values > 0))
    if np.any(impossible):
        first = np.argmax(impossible)
        raise SpectrumError(
            f"uncertainty is NaN, zero or negative at {np.count_nonzero(impossible)} of {np.count_nonzero(good)} "
            f"unmasked pixels, in pixel order first at {wavelength[first]:.2f} Angstrom; set mask to True there"
        )
    good &= values < np.inf
    return np.where(np.isfinite(flux), flux, np.nan), np.where(good, values, np.inf), physical


def _averaged(
    wavelength: np.ndarray, flux: np.ndarray, variance: np.ndarray, raw: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One pixel of those that have the same wavelength, as merged exposures of one grid have."""
    first = np.flatnonzero(np.append(True, np.diff(wavelength) > SAME_WAVELENGTH * wavelength[1:]))
    if len(first) == len(wavelength):
        return wavelength, flux, variance, raw
    ivar = 1 / variance
    total = np.add.reduceat(ivar, first)
    good, weight = total > 0, np.where(total > 0, total, 1.0)
    mean = np.add.reduceat(ivar * flux, first) / weight
    flux, variance = np.where(good, mean, 0.0), np.where(good, 1 / weight, np.inf)
    return wavelength[first], flux, variance, np.where(good, mean, raw[first])


# -- resampling ------------------------------------------------------------
def _matching_pixels(wavelength: np.ndarray, grid: WavelengthGrid) -> np.ndarray | None:
    """Positions of the grid's pixels in rising wavelengths, or None if they are not all there."""
    wanted = grid.wavelength.value
    found = np.searchsorted(wavelength, wanted * (1 - SAME_WAVELENGTH))
    if found[-1] >= len(wavelength) or np.any(np.abs(wavelength[found] - wanted) > SAME_WAVELENGTH * wanted):
        return None
    # A finer spectrum can contain every pixel centre too; taking those would throw its other pixels away.
    if any(np.any(np.diff(found[start:stop]) != 1) for start, stop in grid.chips):
        return None
    return found


def usual_steps(step: np.ndarray) -> np.ndarray:
    """Tell the usual step at each one: the larger of those at either side, so that a change of sampling is no gap.

    Parameters
    ----------
    step : array, shape (n,)
        Differences of wavelengths.

    Returns
    -------
    array, shape (n,)
        In the same unit.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.spectra import usual_steps
    >>> usual_steps(np.array([1.0, 1, 1, 50, 1, 1, 1]))
    array([1., 1., 1., 1., 1., 1., 1.])
    """
    # Mirrored at the ends, so that a gap next to the first pixel counts once.
    median = median_filter(step, size=2 * SIDE - 1, mode="mirror")
    place = np.arange(len(step))
    return np.maximum(median[np.maximum(place - SIDE, 0)], median[np.minimum(place + SIDE, len(step) - 1)])


def _group_steps(step: np.ndarray, size: int, place: np.ndarray) -> np.ndarray:
    """Usual step from group to group of pixels near some steps: that of one exposure, if several were merged."""
    reach = GROUPS_AROUND * size
    largest = np.pad(maximum_filter1d(step, size=size, mode="mirror"), reach, mode="reflect")
    # A low percentile, because gaps are among the largest.
    return np.percentile(sliding_window_view(largest, 2 * reach + 1)[place], 25, axis=1)


def _input_edges(wavelength: np.ndarray, grid: WavelengthGrid) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edges of pixels at rising wavelengths; pixels beside a gap end half a usual step into it."""
    step = np.diff(wavelength)
    pixel = np.concatenate([np.gradient(grid.wavelength.value[start:stop]) for start, stop in grid.chips])
    in_pixel = np.searchsorted(wavelength, grid.wavelength.value + np.array([[-0.5], [0.5]]) * pixel)
    size = max(GROUP_SIZE, 2 * int(np.median(in_pixel[1] - in_pixel[0])) + 1)
    gap = (step > GAP_FACTOR * usual_steps(step)) & (step > np.interp(wavelength[1:], grid.wavelength.value, pixel))
    place = np.flatnonzero(gap)
    gap[place] = step[place] > GROUP_FACTOR * _group_steps(step, size, place)

    # The nearest pixel may be one of another exposure, much nearer than a pixel is wide: look at several.
    joined = np.pad(np.where(gap, 0.0, step), size)
    several = sliding_window_view(joined, size).max(axis=1)
    before, after = several[: len(wavelength)], several[size:]
    middle = 0.5 * (wavelength[1:] + wavelength[:-1])
    lower, upper = np.append(-np.inf, middle), np.append(middle, np.inf)
    for edge, open_side, steps, sign in (
        (lower, np.append(True, gap), after, -1),
        (upper, np.append(gap, True), before, 1),
    ):
        place = np.flatnonzero(open_side)
        width = np.where(steps[place] > 0, steps[place], np.inf)  # 0: between two gaps
        width = np.minimum(width, _group_steps(step, size, np.minimum(place, len(step) - 1)))
        reach = wavelength[place] + sign * width / 2
        edge[place] = np.maximum(edge[place], reach) if sign < 0 else np.minimum(edge[place], reach)
    return lower, upper


def _resample(
    wavelength: np.ndarray, flux: np.ndarray, variance: np.ndarray, grid: WavelengthGrid
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Flux, variance and share on the grid, and how many good pixels are lost; see the Notes of `to_pixels`."""
    lower, upper = _input_edges(wavelength, grid)
    width, good = upper - lower, np.isfinite(variance)
    noise = np.where(good, variance, 0.0) * width
    out_flux, out_variance, share = np.zeros(grid.n_pixels), np.full(grid.n_pixels, np.inf), np.ones(grid.n_pixels)
    wanted, used = np.zeros(len(wavelength), dtype=bool), np.zeros(len(wavelength), dtype=bool)
    for start, stop in grid.chips:
        edges = grid.edges((start, stop))
        near = (upper > edges[0]) & (lower < edges[-1])
        if not np.any(near):
            continue
        # Between neighbouring cuts there is one output pixel and at most one input pixel.
        cuts = np.unique(np.clip(np.concatenate([lower[near], upper[near], edges]), edges[0], edges[-1]))
        middle, overlap = 0.5 * (cuts[1:] + cuts[:-1]), np.diff(cuts)
        output = np.searchsorted(edges, middle) - 1
        source = np.searchsorted(lower, middle) - 1
        known = (source >= 0) & (middle < upper[source]) & good[source]
        output, source, overlap = output[known], source[known], overlap[known]
        n = stop - start
        covered = np.bincount(output, overlap, n)
        enough = covered >= (LEAST_COVERAGE - 1e-6) * np.diff(edges)  # exactly half is enough, rounding or not
        seen = np.where(enough, covered, 1.0)
        out_flux[start:stop] = np.where(enough, np.bincount(output, overlap * flux[source], n) / seen, 0.0)
        spread = np.bincount(output, overlap * noise[source], n)
        out_variance[start:stop] = np.where(enough, spread / seen**2, np.inf)
        alone = np.bincount(output, overlap**2 * variance[source], n)  # variance of the mean, but for seen²
        share[start:stop] = np.divide(alone, spread, out=np.ones(n), where=enough)
        wanted |= good & (wavelength > edges[0]) & (wavelength < edges[-1])
        used[source[enough[output]]] = True
    return out_flux, out_variance, share, int(np.count_nonzero(wanted & ~used))
