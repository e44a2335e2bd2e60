"""The trainer against the definitions of the paper, written with plain modules, and its checkpoints."""

import csv

import numpy as np
import pytest
import torch
from training_oracle import Oracle, assert_same_state, assert_same_weights, state

from cyclestarnet.exceptions import OtherRunError
from cyclestarnet.networks import convolutions

# Beyond the paper: the optional terms, a clipped gradient, a schedule that acts within two steps.
VARIANTS = {
    "paper": {},
    "no split latent": {"split_filters": 0},
    "all options": {"weight_latent": 2.0, "weight_labels": 3.0, "gradient_clip": 0.5, "steps": (1,)},
}


# -- the terms and the steps -----------------------------------------------------------
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_terms_equal_the_definitions(make_trainer, variant):
    trainer = make_trainer(**variant)
    expected, found = Oracle(trainer).step(), trainer.step()
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layout", [convolutions.ChannelMaps, convolutions.RowMaps])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_two_steps_equal_the_plain_training(make_trainer, variant, layout):
    """In float64: Adam turns the rounding of a gradient that is zero into a step of full size."""
    trainer = make_trainer(double=True, layout=layout, learning_rate=1e-3, critic_learning_rate=2e-3, **variant)
    oracle = Oracle(trainer)
    for _ in range(2):
        assert trainer.step() == pytest.approx(oracle.step(), rel=1e-6)
    assert_same_weights(trainer, oracle)


def test_terms_in_bfloat16_are_within_five_percent(make_trainer):
    exact, rounded = make_trainer().step(), make_trainer(mixed_precision=True).step()
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact


def test_losses_fall(make_trainer):
    trainer = make_trainer(learning_rate=2e-3, critic_learning_rate=6e-4)
    first, *_, last = trainer.run(until=80, every=20, progress=False)
    for name in ("rec_synth", "rec_obs", "cyc_synth", "cyc_obs"):
        assert last[name] < 0.3 * first[name]


def test_critics_learn(make_trainer):
    """Steps of the critics alone tell reconstructions from transfers."""
    trainer = make_trainer(learning_rate=1e-9, critic_learning_rate=2e-3)
    history = trainer.run(until=60, every=20, progress=False)
    assert history[-1]["critic_synth"] + history[-1]["critic_obs"] < 0.9 * 4 * np.log(2)
    assert history[-1]["critic_accuracy"] > 0.75


def test_same_seed_same_run(make_trainer):
    assert make_trainer(seed=5).step() == make_trainer(seed=5).step()


def test_other_seed_other_run(make_trainer):
    assert make_trainer(seed=5).step() != make_trainer(seed=6).step()


def test_global_random_state_is_left_alone(make_trainer):
    before = torch.get_rng_state()
    make_trainer(weight_labels=1.0).step()
    assert torch.equal(torch.get_rng_state(), before)


# -- averaged weights --------------------------------------------------------------------
def test_average_follows_its_definition(make_trainer):
    trainer = make_trainer(average_decay=0.15, learning_rate=1e-3)
    expected = {name: array.clone() for name, array in trainer.network.state_dict().items()}
    for iteration in range(3):
        trainer.step()
        decay = min(0.15, (1 + iteration) / (10 + iteration))
        for name, array in trainer.network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * array
    for name, array in trainer.averaged_network().state_dict().items():
        torch.testing.assert_close(array, expected[name], rtol=1e-5, atol=1e-7)


def test_without_average_the_last_weights_are_kept(make_trainer):
    trainer = make_trainer()
    trainer.step()
    for name, array in trainer.averaged_network().state_dict().items():
        assert torch.equal(array, trainer.network.state_dict()[name])


# -- the run: checkpoints, interrupts, failures ------------------------------------------------
def test_resumed_run_equals_an_uninterrupted_one(make_trainer, tmp_path):
    options = {"schedule": "cosine", "warmup": 3, "average_decay": 0.9, "learning_rate": 1e-3}
    make_trainer(tmp_path, **options).run(until=3, progress=False)
    resumed, whole = make_trainer(tmp_path, **options), make_trainer(**options)
    assert resumed.iteration == 3
    resumed.run(until=6, progress=False)
    whole.run(until=6, progress=False)
    assert_same_state(state(resumed), state(whole))


def test_killed_run_resumes_from_its_last_checkpoint(make_trainer, tmp_path):
    killed = make_trainer(tmp_path)
    for _ in range(2):
        killed.step()
    killed.save()
    killed.step()  # and dies
    assert make_trainer(tmp_path).iteration == 2


