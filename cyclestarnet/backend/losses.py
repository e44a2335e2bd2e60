"""The losses (S1, Section 2.3): distances weighted by the errors, and the adversarial terms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["critic_loss", "distance", "energy_distance", "generator_loss"]


def distance(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over *all* pixels of ((prediction - target) * weight)²; weight = mask / sigma, 0 for bad pixels."""
    return ((prediction - target) * weight).square().mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Binary cross-entropy of the logits of fakes against the target "true" (non-saturating form)."""
    return F.softplus(-fake).mean()


def critic_loss(true: Tensor, fake: Tensor) -> Tensor:
    """Binary cross-entropy of a critic's logits, summed over true and fake."""
    return F.softplus(-true).mean() + F.softplus(fake).mean()


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Energy distance between two samples (n, d), per root dimension (Székely & Rizzo 2013); 0 if alike.

    Beyond the paper: pulls the shared latents of both domains together within a batch.
    """
    n, m = len(a), len(b)
    between = torch.cdist(a, b).mean()
    within_a = torch.cdist(a, a).sum() / (n * max(n - 1, 1))
    within_b = torch.cdist(b, b).sum() / (m * max(m - 1, 1))
    return (2 * between - within_a - within_b) / a.shape[1] ** 0.5
