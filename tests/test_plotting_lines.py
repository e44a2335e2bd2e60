"""Figures of a study of missing lines: what they draw is what they were given."""

from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable

pytest.importorskip("matplotlib")

from matplotlib import pyplot

from cyclestarnet import GridError, WavelengthGrid
from cyclestarnet.derivatives import DerivativeSpectra
from cyclestarnet.lines.features import FeatureMask, Features, find_features
from cyclestarnet.lines.missing import MissingLines
from cyclestarnet.lines.score import Score
from cyclestarnet.plotting import (
    plot_derivatives,
    plot_error_map,
    plot_missing_lines,
    plot_precision_recall,
    plot_recovery,
    plot_recovery_error,
)
from cyclestarnet.plotting.axes import ELEMENTS, element_style, label_text

INDEX = np.arange(50)
# Two chips of 20 and 30 pixels of 1 Å, from 15000 and from 15120 Å.
GRID = WavelengthGrid((15000.0 + INDEX + 100 * (INDEX > 19)) * u.AA, ((0, 20), (20, 50)))
WAVELENGTH = GRID.wavelength.value


@pytest.fixture(autouse=True)
def headless():
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")


def curve(ax, label):
    """Points of a line, without gaps."""
    (line,) = [line for line in ax.lines if line.get_label() == label]
    x, y = line.get_data()
    return x[np.isfinite(y)], y[np.isfinite(y)]


def color(ax, label):
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return line.get_color()


def bump(centre, height):
    return height * np.exp(-0.5 * (INDEX - centre) ** 2)


# -- recovery ------------------------------------------------------------------------------------
COMPLETE = {"fe_h": bump(8, -0.5), "mg_h": bump(30, -0.3), "teff": 1e-4 * INDEX}
TRUTH = DerivativeSpectra(GRID, 1 - 0.01 * INDEX, COMPLETE)
SYNTHETIC = DerivativeSpectra(GRID, np.ones(50), COMPLETE | {"mg_h": np.zeros(50)})
TRANSLATED = DerivativeSpectra(GRID, 1 - 0.008 * INDEX, COMPLETE | {"mg_h": bump(30, -0.2)}, domain="observed")


def test_recovery_shows_three_spectra_and_the_derivatives_of_each():
    axes = plot_recovery(SYNTHETIC, TRANSLATED, TRUTH)
    for ax, text, given in zip(
        axes[1:], ("synthetic", "translated", "truth"), (SYNTHETIC, TRANSLATED, TRUTH), strict=True
    ):
        np.testing.assert_array_equal(curve(axes[0], text), [WAVELENGTH, given.flux])
        np.testing.assert_array_equal(curve(ax, "[Mg/H]"), [WAVELENGTH, given["mg_h"].value])
        assert ax.get_ylabel() == f"{text}\nderivative [1 / dex]"


def test_without_a_truth_the_difference_is_shown():
    axes = plot_recovery(SYNTHETIC, TRANSLATED)
    np.testing.assert_allclose(curve(axes[3], "[Mg/H]")[1], bump(30, -0.2))
    np.testing.assert_array_equal(curve(axes[3], "[Fe/H]")[1], np.zeros(50))
    assert [line.get_label() for line in axes[0].lines] == ["synthetic", "translated"]


def test_panels_of_derivatives_have_the_range_of_the_steepest():
    deep = replace(TRUTH, slopes=COMPLETE | {"mg_h": bump(30, -2.0)})
    (limits,) = {ax.get_ylim() for ax in plot_recovery(SYNTHETIC, TRANSLATED, deep)[1:]}
    assert -2.5 < limits[0] < -2.0


