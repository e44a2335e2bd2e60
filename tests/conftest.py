"""Shared fixtures: a seeded generator, and the developers' data where they are at hand."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def rng():
    """A generator that gives every test the same numbers."""
    return np.random.default_rng(20210101)


@pytest.fixture(scope="session")
def shared():
    """Folder of the developers' data, beside the checkout; absent for users."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the developers' data are not here")
    return folder
