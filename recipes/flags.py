#!/usr/bin/env python
"""What the flags of fits catch, and how often they fire on good stars: writes docs/tables/flags.rst.

::

    python recipes/flags.py --work WORK --model FILE --dwarf apStar-dr17-2M19485057+5005279.fits

``WORK`` holds what ``apogee_giants_data.py`` has made: ``known.h5`` has observed-like stars that
training has not seen, in its split "test". They are fitted as they are, which gives the false alarms, and the first
of them with each of the `alterations`. ``--dwarf`` is a real star that a model of giants must not accept.
One process fits about five stars in a second; set ``OPENBLAS_NUM_THREADS=1``.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import torch
from list_tables import list_table, write_rst

from cyclestarnet import CalibratedModel, FitFlag
from cyclestarnet.grid import SPEED_OF_LIGHT
from cyclestarnet.io import read
from cyclestarnet.pipeline.fit import fit_stars
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.spectra import to_spectrum

log = logging.getLogger("flags")

TABLE = Path(__file__).parents[1] / "docs" / "tables" / "flags.rst"
BATCH = 16

MEANINGS = {
    "NOT_CONVERGED": (
        "The optimiser stopped before the optimum; ``success`` is False.",
        "Try another ``start`` or ``method``, or fix labels.",
    ),
    "AT_BOUND": (
        "A free label is held back by a bound: without it, a Newton step would carry the label beyond by more than 2 σ "
        "of its error, which noise alone seldom does. A label that merely ends at a bound is in ``meta['at_bound']`` "
        "and displaces no other label much.",
        "Doubt this label and those correlated with it; fix it, or accept that the star is out of range.",
    ),
    "OUTSIDE_TRAINING": (
        "The labels are farther from the mean of the training labels, in units of their covariance, than those of "
        "nearly all training spectra (``meta['prior_distance']``), or single ones, named in "
        "``meta['outside_training']``, are by more than their error outside the range that the training knew.",
        "The answer is an extrapolation: do not trust it without a check.",
    ),
    "POOR_FIT": (
        "``reduced_chi2_total`` is larger than for nearly all validation stars. Observed space only.",
        "Look at the plot: another kind of star, a wrong velocity, a binary, bad pixels.",
    ),
    "UNFAMILIAR": (
        "The shared latent lies outside the cloud of those of training spectra (``meta['latent_distance']``).",
        "Do not use the labels, even if χ² is good.",
    ),
    "FEW_PIXELS": ("Less than half of the model's pixels are good.", "Doubt the errors and the flags; use more bits."),
    "LOW_SNR": (
        "The median S/N per pixel is below 20; training spectra have 30 or more.",
        "Combine visits, or test on stars of known labels.",
    ),
    "VELOCITY": (
        "The lines are shifted by more than 10 km/s against a mean giant (``meta['velocity']``).",
        "Bring the spectrum to rest, or fit ``motion='velocity'``.",
    ),
    "FAILED": ("No fit was possible; only in tables of ``fit_many``.", "The column ``message`` says why."),
    "LOCAL_MISFIT": (
        "Over 30 neighbouring pixels the fit is far worse than elsewhere (``meta['local_misfit']``, around "
        "``meta['worst_wavelength']``): emission, a cosmic ray, sky, a missing feature. Observed space only.",
        "Look there; ``ignore`` the region and fit again. The labels are often right.",
    ),
    "CONTINUUM": (
        "Medians over 200 pixels lie above or below the model (``meta['continuum_misfit']``): the continuum is "
        "suspect. Observed space only.",
        "If ``LOCAL_MISFIT`` is set, too, ``ignore`` that region first, because the encoder spreads it. Else look at "
        "the continuum: outliers on continuum pixels, bad pixels that nobody masked, ``normalise=False``.",
    ),
}


# -- alterations ------------------------------------------------------------------------
def alterations(model):
    """What is done to good stars: functions of flux and inverse variance (n_pixels,), by what they stand for."""
    wavelength = model.grid.wavelength.value
    place = np.concatenate([np.linspace(-1, 1, stop - start) for start, stop in model.grid.chips])  # in a chip
    carbon = molecules(model)

    def swapped(array):
        return np.concatenate([array[start:stop] for start, stop in reversed(model.grid.chips)])

    def line(centre, width, height):
        return height * np.exp(-0.5 * ((wavelength - centre) / width) ** 2)

    def noisy(flux, ivar, snr):
        noise = np.random.default_rng(0).standard_normal(len(flux))
        return flux + noise / snr, np.where(ivar > 0, 1 / (1 / np.maximum(ivar, 1e-9) + snr**-2), 0.0)

    return {
        "lines shifted by 50 km/s": lambda f, i: (_moved(wavelength, f, 50.0), _moved(wavelength, i, 50.0)),
        "[C/H] and [N/H] raised by 0.8": lambda f, i: (f * carbon, i),
        "Brackett 11 in emission, 50 % high": lambda f, i: (f + line(16811, 4.0, 0.5), i),
        "a cosmic ray, 3 pixels, 50 % high": lambda f, i: (f + line(wavelength[3000], 0.25, 0.5), i),
        "every other pixel masked": lambda f, i: (f, np.where(np.arange(len(i)) % 2, i, 0.0)),
        "chips swapped": lambda f, i: (swapped(f), swapped(i)),
        "continuum slope of ±5 % over a chip": lambda f, i: (f * (1 + 0.05 * place), i),
        "continuum wave of ±4 %, three per chip": lambda f, i: (f * (1 + 0.04 * np.sin(3 * np.pi * place)), i),
        "continuum 3 % too low": lambda f, i: (f / 0.97, i),
        "noise of S/N 15": lambda f, i: noisy(f, i, 15.0),
        "no lines at all": lambda f, i: (np.where(i > 0, noisy(np.ones_like(f), i, 100.0)[0], 1.0), i),
    }


def molecules(model):
    """Factor (n_pixels,) by which carbon and nitrogen deepen the bands of a cool giant: CN, CO."""
    labels = model.labels
    base = {"teff": 4300.0, "logg": 1.5}
    giant = np.array([base.get(name, mean) for name, mean in zip(labels, model.prior.mean, strict=True)])
    rich = giant + [0.8 * (name in ("c_h", "n_h")) for name in labels]
    giant, rich = np.clip([giant, rich], labels.lower, labels.upper)
    flux = [model.predict(labels.to_quantities(row), domain="synthetic").flux.value for row in (giant, rich)]
    return flux[1] / flux[0]


def _moved(wavelength, array, velocity):
    return np.interp(wavelength, wavelength * (1 + velocity / SPEED_OF_LIGHT), array)


# -- measurements -------------------------------------------------------------------------
def read_stars(path, n):
    """Flux and inverse variance (n, n_pixels) of the first held-out stars."""
    with h5py.File(path) as file:
        flux, sigma, good = (file[f"{key} test"][:n].astype(float) for key in ("spectra", "spectra_err", "spectra_msk"))
    return flux, np.where(good > 0, 1 / sigma**2, 0.0)


def count_flags(model, spectra):
    """How many fits raise each flag, {name: n}, and how many raise any, under ``"any"``."""
    setup, counts = FitSetup.of(model, FitOptions()), Counter()
    for first in range(0, len(spectra), BATCH):
        for result in fit_stars(model, spectra[first : first + BATCH], setup):
            names = ["FAILED"] if isinstance(result, Exception) else result.flags.names
            counts.update([*names, "any"] if names else [])
    return counts


def measure(model, flux, ivar, n_altered, dwarf=None):
    """False alarms and catches, each (counts, number of stars); catches by alteration."""
    stars = [to_spectrum(f, model.grid, ivar=i) for f, i in zip(flux, ivar, strict=True)]
    alarms = (count_flags(model, stars), len(stars))
    log.info("%d good stars: %s", len(stars), dict(alarms[0]))
    catches = {}
    for name, alter in alterations(model).items():
        pairs = [alter(f, i) for f, i in zip(flux[:n_altered], ivar[:n_altered], strict=True)]
        catches[name] = (count_flags(model, [to_spectrum(f, model.grid, ivar=i) for f, i in pairs]), len(pairs))
        log.info("%s: %s of %d", name, dict(catches[name][0]), len(pairs))
    if dwarf is not None:
        catches["a real dwarf"] = (count_flags(model, [read(dwarf)]), 1)
        log.info("a real dwarf: %s", dict(catches["a real dwarf"][0]))
    return alarms, catches


# -- the table --------------------------------------------------------------------------------
def tables(model, alarms, catches):
    """The two tables: what flags mean, and what alterations raise."""
    counts, n = alarms
    rows = [("flag", "bit", "meaning", "what to do", "shown to catch", f"false alarms in {n}")]
    for flag in FitFlag:
        caught = [name for name, (found, total) in catches.items() if 2 * found[flag.name] > total]
        meaning, advice = MEANINGS[flag.name]
        rows.append(
            (f"``{flag.name}``", str(flag.value), meaning, advice, "; ".join(caught) or "—", str(counts[flag.name]))
        )
    title = (
        "Flags of fits. Shown to catch: flagged in more than half of the altered stars. False alarms: of "
        f"{n} simulated stars that training has not seen, {counts['any']} raise any flag (model {model.name})."
    )
    meanings = list_table(title, rows, widths="16 5 34 20 20 5")
    rows = [("alteration", "stars", "flagged", "by")]
    for name, (found, total) in catches.items():
        by = ", ".join(f"``{flag.name}`` {found[flag.name]}" for flag in FitFlag if found[flag.name])
        rows.append((name, str(total), str(found["any"]), by or "—"))
    return meanings, list_table("Altered stars, and the flags that they raise", rows, widths="30 8 8 54")


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with known.h5")
    parser.add_argument("--model", type=Path, help="file of a model; default: the embedded one")
    parser.add_argument("--dwarf", type=Path, help="apStar file of a real dwarf")
    parser.add_argument("--stars", type=int, default=400, help="that must not be flagged")
    parser.add_argument("--altered", type=int, default=20, help="of these, per alteration")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = CalibratedModel.from_pretrained() if options.model is None else CalibratedModel.load(options.model)
    flux, ivar = read_stars(options.work / "known.h5", max(options.stars, options.altered))
    alarms, catches = measure(model, flux, ivar, options.altered, options.dwarf)
    write_rst(TABLE, *tables(model, alarms, catches))


if __name__ == "__main__":
    main()
