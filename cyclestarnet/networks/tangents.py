"""Derivatives of the networks by forward tangents: one column of the Jacobian per label, all columns at once.

The networks themselves run as they are, in their own precision, and tell the
slopes of their activations. Tangents then need only the linear parts of the
layers, as products of matrices in the rows of `cyclestarnet.networks.convolutions`, and
may do with bfloat16: a Jacobian that is right to 0.5 % leads to the same
optimum, because the residuals are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclestarnet.networks.convolutions import RowMaps, joined_rows, row_reaches
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.translation import Layers, TranslationNetwork

__all__ = ["has_fast_bfloat16", "linearise_emulator", "linearise_split", "linearise_translation"]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are faster than those of float32 there.

    Parameters
    ----------
    device : torch.device
        The processor, or a GPU.

    Returns
    -------
    bool

    Examples
    --------
    ::

        dtype = torch.bfloat16 if has_fast_bfloat16(torch.device("cpu")) else torch.float32
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def linearise_emulator(emulator: Emulator, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Synthetic flux and its derivatives with respect to the labels.

    Parameters
    ----------
    emulator : `~cyclestarnet.networks.Emulator`
        Labels → synthetic flux.
    labels : Tensor, shape (n, n_labels)
        In their own units, in the precision of the emulator. Call this under
        `torch.no_grad`.

    Returns
    -------
    Tensor, shape (n, n_pixels)
        Normalised flux.
    Tensor, shape (n, n_labels, n_pixels)
        Its derivatives, per unit of each label.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks import Emulator
    >>> from cyclestarnet.networks.tangents import linearise_emulator
    >>> emulator = Emulator([3500, 0], [6000, 4], n_pixels=50, hidden=(8,)).requires_grad_(False)
    >>> labels = torch.tensor([[4500.0, 2.0]])
    >>> flux, slopes = linearise_emulator(emulator, labels)
    >>> flux.shape, slopes.shape
    (torch.Size([1, 50]), torch.Size([1, 2, 50]))
    """
    x = (labels - emulator.lower) / (emulator.upper - emulator.lower) - 0.5
    slopes = torch.diag(1 / (emulator.upper - emulator.lower)).expand(len(labels), -1, -1)
    for layer in emulator.layers:
        if isinstance(layer, nn.Linear):
            x, slopes = layer(x), slopes @ layer.weight.T
        else:
            x, factor = _activation(layer, x)
            slopes = slopes * factor[:, None]
    return x, slopes


