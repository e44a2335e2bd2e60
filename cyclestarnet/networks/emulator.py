"""The emulator: labels to synthetic flux, one multi-layer perceptron (The Payne).

Training happens in a basis of principal components because a network whose
last hidden layer has n units can only reach an n-dimensional subspace of the
pixels anyway; the components are then folded into the last linear layer, so
that the emulator is the paper's single network from labels to all pixels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from cyclestarnet.progress import tqdm

__all__ = ["Emulator", "EmulatorSettings", "train_emulator"]

log = logging.getLogger(__name__)

ACTIVATIONS = {"leaky_relu": lambda: nn.LeakyReLU(0.01), "silu": nn.SiLU, "sigmoid": nn.Sigmoid}


class Emulator(nn.Module):
    """Multi-layer perceptron from labels to flux.

    Parameters
    ----------
    lower, upper : array_like, shape (n_labels,)
        Labels are scaled to ``(labels - lower) / (upper - lower) - 0.5`` inside.
    n_pixels : int
        Number of output pixels.
    hidden : sequence of int
        Units of the hidden layers. The paper has (300, 300).
    activation : {"leaky_relu", "silu", "sigmoid"}
        The Payne's published files use leaky ReLU (slope 0.01) or, the oldest,
        sigmoids. SiLU has continuous derivatives, which fits and derivative
        spectra profit from.

    References
    ----------
    Ting et al. 2019, ApJ 879, 69, Section 3.2.
    """

    def __init__(self, lower, upper, n_pixels: int, hidden=(300, 300), activation: str = "silu"):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, but got {activation!r}")
        lower, upper = (torch.tensor(np.asarray(a), dtype=torch.float64) for a in (lower, upper))
        self.register_buffer("lower", lower.to(torch.float32))
        self.register_buffer("upper", upper.to(torch.float32))
        self.hidden, self.activation = tuple(int(n) for n in hidden), activation
        sizes = (len(lower), *self.hidden)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], n_pixels))

    @property
    def n_labels(self) -> int:
        return len(self.lower)

    @property
    def n_pixels(self) -> int:
        return self.layers[-1].out_features

    def forward(self, labels: Tensor) -> Tensor:
        """Return the flux (..., n_pixels) of labels (..., n_labels) in their own units."""
        return self.layers((labels - self.lower) / (self.upper - self.lower) - 0.5)


@dataclass(frozen=True)
class EmulatorSettings:
    """Settings of `train_emulator`; every number is checked on construction."""

    hidden: tuple[int, ...] = (300, 300)
    activation: str = "silu"
    n_components: int = 200
    batch_size: int = 128
    learning_rate: float = 2e-3
    n_epochs: int = 4000
    patience: int = 800
    validation_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self):
        for name in ("n_components", "batch_size", "n_epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, but is {self.validation_fraction}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, but is {self.activation!r}")


def train_emulator(
    labels, flux, *, lower=None, upper=None, settings=None, progress=True
) -> tuple[Emulator, list[dict]]:
    """Train an emulator on a grid of synthetic spectra.

    Parameters
    ----------
    labels : array, shape (n, n_labels)
        Labels in their own units.
    flux : array, shape (n, n_pixels)
        Continuum-normalised flux.
    lower, upper : array, optional
        Range for the scaling of labels. Default: that of ``labels``.
    settings : `EmulatorSettings`, optional
    progress : bool, optional
        Show a progress bar.

    Returns
    -------
    emulator : `Emulator`
        With the weights of the epoch that had the smallest validation loss.
    history : list of dict
        ``epoch``, ``training`` and ``validation`` (mean absolute error of the flux).

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, or a label does not vary and has no range.
    FloatingPointError
        If the training diverges.
    """
    settings = settings or EmulatorSettings()
    labels, flux = np.asarray(labels, dtype=np.float64), np.asarray(flux, dtype=np.float32)
    if labels.ndim != 2 or flux.ndim != 2 or len(labels) != len(flux):
        raise ValueError(
            f"labels and flux must be (n, n_labels) and (n, n_pixels), but are {labels.shape}, {flux.shape}"
        )
    if not (np.all(np.isfinite(labels)) and np.all(np.isfinite(flux))):
        raise ValueError("labels and flux must be finite")
    if len(labels) < 2:
        raise ValueError(f"training needs 2 spectra or more, but got {len(labels)}")
    lower = labels.min(0) if lower is None else np.asarray(lower, dtype=np.float64)
    upper = labels.max(0) if upper is None else np.asarray(upper, dtype=np.float64)
    if lower.shape != labels.shape[1:] or upper.shape != labels.shape[1:] or not np.all(lower < upper):
        raise ValueError(f"every label needs a range, lower < upper, but these are {lower} and {upper}")

    order = np.random.default_rng(settings.seed).permutation(len(labels))
    n_validation = max(1, round(settings.validation_fraction * len(labels)))
    held, used = order[:n_validation], order[n_validation:]
    mean = flux[used].mean(0)
    n_components = min(settings.n_components, len(used), flux.shape[1])
    with torch.random.fork_rng(devices=[]):  # the decomposition starts from random directions
        torch.manual_seed(settings.seed)
        _, _, basis = torch.svd_lowrank(
            torch.from_numpy(flux[used] - mean), q=min(n_components + 20, *flux[used].shape), niter=4
        )
    basis = basis[:, :n_components]  # (n_pixels, n_components), orthonormal: errors of components are errors of pixels
    components = torch.from_numpy(flux - mean) @ basis
    scale = components[used].std()

    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        reduced = Emulator(lower, upper, n_components, settings.hidden, settings.activation)
    inputs, targets = torch.from_numpy(labels).float(), components / scale
    optimizer = torch.optim.Adam(reduced.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.n_epochs, settings.learning_rate * 1e-3)

    def validation_error() -> float:
        with torch.no_grad():
            predicted = (reduced(inputs[held]) * scale) @ basis.T + torch.from_numpy(mean)
        return (predicted - torch.from_numpy(flux[held])).abs().mean().item()

    best, best_epoch, best_state, history = np.inf, 0, None, []
    bar = tqdm(range(settings.n_epochs), desc="emulator", disable=not progress)
    for epoch in bar:
        total = 0.0
        shuffled = torch.from_numpy(used)[torch.randperm(len(used), generator=generator)]
        for batch in shuffled.split(settings.batch_size):
            optimizer.zero_grad()
            loss = (reduced(inputs[batch]) - targets[batch]).square().sum(1).mean()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        if epoch % 10 == 9 or epoch == settings.n_epochs - 1:
            error = validation_error()
            history.append({"epoch": epoch + 1, "training": total / len(used), "validation": error})
            bar.set_postfix(validation=f"{error:.2e}")
            if error < best:
                best, best_epoch = error, epoch
                best_state = {k: v.clone() for k, v in reduced.state_dict().items()}
            elif epoch - best_epoch >= settings.patience:
                log.info("stopped early at epoch %d; best was %d", epoch + 1, best_epoch + 1)
                break
    if best_state is None:
        raise FloatingPointError("the emulator's loss is not finite; lower the learning_rate")
    reduced.load_state_dict(best_state)
    return _unfold(reduced, basis * scale, torch.from_numpy(mean)), history


def _unfold(reduced: Emulator, basis: Tensor, mean: Tensor) -> Emulator:
    """Fold principal components (n_pixels, n_components) into the last linear layer."""
    with torch.random.fork_rng(devices=[]):  # its random weights are overwritten
        emulator = Emulator(reduced.lower, reduced.upper, len(basis), reduced.hidden, reduced.activation)
    state = reduced.state_dict()
    last = f"layers.{len(reduced.layers) - 1}"
    state[f"{last}.weight"] = basis @ state[f"{last}.weight"]
    state[f"{last}.bias"] = basis @ state[f"{last}.bias"] + mean
    emulator.load_state_dict(state)
    return emulator.eval().requires_grad_(False)
