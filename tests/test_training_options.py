"""What the trainer can beyond the paper, against definitions written with plain modules and by hand."""

import pytest
import torch
from training_oracle import Oracle, assert_same_weights, energy_distance, mappings

# weight_adversarial is not 1, so that it matters which terms it multiplies
OPTIONS = {
    "least squares": {"adversarial": "least_squares", "weight_adversarial": 2.0},
    "critic penalty": {"critic_penalty": 5.0, "weight_adversarial": 0.5},
    "both, no split": {"adversarial": "least_squares", "critic_penalty": 5.0, "split_filters": 0},
    "ramp": {"adversarial_ramp": 4, "weight_adversarial": 30.0},
    "anchors": {"weight_anchors": 2.0},
    "anchors, no split": {"weight_anchors": 2.0, "split_filters": 0, "weight_labels": 1.0},
    "warm start": {"warm_start": 1},
    "warm start, no split": {"warm_start": 1, "split_filters": 0, "weight_labels": 1.0, "gradient_clip": 0.5},
}
RATES = {"learning_rate": 1e-3, "critic_learning_rate": 2e-3}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_two_steps_equal_the_plain_training(make_trainer, options):
    trainer = make_trainer(double=True, **RATES, **options)
    oracle = Oracle(trainer)
    for _ in range(2):
        assert trainer.step() == pytest.approx(oracle.step(), rel=1e-6)
    assert_same_weights(trainer, oracle)
