#!/usr/bin/env python
"""Two instruments and a synthetic domain in one shared latent, and a third instrument added later, with truth.

    python recipes/three_instruments.py

The stars are giants as the emulator of ``apogee-giants`` makes them (MOOG), 20 labels each. They are shared out: each
is seen by one instrument only, or is one of the synthetic domain. Instrument A has a lower resolution; B another one,
and a wiggle in its throughput that is stronger or weaker from star to star (it has a split latent); C, which is added
when the others are trained, the lowest resolution and a wiggle of its own. `cyclestarnet.train_domains` knows neither
labels nor which stars are alike. Other stars, which every instrument observes with noise of its own, tell the
truth: translated to the synthetic domain, their labels are read by a regression that was learnt from the synthetic
spectra alone. The first table has the errors of the labels, the second how well labels of A, B and C agree.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
from astropy import constants
from astropy import units as u
from astropy.table import Table
from scipy.ndimage import gaussian_filter1d

from cyclestarnet import CalibratedModel, DomainSpectra, TrainingSettings, WavelengthGrid, add_domain, train_domains
from cyclestarnet.networks.predictor import EmulatorPredictor
from cyclestarnet.spectra import to_spectrum

R_GRID = 22_500
PIXELS = slice(3500, 4331)  # 831 on the middle chip of APOGEE
STEP = 6e-6 * np.log(10) * constants.c.to_value("km/s")  # of a pixel, km/s
SIGMA = 0.01  # noise of a pixel of the instruments
WORTH = 0.005  # error that the synthetic spectra are given
N_STARS, N_TEST = 8200, 200
INSTRUMENTS = {"A": (11_000, 0.0, 1.0), "B": (16_000, 0.03, 420.0), "C": (8_000, 0.02, 250.0)}  # R, wiggle, its period
LABELS = ("teff", "logg", "fe_h")
N_COMPONENTS = 20  # of the regression
NETWORK = {
    "domain": ((16, 7, 4), (32, 7, 4)),
    "shared": ((48, 7, 2), (64, 7, 2)),
    "split": ((8, 7, 2), (8, 7, 2)),
    "critic_spectrum": ((8, 7, 4), (16, 7, 4), (32, 7, 4)),
    "critic_latent": ((16, 1, 1), (32, 1, 1)),
    "shared_filters": 12,
    "split_filters": 2,
}


def giants():
    """Spectra without noise (n, 831) at the resolution of the grid, labels (n, 3), wavelengths."""
    model = CalibratedModel.from_pretrained("apogee-giants")
    labels = np.random.default_rng(0).multivariate_normal(model.prior.mean, model.prior.covariance, N_STARS)
    labels = labels.clip(model.labels.lower, model.labels.upper)
    flux = EmulatorPredictor(model.emulator).flux(labels)[:, PIXELS]
    return flux, labels[:, [model.labels.index(name) for name in LABELS]], model.grid.wavelength.value[PIXELS]


def observe(flux, instrument, rng):
    """Clean spectra as an instrument sees them: its resolution, its wiggle, whose strength varies for B, and noise."""
    resolution, wiggle, period = INSTRUMENTS[instrument]
    fwhm = constants.c.to_value("km/s") * np.sqrt(resolution**-2.0 - float(R_GRID) ** -2)
    seen = gaussian_filter1d(flux, fwhm / np.sqrt(8 * np.log(2)) / STEP, axis=1, mode="nearest")
    strength = rng.uniform(0.0, 1.0, (len(flux), 1)) if instrument == "B" else 1.0
    seen = seen * (1 + wiggle * strength * np.sin(2 * np.pi * np.arange(flux.shape[1]) / period))
    return rng.normal(seen, SIGMA)


class Regression:
    """Labels of spectra of the synthetic domain: a quadratic function of principal components, learnt with noise."""

    def __init__(self, flux, labels, rng):
        self.mean = flux.mean(0)
        self.axes = np.linalg.svd(flux - self.mean, full_matrices=False)[2][:N_COMPONENTS]
        noisy = np.concatenate([rng.normal(flux, SIGMA) for _ in range(10)])
        self.weights = np.linalg.lstsq(self._features((noisy - self.mean) @ self.axes.T), np.tile(labels, (10, 1)))[0]

    @staticmethod
    def _features(z):
        pairs = z[:, :, None] * z[:, None, :]
        upper = np.triu_indices(z.shape[1])
        return np.column_stack([np.ones(len(z)), z, pairs[:, *upper]])

    def __call__(self, flux):
        """Labels (n, 3)."""
        return self._features((flux - self.mean) @ self.axes.T) @ self.weights

    def errors(self, flux, sigma):
        """Errors of labels (n, 3) from those of pixels that do not correlate: by finite differences along the axes."""
        z, step = (flux - self.mean) @ self.axes.T, 1e-4
        slopes = [
            (self._features(z + step * e) - self._features(z - step * e)) @ self.weights / (2 * step)
            for e in np.eye(N_COMPONENTS)
        ]
        by_pixel = np.einsum("knl,kp->nlp", np.array(slopes), self.axes)
        return np.sqrt(np.einsum("nlp,np->nl", by_pixel**2, sigma**2))


def to_synthetic(translation, flux, instrument):
    """Flux and errors (n, 831) of spectra of an instrument, translated to the synthetic domain."""
    ivar = np.full(translation.grid.n_pixels, SIGMA**-2)
    stars = [translation.translate(to_spectrum(row, translation.grid, ivar=ivar), instrument, "MOOG") for row in flux]
    return np.array([star.flux.value for star in stars]), np.array([star.uncertainty.array for star in stars])


def rows_of_errors(found, truth):
    """Mean and scatter of the error of each label, by what was read."""
    for what, labels in found.items():
        row = {"read from": what}
        for k, name in enumerate(LABELS):
            row |= {f"{name} mean": (labels - truth)[:, k].mean(), f"{name} scatter": (labels - truth)[:, k].std()}
        yield row


def rows_of_agreement(labels, errors):
    """How well labels of the same stars by two instruments agree, also in units of their errors."""
    for one, other in combinations(labels, 2):
        difference = labels[one] - labels[other]
        pull = difference / np.hypot(errors[one], errors[other])
        row = {"instruments": f"{one} - {other}"}
        for k, name in enumerate(LABELS):
            row |= {f"{name} mean": difference[:, k].mean(), f"{name} scatter": difference[:, k].std()}
            row[f"{name} pulls"] = np.sqrt(np.mean(pull[:, k] ** 2))
        yield row


def print_table(rows):
    table = Table(rows=list(rows))
    for name in table.colnames[1:]:
        table[name].info.format = ".2f" if "pulls" in name else ".0f" if name.startswith("teff") else ".3f"
    print("\n".join(table.pformat(max_width=-1)))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=4800, help="length of the training (default: 4800)")
    parser.add_argument("--added", type=int, default=2400, help="of that of the third instrument (default: 2400)")
    parser.add_argument("--folder", type=Path, help="keeps the trainings and the translations")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    flux, labels, wavelength = giants()
    rng = np.random.default_rng([options.seed, 1])
    groups = dict(zip(("MOOG", *INSTRUMENTS), np.array_split(np.arange(N_TEST, len(flux)), 4), strict=True))
    domains = {"MOOG": DomainSpectra(flux[groups["MOOG"]], np.full((len(groups["MOOG"]), flux.shape[1]), WORTH))}
    for name in INSTRUMENTS:
        seen = observe(flux[groups[name]], name, rng)
        domains[name] = DomainSpectra(seen, np.full(seen.shape, SIGMA), split_latent=name == "B")
    third = domains.pop("C")
    common = {
        "learning_rate": 1e-3,
        "critic_learning_rate": 4e-4,
        "schedule": "cosine",
        "weight_synth": 9.0,
        "weight_latent": 30.0,
        "average_decay": 0.99,
        "flux_mean": float(flux.mean()),
        "flux_std": float(flux.std()),
        "seed": options.seed,
    }
    folders = {name: options.folder and options.folder / name for name in ("two", "three")}
    settings = TrainingSettings(n_iterations=options.iterations, warm_start=options.iterations // 8, **common)
    two = train_domains(
        domains,
        wavelength=WavelengthGrid(wavelength * u.AA, ((0, len(wavelength)),)),
        name="instruments",
        settings=settings,
        network=NETWORK,
        folder=folders["two"],
        seed=options.seed,
    )
    settings = TrainingSettings(n_iterations=options.added, **common)
    three = add_domain(two, "C", third, beside=domains, settings=settings, folder=folders["three"], seed=options.seed)
    print(three)
    before, after = (made.translator.network.state_dict() for made in (two, three))
    same = all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before)
    print(f"all weights of MOOG, A and B are the same bytes after C was added: {same}")

    read = Regression(flux[groups["MOOG"]], labels[groups["MOOG"]], rng)
    clean, truth = flux[:N_TEST], labels[:N_TEST]
    found, errors = {"MOOG, noise of 1 %": read(rng.normal(clean, SIGMA))}, {}
    for name in INSTRUMENTS:
        seen = observe(clean, name, rng)
        translated, sigma = to_synthetic(three, seen, name)
        found[f"{name}, as it is"], found[f"{name}, translated"] = read(seen), read(translated)
        errors[name] = read.errors(translated, sigma)
    print_table(rows_of_errors(found, truth))
    print_table(rows_of_agreement({name: found[f"{name}, translated"] for name in INSTRUMENTS}, errors))


if __name__ == "__main__":
    main()
