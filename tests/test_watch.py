"""Scores against sub-networks run one by one, and the watch against made histories of every failure."""

import re

import numpy as np
import pytest
import torch

from cyclestarnet.networks.checkpoint import load_state, save_state
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.training import alignment
from cyclestarnet.training.watch import Watch, WatchSettings, alignment_scores


# -- scores ------------------------------------------------------------------------------------
def network(tiny_settings, seed=1, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TranslationNetwork(NetworkSettings(**(tiny_settings.to_dict() | changes)))


@pytest.fixture
def spectra():
    """40 synthetic and 30 observed standardised spectra, and weights of which some are 0."""
    generator = torch.Generator().manual_seed(2)
    weight = 10 * torch.rand(30, 415, generator=generator)
    return torch.randn(40, 415, generator=generator), torch.randn(30, 415, generator=generator), weight * (weight > 1)


@pytest.fixture
def no_classifiers(monkeypatch):
    """What the classifiers of the three spaces find is made up: they take seconds."""
    accuracies = iter((0.6, 0.7, 0.9))
    monkeypatch.setattr(alignment, "classifier_accuracy", lambda *samples, seed: (next(accuracies), 0.05))


@pytest.mark.usefixtures("no_classifiers")
@pytest.mark.parametrize("split_filters", [0, 2])
def test_distances_are_those_of_the_paths(tiny_settings, spectra, split_filters):
    """Each path, sub-network by sub-network and star by star."""
    net, (x_synth, x_obs, weight) = network(tiny_settings, split_filters=split_filters), spectra
    scores = alignment_scores(net, x_synth, x_obs, weight, seed=0, weight_synth=3.0)
    totals = dict.fromkeys(("rec_obs", "cyc_obs", "rec_synth"), 0.0)
    for x, w in zip(x_obs[:, None], weight[:, None], strict=True):
        z, *split = (part for part in net.encode_obs(x) if part is not None)
        there = net.decode_synth(z)
        back = net.decode_obs(net.encode_synth(there), split[0] if split else None)
        reconstructed = net.decode_obs(z, split[0] if split else None)
        totals["rec_obs"] += (((reconstructed - x) * w) ** 2).mean().item() / 30
        totals["cyc_obs"] += (((back - x) * w) ** 2).mean().item() / 30
    for x in x_synth[:, None]:
        totals["rec_synth"] += (((net.decode_synth(net.encode_synth(x)) - x) * 3) ** 2).mean().item() / 40
    assert {name: scores[name] for name in totals} == pytest.approx(totals, rel=1e-4)


@pytest.mark.usefixtures("no_classifiers")
def test_cycle_of_synthetic_spectra_without_split_latent(tiny_settings, spectra):
    net, (x, _, _) = network(tiny_settings, split_filters=0), spectra
    scores = alignment_scores(net, *spectra, seed=0, weight_synth=3.0)
    back = net.obs_to_synth(net.synth_to_obs(x, None))
    assert scores["cyc_synth"] == pytest.approx((((back - x) * 3) ** 2).mean().item(), rel=1e-4)


@pytest.mark.usefixtures("no_classifiers")
def test_fakes_take_split_latents_of_observed_spectra(tiny_settings, spectra):
    """With a single observed spectrum, repeated, there is only one to take."""
    net, (x, x_obs, weight) = network(tiny_settings), spectra
    one = x_obs[:1].expand(30, -1)
    scores = alignment_scores(net, x, one, weight, seed=0, weight_synth=3.0)
    back = net.obs_to_synth(net.synth_to_obs(x, net.encode_obs(x_obs[:1])[1].expand(40, -1, -1)))
    assert scores["cyc_synth"] == pytest.approx((((back - x) * 3) ** 2).mean().item(), rel=1e-4)


@pytest.mark.usefixtures("no_classifiers")
def test_each_split_latent_is_taken_once(tiny_settings, spectra):
    """If the shared latents do nothing, the fakes are the reconstructions in another order."""
    net, (x_synth, x_obs, weight) = network(tiny_settings), spectra
    for parameter in net.decoder_sh.parameters():
        torch.nn.init.zeros_(parameter)
    scores = alignment_scores(net, x_synth[:30], x_obs, weight, seed=0)
    assert scores["sw_obs"] == pytest.approx(0, abs=1e-4)
    assert scores["scatter_obs"] == pytest.approx(1, abs=1e-4)


def test_figures_compare_fakes_with_reconstructions(tiny_settings, spectra):
    net, (x_synth, x_obs, _) = network(tiny_settings), spectra
    scores = alignment_scores(net, *spectra, seed=5)
    with torch.no_grad():
        z_synth, (z_obs, _) = net.encode_synth(x_synth), net.encode_obs(x_obs)
        fake, true = (net.decode_synth(z).numpy() for z in (z_obs, z_synth))
    accuracy, error = alignment.classifier_accuracy((fake, z_obs.numpy()), (true, z_synth.numpy()), seed=5)
    assert scores["mmd_synth"] == pytest.approx(alignment.mmd(fake, true), rel=1e-3)
    assert scores["sw_latent"] == pytest.approx(alignment.sliced_wasserstein(z_synth, z_obs, seed=5), rel=1e-3)
    assert scores["scatter_synth"] == pytest.approx(np.sqrt(fake.var(0).sum() / true.var(0).sum()), rel=1e-3)
    assert scores["c2st_error"] == pytest.approx(error)
    assert scores["c2st_synth"] == pytest.approx(accuracy, abs=0.05)


def test_one_network_for_both_domains_is_aligned(tiny_settings):
    """Where both domains share weights and spectra, nothing can be told apart, and cycles are reconstructions twice."""
    net = network(tiny_settings, split_filters=0)
    net.encoder_obs.load_state_dict(net.encoder_synth.state_dict())
    net.decoder_obs.load_state_dict(net.decoder_synth.state_dict())
    a, b = torch.randn(2, 100, 415, generator=torch.Generator().manual_seed(3))
    scores = alignment_scores(net, a, b, torch.ones(100, 415), seed=0)
    for name in ("latent", "obs", "synth"):
        assert abs(scores[f"c2st_{name}"] - 0.5) < 4 * scores["c2st_error"]
        assert abs(scores[f"mmd_{name}"]) < 0.01
    assert scores["scatter_obs"] == pytest.approx(1, abs=0.1)
    assert scores["latent_offset"] == pytest.approx(np.sqrt(2 / 100), rel=0.3)


def test_score_prefers_what_is_aligned(tiny_settings):
    net = network(tiny_settings, split_filters=0)
    net.encoder_obs.load_state_dict(net.encoder_synth.state_dict())
    net.decoder_obs.load_state_dict(net.decoder_synth.state_dict())
    x, weight = torch.randn(60, 415, generator=torch.Generator().manual_seed(3)), torch.full((60, 415), 0.1)
    score = [
        alignment_scores(net, x, x + shift, weight, seed=0, weight_synth=0.1)["score"] for shift in (0.0, 0.5, 2.0)
    ]
    assert score == sorted(score)
    assert score[2] > score[0] + 0.5


@pytest.mark.usefixtures("no_classifiers")
def test_score_is_as_documented(tiny_settings, spectra):
    s = alignment_scores(network(tiny_settings), *spectra, seed=0)
    domains = np.mean([2 * s[f"c2st_{name}"] - 1 + 2 * s[f"sw_{name}"] for name in ("latent", "obs", "synth")])
    assert s["score"] == pytest.approx(np.log((1 + s["cyc_synth"]) * (1 + s["cyc_obs"])) / 2 + domains)


def test_scores_are_reproducible_and_change_nothing(tiny_settings, spectra):
    net = network(tiny_settings)
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    first, second = (alignment_scores(net, *spectra, seed=4) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


# -- made histories ----------------------------------------------------------------------------------
N_ROWS = 200  # 10,000 iterations


def healthy_rows(rng):
    """Rows every 50 iterations as of a run that ended well, with its noise."""
    t = 50 * np.arange(1, N_ROWS + 1)
    rec = {"rec_synth": 0.4 + 4000 / t, "rec_obs": 2.0 + 2500 / t}
    ratio = 1.05 + 0.35 * np.exp(-(((t - 2500) / 2500) ** 2))
    common = np.exp(rng.normal(0, 0.1, N_ROWS))  # batches that are hard to reconstruct are hard in every path
    columns = {name: value * common * np.exp(rng.normal(0, 0.05, N_ROWS)) for name, value in rec.items()}
    columns |= {name.replace("rec", "cyc"): columns[name] * ratio * np.exp(rng.normal(0, 0.05, N_ROWS)) for name in rec}
    columns |= {name: rng.normal(1.1, 0.06, N_ROWS) for name in ("gen_synth", "gen_obs")}
    columns["critic_accuracy"] = rng.normal(0.74, 0.025, N_ROWS)
    columns |= {name: rng.normal(1.1, 0.05, N_ROWS) for name in ("critic_synth", "critic_obs")}
    return {"iteration": t} | columns


def healthy_scores(rng, n=20):
    """Scores every 500 iterations, falling, with noise."""
    t = 500 * np.arange(1, n + 1)
    fall, noise = 1000 / (1000 + t), lambda size: rng.normal(0, size, n)
    scores = {"c2st_latent": 0.7 + 0.3 * fall + noise(0.02), "c2st_error": np.full(n, 0.0224)}
    scores |= {"sw_latent": (0.1 + 0.2 * fall) * np.exp(noise(0.05)), "score": 1 + 2 * fall + noise(0.02)}
    scores |= {name: 0.005 + 0.05 * fall + noise(0.002) for name in ("mmd_obs", "mmd_synth")}
    scores |= {name: 1 + noise(0.05) for name in ("scatter_obs", "scatter_synth")}
    return {"iteration": t} | scores


def watched(rows, scores, watch=None):
    """All verdicts on a history of rows and scores in order."""
    watch = watch or Watch()
    events = [(r["iteration"], 0, watch.see_losses, (r,)) for r in _dicts(rows)]
    events += [(s["iteration"], 1, watch.see_scores, (s["iteration"], s)) for s in _dicts(scores)]
    return [verdict for *_, see, arguments in sorted(events, key=lambda e: e[:2]) for verdict in see(*arguments)]


def _dicts(columns):
    if not columns:
        return []
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def after(columns, iteration):
    """Slice of a history from an iteration on, and how far each row is beyond it, in thousands."""
    late = columns["iteration"] > iteration
    return late, (columns["iteration"][late] - iteration) / 1000


def win(rows, scores):
    late, t = after(rows, 4000)
    rows["critic_accuracy"][late] = 0.995
    rows["gen_obs"][late] *= 1 + t


def win_for_good(rows, scores):
    """From the start, with a generator loss that stays high."""
    rows["critic_accuracy"][:] = 1.0
    rows["gen_obs"] *= 6
    rows["gen_synth"] *= 6


def guess(rows, scores):
    rows["critic_accuracy"] -= 0.24
    scores["mmd_obs"] += 0.3


def diverge(rows, scores):
    late, t = after(rows, 5000)
    rows["rec_obs"][late] *= np.exp(t)
    rows["cyc_obs"][late] *= np.exp(t)


def turn_nan(rows, scores):
    rows["gen_synth"][60:] = np.nan


def drift(rows, scores):
    for domain in ("synth", "obs"):
        late, t = after(rows, 5000)
        rows[f"cyc_{domain}"][late] *= 1 + 0.2 * t


def part(rows, scores):
    late, t = after(scores, 5000)
    scores["c2st_latent"][late] += 0.05 * t


def part_unseen_by_the_classifier(rows, scores):
    scores["c2st_latent"][:] = 1.0
    late, t = after(scores, 5000)
    scores["sw_latent"][late] *= 1 + 0.3 * t


def collapse(rows, scores):
    late, t = after(scores, 5000)
    scores["scatter_obs"][late] *= np.exp(-t)


def stall(rows, scores):
    scores["score"][4:] = 3.0


FAILURES = {  # name: what makes it, when it must be said at the latest, how badly it is, what the message says
    "critics_win": (win, 5500, "failing", "right (9[789]|100)%"),
    "critics_win at once": (win_for_good, 1500, "failing", "another seed"),
    "critics_blind": (guess, 1600, "failing", "raise critic_learning_rate"),
    "diverged": (diverge, 6800, "failing", "lower the learning rates"),
    "diverged to nan": (turn_nan, 3050, "failing", "gen_synth not finite"),
    "cycle_drift": (drift, 8500, "notice", "cycles are 1.[5-9]"),
    "latents_part": (part, 8500, "notice", "Keep the weights of iteration"),
    "latents_part, saturated": (part_unseen_by_the_classifier, 8500, "notice", "Keep the weights of iteration"),
    "collapsed": (collapse, 6500, "failing", "translated to obs have 0.[0-4]"),
    "stalled": (stall, 8500, "notice", "12 evaluations; best: iteration"),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("seed", range(6))
def test_failure_is_named_early(name, seed):
    """And nothing else is said, in noisy histories."""
    spoil, deadline, severity, message = FAILURES[name]
    rng = np.random.default_rng(seed)
    rows, scores = healthy_rows(rng), healthy_scores(rng)
    spoil(rows, scores)
    first, *others = watched(rows, scores)
    assert {v.code for v in (first, *others)} == {re.match(r"\w+", name)[0]}
    assert first.iteration <= deadline
    assert first.severity == severity
    assert re.search(message, str(first))


def test_healthy_runs_are_left_alone():
    for seed in range(40):
        rng = np.random.default_rng(1000 + seed)
        assert watched(healthy_rows(rng), healthy_scores(rng)) == []


def test_converged_runs_are_left_alone_but_called_stalled():
    """Scores that scatter about a constant for very long are no latents that part."""
    for seed in range(20):
        scores = healthy_scores(np.random.default_rng(seed), n=200)
        assert {v.code for v in watched({}, scores)} <= {"stalled"}


def test_critics_of_a_warm_start_may_win_at_first(rng):
    rows = healthy_rows(rng)
    start = rows["iteration"] <= 1000
    rows["critic_accuracy"][start] = 0.985
    rows["gen_obs"][start] *= 4
    assert watched(rows, healthy_scores(rng)) == []


def test_critics_that_lose_their_lead_are_left_alone(rng):
    """A generator loss that falls recovers."""
    rows = healthy_rows(rng)
    t = rows["iteration"]
    rows["critic_accuracy"][t < 2000] = 0.985
    for name in ("gen_synth", "gen_obs"):
        rows[name] *= 1 + 6 * np.exp(-t / 1500)
    assert watched(rows, healthy_scores(rng)) == []


def test_critics_that_nothing_can_tell_apart_may_guess(rng):
    rows = healthy_rows(rng)
    rows["critic_accuracy"] -= 0.24
    assert watched(rows, healthy_scores(rng)) == []


@pytest.mark.parametrize(("before", "later"), [(1.6, 1.6), (1.05, 1.4)])
def test_cycles_may_be_far_off_or_drift_but_not_both(rng, before, later):
    rows = healthy_rows(rng)
    late, t = after(rows, 4000)
    for domain in ("synth", "obs"):
        rows[f"cyc_{domain}"] = before * rows[f"rec_{domain}"] * np.exp(rng.normal(0, 0.05, N_ROWS))
        rows[f"cyc_{domain}"][late] *= 1 + (later / before - 1) * t / 6
    assert watched(rows, healthy_scores(rng)) == []


def test_single_bad_rows_and_evaluations_are_forgiven(rng):
    rows, scores = healthy_rows(rng), healthy_scores(rng)
    for name in ("rec_obs", "cyc_obs"):
        rows[name][50::25] *= 10
    rows["critic_accuracy"][60::20] = 1.0
    scores["scatter_synth"][10] = 0.1
    scores["c2st_latent"][12] += 0.15
    assert watched(rows, scores) == []


def test_trouble_is_said_once_and_again_when_it_returns(rng):
    rows = healthy_rows(rng)
    t = rows["iteration"]
    for name in ("rec_obs", "cyc_obs"):
        rows[name][((t > 4000) & (t < 5000)) | (t > 7000)] *= 6
    iterations = [v.iteration for v in watched(rows, healthy_scores(rng))]
    assert len(iterations) == 2
    assert 4000 < iterations[0] < 4200 < 7000 < iterations[1] < 7200


def test_resumed_watch_says_what_an_uninterrupted_one_says(rng, tmp_path):
    """Through a file of plain values, at every tenth row."""
    rows, scores = healthy_rows(rng), healthy_scores(rng)
    for name in ("win", "collapse", "drift", "stall"):
        globals()[name](rows, scores)
    expected = watched(rows, scores)

    class Interrupted(Watch):
        def see_losses(self, row):
            if row["iteration"] % 500 == 0:
                save_state({"watch": self.state_dict()}, tmp_path / "state.pt")
                Watch.__init__(self)  # it forgets everything
                self.load_state_dict(load_state(tmp_path / "state.pt")["watch"])
            return super().see_losses(row)

    assert len({v.code for v in expected}) == 4
    assert watched(rows, scores, Interrupted()) == expected


def test_state_is_a_copy(rng):
    watch = Watch()
    watched(healthy_rows(rng), healthy_scores(rng), watch)
    state, best = watch.state_dict(), watch.best
    state["rows"].clear()
    watch.see_scores(20_000, {**_dicts(healthy_scores(rng))[0], "score": 0.0})
    watch.load_state_dict(watch.state_dict() | {"best": list(best)})
    assert watch.best == best
    assert len(watch.state_dict()["rows"]) == watch.settings.window


def test_foreign_state_is_refused():
    with pytest.raises(ValueError, match=r"a watch's state has the keys rows, .*, but got iteration"):
        Watch().load_state_dict({"iteration": 3})


def test_best_scores_are_kept(rng):
    """From the first evaluation on; a NaN is never the best."""
    watch, scores, seen = Watch(), _dicts(healthy_scores(rng))[0], []
    for k, value in enumerate([3.0, np.nan, 2.0, 2.5, 2.0, 1.0]):
        watch.see_scores(100 * k, scores | {"score": value})
        seen.append((watch.is_best, watch.best))
    assert [is_best for is_best, _ in seen] == [True, False, True, False, False, True]
    assert [best for _, best in seen] == [(0, 3.0), (0, 3.0), (200, 2.0), (200, 2.0), (200, 2.0), (500, 1.0)]


def test_nothing_is_best_before_any_score():
    assert Watch().best is None
    assert not Watch().is_best


def test_row_without_a_column_is_refused(rng):
    row = _dicts(healthy_rows(rng))[0]
    del row["cyc_obs"]
    with pytest.raises(ValueError, match="a watch needs cyc_obs, but was given iteration, rec_synth"):
        Watch().see_losses(row)


def test_run_without_critics_is_watched_for_the_rest(rng):
    """Nothing is said of critics that there are none of, and a divergence is said as ever."""
    rows, scores = healthy_rows(rng), healthy_scores(rng)
    rows = {name: column for name, column in rows.items() if not name.startswith(("gen_", "critic"))}
    assert watched(rows, scores) == []
    diverge(rows, scores)
    assert [verdict.code for verdict in watched(rows, scores)] == ["diverged"]


def test_row_with_some_of_the_critics_columns_is_refused(rng):
    row = _dicts(healthy_rows(rng))[0]
    del row["gen_obs"]
    with pytest.raises(ValueError, match="a watch needs gen_obs, but was given"):
        Watch().see_losses(row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grace": -1}, "grace must be at least 0, but is -1"),
        ({"window": 3}, "window must be at least 4, but is 3"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"stall": 0}, "stall must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"n_spectra": 9}, "n_spectra must be at least 10"),
        ({"action": "pray"}, "action must be one of 'warn', 'stop', 'roll_back', but is 'pray'"),
        ({"divergence": 0.9}, r"divergence must be at least 1.0, but is 0.9"),
        ({"cycle_ratio": float("nan")}, r"cycle_ratio must be at least 1.0, but is nan"),
        ({"critics_win": 1.0}, r"critics_blind and critics_win must rise between 0.5 and 1, but are 0.55 and 1.0"),
        ({"critics_blind": 0.98}, "critics_blind and critics_win must rise"),
        ({"collapse": 1.0}, r"collapse must be between 0 and 1, but is 1.0"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        WatchSettings(**change)
