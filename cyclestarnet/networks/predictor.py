"""The one door between the networks and the rest: labels in, flux and derivatives out, as float64 arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.tangents import has_fast_bfloat16, linearise_emulator, linearise_split, linearise_translation
from cyclestarnet.networks.translation import TranslationNetwork

if TYPE_CHECKING:
    from cyclestarnet.networks.kinematics import Kinematics
    from cyclestarnet.networks.shortcuts import Shortcuts

__all__ = ["EmulatorPredictor", "FreeSplitLatentPredictor", "MovingPredictor", "ObservedPredictor", "Translator"]

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
            flux = torch.as_tensor(np.asarray(flux), dtype=self.dtype, device=self.device)
        return (flux - self.flux_mean) / self.flux_std

    def restore(self, standardised: Tensor) -> Tensor:
        return standardised * self.flux_std + self.flux_mean

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def encode_obs(self, flux, *, together: int = BATCH) -> tuple[np.ndarray, np.ndarray | None]:
        """Shared and split latents of observed flux (n, n_pixels), ``together`` rows at once."""
        pairs = [self.network.encode_obs(part) for part in self.standardise(flux).split(together)]
        shared = torch.cat([pair[0] for pair in pairs]).double().cpu().numpy()
        return shared, torch.cat([pair[1] for pair in pairs]).double().cpu().numpy() if self.network.has_split else None

    def encode_synth(self, flux) -> np.ndarray:
        """Shared latents of synthetic flux (n, n_pixels)."""
        return self._map(self.network.encode_synth, self.standardise(flux)).double().cpu().numpy()

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
        return None if z_split is None else torch.tensor(np.asarray(z_split), dtype=self.dtype, device=self.device)

    def _map(self, function, standardised: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([function(part) for part in standardised.split(BATCH)])

    def _flux(self, function, flux) -> np.ndarray:
        return self.restore(self._map(function, self.standardise(flux))).double().cpu().numpy()


class _Predictor:
    """Labels to flux, for one star or many.

    Arrays come out as they went in: of `numpy`, or tensors on the device of
    the networks. Where stars differ in more than their labels, ``stars`` (n,)
    tells which star each row of labels (n, n_labels) belongs to.
    """

    n_labels: int
    n_pixels: int
    dtype: torch.dtype
    device: torch.device
    together: int = BATCH
    shortcuts: Shortcuts | None = None

    def _forward(self, labels: Tensor, stars: Tensor | None) -> Tensor:
        raise TypeError("subclasses define _forward")

    def _linearise(self, labels: Tensor, stars: Tensor | None, coarse: bool) -> tuple[Tensor, Tensor]:
        raise TypeError("subclasses define _linearise")

    def _parts(self, labels, stars, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        rows = torch.as_tensor(labels, dtype=self.dtype, device=self.device).reshape(-1, self.n_labels)
        if stars is None:
            return ((part, None) for part in rows.split(size))
        stars = torch.as_tensor(stars, dtype=torch.long, device=self.device)
        return zip(rows.split(size), stars.split(size), strict=True)

    def flux(self, labels, stars=None):
        """Flux (..., n_pixels) of labels (..., n_labels)."""
        with torch.no_grad():
            flux = torch.cat([self._forward(*part) for part in self._parts(labels, stars, self.together)])
        return _like(labels, flux.reshape(*labels.shape[:-1], self.n_pixels).double())

    def pullback(self, labels, stars=None):
        """Flux (..., n_pixels), and a function from ∂f/∂flux (..., n_pixels) to ∂f/∂labels (..., n_labels)."""
        leaves, fluxes = [], []
        for part, which in self._parts(labels, stars, self.together):
            leaves.append(part.detach().clone().requires_grad_())
            fluxes.append(self._forward(leaves[-1], which))

        def pull(cotangent):
            rows = torch.as_tensor(cotangent, dtype=self.dtype, device=self.device).reshape(-1, self.n_pixels)
            gradients = torch.autograd.grad(fluxes, leaves, rows.split(self.together), retain_graph=True)
            return _like(labels, torch.cat(gradients).reshape(labels.shape).double())

        flux = torch.cat([part.detach() for part in fluxes])
        return _like(labels, flux.reshape(*labels.shape[:-1], self.n_pixels).double()), pull

    def jacobian(self, labels, stars=None, *, coarse: bool = False):
        """Flux (..., n_pixels) and its derivatives (..., n_labels, n_pixels), by forward-mode differentiation.

        Parameters
        ----------
        labels : array or Tensor, shape (..., n_labels)
        stars : array or Tensor of int, optional
        coarse : bool, optional
            Use bfloat16 where the processor is quick at it: derivatives that
            are right to 0.5 % of their largest value. The flux is exact.
        """
        size = self.together if self.device.type == "cuda" else 1
        with torch.no_grad():
            pairs = [self._linearise(*part, coarse) for part in self._parts(labels, stars, size)]
        flux, slopes = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        shape = (*labels.shape[:-1], self.n_pixels)
        slopes = slopes.reshape(*labels.shape, self.n_pixels)
        return _like(labels, flux.reshape(shape).double()), _like(labels, slopes)

    def expected_slopes(self, labels: Tensor) -> Tensor | None:
        """Derivatives (n, n_labels, n_pixels) to expect at labels (n, n_labels), if anything is known of them."""
        return None if self.shortcuts is None else self.shortcuts.expected_slopes(labels)


class EmulatorPredictor(_Predictor):
    """Labels to synthetic flux.

    Parameters
    ----------
    emulator : `Emulator`
    together : int, optional
        See `ObservedPredictor`.
    """

    def __init__(self, emulator: Emulator, *, together: int = BATCH):
        self.emulator, self.together = emulator.eval().requires_grad_(False), together
        self.n_labels, self.n_pixels = emulator.n_labels, emulator.n_pixels
        self.dtype, self.device = emulator.lower.dtype, emulator.lower.device

    def _forward(self, labels: Tensor, stars: Tensor | None) -> Tensor:
        return self.emulator(labels)

    def _linearise(self, labels: Tensor, stars: Tensor | None, coarse: bool) -> tuple[Tensor, Tensor]:
        return linearise_emulator(self.emulator, labels)


class ObservedPredictor(_Predictor):
    """Labels to observed flux: the emulator, then synthetic → observed with the stars' split latents (S1, Eq. 11).

    Parameters
    ----------
    emulator : `Emulator`
    translator : `Translator`
    z_split : array, shape (split_filters, latent_length) or (n_stars, split_filters, latent_length), or None
    together : int, optional
        Rows that go through the networks at once. With 1, a star's flux does
        not depend on its company to the last bit.
    shortcuts : `~cyclestarnet.networks.shortcuts.Shortcuts`, optional
        For fits that need not compute each Jacobian.
    """

    def __init__(
        self,
        emulator: Emulator,
        translator: Translator,
        z_split,
        *,
        together: int = BATCH,
        shortcuts: Shortcuts | None = None,
    ):
        self.emulator = emulator.eval().requires_grad_(False)
        self.translator, self.together, self.shortcuts = translator, together, shortcuts
        self.n_labels, self.n_pixels = emulator.n_labels, emulator.n_pixels
        self.dtype, self.device = translator.dtype, translator.device
        self._hidden_split = None
        if z_split is not None:
            split = torch.as_tensor(np.asarray(z_split), dtype=self.dtype, device=self.device)
            split = split.reshape(-1, *split.shape[-2:])
            # D_sp does not depend on the labels: once per star
            with torch.no_grad():
                self._hidden_split = torch.cat([translator.network.decoder_sp(z[None]) for z in split])

    def _hidden(self, n: int, stars: Tensor | None) -> Tensor | None:
        if self._hidden_split is None:
            return None
        return self._hidden_split.expand(n, -1, -1) if stars is None else self._hidden_split[stars]

    def _forward(self, labels: Tensor, stars: Tensor | None) -> Tensor:
        network = self.translator.network
        hidden = network.decoder_sh(network.encode_synth(self.translator.standardise(self.emulator(labels))))
        split = self._hidden(len(labels), stars)
        if split is not None:
            hidden = torch.cat([hidden, split], dim=1)
        return self.translator.restore(network.decoder_obs(hidden)[:, 0])

    def _linearise(self, labels: Tensor, stars: Tensor | None, coarse: bool) -> tuple[Tensor, Tensor]:
        translator = self.translator
        dtype = torch.bfloat16 if coarse and has_fast_bfloat16(self.device) else self.dtype
        flux, slopes = linearise_emulator(self.emulator, labels)
        # the standard deviation of the flux cancels in the slopes
        flux, slopes = linearise_translation(
            translator.network, translator.standardise(flux), slopes, self._hidden(len(labels), stars), dtype
        )
        return translator.restore(flux), slopes


class FreeSplitLatentPredictor(_Predictor):
    """Labels and coordinates of the split latent to observed flux, for fits of both.

    Coordinates c follow the labels; the split latent is the centre plus the sum of the directions times c.

    Parameters
    ----------
    emulator : `Emulator`
    translator : `Translator`
    centre : array, shape (split_filters, latent_length)
    directions : array, shape (n_coordinates, split_filters, latent_length)
    together, shortcuts : optional
        See `ObservedPredictor`.
    """

    def __init__(
        self,
        emulator: Emulator,
        translator: Translator,
        centre,
        directions,
        *,
        together: int = BATCH,
        shortcuts: Shortcuts | None = None,
    ):
        self.emulator = emulator.eval().requires_grad_(False)
        self.translator, self.together, self.shortcuts = translator, together, shortcuts
        self.dtype, self.device = translator.dtype, translator.device
        self.centre, self.directions = translator._split(centre), translator._split(directions)
        self.n_labels, self.n_pixels = emulator.n_labels + len(self.directions), emulator.n_pixels

    def _parted(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Labels, and the split latents (n, split_filters, latent_length) of the coordinates."""
        labels, coordinates = rows[:, : self.emulator.n_labels], rows[:, self.emulator.n_labels :]
        return labels, self.centre + torch.tensordot(coordinates, self.directions, 1)

    def _forward(self, labels: Tensor, stars: Tensor | None) -> Tensor:
        labels, z_split = self._parted(labels)
        synthetic = self.translator.standardise(self.emulator(labels))
        return self.translator.restore(self.translator.network.synth_to_obs(synthetic, z_split))

    def _linearise(self, labels: Tensor, stars: Tensor | None, coarse: bool) -> tuple[Tensor, Tensor]:
        labels, z_split = self._parted(labels)
        return self._translate(*linearise_emulator(self.emulator, labels), z_split, coarse)

    def _translate(self, flux: Tensor, slopes: Tensor | None, z_split: Tensor, coarse: bool) -> tuple[Tensor, Tensor]:
        translator = self.translator
        dtype = torch.bfloat16 if coarse and has_fast_bfloat16(self.device) else self.dtype
        # the standard deviation of the flux cancels in the slopes by the labels, but not in these
        directions = (self.directions * translator.flux_std).expand(len(flux), -1, -1, -1)
        hidden, split_slopes = linearise_split(translator.network, z_split, directions, dtype)
        flux, slopes = linearise_translation(
            translator.network, translator.standardise(flux), slopes, hidden, dtype, split_slopes
        )
        return translator.restore(flux), slopes

    def expected_slopes(self, labels: Tensor) -> Tensor | None:
        """As of other predictors, with true derivatives by the coordinates: they take the decoders alone."""
        if self.shortcuts is None:
            return None
        by_split_latent = []
        with torch.no_grad():
            for rows, _ in self._parts(labels, None, self.together):
                own, z_split = self._parted(rows)
                by_split_latent.append(self._translate(self.emulator(own), None, z_split, True)[1])
        by_labels = self.shortcuts.expected_slopes(labels[:, : self.emulator.n_labels])
        return torch.cat([by_labels, torch.cat(by_split_latent).to(by_labels.dtype)], dim=1)


