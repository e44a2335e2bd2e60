"""What the trainer can beyond the paper, against definitions written with plain modules and by hand."""

import pytest
import torch
from tiny import LineFamily, quick_scores
from training_oracle import Oracle, assert_same_state, assert_same_weights, autoencoder_losses, state

from cyclestarnet.training.datasets import StoredSynthetic, SyntheticSpectra
from cyclestarnet.training.trainer import Anchors, Trainer
from cyclestarnet.training.watch import WatchSettings

# weight_adversarial is not 1, so that it matters which terms it multiplies.
OPTIONS = {
    "least squares": {"adversarial": "least_squares", "weight_adversarial": 2.0},
    "critic penalty": {"critic_penalty": 5.0, "weight_adversarial": 0.5},
    "both, no split": {"adversarial": "least_squares", "critic_penalty": 5.0, "split_filters": 0},
    "ramp": {"adversarial_ramp": 4, "weight_adversarial": 30.0},
    "anchors": {"weight_anchors": 2.0},
    "anchors, no split": {"weight_anchors": 2.0, "split_filters": 0, "weight_labels": 1.0},
    "warm start": {"warm_start": 1},
    "warm start, no split": {"warm_start": 1, "split_filters": 0, "weight_labels": 1.0, "gradient_clip": 0.5},
    "label cycle": {"weight_labels": 1.0, "weight_label_cycle": 3.0},
    "response": {"weight_response": 3.0, "response_labels": ("logg", "mg_h")},
    "response, no split": {"weight_response": 3.0, "response_labels": ("mg_h",), "split_filters": 0},
    "response in parts": {
        "weight_response": 3.0,
        "response_labels": ("mg_h",),
        "micro_batches": 2,
        "batch_size": 4,
        "weight_labels": 1.0,
        "weight_label_cycle": 3.0,
    },
    # The oracle takes the batch as a whole, but for the energy distance.
    "2 parts": {"micro_batches": 2, "batch_size": 6},
    "3 parts": {"micro_batches": 3, "batch_size": 6, "critic_penalty": 1.0, "weight_labels": 1.0, "weight_latent": 2.0},
    "spectra": {"weight_spectra": 3.0, "micro_batches": 2, "batch_size": 4},
    "no critics": {"weight_adversarial": 0.0, "weight_spectra": 3.0, "weight_latent": 2.0, "weight_labels": 1.0},
    "no critics, no split": {"weight_adversarial": 0.0, "weight_spectra": 3.0, "split_filters": 0},
    "parts and anchors": {"micro_batches": 2, "batch_size": 4, "weight_anchors": 2.0, "gradient_clip": 0.5},
    "parts in a warm start": {"micro_batches": 2, "batch_size": 4, "warm_start": 2},
}
RATES = {"learning_rate": 1e-3, "critic_learning_rate": 2e-3}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_two_steps_equal_the_plain_training(make_trainer, options):
    trainer = make_trainer(double=True, **RATES, **options)
    oracle = Oracle(trainer)
    for _ in range(2):
        assert trainer.step() == pytest.approx(oracle.step(), rel=1e-6)
    assert_same_weights(trainer, oracle)


# -- the warm start ------------------------------------------------------------------
def test_warm_start_trains_the_synthetic_autoencoder_alone(make_trainer):
    trainer = make_trainer(warm_start=2, weight_labels=1.0, weight_latent=1.0)
    before = {name: array.clone() for name, array in trainer.parts.state_dict().items()}
    assert [set(trainer.step()) for _ in range(2)] == [{"rec_synth"}] * 2
    moved = {name for name, array in trainer.parts.state_dict().items() if not torch.equal(array, before[name])}
    assert {name.rsplit(".", 2)[0] for name in moved} == {
        f"network.{part}" for part in ("encoder_synth", "encoder_sh", "decoder_sh", "decoder_synth")
    }


