"""The script that makes figures of the pages."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_the_packaged_model_is_that_of_the_pages(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    (tmp_path / "tables").mkdir()
    monkeypatch.setattr(figures, "HERE", tmp_path)
    figures.provenance()
    table = Path("tables") / "provenance.rst"
    assert (tmp_path / table).read_text(encoding="utf-8") == (DOCS / table).read_text(encoding="utf-8")
