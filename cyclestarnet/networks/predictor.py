"""The door between networks and fits: labels in, flux and derivatives out, as float64 arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.kinematics import Kinematics
from cyclestarnet.networks.shortcuts import Shortcuts
from cyclestarnet.networks.tangents import has_fast_bfloat16, linearise_emulator, linearise_split, linearise_translation
from cyclestarnet.networks.translator import BATCH, Translator

__all__ = [
    "EmulatorPredictor",
    "FreeSplitLatentPredictor",
    "MovingPredictor",
    "NetworkPredictor",
    "ObservedPredictor",
]

Array = TypeVar("Array", np.ndarray, Tensor)
Stars = np.ndarray | Tensor | None


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
