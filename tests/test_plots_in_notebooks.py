"""What functions that plot do to a notebook or script: one figure is shown once, and none is left open."""

from importlib.util import find_spec

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable

pytest.importorskip("matplotlib")

from matplotlib import pyplot
from matplotlib.axes import Axes

from cyclestarnet import GridError, WavelengthGrid
from cyclestarnet.derivatives import DerivativeSpectra
from cyclestarnet.plotting import plot_derivatives, plot_error_map, plot_recovery, plot_training
from cyclestarnet.plotting.axes import new_axes

GRID = WavelengthGrid((15000.0 + np.arange(50)) * u.AA)
SLOPES = {"mg_h": -0.1 * np.sin(np.arange(50))}
STAR = DerivativeSpectra(GRID, np.ones(50), SLOPES)
MAP = QTable({"teff": [4100, 4200] * u.K, "logg": [1.0, 2.0], "error": [1.0, 2.0]})
LOG = {"iteration": np.arange(3), "rec_obs": np.ones(3)}
PLOTS = {
    "derivatives": lambda **own: plot_derivatives(STAR, STAR, **own),
    "recovery": lambda **own: plot_recovery(STAR, STAR, **own),
    "error map": lambda **own: plot_error_map(MAP, bins=1, least=1, **own),
    "training": lambda **own: plot_training(LOG, **own),
}


@pytest.fixture(autouse=True)
def headless():
    pyplot.switch_backend("Agg")
    pyplot.close("all")
    yield
    pyplot.close("all")


@pytest.mark.parametrize("name", PLOTS)
def test_many_plots_leave_one_figure_open_and_all_can_be_saved(name, tmp_path):
    shown = [np.ravel(PLOTS[name]()) for _ in range(5)]
    assert all(isinstance(ax, Axes) for axes in shown for ax in axes)
    assert pyplot.get_fignums() == [shown[-1][0].figure.number]
    assert pyplot.gcf() is shown[-1][0].figure  # what plt.savefig and plt.show take
    for k, axes in enumerate(shown):
        axes[0].figure.savefig(tmp_path / f"{k}.png", dpi=20)
    assert len({(tmp_path / f"{k}.png").stat().st_size for k in range(5)}) == 1


def test_figures_of_the_user_stay_open():
    mine, axes = pyplot.subplots(4)
    for _ in range(3):
        new_axes(figsize=(2, 2))
        plot_derivatives(STAR, STAR, axes=axes)
    assert mine.number in pyplot.get_fignums()
    assert len(pyplot.get_fignums()) == 2


CELLS = {
    "one": ("axes = plot_derivatives(star, star)", 1),
    "the value of the cell": ("plot_derivatives(star, star)", 1),
    "shown": ("plot_derivatives(star, star)\nplt.show()", 1),
    "own axes": ("figure, axes = plt.subplots(4)\nplot_derivatives(star, star, axes=axes)", 1),
    "many": (
        "for _ in range(25):\n    plot_derivatives(star, star, names=['mg_h'])\nprint(len(plt.get_fignums()))",
        25,
    ),
    "none": ("print(plt.get_fignums())", 0),
}


def test_a_notebook_shows_each_plot_once():
    if find_spec("nbclient") is None or find_spec("matplotlib_inline") is None or find_spec("ipykernel") is None:
        pytest.skip("no notebook can be run here")
    import nbclient
    import nbformat

    setup = (
        "%matplotlib inline\nimport matplotlib.pyplot as plt, numpy as np, astropy.units as u\n"
        "from cyclestarnet import DerivativeSpectra, WavelengthGrid\n"
        "from cyclestarnet.plotting import plot_derivatives\n"
        "plt.rcParams['figure.dpi'] = 10\n"
        "grid = WavelengthGrid((15000.0 + np.arange(50)) * u.AA)\n"
        "star = DerivativeSpectra(grid, np.ones(50), {'mg_h': -0.1 * np.sin(np.arange(50))})"
    )
    cells = [nbformat.v4.new_code_cell(text) for text in (setup, *(text for text, _ in CELLS.values()))]
    done = nbclient.NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=120).execute()
    outputs = {name: cell.outputs for name, cell in zip(CELLS, done.cells[1:], strict=True)}
    images = {name: sum("image/png" in out.get("data", {}) for out in found) for name, found in outputs.items()}
    assert images == {name: number for name, (_, number) in CELLS.items()}
    told = {name: "".join(out.get("text", "") for out in found) for name, found in outputs.items()}
    assert told == dict.fromkeys(CELLS, "") | {"many": "1\n", "none": "[]\n"}  # and no warning of open figures


# -- windows ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("window", [(15010, 15020), (1501, 1502) * u.nm, (15010 * u.AA, 1502 * u.nm)])
def test_a_window_may_be_given_by_numbers(window):
    assert plot_derivatives(STAR, STAR, window=window)[0].get_xlim() == pytest.approx((15010, 15020))


@pytest.mark.parametrize(
    ("window", "told"),
    [
        ((15020, 15010), "window must begin before it ends"),
        (15020, "window must be two wavelengths"),
        ((15010 * u.K, 15020 * u.K), "window must be two wavelengths"),
        ((1.501, 1.502), "holds no pixel"),
    ],
)
def test_a_window_that_is_none_is_named(window, told):
    for plot in (PLOTS["derivatives"], PLOTS["recovery"]):
        with pytest.raises(GridError, match=told):
            plot(window=window)