def test_elements_are_those_with_steep_derivatives_in_any_panel():
    others = {name: bump(30, -0.01 * k) for k, name in enumerate(["c_h", "n_h", "o_h", "si_h", "ca_h", "ti_h"], 1)}
    several = [replace(d, slopes=d.slopes | others) for d in (SYNTHETIC, TRANSLATED, TRUTH)]
    axes = plot_recovery(*several, window=(15125, 15140) * u.AA)  # where Mg is in two of three, and no Fe
    assert [line.get_label() for line in axes[1].lines[:-1]] == ["[Mg/H]", "[O/H]", "[Si/H]", "[Ca/H]", "[Ti/H]"]


def test_chosen_elements_and_a_window_are_shown():
    axes = plot_recovery(SYNTHETIC, TRANSLATED, TRUTH, names=["fe_h"], window=(1500.35, 1501.05) * u.nm)
    assert [line.get_label() for line in axes[3].lines[:-1]] == ["[Fe/H]"]
    assert curve(axes[3], "[Fe/H]")[0].tolist() == list(range(15004, 15011))
    assert axes[3].get_xlim() == pytest.approx((15003.5, 15010.5))


def test_no_line_of_a_recovery_bridges_chips():
    axes = plot_recovery(SYNTHETIC, TRANSLATED, TRUTH)
    broken = [
        np.flatnonzero(np.isnan(line.get_ydata())).tolist()
        for ax in axes
        for line in ax.lines
        if line.get_label()[0] != "_"
    ]
    assert broken == [[20]] * 9  # three of flux, and of two elements in three panels


def test_masked_features_are_shaded_in_all_panels():
    features = find_features(TRUTH, least=1)
    for ax in plot_recovery(SYNTHETIC, TRANSLATED, TRUTH, features=features):
        spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in ax.patches]
        assert spans == [(WAVELENGTH[f.start], WAVELENGTH[f.stop - 1]) for f in features]


def test_a_difference_of_spectra_with_other_pixels_is_explained():
    short = DerivativeSpectra(WavelengthGrid(GRID.wavelength[:9]), np.ones(9), {"fe_h": np.ones(9)})
    with pytest.raises(GridError, match="translated must have the grid of synthetic"):
        plot_recovery(SYNTHETIC, short)


def test_spectra_of_a_recovery_have_one_grid():
    other = replace(TRUTH, grid=WavelengthGrid(GRID.wavelength + 1 * u.AA, GRID.chips))
    with pytest.raises(GridError, match="truth must have the grid of synthetic"):
        plot_recovery(SYNTHETIC, TRANSLATED, other)


# -- elements ------------------------------------------------------------------------------------
def test_no_two_of_the_usual_elements_look_alike():
    lines, markers = ({element_style(e)[:2] for e in ELEMENTS}, {element_style(e)[::2] for e in ELEMENTS})
    assert len(lines) == len(markers) == len(ELEMENTS) == 24


def test_an_element_has_one_colour_in_all_figures():
    recovery = plot_recovery(SYNTHETIC, TRANSLATED, names=["mg_h"])[2]
    derivatives = plot_derivatives(SYNTHETIC, TRANSLATED)[2]
    (missing, _) = plot_missing_lines(catalogue([5], [0.1], ["Mg"]), labels=False)
    assert color(recovery, "[Mg/H]") == color(derivatives, "[Mg/H]") == color(missing, "Mg")


# -- map of errors -------------------------------------------------------------------------------
# Cells of 500 K and 1 dex: one with errors of 1, 2 and 6 %, one with a single label set, two without any.
RECOVERY = QTable(
    {
        "teff": [4100, 4200, 4300, 4800] * u.K,
        "logg": [1.2, 1.5, 1.8, 2.5] * u.dex(u.cm / u.s**2),
        "error": [1.0, 2.0, 6.0, 9.0],
    }
)
CELLS = ([4000, 4500, 5000], [1, 2, 3])


def test_a_map_has_the_mean_of_each_cell_and_blanks_where_there_are_few():
    (mesh,) = plot_error_map(RECOVERY, bins=CELLS, least=2).collections
    shown = mesh.get_array().reshape(2, 2)  # gravity, temperature
    assert shown[0, 0] == pytest.approx(3.0)
    assert shown.mask.tolist() == [[False, True], [True, True]]


