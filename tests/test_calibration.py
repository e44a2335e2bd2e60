"""Ranks of truths: of posteriors that are right, too narrow or shifted, in closed form; and where ranks come from."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import norm
from scripts import load_script

from cyclestarnet import GaussianPrior, LabelSet
from cyclestarnet.exceptions import LabelError, SpectrumError
from cyclestarnet.pipeline.fit import fit_stars
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training import Ranks, calibration, calibration_ranks, rank_table
from cyclestarnet.training.calibration import draw_labels, simulate_star
from cyclestarnet.training.ranks import (
    coverage,
    ecdf_band,
    ecdf_difference,
    expected_coverage,
    pull_width,
    rank_in_gaussian,
    rank_in_samples,
    rank_of_distance,
    uniformity,
)

N = 1000


def conjugate(rng, *, width=1.0, shift=0.0):
    """Truths of N(0, 1), and means and errors of their posteriors after a measurement with an error of 0.5.

    The posterior of a measurement y is N(0.8 y, 0.2); ``width`` and ``shift`` (in sigma) make it a wrong one.
    """
    truth = rng.normal(size=N)
    value = 0.8 * rng.normal(truth, 0.5)
    error = np.sqrt(0.2)
    return truth, value + shift * error, np.full(N, width * error)


def gaussian_ranks(rng, **wrong):
    return np.array([rank_in_gaussian(*star) for star in zip(*conjugate(rng, **wrong), strict=True)])


def sampled_ranks(rng, **wrong):
    stars = zip(*conjugate(rng, **wrong), strict=True)
    return np.array([rank_in_samples(t, rng.normal(value, error, 500), rng) for t, value, error in stars])


def row_of(ranks):
    """Statistics of the ranks of one label."""
    return rank_table(Ranks({"a": ranks}, n_stars=N))[0]


both = pytest.mark.parametrize("ranks_of", [gaussian_ranks, sampled_ranks])


# -- statistics ------------------------------------------------------------------------------
@both
def test_ranks_of_right_posteriors_are_uniform(rng, ranks_of):
    ranks = ranks_of(rng)
    assert 0 <= ranks.min() < 10
    assert 189 < ranks.max() <= 199
    assert uniformity(ranks)[2] > 0.01
    assert row_of(ranks)["in_band"]


@both
@pytest.mark.parametrize("level", [0.68, 0.95])
def test_right_posteriors_cover_what_they_should(rng, ranks_of, level):
    error = np.sqrt(level * (1 - level) / N)
    assert coverage(ranks_of(rng), level) == pytest.approx(level, abs=4 * error)


@both
def test_too_narrow_posteriors_are_detected(rng, ranks_of):
    """Half the error: the interval of 1 sigma covers half a sigma, and the truth deviates twice as far."""
    ranks = ranks_of(rng, width=0.5)
    assert uniformity(ranks)[2] < 1e-9
    assert not row_of(ranks)["in_band"]
    assert coverage(ranks, 0.68) == pytest.approx(2 * norm.cdf(norm.ppf(0.84) / 2) - 1, abs=0.065)
    assert pull_width(ranks) == pytest.approx(2, rel=0.1)


@both
def test_shifted_posteriors_are_detected(rng, ranks_of):
    """One sigma too high: the mean rank is P(two normal numbers differ by more than 1 sigma)."""
    row = row_of(ranks_of(rng, shift=1.0))
    assert row["mean_rank"] == pytest.approx(norm.cdf(-1 / np.sqrt(2)), abs=0.03)
    assert not row["in_band"]


def test_chi2_of_ranks():
    """30 ranks in five bins would be 6 each: here they are 30, 0, 0, 0, 0."""
    value, dof, p = uniformity(np.zeros(30, dtype=int))
    assert (value, dof) == (pytest.approx(24**2 / 6 + 4 * 6), 4)
    assert p < 1e-20


def test_ecdf_of_evenly_spread_ranks_does_not_differ():
    np.testing.assert_allclose(ecdf_difference(np.repeat(np.arange(200), 3)), 0, atol=1e-12)


@pytest.mark.parametrize(("n", "level"), [(30, 0.95), (400, 0.95), (400, 0.5)])
def test_a_band_holds_its_fraction_of_uniform_ranks(rng, n, level):
    """4 σ of 1,000 sets of ranks; few ranks take few values, so that their bands hold somewhat more."""
    low, high = ecdf_band(n, level)
    inside = 0
    for _ in range(1000):
        difference = ecdf_difference(rng.integers(0, 200, n))
        inside += ((difference >= low - 1e-12) & (difference <= high + 1e-12)).all()
    error = np.sqrt(1000 * level * (1 - level))
    assert 1000 * level - 4 * error < inside < 1000 * level + 5 * error


def test_ranks_at_the_edge_of_the_band_are_inside():
    """One rank below 1 of 200 stars is what is expected; the others are spread as evenly as can be."""
    assert rank_table(Ranks({"a": np.arange(200)}, n_stars=200))["in_band"][0]


def test_a_table_tells_how_many_stars_failed():
    table = rank_table(Ranks({"a": [1, 2]}, n_stars=5, failed=(0, 3)))
    assert (table["n"][0], table.meta) == (2, {"stars": 5, "failed": 2})


def test_a_table_of_no_ranks_is_empty():
    table = rank_table(Ranks({}, n_stars=2, failed=(0, 1)))
    assert (len(table), table.colnames) == (0, rank_table(Ranks({"a": [1]}, n_stars=1)).colnames)


@pytest.mark.parametrize("ranks", [[200], [-1], [1.0], [[1]], "12"], ids=str)
def test_ranks_are_whole_numbers_below_200(ranks):
    with pytest.raises(ValueError, match="ranks of a must be whole numbers from 0 to 199"):
        Ranks({"a": ranks}, n_stars=9)


@pytest.mark.parametrize("ranks", [[], [1, 2]])
def test_stars_that_failed_have_no_ranks(ranks):
    with pytest.raises(ValueError, match=f"a has {len(ranks)} ranks, but there must be one to 1: 1 of 2 stars failed"):
        Ranks({"a": ranks}, n_stars=2, failed=(0,))


@pytest.mark.parametrize("failed", [(2,), (-1,), (0, 0)])
def test_only_stars_can_fail(failed):
    with pytest.raises(ValueError, match="failed must be some of the stars 0 to 1"):
        Ranks({}, n_stars=2, failed=failed)


@pytest.mark.parametrize("error", [0.0, -1.0, np.nan])
def test_no_rank_without_an_error(error):
    with pytest.raises(ValueError, match="a rank needs finite numbers and a positive error"):
        rank_in_gaussian(0.0, 0.0, error)


def test_no_rank_among_too_few_samples(rng):
    with pytest.raises(ValueError, match="199 samples are needed to rank a truth among, but there are 198"):
        rank_in_samples(0.0, np.zeros(198), rng)


# -- all labels together -----------------------------------------------------------------------
def joint_ranks(rng, *, width=1.0, correlated=True, error=0.5, n_stars=300, k=5):
    """Ranks of truths of N(0, C) in posteriors after a measurement of every label.

    The posterior is N(S y / error², S) with S = (C⁻¹ + 1/error²)⁻¹; ``width`` makes it a wrong one, and so does
    ``correlated=False``, with the right width of each label.
    """
    covariance = 0.9 ** np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    posterior = np.linalg.inv(np.linalg.inv(covariance) + np.eye(k) / error**2)
    truth = rng.multivariate_normal(np.zeros(k), covariance, size=n_stars)
    mean = rng.normal(truth, error) @ posterior / error**2
    if not correlated:
        posterior = np.diag(np.diag(posterior))
    draws = rng.multivariate_normal(np.zeros(k), posterior * width**2, size=(n_stars, 500))
    return np.array([rank_of_distance(t, m + d, rng) for t, m, d in zip(truth, mean, draws, strict=True)])


@pytest.mark.parametrize("k", [1, 5, 20])
def test_right_posteriors_of_all_labels_cover_what_they_should(rng, k):
    credibility, covered = expected_coverage(joint_ranks(rng, k=k))
    low, high = ecdf_band(300, 0.999)
    assert ((covered - credibility >= low) & (covered - credibility <= high)).all()


@pytest.mark.parametrize("k", [5, 20])
def test_posteriors_of_all_labels_that_are_too_narrow_are_detected(rng, k):
    """Of 0.7 times the width: less is covered, by more than chance, and the more so the more labels there are."""
    credibility, covered = expected_coverage(joint_ranks(rng, width=0.7, k=k))
    assert (covered - credibility).min() < 2 * ecdf_band(300, 0.999)[0].min()
    assert covered[credibility == 0.5] < (0.38 if k == 5 else 0.25)


def test_correlations_that_are_wrong_are_detected(rng):
    """Distances of the truths scatter 1.8 times as much as those of the samples: they pile up at both ends."""
    assert uniformity(joint_ranks(rng, correlated=False, error=3.0, k=20))[2] < 1e-3


@pytest.mark.parametrize(
    ("truth", "samples", "told"),
    [([0.0], np.zeros((198, 1)), "199 samples are needed"), ([0.0, 1.0], np.zeros((199, 1)), "must have shapes")],
)
def test_no_distance_without_samples_of_the_same_labels(rng, truth, samples, told):
    with pytest.raises(ValueError, match=told):
        rank_of_distance(truth, samples, rng)


# -- stars -----------------------------------------------------------------------------------
def test_truths_follow_the_prior_inside_the_label_range(rng):
    """Half a normal distribution in the first label, a whole one in the second."""
    labels, prior = LabelSet(["mg_h", "fe_h"], [0, -5], [5, 5]), GaussianPrior([0, 0], np.eye(2))
    model = SimpleNamespace(labels=labels, prior=prior)
    draws = np.array([labels.to_array(draw_labels(model, rng)) for _ in range(2000)])
    assert draws[:, 0].min() > 0
    np.testing.assert_allclose(draws.mean(0), [np.sqrt(2 / np.pi), 0], atol=0.08)
    np.testing.assert_allclose(draws.var(0), [1 - 2 / np.pi, 1], rtol=0.13)


def test_a_prior_beyond_the_label_range_is_refused(rng):
    model = SimpleNamespace(labels=LabelSet(["mg_h"], [40], [50]), prior=GaussianPrior([0], np.eye(1)))
    with pytest.raises(LabelError, match="fewer than one in 10,000 draws"):
        draw_labels(model, rng)


@pytest.mark.parametrize(("space", "domain"), [("observed", "observed"), ("emulator", "synthetic")])
def test_spectra_have_noise_and_scatter(rng, tiny_model, space, domain):
    """The quoted error is the noise alone; the scatter is inflated, as in the weights of fits."""
    noise = replace(tiny_model.noise, scatter_inflation={space: 2.0})
    model = replace(tiny_model, noise=noise)
    truth = model.labels.to_quantities(model.prior.mean)
    clean = model.predict(truth, domain=domain).flux.value
    stars = [simulate_star(model, truth, 100.0, rng, space=space) for _ in range(200)]
    expected = np.hypot(0.01, 2 * noise.scatter[space])
    assert (stars[0].uncertainty.array == 0.01).all()
    deviation = np.array([star.flux.value - clean for star in stars]) / expected
    assert deviation.std() == pytest.approx(1, rel=0.02)
    assert abs(deviation.mean()) < 0.02


def test_spectra_are_like_one_that_is_given(rng, tiny_model, line_family):
    """Next to no noise: what is left is what the model predicts, with the split latent of the given star."""
    quiet = replace(tiny_model, noise=replace(tiny_model.noise, scatter={}))
    truth = quiet.labels.to_quantities(quiet.prior.mean)
    flux = line_family(quiet.prior.mean, width=2.4, depth=1.1)[0]
    like = to_spectrum(flux, quiet.grid, ivar=np.full(len(flux), 4e4))
    star = simulate_star(quiet, truth, 1e9, rng, like=like).flux.value
    np.testing.assert_allclose(star, quiet.predict(truth, like=like).flux.value, atol=1e-7)
    assert np.abs(star - quiet.predict(truth).flux.value).max() > 1e-4


# -- calibrations --------------------------------------------------------------------------------
FAST = {"space": "emulator", "snr": (50.0, 100.0), "progress": False}


def rows_in(path):
    """Star, S/N, success and ranks of each line of a file."""
    for line in path.read_text().splitlines()[1:]:
        record = json.loads(line)
        (star,), ((snr, success, ranks),) = record["stars"], record["rows"]
        yield star, snr, success, ranks


def test_errors_of_the_emulator_are_right(tiny_model):
    """The emulator's fits are nearly linear: Gaussian errors hold the truth as often as they say."""
    ranks = calibration_ranks(tiny_model, 100, **FAST)
    assert (ranks.n_stars, ranks.failed) == (100, ())
    assert (rank_table(ranks)["p"] > 1e-3).all()


