"""What a fit maximises: the posterior of the labels of stars, for optimisers and samplers alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cyclestarnet.fitting.parameters import Parameters
from cyclestarnet.fitting.predictor import Predictor
from cyclestarnet.fitting.priors import Prior
from cyclestarnet.fitting.tensors import star_by_star

__all__ = ["Objective"]

ERRORS = ("quoted", "minimum", "unknown")


@dataclass(frozen=True, eq=False)
class Objective:
    """Posterior of the labels of n stars, each on its own.

    Methods take parameters in rows (m, k), with ``stars`` (m,) that tell which
    star each row belongs to, so that a star may be asked about several times,
    or not at all. All are tensors of float64 on the predictor's device, but
    for `log_posterior`, which is made for samplers.

    Parameters
    ----------
    predictor : `~cyclestarnet.fitting.predictor.Predictor`
        What is compared with the data.
    flux : array or Tensor, shape (n_pixels,) or (n, n_pixels)
        Data, a row per star. Finite also where they are not used.
    ivar : array or Tensor, shape (n_pixels,) or (n, n_pixels)
        Inverse variance, in which the model's scatter is included; 0 = not used.
    parameters : `~cyclestarnet.fitting.parameters.Parameters`
        What of the labels varies, and its bounds.
    prior : `~cyclestarnet.fitting.priors.Prior`, optional
        Of the labels. None, the default: flat within the bounds.
    errors : {"quoted", "minimum", "unknown"}, optional
        ``"quoted"``, the default: errors are right.
        ``"minimum"``: where χ² exceeds the degrees of freedom, all errors are
        larger by a common factor, which takes its most likely value.
        Without this, misfits would overrule the prior and leave tiny error
        bars. ``"unknown"``: the factor may be below 1, too.
    n_data : array, shape (n,), optional
        Independent data of each star: what χ² of the errors alone is on the average. Default: the pixels that are used.
    templates : array or Tensor, shape (n, m, n_pixels), optional
        What may be added to the flux of each star, times coefficients of which only a Gaussian of unit width is known,
        such as errors of the continuum. The posterior is marginalised over them, exactly. Default: nothing.
    windows : sequence of (int, int), optional
        Half-open ranges of pixels that share none. The templates have coefficients of their own in each, and add
        nothing elsewhere. Default: one of all pixels.

    Raises
    ------
    ValueError
        If ``errors`` is none of these, parameters and predictor are not of as many labels, or windows share pixels.

    Examples
    --------
    Two pixels of flux 1 + a and 1 + 2 a, and data that are right for a = 0.5:

    >>> import numpy as np
    >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
    >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
    >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
    >>> objective.log_posterior(np.array([[0.5], [0.25], [1.1]]))
    array([-0. , -2.5, -inf])
    """

    predictor: Predictor
    flux: Tensor
    ivar: Tensor
    parameters: Parameters
    prior: Prior | None = None
    errors: str = "quoted"
    n_data: ArrayLike | None = None
    templates: Tensor | None = None
    windows: Sequence[tuple[int, int]] | None = None
    _roots: list[Tensor] = field(init=False, default_factory=list, repr=False)
    _taken: Tensor | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("flux", "ivar"):
            tensor = torch.as_tensor(getattr(self, name), dtype=torch.float64, device=self.predictor.device)
            object.__setattr__(self, name, torch.atleast_2d(tensor))
        if self.errors not in ERRORS:
            raise ValueError(f"errors must be one of {', '.join(ERRORS)}, but is {self.errors!r}")
        n_labels = len(self.parameters.origin)
        if n_labels != self.predictor.n_labels:
            raise ValueError(f"parameters of {n_labels} labels, but the predictor has {self.predictor.n_labels}")
        if self.templates is not None:
            self._marginalise()

    def _marginalise(self) -> None:
        """Prepare what the templates take from χ²."""
        templates = torch.as_tensor(self.templates, dtype=torch.float64, device=self.predictor.device)
        windows = [(0, templates.shape[2])] if self.windows is None else [(int(a), int(b)) for a, b in self.windows]
        if any(stop > start for (_, stop), (start, _) in pairwise(sorted(windows))):
            raise ValueError(f"windows must not share pixels, but are {windows}")
        # With them the inverse covariance of the data in a window is diag(ivar) − Σ u uᵀ (Woodbury), u the rows of
        # `_taken`. Windows have nothing to do with each other, so that none of the matrices is large.
        identity = torch.eye(templates.shape[1], dtype=torch.float64, device=self.predictor.device)
        taken = torch.zeros_like(templates)
        for start, stop in windows:
            part = templates[..., start:stop]
            weighted = part * self.ivar[:, None, start:stop]
            root = star_by_star(lambda w, t: torch.linalg.cholesky(identity + w @ t.transpose(1, 2)), weighted, part)
            taken[..., start:stop] = torch.linalg.solve_triangular(root, weighted, upper=False)
            self._roots.append(root)
        for name, value in (("templates", templates), ("windows", windows), ("_taken", taken)):
            object.__setattr__(self, name, value)

    @property
    def n_stars(self) -> int:
        """Number of stars."""
        return len(self.flux)

    @property
    def dof(self) -> Tensor:
        """Degrees of freedom of each star, (n,)."""
        n_data = (self.ivar > 0).sum(1) if self.n_data is None else self.n_data
        n_data = torch.as_tensor(n_data, dtype=torch.float64, device=self.predictor.device)
        return (n_data - len(self.parameters)).clamp(min=1)

    # -- values: parameters (m, k) of stars (m,) ---------------------------------
    def predict(self, values: Tensor, stars: Tensor) -> Tensor:
        """Predict the flux.

        Parameters
        ----------
        values : Tensor, shape (m, k)
            Parameters, a row per spectrum.
        stars : Tensor of int, shape (m,)
            Which star each row belongs to.

        Returns
        -------
        Tensor, shape (m, n_pixels)

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
        >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
        >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
        >>> values, star = torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([0])
        >>> objective.predict(values, star)
        tensor([[1.2500, 1.5000]], dtype=torch.float64)
        """
        return self.predictor.flux(self.parameters.labels(values), stars)

    def chi2(self, flux: Tensor, stars: Tensor) -> Tensor:
        """Compare predicted flux with the data, with the errors as quoted.

        Parameters
        ----------
        flux : Tensor, shape (m, n_pixels)
            As of `predict`.
        stars : Tensor of int, shape (m,)
            Which star each row belongs to.

        Returns
        -------
        Tensor, shape (m,)
            χ², the sum of squared deviations over variance.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
        >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
        >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
        >>> values, star = torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([0])
        >>> objective.chi2(objective.predict(values, star), star)
        tensor([5.], dtype=torch.float64)
        """
        chi2 = star_by_star(
            lambda flux, data, ivar: ((flux - data) ** 2 * ivar).sum(1), flux, self.flux[stars], self.ivar[stars]
        )
        for start, stop in self._own_windows:
            chi2 = chi2 - star_by_star(
                lambda flux, data, taken: ((taken @ (flux - data)[..., None]) ** 2).sum((1, 2)),
                flux[:, start:stop], self.flux[stars, start:stop], self._of_window(stars, start, stop),
            )  # fmt: skip
        return chi2

    @property
    def _own_windows(self) -> Sequence[tuple[int, int]]:
        return () if self._taken is None or self.windows is None else self.windows

    def _of_window(self, stars: Tensor, start: int, stop: int) -> Tensor:
        assert self._taken is not None
        return self._taken[stars, :, start:stop]

    @property
    def n_absorbed(self) -> Tensor:
        """Number of coefficients of templates that the data of each star determine, (n,).

        By so much χ² of what `absorbed` leaves is smaller than the number of data. A coefficient of which the data tell
        nothing, such as one of a window without good pixels, does not count.
        """
        count = torch.zeros(self.n_stars, dtype=torch.float64, device=self.predictor.device)
        for root in self._roots:
            count += root.shape[-1] - torch.cholesky_inverse(root).diagonal(dim1=-2, dim2=-1).sum(-1)
        return count

    def absorbed(self, flux: Tensor, stars: Tensor) -> Tensor:
        """Return what the templates make of the difference between data and prediction: their most likely sum.

        Parameters
        ----------
        flux : Tensor, shape (m, n_pixels)
            As of `predict`.
        stars : Tensor of int, shape (m,)
            Which star each row belongs to.

        Returns
        -------
        Tensor, shape (m, n_pixels)
            0 without templates.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
        >>> slope, level = LinearPredictor([1.0, 1.0], [[1.0], [2.0]]), torch.ones(1, 1, 2)
        >>> parameters = Parameters.of_labels([0], [1], [0.9])
        >>> objective = Objective(slope, [1.5, 2.0], [1e4, 1e4], parameters, templates=level)
        >>> objective.absorbed(torch.tensor([[1.4, 1.9]]).double(), torch.tensor([0])).round(decimals=3)
        tensor([[0.1000, 0.1000]], dtype=torch.float64)
        """
        out = torch.zeros(flux.shape, dtype=self.flux.dtype, device=flux.device)

        def sum_of(flux: Tensor, data: Tensor, taken: Tensor, root: Tensor, templates: Tensor) -> Tensor:
            found = taken @ (data - flux)[..., None]
            coefficients = torch.linalg.solve_triangular(root.transpose(1, 2), found, upper=True)
            return (coefficients * templates).sum(1)

        for (start, stop), root in zip(self._own_windows, self._roots, strict=True):
            assert self.templates is not None
            parts = self.flux[stars, start:stop], self._of_window(stars, start, stop), root[stars]
            out[:, start:stop] = star_by_star(sum_of, flux[:, start:stop], *parts, self.templates[stars, :, start:stop])
        return out

    def _weighted(self, rows: Tensor, stars: Tensor, scale2: Tensor) -> Tensor:
        """Rows (m, k, n_pixels), times the inverse covariance of the data of their stars."""
        out = rows * (self.ivar[stars] / scale2[:, None])[:, None]
        for start, stop in self._own_windows:
            taken = self._of_window(stars, start, stop)
            out[..., start:stop] -= (rows[..., start:stop] @ taken.transpose(1, 2)) @ taken / scale2[:, None, None]
        return out

    def error_scale2(self, chi2: Tensor, stars: Tensor) -> Tensor:
        """Return the most likely factor on all variances of a star.

        Parameters
        ----------
        chi2 : Tensor, shape (m,)
            With the errors as quoted.
        stars : Tensor of int, shape (m,)
            Which star each row belongs to.

        Returns
        -------
        Tensor, shape (m,)
            1 if errors are right, χ² per degree of freedom where they are not.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
        >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
        >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
        >>> values, star = torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([0])
        >>> objective.error_scale2(torch.tensor([5.0]), star)
        tensor([1.], dtype=torch.float64)
        """
        ratio = chi2 / self.dof[stars]
        return {"quoted": torch.ones_like(ratio), "minimum": ratio.clamp(min=1.0), "unknown": ratio}[self.errors]

    def loss(self, flux: Tensor, values: Tensor, stars: Tensor) -> Tensor:
        """Return the negative log posterior within the bounds, of parameters and the flux that they lead to.

        Parameters
        ----------
        flux : Tensor, shape (m, n_pixels)
            As `predict` makes it of ``values``.
        values : Tensor, shape (m, k)
            Parameters, a row per spectrum.
        stars : Tensor of int, shape (m,)
            Which star each row belongs to.

        Returns
        -------
        Tensor, shape (m,)
            Up to a constant; χ²/2 if errors are right and the prior is flat.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
        >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
        >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
        >>> values, star = torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([0])
        >>> objective.loss(objective.predict(values, star), values, star)
        tensor([2.5000], dtype=torch.float64)
        """
        chi2, dof = self.chi2(flux, stars), self.dof[stars]
        scale2 = self.error_scale2(chi2, stars)
        # with the most likely scale put in: χ²/2 where it is 1, and the logarithm of χ² where it is free
        loss = 0.5 * (chi2 / scale2 + dof * torch.log(scale2))
        if self.prior is None:
            return loss
        return loss - star_by_star(self.prior.log_density, self.parameters.labels(values))

    def log_posterior(self, values: ArrayLike, star: int = 0) -> np.ndarray:
        """Return the log posterior of one star, for samplers.

        Parameters
        ----------
        values : array_like, shape (m, k) or (k,)
            Parameters, a row per position.
        star : int, optional
            Which star. Default: the first.

        Returns
        -------
        array, shape (m,)
            Up to a constant; −inf outside the bounds, of which the predictor
            is not asked, and for NaN.

        Examples
        --------
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
        >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
        >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
        >>> objective.log_posterior([[0.25], [-0.1]])
        array([-2.5, -inf])
        """
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
        """Predict the flux, with the exact gradient of the negative log posterior.

        Parameters
        ----------
        values : Tensor, shape (m, k)
            Parameters, a row per spectrum.
        stars : Tensor of int, shape (m,)
            Which star each row belongs to.

        Returns
        -------
        flux : Tensor, shape (m, n_pixels)
            As of `predict`.
        gradient : Tensor, shape (m, k)
            Of `loss`, by the parameters.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
        >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
        >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
        >>> values, star = torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([0])
        >>> objective.flux_and_gradient(values, star)[1]
        tensor([[-20.]], dtype=torch.float64)
        """

        def exact(values: Tensor, stars: Tensor) -> tuple[Tensor, Tensor]:
            labels = self.parameters.labels(values)
            flux, pull = self.predictor.pullback(labels, stars)
            scale2 = self.error_scale2(self.chi2(flux, stars), stars)
            gradient = pull(self._weighted((flux - self.flux[stars])[:, None], stars, scale2)[:, 0])
            if self.prior is not None:
                gradient = gradient - self.prior.derivatives(labels)[1]
            return flux, gradient @ self._matrix

        # one by one also because the graphs of many stars would fill the memory
        flux, gradient = star_by_star(exact, values, stars)
        return flux, gradient

    def loss_and_gradient(self, values: Tensor, stars: Tensor) -> tuple[Tensor, Tensor]:
        """Return the negative log posterior and its exact gradient.

        Parameters
        ----------
        values : Tensor, shape (m, k)
            Parameters, a row per spectrum.
        stars : Tensor of int, shape (m,)
            Which star each row belongs to.

        Returns
        -------
        loss : Tensor, shape (m,)
            As of `loss`.
        gradient : Tensor, shape (m, k)
            By the parameters.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
        >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
        >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
        >>> values, star = torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([0])
        >>> objective.loss_and_gradient(values, star)
        (tensor([2.5000], dtype=torch.float64), tensor([[-20.]], dtype=torch.float64))
        """
        flux, gradient = self.flux_and_gradient(values, stars)
        return self.loss(flux, values, stars), gradient

    def linearise(self, values: Tensor, stars: Tensor, *, coarse: bool = True) -> tuple[Tensor, Tensor]:
        """Predict the flux and its derivatives by the parameters.

        Parameters
        ----------
        values : Tensor, shape (m, k)
            Parameters, a row per spectrum.
        stars : Tensor of int, shape (m,)
            Which star each row belongs to.
        coarse : bool, optional
            Whether derivatives that are right to about 0.5 % will do, the
            default; see `Predictor.jacobian <cyclestarnet.fitting.predictor.Predictor.jacobian>`.

        Returns
        -------
        flux : Tensor, shape (m, n_pixels)
            As of `predict`.
        slopes : Tensor, shape (m, k, n_pixels)
            Float32 or float64, as the predictor has them.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
        >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
        >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
        >>> values, star = torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([0])
        >>> objective.linearise(values, star)[1]
        tensor([[[1., 2.]]], dtype=torch.float64)
        """
        flux, slopes = self.predictor.jacobian(self.parameters.labels(values), stars, coarse=coarse)
        return flux, self._of_parameters(slopes)

    def expected_slopes(self, values: Tensor) -> Tensor | None:
        """Return the derivatives that the predictor expects, without computing them.

        Parameters
        ----------
        values : Tensor, shape (m, k)
            Parameters, a row per spectrum.

        Returns
        -------
        Tensor, shape (m, k, n_pixels), or None
            None if the predictor expects nothing.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
        >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
        >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
        >>> objective.expected_slopes(torch.tensor([[0.25]])) is None  # a linear predictor computes them at once
        True
        """
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
        """Return loss, gradient and Hessian of the linearised problem.

        Parameters
        ----------
        values : Tensor, shape (m, k)
            Parameters, a row per spectrum.
        flux : Tensor, shape (m, n_pixels)
            As `linearise` makes it of ``values``.
        slopes : Tensor, shape (m, k, n_pixels)
            Likewise.
        stars : Tensor of int, shape (m,)
            Which star each row belongs to.

        Returns
        -------
        loss : Tensor, shape (m,)
            As of `loss`.
        gradient : Tensor, shape (m, k)
            As good as ``slopes``.
        hessian : Tensor, shape (m, k, k)
            Of Gauss and Newton: positive semi-definite, without second derivatives of the flux.

        Examples
        --------
        >>> import torch
        >>> from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
        >>> slope = LinearPredictor([1.0, 1.0], [[1.0], [2.0]])
        >>> objective = Objective(slope, [1.5, 2.0], [16.0, 16.0], Parameters.of_labels([0], [1], [0.9]))
        >>> values, star = torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([0])
        >>> loss, gradient, hessian = objective.normal_equations(values, *objective.linearise(values, star), star)
        >>> (values - gradient / hessian[:, 0]).numpy()  # a Newton step
        array([[0.5]])
        """
        labels, matrix = self.parameters.labels(values), self._matrix

        def products(
            slopes: Tensor, flux: Tensor, scale2: Tensor, labels: Tensor, stars: Tensor
        ) -> tuple[Tensor, Tensor]:
            slopes = slopes.double()
            weighted = self._weighted(slopes, stars, scale2)
            gradient = (weighted @ (flux - self.flux[stars])[..., None])[..., 0]
            hessian = weighted @ slopes.transpose(1, 2)
            if self.prior is None:
                return gradient, hessian
            _, slope, curvature = self.prior.derivatives(labels)
            return gradient - slope @ matrix, hessian + matrix.T @ curvature @ matrix

        scale2 = self.error_scale2(self.chi2(flux, stars), stars)
        gradient, hessian = star_by_star(products, slopes, flux, scale2, labels, stars)
        return self.loss(flux, values, stars), gradient, hessian

    @property
    def _matrix(self) -> Tensor:
        return torch.as_tensor(self.parameters.matrix, dtype=torch.float64, device=self.predictor.device)