def test_cells_of_a_map_lie_where_their_label_sets_are():
    (mesh,) = plot_error_map(RECOVERY, bins=CELLS, least=1).collections
    assert mesh.get_array().reshape(2, 2)[1, 1] == 9.0
    assert mesh.get_coordinates()[1, 1].tolist() == [4500, 2]  # its corner
    assert mesh.get_coordinates()[2, 2].tolist() == [5000, 3]


def test_a_map_is_a_kiel_diagram_with_the_k_giant():
    ax = plot_error_map(RECOVERY, bins=CELLS, least=1)
    assert (ax.get_xlim(), ax.get_ylim()) == ((5000, 4000), (3, 1))
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines] == [(4750, 2.5)]


def test_the_k_giant_is_shown_even_where_there_are_no_label_sets():
    ax = plot_error_map(RECOVERY[:3], bins=([4000, 4500], [1, 2]), least=1)
    assert (ax.get_xlim(), ax.get_ylim()) == ((4750, 4000), (2.5, 1))


def test_the_colour_bar_of_a_map_is_labelled():
    _, bar = plot_error_map(RECOVERY, bins=CELLS, least=1).figure.axes
    assert bar.get_ylabel() == "mean error of masked pixels [%]"


def test_a_map_without_any_cell_is_explained():
    with pytest.raises(ValueError, match="no cell has 5 of the 4 label sets, at most 3; ask for fewer bins"):
        plot_error_map(RECOVERY, bins=CELLS)


# -- Table 1 -------------------------------------------------------------------------------------
TABLE = QTable({"fraction": [0.1, 0.3, 0.1, 0.1 + 0.2], "seed": [1, 1, 2, 2], "error": [0.2, 0.5, 0.4, 0.9]})


def test_seeds_are_dots_and_their_mean_is_a_line():
    ax = plot_recovery_error(TABLE)
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(curve(ax, "mean"), [[10, 30], [0.3, 0.7]])
    dots = ax.lines[-1]
    assert (dots.get_marker(), dots.get_linestyle()) == ("o", "None")
    np.testing.assert_allclose(dots.get_data(), [[10, 30, 10, 30], TABLE["error"]])


def test_each_network_has_its_line():
    table = QTable(TABLE, copy=True)
    table["network"] = ["wide", "paper", "paper", "wide"]
    ax = plot_recovery_error(table)
    np.testing.assert_allclose(curve(ax, "paper"), [[10, 30], [0.4, 0.5]])
    np.testing.assert_allclose(curve(ax, "wide"), [[10, 30], [0.2, 0.9]])
    assert color(ax, "paper") != color(ax, "wide")


def test_published_errors_are_a_band_that_ends_in_two_numbers():
    (band,) = plot_recovery_error(TABLE).collections
    corners = {tuple(corner) for corner in np.round(band.get_paths()[0].vertices, 9)}
    assert corners == {(10, 0.35), (10, 0.41), (70, 0.35), (70, 0.41), (80, 4.5), (90, 4.59)}


# -- catalogue of missing lines ------------------------------------------------------------------
def catalogue(peaks, depth, elements):
    """Lines at pixels, in a difference that has them as single deep pixels."""
    difference = np.zeros(50)
    difference[peaks] = -np.asarray(depth)
    table = QTable({"wavelength": GRID.wavelength[peaks], "depth": depth, "element": elements})
    return MissingLines(table, GRID, difference, noise=0.02)


LINES = catalogue([5, 12, 30, 45], [0.1, 0.3, 0.2, 0.05], ["Fe", "Mg", "Fe", "C"])


def differences(ax):
    """The curve of the difference: the first line of a panel."""
    x, y = ax.lines[0].get_data()
    return x[np.isfinite(y)].tolist(), y[np.isfinite(y)].tolist()


