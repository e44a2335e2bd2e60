"""Signs that a spectrum is not of the kind that a model knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cyclestarnet.grid import SPEED_OF_LIGHT

__all__ = ["ShiftSearch", "continuum_misfit", "local_misfit"]

WINDOW, STRETCH = 30, 200  # pixels: a wide line, and what no line fills

COARSE = 4  # fine steps in a coarse one, which is still less than the width of APOGEE's lines


class ShiftSearch:
    """Finds shifts of lines against one template, for many spectra on the same pixels.

    Shifted templates are computed once; a spectrum then costs two products with them.

    Parameters
    ----------
    wavelength : array, shape (n_pixels,)
        In any unit, rising.
    template : array, shape (n_pixels,)
        Normalised flux at rest.
    limit : float, optional
        Largest velocity of the search, in km/s, in either direction.
    step : float, optional
        Step of the search, in km/s; a parabola through the best three says where between steps.
    reach : float, optional
        The search goes on to this velocity, in km/s, in steps four times as wide. Default: it does not.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.pipeline.diagnostics import ShiftSearch
    >>> wavelength = np.linspace(15200, 15300, 1000)
    >>> line = lambda centre: 1 - 0.3 * np.exp(-0.5 * ((wavelength - centre) / 0.3) ** 2)
    >>> search = ShiftSearch(wavelength, line(15250.0))
    >>> [round(search(line(centre), np.full(1000, 1e4))[0]) for centre in (15250.0, 15252.0)]
    [0, 39]
    """

    def __init__(
        self,
        wavelength: np.ndarray,
        template: np.ndarray,
        *,
        limit: float = 150.0,
        step: float = 3.0,
        reach: float | None = None,
    ):
        near = step * np.arange(int(limit / step) + 1)
        far = np.arange(near[-1] + COARSE * step, reach or 0.0, COARSE * step)
        positive = np.concatenate([near, far])
        self.velocities = np.concatenate([-positive[:0:-1], positive])
        self._wavelength, self._step = wavelength, step
        self._template = np.asarray(template, dtype=float) - np.mean(template)  # small numbers, or squares lose digits
        self._shifted = self._at(self.velocities)
        self._squares = self._shifted**2

    def __call__(self, flux: np.ndarray, ivar: np.ndarray) -> tuple[float, float]:
        """Find the velocity by which the lines of a spectrum are shifted against the template.

        Parameters
        ----------
        flux : array, shape (n_pixels,)
            Normalised flux of the spectrum.
        ivar : array, shape (n_pixels,)
            Its inverse variance; pixels where it is 0 are not used.

        Returns
        -------
        velocity : float
            In km/s, positive towards the red; 0 where no shift correlates clearly better than none.
        correlation : float
            Correlation coefficient at that shift.

        Examples
        --------
        ::

            velocity, correlation = search(pixels.flux, pixels.ivar)
        """
        good = ivar > 0
        weight = good / max(good.sum(), 1)
        data = np.where(good, flux, 1.0).clip(0, 1.3)
        data = (data - data @ weight) * good
        values = _correlations(self._shifted, self._squares, data, weight)
        rest, best = len(values) // 2, int(values.argmax())
        if values[best] < 0.3 or values[best] < values[rest] + 0.05:
            return 0.0, float(values[rest])
        velocity = self.velocities[best]
        if not 0 < best < len(values) - 1:
            return float(velocity), float(values[best])
        if max(self.velocities[best + 1] - velocity, velocity - self.velocities[best - 1]) > 1.5 * self._step:
            velocities = velocity + self._step * np.arange(-COARSE, COARSE + 1)  # the steps there are wide
            rows = self._at(velocities)
            values = _correlations(rows, rows**2, data, weight)
            best = int(values.argmax().clip(1, len(values) - 2))
            velocity = velocities[best]
        below, at, above = values[best - 1 : best + 2]  # a parabola through the three highest
        return float(velocity + self._step * 0.5 * (below - above) / (below - 2 * at + above)), float(at)

    def _at(self, velocities: np.ndarray) -> np.ndarray:
        """The template at some velocities, (n_velocities, n_pixels)."""
        moved = (self._wavelength * (1 + v / SPEED_OF_LIGHT) for v in velocities)
        return np.array([np.interp(self._wavelength, wavelength, self._template) for wavelength in moved])


def _correlations(rows: np.ndarray, squares: np.ndarray, data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Correlation coefficients of rows with data, which have no mean."""
    variance = _products(squares, weight) - _products(rows, weight) ** 2
    return _products(rows, data) / np.sqrt((data @ data) * variance * (weight > 0).sum() + 1e-300)


