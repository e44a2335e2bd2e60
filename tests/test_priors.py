"""Priors against closed forms and finite differences."""

import sys
from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.table import QTable, Table
from scipy.stats import multivariate_normal, norm

from cyclestarnet import LabelSet
from cyclestarnet.exceptions import LabelError
from cyclestarnet.fitting.isochrones import IsochronePrior, mist_isochrones
from cyclestarnet.fitting.priors import GaussianConstraints, GaussianPrior, ProductPrior

LABELS = LabelSet(
    ["teff", "logg", "mg_h", "fe_h"], [3500, 0, -2, -2], [6000, 4, 1, 1],
    combinations={"alpha_m": {"mg_h": 1.0, "fe_h": -1.0}},
)  # fmt: skip
STARS = torch.tensor([[4500, 2.1, 0.1, 0.0], [4620, 2.6, -0.3, -0.2], [5900, 0.1, -1.9, 0.9]], dtype=torch.float64)
SCALE = torch.tensor([100, 0.2, 0.1, 0.1], dtype=torch.float64)

POINTS = {"teff": [4400, 4600] * u.K, "logg": [2.0, 2.4], "fe_h": [0.0, -0.2]}
SIGMA = {"teff": 80 * u.K, "logg": 0.2, "fe_h": 0.1 * u.dex}

GAUSSIAN = GaussianPrior([4500, 2, 0, 0], [[1e4, 8, 0, 0], [8, 0.09, 0, 0], [0, 0, 0.04, 0.005], [0, 0, 0.005, 0.01]])
CONSTRAINTS = GaussianConstraints.of({"teff": (4550 * u.K, 50 * u.K), "alpha_m": (0.1, 0.05)}, LABELS)
ISOCHRONE = IsochronePrior(POINTS, SIGMA, LABELS, weights=[1, 3])
PRIORS = {
    "gaussian": GAUSSIAN,
    "constraints": CONSTRAINTS,
    "isochrone": ISOCHRONE,
    "product": ProductPrior([GAUSSIAN, CONSTRAINTS, ISOCHRONE]),
}
every_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)


def differences(function, stars, size=1e-4):
    """Central differences of function (n, ...) by each label, (n, d, ...), in steps of ``size`` SCALE."""
    steps = size * torch.diag(SCALE)
    return torch.stack([(function(stars + h) - function(stars - h)) / (2 * h.sum()) for h in steps], dim=1)


# -- every prior -------------------------------------------------------------------------------
@every_prior
def test_the_value_of_the_derivatives_is_the_log_density(prior):
    torch.testing.assert_close(prior.derivatives(STARS)[0], prior.log_density(STARS), rtol=1e-12, atol=1e-12)


@every_prior
def test_gradients_agree_with_finite_differences(prior):
    found = prior.derivatives(STARS)[1] * SCALE
    torch.testing.assert_close(found, differences(prior.log_density, STARS) * SCALE, rtol=1e-6, atol=1e-5)


@every_prior
def test_curvatures_are_symmetric_and_not_negative(prior):
    curvature = prior.derivatives(STARS)[2] * SCALE[:, None] * SCALE
    torch.testing.assert_close(curvature, curvature.mT, rtol=0, atol=1e-10)
    assert torch.linalg.eigvalsh(curvature).min() > -1e-10


@pytest.mark.parametrize("prior", [GAUSSIAN, CONSTRAINTS], ids=["gaussian", "constraints"])
def test_curvature_of_gaussians_is_minus_the_hessian(prior):
    hessian = differences(lambda stars: prior.derivatives(stars)[1], STARS)
    torch.testing.assert_close(prior.derivatives(STARS)[2] * SCALE, -hessian * SCALE, rtol=1e-6, atol=1e-5)


@every_prior
def test_autograd_agrees_with_the_gradient(prior):
    leaf = STARS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prior.log_density(leaf).sum(), leaf)
    torch.testing.assert_close(gradient, prior.derivatives(STARS)[1], rtol=1e-10, atol=1e-10)


@every_prior
def test_a_star_that_is_not_finite_leaves_the_others_alone(prior):
    spoilt = STARS.clone()
    spoilt[1] = torch.nan
    for found, true in zip(prior.derivatives(spoilt), prior.derivatives(STARS), strict=True):
        torch.testing.assert_close(found[[0, 2]], true[[0, 2]])


