"""Threads of the processor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]

# A forked process has none of the threads that its parent had, but OpenMP believes that it has them, and waits for
# them for ever. On one thread there is nobody to wait for.
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


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
