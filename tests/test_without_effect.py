"""Arguments that would have no effect are refused in words."""

import pickle

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

from cyclestarnet import LabelSet
from cyclestarnet.exceptions import FileFormatError, LabelError
from cyclestarnet.io import read_aspcapstar, write_training_set
from cyclestarnet.pipeline import FitOptions, FitSetup
from cyclestarnet.spectra import to_spectrum

LABELS = LabelSet(
    ["teff", "mg_h", "si_h", "fe_h"], [3500, -2, -2, -2], [6000, 1, 1, 1],
    {"m_h": {"fe_h": 1}, "alpha_m": {"mg_h": 0.5, "si_h": 0.5, "fe_h": -1}},
)  # fmt: skip
VALUES = [4500, 0.1, 0.3, -0.2]


def test_combinations_that_follow_are_taken():
    np.testing.assert_allclose(LABELS.to_array(LABELS.to_quantities(VALUES)), VALUES)
    np.testing.assert_allclose(LABELS.to_array(dict(LABELS.to_quantities(VALUES))), VALUES)


@pytest.mark.parametrize("change", [{"m_h": 0.1}, {"alpha_m": 0.1 * u.dex}, {"m_h": -0.201}, {"fe_h": 0, "m_h": 0.1}])
def test_combinations_that_say_something_else_are_refused(change):
    labels = LABELS.to_quantities(VALUES)
    with pytest.raises(LabelError, match=r"Label '(m_h|alpha_m)' = .* follows from .*, which give .*; leave"):
        LABELS.to_array(labels | change)


@pytest.mark.parametrize(
    "join",
    [
        lambda labels, new: labels | new,
        lambda labels, new: {**labels, **new},
        lambda labels, new: dict(reversed(labels.items())) | new,
        lambda labels, new: pickle.loads(pickle.dumps(labels)) | new,
    ],
)
def test_combinations_that_came_with_the_labels_do_not_hinder_a_change(join):
    joined = join(LABELS.to_quantities(VALUES), {"fe_h": 0.1})
    np.testing.assert_allclose(LABELS.to_array(joined), [4500, 0.1, 0.3, 0.1])
    assert LABELS.to_array(join(LABELS.to_quantities(VALUES), {"fe_h": [0.1, 0.2]})).shape == (2, 4)


def test_combination_of_another_star_is_refused():
    other = LABELS.to_quantities([4600, 0.2, 0.2, 0.5])
    with pytest.raises(LabelError, match=r"'m_h' = 0\.5 dex follows from fe_h, which give -0\.2 dex"):
        LABELS.to_array(LABELS.to_quantities(VALUES) | {"m_h": other["m_h"]})
    labels = LABELS.to_quantities(VALUES)
    labels["m_h"] += 0.1 * u.dex
    with pytest.raises(LabelError, match="'m_h'"):
        LABELS.to_array(labels | {"m_h": labels["m_h"] + 0.1 * u.dex})


def test_combination_without_its_members_is_refused():
    with pytest.raises(LabelError, match="'m_h' is a combination of fe_h, and does not tell each of them; give fe_h"):
        LABELS.known({"m_h": 0.1})


def test_stale_combination_of_a_plain_dictionary_names_the_row():
    labels = dict(LABELS.to_quantities([VALUES, VALUES])) | {"m_h": [-0.2, 0.4]}
    with pytest.raises(LabelError, match=r"'m_h' = 0\.4 dex .* in row 1;"):
        LABELS.to_array(labels)


def test_tables_may_round_their_combinations_but_not_contradict():
    table = QTable({name: np.round(q, 2) for name, q in LABELS.to_quantities([[4500, 0.1, 0.3, -0.2]]).items()})
    assert LABELS.to_array(table).shape == (1, 4)
    table["m_h"] = np.nan * u.dex  # not known
    assert LABELS.to_array(table).shape == (1, 4)
    table["m_h"] = 0.1 * u.dex
    with pytest.raises(LabelError, match=r"'m_h' = 0\.1 dex follows from"):
        LABELS.to_array(table)


def test_prediction_refuses_a_combination(pretrained):
    labels = pretrained.labels.to_quantities(pretrained.prior.mean)
    with pytest.raises(LabelError, match=r"'m_h' = 0\.1 dex follows from fe_h"):
        pretrained.predict(labels | {"m_h": 0.1})
    moved, still = (pretrained.predict(some).flux.value for some in (labels | {"fe_h": 0.1}, labels))
    assert np.abs(moved - still).max() > 0.001


@pytest.mark.parametrize("start", [{"m_h": 0.1}, {"alpha_m": 0.1, "teff": 4500 * u.K}])
def test_start_of_a_combination_is_refused(pretrained, start):
    with pytest.raises(LabelError, match="is a combination of"):
        FitSetup.of(pretrained, FitOptions(start=start))


@pytest.mark.parametrize("space", ["emulator", "synthetic"])
@pytest.mark.parametrize("choice", ["typical", "fitted"])
def test_split_latent_of_other_spaces_is_refused(space, choice):
    with pytest.raises(ValueError, match=f"split_latent='{choice}' has no effect with space='{space}'"):
        FitOptions(space=space, split_latent=choice)


def test_like_of_the_synthetic_domain_is_refused(pretrained):
    labels = pretrained.labels.to_quantities(pretrained.prior.mean)
    like = to_spectrum(np.ones(7167), pretrained.grid, ivar=np.full(7167, 1e4))
    for make in (pretrained.predict, lambda *a, **k: pretrained.derivative_spectrum(*a, "teff", **k)):
        with pytest.raises(ValueError, match="like has no effect: the synthetic domain"):
            make(labels, domain="synthetic", like=like)


def test_bounds_of_fixed_labels_are_refused(pretrained):
    options = FitOptions(fixed={"logg": 2.0}, bounds={"logg": (1.0, 3.0)})
    with pytest.raises(LabelError, match=r"bounds of \['logg'\] have no effect"):
        FitSetup.of(pretrained, options)


def test_bits_for_spectra_in_memory_are_refused(tmp_path, pretrained):
    star = to_spectrum(np.ones(7167), pretrained.grid, ivar=np.full(7167, 1e4))
    with pytest.raises(TypeError, match="mask_bits choose what is masked of files, but spectrum 0 is in memory"):
        write_training_set(tmp_path / "a.h5", [star], grid=pretrained.grid, mask_bits=["BADPIX"], progress=False)
    assert not (tmp_path / "a.h5").exists()


def test_bits_for_a_file_without_any_are_refused():
    header = fits.Header({"CRVAL1": 4.179, "CDELT1": 6e-6})
    images = [fits.ImageHDU(value * np.ones(100), header) for value in (1.0, 0.01, 0.99)]
    with pytest.raises(FileFormatError, match="has no bits of pixels, so that mask_bits has no effect"):
        read_aspcapstar(fits.HDUList([fits.PrimaryHDU(), *images]), mask_bits=["BADPIX"])
    assert read_aspcapstar(fits.HDUList([fits.PrimaryHDU(), *images]), mask_bits=[]).meta["bitmask"] is None
