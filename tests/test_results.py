"""Results built by hand: combinations of labels, errors, tables and texts against sums written here."""

from dataclasses import replace
from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest

from cyclestarnet import FitFlag, FitResult, LabelError, LabelSet

COVARIANCE = np.array([[900.0, 0.3, 0.0], [0.3, 0.0016, 0.0006], [0.0, 0.0006, 0.0025]])


@pytest.fixture
def labels():
    combinations = {"m_h": {"fe_h": 1}, "alpha_m": {"mg_h": 1, "fe_h": -1}}
    return LabelSet(["teff", "fe_h", "mg_h"], [3500, -2, -2], [6000, 1, 1], combinations)


@pytest.fixture
def result(labels):
    flux = SimpleNamespace(flux=np.array([1.0, 0.9, 0.8]) * u.one, mask=np.array([False, True, False]))
    model = SimpleNamespace(flux=np.array([0.99, 0.9, 0.83]) * u.one)
    return FitResult(
        label_set=labels, values=np.array([4800.0, -0.3, 0.1]), covariance=COVARIANCE, chi2=120.0, chi2_total=90.0,
        dof=100, success=True, message="converged", flags=FitFlag.AT_BOUND | FitFlag.LOW_SNR, spectrum=flux,
        model_spectrum=model, space="observed", meta={"object": "star 1", "fixed": ("mg_h",), "snr": 19.0},
    )  # fmt: skip


def test_labels_have_units_and_combinations(result):
    assert result.labels["teff"] == 4800 * u.K
    assert result.labels["m_h"] == -0.3 * u.dex
    assert result.labels["alpha_m"].value == pytest.approx(0.4)


def test_errors_of_combinations_follow_the_covariance(result):
    """var(mg - fe) = var(mg) + var(fe) - 2 cov."""
    assert result.uncertainties["teff"] == 30 * u.K
    assert result.uncertainties["m_h"] == 0.04 * u.dex
    assert result.uncertainties["alpha_m"].value == pytest.approx(np.sqrt(0.0025 + 0.0016 - 2 * 0.0006))


def test_correlation_by_name(result):
    assert result.correlation("fe_h", "mg_h") == pytest.approx(0.0006 / (0.04 * 0.05))


def test_reduced_chi2(result):
    assert (result.reduced_chi2, result.reduced_chi2_total) == (1.2, 0.9)


def test_residual_of_masked_pixels_is_nan(result):
    np.testing.assert_allclose(result.residual.value, [0.01, np.nan, -0.03])


def test_table_has_every_label_with_its_error(result):
    table = result.to_table()
    assert len(table) == 1
    for name in ("teff", "fe_h", "mg_h", "m_h", "alpha_m"):
        assert table[name][0] == result.labels[name]
        assert table[f"{name}_err"][0] == result.uncertainties[name]
    assert table["flag_names"][0] == "AT_BOUND,LOW_SNR"
    assert FitFlag(int(table["flags"][0])) == result.flags


def test_summary_shows_fixed_labels(result):
    summary = {row["label"]: (row["value"], row["uncertainty"], row["unit"]) for row in result.summary()}
    assert summary["teff"] == ("4800", "30", "K")
    assert summary["alpha_m"] == ("0.400", "0.054", "dex")
    assert summary["mg_h"][1] == "fixed"


@pytest.mark.parametrize("method", ["__repr__", "_repr_html_"])
def test_text_names_object_and_flags(result, method):
    text = getattr(result, method)()
    assert all(word in text for word in ("star 1", "AT_BOUND, LOW_SNR", "teff", "alpha_m", "1.20 (0.90"))


# -- what the data tell ------------------------------------------------------------------
def test_labels_without_data_are_named(result):
    """Below half a resolution, and abundances with data errors above 0.217 dex; labels that were fixed are neither."""
    told = replace(result, resolution=np.array([0.9, 0.49, np.nan]), data_error=np.array([80.0, 0.216, np.nan]))
    assert (told.prior_dominated, told.upper_limits) == (("fe_h",), ())
    told = replace(result, resolution=np.array([0.9, 0.51, 0.1]), data_error=np.array([80.0, 0.218, 0.2]))
    assert (told.prior_dominated, told.upper_limits) == (("mg_h",), ("fe_h",))
    assert told.to_table()["prior_dominated", "upper_limits"][0].as_void().item() == ("mg_h", "fe_h")
    notes = {row["label"]: row["note"] for row in told.summary()}
    assert notes == {"teff": "", "fe_h": "upper limit", "mg_h": "mostly the prior", "m_h": "", "alpha_m": ""}


def test_results_without_figures_name_nothing(result):
    assert (result.prior_dominated, result.upper_limits) == ((), ())


@pytest.mark.parametrize("said", ["Teff", "T_eff", "temperature", "tefff"])
def test_a_label_that_is_none_is_answered_with_the_one_that_is_meant(result, said):
    for values in (result.labels, result.uncertainties, result):
        with pytest.raises(LabelError, match=f"no label '{said}'; did you mean 'teff'[?] There are: teff, fe_h, mg_h"):
            values[said]
    with pytest.raises(KeyError, match="no label 'flux'; there are: "):  # what a dict raises
        result.labels["flux"]
    assert result.labels.get(said) is None


@pytest.mark.parametrize(("said", "meant"), [("[Fe/H]", "fe_h"), ("feh", "fe_h"), ("Mg_H", "mg_h"), ("M/H", "m_h")])
def test_abundances_are_known_by_what_people_write(result, said, meant):
    with pytest.raises(LabelError, match=f"did you mean '{meant}'"):
        result.labels[said]


def test_names_are_text_in_html_too(result):
    html = replace(result, meta=result.meta | {"object": "<b>&", "model": "<q>", "prior": "<u>"})._repr_html_()
    assert not any(tag in html for tag in ("<b>&", "<q>", "<u>"))
    assert "&lt;b&gt;&amp;: fit in the observed space with &lt;q&gt;" in html
