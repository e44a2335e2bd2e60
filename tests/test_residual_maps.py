"""Residuals of many spectra: figures of samples whose distribution is known, and the figure."""

import astropy.units as u
import numpy as np
import pytest
from scipy.stats import norm

from cyclestarnet import GridError, SpectrumError, WavelengthGrid
from cyclestarnet.residuals import ResidualDensity, ResidualMap, ResidualStatistics
from cyclestarnet.spectra import to_spectrum

GRID = WavelengthGrid((15000 + 0.2 * np.r_[0:30, 60:100]) * u.AA, ((0, 30), (30, 70)))


@pytest.fixture
def gaussian(rng):
    """300 spectra of right errors, but for pixels 30 to 39: an offset of 2 and twice the scatter there."""
    values = rng.normal(0, 1, (300, GRID.n_pixels))
    values[:, 30:40] = 2 + 2 * values[:, 30:40]
    return ResidualMap(values, GRID)


def test_figures_of_a_gaussian_are_those_of_its_closed_forms():
    quantiles = 0.5 + 2 * norm.ppf((np.arange(100_000) + 0.5) / 100_000)  # of a Gaussian of 0.5 ± 2, evenly
    own = ResidualStatistics.of(quantiles)
    assert (own.mean, own.bias) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert own.half_width == pytest.approx(2, rel=1e-3)
    folded = 2 * np.sqrt(2 / np.pi) * np.exp(-(0.25**2) / 2) + 0.5 * (1 - 2 * norm.cdf(-0.25))
    assert own.mean_abs == pytest.approx(folded, rel=1e-3)
    assert own.beyond_3 == pytest.approx(norm.sf(1.25) + norm.cdf(-1.75), rel=1e-3)


def test_a_planted_offset_and_scatter_show_at_their_pixels(gaussian):
    table = gaussian.to_table()
    assert table["wavelength"].value.tolist() == pytest.approx(GRID.wavelength.value.tolist())
    planted = np.arange(GRID.n_pixels) // 10 == 3
    for name in ("mean", "bias"):
        np.testing.assert_allclose(table[name], np.where(planted, 2, 0), atol=5 * 2 / np.sqrt(300) * 1.3)
    np.testing.assert_allclose(table["half_width"] / np.where(planted, 2, 1), 1, atol=0.3)


def test_neighbours_are_taken_together_within_chips(gaussian):
    table = gaussian.to_table(width=20)
    assert table["n_values"].tolist() == [300 * n for n in (20, 10, 20, 20)]
    assert table["wavelength"][1] == GRID.wavelength[20:30].mean()
    assert table["mean"][2] == pytest.approx(gaussian.values[:, 30:50].mean())


def test_masked_pixels_do_not_count(gaussian):
    values = gaussian.values.copy()
    values[:, 30:40], values[3] = np.nan, np.inf
    masked = ResidualMap(values, GRID)
    assert masked.statistics.n_values == 299 * 60
    assert masked.statistics.bias == pytest.approx(0, abs=0.03)
    assert np.isnan(masked.to_table()["half_width"][30:40]).all()


def test_residuals_of_fits_are_data_less_model_over_their_errors(tiny_model, line_family, rng):
    labels = line_family.draw(3, rng)
    sigma = np.full(tiny_model.grid.n_pixels, 0.01)
    stars = [to_spectrum(flux, tiny_model.grid, ivar=sigma**-2) for flux in line_family(labels, width=2.2, depth=1.1)]
    results = [tiny_model.fit(star, method="lm") for star in stars]
    in_sigma, of_continuum = (
        ResidualMap.of(iter(results), tiny_model.grid, in_sigma=way).values for way in (True, False)
    )
    used = np.isfinite(in_sigma)
    expected = np.array(
        [star.flux.value - own.model_spectrum.flux.value for star, own in zip(stars, results, strict=True)]
    )
    np.testing.assert_allclose(of_continuum[used], expected[used], atol=1e-6)
    np.testing.assert_allclose(in_sigma[used], expected[used] / 0.01, atol=1e-4)


def test_what_is_no_map_is_refused():
    with pytest.raises(GridError, match=r"must have the shape \(n_stars, 70\), but has \(3, 7\)"):
        ResidualMap(np.zeros((3, 7)), GRID)
    with pytest.raises(SpectrumError, match="none of the residuals of 2 spectra is a finite number"):
        ResidualMap(np.full((2, 70), np.nan), GRID)
    with pytest.raises(SpectrumError, match="no results"):
        ResidualMap.of([], GRID)


# -- densities -----------------------------------------------------------------------------
def density_of(values, *, in_sigma=True, block=37):
    density = ResidualDensity(GRID, in_sigma=in_sigma)
    for first in range(0, len(values), block):
        density.add(values[first : first + block])
    return density


