"""The translation networks: plain `torch.nn` modules, as the paper describes them.

This is the readable truth. `cyclestarnet.networks.convolutions` computes the same
functions by matrix products, which pays in bfloat16, and is tested against it.

Arrays are (batch, channels, positions). Sub-networks are `torch.nn.Sequential`
numbered by layer, activations included, as in the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from astropy.table import QTable
from torch import Tensor, nn

from cyclestarnet.exceptions import GridError

__all__ = ["Critic", "DomainNetwork", "NetworkSettings", "SharedNetwork", "TranslationNetwork", "initialise"]

Layers = tuple[tuple[int, int, int], ...]
"""(filters, kernel, stride) of each layer."""


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes of every sub-network; the defaults are the paper's (S1, Table A1).

    Each layer is (filters, kernel, stride). Decoders mirror the encoders.

    Parameters
    ----------
    n_pixels : int
        Length of a spectrum. Only lengths that all strides fit are possible;
        others raise and name the nearest that fit.
    domain : tuple of (filters, kernel, stride)
        Convolutions that each domain's encoder begins with.
    shared : tuple of (filters, kernel, stride)
        Convolutions of the shared encoder, which follow those of either domain.
    split : tuple of (filters, kernel, stride)
        Convolutions of the split encoder, which follow those of the observed
        domain. Their strides must lead to as many positions as those of ``shared``.
    shared_filters : int
        Channels of the shared latent.
    split_filters : int
        Channels of the split latent; 0: there is none.
    critic_spectrum : tuple of (filters, kernel, stride)
        Convolutions by which critics look at a spectrum.
    critic_latent : tuple of (filters, kernel, stride)
        Convolutions by which critics look at its latents.
    slope : float
        Slope of the leaky ReLU at negative values.
    latent_norm : bool
        Normalise each latent channel over its positions (instance normalisation without affine).

    Raises
    ------
    GridError
        If the pixels do not fit the strides, or are too few for the critics.
    ValueError
        If a layer is no triple of positive integers or has gaps between its
        kernels, or if the latents differ in length.

    Examples
    --------
    >>> from cyclestarnet.networks import NetworkSettings
    >>> NetworkSettings().latent_length
    24
    >>> NetworkSettings(7214)
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.GridError: 7214 pixels do not fit the strides of the network; the nearest lengths ...
    """

    n_pixels: int = 7167
    domain: Layers = ((32, 7, 4), (64, 7, 4))
    shared: Layers = ((128, 7, 4), (256, 7, 2), (512, 7, 2))
    split: Layers = ((32, 7, 4), (32, 7, 2), (32, 7, 2))
    shared_filters: int = 25
    split_filters: int = 4
    critic_spectrum: Layers = ((16, 7, 4), (32, 7, 4), (64, 7, 4), (128, 7, 4), (256, 7, 4))
    critic_latent: Layers = ((32, 1, 1), (64, 1, 1), (128, 1, 1), (256, 1, 1), (512, 1, 1))
    slope: float = 0.1
    latent_norm: bool = True

    def __post_init__(self) -> None:
        for name in ("domain", "shared", "split", "critic_spectrum", "critic_latent"):
            layers = tuple(tuple(int(v) for v in layer) for layer in getattr(self, name))
            if any(len(layer) != 3 or min(layer) < 1 or layer[1] < layer[2] for layer in layers):
                raise ValueError(
                    f"{name}: each layer is (filters, kernel, stride), 1 or more, kernel >= stride: {layers}"
                )
            object.__setattr__(self, name, layers)
        if self.shared_filters < 1 or self.split_filters < 0:
            raise ValueError("shared_filters must be at least 1 and split_filters at least 0")
        if not _fits(self.n_pixels, self._path) or self.latent_length < self._least_latent:
            below, above = self._nearest_lengths()
            nearest = f"the shortest length that does is {above}"
            if below is not None:
                nearest = f"the nearest lengths that do are {below} and {above}"
            raise GridError(f"{self.n_pixels} pixels do not fit the strides of the network; {nearest}")
        split = self.domain + self.split
        if self.split_filters and (
            not _fits(self.n_pixels, split) or _out_length(self.n_pixels, split) != self.latent_length
        ):
            raise ValueError("the split encoder must fit the same lengths and positions as the shared encoder")
        if _out_length(self.n_pixels, self.critic_spectrum) < 1:
            raise GridError(f"{self.n_pixels} pixels are too few for the critic's {len(self.critic_spectrum)} layers")

    @property
    def _path(self) -> Layers:
        return self.domain + self.shared

    @property
    def latent_length(self) -> int:
        """Positions of the latent arrays."""
        return _out_length(self.n_pixels, self._path)

    @property
    def _least_latent(self) -> int:
        """Fewest positions of a latent: a single one has no scatter to normalise."""
        return 2 if self.latent_norm else 1

    def _nearest_lengths(self) -> tuple[int | None, int]:
        """Longest fitting length below ``n_pixels`` (None if there is none) and shortest above."""
        latent, below = self._least_latent, None
        while True:
            length = latent
            for _, kernel, stride in reversed(self._path):
                length = (length - 1) * stride + kernel
            if length > self.n_pixels:
                return below, length
            below, latent = length, latent + 1

    def to_dict(self) -> dict:
        """Return the settings as plain data, for files.

        Returns
        -------
        dict
            ``NetworkSettings(**settings.to_dict())`` equals ``settings``.

        Examples
        --------
        >>> from cyclestarnet.networks import NetworkSettings
        >>> NetworkSettings().to_dict()["shared_filters"]
        25
        """
        return asdict(self)

    def to_table(self) -> QTable:
        """Make a table of all layers (S1, Table A1).

        Returns
        -------
        `~astropy.table.QTable`
            A row per layer: ``network``, such as ``"E_synth"``, ``"D_sh"`` or ``"C_obs"``, the critics' with what they
            look at; ``layer``; ``filters``, ``kernel`` and ``stride``; ``length``, the positions of its result; and
            ``parameters``.

        Examples
        --------
        >>> from cyclestarnet.networks import NetworkSettings
        >>> print(NetworkSettings().to_table()[:5])
        network    layer    filters kernel stride length parameters
        ------- ----------- ------- ------ ------ ------ ----------
        E_synth convolution      32      7      4   1791        256
        E_synth convolution      64      7      4    447      14400
          E_obs convolution      32      7      4   1791        256
          E_obs convolution      64      7      4    447      14400
           E_sh convolution     128      7      4    111      57472
        """
        rows: list[tuple] = []

        def down(name: str, n_in: int, length: int, layers: Layers) -> tuple[int, int]:
            for n_out, kernel, stride in layers:
                length = _out_length(length, ((n_out, kernel, stride),))
                weights = n_out * (n_in * kernel + 1)
                rows.append((name, "convolution", n_out, kernel, stride, length, weights))
                n_in = n_out
            return n_in, length

        def up(name: str, n_in: int, length: int, layers: Layers) -> tuple[int, int]:
            for n_out, kernel, stride in reversed(layers):
                length = (length - 1) * stride + kernel
                weights = n_out * (n_in * kernel + 1)
                rows.append((name, "transposed convolution", n_out, kernel, stride, length, weights))
                n_in = n_out
            return n_in, length

        latents = {"sh": (self.shared, self.shared_filters), "sp": (self.split, self.split_filters)}
        latents = {branch: own for branch, own in latents.items() if own[1]}
        for domain in ("synth", "obs"):
            width, length = down(f"E_{domain}", 1, self.n_pixels, self.domain)
        for branch, (layers, filters) in latents.items():
            down(f"E_{branch}", *down(f"E_{branch}", width, length, layers), ((filters, 1, 1),))
        widths = {}
        for branch, (layers, filters) in latents.items():
            widths[branch], _ = up(f"D_{branch}", filters, self.latent_length, layers)
        for domain, n_in in (("synth", widths["sh"]), ("obs", sum(widths.values()))):
            down(f"D_{domain}", *up(f"D_{domain}", n_in, length, self.domain), ((1, 1, 1),))
        for domain, filters in (("synth", self.shared_filters), ("obs", self.shared_filters + self.split_filters)):
            n_x, length_x = down(f"C_{domain}, spectrum", 1, self.n_pixels, self.critic_spectrum)
            n_z, length_z = down(f"C_{domain}, latent", filters, self.latent_length, self.critic_latent)
            joined = n_x * length_x + n_z * length_z
            rows.append((f"C_{domain}", "fully connected", 1, 1, 1, 1, joined + 1))
        return QTable(rows=rows, names=("network", "layer", "filters", "kernel", "stride", "length", "parameters"))