# -- Gaussians ---------------------------------------------------------------------------------
def test_gaussian_density_is_scipys():
    true = multivariate_normal(GAUSSIAN.mean, GAUSSIAN.covariance).logpdf(STARS.numpy())
    found = GAUSSIAN.log_density(STARS).numpy()
    np.testing.assert_allclose(found - found[0], true - true[0], rtol=1e-10)


def test_gaussian_distance_is_minus_twice_the_log_density():
    np.testing.assert_allclose(GAUSSIAN.distance2(STARS.numpy()), -2 * GAUSSIAN.log_density(STARS), rtol=1e-12)


@pytest.mark.parametrize(
    ("mean", "covariance", "complaint"),
    [
        ([0, 0], np.eye(3), r"\(2,\), \(3, 3\)"),
        ([0, np.nan], np.eye(2), "finite"),
        ([0, 0], [[1, 2], [2, 1]], "positive definite"),
        ([0, 0], [[1, 0.5], [0, 1]], "symmetric"),
    ],
)
def test_what_is_no_gaussian_raises(mean, covariance, complaint):
    with pytest.raises(ValueError, match=complaint):
        GaussianPrior(mean, covariance)


# -- constraints -------------------------------------------------------------------------------
def test_constraints_are_independent_normal_densities():
    stars = STARS.numpy()
    true = norm.logpdf(stars[:, 0], 4550, 50) + norm.logpdf(stars[:, 2] - stars[:, 3], 0.1, 0.05)
    found = CONSTRAINTS.log_density(STARS).numpy()
    np.testing.assert_allclose(found - found[0], true - true[0], rtol=1e-10)


def test_what_is_not_constrained_does_not_matter():
    moved = STARS + torch.tensor([0, 1.0, 0.3, 0.3])
    torch.testing.assert_close(CONSTRAINTS.log_density(moved), CONSTRAINTS.log_density(STARS))


def test_units_are_converted():
    kilo = GaussianConstraints.of(
        {"teff": (4.55 * u.kK, 0.05 * u.kK), "logg": (2.5 * u.dex(u.cm / u.s**2), 0.1)}, LABELS
    )
    np.testing.assert_allclose(kilo.mean, [4550, 2.5])
    np.testing.assert_allclose(kilo.sigma, [50, 0.1])


@pytest.mark.parametrize(
    ("beliefs", "complaint"),
    [
        ({"tef": (4500 * u.K, 50 * u.K)}, "did you mean 'teff'"),
        ({"teff": (4500, 50 * u.K)}, "'teff' must be a Quantity in K"),
        ({"teff": (4500 * u.K, 50)}, "'teff' must be a Quantity in K"),
        ({"teff": (4500 * u.K, 50 * u.km)}, "'teff' must have the unit K"),
        ({"alpha_m": (0.1 * u.K, 0.05)}, "'alpha_m' must have the unit dex"),
        ({"fe_h": (0.0, 0.0)}, "sigma of 'fe_h' must be positive, but is 0 dex"),
        ({"logg": (2.0, -0.1)}, "sigma of 'logg' must be positive, but is -0.1 dex"),
        ({"fe_h": (np.nan, 0.1)}, "'fe_h' is not finite"),
        ({"fe_h": 0.1}, r"'fe_h' must be a pair \(mean, sigma\)"),
        ({"fe_h": ([0.1, 0.2], 0.1)}, "'fe_h' must be one number"),
        ({}, "at least one label"),
    ],
)
def test_beliefs_that_cannot_be_meant_raise(beliefs, complaint):
    with pytest.raises(LabelError, match=complaint):
        GaussianConstraints.of(beliefs, LABELS)


@pytest.mark.parametrize(
    ("matrix", "mean", "sigma", "complaint"),
    [
        ([1.0, 0], [0], [1], "shapes"),
        ([[1.0, 0]], [0, 1], [1], "shapes"),
        ([[1.0, 0]], [np.inf], [1], "finite"),
        ([[1.0, 0]], [0], [0], "positive"),
    ],
)
def test_constraints_that_make_no_sense_raise(matrix, mean, sigma, complaint):
    with pytest.raises(ValueError, match=complaint):
        GaussianConstraints(matrix, mean, sigma)


