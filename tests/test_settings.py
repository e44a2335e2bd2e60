"""Settings of the training: what is refused, and how the learning rates and the adversarial loss go."""

import pytest

from cyclestarnet.training.settings import TrainingSettings


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
        ({"weight_spectra": -1}, "weight_spectra must not be negative"),
        (
            {"weight_adversarial": 0, "adversarial_ramp": 5},
            "adversarial_ramp need critics, but weight_adversarial is 0",
        ),
        ({"weight_adversarial": 0, "critic_penalty": 1.0, "prior_rate": 1.0}, "critic_penalty and prior_rate need"),
        ({"weight_labels": -1}, "weight_labels must not be negative"),
        ({"warmup": -1}, "warmup must not be negative"),
        ({"schedule": "linear"}, r"schedule must be one of \('steps', 'cosine'\), but is 'linear'"),
        ({"average_decay": 1.0}, r"average_decay must be in \[0, 1\), but is 1.0"),
        ({"weight_anchors": -1}, "weight_anchors must not be negative"),
        ({"critic_penalty": -0.1}, "critic_penalty must not be negative, but is -0.1"),
        ({"adversarial_ramp": -1}, "adversarial_ramp must not be negative"),
        ({"warm_start": -1}, "warm_start must not be negative"),
        ({"prior_rate": float("nan")}, "prior_rate must not be negative, but is nan"),
        ({"adversarial": "wgan"}, r"adversarial must be one of \('cross_entropy', 'least_squares'\), but is 'wgan'"),
        ({"micro_batches": 0}, "micro_batches must be positive"),
        ({"micro_batches": 3}, r"micro_batches \(3\) must divide batch_size \(8\)"),
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


@pytest.mark.parametrize(("iteration", "factor"), [(0, 0.01), (49, 0.5), (99, 1), (100, 1), (100_000, 1)])
def test_ramp_of_the_adversarial_loss(iteration, factor):
    assert TrainingSettings(adversarial_ramp=100).adversarial_factor(iteration) == pytest.approx(factor)


def test_without_a_ramp_the_adversarial_loss_is_there_at_once():
    assert TrainingSettings().adversarial_factor(0) == 1
