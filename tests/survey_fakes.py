"""A survey without a network: stars whose labels are known, kept in files of numpy, and a fit that reads them off.

Everything is at module level, so that it can go to the workers of a cluster.
"""

import os
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable

from cyclestarnet.results import FitFlag
from cyclestarnet.spectra import Spectrum

N_PIXELS = 8


def make_star(value, name=""):
    """A star of flux ``value``: its ``teff`` is 4000 times that."""
    return Spectrum(
        flux=np.full(N_PIXELS, value) * u.one,
        spectral_axis=np.linspace(1500, 1510, N_PIXELS) * u.nm,
        uncertainty=StdDevUncertainty(np.full(N_PIXELS, 0.01)),
        meta={"object": name},
    )


def save_stars(folder, values):
    """Write a file for each star; return the paths."""
    paths = [folder / f"star-{k:03d}.npy" for k in range(len(values))]
    for path, value in zip(paths, values, strict=True):
        np.save(path, np.float64(value))
    return paths


def read_star(path):
    return make_star(float(np.load(path)), os.path.basename(path))


def row(name, value, flags=0, message="done"):
    """One row with every kind of column there is; what it holds follows from ``value``."""
    return QTable(
        {
            "object": [name],
            "teff": [4000 * value] * u.K,
            "teff_err": [value / 3] * u.K,
            "logg": np.array([2 * value]) * u.dex(u.cm / u.s**2),
            "logg_err": [0.1 * value] * u.dex,
            "mg_h": [-value] * u.dex,
            "vmicro": [value**2] * u.km / u.s,
            "chi2": [value / 7],
            "dof": [N_PIXELS],
            "success": [flags == 0],
            "flags": [flags],
            "flag_names": ["FAILED" if flags else ""],
            "message": [message],
        }
    )


def failed_row(name, error):
    return row(name, np.nan, FitFlag.FAILED.value, str(error))


@dataclass
class Result:
    spectrum: object

    def to_table(self):
        return row(self.spectrum.meta.get("object", ""), self.spectrum.flux.value[0])


@dataclass
class Fit:
    """Fits stars; a flux of -1 is refused, one of -2 raises for the whole block, one of -3 is an interrupt."""

    def __call__(self, spectra, numbers=()):
        values = [spectrum.flux.value[0] for spectrum in spectra]
        if -2 in values:
            raise RuntimeError("the block cannot be fitted")
        if -3 in values:
            raise KeyboardInterrupt
        return [ValueError("bad star") if v == -1 else Result(s) for v, s in zip(values, spectra, strict=True)]
