"""Flags that nobody reads are told once, with what to do; predictions tell which labels they made up."""

import logging
import warnings

import astropy.units as u
import numpy as np
import pytest
import stars

from cyclestarnet import CycleStarNetWarning, FitFlag, FitWarning, LabelError
from cyclestarnet.spectra import to_spectrum


@pytest.fixture(scope="module")
def good(tiny_model):
    flux = stars.observed(tiny_model, stars.STAR)
    return stars.spectrum(tiny_model, flux, noise=np.random.default_rng(1))


def altered(model, good, name):
    flux = good.flux.value.copy()
    if name == "POOR_FIT":
        flux += 0.04 * np.sin(np.arange(stars.N) / 3)
    elif name == "CONTINUUM":
        flux *= np.where(np.arange(stars.N) < 200, 0.95, 1.05)
    return to_spectrum(flux, model.grid, ivar=np.full(stars.N, stars.SIGMA**-2))


def test_a_good_star_is_fitted_without_a_word(tiny_model, good):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny_model.fit(good, method="lm").flags == FitFlag(0)


@pytest.mark.parametrize(
    ("name", "advice"), [("POOR_FIT", r"look at result.plot\(\)"), ("CONTINUUM", "look at the continuum")]
)
def test_a_flag_is_told_once_with_what_to_do(tiny_model, good, name, advice):
    with pytest.warns(FitWarning) as told:
        result = tiny_model.fit(altered(tiny_model, good, name), method="lm")
    (warning,) = told
    assert name in result.flags.names
    assert name in str(warning.message)
    assert warning.filename == __file__  # of the call, not of the package
    with pytest.warns(FitWarning, match=advice):
        tiny_model.fit(altered(tiny_model, good, name), method="lm")


def test_a_bound_that_holds_a_label_back_is_told(tiny_model, good):
    with pytest.warns(FitWarning, match=r"AT_BOUND: .*widen `bounds`"):
        tiny_model.fit(good, method="lm", bounds={"teff": (4300 * u.K, 4500 * u.K)})


def test_many_stars_are_summed_up(tiny_model, good, caplog):
    spectra = [good, altered(tiny_model, good, "POOR_FIT"), "apStar-nowhere.fits"]
    with caplog.at_level(logging.WARNING):
        table = tiny_model.fit_many(spectra, progress=False)
    (record,) = [record for record in caplog.records if record.name == "cyclestarnet.pipeline.many"]
    counts = {name: sum(name in flags.split(",") for flags in table["flag_names"]) for name in ("POOR_FIT", "FAILED")}
    assert record.message.startswith("flags of 3 stars (2 with any): ")
    assert all(f"{name} {number}" in record.message for name, number in counts.items())


# -- predictions of a few labels ---------------------------------------------------------------
def conditional_mean(prior, rows, values):
    """By a Gaussian whose given combinations have errors of next to nothing, as a fit would find it."""
    precision, weight = np.linalg.inv(prior.covariance), 1e8 / np.einsum("ki,ij,kj->k", rows, prior.covariance, rows)
    hessian = precision + rows.T @ (weight[:, None] * rows)
    return np.linalg.solve(hessian, precision @ prior.mean + rows.T @ (weight * values))


@pytest.mark.parametrize(
    "given", [{"m_h": -0.3}, {"fe_h": -0.2}, {"m_h": -0.1, "alpha_m": 0.1}, {"mg_h": 0.1, "m_h": 0}]
)
def test_labels_that_are_left_out_are_what_the_prior_expects(pretrained, given):
    labels, known = {"teff": 4500 * u.K, "logg": 2.2} | given, pretrained.labels
    with pytest.warns(CycleStarNetWarning, match="were not given, and are what the prior of apogee-giants expects"):
        spectrum = pretrained.predict(labels)
    rows = [np.eye(len(known))[0], np.eye(len(known))[1]]
    for name in given:
        row, terms = np.zeros(len(known)), known.combinations.get(name, {name: 1})
        for term, weight in terms.items():
            row[known.index(term)] = weight
        rows.append(row)
    expected = conditional_mean(pretrained.prior, np.array(rows), np.array([4500, 2.2, *given.values()]))
    for name, value in spectrum.meta["filled"].items():
        assert value.value == pytest.approx(expected[known.index(name)], abs=2e-4), name
    whole = {name: q for name, q in known.to_quantities(expected).items() if name in known.names}
    np.testing.assert_allclose(spectrum.flux, pretrained.predict(whole).flux, atol=1e-4)


def test_all_labels_are_told_in_one_warning(pretrained):
    with pytest.warns(CycleStarNetWarning) as told:
        spectra = pretrained.predict({"teff": [4300, 4500] * u.K, "logg": [2.0, 2.2], "m_h": -0.2})
    assert len(told) == 1
    assert spectra.flux.shape == (2, 7167)
    assert spectra.meta["filled"]["c_h"].shape == (2,)


@pytest.mark.parametrize(
    ("labels", "told"),
    [({"teff": 4500 * u.K}, "are missing"), ({"teff": 4500 * u.K, "m_h": 0}, "combination"),
     ({"teff": 4500 * u.K, "logg": 2, "mh": 0}, "did you mean 'm_h'"), ({}, "are missing")],
)  # fmt: skip
def test_what_no_prior_can_tell_is_an_error(pretrained, labels, told):
    with pytest.raises(LabelError, match=told):
        pretrained.predict(labels)
