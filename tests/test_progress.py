"""Progress bars in a real notebook kernel."""

import pytest


def test_bars_in_a_notebook_without_widgets_do_not_warn(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    lines = (
        "import sys",
        "sys.modules['ipywidgets'] = None  # nobody has installed it",
        "from cyclestarnet.progress import tqdm",
        "print(sum(tqdm(range(4), disable=True)))",
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("\n".join(lines))])
    done = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [(output.name, output.text) for output in done.cells[0].outputs]
    assert outputs == [("stdout", "6\n")]
