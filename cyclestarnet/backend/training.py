"""Training of the translation networks: alternating steps of autoencoders and critics.

One iteration is one autoencoder step (reconstruction, cycle and adversarial
losses, the fakes' targets flipped to "true") and one critic step on the same,
detached tensors (S1, Section 2.3). A killed run resumes from its last
checkpoint as if it had not been.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cyclestarnet.backend import fast, losses
from cyclestarnet.backend.checkpoint import load_state, save_state
from cyclestarnet.backend.networks import Critic, NetworkSettings, TranslationNetwork

__all__ = ["ObservedSpectra", "SyntheticSpectra", "Trainer", "TrainingSettings"]

log = logging.getLogger(__name__)

SCHEDULES = ("steps", "cosine")


@dataclass(frozen=True)
class TrainingSettings:
    """Every number of the training; the defaults are the paper's.

    Parameters
    ----------
    n_iterations, batch_size : int
        Iterations, and spectra per domain in each.
    learning_rate, critic_learning_rate : float
        Of Adam, with ``betas``.
    schedule : {"steps", "cosine"}
        Times ``step_factor`` at each of ``steps``; or warm up over
        ``warmup`` iterations, then a half cosine down to 2 %.
    weight_synth, weight_obs, weight_adversarial : float
        λ of the reconstruction and cycle losses per domain and of the adversarial loss.
    weight_latent, weight_labels : float
        Beyond the paper, 0 = off: energy distance between both domains' shared
        latents, and the error of a small head that reads the labels of
        synthetic spectra from their shared latents.
    gradient_clip : float or None
        Largest norm of the autoencoders' gradient.
    average_decay : float
        Decay of the exponential moving average of the weights, which is what
        is kept in the end; 0 keeps the last weights.
    flux_mean, flux_std : float
        Spectra are standardised by these scalars.
    synthetic_sigma, sigma_floor, sigma_max : float
        Error of synthetic spectra, smallest error of observed ones, and the
        error above which an observed pixel is masked.
    mixed_precision : bool
        Matrix products in bfloat16.
    seed : int
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
    weight_labels: float = 0.0
    gradient_clip: float | None = None
    average_decay: float = 0.0
    flux_mean: float = 0.97746492
    flux_std: float = 0.05180881
    synthetic_sigma: float = 0.005
    sigma_floor: float = 0.005
    sigma_max: float = 0.05
    mixed_precision: bool = False
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "steps", tuple(self.steps))
        positive = ("n_iterations", "batch_size", "learning_rate", "critic_learning_rate", "step_factor", "flux_std")
        positive += ("synthetic_sigma", "sigma_floor", "sigma_max")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, but is {getattr(self, name)}")
        for name in ("weight_synth", "weight_obs", "weight_adversarial", "weight_latent", "weight_labels", "warmup"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}, but is {self.schedule!r}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be in [0, 1), but is {self.average_decay}")
        if self.sigma_floor >= self.sigma_max:
            raise ValueError(f"sigma_floor ({self.sigma_floor}) must be below sigma_max ({self.sigma_max})")

    def rate_factor(self, iteration: int) -> float:
        """Factor on both learning rates at an iteration (from 0)."""
        if self.schedule == "steps":
            return self.step_factor ** sum(iteration >= step for step in self.steps)
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        progress = (iteration - self.warmup) / max(self.n_iterations - self.warmup, 1)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class ObservedSpectra:
    """Observed spectra in memory, standardised, with weights that hold mask and error.

    Parameters
    ----------
    flux, sigma : array, shape (n, n_pixels)
        Normalised flux and its error.
    mask : array of bool, shape (n, n_pixels)
        True = bad pixel.
    settings : `TrainingSettings`
    """

    def __init__(self, flux, sigma, mask, settings: TrainingSettings):
        flux, sigma = (torch.as_tensor(a, dtype=torch.float32) for a in (flux, sigma))
        mask = torch.as_tensor(mask, dtype=torch.bool)
        shapes = [tuple(a.shape) for a in (flux, sigma, mask)]
        if flux.ndim != 2 or len(set(shapes)) > 1:
            raise ValueError(f"flux, sigma and mask must share a shape (n, n_pixels), but have {shapes}")
        bad = mask | ~torch.isfinite(flux) | ~(sigma <= settings.sigma_max) | (sigma <= 0)
        if bad.all(1).any():
            raise ValueError(f"spectrum {int(torch.nonzero(bad.all(1))[0])} has no good pixel")
        # A bad pixel enters the networks as continuum: a wild value there would leak through the convolutions.
        self.flux = torch.where(
            bad, (1 - settings.flux_mean) / settings.flux_std, (flux - settings.flux_mean) / settings.flux_std
        )
        self.weight = torch.where(bad, 0.0, settings.flux_std / sigma.clamp_min(settings.sigma_floor))

    def __len__(self) -> int:
        return len(self.flux)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random spectra (n, n_pixels) and their weights."""
        rows = torch.randint(len(self), (n,), generator=generator)
        return self.flux[rows], self.weight[rows]


class SyntheticSpectra:
    """Synthetic spectra made on the fly from a pool of labels, which is the label prior.

    Parameters
    ----------
    emulator : callable
        Labels (n, n_labels) to normalised flux (n, n_pixels).
    label_pool : array, shape (n_pool, n_labels)
        Labels to draw from.
    settings : `TrainingSettings`
    """

    def __init__(self, emulator: Callable[[Tensor], Tensor], label_pool, settings: TrainingSettings):
        self.emulator, self.settings = emulator, settings
        self.label_pool = torch.as_tensor(label_pool, dtype=torch.float32)
        self.label_mean, self.label_std = self.label_pool.mean(0), self.label_pool.std(0)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random standardised spectra (n, n_pixels) and their labels, standardised by the pool."""
        labels = self.label_pool[torch.randint(len(self.label_pool), (n,), generator=generator)]
        with torch.no_grad():
            flux = (self.emulator(labels) - self.settings.flux_mean) / self.settings.flux_std
        return flux, (labels - self.label_mean) / self.label_std


