"""The loss terms against closed forms."""

import math

import numpy as np
import pytest
import torch
from training_oracle import window_distance

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


# -- the energy distance in windows -------------------------------------------------------
def spectra(n, seed, n_pixels=70, **options):
    return torch.randn(n, n_pixels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, **options)


def test_window_distance_by_a_plain_loop():
    """Windows of 32, 32 and 6 pixels; the second has less than the least difference, which is then its unit."""
    true, fake = spectra(5, 1), 0.7 * spectra(4, 2) + 0.3
    true[:, 32:64] *= 1e-3
    assert losses.window_distance(fake, true, 0.2).item() == pytest.approx(window_distance(fake, true, 0.2).item())


@pytest.mark.parametrize("d", [0.0, 1.5])
def test_window_distance_of_shifted_normals(d):
    """Flat spectra of normal levels: the closed form in one dimension, over the E|Y - Y'| = 2 / √π of true ones."""
    levels = torch.special.ndtri((torch.arange(600, dtype=torch.float64)[:, None] + 0.5) / 600)
    fake, true = levels + d, levels
    mean_shifted = 2 / math.sqrt(math.pi) * math.exp(-(d**2) / 4) + d * math.erf(d / 2)
    expected = 2 * mean_shifted / (2 / math.sqrt(math.pi)) - 2
    assert losses.window_distance(fake, true, 1e-3).item() == pytest.approx(expected, abs=0.01)


def test_window_distance_of_the_same_distribution_is_zero_in_expectation():
    """With a unit that is the same for all draws: that of the least difference."""
    draws = [losses.window_distance(spectra(6, k), spectra(6, 9000 + k), 100.0).item() for k in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / len(draws) ** 0.5


def test_weak_lines_count_as_much_as_strong_ones():
    true, fake = spectra(5, 5), spectra(5, 6) + 1
    expected = losses.window_distance(fake, true, 1e-6).item()
    true[:, :32] *= 1e-3
    fake[:, :32] *= 1e-3
    assert losses.window_distance(fake, true, 1e-6).item() == pytest.approx(expected)


def test_windows_without_a_line_are_not_blown_up():
    """Spectra that differ by far less than the least difference are alike."""
    true, fake = 1e-6 * spectra(5, 7), 1e-6 * spectra(5, 8) + 1e-6
    assert abs(losses.window_distance(fake, true, 0.01).item()) < 1e-3


def test_gradient_of_the_window_distance():
    """Central differences by the fake spectra; none by the true ones, which are not to come to the fakes."""
    true, fake = spectra(4, 9).requires_grad_(), spectra(3, 10).requires_grad_()
    losses.window_distance(fake, true, 0.1).backward()
    assert true.grad is None
    with torch.no_grad():
        for row, pixel in ((0, 0), (1, 40), (2, 69)):
            step = torch.zeros_like(fake)
            step[row, pixel] = 1e-6
            up, down = (losses.window_distance(fake + s, true, 0.1) for s in (step, -step))
            assert fake.grad[row, pixel].item() == pytest.approx((up - down).item() / 2e-6, rel=1e-5)


def test_window_distance_of_many_similar_spectra_is_not_lost_to_rounding():
    """In float32, spectra that differ by 1e-4 of their flux; distances by products of matrices would be noise."""
    true = 1 + 1e-4 * spectra(40, 11)
    fake = 1 + 1e-4 * (spectra(40, 12) + 0.5)
    exact = losses.window_distance(fake, true, 1e-8).item()
    assert losses.window_distance(fake.float(), true.float(), 1e-8).item() == pytest.approx(exact, rel=0.02)


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
