"""Doctests of these pages write into a folder that goes away, use one core, and do not meet the builder's files."""

from pathlib import Path

import pytest
import torch

collect_ignore = ["__init__.py", "conf.py", "figures.py", "_build", "api"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent / "examples")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
