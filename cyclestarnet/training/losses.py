"""The losses (S1, Section 2.3): distances weighted by the errors, and the adversarial terms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ADVERSARIAL",
    "UNDECIDED",
    "critic_loss",
    "distance",
    "energy_distance",
    "generator_loss",
    "gradient_penalty",
]

UNDECIDED = {"cross_entropy": 0.0, "least_squares": 0.5}
"""What a critic answers when it cannot tell, for each adversarial loss."""

ADVERSARIAL = tuple(UNDECIDED)


def distance(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over *all* pixels of ((prediction - target) * weight)²; weight = mask / sigma, 0 for bad pixels."""
    return ((prediction - target) * weight).square().mean()


def generator_loss(fake: Tensor, kind: str = "cross_entropy") -> Tensor:
    """How far a critic's answers to fakes (n,) are from "true".

    Binary cross-entropy of logits in its non-saturating form (the paper's), or
    squares (LSGAN, Mao et al. 2017), whose gradient does not fade where a
    critic is sure.
    """
    return (fake - 1).square().mean() if kind == "least_squares" else F.softplus(-fake).mean()


def critic_loss(true: Tensor, fake: Tensor, kind: str = "cross_entropy") -> Tensor:
    """How far a critic's answers (n,) are from right, summed over true and fake; see `generator_loss`."""
    if kind == "least_squares":
        return (true - 1).square().mean() + fake.square().mean()
    return F.softplus(-true).mean() + F.softplus(fake).mean()


def gradient_penalty(critic: nn.Module, flux: Tensor, latent: Tensor) -> Tensor:
    """R1 penalty (Mescheder et al. 2018): mean over spectra of half the squared gradient of a critic at true pairs.

    It keeps a critic from becoming ever steeper around the data, where its
    gradient should vanish.
    """
    pair = [tensor.detach().requires_grad_() for tensor in (flux, latent)]
    gradients = torch.autograd.grad(critic(*pair).sum(), pair, create_graph=True)
    return 0.5 * sum(gradient.square().flatten(1).sum(1).mean() for gradient in gradients)


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Energy distance between two samples (n, d), per root dimension (Székely & Rizzo 2013); 0 if alike.

    Beyond the paper: pulls the shared latents of both domains together within a batch.
    """
    n, m = len(a), len(b)
    between = torch.cdist(a, b).mean()
    within_a = torch.cdist(a, a).sum() / (n * max(n - 1, 1))
    within_b = torch.cdist(b, b).sum() / (m * max(m - 1, 1))
    return (2 * between - within_a - within_b) / a.shape[1] ** 0.5