@pytest.mark.slow
def test_stars_are_taken_as_they_are_normalised(pretrained):
    """Gravities by the emulator: a continuum that is fitted to the noise would make pulls 1.5 times as wide."""
    table = rank_table(calibration_ranks(pretrained, 40, free=("logg",), space="emulator", progress=False))
    assert 0.7 < table["pull_width"][0] < 1.3


def test_errors_that_are_too_large_are_noticed(tiny_model, monkeypatch):
    """Fits that believe in a scatter of three times the noise, which stars have not: errors are √10 times too large.

    Labels that are far off are drawn to the prior, so that their pulls are somewhat wider than 1 / √10.
    """
    quiet, scattered = (replace(tiny_model.noise, scatter={"emulator": np.full(415, size)}) for size in (0.0, 0.03))
    monkeypatch.setattr(
        calibration, "fit_stars", lambda model, *rest: fit_stars(replace(model, noise=scattered), *rest)
    )
    ranks = calibration_ranks(replace(tiny_model, noise=quiet), 60, **FAST | {"snr": (100, 100)})
    table = rank_table(ranks)
    assert (table["p"] < 1e-3).all()
    assert ((table["pull_width"] > 0.25) & (table["pull_width"] < 0.6)).all()


def test_the_true_split_latent_gives_right_errors(tiny_model):
    """Stars have the typical one; what is read from their noisy spectra is another, and ranks are others."""
    options = FAST | {"space": "observed"}
    true, own = (calibration_ranks(tiny_model, 40, split_latent=which, **options) for which in ("typical", "own"))
    assert (rank_table(true)["p"] > 1e-3).all()
    assert (true.by_label["teff"] != own.by_label["teff"]).any()