def test_warm_start_ends_with_two_equal_branches(make_trainer):
    """Until the split latent speaks, both domains are encoded and decoded alike."""
    trainer = make_trainer(warm_start=1)
    trainer.step()
    trainer.parts.copy_synth_to_obs()
    net, (x, _) = trainer.network, trainer.observed.draw(3)
    hidden = net.decoder_sh(net.encode_synth(x))
    silent = torch.zeros(len(x), net.decoder_obs[0].in_channels - hidden.shape[1], hidden.shape[2])
    assert torch.equal(net.encode_obs(x)[0], net.encode_synth(x))
    torch.testing.assert_close(net.decoder_obs(torch.cat([hidden, silent], 1)), net.decoder_synth(hidden))


def test_average_begins_anew_after_the_warm_start(make_trainer):
    trainer = make_trainer(warm_start=1, average_decay=0.9)
    oracle = Oracle(trainer)
    trainer.step()
    oracle.step()
    oracle.copy_branch()
    trainer.step()
    decay = 2 / 11  # of the second iteration, (1 + 1) / (10 + 1)
    for name, copied in oracle.parts["network"].state_dict().items():
        expected = decay * copied + (1 - decay) * trainer.network.state_dict()[name]
        torch.testing.assert_close(trainer.average[name], expected, rtol=1e-4, atol=1e-5)


def test_row_across_the_end_of_a_warm_start_holds_means(make_trainer):
    """Of the iterations that have a term: three for rec_synth, one for rec_obs."""
    (row,) = make_trainer(warm_start=2).run(until=3, every=3, progress=False)
    twin = make_trainer(warm_start=2)
    steps = [twin.step() for _ in range(3)]
    assert row["rec_synth"] == pytest.approx(sum(step["rec_synth"] for step in steps) / 3)
    assert row["rec_obs"] == pytest.approx(steps[2]["rec_obs"])


# -- the shift of the label prior ------------------------------------------------------
SHIFTED = {"prior_rate": 0.01, "weight_latent": 2.0, "weight_labels": 1.0, "adversarial_ramp": 4, "batch_size": 4}


@pytest.fixture
def shifted(make_trainer):
    """A trainer whose prior is shifted already, its oracle, and a function from a shift to the oracle's batch."""
    trainer = make_trainer(double=True, micro_batches=2, **RATES, **SHIFTED)
    trainer.parts.prior_shift.data = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    oracle = Oracle(trainer)
    (_, x_obs, weight, labels, _), _ = oracle.draw()
    oracle.generator.manual_seed(trainer.settings.seed)

    def batch(shift):
        raw = trainer.synthetic.label_mean + (labels + shift) * trainer.synthetic.label_std
        flux = LineFamily().emulator(raw)
        return (flux - trainer.settings.flux_mean) / trainer.settings.flux_std, x_obs, weight, labels + shift

    return trainer, oracle, batch


def test_prior_follows_the_terms_that_tell_the_domains_apart(shifted):
    """Central differences of λ (times the ramp) gen_obs + λ latent; nothing else, above all no reconstruction."""
    trainer, oracle, batch = shifted
    shift, step = trainer.parts.prior_shift.detach().clone(), 1e-5

    def telling(shift):
        terms, _ = autoencoder_losses(oracle.parts, trainer.settings, *batch(shift))
        return (0.25 * terms["gen_obs"] + 2.0 * terms["latent"]).item()

    steps = step * torch.eye(3, dtype=torch.float64)
    expected = [(telling(shift + delta) - telling(shift - delta)) / (2 * step) for delta in steps]
    trainer.step()
    assert trainer.parts.prior_shift.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_prior_moves_by_adam(shifted):
    """Its first step has the size of the rate, against the gradient."""
    trainer, _, _ = shifted
    before = trainer.parts.prior_shift.detach().clone()
    trainer.step()
    moved = trainer.parts.prior_shift.detach() - before
    torch.testing.assert_close(moved, -0.01 * trainer.parts.prior_shift.grad.sign(), rtol=1e-4, atol=0)


