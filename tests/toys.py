"""Predictors without networks, whose derivatives and posteriors are known, for tests of the fitting room."""

import numpy as np
import torch

from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.parameters import Parameters


class Toy:
    """A predictor made of one function of labels (m, n_labels) to flux and slopes; it keeps what it was asked for.

    ``expect`` is a function of labels to the slopes that it claims to expect.
    """

    device, dtype = torch.device("cpu"), torch.float64

    def __init__(self, expect=None):
        self.expect, self.asked = expect, []

    def values_and_slopes(self, labels):
        raise NotImplementedError

    def _answer(self, method, labels, stars):
        rows = torch.as_tensor(labels, dtype=torch.float64).reshape(-1, self.n_labels)
        self.asked.append((method, rows.tolist(), None if stars is None else stars.tolist()))
        flux, slopes = self.values_and_slopes(rows)
        return flux.reshape(*labels.shape[:-1], -1), slopes.reshape(*labels.shape, -1)

    def n_rows(self, method):
        return sum(len(rows) for name, rows, _ in self.asked if name == method)

    def flux(self, labels, stars=None):
        flux, _ = self._answer("flux", labels, stars)
        return flux if isinstance(labels, torch.Tensor) else flux.numpy()

    def pullback(self, labels, stars=None):
        flux, slopes = self._answer("pullback", labels, stars)
        return flux, lambda cotangent: (slopes @ cotangent[..., None])[..., 0]

    def jacobian(self, labels, stars=None, *, coarse=False):
        return self._answer("jacobian", labels, stars)

    def expected_slopes(self, labels):
        return None if self.expect is None else self.expect(labels)


class LinearPredictor(Toy):
    """Flux that is linear in three labels of very different units: everything about its posterior is known."""

    n_labels, n_pixels = 3, 40

    def __init__(self, expect=None):
        super().__init__(expect)
        rng = np.random.default_rng(4)
        self.matrix = rng.normal(size=(self.n_pixels, 3)) * [1e-4, 0.05, 0.3]  # per K, per dex, per km/s
        self.offset = 1 - self.matrix @ [4500.0, 2.0, 0.0]

    def values_and_slopes(self, labels):
        slopes = torch.from_numpy(self.matrix.T)
        return torch.from_numpy(self.offset) + labels @ slopes, slopes.expand(len(labels), -1, -1)

    def posterior(self, flux, ivar, prior=None, matrix=None):
        """Mean and covariance by the normal equations, of the labels or of what ``matrix`` makes them of."""
        design = self.matrix if matrix is None else self.matrix @ matrix
        hessian = design.T @ (ivar[:, None] * design)
        right = design.T @ (ivar * (flux - self.offset))
        if prior is not None:
            precision = np.linalg.inv(prior.covariance)
            hessian, right = hessian + precision, right + precision @ prior.mean
        return np.linalg.solve(hessian, right), np.linalg.inv(hessian)


class GaussianLine(Toy):
    """One line: depth, centre and width in pixels. Not linear, and every derivative is known."""

    n_labels, n_pixels = 3, 60

    def values_and_slopes(self, labels):
        depth, centre, width = labels.T[..., None]
        offset = (torch.arange(60.0, dtype=torch.float64) - centre) / width
        profile = torch.exp(-0.5 * offset**2)
        slopes = [-profile, -depth * profile * offset / width, -depth * profile * offset**2 / width]
        return 1 - depth * profile, torch.stack(slopes, dim=1)


def noisy_objective(
    truth, *, lower=(4000.0, 0.0, -1.0), upper=(5000.0, 4.0, 1.0), start=(4500.0, 2.0, 0.0), free=None, tied=(),
    **changes,
):  # fmt: skip
    """An objective on noisy data of the predictor ``truth`` at (4600, 2.2, 0.1); options replace its parts."""
    rng = np.random.default_rng(5)
    sigma = rng.uniform(0.01, 0.02, truth.n_pixels)
    flux = rng.normal(truth.flux(np.array([4600.0, 2.2, 0.1])), sigma)
    ivar = sigma**-2
    ivar[::7] = 0  # pixels that are not used
    parameters = Parameters.of_labels(
        np.array(lower, dtype=float), np.array(upper, dtype=float), np.array(start, dtype=float), free=free, tied=tied
    )
    parts = {"predictor": truth, "flux": flux, "ivar": ivar, "parameters": parameters}
    return Objective(**(parts | changes))


def data(objective, star=0):
    """Flux and inverse variance of a star of an objective, as arrays."""
    return objective.flux[star].numpy(), objective.ivar[star].numpy()