def _out_length(length: int, layers: Layers) -> int:
    for _, kernel, stride in layers:
        length = (length - kernel) // stride + 1
    return length


def _fits(length: int, layers: Layers) -> bool:
    """Whether no convolution leaves pixels over, so that the transposed one restores the length."""
    for _, kernel, stride in layers:
        if length < kernel or (length - kernel) % stride:
            return False
        length = (length - kernel) // stride + 1
    return True


def _encoder(n_in: int, layers: Layers, slope: float) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for n_out, kernel, stride in layers:
        modules += [nn.Conv1d(n_in, n_out, kernel, stride), nn.LeakyReLU(slope)]
        n_in = n_out
    return modules


def _decoder(n_in: int, layers: Layers, slope: float) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for n_out, kernel, stride in reversed(layers):
        modules += [nn.ConvTranspose1d(n_in, n_out, kernel, stride), nn.LeakyReLU(slope)]
        n_in = n_out
    return modules


def _latent(n_in: int, n_out: int, norm: bool) -> list[nn.Module]:
    return [nn.Conv1d(n_in, n_out, 1), *([nn.InstanceNorm1d(n_out)] if norm else [])]


def initialise(module: nn.Module) -> None:
    """Set Xavier-uniform weights and biases of 0.01, as in the paper's repository.

    Parameters
    ----------
    module : `torch.nn.Module`
        Changed in place: its convolutions and linear layers. Weights are drawn
        from torch's global generator.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks.translation import initialise
    >>> layer = torch.nn.Linear(3, 1)
    >>> initialise(layer)
    >>> layer.bias.item()  # doctest: +ELLIPSIS
    0.00999...
    """
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.constant_(part.bias, 0.01)


