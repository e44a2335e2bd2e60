"""The script that makes figures of the pages."""

from pathlib import Path

import pytest
from scripts import ROOT, load_script

DOCS = ROOT / "docs"


def test_the_tables_of_the_packaged_models_are_those_of_the_pages(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    figures = load_script("docs/figures.py")
    (tmp_path / "tables").mkdir()
    monkeypatch.setattr(figures, "HERE", tmp_path)
    figures.provenance()
    for name in ("provenance.rst", "provenance_dwarfs.rst"):
        table = Path("tables") / name
        assert (tmp_path / table).read_text(encoding="utf-8") == (DOCS / table).read_text(encoding="utf-8")
