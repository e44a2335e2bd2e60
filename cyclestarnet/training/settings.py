"""Every number of the training in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cyclestarnet.networks.published import PUBLISHED_SPECTRA
from cyclestarnet.noise import NoiseModel
from cyclestarnet.training.losses import ADVERSARIAL

__all__ = ["TrainingSettings"]

SCHEDULES = ("steps", "cosine")

POSITIVE = (
    "n_iterations", "batch_size", "learning_rate", "critic_learning_rate", "step_factor", "flux_std",
    "synthetic_sigma", "sigma_floor", "sigma_max", "micro_batches",
)  # fmt: skip
PAPER = PUBLISHED_SPECTRA["paper"]
# What differs from the defaults, which are the paper's.
PRESETS = {
    "paper": {},
    # The last step of the learning rate, 25e5, must be a typo: it never comes. The published weights had it.
    # Its networks see the fluxes of bad pixels as they are; the paper does not say.
    "repository": {"n_iterations": 500_000, "steps": (50_000, 100_000, 150_000, 200_000, 2_500_000), "fill": None},
}


@dataclass(frozen=True)
class TrainingSettings:
    """Every number of the training; the defaults are the paper's.

    Parameters
    ----------
    n_iterations, batch_size : int
        Iterations, and spectra per domain in each.
    learning_rate, critic_learning_rate : float
        Learning rates of Adam, of the autoencoders and of the critics.
    betas : (float, float)
        Decay rates of Adam's running means of gradient and squared gradient, each in [0, 1).
    schedule : {"steps", "cosine"}
        Factor on both learning rates: ``step_factor`` to the number of ``steps`` that have
        passed; or a rise over ``warmup`` iterations, then a half cosine down to 2 %.
    steps : list of int
        Iterations at which the schedule "steps" lowers the learning rates.
    step_factor : float
        Factor on the learning rates at each of them.
    warmup : int
        Iterations over which the schedule "cosine" raises the learning rates.
    weight_synth, weight_obs, weight_adversarial : float
        λ of the reconstruction and cycle losses per domain and of the adversarial loss. Without
        the last, 0, critics are neither asked nor trained.
    weight_latent, weight_labels : float
        Beyond the paper, 0 = off: energy distance between both domains' shared
        latents, and the error of a small head that reads the labels of
        synthetic spectra from their shared latents.
    weight_spectra : float
        Beyond the paper, 0 = off: energy distance between translated and reconstructed spectra of each
        domain in windows of 32 pixels, which critics that are not trained would judge by.
    weight_label_cycle : float
        Beyond the paper, 0 = off: error of the labels that the same head reads from the
        re-encoded translation. Needs ``weight_labels``.
    weight_response : float
        Beyond the paper, 0 = off: how much the gap between the domains (what the two decoders make
        of the same latents) changes, in units of ``synthetic_sigma``, when a few of the
        ``response_labels`` change. In a model whose translation is ``"residual"`` this is how much
        translation changes what a label does.
    response_labels : tuple of str
        Those labels: ones that hardly change the gap, such as single elements. Not those that
        make a star another one, as ``teff``.
    adversarial : {"cross_entropy", "least_squares"}
        The paper's adversarial loss, or that of LSGAN.
    adversarial_ramp : int
        Iterations over which λ of the adversarial loss rises from 0 to its value.
    critic_penalty : float
        Weight of the R1 penalty on the critics' gradients; 0 = off.
    warm_start : int
        First iterations that train the synthetic autoencoder alone; the
        observed branch then begins as a copy of the synthetic one.
    weight_anchors : float
        λ of the distance between translated synthetic spectra and observed
        ones of the same, known labels; 0 = off.
    prior_rate : float
        Learning rate of a shift of the synthetic labels, in standard deviations
        of their pool, that follows the adversarial and latent terms; 0 = off.
    gradient_clip : float or None
        Largest norm of the autoencoders' gradient. None: any.
    average_decay : float
        Decay of the exponential moving average of the weights, which is what
        is kept in the end; 0 keeps the last weights.
    flux_mean, flux_std : float
        Normalised flux of both domains is standardised by these scalars.
    synthetic_sigma, sigma_floor, sigma_max : float
        Error of synthetic spectra, smallest error of observed ones, and the
        error above which an observed pixel does not count; see `~cyclestarnet.NoiseModel`.
    fill : float or None
        Flux that the networks see at observed pixels that do not count; None: whatever the spectrum
        has there, as in the authors' repository.
    mixed_precision : bool
        Matrix products in bfloat16.
    micro_batches : int
        Parts of a batch that go through the networks one after the other, which
        bounds the memory. The paper's terms do not change by it; the energy
        distances are then the means of those within each part.
    seed : int
        Of the first weights, of the choice of spectra and of the order of streamed ones.

    Raises
    ------
    ValueError
        If a value is impossible, or two do not fit each other. The message names them.

    Examples
    --------
    >>> from cyclestarnet import TrainingSettings
    >>> TrainingSettings().batch_size
    8
    >>> TrainingSettings(batch_size=0)
    Traceback (most recent call last):
        ...
    ValueError: batch_size must be positive, but is 0
    """

    n_iterations: int = 350_000
    batch_size: int = 8
    learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    schedule: str = "steps"
    steps: tuple[int, ...] = (50_000, 100_000, 150_000, 200_000)
    step_factor: float = 0.7
    warmup: int = 100
    weight_synth: float = 3.0
    weight_obs: float = 9.0
    weight_adversarial: float = 1.0
    weight_latent: float = 0.0
    weight_spectra: float = 0.0
    weight_labels: float = 0.0
    weight_label_cycle: float = 0.0
    weight_response: float = 0.0
    response_labels: tuple[str, ...] = ()
    adversarial: str = "cross_entropy"
    adversarial_ramp: int = 0
    critic_penalty: float = 0.0
    warm_start: int = 0
    weight_anchors: float = 0.0
    prior_rate: float = 0.0
    gradient_clip: float | None = None
    average_decay: float = 0.0
    flux_mean: float = PAPER.flux_mean
    flux_std: float = PAPER.flux_std
    synthetic_sigma: float = 0.005
    sigma_floor: float = PAPER.sigma_floor
    sigma_max: float = PAPER.sigma_max
    fill: float | None = 1.0
    mixed_precision: bool = False
    micro_batches: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "response_labels", tuple(self.response_labels))
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, but is {getattr(self, name)}")
        not_negative = [name for name in vars(self) if name.startswith("weight_")]
        not_negative += ["warmup", "warm_start", "adversarial_ramp", "critic_penalty", "prior_rate"]
        for name in not_negative:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}, but is {self.schedule!r}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip must be positive or None, but is {self.gradient_clip}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), but are {self.betas}")
        if self.warm_start >= self.n_iterations:
            raise ValueError(f"warm_start ({self.warm_start}) must be below n_iterations ({self.n_iterations})")
        if self.adversarial not in ADVERSARIAL:
            raise ValueError(f"adversarial must be one of {ADVERSARIAL}, but is {self.adversarial!r}")
        if self.batch_size % self.micro_batches:
            raise ValueError(f"micro_batches ({self.micro_batches}) must divide batch_size ({self.batch_size})")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be in [0, 1), but is {self.average_decay}")
        if bool(self.weight_response) != bool(self.response_labels):
            raise ValueError("weight_response needs response_labels, and response_labels need weight_response")
        if self.weight_label_cycle and not self.weight_labels:
            raise ValueError("weight_label_cycle needs weight_labels, which trains the head that reads labels")
        of_critics = [name for name in ("adversarial_ramp", "critic_penalty", "prior_rate") if getattr(self, name)]
        if of_critics and not self.weight_adversarial:
            raise ValueError(f"{' and '.join(of_critics)} need critics, but weight_adversarial is 0")
        if self.sigma_floor >= self.sigma_max:
            raise ValueError(f"sigma_floor ({self.sigma_floor}) must be below sigma_max ({self.sigma_max})")

    @property
    def noise(self) -> NoiseModel:
        """Which pixels of observed spectra count, and with what error: a `~cyclestarnet.NoiseModel`."""
        return NoiseModel(self.sigma_floor, self.sigma_max, self.fill)

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> TrainingSettings:
        """Return the settings of a published training, with changes.

        Both presets have the networks of ``NetworkSettings()``. The spectra
        of ``"paper"`` are on ``apogee_grid(cut="red")``, those of
        ``"repository"`` on ``apogee_grid(cut="blue")``.

        Parameters
        ----------
        name : {"paper", "repository"}
            As S1 prints them (with the repository's numbers where it is
            silent), or as the authors' repository has them.
        **changes
            Any settings that shall have other values.

        Returns
        -------
        `TrainingSettings`

        Raises
        ------
        ValueError
            If there is no such preset, or a change is impossible.

        Examples
        --------
        >>> from cyclestarnet.training.settings import TrainingSettings
        >>> TrainingSettings.from_preset("repository").n_iterations
        500000

        The mock study (S1, Section 4.2) changes nothing in the paper but the
        split latent, ``NetworkSettings(split_filters=1)``; in the repository
        the weights of the losses as well:

        >>> mock = TrainingSettings.from_preset("repository", weight_synth=90, weight_obs=90)
        """
        if name not in PRESETS:
            raise ValueError(f"the preset must be one of {', '.join(map(repr, PRESETS))}, but is {name!r}")
        spectra = PUBLISHED_SPECTRA[name]
        scaling = {key: getattr(spectra, key) for key in ("flux_mean", "flux_std", "sigma_floor", "sigma_max")}
        return cls(**(scaling | PRESETS[name] | changes))

    def rate_factor(self, iteration: int) -> float:
        """Factor of the schedule on both learning rates.

        Parameters
        ----------
        iteration : int
            Counted from 0.

        Returns
        -------
        float

        Examples
        --------
        >>> from cyclestarnet import TrainingSettings
        >>> TrainingSettings().rate_factor(50_000)
        0.7
        """
        if self.schedule == "steps":
            return self.step_factor ** sum(iteration >= step for step in self.steps)
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        progress = (iteration - self.warmup) / max(self.n_iterations - self.warmup, 1)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def adversarial_factor(self, iteration: int) -> float:
        """Factor on λ of the adversarial loss, which rises over ``adversarial_ramp`` iterations.

        Parameters
        ----------
        iteration : int
            Counted from 0.

        Returns
        -------
        float
            From above 0 to 1.

        Examples
        --------
        >>> from cyclestarnet import TrainingSettings
        >>> TrainingSettings(adversarial_ramp=100).adversarial_factor(24)
        0.25
        """
        return min((iteration + 1) / self.adversarial_ramp, 1.0) if self.adversarial_ramp else 1.0
