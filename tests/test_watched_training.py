"""What a watched run does: best state, warnings, stops, rollbacks; and starts from another run's weights."""

import csv

import numpy as np
import pytest
import torch
from tiny import LineFamily
from training_oracle import assert_same_state

from cyclestarnet.exceptions import TrainingError, TrainingWarning
from cyclestarnet.networks.checkpoint import load_state
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.terms import Adaptation
from cyclestarnet.training.watch import Verdict, WatchSettings


def watched(make_trainer, folder, **changes):
    """A trainer that is scored every other iteration."""
    settings = WatchSettings(**({"every": 2, "n_spectra": 12, "grace": 1000, "window": 4, "patience": 1} | changes))
    return make_trainer(folder, watch=settings)


def test_best_state_is_that_of_the_lowest_score(make_trainer, tmp_path):
    watched(make_trainer, tmp_path).run(until=8, progress=False)
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["2", "4", "6", "8"]
    lowest = min(rows, key=lambda row: float(row["score"]))
    assert load_state(tmp_path / "best.pt")["iteration"] == int(lowest["iteration"])


def test_watched_run_resumes_as_if_never_stopped(make_trainer, tmp_path):
    watched(make_trainer, tmp_path / "cut").run(until=3, progress=False)
    for name, until in (("cut", 6), ("whole", 6)):
        watched(make_trainer, tmp_path / name).run(until=until, progress=False)
    cut, whole = (load_state(tmp_path / name / "checkpoint.pt")["watch"] for name in ("cut", "whole"))
    assert cut == whole
    assert (tmp_path / "cut" / "scores.csv").read_text() == (tmp_path / "whole" / "scores.csv").read_text()


def test_run_without_a_watch_cannot_go_on_with_one(make_trainer, tmp_path):
    make_trainer(tmp_path).save()
    with pytest.raises(ValueError, match="begun without watch; use another folder"):
        watched(make_trainer, tmp_path)


def fail_once(trainer, monkeypatch, verdict):
    """Let the watch give a verdict at its first look after iteration 4."""
    see, said = trainer.watch.see_scores, []

    def look(iteration, scores):
        verdicts = see(iteration, scores)
        if iteration > 4 and not said:
            said.append(iteration)
            return [*verdicts, verdict]
        return verdicts

    monkeypatch.setattr(trainer.watch, "see_scores", look)


FAILING = Verdict("collapsed", "many spectra are translated to one", 6, "failing")


def test_failing_run_is_stopped_and_kept(make_trainer, tmp_path, monkeypatch):
    trainer = watched(make_trainer, tmp_path, action="stop")
    fail_once(trainer, monkeypatch, FAILING)
    with pytest.warns(TrainingWarning), pytest.raises(TrainingError, match=r"many spectra.*best state is in .*best.pt"):
        trainer.run(until=20, progress=False)
    assert load_state(tmp_path / "checkpoint.pt")["iteration"] == 6


def test_failing_run_goes_on_if_it_shall_only_warn(make_trainer, tmp_path, monkeypatch):
    trainer = watched(make_trainer, tmp_path)
    fail_once(trainer, monkeypatch, FAILING)
    with pytest.warns(TrainingWarning, match="many spectra"):
        trainer.run(until=8, progress=False)
    assert trainer.iteration == 8


def test_failing_run_is_rolled_back_with_half_the_rates(make_trainer, tmp_path, monkeypatch):
    trainer = watched(make_trainer, tmp_path, action="roll_back")
    fail_once(trainer, monkeypatch, FAILING)
    with pytest.warns(TrainingWarning) as warned:
        trainer.run(until=8, progress=False)
    assert [str(w.message)[:30] for w in warned] == ["failing at iteration 6 (collap", "rolled back from iteration 6 t"]
    assert trainer.iteration == 8
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.5e-4)


def test_loss_that_is_not_finite_is_rolled_back(make_trainer, tmp_path, monkeypatch):
    trainer = watched(make_trainer, tmp_path, action="roll_back")
    trainer.run(until=4, progress=False)
    trainer.network.decoder_obs[0].weight.data.fill_(float("nan"))
    with pytest.warns(TrainingWarning, match="not finite"):
        trainer.run(until=6, progress=False)
    assert all(torch.isfinite(array).all() for array in trainer.network.state_dict().values())


