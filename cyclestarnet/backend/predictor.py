"""The one door between the networks and the rest: labels in, flux and derivatives out, as float64 arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cyclestarnet.backend.emulator import Emulator
from cyclestarnet.backend.networks import TranslationNetwork

__all__ = ["EmulatorPredictor", "ObservedPredictor", "Translator"]

BATCH = 32  # spectra that go through the networks at once; bounds the memory of large requests


class Translator:
    """The translation network between spectra in flux units.

    Parameters
    ----------
    network : `TranslationNetwork`
    flux_mean, flux_std : float
        Scalars that standardise the flux.
    """

    def __init__(self, network: TranslationNetwork, flux_mean: float, flux_std: float):
        self.network = network.eval().requires_grad_(False)
        self.flux_mean, self.flux_std = float(flux_mean), float(flux_std)

    def standardise(self, flux) -> Tensor:
        if not isinstance(flux, Tensor):
            flux = torch.tensor(np.asarray(flux), dtype=self.dtype)
        return (flux - self.flux_mean) / self.flux_std

    def restore(self, standardised: Tensor) -> Tensor:
        return standardised * self.flux_std + self.flux_mean

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def encode_obs(self, flux) -> tuple[np.ndarray, np.ndarray | None]:
        """Shared and split latents of observed flux (n, n_pixels)."""
        pairs = [self.network.encode_obs(part) for part in self.standardise(flux).split(BATCH)]
        shared = torch.cat([pair[0] for pair in pairs]).double().numpy()
        return shared, torch.cat([pair[1] for pair in pairs]).double().numpy() if self.network.has_split else None

    def encode_synth(self, flux) -> np.ndarray:
        """Shared latents of synthetic flux (n, n_pixels)."""
        return self._map(self.network.encode_synth, self.standardise(flux)).double().numpy()

    def reconstruct_synth(self, flux) -> np.ndarray:
        """Synthetic flux through its own autoencoder."""
        network = self.network
        return self._flux(lambda x: network.decode_synth(network.encode_synth(x)), flux)

    def reconstruct_obs(self, flux) -> np.ndarray:
        """Observed flux through its own autoencoder."""
        network = self.network
        return self._flux(lambda x: network.decode_obs(*network.encode_obs(x)), flux)

    def obs_to_synth(self, flux) -> np.ndarray:
        """Observed flux (n, n_pixels) translated to the synthetic domain."""
        return self._flux(self.network.obs_to_synth, flux)

    def synth_to_obs(self, flux, z_split) -> np.ndarray:
        """Synthetic flux (n, n_pixels) translated to the observed domain with one split latent."""
        split = self._split(z_split)
        return self._flux(lambda x: self.network.synth_to_obs(x, _repeat(split, len(x))), flux)

    def _split(self, z_split) -> Tensor | None:
        return None if z_split is None else torch.tensor(np.asarray(z_split), dtype=self.dtype)

    def _map(self, function, standardised: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([function(part) for part in standardised.split(BATCH)])

    def _flux(self, function, flux) -> np.ndarray:
        return self.restore(self._map(function, self.standardise(flux))).double().numpy()


class _Differentiable:
    """Derivatives of a torch function ``_forward`` of labels (n, n_labels); see `EmulatorPredictor`."""

    n_labels: int
    n_pixels: int
    dtype: torch.dtype

    def _forward(self, labels: Tensor) -> Tensor:
        raise TypeError("subclasses define _forward")

    def flux(self, labels) -> np.ndarray:
        """Flux (..., n_pixels) of labels (..., n_labels)."""
        labels = np.asarray(labels, dtype=float)
        flat = torch.tensor(labels.reshape(-1, self.n_labels), dtype=self.dtype)
        with torch.no_grad():
            flux = torch.cat([self._forward(part) for part in flat.split(BATCH)])
        return flux.double().numpy().reshape(*labels.shape[:-1], self.n_pixels)

    def pullback(self, labels) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """Flux of one star, and a function from ∂f/∂flux (n_pixels,) to ∂f/∂labels (n_labels,)."""
        leaf = torch.tensor(np.asarray(labels)[None], dtype=self.dtype, requires_grad=True)
        flux = self._forward(leaf)

        def pull(cotangent: np.ndarray) -> np.ndarray:
            (gradient,) = torch.autograd.grad(
                flux, leaf, torch.tensor(cotangent[None], dtype=self.dtype), retain_graph=True
            )
            return gradient[0].double().numpy()

        return flux[0].detach().double().numpy(), pull

    def jacobian(self, labels) -> tuple[np.ndarray, np.ndarray]:
        """Flux (n_pixels,) of one star and its derivatives (n_pixels, n_labels), by forward-mode differentiation."""
        point = torch.tensor(np.asarray(labels), dtype=self.dtype)

        def with_flux(y: Tensor) -> tuple[Tensor, Tensor]:
            flux = self._forward(y[None])[0]
            return flux, flux

        slopes, flux = torch.func.jacfwd(with_flux, has_aux=True)(point)
        return flux.double().numpy(), slopes.double().numpy()


class EmulatorPredictor(_Differentiable):
    """Labels to synthetic flux.

    Parameters
    ----------
    emulator : `Emulator`
    """

    def __init__(self, emulator: Emulator):
        self.emulator = emulator.eval().requires_grad_(False)
        self.n_labels, self.n_pixels, self.dtype = emulator.n_labels, emulator.n_pixels, emulator.lower.dtype

    def _forward(self, labels: Tensor) -> Tensor:
        return self.emulator(labels)


class ObservedPredictor(_Differentiable):
    """Labels to observed flux: the emulator, then synthetic → observed with one star's split latent (S1, Eq. 11).

    Parameters
    ----------
    emulator : `Emulator`
    translator : `Translator`
    z_split : array, shape (split_filters, latent_length), or None
    """

    def __init__(self, emulator: Emulator, translator: Translator, z_split):
        self.emulator = emulator.eval().requires_grad_(False)
        self.translator = translator
        self.n_labels, self.n_pixels, self.dtype = emulator.n_labels, emulator.n_pixels, translator.dtype
        network = translator.network
        split = None if z_split is None else translator._split(z_split)
        # D_sp does not depend on the labels: once per star
        self._hidden_split = None if split is None else network.decoder_sp(split[None])

    def _forward(self, labels: Tensor) -> Tensor:
        network = self.translator.network
        hidden = network.decoder_sh(network.encode_synth(self.translator.standardise(self.emulator(labels))))
        if self._hidden_split is not None:
            hidden = torch.cat([hidden, self._hidden_split.expand(len(hidden), -1, -1)], dim=1)
        return self.translator.restore(network.decoder_obs(hidden)[:, 0])


def _repeat(split: Tensor | None, n: int) -> Tensor | None:
    return None if split is None else split[None].expand(n, -1, -1)