class TranslationNetwork(nn.Module):
    """Encoders and decoders of both domains (S1, Figure 2 and Table A1).

    The methods take and give standardised spectra (n, n_pixels); latents are
    (n, filters, latent_length). All are tensors in the precision and on the
    device of the weights, and differentiable. A NaN in a spectrum makes all
    of its results NaN, but not those of other spectra.

    Parameters
    ----------
    settings : `NetworkSettings`
        Sizes. The weights are drawn from torch's global generator.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks import NetworkSettings, TranslationNetwork
    >>> layers = {"domain": [(4, 7, 4)], "shared": [(8, 7, 2)], "split": [(4, 7, 2)], "critic_spectrum": [(4, 7, 4)]}
    >>> settings = NetworkSettings(103, **layers)
    >>> network = TranslationNetwork(settings)
    >>> observed = torch.randn(2, 103)
    >>> shared_latent, split_latent = network.encode_obs(observed)
    >>> shared_latent.shape, split_latent.shape
    (torch.Size([2, 25, 10]), torch.Size([2, 4, 10]))
    >>> torch.equal(network.obs_to_synth(observed), network.decode_synth(shared_latent))
    True
    """

    def __init__(self, settings: NetworkSettings):
        super().__init__()
        self.settings = s = settings
        width, widest = s.domain[-1][0], s.shared[-1][0]
        narrow = s.split_filters > 0
        self.encoder_synth = nn.Sequential(*_encoder(1, s.domain, s.slope))
        self.encoder_obs = nn.Sequential(*_encoder(1, s.domain, s.slope))
        self.encoder_sh = nn.Sequential(
            *_encoder(width, s.shared, s.slope), *_latent(widest, s.shared_filters, s.latent_norm)
        )
        self.decoder_sh = nn.Sequential(*_decoder(s.shared_filters, s.shared, s.slope))
        n_shared, n_split = s.shared[0][0], 0
        if narrow:
            n_split = s.split[0][0]
            self.encoder_sp = nn.Sequential(
                *_encoder(width, s.split, s.slope), *_latent(s.split[-1][0], s.split_filters, s.latent_norm)
            )
            self.decoder_sp = nn.Sequential(*_decoder(s.split_filters, s.split, s.slope))
        last = s.domain[0][0]
        self.decoder_synth = nn.Sequential(*_decoder(n_shared, s.domain, s.slope), nn.Conv1d(last, 1, 1))
        self.decoder_obs = nn.Sequential(*_decoder(n_shared + n_split, s.domain, s.slope), nn.Conv1d(last, 1, 1))
        initialise(self)

    @property
    def has_split(self) -> bool:
        """Whether the observed domain has a latent of its own."""
        return self.settings.split_filters > 0

    @property
    def split_latents(self) -> tuple[bool, bool]:
        """Whether the synthetic and the observed domain have a split latent."""
        return False, self.has_split

    def encode(self, flux: Tensor, domain: int) -> tuple[Tensor, Tensor | None]:
        """Latents of spectra of a domain, as `SharedNetwork.encode`.

        Parameters
        ----------
        flux : Tensor, shape (n, n_pixels)
            Standardised flux.
        domain : int
            0: synthetic, 1: observed.

        Returns
        -------
        Tensor, shape (n, shared_filters, latent_length)
            Shared latents.
        Tensor, shape (n, split_filters, latent_length), or None
            Split latents.

        Examples
        --------
        ::

            shared_latent, _ = network.encode(synthetic, 0)
        """
        return self.encode_obs(flux) if domain else (self.encode_synth(flux), None)

    def decode(self, shared_latent: Tensor, split_latent: Tensor | None, domain: int) -> Tensor:
        """Spectra of latents, as `SharedNetwork.decode`.

        Parameters
        ----------
        shared_latent : Tensor, shape (n, shared_filters, latent_length)
            Of spectra of either domain.
        split_latent : Tensor, shape (n, split_filters, latent_length), or None
            Of observed spectra.
        domain : int
            0: synthetic, 1: observed.

        Returns
        -------
        Tensor, shape (n, n_pixels)
            Standardised flux.

        Examples
        --------
        ::

            reconstruction = network.decode(*network.encode(observed, 1), 1)
        """
        return self.decode_obs(shared_latent, split_latent) if domain else self.decode_synth(shared_latent)

    def encode_synth(self, flux: Tensor) -> Tensor:
        """Shared latents of synthetic spectra.

        Parameters
        ----------
        flux : Tensor, shape (n, n_pixels)
            Standardised synthetic flux.

        Returns
        -------
        Tensor, shape (n, shared_filters, latent_length)

        Examples
        --------
        ::

            shared_latent = network.encode_synth(synthetic)
        """
        return self.encoder_sh(self.encoder_synth(flux[:, None]))

    def encode_obs(self, flux: Tensor) -> tuple[Tensor, Tensor | None]:
        """Shared and split latents of observed spectra.

        Parameters
        ----------
        flux : Tensor, shape (n, n_pixels)
            Standardised observed flux.

        Returns
        -------
        Tensor, shape (n, shared_filters, latent_length)
            What both domains have in common: the labels, in whatever form.
        Tensor, shape (n, split_filters, latent_length), or None
            What observed spectra have besides, such as the line-spread
            function. None of networks without a split latent.

        Examples
        --------
        ::

            shared_latent, split_latent = network.encode_obs(observed)
        """
        hidden = self.encoder_obs(flux[:, None])
        return self.encoder_sh(hidden), self.encoder_sp(hidden) if self.has_split else None

    def decode_synth(self, shared_latent: Tensor) -> Tensor:
        """Synthetic spectra of shared latents.

        Parameters
        ----------
        shared_latent : Tensor, shape (n, shared_filters, latent_length)
            Of spectra of either domain.

        Returns
        -------
        Tensor, shape (n, n_pixels)
            Standardised flux.

        Examples
        --------
        ::

            reconstruction = network.decode_synth(network.encode_synth(synthetic))
        """
        return self.decoder_synth(self.decoder_sh(shared_latent))[:, 0]

    def decode_obs(self, shared_latent: Tensor, split_latent: Tensor | None) -> Tensor:
        """Observed spectra of shared and split latents.

        Parameters
        ----------
        shared_latent : Tensor, shape (n, shared_filters, latent_length)
            Of spectra of either domain.
        split_latent : Tensor, shape (n, split_filters, latent_length), or None
            Of observed spectra. Networks without a split latent do not look at it.

        Returns
        -------
        Tensor, shape (n, n_pixels)
            Standardised flux.

        Examples
        --------
        ::

            reconstruction = network.decode_obs(*network.encode_obs(observed))
        """
        hidden = self.decoder_sh(shared_latent)
        if self.has_split:
            hidden = torch.cat([hidden, self.decoder_sp(split_latent)], dim=1)
        return self.decoder_obs(hidden)[:, 0]

    def synth_to_obs(self, flux: Tensor, split_latent: Tensor | None) -> Tensor:
        """Translate synthetic spectra with the split latents of observed ones.

        Parameters
        ----------
        flux : Tensor, shape (n, n_pixels)
            Standardised synthetic flux.
        split_latent : Tensor, shape (n, split_filters, latent_length), or None
            As in `decode_obs`, one for each spectrum.

        Returns
        -------
        Tensor, shape (n, n_pixels)
            Standardised observed flux.

        Examples
        --------
        ::

            translated = network.synth_to_obs(synthetic, network.encode_obs(observed)[1])
        """
        return self.decode_obs(self.encode_synth(flux), split_latent)

    def obs_to_synth(self, flux: Tensor) -> Tensor:
        """Translate observed spectra.

        Parameters
        ----------
        flux : Tensor, shape (n, n_pixels)
            Standardised observed flux.

        Returns
        -------
        Tensor, shape (n, n_pixels)
            Standardised synthetic flux.

        Examples
        --------
        ::

            translated = network.obs_to_synth(observed)
        """
        return self.decode_synth(self.encode_obs(flux)[0])