class MovingPredictor:
    """A predictor whose spectra move and are broadened: velocity and broadening (km/s) follow the labels.

    Parameters
    ----------
    predictor : `EmulatorPredictor` or `ObservedPredictor`
    kinematics : `~cyclestarnet.networks.kinematics.Kinematics`
    names : sequence of {"velocity", "broadening"}
        What follows the labels, in this order; the other is 0.
    """

    def __init__(self, predictor: _Predictor, kinematics: Kinematics, names: Sequence[str]):
        self.predictor, self.kinematics = predictor, kinematics
        self.columns = [("velocity", "broadening").index(name) for name in names]
        self.n_labels, self.n_pixels = predictor.n_labels + len(names), predictor.n_pixels
        self.device, self.dtype = predictor.device, predictor.dtype

    def _split(self, labels) -> tuple[Tensor, Tensor]:
        """Labels (m, n_labels) and motions (2, m), flat."""
        rows = torch.as_tensor(labels, dtype=torch.float64, device=self.device).reshape(-1, self.n_labels)
        motion = rows.new_zeros(2, len(rows))
        motion[self.columns] = rows[:, self.predictor.n_labels :].T
        return rows[:, : self.predictor.n_labels], motion

    def _join(self, slopes: Tensor) -> Tensor:
        n = self.predictor.n_labels
        return torch.cat([slopes[:, :n], slopes[:, n:][:, self.columns]], dim=1)

    def flux(self, labels, stars=None):
        """See `EmulatorPredictor`."""
        own, motion = self._split(labels)
        flux = self._one_by_one(self.kinematics.apply, self.predictor.flux(own, stars), *motion)
        return _like(labels, flux.reshape(*labels.shape[:-1], self.n_pixels))

    def pullback(self, labels, stars=None):
        """See `EmulatorPredictor`."""
        own, motion = self._split(labels)
        at_rest, pull_rest = self.predictor.pullback(own, stars)
        leaves = [at_rest.clone().requires_grad_(), motion.clone().requires_grad_()]
        flux = self._one_by_one(self.kinematics.apply, leaves[0], *leaves[1])

        def pull(cotangent):
            rows = torch.as_tensor(cotangent, dtype=torch.float64, device=self.device).reshape(-1, self.n_pixels)
            to_flux, to_motion = torch.autograd.grad(flux, leaves, rows, retain_graph=True)
            gradient = torch.cat([pull_rest(to_flux), to_motion[self.columns].T], dim=1)
            return _like(labels, gradient.reshape(labels.shape))

        return _like(labels, flux.detach().reshape(*labels.shape[:-1], self.n_pixels)), pull

    def jacobian(self, labels, stars=None, *, coarse: bool = False):
        """See `EmulatorPredictor`."""
        own, motion = self._split(labels)
        flux, slopes = self.predictor.jacobian(own, stars, coarse=coarse)
        flux, slopes = self._one_by_one(self.kinematics.linearise, flux, slopes.double(), *motion)
        flux = flux.reshape(*labels.shape[:-1], self.n_pixels)
        return _like(labels, flux), _like(labels, self._join(slopes).reshape(*labels.shape, self.n_pixels))

    def expected_slopes(self, labels: Tensor) -> Tensor | None:
        """Nothing is known of these: velocities differ too much."""
        return None

    @staticmethod
    def _one_by_one(function, *rows: Tensor):
        results = [function(*(tensor[k : k + 1] for tensor in rows)) for k in range(len(rows[0]))]
        if isinstance(results[0], Tensor):
            return torch.cat(results)
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def _like(given, tensor: Tensor):
    """A tensor as such if tensors were given, else as an array of float64."""
    return tensor if isinstance(given, Tensor) else tensor.double().cpu().numpy()


def _repeat(split: Tensor | None, n: int) -> Tensor | None:
    return None if split is None else split[None].expand(n, -1, -1)
