"""The loss terms of both steps of an iteration (S1, Section 2.3), each sub-network run once for both domains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cyclestarnet.networks import convolutions
from cyclestarnet.networks.translation import Critic, NetworkSettings, TranslationNetwork
from cyclestarnet.training import losses
from cyclestarnet.training.settings import TrainingSettings

__all__ = ["Adaptation", "Transfers"]

Terms = dict[str, Tensor]


@dataclass
class Transfers:
    """What the critic step needs from the autoencoder step, detached."""

    true_synth: Tensor
    fake_synth: Tensor
    true_obs: Tensor
    fake_obs: Tensor
    z_synth: Tensor
    z_obs: Tensor
    split_true: Tensor | None
    split_fake: Tensor | None


class Adaptation(nn.Module):
    """All that is trained: encoders and decoders, critics, and what the settings ask for beyond the paper.

    Parameters
    ----------
    network_settings : `NetworkSettings`
    settings : `TrainingSettings`
        Their seed gives the first weights.
    n_labels : int
        Labels of the synthetic spectra; 0 if they are unknown.
    """

    def __init__(self, network_settings: NetworkSettings, settings: TrainingSettings, n_labels: int = 0):
        super().__init__()
        self.settings = settings
        n_shared, n_split = network_settings.shared_filters, network_settings.split_filters
        if (settings.weight_labels or settings.prior_rate) and not n_labels:
            raise ValueError("weight_labels and prior_rate need synthetic spectra with labels, but these have none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = TranslationNetwork(network_settings)
            self.critic_synth = Critic(network_settings, n_shared)
            self.critic_obs = Critic(network_settings, n_shared + n_split)
            self.label_head = None
            if settings.weight_labels:
                n_latent = n_shared * network_settings.latent_length
                self.label_head = nn.Sequential(
                    nn.Flatten(), nn.Linear(n_latent, 128), nn.LeakyReLU(0.1), nn.Linear(128, n_labels)
                )
        # shift of the label prior, in standard deviations of the pool
        self.prior_shift = nn.Parameter(torch.zeros(n_labels)) if settings.prior_rate else None
        s = network_settings
        self._stride = math.prod(layer[2] for layer in s.domain + s.shared)
        self._critic_stride = math.prod(layer[2] for layer in s.critic_spectrum)
        self.maps = convolutions.RowMaps if settings.mixed_precision else convolutions.ChannelMaps
        self.dtype = torch.bfloat16 if settings.mixed_precision else torch.float32

    def autoencoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of the autoencoder step, but for the shift of the prior."""
        return [*self.network.parameters(), *(self.label_head.parameters() if self.label_head else ())]

    def critic_parameters(self) -> list[nn.Parameter]:
        """Parameters of the critic step."""
        return [*self.critic_synth.parameters(), *self.critic_obs.parameters()]

    # -- the autoencoder step --------------------------------------------------
    def autoencoder_terms(self, x_synth: Tensor, x_obs: Tensor, weight_obs: Tensor, labels: Tensor | None = None):
        """Unweighted loss terms of the autoencoder step, and what the critics need.

        Parameters
        ----------
        x_synth, x_obs, weight_obs : tensor, shape (n, n_pixels)
            Standardised spectra, and mask / sigma.
        labels : tensor, shape (n, n_labels), optional
            Standardised labels of ``x_synth``.

        Returns
        -------
        dict of tensor, `Transfers`
        """
        net, n, matrices = self.network, len(x_synth), {}
        z, hidden_obs = self._encode(x_synth, x_obs, matrices)  # z of (synth, obs)
        z_split = convolutions.run(net.encoder_sp, hidden_obs, matrices) if net.has_split else None
        hidden = convolutions.run(net.decoder_sh, z.to(self.dtype), matrices)
        hidden_split = convolutions.run(net.decoder_sp, z_split.to(self.dtype), matrices) if net.has_split else None
        twice = self.maps.join(hidden_split, hidden_split) if net.has_split else None
        rec_synth, obs_to_synth = convolutions.run(net.decoder_synth, hidden, matrices).spectra().split(n)
        synth_to_obs, rec_obs = self._decode_obs(hidden, twice, matrices).split(n)

        z_back, hidden_obs_back = self._encode(obs_to_synth, synth_to_obs, matrices)  # z of (obs→synth, synth→obs)
        split_back = convolutions.run(net.encoder_sp, hidden_obs_back, matrices) if net.has_split else None
        hidden_back = convolutions.run(net.decoder_sh, z_back.to(self.dtype), matrices)
        cyc_obs = self._decode_obs(hidden_back[:n], hidden_split, matrices)  # with the original split latent
        cyc_synth = convolutions.run(net.decoder_synth, hidden_back[n:], matrices).spectra()

        # in full precision, in which latents come out of their normalisation, if there is one
        full = self.critic_synth.fc.weight.dtype
        z_synth, z_obs = z.channels().to(full).split(n)
        split_true, split_fake = (None if s is None else s.channels().to(full) for s in (z_split, split_back))
        judge = {
            "gen_synth": self._judge(self.critic_synth, obs_to_synth, z_obs, matrices),
            "gen_obs": self._judge(self.critic_obs, synth_to_obs, _joined(z_synth, split_fake), matrices),
        }
        weight, target = self.settings.flux_std / self.settings.synthetic_sigma, x_synth.detach()
        terms = {
            "rec_synth": losses.distance(rec_synth, target, weight),
            "rec_obs": losses.distance(rec_obs, x_obs, weight_obs),
            "cyc_synth": losses.distance(cyc_synth, target, weight),
            "cyc_obs": losses.distance(cyc_obs, x_obs, weight_obs),
        } | {name: losses.generator_loss(verdict, self.settings.adversarial) for name, verdict in judge.items()}
        if self.settings.weight_latent:
            terms["latent"] = losses.energy_distance(z_synth.flatten(1), z_obs.flatten(1))
        if self.label_head is not None:
            terms["labels"] = (self.label_head(z_synth) - labels).square().mean()
        kept = (rec_synth, obs_to_synth, rec_obs, synth_to_obs, z_synth, z_obs, split_true, split_fake)
        return terms, Transfers(*(None if tensor is None else tensor.detach() for tensor in kept))

    def warm_start_terms(self, x_synth: Tensor) -> Terms:
        """Loss of the synthetic autoencoder alone."""
        matrices = {}
        hidden = convolutions.run(self.network.encoder_synth, self._maps(x_synth), matrices)
        z = convolutions.run(self.network.encoder_sh, hidden, matrices).to(self.dtype)
        hidden = convolutions.run(self.network.decoder_sh, z, matrices)
        rec_synth = convolutions.run(self.network.decoder_synth, hidden, matrices).spectra()
        return {
            "rec_synth": losses.distance(rec_synth, x_synth, self.settings.flux_std / self.settings.synthetic_sigma)
        }

    def copy_synth_to_obs(self) -> None:
        """Begin the observed branch as a copy of the synthetic one; what the split latent feeds stays as it is."""
        net = self.network
        with torch.no_grad():
            for source, copy in ((net.encoder_synth, net.encoder_obs), (net.decoder_synth, net.decoder_obs)):
                for value, place in zip(source.state_dict().values(), copy.state_dict().values(), strict=True):
                    place[: len(value)] = value

    def anchor_terms(self, x_synth: Tensor, x_obs: Tensor, weight_obs: Tensor) -> Terms:
        """Distance between translated synthetic spectra and the observed ones of the same labels."""
        net, n, matrices = self.network, len(x_synth), {}
        z, hidden_obs = self._encode(x_synth, x_obs, matrices)
        hidden = convolutions.run(net.decoder_sh, z[:n].to(self.dtype), matrices)
        hidden_split = None
        if net.has_split:
            z_split = convolutions.run(net.encoder_sp, hidden_obs, matrices).to(self.dtype)
            hidden_split = convolutions.run(net.decoder_sp, z_split, matrices)
        translated = self._decode_obs(hidden, hidden_split, matrices)
        return {"anchors": losses.distance(translated, x_obs, weight_obs)}

    # -- the critic step -------------------------------------------------------
    def critic_terms(self, t: Transfers) -> Terms:
        """Losses of both critics and the fraction they get right, on detached tensors."""
        n, kind, matrices = len(t.true_synth), self.settings.adversarial, {}
        fluxes = torch.cat([t.true_synth, t.fake_synth]), torch.cat([t.true_obs, t.fake_obs])
        true_obs = _joined(t.z_obs, t.split_true)
        latents = torch.cat([t.z_synth, t.z_obs]), torch.cat([true_obs, _joined(t.z_synth, t.split_fake)])
        synth, obs = (
            self._judge(critic, flux, latent, matrices)
            for critic, flux, latent in zip((self.critic_synth, self.critic_obs), fluxes, latents, strict=True)
        )
        middle = losses.UNDECIDED[kind]
        right = torch.cat([synth[:n] > middle, synth[n:] < middle, obs[:n] > middle, obs[n:] < middle]).float().mean()
        terms = {
            "critic_synth": losses.critic_loss(synth[:n], synth[n:], kind),
            "critic_obs": losses.critic_loss(obs[:n], obs[n:], kind),
            "critic_accuracy": right,
        }
        if self.settings.critic_penalty:
            terms["penalty"] = losses.gradient_penalty(self.critic_synth, t.true_synth, t.z_synth)
            terms["penalty"] = terms["penalty"] + losses.gradient_penalty(self.critic_obs, t.true_obs, true_obs)
        return terms

    # -- parts of both ---------------------------------------------------------
    def _maps(self, spectra: Tensor):
        return self.maps.from_spectra(spectra, self._stride, self.dtype)

    def _encode(self, synth_like: Tensor, obs_like: Tensor, matrices: convolutions.Matrices):
        """Shared latents of both domains, joined, and the hidden maps of the observed one."""
        hidden_synth = convolutions.run(self.network.encoder_synth, self._maps(synth_like), matrices)
        hidden_obs = convolutions.run(self.network.encoder_obs, self._maps(obs_like), matrices)
        return convolutions.run(self.network.encoder_sh, self.maps.join(hidden_synth, hidden_obs), matrices), hidden_obs

    def _decode_obs(self, hidden, hidden_split, matrices: convolutions.Matrices) -> Tensor:
        both = hidden if hidden_split is None else hidden.beside(hidden_split)
        return convolutions.run(self.network.decoder_obs, both, matrices).spectra()

    def _judge(self, critic: Critic, flux: Tensor, latent: Tensor, matrices: convolutions.Matrices) -> Tensor:
        maps = self.maps.from_spectra(flux, self._critic_stride, self.dtype)
        x = convolutions.run(critic.discriminator_x, maps, matrices)
        z = self.maps.from_channels(latent, latent.shape[2], self.dtype)
        z = convolutions.run(critic.discriminator_z, z, matrices)
        features = [maps.channels().to(critic.fc.weight.dtype).flatten(1) for maps in (x, z)]
        return critic.fc(torch.cat(features, dim=1))[:, 0]


def _joined(z_shared: Tensor, z_split: Tensor | None) -> Tensor:
    return z_shared if z_split is None else torch.cat([z_shared, z_split], dim=1)
