"""What readers of FITS files share: damage is told as such, and what is bad is masked."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, TypeAlias, TypeVar

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from astropy.nddata.bitmask import bitfield_to_boolean_mask

from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.reading.fits import damage_in, open_fits
from cyclestarnet.spectra import Spectrum

__all__ = ["FLUX_UNIT", "REGISTERED", "FitsFile", "masked_spectrum", "read_parts"]

FitsFile: TypeAlias = str | os.PathLike[str] | BinaryIO | fits.HDUList
Parts = TypeVar("Parts")

#: Unit of the flux in files of SDSS.
FLUX_UNIT = u.Unit("1e-17 erg / (Angstrom cm2 s)")
# Bad pixels often keep a plausible flux, with the error multiplied by 1e10.
_HUGE_ERROR = 1e5

# No identifier recognises a file: specutils has readers of its own for these, and a
# second one that says "mine" would make Spectrum.read(path) without a format ambiguous
# for everybody who happens to have imported this package. force: reloading is no error.
REGISTERED = {"identifier": lambda *args, **kwargs: False, "extensions": ["fits"], "priority": -10, "force": True}


def read_parts(path: FitsFile, kind: str, read: Callable[[fits.HDUList], Parts]) -> tuple[str, Parts]:
    """Read parts of a FITS file into memory, and tell damage as such.

    Parameters
    ----------
    path : str, path-like, file-like or `~astropy.io.fits.HDUList`
        The file.
    kind : str
        What is expected, for messages: "apStar".
    read : callable
        Takes the `~astropy.io.fits.HDUList`, and returns what is wanted of it, or raises a
        `~cyclestarnet.exceptions.FileFormatError` that need not name the file.

    Returns
    -------
    name : str
        Of the file, for messages.
    parts : object
        What ``read`` returned.

    Raises
    ------
    FileNotFoundError, PermissionError
        If the file cannot be opened.
    FileFormatError
        If it is truncated, damaged, or no FITS file.

    Examples
    --------
    ::

        name, header = read_parts("apStar-star.fits", "apStar", lambda hdus: hdus[0].header)
    """
    name = str(path) if isinstance(path, (str, os.PathLike)) else str(getattr(path, "name", "the HDU list"))
    if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
        raise FileFormatError(f"{name} is a directory, but an {kind} FITS file was expected")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if isinstance(path, fits.HDUList):
                parts = _all_parts(path, read)
            else:
                with open_fits(path) as hdus:
                    parts = _all_parts(hdus, read)
    except FileFormatError as error:  # of read, which does not know the name
        raise FileFormatError(f"{name}: {error}") from None
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # damaged bytes raise what they like: zlib.error, BadZipFile, TypeError, ...
        raise FileFormatError(
            f"{name} cannot be read ({error}), but an {kind} FITS file was expected; is it complete?"
        ) from error
    if damage := damage_in(caught):
        raise FileFormatError(f"{name} is truncated or damaged ({damage}); get the file again")
    return name, parts


def _all_parts(hdus, read):
    len(hdus)  # reads to the end of the file, which is how a cut is noticed
    return read(hdus)


def number_of(value: Any) -> float | None:
    """Take a finite number of a header, and nothing else.

    Parameters
    ----------
    value : object
        Of a card.

    Returns
    -------
    float or None
        None for texts, and for T, which is 1 to Python.

    Examples
    --------
    >>> from cyclestarnet.io.fits_files import number_of
    >>> number_of(90.5), number_of(True), number_of("fast")
    (90.5, None, None)
    """
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < np.inf
    return value if fine else None


def masked_spectrum(
    flux: u.Quantity,
    error: np.ndarray,
    wavelength: np.ndarray,
    bits: np.ndarray | None,
    numbers: Sequence[int],
    meta: dict[str, Any],
) -> Spectrum:
    """Join arrays of a file to a spectrum, as native float64, and mask what is bad.

    Parameters
    ----------
    flux : `~astropy.units.Quantity`, shape (n_pixels,)
        NaN and infinities are masked.
    error : array, shape (n_pixels,)
        1 σ, in the unit of the flux. Masked are pixels where it is not positive and
        finite, or more than 100 000 times the median.
    wavelength : array, shape (n_pixels,)
        Angstrom, vacuum, at rest.
    bits : array of int, shape (n_pixels,), or None
        Bitmask.
    numbers : sequence of int
        Bits that make a pixel bad.
    meta : dict
        Metadata of the spectrum.

    Returns
    -------
    `~specutils.Spectrum`
        With a `~astropy.nddata.StdDevUncertainty`; mask True = bad.

    Raises
    ------
    FileFormatError
        If flux or error say nothing in any pixel, whatever the bits.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from cyclestarnet.io.fits_files import masked_spectrum
    >>> wavelength, bits = np.linspace(15000, 15003, 4), np.array([0, 1, 2, 4])
    >>> masked_spectrum(np.ones(4) * u.one, np.array([0.1, 0.1, 0.1, 0.0]), wavelength, bits, [1], {}).mask
    array([False, False,  True,  True])
    """
    flux = u.Quantity(flux.value.astype(float), flux.unit)
    error = np.array(error, dtype=float)
    bad = ~(np.isfinite(flux.value) & np.isfinite(error) & (error > 0))
    if np.all(bad | (flux.value == 0)):
        raise FileFormatError(
            f"{meta.get('file', 'the file')} holds no spectrum: in every pixel, the flux is 0 or the error is no "
            "positive number"
        )
    if bits is not None:
        # The function drops the bits it is given unless told to flip them; int64 because bit 15 is a sign elsewhere.
        chosen = sum(1 << bit for bit in numbers)
        bad |= bitfield_to_boolean_mask(np.array(bits, dtype=np.int64), ignore_flags=chosen, flip_bits=True)
    if not np.all(bad):
        bad |= ~(error <= _HUGE_ERROR * np.median(error[~bad]))
    return Spectrum(
        flux=flux,
        spectral_axis=wavelength * u.AA,
        uncertainty=StdDevUncertainty(error, unit=flux.unit),
        mask=bad,
        meta=meta,
    )
