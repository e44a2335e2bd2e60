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
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cyclestarnet.backend import fast, losses
from cyclestarnet.backend.checkpoint import load_state, save_state
from cyclestarnet.backend.networks import Critic, NetworkSettings, TranslationNetwork
from cyclestarnet.backend.settings import TrainingSettings

__all__ = ["Trainer"]

log = logging.getLogger(__name__)


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
