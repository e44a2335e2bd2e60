"""The presets have the numbers of the paper and of its authors' repository, every one written out here."""

import pytest

from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.training.settings import TrainingSettings

# The paper's Sections 2.3, 3.1 and Appendix A; what it leaves out is from the repository.
PAPER = {
    "n_iterations": 350_000,
    "batch_size": 8,
    "learning_rate": 1e-4,
    "critic_learning_rate": 1e-4,
    "betas": (0.5, 0.999),
    "schedule": "steps",
    "steps": (50_000, 100_000, 150_000, 200_000),
    "step_factor": 0.7,
    "weight_synth": 3,
    "weight_obs": 9,
    "weight_adversarial": 1,
    "flux_mean": 0.97746492,
    "flux_std": 0.05180881,
    "synthetic_sigma": 0.005,
    "sigma_floor": 0.005,
    "sigma_max": 0.05,
    "fill": 1,
}
REPOSITORY = PAPER | {"n_iterations": 500_000, "steps": (50_000, 100_000, 150_000, 200_000, 2_500_000), "fill": None}
BEYOND = {"weight_latent": 0, "weight_labels": 0, "gradient_clip": None, "average_decay": 0, "mixed_precision": False}
NAMES = {"paper": PAPER, "repository": REPOSITORY}


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_the_preset(name):
    settings = TrainingSettings.from_preset(name)
    assert {key: getattr(settings, key) for key in NAMES[name]} == NAMES[name]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_beyond_the_paper_is_on(name):
    settings = TrainingSettings.from_preset(name)
    assert {key: getattr(settings, key) for key in BEYOND} == BEYOND


def test_the_paper_is_the_default():
    assert TrainingSettings.from_preset("paper") == TrainingSettings()


def test_last_step_of_the_repository_never_comes():
    paper, repository = (TrainingSettings.from_preset(name) for name in NAMES)
    assert repository.rate_factor(499_999) == pytest.approx(0.7**4) == paper.rate_factor(349_999)


@pytest.mark.parametrize("name", NAMES)
def test_changes_replace_the_numbers_of_a_preset(name):
    """The mock study of the repository."""
    settings = TrainingSettings.from_preset(name, weight_synth=90, weight_obs=90)
    assert (settings.weight_synth, settings.weight_obs) == (90, 90)
    assert settings.n_iterations == NAMES[name]["n_iterations"]


def test_changes_are_checked():
    with pytest.raises(ValueError, match="batch_size must be positive, but is 0"):
        TrainingSettings.from_preset("paper", batch_size=0)


def test_unknown_preset_names_those_that_exist():
    with pytest.raises(ValueError, match="must be one of 'paper', 'repository', but is 'papper'"):
        TrainingSettings.from_preset("papper")


@pytest.mark.parametrize(("split_filters", "critic_inputs"), [(4, 29), (1, 26)])
def test_networks_of_the_paper_and_of_its_mock_study(split_filters, critic_inputs):
    settings = NetworkSettings(split_filters=split_filters)
    assert settings.shared_filters + settings.split_filters == critic_inputs
    assert (settings.n_pixels, settings.latent_length, settings.slope, settings.latent_norm) == (7167, 24, 0.1, True)
