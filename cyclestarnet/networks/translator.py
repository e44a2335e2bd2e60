"""Networks around spectra in flux units: spectra in, latents and other spectra out, as float64 arrays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cyclestarnet.networks.convolutions import Matrices, RowMaps, run
from cyclestarnet.networks.translation import SharedNetwork, TranslationNetwork

__all__ = ["DomainTranslator", "Translator"]

TRANSLATIONS = ("paper", "residual")
BATCH = 32  # spectra that go through the networks at once; bounds the memory of large requests


class _OfFlux:
    """Networks around spectra in flux units: what all translators share."""

    def __init__(self, network: nn.Module, flux_mean: float, flux_std: float, translation: str):
        if translation not in TRANSLATIONS:
            raise ValueError(f"translation must be one of {', '.join(map(repr, TRANSLATIONS))}, but is {translation!r}")
        self.network = network.eval().requires_grad_(False)
        self.flux_mean, self.flux_std, self.translation = float(flux_mean), float(flux_std), translation

    @property
    def is_residual(self) -> bool:
        """Whether the translation is in the residual form."""
        return self.translation == "residual"

    def standardise(self, flux: ArrayLike | Tensor) -> Tensor:
        """Turn flux into what the network takes.

        Parameters
        ----------
        flux : array_like or Tensor, shape (..., n_pixels)
            Normalised flux. A tensor stays in its precision and on its device.

        Returns
        -------
        Tensor, shape (..., n_pixels)

        Examples
        --------
        ::

            latent = translator.network.encode_synth(translator.standardise(flux))
        """
        if not isinstance(flux, Tensor):
            flux = torch.as_tensor(np.asarray(flux), dtype=self.dtype, device=self.device)
        return (flux - self.flux_mean) / self.flux_std

    def restore(self, standardised: Tensor) -> Tensor:
        """Turn what the network makes into flux, the inverse of `standardise`.

        Parameters
        ----------
        standardised : Tensor, shape (..., n_pixels)
            Standardised flux.

        Returns
        -------
        Tensor, shape (..., n_pixels)
            Normalised flux.

        Examples
        --------
        ::

            flux = translator.restore(translator.network.decode_synth(latent))
        """
        return standardised * self.flux_std + self.flux_mean

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device

    def as_tensor(self, array: ArrayLike) -> Tensor:
        """Copy an array to the device of the network, in its precision.

        Parameters
        ----------
        array : array_like
            Numbers of any shape, such as a split latent.

        Returns
        -------
        Tensor

        Examples
        --------
        ::

            split_latent = translator.as_tensor(model.population.typical_split_latent)
        """
        return torch.tensor(np.asarray(array), dtype=self.dtype, device=self.device)

    def _map(self, function: Callable[[Tensor], Tensor], standardised: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([function(part) for part in standardised.split(BATCH)])

    def _flux(self, function: Callable[[Tensor], Tensor], flux: ArrayLike | Tensor) -> np.ndarray:
        return self.restore(self._map(function, self.standardise(flux))).double().cpu().numpy()


class Translator(_OfFlux):
    """The translation network between spectra in flux units, for arrays of any size.

    Flux is normalised; latents come out as arrays of float64. A NaN in a
    spectrum makes all of its results NaN, but not those of other spectra.

    Parameters
    ----------
    network : `~cyclestarnet.networks.TranslationNetwork`
        Is put in evaluation mode, and its gradients are switched off.
    flux_mean : float
        What is subtracted from flux before it enters the network, ...
    flux_std : float
        ... and what it is then divided by.
    translation : {"paper", "residual"}, optional
        Form of the translation between domains. ``"paper"`` (default): the other
        domain's decoder makes the whole spectrum, D_obs(z), so that what the
        latent loses of a spectrum is lost. ``"residual"``: the decoders make the
        difference between the domains only, x + D_obs(z) − D_synth(z) (and
        x + D_synth(z) − D_obs(z) the other way), so that what neither of them
        says, such as weak lines, comes straight from the spectrum.

    Raises
    ------
    ValueError
        If there is no such form.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.networks import NetworkSettings, TranslationNetwork, Translator
    >>> sizes = {"domain": [(4, 7, 4)], "shared": [(8, 7, 2)], "split": [(4, 7, 2)], "critic_spectrum": [(4, 7, 4)]}
    >>> translator = Translator(TranslationNetwork(NetworkSettings(103, **sizes)), flux_mean=0.95, flux_std=0.05)
    >>> flux = np.random.default_rng(0).normal(0.95, 0.05, (40, 103))
    >>> shared_latent, split_latent = translator.encode_obs(flux)
    >>> shared_latent.shape, split_latent.shape
    ((40, 25, 10), (40, 4, 10))
    >>> translator.obs_to_synth(flux).shape
    (40, 103)
    """

    network: TranslationNetwork

    def __init__(
        self, network: TranslationNetwork, flux_mean: float, flux_std: float, translation: str = TRANSLATIONS[0]
    ):
        super().__init__(network, flux_mean, flux_std, translation)
        self._matrices: dict[torch.dtype, Matrices] = {}
        self._weights: list[tuple[int, int]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_matrices": {}, "_weights": []}  # made again where they are needed

    def to(self, device: str | torch.device) -> Translator:
        """Copy the translator to a device.

        Parameters
        ----------
        device : str or torch.device
            Such as ``"cuda"``.

        Returns
        -------
        `Translator`

        Examples
        --------
        ::

            translator = model.translator.to("cuda")
        """
        network = copy.deepcopy(self.network).to(device)
        return Translator(network, self.flux_mean, self.flux_std, self.translation)

    def matrices(self) -> dict[torch.dtype, Matrices]:
        """Return the weights in the form that products need, for each precision, as they were made so far.

        Those of weights that have been replaced or changed in place since are forgotten.

        Returns
        -------
        dict
            Of each precision what `~cyclestarnet.networks.convolutions.run` takes and fills. Shared by all that ask.

        Examples
        --------
        ::

            float32 = translator.matrices()[torch.float32]
        """
        weights = [(weight.data_ptr(), weight._version) for weight in self.network.parameters()]
        if weights != self._weights:
            kinds = (torch.bfloat16, torch.float32, torch.float64)
            self._weights, self._matrices = weights, {dtype: {} for dtype in kinds}
        return self._matrices

    def encode_obs(self, flux: ArrayLike | Tensor, *, together: int = BATCH) -> tuple[np.ndarray, np.ndarray | None]:
        """Latents of observed spectra.

        Parameters
        ----------
        flux : array_like or Tensor, shape (n, n_pixels)
            Observed flux; bad pixels filled, as a model's `~cyclestarnet.NoiseModel` does.
        together : int, optional
            Spectra that pass the network at once. With 1, the last bits of a
            spectrum's latents do not depend on its company. Default: 32.

        Returns
        -------
        shared_latent : array, shape (n, shared_filters, latent_length)
            What both domains have in common.
        split_latent : array, shape (n, split_filters, latent_length), or None
            What observed spectra have besides; None of networks without it.

        Examples
        --------
        ::

            shared_latent, split_latent = model.translator.encode_obs(flux)
        """
        pairs = [self.network.encode_obs(part) for part in self.standardise(flux).split(together)]
        shared = torch.cat([shared for shared, _ in pairs]).double().cpu().numpy()
        split = [split for _, split in pairs if split is not None]
        return shared, torch.cat(split).double().cpu().numpy() if split else None

    def encode_synth(self, flux: ArrayLike | Tensor) -> np.ndarray:
        """Shared latents of synthetic spectra.

        Parameters
        ----------
        flux : array_like or Tensor, shape (n, n_pixels)
            Synthetic flux.

        Returns
        -------
        array, shape (n, shared_filters, latent_length)

        Examples
        --------
        ::

            shared_latent = model.translator.encode_synth(flux)
        """
        return self._map(self.network.encode_synth, self.standardise(flux)).double().cpu().numpy()

    def reconstruct_synth(self, flux: ArrayLike | Tensor) -> np.ndarray:
        """Synthetic spectra through their own autoencoder.

        Parameters
        ----------
        flux : array_like or Tensor, shape (n, n_pixels)
            Synthetic flux.

        Returns
        -------
        array, shape (n, n_pixels)

        Examples
        --------
        ::

            residual = model.translator.reconstruct_synth(flux) - flux
        """
        network = self.network
        return self._flux(lambda x: network.decode_synth(network.encode_synth(x)), flux)

    def reconstruct_obs(self, flux: ArrayLike | Tensor) -> np.ndarray:
        """Observed spectra through their own autoencoder.

        Parameters
        ----------
        flux : array_like or Tensor, shape (n, n_pixels)
            Observed flux.

        Returns
        -------
        array, shape (n, n_pixels)

        Examples
        --------
        ::

            residual = model.translator.reconstruct_obs(flux) - flux
        """
        network = self.network
        return self._flux(lambda x: network.decode_obs(*network.encode_obs(x)), flux)

    def obs_to_synth(self, flux: ArrayLike | Tensor) -> np.ndarray:
        """Translate observed spectra to the synthetic domain.

        Parameters
        ----------
        flux : array_like or Tensor, shape (n, n_pixels)
            Observed flux.

        Returns
        -------
        array, shape (n, n_pixels)
            Synthetic flux.

        Examples
        --------
        ::

            synthetic = model.translator.obs_to_synth(observed)
        """
        return self._flux(self._to_synthetic, flux)

    def _to_synthetic(self, x: Tensor) -> Tensor:
        if not self.is_residual:
            return self.network.obs_to_synth(x)
        shared, split = self.network.encode_obs(x)
        return x + self.network.decode_synth(shared) - self.network.decode_obs(shared, split)

    def synth_to_obs(self, flux: ArrayLike | Tensor, split_latent: ArrayLike | None) -> np.ndarray:
        """Translate synthetic spectra to the observed domain, all with the same split latent.

        Parameters
        ----------
        flux : array_like or Tensor, shape (n, n_pixels)
            Synthetic flux.
        split_latent : array_like, shape (split_filters, latent_length), or None
            That of an observed spectrum, or a typical one; None for networks
            without a split latent.

        Returns
        -------
        array, shape (n, n_pixels)
            Observed flux.

        Examples
        --------
        ::

            observed = model.translator.synth_to_obs(synthetic, model.population.typical_split_latent)
        """
        split = None if split_latent is None else self.as_tensor(split_latent)
        return self._flux(lambda x: self.to_observed(x, _repeat(split, len(x))), flux)

    def quickly_to_observed(
        self, standardised: Tensor, hidden_split: Tensor | None, matrices: dict[torch.dtype, Matrices]
    ) -> Tensor:
        """Translate a batch of standardised synthetic spectra by products of matrices, on a processor.

        Two to three times as quick as the layers of `torch.nn`, equal to rounding, and differentiable.

        Parameters
        ----------
        standardised : Tensor, shape (n, n_pixels)
            Of `standardise`. Six or so at once stay in the processor's cache.
        hidden_split : Tensor, shape (n, channels, positions), or None
            What the split decoder makes of the split latents; None for networks without one.
        matrices : dict
            Of `matrices`.

        Returns
        -------
        Tensor, shape (n, n_pixels)
            Standardised.

        Examples
        --------
        ::

            hidden = translator.network.decoder_sp(split_latent)
            observed = translator.quickly_to_observed(translator.standardise(flux), hidden, translator.matrices())
        """
        network, sizes = self.network, self.network.settings
        stride = math.prod(stride for _, _, stride in sizes.domain + sizes.shared)
        maps, made = RowMaps.from_spectra(standardised, stride, self.dtype), matrices[self.dtype]
        for part in (network.encoder_synth, network.encoder_sh, network.decoder_sh):
            maps = run(part, maps, made)
        hidden = maps
        if hidden_split is not None:
            hidden = maps.beside(RowMaps.from_channels(hidden_split, maps.padded, self.dtype))
        observed = run(network.decoder_obs, hidden, made).spectra()
        if self.is_residual:
            observed = standardised + observed - run(network.decoder_synth, maps, made).spectra()
        return observed

    def to_observed(self, standardised: Tensor, split_latent: Tensor | None) -> Tensor:
        """Translate standardised synthetic spectra, differentiably.

        Parameters
        ----------
        standardised : Tensor, shape (n, n_pixels)
            Of `standardise`.
        split_latent : Tensor, shape (n, split_filters, latent_length), or None
            One for each; None for networks without a split latent.

        Returns
        -------
        Tensor, shape (n, n_pixels)
            Standardised.

        Examples
        --------
        ::

            observed = translator.restore(translator.to_observed(translator.standardise(flux), split_latent))
        """
        if not self.is_residual:
            return self.network.synth_to_obs(standardised, split_latent)
        shared = self.network.encode_synth(standardised)
        gap = self.network.decode_obs(shared, split_latent) - self.network.decode_synth(shared)
        return standardised + gap


class DomainTranslator(_OfFlux):
    """Any number of domains around one shared latent, for spectra in flux units and arrays of any size.

    Parameters
    ----------
    network : `~cyclestarnet.networks.SharedNetwork`
        Is put in evaluation mode, and its gradients are switched off.
    flux_mean, flux_std : float
        As of `Translator`.
    translation : {"residual", "paper"}, optional
        Form of the translation, as of `Translator`: x + D_target(z) − D_source(z), or D_target(z).

    Raises
    ------
    ValueError
        If there is no such form.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.networks import DomainTranslator, NetworkSettings, SharedNetwork
    >>> sizes = {"domain": [(4, 7, 4)], "shared": [(8, 7, 2)], "split": [(4, 7, 2)], "critic_spectrum": [(4, 7, 4)]}
    >>> network = SharedNetwork(NetworkSettings(103, **sizes), [False, True, False])
    >>> translator = DomainTranslator(network, flux_mean=0.95, flux_std=0.05)
    >>> flux = np.random.default_rng(0).normal(0.95, 0.05, (40, 103))
    >>> shared_latent, split_latent = translator.encode(flux, 1)
    >>> shared_latent.shape, split_latent.shape
    ((40, 25, 10), (40, 4, 10))
    >>> translator.translate(flux, 1, 2).shape
    (40, 103)
    """

    network: SharedNetwork

    def __init__(self, network: SharedNetwork, flux_mean: float, flux_std: float, translation: str = "residual"):
        super().__init__(network, flux_mean, flux_std, translation)

    def encode(self, flux: ArrayLike | Tensor, domain: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Latents of spectra of a domain.

        Parameters
        ----------
        flux : array_like or Tensor, shape (n, n_pixels)
            Flux; bad pixels filled, as a `~cyclestarnet.NoiseModel` does.
        domain : int
            Number of the domain.

        Returns
        -------
        shared_latent : array, shape (n, shared_filters, latent_length)
            What all domains have in common.
        split_latent : array, shape (n, split_filters, latent_length), or None
            What spectra of this domain have besides; None if it has no split latent.

        Examples
        --------
        ::

            shared_latent, split_latent = translator.encode(flux, 0)
        """
        pairs = [self.network.encode(part, domain) for part in self.standardise(flux).split(BATCH)]
        shared = torch.cat([shared for shared, _ in pairs]).double().cpu().numpy()
        split = [split for _, split in pairs if split is not None]
        return shared, torch.cat(split).double().cpu().numpy() if split else None

    def reconstruct(self, flux: ArrayLike | Tensor, domain: int) -> np.ndarray:
        """Spectra through the autoencoder of their own domain.

        Parameters
        ----------
        flux : array_like or Tensor, shape (n, n_pixels)
            Flux.
        domain : int
            Number of the domain.

        Returns
        -------
        array, shape (n, n_pixels)

        Examples
        --------
        ::

            residual = translator.reconstruct(flux, 0) - flux
        """
        network = self.network
        return self._flux(lambda x: network.decode(*network.encode(x, domain), domain), flux)

    def translate(
        self, flux: ArrayLike | Tensor, source: int, target: int, split_latent: ArrayLike | None = None
    ) -> np.ndarray:
        """Translate spectra of one domain to another.

        Parameters
        ----------
        flux : array_like or Tensor, shape (n, n_pixels)
            Flux.
        source, target : int
            Numbers of the domains.
        split_latent : array_like, shape (split_filters, latent_length) or (n, split_filters, latent_length), optional
            Of the domain ``target``, one for all or one for each. Needed if it has split latents.

        Returns
        -------
        array, shape (n, n_pixels)

        Raises
        ------
        ValueError
            If the target has split latents and none is given, or the other way around.

        Examples
        --------
        ::

            translated = translator.translate(flux, 0, 2)
        """
        if self.network.split_latents[target] != (split_latent is not None):
            raise ValueError(f"domain {target} {'needs a' if split_latent is None else 'has no'} split latent")
        x = self.standardise(flux)
        splits: Sequence[Tensor | None] = [None] * len(x.split(BATCH))
        if split_latent is not None:
            given = self.as_tensor(split_latent)
            splits = given.expand(len(x), *given.shape[-2:]).split(BATCH)
        with torch.no_grad():
            parts = [self._cross(*part, source, target) for part in zip(x.split(BATCH), splits, strict=True)]
        return self.restore(torch.cat(parts)).double().cpu().numpy()

    def _cross(self, x: Tensor, split_latent: Tensor | None, source: int, target: int) -> Tensor:
        shared, own = self.network.encode(x, source)
        made = self.network.decode(shared, split_latent, target)
        return x + made - self.network.decode(shared, own, source) if self.is_residual else made


def _repeat(split: Tensor | None, n: int) -> Tensor | None:
    return None if split is None else split[None].expand(n, -1, -1)
