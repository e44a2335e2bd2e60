"""Scripts of recipes and benchmarks: all can be started, and write tables in one way."""

import sys

import pytest
from scripts import ROOT, load_script

SCRIPTS = [
    path.relative_to(ROOT).as_posix()
    for folder in ("recipes", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.name not in ("list_tables.py", "apogee_domains.py")  # modules of the others
]


@pytest.mark.parametrize("path", SCRIPTS)
def test_every_script_tells_how_it_is_used(path, monkeypatch, capsys):
    if path.startswith("benchmarks"):
        pytest.importorskip("resource")  # which Windows has not
    pytest.importorskip("matplotlib").use("Agg")
    script = load_script(path)
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {path.split('/')[-1]}")


def test_tables_have_a_line_per_cell(tmp_path):
    tables = load_script("recipes/list_tables.py")
    first = tables.list_table("Stars", [("label", "n"), ("teff", 3), ("log g", "")])
    second = tables.list_table("", [("key", "[α/M]")], header=False, widths="20 80")
    tables.write_rst(tmp_path / "tables.rst", first, "A paragraph.\n", second)
    expected = """\
.. list-table:: Stars
   :header-rows: 1

   * - label
     - n
   * - teff
     - 3
   * - log g
     -

A paragraph.

.. list-table::
   :widths: 20 80

   * - key
     - [α/M]
"""
    assert (tmp_path / "tables.rst").read_text(encoding="utf-8") == expected
