"""The emulator: labels to synthetic flux, one multi-layer perceptron (The Payne).

Training happens in a basis of principal components because a network whose
last hidden layer has n units can only reach an n-dimensional subspace of the
pixels anyway; the components are then folded into the last linear layer, so
that the emulator is the paper's single network from labels to all pixels.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cyclestarnet.blanks import floats_of, place_of
from cyclestarnet.progress import tqdm

__all__ = ["Emulator", "EmulatorSettings", "train_emulator"]

log = logging.getLogger(__name__)

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}


class Emulator(nn.Module):
    """Multi-layer perceptron from labels to flux.

    Parameters
    ----------
    lower : array_like, shape (n_labels,)
        Labels at the lower end of the training range, in their units. Inside,
        they are scaled to ``(labels - lower) / (upper - lower) - 0.5``.
    upper : array_like, shape (n_labels,)
        Labels at the upper end.
    n_pixels : int
        Number of output pixels.
    hidden : sequence of int, optional
        Units of the hidden layers. Default: (300, 300), those of the paper.
    activation : {"leaky_relu", "silu", "sigmoid"}, optional
        The Payne's published files use leaky ReLU (slope 0.01) or, the oldest,
        sigmoids. SiLU, the default, has continuous derivatives, which fits and
        derivative spectra profit from.

    Raises
    ------
    ValueError
        If there is no such activation.

    References
    ----------
    Ting et al. 2019, ApJ 879, 69, Section 3.2.

    Examples
    --------
    Its weights are random until it is trained:

    >>> import torch
    >>> from cyclestarnet.networks import Emulator
    >>> emulator = Emulator(lower=[3500, 0], upper=[6000, 4], n_pixels=100, hidden=(16,))
    >>> emulator(torch.tensor([[4500.0, 2.0], [5000.0, 3.0]])).shape
    torch.Size([2, 100])
    """

    lower: Tensor
    upper: Tensor

    def __init__(
        self,
        lower: ArrayLike | Tensor,
        upper: ArrayLike | Tensor,
        n_pixels: int,
        hidden: Sequence[int] = (300, 300),
        activation: str = "silu",
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, but got {activation!r}")
        for name, bound in (("lower", lower), ("upper", upper)):
            self.register_buffer(name, torch.tensor(np.asarray(bound), dtype=torch.float64).to(torch.float32))
        self.hidden, self.activation = tuple(int(n) for n in hidden), activation
        sizes = (len(self.lower), *self.hidden)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], n_pixels))

    @property
    def n_labels(self) -> int:
        """Number of labels that it takes."""
        return len(self.lower)

    @property
    def n_pixels(self) -> int:
        """Number of pixels of the flux."""
        return len(self.layers[-1].get_parameter("bias"))

    def forward(self, labels: Tensor) -> Tensor:
        """Flux of labels; called as ``emulator(labels)``.

        Parameters
        ----------
        labels : Tensor, shape (..., n_labels)
            In their own units, in the precision of the weights. Nothing stops
            at the ends of the range, beyond which the flux is a guess.

        Returns
        -------
        Tensor, shape (..., n_pixels)
            Normalised flux.

        Examples
        --------
        ::

            flux = emulator(torch.tensor([4500.0, 2.0]))
        """
        return self.layers((labels - self.lower) / (self.upper - self.lower) - 0.5)

    def shifted(self, offset: ArrayLike) -> Emulator:
        """The same emulator for labels that are counted from other zero points.

        Parameters
        ----------
        offset : array, shape (n_labels,)
            In the units of the labels.

        Returns
        -------
        `Emulator`
            Whose spectrum of some labels is this one's of labels + offset. The layers are shared.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.networks import Emulator
        >>> emulator = Emulator(lower=[3500, 0], upper=[6000, 4], n_pixels=100, hidden=(16,))
        >>> hotter = emulator.shifted([50, 0])
        >>> torch.equal(hotter(torch.tensor([4500.0, 2.0])), emulator(torch.tensor([4550.0, 2.0])))
        True
        """
        other = copy.copy(self)
        other._buffers = {
            name: edge - torch.as_tensor(np.asarray(offset), dtype=edge.dtype, device=edge.device)
            for name, edge in self._buffers.items()
            if edge is not None
        }
        return other


@dataclass(frozen=True)
class EmulatorSettings:
    """Settings of `train_emulator`; every number is checked on construction.

    Parameters
    ----------
    hidden : tuple of int
        Units of the hidden layers.
    activation : {"leaky_relu", "silu", "sigmoid"}
        See `Emulator`.
    n_components : int
        Principal components of the flux that the network learns; no more than
        there are spectra or pixels.
    batch_size : int
        Spectra per step.
    learning_rate : float
        Of Adam, at the start. It falls as a cosine to a thousandth.
    n_epochs : int
        How often all spectra are seen.
    patience : int
        Epochs without a smaller validation error after which training stops.
    validation_fraction : float
        Part of the spectra, at least one, that is held back to choose the best epoch.
    seed : int
        Of the weights, of the choice of validation spectra and of their order.

    Raises
    ------
    ValueError
        If a number is impossible, or there is no such activation.

    Examples
    --------
    >>> from cyclestarnet.networks import EmulatorSettings
    >>> EmulatorSettings(hidden=(100, 100), n_epochs=1000, patience=200).learning_rate
    0.002
    """

    hidden: tuple[int, ...] = (300, 300)
    activation: str = "silu"
    n_components: int = 200
    batch_size: int = 128
    learning_rate: float = 2e-3
    n_epochs: int = 4000
    patience: int = 800
    validation_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_components", "batch_size", "n_epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, but is {self.validation_fraction}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, but is {self.activation!r}")


def train_emulator(
    labels: ArrayLike,
    flux: ArrayLike,
    *,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    settings: EmulatorSettings | None = None,
    progress: bool = True,
) -> tuple[Emulator, list[dict]]:
    """Train an emulator on a grid of synthetic spectra.

    Parameters
    ----------
    labels : array_like, shape (n, n_labels)
        Labels in their own units; finite.
    flux : array_like, shape (n, n_pixels)
        Continuum-normalised flux; finite. It is kept in float32.
    lower : array_like, shape (n_labels,), optional
        Labels at the lower end of the range by which they are scaled.
        Default: the smallest of ``labels``.
    upper : array_like, shape (n_labels,), optional
        Labels at the upper end. Default: the largest of ``labels``.
    settings : `EmulatorSettings`, optional
        Sizes and steps. Default: ``EmulatorSettings()``.
    progress : bool, optional
        Show a progress bar. Default: True.

    Returns
    -------
    emulator : `Emulator`
        With the weights of the epoch that had the smallest validation error;
        in evaluation mode, without gradients.
    history : list of dict
        Every tenth epoch: ``epoch``, ``training`` (mean square of the scaled
        components, summed) and ``validation`` (mean absolute error of the flux).

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, or a label does not vary and has no range.
    FloatingPointError
        If the training diverges.

    Examples
    --------
    One line whose depth is the label:

    >>> import numpy as np
    >>> from cyclestarnet.networks import EmulatorSettings, train_emulator
    >>> depth = np.linspace(0, 0.5, 40)
    >>> flux = 1 - depth[:, None] * np.exp(-0.5 * np.arange(-5, 6) ** 2)
    >>> settings = EmulatorSettings(hidden=(8,), n_epochs=20)
    >>> emulator, history = train_emulator(depth[:, None], flux, settings=settings, progress=False)
    >>> emulator.n_pixels, [entry["epoch"] for entry in history]
    (11, [10, 20])
    """
    settings = settings or EmulatorSettings()
    labels, flux, lower, upper = _checked(labels, flux, lower, upper)

    order = np.random.default_rng(settings.seed).permutation(len(labels))
    n_validation = max(1, round(settings.validation_fraction * len(labels)))
    held, used = order[:n_validation], order[n_validation:]
    mean, basis = _principal_components(flux[used], settings)
    components = torch.from_numpy(flux - mean) @ basis
    scale = components[used].std()

    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        reduced = Emulator(lower, upper, basis.shape[1], settings.hidden, settings.activation)
    inputs, targets = torch.from_numpy(labels).float(), components / scale
    optimizer = torch.optim.Adam(reduced.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.n_epochs, settings.learning_rate * 1e-3)

    def validation_error() -> float:
        with torch.no_grad():
            predicted = (reduced(inputs[held]) * scale) @ basis.T + torch.from_numpy(mean)
        return (predicted - torch.from_numpy(flux[held])).abs().mean().item()

    best, best_epoch, best_state = np.inf, 0, None
    history: list[dict] = []
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


def _checked(
    labels: ArrayLike, flux: ArrayLike, lower: ArrayLike | None, upper: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Arrays of a grid and the range of its labels, or an error that says what is wrong."""
    labels, flux = floats_of(labels), floats_of(flux).astype(np.float32)
    if labels.ndim != 2 or flux.ndim != 2 or len(labels) != len(flux):
        raise ValueError(
            f"labels and flux must be (n, n_labels) and (n, n_pixels), but are {labels.shape}, {flux.shape}"
        )
    unknown = ~(np.isfinite(labels).all(1) & np.isfinite(flux).all(1))
    if unknown.any():
        raise ValueError(f"labels and flux must be finite, and not masked, but are not{place_of(unknown)}")
    if len(labels) < 2:
        raise ValueError(f"training needs 2 spectra or more, but got {len(labels)}")
    lower = labels.min(0) if lower is None else np.asarray(lower, dtype=np.float64)
    upper = labels.max(0) if upper is None else np.asarray(upper, dtype=np.float64)
    if lower.shape != labels.shape[1:] or upper.shape != labels.shape[1:] or not np.all(lower < upper):
        raise ValueError(f"every label needs a range, lower < upper, but these are {lower} and {upper}")
    return labels, flux, lower, upper


def _principal_components(flux: np.ndarray, settings: EmulatorSettings) -> tuple[np.ndarray, Tensor]:
    """Mean flux, and orthonormal components (n_pixels, n_components): errors of components are errors of pixels."""
    mean = flux.mean(0)
    n_components = min(settings.n_components, *flux.shape)
    with torch.random.fork_rng(devices=[]):  # the decomposition starts from random directions
        torch.manual_seed(settings.seed)
        _, _, basis = torch.svd_lowrank(torch.from_numpy(flux - mean), q=min(n_components + 20, *flux.shape), niter=4)
    return mean, basis[:, :n_components]


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