def _activation(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of an elementwise function."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        (slope,) = torch.autograd.grad(y.sum(), leaf)
    return y.detach(), slope


def linearise_split(
    network: TranslationNetwork, split_latent: Tensor, slopes: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Send split latents through the split decoder, with tangents.

    Parameters
    ----------
    network : `~cyclestarnet.networks.TranslationNetwork`
        One that has a split latent.
    split_latent : Tensor, shape (n, split_filters, latent_length)
        In the precision of the network.
    slopes : Tensor, shape (n, d, split_filters, latent_length)
        Derivatives of ``split_latent`` with respect to d parameters.
    dtype : torch.dtype
        Precision of the tangents' products.

    Returns
    -------
    Tensor, shape (n, channels, positions)
        Output of the split decoder, in the precision of the network.
    Tensor, shape (n, d, channels, positions)
        Its derivatives, in ``dtype``.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks import NetworkSettings, TranslationNetwork
    >>> from cyclestarnet.networks.tangents import linearise_split
    >>> layers = {"domain": [(4, 7, 4)], "shared": [(8, 7, 2)], "split": [(4, 7, 2)], "critic_spectrum": [(4, 7, 4)]}
    >>> network = TranslationNetwork(NetworkSettings(103, **layers)).requires_grad_(False)
    >>> hidden, slopes = linearise_split(network, torch.randn(1, 4, 10), torch.randn(1, 2, 4, 10), torch.float32)
    >>> hidden.shape, slopes.shape
    (torch.Size([1, 4, 25]), torch.Size([1, 2, 4, 25]))
    """
    padded = _padded_pixels(network) // _stride(network.settings.domain + network.settings.split)
    tangents = RowMaps.from_channels(slopes.flatten(0, 1), padded, dtype)
    hidden, tangents = _push(network.decoder_sp, split_latent, tangents)
    return hidden, tangents.channels().unflatten(0, slopes.shape[:2])


def linearise_translation(
    network: TranslationNetwork,
    flux: Tensor,
    slopes: Tensor | None,
    hidden_split: Tensor | None,
    dtype: torch.dtype,
    split_slopes: Tensor | None = None,
    *,
    residual: bool = False,
) -> tuple[Tensor, Tensor]:
    """Translate standardised synthetic spectra to the observed domain, with tangents.

    Parameters
    ----------
    network : `~cyclestarnet.networks.TranslationNetwork`
        Synthetic → observed.
    flux : Tensor, shape (n, n_pixels)
        Standardised synthetic flux, in the precision of the network.
    slopes : Tensor, shape (n, d, n_pixels), or None
        Derivatives of ``flux`` with respect to d parameters. None: only those
        of ``hidden_split`` are of interest.
    hidden_split : Tensor, shape (n, channels, positions), or None
        Output of the split decoder; None of networks without a split latent.
    dtype : torch.dtype
        Precision of the tangents' products.
    split_slopes : Tensor, shape (n, k, channels, positions), optional
        Derivatives of ``hidden_split`` with respect to k parameters of its
        own. Default: it does not depend on any.
    residual : bool, optional
        In the residual form, ``flux`` + observed decoder − synthetic decoder;
        encoder and shared decoder run once for both. Default: the paper's form.

    Returns
    -------
    Tensor, shape (n, n_pixels)
        Standardised, in the precision of the network.
    Tensor, shape (n, d + k, n_pixels)
        Its derivatives, in the precision of ``flux``.

    Raises
    ------
    ValueError
        If there is nothing to differentiate by.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks import NetworkSettings, TranslationNetwork
    >>> from cyclestarnet.networks.tangents import linearise_translation
    >>> layers = {"domain": [(4, 7, 4)], "shared": [(8, 7, 2)], "split": [(4, 7, 2)], "critic_spectrum": [(4, 7, 4)]}
    >>> network = TranslationNetwork(NetworkSettings(103, **layers)).requires_grad_(False)
    >>> hidden_split = network.decoder_sp(torch.randn(1, 4, 10))
    >>> flux, slopes = torch.randn(1, 103), torch.randn(1, 3, 103)
    >>> observed, observed_slopes = linearise_translation(network, flux, slopes, hidden_split, torch.float32)
    >>> observed_slopes.shape
    torch.Size([1, 3, 103])
    """
    x = flux[:, None]
    tangents: RowMaps | None = None
    if slopes is not None:
        tangents = RowMaps.from_channels(slopes.flatten(0, 1)[:, None], _padded_pixels(network), dtype)
    for part in (network.encoder_synth, network.encoder_sh, network.decoder_sh):
        x, tangents = (part(x), None) if tangents is None else _push(part, x, tangents)
    own, own_slopes = _own(network.decoder_synth, flux, slopes, x, tangents) if residual else (None, None)
    if split_slopes is not None:
        padded = _padded_pixels(network) // _stride(network.settings.domain)
        tangents = _joined(tangents, x.shape[1], split_slopes, padded, dtype)
    if hidden_split is not None:
        x = torch.cat([x, hidden_split], dim=1)
    if tangents is None:
        raise ValueError("slopes and split_slopes are None: there is nothing to differentiate by")
    translated, slopes = _decoded(network.decoder_obs, x, tangents)
    slopes = slopes.to(flux.dtype)
    if own is not None:
        translated = translated + own
    if own_slopes is not None:
        slopes[:, : own_slopes.shape[1]] += own_slopes
    return translated, slopes


def _decoded(decoder: nn.Sequential, x: Tensor, tangents: RowMaps) -> tuple[Tensor, Tensor]:
    """Spectra (n, n_pixels) that a domain's decoder makes of maps, and their derivatives (n, d, n_pixels)."""
    *first, transposed, activation, to_spectrum = decoder
    x, tangents = _push(first, x, tangents)
    before = transposed(x)
    slopes = _last_layers(transposed, activation, to_spectrum, before, tangents, len(x))
    return to_spectrum(activation(before))[:, 0], slopes


def _own(
    decoder: nn.Sequential, flux: Tensor, slopes: Tensor | None, x: Tensor, tangents: RowMaps | None
) -> tuple[Tensor, Tensor | None]:
    """What the residual form adds: the synthetic spectrum, less what the synthetic decoder makes of it."""
    if slopes is None or tangents is None:
        return flux - decoder(x)[:, 0], None
    decoded, decoded_slopes = _decoded(decoder, x, tangents)
    return flux - decoded, slopes - decoded_slopes.to(flux.dtype)


def _stride(layers: Layers) -> int:
    """Product of the strides."""
    return math.prod(stride for _, _, stride in layers)


def _padded_pixels(network: TranslationNetwork) -> int:
    """Length of a spectrum in rows: a multiple of all strides."""
    total = _stride(network.settings.domain + network.settings.shared)
    return math.ceil(network.settings.n_pixels / total) * total


def _joined(shared: RowMaps | None, n_shared: int, split: Tensor, padded: int, dtype: torch.dtype) -> RowMaps:
    """Tangents of the shared channels, followed by those of the split channels: each are 0 in the others' channels."""
    n, _, n_split, _ = split.shape
    maps = RowMaps.from_channels(F.pad(split, (0, 0, n_shared, 0)).flatten(0, 1), padded, dtype)
    if shared is None:
        return maps
    both = F.pad(shared.data, (0, n_split)), maps.data
    data = torch.cat([tangents.view(n, -1, padded, n_shared + n_split) for tangents in both], dim=1)
    return RowMaps(data.flatten(0, 2), shared.batch + maps.batch, maps.length)


def _push(layers: Iterable[nn.Module], x: Tensor, tangents: RowMaps) -> tuple[Tensor, RowMaps]:
    """Send maps (n, channels, positions) and d tangents of each through plain layers."""
    for layer in layers:
        if isinstance(layer, nn.LeakyReLU):
            tangents = _scaled(tangents, x, layer.negative_slope)
            x = layer(x)
        elif isinstance(layer, nn.InstanceNorm1d):
            normalised = layer(x)
            tangents = _normalised(tangents, x, normalised, layer.eps)
            x = normalised
        elif isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            x, tangents = layer(x), _linear(layer, tangents)
        else:
            raise TypeError(f"no tangents of {type(layer).__name__}")
    return x, tangents


def _linear(layer: nn.Conv1d | nn.ConvTranspose1d, tangents: RowMaps) -> RowMaps:
    """A layer without its bias; rows beyond the valid length hold junk afterwards.

    Input channels that the tangents lack do not depend on the parameters.
    """
    data, kernel, stride = tangents.data, layer.kernel_size[0], layer.stride[0]
    weight = layer.weight.to(data.dtype)
    if isinstance(layer, nn.ConvTranspose1d):
        matrix = weight[: data.shape[1]].permute(0, 2, 1).flatten(1)  # (in, taps x out)
        (_, first), *others = row_reaches(matrix.shape[1], stride * layer.out_channels)
        made = data @ matrix[:, first]
        for k, columns in others:
            made[k:, : columns.stop - columns.start].addmm_(data[:-k], matrix[:, columns])
        length = (tangents.length - 1) * stride + kernel
        return RowMaps(made.view(-1, layer.out_channels), tangents.batch, length)
    matrix = weight.permute(2, 1, 0).flatten(0, 1)  # (taps x in, out)
    made = joined_rows(data.view(-1, stride * data.shape[1]), len(matrix)) @ matrix
    return RowMaps(made, tangents.batch, (tangents.length - kernel) // stride + 1)


def _slopes(x: Tensor, negative: float, dtype: torch.dtype) -> Tensor:
    """Slope of the leaky ReLU at maps (n, channels, positions), in rows (n, positions, channels)."""
    one = torch.ones((), dtype=dtype, device=x.device)  # two plain numbers would make float32
    return torch.where(x > 0, one, negative).transpose(1, 2)


def _scaled(tangents: RowMaps, x: Tensor, negative: float) -> RowMaps:
    """Tangents of the leaky ReLU: times its slope."""
    factor = x.new_zeros((len(x), tangents.padded, x.shape[1]), dtype=tangents.data.dtype)  # zero beyond the length
    factor[:, : x.shape[2]] = _slopes(x, negative, factor.dtype)
    data = tangents.data.view(len(x), -1, *factor.shape[1:]) * factor[:, None]
    return RowMaps(data.view(tangents.data.shape), tangents.batch, tangents.length)


def _normalised(tangents: RowMaps, x: Tensor, normalised: Tensor, eps: float) -> RowMaps:
    """Tangents of the instance normalisation: centred, without the part along the result, and divided by the scale."""
    valid = tangents.valid().to(x.dtype).unflatten(0, (len(x), -1)).transpose(2, 3)  # (n, d, channels, positions)
    scale = torch.rsqrt(x.var(2, correction=0, keepdim=True) + eps)[:, None]
    along = normalised[:, None]
    valid = valid - valid.mean(3, keepdim=True)
    valid = (valid - along * (along * valid).mean(3, keepdim=True)) * scale
    return RowMaps.from_channels(valid.flatten(0, 1), tangents.padded, tangents.data.dtype)


def _last_layers(
    transposed: nn.Module, activation: nn.Module, to_spectrum: nn.Module, x: Tensor, tangents: RowMaps, n: int
) -> Tensor:
    """Transposed convolution, leaky ReLU and sum over channels in one map per star: the widest maps are never made.

    Output pixel ``stride * row + tap`` has the tangent Σ over rows and taps of
    tangent(row) · V(row, tap), where V sums over the output channels the
    weights of both layers and the slope at that pixel.
    """
    if not (
        isinstance(transposed, nn.ConvTranspose1d)
        and isinstance(activation, nn.LeakyReLU)
        and isinstance(to_spectrum, nn.Conv1d)
    ):
        raise TypeError("the observed decoder must end in a transposed convolution, a leaky ReLU and a convolution")
    data, kernel, stride = tangents.data, transposed.kernel_size[0], transposed.stride[0]
    length, n_in = tangents.length, data.shape[1]
    slopes = _slopes(x, activation.negative_slope, data.dtype).unfold(1, kernel, stride)  # (n, rows, channels, taps)
    weight = (transposed.weight[:n_in] * to_spectrum.weight[0, :, 0][:, None]).to(data.dtype)  # (in, channels, taps)
    v = torch.stack([slopes[..., tap] @ weight[..., tap].T for tap in range(kernel)], dim=-1)  # (n, rows, in, taps)
    rows = data.view(n, -1, tangents.padded, n_in)[:, :, :length].transpose(1, 2)  # (n, rows, d, in)
    made = (rows @ v).float() if data.dtype == torch.bfloat16 else rows @ v  # (n, rows, d, taps)
    made = made.transpose(1, 2)
    reach = -(-kernel // stride)
    out = made.new_zeros((*made.shape[:2], length + reach - 1, stride))
    for k in range(reach):
        part = made[..., k * stride : (k + 1) * stride]
        out[:, :, k : k + length, : part.shape[-1]] += part
    return out.flatten(2)[..., : (length - 1) * stride + kernel]
