"""The tutorials, executed at a small size."""

from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
# Stars of the small size, and figures.
SMALL = {
    "own_star": (1, 3),
    "tutorial": (5, 3),
    "adapt_tutorial": (50, 2),
    "grid_tutorial": (50, 3),  # a row of the log is 50 iterations
    "lines_tutorial": (60, 3),
}
# What takes long whatever the number of stars is, and is not what a tutorial is about, is made smaller here.
FIRST = {
    "adapt_tutorial": """
from functools import partial
from cyclestarnet.training import adaptation, shortcuts

shortcuts.N_GUESS, shortcuts.N_SLOPES = 100, 10
adaptation.ModelConfig = partial(adaptation.ModelConfig, n_validation=3)
"""
}
# One of them shows what too few stars do, a survey sums up its flags, and what a model does not know is flagged.
SAID = ("hardly tell the elements", "flags of ", "FitWarning: ")


@pytest.mark.parametrize("name", SMALL)
def test_tutorial_runs(name, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    stars, figures = SMALL[name]
    monkeypatch.setenv("CYCLESTARNET_TUTORIAL_STARS", str(stars))
    monkeypatch.setenv("CYCLESTARNET_TUTORIAL_ITERATIONS", "3")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)
    if name in FIRST:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(FIRST[name]))
    done = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures
    said = [output.text for output in outputs if output.get("name") == "stderr"]
    assert all(any(words in text for words in SAID) for text in said)


def test_every_tutorial_is_executed_and_listed():
    notebooks = {path.stem for path in TUTORIALS.glob("*.ipynb")}
    assert notebooks == set(SMALL)
    index = (TUTORIALS / "index.rst").read_text(encoding="utf-8")
    assert all(f":doc:`{name}`" in index and f"   {name}\n" in index for name in notebooks)
