"""The trainer against the definitions of the paper, written with plain modules, and its checkpoints."""

import csv
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cyclestarnet.backend import fast
from cyclestarnet.backend.networks import NetworkSettings
from cyclestarnet.backend.settings import TrainingSettings
from cyclestarnet.backend.sources import ObservedSpectra, SyntheticSpectra
from cyclestarnet.backend.training import Trainer

N_PIXELS = 415
# Beyond the paper: the optional terms, a clipped gradient, a schedule that acts within two steps.
VARIANTS = {
    "paper": {},
    "no split latent": {"split_filters": 0},
    "all options": {"weight_latent": 2.0, "weight_labels": 3.0, "gradient_clip": 0.5, "steps": (1,)},
}


@pytest.fixture
def make_trainer(tiny_settings, line_family):
    """A trainer on 24 noisy spectra per domain; ``double`` makes everything float64."""

    def make(folder=None, *, double=False, layout=None, split_filters=2, emulator=None, **changes):
        rng = np.random.default_rng(8)
        settings = TrainingSettings(
            **({"n_iterations": 100, "batch_size": 3, "flux_mean": 0.92, "flux_std": 0.11} | changes)
        )
        pool, labels = line_family.draw(24, rng), line_family.draw(24, rng)
        sigma = rng.uniform(0.002, 0.055, (24, N_PIXELS))  # some below the floor, some masked
        flux = rng.normal(line_family(labels, width=2.3, depth=1.1), sigma)
        dtype = torch.float64 if double else torch.float32
        emulator = emulator or (lambda labels: torch.from_numpy(line_family(labels)).to(dtype))
        synthetic = SyntheticSpectra(emulator, pool, settings)
        observed = ObservedSpectra(flux, sigma, rng.random(flux.shape) < 0.05, settings)
        sizes = NetworkSettings(**(tiny_settings.to_dict() | {"split_filters": split_filters}))
        trainer = Trainer(sizes, settings, synthetic, observed, folder)
        if double:
            trainer.parts.double()
            trainer.parts.dtype, trainer.parts.maps = torch.float64, layout or trainer.parts.maps
            trainer.average = {name: array.double() for name, array in trainer.average.items()}
            synthetic.label_mean, synthetic.label_std = synthetic.label_mean.double(), synthetic.label_std.double()
            observed.flux, observed.weight = observed.flux.double(), observed.weight.double()
        return trainer

    return make


# -- independent truth ---------------------------------------------------------------
def mappings(net, x_synth, x_obs):
    """The four mappings, two cycles and latents, one plain sub-network after the other."""
    split = net.has_split

    def decode_obs(z_shared, z_split):
        hidden = net.decoder_sh(z_shared)
        return net.decoder_obs(torch.cat([hidden, net.decoder_sp(z_split)], 1) if split else hidden)

    def decode_synth(z_shared):
        return net.decoder_synth(net.decoder_sh(z_shared))

    hidden_obs = net.encoder_obs(x_obs[:, None])
    m = {"z_synth": net.encoder_sh(net.encoder_synth(x_synth[:, None])), "z_obs": net.encoder_sh(hidden_obs)}
    m["z_split"] = net.encoder_sp(hidden_obs) if split else None
    m["rec_synth"], m["rec_obs"] = decode_synth(m["z_synth"]), decode_obs(m["z_obs"], m["z_split"])
    m["synth_to_obs"], m["obs_to_synth"] = decode_obs(m["z_synth"], m["z_split"]), decode_synth(m["z_obs"])
    hidden_back = net.encoder_obs(m["synth_to_obs"])
    m["z_split_back"] = net.encoder_sp(hidden_back) if split else None
    m["cyc_synth"] = decode_synth(net.encoder_sh(hidden_back))
    m["cyc_obs"] = decode_obs(net.encoder_sh(net.encoder_synth(m["obs_to_synth"])), m["z_split"])
    return m


def probability(critic, flux, z_shared, z_split=None):
    latent = z_shared if z_split is None else torch.cat([z_shared, z_split], 1)
    return torch.sigmoid(critic(flux[:, 0], latent))


def cross_entropy(probabilities, target):
    return F.binary_cross_entropy(probabilities, torch.full_like(probabilities, target))


