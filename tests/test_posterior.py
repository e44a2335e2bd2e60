"""Posteriors built by hand: figures of samples against those of the distribution, and ways out of the package."""

import sys
from dataclasses import replace
from importlib.util import find_spec

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable

from cyclestarnet import LabelError, Posterior
from cyclestarnet.labels import unit_of_label

N_WALKERS, N_DRAWS = 8, 2500
needs_arviz = pytest.mark.skipif(find_spec("arviz") is None, reason="ArviZ is not installed")


@pytest.fixture(scope="module")
def posterior():
    """Independent normal draws: 4800 ± 30 K, 2.3 ± 0.1, and a combination of both spread by 0.02."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(2, N_WALKERS * N_DRAWS))
    samples = QTable(
        {
            "teff": (4800 + 30 * z[0]) * u.K,
            "logg": (2.3 + 0.1 * z[1]) * unit_of_label("logg"),
            "m_h": (-0.5 + 0.016 * z[0] + 0.012 * z[1]) * u.dex,
            "log_posterior": -0.5 * (z**2).sum(0),
        }
    )
    return Posterior(
        samples, 0.4, np.array([40.0, 30.0]), True, ("teff", "logg"), 5000, n_walkers=N_WALKERS, thin=20,
        label_autocorrelation_time={"teff": 20.0, "logg": 40.0},
    )  # fmt: skip


# -- figures of the samples ---------------------------------------------------------------
def test_labels_are_medians_and_half_widths(posterior):
    assert posterior.labels["teff"].to_value(u.K) == pytest.approx(4800, abs=1)
    assert posterior.uncertainties["teff"].to_value(u.K) == pytest.approx(30, rel=0.03)
    assert posterior.uncertainties["logg"].unit == u.dex


@pytest.mark.parametrize(("level", "n_sigma"), [(0.6827, 1), (0.9545, 2)])
def test_interval_of_a_gaussian(posterior, level, n_sigma):
    low, high = posterior.interval("logg", level)
    assert low.unit == unit_of_label("logg")
    np.testing.assert_allclose([low.value, high.value], [2.3 - 0.1 * n_sigma, 2.3 + 0.1 * n_sigma], atol=0.008)


def test_interval_is_by_default_that_of_the_uncertainty(posterior):
    low, high = posterior.interval("teff")
    assert (high - low) / 2 == posterior.uncertainties["teff"]


@pytest.mark.parametrize("level", [0.6827, 0.9545])
def test_total_interval_is_that_of_the_sum_of_both_errors(posterior, level):
    """0.1 and 0.24 make 0.26; without a hidden error nothing changes."""
    both = replace(posterior, hidden_errors={"logg": 0.24, "teff": 0.0})
    n_sigma = {0.6827: 1, 0.9545: 2}[level]
    np.testing.assert_allclose(
        [edge.value for edge in both.interval("logg", level, total=True)],
        [2.3 - 0.26 * n_sigma, 2.3 + 0.26 * n_sigma], atol=0.008,
    )  # fmt: skip
    assert both.interval("logg", level) == posterior.interval("logg", level)
    assert both.interval("teff", level, total=True) == posterior.interval("teff", level)


def test_table_has_the_total_errors(posterior):
    table = replace(posterior, hidden_errors={"logg": 0.24}).to_table()
    assert len(table) == 1
    assert table["logg_err"][0].to_value(u.dex) == pytest.approx(0.26, abs=0.005)
    assert table["logg_low"][0].value == pytest.approx(2.3 - 0.26, abs=0.008)
    assert table["teff_err"][0].to_value(u.K) == pytest.approx(30, rel=0.03)
    assert (table["converged"][0], table["n_steps"][0]) == (True, 5000)


@pytest.mark.parametrize("level", [0, 1, 68])
def test_level_of_an_interval_is_a_probability(posterior, level):
    with pytest.raises(ValueError, match=f"level must be between 0 and 1, but is {level}"):
        posterior.interval("teff", level)


def test_unknown_label_is_named(posterior):
    with pytest.raises(LabelError, match="Label 'mg_h' was not sampled; sampled: teff, logg, m_h"):
        posterior.interval("mg_h")


def test_chain_has_the_draws_of_each_walker(posterior):
    chain = posterior.chain("teff")
    assert chain.shape == (N_WALKERS, N_DRAWS)
    np.testing.assert_array_equal(chain[3, :2], posterior.samples["teff"][[3, N_WALKERS + 3]])


def test_summary_has_a_row_per_label(posterior):
    row = posterior.summary()[2]
    assert (row["label"], row["unit"]) == ("m_h", "dex")
    np.testing.assert_allclose([float(row[n]) for n in ("median", "p16", "p84")], [-0.5, -0.52, -0.48], atol=0.002)


def test_samples_count_once_in_an_autocorrelation_time(posterior):
    """Draws that are one autocorrelation time apart are all effective, of twice that time only half of them."""
    teff, logg, _ = posterior.summary()
    assert (teff["tau"], logg["tau"]) == (20, 40)
    assert (teff["n_effective"], logg["n_effective"]) == (len(posterior), len(posterior) / 2)


def test_autocorrelation_time_that_nobody_knows_is_not_shown(posterior):
    row = posterior.summary()[2]
    assert np.isnan([row["tau"], row["n_effective"]]).all()


@pytest.mark.parametrize("method", ["__repr__", "_repr_html_"])
def test_text_has_the_state_of_the_chain(posterior, method):
    text = getattr(posterior, method)()
    assert all(word in text for word in ("20000 samples of 2 labels", "acceptance 0.40", "40 steps (converged)", "m_h"))


def test_text_warns_of_walkers_that_never_moved(posterior):
    stuck = Posterior(posterior.samples, 0.4, np.full(2, np.nan), False, ("teff", "logg"), 50, lowest_acceptance=0.0)
    assert "nan steps (NOT converged: sample longer, some walkers never moved)" in repr(stuck)


# -- files -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "options"),
    [("samples.ecsv", {}), ("samples.fits", {}), ("samples.h5", {"path": "samples", "serialize_meta": True})],
)
@pytest.mark.filterwarnings("ignore:The unit 'dex:astropy.utils.exceptions.AstropyUserWarning")
def test_samples_survive_a_file(posterior, tmp_path, name, options):
    posterior.samples[:100].write(tmp_path / name, **options)
    again = QTable.read(tmp_path / name)
    assert again.colnames == posterior.samples.colnames
    for column in again.colnames:
        assert again[column].unit == posterior.samples[column].unit
        np.testing.assert_array_equal(np.asarray(again[column]), np.asarray(posterior.samples[column][:100]))


# -- ArviZ -------------------------------------------------------------------------------------
@needs_arviz
def test_arviz_gets_walkers_as_chains(posterior):
    data = posterior.to_arviz()
    assert set(data.posterior.data_vars) == {"teff", "logg", "m_h"}
    assert data.posterior["teff"].dims == ("chain", "draw")
    np.testing.assert_array_equal(data.posterior["logg"], posterior.chain("logg").value)
    assert data.posterior["logg"].attrs["units"] == "dex(cm / s2)"


@needs_arviz
def test_arviz_gets_the_log_posterior_of_the_same_draws(posterior):
    data = posterior.to_arviz()
    z_teff, z_logg = (data.posterior["teff"] - 4800) / 30, (data.posterior["logg"] - 2.3) / 0.1
    np.testing.assert_allclose(data.sample_stats["lp"], -0.5 * (z_teff**2 + z_logg**2), atol=1e-9)


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [("arviz", "sampling", Posterior.to_arviz), ("corner", "matplotlib", Posterior.plot)],
)
def test_missing_package_is_named_with_its_extra(posterior, monkeypatch, module, extra, use):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'needs? {module}: pip install "cyclestarnet\[{extra}\]"'):
        use(posterior)


# -- the corner plot ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def figure(posterior):
    if find_spec("corner") is None:
        pytest.skip("corner is not installed")
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    axes = posterior.plot()
    assert axes == axes[0].figure.axes
    yield axes[0].figure
    pyplot.close("all")


def test_corner_plot_has_a_panel_per_pair(figure):
    assert len(figure.axes) == 9
    assert [ax.get_xlabel() for ax in figure.axes[6:]] == ["Teff [K]", "log g", "[M/H]"]


def test_corner_plot_tells_median_and_interval(figure, posterior):
    low, high = (edge.value for edge in posterior.interval("logg"))
    middle = posterior.labels["logg"].value
    assert figure.axes[4].get_title() == f"log g = ${middle:.2f}^{{+{high - middle:.2f}}}_{{-{middle - low:.2f}}}$"


def test_corner_plot_of_an_unknown_label_is_refused(figure, posterior):
    with pytest.raises(LabelError, match="Label 'mg_h' was not sampled"):
        posterior.plot(["teff", "mg_h"])
