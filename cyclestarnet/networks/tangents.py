"""Derivatives of the networks by forward tangents: one column of the Jacobian per label, all columns at once.

The networks themselves run in their own precision, and tell the slopes of
their activations. Tangents then need only the linear parts of the layers, as
products of matrices in the rows of `cyclestarnet.networks.convolutions`, and
may do with bfloat16: a Jacobian that is right to 0.5 % leads to the same
optimum, because the residuals are exact.

Near the spectra, maps are long and have few channels, and a row of them sees
few pixels. There the layers fold into one linear map per row, between those
pixels and the row's channels, which takes fewer operations than tangents of
many labels do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclestarnet.networks.convolutions import Matrices, RowMaps, matrix_and_bias, row_reaches, step, steps
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
            both = torch.cat([x[:, None], slopes], dim=1) @ layer.weight.T  # the weights are read once
            x, slopes = both[:, 0] + layer.bias, both[:, 1:]
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
    network: TranslationNetwork,
    split_latent: Tensor,
    slopes: Tensor,
    dtype: torch.dtype,
    *,
    matrices: dict[torch.dtype, Matrices] | None = None,
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
    matrices : dict, optional
        As `linearise_translation` takes it.

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
    values = RowMaps.from_channels(split_latent, padded, split_latent.dtype)
    tangents: RowMaps | None = RowMaps.from_channels(slopes.flatten(0, 1), padded, dtype)
    matrices = _all_matrices(matrices)
    for layer, negative in steps(network.decoder_sp):
        values, tangents = _push(layer, negative, values, tangents, matrices)
    assert tangents is not None
    return values.channels(), tangents.channels().unflatten(0, slopes.shape[:2])


def linearise_translation(
    network: TranslationNetwork,
    flux: Tensor,
    slopes: Tensor | None,
    hidden_split: Tensor | None,
    dtype: torch.dtype,
    split_slopes: Tensor | None = None,
    *,
    residual: bool = False,
    matrices: dict[torch.dtype, Matrices] | None = None,
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
    matrices : dict, optional
        Of each precision the weights in the form that products need, filled on the way; see
        `~cyclestarnet.networks.convolutions.run`. Default: made anew.

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
    if slopes is None and split_slopes is None:
        raise ValueError("slopes and split_slopes are None: there is nothing to differentiate by")
    matrices, padded = _all_matrices(matrices), _padded_pixels(network)
    values = RowMaps.from_channels(flux[:, None], padded, flux.dtype)
    values, tangents = _encoded(network.encoder_synth, values, slopes, dtype, matrices)
    for part in (network.encoder_sh, network.decoder_sh):
        for layer, negative in steps(part):
            values, tangents = _push(layer, negative, values, tangents, matrices)
    shared, n_shared = values, values.data.shape[1]
    if split_slopes is not None:
        tangents = _joined(tangents, n_shared, split_slopes, shared.padded, dtype)
    if hidden_split is not None:
        values = values.beside(RowMaps.from_channels(hidden_split, shared.padded, flux.dtype))
    decoders = [(network.decoder_obs, values, 1.0)]
    if residual:
        decoders.append((network.decoder_synth, shared, -1.0))
    assert tangents is not None
    spectra, decoded = _decoded(decoders, tangents, matrices)
    decoded = decoded.to(flux.dtype)
    if residual:
        spectra = flux + spectra
    if residual and slopes is not None:
        decoded[:, : slopes.shape[1]] += slopes
    return spectra, decoded


def _all_matrices(matrices: dict[torch.dtype, Matrices] | None) -> dict[torch.dtype, Matrices]:
    return {dtype: {} for dtype in (torch.bfloat16, torch.float32, torch.float64)} if matrices is None else matrices


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


def _push(
    layer: nn.Module,
    negative: float | None,
    values: RowMaps,
    tangents: RowMaps | None,
    matrices: dict[torch.dtype, Matrices],
) -> tuple[RowMaps, RowMaps | None]:
    """Send n maps, and d tangents of each, through a layer and the leaky ReLU after it."""
    made = step(layer, negative, values, matrices[values.data.dtype])
    if tangents is None:
        return made, None
    if isinstance(layer, nn.InstanceNorm1d):
        return made, _normalised(tangents, values, made, layer.eps)
    assert isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)  # `step` takes no other
    return made, _linear(layer, negative, made, tangents, matrices)


def _linear(
    layer: nn.Conv1d | nn.ConvTranspose1d,
    negative: float | None,
    made: RowMaps,
    tangents: RowMaps,
    matrices: dict[torch.dtype, Matrices],
) -> RowMaps:
    """Tangents of what a layer and the leaky ReLU after it made."""
    data = _product(layer, tangents.data[:, : layer.in_channels], matrices)
    if negative is not None:
        rows = data.view(made.batch, -1, made.padded, data.shape[1])
        rows *= _slopes(made, negative, data.dtype)[:, None]
    return RowMaps(data, tangents.batch, made.length)


def _product(layer: nn.Conv1d | nn.ConvTranspose1d, data: Tensor, matrices: dict[torch.dtype, Matrices]) -> Tensor:
    """Rows that a layer makes of rows, without its bias; those beyond the valid length hold junk.

    Input channels that the rows lack do not depend on the parameters.
    """
    stride, (matrix, _) = layer.stride[0], matrix_and_bias(layer, data.dtype, matrices[data.dtype])
    if isinstance(layer, nn.ConvTranspose1d):
        matrix = matrix[: data.shape[1]]
        (_, first), *others = row_reaches(matrix.shape[1], stride * layer.out_channels)
        made = data @ matrix[:, first]
        for k, columns in others:
            made[k:, : columns.stop - columns.start].addmm_(data[:-k], matrix[:, columns])
        return made.view(-1, layer.out_channels)
    rows = data.view(-1, stride * data.shape[1])
    (_, first), *others = row_reaches(len(matrix), rows.shape[1])
    made = rows[:, first] @ matrix[first]
    for k, columns in others:
        made[:-k].addmm_(rows[k:, : columns.stop - columns.start], matrix[columns])
    return made


def _slopes(made: RowMaps, negative: float, dtype: torch.dtype) -> Tensor:
    """Slope of the leaky ReLU that made some maps, (n, padded, channels); zero beyond their length."""
    one = torch.ones((), dtype=dtype, device=made.data.device)  # two plain numbers would make float32
    slopes = torch.where(made.data > 0, one, negative).view(made.batch, made.padded, -1)
    slopes[:, made.length :] = 0
    return slopes


def _normalised(tangents: RowMaps, values: RowMaps, made: RowMaps, eps: float) -> RowMaps:
    """Tangents of the instance normalisation: centred, without the part along the result, and divided by the scale."""
    x, along = values.channels(), made.channels()[:, None]
    valid = tangents.channels().to(x.dtype).unflatten(0, (len(x), -1))  # (n, d, channels, positions)
    scale = torch.rsqrt(x.var(2, correction=0, keepdim=True) + eps)[:, None]
    valid = valid - valid.mean(3, keepdim=True)
    valid = (valid - along * (along * valid).mean(3, keepdim=True)) * scale
    return RowMaps.from_channels(valid.flatten(0, 1), tangents.padded, tangents.data.dtype)


# -- layers next to the spectra, folded ------------------------------------------------------
@dataclass(frozen=True)
class _Response:
    """Linear maps between the pixels of spectra and the channels of each row.

    Row r of a star sees, or makes, the pixels from ``stride * r`` on.

    Parameters
    ----------
    data : Tensor, shape (pixels that a row sees, n * padded rows, channels)
        What holds rows beyond the length is junk.
    batch, stride, length : int
        Stars, pixels from one row to the next, and valid rows of a star.
    """

    data: Tensor
    batch: int
    stride: int
    length: int

    @property
    def reach(self) -> int:
        """Pixels that a row sees."""
        return len(self.data)

    def rows(self) -> Tensor:
        """Maps of the valid rows, (n, length, pixels, channels)."""
        return self.data.unflatten(1, (self.batch, -1))[:, :, : self.length].permute(1, 2, 0, 3)

    def folded(self, weight: Tensor, slopes: Tensor, stride: int, length: int, into: Tensor | None = None) -> _Response:
        """Put a layer, which strides over these rows, behind the activation of these rows.

        Parameters
        ----------
        weight : Tensor, shape (new channels, channels, taps)
            Of a convolution towards the latent, or of a transposed one from there.
        slopes : Tensor, shape (n, rows or more, channels)
            Of the activation.
        stride, length : int
            Rows from one new row to the next, and the number of new rows.
        into : Tensor, optional
            Data of another response with the same new rows, which these are added to. Default: zeros.
        """
        n, taps = self.batch, weight.shape[2]
        padded = length - 1 + -(-taps // stride)
        here = min(self.data.shape[1] // n, slopes.shape[1], padded * stride)
        scaled = self.data.new_empty((self.reach, n, padded * stride, weight.shape[1]))
        scaled[:, :, here:] = 0
        torch.mul(self.data.unflatten(1, (n, -1))[:, :, :here], slopes[:, :here], out=scaled[:, :, :here])
        phases = scaled.view(self.reach * n * padded, stride, -1)
        reach = (taps - 1) * self.stride + self.reach
        if into is None:
            into = self.data.new_zeros((reach, n * padded, len(weight)))
        flat, matrices = into.flatten(0, 1), weight.permute(2, 1, 0).contiguous()
        for tap in range(taps):  # new row r gets what row stride * r + tap sees, which begins so many pixels later
            first, (later, phase) = tap * self.stride * n * padded, divmod(tap, stride)
            flat[first : first + len(phases) - later].addmm_(phases[later:, phase], matrices[tap])
        return _Response(into, n, stride * self.stride, length)


def _encoded(
    encoder: Iterable[nn.Module],
    values: RowMaps,
    slopes: Tensor | None,
    dtype: torch.dtype,
    matrices: dict[torch.dtype, Matrices],
) -> tuple[RowMaps, RowMaps | None]:
    """Send spectra, and d tangents (n, d, n_pixels) of each, through a domain's encoder."""
    todo = list(steps(encoder))
    tangents: RowMaps | None = None
    response: _Response | None = None
    factor: Tensor | None = None
    while slopes is not None and todo:
        layer, negative = todo[0]
        assert isinstance(layer, nn.Conv1d)
        assert negative is not None
        if (layer.kernel_size[0] if response is None else response.reach) >= slopes.shape[1]:
            break
        made, weight = step(layer, negative, values, matrices[values.data.dtype]), layer.weight.to(dtype)
        if response is None or factor is None:
            every_row = weight[:, 0].T[:, None].expand(-1, made.batch * made.length, -1)
            response = _Response(every_row, made.batch, layer.stride[0], made.length)
        else:
            response = response.folded(weight, factor, layer.stride[0], made.length)
        values, factor = made, _slopes(made, negative, dtype)
        del todo[0]
    if slopes is not None and response is not None and factor is not None:
        tangents = _seen(response, slopes.to(dtype), factor)
    elif slopes is not None:
        tangents = RowMaps.from_channels(slopes.flatten(0, 1)[:, None], values.padded, dtype)
    for layer, negative in todo:
        values, tangents = _push(layer, negative, values, tangents, matrices)
    return values, tangents