def autoencoder_losses(parts, settings, x_synth, x_obs, weight_obs, labels):
    """Every term of the autoencoder step, from DESIGN: distances over all pixels, fakes' targets flipped."""
    m = mappings(parts["network"], x_synth, x_obs)
    weight = {"synth": settings.flux_std / settings.synthetic_sigma, "obs": weight_obs}
    target = {"synth": x_synth, "obs": x_obs}
    terms = {
        f"{kind}_{domain}": (((m[f"{kind}_{domain}"][:, 0] - target[domain]) * weight[domain]) ** 2).mean()
        for kind in ("rec", "cyc")
        for domain in ("synth", "obs")
    }
    fake_obs = (m["synth_to_obs"], m["z_synth"], m["z_split_back"])  # S1, Eq. 4: the re-encoded split latent
    terms["gen_synth"] = cross_entropy(probability(parts["critic_synth"], m["obs_to_synth"], m["z_obs"]), 1)
    terms["gen_obs"] = cross_entropy(probability(parts["critic_obs"], *fake_obs), 1)
    if settings.weight_latent:
        a, b = m["z_synth"].flatten(1), m["z_obs"].flatten(1)
        pairs = [(i, j) for i in range(len(a)) for j in range(len(a)) if i != j]
        within = sum((z[i] - z[j]).norm() for z in (a, b) for i, j in pairs) / len(pairs)
        between = sum((p - q).norm() for p in a for q in b) / len(a) ** 2
        terms["latent"] = (2 * between - within) / a.shape[1] ** 0.5
    if settings.weight_labels:
        terms["labels"] = ((parts["label_head"](m["z_synth"]) - labels) ** 2).mean()
    return terms, m


def critic_losses(parts, m):
    m = {name: None if array is None else array.detach() for name, array in m.items()}
    true = probability(parts["critic_synth"], m["rec_synth"], m["z_synth"])
    fake = probability(parts["critic_synth"], m["obs_to_synth"], m["z_obs"])
    true_obs = probability(parts["critic_obs"], m["rec_obs"], m["z_obs"], m["z_split"])
    fake_obs = probability(parts["critic_obs"], m["synth_to_obs"], m["z_synth"], m["z_split_back"])
    right = [true > 0.5, fake < 0.5, true_obs > 0.5, fake_obs < 0.5]
    return {
        "critic_synth": cross_entropy(true, 1) + cross_entropy(fake, 0),
        "critic_obs": cross_entropy(true_obs, 1) + cross_entropy(fake_obs, 0),
        "critic_accuracy": torch.cat(right).double().mean(),
    }


class Oracle:
    """The training of the paper in its plainest form, from the same start and the same batches as a trainer."""

    def __init__(self, trainer):
        names = ("network", "critic_synth", "critic_obs", "label_head")
        self.parts = {name: deepcopy(getattr(trainer, name)) for name in names if getattr(trainer, name) is not None}
        self.trainer, self.settings = trainer, trainer.settings
        self.generator = torch.Generator().manual_seed(self.settings.seed)
        s = self.settings
        own = [p for name in ("network", "label_head") if name in self.parts for p in self.parts[name].parameters()]
        critics = [p for name in ("critic_synth", "critic_obs") for p in self.parts[name].parameters()]
        self.own = own
        self.adam = torch.optim.Adam(own, s.learning_rate, s.betas)
        self.critic_adam = torch.optim.Adam(critics, s.critic_learning_rate, s.betas)
        schedule = torch.optim.lr_scheduler.MultiStepLR
        self.schedules = [schedule(adam, s.steps, s.step_factor) for adam in (self.adam, self.critic_adam)]

    def step(self):
        s = self.settings
        x_synth, labels = self.trainer.synthetic.draw(s.batch_size, self.generator)
        x_obs, weight = self.trainer.observed.draw(s.batch_size, self.generator)
        terms, m = autoencoder_losses(self.parts, s, x_synth, x_obs, weight, labels)
        factors = {"synth": s.weight_synth, "obs": s.weight_obs}
        total = sum(factors[d] * (terms[f"rec_{d}"] + terms[f"cyc_{d}"]) for d in factors)
        total = total + s.weight_adversarial * (terms["gen_synth"] + terms["gen_obs"])
        total = total + s.weight_latent * terms.get("latent", 0) + s.weight_labels * terms.get("labels", 0)
        self.adam.zero_grad()
        total.backward()
        if s.gradient_clip:
            norm = sum((p.grad**2).sum() for p in self.own) ** 0.5
            for p in self.own:
                p.grad *= min(1, s.gradient_clip / norm)
        self.adam.step()
        critic_terms = critic_losses(self.parts, m)
        self.critic_adam.zero_grad()
        (critic_terms["critic_synth"] + critic_terms["critic_obs"]).backward()
        self.critic_adam.step()
        for schedule in self.schedules:
            schedule.step()
        return {name: term.item() for name, term in (terms | critic_terms).items()}


