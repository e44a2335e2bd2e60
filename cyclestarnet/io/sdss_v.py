"""Readers of the files of SDSS-V that hold a star's spectra: mwmStar and astraStar.

Both have a table for each instrument and observatory, of which most are empty
for most stars. What the survey combined is in mwmStar; an astraStar file holds
the results of one pipeline. Like those of APOGEE files, these readers keep the
pixel flags and choose which of them make a pixel bad, and are registered with
specutils by name::

    Spectrum.read("mwmStar-....fits", format="cyclestarnet mwmStar")
    SpectrumList.read("mwmStar-....fits", format="cyclestarnet mwmStar")  # all spectra of the file
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import numpy as np
from astropy.io import fits
from specutils import SpectrumList
from specutils.io.registers import data_loader

from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.io.apogee import bit_numbers
from cyclestarnet.io.fits_files import FLUX_UNIT, REGISTERED, FitsFile, masked_spectrum, number_of, read_parts
from cyclestarnet.spectra import Spectrum

__all__ = ["read_astrastar", "read_mwmstar"]

_LISTS = REGISTERED | {"dtype": SpectrumList}


# -- readers -----------------------------------------------------------------
@data_loader("cyclestarnet mwmStar", autogenerate_spectrumlist=False, **REGISTERED)
def read_mwmstar(
    path: FitsFile, *, hdu: int | str | None = None, mask_bits: Iterable[int | str] | None = None
) -> Spectrum:
    """Read a combined spectrum from an mwmStar file.

    Parameters
    ----------
    path : str, path-like, file-like or `~astropy.io.fits.HDUList`
        The file.
    hdu : int or str, optional
        Which of its spectra: number of the HDU, its name (``"APOGEE/LCO"``), or
        an instrument (``"APOGEE"`` or ``"BOSS"``), of which the spectrum with the
        highest signal-to-noise ratio is taken. Default: such a one of APOGEE, or
        of BOSS if there is none of APOGEE.
    mask_bits : iterable of int or str, optional
        Numbers (or names, of APOGEE) of the flags that make a pixel bad. Default:
        `~cyclestarnet.io.APOGEE_BAD_BITS` for APOGEE; none for BOSS, whose bad pixels have an
        inverse variance of 0.

    Returns
    -------
    `~specutils.Spectrum`
        Flux in 1e-17 erg/s/cm2/Angstrom, shape (8575,) for APOGEE, (4648,) for
        BOSS, float64; vacuum wavelengths in Angstrom at rest;
        `~astropy.nddata.StdDevUncertainty`; mask, True = bad. ``meta`` holds
        ``object`` (name of the star in 2MASS style, or else its SDSS number),
        ``apogee_id`` and ``sdss_id`` (None without), ``snr``, ``instrument``,
        ``telescope``, ``hdu`` and ``hdu_name``, ``bitmask`` (the raw integers),
        ``mask_bits``, ``file``, ``medium``, ``frame`` and ``header`` (the primary one).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is truncated or no mwmStar file, or has no such spectrum.
    ValueError
        If ``mask_bits`` names an unknown bit.

    See Also
    --------
    read_apstar : spectra of APOGEE alone.

    Examples
    --------
    A made-up file with one spectrum; usually ``path`` is the name of a file.

    >>> import numpy as np
    >>> from astropy.io import fits
    >>> from cyclestarnet.io import read_mwmstar
    >>> header = fits.Header({"INSTRMNT": "APOGEE", "CRVAL": 4.179, "CDELT": 6e-6})
    >>> pixels = {"flux": np.ones((1, 100)), "ivar": np.full((1, 100), 1e4), "pixel_flags": np.zeros((1, 100))}
    >>> columns = [fits.Column(name, "100E", array=array) for name, array in pixels.items()]
    >>> columns.append(fits.Column("snr", "E", array=[100]))
    >>> table = fits.BinTableHDU.from_columns(columns, header, name="APOGEE/APO")
    >>> read_mwmstar(fits.HDUList([fits.PrimaryHDU(), table])).meta["snr"]
    100.0
    """
    return _chosen(*_tables(path, "mwmStar", mask_bits), hdu)


@data_loader("cyclestarnet mwmStar", **_LISTS)
def _read_mwmstar_list(path, *, mask_bits=None):
    return SpectrumList(_tables(path, "mwmStar", mask_bits)[1])


@data_loader("cyclestarnet astraStar", autogenerate_spectrumlist=False, **REGISTERED)
def read_astrastar(
    path: FitsFile, *, hdu: int | str | None = None, mask_bits: Iterable[int | str] | None = None
) -> Spectrum:
    """Read the observed spectrum from a file of a pipeline of SDSS-V, astraStarASPCAP for example.

    Those of the public releases so far hold the pipeline's best fit and
    continuum, but not what was observed. They are refused: a best fit must not
    be taken for an observation. The observed spectrum is in the mwmStar file of
    the same star.

    Parameters
    ----------
    path : str, path-like, file-like or `~astropy.io.fits.HDUList`
        The file.
    hdu : int or str, optional
        As in `read_mwmstar`.
    mask_bits : iterable of int or str, optional
        As in `read_mwmstar`.

    Returns
    -------
    `~specutils.Spectrum`
        As in `read_mwmstar`. ``meta`` also holds ``model_flux``, the best fit of
        the pipeline, and ``continuum``, arrays of the shape of the flux (None without).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is truncated, no astraStar file, has no observed flux, or no such spectrum.
    ValueError
        If ``mask_bits`` names an unknown bit.

    Examples
    --------
    ::

        spectrum = read_astrastar("astraStarASPCAP-0.6.0-23326.fits")
    """
    return _chosen(*_tables(path, "astraStar", mask_bits), hdu)


@data_loader("cyclestarnet astraStar", **_LISTS)
def _read_astrastar_list(path, *, mask_bits=None):
    return SpectrumList(_tables(path, "astraStar", mask_bits)[1])


# -- the common parts --------------------------------------------------------
def _tables(path, kind, mask_bits):
    """Name of the file, and its spectra, the best one first; tables without rows are skipped."""
    apogee = bit_numbers(mask_bits)
    others = () if mask_bits is None else apogee
    name, spectra = read_parts(path, kind, lambda hdus: _spectra(hdus, kind, apogee, others))
    if not spectra:
        raise FileFormatError(f"{name} has no spectrum: its tables are empty, as of a star that was not observed")
    for spectrum in spectra:
        spectrum.meta["file"] = name
    return name, sorted(spectra, key=lambda s: (s.meta["instrument"] != "APOGEE", -(s.meta["snr"] or 0.0)))


def _spectra(hdus, kind, apogee_bits, other_bits):
    tables = [(number, hdu) for number, hdu in enumerate(hdus) if isinstance(hdu, fits.BinTableHDU)]
    if not tables:
        raise FileFormatError(f"an {kind} file has a table for each instrument, but this file has no tables")
    found = []
    for number, table in tables:
        if len(table.data) == 0:
            continue
        columns = {column.lower() for column in table.columns.names}
        if not {"flux", "ivar"} <= columns:
            raise FileFormatError(_no_flux(kind, table.name, columns))
        instrument = str(table.header.get("INSTRMNT") or table.name.split("/")[0]).strip().upper()
        bits = apogee_bits if instrument == "APOGEE" else other_bits
        place = {"instrument": instrument, "hdu": number, "hdu_name": table.name}
        found += [_spectrum(hdus[0].header, table, cells, columns, place, bits) for cells in table.data]
    return found


def _no_flux(kind, table, columns):
    if "model_flux" in columns:
        return (
            "the file holds the best fit of a pipeline (column 'model_flux'), but no observed flux; "
            "read the mwmStar file of the same star"
        )
    return f"an {kind} file has columns 'flux' and 'ivar', but the table {table!r} of this file has {sorted(columns)}"


def _spectrum(primary, table, cells, columns, place, numbers):
    flux, ivar = (np.array(cells[column], dtype=float).ravel() for column in ("flux", "ivar"))
    wavelength = _wavelength(table, cells, columns, flux.size)
    bits = None
    if "pixel_flags" in columns:  # floats in the files, which are exact for the bits of APOGEE
        bits = np.nan_to_num(np.array(cells["pixel_flags"], dtype=float).ravel()).astype(np.int64)
    star, apogee_id, sdss_id = _names(primary, cells, columns)
    meta = {
        "object": star,
        "apogee_id": apogee_id,
        "sdss_id": sdss_id,
        "snr": _number(cells["snr"]) if "snr" in columns else None,
        "telescope": str(cells["telescope"]).strip() if "telescope" in columns else None,
        "bitmask": bits,
        "mask_bits": numbers,
        "medium": "vacuum",
        "frame": "rest",
        "header": primary,
    } | place
    if "model_flux" in columns:
        for key in ("model_flux", "continuum"):
            meta[key] = np.array(cells[key], dtype=float).ravel() if key in columns else None
    with np.errstate(all="ignore"):  # 0 and negative ones are bad pixels
        error = ivar**-0.5
    return masked_spectrum(flux * FLUX_UNIT, error, wavelength, bits, numbers, meta)


def _wavelength(table, cells, columns, n_pixels):
    """In Angstrom; of the header if it tells, because columns are in single precision."""
    start, step, reference = (number_of(table.header.get(key, 1)) for key in ("CRVAL", "CDELT", "CRPIX"))
    if None not in (start, step, reference) and 3 <= start <= 5 and 0 < step < 0.005:
        if 3 <= start + step * (1 - reference) <= start + step * (n_pixels - reference) <= 5:
            return 10 ** (start + step * (np.arange(n_pixels) + 1 - reference))
    if "wavelength" in columns:
        wavelength = np.array(cells["wavelength"], dtype=float).ravel()
        if (
            wavelength.size == n_pixels
            and np.all((wavelength > 0) & (wavelength < np.inf))
            and np.all(np.diff(wavelength) > 0)
        ):
            return wavelength
    raise FileFormatError(
        f"the table {table.name!r} has no usable wavelengths: neither CRVAL and CDELT in its header "
        f"(they are {start!r} and {step!r}) nor a rising, positive column 'wavelength'"
    )


def _names(primary, cells, columns):
    """What the star is called, its name in 2MASS style, and its SDSS number."""
    names = [primary.get("APOGEEID")]
    names += [cells[column] for column in ("obj", "sdss4_apogee_id") if column in columns]
    apogee_id = next((str(name).strip() for name in names if name is not None and str(name).strip()), None)
    number = primary.get("SDSS_ID", cells["sdss_id"] if "sdss_id" in columns else None)
    sdss_id = int(number) if isinstance(number, (int, np.integer)) and number > 0 else None
    return apogee_id or (None if sdss_id is None else str(sdss_id)), apogee_id, sdss_id


def _number(value):
    value = float(np.asarray(value).ravel()[0])
    return value if np.isfinite(value) else None


def _chosen(name, spectra, hdu):
    """The best spectrum of those that are wanted."""
    if hdu is None:
        return spectra[0]
    wanted = hdu.upper() if isinstance(hdu, str) else operator.index(hdu)
    for spectrum in spectra:
        if wanted in (spectrum.meta["hdu"], spectrum.meta["hdu_name"].upper(), spectrum.meta["instrument"]):
            return spectrum
    there = ", ".join(sorted(f"{s.meta['hdu']} {s.meta['hdu_name']}" for s in spectra))
    raise FileFormatError(f"{name} has no spectrum in HDU {hdu!r}, but in these: {there}")
