"""The loss terms of both steps of an iteration (S1, Sections 3.2.3 to 3.2.6), by one pass of each sub-network."""

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
Maps = convolutions.ChannelMaps  # or RowMaps, which has the same methods: settings choose one of them for the whole run


@dataclass
class Transfers:
    """What the critic step needs from the autoencoder step, detached.

    Parameters
    ----------
    true_synth, true_obs : tensor, shape (n, n_pixels)
        Standardised spectra of both domains, as the autoencoders reconstruct them.
    fake_synth, fake_obs : tensor, shape (n, n_pixels)
        Spectra translated to either domain.
    shared_latent_synth, shared_latent_obs : tensor, shape (n, shared_filters, positions)
        Shared latents of both domains.
    split_latent_true, split_latent_fake : tensor, shape (n, split_filters, positions), or None
        Split latents of observed spectra, and of spectra translated to the observed
        domain. None: the networks have no split latent.

    Examples
    --------
    ::

        terms, transfers = parts.autoencoder_terms(x_synth, x_obs, weight_obs)
        transfers.fake_obs  # the synthetic spectra, translated
    """

    true_synth: Tensor
    fake_synth: Tensor
    true_obs: Tensor
    fake_obs: Tensor
    shared_latent_synth: Tensor
    shared_latent_obs: Tensor
    split_latent_true: Tensor | None
    split_latent_fake: Tensor | None


