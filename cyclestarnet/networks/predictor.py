"""The one door between the networks and the rest: labels in, flux and derivatives out, as float64 arrays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cyclestarnet.networks.convolutions import Matrices, RowMaps, run
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.kinematics import Kinematics
from cyclestarnet.networks.shortcuts import Shortcuts
from cyclestarnet.networks.tangents import has_fast_bfloat16, linearise_emulator, linearise_split, linearise_translation
from cyclestarnet.networks.translation import SharedNetwork, TranslationNetwork

__all__ = [
    "DomainTranslator",
    "EmulatorPredictor",
    "FreeSplitLatentPredictor",
    "MovingPredictor",
    "NetworkPredictor",
    "ObservedPredictor",
    "Translator",
]

TRANSLATIONS = ("paper", "residual")
BATCH = 32  # spectra that go through the networks at once; bounds the memory of large requests

Array = TypeVar("Array", np.ndarray, Tensor)
Stars = np.ndarray | Tensor | None


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


class NetworkPredictor:
    """Labels to flux, for one star or many; the base class of predictors made of networks.

    Arrays come out as they went in: float64 of `numpy`, or tensors on the
    device of the networks. Where stars differ in more than their labels,
    ``stars`` (n,) tells which star each row of labels (n, n_labels) belongs to.
    Labels are in their own units, and are not held to their range; flux is
    normalised. A NaN among the labels of a star makes all of its flux NaN.

    Attributes
    ----------
    n_labels, n_pixels : int
        Labels that it takes, and pixels of the flux that it makes.
    dtype : torch.dtype
        Precision of the networks.
    device : torch.device
        Device of the networks.
    together : int
        Rows that pass the networks at once.
    shortcuts : `~cyclestarnet.networks.Shortcuts` or None
        For fits that need not compute each Jacobian.

    Examples
    --------
    See `EmulatorPredictor` and `ObservedPredictor`::

        flux, slopes = predictor.jacobian(np.array([4500.0, 2.0, -0.3]))
    """

    n_labels: int
    n_pixels: int
    dtype: torch.dtype
    device: torch.device
    together: int = BATCH
    shortcuts: Shortcuts | None = None

    def _forward(self, labels: Tensor, stars: Tensor | None) -> Tensor:
        raise TypeError("subclasses define _forward")

    def _forward_quickly(self, labels: Tensor, stars: Tensor | None) -> Tensor:
        """What `_forward` gives, to rounding, as processors are quick at it."""
        return self._forward(labels, stars)

    @property
    def _quickest(self) -> Callable[[Tensor, Tensor | None], Tensor]:
        return self._forward_quickly if self.device.type == "cpu" else self._forward

    def _linearise(self, labels: Tensor, stars: Tensor | None, coarse: bool) -> tuple[Tensor, Tensor]:
        raise TypeError("subclasses define _linearise")

    def _parts(self, labels: np.ndarray | Tensor, stars: Stars, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        rows = torch.as_tensor(labels, dtype=self.dtype, device=self.device).reshape(-1, self.n_labels)
        if stars is None:
            return ((part, None) for part in rows.split(size))
        stars = torch.as_tensor(stars, dtype=torch.long, device=self.device)
        return zip(rows.split(size), stars.split(size), strict=True)

    def flux(self, labels: Array, stars: Stars = None) -> Array:
        """Flux of labels.

        Parameters
        ----------
        labels : array or Tensor, shape (..., n_labels)
            In their own units.
        stars : array or Tensor of int, shape (n,), optional
            Which star each row of labels (n, n_labels) belongs to. Default: stars do not differ.

        Returns
        -------
        array or Tensor, shape (..., n_pixels)

        Examples
        --------
        ::

            flux = predictor.flux(np.array([[4500.0, 2.0], [4600.0, 2.1]]))
        """
        with torch.no_grad():
            flux = torch.cat([self._quickest(*part) for part in self._parts(labels, stars, self.together)])
        return _like(labels, flux.reshape(*labels.shape[:-1], self.n_pixels).double())

    def pullback(self, labels: Array, stars: Stars = None) -> tuple[Array, Callable[[Array], Array]]:
        """Flux of labels, and a function that takes gradients back from the flux to the labels.

        Parameters
        ----------
        labels : array or Tensor, shape (..., n_labels)
            As in `flux`.
        stars : array or Tensor of int, shape (n,), optional
            As in `flux`.

        Returns
        -------
        flux : array or Tensor, shape (..., n_pixels)
            Of the labels.
        pull : callable
            From ∂f/∂flux (..., n_pixels) to ∂f/∂labels (..., n_labels), for any f.

        Examples
        --------
        Gradient of χ²/2::

            flux, pull = predictor.pullback(labels)
            gradient = pull((flux - data) * ivar)
        """
        leaves, fluxes = [], []
        for part, which in self._parts(labels, stars, self.together):
            leaves.append(part.detach().clone().requires_grad_())
            fluxes.append(self._quickest(leaves[-1], which))

        def pull(cotangent: Array) -> Array:
            rows = torch.as_tensor(cotangent, dtype=self.dtype, device=self.device).reshape(-1, self.n_pixels)
            gradients = _pulled(fluxes, leaves, rows.split(self.together))
            return _like(labels, torch.cat(gradients).reshape(labels.shape).double())

        flux = torch.cat([part.detach() for part in fluxes])
        return _like(labels, flux.reshape(*labels.shape[:-1], self.n_pixels).double()), pull

    def jacobian(self, labels: Array, stars: Stars = None, *, coarse: bool = False) -> tuple[Array, Array]:
        """Flux of labels and its derivatives, by forward-mode differentiation.

        Parameters
        ----------
        labels : array or Tensor, shape (..., n_labels)
            As in `flux`.
        stars : array or Tensor of int, shape (n,), optional
            As in `flux`.
        coarse : bool, optional
            Use bfloat16 where the processor is quick at it: derivatives that
            are right to 0.5 % of their largest value. The flux is exact.

        Returns
        -------
        flux : array or Tensor, shape (..., n_pixels)
            Of the labels.
        slopes : array or Tensor, shape (..., n_labels, n_pixels)
            Derivatives of the flux, per unit of each label. A tensor is in
            the precision of the networks.

        Examples
        --------
        ::

            flux, slopes = predictor.jacobian(labels)
        """
        size = self.together if self.device.type == "cuda" else 1
        with torch.no_grad():
            pairs = [self._linearise(*part, coarse) for part in self._parts(labels, stars, size)]
        flux, slopes = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        shape = (*labels.shape[:-1], self.n_pixels)
        slopes = slopes.reshape(*labels.shape, self.n_pixels)
        return _like(labels, flux.reshape(shape).double()), _like(labels, slopes)

    def expected_slopes(self, labels: Tensor) -> Tensor | None:
        """Derivatives that are to be expected, without a pass through the networks.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            As in `flux`.

        Returns
        -------
        Tensor, shape (n, n_labels, n_pixels), or None
            None if nothing is known of them: there are no shortcuts.

        Examples
        --------
        ::

            slopes = predictor.expected_slopes(labels)
        """
        return None if self.shortcuts is None else self.shortcuts.expected_slopes(labels)


class EmulatorPredictor(NetworkPredictor):
    """Labels to synthetic flux.

    Parameters
    ----------
    emulator : `~cyclestarnet.networks.Emulator`
        Is put in evaluation mode, and its gradients are switched off.
    together : int, optional
        See `ObservedPredictor`.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.networks import Emulator, EmulatorPredictor
    >>> predictor = EmulatorPredictor(Emulator([3500, 0], [6000, 4], n_pixels=50, hidden=(8,)))
    >>> flux, slopes = predictor.jacobian(np.array([[4500.0, 2.0], [5000.0, 3.0]]))
    >>> flux.shape, slopes.shape
    ((2, 50), (2, 2, 50))
    """

    def __init__(self, emulator: Emulator, *, together: int = BATCH):
        self.emulator, self.together = emulator.eval().requires_grad_(False), together
        self.n_labels, self.n_pixels = emulator.n_labels, emulator.n_pixels
        self.dtype, self.device = emulator.lower.dtype, emulator.lower.device

    def _forward(self, labels: Tensor, stars: Tensor | None) -> Tensor:
        return self.emulator(labels)

    def _linearise(self, labels: Tensor, stars: Tensor | None, coarse: bool) -> tuple[Tensor, Tensor]:
        return linearise_emulator(self.emulator, labels)


class ObservedPredictor(NetworkPredictor):
    """Labels to observed flux: the emulator, then synthetic → observed with the stars' split latents (S1, Equation 11).

    Parameters
    ----------
    emulator : `~cyclestarnet.networks.Emulator`
        Labels → synthetic flux, on the pixels of the translation.
    translator : `Translator`
        Synthetic → observed.
    split_latent : array_like, shape (split_filters, latent_length) or (n_stars, split_filters, latent_length), or None
        One for all, or one for each star; None for networks without a split latent.
    together : int, optional
        Rows that go through the networks at once. With 1, a star's flux does
        not depend on its company to the last bit. Default: 32.
    shortcuts : `~cyclestarnet.networks.Shortcuts`, optional
        For fits that need not compute each Jacobian. Default: none.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.networks import Emulator, NetworkSettings, ObservedPredictor, TranslationNetwork, Translator
    >>> sizes = {"domain": [(4, 7, 4)], "shared": [(8, 7, 2)], "split": [(4, 7, 2)], "critic_spectrum": [(4, 7, 4)]}
    >>> translator = Translator(TranslationNetwork(NetworkSettings(103, **sizes)), flux_mean=0.95, flux_std=0.05)
    >>> emulator = Emulator([3500, 0], [6000, 4], n_pixels=103, hidden=(8,))
    >>> predictor = ObservedPredictor(emulator, translator, split_latent=np.zeros((4, 10)))
    >>> predictor.flux(np.array([4500.0, 2.0])).shape
    (103,)
    """

    def __init__(
        self,
        emulator: Emulator,
        translator: Translator,
        split_latent: ArrayLike | None,
        *,
        together: int = BATCH,
        shortcuts: Shortcuts | None = None,
    ):
        self.emulator = emulator.eval().requires_grad_(False)
        self.translator, self.together, self.shortcuts = translator, together, shortcuts
        self.n_labels, self.n_pixels = emulator.n_labels, emulator.n_pixels
        self.dtype, self.device = translator.dtype, translator.device
        self._hidden_split, self._matrices = None, translator.matrices()
        if split_latent is not None:
            split = torch.as_tensor(np.asarray(split_latent), dtype=self.dtype, device=self.device)
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
        synthetic = self.translator.standardise(self.emulator(labels))
        hidden = shared = network.decoder_sh(network.encode_synth(synthetic))
        split = self._hidden(len(labels), stars)
        if split is not None:
            hidden = torch.cat([shared, split], dim=1)
        observed = network.decoder_obs(hidden)[:, 0]
        if self.translator.is_residual:
            observed = synthetic + observed - network.decoder_synth(shared)[:, 0]
        return self.translator.restore(observed)

    def _forward_quickly(self, labels: Tensor, stars: Tensor | None) -> Tensor:
        synthetic = self.translator.standardise(self.emulator(labels))
        hidden = self._hidden(len(labels), stars)
        return self.translator.restore(self.translator.quickly_to_observed(synthetic, hidden, self._matrices))

    def _linearise(self, labels: Tensor, stars: Tensor | None, coarse: bool) -> tuple[Tensor, Tensor]:
        translator = self.translator
        dtype = torch.bfloat16 if coarse and has_fast_bfloat16(self.device) else self.dtype
        flux, slopes = linearise_emulator(self.emulator, labels)
        # the standard deviation of the flux cancels in the slopes
        flux, slopes = linearise_translation(
            translator.network, translator.standardise(flux), slopes, self._hidden(len(labels), stars), dtype,
            residual=translator.is_residual, matrices=self._matrices,
        )  # fmt: skip
        return translator.restore(flux), slopes


class FreeSplitLatentPredictor(NetworkPredictor):
    """Labels and coordinates of the split latent to observed flux, for fits of both.

    Coordinates c follow the labels; the split latent is the centre plus the sum of the directions times c.

    Parameters
    ----------
    emulator : `~cyclestarnet.networks.Emulator`
        Labels → synthetic flux, on the pixels of the translation.
    translator : `Translator`
        Synthetic → observed, of a network that has a split latent.
    centre : array_like, shape (split_filters, latent_length)
        Split latent where all coordinates are 0.
    directions : array_like, shape (n_coordinates, split_filters, latent_length)
        Its change with each coordinate, as `~cyclestarnet.networks.SplitLatentCloud` has them.
    together : int, optional
        See `ObservedPredictor`.
    shortcuts : `~cyclestarnet.networks.Shortcuts`, optional
        See `ObservedPredictor`. They are of the labels alone.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.networks import Emulator, FreeSplitLatentPredictor
    >>> from cyclestarnet.networks import NetworkSettings, TranslationNetwork, Translator
    >>> sizes = {"domain": [(4, 7, 4)], "shared": [(8, 7, 2)], "split": [(4, 7, 2)], "critic_spectrum": [(4, 7, 4)]}
    >>> translator = Translator(TranslationNetwork(NetworkSettings(103, **sizes)), flux_mean=0.95, flux_std=0.05)
    >>> emulator = Emulator([3500, 0], [6000, 4], n_pixels=103, hidden=(8,))
    >>> centre, directions = np.zeros((4, 10)), np.random.default_rng(0).normal(size=(3, 4, 10))
    >>> predictor = FreeSplitLatentPredictor(emulator, translator, centre, directions)
    >>> predictor.flux(np.array([4500.0, 2.0, 0.5, 0.0, -1.0])).shape
    (103,)
    """

    def __init__(
        self,
        emulator: Emulator,
        translator: Translator,
        centre: ArrayLike,
        directions: ArrayLike,
        *,
        together: int = BATCH,
        shortcuts: Shortcuts | None = None,
    ):
        self.emulator = emulator.eval().requires_grad_(False)
        self.translator, self.together, self.shortcuts = translator, together, shortcuts
        self.dtype, self.device = translator.dtype, translator.device
        self.centre, self.directions = translator.as_tensor(centre), translator.as_tensor(directions)
        self.n_labels, self.n_pixels = emulator.n_labels + len(self.directions), emulator.n_pixels
        self._matrices = translator.matrices()

    def _parted(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Labels, and the split latents (n, split_filters, latent_length) of the coordinates."""
        labels, coordinates = rows[:, : self.emulator.n_labels], rows[:, self.emulator.n_labels :]
        return labels, self.centre + torch.tensordot(coordinates, self.directions, 1)

    def _forward(self, labels: Tensor, stars: Tensor | None) -> Tensor:
        labels, split_latent = self._parted(labels)
        synthetic = self.translator.standardise(self.emulator(labels))
        return self.translator.restore(self.translator.to_observed(synthetic, split_latent))

    def _forward_quickly(self, labels: Tensor, stars: Tensor | None) -> Tensor:
        labels, split_latent = self._parted(labels)
        synthetic = self.translator.standardise(self.emulator(labels))
        hidden = self.translator.network.decoder_sp(split_latent)
        return self.translator.restore(self.translator.quickly_to_observed(synthetic, hidden, self._matrices))

    def _linearise(self, labels: Tensor, stars: Tensor | None, coarse: bool) -> tuple[Tensor, Tensor]:
        labels, split_latent = self._parted(labels)
        return self._translate(*linearise_emulator(self.emulator, labels), split_latent, coarse)

    def _translate(
        self, flux: Tensor, slopes: Tensor | None, split_latent: Tensor, coarse: bool
    ) -> tuple[Tensor, Tensor]:
        translator = self.translator
        dtype = torch.bfloat16 if coarse and has_fast_bfloat16(self.device) else self.dtype
        # the standard deviation of the flux cancels in the slopes by the labels, but not in these
        directions = (self.directions * translator.flux_std).expand(len(flux), -1, -1, -1)
        hidden, split_slopes = linearise_split(
            translator.network, split_latent, directions, dtype, matrices=self._matrices
        )
        flux, slopes = linearise_translation(
            translator.network, translator.standardise(flux), slopes, hidden, dtype, split_slopes,
            residual=translator.is_residual, matrices=self._matrices,
        )  # fmt: skip
        return translator.restore(flux), slopes

    def expected_slopes(self, labels: Tensor) -> Tensor | None:
        """As of other predictors, with true derivatives by the coordinates: they take the decoders alone.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels + n_coordinates)
            Labels, and coordinates of the split latent.

        Returns
        -------
        Tensor, shape (n, n_labels + n_coordinates, n_pixels), or None
            None without shortcuts.

        Examples
        --------
        ::

            slopes = predictor.expected_slopes(labels_and_coordinates)
        """
        if self.shortcuts is None:
            return None
        by_split_latent = []
        with torch.no_grad():
            for rows, _ in self._parts(labels, None, self.together):
                own, split_latent = self._parted(rows)
                by_split_latent.append(self._translate(self.emulator(own), None, split_latent, True)[1])
        by_labels = self.shortcuts.expected_slopes(labels[:, : self.emulator.n_labels])
        return torch.cat([by_labels, torch.cat(by_split_latent).to(by_labels.dtype)], dim=1)