class DomainNetwork(nn.Module):
    """What a domain has of its own: an encoder, a decoder, and perhaps those of a split latent.

    Parameters
    ----------
    settings : `NetworkSettings`
        Sizes. The weights are drawn from torch's global generator.
    split_latent : bool
        Whether spectra of the domain have a latent of their own, besides the shared one.

    Attributes
    ----------
    encoder, decoder : `torch.nn.Sequential`
        Next to the spectra; the decoder takes what the shared and the split decoder make, joined.
    split_encoder, split_decoder : `torch.nn.Sequential` or None
        Of the split latent.

    Examples
    --------
    >>> from cyclestarnet.networks import DomainNetwork, NetworkSettings
    >>> layers = {"domain": [(4, 7, 4)], "shared": [(8, 7, 2)], "split": [(4, 7, 2)], "critic_spectrum": [(4, 7, 4)]}
    >>> domain = DomainNetwork(NetworkSettings(103, **layers), split_latent=False)
    >>> domain.split_encoder is None
    True
    """

    def __init__(self, settings: NetworkSettings, split_latent: bool):
        super().__init__()
        s = settings
        self.encoder = nn.Sequential(*_encoder(1, s.domain, s.slope))
        self.split_encoder: nn.Sequential | None = None
        self.split_decoder: nn.Sequential | None = None
        n_hidden = s.shared[0][0]
        if split_latent:
            latent = _latent(s.split[-1][0], s.split_filters, s.latent_norm)
            self.split_encoder = nn.Sequential(*_encoder(s.domain[-1][0], s.split, s.slope), *latent)
            self.split_decoder = nn.Sequential(*_decoder(s.split_filters, s.split, s.slope))
            n_hidden += s.split[0][0]
        self.decoder = nn.Sequential(*_decoder(n_hidden, s.domain, s.slope), nn.Conv1d(s.domain[0][0], 1, 1))


