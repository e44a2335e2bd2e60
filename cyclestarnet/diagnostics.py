"""Signs that a spectrum is not of the kind that a model knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["LatentCloud", "line_shift"]

SPEED_OF_LIGHT = 299792.458  # km/s


@dataclass(frozen=True, eq=False)
class LatentCloud:
    """Gaussian description of the shared latents of training spectra.

    Parameters
    ----------
    mean : array, shape (n,)
    basis : array, shape (n_components, n)
        Orthonormal principal directions.
    variance : array, shape (n_components,)
        Variance along each.
    rest : float
        Mean variance per remaining direction.
    threshold : float
        Distance beyond which a spectrum is called unfamiliar.
    """

    mean: np.ndarray
    basis: np.ndarray
    variance: np.ndarray
    rest: float
    threshold: float

    @classmethod
    def from_latents(cls, latents, *, n_components=40, quantile=0.999, margin=1.25):
        """Describe latents (n_spectra, ...); the threshold is ``margin`` times their ``quantile`` distance."""
        flat = np.asarray(latents, dtype=float).reshape(len(latents), -1)
        mean = flat.mean(0)
        _, size, basis = np.linalg.svd(flat - mean, full_matrices=False)
        variance = size**2 / (len(flat) - 1)
        n_components = min(n_components, len(variance) - 1)
        rest = variance[n_components:].sum() / (flat.shape[1] - n_components)
        cloud = cls(mean, basis[:n_components], variance[:n_components], float(rest), np.inf)
        threshold = margin * np.quantile(cloud.distance(latents), quantile)
        return cls(cloud.mean, cloud.basis, cloud.variance, cloud.rest, float(threshold))

    def distance(self, latents):
        """Root mean square of the standardised coordinates of latents (n_spectra, ...), about 1 inside the cloud."""
        offset = np.asarray(latents, dtype=float).reshape(len(latents), -1) - self.mean
        along = offset @ self.basis.T
        outside = (offset**2).sum(1) - (along**2).sum(1)
        return np.sqrt(((along**2 / self.variance).sum(1) + outside / self.rest) / offset.shape[1])


def line_shift(wavelength, flux, ivar, template, *, limit=150.0, step=3.0):
    """Find the velocity by which the lines of a spectrum are shifted against a template.

    Parameters
    ----------
    wavelength, flux, ivar, template : array, shape (n_pixels,)
        Normalised spectrum and template on the same pixels.
    limit, step : float, optional
        Search range and step in km/s.

    Returns
    -------
    velocity : float
        In km/s, positive towards the red; 0 where no shift correlates clearly better than none.
    correlation : float
        Correlation coefficient at that shift.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.diagnostics import line_shift
    >>> wavelength = np.linspace(15200, 15300, 1000)
    >>> line = lambda centre: 1 - 0.3 * np.exp(-0.5 * ((wavelength - centre) / 0.3) ** 2)
    >>> velocity, _ = line_shift(wavelength, line(15252.0), np.full(1000, 1e4), line(15250.0))
    >>> round(velocity)
    39
    """
    velocities = np.arange(-limit, limit + step, step)
    good = ivar > 0
    weight = np.where(good, 1.0, 0.0)
    data = np.where(good, flux, 1.0).clip(0, 1.3)
    data = (data - data[good].mean()) * weight

    def correlation(velocity):
        shifted = np.interp(wavelength, wavelength * (1 + velocity / SPEED_OF_LIGHT), template)
        shifted = (shifted - shifted[good].mean()) * weight
        return data @ shifted / np.sqrt((data @ data) * (shifted @ shifted) + 1e-300)

    values = np.array([correlation(v) for v in velocities])
    best = int(values.argmax())
    if values[best] < 0.3 or values[best] < correlation(0.0) + 0.05:
        return 0.0, float(correlation(0.0))
    if 0 < best < len(values) - 1:  # parabola through the three highest
        below, at, above = values[best - 1 : best + 2]
        fine = velocities[best] + step * 0.5 * (below - above) / (below - 2 * at + above)
        return float(fine), float(at)
    return float(velocities[best]), float(values[best])