class MovingPredictor:
    """A predictor whose spectra move and are broadened: velocity and broadening (km/s) follow the labels.

    Parameters
    ----------
    predictor : `NetworkPredictor`
        Of spectra at rest.
    kinematics : `~cyclestarnet.networks.Kinematics`
        Of the same pixels.
    names : sequence of {"velocity", "broadening"}
        What follows the labels, in this order; the other is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.networks import Emulator, EmulatorPredictor, Kinematics, MovingPredictor
    >>> at_rest = EmulatorPredictor(Emulator([3500, 0], [6000, 4], n_pixels=50, hidden=(8,)))
    >>> kinematics = Kinematics(15000 * np.exp(1e-5 * np.arange(50)), [(0, 50)])
    >>> predictor = MovingPredictor(at_rest, kinematics, ["velocity"])
    >>> flux, slopes = predictor.jacobian(np.array([4500.0, 2.0, 12.5]))
    >>> slopes.shape
    (3, 50)
    """

    def __init__(self, predictor: NetworkPredictor, kinematics: Kinematics, names: Sequence[str]):
        self.predictor, self.kinematics = predictor, kinematics
        self.columns = [("velocity", "broadening").index(name) for name in names]
        self.n_labels, self.n_pixels = predictor.n_labels + len(names), predictor.n_pixels
        self.device, self.dtype = predictor.device, predictor.dtype

    def _parted(self, labels: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Labels (m, n_labels) and motions (2, m), flat."""
        rows = torch.as_tensor(labels, dtype=torch.float64, device=self.device).reshape(-1, self.n_labels)
        motion = rows.new_zeros(2, len(rows))
        motion[self.columns] = rows[:, self.predictor.n_labels :].T
        return rows[:, : self.predictor.n_labels], motion

    def _join(self, slopes: Tensor) -> Tensor:
        n = self.predictor.n_labels
        return torch.cat([slopes[:, :n], slopes[:, n:][:, self.columns]], dim=1)

    def flux(self, labels: Array, stars: Stars = None) -> Array:
        """Flux of labels, moved and broadened; see `NetworkPredictor.flux`.

        Parameters
        ----------
        labels : array or Tensor, shape (..., n_labels)
            Labels, and what moves the spectra, in km/s.
        stars : array or Tensor of int, shape (n,), optional
            As in `NetworkPredictor.flux`.

        Returns
        -------
        array or Tensor, shape (..., n_pixels)

        Raises
        ------
        ValueError
            If a velocity or broadening is too large; see `Kinematics.apply`.

        Examples
        --------
        ::

            flux = predictor.flux(np.array([4500.0, 2.0, 12.5]))
        """
        own, motion = self._parted(labels)
        at_rest = self.predictor.flux(own, stars)
        flux = torch.cat([self.kinematics.apply(*star) for star in _star_by_star(at_rest, *motion)])
        return _like(labels, flux.reshape(*labels.shape[:-1], self.n_pixels))

    def pullback(self, labels: Array, stars: Stars = None) -> tuple[Array, Callable[[Array], Array]]:
        """Flux of labels, and a function that takes gradients back to them; see `NetworkPredictor.pullback`.

        Parameters
        ----------
        labels : array or Tensor, shape (..., n_labels)
            Labels, and what moves the spectra, in km/s.
        stars : array or Tensor of int, shape (n,), optional
            As in `NetworkPredictor.flux`.

        Returns
        -------
        flux : array or Tensor, shape (..., n_pixels)
            Moved and broadened.
        pull : callable
            From ∂f/∂flux (..., n_pixels) to ∂f/∂labels (..., n_labels), for any f.

        Raises
        ------
        ValueError
            If a velocity or broadening is too large; see `Kinematics.apply`.

        Examples
        --------
        ::

            flux, pull = predictor.pullback(labels)
            gradient = pull((flux - data) * ivar)
        """
        own, motion = self._parted(labels)
        at_rest, pull_rest = self.predictor.pullback(own, stars)
        leaves = [at_rest.clone().requires_grad_(), motion.clone().requires_grad_()]
        flux = torch.cat([self.kinematics.apply(*star) for star in _star_by_star(leaves[0], *leaves[1])])

        def pull(cotangent: Array) -> Array:
            rows = torch.as_tensor(cotangent, dtype=torch.float64, device=self.device).reshape(-1, self.n_pixels)
            to_flux, to_motion = _pulled([flux], leaves, [rows])
            gradient = torch.cat([pull_rest(to_flux), to_motion[self.columns].T], dim=1)
            return _like(labels, gradient.reshape(labels.shape))

        return _like(labels, flux.detach().reshape(*labels.shape[:-1], self.n_pixels)), pull

    def jacobian(self, labels: Array, stars: Stars = None, *, coarse: bool = False) -> tuple[Array, Array]:
        """Flux of labels and its derivatives; see `NetworkPredictor.jacobian`.

        Parameters
        ----------
        labels : array or Tensor, shape (..., n_labels)
            Labels, and what moves the spectra, in km/s.
        stars : array or Tensor of int, shape (n,), optional
            As in `NetworkPredictor.flux`.
        coarse : bool, optional
            As in `NetworkPredictor.jacobian`.

        Returns
        -------
        flux : array or Tensor, shape (..., n_pixels)
            Moved and broadened.
        slopes : array or Tensor, shape (..., n_labels, n_pixels)
            Derivatives of the flux, those by velocity and broadening per km/s.

        Raises
        ------
        ValueError
            If a velocity or broadening is too large; see `Kinematics.apply`.

        Examples
        --------
        ::

            flux, slopes = predictor.jacobian(labels)
        """
        own, motion = self._parted(labels)
        at_rest, slopes = self.predictor.jacobian(own, stars, coarse=coarse)
        pairs = [self.kinematics.linearise(*star) for star in _star_by_star(at_rest, slopes.double(), *motion)]
        flux, moved = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        flux = flux.reshape(*labels.shape[:-1], self.n_pixels)
        return _like(labels, flux), _like(labels, self._join(moved).reshape(*labels.shape, self.n_pixels))

    def expected_slopes(self, labels: Tensor) -> Tensor | None:
        """Nothing is known of these: velocities differ too much.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            Not looked at.

        Returns
        -------
        None

        Examples
        --------
        ::

            assert predictor.expected_slopes(labels) is None
        """
        return None


def _pulled(fluxes: Sequence[Tensor], leaves: Sequence[Tensor], rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Products of cotangents with Jacobians, by way of a sum: torch imports all of SymPy if it is handed cotangents."""
    with torch.enable_grad():
        total = torch.stack([(flux * row).sum() for flux, row in zip(fluxes, rows, strict=True)]).sum()
    return torch.autograd.grad(total, leaves, retain_graph=True)


def _star_by_star(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of each star alone: its last bits must not depend on its company."""
    return zip(*(tensor.split(1) for tensor in rows), strict=True)


@overload
def _like(given: np.ndarray, tensor: Tensor) -> np.ndarray: ...
@overload
def _like(given: Tensor, tensor: Tensor) -> Tensor: ...
def _like(given: np.ndarray | Tensor, tensor: Tensor) -> np.ndarray | Tensor:
    """A tensor as such if tensors were given, else as an array of float64."""
    return tensor if isinstance(given, Tensor) else tensor.double().cpu().numpy()


def _repeat(split: Tensor | None, n: int) -> Tensor | None:
    return None if split is None else split[None].expand(n, -1, -1)