# -- products ----------------------------------------------------------------------------------
def test_a_product_is_the_sum_of_logs():
    found = PRIORS["product"].derivatives(STARS)
    for k, total in enumerate(found):
        parts = [p.derivatives(STARS)[k] for p in (GAUSSIAN, CONSTRAINTS, ISOCHRONE)]
        torch.testing.assert_close(total, parts[0] + parts[1] + parts[2])


def test_two_gaussian_beliefs_make_the_weighted_mean():
    """The top of the product of N(0, 1) and N(3, 2²) is at 0.6, with a precision of 1.25."""
    one, two = (GaussianConstraints([[1.0]], [m], [s]) for m, s in [(0, 1), (3, 2)])
    _, gradient, curvature = ProductPrior([one, two]).derivatives(torch.tensor([[0.6]], dtype=torch.float64))
    assert gradient.item() == pytest.approx(0, abs=1e-12)
    assert curvature.item() == pytest.approx(1.25)


@pytest.mark.parametrize("factors", [[], [GAUSSIAN, GaussianPrior([0], [[1]])]])
def test_products_need_factors_of_the_same_labels(factors):
    with pytest.raises(ValueError, match="one or more priors of the same labels"):
        ProductPrior(factors)


# -- isochrones --------------------------------------------------------------------------------
def mixture(stars, points, sigma, weights):
    """Density of a mixture of Gaussians by SciPy."""
    parts = [
        w * multivariate_normal(p, np.diag(np.square(sigma))).pdf(stars) for w, p in zip(weights, points, strict=True)
    ]
    return np.sum(parts, axis=0)


def test_two_points_make_the_known_mixture():
    stars = STARS[:2].numpy()[:, [0, 1, 3]]
    true = mixture(stars, [[4400, 2.0, 0.0], [4600, 2.4, -0.2]], [80, 0.2, 0.1], [1, 3])
    found = ISOCHRONE.log_density(STARS[:2]).numpy()
    assert found[0] - found[1] == pytest.approx(np.log(true[0] / true[1]), rel=1e-10)


