"""The loss terms against closed forms."""

import math

import numpy as np
import pytest
import torch

from cyclestarnet.training import losses


def test_distance_is_the_mean_over_all_pixels():
    prediction, target = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 6.0]])
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert losses.distance(prediction, target, weight).item() == (1 + 16) / 4


@pytest.mark.parametrize("value", [0.0, -7.0, 1e6])
def test_distance_ignores_pixels_without_weight(value):
    prediction, weight = torch.ones(1, 3), torch.tensor([[1.0, 0.0, 1.0]])
    target = torch.tensor([[0.5, value, 0.0]])
    assert losses.distance(prediction, target, weight).item() == pytest.approx(1.25 / 3)


@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.0])
def test_generator_loss_is_the_cross_entropy_of_true(logit):
    expected = -math.log(1 / (1 + math.exp(-logit)))
    assert losses.generator_loss(torch.tensor([logit])).item() == pytest.approx(expected, rel=1e-6)


def test_critic_loss_is_the_cross_entropy_of_both():
    true, fake = torch.tensor([0.3, 2.0]), torch.tensor([-1.0])
    p, q = torch.sigmoid(true), torch.sigmoid(fake)
    expected = -p.log().mean() - (1 - q).log().mean()
    assert losses.critic_loss(true, fake).item() == pytest.approx(expected.item(), rel=1e-6)


def test_least_squares_of_the_generator():
    """(2 - 1)² and (-1 - 1)² on average."""
    assert losses.generator_loss(torch.tensor([2.0, -1.0]), "least_squares").item() == (1 + 4) / 2


def test_least_squares_of_the_critic():
    """True answers are to be 1, fake ones 0."""
    true, fake = torch.tensor([0.5, 3.0]), torch.tensor([-2.0])
    assert losses.critic_loss(true, fake, "least_squares").item() == (0.25 + 4) / 2 + 4


@pytest.mark.parametrize(("kind", "gain"), [("cross_entropy", 1 / 2), ("least_squares", 1.0)])
def test_generator_and_critic_pull_an_undecided_answer_apart(kind, gain):
    """At the middle both gradients have the same size: -σ(0) or 2 (1/2 - 1), and the opposite."""
    answer = torch.tensor([losses.UNDECIDED[kind]], requires_grad=True)
    (of_generator,) = torch.autograd.grad(losses.generator_loss(answer, kind), answer)
    (of_critic,) = torch.autograd.grad(losses.critic_loss(torch.zeros(1), answer, kind), answer)
    assert (of_generator.item(), of_critic.item()) == (-gain, gain)


def test_losses_of_extreme_logits_are_finite():
    far = torch.tensor([1e4, -1e4])
    assert losses.generator_loss(far).item() == pytest.approx(5e3)
    assert losses.critic_loss(far, far).item() == pytest.approx(1e4)


def test_energy_distance_of_two_point_masses():
    """2 |a - b|, per root dimension."""
    a, b = torch.zeros(4, 9), torch.full((5, 9), 2.0)
    assert losses.energy_distance(a, b).item() == pytest.approx(2 * 6 / 3)


def test_energy_distance_of_pairs():
    """Within-sample distances leave out the pairs of a point with itself: (2 · 1 - 2 - 0) / 1."""
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert losses.energy_distance(a, b).item() == pytest.approx(0.0, abs=1e-6)


def test_energy_distance_of_equal_distributions_is_zero_in_expectation():
    generator = torch.Generator().manual_seed(1)
    draws = [losses.energy_distance(*torch.randn(2, 6, 3, generator=generator)).item() for _ in range(2000)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / len(draws) ** 0.5


def test_energy_distance_of_shifted_normals():
    """In one dimension 2 E|X - Y| - E|X - X'| - E|Y - Y'| for unit normals at a distance d (closed form)."""
    generator, d = torch.Generator().manual_seed(2), 1.5
    a, b = torch.randn(3000, 1, generator=generator), torch.randn(3000, 1, generator=generator) + d
    mean_shifted = 2 / math.sqrt(math.pi) * math.exp(-(d**2) / 4) + d * math.erf(d / 2)
    expected = 2 * mean_shifted - 2 * 2 / math.sqrt(math.pi)
    assert losses.energy_distance(a, b).item() == pytest.approx(expected, rel=0.05)


def test_gradient_of_the_energy_distance_brings_samples_together():
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(20, 4, generator=generator).requires_grad_()
    b = torch.randn(20, 4, generator=generator) + 3
    (gradient,) = torch.autograd.grad(losses.energy_distance(a, b), a)
    assert torch.isfinite(gradient).all()
    assert gradient.mean() < 0


class QuadraticCritic(torch.nn.Module):
    """(flux · a)² / 2 + latent · b: its gradient at a pair is ((flux · a) a, b)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor([0.5]))

    def forward(self, flux, latent):
        return (flux @ self.a).square() / 2 + latent.flatten(1) @ self.b


def test_gradient_penalty_by_hand():
    """Half of 5 (flux · a)² + b², averaged: flux · a is 3 and -1."""
    flux, latent = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.ones(2, 1, 1)
    assert losses.gradient_penalty(QuadraticCritic(), flux, latent).item() == pytest.approx(
        (5 * (9 + 1) / 2 + 0.25) / 2
    )


def test_gradient_of_the_penalty_by_hand():
    """d/da of |a|² (flux · a)² / 2 = (flux · a)² a + |a|² (flux · a) flux; d/db of b² / 2 = b. Nothing for the data."""
    critic, flux = QuadraticCritic(), torch.tensor([[1.0, 1.0]], requires_grad=True)
    losses.gradient_penalty(critic, flux, torch.ones(1, 1, 1)).backward()
    assert critic.a.grad.tolist() == [9 * 1 + 5 * 3, 9 * 2 + 5 * 3]
    assert critic.b.grad.tolist() == [0.5]
    assert flux.grad is None
