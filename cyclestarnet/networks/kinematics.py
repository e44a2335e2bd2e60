"""Radial velocity and extra Gaussian broadening of model spectra, differentiable.

On pixels that are even in the logarithm of the wavelength both are
convolutions: a product with exp(-iωs - (ωσ)²/2) in Fourier space, where the
shift s and the width σ are in pixels. This is exact for spectra without power
beyond the Nyquist frequency; APOGEE's line-spread function leaves 1e-4 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from cyclestarnet.exceptions import GridError
from cyclestarnet.grid import SPEED_OF_LIGHT

__all__ = ["Kinematics"]

REACH = 1000.0  # km/s; padding keeps what is moved less than this from coming back at the other end
BLEND = 64  # pixels, at least, on which the padding passes from one edge's flux to the other's


class Kinematics:
    """Shifts and broadens normalised spectra, each chip on its own.

    Beyond the edges of a chip its flux is taken to stay what it is there.
    Pixels to which a velocity brings that flux (``velocity`` divided by the
    width of a pixel of them, plus about three times the broadening) are a
    guess, and better not fitted.

    Parameters
    ----------
    wavelength : array, shape (n_pixels,)
        In any unit of length; evenly spaced in its logarithm on each chip.
    chips : sequence of (int, int)
        Half-open pixel ranges that tile the pixels, as
        `~cyclestarnet.WavelengthGrid` has them.

    Raises
    ------
    GridError
        If a step of ln(wavelength) is 0.1 % away from the mean step of its chip.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from cyclestarnet.networks.kinematics import Kinematics
    >>> wavelength = 15000 * np.exp(1e-5 * np.arange(300))  # 3 km/s per pixel
    >>> flux = torch.ones(1, 300)
    >>> flux[0, 100] = 0.5
    >>> moved = Kinematics(wavelength, [(0, 300)]).apply(flux, torch.tensor([30.0]), torch.tensor([6.0]))
    >>> moved.argmin().item()
    110
    """

    def __init__(self, wavelength: np.ndarray, chips: Sequence[tuple[int, int]]):
        log_wavelength = np.log(np.asarray(wavelength, dtype=float))
        self.n_pixels = len(log_wavelength)
        self._chips = [_Chip.of(log_wavelength, start, stop) for start, stop in chips]

    def apply(self, flux: Tensor, velocity: Tensor, broadening: Tensor) -> Tensor:
        """Shift and broaden spectra.

        Parameters
        ----------
        flux : Tensor, shape (n, n_pixels)
            Normalised; float32 or float64.
        velocity : Tensor, shape (n,)
            km/s; positive moves lines to the red, by a factor 1 + velocity/c.
        broadening : Tensor, shape (n,)
            σ of the Gaussian in km/s; 0 = none. It acts by its square, so
            that the derivative at 0 is 0: a fit must not start there.

        Returns
        -------
        Tensor, shape (n, n_pixels)
            In the precision of ``flux``. Differentiable.

        Raises
        ------
        ValueError
            If the size of a velocity and 5 times its broadening make more than 1000 km/s.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from cyclestarnet.networks import Kinematics
        >>> kinematics = Kinematics(15000 * np.exp(1e-5 * np.arange(300)), [(0, 150), (150, 300)])
        >>> flux = torch.rand(2, 300)
        >>> at_rest = kinematics.apply(flux, torch.zeros(2), torch.zeros(2))
        >>> torch.allclose(at_rest, flux, atol=1e-5)
        True
        """
        _check_reach(velocity, broadening)
        return torch.cat(
            [chip.pixels(chip.waves(flux) * chip.transfer(velocity, broadening, flux)) for chip in self._chips], dim=-1
        )

    def linearise(self, flux: Tensor, slopes: Tensor, velocity: Tensor, broadening: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and broaden spectra and their derivatives, and append those by velocity and broadening.

        Parameters
        ----------
        flux : Tensor, shape (n, n_pixels)
            As in `apply`.
        slopes : Tensor, shape (n, n_labels, n_pixels)
            ∂flux/∂labels at rest.
        velocity : Tensor, shape (n,)
            As in `apply`.
        broadening : Tensor, shape (n,)
            As in `apply`.

        Returns
        -------
        flux : Tensor, shape (n, n_pixels)
        slopes : Tensor, shape (n, n_labels + 2, n_pixels)
            ∂flux/∂labels, then ∂flux/∂velocity and ∂flux/∂broadening, per km/s.

        Raises
        ------
        ValueError
            As in `apply`.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from cyclestarnet.networks import Kinematics
        >>> kinematics = Kinematics(15000 * np.exp(1e-5 * np.arange(300)), [(0, 300)])
        >>> flux, slopes = torch.rand(1, 300), torch.rand(1, 4, 300)
        >>> moved, moved_slopes = kinematics.linearise(flux, slopes, torch.tensor([30.0]), torch.tensor([6.0]))
        >>> moved_slopes.shape
        torch.Size([1, 6, 300])
        """
        _check_reach(velocity, broadening)
        both = torch.cat([flux[:, None], slopes], dim=1)  # the operation is linear: derivatives pass as flux does
        parts = []
        for chip in self._chips:
            waves = chip.waves(both) * chip.transfer(velocity, broadening, flux)[:, None]
            factors = chip.derivative_factors(velocity, broadening, flux)
            parts.append(chip.pixels(torch.cat([waves, waves[:, :1] * factors], dim=1)))
        joined = torch.cat(parts, dim=-1)
        return joined[:, 0], joined[:, 1:]


