"""Where the latents of training spectra lie: what is familiar to the encoders, and how split latents scatter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["LatentCloud", "SplitLatentCloud"]


@dataclass(frozen=True, eq=False)
class LatentCloud:
    """Gaussian description of the shared latents of training spectra, to tell whether a spectrum is familiar.

    Parameters
    ----------
    mean : array, shape (n_latent,)
        Mean latent. Latents are taken flat: n_latent is filters times positions.
    basis : array, shape (n_components, n_latent)
        Orthonormal principal directions, the widest first.
    variance : array, shape (n_components,)
        Variance along each.
    rest : float
        Mean variance per remaining direction.
    threshold : float
        Distance beyond which a spectrum is called unfamiliar.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.networks.clouds import LatentCloud
    >>> latents = np.random.default_rng(0).normal(size=(500, 4, 5))
    >>> cloud = LatentCloud.from_latents(latents, n_components=10)
    >>> cloud.distance(3 * latents[:1]) > cloud.threshold
    array([ True])
    """

    mean: np.ndarray
    basis: np.ndarray
    variance: np.ndarray
    rest: float
    threshold: float

    @classmethod
    def from_latents(
        cls, latents: ArrayLike, *, n_components: int = 40, quantile: float = 0.999, margin: float = 1.25
    ) -> LatentCloud:
        """Describe latents by their mean and principal components.

        Parameters
        ----------
        latents : array_like, shape (n_spectra, ...)
            Of training spectra, without NaN; several times as many as components.
        n_components : int, optional
            Directions that have a variance each; all others share one.
            Default: 40, or as many as the latents allow.
        quantile : float, optional
            The threshold is the distance below which this part of ``latents`` lie, ...
        margin : float, optional
            ... times this factor, because other spectra lie farther out than
            those that the cloud was made of.

        Returns
        -------
        `LatentCloud`

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.networks.clouds import LatentCloud
        >>> LatentCloud.from_latents(np.random.default_rng(0).normal(size=(500, 4, 5))).basis.shape
        (19, 20)
        """
        latents = np.asarray(latents, dtype=float)
        flat = latents.reshape(len(latents), -1)
        mean = flat.mean(0)
        _, size, basis = np.linalg.svd(flat - mean, full_matrices=False)
        variance = size**2 / (len(flat) - 1)
        n_components = min(n_components, len(variance) - 1)
        rest = variance[n_components:].sum() / (flat.shape[1] - n_components)
        cloud = cls(mean, basis[:n_components], variance[:n_components], float(rest), np.inf)
        threshold = margin * np.quantile(cloud.distance(latents), quantile)
        return cls(cloud.mean, cloud.basis, cloud.variance, cloud.rest, float(threshold))

    def distance(self, latents: ArrayLike) -> np.ndarray:
        """Root mean square of the standardised coordinates of latents: about 1 inside the cloud.

        Parameters
        ----------
        latents : array_like, shape (n_spectra, ...)
            Of the same filters and positions as those of the cloud. NaN gives NaN.

        Returns
        -------
        array, shape (n_spectra,)

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.networks.clouds import LatentCloud
        >>> latents = np.random.default_rng(0).normal(size=(500, 4, 5))
        >>> LatentCloud.from_latents(latents).distance(latents).mean().round(1)
        np.float64(1.0)
        """
        latents = np.asarray(latents, dtype=float)
        offset = latents.reshape(len(latents), -1) - self.mean
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
        Mean latent.
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
    def from_latents(cls, latents: ArrayLike, *, n_components: int = 12) -> SplitLatentCloud:
        """Describe split latents by their mean and principal components.

        Parameters
        ----------
        latents : array_like, shape (n_spectra, split_filters, latent_length)
            Of 2 or more training spectra, without NaN.
        n_components : int, optional
            Directions to keep. Fewer are kept if the latents vary along fewer. Default: 12.

        Returns
        -------
        `SplitLatentCloud`

        Raises
        ------
        ValueError
            If there are fewer than 2 latents.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.networks.clouds import SplitLatentCloud
        >>> latents = np.random.default_rng(0).normal(size=(500, 4, 24))
        >>> SplitLatentCloud.from_latents(latents, n_components=3).directions.shape
        (3, 4, 24)
        """
        latents = np.asarray(latents, dtype=float)
        if len(latents) < 2:
            raise ValueError(f"a cloud needs the split latents of 2 or more spectra, but there is {len(latents)}")
        mean = latents.mean(0)
        _, size, basis = np.linalg.svd((latents - mean).reshape(len(latents), -1), full_matrices=False)
        variance = size**2 / (len(latents) - 1)
        kept = min(n_components, int((variance > 1e-9 * variance[0]).sum()))
        return cls(mean, basis[:kept].reshape(kept, *mean.shape), variance[:kept])

    @property
    def directions(self) -> np.ndarray:
        """Change of the latent with each coordinate, (n_components, split_filters, latent_length)."""
        return self.basis * np.sqrt(self.variance)[:, None, None]

    def coordinates(self, latents: np.ndarray) -> np.ndarray:
        """Coordinates of the latents in the cloud that are nearest to given ones.

        Parameters
        ----------
        latents : array, shape (n_spectra, split_filters, latent_length)
            Any split latents of the same network.

        Returns
        -------
        array, shape (n_spectra, n_components)
            About 1 in size for spectra like those of the training.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.networks.clouds import SplitLatentCloud
        >>> cloud = SplitLatentCloud.from_latents(np.random.default_rng(0).normal(size=(500, 4, 24)))
        >>> cloud.coordinates(cloud.mean[None] + 2 * cloud.directions[:1])[0, 0].round(3)
        np.float64(2.0)
        """
        basis = self.basis.reshape(len(self.basis), -1)
        # one by one: the last bits must not depend on the company
        return np.array([basis @ (z - self.mean).ravel() for z in latents]) / np.sqrt(self.variance)
