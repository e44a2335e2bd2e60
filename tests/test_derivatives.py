"""Derivative spectra of one star or many, and of ensembles: the public door, by a tiny model in float64."""

from copy import deepcopy
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest

from cyclestarnet import GridError, LabelError, LabelSet, WavelengthGrid
from cyclestarnet.derivatives import DerivativeSpectra, ensemble_derivatives, predictor_derivatives
from cyclestarnet.lines.features import find_features
from cyclestarnet.networks.translator import Translator
from cyclestarnet.spectra import to_spectrum

DOMAINS = ("observed", "synthetic", "difference")
STAR = {"teff": 4800 * u.K, "logg": 2.2 * u.dex(u.cm / u.s**2), "mg_h": -0.2 * u.dex}
STARS = STAR | {"teff": [[4500, 4650, 4800], [4900, 5000, 5100]] * u.K}  # (2, 3)
UNITS = {"teff": 1 / u.K, "logg": 1 / u.dex, "mg_h": 1 / u.dex}


@pytest.fixture(scope="module")
def double(tiny_model):
    """The tiny model in float64, for finite differences."""
    network, old = deepcopy(tiny_model.translator.network).double(), tiny_model.translator
    translator = Translator(network, old.flux_mean, old.flux_std)
    return replace(tiny_model, emulator=deepcopy(tiny_model.emulator).double(), translator=translator)


@pytest.fixture(scope="module")
def ensemble(double):
    """Three models whose emulators have lines 0.9, 1.0 and 1.2 times as strong: their last layers are scaled."""
    models = []
    for k, factor in enumerate((0.9, 1.0, 1.2)):
        emulator = deepcopy(double.emulator)
        emulator.layers[-1].weight.data *= factor
        models.append(replace(double, name=f"seed {k}", emulator=emulator))
    return models


def central_differences(model, labels, name, *, domain="observed", like=None):
    """Slopes by steps so small that hardly any unit of a network passes the kink of its activation."""
    step = 1e-7 * model.labels.scale[model.labels.index(name)]
    value, unit = labels[name].value, STAR[name].unit
    ends = [labels | {name: (value + sign * step) * unit} for sign in (1, -1)]
    high, low = (model.predict(end, domain=domain, like=like).flux.value for end in ends)
    return (high - low) / (2 * step)


# -- sums of predictors --------------------------------------------------------------------------
@pytest.mark.parametrize("n_stars", [1, 32, 70])
def test_weighted_predictors_sum_to_the_derivatives_of_their_weighted_flux(n_stars, rng):
    """Flux that is linear in two labels, for any number of stars."""
    first, second = rng.normal(size=(2, 2, 5))

    class Linear:
        def __init__(self, matrix):
            self.matrix = matrix

        def jacobian(self, labels):
            return labels @ self.matrix, np.broadcast_to(self.matrix, (len(labels), *self.matrix.shape))

    label_set, grid = LabelSet(["logg", "m_h"], [0, -1], [5, 1]), WavelengthGrid(np.arange(1500, 1505) * u.nm)
    values = rng.uniform(0, 1, (n_stars, 2))
    found = predictor_derivatives(
        [(2.0, Linear(first)), (-0.5, Linear(second))], values, ["m_h", "logg"], label_set=label_set, grid=grid
    )
    matrix = 2 * first - 0.5 * second
    np.testing.assert_allclose(found.flux, values @ matrix)
    for name, row in (("logg", matrix[0]), ("m_h", matrix[1])):
        np.testing.assert_allclose(found[name].value, np.tile(row, (n_stars, 1)))


# -- values --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("domain", DOMAINS[:2])
def test_slopes_of_many_stars_equal_central_differences(double, domain, name):
    found = double.derivative_spectra(STARS, domain=domain)[name].value
    expected = central_differences(double, STARS, name, domain=domain)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", UNITS)
def test_the_difference_is_that_of_central_differences(double, name):
    found = double.derivative_spectra(STARS, domain="difference")[name].value
    observed, synthetic = (central_differences(double, STARS, name, domain=domain) for domain in DOMAINS[:2])
    np.testing.assert_allclose(found, observed - synthetic, rtol=0, atol=1e-6 * np.abs(observed).max())


def test_slopes_are_those_beside_an_observed_spectrum(double, line_family, rng):
    flux = line_family([4600, 1.5, 0.1], width=2.4, depth=1.1)[0]
    like = to_spectrum(rng.normal(flux, 0.005), double.grid, ivar=np.full(415, 0.005**-2))
    found = double.derivative_spectrum(STAR, "mg_h", like=like).value
    expected = central_differences(double, STAR, "mg_h", like=like)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert np.abs(double.derivative_spectrum(STAR, "mg_h").value - expected).max() > 1e-4


