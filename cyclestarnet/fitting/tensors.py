"""Arrays as tensors, and batches of stars whose numbers do not depend on their company."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["star_by_star", "tensor_like"]


def tensor_like(array: ArrayLike, like: Tensor) -> Tensor:
    """Return an array as a tensor of the type of another one, on its device.

    Parameters
    ----------
    array : array_like of float
        What is converted; it shares its memory with the tensor where type and device allow.
    like : Tensor
        Of which type and device are taken.

    Returns
    -------
    Tensor
        Of the shape of ``array``.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.fitting.tensors import tensor_like
    >>> tensor_like([1.0, 2.0], torch.zeros(3, dtype=torch.float64)).dtype
    torch.float64
    """
    return torch.as_tensor(array, dtype=like.dtype, device=like.device)


@overload
def star_by_star(function: Callable[..., Tensor], *rows: Tensor) -> Tensor: ...
@overload
def star_by_star(function: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]: ...
def star_by_star(
    function: Callable[..., Tensor] | Callable[..., tuple[Tensor, ...]], *rows: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """Apply a function of batches to one row at a time on a processor, and to all at once on a GPU.

    The last bits of a product or sum depend on the shape of the batch. Star by
    star, a result does not depend on the company that a star is in.

    Parameters
    ----------
    function : callable
        Takes tensors of n rows each, and gives a tensor of n rows or several.
    *rows : Tensor, shape (n, ...)
        Its arguments, a row per star; one at least.

    Returns
    -------
    Tensor or tuple of Tensor
        What the function would give of all rows.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.fitting.tensors import star_by_star
    >>> star_by_star(lambda flux, ivar: (flux**2 * ivar).sum(1), torch.ones(2, 3), torch.full((2, 3), 4.0))
    tensor([12., 12.])
    """
    if rows[0].device.type != "cpu":
        return function(*rows)
    results = [function(*(tensor[k : k + 1] for tensor in rows)) for k in range(len(rows[0]))]
    if not results:
        return function(*rows)
    tensors = [result for result in results if isinstance(result, Tensor)]
    if tensors:
        return torch.cat(tensors)
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
