"""The reader of normalised spectra that specutils has written for us: its own one does not know flux without a unit."""

from __future__ import annotations

from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from specutils.io.parsing_utils import read_fileobj_or_hdulist
from specutils.io.registers import data_loader

from cyclestarnet.results import NORMALISED
from cyclestarnet.spectra import Spectrum

__all__ = ["read_normalised"]


def _is_ours(origin: str, *args: Any, **kwargs: Any) -> bool:
    """Whether a file says in its primary header that it holds one of our spectra."""
    if origin != "read":
        return False
    try:
        with read_fileobj_or_hdulist(*args) as extensions:
            return extensions[0].header.get("FORMAT") == NORMALISED
    except OSError:
        return False


# It recognises our own files only, so that it takes no file from other readers.
@data_loader("cyclestarnet normalised", identifier=_is_ours, extensions=["fits"], priority=20, force=True)
def read_normalised(path: Any, **kwargs: Any) -> Spectrum:
    """Read the model spectrum or the residual of a result, which `specutils` has written as ``tabular-fits``.

    `specutils.Spectrum.read` finds this reader on its own.

    Parameters
    ----------
    path : str, path-like, file-like or `~astropy.io.fits.HDUList`
        The file.
    **kwargs
        Are not used.

    Returns
    -------
    `~specutils.Spectrum`
        Dimensionless flux, with uncertainty and mask if the file has them; the header in ``meta["header"]``.

    Examples
    --------
    >>> import tempfile
    >>> from specutils import Spectrum
    >>> from cyclestarnet import CalibratedModel, datasets
    >>> result = CalibratedModel.from_pretrained().fit(datasets.k_giant(), space="emulator")
    >>> path = tempfile.mkdtemp() + "/model.fits"
    >>> result.model_spectrum.write(path, format="tabular-fits")
    >>> bool((Spectrum.read(path).flux == result.model_spectrum.flux).all())
    True
    """
    with read_fileobj_or_hdulist(path) as extensions:
        header, data, columns = extensions[0].header.copy(), extensions[1].data, extensions[1].columns
        axis = columns[0]
        arrays = {c.name: np.array(data[c.name], dtype=data[c.name].dtype.newbyteorder("=")).T for c in columns}
    for name in fits.PrimaryHDU().header:  # what every file has
        header.remove(name, ignore_missing=True)
    error = arrays.get("uncertainty")
    return Spectrum(
        flux=arrays["flux"] * u.one,
        spectral_axis=arrays[axis.name] * u.Unit(axis.unit),
        uncertainty=None if error is None else StdDevUncertainty(error),
        mask=arrays["mask"].astype(bool) if "mask" in arrays else None,
        meta={"header": header},
    )