@pytest.mark.parametrize("domain", DOMAINS)
def test_many_stars_have_the_slopes_of_each(double, domain):
    many = double.derivative_spectra(STARS, domain=domain)
    one = double.derivative_spectra(STARS | {"teff": 4900 * u.K}, domain=domain)
    for name in UNITS:
        np.testing.assert_allclose(many.star((1, 0))[name].value, one[name].value, rtol=0, atol=1e-12)


def test_more_stars_than_fit_at_once_keep_their_order(double, monkeypatch):
    together = double.derivative_spectra(STARS)
    monkeypatch.setattr("cyclestarnet.derivatives.STARS_AT_ONCE", 2)
    for name in UNITS:
        np.testing.assert_allclose(
            double.derivative_spectra(STARS)[name].value, together[name].value, rtol=0, atol=1e-12
        )


# -- form ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("domain", DOMAINS)
def test_units_and_shapes_of_many_stars(double, domain):
    found = double.derivative_spectra(STARS, domain=domain)
    assert {name: found[name].unit for name in found} == UNITS
    assert {found[name].shape for name in found} == {found.flux.shape} == {(2, 3, 415)}
    assert (found.shape, found.domain, found.meta) == ((2, 3), domain, {"model": "tiny"})


def test_the_flux_is_that_of_the_prediction(double):
    flux = {domain: double.derivative_spectra(STARS, domain=domain).flux for domain in DOMAINS}
    for domain in DOMAINS[:2]:
        np.testing.assert_allclose(flux[domain], double.predict(STARS, domain=domain).flux.value, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(flux["difference"], flux["observed"] - flux["synthetic"])


@pytest.mark.parametrize("domain", DOMAINS)
def test_one_star_has_a_table(double, domain):
    table = double.derivative_spectra(STAR, domain=domain).to_table()
    assert table.colnames == ["wavelength", "teff", "logg", "mg_h"]
    assert (len(table), table.meta) == (415, {"model": "tiny", "domain": domain})
    np.testing.assert_array_equal(table["wavelength"].value, double.grid.wavelength.value)


def test_chosen_labels_come_in_the_order_asked_for(double):
    everything = double.derivative_spectra(STARS)
    chosen = double.derivative_spectra(STARS, names=["mg_h", "teff"])
    assert chosen.names == ("mg_h", "teff")
    for name in chosen:
        np.testing.assert_array_equal(chosen[name], everything[name])


def test_no_stars_have_no_derivatives(double):
    assert double.derivative_spectra(STAR | {"teff": [] * u.K})["teff"].shape == (0, 415)


def test_one_label_of_many_stars(double):
    found = double.derivative_spectrum(STARS, "logg")
    np.testing.assert_array_equal(found, double.derivative_spectra(STARS)["logg"])


def test_labels_tell_where(double):
    found = double.derivative_spectra(STARS).star((1, 2))
    assert found.labels["teff"] == 5100 * u.K
    assert found.labels["logg"] == STAR["logg"]


def test_a_table_of_many_stars_is_refused(double):
    with pytest.raises(ValueError, match=r"one star, but these are of shape \(2, 3\); take one by \.star"):
        double.derivative_spectra(STARS).to_table()


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (STAR, {"names": ["mgh"]}, "Unknown label 'mgh'; did you mean 'mg_h'"),
        (STAR, {"names": ["alpha_m"]}, "it is a combination of"),
        (STARS | {"logg": 5.0}, {}, "'logg' = 5 .* is outside the training range"),
        ({"teff": 4800 * u.K}, {}, "are missing"),
    ],
)
def test_wrong_labels_are_explained(double, labels, options, message):
    with pytest.raises(LabelError, match=message):
        double.derivative_spectra(labels, **options)


def test_an_unknown_domain_lists_the_known_ones(double):
    with pytest.raises(ValueError, match="'difference'"):
        double.derivative_spectra(STAR, domain="both")


# -- the class -----------------------------------------------------------------------------------
GRID = WavelengthGrid(np.arange(15000.0, 15004.0) * u.AA)


def test_slopes_of_another_length_are_refused():
    with pytest.raises(GridError, match=r"on a grid of 4 pixels, but have .*'mg_h': \(5,\)"):
        DerivativeSpectra(GRID, np.ones(4), {"mg_h": np.ones(5)})