def test_hopeless_run_is_not_rolled_back_for_ever(make_trainer, tmp_path):
    trainer = watched(make_trainer, tmp_path, action="roll_back")
    trainer.run(until=4, progress=False)
    trainer.synthetic.emulator = lambda labels: torch.full((len(labels), LineFamily.n_pixels), float("nan"))
    with pytest.warns(TrainingWarning), pytest.raises(TrainingError, match="rolled back 4 times, and fails"):
        trainer.run(until=20, progress=False)


def test_start_from_takes_weights_and_nothing_else(make_trainer, tmp_path):
    first = make_trainer(tmp_path / "first")
    first.run(until=2, progress=False)
    second = make_trainer(tmp_path / "second", seed=3)
    second.start_from(tmp_path / "first" / "checkpoint.pt")
    assert second.iteration == 0
    assert_same_state(second.parts.state_dict(), first.parts.state_dict())
    assert_same_state(second.average, first.average)


def test_run_that_has_begun_is_not_started_anew(make_trainer, tmp_path):
    make_trainer(tmp_path / "first").save()
    second = make_trainer(tmp_path / "second", seed=3)
    second.step()
    before = {name: array.clone() for name, array in second.parts.state_dict().items()}
    second.start_from(tmp_path / "first" / "checkpoint.pt")
    assert_same_state(second.parts.state_dict(), before)


class Table:
    """Twenty noisy spectra that can be streamed."""

    n_spectra, n_pixels, block_rows, labels = 20, LineFamily.n_pixels, 4, None

    def read(self, start, stop):
        flux = np.random.default_rng(5).normal(0.9, 0.02, (self.n_spectra, self.n_pixels))[start:stop]
        return flux.astype(np.float32), np.full(flux.shape, 0.02, np.float32), np.zeros(flux.shape, bool)


def test_rollback_does_not_repeat_the_batches_of_a_stream(make_trainer, tmp_path):
    settings = WatchSettings(every=2, n_spectra=12, grace=1000, window=4, patience=1, action="roll_back")
    trainer = make_trainer(tmp_path, watch=settings, table=Table())
    trainer.run(until=4, progress=False)
    before = trainer.observed.state_dict()
    with pytest.warns(TrainingWarning):
        trainer._roll_back("a test")
    assert trainer.observed.state_dict() == before


def test_best_state_of_another_run_is_not_gone_back_to(make_trainer, tmp_path):
    watched(make_trainer, tmp_path).run(until=4, progress=False)
    (tmp_path / "checkpoint.pt").unlink()
    anew = watched(make_trainer, tmp_path, action="roll_back")
    with pytest.raises(TrainingError, match="has no saved state to go back to"):
        anew._roll_back("a test")


def test_start_from_a_run_with_other_options(make_trainer, tmp_path):
    make_trainer(tmp_path / "first", weight_labels=1.0).save()
    second = make_trainer(seed=3, prior_rate=1e-3)
    second.start_from(tmp_path / "first" / "checkpoint.pt")
    assert_same_state(second.network.state_dict(), make_trainer(weight_labels=1.0).network.state_dict())


@pytest.mark.parametrize("folder", [None, "run"])
def test_gradient_that_is_not_finite_changes_nothing(make_trainer, tmp_path, folder):
    trainer = make_trainer(folder and tmp_path)
    trainer.step()
    before = {name: array.clone() for name, array in trainer.network.state_dict().items()}
    trainer.network.decoder_obs[0].weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="the gradient is not finite at iteration 1"):
        trainer.step()
    assert_same_state(trainer.network.state_dict(), before)


@pytest.mark.parametrize("option", ["weight_latent", "weight_spectra", "weight_labels", "critic_penalty"])
def test_bfloat16_without_a_norm_of_the_latents(option, tiny_settings):
    """Nothing but a normalisation brings latents back to full precision by itself."""
    settings = TrainingSettings(mixed_precision=True, **{option: 1.0})
    parts = Adaptation(NetworkSettings(**tiny_settings.to_dict() | {"latent_norm": False}), settings, n_labels=2)
    x, labels = torch.randn(3, LineFamily.n_pixels), torch.randn(3, 2)
    terms, transfers = parts.autoencoder_terms(x, x, torch.ones_like(x), labels)
    assert all(torch.isfinite(term) for term in (terms | parts.critic_terms(transfers)).values())
