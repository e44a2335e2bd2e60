"""Scatter of repeated spectra: errors that were planted too small are found, and put right."""

from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable

from cyclestarnet.exceptions import LabelError, SpectrumError
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training import repeatability

N_STARS = 400


@pytest.fixture
def bare(tiny_model):
    """A model without hidden errors."""
    return replace(tiny_model, noise=replace(tiny_model.noise, label_error=None, label_error_trend=None))


def visits(model, rng, *, true, quoted, n_visits=(2, 3, 4)):
    """Table of stars with several spectra: labels scatter by ``true`` within a star, and errors say ``quoted``."""
    star = np.repeat(np.arange(N_STARS), rng.choice(n_visits, N_STARS))
    labels = rng.multivariate_normal(model.prior.mean, model.prior.covariance, N_STARS)[star]
    labels = labels + rng.normal(size=labels.shape) * true
    unit = [value.unit for value in model.labels.to_quantities(labels[0]).values()]
    columns = {"object": [f"star {k}" for k in star]}
    for k, name in enumerate(model.labels):
        columns[name] = labels[:, k] * unit[k]
        columns[f"{name}_err"] = np.broadcast_to(quoted, labels.shape)[:, k] * (u.K if name == "teff" else u.dex)
    return QTable(columns)


ERRORS = np.array([20.0, 0.05, 0.03])


def test_right_errors_have_a_ratio_of_one(bare, rng):
    found = repeatability(bare, visits(bare, rng, true=ERRORS, quoted=ERRORS)).table
    assert (np.abs(found["ratio"] - 1) < 4 * found["ratio_err"]).all()
    assert (found["n_stars"] == N_STARS).all()
    np.testing.assert_allclose(found["error"][:3], ERRORS)
    np.testing.assert_allclose(found["scatter"][:3], ERRORS, rtol=0.12)


def test_ratio_of_errors_that_are_too_small(bare, rng):
    """Also where they differ from spectrum to spectrum."""
    quoted = ERRORS * np.exp(rng.normal(0, 0.5, 20_000))[:, None]
    table = visits(bare, rng, true=0.0, quoted=0.0)
    quoted = quoted[: len(table)]
    labels = np.column_stack([table[name].value for name in bare.labels]) + 1.7 * quoted * rng.normal(size=quoted.shape)
    for k, name in enumerate(bare.labels):
        table[name], table[f"{name}_err"] = labels[:, k] * table[name].unit, quoted[:, k] * table[f"{name}_err"].unit
    found = repeatability(bare, table).table[:3]
    np.testing.assert_allclose(found["ratio"], 1.7, atol=4 * found["ratio_err"].max())


def test_floor_is_what_was_left_out(bare, rng):
    planted = np.array([30.0, 0.0, 0.04])
    found = repeatability(bare, visits(bare, rng, true=np.hypot(ERRORS, planted), quoted=ERRORS)).table[:3]
    np.testing.assert_allclose(found["floor"][[0, 2]], planted[[0, 2]], rtol=0.12)
    assert found["floor"][1] < 0.5 * ERRORS[1]


def test_chance_of_the_ratio_is_what_is_said(bare):
    """Over 60 tables of the same kind."""
    ratio = [
        repeatability(bare, visits(bare, np.random.default_rng(seed), true=ERRORS, quoted=ERRORS)).table["ratio"][:3]
        for seed in range(60)
    ]
    said = repeatability(bare, visits(bare, np.random.default_rng(0), true=ERRORS, quoted=ERRORS)).table["ratio_err"]
    np.testing.assert_allclose(np.std(ratio, axis=0), said[:3], rtol=0.35)


def test_hidden_errors_that_spectra_share_do_not_count(tiny_model, rng):
    hidden = 3 * ERRORS
    model = replace(tiny_model, noise=replace(tiny_model.noise, label_error=np.diag(hidden**2), label_error_trend=None))
    found = repeatability(model, visits(model, rng, true=ERRORS, quoted=np.hypot(ERRORS, hidden))).table
    assert (np.abs(found["ratio"] - 1) < 4 * found["ratio_err"]).all()


def test_model_that_was_told_quotes_errors_that_fit(bare, rng):
    """A spectrum fitted with the model before and after: the floor is added in squares."""
    flux = bare.predict(bare.labels.to_quantities(bare.prior.mean)).flux.value
    star = to_spectrum(rng.normal(flux, 0.01), bare.grid, ivar=np.full(flux.shape, 1e4))
    found = repeatability(bare, visits(bare, rng, true=3 * ERRORS, quoted=ERRORS))
    before, after = (model.fit(star, method="lm") for model in (bare, found.applied_to(bare)))
    added = np.diag(after.covariance - before.covariance)
    np.testing.assert_allclose(np.sqrt(added), found.table["floor"][:3], rtol=1e-6)
    np.testing.assert_array_equal(before.values, after.values)


def test_rows_that_failed_and_single_spectra_do_not_count(bare, rng):
    table = visits(bare, rng, true=ERRORS, quoted=ERRORS, n_visits=[2])
    table["teff"][0] = np.nan  # star 0 is left with one
    found = repeatability(bare, table).table
    assert (found["n_stars"][0], found["n_spectra"][0]) == (N_STARS - 1, 2 * N_STARS - 2)


def test_tables_that_tell_nothing_are_refused(bare, rng):
    table = visits(bare, rng, true=ERRORS, quoted=ERRORS)
    with pytest.raises(LabelError, match="lacks logg_err"):
        repeatability(bare, table["object", "teff", "teff_err", "logg", "mg_h", "mg_h_err"])
    with pytest.raises(LabelError, match="lacks name"):
        repeatability(bare, table, by="name")
    table["object"] = [f"{k}" for k in range(len(table))]
    with pytest.raises(SpectrumError, match="no star has two fitted spectra"):
        repeatability(bare, table)


def test_tables_of_other_errors_are_refused(tiny_model, bare, rng):
    """Hidden errors that were never added must not be taken off."""
    flux = bare.predict(bare.labels.to_quantities(bare.prior.mean)).flux.value
    stars = to_spectrum(rng.normal(flux, 0.01, (2, len(flux))), bare.grid, ivar=np.full((2, len(flux)), 1e4))
    table = bare.fit_many(stars, space="emulator", progress=False)
    table["object"] = ["one", "one"]
    with pytest.raises(LabelError, match="space='emulator'"):
        repeatability(bare, table)
    other = replace(tiny_model, noise=replace(tiny_model.noise, label_error=np.diag(ERRORS**2)))
    with pytest.raises(LabelError, match="another model"):
        repeatability(other, table)
    table.meta.clear()
    with pytest.raises(LabelError, match="smaller than the hidden ones of tiny"):
        repeatability(other, table)
