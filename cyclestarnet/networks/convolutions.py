"""The networks' functions with each sub-network run once for both domains, and by matrix products in bfloat16.

`run` walks the plain `torch.nn.Sequential` of `cyclestarnet.networks.translation`
and equals it to rounding; nothing here owns a weight. It takes either of two
layouts of feature maps, which offer the same few methods:

`ChannelMaps`
    (batch, channels, positions), as `torch.nn` has it. The layers themselves
    are called: in float32 torch's own convolutions are the fastest form.
`RowMaps`
    (batch * padded positions, channels). A strided convolution is one product
    of joined neighbouring rows with a matrix, and a transposed convolution a
    product per neighbour that a row reaches. bfloat16 gains by this. Rows
    beyond the valid length are zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

__all__ = [
    "ChannelMaps",
    "Matrices",
    "RowMaps",
    "joined_rows",
    "matrix_and_bias",
    "row_reaches",
    "run",
    "step",
    "steps",
]

Matrices = dict[nn.Module, tuple[Tensor, Tensor]]
"""Matrix and bias of each layer, made at its first use, so that layers used twice in a step are converted once."""

ROWS_AT_ONCE = 4096  # of the last layer, in full precision: they stay in the processor's cache


@dataclass(frozen=True)
class ChannelMaps:
    """A batch of feature maps in the layout of `torch.nn`.

    Parameters
    ----------
    data : Tensor, shape (n, channels, positions)
        The maps.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks.convolutions import ChannelMaps, run
    >>> layers = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3, 2), torch.nn.LeakyReLU(0.1))
    >>> run(layers, ChannelMaps.from_spectra(torch.rand(2, 9), 2, torch.float32), {}).channels().shape
    torch.Size([2, 4, 4])
    """

    data: Tensor

    @classmethod
    def from_channels(cls, x: Tensor, padded: int, dtype: torch.dtype) -> ChannelMaps:
        """Make maps of an array.

        Parameters
        ----------
        x : Tensor, shape (n, channels, positions)
            The maps.
        padded : int
            For `RowMaps`; this layout needs no padding.
        dtype : torch.dtype
            Precision of the maps.

        Returns
        -------
        `ChannelMaps`

        Examples
        --------
        ::

            maps = ChannelMaps.from_channels(latent, 0, torch.float32)
        """
        return cls(x.to(dtype))

    @classmethod
    def from_spectra(cls, flux: Tensor, total_stride: int, dtype: torch.dtype) -> ChannelMaps:
        """Make maps of one channel of spectra.

        Parameters
        ----------
        flux : Tensor, shape (n, n_pixels)
            Standardised flux.
        total_stride : int
            For `RowMaps`; this layout needs no padding.
        dtype : torch.dtype
            Precision of the maps.

        Returns
        -------
        `ChannelMaps`

        Examples
        --------
        ::

            maps = ChannelMaps.from_spectra(flux, 0, torch.float32)
        """
        return cls(flux[:, None].to(dtype))

    @classmethod
    def join(cls, *maps: ChannelMaps) -> ChannelMaps:
        """Join batches of maps of the same shape, one after the other.

        Parameters
        ----------
        *maps : `ChannelMaps`
            Of the same channels and positions.

        Returns
        -------
        `ChannelMaps`

        Examples
        --------
        ::

            both = ChannelMaps.join(synthetic, observed)
        """
        return cls(torch.cat([m.data for m in maps]))

    def beside(self, other: ChannelMaps) -> ChannelMaps:
        """Join the channels of two batches of the same size.

        Parameters
        ----------
        other : `ChannelMaps`
            Of as many maps and positions. Its channels come last.

        Returns
        -------
        `ChannelMaps`

        Examples
        --------
        ::

            hidden = shared.beside(split)
        """
        return ChannelMaps(torch.cat([self.data, other.data], dim=1))

    def __getitem__(self, rows: slice) -> ChannelMaps:
        """Part of the batch."""
        return ChannelMaps(self.data[rows])

    def to(self, dtype: torch.dtype) -> ChannelMaps:
        """Return the maps in another precision.

        Parameters
        ----------
        dtype : torch.dtype
            The precision.

        Returns
        -------
        `ChannelMaps`

        Examples
        --------
        ::

            exact = maps.to(torch.float64)
        """
        return ChannelMaps(self.data.to(dtype))

    def channels(self) -> Tensor:
        """Return the array (n, channels, positions).

        Returns
        -------
        Tensor

        Examples
        --------
        ::

            latent = maps.channels()
        """
        return self.data

    def spectra(self) -> Tensor:
        """Return maps of one channel as spectra (n, n_pixels).

        Returns
        -------
        Tensor

        Examples
        --------
        ::

            flux = run(network.decoder_obs, maps, {}).spectra()
        """
        return self.data[:, 0]


@dataclass(frozen=True)
class RowMaps:
    """A batch of feature maps with a row per position, so that convolutions are products of matrices.

    Parameters
    ----------
    data : Tensor, shape (batch * padded, channels)
        The rows of the first map, those of the second, and so on. Rows of a
        map beyond ``length`` are zero.
    batch : int
        Number of maps.
    length : int
        Valid rows of each map.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks.convolutions import RowMaps, run
    >>> layers = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3, 2), torch.nn.LeakyReLU(0.1))
    >>> flux = torch.rand(2, 9)
    >>> maps = run(layers, RowMaps.from_spectra(flux, 2, torch.float32), {})
    >>> torch.allclose(maps.channels(), layers(flux[:, None]), atol=1e-6)
    True
    """

    data: Tensor
    batch: int
    length: int

    @classmethod
    def from_channels(cls, x: Tensor, padded: int, dtype: torch.dtype) -> RowMaps:
        """Make maps of an array, padded with zeros.

        Parameters
        ----------
        x : Tensor, shape (n, channels, positions)
            The maps.
        padded : int
            Rows per map: a multiple of the strides to come, not less than the positions.
        dtype : torch.dtype
            Precision of the maps.

        Returns
        -------
        `RowMaps`

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.networks.convolutions import RowMaps
        >>> RowMaps.from_channels(torch.ones(2, 3, 5), 8, torch.float32).data.shape
        torch.Size([16, 3])
        """
        batch, n_channels, length = x.shape
        data = F.pad(x.transpose(1, 2).to(dtype), (0, 0, 0, padded - length))
        return cls(data.reshape(batch * padded, n_channels), batch, length)

    @classmethod
    def from_spectra(cls, flux: Tensor, total_stride: int, dtype: torch.dtype) -> RowMaps:
        """Make maps of one channel of spectra.

        Parameters
        ----------
        flux : Tensor, shape (n, n_pixels)
            Standardised flux.
        total_stride : int
            Product of the strides to come, to a multiple of which the spectra are padded.
        dtype : torch.dtype
            Precision of the maps.

        Returns
        -------
        `RowMaps`

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.networks.convolutions import RowMaps
        >>> RowMaps.from_spectra(torch.ones(2, 9), 4, torch.float32).padded
        12
        """
        return cls.from_channels(flux[:, None], ceil(flux.shape[1] / total_stride) * total_stride, dtype)

    @classmethod
    def join(cls, *maps: RowMaps) -> RowMaps:
        """Join batches of maps of the same shape, one after the other.

        Parameters
        ----------
        *maps : `RowMaps`
            Of the same channels, length and padding.

        Returns
        -------
        `RowMaps`

        Examples
        --------
        ::

            both = RowMaps.join(synthetic, observed)
        """
        return cls(torch.cat([m.data for m in maps]), sum(m.batch for m in maps), maps[0].length)

    def beside(self, other: RowMaps) -> RowMaps:
        """Join the channels of two batches of the same size.

        Parameters
        ----------
        other : `RowMaps`
            Of as many maps, and of the same length and padding. Its channels come last.

        Returns
        -------
        `RowMaps`

        Examples
        --------
        ::

            hidden = shared.beside(split)
        """
        return RowMaps(torch.cat([self.data, other.data], dim=1), self.batch, self.length)

    def __getitem__(self, rows: slice) -> RowMaps:
        """Part of the batch."""
        start, stop, _ = rows.indices(self.batch)
        return RowMaps(self.data[start * self.padded : stop * self.padded], stop - start, self.length)

    def to(self, dtype: torch.dtype) -> RowMaps:
        """Return the maps in another precision.

        Parameters
        ----------
        dtype : torch.dtype
            The precision.

        Returns
        -------
        `RowMaps`

        Examples
        --------
        ::

            quick = maps.to(torch.bfloat16)
        """
        return RowMaps(self.data.to(dtype), self.batch, self.length)

    @property
    def padded(self) -> int:
        """Rows per map, with those that are zero."""
        return self.data.shape[0] // self.batch

    def valid(self) -> Tensor:
        """Return the valid rows (batch, length, channels).

        Returns
        -------
        Tensor
            A view, not a copy.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.networks.convolutions import RowMaps
        >>> RowMaps.from_channels(torch.ones(2, 3, 5), 8, torch.float32).valid().shape
        torch.Size([2, 5, 3])
        """
        return self.data.view(self.batch, self.padded, -1)[:, : self.length]

    def channels(self) -> Tensor:
        """Return the array (batch, channels, length), as `torch.nn` has it.

        Returns
        -------
        Tensor
            A view, not a copy.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.networks.convolutions import RowMaps
        >>> RowMaps.from_channels(torch.ones(2, 3, 5), 8, torch.float32).channels().shape
        torch.Size([2, 3, 5])
        """
        return self.valid().transpose(1, 2)

    def spectra(self) -> Tensor:
        """Return maps of one channel as spectra (batch, length).

        Returns
        -------
        Tensor
            A view, not a copy.

        Examples
        --------
        ::

            flux = run(network.decoder_obs, maps, {}).spectra()
        """
        return self.valid()[:, :, 0]


@overload
def run(layers: nn.Sequential, maps: ChannelMaps, matrices: Matrices) -> ChannelMaps: ...
@overload
def run(layers: nn.Sequential, maps: RowMaps, matrices: Matrices) -> RowMaps: ...
def run(layers: nn.Sequential, maps: ChannelMaps | RowMaps, matrices: Matrices) -> ChannelMaps | RowMaps:
    """Apply a plain sequence of layers to maps, in the maps' precision.

    Parameters
    ----------
    layers : `torch.nn.Sequential`
        Convolutions, transposed ones, leaky ReLUs and instance normalisations
        without affine, as those of a `~cyclestarnet.networks.TranslationNetwork`.
    maps : `ChannelMaps` or `RowMaps`
        What goes in.
    matrices : dict
        Empty at the start of a step; filled on the way with the weights of the
        layers as `RowMaps` need them. Take a new one when weights have changed.

    Returns
    -------
    `ChannelMaps` or `RowMaps`
        As it came in.

    Raises
    ------
    TypeError
        If `RowMaps` are to pass a layer of another kind, or one without bias.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks.convolutions import RowMaps, run
    >>> layers = torch.nn.Sequential(torch.nn.ConvTranspose1d(3, 2, 7, 4), torch.nn.Conv1d(2, 1, 1))
    >>> run(layers, RowMaps.from_channels(torch.rand(2, 3, 5), 6, torch.bfloat16), {}).spectra().shape
    torch.Size([2, 23])
    """
    if isinstance(maps, ChannelMaps):
        return ChannelMaps(layers(maps.data))
    for layer, slope in steps(layers):
        maps = step(layer, slope, maps, matrices)
    return maps


def steps(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, float | None]]:
    """Give the layers of a plain sequence one by one, each with the activation that follows it.

    Parameters
    ----------
    layers : iterable of `torch.nn.Module`
        As in `run`.

    Yields
    ------
    layer : `torch.nn.Module`
        A layer that is no activation.
    slope : float or None
        Negative slope of the leaky ReLU that follows it; None if none follows.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks.convolutions import steps
    >>> layers = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3, 2), torch.nn.LeakyReLU(0.1), torch.nn.Conv1d(4, 1, 1))
    >>> [(layer.out_channels, slope) for layer, slope in steps(layers)]
    [(4, 0.1), (1, None)]
    """
    todo = list(layers)
    while todo:
        layer, slope = todo.pop(0), None
        following = todo[0] if todo else None
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and isinstance(following, nn.LeakyReLU):
            slope = float(following.negative_slope)
            del todo[0]
        yield layer, slope


def step(layer: nn.Module, slope: float | None, maps: RowMaps, matrices: Matrices) -> RowMaps:
    """Apply one layer, and the leaky ReLU after it.

    Parameters
    ----------
    layer : `torch.nn.Module`
        Of `steps`.
    slope : float or None
        Likewise.
    maps : `RowMaps`
        What goes in.
    matrices : dict
        As in `run`.

    Returns
    -------
    `RowMaps`

    Raises
    ------
    TypeError
        As `run` does.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks.convolutions import RowMaps, step
    >>> maps = RowMaps.from_spectra(torch.rand(2, 9), 2, torch.float32)
    >>> step(torch.nn.Conv1d(1, 4, 3, 2), 0.1, maps, {}).channels().shape
    torch.Size([2, 4, 4])
    """
    if isinstance(layer, nn.InstanceNorm1d):
        return _instance_norm(layer, maps)
    if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
        return _convolve(layer, maps, slope, matrices)
    raise TypeError(f"no fast form of {type(layer).__name__}")


def matrix_and_bias(
    layer: nn.Conv1d | nn.ConvTranspose1d, dtype: torch.dtype, matrices: Matrices
) -> tuple[Tensor, Tensor]:
    """Return the weights of a layer as products need them, made at their first use.

    Parameters
    ----------
    layer : `torch.nn.Conv1d` or `torch.nn.ConvTranspose1d`
        With a bias.
    dtype : torch.dtype
        Precision of the products.
    matrices : dict
        Of this precision; as in `run`.

    Returns
    -------
    matrix : Tensor
        Of shape (taps * in, out), or (in, taps * out) if the layer is transposed; (in,) if it makes spectra.
    bias : Tensor, shape (out,)

    Raises
    ------
    TypeError
        If the layer has no bias.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks.convolutions import matrix_and_bias
    >>> matrix, bias = matrix_and_bias(torch.nn.Conv1d(3, 4, 7, 2), torch.float32, {})
    >>> matrix.shape
    torch.Size([21, 4])
    """
    transposed = isinstance(layer, nn.ConvTranspose1d)
    if layer.bias is None:
        raise TypeError(f"no fast form of a {type(layer).__name__} without bias")
    if layer not in matrices:
        if not transposed and layer.out_channels == 1:
            matrices[layer] = layer.weight[0, :, 0], layer.bias
        else:
            weight = layer.weight.to(dtype).permute((0, 2, 1) if transposed else (2, 1, 0))
            matrix = weight.flatten(1) if transposed else weight.flatten(0, 1)
            matrices[layer] = matrix, layer.bias.to(dtype)
    return matrices[layer]


def _convolve(layer: nn.Conv1d | nn.ConvTranspose1d, maps: RowMaps, slope: float | None, matrices: Matrices) -> RowMaps:
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    transposed = isinstance(layer, nn.ConvTranspose1d)
    matrix, bias = matrix_and_bias(layer, maps.data.dtype, matrices)
    if not transposed and layer.out_channels == 1:
        if kernel > 1 or slope is not None:
            raise TypeError("a layer that makes spectra must have a kernel of 1 and no activation")
        return RowMaps(_ToSpectra.apply(maps.data, matrix, bias), maps.batch, maps.length)
    if transposed:
        length = (maps.length - 1) * stride + kernel
        data = _Transposed.apply(maps.data, matrix, bias, stride, slope, maps.batch, length)
    else:
        length = (maps.length - kernel) // stride + 1
        data = _Strided.apply(maps.data, matrix, bias, stride, slope, maps.batch, length)
    return RowMaps(data, maps.batch, length)


def _finish(data: Tensor, slope: float | None, batch: int, length: int) -> Tensor:
    """Leaky ReLU, and zeros beyond the valid length, in place."""
    if slope is not None:
        F.leaky_relu_(data, slope)
    data.view(batch, -1, data.shape[1])[:, length:] = 0
    return data


def _unfinish(grad: Tensor, data: Tensor, slope: float | None, batch: int, length: int) -> Tensor:
    """Gradient before `_finish`, whose result ``data`` has the sign of its argument."""
    if slope is None:
        grad = grad.clone()
    else:
        grad = torch.ops.aten.leaky_relu_backward(grad, data, slope, True)
    grad.view(batch, -1, grad.shape[1])[:, length:] = 0
    return grad


def row_reaches(n_joined: int, n_rows: int) -> list[tuple[int, slice]]:
    """Say which columns of a joined row come from the row itself, from the next one, and so on.

    Parameters
    ----------
    n_joined : int
        Columns of a joined row: taps of the kernel times channels.
    n_rows : int
        Columns of one row: stride times channels.

    Returns
    -------
    list of (int, slice)
        0 and the columns of the row itself, 1 and those of the next, ...

    Examples
    --------
    >>> from cyclestarnet.networks.convolutions import row_reaches
    >>> row_reaches(7, 4)
    [(0, slice(0, 4, None)), (1, slice(4, 7, None))]
    """
    return list(enumerate(slice(start, min(start + n_rows, n_joined)) for start in range(0, n_joined, n_rows)))


class _Context(FunctionCtx):
    """What `forward` keeps for `backward`."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    stride: int
    how: tuple[float | None, int, int]  # slope, batch and length