def test_points_may_be_given_in_combinations():
    prior = IsochronePrior({"teff": [4500] * u.K, "alpha_m": [0.1]}, {"teff": 50 * u.K, "alpha_m": 0.05}, LABELS)
    true = GaussianConstraints.of({"teff": (4500 * u.K, 50 * u.K), "alpha_m": (0.1, 0.05)}, LABELS)
    for mine, other in zip(prior.derivatives(STARS), true.derivatives(STARS), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_many_points_are_taken_in_blocks(monkeypatch, rng):
    points = {"teff": rng.normal(4500, 300, 500) * u.K, "logg": rng.normal(2, 1, 500)}
    prior = IsochronePrior(points, {"teff": 80 * u.K, "logg": 0.2}, LABELS)
    whole = prior.derivatives(STARS)
    monkeypatch.setattr("cyclestarnet.fitting.isochrones.BLOCK", 700)
    for part, all_at_once in zip(prior.derivatives(STARS), whole, strict=True):
        torch.testing.assert_close(part, all_at_once, rtol=1e-12, atol=1e-12)


def test_far_from_all_points_the_gradient_leads_back():
    """200 σ away, where the densities underflow, the nearest point is all that counts."""
    far = torch.tensor([[4600 + 200 * 80, 2.4, 0, -0.2]], dtype=torch.float64)
    value, gradient, curvature = ISOCHRONE.derivatives(far)
    assert value.item() == pytest.approx(np.log(0.75) - 200**2 / 2)
    np.testing.assert_allclose(gradient[0] * SCALE, [-200 / 80 * 100, 0, 0, 0], atol=1e-8)
    assert curvature.isfinite().all()


def test_along_a_sequence_the_prior_is_flat_and_across_it_narrow():
    """An endless line of equal points is a Gaussian across it, with no curvature along it."""
    s = np.linspace(-40, 40, 401)
    line = {"teff": (4500 + 80 * s) * u.K, "logg": 2 + 0.2 * s}
    prior = IsochronePrior(line, {"teff": 80 * u.K, "logg": 0.2}, LABELS)
    at = torch.tensor([[4500 + 80 * 0.5, 2 - 0.2 * 0.5, 0, 0]], dtype=torch.float64)  # √½ σ beside it
    _, gradient, curvature = prior.derivatives(at)
    white = torch.tensor([80, 0.2], dtype=torch.float64)
    np.testing.assert_allclose(gradient[0, :2] * white, [-0.5, 0.5], atol=1e-9)
    np.testing.assert_allclose(curvature[0, :2, :2] * white * white[:, None], [[0.5, -0.5], [-0.5, 0.5]], atol=1e-9)


def test_between_two_sequences_nothing_curves_the_wrong_way():
    """Half way between points 6 σ apart the density has a minimum; the curvature there is 0, not negative."""
    points = {"teff": [4260, 4740] * u.K, "logg": [2.0, 2.0]}
    prior = IsochronePrior(points, {"teff": 80 * u.K, "logg": 0.2}, LABELS)
    _, _, curvature = prior.derivatives(torch.tensor([[4500, 2.0, 0, 0]], dtype=torch.float64))
    np.testing.assert_allclose(torch.diagonal(curvature[0]), [0, 25, 0, 0], atol=1e-9)


@pytest.mark.parametrize("table", [QTable, Table])
def test_tables_do_as_well_and_may_have_more_columns(table):
    prior = IsochronePrior(table(POINTS | {"age": [1, 2] * u.Gyr}), SIGMA, LABELS, weights=[1, 3])
    torch.testing.assert_close(prior.log_density(STARS), ISOCHRONE.log_density(STARS))


def test_a_point_without_weight_is_not_there():
    more = {name: np.append(column, column[:1]) for name, column in POINTS.items()}
    prior = IsochronePrior(more, SIGMA, LABELS, weights=[2, 6, 0])
    torch.testing.assert_close(prior.log_density(STARS), ISOCHRONE.log_density(STARS))


@pytest.mark.parametrize(
    ("points", "sigma", "complaint"),
    [
        (POINTS, {"teff": 80 * u.K}, "two or more labels"),
        (POINTS, SIGMA | {"m_h": 0.1}, "Unknown label 'm_h'"),
        (POINTS, SIGMA | {"mg_h": 0.1}, r"sigma names \['mg_h'\], but points has only the columns teff, logg, fe_h"),
        (POINTS, SIGMA | {"teff": 80}, "'teff' must be a Quantity in K"),
        (POINTS, SIGMA | {"logg": 0.0}, "sigma of 'logg' must be positive"),
        (POINTS | {"teff": [4400, 4600]}, SIGMA, "'teff' must be a Quantity in K"),
        (POINTS | {"teff": [4400, np.nan] * u.K}, SIGMA, "'teff' is not finite"),
        (POINTS | {"teff": [4400] * u.K}, SIGMA, r"of one length, at least 1, but have \[1, 2\]"),
        (POINTS | {"teff": 4400 * u.K}, SIGMA, "'teff' must be a column"),
    ],
)
def test_isochrones_that_cannot_be_used_raise(points, sigma, complaint):
    with pytest.raises(LabelError, match=complaint):
        IsochronePrior(points, sigma, LABELS)


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, np.nan]])
def test_weights_that_cannot_be_used_raise(weights):
    with pytest.raises(ValueError, match="weights must"):
        IsochronePrior(POINTS, SIGMA, LABELS, weights=weights)


# -- isochrones of MIST ------------------------------------------------------------------------
class Tracks:
    """In place of minimint's tracks: stars that die at a mass of (age / 10 Gyr)**-0.4, giants in the last 5 %."""

    def __init__(self, folder=None):
        if folder == "nowhere":
            raise FileNotFoundError("nowhere/logg.npy")

    def __call__(self, mass, logage, feh):
        assert mass.shape == logage.shape == feh.shape
        last = (10**logage / 1e10) ** -0.4
        climb = np.clip((mass / last - 0.95) / 0.05, 0, 1.5)  # 0 on the main sequence, 1 at the tip
        gone = (mass > 1.1 * last) | (np.abs(feh) > 2)
        logteff = np.log10(5000 + 1000 * np.minimum(mass, 1) - 2500 * climb)
        values = {"logteff": logteff, "logg": 4.5 - 4.5 * climb - 0.1 * feh, "phase": np.where(climb > 1, 6.0, 0.0)}
        return {name: np.where(gone, np.nan, value) for name, value in values.items()}