def _products(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Matrix times vector, without the threads of a BLAS library, which cost more than they gain here."""
    return np.einsum("vp,p->v", rows, vector)


def local_misfit(residual: np.ndarray, ivar: np.ndarray) -> tuple[float, int]:
    """Tell how much worse the worst stretch of a spectrum fits than the rest of it.

    Emission, a cosmic ray, an unmasked sky line or a feature that a model
    lacks is a run of pixels that χ² of the whole spectrum hardly notices.

    Parameters
    ----------
    residual, ivar : array, shape (n_pixels,)
        Data − model and its inverse variance, model scatter included; pixels of inverse variance 0 are not used.

    Returns
    -------
    value : float
        Largest mean of squared residuals over 30 neighbouring pixels, in units
        of their variance; where the whole spectrum is worse than its errors,
        those are enlarged first. About 5 for a good fit of 7000 pixels.
    pixel : int
        Middle of these 30.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.pipeline.diagnostics import local_misfit
    >>> residual = np.random.default_rng(0).normal(0, 0.01, 1000)
    >>> residual[400:410] += 0.1
    >>> value, pixel = local_misfit(residual, np.full(1000, 1e4))
    >>> round(value), 390 < pixel < 420
    (35, True)
    """
    square = _relative(residual, ivar) ** 2
    size = min(WINDOW, len(square))
    means = np.convolve(square, np.full(size, 1 / size), "valid")
    worst = int(means.argmax())
    return float(means[worst]), worst + size // 2


def continuum_misfit(residual: np.ndarray, ivar: np.ndarray, chips: Sequence[tuple[int, int]]) -> float:
    """Tell whether wide stretches of a spectrum lie above or below the model as a whole.

    Lines go up and down; a wrong continuum moves all pixels of a stretch
    together. Medians over 200 pixels do not see lines, emission or cosmic rays.

    Parameters
    ----------
    residual, ivar : array, shape (n_pixels,)
        As for `local_misfit`.
    chips : sequence of (int, int)
        Pixel ranges of the detectors.

    Returns
    -------
    float
        Root mean square of the medians of a chip's stretches, in units of the
        errors of single pixels, enlarged as for `local_misfit`; of the chip where it is largest.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.pipeline.diagnostics import continuum_misfit
    >>> noise = np.random.default_rng(0).normal(0, 0.01, 2000)
    >>> slope = np.linspace(-0.03, 0.03, 2000)
    >>> [round(continuum_misfit(r, np.full(2000, 1e4), [(0, 2000)]), 1) for r in (noise, noise + slope)]
    [0.1, 0.8]
    """
    relative, good = _relative(residual, ivar), ivar > 0
    largest = 0.0
    for start, stop in chips:
        stretches = np.array_split(np.arange(start, stop), max(1, round((stop - start) / STRETCH)))
        used = [stretch[good[stretch]] for stretch in stretches]
        medians = [np.median(relative[u]) for u, s in zip(used, stretches, strict=True) if 3 * len(u) >= len(s)]
        if medians:
            largest = max(largest, float(np.sqrt(np.mean(np.square(medians)))))
    return largest


def _relative(residual, ivar):
    """Residuals in units of their errors, or of what half of them stays within, if that is more; 0 where not used."""
    good = ivar > 0
    relative = np.where(good, residual, 0.0) * np.sqrt(ivar)
    if not good.any():
        return relative
    return relative / max(1.0, float(np.median(np.abs(relative[good]))) / 0.6745)  # 0.6745: of a Gaussian
