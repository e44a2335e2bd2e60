"""Stars on their way through a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cyclestarnet.spectra import Pixels, Spectrum

__all__ = ["Stars"]


@dataclass(frozen=True, eq=False)
class Stars:
    """Spectra on the model's pixels, a row per star, and what the encoders make of them.

    Parameters
    ----------
    spectra : list of `~specutils.Spectrum`
        As they came.
    pixels : list of `~cyclestarnet.spectra.Pixels`
        On the pixels of the model, without ignored ones.
    flux : array, shape (n_stars, n_pixels)
        Normalised; 1 where a pixel does not count.
    variance : array, shape (n_stars, n_pixels)
        Of the data, with the floor of training and the inflation of the fit; infinite where a pixel does not count.
    filled : array, shape (n_stars, n_pixels)
        Flux as the encoders see it.
    velocity : array, shape (n_stars,)
        Of the lines, in km/s.
    shared_latent : array, shape (n_stars, shared_filters, latent_length)
        Of the observed branch.
    split_latent : array, shape (n_stars, split_filters, latent_length), or None
        None if the network has no split branch.

    Examples
    --------
    ::

        stars, _ = prepare_stars(model, spectra, setup)
        stars.part([0, 2]).flux
    """

    spectra: list[Spectrum]
    pixels: list[Pixels]
    flux: np.ndarray
    variance: np.ndarray
    filled: np.ndarray
    velocity: np.ndarray
    shared_latent: np.ndarray
    split_latent: np.ndarray | None

    def __len__(self) -> int:
        return len(self.spectra)

    @property
    def share(self) -> np.ndarray:
        """Of an independent measurement that each pixel stands for, (n_stars, n_pixels)."""
        return np.array([pixels.share for pixels in self.pixels])

    def n_data(self, ivar: np.ndarray) -> np.ndarray:
        """Count independent data.

        Pixels of spectra that were resampled have less noise of their own than their variance says, because
        neighbours have it in common; what there is of other errors in the variance, they have for themselves.

        Parameters
        ----------
        ivar : array, shape (n_stars, n_pixels)
            Inverse variance with which χ² is computed: of the data, and of other errors; 0 = not used.

        Returns
        -------
        array, shape (n_stars,)
            What χ² of these errors is on the average; the number of pixels that are used, if nothing was resampled.

        Examples
        --------
        ::

            stars.n_data(1 / stars.variance) - n_parameters
        """
        used = ivar > 0
        noise = np.where(used, self.variance, 0.0) * ivar  # its part in the variance
        return np.where(used, 1 - (1 - self.share) * noise, 0.0).sum(1)

    def part(self, rows: Sequence[int]) -> Stars:
        """Take some of the stars.

        Parameters
        ----------
        rows : sequence of int
            Which.

        Returns
        -------
        `Stars`

        Examples
        --------
        ::

            poor = stars.part(np.flatnonzero(~optimum.success))
        """
        arrays = (self.flux, self.variance, self.filled, self.velocity, self.shared_latent, self.split_latent)
        return Stars(
            [self.spectra[k] for k in rows],
            [self.pixels[k] for k in rows],
            *(None if array is None else array[rows] for array in arrays),
        )