class SharedNetwork(nn.Module):
    """Encoders and decoders of any number of domains around one shared latent.

    The paper's network (S1, Figure 2) has two domains, of which the observed one has a split latent:
    `TranslationNetwork`. Here every domain may have one. The methods take and give standardised
    spectra (n, n_pixels); latents are (n, filters, latent_length).

    Parameters
    ----------
    settings : `NetworkSettings`
        Sizes, the same in all domains. The weights are drawn from torch's global generator.
    split_latents : sequence of bool
        Whether the spectra of each domain have a split latent.

    Attributes
    ----------
    domains : `torch.nn.ModuleList` of `DomainNetwork`
        What each has of its own.
    encoder_sh, decoder_sh : `torch.nn.Sequential`
        The inner encoder and decoder, which all share.

    Raises
    ------
    ValueError
        If a domain shall have a split latent, but the settings have no filters for it.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks import NetworkSettings, SharedNetwork
    >>> layers = {"domain": [(4, 7, 4)], "shared": [(8, 7, 2)], "split": [(4, 7, 2)], "critic_spectrum": [(4, 7, 4)]}
    >>> network = SharedNetwork(NetworkSettings(103, **layers), [True, False, True])
    >>> shared_latent, split_latent = network.encode(torch.randn(2, 103), 0)
    >>> shared_latent.shape, split_latent.shape
    (torch.Size([2, 25, 10]), torch.Size([2, 4, 10]))
    >>> network.decode(shared_latent, None, 1).shape
    torch.Size([2, 103])
    """

    def __init__(self, settings: NetworkSettings, split_latents: Sequence[bool]):
        super().__init__()
        if any(split_latents) and not settings.split_filters:
            raise ValueError("a domain shall have a split latent, but split_filters of the networks is 0")
        self.settings = s = settings
        self.domains = nn.ModuleList(DomainNetwork(s, split) for split in split_latents)
        latent = _latent(s.shared[-1][0], s.shared_filters, s.latent_norm)
        self.encoder_sh = nn.Sequential(*_encoder(s.domain[-1][0], s.shared, s.slope), *latent)
        self.decoder_sh = nn.Sequential(*_decoder(s.shared_filters, s.shared, s.slope))
        domains = [self.domain(k) for k in range(len(self.domains))]
        split = [part for own in domains for part in (own.split_encoder, own.split_decoder) if part is not None]
        # in the order of `TranslationNetwork`: from one seed both draw the same weights
        encoders, decoders = [own.encoder for own in domains], [own.decoder for own in domains]
        for part in (*encoders, self.encoder_sh, self.decoder_sh, *split, *decoders):
            initialise(part)

    def domain(self, number: int) -> DomainNetwork:
        """What a domain has of its own.

        Parameters
        ----------
        number : int
            Number of the domain.

        Returns
        -------
        `DomainNetwork`

        Examples
        --------
        ::

            encoder = network.domain(0).encoder
        """
        own = self.domains[number]
        assert isinstance(own, DomainNetwork)
        return own

    def of(self, domains: Sequence[int]) -> SharedNetwork:
        """The network of some of the domains.

        Parameters
        ----------
        domains : sequence of int
            Their numbers, in the order that they shall have.

        Returns
        -------
        `SharedNetwork`
            Its weights are the same tensors, not copies.

        Examples
        --------
        ::

            pair = network.of((0, 2))
        """
        with torch.device("meta"):
            part = SharedNetwork(self.settings, [self.split_latents[k] for k in domains])
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith("domains.")}
        for place, k in enumerate(domains):
            weights |= {f"domains.{place}.{name}": value for name, value in self.domain(k).state_dict().items()}
        part.load_state_dict(weights, assign=True)
        return part.eval()

    @property
    def split_latents(self) -> tuple[bool, ...]:
        """Whether each domain has a split latent."""
        return tuple(self.domain(k).split_encoder is not None for k in range(len(self.domains)))

    def encode(self, flux: Tensor, domain: int) -> tuple[Tensor, Tensor | None]:
        """Latents of spectra of a domain.

        Parameters
        ----------
        flux : Tensor, shape (n, n_pixels)
            Standardised flux.
        domain : int
            Number of the domain.

        Returns
        -------
        Tensor, shape (n, shared_filters, latent_length)
            What all domains have in common.
        Tensor, shape (n, split_filters, latent_length), or None
            What spectra of this domain have besides; None if it has no split latent.

        Examples
        --------
        ::

            shared_latent, split_latent = network.encode(flux, 0)
        """
        own = self.domain(domain)
        hidden = own.encoder(flux[:, None])
        return self.encoder_sh(hidden), None if own.split_encoder is None else own.split_encoder(hidden)

    def decode(self, shared_latent: Tensor, split_latent: Tensor | None, domain: int) -> Tensor:
        """Spectra of a domain.

        Parameters
        ----------
        shared_latent : Tensor, shape (n, shared_filters, latent_length)
            Of spectra of any domain.
        split_latent : Tensor, shape (n, split_filters, latent_length), or None
            Of spectra of this domain. One without a split latent does not look at it.
        domain : int
            Number of the domain.

        Returns
        -------
        Tensor, shape (n, n_pixels)
            Standardised flux.

        Examples
        --------
        ::

            translated = network.decode(network.encode(flux, 0)[0], None, 1)
        """
        own, hidden = self.domain(domain), self.decoder_sh(shared_latent)
        if own.split_decoder is not None:
            hidden = torch.cat([hidden, own.split_decoder(split_latent)], dim=1)
        return own.decoder(hidden)[:, 0]


