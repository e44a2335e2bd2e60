"""The tutorials, executed at a small size."""

from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


@pytest.mark.parametrize(("name", "stars"), [("own_star", 1), ("tutorial", 5), ("lines_tutorial", 60)])
def test_tutorial_runs(name, stars, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("CYCLESTARNET_TUTORIAL_STARS", str(stars))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)
    done = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    said = [output.text for output in outputs if output.get("name") == "stderr"]
    # one of them shows what too few stars do, and a survey sums up its flags
    assert all("hardly tell the elements" in text or text.startswith("flags of ") for text in said)