# -- the terms and the steps -----------------------------------------------------------
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_terms_equal_the_definitions(make_trainer, variant):
    trainer = make_trainer(**variant)
    expected, found = Oracle(trainer).step(), trainer.step()
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layout", [fast.ChannelMaps, fast.RowMaps])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_two_steps_equal_the_plain_training(make_trainer, variant, layout):
    """In float64: Adam turns the rounding of a gradient that is zero into a step of full size."""
    trainer = make_trainer(double=True, layout=layout, learning_rate=1e-3, critic_learning_rate=2e-3, **variant)
    oracle = Oracle(trainer)
    for _ in range(2):
        assert trainer.step() == pytest.approx(oracle.step(), rel=1e-6)
    for name, part in oracle.parts.items():
        for key, expected in part.state_dict().items():
            torch.testing.assert_close(getattr(trainer, name).state_dict()[key], expected, rtol=0, atol=1e-7)


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


# -- settings ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_iterations": 0}, "n_iterations must be positive, but is 0"),
        ({"batch_size": -1}, "batch_size must be positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"critic_learning_rate": float("nan")}, "critic_learning_rate must be positive, but is nan"),
        ({"flux_std": 0}, "flux_std must be positive"),
        ({"synthetic_sigma": -1}, "synthetic_sigma must be positive"),
        ({"sigma_floor": 0.0}, "sigma_floor must be positive"),
        ({"weight_synth": -1}, "weight_synth must not be negative"),
        ({"weight_obs": -1}, "weight_obs must not be negative"),
        ({"weight_adversarial": -1}, "weight_adversarial must not be negative"),
        ({"weight_latent": -1}, "weight_latent must not be negative"),
        ({"weight_labels": -1}, "weight_labels must not be negative"),
        ({"warmup": -1}, "warmup must not be negative"),
        ({"schedule": "linear"}, r"schedule must be one of \('steps', 'cosine'\), but is 'linear'"),
        ({"average_decay": 1.0}, r"average_decay must be in \[0, 1\), but is 1.0"),
        ({"sigma_floor": 0.1}, r"sigma_floor \(0.1\) must be below sigma_max \(0.05\)"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**change)


@pytest.mark.parametrize(
    ("iteration", "factor"), [(0, 1), (49_999, 1), (50_000, 0.7), (99_999, 0.7), (150_000, 0.343), (349_999, 0.2401)]
)
def test_steps_of_the_learning_rate(iteration, factor):
    assert TrainingSettings().rate_factor(iteration) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("iteration", "factor"), [(0, 0.01), (49, 0.5), (99, 1), (100, 1), (600, 0.51), (1100, 0.02), (5000, 0.02)]
)
def test_cosine_of_the_learning_rate(iteration, factor):
    settings = TrainingSettings(schedule="cosine", warmup=100, n_iterations=1100)
    assert settings.rate_factor(iteration) == pytest.approx(factor)


# -- the run: checkpoints, interrupts, failures ------------------------------------------------
def state(trainer):
    """Everything that the next iteration depends on, flat."""
    flat = {f"average.{name}": array for name, array in trainer.average.items()}
    flat["generator"] = trainer.generator.get_state()
    for name in ("network", "critic_synth", "critic_obs"):
        flat |= {f"{name}.{key}": array for key, array in getattr(trainer, name).state_dict().items()}
    for name in ("optimizer", "critic_optimizer"):
        for k, moments in getattr(trainer, name).state_dict()["state"].items():
            flat |= {f"{name}.{k}.{key}": array for key, array in moments.items()}
    return flat


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


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
    with pytest.raises(ValueError, match=f"made with other settings: {names}; use another folder"):
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
    trainer.synthetic.emulator = lambda labels: torch.full((len(labels), N_PIXELS), float("nan"))


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