@dataclass(frozen=True)
class _Chip:
    """Pixels ``start`` to ``stop``, ``step`` apart in ln(wavelength), and their padding."""

    start: int
    stop: int
    step: float
    n_hold: int
    n_padded: int

    @classmethod
    def of(cls, log_wavelength: np.ndarray, start: int, stop: int) -> _Chip:
        steps = np.diff(log_wavelength[start:stop])
        step = steps.mean()
        if not np.abs(steps - step).max() <= 1e-3 * step:
            raise GridError(
                f"the pixels {start} to {stop} are not evenly spaced in ln(wavelength): steps are between "
                f"{steps.min():.6g} and {steps.max():.6g}; to fit velocity or broadening the grid of a model "
                "must be logarithmic on each chip"
            )
        n_hold = math.ceil(REACH / (SPEED_OF_LIGHT * step))
        n_padded = next_fast_len(stop - start + 2 * n_hold + BLEND, real=True)
        return cls(start, stop, float(step), n_hold, n_padded)

    def waves(self, flux: Tensor) -> Tensor:
        """Fourier transform of the padded chip of flux (..., n_pixels)."""
        chip = flux[..., self.start : self.stop]
        # The transform is periodic: hold the red edge's flux, pass over to the blue edge's without a kink, hold that.
        n_pad = self.n_padded - (self.stop - self.start)
        place = torch.arange(n_pad, device=flux.device, dtype=flux.dtype) - self.n_hold
        towards_blue = torch.sin(0.5 * math.pi * (place / (n_pad - 2 * self.n_hold)).clamp(0, 1)) ** 2
        red, blue = chip[..., -1:], chip[..., :1]
        return torch.fft.rfft(torch.cat([chip, red + (blue - red) * towards_blue], dim=-1))

    def pixels(self, waves: Tensor) -> Tensor:
        """Flux of the chip, the inverse of `waves`."""
        return torch.fft.irfft(waves, n=self.n_padded)[..., : self.stop - self.start]

    def _frequencies(self, like: Tensor) -> Tensor:
        """ω in radians per pixel."""
        n = torch.arange(self.n_padded // 2 + 1, device=like.device, dtype=like.dtype)
        return n * (2 * math.pi / self.n_padded)

    def transfer(self, velocity: Tensor, broadening: Tensor, flux: Tensor) -> Tensor:
        """exp(-iωs - (ωσ)²/2) of each spectrum, (n, n_frequencies)."""
        frequency = self._frequencies(velocity)
        phase = (torch.log1p(velocity / SPEED_OF_LIGHT) / self.step)[:, None] * frequency
        width = broadening[:, None] / (SPEED_OF_LIGHT * self.step)
        gain = torch.exp(-0.5 * (width * frequency) ** 2)
        return torch.complex(gain * phase.cos(), -gain * phase.sin()).to(flux.dtype.to_complex())

    def derivative_factors(self, velocity: Tensor, broadening: Tensor, flux: Tensor) -> Tensor:
        """∂ln(transfer) by velocity and by broadening, (n, 2, n_frequencies)."""
        frequency = self._frequencies(velocity)
        shift_slope = 1 / (self.step * (SPEED_OF_LIGHT + velocity))
        width_slope = broadening / (SPEED_OF_LIGHT * self.step) ** 2
        by_velocity = torch.complex(torch.zeros_like(frequency), -frequency) * shift_slope[:, None]
        by_broadening = -(frequency**2) * width_slope[:, None]
        return torch.stack([by_velocity, by_broadening.to(by_velocity.dtype)], dim=1).to(flux.dtype.to_complex())


def _check_reach(velocity: Tensor, broadening: Tensor) -> None:
    far = velocity.abs() + 5 * broadening.abs() > REACH  # not so for NaN: one bad star must not stop a batch
    if far.any():
        k = int(far.nonzero()[0])
        raise ValueError(
            f"|velocity| + 5 broadening must be at most {REACH:g} km/s, but spectrum {k} has a velocity of "
            f"{float(velocity[k]):g} and a broadening of {float(broadening[k]):g} km/s; "
            "shift the spectrum to about its rest frame first"
        )
