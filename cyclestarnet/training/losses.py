"""The losses (S1, Sections 3.2.3 to 3.2.6): distances weighted by the errors, and the adversarial terms."""

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
    "window_distance",
]

UNDECIDED = {"cross_entropy": 0.0, "least_squares": 0.5}
"""What a critic answers when it cannot tell, for each adversarial loss."""

ADVERSARIAL = tuple(UNDECIDED)

WINDOW = 32  # pixels in which `window_distance` compares spectra: some lines


def distance(prediction: Tensor, target: Tensor, weight: Tensor | float) -> Tensor:
    """Mean squared difference in units of the error, over *all* pixels, bad ones included.

    Parameters
    ----------
    prediction, target : tensor, shape (n, n_pixels)
        Standardised spectra. All values must be finite, also where the weight is 0.
    weight : tensor, shape (n, n_pixels), or float
        Inverse error in the same units; 0 for bad pixels.

    Returns
    -------
    tensor, shape ()
        Mean of ((prediction - target) * weight)².

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.training.losses import distance
    >>> distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor(2.)
    """
    return ((prediction - target) * weight).square().mean()


def generator_loss(fake: Tensor, kind: str = "cross_entropy") -> Tensor:
    """How far a critic's answers to fakes are from "true".

    Parameters
    ----------
    fake : tensor, shape (n,)
        Answers to translated spectra: logits, or for least squares numbers that shall be 1.
    kind : {"cross_entropy", "least_squares"}, optional
        Binary cross-entropy in its non-saturating form (default, the paper's), or
        squares (LSGAN, Mao et al. 2017), whose gradient does not fade where a
        critic is sure.

    Returns
    -------
    tensor, shape ()

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.training.losses import generator_loss
    >>> generator_loss(torch.zeros(4))  # a critic that cannot tell: ln 2
    tensor(0.6931)
    """
    return (fake - 1).square().mean() if kind == "least_squares" else F.softplus(-fake).mean()


def critic_loss(true: Tensor, fake: Tensor, kind: str = "cross_entropy") -> Tensor:
    """How far a critic's answers are from right, summed over true spectra and fakes.

    Parameters
    ----------
    true, fake : tensor, shape (n,)
        Answers to spectra of the domain, and to translated ones.
    kind : {"cross_entropy", "least_squares"}, optional
        As for `generator_loss`.

    Returns
    -------
    tensor, shape ()

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.training.losses import critic_loss
    >>> critic_loss(torch.zeros(4), torch.zeros(4))  # a critic that cannot tell: 2 ln 2
    tensor(1.3863)
    """
    if kind == "least_squares":
        return (true - 1).square().mean() + fake.square().mean()
    return F.softplus(-true).mean() + F.softplus(fake).mean()


def gradient_penalty(critic: nn.Module, flux: Tensor, latent: Tensor) -> Tensor:
    """R1 penalty: mean over spectra of half the squared gradient of a critic at true pairs.

    It [1]_ keeps a critic from becoming ever steeper around the data, where its
    gradient should vanish.

    Parameters
    ----------
    critic : callable
        Takes spectra and latents, and answers with a tensor of shape (n,) or (n, 1).
    flux : tensor, shape (n, n_pixels)
        Standardised spectra of the critic's domain.
    latent : tensor, shape (n, filters, positions)
        Their latents.

    Returns
    -------
    tensor, shape ()
        Differentiable in the weights of the critic.

    References
    ----------
    .. [1] Mescheder et al. 2018, PMLR 80, 3481.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.training.losses import gradient_penalty
    >>> def critic(flux, latent):
    ...     return 3 * flux[:, 0] + 4 * latent[:, 0, 0]
    >>> gradient_penalty(critic, torch.ones(2, 5), torch.ones(2, 1, 1))
    tensor(12.5000)
    """
    pair = [tensor.detach().requires_grad_() for tensor in (flux, latent)]
    of_flux, of_latent = torch.autograd.grad(critic(*pair).sum(), pair, create_graph=True)
    return 0.5 * (of_flux.square().flatten(1).sum(1).mean() + of_latent.square().flatten(1).sum(1).mean())


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Energy distance between two samples, per root dimension; 0 on average if they are alike.

    Beyond the paper: it [1]_ pulls the shared latents of both domains together within a batch.

    Parameters
    ----------
    a, b : tensor, shapes (n_a, d) and (n_b, d)
        Two samples, such as flattened latents. A single member has no distance within its sample.

    Returns
    -------
    tensor, shape ()
        May be negative, as any unbiased estimate of 0.

    References
    ----------
    .. [1] Székely & Rizzo 2013, J. Stat. Plan. Inference 143, 1249.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.training.losses import energy_distance
    >>> energy_distance(torch.zeros(3, 4), torch.ones(3, 4))
    tensor(2.)
    """
    n, m = len(a), len(b)
    between = torch.cdist(a, b).mean()
    within_a = torch.cdist(a, a).sum() / (n * max(n - 1, 1))
    within_b = torch.cdist(b, b).sum() / (m * max(m - 1, 1))
    return (2 * between - within_a - within_b) / a.shape[1] ** 0.5


def window_distance(fake: Tensor, true: Tensor, least: float) -> Tensor:
    """Energy distance between spectra in windows of the pixels, each in units of the true spectra's own differences.

    Beyond the paper: critics that are not trained. The energy distance of whole spectra is one of
    their strongest lines; in units of what a window holds, a weak line counts as much as a strong one.

    Parameters
    ----------
    fake : tensor, shape (n, n_pixels)
        Translated spectra, two or more.
    true : tensor, shape (m, n_pixels)
        Spectra of the domain, two or more. No gradient flows into them.
    least : float
        Root mean square difference between two spectra that counts as none, in the units of the
        spectra: the unit of windows in which true spectra differ by less, such as those without a line.

    Returns
    -------
    tensor, shape ()
        Mean over windows of 32 pixels, the last of which may be shorter; 0 on average if both are alike.
        May be negative, as any unbiased estimate of 0.

    Examples
    --------
    Two pairs of flat spectra that are 1 apart, and a shift by 2 between the pairs:

    >>> import torch
    >>> from cyclestarnet.training.losses import window_distance
    >>> true = torch.tensor([[0.0], [1.0]]).expand(2, 64)
    >>> window_distance(true + 2, true, least=0.01)
    tensor(2.0000)
    """
    true = true.detach()
    n_empty = -fake.shape[1] % WINDOW
    a, b = (F.pad(x, (0, n_empty)).unflatten(1, (-1, WINDOW)).transpose(0, 1) for x in (fake, true))
    width = torch.full((len(a),), float(WINDOW)).to(fake)
    width[-1] -= n_empty  # what pads it is the same in all spectra
    within_a, within_b = (_distances(x, x).sum((1, 2)) / (x.shape[1] * (x.shape[1] - 1)) for x in (a, b))
    unit = torch.maximum(within_b, least * width.sqrt())
    return ((2 * _distances(a, b).mean((1, 2)) - within_a - within_b) / unit).mean()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances (n_windows, n, m) by differences: products of matrices lose what similar spectra differ by."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
