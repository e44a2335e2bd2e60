"""Where the latents of training spectra lie: what is familiar to the encoders, and how split latents scatter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["LatentCloud", "SplitLatentCloud"]


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


@dataclass(frozen=True, eq=False)
class SplitLatentCloud:
    """Gaussian description of the split latents of training spectra: what instruments and stars do beyond the labels.

    A split latent is mean + Σ c_k √variance_k basis_k, with coordinates c
    that are independent and of unit variance over the training spectra.

    Parameters
    ----------
    mean : array, shape (split_filters, latent_length)
    basis : array, shape (n_components, split_filters, latent_length)
        Orthonormal principal directions, the widest first.
    variance : array, shape (n_components,)
        Variance along each.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.networks.clouds import SplitLatentCloud
    >>> latents = np.random.default_rng(0).normal(size=(500, 4, 24))
    >>> cloud = SplitLatentCloud.from_latents(latents)
    >>> cloud.coordinates(latents).shape
    (500, 12)
    >>> np.allclose(cloud.coordinates(latents).std(0, ddof=1), 1)
    True
    """

    mean: np.ndarray
    basis: np.ndarray
    variance: np.ndarray

    @classmethod
    def from_latents(cls, latents, *, n_components=12):
        """Describe split latents (n_spectra, split_filters, latent_length), 2 or more, by principal components."""
        latents = np.asarray(latents, dtype=float)
        if len(latents) < 2:
            raise ValueError(f"a cloud needs the split latents of 2 or more spectra, but there is {len(latents)}")
        mean = latents.mean(0)
        _, size, basis = np.linalg.svd((latents - mean).reshape(len(latents), -1), full_matrices=False)
        variance = size**2 / (len(latents) - 1)
        kept = min(n_components, int((variance > 1e-9 * variance[0]).sum()))
        return cls(mean, basis[:kept].reshape(kept, *mean.shape), variance[:kept])

    @property
    def directions(self):
        """Change of the latent with each coordinate, (n_components, split_filters, latent_length)."""
        return self.basis * np.sqrt(self.variance)[:, None, None]

    def coordinates(self, latents):
        """Coordinates (n_spectra, n_components) of the latents in the cloud that are nearest to latents."""
        basis = self.basis.reshape(len(self.basis), -1)
        # one by one: the last bits must not depend on the company
        return np.array([basis @ (z - self.mean).ravel() for z in latents]) / np.sqrt(self.variance)
