"""Doctests of these pages write into a folder that goes away, and do not meet the builder's files."""

from pathlib import Path

import pytest

collect_ignore = ["__init__.py", "conf.py", "figures.py", "_build", "api"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent / "examples")