@pytest.fixture
def tracks(monkeypatch):
    monkeypatch.setitem(sys.modules, "minimint", SimpleNamespace(TheoryInterpolator=Tracks))


@pytest.mark.usefixtures("tracks")
def test_mist_points_lie_on_the_tracks():
    table = mist_isochrones([2, 10] * u.Gyr, [-0.5, 0.0])
    true = Tracks()(table["initial_mass"].value, np.log10(table["age"].value), table["m_h"].value)
    np.testing.assert_allclose(table["teff"].to_value(u.K), 10 ** true["logteff"])
    np.testing.assert_allclose(table["logg"].value, true["logg"])


@pytest.mark.usefixtures("tracks")
def test_mist_points_are_close_to_each_other_up_to_the_tip():
    table = mist_isochrones(10 * u.Gyr, 0.0)
    assert np.abs(np.diff(table["teff"].value)).max() <= 50
    assert np.abs(np.diff(table["logg"].value)).max() <= 0.05
    assert 0 < table["logg"].value.min() < 0.05


@pytest.mark.usefixtures("tracks")
def test_mist_weights_add_up_to_the_initial_mass_function():
    """The integral of Kroupa's function from 0.1 to 1 Msun, the most massive star of 10 Gyr."""
    weight = mist_isochrones(10 * u.Gyr, 0.0)["weight"]
    true = (0.1**-0.3 - 0.5**-0.3) / 0.3 + 0.5 * (0.5**-1.3 - 1) / 1.3
    assert weight.sum() == pytest.approx(true, rel=1e-3)


@pytest.mark.usefixtures("tracks")
def test_stars_that_are_no_more_are_left_out():
    """The last giant of 10 Gyr has 1 Msun; there are stars of 1 to 1.1 Msun in the tracks, but in later phases."""
    mass = mist_isochrones(10 * u.Gyr, 0.0)["initial_mass"].to_value(u.Msun)
    assert mass.max() == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("tracks")
def test_mist_isochrones_make_a_prior():
    """The ridge of the prior is where the giants of 10 Gyr are."""
    labels = LabelSet(["teff", "logg", "m_h"], [3000, 0, -1], [7000, 5, 1])
    table = mist_isochrones(10 * u.Gyr, 0.0)
    prior = IsochronePrior(table, {"teff": 50 * u.K, "logg": 0.1, "m_h": 0.1}, labels, weights=table["weight"])
    stars = torch.tensor([[teff, 2.5, 0] for teff in np.arange(4500, 5300, 10)], dtype=torch.float64)
    climb = (4.5 - 2.5) / 4.5
    true = 5000 + 1000 * (0.95 + 0.05 * climb) - 2500 * climb
    assert stars[prior.log_density(stars).argmax(), 0].item() == pytest.approx(true, abs=10)


@pytest.mark.usefixtures("tracks")
@pytest.mark.parametrize(
    ("ages", "metallicities", "error", "complaint"),
    [
        ([1, 2], 0.0, ValueError, "unit of time"),
        ([1, 2] * u.m, 0.0, ValueError, "unit of time"),
        ([1, 0] * u.Gyr, 0.0, ValueError, "positive and finite"),
        ([1, np.nan] * u.Gyr, 0.0, ValueError, "positive and finite"),
        (1 * u.Gyr, [0.0, np.inf], LabelError, "not finite"),
        (1 * u.Gyr, 0.0 * u.K, LabelError, "unit dex"),
        (1 * u.Gyr, [0.0, -3.0], ValueError, r"no stars of 1 Gyr and \[Fe/H\] = -3"),
    ],
)
def test_isochrones_that_mist_has_not_raise(ages, metallicities, error, complaint):
    with pytest.raises(error, match=complaint):
        mist_isochrones(ages, metallicities)


@pytest.mark.usefixtures("tracks")
def test_absent_tracks_say_how_to_get_them():
    with pytest.raises(FileNotFoundError, match=r"nowhere/logg.npy.*minimint.download_and_prepare\(\)"):
        mist_isochrones(1 * u.Gyr, 0.0, folder="nowhere")


def test_absent_minimint_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "minimint", None)
    with pytest.raises(ImportError, match=r'pip install "cyclestarnet\[isochrones\]"'):
        mist_isochrones(1 * u.Gyr, 0.0)
