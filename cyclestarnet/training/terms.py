"""The loss terms of both steps of an iteration (S1, Sections 3.2.3 to 3.2.6), by one pass of each sub-network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from cyclestarnet.networks import convolutions
from cyclestarnet.networks.translation import Critic, NetworkSettings, SharedNetwork, TranslationNetwork
from cyclestarnet.training import losses
from cyclestarnet.training.settings import TrainingSettings

__all__ = ["Adaptation", "Branch", "Crossing", "PairTerms", "SharedAdaptation", "Transfer", "copy_branch"]

Terms = dict[str, Tensor]
SIDES = ("synth", "obs")
NEED_LABELS = ("weight_labels", "weight_response", "weight_anchors", "prior_rate")
Maps = convolutions.ChannelMaps  # or RowMaps, which has the same methods: settings choose one of them for the whole run


@dataclass(frozen=True)
class Branch:
    """The networks of a domain that take part in an iteration, whatever module they are of.

    Parameters
    ----------
    encoder, decoder : `torch.nn.Sequential`
        Next to the spectra.
    critic : `~cyclestarnet.networks.Critic`
        Tells reconstructed spectra of the domain from translated ones.
    split_encoder, split_decoder : `torch.nn.Sequential`, optional
        Of the split latent. Default: there is none.

    Examples
    --------
    ::

        branch = Branch(network.encoder_obs, network.decoder_obs, critic, network.encoder_sp, network.decoder_sp)
    """

    encoder: nn.Sequential
    decoder: nn.Sequential
    critic: Critic
    split_encoder: nn.Sequential | None = None
    split_decoder: nn.Sequential | None = None


@dataclass(frozen=True)
class Transfer:
    """What the critic of a domain needs from the autoencoder step, detached.

    Parameters
    ----------
    true : tensor, shape (n, n_pixels)
        Standardised spectra of the domain, as its autoencoder reconstructs them.
    fake : tensor, shape (n, n_pixels)
        Spectra that were translated to it.
    latent_true, latent_fake : tensor, shape (n, filters, positions)
        Their shared latents, joined with split ones if the domain has any: of fakes the one that is encoded again
        (S1, Eq. 4).

    Examples
    --------
    ::

        terms, (_, of_observed) = parts.autoencoder_terms(x_synth, x_obs, weight_obs)
        of_observed.fake  # the synthetic spectra, translated
    """

    true: Tensor
    fake: Tensor
    latent_true: Tensor
    latent_fake: Tensor


Transfers = tuple[Transfer, Transfer]


@dataclass(frozen=True)
class Crossing:
    """Spectra of two domains, gone all ways: each tuple is of the first domain and of the second.

    Parameters
    ----------
    rec, fake, cyc : tuple of tensor, shape (n, n_pixels)
        Reconstructions, spectra that were translated to the domain, and spectra of it that went to the other and back.
    shared_latent : tuple of tensor, shape (n, shared_filters, positions)
        Of the spectra.
    hidden_back : tuple of maps
        Shared latents of the translated spectra: of those that went to the first domain, and to the second.
    hidden_split : tuple of maps or None
        What the split decoders make of the spectra's split latents.
    verdict : tuple of tensor, shape (n,)
        What the critic of the domain says of ``fake``; empty if the settings have no critics.
    transfers : (`Transfer`, `Transfer`)
        For the critic step.
    """

    rec: tuple[Tensor, Tensor]
    fake: tuple[Tensor, Tensor]
    cyc: tuple[Tensor, Tensor]
    shared_latent: tuple[Tensor, Tensor]
    hidden_back: tuple[Maps, Maps]
    hidden_split: tuple[Maps | None, Maps | None]
    verdict: tuple[Tensor, Tensor] | tuple[()]
    transfers: Transfers


class PairTerms(nn.Module):
    """Losses between two domains that share an inner encoder and decoder, by one pass of each sub-network.

    Each of the domains may have a split latent or none.

    Parameters
    ----------
    network_settings : `~cyclestarnet.NetworkSettings`
        Sizes of the networks.
    settings : `~cyclestarnet.TrainingSettings`
        How the terms are computed.

    Attributes
    ----------
    network : `torch.nn.Module`
        Has ``encoder_sh`` and ``decoder_sh``. Subclasses make it.
    """

    network: TranslationNetwork | SharedNetwork

    def __init__(self, network_settings: NetworkSettings, settings: TrainingSettings):
        super().__init__()
        self.settings, s = settings, network_settings
        self._stride = math.prod(layer[2] for layer in s.domain + s.shared)
        self._critic_stride = math.prod(layer[2] for layer in s.critic_spectrum)
        self.maps: type[Maps] = convolutions.ChannelMaps
        if settings.mixed_precision:
            self.maps = convolutions.RowMaps  # type: ignore[assignment]  # see Maps
        self.dtype = torch.bfloat16 if settings.mixed_precision else torch.float32

    def cross(
        self, first: Branch, second: Branch, x_first: Tensor, x_second: Tensor, matrices: convolutions.Matrices
    ) -> Crossing:
        """Reconstruct spectra of two domains, translate them both ways, and back.

        Parameters
        ----------
        first, second : `Branch`
            The domains.
        x_first, x_second : tensor, shape (n, n_pixels)
            Standardised spectra of both; finite everywhere. A spectrum is translated with the split latent of the
            spectrum in the same row of the other.
        matrices : dict
            Weights in the form that products need, of this step; filled.

        Returns
        -------
        `Crossing`

        Examples
        --------
        ::

            crossing = parts.cross(synthetic, observed, x_synth, x_obs, {})
            crossing.fake[1]  # x_synth, translated
        """
        pair, n, run = (first, second), len(x_first), convolutions.run
        shared, own = self._encode(pair, (x_first, x_second), matrices)  # shared: of (first, second)
        split = [
            None if b.split_encoder is None else run(b.split_encoder, h, matrices)
            for b, h in zip(pair, own, strict=True)
        ]
        hidden = run(self.network.decoder_sh, shared.to(self.dtype), matrices)
        hidden_split = [
            None if z is None or b.split_decoder is None else run(b.split_decoder, z.to(self.dtype), matrices)
            for b, z in zip(pair, split, strict=True)
        ]
        twice = [None if maps is None else self.maps.join(maps, maps) for maps in hidden_split]
        made = [self._decode(b, hidden, maps, matrices).split(n) for b, maps in zip(pair, twice, strict=True)]
        (rec_first, to_first), (to_second, rec_second) = made

        # of (second→first, first→second)
        shared_back, own_back = self._encode(pair, (to_first, to_second), matrices)
        split_back = [
            None if b.split_encoder is None else run(b.split_encoder, h, matrices)
            for b, h in zip(pair, own_back, strict=True)
        ]
        hidden_back = run(self.network.decoder_sh, shared_back.to(self.dtype), matrices)
        cyc_second = self._decode(second, hidden_back[:n], hidden_split[1], matrices)  # with the original split latent
        cyc_first = self._decode(first, hidden_back[n:], hidden_split[0], matrices)

        # in full precision, in which latents come out of their normalisation, if there is one
        full = first.critic.fc.weight.dtype
        z_first, z_second = shared.channels().to(full).split(n)
        true, fake = ([None if z is None else z.channels().to(full) for z in zs] for zs in (split, split_back))
        latents = (_joined(z_second, fake[0]), _joined(z_first, fake[1]))
        verdict: tuple[Tensor, Tensor] | tuple[()] = ()  # of no critics
        if self.settings.weight_adversarial:
            verdict = (
                self._judge(first.critic, to_first, latents[0], matrices),
                self._judge(second.critic, to_second, latents[1], matrices),
            )
        transfers = (
            Transfer(*(t.detach() for t in (rec_first, to_first, _joined(z_first, true[0]), latents[0]))),
            Transfer(*(t.detach() for t in (rec_second, to_second, _joined(z_second, true[1]), latents[1]))),
        )
        return Crossing(
            rec=(rec_first, rec_second),
            fake=(to_first, to_second),
            cyc=(cyc_first, cyc_second),
            shared_latent=(z_first, z_second),
            hidden_back=(shared_back[:n], shared_back[n:]),
            hidden_split=(hidden_split[0], hidden_split[1]),
            verdict=verdict,
            transfers=transfers,
        )

    def distances(
        self,
        crossing: Crossing,
        names: tuple[str, str],
        targets: tuple[Tensor, Tensor],
        weights: tuple[Tensor | float, Tensor | float],
    ) -> Terms:
        """Unweighted losses of a crossing: of reconstruction, cycle, adversarial, and what compares populations.

        Parameters
        ----------
        crossing : `Crossing`
            Of `cross`.
        names : (str, str)
            What the terms of the domains are called.
        targets : (tensor, tensor), shape (n, n_pixels)
            The spectra.
        weights : (tensor or float, tensor or float)
            Their inverse errors; 0 for bad pixels.

        Returns
        -------
        dict of tensor, shape ()
            ``rec_*``, ``cyc_*`` and, unless there are no critics, ``gen_*`` of both domains; ``latent`` and
            ``spectra`` if the settings ask for them.

        Examples
        --------
        ::

            terms = parts.distances(crossing, ("synth", "obs"), (x_synth, x_obs), (weight_synth, weight_obs))
        """
        terms = {}
        for kind, made in (("rec", crossing.rec), ("cyc", crossing.cyc)):
            for name, flux, target, weight in zip(names, made, targets, weights, strict=True):
                terms[f"{kind}_{name}"] = losses.distance(flux, target, weight)
        for name, verdict in zip(names, crossing.verdict, strict=False):  # there may be none
            terms[f"gen_{name}"] = losses.generator_loss(verdict, self.settings.adversarial)
        if self.settings.weight_latent:
            terms["latent"] = losses.energy_distance(*(z.flatten(1) for z in crossing.shared_latent))
        if self.settings.weight_spectra:
            least, full = self.settings.synthetic_sigma / self.settings.flux_std, crossing.shared_latent[0].dtype
            of_first, of_second = (
                losses.window_distance(fake.to(full), true.to(full), least)
                for fake, true in zip(crossing.fake, crossing.rec, strict=True)
            )
            terms["spectra"] = of_first + of_second
        return terms

    def judge(self, critics: tuple[Critic, Critic], names: tuple[str, str], transfers: Transfers) -> Terms:
        """Losses of the critics of two domains, and the fraction that they get right.

        Parameters
        ----------
        critics : (`~cyclestarnet.networks.Critic`, `~cyclestarnet.networks.Critic`)
            Of both.
        names : (str, str)
            What the terms of the domains are called.
        transfers : (`Transfer`, `Transfer`)
            Of the autoencoder step.

        Returns
        -------
        dict of tensor, shape ()
            ``critic_*`` of both domains, ``critic_accuracy``, and ``penalty`` if the settings ask for it.

        Examples
        --------
        ::

            terms = parts.judge((critic_synth, critic_obs), ("synth", "obs"), transfers)
        """
        n, kind = len(transfers[0].true), self.settings.adversarial
        matrices: convolutions.Matrices = {}
        answers = [
            self._judge(c, torch.cat([t.true, t.fake]), torch.cat([t.latent_true, t.latent_fake]), matrices)
            for c, t in zip(critics, transfers, strict=True)
        ]
        middle = losses.UNDECIDED[kind]
        right = torch.cat([part for said in answers for part in (said[:n] > middle, said[n:] < middle)]).float().mean()
        terms = {
            f"critic_{name}": losses.critic_loss(said[:n], said[n:], kind)
            for name, said in zip(names, answers, strict=True)
        }
        terms["critic_accuracy"] = right
        if self.settings.critic_penalty:
            terms["penalty"] = reduce(
                add,
                (losses.gradient_penalty(c, t.true, t.latent_true) for c, t in zip(critics, transfers, strict=True)),
            )
        return terms

    def alone(self, branch: Branch, x: Tensor) -> Tensor:
        """Reconstruct spectra of one domain.

        Parameters
        ----------
        branch : `Branch`
            The domain.
        x : tensor, shape (n, n_pixels)
            Standardised spectra.

        Returns
        -------
        tensor, shape (n, n_pixels)

        Examples
        --------
        ::

            rec_synth = parts.alone(synthetic, x_synth)
        """
        matrices: convolutions.Matrices = {}
        own = convolutions.run(branch.encoder, self._maps(x), matrices)
        z = convolutions.run(self.network.encoder_sh, own, matrices).to(self.dtype)
        hidden, hidden_split = convolutions.run(self.network.decoder_sh, z, matrices), None
        if branch.split_encoder is not None and branch.split_decoder is not None:
            split = convolutions.run(branch.split_encoder, own, matrices).to(self.dtype)
            hidden_split = convolutions.run(branch.split_decoder, split, matrices)
        return self._decode(branch, hidden, hidden_split, matrices)

    def _maps(self, spectra: Tensor) -> Maps:
        return self.maps.from_spectra(spectra, self._stride, self.dtype)

    def _encode(
        self, pair: tuple[Branch, Branch], spectra: tuple[Tensor, Tensor], matrices: convolutions.Matrices
    ) -> tuple[Maps, list[Maps]]:
        """Shared latents of two domains, joined, and the hidden maps of each."""
        own = [convolutions.run(b.encoder, self._maps(x), matrices) for b, x in zip(pair, spectra, strict=True)]
        return convolutions.run(self.network.encoder_sh, self.maps.join(*own), matrices), own

    def _decode(
        self, branch: Branch, hidden: Maps, hidden_split: Maps | None, matrices: convolutions.Matrices
    ) -> Tensor:
        both = hidden if hidden_split is None else hidden.beside(hidden_split)
        return convolutions.run(branch.decoder, both, matrices).spectra()

    def _judge(self, critic: Critic, flux: Tensor, latent: Tensor, matrices: convolutions.Matrices) -> Tensor:
        maps = self.maps.from_spectra(flux, self._critic_stride, self.dtype)
        x = convolutions.run(critic.discriminator_x, maps, matrices)
        z = self.maps.from_channels(latent, latent.shape[2], self.dtype)
        z = convolutions.run(critic.discriminator_z, z, matrices)
        features = [maps.channels().to(critic.fc.weight.dtype).flatten(1) for maps in (x, z)]
        return critic.fc(torch.cat(features, dim=1))[:, 0]


def copy_branch(source: Branch, copy: Branch) -> None:
    """Begin a domain as a copy of another.

    Split latents are copied if both have one; else what a split latent feeds stays as it is.

    Parameters
    ----------
    source, copy : `Branch`
        The domain that is copied, and the one that changes; not its critic.

    Examples
    --------
    ::

        copy_branch(synthetic, observed)  # after the warm start
    """
    pairs = [(source.encoder, copy.encoder), (source.decoder, copy.decoder)]
    pairs += [
        (own, other)
        for own, other in ((source.split_encoder, copy.split_encoder), (source.split_decoder, copy.split_decoder))
        if own is not None and other is not None
    ]
    with torch.no_grad():
        for own, other in pairs:
            for value, place in zip(own.state_dict().values(), other.state_dict().values(), strict=True):
                n = min(len(value), len(place))  # a decoder takes the maps of the shared latent first
                place[:n] = value[:n]


class Adaptation(PairTerms):
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

    network: TranslationNetwork

    def __init__(self, network_settings: NetworkSettings, settings: TrainingSettings, n_labels: int = 0):
        super().__init__(network_settings, settings)
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

    @property
    def branches(self) -> tuple[Branch, Branch]:
        """The synthetic domain, which has no split latent, and the observed one."""
        net = self.network
        split = (net.encoder_sp, net.decoder_sp) if net.has_split else ()
        return (
            Branch(net.encoder_synth, net.decoder_synth, self.critic_synth),
            Branch(net.encoder_obs, net.decoder_obs, self.critic_obs, *split),
        )

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

        Returns
        -------
        terms : dict of tensor, shape ()
            ``rec_*``, ``cyc_*`` and, unless there are no critics, ``gen_*`` of both domains; ``latent``,
            ``spectra``, ``labels``, ``label_cycle`` and ``response`` if the settings ask for them.
        transfers : (`Transfer`, `Transfer`)
            Of the synthetic and of the observed domain, for `critic_terms`.

        Examples
        --------
        ::

            terms, transfers = parts.autoencoder_terms(x_synth, x_obs, weight_obs)
            (3 * terms["rec_synth"] + 9 * terms["rec_obs"]).backward()
        """
        matrices: convolutions.Matrices = {}
        crossing = self.cross(*self.branches, x_synth, x_obs, matrices)
        targets, weights = (x_synth.detach(), x_obs), (self._weight_synth, weight_obs)
        terms = self.distances(crossing, SIDES, targets, weights)
        z_synth = crossing.shared_latent[0]
        if self.label_head is not None:
            terms["labels"] = (self.label_head(z_synth) - labels).square().mean()
        if self.label_head is not None and self.settings.weight_label_cycle:
            read = self.label_head(crossing.hidden_back[1].channels().to(z_synth.dtype))
            terms["label_cycle"] = (read - labels).square().mean()
        if x_changed is not None:
            gap = self._gap(x_changed, crossing.hidden_split[1], matrices)
            terms["response"] = losses.distance(gap, crossing.fake[1] - crossing.rec[0], self._weight_synth)
        return terms, crossing.transfers

    def warm_start_terms(self, x_synth: Tensor) -> Terms:
        """Loss of the synthetic autoencoder alone.

        Parameters
        ----------
        x_synth : tensor, shape (n, n_pixels)
            Standardised synthetic spectra.

        Returns
        -------
        dict of tensor, shape ()
            ``rec_synth`` only.

        Examples
        --------
        ::

            parts.warm_start_terms(x_synth)["rec_synth"].backward()
        """
        rec_synth = self.alone(self.branches[0], x_synth)
        return {"rec_synth": losses.distance(rec_synth, x_synth, self._weight_synth)}

    def copy_synth_to_obs(self) -> None:
        """Begin the observed branch as a copy of the synthetic one; what the split latent feeds stays as it is.

        Examples
        --------
        ::

            parts.copy_synth_to_obs()  # after the warm start
        """
        copy_branch(*self.branches)

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
        z, own = self._encode(self.branches, (x_synth, x_obs), matrices)
        hidden = convolutions.run(net.decoder_sh, z[:n].to(self.dtype), matrices)
        hidden_split = None
        if net.has_split:
            split_latent = convolutions.run(net.encoder_sp, own[1], matrices).to(self.dtype)
            hidden_split = convolutions.run(net.decoder_sp, split_latent, matrices)
        translated = self._decode(self.branches[1], hidden, hidden_split, matrices)
        return {"anchors": losses.distance(translated, x_obs, weight_obs)}

    def _gap(self, x_synth: Tensor, hidden_split: Maps | None, matrices: convolutions.Matrices) -> Tensor:
        """What the two decoders make of the latents of synthetic spectra: observed - synthetic."""
        net, (synthetic, observed) = self.network, self.branches
        hidden = convolutions.run(net.encoder_synth, self._maps(x_synth), matrices)
        z = convolutions.run(net.encoder_sh, hidden, matrices)
        hidden = convolutions.run(net.decoder_sh, z.to(self.dtype), matrices)
        made = self._decode(synthetic, hidden, None, matrices)
        return self._decode(observed, hidden, hidden_split, matrices) - made

    @property
    def _weight_synth(self) -> float:
        return self.settings.flux_std / self.settings.synthetic_sigma

    # -- the critic step -------------------------------------------------------
    def critic_terms(self, transfers: Transfers) -> Terms:
        """Losses of both critics and the fraction they get right.

        Parameters
        ----------
        transfers : (`Transfer`, `Transfer`)
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
        return self.judge((self.critic_synth, self.critic_obs), SIDES, transfers)


class SharedAdaptation(PairTerms):
    """All that is trained of any number of domains around one shared latent, none of which needs labels.

    An iteration is of two of them.

    Parameters
    ----------
    network_settings : `~cyclestarnet.NetworkSettings`
        Sizes of the networks.
    settings : `~cyclestarnet.TrainingSettings`
        Which terms there are, and how they are computed. The seed gives the first weights.
    split_latents : mapping of bool
        By the names of the domains: whether spectra of the domain have a split latent.
    base : `~cyclestarnet.networks.SharedNetwork`, optional
        Trained networks of the first of these domains, which stay as they are: only the other domains and
        all critics are trained. Default: there are none.
    like : int, optional
        The domain of ``base`` of which the others begin as copies. Default: the first.

    Attributes
    ----------
    network : `~cyclestarnet.networks.SharedNetwork`
        Encoders and decoders.
    critics : `torch.nn.ModuleList` of `~cyclestarnet.networks.Critic`
        They tell true spectra of a domain from translated ones.
    n_fixed : int
        How many of the domains stay as they are.

    Raises
    ------
    ValueError
        If the settings need labels, or a domain is called "accuracy", as one of the terms.

    Examples
    --------
    >>> from cyclestarnet import NetworkSettings, TrainingSettings
    >>> from cyclestarnet.training.terms import SharedAdaptation
    >>> layers = {"domain": ((4, 7, 4),), "shared": ((4, 7, 4),), "split": ((4, 7, 4),)}
    >>> critics = {"critic_spectrum": ((4, 7, 4),), "critic_latent": ((4, 1, 1),)}
    >>> sizes = NetworkSettings(n_pixels=79, shared_filters=3, split_filters=1, **layers, **critics)
    >>> parts = SharedAdaptation(sizes, TrainingSettings(), {"UVES": False, "APOGEE": True, "GALAH": True})
    >>> len(parts.critics)
    3
    """

    network: SharedNetwork

    def __init__(
        self,
        network_settings: NetworkSettings,
        settings: TrainingSettings,
        split_latents: Mapping[str, bool],
        base: SharedNetwork | None = None,
        *,
        like: int = 0,
    ):
        super().__init__(network_settings, settings)
        for name in NEED_LABELS:
            if getattr(settings, name):
                raise ValueError(f"{name} needs spectra with labels, but a translation is trained without any")
        if "accuracy" in split_latents:
            raise ValueError("a domain cannot be called 'accuracy', as one of the loss terms; choose another name")
        self.names = tuple(split_latents)
        self.n_fixed = 0 if base is None else len(base.domains)
        n_shared, n_split = network_settings.shared_filters, network_settings.split_filters
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = SharedNetwork(network_settings, list(split_latents.values()))
            self.critics = nn.ModuleList(
                Critic(network_settings, n_shared + n_split * split) for split in split_latents.values()
            )
        if base is not None:
            self.network.load_state_dict(base.state_dict(), strict=False)  # of the first domains
            fixed = [self.network.encoder_sh, self.network.decoder_sh, *self.network.domains[: self.n_fixed]]
            for part in fixed:
                part.requires_grad_(False)
            for k in range(self.n_fixed, len(self.names)):
                copy_branch(self.branch(like), self.branch(k))

    def branch(self, number: int) -> Branch:
        """Networks of a domain.

        Parameters
        ----------
        number : int
            Its place among the names.

        Returns
        -------
        `Branch`

        Examples
        --------
        ::

            parts.branch(0).encoder
        """
        own = self.network.domain(number)
        return Branch(own.encoder, own.decoder, self.critic(number), own.split_encoder, own.split_decoder)

    def critic(self, number: int) -> Critic:
        """Critic of a domain.

        Parameters
        ----------
        number : int
            Its place among the names.

        Returns
        -------
        `~cyclestarnet.networks.Critic`

        Examples
        --------
        ::

            parts.critic(0).fc
        """
        critic = self.critics[number]
        assert isinstance(critic, Critic)
        return critic

    def autoencoder_parameters(self) -> list[nn.Parameter]:
        """Parameters that the autoencoder step trains.

        Examples
        --------
        ::

            optimizer = torch.optim.Adam(parts.autoencoder_parameters(), 1e-4)
        """
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def critic_parameters(self) -> list[nn.Parameter]:
        """Parameters that the critic step trains.

        Examples
        --------
        ::

            optimizer = torch.optim.Adam(parts.critic_parameters(), 1e-4)
        """
        return list(self.critics.parameters())

    def autoencoder_terms(
        self, pair: tuple[int, int], spectra: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]
    ) -> tuple[Terms, Transfers]:
        """Unweighted loss terms of the autoencoder step of two domains, and what their critics need.

        Parameters
        ----------
        pair : (int, int)
            The domains, by their places among the names.
        spectra : (tensor, tensor), shape (n, n_pixels)
            Standardised spectra of both; finite everywhere.
        weights : (tensor, tensor), shape (n, n_pixels)
            Their inverse errors in the same units; 0 for bad pixels.

        Returns
        -------
        terms : dict of tensor, shape ()
            ``rec_NAME``, ``cyc_NAME`` and, unless there are no critics, ``gen_NAME`` of both; ``latent`` and
            ``spectra`` if the settings ask for them.
        transfers : (`Transfer`, `Transfer`)
            For `critic_terms`.

        Examples
        --------
        ::

            terms, transfers = parts.autoencoder_terms((0, 2), (x_uves, x_galah), (weight_uves, weight_galah))
        """
        crossing = self.cross(self.branch(pair[0]), self.branch(pair[1]), *spectra, {})
        return self.distances(crossing, self._names(pair), spectra, weights), crossing.transfers

    def critic_terms(self, pair: tuple[int, int], transfers: Transfers) -> Terms:
        """Losses of the critics of two domains and the fraction they get right.

        Parameters
        ----------
        pair : (int, int)
            The domains, by their places among the names.
        transfers : (`Transfer`, `Transfer`)
            Of the autoencoder step.

        Returns
        -------
        dict of tensor, shape ()
            ``critic_NAME`` of both, ``critic_accuracy``, and ``penalty`` if the settings ask for it.

        Examples
        --------
        ::

            critic_terms = parts.critic_terms((0, 2), transfers)
        """
        return self.judge((self.critic(pair[0]), self.critic(pair[1])), self._names(pair), transfers)

    def warm_start_terms(self, x: Tensor, weight: Tensor) -> Terms:
        """Loss of the autoencoder of the first domain alone.

        Parameters
        ----------
        x, weight : tensor, shape (n, n_pixels)
            Standardised spectra, and their inverse errors.

        Returns
        -------
        dict of tensor, shape ()
            ``rec_NAME`` only.

        Examples
        --------
        ::

            parts.warm_start_terms(x_uves, weight_uves)["rec_UVES"].backward()
        """
        return {f"rec_{self.names[0]}": losses.distance(self.alone(self.branch(0), x), x, weight)}

    def copy_first(self) -> None:
        """Begin all other domains as copies of the first one, as `copy_branch`.

        Examples
        --------
        ::

            parts.copy_first()  # after the warm start
        """
        for k in range(1, len(self.names)):
            copy_branch(self.branch(0), self.branch(k))

    def _names(self, pair: tuple[int, int]) -> tuple[str, str]:
        return self.names[pair[0]], self.names[pair[1]]


def _joined(shared_latent: Tensor, split_latent: Tensor | None) -> Tensor:
    return shared_latent if split_latent is None else torch.cat([shared_latent, split_latent], dim=1)
