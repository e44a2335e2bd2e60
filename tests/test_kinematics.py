"""Velocity and broadening against Gaussian lines, whose shifted and broadened shapes are known in closed form."""

import numpy as np
import pytest
import torch
from scipy.special import voigt_profile

from cyclestarnet.exceptions import GridError
from cyclestarnet.grid import apogee_grid
from cyclestarnet.networks.kinematics import Kinematics

C = 299792.458  # km/s
STEP = 4.0  # km/s per pixel
N = 400
CHIPS = ((0, 240), (240, 400))
# Two chips with a gap of 100 pixels between them.
WAVELENGTH = 15500 * np.exp(STEP / C * np.r_[0:240, 340:500])
KINEMATICS = Kinematics(WAVELENGTH, CHIPS)
CENTRES, DEPTHS, WIDTHS = WAVELENGTH[[60, 140, 320]], (0.5, 0.2, 0.4), (9.0, 7.5, 12.0)  # Angstrom, -, km/s


def lines(velocity=0.0, broadening=0.0, wavelength=WAVELENGTH, only=(0, 1, 2)):
    """Gaussian absorption lines, moved by 1 + v/c, each keeping its equivalent width."""
    flux = np.ones(len(wavelength))
    for k in only:
        centre, depth, width = CENTRES[k], DEPTHS[k], WIDTHS[k]
        wide = np.hypot(width, broadening)
        offset = C * np.log(wavelength / (centre * (1 + velocity / C)))
        flux -= depth * width / wide * np.exp(-0.5 * (offset / wide) ** 2)
    return flux


def tensor(*values):
    return torch.tensor(np.array(values), dtype=torch.float64)


def two_stars():
    """Flux (2, N), slopes (2, 3, N), and velocities and broadenings."""
    slopes = np.stack([lines(v, b) - lines() for v, b in [(9, 0), (0, 20), (-30, 10), (50, 0), (5, 5), (-3, 1)]])
    return tensor(*np.stack([lines(), lines(8, 3)])), tensor(*slopes.reshape(2, 3, N)), tensor(12, -7), tensor(6, 15)


# -- values ------------------------------------------------------------------------------------
@pytest.mark.parametrize("velocity", [0.0, 1.3, -57.9, 160.0])
@pytest.mark.parametrize("broadening", [0.0, 0.5, 5.0, 25.0])
def test_gaussian_lines_become_the_known_gaussian_lines(velocity, broadening):
    found = KINEMATICS.apply(tensor(lines()), tensor(velocity), tensor(broadening))[0]
    np.testing.assert_allclose(found, lines(velocity, broadening), atol=3e-8)


def test_lines_as_narrow_as_apogee_s_stay_right_to_1e_4():
    """The narrowest lines of APOGEE, σ = 5.7 km/s, are sampled at about the Nyquist frequency."""
    grid, width = apogee_grid(), 5.66
    wavelength = grid.wavelength.value

    def line(velocity):
        return 1 - 0.5 * np.exp(-0.5 * (C * np.log(wavelength / 15500 / (1 + velocity / C)) / width) ** 2)

    found = Kinematics(wavelength, grid.chips).apply(tensor(line(0)), tensor(2.07), tensor(0))[0]
    np.testing.assert_allclose(found, line(2.07), atol=1e-4)


def test_other_profiles_are_convolved_too():
    """A Lorentzian line becomes Voigt's."""
    offset = C * np.log(WAVELENGTH / WAVELENGTH[120])
    before, after = (1 - 10 * voigt_profile(offset, sigma, 10.0) for sigma in (1e-9, 20.0))
    found = KINEMATICS.apply(tensor(before), tensor(0), tensor(20))[0]
    # The wings of a Lorentzian go on beyond the edges, so that its middle is compared.
    np.testing.assert_allclose(found[60:180], after[60:180], atol=2e-4)


def test_whole_pixels_to_the_red_are_a_move_to_higher_pixels():
    flux, velocity = tensor(lines()), tensor(C * np.expm1(7 * STEP / C))
    moved = KINEMATICS.apply(flux, velocity, tensor(0))
    np.testing.assert_allclose(moved[0, 40:230], flux[0, 33:223], atol=1e-9)