def test_hidden_errors_of_labels_are_left_out(tiny_model):
    """Stars that the model made have none: with and without them, ranks are the same."""
    hidden = replace(tiny_model, noise=replace(tiny_model.noise, label_error=np.diag([1e4, 1.0, 1.0])))
    options = FAST | {"space": "observed"}
    bare, ranks = (calibration_ranks(model, 3, **options).by_label for model in (tiny_model, hidden))
    for name in bare:
        np.testing.assert_array_equal(bare[name], ranks[name])


def test_all_stars_are_like_one_that_is_given(tiny_model, line_family):
    flux = line_family(tiny_model.prior.mean, width=2.0, depth=1.1)[0]
    like = to_spectrum(flux, tiny_model.grid, ivar=np.full(len(flux), 4e4))
    options = FAST | {"space": "observed"}
    typical, given = (calibration_ranks(tiny_model, 3, like=star, **options).by_label["teff"] for star in (None, like))
    assert (typical != given).any()


def test_labels_and_combinations_have_ranks(tmp_path, tiny_model):
    ranks = calibration_ranks(tiny_model, 2, path=tmp_path / "ranks.jsonl", **FAST)
    assert set(ranks.by_label) == {"teff", "logg", "mg_h", "alpha_m"}
    np.testing.assert_array_equal(ranks.by_label["mg_h"], ranks.by_label["alpha_m"])
    for k, (star, snr, success, found) in enumerate(rows_in(tmp_path / "ranks.jsonl")):
        assert (star, success) == (k, True)
        assert 50 <= snr <= 100
        assert found == {name: by_star[k] for name, by_star in ranks.by_label.items()}


