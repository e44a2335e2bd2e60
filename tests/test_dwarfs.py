"""The embedded model of dwarfs: it knows real dwarfs, and each model flags the other's stars."""

import sys
from importlib import resources

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty
from scripts import load_script

from cyclestarnet import CalibratedModel, FitFlag
from cyclestarnet.grid import apogee_grid
from cyclestarnet.io import read_apstar
from cyclestarnet.spectra import Spectrum

ARTEFACT = [(15233, 15239) * u.AA]  # of the K dwarf, 50 % deep and not flagged
NOT_MINE = FitFlag.POOR_FIT | FitFlag.UNFAMILIAR | FitFlag.OUTSIDE_TRAINING | FitFlag.AT_BOUND


@pytest.fixture(scope="module")
def dwarfs():
    return CalibratedModel.from_pretrained("apogee-dwarfs")


def test_file_is_small_and_says_what_it_rests_on(dwarfs):
    file = resources.files("cyclestarnet.data") / "apogee-dwarfs.safetensors"
    assert len(file.read_bytes()) <= 16e6
    assert dwarfs.name == "apogee-dwarfs"
    assert "Not real spectra" in dwarfs.provenance["observed domain"]
    assert dwarfs.provenance["anchors"].startswith("none")


def test_only_labels_of_known_truth_have_a_hidden_error(dwarfs):
    """Of the others nothing can be learnt: an error that looked learnt would be made up."""
    known = [dwarfs.labels.index(name) for name in ("teff", "logg", "fe_h", "mg_h")]
    hidden = np.diag(dwarfs.noise.label_error)
    assert np.all(hidden[known] > 0)
    assert np.all(np.delete(hidden, known) == 0)


def test_a_real_giant_is_none_of_its_stars(dwarfs, k_giant):
    fit = dwarfs.fit(k_giant, method="lm")
    assert "logg" in fit.meta["outside_training"]
    assert FitFlag.OUTSIDE_TRAINING in fit.flags


# -- with data that do not ship ----------------------------------------------------
@pytest.fixture(scope="module")
def k_dwarf(shared):
    return read_apstar(shared / "data" / "apogee" / "real" / "apStar-dr17-2M19485057+5005279.fits")


@pytest.mark.needs_shared
def test_k_dwarf_agrees_with_a_network_of_real_dwarfs(dwarfs, pretrained, k_dwarf):
    # The network of binspec gives 4929 K, 4.64, -0.29 and -0.09 for the same pixels.
    result, untranslated, giant = (
        model.fit(k_dwarf, space=space, ignore=ARTEFACT, method="lm")
        for model, space in ((dwarfs, "observed"), (dwarfs, "emulator"), (pretrained, "observed"))
    )
    reference = {"teff": (4929, 120), "logg": (4.64, 0.15), "fe_h": (-0.29, 0.1), "mg_h": (-0.09, 0.12)}
    for name, (value, allowed) in reference.items():
        assert abs(result.labels[name].value - value) < allowed, name
    assert result.flags == FitFlag(0)
    assert result.reduced_chi2 < untranslated.reduced_chi2 / 4
    assert giant.reduced_chi2 > 1.3 * result.reduced_chi2


@pytest.mark.needs_shared
def test_spectra_of_a_network_of_real_dwarfs_come_back_at_their_labels(dwarfs, shared, monkeypatch, rng):
    """The network is that of the training; neither its labels nor these spectra were shown to the model."""
    monkeypatch.setattr(sys, "path", [str(shared / "tools"), *sys.path])
    data = load_script("recipes/apogee_dwarfs_data.py")
    truth = np.array([[4600, 4.62, -0.2, 0.1, 5], [5200, 4.52, 0.0, 0.0, 6], [5800, 4.35, -0.4, 0.15, 7]])
    clean = data.DwarfNetwork(shared, 0.0)(truth)
    grid, sigma = apogee_grid(clean.shape[1]), np.full(clean.shape[1], 0.01)
    for flux, (teff, logg, fe_h, mg_fe, _) in zip(clean, truth, strict=True):
        noisy = (flux + sigma * rng.standard_normal(len(sigma))) * u.one
        star = Spectrum(flux=noisy, spectral_axis=grid.wavelength, uncertainty=StdDevUncertainty(sigma))
        result = dwarfs.fit(star, method="lm")
        for name, value in {"teff": teff, "logg": logg, "fe_h": fe_h, "mg_h": fe_h + mg_fe}.items():
            error = result.uncertainties[name].value
            assert abs(result.labels[name].value - value) < 3.5 * error, (name, teff)
        assert not result.flags & NOT_MINE


@pytest.mark.needs_shared
def test_the_model_of_giants_flags_a_dwarf(pretrained, k_dwarf):
    fit = pretrained.fit(k_dwarf, method="lm", ignore=ARTEFACT)
    assert "logg" in fit.meta["outside_training"]
    assert FitFlag.OUTSIDE_TRAINING in fit.flags