Gradients = tuple[Tensor | None, ...]  # one per argument of `forward`


class _Strided(torch.autograd.Function):
    """Convolution with leaky ReLU: ``stride`` rows side by side, joined with those that follow, times a matrix."""

    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        matrix: Tensor,
        bias: Tensor,
        stride: int,
        slope: float | None,
        batch: int,
        length: int,
    ) -> Tensor:
        rows = x.view(-1, stride * x.shape[1])
        data = _finish(torch.addmm(bias, joined_rows(rows, len(matrix)), matrix), slope, batch, length)
        ctx.save_for_backward(x, matrix, data)
        ctx.stride, ctx.how = stride, (slope, batch, length)
        return data

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> Gradients:
        x, matrix, data = ctx.saved_tensors
        grad = _unfinish(grad, data, *ctx.how)
        rows = x.view(-1, ctx.stride * x.shape[1])
        grad_x = grad_matrix = grad_bias = None
        if ctx.needs_input_grad[0]:
            joined = grad @ matrix.T
            (_, first), *others = row_reaches(len(matrix), rows.shape[1])
            grad_x = joined if not others and joined.shape == rows.shape else joined[:, first].clone()
            for k, columns in others:
                grad_x[k:, : columns.stop - columns.start] += joined[:-k, columns]
            grad_x = grad_x.view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_matrix = (grad.T @ joined_rows(rows, len(matrix))).T
            grad_bias = grad.sum(0)
        return grad_x, grad_matrix, grad_bias, None, None, None, None


