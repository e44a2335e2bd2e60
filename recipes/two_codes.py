#!/usr/bin/env python
"""Two synthetic codes as two domains without labels, with the truth of every star in both.

    python recipes/two_codes.py resolutions INPUTS
    python recipes/two_codes.py lines INPUTS

``resolutions``: MOOG spectra of giants (``INPUTS/data/moog_grid``) at the resolution of the grid, 22,500, and at
11,000. ``lines``: giants as the emulator of ``apogee-giants`` makes them, and as MOOG does with other line physics
(``INPUTS/data/apogee/elements``: oscillator strengths, wavelengths and damping are others, and 4 % of the atomic lines
are missing), 20 labels each. One half of the stars is seen in one domain, the other half in the other; both have
noise. `cyclestarnet.train_translation` knows neither labels nor which stars are alike. Stars of neither half, known in
both domains, tell how near translated spectra come to the truth: the table has, for both directions, the root mean
square distance of noiseless spectra from the truth before translation, after the difference of the mean spectra of both
domains is added, and after translation; and the scatter of (translated − truth) / error with noise.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from astropy import constants
from astropy import units as u
from astropy.table import Table
from scipy.ndimage import gaussian_filter1d

from cyclestarnet import CalibratedModel, TrainingSettings, WavelengthGrid, train_translation
from cyclestarnet.networks.predictor import EmulatorPredictor
from cyclestarnet.spectra import to_spectrum

R_GRID, R_LOW = 22_500, 11_000
N_DRAWN = 4000  # giants with other lines
PIXELS = slice(3500, 4907)  # 1,407 on the middle chip of APOGEE
STEP = 6e-6 * np.log(10) * constants.c.to_value("km/s")  # of a pixel, km/s
SIGMA = 0.01  # noise of a pixel
N_TEST = 200
NETWORK = {
    "domain": ((16, 7, 4), (32, 7, 4)),
    "shared": ((48, 7, 2), (64, 7, 2)),
    "split": ((8, 7, 2), (8, 7, 2)),
    "critic_spectrum": ((8, 7, 4), (16, 7, 4), (32, 7, 4)),
    "critic_latent": ((16, 1, 1), (32, 1, 1)),
    "shared_filters": 12,
    "split_filters": 0,  # nothing varies besides the stars
}


@dataclass(frozen=True)
class Pair:
    """The same stars in two domains, without noise, (n, 1407); names of the domains, and the wavelengths."""

    names: tuple[str, str]
    first: np.ndarray
    second: np.ndarray
    wavelength: np.ndarray


def resolutions():
    """Giants at a lower resolution and at that of the grid."""
    grid = import_module("load_moog_grid").load()
    logg = grid["labels"][:, list(grid["label_names"]).index("logg")]
    rows = np.random.default_rng(0).permutation(np.flatnonzero(logg < 3.5))
    flux = grid["flux"][rows, PIXELS].astype(float)
    names = f"R = {R_LOW:,}", f"R = {R_GRID:,}"
    return Pair(names, convolved(flux, R_LOW), flux, grid["wavelength"][PIXELS])


def lines():
    """Giants with the lines of the packaged model's emulator, and with others."""
    model = CalibratedModel.from_pretrained("apogee-giants")
    others = import_module("make_observed_domain").Elements()
    population = np.random.default_rng(0).multivariate_normal(model.prior.mean, model.prior.covariance, N_DRAWN)
    labels = np.clip(population, others.low, others.high)
    first = EmulatorPredictor(model.emulator).flux(labels)[:, PIXELS]
    wavelength = model.grid.wavelength.value[PIXELS]
    return Pair(
        ("lines of linemake", "other lines"), first, others.response(labels)[:, PIXELS].astype(float), wavelength
    )


def convolved(flux, resolution):
    """The same at a lower resolution."""
    fwhm = constants.c.to_value("km/s") * np.sqrt(resolution**-2.0 - float(R_GRID) ** -2)
    return gaussian_filter1d(flux, fwhm / np.sqrt(8 * np.log(2)) / STEP, axis=1, mode="nearest")


def translated(function, flux, grid):
    """Flux and errors of translated spectra, (n, 1407)."""
    ivar = np.full(grid.n_pixels, SIGMA**-2)
    stars = [function(to_spectrum(row, grid, ivar=ivar)) for row in flux]
    return np.array([star.flux.value for star in stars]), np.array([star.uncertainty.array for star in stars])


def rows_of_table(translation, test, difference, rng):
    """How near spectra come to the truth, for both directions; ``difference`` is that of the mean training spectra."""
    low, high = translation.domains
    for names, clean, truth, shift, function in (
        ((low, high), test["first"], test["second"], difference, translation.to_second),
        ((high, low), test["second"], test["first"], -difference, translation.to_first),
    ):
        quiet, _ = translated(function, clean, translation.grid)
        noisy, errors = translated(function, rng.normal(clean, SIGMA), translation.grid)
        yield {
            "from": names[0],
            "to": names[1],
            "before": np.sqrt(np.mean((clean - truth) ** 2)),
            "shifted": np.sqrt(np.mean((clean + shift - truth) ** 2)),
            "after": np.sqrt(np.mean((quiet - truth) ** 2)),
            "pull": np.std((noisy - truth) / errors),
        }


PAIRS = {"resolutions": resolutions, "lines": lines}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=sorted(PAIRS), help="what the domains differ in")
    parser.add_argument("inputs", type=Path, help="folder with data/ and tools/")
    parser.add_argument("--iterations", type=int, default=2000, help="length of the training (default: 2000)")
    parser.add_argument("--folder", type=Path, help="keeps the training and the translation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    sys.path.insert(0, str(options.inputs / "tools"))
    pair = PAIRS[options.pair]()
    both, n_stars = {"first": pair.first, "second": pair.second}, len(pair.first)
    half = (n_stars - N_TEST) // 2
    rows = {"first": slice(N_TEST, N_TEST + half), "second": slice(N_TEST + half, None)}
    rng = np.random.default_rng([options.seed, 1])
    seen = {side: rng.normal(spectra[rows[side]], SIGMA) for side, spectra in both.items()}
    translation = train_translation(
        seen["first"],
        np.full(seen["first"].shape, SIGMA),
        seen["second"],
        np.full(seen["second"].shape, SIGMA),
        wavelength=WavelengthGrid(pair.wavelength * u.AA, ((0, len(pair.wavelength)),)),
        domains=pair.names,
        name=f"two-{options.pair}",
        settings=TrainingSettings(
            n_iterations=options.iterations,
            learning_rate=1e-3,
            critic_learning_rate=4e-4,
            schedule="cosine",
            warm_start=options.iterations // 5,
            weight_synth=9.0,
            weight_latent=30.0,
            average_decay=0.99,
            flux_mean=float(seen["first"].mean()),
            flux_std=float(pair.second.std()),
            seed=options.seed,
        ),
        network=NETWORK,
        folder=options.folder,
        seed=options.seed,
    )
    print(translation)
    difference = seen["second"].mean(axis=0) - seen["first"].mean(axis=0)
    table = Table(rows=list(rows_of_table(translation, {s: f[:N_TEST] for s, f in both.items()}, difference, rng)))
    for name, form in {"before": ".4f", "shifted": ".4f", "after": ".4f", "pull": ".2f"}.items():
        table[name].info.format = form
    print("\n".join(table.pformat(max_width=-1)))


if __name__ == "__main__":
    main()
