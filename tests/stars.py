"""Stars of the tiny model: spectra with noise whose labels are known."""

from dataclasses import replace

import astropy.units as u
import numpy as np

from cyclestarnet.spectra import to_spectrum

N = 415
SIGMA = 0.005
STAR = {"teff": 4800 * u.K, "logg": 2.2 * u.dex(u.cm / u.s**2), "mg_h": -0.2 * u.dex}
VALUES = np.array([4800, 2.2, -0.2])


def spectrum(model, flux, *, sigma=SIGMA, noise=None, mask=None):
    """Normalised flux as a spectrum, with noise drawn by a generator."""
    flux = np.asarray(flux) + (0 if noise is None else noise.normal(0, sigma, N))
    return to_spectrum(flux, model.grid, ivar=np.full(N, sigma**-2), mask=mask)


def observed(model, labels):
    """Noise-free spectrum of labels whose split latent is its own: the encoder finds the one it was made with."""
    flux = model.predict(labels).flux.value
    for _ in range(5):
        flux = model.predict(labels, like=spectrum(model, flux)).flux.value
    return flux


def with_noise(model, **changes):
    """The same model with other errors."""
    return replace(model, noise=replace(model.noise, **changes))


def quantities(model, values):
    return {name: q for name, q in model.labels.to_quantities(values).items() if name in model.labels}


def assert_same_labels(one, other, fraction=1e-9):
    """Equal to a fraction of the error."""
    for name in one.label_set:
        difference = abs((one.labels[name] - other.labels[name]).value)
        assert difference <= fraction * one.uncertainties[name].value, name