@dataclass
class _Transfers:
    """What the critic step needs from the autoencoder step, detached."""

    true_synth: Tensor
    fake_synth: Tensor
    true_obs: Tensor
    fake_obs: Tensor
    z_synth: Tensor
    z_obs: Tensor
    split_true: Tensor | None
    split_fake: Tensor | None


class Trainer:
    """Trains a `TranslationNetwork` on unpaired spectra of two domains.

    Parameters
    ----------
    network_settings : `NetworkSettings`
    settings : `TrainingSettings`
    synthetic : `SyntheticSpectra`
    observed : `ObservedSpectra`
    folder : path-like, optional
        Where checkpoints and ``losses.csv`` go. An existing checkpoint there is resumed.
    """

    def __init__(self, network_settings: NetworkSettings, settings: TrainingSettings, synthetic, observed, folder=None):
        self.settings, self.synthetic, self.observed = settings, synthetic, observed
        self.folder = Path(folder) if folder is not None else None
        self.iteration = 0
        self.generator = torch.Generator().manual_seed(settings.seed)
        n_shared, n_split = network_settings.shared_filters, network_settings.split_filters
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = TranslationNetwork(network_settings)
            self.critic_synth = Critic(network_settings, n_shared)
            self.critic_obs = Critic(network_settings, n_shared + n_split)
            self.label_head = None
            if settings.weight_labels:
                n_latent = n_shared * network_settings.latent_length
                self.label_head = nn.Sequential(
                    nn.Flatten(), nn.Linear(n_latent, 128), nn.LeakyReLU(0.1), nn.Linear(128, len(synthetic.label_mean))
                )
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        critics = [*self.critic_synth.parameters(), *self.critic_obs.parameters()]
        self.autoencoder_parameters = [
            *self.network.parameters(),
            *(self.label_head.parameters() if self.label_head else ()),
        ]
        self.critic_parameters = critics
        self.optimizer = torch.optim.Adam(
            self.autoencoder_parameters, settings.learning_rate, settings.betas, fused=True
        )
        self.critic_optimizer = torch.optim.Adam(critics, settings.critic_learning_rate, settings.betas, fused=True)
        s = network_settings
        self._stride = math.prod(layer[2] for layer in s.domain + s.shared)
        self._critic_stride = math.prod(layer[2] for layer in s.critic_spectrum)
        self._dtype = torch.bfloat16 if settings.mixed_precision else torch.float32
        if self.folder is not None and self._checkpoint.exists():
            self._load()

    # -- the two steps -------------------------------------------------------
    def step(self) -> dict[str, float]:
        """Do one iteration and return its loss terms, unweighted."""
        s, n = self.settings, self.settings.batch_size
        x_synth, labels = self.synthetic.draw(n, self.generator)
        x_obs, weight_obs = self.observed.draw(n, self.generator)
        for optimizer, rate in ((self.optimizer, s.learning_rate), (self.critic_optimizer, s.critic_learning_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * s.rate_factor(self.iteration)

        for parameter in self.critic_parameters:
            parameter.requires_grad_(False)
        terms, transfers = self.autoencoder_terms(x_synth, x_obs, weight_obs, labels)
        total = (
            s.weight_synth * (terms["rec_synth"] + terms["cyc_synth"])
            + s.weight_obs * (terms["rec_obs"] + terms["cyc_obs"])
            + s.weight_adversarial * (terms["gen_synth"] + terms["gen_obs"])
            + s.weight_latent * terms.get("latent", 0.0)
            + s.weight_labels * terms.get("labels", 0.0)
        )
        if not torch.isfinite(total):
            bad = [name for name, term in terms.items() if not torch.isfinite(term)]
            raise FloatingPointError(f"loss terms {bad} are not finite at iteration {self.iteration}")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if s.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.autoencoder_parameters, s.gradient_clip)
        self.optimizer.step()

        for parameter in self.critic_parameters:
            parameter.requires_grad_(True)
        critic_terms = self.critic_terms(transfers)
        self.critic_optimizer.zero_grad(set_to_none=True)
        (s.weight_adversarial * (critic_terms["critic_synth"] + critic_terms["critic_obs"])).backward()
        self.critic_optimizer.step()

        with torch.no_grad():
            current = self.network.state_dict()
            decay = min(s.average_decay, (1 + self.iteration) / (10 + self.iteration)) if s.average_decay else 0.0
            torch._foreach_lerp_(list(self.average.values()), [current[k] for k in self.average], 1 - decay)
        self.iteration += 1
        return {name: term.item() for name, term in (terms | critic_terms).items()}

    def autoencoder_terms(self, x_synth, x_obs, weight_obs, labels=None) -> tuple[dict[str, Tensor], _Transfers]:
        """Loss terms of the autoencoder step, each sub-network run once on both domains' spectra."""
        net, n, dtype = self.network, len(x_synth), self._dtype

        def encode(synth_like: Tensor, obs_like: Tensor):
            hidden_s = fast.run(net.encoder_synth, fast.from_spectra(synth_like, self._stride, dtype))
            hidden_o = fast.run(net.encoder_obs, fast.from_spectra(obs_like, self._stride, dtype))
            latent = fast.run(net.encoder_sh, fast.join(hidden_s, hidden_o))
            return latent, fast.run(net.encoder_sp, hidden_o) if net.has_split else None

        def decode(decoder, latent: fast.Maps) -> fast.Maps:
            return fast.run(decoder, fast.Maps(latent.data.to(dtype), latent.batch, latent.length))

        def observed(hidden: fast.Maps, hidden_split: fast.Maps | None) -> fast.Maps:
            data = hidden.data if hidden_split is None else torch.cat([hidden.data, hidden_split.data], 1)
            return fast.run(net.decoder_obs, fast.Maps(data, hidden.batch, hidden.length))

        z, z_split = encode(x_synth, x_obs)  # of (synth, obs)
        hidden = decode(net.decoder_sh, z)
        hidden_split = decode(net.decoder_sp, z_split) if net.has_split else None
        twice = fast.join(hidden_split, hidden_split) if net.has_split else None
        synth_like = fast.run(net.decoder_synth, hidden).spectra()
        obs_like = observed(hidden, twice).spectra()
        rec_synth, obs_to_synth = synth_like[:n], synth_like[n:]
        synth_to_obs, rec_obs = obs_like[:n], obs_like[n:]

        z_back, z_split_back = encode(obs_to_synth, synth_to_obs)  # of (obs -> synth, synth -> obs)
        hidden_back = decode(net.decoder_sh, z_back)
        cyc_obs = observed(hidden_back[:n], hidden_split).spectra()  # with the original split latent
        cyc_synth = fast.run(net.decoder_synth, hidden_back[n:]).spectra()

        weight_synth = self.settings.flux_std / self.settings.synthetic_sigma
        z_shared = z.channels()
        split = (z_split.channels(), z_split_back.channels()) if net.has_split else (None, None)
        transfers = _Transfers(rec_synth, obs_to_synth, rec_obs, synth_to_obs, z_shared[:n], z_shared[n:], *split)
        terms = {
            "rec_synth": losses.distance(rec_synth, x_synth, weight_synth),
            "rec_obs": losses.distance(rec_obs, x_obs, weight_obs),
            "cyc_synth": losses.distance(cyc_synth, x_synth, weight_synth),
            "cyc_obs": losses.distance(cyc_obs, x_obs, weight_obs),
            "gen_synth": losses.generator_loss(self._judge(self.critic_synth, obs_to_synth, z_shared[n:])),
            "gen_obs": losses.generator_loss(
                self._judge(self.critic_obs, synth_to_obs, _joined(z_shared[:n], transfers.split_fake))
            ),
        }
        if self.settings.weight_latent:
            terms["latent"] = losses.energy_distance(z_shared[:n].flatten(1), z_shared[n:].flatten(1))
        if self.label_head is not None:
            terms["labels"] = (self.label_head(z_shared[:n]) - labels).square().mean()
        detached = {name: None if t is None else t.detach() for name, t in vars(transfers).items()}
        return terms, _Transfers(**detached)

    def critic_terms(self, t: _Transfers) -> dict[str, Tensor]:
        """Losses of both critics and the fraction they get right, on detached tensors."""
        n = len(t.true_synth)
        synth = self._judge(self.critic_synth, torch.cat([t.true_synth, t.fake_synth]), torch.cat([t.z_synth, t.z_obs]))
        obs = self._judge(
            self.critic_obs,
            torch.cat([t.true_obs, t.fake_obs]),
            torch.cat([_joined(t.z_obs, t.split_true), _joined(t.z_synth, t.split_fake)]),
        )
        right = torch.cat([synth[:n] > 0, synth[n:] < 0, obs[:n] > 0, obs[n:] < 0]).float().mean()
        return {
            "critic_synth": losses.critic_loss(synth[:n], synth[n:]),
            "critic_obs": losses.critic_loss(obs[:n], obs[n:]),
            "critic_accuracy": right,
        }

    def _judge(self, critic: Critic, flux: Tensor, latent: Tensor) -> Tensor:
        x = fast.run(critic.discriminator_x, fast.from_spectra(flux, self._critic_stride, self._dtype))
        z = fast.run(critic.discriminator_z, fast.from_channels(latent, latent.shape[2], self._dtype))
        features = [maps.channels().to(critic.fc.weight.dtype).flatten(1) for maps in (x, z)]
        return critic.fc(torch.cat(features, dim=1))[:, 0]

    # -- the run --------------------------------------------------------------
    def run(self, *, until: int | None = None, progress: bool = True, every: int = 50, checkpoint_every: int = 500):
        """Train up to ``n_iterations`` (or ``until``); return the mean loss terms of every ``every`` iterations.

        An interrupt saves a checkpoint before it is passed on. A `FloatingPointError`
        does not: the weights may be spoilt, and the last checkpoint stays as it was.
        """
        last = self.settings.n_iterations if until is None else min(until, self.settings.n_iterations)
        history, sums, n_summed = [], {}, 0
        save = self.save if self.folder is not None else lambda: None
        bar = tqdm(total=last, initial=self.iteration, desc="training", disable=not progress)
        try:
            while self.iteration < last:
                for name, value in self.step().items():
                    sums[name] = sums.get(name, 0.0) + value
                n_summed += 1
                bar.update()
                if self.iteration % every == 0:
                    row = {"iteration": self.iteration} | {k: v / n_summed for k, v in sums.items()}
                    history.append(row)
                    sums, n_summed = {}, 0
                    bar.set_postfix({k: f"{row[k]:.3g}" for k in ("rec_obs", "cyc_obs", "gen_obs", "critic_accuracy")})
                    self._log(row)
                if self.iteration % checkpoint_every == 0:
                    save()
        except FloatingPointError:
            raise
        except BaseException:
            save()
            raise
        else:
            save()
        finally:
            bar.close()
        return history

    def averaged_network(self) -> TranslationNetwork:
        """The network with the averaged weights, in evaluation mode."""
        network = TranslationNetwork(self.network.settings)
        network.load_state_dict(self.average)
        return network.eval().requires_grad_(False)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _log(self, row: dict) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "losses.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow({k: v if k == "iteration" else f"{v:.5g}" for k, v in row.items()})

    def _stateful(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        parts = {
            "network": self.network,
            "critic_synth": self.critic_synth,
            "critic_obs": self.critic_obs,
            "optimizer": self.optimizer,
            "critic_optimizer": self.critic_optimizer,
        }
        return parts | ({"label_head": self.label_head} if self.label_head else {})

    def save(self) -> None:
        """Write a checkpoint with everything that the next iteration depends on."""
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        state |= {
            "iteration": self.iteration,
            "average": self.average,
            "generator": self.generator.get_state(),
            "settings": asdict(self.settings) | {"network": self.network.settings.to_dict()},
        }
        save_state(state, self._checkpoint)

    def _load(self) -> None:
        state = load_state(self._checkpoint)
        wanted = asdict(self.settings) | {"network": self.network.settings.to_dict()}
        different = sorted(k for k in wanted if state["settings"].get(k) != wanted[k])
        if different:
            raise ValueError(
                f"{self._checkpoint} was made with other settings: {', '.join(different)}; use another folder"
            )
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        self.average, self.iteration = state["average"], state["iteration"]
        self.generator.set_state(state["generator"])
        log.info("resumed %s at iteration %d", self._checkpoint, self.iteration)


def _joined(z_shared: Tensor, z_split: Tensor | None) -> Tensor:
    return z_shared if z_split is None else torch.cat([z_shared, z_split], dim=1)