def test_uncertainties_of_other_stars_are_refused():
    with pytest.raises(GridError, match="flux and uncertainties must have the shape"):
        DerivativeSpectra(GRID, np.ones((2, 4)), {"mg_h": np.ones((2, 4))}, uncertainties={"mg_h": np.ones(4)})


def test_slopes_are_converted_to_the_unit_of_the_label():
    slopes = {"teff": np.full(4, 2.0) / u.kK, "vbroad": np.ones(4) * u.s / u.m}
    found = DerivativeSpectra(GRID, np.ones(4), slopes)
    np.testing.assert_allclose(found["teff"], 0.002 / u.K)
    np.testing.assert_allclose(found["vbroad"].to_value(u.s / u.km), 1000)


def test_an_absent_derivative_names_those_that_are_there():
    with pytest.raises(LabelError, match="no derivative with respect to 'c_h'; there are mg_h"):
        DerivativeSpectra(GRID, np.ones(4), {"mg_h": np.ones(4)})["c_h"]


# -- ensembles -----------------------------------------------------------------------------------
def test_an_ensemble_of_scaled_emulators_has_their_mean_and_scatter(ensemble, double):
    """The last layer is linear: slopes are 0.9, 1.0 and 1.2 times those of the second model."""
    found = ensemble_derivatives(ensemble, STARS, domain="synthetic")
    slope = double.derivative_spectra(STARS, domain="synthetic")["mg_h"].value
    scatter = np.sqrt((0.9 - 3.1 / 3) ** 2 / 2 + (1 - 3.1 / 3) ** 2 / 2 + (1.2 - 3.1 / 3) ** 2 / 2)
    np.testing.assert_allclose(found["mg_h"].value, 3.1 / 3 * slope, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.uncertainties["mg_h"].value, scatter * np.abs(slope), rtol=0, atol=1e-12)


def test_an_ensembles_difference_has_the_scatter_of_the_differences(ensemble):
    """Not that of two domains, which vary together."""
    found = ensemble_derivatives(ensemble, STAR, domain="difference", names=["teff"])
    each = [model.derivative_spectra(STAR, domain="difference")["teff"].value for model in ensemble]
    np.testing.assert_allclose(found.uncertainties["teff"].value, np.std(each, axis=0, ddof=1), rtol=0, atol=1e-12)
    assert found.domain == "difference"


def test_an_ensembles_table_has_errors(ensemble):
    table = ensemble_derivatives(ensemble, STAR, names=["teff", "mg_h"]).to_table()
    assert table.colnames == ["wavelength", "teff", "mg_h", "teff_err", "mg_h_err"]
    assert table["teff_err"].unit == 1 / u.K
    assert table.meta["models"] == ["seed 0", "seed 1", "seed 2"]


def test_one_model_is_no_ensemble(double):
    with pytest.raises(ValueError, match="must be two or more"):
        ensemble_derivatives([double], STAR)


def test_models_of_other_labels_are_no_ensemble(double):
    others = LabelSet(("teff", "logg", "fe_h"), double.labels.lower, double.labels.upper)
    with pytest.raises(LabelError, match="tiny has teff, logg, mg_h; other has teff, logg, fe_h"):
        ensemble_derivatives([double, replace(double, labels=others, name="other")], STAR)


def test_models_of_other_grids_are_no_ensemble(double):
    grid = WavelengthGrid(double.grid.wavelength + 1 * u.AA, double.grid.chips)
    with pytest.raises(GridError, match=r"models must have the same grid: tiny has .* other"):
        ensemble_derivatives([double, replace(double, grid=grid, name="other")], STAR)


# -- figures -------------------------------------------------------------------------------------
@pytest.fixture
def pair():
    """Derivatives of two domains on a grid of two chips of 20 and 30 pixels, with some of six elements."""
    index = np.arange(50)
    grid = WavelengthGrid((15000.0 + index + 100 * (index > 19)) * u.AA, ((0, 20), (20, 50)))
    slopes = {f"{e}_h": -0.1 * k * np.exp(-0.5 * (index - 6 * k) ** 2) for k, e in enumerate("abcdef", 1)}
    synthetic = DerivativeSpectra(grid, 1 - 0.01 * index, slopes | {"teff": 1e-4 * index})
    observed = {name: 0.5 * array for name, array in synthetic.slopes.items()}
    return synthetic, replace(synthetic, flux=synthetic.flux - 0.1, slopes=observed, domain="observed")


