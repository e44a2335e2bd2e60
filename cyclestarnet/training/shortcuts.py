"""How a model learns its shortcuts: by regression on synthetic spectra whose labels are drawn from the prior."""

from __future__ import annotations

import numpy as np
import torch

from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.predictor import ObservedPredictor
from cyclestarnet.networks.shortcuts import Shortcuts, slope_terms
from cyclestarnet.networks.translator import Translator

__all__ = ["learn_shortcuts"]

N_DIRECTIONS = 5  # of the prior, along which derivatives are taken to change linearly
N_GUESS, N_SLOPES = 1500, 300  # draws from which the first guess and the derivatives are learnt
GUESS_RIDGE = 30.0  # on the latents' regression: those of observed spectra scatter about those of synthetic ones
SLOPE_RIDGE = 0.1


def learn_shortcuts(
    emulator: Emulator,
    translator: Translator,
    prior: GaussianPrior,
    lower: np.ndarray,
    upper: np.ndarray,
    split_latent: np.ndarray | None,
    *,
    seed: int = 0,
) -> Shortcuts:
    """Draw labels from the prior, within bounds, and regress labels on latents and derivatives on labels.

    Parameters
    ----------
    emulator : `~cyclestarnet.networks.Emulator`
        Labels → synthetic flux.
    translator : `~cyclestarnet.networks.Translator`
        Encodes the synthetic flux, and translates it to the observed domain.
    prior : `~cyclestarnet.GaussianPrior`
        Of the labels, in their units.
    lower, upper : array, shape (n_labels,)
        Range of the emulator's labels. Draws beyond it are moved to its edge.
    split_latent : array, shape (split_filters, latent_length), or None
        A typical one, at which derivatives are taken; None for networks
        without a split latent.
    seed : int, optional
        Of the draws. Default: 0.

    Returns
    -------
    `~cyclestarnet.networks.Shortcuts`

    Examples
    --------
    It takes 300 Jacobians, which are minutes for networks of the paper's size::

        shortcuts = learn_shortcuts(
            model.emulator, model.translator, model.prior, model.labels.lower, model.labels.upper,
            model.population.typical_split_latent,
        )
        quick = dataclasses.replace(model, shortcuts=shortcuts)
    """
    rng = np.random.default_rng(seed)
    labels = rng.multivariate_normal(prior.mean, prior.covariance, N_GUESS).clip(lower, upper)
    predictor = ObservedPredictor(emulator, translator, split_latent)
    with torch.no_grad():
        flux = emulator(torch.as_tensor(labels, dtype=predictor.dtype, device=predictor.device))
    latent = translator.encode_synth(flux).reshape(len(labels), -1)
    directions = _widest_directions(prior)
    some = labels[:N_SLOPES]
    slopes = _regress_slopes(predictor, some, slope_terms((some - prior.mean) @ directions))
    return Shortcuts(latent.mean(0), _regress_labels(latent, labels), prior.mean, directions, slopes)


def _regress_labels(latent: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels at the mean latent, and their slopes with the latent, (1 + n_latent, n_labels)."""
    offset, size = latent - latent.mean(0), labels.std(0)
    normal = offset.T @ offset + GUESS_RIDGE * np.eye(offset.shape[1])
    gain = np.linalg.solve(normal, offset.T @ ((labels - labels.mean(0)) / size)) * size
    return np.vstack([labels.mean(0), gain])


def _widest_directions(prior: GaussianPrior) -> np.ndarray:
    """From offsets of labels to standardised coordinates, (n_labels, n_directions)."""
    size = np.sqrt(np.diag(prior.covariance))
    variance, vectors = np.linalg.eigh(prior.covariance / np.outer(size, size))
    widest = np.argsort(variance)[::-1][: min(N_DIRECTIONS, len(size))]
    return vectors[:, widest] / np.sqrt(variance[widest]) / size[:, None]


def _regress_slopes(predictor: ObservedPredictor, labels: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Coefficients of the terms (n, n_terms) that give derivatives at labels (n, n_labels), float32."""
    right: np.ndarray | float = 0.0
    for row, basis in zip(labels, terms, strict=True):  # one by one: all Jacobians at once would fill the memory
        _, slopes = predictor.jacobian(torch.as_tensor(row[None]), coarse=True)
        right = right + basis[:, None, None] * slopes[0].cpu().double().numpy()
    normal = terms.T @ terms + SLOPE_RIDGE * np.eye(terms.shape[1])
    return np.einsum("ab,bdp->adp", np.linalg.inv(normal), right).astype(np.float32)
