"""The networks' functions by matrix products, for training in bfloat16.

Arrays are position-major: (batch * padded positions, channels), so that a
strided convolution is one product of joined neighbouring rows with a matrix,
and a transposed convolution likewise. Rows beyond the valid length hold junk
that never meets a valid one.

`run` walks the plain `torch.nn.Sequential` of `cyclestarnet.backend.networks`
and equals it to rounding; nothing here owns a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Maps", "from_channels", "from_spectra", "join", "run"]


@dataclass(frozen=True)
class Maps:
    """A batch of feature maps: ``data`` (batch * padded, channels), of which ``length`` rows each are valid."""

    data: Tensor
    batch: int
    length: int

    @property
    def padded(self) -> int:
        return self.data.shape[0] // self.batch

    def __getitem__(self, rows: slice) -> Maps:
        """Part of the batch."""
        start, stop, _ = rows.indices(self.batch)
        return Maps(self.data[start * self.padded : stop * self.padded], stop - start, self.length)

    def valid(self) -> Tensor:
        """The valid rows, (batch, length, channels)."""
        return self.data.view(self.batch, self.padded, -1)[:, : self.length]

    def channels(self) -> Tensor:
        """The layout of `torch.nn`: (batch, channels, length)."""
        return self.valid().transpose(1, 2)

    def spectra(self) -> Tensor:
        """One-channel maps as spectra, (batch, length)."""
        return self.valid()[:, :, 0]


def from_channels(x: Tensor, padded: int, dtype: torch.dtype = torch.float32) -> Maps:
    """Make maps of an array (batch, channels, length), padded with zeros."""
    batch, n_channels, length = x.shape
    data = F.pad(x.transpose(1, 2).to(dtype), (0, 0, 0, padded - length))
    return Maps(data.reshape(batch * padded, n_channels), batch, length)


def from_spectra(flux: Tensor, total_stride: int, dtype: torch.dtype = torch.float32) -> Maps:
    """Make maps of spectra (batch, n_pixels), padded to a multiple of the product of the strides to come."""
    return from_channels(flux[:, None], ceil(flux.shape[1] / total_stride) * total_stride, dtype)


def join(*maps: Maps) -> Maps:
    """Join batches of maps of the same shape."""
    return Maps(torch.cat([m.data for m in maps]), sum(m.batch for m in maps), maps[0].length)


def run(layers: nn.Sequential, maps: Maps) -> Maps:
    """Apply a plain sequence of layers to maps, in the maps' dtype."""
    for layer in layers:
        if isinstance(layer, nn.ConvTranspose1d):
            maps = _transposed_convolution(layer, maps)
        elif isinstance(layer, nn.Conv1d):
            maps = _convolution(layer, maps)
        elif isinstance(layer, nn.LeakyReLU):
            # in place: neither matrix products nor joined rows need their outputs again
            maps = Maps(F.leaky_relu(maps.data, layer.negative_slope, inplace=True), maps.batch, maps.length)
        elif isinstance(layer, nn.InstanceNorm1d):
            maps = _instance_norm(layer, maps)
        else:
            raise TypeError(f"no fast form of {type(layer).__name__}")
    return maps


class _JoinFollowing(torch.autograd.Function):
    """Row i becomes rows i, i + 1, ..., i + n - 1 side by side, cut to ``width`` numbers."""

    @staticmethod
    def forward(ctx, x: Tensor, n: int, width: int) -> Tensor:
        columns = x.shape[1]
        ctx.n, ctx.columns = n, columns
        out = x.new_empty(len(x), width)
        out[:, :columns] = x
        for k in range(1, n):
            part = out[:, k * columns : (k + 1) * columns]
            part[:-k] = x[k:, : part.shape[1]]
            part[-k:] = 0
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        out = grad[:, : ctx.columns].clone()
        for k in range(1, ctx.n):
            part = grad[:, k * ctx.columns : (k + 1) * ctx.columns]
            out[k:, : part.shape[1]] += part[:-k]
        return out, None, None


class _JoinPreceding(torch.autograd.Function):
    """Row i of each spectrum becomes rows i, i - 1, ..., i - n + 1; rows outside 0 ... length - 1 count as zero."""

    @staticmethod
    def forward(ctx, x: Tensor, n: int, batch: int, length: int) -> Tensor:
        ctx.n, ctx.batch, ctx.length = n, batch, length
        source = x.view(batch, -1, x.shape[1])
        out = x.new_empty(*source.shape[:2], n * x.shape[1])
        for k, part in enumerate(out.split(x.shape[1], dim=2)):
            part[:, k : k + length] = source[:, : min(length, source.shape[1] - k)]
            part[:, :k] = 0
            part[:, k + length :] = 0
        return out.view(len(x), -1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.view(ctx.batch, -1, grad.shape[1])
        parts = grad.split(grad.shape[2] // ctx.n, dim=2)
        out = parts[0].clone()
        for k, part in enumerate(parts[1:], start=1):
            out[:, :-k] += part[:, k:]
        out[:, ctx.length :] = 0
        return out.view(-1, out.shape[2]), None, None, None


def _full(x: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 if they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _convolution(layer: nn.Conv1d, maps: Maps) -> Maps:
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    n_out, n_in, _ = layer.weight.shape
    x = maps.data.view(-1, stride * n_in)
    if kernel > stride:
        x = _JoinFollowing.apply(x, ceil(kernel / stride), kernel * n_in)
    matrix = layer.weight.permute(2, 1, 0).reshape(kernel * n_in, n_out)
    if n_out == 1:  # the spectrum itself, in full precision: bf16 would round it to 0.4 %
        data = (torch.mv(_full(x), matrix[:, 0]) + layer.bias)[:, None]
    else:
        data = torch.addmm(layer.bias.to(x.dtype), x, matrix.to(x.dtype))
    return Maps(data, maps.batch, (maps.length - kernel) // stride + 1)


def _transposed_convolution(layer: nn.ConvTranspose1d, maps: Maps) -> Maps:
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    n_in, n_out, _ = layer.weight.shape
    n_rows = ceil(kernel / stride)
    x = _JoinPreceding.apply(maps.data, n_rows, maps.batch, maps.length)
    weight = F.pad(layer.weight, (0, n_rows * stride - kernel)).view(n_in, n_out, n_rows, stride)
    matrix = weight.permute(2, 0, 3, 1).reshape(n_rows * n_in, stride * n_out).to(x.dtype)
    data = torch.addmm(layer.bias.to(x.dtype).repeat(stride), x, matrix).view(-1, n_out)
    return Maps(data, maps.batch, (maps.length - 1) * stride + kernel)


def _instance_norm(layer: nn.InstanceNorm1d, maps: Maps) -> Maps:
    valid = _full(maps.valid())
    variance, mean = torch.var_mean(valid, dim=1, keepdim=True, correction=0)
    normalised = (valid - mean) * torch.rsqrt(variance + layer.eps)
    return from_channels(normalised.transpose(1, 2), maps.padded, valid.dtype)