@pytest.fixture
def plot():
    """The function under test, without a screen."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    from cyclestarnet.plotting import plot_derivatives

    pyplot.switch_backend("Agg")
    yield plot_derivatives
    pyplot.close("all")


def curve(axis, label):
    """Points of a line, without gaps."""
    (line,) = [line for line in axis.lines if line.get_label() == label]
    x, y = line.get_data()
    return x[np.isfinite(y)], y[np.isfinite(y)]


def test_panels_hold_flux_and_both_derivatives_and_their_difference(plot, pair):
    synthetic, observed = pair
    axes = plot(synthetic, observed, names=["c_h"])
    slope = synthetic["c_h"].value
    np.testing.assert_array_equal(curve(axes[0], "observed")[1], observed.flux)
    for axis, expected in zip(axes[1:], (slope, 0.5 * slope, -0.5 * slope), strict=True):
        np.testing.assert_array_equal(curve(axis, "[C/H]"), [synthetic.wavelength.value, expected])
    assert len({axis.get_ylim() for axis in axes[1:]}) == 1


def test_lines_break_between_chips(plot, pair):
    line = plot(*pair)[0].lines[0]
    assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == [20]


def test_only_the_window_is_shown(plot, pair):
    axes = plot(*pair, names=["a_h"], window=(1500.35, 1501.05) * u.nm)
    assert curve(axes[1], "[A/H]")[0].tolist() == list(range(15004, 15011))


def test_the_steepest_elements_of_the_window_are_shown(plot, pair):
    def shown(**options):
        labels = [line.get_label() for line in plot(*pair, **options)[1].lines]
        return [label for label in labels if label.startswith("[")]

    assert shown() == [f"[{element}/H]" for element in "BCDEF"]  # a_h is the flattest of six
    assert "[A/H]" in shown(window=(15000, 15008) * u.AA)


def test_uncertainties_are_bands(plot, pair):
    synthetic, observed = pair
    errors = {name: np.full(50, 0.1) * array.unit for name, array in observed.slopes.items()}
    axes = plot(synthetic, replace(observed, uncertainties=errors), names=["f_h"])
    assert [len(axis.collections) for axis in axes] == [0, 0, 1, 0]
    heights = np.concatenate([path.vertices for path in axes[2].collections[0].get_paths()])
    at_pixel = heights[heights[:, 0] == 15005.0, 1]
    assert (at_pixel.min(), at_pixel.max()) == pytest.approx(observed["f_h"].value[5] + np.array([-0.1, 0.1]))


@pytest.mark.parametrize("kind", [list, iter])
def test_features_are_shaded_in_all_panels(plot, pair, kind):
    features = find_features(pair[0], strong=-0.3, least=1)
    for axis in plot(*pair, features=kind(features)):
        spans = [patch.get_x() for patch in axis.patches]
        assert spans == [pair[0].wavelength.value[feature.start] for feature in features]


def test_what_a_model_returns_is_plotted(plot, double):
    both = [double.derivative_spectra(STAR, domain=domain) for domain in ("synthetic", "observed")]
    axes = plot(*both)
    np.testing.assert_array_equal(
        curve(axes[1], "[Mg/H]")[1], double.derivative_spectrum(STAR, "mg_h", domain="synthetic").value
    )
    assert "<table" in both[0]._repr_html_()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"names": ["a_h", "teff"]}, ValueError, r"one unit, but .* are in \['1 / K', '1 / dex'\]"),
        ({"window": (15030, 15090) * u.AA}, GridError, "window 15030 to 15090 Angstrom holds no pixel"),
        ({"axes": [None]}, ValueError, "four axes are needed, but got 1"),
        ({"names": ["x_h"]}, LabelError, "no derivative with respect to 'x_h'"),
    ],
)
def test_what_cannot_be_shown_is_explained(plot, pair, options, error, message):
    with pytest.raises(error, match=message):
        plot(*pair, **options)


def test_figures_are_of_one_star_and_grid(plot, pair):
    synthetic, observed = pair
    several = DerivativeSpectra(synthetic.grid, np.ones((2, 50)), {"a_h": np.ones((2, 50))})
    with pytest.raises(ValueError, match=r"synthetic must be of one star, but has shape \(2,\)"):
        plot(several, several)
    grid = WavelengthGrid(synthetic.wavelength + 1 * u.AA, synthetic.grid.chips)
    with pytest.raises(GridError, match="observed must have the grid of synthetic"):
        plot(synthetic, replace(observed, grid=grid))
