"""Posteriors of many shapes that are known in closed form: what a sampler must get right, whatever it expects."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import stats


@dataclass
class Shape:
    """A log density within bounds, its Laplace approximation, and numbers whose distributions are known."""

    log_density: Callable
    lower: np.ndarray
    upper: np.ndarray
    centre: np.ndarray
    covariance: np.ndarray
    known: dict = field(default_factory=dict)  # name: (function of positions (n, k), cumulative distribution)


def gaussian(k, correlation=0.9):
    """Correlations 0.9^|i - j|; the last coordinate, and what of it the others do not tell."""
    covariance = correlation ** np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    precision, alone = np.linalg.inv(covariance), stats.norm(scale=np.sqrt(1 - correlation**2)).cdf
    return Shape(
        lambda x: -0.5 * np.einsum("ni,ij,nj->n", x, precision, x),
        np.full(k, -20.0), np.full(k, 20.0), np.zeros(k), covariance,
        {"last": (lambda x: x[:, -1], stats.norm.cdf), "alone": (lambda x: x[:, -1] - correlation * x[:, -2], alone)},
    )  # fmt: skip


def truncated(k=3, low=-0.3, correlation=0.8):
    """A correlated Gaussian of which the first coordinate is cut close to the maximum."""
    whole, left = gaussian(k, correlation), stats.norm.cdf(low)
    whole.lower[0] = low
    alone = stats.norm(scale=np.sqrt(1 - correlation**2)).cdf
    whole.known = {
        "cut": (lambda x: x[:, 0], lambda v: ((stats.norm.cdf(v) - left) / (1 - left)).clip(0)),
        "next": (lambda x: x[:, 1] - correlation * x[:, 0], alone),
    }
    return whole


def slope():
    """A maximum at a bound: exponential in one coordinate, Gaussian in another."""
    return Shape(
        lambda x: -3 * x[:, 0] - 0.5 * x[:, 1] ** 2,
        np.array([0.0, -9.0]), np.array([10.0, 9.0]), np.zeros(2), np.diag([1 / 9, 1.0]),
        {"exponential": (lambda x: x[:, 0], stats.expon(scale=1 / 3).cdf),
         "other": (lambda x: x[:, 1], stats.norm.cdf)},
    )  # fmt: skip


def banana(bend=0.7, width=0.5):
    """One coordinate follows the square of the other."""

    def across(x):
        return (x[:, 1] - bend * (x[:, 0] ** 2 - 1)) / width

    return Shape(
        lambda x: -0.5 * x[:, 0] ** 2 - 0.5 * across(x) ** 2,
        np.array([-9.0, -9.0]), np.array([9.0, 99.0]), np.array([0.0, -bend]), np.diag([1.0, width**2]),
        {"along": (lambda x: x[:, 0], stats.norm.cdf), "across": (across, stats.norm.cdf)},
    )  # fmt: skip


def two_modes(distance=5.0):
    """Seven tenths at 0, three tenths far away, of which the approximation knows nothing."""
    away = np.array([distance, 0.0])

    def log_density(x):
        near, far = (-0.5 * ((x - mode) ** 2).sum(1) for mode in (0.0, away))
        return np.logaddexp(np.log(0.7) + near, np.log(0.3) + far)

    return Shape(
        log_density, np.full(2, -15.0), np.full(2, 15.0), np.zeros(2), np.eye(2),
        {"modes": (lambda x: x[:, 0], lambda v: 0.7 * stats.norm.cdf(v) + 0.3 * stats.norm.cdf(v - distance)),
         "other": (lambda x: x[:, 1], stats.norm.cdf)},
    )  # fmt: skip


def student(k=3, degrees=5):
    """Tails that the approximation lacks."""
    return Shape(
        lambda x: -0.5 * (degrees + k) * np.log1p((x**2).sum(1) / degrees),
        np.full(k, -500.0), np.full(k, 500.0), np.zeros(k), np.eye(k) * degrees / (degrees + k),
        {"first": (lambda x: x[:, 0], stats.t(degrees).cdf),
         "distance": (lambda x: (x**2).sum(1) / k, stats.f(k, degrees).cdf)},
    )  # fmt: skip


def unconstrained(n_flat=2):
    """Three narrow coordinates, and others that are flat within their bounds, with an optimum anywhere."""
    k = 3 + n_flat
    covariance = np.diag([0.01] * 3 + [1e6] * n_flat)
    centre = np.r_[0.0, 0.0, 0.0, np.linspace(0.9, -0.3, n_flat)]
    return Shape(
        lambda x: -50 * (x[:, :3] ** 2).sum(1), np.full(k, -1.0), np.full(k, 1.0), centre, covariance,
        {"flat": (lambda x: x[:, 3], stats.uniform(-1, 2).cdf),
         "narrow": (lambda x: x[:, 0], stats.norm(scale=0.1).cdf)},
    )  # fmt: skip


def prior_only(k=4):
    """No data at all: the prior, which the approximation takes for a tenth as wide as it is."""
    return Shape(
        lambda x: -0.5 * (x**2).sum(1), np.full(k, -9.0), np.full(k, 9.0), np.zeros(k), 0.01 * np.eye(k),
        {"first": (lambda x: x[:, 0], stats.norm.cdf), "distance": (lambda x: (x**2).sum(1), stats.chi2(k).cdf)},
    )  # fmt: skip


SHAPES = {
    "correlated Gaussian, 8": gaussian(8),
    "cut at a bound": truncated(),
    "falling off from a bound": slope(),
    "banana": banana(),
    "two modes": two_modes(),
    "Student's t, 5 degrees": student(),
    "not constrained": unconstrained(),
    "wider than expected": prior_only(),
}


def agreement(shape, chain):
    """Least p value of Kolmogorov-Smirnov tests against the truth, longest autocorrelation time, and independent draws.

    Draws are three autocorrelation times apart, of all that is compared.
    """
    found = {name: function(chain.samples) for name, (function, _) in shape.known.items()}
    times = [chain.autocorrelation_time.max(), *map(chain.autocorrelation_time_of, found.values())]
    apart = int(np.ceil(3 * max(times) / chain.thin))
    draws = {name: values.reshape(-1, chain.n_walkers)[::apart].ravel() for name, values in found.items()}
    p = [stats.kstest(draws[name], cumulative).pvalue for name, (_, cumulative) in shape.known.items()]
    return min(p), max(times), min(map(len, draws.values()))
