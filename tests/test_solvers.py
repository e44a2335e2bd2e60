"""The optimisers against normal equations and SciPy's least squares, star by star, and the coverage of their errors."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, lsq_linear, minimize
from toys import GaussianLine, LinearPredictor, data, noisy_objective

from cyclestarnet import GaussianPrior
from cyclestarnet.fitting.lbfgs import _inverse_hessian_times, _strong_wolfe, lbfgs
from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.parameters import Parameters
from cyclestarnet.fitting.solvers import _bounded_step, _Descent, levenberg_marquardt

CENTRE = np.array([4500.0, 2.0, 0.0])
PRIORS = {"flat": None, "gaussian": GaussianPrior(CENTRE, np.diag([1e3, 0.01, 0.002]))}
STARTS = {"centre": CENTRE, "corner": [4001, 3.9, -0.99], "other corner": [4999, 0.01, -0.99], "outside": [9000, -3, 0]}
TIGHT = {"tolerance": 1e-5}  # of log posterior: within 0.005 σ
TRUE, SIGMA = np.array([0.4, 31.3, 3.2]), 0.02
LOWER, UPPER = np.array([0.05, 25.0, 1.0]), np.array([0.9, 35.0, 8.0])
LINE_STARTS = {"near": TRUE, "far": np.array([0.1, 28, 6]), "farther": np.array([0.8, 34, 1.2])}


@pytest.fixture(params=[lbfgs, levenberg_marquardt], ids=["lbfgs", "lm"])
def solve(request):
    """Function that fits one star, or many where ``start`` has rows."""

    def solve(objective, start, **options):
        start = np.asarray(start, dtype=float)
        found = request.param(objective, np.atleast_2d(start), **options)
        return found if start.ndim == 2 else first(found)

    return solve


def first(found):
    """The only star of an optimum."""
    return type(found)(**{name: value[0] for name, value in vars(found).items()})


def line(flux, *, predictor=None, lower=LOWER, upper=UPPER, start=TRUE, free=None, sigma=SIGMA, **changes):
    parameters = Parameters.of_labels(lower, upper, start, free=free)
    return Objective(predictor or GaussianLine(), flux, np.full(np.shape(flux), sigma**-2), parameters, **changes)


@pytest.fixture
def noisy(rng):
    return rng.normal(GaussianLine().flux(TRUE), SIGMA)


def size(covariance):
    return np.sqrt(np.diag(covariance))


def assert_same_optimum(found, labels, covariance, atol=0.02):
    """Labels to a fraction of their error, and covariances."""
    varies = size(covariance) > 0
    np.testing.assert_allclose((found.inputs - labels)[varies] / size(covariance)[varies], 0, atol=atol)
    unit = np.outer(size(covariance)[varies], size(covariance)[varies])
    block = np.ix_(varies, varies)
    np.testing.assert_allclose(found.covariance[block] / unit, covariance[block] / unit, atol=0.01)


# -- against the normal equations ------------------------------------------------------------
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_optimum_of_a_linear_predictor(solve, make_objective, linear_predictor, prior, start):
    objective = make_objective(prior=prior)
    mean, covariance = linear_predictor.posterior(*data(objective), prior)
    found = solve(objective, start, **TIGHT)
    assert found.success
    np.testing.assert_allclose((found.inputs - mean) / size(covariance), 0, atol=0.01)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_fixed_label_is_conditioned_on(solve, make_objective, linear_predictor, prior):
    """The optimum of the others moves along the posterior; the block of the precision is inverted."""
    at = 2.5
    objective = make_objective(prior=prior, free=np.array([True, False, True]), start=[4500, at, 0])
    mean, covariance = linear_predictor.posterior(*data(objective), prior)
    moved = mean + covariance[:, 1] / covariance[1, 1] * (at - mean[1])
    block = np.linalg.inv(np.linalg.inv(covariance)[np.ix_([0, 2], [0, 2])])
    found = solve(objective, [4500, at, 0], **TIGHT)
    assert found.inputs[1] == at
    np.testing.assert_allclose((found.inputs - moved) / size(covariance), 0, atol=0.01)
    np.testing.assert_allclose(found.covariance[np.ix_([0, 2], [0, 2])], block, rtol=1e-9)


def test_fixed_label_has_no_covariance(solve, make_objective):
    found = solve(make_objective(free=np.array([True, False, True])), CENTRE)
    assert not found.covariance[1].any()
    assert not found.covariance[:, 1].any()


def test_tied_labels_are_one_parameter_of_the_normal_equations(solve, make_objective, linear_predictor):
    """They keep their difference, have the same error, and are fully correlated."""
    objective = make_objective(tied=[(1, 2)])
    matrix = np.array([[1.0, 0], [0, 1], [0, 1]])
    flux, ivar = data(objective)
    mean, covariance = linear_predictor.posterior(flux - linear_predictor.matrix @ [0, 2, 0], ivar, matrix=matrix)
    found = solve(objective, CENTRE, **TIGHT)
    assert_same_optimum(found, matrix @ mean + [0, 2, 0], matrix @ covariance @ matrix.T)
    assert found.inputs[1] - found.inputs[2] == pytest.approx(2, abs=1e-12)


# -- against SciPy -----------------------------------------------------------------------------
@pytest.mark.parametrize("start", LINE_STARTS.values(), ids=LINE_STARTS)
def test_optimum_of_a_line_equals_least_squares(solve, noisy, start):
    expected = least_squares(
        lambda y: (GaussianLine().flux(y) - noisy) / SIGMA, TRUE, xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    found = solve(line(noisy), start, **TIGHT)
    assert found.success
    assert_same_optimum(found, expected.x, np.linalg.inv(expected.jac.T @ expected.jac))


@pytest.mark.parametrize("start", LINE_STARTS.values(), ids=LINE_STARTS)
def test_default_tolerance_is_a_fifth_of_an_error(solve, noisy, start):
    exact = least_squares(lambda y: (GaussianLine().flux(y) - noisy) / SIGMA, TRUE).x
    found = solve(line(noisy), start)
    assert found.success
    offset = found.inputs - exact
    assert offset @ np.linalg.solve(found.covariance, offset) < 0.2**2


@pytest.mark.parametrize("errors", ["minimum", "unknown"])
def test_errors_that_are_scaled_have_the_optimum_of_scipys_scalar_minimiser(solve, noisy, errors):
    """Errors quoted too small, and a prior that must not be overruled: Gaussian with an unknown variance."""
    prior = GaussianPrior([0.5, 31, 3], np.diag([0.01, 0.1, 0.1]) ** 2)

    def loss(z):
        offset = (GaussianLine().flux(TRUE * z) - noisy) / 0.001
        return 0.5 * (60 - 3) * np.log(offset @ offset) + 0.5 * prior.distance2(TRUE * z)

    expected = TRUE * minimize(loss, np.ones(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    found = solve(line(noisy, sigma=0.001, prior=prior, errors=errors), TRUE, **TIGHT)
    assert found.success
    np.testing.assert_allclose((found.inputs - expected) / size(found.covariance), 0, atol=0.05)


def test_tied_labels_of_a_line_equal_least_squares_of_the_same_parameters(solve, noisy):
    """Depth and width keep their difference."""
    matrix, origin = np.array([[0.0, 1], [1, 0], [0, 1]]), np.array([0.3, 0, 3.0])
    expected = least_squares(
        lambda p: (GaussianLine().flux(matrix @ p + origin) - noisy) / SIGMA, [31.0, 0.0], xtol=1e-15, ftol=1e-15
    )
    parameters = Parameters.of_labels(LOWER, UPPER, np.array([0.3, 30, 3.0]), tied=[(0, 2)])
    found = solve(Objective(GaussianLine(), noisy, np.full(60, SIGMA**-2), parameters), [0.3, 30, 3.0], **TIGHT)
    covariance = matrix @ np.linalg.inv(expected.jac.T @ expected.jac) @ matrix.T
    assert_same_optimum(found, matrix @ expected.x + origin, covariance)


@pytest.mark.parametrize("bounds", [{"upper": (4300, 4, 1)}, {"upper": (4300, 1.9, 1)}, {"lower": (4000, 2.6, 0.2)}])
def test_optimum_at_bounds_equals_bounded_least_squares(solve, bounds):
    """The data want (4600, 2.2, 0.1); they may not."""
    objective = noisy_objective(LinearPredictor(), **bounds)
    flux, ivar = data(objective)
    weight, scale = np.sqrt(ivar), np.array([1000, 1, 1])
    design = objective.predictor.matrix * weight[:, None] * scale
    target = (flux - objective.predictor.offset) * weight
    ends = (objective.parameters.lower / scale, objective.parameters.upper / scale)
    expected = lsq_linear(design, target, ends).x * scale
    found = solve(objective, CENTRE, **TIGHT)
    np.testing.assert_allclose((found.inputs - expected) / size(found.covariance), 0, atol=0.1)


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({}, [False] * 3),
        ({"upper": (4300.0, 4, 1)}, [True, False, False]),
        ({"lower": (4000.0, 2.5, -1)}, [False, True, False]),
        ({"upper": (4300.0, 4, 1), "free": np.array([False, True, True])}, [False] * 3),
        ({"upper": (5000, 2.05, 1), "tied": [(1, 2)]}, [False, True, True]),
    ],
    ids=["none", "upper", "lower", "fixed", "tied"],
)
def test_labels_at_a_bound_are_flagged(solve, change, flags):
    start = np.array([4300.0 if "free" in change else 4200.0, 3.7 if "lower" in change else 2.0, 0.0])
    assert solve(noisy_objective(LinearPredictor(), start=start, **change), start).at_bound.tolist() == flags


@pytest.mark.parametrize("value", [0.2, 0.6])
def test_no_label_leaves_its_bounds(solve, noisy, value):
    """Wherever the bounds of the depth are; the true one is 0.4."""
    lower, upper = LOWER.copy(), UPPER.copy()
    (upper if value < 0.4 else lower)[0] = value
    found = solve(line(noisy, lower=lower, upper=upper), TRUE)
    assert (found.inputs >= lower).all()
    assert (found.inputs <= upper).all()
    assert found.at_bound.tolist() == [True, False, False]


# -- errors that the residuals do not bear out ---------------------------------------------------
@pytest.mark.parametrize(("errors", "quoted"), [("unknown", 0.1), ("unknown", 5.0), ("minimum", 0.1)])
def test_scaled_errors_make_a_reduced_chi2_of_one(solve, make_objective, errors, quoted):
    flux, ivar = data(make_objective())
    objective = make_objective(flux=flux, ivar=ivar / quoted**2, errors=errors)
    found = solve(objective, CENTRE, **TIGHT)
    chi2 = (flux - found.flux) ** 2 @ (ivar / quoted**2 / found.error_scale**2)
    assert chi2 / (34 - 3) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("errors", "quoted"), [("unknown", 0.1), ("unknown", 5.0), ("minimum", 0.1)])
def test_scaled_errors_leave_the_optimum_and_scale_its_covariance(
    solve, make_objective, linear_predictor, errors, quoted
):
    """Of a linear predictor without a prior, in closed form."""
    flux, ivar = data(make_objective())
    mean, covariance = linear_predictor.posterior(flux, ivar)
    scale2 = (flux - linear_predictor.flux(mean)) ** 2 @ ivar / (34 - 3)
    found = solve(make_objective(flux=flux, ivar=ivar / quoted**2, errors=errors), CENTRE, **TIGHT)
    assert found.error_scale * quoted == pytest.approx(np.sqrt(scale2), rel=1e-4)
    assert_same_optimum(found, mean, covariance * scale2)


def test_errors_that_hold_are_not_scaled(solve, make_objective):
    flux, ivar = data(make_objective())
    assert solve(make_objective(flux=flux, ivar=ivar / 4, errors="minimum"), CENTRE).error_scale == 1


class Kinked(LinearPredictor):
    """The slopes of the first label jump at 4600 K, by a tenth of their size, as leaky units make them."""

    def values_and_slopes(self, labels):
        flux, slopes = super().values_and_slopes(labels)
        bend = 0.1 * slopes[:, 0] * torch.sign(torch.arange(40.0) - 20)
        beyond = (labels[:, 0] - 4600).clamp(min=0)[:, None]
        jump = torch.where(beyond > 0, bend, 0.0)
        return flux + bend * beyond, torch.stack([slopes[:, 0] + jump, slopes[:, 1], slopes[:, 2]], dim=1)


@pytest.mark.parametrize("shift", [-20.0, 0.0, 20.0])
def test_a_kink_in_the_flux_is_no_obstacle(solve, shift):
    """The gradient never gets small there; brute force knows the optimum."""
    kinked, base = Kinked(), noisy_objective(LinearPredictor())
    noise = data(base)[0] - base.predictor.flux(np.array([4600.0, 2.2, 0.1]))
    objective = noisy_objective(kinked, flux=kinked.flux(np.array([4600.0 + shift, 2.2, 0.1])) + 0.3 * noise)
    found = solve(objective, CENTRE)
    assert found.success
    around = found.inputs + 0.5 * size(found.covariance) * np.random.default_rng(1).normal(size=(3000, 3))
    assert objective.log_posterior(around).max() < objective.log_posterior(found.inputs)[0] + 0.03


# -- what the data do not tell -------------------------------------------------------------------
class Blind(GaussianLine):
    """The last label changes nothing."""

    def values_and_slopes(self, labels):
        flux, slopes = super().values_and_slopes(labels * torch.tensor([1.0, 1, 0]) + torch.tensor([0.0, 0, 3.2]))
        return flux, slopes * torch.tensor([1.0, 1, 0])[:, None]


def test_unconstrained_label_is_as_uncertain_as_its_range(solve, noisy):
    found = solve(line(noisy, predictor=Blind()), TRUE)
    assert found.success
    assert size(found.covariance)[2] == pytest.approx((UPPER - LOWER)[2] / 12**0.5)


def test_unconstrained_label_leaves_the_others_alone(solve, noisy):
    blind = solve(line(noisy, predictor=Blind()), TRUE, **TIGHT)
    fixed = solve(line(noisy, free=np.array([True, True, False])), TRUE, **TIGHT)
    np.testing.assert_allclose(blind.covariance[:2, :2], fixed.covariance[:2, :2], rtol=0.01)
    np.testing.assert_allclose((blind.inputs - fixed.inputs)[:2] / size(fixed.covariance)[:2], 0, atol=0.05)


# -- many stars --------------------------------------------------------------------------------------
@pytest.fixture
def many(rng):
    """Lines of 12 stars, whose fits take from few to many steps; the fifth has no number, the sixth no good pixel."""
    true = rng.uniform([0.2, 28, 2], [0.7, 33, 5], (12, 3))
    flux = rng.normal(GaussianLine().flux(true), SIGMA)
    flux[4, 7] = np.nan
    objective = line(flux)
    objective.ivar[5] = 0
    return objective


def test_a_bad_star_stops_no_other(solve, many):
    found = solve(many, np.tile(LINE_STARTS["far"], (12, 1)))
    good = np.delete(np.arange(12), [4, 5])
    alone = [solve(line(many.flux[k]), LINE_STARTS["far"]) for k in good]
    assert found.success[good].all()
    assert found.message[4] == "the objective is not finite"
    np.testing.assert_allclose(found.inputs[good], [f.inputs for f in alone], rtol=1e-9)


def test_a_star_without_data_goes_where_the_prior_has_its_maximum(solve):
    prior = GaussianPrior([0.5, 29, 5], np.diag([0.01, 0.1, 0.1]))
    blank = line(np.ones(60), prior=prior)
    blank.ivar[:] = 0
    found = solve(blank, TRUE, **TIGHT)
    assert found.success
    np.testing.assert_allclose(found.inputs, prior.mean, rtol=1e-3)


def test_stars_that_are_done_leave_the_batch(solve, many):
    """The predictor sees each star as often as that star was evaluated, and once more at the end of L-BFGS."""
    found = solve(many, np.tile(LINE_STARTS["far"], (12, 1)))
    seen = np.zeros(12, dtype=int)
    for _, _, stars in many.predictor.asked:
        np.add.at(seen, stars, 1)
    np.testing.assert_array_equal(seen, found.n_evaluations + found.n_jacobians)
    assert len(set(found.n_evaluations.tolist())) > 2


def test_each_star_has_its_own_start(solve, noisy):
    starts = np.stack([TRUE, *LINE_STARTS.values()])
    found = solve(line(np.tile(noisy, (4, 1))), starts, **TIGHT)
    alone = solve(line(noisy), TRUE, **TIGHT)
    np.testing.assert_allclose((found.inputs - alone.inputs) / size(alone.covariance), 0, atol=0.02)


# -- slopes that are expected -------------------------------------------------------------------------
def wrong_by(fraction):
    """Expected slopes of a line, wrong by up to a fraction of themselves and of each other."""
    mixing = torch.eye(3, dtype=torch.float64) + fraction * torch.tensor(
        [[-1.0, 0.02, 0.1], [1, 1, -0.3], [0.5, 0.05, 1]], dtype=torch.float64
    )
    return lambda labels: mixing @ GaussianLine().values_and_slopes(labels)[1]


@pytest.mark.parametrize("start", LINE_STARTS.values(), ids=LINE_STARTS)
def test_slopes_wrong_by_a_fifth_lead_to_the_same_optimum(noisy, start):
    expected = least_squares(lambda y: (GaussianLine().flux(y) - noisy) / SIGMA, TRUE, xtol=1e-15, ftol=1e-15).x
    found = first(levenberg_marquardt(line(noisy, predictor=GaussianLine(wrong_by(0.2))), start[None]))
    assert found.success
    offset = found.inputs - expected
    assert offset @ np.linalg.solve(found.covariance, offset) < 0.2**2


def test_good_slopes_save_jacobians(noisy):
    with_slopes, without = (
        levenberg_marquardt(line(noisy, predictor=GaussianLine(expect)), TRUE[None])
        for expect in (wrong_by(0.02), None)
    )
    assert with_slopes.success[0]
    assert with_slopes.n_jacobians[0] == 0 < without.n_jacobians[0]


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda labels: -GaussianLine().values_and_slopes(labels)[1],
        lambda labels: torch.zeros(len(labels), 3, 60, dtype=torch.float64),
        lambda labels: torch.from_numpy(np.random.default_rng(0).normal(size=(len(labels), 3, 60))),
        lambda labels: 1e6 * GaussianLine().values_and_slopes(labels)[1],
    ],
    ids=["opposite", "zero", "noise", "huge"],
)
def test_nonsense_slopes_give_way_to_true_ones(noisy, nonsense):
    exact = least_squares(lambda y: (GaussianLine().flux(y) - noisy) / SIGMA, TRUE, xtol=1e-15, ftol=1e-15).x
    objective = line(noisy, predictor=GaussianLine(nonsense))
    found = first(levenberg_marquardt(objective, LINE_STARTS["far"][None]))
    assert found.success
    assert found.n_jacobians > 0
    offset = found.inputs - exact
    assert offset @ np.linalg.solve(found.covariance, offset) < 0.2**2


# -- parts of Levenberg-Marquardt ---------------------------------------------------------------------------
def test_steps_are_the_minimum_of_the_quadratic_model_within_bounds(rng):
    """Of correlated parameters, from inside and from bounds, in a batch; SciPy has the answer."""
    for k in (1, 2, 4, 6):
        design = rng.normal(size=(50, k + 3, k)) * rng.uniform(0.1, 1, k) + rng.normal(size=(50, k + 3, 1))
        x, data = rng.uniform(-1.3, 1.3, (50, k)).clip(-1, 1), 3 * rng.normal(size=(50, k + 3))
        residual = (design @ x[..., None])[..., 0] - data
        gradient, hessian = (residual[:, None] @ design)[:, 0], design.swapaxes(1, 2) @ design
        parts = [torch.from_numpy(part) for part in (x, gradient, hessian, np.zeros(50), -np.ones(k), np.ones(k))]
        step, gain = (part.numpy() for part in _bounded_step(*parts))
        best = [lsq_linear(d, y, (-1, 1), tol=1e-12) for d, y in zip(design, data, strict=True)]
        np.testing.assert_allclose(x + step, [b.x for b in best], atol=1e-4)
        np.testing.assert_allclose(0.5 * (residual**2).sum(1) - gain, [b.cost for b in best], atol=1e-5)


def test_damped_steps_are_shorter_and_promise_less(make_objective):
    objective = make_objective()
    x = torch.tensor([[4500.0, 2.0, 0.0]], dtype=torch.float64)
    star = torch.tensor([0])
    _, gradient, hessian = objective.normal_equations(x, *objective.linearise(x, star), star)
    far = torch.full((3,), 1e6, dtype=torch.float64)
    (free, most), (short, less) = (
        _bounded_step(x, gradient, hessian, torch.tensor([damping], dtype=torch.float64), -far, far)
        for damping in (0.0, 1.0)
    )
    length = [step @ hessian[0] @ step.T for step in (short, free)]
    assert length[0] < length[1]
    assert 0 < less < most


def test_damping_falls_by_ten_with_each_good_step_and_ends(make_objective):
    fit = _Descent(make_objective(), CENTRE[None] + [[200, 0.5, 0.2]], 1e-12, True)
    fit.damping[:], found = 0.05, []
    for _ in range(2):
        fit.iterate()
        found.append(fit.damping.item())
    assert found == pytest.approx([0.005, 0])


class Uphill(LinearPredictor):
    """Its slopes lead away from the optimum."""

    def values_and_slopes(self, labels):
        flux, slopes = super().values_and_slopes(labels)
        return flux, -slopes


def test_damping_grows_by_ten_with_each_bad_step():
    fit = _Descent(noisy_objective(Uphill()), CENTRE[None], 1e-12, True)
    found = []
    for _ in range(3):
        fit.iterate()
        found.append(fit.damping.item())
    assert found == pytest.approx([0.01, 0.1, 1])
    np.testing.assert_array_equal(fit.x[0], CENTRE)


@pytest.mark.parametrize("exact", [True, False])
def test_exact_fits_ask_for_no_coarse_slopes(noisy, exact):
    asked = set()

    class Asked(GaussianLine):
        def jacobian(self, labels, stars=None, *, coarse=False):
            asked.add(coarse)
            return super().jacobian(labels, stars)

    levenberg_marquardt(line(noisy, predictor=Asked()), LINE_STARTS["far"][None], exact=exact)
    assert asked == {not exact}


# -- parts of L-BFGS -------------------------------------------------------------------------------------
def quartic(w):
    """A steep valley with a flat bottom, and its gradient."""
    return (w[0] - 1) ** 4 + 10 * (w[1] + w[0] ** 2) ** 2, np.array(
        [4 * (w[0] - 1) ** 3 + 40 * w[0] * (w[1] + w[0] ** 2), 20 * (w[1] + w[0] ** 2)]
    )


def wiggly(w):
    return np.sin(5 * w[0]) + 0.05 * w @ w, np.array([5 * np.cos(5 * w[0]) + 0.1 * w[0], 0.1 * w[1]])


def answered(routine, function):
    """Run a routine that asks for values and gradients in whitened coordinates."""
    try:
        at = next(routine)
        while True:
            at = routine.send(function(at))
    except StopIteration as stop:
        return stop.value


def asking(w):
    return (yield w)


@pytest.mark.parametrize("function", [quartic, wiggly])
@pytest.mark.parametrize("scale", [1e-4, 0.01, 1.0, 30.0])
def test_accepted_steps_fulfil_the_strong_wolfe_conditions(rng, function, scale):
    for start in rng.normal(0, 2, (25, 2)):
        value, gradient = function(start)
        direction = -scale * gradient
        step, new_value, new_gradient = answered(_strong_wolfe(asking, start, direction, value, gradient), function)
        length = np.linalg.norm(step) / np.linalg.norm(direction)
        assert new_value <= value + 1e-4 * length * (gradient @ direction) + 1e-6 * abs(value)
        assert abs(new_gradient @ direction) <= 0.9 * abs(gradient @ direction)
        np.testing.assert_array_equal(new_gradient, function(start + step)[1])


def test_a_direction_uphill_is_refused():
    value, gradient = quartic(np.array([2.0, 1.0]))
    assert answered(_strong_wolfe(asking, np.array([2.0, 1.0]), gradient, value, gradient), quartic) is None


def test_two_loop_recursion_is_the_bfgs_matrix(rng):
    """H ← (1 − ρ s yᵀ) H (1 − ρ y sᵀ) + ρ s sᵀ from sᵀy/yᵀy of the last pair on."""
    pairs = [(s, y) for s, y in rng.normal(size=(20, 2, 5)) if s @ y > 0.1][:6]
    (s, y), gradient = pairs[-1], rng.normal(size=5)
    inverse = (s @ y) / (y @ y) * np.eye(5)
    for s, y in pairs:
        left = np.eye(5) - np.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)
    np.testing.assert_allclose(_inverse_hessian_times(gradient, pairs), inverse @ gradient, rtol=1e-10)


def test_without_pairs_the_direction_is_the_gradient(rng):
    gradient = rng.normal(size=5)
    np.testing.assert_array_equal(_inverse_hessian_times(gradient, []), gradient)


# -- the report ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("solver", "limit"), [(lbfgs, {"max_rounds": 1}), (levenberg_marquardt, {"max_iterations": 2})], ids=["lbfgs", "lm"]
)
def test_steps_that_run_out_are_no_success(noisy, solver, limit, monkeypatch):
    monkeypatch.setattr("cyclestarnet.fitting.lbfgs.ROUND", 2)
    found = first(solver(line(noisy), LINE_STARTS["farther"][None], **limit))
    assert not found.success
    assert found.message != "converged"


class Broken(GaussianLine):
    def values_and_slopes(self, labels):
        return tuple(part * np.nan for part in super().values_and_slopes(labels))


def test_flux_that_is_not_finite_is_no_success(solve, noisy):
    found = solve(line(noisy, predictor=Broken()), TRUE)
    assert not found.success
    assert found.message == "the objective is not finite"


def test_of_a_fit_without_numbers_the_labels_are_as_uncertain_as_their_ranges(solve, noisy):
    found = solve(line(noisy, predictor=Broken()), TRUE)
    np.testing.assert_allclose(found.covariance, np.diag((UPPER - LOWER) ** 2 / 12))
    assert found.condition == np.inf


def test_start_is_left_alone(solve, noisy):
    start = np.array([[0.1, 50.0, 6.0]])
    solve(line(noisy), start)
    assert start.tolist() == [[0.1, 50.0, 6.0]]


def test_looser_tolerance_costs_less_and_stays_close(solve, noisy):
    loose, tight = (solve(line(noisy), LINE_STARTS["far"], tolerance=t) for t in (1.0, 1e-6))
    assert loose.n_evaluations + loose.n_jacobians <= tight.n_evaluations + tight.n_jacobians
    np.testing.assert_allclose((loose.inputs - tight.inputs) / size(tight.covariance), 0, atol=1.5)


def test_the_better_of_two_optima_is_kept(noisy):
    """Row by row; what was spent adds up."""
    flux = np.tile(noisy, (3, 1))
    short = levenberg_marquardt(line(flux), np.tile(LINE_STARTS["farther"], (3, 1)), max_iterations=1)
    long = levenberg_marquardt(line(flux[:2]), np.tile(TRUE, (2, 1)))
    both = short.improved(np.array([0, 2]), long)
    assert both.success.tolist() == [True, False, True]
    np.testing.assert_array_equal(both.inputs, np.stack([long.inputs[0], short.inputs[1], long.inputs[1]]))
    assert both.message == [long.message[0], short.message[1], long.message[1]]
    assert both.n_evaluations[0] == short.n_evaluations[0] + long.n_evaluations[0]
    np.testing.assert_array_equal(both.improved(np.array([0, 1, 2]), short).loss[[0, 2]], long.loss)


# -- coverage ----------------------------------------------------------------------------------------
@pytest.fixture
def pulls(solve):
    """(found - true) / error of 200 stars with other labels each."""
    rng = np.random.default_rng(12)
    true = rng.uniform([0.3, 29, 2.5], [0.6, 33, 4], (200, 3))
    found = solve(line(rng.normal(GaussianLine().flux(true), SIGMA)), np.tile([0.4, 30, 3], (200, 1)))
    return (found.inputs - true) / np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))


def test_errors_cover_68_percent(pulls):
    """Within the 0.3 % tails of the binomial distribution, for each label."""
    within = (np.abs(pulls) < 1).mean(0)
    assert (np.abs(within - 0.683) < 3 * np.sqrt(0.683 * 0.317 / 200)).all()


def test_pulls_have_unit_width_and_no_bias(pulls):
    assert (np.abs(pulls.std(0) - 1) < 3 / np.sqrt(2 * 200)).all()
    assert (np.abs(pulls.mean(0)) < 3 / np.sqrt(200)).all()
