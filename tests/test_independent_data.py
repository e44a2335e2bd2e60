"""Degrees of freedom of spectra that are coarser than the model: simulated stars with known noise."""

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.nddata import StdDevUncertainty
from stars import STAR

from cyclestarnet import FitFlag, FitWarning, SpectrumError
from cyclestarnet.fitting import LinearPredictor, Objective, Parameters
from cyclestarnet.spectra import Spectrum

pytestmark = pytest.mark.filterwarnings("ignore:UNFAMILIAR:cyclestarnet.FitWarning")

EMULATOR = {"space": "emulator", "method": "lm", "normalise": False}
NOISE = 0.12  # far above what pixels that have no slope get wrong
COARSE = 3  # pixels of the model in one of the data


def averaged(model, rng, *, size=COARSE, noise=NOISE, ripple=0.0, domain="synthetic"):
    """A star of which each pixel is the mean of several of the model, with noise; the last ones of a chip are lost."""
    wavelength, flux = [], []
    for start, stop in model.grid.chips:
        stop -= (stop - start) % size
        wavelength.append(model.grid.wavelength.value[start:stop].reshape(-1, size).mean(1))
        flux.append(model.predict(STAR, domain=domain).flux.value[start:stop].reshape(-1, size).mean(1))
    wavelength, flux = np.concatenate(wavelength), np.concatenate(flux)
    flux = flux + rng.normal(0, noise, len(flux)) + ripple * (-1) ** np.arange(len(flux))
    error = StdDevUncertainty(np.full(len(flux), noise))
    return Spectrum(flux=flux * u.one, spectral_axis=wavelength * u.AA, uncertainty=error)


def test_chi2_of_noise_is_one_per_degree_of_freedom_on_any_grid(tiny_model):
    rng = np.random.default_rng(7)
    for size, noise in ((1, 0.02), (COARSE, NOISE)):
        stars = [averaged(tiny_model, rng, size=size, noise=noise) for _ in range(12)]
        fits = [tiny_model.fit(star, prior=None, **EMULATOR) for star in stars]
        n = sum((stop - start) // size for start, stop in tiny_model.grid.chips)
        assert {fit.dof for fit in fits} == {n - 3}
        spread = np.sqrt(2 / (n * len(fits)))
        for name in ("reduced_chi2", "reduced_chi2_total"):
            mean = np.mean([getattr(fit, name) for fit in fits])
            assert abs(mean - 1) < 4 * spread + 0.06, (size, name)
        assert not any(fit.flags & FitFlag.POOR_FIT for fit in fits)


def test_a_coarse_star_that_does_not_fit_is_a_poor_fit(tiny_model):
    """χ² of 4 per datum, and of 4/3 per pixel of the model, of which 2 would be poor."""
    star = averaged(tiny_model, np.random.default_rng(8), ripple=np.sqrt(3) * NOISE, domain="observed")
    with pytest.warns(FitWarning, match="POOR_FIT"):
        result = tiny_model.fit(star, method="lm", normalise=False)
    assert result.flags & FitFlag.POOR_FIT
    assert result.reduced_chi2_total == pytest.approx(4, rel=0.3)
    assert result.meta["error_scale"] == pytest.approx(np.sqrt(result.reduced_chi2_total), rel=0.05)


def test_errors_of_a_coarse_star_are_those_of_its_data(tiny_model):
    """As of a star on the model's pixels with the same information."""
    rng = np.random.default_rng(9)
    coarse = tiny_model.fit(averaged(tiny_model, rng), **EMULATOR)
    fine = tiny_model.fit(averaged(tiny_model, rng, size=1, noise=NOISE * np.sqrt(COARSE)), **EMULATOR)
    for name in ("teff", "logg", "mg_h"):
        assert coarse.uncertainties[name].value == pytest.approx(fine.uncertainties[name].value, rel=0.3)


def test_few_coarse_data_are_too_few_for_the_parameters(tiny_model):
    star = averaged(tiny_model, np.random.default_rng(10), size=150)  # one in each chip
    with pytest.raises(SpectrumError, match="2 good pixels are left, too few for 3 parameters"):
        tiny_model.fit(star, **EMULATOR)


def test_common_factors_of_errors_count_independent_data():
    slope, one = LinearPredictor(np.ones(12), np.ones((12, 1))), Parameters.of_labels([0], [1], [0.5])
    objective = Objective(slope, np.ones(12), np.ones(12), one, errors="unknown", n_data=[4.0])
    assert objective.error_scale2(torch.tensor([6.0]), torch.tensor([0])).tolist() == [2.0]  # 6 / (4 - 1)