class Adaptation(nn.Module):
    """All that is trained: encoders and decoders, critics, and what the settings ask for beyond the paper.

    Parameters
    ----------
    network_settings : `~cyclestarnet.NetworkSettings`
        Sizes of the networks.
    settings : `~cyclestarnet.TrainingSettings`
        Which terms there are, and how they are computed. The seed gives the first weights.
    n_labels : int, optional
        Labels of the synthetic spectra. Default: 0, they are unknown.

    Attributes
    ----------
    network : `~cyclestarnet.networks.TranslationNetwork`
        Encoders and decoders.
    critic_synth, critic_obs : `~cyclestarnet.networks.Critic`
        They tell true spectra of a domain from translated ones.
    label_head : `torch.nn.Module` or None
        Reads labels from shared latents, if ``weight_labels`` asks for it.
    prior_shift : `torch.nn.Parameter`, shape (n_labels,), or None
        Shift of the label prior in standard deviations of the pool, if ``prior_rate`` asks for it.

    Raises
    ------
    ValueError
        If the settings need labels, but there are none.

    Examples
    --------
    >>> from cyclestarnet import NetworkSettings, TrainingSettings
    >>> from cyclestarnet.training.terms import Adaptation
    >>> layers = {"domain": ((4, 7, 4),), "shared": ((4, 7, 4),), "split": ((4, 7, 4),)}
    >>> critics = {"critic_spectrum": ((4, 7, 4),), "critic_latent": ((4, 1, 1),)}
    >>> sizes = NetworkSettings(n_pixels=79, shared_filters=3, split_filters=1, **layers, **critics)
    >>> parts = Adaptation(sizes, TrainingSettings())
    >>> sum(parameter.numel() for parameter in parts.critic_parameters())
    286
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
        self.maps: type[Maps] = convolutions.ChannelMaps
        if settings.mixed_precision:
            self.maps = convolutions.RowMaps  # type: ignore[assignment]  # see Maps
        self.dtype = torch.bfloat16 if settings.mixed_precision else torch.float32

    def autoencoder_parameters(self) -> list[nn.Parameter]:
        """Parameters that the autoencoder step trains, but for the shift of the prior.

        Examples
        --------
        ::

            optimizer = torch.optim.Adam(parts.autoencoder_parameters(), 1e-4)
        """
        return [*self.network.parameters(), *(self.label_head.parameters() if self.label_head else ())]

    def critic_parameters(self) -> list[nn.Parameter]:
        """Parameters that the critic step trains.

        Examples
        --------
        ::

            optimizer = torch.optim.Adam(parts.critic_parameters(), 1e-4)
        """
        return [*self.critic_synth.parameters(), *self.critic_obs.parameters()]

    # -- the autoencoder step --------------------------------------------------
    def autoencoder_terms(
        self,
        x_synth: Tensor,
        x_obs: Tensor,
        weight_obs: Tensor,
        labels: Tensor | None = None,
        x_changed: Tensor | None = None,
        weight_synth: Tensor | None = None,
    ) -> tuple[Terms, Transfers]:
        """Unweighted loss terms of the autoencoder step, and what the critics need.

        Parameters
        ----------
        x_synth, x_obs : tensor, shape (n, n_pixels)
            Standardised spectra of both domains; finite everywhere.
        weight_obs : tensor, shape (n, n_pixels)
            Inverse errors of ``x_obs`` in the same units; 0 for bad pixels.
        labels : tensor, shape (n, n_labels), optional
            Standardised labels of ``x_synth``, which a label head needs.
        x_changed : tensor, shape (n, n_pixels), optional
            Standardised synthetic spectra that differ from ``x_synth`` in a few labels, row by row.
        weight_synth : tensor, shape (n, n_pixels), optional
            As ``weight_obs``, of a first domain whose spectra have errors and masks too. Default: the
            ``synthetic_sigma`` of the settings in every pixel.

        Returns
        -------
        terms : dict of tensor, shape ()
            ``rec_*``, ``cyc_*`` and, unless there are no critics, ``gen_*`` of both domains; ``latent``,
            ``spectra``, ``labels``, ``label_cycle`` and ``response`` if the settings ask for them.
        transfers : `Transfers`
            For `critic_terms`.

        Examples
        --------
        ::

            terms, transfers = parts.autoencoder_terms(x_synth, x_obs, weight_obs)
            (3 * terms["rec_synth"] + 9 * terms["rec_obs"]).backward()
        """
        net, n = self.network, len(x_synth)
        matrices: convolutions.Matrices = {}
        z, hidden_obs = self._encode(x_synth, x_obs, matrices)  # z of (synth, obs)
        split_latent = convolutions.run(net.encoder_sp, hidden_obs, matrices) if net.has_split else None
        hidden = convolutions.run(net.decoder_sh, z.to(self.dtype), matrices)
        hidden_split = (
            None if split_latent is None else convolutions.run(net.decoder_sp, split_latent.to(self.dtype), matrices)
        )
        twice = None if hidden_split is None else self.maps.join(hidden_split, hidden_split)
        rec_synth, obs_to_synth = convolutions.run(net.decoder_synth, hidden, matrices).spectra().split(n)
        synth_to_obs, rec_obs = self._decode_obs(hidden, twice, matrices).split(n)

        # of (obs→synth, synth→obs)
        shared_latent_back, hidden_obs_back = self._encode(obs_to_synth, synth_to_obs, matrices)
        split_latent_back = convolutions.run(net.encoder_sp, hidden_obs_back, matrices) if net.has_split else None
        hidden_back = convolutions.run(net.decoder_sh, shared_latent_back.to(self.dtype), matrices)
        cyc_obs = self._decode_obs(hidden_back[:n], hidden_split, matrices)  # with the original split latent
        cyc_synth = convolutions.run(net.decoder_synth, hidden_back[n:], matrices).spectra()

        # in full precision, in which latents come out of their normalisation, if there is one
        full = self.critic_synth.fc.weight.dtype
        shared_latent_synth, shared_latent_obs = z.channels().to(full).split(n)
        split_latent_true, split_latent_fake = (
            None if s is None else s.channels().to(full) for s in (split_latent, split_latent_back)
        )
        judge = {}
        if self.settings.weight_adversarial:
            judge["gen_synth"] = self._judge(self.critic_synth, obs_to_synth, shared_latent_obs, matrices)
            pair = _joined(shared_latent_synth, split_latent_fake)
            judge["gen_obs"] = self._judge(self.critic_obs, synth_to_obs, pair, matrices)
        weight, target = self._weight_synth(weight_synth), x_synth.detach()
        terms = {
            "rec_synth": losses.distance(rec_synth, target, weight),
            "rec_obs": losses.distance(rec_obs, x_obs, weight_obs),
            "cyc_synth": losses.distance(cyc_synth, target, weight),
            "cyc_obs": losses.distance(cyc_obs, x_obs, weight_obs),
        } | {name: losses.generator_loss(verdict, self.settings.adversarial) for name, verdict in judge.items()}
        if self.settings.weight_latent:
            terms["latent"] = losses.energy_distance(shared_latent_synth.flatten(1), shared_latent_obs.flatten(1))
        if self.settings.weight_spectra:
            least = self.settings.synthetic_sigma / self.settings.flux_std
            of_synth, of_obs = (
                losses.window_distance(fake.to(full), true.to(full), least)
                for fake, true in ((obs_to_synth, rec_synth), (synth_to_obs, rec_obs))
            )
            terms["spectra"] = of_synth + of_obs
        if self.label_head is not None:
            terms["labels"] = (self.label_head(shared_latent_synth) - labels).square().mean()
        if self.label_head is not None and self.settings.weight_label_cycle:
            read = self.label_head(shared_latent_back[n:].channels().to(full))
            terms["label_cycle"] = (read - labels).square().mean()
        if x_changed is not None:
            gap = self._gap(x_changed, hidden_split, matrices)
            terms["response"] = losses.distance(gap, synth_to_obs - rec_synth, weight)
        kept = (rec_synth, obs_to_synth, rec_obs, synth_to_obs, shared_latent_synth, shared_latent_obs)
        of_split = (None if z is None else z.detach() for z in (split_latent_true, split_latent_fake))
        return terms, Transfers(*(tensor.detach() for tensor in kept), *of_split)

    def warm_start_terms(self, x_synth: Tensor, weight_synth: Tensor | None = None) -> Terms:
        """Loss of the synthetic autoencoder alone.

        Parameters
        ----------
        x_synth : tensor, shape (n, n_pixels)
            Standardised synthetic spectra.
        weight_synth : tensor, shape (n, n_pixels), optional
            As `autoencoder_terms` takes it.

        Returns
        -------
        dict of tensor, shape ()
            ``rec_synth`` only.

        Examples
        --------
        ::

            parts.warm_start_terms(x_synth)["rec_synth"].backward()
        """
        matrices: convolutions.Matrices = {}
        hidden = convolutions.run(self.network.encoder_synth, self._maps(x_synth), matrices)
        z = convolutions.run(self.network.encoder_sh, hidden, matrices).to(self.dtype)
        hidden = convolutions.run(self.network.decoder_sh, z, matrices)
        rec_synth = convolutions.run(self.network.decoder_synth, hidden, matrices).spectra()
        return {"rec_synth": losses.distance(rec_synth, x_synth, self._weight_synth(weight_synth))}

    def copy_synth_to_obs(self) -> None:
        """Begin the observed branch as a copy of the synthetic one; what the split latent feeds stays as it is.

        Examples
        --------
        ::

            parts.copy_synth_to_obs()  # after the warm start
        """
        net = self.network
        with torch.no_grad():
            for source, copy in ((net.encoder_synth, net.encoder_obs), (net.decoder_synth, net.decoder_obs)):
                for value, place in zip(source.state_dict().values(), copy.state_dict().values(), strict=True):
                    place[: len(value)] = value

    def anchor_terms(self, x_synth: Tensor, x_obs: Tensor, weight_obs: Tensor) -> Terms:
        """Distance between translated synthetic spectra and the observed ones of the same labels.

        Parameters
        ----------
        x_synth, x_obs : tensor, shape (n, n_pixels)
            Standardised spectra, row by row of the same labels.
        weight_obs : tensor, shape (n, n_pixels)
            Inverse errors of ``x_obs`` in the same units; 0 for bad pixels.

        Returns
        -------
        dict of tensor, shape ()
            ``anchors`` only.

        Examples
        --------
        ::

            parts.anchor_terms(x_synth, x_obs, weight_obs)["anchors"].backward()
        """
        net, n = self.network, len(x_synth)
        matrices: convolutions.Matrices = {}
        z, hidden_obs = self._encode(x_synth, x_obs, matrices)
        hidden = convolutions.run(net.decoder_sh, z[:n].to(self.dtype), matrices)
        hidden_split = None
        if net.has_split:
            split_latent = convolutions.run(net.encoder_sp, hidden_obs, matrices).to(self.dtype)
            hidden_split = convolutions.run(net.decoder_sp, split_latent, matrices)
        translated = self._decode_obs(hidden, hidden_split, matrices)
        return {"anchors": losses.distance(translated, x_obs, weight_obs)}

    # -- the critic step -------------------------------------------------------
    def critic_terms(self, t: Transfers) -> Terms:
        """Losses of both critics and the fraction they get right.

        Parameters
        ----------
        t : `Transfers`
            Of the autoencoder step, detached.

        Returns
        -------
        dict of tensor, shape ()
            ``critic_synth``, ``critic_obs``, ``critic_accuracy``, and ``penalty`` if the settings ask for it.

        Examples
        --------
        ::

            terms, transfers = parts.autoencoder_terms(x_synth, x_obs, weight_obs)
            critic_terms = parts.critic_terms(transfers)
        """
        n, kind = len(t.true_synth), self.settings.adversarial
        matrices: convolutions.Matrices = {}
        fluxes = torch.cat([t.true_synth, t.fake_synth]), torch.cat([t.true_obs, t.fake_obs])
        true_obs = _joined(t.shared_latent_obs, t.split_latent_true)
        latents = (
            torch.cat([t.shared_latent_synth, t.shared_latent_obs]),
            torch.cat([true_obs, _joined(t.shared_latent_synth, t.split_latent_fake)]),
        )
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
            terms["penalty"] = losses.gradient_penalty(self.critic_synth, t.true_synth, t.shared_latent_synth)
            terms["penalty"] = terms["penalty"] + losses.gradient_penalty(self.critic_obs, t.true_obs, true_obs)
        return terms

    # -- parts of both ---------------------------------------------------------
    def _weight_synth(self, given: Tensor | None) -> Tensor | float:
        return self.settings.flux_std / self.settings.synthetic_sigma if given is None else given

    def _maps(self, spectra: Tensor) -> Maps:
        return self.maps.from_spectra(spectra, self._stride, self.dtype)

    def _encode(self, synth_like: Tensor, obs_like: Tensor, matrices: convolutions.Matrices) -> tuple[Maps, Maps]:
        """Shared latents of both domains, joined, and the hidden maps of the observed one."""
        hidden_synth = convolutions.run(self.network.encoder_synth, self._maps(synth_like), matrices)
        hidden_obs = convolutions.run(self.network.encoder_obs, self._maps(obs_like), matrices)
        return convolutions.run(self.network.encoder_sh, self.maps.join(hidden_synth, hidden_obs), matrices), hidden_obs

    def _gap(self, x_synth: Tensor, hidden_split: Maps | None, matrices: convolutions.Matrices) -> Tensor:
        """What the two decoders make of the latents of synthetic spectra: observed - synthetic."""
        net = self.network
        hidden = convolutions.run(net.encoder_synth, self._maps(x_synth), matrices)
        z = convolutions.run(net.encoder_sh, hidden, matrices)
        hidden = convolutions.run(net.decoder_sh, z.to(self.dtype), matrices)
        synthetic = convolutions.run(net.decoder_synth, hidden, matrices).spectra()
        return self._decode_obs(hidden, hidden_split, matrices) - synthetic

    def _decode_obs(self, hidden: Maps, hidden_split: Maps | None, matrices: convolutions.Matrices) -> Tensor:
        both = hidden if hidden_split is None else hidden.beside(hidden_split)
        return convolutions.run(self.network.decoder_obs, both, matrices).spectra()

    def _judge(self, critic: Critic, flux: Tensor, latent: Tensor, matrices: convolutions.Matrices) -> Tensor:
        maps = self.maps.from_spectra(flux, self._critic_stride, self.dtype)
        x = convolutions.run(critic.discriminator_x, maps, matrices)
        z = self.maps.from_channels(latent, latent.shape[2], self.dtype)
        z = convolutions.run(critic.discriminator_z, z, matrices)
        features = [maps.channels().to(critic.fc.weight.dtype).flatten(1) for maps in (x, z)]
        return critic.fc(torch.cat(features, dim=1))[:, 0]


def _joined(shared_latent: Tensor, split_latent: Tensor | None) -> Tensor:
    return shared_latent if split_latent is None else torch.cat([shared_latent, split_latent], dim=1)
