"""What a fit maximises: the posterior of the labels of stars, for optimisers and samplers alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from cyclestarnet.fitting.conversion import tensor_like

if TYPE_CHECKING:
    from cyclestarnet.fitting.priors import Prior

__all__ = ["Objective", "Parameters", "Predictor", "star_by_star"]

ERRORS = ("quoted", "minimum", "unknown")


class Predictor(Protocol):
    """Labels in, flux and derivatives out; see `cyclestarnet.networks.predictor`.

    Tensors of float64 (slopes may be float32), rows of labels (m, n_labels);
    ``stars`` (m,) tells which star each row belongs to.
    """

    n_labels: int
    n_pixels: int
    device: torch.device

    def flux(self, labels: Tensor, stars: Tensor | None = None) -> Tensor: ...

    def pullback(self, labels: Tensor, stars: Tensor | None = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]: ...

    def jacobian(
        self, labels: Tensor, stars: Tensor | None = None, *, coarse: bool = False
    ) -> tuple[Tensor, Tensor]: ...

    def expected_slopes(self, labels: Tensor) -> Tensor | None: ...


def star_by_star(function: Callable, *rows: Tensor):
    """Apply a function of batches to one row at a time on a processor, and to all at once on a GPU.

    The last bits of a product or sum depend on the shape of the batch. Star by
    star, a result does not depend on the company that a star is in.
    """
    if rows[0].device.type != "cpu":
        return function(*rows)
    results = [function(*(tensor[k : k + 1] for tensor in rows)) for k in range(len(rows[0]))]
    if not results or isinstance(results[0], Tensor):
        return torch.cat(results) if results else function(*rows)
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


@dataclass(frozen=True, eq=False)
class Parameters:
    """What a fit varies: labels = origin + matrix @ parameters, within bounds.

    Parameters
    ----------
    origin : array, shape (n_labels,)
        Values of fixed labels, and those from which tied labels move; 0 for free ones.
    matrix : array, shape (n_labels, n_parameters)
        Each label depends on at most one parameter.
    lower, upper : array, shape (n_parameters,)
    """

    origin: np.ndarray
    matrix: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @classmethod
    def of_labels(
        cls,
        lower: np.ndarray,
        upper: np.ndarray,
        start: np.ndarray,
        *,
        free: np.ndarray | None = None,
        tied: Sequence[Sequence[int]] = (),
    ) -> Parameters:
        """Make a parameter of each free label, and one of each group of tied ones.

        Parameters
        ----------
        lower, upper : array, shape (n_labels,)
            Bounds of the labels.
        start : array, shape (n_labels,)
            Where fixed labels stay, and from where tied ones move together.
        free : array of bool, shape (n_labels,), optional
            Default: all.
        tied : sequence of sequences of int, optional
            Groups of labels, disjoint, that keep their differences.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.fitting.objective import Parameters
        >>> three = Parameters.of_labels(np.zeros(3), np.ones(3), np.array([0.2, 0.5, 0.3]), tied=[(1, 2)])
        >>> three.lower, three.upper  # of the first label, and of the shift of the other two
        (array([ 0. , -0.3]), array([1. , 0.5]))
        """
        start = np.array(start, dtype=float)
        free = np.ones(len(start), dtype=bool) if free is None else np.asarray(free)
        member = {k for group in tied for k in group}
        columns, low, high, origin = [], [], [], start.copy()
        for k in np.flatnonzero(free):
            if k not in member:
                columns.append([k])
                low.append(lower[k])
                high.append(upper[k])
                origin[k] = 0.0
        for group in tied:
            group = [k for k in group if free[k]]
            if group:
                columns.append(group)
                low.append((lower - start)[group].max())
                high.append((upper - start)[group].min())
        matrix = np.zeros((len(start), len(columns)))
        for column, group in enumerate(columns):
            matrix[group, column] = 1.0
        return cls(origin, matrix, np.array(low, dtype=float), np.array(high, dtype=float))

    def __len__(self) -> int:
        return self.matrix.shape[1]

    def labels(self, values):
        """Labels (..., n_labels) of parameters (..., n_parameters); arrays or tensors."""
        if isinstance(values, Tensor):
            return values @ tensor_like(self.matrix, values).T + tensor_like(self.origin, values)
        return values @ self.matrix.T + self.origin

    def values(self, labels: np.ndarray) -> np.ndarray:
        """Parameters (..., n_parameters), within bounds, nearest to labels (..., n_labels)."""
        moved = labels - self.origin
        # row by row: the last bits of a sum over a group must not depend on the other stars
        sums = np.array([row @ self.matrix for row in moved.reshape(-1, moved.shape[-1])])
        values = sums.reshape(*moved.shape[:-1], len(self)) / (self.matrix**2).sum(0)
        return np.clip(values, self.lower, self.upper)


@dataclass(frozen=True, eq=False)
class Objective:
    """Posterior of the labels of n stars, each on its own.

    Parameters
    ----------
    predictor : `Predictor`
    flux, ivar : array or Tensor, shape (n_pixels,) or (n, n_pixels)
        Data and inverse variance (model scatter included); 0 = not used.
    parameters : `Parameters`
    prior : `~cyclestarnet.fitting.priors.Prior` or None
        Of the labels. None: flat within the bounds.
    errors : {"quoted", "minimum", "unknown"}
        ``"minimum"``: where χ² exceeds the degrees of freedom, all errors are
        larger by a common factor, which takes its most likely value.
        Without this, misfits would overrule the prior and leave tiny error
        bars. ``"unknown"``: the factor may be below 1, too.
    """

    predictor: Predictor
    flux: Tensor
    ivar: Tensor
    parameters: Parameters
    prior: Prior | None = None
    errors: str = "quoted"

    def __post_init__(self):
        for name in ("flux", "ivar"):
            tensor = torch.as_tensor(getattr(self, name), dtype=torch.float64, device=self.predictor.device)
            object.__setattr__(self, name, torch.atleast_2d(tensor))
        if self.errors not in ERRORS:
            raise ValueError(f"errors must be one of {', '.join(ERRORS)}, but is {self.errors!r}")
        n_labels = len(self.parameters.origin)
        if n_labels != self.predictor.n_labels:
            raise ValueError(f"parameters of {n_labels} labels, but the predictor has {self.predictor.n_labels}")

    @property
    def n_stars(self) -> int:
        return len(self.flux)

    @property
    def dof(self) -> Tensor:
        """Degrees of freedom of each star, (n,)."""
        return ((self.ivar > 0).sum(1) - len(self.parameters)).clamp(min=1)

    def of(self, stars) -> Objective:
        """The objective of some stars, whose predictor still knows all: pass ``stars`` on to it."""
        return replace(self, flux=self.flux[stars], ivar=self.ivar[stars])

    # -- values: parameters (m, k) of stars (m,) ---------------------------------
    def predict(self, values: Tensor, stars: Tensor) -> Tensor:
        """Flux (m, n_pixels)."""
        return self.predictor.flux(self.parameters.labels(values), stars)

    def chi2(self, flux: Tensor, stars: Tensor) -> Tensor:
        """χ² (m,) of predicted flux (m, n_pixels), with the errors as quoted."""
        return star_by_star(
            lambda flux, data, ivar: ((flux - data) ** 2 * ivar).sum(1), flux, self.flux[stars], self.ivar[stars]
        )

    def error_scale2(self, chi2: Tensor, stars: Tensor) -> Tensor:
        """Factor (m,) on all variances of a star."""
        ratio = chi2 / self.dof[stars]
        return {"quoted": torch.ones_like(ratio), "minimum": ratio.clamp(min=1.0), "unknown": ratio}[self.errors]

    def loss(self, flux: Tensor, values: Tensor, stars: Tensor) -> Tensor:
        """Negative log posterior (m,) within the bounds, of parameters and the flux that they lead to."""
        chi2, dof = self.chi2(flux, stars), self.dof[stars]
        scale2 = self.error_scale2(chi2, stars)
        # with the most likely scale put in: χ²/2 where it is 1, and the logarithm of χ² where it is free
        loss = 0.5 * (chi2 / scale2 + dof * torch.log(scale2))
        if self.prior is None:
            return loss
        return loss - star_by_star(self.prior.log_density, self.parameters.labels(values))

    def log_posterior(self, values: np.ndarray, star: int = 0) -> np.ndarray:
        """Log posterior (m,) of parameters (m, k) of one star; −∞ outside the bounds, which the networks never see."""
        values = np.atleast_2d(values)
        inside = ((values >= self.parameters.lower) & (values <= self.parameters.upper)).all(1)
        out = np.full(len(values), -np.inf)
        if inside.any():
            rows = torch.as_tensor(values[inside], dtype=torch.float64, device=self.predictor.device)
            stars = torch.full((len(rows),), star, device=rows.device)
            out[inside] = -self.loss(self.predict(rows, stars), rows, stars).cpu().numpy()
        return out

    # -- derivatives ---------------------------------------------------------------
    def flux_and_gradient(self, values: Tensor, stars: Tensor) -> tuple[Tensor, Tensor]:
        """Flux (m, n_pixels), and the exact gradient (m, k) of the negative log posterior."""

        def exact(values, stars):
            labels = self.parameters.labels(values)
            flux, pull = self.predictor.pullback(labels, stars)
            scale2 = self.error_scale2(self.chi2(flux, stars), stars)
            gradient = pull((flux - self.flux[stars]) * self.ivar[stars] / scale2[:, None])
            if self.prior is not None:
                gradient = gradient - self.prior.derivatives(labels)[1]
            return flux, gradient @ self._matrix

        # one by one also because the graphs of many stars would fill the memory
        return star_by_star(exact, values, stars)

    def loss_and_gradient(self, values: Tensor, stars: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log posterior (m,) and its exact gradient (m, k)."""
        flux, gradient = self.flux_and_gradient(values, stars)
        return self.loss(flux, values, stars), gradient

    def linearise(self, values: Tensor, stars: Tensor, *, coarse: bool = True) -> tuple[Tensor, Tensor]:
        """Flux (m, n_pixels) and its derivatives (m, k, n_pixels) with respect to the parameters."""
        flux, slopes = self.predictor.jacobian(self.parameters.labels(values), stars, coarse=coarse)
        return flux, self._of_parameters(slopes)

    def expected_slopes(self, values: Tensor) -> Tensor | None:
        """Derivatives (m, k, n_pixels) that the predictor expects without computing them; None if it does not."""
        slopes = self.predictor.expected_slopes(self.parameters.labels(values))
        return None if slopes is None else self._of_parameters(slopes)

    def _of_parameters(self, slopes: Tensor) -> Tensor:
        matrix = self._matrix.to(slopes.dtype)
        if bool(((matrix != 0).sum(0) == 1).all()):  # no label is tied: a choice of rows
            return slopes[:, matrix.argmax(0)]
        return star_by_star(lambda row: matrix.T @ row, slopes)

    def normal_equations(
        self, values: Tensor, flux: Tensor, slopes: Tensor, stars: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (m,), gradient (m, k) and Gauss-Newton Hessian (m, k, k), from the result of `linearise`."""
        labels, matrix = self.parameters.labels(values), self._matrix

        def products(slopes, flux, data, weight, labels):
            slopes = slopes.double()
            weighted = slopes * weight[:, None]
            gradient = (weighted @ (flux - data)[..., None])[..., 0]
            hessian = weighted @ slopes.transpose(1, 2)
            if self.prior is None:
                return gradient, hessian
            _, slope, curvature = self.prior.derivatives(labels)
            return gradient - slope @ matrix, hessian + matrix.T @ curvature @ matrix

        weight = self.ivar[stars] / self.error_scale2(self.chi2(flux, stars), stars)[:, None]
        return self.loss(flux, values, stars), *star_by_star(products, slopes, flux, self.flux[stars], weight, labels)

    @property
    def _matrix(self) -> Tensor:
        return torch.as_tensor(self.parameters.matrix, dtype=torch.float64, device=self.predictor.device)
