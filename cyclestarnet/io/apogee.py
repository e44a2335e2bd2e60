"""Readers of APOGEE files: apStar (DR12 to DR17), aspcapStar and apVisit.

Unlike the readers of specutils, these keep the pixel bitmask, choose which of
its bits make a pixel bad, and bring visits to the rest frame. They are
registered there as well, and come before those of specutils once this package is
imported::

    Spectrum.read("apStar-....fits")
    Spectrum.read("apStar-....fits", format="APOGEE apStar")  # that of specutils
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from types import MappingProxyType

import astropy.units as u
import numpy as np
from astropy.constants import c
from specutils.io.default_loaders import apogee as theirs
from specutils.io.parsing_utils import read_fileobj_or_hdulist
from specutils.io.registers import data_loader

from cyclestarnet.exceptions import CycleStarNetWarning, FileFormatError
from cyclestarnet.io.fits_files import FLUX_UNIT, REGISTERED, FitsFile, masked_spectrum, number_of, read_parts
from cyclestarnet.io.velocities import measured_velocity
from cyclestarnet.io.visits import of_good_visits
from cyclestarnet.spectra import Spectrum

__all__ = ["APOGEE_BAD_BITS", "read_apstar", "read_apvisit", "read_aspcapstar"]

# APOGEE_PIXMASK of SDSS, in bit order.
_BIT_NAMES = (
    "BADPIX",
    "CRPIX",
    "SATPIX",
    "UNFIXABLE",
    "BADDARK",
    "BADFLAT",
    "BADERR",
    "NOSKY",
    "LITTROW_GHOST",
    "PERSIST_HIGH",
    "PERSIST_MED",
    "PERSIST_LOW",
    "SIG_SKYLINE",
    "SIG_TELLURIC",
    "NOT_ENOUGH_PSF",
)
_BITS = {name: bit for bit, name in enumerate(_BIT_NAMES)}

#: Bits of the APOGEE pixel mask that make a pixel bad by default: name -> number.
APOGEE_BAD_BITS = MappingProxyType({name: bit for name, bit in _BITS.items() if bit < 8 or name == "SIG_SKYLINE"})

# Beginnings of the header cards that are used.
_CARDS = ("CRVAL1", "CDELT1", "CRPIX1", "VRAD", "SNR", "OBJ", "TELESCOP", "FIELD")
# Lines of a spectrum without any correlate to 0.04 at best; those of a K giant of S/N 5 to 0.3.
_LEAST_CORRELATION = 0.15
# km/s; of so fast stars there are few, of failed measurements many.
_UNUSUAL_VELOCITY = 300.0
# The pipeline writes 99999 or more where it found no velocity; nothing that APOGEE observed is this fast.
_LARGEST_VELOCITY = 5000.0


# specutils recognises these files, too, but its readers keep neither mask nor rest frame: ours come first.
def _recognised(identifier):
    return REGISTERED | {"identifier": identifier, "priority": 20}


def _is_apvisit(origin, *args, **kwargs):
    """Whether a file is an apVisit file, also of old data releases, whose header does not name the survey."""
    with read_fileobj_or_hdulist(*args, **kwargs) as hdulist:
        history = "".join(map(str, hdulist[0].header.get("HISTORY", ())))
        units = [str(hdu.header.get("BUNIT", "")) for hdu in hdulist[1:5]]
        wanted = ("Flux", "Flux", "", "Wavelen")
        return (
            "APOGEE" in history
            and len(units) == len(wanted)
            and all(unit.startswith(begin) for unit, begin in zip(units, wanted, strict=True))
        )


@data_loader("cyclestarnet apStar", **_recognised(theirs.apStar_identify))
def read_apstar(path: FitsFile, *, row: int = 0, mask_bits: Iterable[int | str] | None = None) -> Spectrum:
    """Read a combined spectrum, or one of its visits, from an apStar file.

    Parameters
    ----------
    path : str, path-like, file-like or `~astropy.io.fits.HDUList`
        The file.
    row : int, optional
        0 (default): combination weighted pixel by pixel; 1: combination with
        one weight per visit; 2, 3, ...: the visits. Files of a single visit
        have only row 0, or leave row 1 empty.
    mask_bits : iterable of int or str, optional
        Numbers or names of the bits that make a pixel bad. Default:
        `APOGEE_BAD_BITS`. An empty list: none.

    Returns
    -------
    `~specutils.Spectrum`
        Flux in 1e-17 erg/s/cm2/Angstrom, shape (8575,), float64; vacuum
        wavelengths in Angstrom at rest; `~astropy.nddata.StdDevUncertainty`;
        mask, True = bad. ``meta`` holds ``bitmask`` (the raw integers),
        ``mask_bits``, ``row``, ``snr``, ``object``, ``apogee_id``,
        ``telescope``, ``field`` (None where the header lacks them), ``file``,
        ``medium``, ``frame`` and ``header`` (the primary one).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is truncated or no apStar file, the row is absent or empty, or has no error in any pixel.
    ValueError
        If ``mask_bits`` names an unknown bit.

    Notes
    -----
    Masked are also pixels whose error is not positive and finite or more than
    100 000 times the median, and whose flux is not finite.

    In early releases the bits of a combination are those of any of its visits,
    so that more of its pixels would be bad the longer a star was observed. If
    the file has the visits, it is their own bits that count: a pixel is bad if it is bad in
    a third of them or more. Where it is in fewer, flux and error are the weighted mean of
    the others, each multiplied by its smooth ratio to the combination;
    ``meta["good_visits"]`` counts the good visits of each pixel, and
    ``meta["bitmask"]`` has the bits of the combination.

    Examples
    --------
    A made-up file of three rows; usually ``path`` is the name of a file.

    >>> import numpy as np
    >>> from astropy.io import fits
    >>> from cyclestarnet.io import read_apstar
    >>> header = fits.Header({"CRVAL1": 4.179, "CDELT1": 6e-6})
    >>> flux, bits = np.ones((3, 100)), np.zeros((3, 100), dtype=int)
    >>> images = [fits.ImageHDU(data, header) for data in (flux, 0.01 * flux, bits)]
    >>> spectrum = read_apstar(fits.HDUList([fits.PrimaryHDU(), *images]), row=2)
    >>> print(spectrum.flux.unit)
    1e-17 erg / (Angstrom s cm2)
    """
    numbers = bit_numbers(mask_bits)
    name, header, images = _read(path, "apStar", 3)
    _check_bitmask(name, "apStar", images)
    (flux, image_header), (error, _), (bits, _) = images
    wavelength = _log_wavelength(name, "apStar", flux.shape[-1], image_header, header)
    flux, error, bits = np.atleast_2d(flux), np.atleast_2d(error), np.atleast_2d(bits)
    row = operator.index(row)
    filled = [k for k in range(len(flux)) if np.any(np.nan_to_num(flux[k]))]
    if row not in filled:
        state = "is empty" if 0 <= row < len(flux) else "does not exist"
        raise FileFormatError(
            f"row {row} of {name} {state}; rows with a spectrum: {', '.join(map(str, filled)) or 'none'} "
            "(0 and 1 are combinations, 2 and more are visits)"
        )
    meta = _meta(name, header, numbers, bits[row])
    meta |= {"row": row, "snr": number_of(header.get("SNR" if row < 2 else f"SNRVIS{row - 1}"))}
    visits = [k for k in filled if k >= 2]
    combined = of_good_visits(flux, error, bits, row, visits, numbers) if row < 2 and len(visits) > 1 else None
    if combined is not None:
        star, sigma, meta["good_visits"] = combined
        return masked_spectrum(star * FLUX_UNIT, sigma, wavelength, None, numbers, meta)
    return masked_spectrum(flux[row] * FLUX_UNIT, error[row], wavelength, bits[row], numbers, meta)


@data_loader("cyclestarnet aspcapStar", **_recognised(theirs.aspcapStar_identify))
def read_aspcapstar(path: FitsFile, *, mask_bits: Iterable[int | str] | None = None) -> Spectrum:
    """Read the normalised spectrum from an aspcapStar file.

    The normalisation is ASPCAP's own, a pseudo-continuum that differs from
    `~cyclestarnet.ContinuumRecipe`: such a spectrum is right for a model that
    was trained on such spectra. The file has no pixel bitmask.

    Parameters
    ----------
    path : str, path-like, file-like or `~astropy.io.fits.HDUList`
        The file.
    mask_bits : iterable of int or str, optional
        As in `read_apstar`, for the files that have an integer image of the
        same shape after the model. Others have no bits, and refuse to choose any.

    Returns
    -------
    `~specutils.Spectrum`
        Dimensionless flux, shape (8575,), float64, as in `read_apstar`. Pixels
        between the detectors, which the file fills with zeros, are masked.
        ``meta["aspcap_model"]`` holds ASPCAP's best fit, shape (8575,);
        ``meta["bitmask"]`` is None without bits.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is truncated or no aspcapStar file.
    ValueError
        If ``mask_bits`` names an unknown bit.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.io import fits
    >>> from cyclestarnet.io import read_aspcapstar
    >>> header = fits.Header({"CRVAL1": 4.179, "CDELT1": 6e-6})
    >>> images = [fits.ImageHDU(value * np.ones(100), header) for value in (1.0, 0.01, 0.99)]
    >>> spectrum = read_aspcapstar(fits.HDUList([fits.PrimaryHDU(), *images]))
    >>> spectrum.meta["aspcap_model"][:2]
    array([0.99, 0.99])
    """
    numbers = bit_numbers(mask_bits)
    name, header, images = _read(path, "aspcapStar", 3, optional=1)
    (flux, image_header), (error, _), (model, _) = images[:3]
    if not np.issubdtype(model.dtype, np.floating):
        raise FileFormatError(
            f"HDU 3 of {name} holds integers, but ASPCAP's best fit was expected; is it an apStar or apVisit file? "
            "Use read_apstar or read_apvisit"
        )
    if flux.ndim != 1:
        raise FileFormatError(f"HDU 1 of {name} must have one row, as in an aspcapStar file, but has {flux.shape}")
    wavelength = _log_wavelength(name, "aspcapStar", len(flux), image_header, header)
    bits = None
    if len(images) > 3 and images[3][0].shape == flux.shape and np.issubdtype(images[3][0].dtype, np.integer):
        bits = images[3][0]
    elif mask_bits is not None and numbers:
        raise FileFormatError(f"{name} has no bits of pixels, so that mask_bits has no effect; leave it out")
    meta = _meta(name, header, numbers, bits)
    meta |= {"snr": number_of(header.get("SNR")), "aspcap_model": np.array(model, dtype=float)}
    return masked_spectrum(flux * u.dimensionless_unscaled, error, wavelength, bits, numbers, meta)


@data_loader("cyclestarnet apVisit", **_recognised(_is_apvisit))
def read_apvisit(
    path: FitsFile, *, velocity: u.Quantity | None = None, mask_bits: Iterable[int | str] | None = None
) -> Spectrum:
    """Read the spectrum of one visit from an apVisit file and bring it to rest.

    The three detectors are joined in order of wavelength, with the gaps
    between them left open, and wavelengths are divided by 1 + velocity/c. The
    pixels stay those of the detectors: `~cyclestarnet.spectra.to_pixels`
    resamples them.

    Parameters
    ----------
    path : str, path-like, file-like or `~astropy.io.fits.HDUList`
        The file.
    velocity : `~astropy.units.Quantity`, optional
        Radial velocity relative to the observatory; positive = receding.
        Default: ``VRAD`` of the header, unless the lines are clearly elsewhere; see Notes.
    mask_bits : iterable of int or str, optional
        As in `read_apstar`.

    Returns
    -------
    `~specutils.Spectrum`
        As in `read_apstar`, with about 12 288 pixels. ``meta["velocity"]`` is
        the velocity that was taken out, and if none was given, ``header_velocity`` that of the header and
        ``velocity_correlation`` how well the lines agree with those of a K giant there.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is truncated or no apVisit file, or has no velocity and none is given.
    ValueError
        If ``mask_bits`` names an unknown bit, or ``velocity`` is no velocity.

    Notes
    -----
    The wavelengths of the file are vacuum, as seen at the telescope, so the
    shift to take out is the one that was measured there, ``VRAD``. ``VHELIO``
    is ``VRAD`` plus the motion of the Earth (``BC``, up to 30 km/s or 7
    pixels): it belongs in catalogues, and would put the lines in wrong places
    here. In some data releases velocities are measured in a later step, and
    the files have none.

    Pipelines fail, and leave any number: the lines are compared with those of
    the packaged K giant. If they correlate with them at less than half of what
    they do elsewhere within 600 km/s, that velocity is taken out, with a
    warning; one beyond 300 km/s that the lines do not confirm warns, too.

    Examples
    --------
    >>> from astropy.utils.data import get_pkg_data_filename
    >>> from cyclestarnet.io import read_apvisit
    >>> path = get_pkg_data_filename("data/apVisit-r13-9518-57729-104.fits", package="cyclestarnet")
    >>> spectrum = read_apvisit(path)
    >>> print(spectrum.meta["object"], spectrum.meta["velocity"])
    2M00242666+5341178 -67.472 km / s
    """
    numbers, checked = bit_numbers(mask_bits), {}
    if velocity is not None:
        velocity = _checked_velocity(velocity)
    name, header, images = _read(path, "apVisit", 4)
    _check_bitmask(name, "apVisit", images)
    (flux, _), (error, _), (bits, _), (wavelength, _) = images
    if flux.ndim != 2 or not np.issubdtype(wavelength.dtype, np.floating):
        raise FileFormatError(
            f"{name} must have rows of detectors with wavelengths in HDU 4, as an apVisit file, but has shape "
            f"{flux.shape}; is it an apStar file? Use read_apstar"
        )
    wavelength = np.array(wavelength, dtype=float).ravel()
    order = np.argsort(wavelength)
    wavelength = wavelength[order]
    if not np.all(np.isfinite(wavelength)) or wavelength[0] <= 0 or not np.all(np.diff(wavelength) > 0):
        raise FileFormatError(
            f"wavelengths of {name} (HDU 4) must be positive and differ, but do not; "
            "is it an apStar file? Use read_apstar"
        )
    if velocity is None:
        value = number_of(header.get("VRAD"))
        if value is None or not abs(value) < _LARGEST_VELOCITY:
            found = f"{header.get('VRAD')!r:.40}"
            raise FileFormatError(
                f"the header of {name} has no usable VRAD (it is {found}), so the spectrum cannot be brought to "
                "rest; give the velocity relative to the observatory: velocity=... * u.km / u.s"
            )
        velocity = value * u.km / u.s
        flux_in_order, bits_in_order = flux.ravel()[order], bits.ravel()[order]
        spectrum = masked_spectrum(
            flux_in_order * FLUX_UNIT, error.ravel()[order], wavelength, bits_in_order, numbers, {"file": name}
        )
        checked = _verified(name, value, *measured_velocity(wavelength, flux_in_order, spectrum.mask, value))
        velocity = checked["velocity"]
    wavelength = wavelength / (1 + (velocity / c).to_value(u.one))
    bits = bits.ravel()[order]
    meta = _meta(name, header, numbers, bits)
    meta |= {"snr": number_of(header.get("SNR")), "velocity": velocity} | checked
    return masked_spectrum(flux.ravel()[order] * FLUX_UNIT, error.ravel()[order], wavelength, bits, numbers, meta)


def _verified(name, claimed, measured, correlation, at_claimed):
    """Metadata of a velocity: that of the header, unless the lines are clearly elsewhere."""
    kms = u.km / u.s
    meta = {"header_velocity": claimed * kms, "velocity": claimed * kms, "velocity_correlation": at_claimed}
    if correlation > _LEAST_CORRELATION and at_claimed < 0.5 * correlation:
        warnings.warn(
            f"the header of {name} has VRAD = {claimed:g} km/s, but the lines are at {measured:.0f} km/s (correlation "
            f"with a K giant {correlation:.2f}, and {at_claimed:.2f} at VRAD): its pipeline failed. The measured "
            "velocity is taken out; if you know a better one, give it: velocity=... * u.km / u.s",
            CycleStarNetWarning,
            stacklevel=4,
        )
        meta |= {"velocity": measured * kms, "velocity_correlation": correlation}
    elif abs(claimed) > _UNUSUAL_VELOCITY and at_claimed < _LEAST_CORRELATION:
        warnings.warn(
            f"the header of {name} has VRAD = {claimed:g} km/s, which few stars have, and the lines do not confirm it "
            f"(correlation with a K giant {at_claimed:.2f}): the spectrum may not be at rest; check it, and give "
            "velocity=... * u.km / u.s",
            CycleStarNetWarning,
            stacklevel=4,
        )
    return meta


# -- the common parts --------------------------------------------------------
def bit_numbers(mask_bits: Iterable[int | str] | None) -> tuple[int, ...]:
    """Tell the numbers of bits of the APOGEE pixel mask.

    Parameters
    ----------
    mask_bits : iterable of int or str, or None
        Numbers or names. None: the default, `APOGEE_BAD_BITS`.

    Returns
    -------
    tuple of int
        Sorted.

    Raises
    ------
    ValueError
        If a bit is unknown, or there is one in place of a list.

    Examples
    --------
    >>> from cyclestarnet.io.apogee import bit_numbers
    >>> bit_numbers(["SIG_SKYLINE", "badpix"])
    (0, 12)
    """
    if mask_bits is None:
        return tuple(APOGEE_BAD_BITS.values())
    if isinstance(mask_bits, (str, int, np.integer)):
        raise ValueError(
            f"mask_bits must be a list of bit numbers or names, but got {mask_bits!r}; write mask_bits=[{mask_bits!r}]"
        )
    numbers = set()
    for bit in mask_bits:
        number = _BITS.get(bit.upper(), -1) if isinstance(bit, str) else operator.index(bit)
        if not 0 <= number < 32:
            known = ", ".join(f"{b} {name}" for name, b in _BITS.items())
            raise ValueError(f"mask_bits has the unknown bit {bit!r}; known: {known}")
        numbers.add(number)
    return tuple(sorted(numbers))


def _checked_velocity(velocity: object) -> u.Quantity:
    """A velocity in km/s, or an error that says what was wrong."""
    try:
        velocity = u.Quantity(velocity).to(u.km / u.s)
    except (u.UnitConversionError, TypeError):
        velocity = None
    if velocity is None or not velocity.isscalar or not abs(velocity) < c:
        raise ValueError("velocity must be one velocity below that of light, for example -67.5 * u.km / u.s")
    return velocity


def _read(path, kind, n_images, *, optional=0):
    """Name, primary header, and (array, header) of the first images of a FITS file, all read into memory."""
    name, (header, images) = read_parts(path, kind, lambda hdus: _images(hdus, n_images, optional))
    wanted = f"an {kind} FITS file was expected"
    if len(images) < n_images:
        raise FileFormatError(
            f"{name} has {len(images)} images in its first HDUs, but {wanted}, with {n_images} or more"
        )
    shapes = [array.shape for array, _ in images[:n_images]]
    if len(set(shapes)) != 1 or len(shapes[0]) not in (1, 2):
        raise FileFormatError(f"the images of {name} have the shapes {shapes}, but {wanted}, where they are equal")
    return name, header, images


def _images(hdus, n_images, optional):
    images = []
    for hdu in hdus[1 : 1 + n_images + optional]:
        if not hdu.is_image or hdu.data is None:
            break
        images.append((hdu.data, hdu.header))
    for hdu in hdus[:2]:
        for key in hdu.header:
            if key.startswith(_CARDS):
                hdu.header[key]  # cards are parsed when they are looked at; the broken ones shall raise here
    return hdus[0].header, images


def _check_bitmask(name, kind, images):
    if not np.issubdtype(images[2][0].dtype, np.integer):
        raise FileFormatError(
            f"HDU 3 of {name} does not hold integers, but a pixel bitmask was expected, as in an {kind} file; "
            "is it an aspcapStar file? Use read_aspcapstar"
        )


def _log_wavelength(name, kind, n_pixels, *headers):
    """Wavelengths in Angstrom of the first header that has a logarithmic grid."""
    for header in headers:
        start, step = header.get("CRVAL1"), header.get("CDELT1")
        if start is not None and step is not None:
            break
    else:
        raise FileFormatError(
            f"the headers of {name} lack CRVAL1 and CDELT1, which give the wavelengths of an {kind} file; "
            "is it an apVisit file? Use read_apvisit"
        )
    # Powers of ten: 1000 Angstrom to 10 micron, all of them, in steps of less than a percent.
    given = start, step, header.get("CRPIX1", 1)
    start, step, reference = map(number_of, given)
    fine = None not in (start, step, reference) and 3 <= start <= 5 and 0 < step < 0.005
    if not fine or not 3 <= start + step * (1 - reference) <= start + step * (n_pixels - reference) <= 5:
        names = ("CRVAL1", "CDELT1", "CRPIX1")
        shown = ", ".join(f"{key} = {value!r:.40}" for key, value in zip(names, given, strict=True))
        raise FileFormatError(
            f"{shown} in {name} are not the log10(wavelength / Angstrom) grid, between 3 and 5, of an {kind} file"
        )
    return 10 ** (start + step * (np.arange(n_pixels) + 1 - reference))


def _meta(name, header, numbers, bits):
    star = header.get("OBJID", header.get("OBJECT"))
    return {
        "object": star,
        "apogee_id": star,
        "telescope": header.get("TELESCOP"),
        "field": header.get("FIELD"),
        "file": name,
        "bitmask": None if bits is None else np.array(bits, dtype=np.int64),
        "mask_bits": numbers,
        "medium": "vacuum",
        "frame": "rest",
        "header": header,
    }