def test_labels_that_are_held_have_no_ranks(tiny_model):
    assert set(calibration_ranks(tiny_model, 3, free=["mg_h"], **FAST).by_label) == {"mg_h", "alpha_m"}


def test_held_labels_are_the_true_ones(tiny_model):
    """Nearly no noise: labels can only be right if the others are."""
    quiet = replace(tiny_model, noise=replace(tiny_model.noise, sigma_floor=1e-5, scatter={}))
    ranks = calibration_ranks(quiet, 20, free=["teff"], **FAST | {"snr": (5e4, 5e4)})
    assert 0.1 < rank_table(ranks)["mean_rank"][0] < 0.9
    assert coverage(ranks.by_label["teff"], 0.95) > 0.7


def test_chains_give_ranks(tiny_model):
    pytest.importorskip("emcee")
    ranks = calibration_ranks(tiny_model, 1, method="chains", free=["mg_h"], max_steps=2000, **FAST)
    assert ranks.failed == ()
    assert set(ranks.by_label) == {"mg_h", "alpha_m", "joint"}


def test_short_chains_fail(tiny_model):
    pytest.importorskip("emcee")
    ranks = calibration_ranks(tiny_model, 2, method="chains", max_steps=5, **FAST)
    assert (ranks.failed, ranks.by_label) == ((0, 1), {})