def joined_rows(rows: Tensor, width: int) -> Tensor:
    """Join every row with those that follow it, cut to a number of columns.

    Parameters
    ----------
    rows : Tensor, shape (n, n_columns)
        ``stride`` positions side by side.
    width : int
        Columns of the result, n_columns or more.

    Returns
    -------
    Tensor, shape (n, width)
        Zero beyond the last row.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks.convolutions import joined_rows
    >>> joined_rows(torch.tensor([[1, 2], [3, 4], [5, 6]]), 3)
    tensor([[1, 2, 3],
            [3, 4, 5],
            [5, 6, 0]])
    """
    if width == rows.shape[1]:
        return rows
    out = rows.new_empty(len(rows), width)
    for k, columns in row_reaches(width, rows.shape[1]):
        part = out[:, columns]
        part[: len(rows) - k] = rows[k:, : part.shape[1]]
        part[len(rows) - k :] = 0
    return out


class _Transposed(torch.autograd.Function):
    """Transposed convolution with leaky ReLU: each row makes ``stride`` rows, and adds to those that follow."""

    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        matrix: Tensor,
        bias: Tensor,
        stride: int,
        slope: float | None,
        batch: int,
        length: int,
    ) -> Tensor:
        n_rows = stride * len(bias)
        (_, first), *others = row_reaches(matrix.shape[1], n_rows)
        made = torch.addmm(bias.repeat(stride), x, matrix[:, first])
        for k, columns in others:
            made[k:, : columns.stop - columns.start].addmm_(x[:-k], matrix[:, columns])
        data = _finish(made.view(-1, len(bias)), slope, batch, length)
        ctx.save_for_backward(x, matrix, data)
        ctx.stride, ctx.how = stride, (slope, batch, length)
        return data

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> Gradients:
        x, matrix, data = ctx.saved_tensors
        grad = _unfinish(grad, data, *ctx.how)
        made = grad.view(len(x), -1)
        (_, first), *others = row_reaches(matrix.shape[1], made.shape[1])
        grad_x = grad_matrix = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = made @ matrix[:, first].T
            for k, columns in others:
                grad_x[:-k].addmm_(made[k:, : columns.stop - columns.start], matrix[:, columns].T)
        if ctx.needs_input_grad[1]:
            grad_matrix = matrix.new_empty(matrix.shape[::-1])
            torch.mm(made.T, x, out=grad_matrix[first])
            for k, columns in others:
                torch.mm(made[k:, : columns.stop - columns.start].T, x[:-k], out=grad_matrix[columns])
            grad_matrix, grad_bias = grad_matrix.T, grad.sum(0)
        return grad_x, grad_matrix, grad_bias, None, None, None, None


class _ToSpectra(torch.autograd.Function):
    """Weighted sum of the channels, in full precision: bfloat16 would round the spectrum to 0.4 %."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.cat([_full(part) @ weight for part in x.split(ROWS_AT_ONCE)])[:, None] + bias

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        grad_x = grad.to(x.dtype) * weight.to(x.dtype) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None
        parts = zip(x.split(ROWS_AT_ONCE), grad[:, 0].split(ROWS_AT_ONCE), strict=True)
        return grad_x, sum(g @ _full(part) for part, g in parts), grad.sum(0)


def _full(x: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 if they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _instance_norm(layer: nn.InstanceNorm1d, maps: RowMaps) -> RowMaps:
    valid = _full(maps.valid())
    variance, mean = torch.var_mean(valid, dim=1, keepdim=True, correction=0)
    normalised = (valid - mean) * torch.rsqrt(variance + layer.eps)
    return RowMaps.from_channels(normalised.transpose(1, 2), maps.padded, valid.dtype)
