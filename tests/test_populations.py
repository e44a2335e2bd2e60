"""Figures of many stars: maps of both domains, and diagrams of labels."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable

pytest.importorskip("matplotlib")

from matplotlib import pyplot
from matplotlib.colors import to_hex

from cyclestarnet import FitFlag, FitResult, GridError, LabelError
from cyclestarnet.plotting import plot_embeddings, plot_fits, plot_kiel
from cyclestarnet.plotting.axes import DOMAIN_STYLES
from cyclestarnet.spectra import to_spectrum


@pytest.fixture(autouse=True)
def headless():
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")


# -- maps --------------------------------------------------------------------------------------
def test_maps_show_each_star_in_the_colour_of_its_domain(rng):
    synthetic, observed = rng.normal(size=(7, 2)), rng.normal(size=(5, 2))
    first, second = plot_embeddings({"spectra": (synthetic, observed), "latents": (observed, synthetic)})
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["spectra", "latents"]
    (dots,) = first.collections
    shown = {tuple(place): to_hex(color) for place, color in zip(dots.get_offsets(), dots.get_facecolor(), strict=True)}
    for places, (_, color) in zip((synthetic, observed), DOMAIN_STYLES.values(), strict=True):
        assert {shown[tuple(place)] for place in places} == {to_hex(color)}


def test_maps_that_are_none_are_refused(rng):
    with pytest.raises(ValueError, match="there are no maps"):
        plot_embeddings({})
    with pytest.raises(ValueError, match=r"places must have the shape \(n, 2\), but have .*latents"):
        plot_embeddings({"latents": (rng.normal(size=(5, 3)), rng.normal(size=(5, 3)))})


# -- Kiel diagrams -----------------------------------------------------------------------------
def stars(teff=(4000, 4500, 5000), chi2=(1.0, 10.0, 2.0), **columns):
    """A table of stars at log g = teff / 1000 − 2."""
    teff = np.array(teff, dtype=float)
    return QTable({"teff": teff * u.K, "logg": teff / 1000 - 2, "reduced_chi2": np.array(chi2)} | columns)


def test_a_star_is_at_its_labels_in_the_colour_of_its_misfit():
    (ax,) = plot_kiel(stars())
    (dots,) = ax.collections
    shown = {tuple(place): value for place, value in zip(dots.get_offsets(), dots.get_array(), strict=True)}
    assert shown == {(4000, 2.0): 1.0, (4500, 2.5): 10.0, (5000, 3.0): 2.0}
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    assert left > right
    assert bottom > top


def test_panels_share_axes_and_colours_and_stars_without_colour_are_grey():
    catalogue = stars(teff=(4200, 5500), chi2=(1, 1))["teff", "logg"]
    first, second, third = plot_kiel({"a": stars(), "b": stars(chi2=(3, 3, 300.0)), "catalogue": catalogue})
    assert first.get_xlim() == third.get_xlim()
    assert first.get_xlim()[0] > 5500
    assert first.collections[0].norm is second.collections[0].norm
    assert third.lines[0].get_color() == "0.6"
    assert third.lines[0].get_xdata().tolist() == [4200, 5500]


def test_cells_show_the_median_of_their_stars():
    table = stars(teff=[4000, 4001, 4002, 5000], chi2=[1.0, 2.0, 9.0, 7.0])
    (ax,) = plot_kiel(table, bins=2)
    np.testing.assert_array_equal(ax.collections[0].get_array().filled(np.nan), [[2, np.nan], [np.nan, 7]])


def test_stars_without_a_fit_do_not_count():
    table = stars(chi2=(1, np.nan, 3))
    table["teff"][0] = np.nan
    (ax,) = plot_kiel(table)
    assert ax.collections[0].get_offsets().tolist() == [[5000, 3]]
    assert "1 stars" in ax.get_title(loc="left")


def test_isochrones_are_lines_of_their_own():
    points = QTable({"teff": [4000, 4500, 4100, 4600] * u.K, "logg": [1, 2, 1, 2.0], "m_h": [0, 0, -1, -1.0]})
    (ax,) = plot_kiel(stars(), isochrones=points)
    assert [line.get_xdata().tolist() for line in ax.lines] == [[4100, 4600], [4000, 4500]]


def test_isochrones_have_the_colour_of_stars_of_their_metallicity():
    points = QTable({"teff": [4000, 4500, 4100, 4600] * u.K, "logg": [1, 2, 1, 2.0], "m_h": [0, 0, -1, -1.0]})
    (ax,) = plot_kiel(stars(m_h=[-2.0, -1.0, 1.0]), color="m_h", isochrones=points)
    (dots,) = ax.collections
    low, high = (to_hex(dots.cmap(dots.norm(value))) for value in (-1.0, 0.0))
    assert [to_hex(line.get_color()) for line in ax.lines] == [low, high]


def test_tables_that_are_no_stars_are_refused():
    with pytest.raises(LabelError, match="the table 'a' lacks logg; it has teff"):
        plot_kiel({"a": QTable({"teff": [4000] * u.K})})
    with pytest.raises(LabelError, match="color = 'fe_h', but no table has such a column"):
        plot_kiel(stars(), color="fe_h")
    with pytest.raises(LabelError, match="teff must be in K, but is in m"):
        plot_kiel(QTable({"teff": [4000] * u.m, "logg": [2.0], "reduced_chi2": [1.0]}))
    with pytest.raises(ValueError, match="none of the 0 rows of the table has finite labels"):
        plot_kiel(stars()[:0])
    with pytest.raises(ValueError, match="bins must be 1 or more"):
        plot_kiel(stars(), bins=0)


# -- fits of one star ----------------------------------------------------------------------------
def fit_of(model, *, offset):
    """A result by hand: a flat spectrum, and a model that is off, and has a line of 0.2 at pixels 100 to 109 if so."""
    flux = np.ones(model.grid.n_pixels)
    data = to_spectrum(flux, model.grid, ivar=np.full(len(flux), 1e4), mask=np.arange(len(flux)) == 300)
    lines = flux - 0.2 * ((np.arange(len(flux)) // 10) == 10) * (offset > 0) - offset
    return FitResult(
        model.labels, np.array([4500.0, 2.0, 0.0]), np.eye(3), 415.0, 415.0, 415, True, "", FitFlag(0), data,
        to_spectrum(lines, model.grid), "observed", meta={"object": "star 7"},
    )  # fmt: skip


def test_fits_are_drawn_where_they_differ_most(tiny_model):
    results = {"plain": fit_of(tiny_model, offset=0.01), "translated": fit_of(tiny_model, offset=0.0)}
    axes = plot_fits(results)
    assert len(axes) == 4  # two chips
    line = tiny_model.grid.wavelength.value[[100, 109]]
    low, high = axes[0].get_xlim()
    assert low <= line[0] < line[1] <= high
    plain, translated = axes[2].lines[1:3]
    within = (plain.get_xdata() >= line[0]) & (plain.get_xdata() <= line[1])
    np.testing.assert_allclose(plain.get_ydata(), np.where(within, 0.21, 0.01))
    assert not translated.get_ydata().any()
    assert "star 7" in axes[0].figure.get_suptitle()


def test_masked_data_are_a_gap(tiny_model):
    wavelength = tiny_model.grid.wavelength.value
    top, bottom = plot_fits({"translated": fit_of(tiny_model, offset=0.0)}, windows=[wavelength[[290, 310]]])
    for line in (top.lines[0], bottom.lines[1]):
        assert np.isnan(line.get_ydata()).tolist() == [k == 10 for k in range(21)]


def test_fits_that_cannot_be_compared_are_refused(tiny_model):
    with pytest.raises(ValueError, match="there are no fits"):
        plot_fits({})
    with pytest.raises(GridError, match="holds no pixel"):
        plot_fits({"a": fit_of(tiny_model, offset=0.0)}, windows=[(1, 2)])