@pytest.mark.parametrize("free", [None, ["teff"]])
def test_a_star_that_cannot_be_fitted_fails(tiny_model, monkeypatch, free, caplog):
    def fit_all_but_one(model, spectra, setup):
        names = [spectrum.meta["object"] for spectrum in spectra]
        results = fit_stars(model, spectra, setup)
        return [SpectrumError("no") if n == "star 1" else result for n, result in zip(names, results, strict=True)]

    monkeypatch.setattr(calibration, "fit_stars", fit_all_but_one)
    ranks = calibration_ranks(tiny_model, 3, free=free, **FAST)
    assert (ranks.failed, len(ranks.by_label["teff"])) == ((1,), 2)
    assert "left out simulated star 1: no" in caplog.text


# -- files -------------------------------------------------------------------------------------
def test_a_killed_run_is_continued(tmp_path, tiny_model):
    """Without the row that was half written; stars are the same whatever was done before."""
    path, whole = tmp_path / "ranks.jsonl", tmp_path / "whole.jsonl"
    calibration_ranks(tiny_model, 3, path=whole, **FAST)
    lines = whole.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    path.write_text("".join(lines[:2]) + lines[2][:20])
    calibration_ranks(tiny_model, 3, path=path, **FAST)
    assert path.read_text() == whole.read_text()


def test_stars_can_be_added_and_left_out(tmp_path, tiny_model):
    path = tmp_path / "new" / "ranks.jsonl"
    counts = [calibration_ranks(tiny_model, n, path=path, **FAST).n_stars for n in (1, 3, 2)]
    assert counts == [1, 3, 2]
    assert [star for star, *_ in rows_in(path)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"seed": 1}, "seed: 0 then, 1 now"), ({"free": ["teff"]}, "free: 3 then, 1 now"), ({"like": True}, "like: None")],
    ids=["seed", "free", "like"],
)
def test_a_file_of_other_settings_is_refused(tmp_path, tiny_model, changes, told):
    path = tmp_path / "ranks.jsonl"
    calibration_ranks(tiny_model, 1, path=path, **FAST)
    before = path.read_text()
    if "like" in changes:
        star = simulate_star(
            tiny_model, draw_labels(tiny_model, np.random.default_rng(0)), 100, np.random.default_rng(0)
        )
        changes = {"like": star}
    with pytest.raises(FileExistsError, match=told):
        calibration_ranks(tiny_model, 2, path=path, **FAST | changes)
    assert path.read_text() == before