def test_nothing_asked_for_changes_nothing(rng):
    flux = torch.tensor(rng.uniform(0, 1, (3, N)))
    np.testing.assert_allclose(KINEMATICS.apply(flux, torch.zeros(3), torch.zeros(3)), flux, atol=1e-14)


def test_each_spectrum_has_its_own_velocity_and_broadening():
    flux, _, velocity, broadening = two_stars()
    together = KINEMATICS.apply(flux, velocity, broadening)
    alone = [KINEMATICS.apply(*(x[k : k + 1] for x in (flux, velocity, broadening)))[0] for k in (0, 1)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-14)


def test_a_batch_need_not_be_contiguous():
    flux, slopes, velocity, broadening = two_stars()
    strided = [x.repeat_interleave(2, dim=0)[::2] for x in (flux, velocity, broadening)]
    strided[0] = strided[0].T.contiguous().T
    assert not strided[0].is_contiguous()
    found = KINEMATICS.linearise(strided[0], slopes.mT.contiguous().mT, *strided[1:])
    for mine, true in zip(found, KINEMATICS.linearise(flux, slopes, velocity, broadening), strict=True):
        torch.testing.assert_close(mine, true, rtol=0, atol=1e-14)


@pytest.mark.parametrize("parameters", [torch.float32, torch.float64])
def test_single_precision_stays_and_is_good_to_its_rounding(parameters):
    flux, slopes, velocity, broadening = two_stars()
    single = KINEMATICS.linearise(flux.float(), slopes.float(), velocity.to(parameters), broadening.to(parameters))
    for mine, true in zip(single, KINEMATICS.linearise(flux, slopes, velocity, broadening), strict=True):
        torch.testing.assert_close(mine, true.float(), rtol=0, atol=2e-6)


# -- edges -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("velocity", "broadening"), [(990, 0), (-990, 0), (3.3, 0), (100, 150)])
def test_a_level_stays_a_level_up_to_the_edges(velocity, broadening):
    flux = torch.full((1, N), 0.7, dtype=torch.float64)
    found = KINEMATICS.apply(flux, tensor(velocity), tensor(broadening))
    np.testing.assert_allclose(found, 0.7, atol=1e-12)


@pytest.mark.parametrize("velocity", [900.0, -900.0])
def test_what_leaves_a_chip_comes_back_nowhere(velocity):
    """Neither at its other end nor on the next chip."""
    found = KINEMATICS.apply(tensor(lines()), tensor(velocity), tensor(0))[0]
    for (start, stop), mine in zip(CHIPS, ([0, 1], [2]), strict=True):
        true = lines(velocity, wavelength=WAVELENGTH[start:stop], only=mine)
        np.testing.assert_allclose(found[start:stop], true, atol=1e-7)


def test_a_slope_is_continued_by_the_flux_at_the_edge():
    """With different flux at both ends nothing overshoots where the padding joins them."""
    flux = tensor(np.r_[np.linspace(0.9, 1.1, 240), np.ones(160)])
    found = KINEMATICS.apply(flux, tensor(80), tensor(10))[0, :240]
    np.testing.assert_allclose(found[:10], 0.9, atol=1e-4)
    assert found.min() > 0.9 - 1e-4
    assert found.max() < 1.1 + 1e-4


# -- derivatives -------------------------------------------------------------------------------
def test_linearised_flux_is_the_flux():
    flux, slopes, velocity, broadening = two_stars()
    found, _ = KINEMATICS.linearise(flux, slopes, velocity, broadening)
    torch.testing.assert_close(found, KINEMATICS.apply(flux, velocity, broadening), rtol=0, atol=1e-14)


