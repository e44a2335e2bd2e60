"""The figure of a training: what its curves and axes show."""

import csv

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from cyclestarnet.networks.checkpoint import save_state
from cyclestarnet.plotting.training import plot_training

TERMS = [f"{kind}_{domain}" for kind in ("rec", "cyc", "gen", "critic") for domain in ("synth", "obs")]


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")


def log_of(n, **columns):
    """A table of n rows in which every term falls from 100 to 1."""
    falling = np.geomspace(100, 1, n) if n else np.zeros(0)
    return {"iteration": 50 * np.arange(1, n + 1)} | dict.fromkeys([*TERMS, "critic_accuracy"], falling) | columns


def curve(ax, label):
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return line.get_xdata(), line.get_ydata()


def test_losses_of_both_domains_are_multiplied_by_their_weights():
    axes = plot_training(log_of(20), weights={"synth": 3, "obs": 9, "adversarial": 0.5})
    for ax in axes[:2]:
        np.testing.assert_allclose(curve(ax, "synthetic, λ = 3")[1], 3 * np.geomspace(100, 1, 20))
        np.testing.assert_allclose(curve(ax, "observed, λ = 9")[1], 9 * np.geomspace(100, 1, 20))
    np.testing.assert_allclose(curve(axes[2], "critic, observed")[1], 0.5 * np.geomspace(100, 1, 20))


def test_losses_have_a_logarithmic_axis_and_accuracy_has_not():
    axes = plot_training(log_of(20))
    assert [ax.get_yscale() for ax in axes] == ["log", "log", "log", "linear"]


def test_training_without_critics_has_no_panels_of_them():
    log = {name: column for name, column in log_of(20).items() if not name.startswith(("gen_", "critic"))}
    axes = plot_training(log, weights={"adversarial": 0.0})
    assert [ax.get_title("left") for ax in axes] == ["Reconstruction", "Cycle"]


def test_dotted_lines_are_what_guessing_costs():
    def dotted(ax):
        return [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"]

    axes = plot_training(log_of(20))
    assert dotted(axes[2]) == [pytest.approx(np.log(2)), pytest.approx(2 * np.log(2))]  # cross-entropy of 0.5
    assert dotted(axes[3]) == [0.5]


def test_guessing_costs_what_the_loss_of_the_run_says(tmp_path):
    (tmp_path / "losses.csv").write_text("iteration,gen_obs\n50,0.4\n")
    save_state({"iteration": 50, "settings": {"adversarial": "least_squares"}}, tmp_path / "checkpoint.pt")
    lines = [line.get_ydata()[0] for line in plot_training(tmp_path)[2].lines if line.get_linestyle() == ":"]
    assert lines == [0.25, 0.5]  # (0.5 - 1)², and that of true and fake


def test_a_folder_without_a_log_is_named(tmp_path):
    save_state({"iteration": 50}, tmp_path / "checkpoint.pt")
    with pytest.raises(FileNotFoundError, match=r"has no log to plot: losses\.csv is missing"):
        plot_training(tmp_path)


def test_strong_lines_are_running_means_that_leave_gaps(rng):
    noisy = rng.normal(10, 1, 400)
    noisy[100:150] = np.nan
    _, mean = curve(plot_training(log_of(400, rec_obs=noisy))[0], "observed, λ = 1")
    assert np.isnan(mean[100:150]).all()
    assert np.nanstd(mean) == pytest.approx(1 / np.sqrt(10), rel=0.3)  # of 400 / 40 rows each


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_short_logs_are_shown(n, tmp_path):
    axes = plot_training(log_of(n))
    axes[0].figure.savefig(tmp_path / "progress.png")
    assert len(curve(axes[0], "synthetic, λ = 1")[0]) == n


def test_infinite_and_negative_losses_are_shown_without_complaint(tmp_path):
    axes = plot_training(log_of(4, rec_obs=[np.inf, np.nan, 5.0, 4.0], cyc_obs=[-1.0, 0.0, 1.0, 2.0]))
    axes[0].figure.savefig(tmp_path / "progress.png")
    np.testing.assert_array_equal(curve(axes[0], "observed, λ = 1")[1], [np.nan, np.nan, 5, 4])
    assert axes[1].get_yscale() == "linear"


SCORES = {
    "iteration": np.array([500, 1000, 1500]),
    "rec_obs": np.array([4.0, 3.0, 3.5]),
    "c2st_latent": np.array([0.9, 0.6, 0.7]),
    "c2st_error": np.full(3, 0.03),
    "sw_obs": np.array([0.3, 0.1, 0.2]),
    "score": np.array([2.0, np.nan, 1.0]),
    "verdict": np.array(["ok", "ok", "stalled"]),
}


def test_further_terms_and_scores_have_panels_of_their_own():
    axes = plot_training(log_of(30, latent=np.ones(30)), scores=SCORES)
    titles = ["Further terms", "Classifiers", "Distances", "Label-free score"]
    assert [ax.get_title("left") for ax in axes[4:]] == titles
    np.testing.assert_array_equal(curve(axes[5], "latents"), [SCORES["iteration"], SCORES["c2st_latent"]])
    np.testing.assert_array_equal(curve(axes[6], "observed")[1], SCORES["sw_obs"])


def test_any_other_table_of_scores_is_shown_in_one_panel():
    axes = plot_training(log_of(3), scores={"iteration": np.array([50, 100]), "mmd": np.array([0.9, 0.6])})
    np.testing.assert_array_equal(curve(axes[4], "mmd"), [[50, 100], [0.9, 0.6]])


def test_held_out_spectra_are_dots_with_the_weight_of_the_loss():
    axes = plot_training(log_of(30), scores=SCORES, weights={"obs": 9})
    np.testing.assert_allclose(curve(axes[0], "held out"), [SCORES["iteration"], 9 * SCORES["rec_obs"]])


def test_the_best_score_is_marked_in_every_panel():
    for ax in plot_training(log_of(30), scores=SCORES):
        assert [1500, 1500] in [list(line.get_xdata()) for line in ax.lines]


def test_a_folder_is_read(tmp_path):
    with (tmp_path / "losses.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["iteration", "rec_obs"], [50, 4], [100, 2]])
    x, y = curve(plot_training(tmp_path)[0], "observed, λ = 1")
    assert (list(x), list(y)) == ([50, 100], [4, 2])


def test_own_axes_are_used():
    from matplotlib import pyplot

    _, mine = pyplot.subplots(5)
    assert plot_training(log_of(3), axes=mine) == list(mine[:4])
    with pytest.raises(ValueError, match=r"4 axes are needed, for Reconstruction, .* but got 2"):
        plot_training(log_of(3), axes=mine[:2])


def test_domains_of_a_translation_are_drawn_by_their_names():
    log = {"iteration": np.arange(1, 5)}
    for name, value in {"MOOG": 2.0, "UVES": 3.0, "APOGEE": 5.0}.items():
        log |= {f"{kind}_{name}": np.full(4, value) for kind in ("rec", "cyc", "gen", "critic")}
    axes = plot_training(log | {"critic_accuracy": np.full(4, 0.6)}, weights={"synth": 3, "obs": 9})
    assert len(axes) == 4  # nothing is left for further terms
    shown = {line.get_label(): line.get_ydata()[0] for line in axes[0].lines}
    assert shown == {"MOOG, λ = 3": 6.0, "UVES, λ = 9": 27.0, "APOGEE, λ = 9": 45.0}
    assert len({line.get_color() for line in axes[0].lines}) == 3


def test_a_folder_of_no_training_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no folder of a training: it has neither losses\.csv nor"):
        plot_training(tmp_path)