def test_finished_run_does_nothing(make_trainer, tmp_path):
    make_trainer(tmp_path, n_iterations=2).run(progress=False)
    again = make_trainer(tmp_path, n_iterations=2)
    assert again.run(progress=False) == []
    assert again.iteration == 2


def test_until_zero_is_no_iteration(make_trainer):
    trainer = make_trainer(n_iterations=2)
    trainer.run(until=0, progress=False)
    assert trainer.iteration == 0


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"weight_obs": 1.0, "seed": 3}, "seed, weight_obs"),
        ({"split_filters": 1}, "network"),
        ({"steps": (10,)}, "steps"),
    ],
)
def test_folder_of_other_settings_is_refused(make_trainer, tmp_path, change, names):
    make_trainer(tmp_path).save()
    with pytest.raises(OtherRunError, match=f"made with other settings: {names}; use another folder"):
        make_trainer(tmp_path, **change)


def test_interrupt_saves_a_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.run(until=2, progress=False)
    trainer.synthetic.emulator = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.run(progress=False)
    assert make_trainer(tmp_path).iteration == 2


def interrupt(labels):
    raise KeyboardInterrupt


def spoil_synthetic(trainer):
    trainer.synthetic.emulator = lambda labels: torch.full((len(labels), 415), float("nan"))


def spoil_observed(trainer):
    trainer.observed.weight[:] = float("inf")


def spoil_weights(trainer):
    trainer.network.decoder_obs[0].weight.data.fill_(float("nan"))


def spoil_critic(trainer):
    trainer.critic_synth.fc.weight.data.fill_(float("nan"))


@pytest.mark.parametrize(
    ("spoil", "named", "fine"),
    [
        (spoil_synthetic, ["rec_synth", "cyc_synth", "gen_obs"], ["rec_obs", "gen_synth"]),
        (spoil_observed, ["rec_obs", "cyc_obs"], ["rec_synth", "cyc_synth", "gen_synth", "gen_obs"]),
        (spoil_weights, ["rec_obs", "cyc_obs", "cyc_synth", "gen_obs"], ["rec_synth", "gen_synth"]),
        (spoil_critic, ["gen_synth"], ["rec_synth", "rec_obs", "gen_obs"]),
    ],
)
def test_loss_that_is_not_finite_names_its_terms(make_trainer, spoil, named, fine):
    trainer = make_trainer()
    trainer.step()
    spoil(trainer)
    with pytest.raises(FloatingPointError, match="not finite at iteration 1") as caught:
        trainer.step()
    assert all(f"'{name}'" in str(caught.value) for name in named)
    assert not any(f"'{name}'" in str(caught.value) for name in fine)


@pytest.mark.parametrize("spoil", [spoil_synthetic, spoil_weights, spoil_critic])
def test_loss_that_is_not_finite_leaves_the_last_checkpoint(make_trainer, tmp_path, spoil):
    trainer = make_trainer(tmp_path)
    trainer.run(until=2, progress=False)
    before = {name: array.clone() for name, array in state(trainer).items()}
    spoil(trainer)
    with pytest.raises(FloatingPointError):
        trainer.run(progress=False)
    assert_same_state(state(make_trainer(tmp_path)), before)


def test_history_holds_means(make_trainer):
    trainer, twin = make_trainer(), make_trainer()
    history = trainer.run(until=4, every=2, progress=False)
    steps = [twin.step()["rec_obs"] for _ in range(4)]
    assert [row["iteration"] for row in history] == [2, 4]
    assert [row["rec_obs"] for row in history] == pytest.approx([np.mean(steps[:2]), np.mean(steps[2:])])


def test_log_after_a_resume_is_that_of_an_uninterrupted_run(make_trainer, tmp_path):
    """Means over rows that began before the resume, too; rows later than the checkpoint are replaced."""
    make_trainer(tmp_path / "whole").run(until=6, every=2, progress=False)
    trainer = make_trainer(tmp_path / "cut")
    trainer.run(until=3, every=2, progress=False)
    trainer._logs["losses"].write({"iteration": 4, "rec_obs": 1e9})  # and dies before the next checkpoint
    make_trainer(tmp_path / "cut").run(until=6, every=2, progress=False)
    assert (tmp_path / "cut" / "losses.csv").read_text() == (tmp_path / "whole" / "losses.csv").read_text()


def test_losses_are_logged_once_per_row(make_trainer, tmp_path):
    make_trainer(tmp_path).run(until=4, every=2, progress=False)
    make_trainer(tmp_path).run(until=6, every=2, progress=False)
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["2", "4", "6"]
    assert all(float(row["rec_obs"]) > 0 for row in rows)
