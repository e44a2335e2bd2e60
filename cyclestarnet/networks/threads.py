"""Threads of the processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread for a while.

    Stars go through the networks one by one, and their matrices are too small for several threads, which
    lose more time in waiting for each other than they gain; and sums that are split among threads have other
    last bits on other machines.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.networks.threads import one_thread
    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
