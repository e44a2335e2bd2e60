"""Tests, doctests and the processes that they start use one core each, whatever their libraries would like."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # heeded where NumPy and torch are loaded, which nobody has done yet


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny arrays are slower on many threads, and sums on one thread are the same everywhere."""
    import torch

    torch.set_num_threads(1)