def test_derivatives_agree_with_finite_differences():
    flux, slopes, velocity, broadening = two_stars()
    _, found = KINEMATICS.linearise(flux, slopes, velocity, broadening)
    h = 1e-4

    def model(p):
        """Flux of parameters (2, 5): three labels, velocity, broadening."""
        return KINEMATICS.apply(flux + (p[:, :3, None] * slopes).sum(1), velocity + p[:, 3], broadening + p[:, 4])

    for k, step in enumerate(h * torch.eye(5, dtype=torch.float64)):
        difference = (model(step.expand(2, 5)) - model(-step.expand(2, 5))) / (2 * h)
        torch.testing.assert_close(found[:, k], difference, rtol=0, atol=1e-9)


def test_derivative_by_velocity_is_that_of_the_closed_form():
    zero = torch.zeros(1, 0, N, dtype=torch.float64)
    _, found = KINEMATICS.linearise(tensor(lines()), zero, tensor(20), tensor(10))
    true = (lines(20 + 1e-3, 10) - lines(20 - 1e-3, 10)) / 2e-3
    np.testing.assert_allclose(found[0, 0], true, atol=1e-8)


@pytest.mark.parametrize("broadening", [0.0, 6.0])
def test_autograd_agrees_with_linearise(broadening):
    flux, slopes, velocity, _ = two_stars()
    broadening = torch.full_like(velocity, broadening)
    _, found = KINEMATICS.linearise(flux, slopes, velocity, broadening)
    weights = lines(3, 30) - 0.5  # any cotangent
    leaves = [velocity.clone().requires_grad_(), broadening.clone().requires_grad_()]
    value = (KINEMATICS.apply(flux, *leaves) * torch.tensor(weights)).sum()
    for column, gradient in zip((3, 4), torch.autograd.grad(value, leaves), strict=True):
        torch.testing.assert_close(found[:, column] @ torch.tensor(weights), gradient, rtol=0, atol=1e-12)


def test_gradient_by_flux_is_the_adjoint():
    """⟨w, K f⟩ = ⟨Kᵀ w, f⟩: what autograd gives for K f is Kᵀ, edges included."""
    flux, slopes, velocity, broadening = two_stars()
    leaf, weights = flux.clone().requires_grad_(), slopes[:, 0]
    (adjoint,) = torch.autograd.grad((KINEMATICS.apply(leaf, velocity, broadening) * weights).sum(), leaf)
    other = slopes[:, 1]
    assert float((adjoint * other).sum()) == pytest.approx(
        float((KINEMATICS.apply(other, velocity, broadening) * weights).sum()), rel=1e-10
    )


def test_no_broadening_has_a_derivative_of_zero():
    leaf = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    KINEMATICS.apply(tensor(lines()), tensor(5), leaf).square().sum().backward()
    assert leaf.grad.tolist() == [0.0]


# -- errors ------------------------------------------------------------------------------------
@pytest.mark.parametrize("chips", [((0, 400),), ((0, 200), (200, 400))])
def test_uneven_grids_raise(chips):
    with pytest.raises(GridError, match=r"pixels 0 to 400|pixels 200 to 400"):
        Kinematics(WAVELENGTH, chips)


def test_pixels_even_in_wavelength_raise():
    with pytest.raises(GridError, match="logarithmic on each chip"):
        Kinematics(np.linspace(15000, 15200, 300), [(0, 300)])


def test_steps_within_a_thousandth_are_even():
    wiggle = 2e-4 * np.sin(np.arange(N))
    kinematics = Kinematics(15500 * np.exp(STEP / C * (np.arange(N) + wiggle)), [(0, N)])
    assert kinematics.n_pixels == N


@pytest.mark.parametrize(("velocity", "broadening"), [(1001, 0), (-1001, 0), (0, 201)])
def test_moves_beyond_the_padding_raise(velocity, broadening):
    with pytest.raises(ValueError, match="at most 1000 km/s, but spectrum 1 "):
        KINEMATICS.apply(tensor(lines(), lines()), tensor(0, velocity), tensor(0, broadening))


def test_a_star_that_is_not_finite_leaves_the_others_alone():
    flux, _, velocity, broadening = two_stars()
    found = KINEMATICS.apply(flux, tensor(12, np.nan), broadening)
    torch.testing.assert_close(found[0], KINEMATICS.apply(flux, velocity, broadening)[0])
    assert found[1].isnan().all()
