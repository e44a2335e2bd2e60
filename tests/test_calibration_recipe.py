"""Ranks of truths: of posteriors that are right, too narrow or shifted, all in closed form."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import norm

from cyclestarnet import GaussianPrior, LabelSet

N = 1000


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).parents[1] / "recipes" / "calibration.py"
    spec = importlib.util.spec_from_file_location("calibration", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conjugate(rng, *, width=1.0, shift=0.0):
    """Truths of N(0, 1), and means and errors of their posteriors after a measurement with an error of 0.5.

    The posterior of a measurement y is N(0.8 y, 0.2); ``width`` and ``shift`` (in sigma) make it a wrong one.
    """
    truth = rng.normal(size=N)
    value = 0.8 * rng.normal(truth, 0.5)
    error = np.sqrt(0.2)
    return truth, value + shift * error, np.full(N, width * error)


def gaussian_ranks(recipe, rng, **wrong):
    return np.array([recipe.rank_in_gaussian(*star) for star in zip(*conjugate(rng, **wrong), strict=True)])


def sampled_ranks(recipe, rng, **wrong):
    stars = zip(*conjugate(rng, **wrong), strict=True)
    return np.array([recipe.rank_in_samples(t, rng.normal(value, error, 500), rng) for t, value, error in stars])


both = pytest.mark.parametrize("ranks_of", [gaussian_ranks, sampled_ranks])


@both
def test_ranks_of_right_posteriors_are_uniform(recipe, rng, ranks_of):
    ranks = ranks_of(recipe, rng)
    assert 0 <= ranks.min() < 10
    assert 189 < ranks.max() <= 199
    assert recipe.uniformity(ranks)[2] > 0.01
    assert recipe.table({"a": ranks})["in_band"][0]


@both
@pytest.mark.parametrize("level", [0.68, 0.95])
def test_right_posteriors_cover_what_they_should(recipe, rng, ranks_of, level):
    error = np.sqrt(level * (1 - level) / N)
    assert recipe.coverage(ranks_of(recipe, rng), level) == pytest.approx(level, abs=4 * error)


@both
def test_too_narrow_posteriors_are_detected(recipe, rng, ranks_of):
    """Half the error: the interval of 1 sigma covers half a sigma, and the truth deviates twice as far."""
    ranks = ranks_of(recipe, rng, width=0.5)
    assert recipe.uniformity(ranks)[2] < 1e-9
    assert not recipe.table({"a": ranks})["in_band"][0]
    assert recipe.coverage(ranks, 0.68) == pytest.approx(2 * norm.cdf(norm.ppf(0.84) / 2) - 1, abs=0.065)
    assert recipe.pull_width(ranks) == pytest.approx(2, rel=0.1)


@both
def test_shifted_posteriors_are_detected(recipe, rng, ranks_of):
    """One sigma too high: the mean rank is P(two normal numbers differ by more than 1 sigma)."""
    row = recipe.table({"a": ranks_of(recipe, rng, shift=1.0)})[0]
    assert row["mean_rank"] == pytest.approx(norm.cdf(-1 / np.sqrt(2)), abs=0.03)
    assert not row["in_band"]


def test_chi2_of_ranks(recipe):
    """30 ranks in four bins of ten would be 7.5 each: here they are 30, 0, 0, 0, 0."""
    value, dof, p = recipe.uniformity(np.zeros(30, dtype=int))
    assert (value, dof) == (pytest.approx(24**2 / 6 + 4 * 6), 4)
    assert p < 1e-20


def test_ecdf_of_evenly_spread_ranks_does_not_differ(recipe):
    np.testing.assert_allclose(recipe.ecdf_difference(np.repeat(np.arange(200), 3)), 0, atol=1e-12)


@pytest.mark.parametrize("n", [30, 400])
def test_band_holds_95_percent_of_uniform_ranks(recipe, rng, n):
    low, high = recipe.ecdf_band(n)
    inside = 0
    for _ in range(1000):
        difference = recipe.ecdf_difference(rng.integers(0, 200, n))
        inside += ((difference >= low - 1e-12) & (difference <= high + 1e-12)).all()
    assert 925 < inside < 985


# -- stars -----------------------------------------------------------------------------------
def test_truths_follow_the_prior_inside_the_label_range(recipe, rng):
    """Half a normal distribution in the first label, a whole one in the second."""
    labels, prior = LabelSet(["mg_h", "fe_h"], [0, -5], [5, 5]), GaussianPrior([0, 0], np.eye(2))
    model = SimpleNamespace(labels=labels, prior=prior)
    draws = np.array([recipe.draw_labels(model, rng) for _ in range(2000)])
    assert draws[:, 0].min() > 0
    np.testing.assert_allclose(draws.mean(0), [np.sqrt(2 / np.pi), 0], atol=0.08)
    np.testing.assert_allclose(draws.var(0), [1 - 2 / np.pi, 1], rtol=0.13)


@pytest.mark.parametrize(("space", "domain"), [("observed", "observed"), ("emulator", "synthetic")])
def test_spectra_have_noise_and_scatter(recipe, rng, tiny_model, space, domain):
    """The quoted error is the noise alone."""
    truth = tiny_model.prior.mean
    clean = tiny_model.predict(tiny_model.labels.to_quantities(truth), domain=domain).flux.value
    stars = [recipe.observe(tiny_model, truth, 100.0, rng, space=space) for _ in range(200)]
    expected = np.hypot(0.01, tiny_model.noise.scatter[space])
    assert (stars[0].uncertainty.array == 0.01).all()
    deviation = np.array([star.flux.value - clean for star in stars]) / expected
    assert deviation.std() == pytest.approx(1, rel=0.02)
    assert abs(deviation.mean()) < 0.02


# -- rows ------------------------------------------------------------------------------------
SETTINGS = {
    "model": "tiny", "method": "laplace", "space": "emulator", "free": ["logg", "mg_h", "teff"], "stars": 3,
    "snr": [50.0, 100.0], "like": None, "max_steps": 100, "seed": 0,
}  # fmt: skip


def test_file_of_other_settings_is_refused(recipe, tmp_path):
    recipe.read_rows(tmp_path / "ranks.jsonl", SETTINGS)
    with pytest.raises(ValueError, match="was begun with seed 0 instead of 1; give another --work"):
        recipe.read_rows(tmp_path / "ranks.jsonl", SETTINGS | {"seed": 1, "stars": 5})


def test_killed_run_is_continued(recipe, tmp_path, tiny_model):
    """Without the row that was half written; stars are the same whatever was done before."""
    path, whole = tmp_path / "ranks.jsonl", tmp_path / "whole.jsonl"
    recipe.measure(tiny_model, SETTINGS, whole)
    lines = whole.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:20])
    recipe.measure(tiny_model, SETTINGS, path)
    assert path.read_text() == whole.read_text()


def test_rows_have_ranks_of_labels_and_combinations(recipe, tmp_path, tiny_model):
    recipe.measure(tiny_model, SETTINGS | {"stars": 2}, tmp_path / "ranks.jsonl")
    for row in map(json.loads, (tmp_path / "ranks.jsonl").read_text().splitlines()[1:]):
        assert 50 <= row["snr"] <= 100
        assert set(row["ranks"]) == {"teff", "logg", "mg_h", "alpha_m"}
        assert row["ranks"]["mg_h"] == row["ranks"]["alpha_m"]


def test_labels_that_are_held_have_no_ranks(recipe, tmp_path, tiny_model):
    recipe.measure(tiny_model, SETTINGS | {"free": ["mg_h"]}, tmp_path / "ranks.jsonl")
    assert set(recipe.ranks_by_label(recipe.read_rows(tmp_path / "ranks.jsonl", SETTINGS | {"free": ["mg_h"]}))) == {
        "mg_h",
        "alpha_m",
    }


def test_chains_give_ranks(recipe, tmp_path, tiny_model):
    settings = SETTINGS | {"method": "chains", "free": ["mg_h"], "stars": 1, "max_steps": 2000}
    recipe.measure(tiny_model, settings, tmp_path / "ranks.jsonl")
    (row,) = recipe.read_rows(tmp_path / "ranks.jsonl", settings)
    assert row["success"]
    assert 0 <= row["ranks"]["mg_h"] <= 199


def test_figure_has_two_panels_per_label(recipe, rng):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    figure = recipe.plot({name: rng.integers(0, 200, 100) for name in ("teff", "logg", "mg_h")})
    assert [ax.get_title(loc="left") for ax in figure.axes[::2]] == [
        f"{n}, 100 stars" for n in ("teff", "logg", "mg_h")
    ]
    pyplot.close(figure)