def _seen(response: _Response, slopes: Tensor, factor: Tensor) -> RowMaps:
    """Tangents of rows that see tangents of spectra, times the slope of their activation."""
    windows = slopes.unfold(2, response.reach, response.stride).transpose(1, 2)  # (n, rows, d, pixels)
    made = windows[:, : response.length] @ response.rows()
    n, length, d, channels = made.shape
    data = made.new_zeros((n, d, factor.shape[1], channels))
    torch.mul(made.transpose(1, 2), factor[:, None, :length], out=data[:, :, :length])
    return RowMaps(data.view(-1, channels), n * d, length)


def _decoded(
    decoders: list[tuple[nn.Sequential, RowMaps, float]], tangents: RowMaps, matrices: dict[torch.dtype, Matrices]
) -> tuple[Tensor, Tensor]:
    """Sum of the spectra (n, n_pixels) that domains' decoders make of maps, each with a sign, and their derivatives.

    Layers are folded from the end while rows make fewer pixels than there are tangents. What is left of the
    decoders is added before it meets the tangents where nothing else is.
    """
    dtype = tangents.data.dtype
    whole: _Response | None = None
    spectra, slopes = [], []
    for decoder, values, sign in decoders:
        n, n_tangents, maps = values.batch, tangents.batch // values.batch, [values]
        *todo, (last, _) = steps(decoder)
        assert isinstance(last, nn.Conv1d)  # as all decoders of domains
        for layer, negative in todo:
            maps.append(step(layer, negative, maps[-1], matrices[values.data.dtype]))
        spectra.append(sign * step(last, None, maps[-1], matrices[values.data.dtype]).spectra())
        weight, _ = matrix_and_bias(last, dtype, matrices[dtype])
        every_row = (sign * weight.to(dtype)).expand(1, n * maps[-1].length, -1)
        response = _Response(every_row, n, 1, maps[-1].length)
        while todo and response.reach < n_tangents:
            (layer, negative), made = todo.pop(), maps.pop()
            assert isinstance(layer, nn.ConvTranspose1d)
            assert negative is not None
            factor, length = _slopes(made, negative, dtype), maps[-1].length
            if todo:
                response = response.folded(layer.weight.to(dtype), factor, layer.stride[0], length)
            else:
                weight = layer.weight[: tangents.data.shape[1]].to(dtype)
                into = None if whole is None else whole.data[..., : len(weight)]
                response = response.folded(weight, factor, layer.stride[0], length, into)
                whole = response if whole is None else whole
        if todo:
            rest = tangents
            for (layer, negative), made in zip(todo, maps[1:], strict=True):
                assert isinstance(layer, nn.ConvTranspose1d)
                rest = _linear(layer, negative, made, rest, matrices)
            slopes.append(_made(response, rest))
    if whole is not None:
        slopes.append(_made(whole, tangents))
    return torch.stack(spectra).sum(0), slopes[0] if len(slopes) == 1 else slopes[0] + slopes[1]


def _made(response: _Response, tangents: RowMaps) -> Tensor:
    """Tangents (n, d, n_pixels) of spectra that rows make."""
    n, length, stride, reach = response.batch, response.length, response.stride, response.reach
    rows = tangents.data.view(n, -1, tangents.padded, tangents.data.shape[1])[:, :, :length].transpose(1, 2)
    made = (rows @ response.rows().transpose(2, 3)).transpose(1, 2)  # (n, d, rows, pixels)
    made = made.to(torch.promote_types(made.dtype, torch.float32))
    out = made.new_zeros((*made.shape[:2], length - 1 + -(-reach // stride), stride))
    for k, first in enumerate(range(0, reach, stride)):
        part = made[..., first : first + stride]
        out[:, :, k : k + length, : part.shape[-1]] += part
    return out.flatten(2)[..., : (length - 1) * stride + reach]
