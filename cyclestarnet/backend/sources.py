"""Where the spectra of both domains come from, standardised for the networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cyclestarnet.backend.settings import TrainingSettings

__all__ = ["ObservedSpectra", "SyntheticSpectra"]


class ObservedSpectra:
    """Observed spectra in memory, standardised, with weights that hold mask and error.

    Parameters
    ----------
    flux, sigma : array, shape (n, n_pixels)
        Normalised flux and its error.
    mask : array of bool, shape (n, n_pixels)
        True = bad pixel.
    settings : `TrainingSettings`
    """

    def __init__(self, flux, sigma, mask, settings: TrainingSettings):
        flux, sigma = (torch.as_tensor(a, dtype=torch.float32) for a in (flux, sigma))
        mask = torch.as_tensor(mask, dtype=torch.bool)
        shapes = [tuple(a.shape) for a in (flux, sigma, mask)]
        if flux.ndim != 2 or len(set(shapes)) > 1:
            raise ValueError(f"flux, sigma and mask must share a shape (n, n_pixels), but have {shapes}")
        bad = mask | ~torch.isfinite(flux) | ~(sigma <= settings.sigma_max) | (sigma <= 0)
        if bad.all(1).any():
            raise ValueError(f"spectrum {int(torch.nonzero(bad.all(1))[0])} has no good pixel")
        # A bad pixel enters the networks as continuum: a wild value there would leak through the convolutions.
        self.flux = torch.where(
            bad, (1 - settings.flux_mean) / settings.flux_std, (flux - settings.flux_mean) / settings.flux_std
        )
        self.weight = torch.where(bad, 0.0, settings.flux_std / sigma.clamp_min(settings.sigma_floor))

    def __len__(self) -> int:
        return len(self.flux)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random spectra (n, n_pixels) and their weights."""
        rows = torch.randint(len(self), (n,), generator=generator)
        return self.flux[rows], self.weight[rows]


class SyntheticSpectra:
    """Synthetic spectra made on the fly from a pool of labels, which is the label prior.

    Parameters
    ----------
    emulator : callable
        Labels (n, n_labels) to normalised flux (n, n_pixels).
    label_pool : array, shape (n_pool, n_labels)
        Labels to draw from.
    settings : `TrainingSettings`
    """

    def __init__(self, emulator: Callable[[Tensor], Tensor], label_pool, settings: TrainingSettings):
        self.emulator, self.settings = emulator, settings
        self.label_pool = torch.as_tensor(label_pool, dtype=torch.float32)
        self.label_mean, self.label_std = self.label_pool.mean(0), self.label_pool.std(0)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random standardised spectra (n, n_pixels) and their labels, standardised by the pool."""
        labels = self.label_pool[torch.randint(len(self.label_pool), (n,), generator=generator)]
        with torch.no_grad():
            flux = (self.emulator(labels) - self.settings.flux_mean) / self.settings.flux_std
        return flux, (labels - self.label_mean) / self.label_std