def test_shift_of_the_prior_is_a_change_of_the_data_for_the_networks(shifted):
    """One step is the plain one on spectra of shifted labels: no gradient takes a way through the shift."""
    trainer, oracle, batch = shifted
    found = trainer.step()
    shift = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    expected = oracle.full_step(batch(shift), None)
    assert found == pytest.approx({name: term.item() for name, term in expected.items()}, rel=1e-6)
    assert_same_weights(trainer, oracle)


def test_prior_without_shift_draws_the_same_batch(make_trainer):
    """The first step of a run does not depend on prior_rate."""
    shifted, plain = (make_trainer(double=True, **SHIFTED | {"prior_rate": rate}) for rate in (0.01, 0.0))
    assert shifted.step() == pytest.approx(plain.step(), rel=1e-12)


# -- what does not go together -----------------------------------------------------------
# -- the response to single labels ---------------------------------------------------
RESPONSE = {"weight_response": 1.0, "response_labels": ("mg_h",)}


def test_response_is_how_much_the_gap_changes(make_trainer):
    """Of networks that see nothing of the spectrum: not at all. The spectra differ, so that it could be otherwise."""
    trainer = make_trainer(**RESPONSE)
    assert trainer.step()["response"] > 0
    for parameter in (*trainer.network.encoder_synth.parameters(), *trainer.network.encoder_sh.parameters()):
        parameter.data.zero_()
    assert trainer.step()["response"] == 0


def test_training_preserves_the_response(make_trainer):
    """Fifty steps with the term and without it: the gap of the one is the less moved by labels."""
    moved = {}
    for weight in (1e-6, 1000.0):
        trainer = make_trainer(learning_rate=2e-3, **RESPONSE | {"weight_response": weight})
        moved[weight] = [trainer.step()["response"] for _ in range(50)][-10:]
    assert sum(moved[1000.0]) < 0.5 * sum(moved[1e-6])


def test_a_few_labels_change_within_the_pool(make_trainer):
    """Three of four, by normal steps in standard deviations of the pool, but for what is cut at its edge."""
    pool = torch.randn((500, 5), generator=torch.Generator().manual_seed(1)) * 3 + 7
    names = ("a", "b", "c", "d", "e")
    synthetic = SyntheticSpectra(lambda labels: labels, pool, make_trainer().settings, label_names=names)
    labels, generator = torch.zeros((4000, 5)), torch.Generator().manual_seed(2)
    changed = synthetic.changed(labels, ("e", "b", "a", "c"), generator)
    assert not changed[:, 3].any()
    assert ((changed != 0).sum(1) == 3).all()
    assert changed[changed != 0].std() == pytest.approx(1, abs=0.03)
    lowest, highest = ((edge - synthetic.label_mean) / synthetic.label_std for edge in (pool.amin(0), pool.amax(0)))
    assert ((changed >= lowest) & (changed <= highest)).all()
    assert (changed.amax(0) == highest).sum() >= 1
    again = synthetic.changed(labels, ("e", "b", "a", "c"), torch.Generator().manual_seed(2))
    assert torch.equal(again, changed)


def test_labels_that_change_must_be_known(make_trainer):
    with pytest.raises(ValueError, match=r"must be labels of the .* \(teff, logg, mg_h\), but k_h is none"):
        make_trainer(**RESPONSE | {"response_labels": ("mg_h", "k_h")})


def test_response_follows_the_shift_of_the_prior(make_trainer):
    """The two spectra of a pair differ in what was changed, not in the shift of one of them."""
    trainer = make_trainer(prior_rate=1e-9, **RESPONSE)
    trainer.parts.prior_shift.data = torch.tensor([1.0, -1.0, 0.0])
    rendered = []
    render = trainer.synthetic.render
    trainer.synthetic.render = lambda labels: rendered.append(labels.detach()) or render(labels)
    trainer.step()
    shifted, changed = rendered[1:]
    assert torch.equal(shifted[:, :2], changed[:, :2])
    assert (shifted[:, 2] != changed[:, 2]).all()