def test_a_file_of_another_model_is_refused(tmp_path, tiny_model):
    path = tmp_path / "ranks.jsonl"
    calibration_ranks(tiny_model, 1, path=path, **FAST)
    other = replace(tiny_model, noise=replace(tiny_model.noise, scatter={}))
    with pytest.raises(FileExistsError, match="weights: "):
        calibration_ranks(other, 1, path=path, **FAST)


# -- settings ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "laplas"}, "method must be one of 'laplace', 'chains', but is 'laplas'"),
        ({"space": "synthetic"}, "space must be one of 'observed', 'emulator', but is 'synthetic'"),
        ({"split_latent": "typical"}, "split_latent='typical' has no effect with space='emulator'"),
        ({"split_latent": "mine", "space": "observed"}, "split_latent must be one of"),
        ({"free": []}, "free must name one label or more"),
        ({"free": ["Teff"]}, "Unknown label 'Teff'; did you mean 'teff'"),
        ({"snr": (100, 50)}, "snr must be .low, high., positive and rising"),
        ({"snr": (0, 50)}, "snr must be .low, high., positive and rising"),
        ({"snr": (50, 201)}, "snr must end at 200 or below, but at 201"),
        ({"seed": -1}, "seed 0 or more, but are 10000 and -1"),
        ({"max_steps": 0}, "max_steps must be 1 or more"),
        ({"n_stars": 0}, "n_stars must be 1 or more, but is 0"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_before_a_file_is_begun(tmp_path, tiny_model, changes, message):
    path = tmp_path / "ranks.jsonl"
    with pytest.raises(ValueError, match=message):
        calibration_ranks(tiny_model, **{"n_stars": 2, "path": path} | FAST | changes)
    assert not path.exists()


# -- figure and recipe ---------------------------------------------------------------------------
@pytest.fixture
def pyplot():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_a_figure_has_two_panels_per_label(rng, pyplot):
    from cyclestarnet.plotting import plot_ranks

    names = ("teff", "logg", "mg_h")
    ranks = Ranks({name: rng.integers(0, 200, 100) for name in names}, n_stars=100)
    axes = plot_ranks(ranks)
    assert axes == axes[0].figure.axes
    assert [ax.get_title(loc="left") for ax in axes[::2]] == [
        "Teff, 100 stars",
        "log g, 100 stars",
        "[Mg/H], 100 stars",
    ]


def test_a_figure_shows_ranks_and_their_distribution(pyplot):
    """100 ranks, 20 bins: all are in the last one, so that the distribution is zero up to there."""
    from cyclestarnet.plotting import plot_ranks

    left, right = plot_ranks(Ranks({"a": np.full(100, 199)}, n_stars=100), axes=pyplot.subplots(1, 2)[1])
    np.testing.assert_array_equal(left.patches[-1].get_data().values, [*np.zeros(19), 100])
    x, y = right.lines[-1].get_data()
    np.testing.assert_allclose(y, -x)
    np.testing.assert_allclose(x, np.arange(1, 200) / 200)


def test_figures_without_ranks_or_room_are_refused(pyplot):
    from cyclestarnet.plotting import plot_ranks

    with pytest.raises(ValueError, match="no ranks to plot: 1 of 1 stars failed"):
        plot_ranks(Ranks({}, n_stars=1, failed=(0,)))
    with pytest.raises(ValueError, match="2 axes are needed, two per label, but got 1"):
        plot_ranks(Ranks({"a": [1]}, n_stars=1), axes=[pyplot.subplots()[1]])


def test_the_recipe_prints_a_table_and_draws_a_figure(tmp_path, tiny_model, capsys, pyplot):
    tiny_model.save(tmp_path / "tiny.safetensors")
    options = ["--model", str(tmp_path / "tiny.safetensors"), "--work", str(tmp_path), "--method", "laplace"]
    load_script("recipes/calibration.py").main([*options, "--space", "emulator", "--stars", "2"])
    printed = capsys.readouterr().out
    assert printed.startswith("2 stars, 0 left out")
    assert "alpha_m" in printed
    assert (tmp_path / "ranks.png").stat().st_size > 1000