def test_each_chip_has_a_panel_with_its_difference_alone():
    axes = plot_missing_lines(LINES)
    for ax, (start, stop) in zip(axes, GRID.chips, strict=True):
        assert differences(ax) == (WAVELENGTH[start:stop].tolist(), LINES.difference[start:stop].tolist())
        assert ax.get_xlim() == (WAVELENGTH[start] - 0.5, WAVELENGTH[stop - 1] + 0.5)
    assert len({ax.get_ylim() for ax in axes}) == 1


def test_lines_are_marked_at_their_wavelength_and_depth():
    blue, red = plot_missing_lines(LINES)
    assert [array.tolist() for array in curve(blue, "Fe")] == [[15005], [-0.1]]
    assert [array.tolist() for array in curve(red, "Fe")] == [[15130], [-0.2]]
    assert [line.get_label() for line in blue.lines if line.get_label()[0] != "_"] == ["Fe", "Mg"]


def test_the_band_is_one_sigma_of_the_difference():
    blue, _ = plot_missing_lines(LINES)
    corners = np.concatenate([path.vertices for path in blue.collections[0].get_paths()])
    at_line = corners[corners[:, 0] == 15012, 1]
    assert (at_line.min(), at_line.max()) == pytest.approx((-0.32, -0.28))


def test_a_window_over_a_gap_is_one_panel_with_a_broken_line():
    (ax,) = plot_missing_lines(LINES, window=(15010, 15135) * u.AA)
    assert ax.get_xlim() == (15010, 15135)
    x, y = ax.lines[0].get_data()
    assert np.isnan(y[20])
    assert x[np.isfinite(y)].tolist() == WAVELENGTH[10:36].tolist()


def test_the_legend_has_all_elements_of_the_panels_and_no_others():
    def legend(**options):
        return [text.get_text() for text in plot_missing_lines(LINES, **options)[0].get_legend().get_texts()]

    assert legend() == ["Fe", "C", "Mg", "±1σ"]
    assert legend(window=(15120, 15140) * u.AA) == ["Fe", "±1σ"]


def test_pixels_that_are_known_to_lack_lines_are_shaded():
    features = find_features(DerivativeSpectra(GRID, np.ones(50), {"fe_h": bump(8, -0.3) + bump(30, -0.3)}), least=1)
    mask = FeatureMask(features, [True, False])
    blue, red = plot_missing_lines(LINES, truth=mask)
    corners = blue.collections[0].get_paths()[0].vertices[:, 0]
    masked = WAVELENGTH[mask.pixels]
    assert (corners.min(), corners.max()) == (masked[0] - 0.5, masked[-1] + 0.5)
    assert len(blue.collections[0].get_paths()) == 1
    assert red.get_xlim()[0] > corners.max()


def boxes(ax):
    return {text.get_text(): text.get_window_extent() for text in ax.texts}


def test_names_are_written_below_the_lines():
    blue, red = plot_missing_lines(LINES)
    assert {*boxes(blue)} == {"Fe", "Mg"}
    assert {*boxes(red)} == {"Fe", "C"}
    for name, box in boxes(blue).items():
        x, y = blue.transData.transform(np.transpose(curve(blue, name)))[0]
        assert (box.x0 + box.x1) / 2 == pytest.approx(x, abs=1)
        assert blue.bbox.y0 < box.y1 < y


def test_of_names_without_room_that_of_the_strongest_line_is_written():
    wavelength = [15010.0, 15010.05, 15010.1] * u.AA
    crowd = QTable({"wavelength": wavelength, "depth": [0.2, 0.201, 0.2], "element": ["Fe", "Mg", "Si"]})
    blue, _ = plot_missing_lines(replace(LINES, table=crowd))
    assert [*boxes(blue)] == ["Mg"]


def test_names_are_not_written_over_the_curve():
    deep = catalogue([10], [0.5], ["Fe"])
    deep.table["depth"] = 0.47  # the dip goes on below the marker
    assert not boxes(plot_missing_lines(deep)[0])