def test_a_density_tells_what_the_residuals_themselves_do(gaussian):
    values = gaussian.values.copy()
    values[::7, 5], values[3] = np.nan, np.inf
    whole, density = ResidualMap(values, GRID), density_of(values)
    for width in (1, 20):
        ours, theirs = density.to_table(width=width), whole.to_table(width=width)
        for name in ("mean", "mean_abs", "beyond_3"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9)
        assert (ours["n_values"] == theirs["n_values"]).all()
        for name in ("bias", "half_width"):  # of 300 values, the next ones are some hundredths away
            np.testing.assert_allclose(ours[name], theirs[name], atol=0.06)
        np.testing.assert_array_equal(ours["wavelength"], theirs["wavelength"])
    assert (density.seen == whole.seen).all()


@pytest.mark.parametrize(("in_sigma", "unit"), [(True, 1.0), (False, 0.01)])
def test_percentiles_of_a_density_are_those_of_closed_forms(in_sigma, unit):
    quantiles = unit * (0.5 + 2 * norm.ppf((np.arange(210_000) + 0.5) / 210_000))
    density = ResidualDensity(GRID, in_sigma=in_sigma)
    density.add(quantiles.reshape(-1, GRID.n_pixels))
    own = density.statistics
    assert (own.mean / unit, own.bias / unit, own.half_width / unit) == pytest.approx((0.5, 0.5, 2.0), abs=2e-3)


def test_residuals_beyond_all_cells_count():
    density = ResidualDensity(GRID)
    density.add(np.full((5, 70), 1e6))
    assert density.statistics.beyond_3 == 1
    assert density.statistics.mean == 1e6
    assert density.statistics.bias > 1900


def test_pixels_of_a_density_can_be_left_out(gaussian):
    kept = density_of(gaussian.values).within(np.arange(GRID.n_pixels) // 10 != 3)
    assert kept.statistics.bias == pytest.approx(0, abs=0.03)
    assert kept.to_table()["n_values"][30:40].tolist() == 10 * [0]
    assert np.isnan(kept.to_table()["mean"][30:40]).all()


def test_shares_of_a_density_are_those_of_a_gaussian(rng):
    density, levels = density_of(rng.normal(0, 1, (3000, 70))), np.linspace(-3, 3, 13)
    np.testing.assert_allclose(density.shares(slice(0, 70), levels), np.diff(norm.cdf(levels)), atol=3e-3)


def test_what_is_no_block_of_residuals_is_refused():
    with pytest.raises(GridError, match=r"must have the shape \(n_stars, 70\), but has \(70,\)"):
        ResidualDensity(GRID).add(np.zeros(70))
    with pytest.raises(ValueError, match="width must be 1 or more pixels"):
        ResidualDensity(GRID).to_table(width=0)


# -- the figure ----------------------------------------------------------------------------
@pytest.fixture
def plot_residuals():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    from cyclestarnet.plotting import plot_residuals

    yield plot_residuals
    pyplot.close("all")


def test_a_panel_shows_density_mean_and_width(plot_residuals, gaussian):
    (ax,) = plot_residuals(gaussian)
    table, lines = gaussian.to_table(), {line.get_label(): line for line in ax.lines}
    mean = lines["mean"].get_ydata()
    assert np.isnan(mean[30])  # between the chips
    np.testing.assert_allclose(np.delete(mean, 30), table["mean"])
    edge = np.delete(lines["bias ± half-width"].get_ydata(), 30)
    np.testing.assert_allclose(edge, table["bias"] - table["half_width"])
    images = [image.get_array() for image in ax.collections]
    assert [image.shape for image in images] == [(81, 30), (81, 40)]
    assert all((image.sum(0) <= 1 + 1e-9).all() for image in images)
    assert f"half-width {gaussian.statistics.half_width:.2f} σ" in ax.get_title(loc="left")


def test_a_density_is_drawn_as_the_residuals_are(plot_residuals, gaussian):
    first, second = plot_residuals({"map": gaussian, "density": density_of(gaussian.values)}, limit=4)
    for ours, theirs in zip(second.collections, first.collections, strict=True):
        np.testing.assert_allclose(ours.get_array().cumsum(0), theirs.get_array().cumsum(0), atol=0.03)


def test_titles_have_the_figures_of_the_window(plot_residuals, gaussian):
    window = GRID.edges((30, 70))[[0, 10]]
    first, second = plot_residuals({"all": gaussian, "negative": ResidualMap(-gaussian.values, GRID)}, window=window)
    assert "all:  mean 2." in first.get_title(loc="left") or "all:  mean 1.9" in first.get_title(loc="left")
    assert "negative:  mean −" in second.get_title(loc="left")
    assert first.get_xlim() == pytest.approx(GRID.wavelength.value[[30, 39]])


def test_bad_requests_are_named(plot_residuals, gaussian):
    with pytest.raises(ValueError, match="limit must be positive"):
        plot_residuals(gaussian, limit=0)
    with pytest.raises(ValueError, match="no residuals to plot"):
        plot_residuals({})
    with pytest.raises(ValueError, match="one per panel, 2, but are 1"):
        plot_residuals({"a": gaussian, "b": gaussian}, axes=plot_residuals(gaussian))
    with pytest.raises(GridError, match="holds no pixel"):
        plot_residuals(gaussian, window=(1, 2))
