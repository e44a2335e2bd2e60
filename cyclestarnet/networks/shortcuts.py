"""What makes fits quick: a first guess of the labels, and the derivatives that are to be expected there.

Neither decides where a fit ends. A guess is a start, and steps along expected
derivatives are taken only as far as exact spectra agree; but most stars then
need no Jacobian of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cyclestarnet.networks.predictor import ObservedPredictor, Translator

__all__ = ["Shortcuts"]

N_DIRECTIONS = 5  # of the prior, along which derivatives are taken to change linearly
REACH = 3.0  # σ of the prior: farther out, derivatives are those of the edge
N_GUESS, N_SLOPES = 1500, 300
RIDGE = 30.0  # on the latents' regression: the latents of observed spectra scatter about those of synthetic ones


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """Regressions on synthetic spectra whose labels are drawn from the prior.

    Parameters
    ----------
    latent_mean : array, shape (n_latent,)
    guess : array, shape (1 + n_latent, n_labels)
        Labels at the mean latent, and their slopes with the latent.
    centre : array, shape (n_labels,)
        Mean of the prior.
    directions : array, shape (n_labels, n_directions)
        From offsets of labels to standardised coordinates along the widest directions of the prior.
    slopes : array, shape (1 + n_directions, n_labels, n_pixels), float32
        Derivatives of the observed flux at the centre, and their change along each direction.
    """

    latent_mean: np.ndarray
    guess: np.ndarray
    centre: np.ndarray
    directions: np.ndarray
    slopes: np.ndarray

    @classmethod
    def learn(cls, emulator, translator: Translator, prior, lower, upper, split_latent, *, seed: int = 0) -> Shortcuts:
        """Draw labels from the prior, within bounds, and regress.

        Parameters
        ----------
        emulator : `~cyclestarnet.networks.emulator.Emulator`
        translator : `Translator`
        prior : `~cyclestarnet.fitting.priors.GaussianPrior`
        lower, upper : array, shape (n_labels,)
        split_latent : array or None
            Typical split latent.
        seed : int
        """
        rng = np.random.default_rng(seed)
        labels = rng.multivariate_normal(prior.mean, prior.covariance, N_GUESS).clip(lower, upper)
        predictor = ObservedPredictor(emulator, translator, split_latent)
        with torch.no_grad():
            flux = emulator(torch.as_tensor(labels, dtype=predictor.dtype, device=predictor.device))
        latent = translator.encode_synth(flux).reshape(len(labels), -1)
        offset, size = latent - latent.mean(0), labels.std(0)
        normal = offset.T @ offset + RIDGE * np.eye(offset.shape[1])
        gain = np.linalg.solve(normal, offset.T @ ((labels - labels.mean(0)) / size)) * size
        size = np.sqrt(np.diag(prior.covariance))
        variance, vectors = np.linalg.eigh(prior.covariance / np.outer(size, size))
        widest = np.argsort(variance)[::-1][: min(N_DIRECTIONS, len(size))]
        directions = vectors[:, widest] / np.sqrt(variance[widest]) / size[:, None]
        some = labels[:N_SLOPES]
        design = cls._design((some - prior.mean) @ directions)
        right = 0.0
        for row, basis in zip(some, design, strict=True):  # one by one: all Jacobians at once would fill the memory
            _, slopes = predictor.jacobian(torch.as_tensor(row[None]), coarse=True)
            right = right + basis[:, None, None] * slopes[0].cpu().double().numpy()
        normal = design.T @ design + 0.1 * np.eye(design.shape[1])
        slopes = np.einsum("ab,bdp->adp", np.linalg.inv(normal), right).astype(np.float32)
        return cls(latent.mean(0), np.vstack([labels.mean(0), gain]), prior.mean, directions, slopes)

    @staticmethod
    def _design(coordinates):
        return np.column_stack([np.ones(len(coordinates)), coordinates.clip(-REACH, REACH)])

    def labels(self, latents: np.ndarray) -> np.ndarray:
        """First guess (n, n_labels) from shared latents (n, ...) of observed spectra."""
        offset = latents.reshape(len(latents), -1) - self.latent_mean
        # star by star, here and below: the last bits must not depend on the company
        return np.array([self.guess[0] + row @ self.guess[1:] for row in offset])

    def expected_slopes(self, labels: Tensor) -> Tensor:
        """Derivatives (n, n_labels, n_pixels) of the observed flux at labels (n, n_labels), float32."""
        coordinates = np.array([row @ self.directions for row in labels.cpu().double().numpy() - self.centre])
        design = torch.as_tensor(self._design(coordinates), dtype=torch.float32, device=labels.device)
        slopes = torch.as_tensor(self.slopes, device=labels.device)
        return torch.stack([(row @ slopes.flatten(1)).view(slopes.shape[1:]) for row in design])