def stored(settings, labels=None):
    """Synthetic spectra that no emulator can make anew."""
    return StoredSynthetic(torch.ones(6, 415), labels, settings)


def test_anchors_without_weight_are_refused(make_trainer):
    trainer = make_trainer(weight_anchors=1.0)
    plain = make_trainer()
    with pytest.raises(ValueError, match="anchors need weight_anchors, and weight_anchors needs anchors"):
        Trainer(plain.network.settings, plain.settings, plain.synthetic, plain.observed, anchors=trainer.anchors)


def test_weight_without_anchors_is_refused(make_trainer):
    trainer = make_trainer(weight_anchors=1.0)
    with pytest.raises(ValueError, match="weight_anchors needs anchors"):
        Trainer(trainer.network.settings, trainer.settings, trainer.synthetic, trainer.observed)


def test_anchors_need_labels_for_all(make_trainer):
    with pytest.raises(ValueError, match="24 anchor spectra, but 5 rows of labels"):
        Anchors(make_trainer().observed, torch.zeros(5, 3))


def test_labels_must_be_known(make_trainer):
    trainer = make_trainer(weight_labels=1.0)
    with pytest.raises(ValueError, match="weight_labels and prior_rate need synthetic spectra with labels"):
        Trainer(trainer.network.settings, trainer.settings, stored(trainer.settings), trainer.observed)


@pytest.mark.parametrize("option", [{"prior_rate": 0.1}, {"weight_anchors": 1.0}, RESPONSE])
def test_spectra_must_be_rendered(make_trainer, option):
    """Stored spectra have labels, but none can be made of other labels."""
    trainer = make_trainer(**option)
    synthetic = stored(trainer.settings, torch.randn(6, 3))
    with pytest.raises(
        ValueError, match="prior_rate, weight_anchors and weight_response need synthetic spectra that an emulator makes"
    ):
        Trainer(trainer.network.settings, trainer.settings, synthetic, trainer.observed, anchors=trainer.anchors)


def test_anchors_must_have_the_labels_of_the_emulator(make_trainer):
    trainer = make_trainer(weight_anchors=1.0)
    anchors = Anchors(trainer.anchors.observed, torch.zeros(6, 2))
    with pytest.raises(ValueError, match="the anchors have 2 labels, but the synthetic spectra 3"):
        Trainer(trainer.network.settings, trainer.settings, trainer.synthetic, trainer.observed, anchors=anchors)


def test_energy_distance_needs_two_spectra_in_a_part(make_trainer):
    with pytest.raises(ValueError, match="weight_latent needs at least 2 spectra in each of the 3 parts of a batch"):
        make_trainer(weight_latent=1.0, micro_batches=3)
    with pytest.raises(ValueError, match="weight_spectra needs at least 2 spectra in each of the 3 parts of a batch"):
        make_trainer(weight_spectra=1.0, micro_batches=3)


# -- without critics -------------------------------------------------------------------
def test_without_critics_none_is_asked_or_trained(make_trainer, monkeypatch):
    trainer = make_trainer(weight_adversarial=0.0, weight_spectra=1.0)
    monkeypatch.setattr(trainer.parts, "_judge", None)  # whoever calls it fails
    before = [parameter.detach().clone() for parameter in trainer.parts.critic_parameters()]
    assert not any(name.startswith(("gen_", "critic")) for name in trainer.step())
    assert all(map(torch.equal, before, trainer.parts.critic_parameters()))


def test_run_without_critics_is_watched_and_resumes(make_trainer, tmp_path):
    options = {"weight_adversarial": 0.0, "weight_spectra": 1.0, "watch": WatchSettings(every=3, n_spectra=10)}
    with quick_scores():
        make_trainer(tmp_path, **options).run(until=3, every=1, progress=False)
        resumed, whole = make_trainer(tmp_path, **options), make_trainer(**options)
        assert resumed.iteration == 3
        resumed.run(until=6, every=1, progress=False)
        whole.run(until=6, every=1, progress=False)
    assert_same_state(state(resumed), state(whole))