def test_names_can_be_left_out():
    assert not any(ax.texts for ax in plot_missing_lines(LINES, labels=False))


def test_a_line_in_emission_is_above_zero_with_its_name_above():
    blue, _ = plot_missing_lines(catalogue([10], [-0.2], ["Fe"]))
    assert curve(blue, "Fe")[1].tolist() == [0.2]
    assert boxes(blue)["Fe"].y0 > blue.transData.transform((15010, 0.2))[1]


def test_a_catalogue_without_lines_is_shown():
    nothing = catalogue([], [], np.array([], dtype=str))
    blue, _ = plot_missing_lines(nothing)
    assert [text.get_text() for text in blue.get_legend().get_texts()] == ["±1σ"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": (15030, 15090) * u.AA}, GridError, "window 15030 to 15090 Angstrom holds no pixel"),
        ({"axes": [None]}, ValueError, "axes must be one per panel, 2, but are 1"),
        ({"truth": FeatureMask(Features((), 7), [])}, GridError, "truth must have the 50 pixels of lines, but has 7"),
    ],
)
def test_what_cannot_be_shown_of_a_catalogue_is_explained(options, error, message):
    with pytest.raises(error, match=message):
        plot_missing_lines(LINES, **options)


# -- precision and recall ------------------------------------------------------------------------
def score(fdr, precision, recall):
    return Score(np.array(fdr), np.array(precision), np.array(recall), 0.1, np.nan, np.nan, np.nan, 0, 0)


SCORE = score([0.0, 0.01, 0.049, 0.049, 0.4], [1.0, 0.98, 0.96, 0.94, 0.5], [0.1, 0.4, 0.5, 0.6, 0.9])


def test_precision_is_shown_against_recall_with_the_last_line_of_five_percent():
    ax = plot_precision_recall(SCORE)
    np.testing.assert_array_equal(ax.lines[0].get_data(), [SCORE.recall, SCORE.precision])
    point = ax.lines[1]
    assert (point.get_marker(), [*point.get_xdata()], [*point.get_ydata()]) == ("o", [0.6], [0.94])


@pytest.mark.parametrize("table", [score([0.5], [0.5], [0.5]), score([], [], [])])
def test_nothing_is_marked_where_no_line_is_that_certain(table):
    assert "o" not in [line.get_marker() for line in plot_precision_recall(table).lines]


# -- axes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("plot", "given"),
    [(plot_error_map, RECOVERY[:2]), (plot_recovery_error, TABLE), (plot_precision_recall, SCORE)],
)
def test_own_axes_are_used_and_no_figure_is_made(plot, given):
    figure, mine = pyplot.subplots()
    options = {"least": 1} if plot is plot_error_map else {}
    assert plot(given, ax=mine, **options) is mine
    assert pyplot.get_fignums() == [figure.number]


def test_own_axes_are_used_for_panels():
    _, mine = pyplot.subplots(4)
    assert plot_recovery(SYNTHETIC, TRANSLATED, axes=mine) == list(mine)
    assert plot_missing_lines(LINES, axes=mine[:2]) == list(mine[:2])
    assert len(pyplot.get_fignums()) == 1


def test_a_catalogue_draws_itself():
    (ax,) = LINES.plot(window=(15010, 15135), labels=False)
    np.testing.assert_array_equal(curve(ax, "Fe"), curve(plot_missing_lines(LINES, window=(15010, 15135))[0], "Fe"))


@pytest.mark.parametrize(
    ("name", "text"),
    [("teff", "Teff [K]"), ("logg", "log g"), ("m_h", "[M/H]"), ("alpha_m", "[α/M]"), ("mg_fe", "[Mg/Fe]"),
     ("vmicro", "vmicro [km/s]"), ("c12_c13", "¹²C/¹³C"), ("age", "age")],
)  # fmt: skip
def test_labels_are_written_as_people_do(name, text):
    assert label_text(name, unit=True) == text
