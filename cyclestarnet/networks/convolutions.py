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

from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ChannelMaps", "Matrices", "RowMaps", "run"]

Matrices = dict[nn.Module, tuple[Tensor, Tensor]]
"""Matrix and bias of each layer, made at its first use, so that layers used twice in a step are converted once."""

ROWS_AT_ONCE = 4096  # of the last layer, in full precision: they stay in the processor's cache


@dataclass(frozen=True)
class ChannelMaps:
    """A batch of feature maps, ``data`` (batch, channels, positions)."""

    data: Tensor

    @classmethod
    def from_channels(cls, x: Tensor, padded: int, dtype: torch.dtype) -> ChannelMaps:
        return cls(x.to(dtype))

    @classmethod
    def from_spectra(cls, flux: Tensor, total_stride: int, dtype: torch.dtype) -> ChannelMaps:
        return cls(flux[:, None].to(dtype))

    @classmethod
    def join(cls, *maps: ChannelMaps) -> ChannelMaps:
        return cls(torch.cat([m.data for m in maps]))

    def beside(self, other: ChannelMaps) -> ChannelMaps:
        return ChannelMaps(torch.cat([self.data, other.data], dim=1))

    def __getitem__(self, rows: slice) -> ChannelMaps:
        return ChannelMaps(self.data[rows])

    def to(self, dtype: torch.dtype) -> ChannelMaps:
        return ChannelMaps(self.data.to(dtype))

    def channels(self) -> Tensor:
        return self.data

    def spectra(self) -> Tensor:
        return self.data[:, 0]


@dataclass(frozen=True)
class RowMaps:
    """A batch of feature maps: ``data`` (batch * padded, channels), of which ``length`` rows each are valid."""

    data: Tensor
    batch: int
    length: int

    @classmethod
    def from_channels(cls, x: Tensor, padded: int, dtype: torch.dtype) -> RowMaps:
        """Make maps of an array (batch, channels, length), padded with zeros."""
        batch, n_channels, length = x.shape
        data = F.pad(x.transpose(1, 2).to(dtype), (0, 0, 0, padded - length))
        return cls(data.reshape(batch * padded, n_channels), batch, length)

    @classmethod
    def from_spectra(cls, flux: Tensor, total_stride: int, dtype: torch.dtype) -> RowMaps:
        """Make maps of spectra (batch, n_pixels), padded to a multiple of the product of the strides to come."""
        return cls.from_channels(flux[:, None], ceil(flux.shape[1] / total_stride) * total_stride, dtype)

    @classmethod
    def join(cls, *maps: RowMaps) -> RowMaps:
        """Join batches of maps of the same shape."""
        return cls(torch.cat([m.data for m in maps]), sum(m.batch for m in maps), maps[0].length)

    def beside(self, other: RowMaps) -> RowMaps:
        """Join the channels of two batches of the same size."""
        return RowMaps(torch.cat([self.data, other.data], dim=1), self.batch, self.length)

    def __getitem__(self, rows: slice) -> RowMaps:
        """Part of the batch."""
        start, stop, _ = rows.indices(self.batch)
        return RowMaps(self.data[start * self.padded : stop * self.padded], stop - start, self.length)

    def to(self, dtype: torch.dtype) -> RowMaps:
        return RowMaps(self.data.to(dtype), self.batch, self.length)

    @property
    def padded(self) -> int:
        return self.data.shape[0] // self.batch

    def valid(self) -> Tensor:
        """The valid rows, (batch, length, channels)."""
        return self.data.view(self.batch, self.padded, -1)[:, : self.length]

    def channels(self) -> Tensor:
        """The layout of `torch.nn`: (batch, channels, length)."""
        return self.valid().transpose(1, 2)

    def spectra(self) -> Tensor:
        """One-channel maps as spectra, (batch, length)."""
        return self.valid()[:, :, 0]


def run(layers: nn.Sequential, maps, matrices: Matrices):
    """Apply a plain sequence of layers to maps, in the maps' dtype.

    Parameters
    ----------
    layers : `torch.nn.Sequential`
    maps : `ChannelMaps` or `RowMaps`
    matrices : dict
        Empty at the start of a step; filled on the way.
    """
    if isinstance(maps, ChannelMaps):
        return ChannelMaps(layers(maps.data))
    todo = list(layers)
    while todo:
        layer = todo.pop(0)
        if isinstance(layer, nn.InstanceNorm1d):
            maps = _instance_norm(layer, maps)
        elif isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            slope = todo.pop(0).negative_slope if todo and isinstance(todo[0], nn.LeakyReLU) else None
            maps = _convolve(layer, maps, slope, matrices)
        else:
            raise TypeError(f"no fast form of {type(layer).__name__}")
    return maps


def _convolve(layer: nn.Conv1d | nn.ConvTranspose1d, maps: RowMaps, slope: float | None, matrices: Matrices) -> RowMaps:
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    transposed, dtype = isinstance(layer, nn.ConvTranspose1d), maps.data.dtype
    to_spectra = not transposed and layer.out_channels == 1
    if layer not in matrices:
        if to_spectra:
            matrices[layer] = layer.weight[0, :, 0], layer.bias
        else:
            # transposed: (in, taps x out); else (taps x in, out)
            weight = layer.weight.to(dtype).permute((0, 2, 1) if transposed else (2, 1, 0))
            matrix = weight.flatten(1) if transposed else weight.flatten(0, 1)
            matrices[layer] = matrix, layer.bias.to(dtype)
    matrix, bias = matrices[layer]
    if to_spectra:
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


def row_reaches(n_joined: int, n_rows: int):
    """Slices of the columns that a row shares with its k-th following row, for k = 0, 1, ..."""
    return list(enumerate(slice(start, min(start + n_rows, n_joined)) for start in range(0, n_joined, n_rows)))


class _Strided(torch.autograd.Function):
    """Convolution with leaky ReLU: ``stride`` rows side by side, joined with those that follow, times a matrix."""

    @staticmethod
    def forward(ctx, x, matrix, bias, stride, slope, batch, length):
        rows = x.view(-1, stride * x.shape[1])
        data = _finish(torch.addmm(bias, joined_rows(rows, len(matrix)), matrix), slope, batch, length)
        ctx.save_for_backward(x, matrix, data)
        ctx.stride, ctx.how = stride, (slope, batch, length)
        return data

    @staticmethod
    def backward(ctx, grad):
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
    """Row i beside the rows that follow it, cut to ``width`` columns."""
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
    def forward(ctx, x, matrix, bias, stride, slope, batch, length):
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
    def backward(ctx, grad):
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
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return torch.cat([_full(part) @ weight for part in x.split(ROWS_AT_ONCE)])[:, None] + bias

    @staticmethod
    def backward(ctx, grad):
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