class Critic(nn.Module):
    """Tells within-domain reconstructions from transfers by (spectrum, latent) pairs; returns logits.

    Parameters
    ----------
    settings : `NetworkSettings`
        Sizes. The weights are drawn from torch's global generator.
    n_latent : int
        Channels of the latent: shared filters, and split filters in the observed domain.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks import Critic, NetworkSettings
    >>> layers = {"domain": [(4, 7, 4)], "shared": [(8, 7, 2)], "split": [(4, 7, 2)], "critic_spectrum": [(4, 7, 4)]}
    >>> settings = NetworkSettings(103, **layers)
    >>> critic = Critic(settings, settings.shared_filters)
    >>> critic(torch.randn(2, 103), torch.randn(2, 25, 10)).shape
    torch.Size([2])
    """

    def __init__(self, settings: NetworkSettings, n_latent: int):
        super().__init__()
        s = settings
        self.discriminator_x = nn.Sequential(*_encoder(1, s.critic_spectrum, s.slope))
        self.discriminator_z = nn.Sequential(*_encoder(n_latent, s.critic_latent, s.slope))
        n_x = s.critic_spectrum[-1][0] * _out_length(s.n_pixels, s.critic_spectrum)
        n_z = s.critic_latent[-1][0] * _out_length(s.latent_length, s.critic_latent)
        self.fc = nn.Linear(n_x + n_z, 1)
        initialise(self)

    def forward(self, flux: Tensor, latent: Tensor) -> Tensor:
        """Logits that spectra and latents are those of a reconstruction, not of a transfer.

        Parameters
        ----------
        flux : Tensor, shape (n, n_pixels)
            Standardised.
        latent : Tensor, shape (n, n_latent, latent_length)
            Of the same spectra: the shared latent, joined with the split one
            in the observed domain.

        Returns
        -------
        Tensor, shape (n,)
            Positive for what looks like a reconstruction.

        Examples
        --------
        ::

            probability = torch.sigmoid(critic(flux, latent))
        """
        x = self.discriminator_x(flux[:, None]).flatten(1)
        z = self.discriminator_z(latent).flatten(1)
        return self.fc(torch.cat([x, z], dim=1))[:, 0]
