"""Masked, blank and null cells: NaN, an ignored pixel, or an error that names the row; never the value behind them."""

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked

from cyclestarnet import ContinuumRecipe, LabelSet, NoiseModel, WavelengthGrid
from cyclestarnet.blanks import bools_of, floats_of, mask_of
from cyclestarnet.exceptions import GridError, LabelError
from cyclestarnet.io import TrainingSet, write_training_set
from cyclestarnet.lines import as_line_list, match_lines
from cyclestarnet.networks import train_emulator
from cyclestarnet.spectra import Pixels, Spectrum, to_pixels, to_spectrum
from cyclestarnet.training import read_labels
from cyclestarnet.training.alignment import mmd
from cyclestarnet.training.evaluation import compare_labels
from cyclestarnet.training.tables import ArrayTable

BEHIND = 777.0  # what no result may ever show
LABELS = LabelSet(["teff", "mg_h"], [3500, -2], [6000, 1])
GRID = WavelengthGrid(np.linspace(15000, 15020, 101) * u.AA)


def hidden(values, masked):
    values = np.array(values, dtype=float)
    values[masked] = BEHIND
    return np.ma.array(values, mask=masked)


MASK = np.array([False, True, False])
KINDS = {
    "numpy": lambda v: hidden(v, MASK),
    "column": lambda v: MaskedColumn(hidden(v, MASK)),
    "column with unit": lambda v: MaskedColumn(hidden(v, MASK), unit="km / s"),
    "astropy": lambda v: Masked(hidden(v, MASK).data, mask=MASK),
    "quantity": lambda v: Masked(hidden(v, MASK).data * u.dex, mask=MASK),
    "integers": lambda v: np.ma.array(np.where(MASK, 999999, v).astype(int), mask=MASK),
    "list": lambda v: [v[0], np.ma.masked, v[2]],
    "list with None": lambda v: [v[0], None, v[2]],
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_cells_without_a_value_are_not_a_number(kind):
    np.testing.assert_array_equal(floats_of(kind([1.0, 2.0, 3.0])), [1, np.nan, 3])


def test_rows_of_a_list_keep_their_masks():
    rows = [hidden([1.0, 2.0, 3.0], MASK), np.array([4.0, 5.0, 6.0])]
    np.testing.assert_array_equal(floats_of(rows), [[1, np.nan, 3], [4, 5, 6]])
    np.testing.assert_array_equal(mask_of(rows), [MASK, ~MASK & False])


def test_pandas_has_no_mask_but_nulls():
    pandas = pytest.importorskip("pandas")
    np.testing.assert_array_equal(floats_of(pandas.Series([1, None, 3], dtype="Int64")), [1, np.nan, 3])
    assert LABELS.value("mg_h", pandas.Series([0.1, 0.2])).tolist() == [0.1, 0.2]


def test_what_is_not_masked_is_not_copied():
    values = np.ones(3)
    assert floats_of(values) is values


# -- labels ------------------------------------------------------------------
def write_csv(path):
    path.write_text("teff,mg_h\n4500,0.1\n4600,\n4700,0.3\n")


def write_ecsv(path):
    QTable({"teff": [4500, 4600, 4700] * u.K, "mg_h": hidden([0.1, 0.2, 0.3], MASK)}).write(path)


def write_ecsv_of_units(path):
    QTable({"teff": [4500, 4600, 4700] * u.K, "mg_h": Masked(hidden([0.1, 0.2, 0.3], MASK).data * u.dex, MASK)}).write(
        path
    )


def write_fits(path):
    Table({"teff": [4500.0, 4600, 4700], "mg_h": hidden([0.1, 0.2, 0.3], MASK)}).write(path)


def write_null(path):
    column = fits.Column(name="mg_h", format="J", null=999999, array=np.array([0, 999999, 1]))
    teff = fits.Column(name="teff", format="E", unit="K", array=np.array([4500.0, 4600, 4700]))
    fits.BinTableHDU.from_columns([teff, column]).writeto(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", write_csv),
        ("a.ecsv", write_ecsv),
        ("b.ecsv", write_ecsv_of_units),
        ("a.fits", write_fits),
        ("b.fits", write_null),
    ],
    ids=["csv", "ecsv", "ecsv of units", "fits", "fits null"],
)
def test_blank_labels_of_files_are_not_a_number(tmp_path, name, write):
    write(tmp_path / name)
    found = read_labels(tmp_path / name, LABELS)
    np.testing.assert_array_equal(np.isnan(found), [[False, False], [False, True], [False, False]])
    np.testing.assert_allclose(found[:, 0], [4500, 4600, 4700])


def test_masked_teff_in_thousands_of_kelvin_is_not_a_number(tmp_path):
    (tmp_path / "a.csv").write_text("teff,mg_h\n4.5,0.1\n,0.2\n4.7,0.3\n")
    np.testing.assert_allclose(read_labels(tmp_path / "a.csv", LABELS)[:, 0], [4500, np.nan, 4700])


def test_text_among_labels_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("teff,mg_h\n4500,unknown\n4600,0.2\n")
    with pytest.raises(LabelError, match=r"label 'mg_h' of .* holds no numbers"):
        read_labels(tmp_path / "a.csv", LABELS)


@pytest.mark.parametrize("kind", ["numpy", "column", "astropy", "quantity", "list"])
def test_masked_labels_name_their_row(kind):
    with pytest.raises(LabelError, match="'mg_h' is masked in row 1"):
        LABELS.to_array({"teff": 4500 * u.K, "mg_h": KINDS[kind]([0.1, 0.2, 0.3])})


def test_labels_that_are_not_finite_name_their_row():
    with pytest.raises(LabelError, match=r"'teff' is not finite in row 1 \(2 rows in all\)"):
        LABELS.to_array({"teff": [4500, np.nan, np.nan] * u.K, "mg_h": 0})


@pytest.mark.parametrize("rows", [False, True], ids=["array", "list of rows"])
def test_masked_labels_of_a_training_set_are_not_a_number(tmp_path, rows):
    star = Spectrum(
        flux=np.ones(101) * u.one, spectral_axis=GRID.wavelength, uncertainty=StdDevUncertainty(np.full(101, 0.01))
    )
    labels = np.ma.array([[4500, 0.1], [4600, BEHIND]], mask=[[False, False], [False, True]])
    chi2 = np.ma.array([1.0, BEHIND], mask=[False, True])
    path = tmp_path / "a.h5"
    write_training_set(path, [star] * 2, grid=GRID, labels=[*labels] if rows else labels, chi2=chi2, progress=False)
    np.testing.assert_allclose(TrainingSet(path).labels, [[4500, 0.1], [4600, np.nan]], rtol=1e-6)
    np.testing.assert_array_equal(TrainingSet(path).chi2, [1, np.nan])


def test_masked_truth_is_unknown(pretrained):
    stars = pretrained.predict(pretrained.labels.to_quantities(pretrained.prior.mean + np.zeros((2, 1))))
    error = StdDevUncertainty(np.full(stars.flux.shape, 0.01))
    stars = Spectrum(flux=stars.flux, spectral_axis=stars.spectral_axis, uncertainty=error)
    truth = {"teff": Masked([4500, BEHIND] * u.K, mask=[False, True])}
    offsets = compare_labels(pretrained, stars, truth, progress=False)
    np.testing.assert_array_equal(np.isnan(offsets.offset[:, 0]), [False, True])


# -- spectra -----------------------------------------------------------------
BAD = np.arange(101) == 50


def star(**changes):
    parts = {"flux": np.full(101, 0.9) * u.one, "uncertainty": StdDevUncertainty(np.full(101, 0.01))} | changes
    return Spectrum(spectral_axis=GRID.wavelength, **parts)


CASES = {
    "sigma": {"uncertainty": StdDevUncertainty(hidden(np.full(101, 0.01), BAD))},
    "masked sigma": {"uncertainty": StdDevUncertainty(Masked(np.full(101, 0.01), mask=BAD))},
    "variance": {"uncertainty": VarianceUncertainty(hidden(np.full(101, 1e-4), BAD))},
    "ivar": {"uncertainty": InverseVariance(hidden(np.full(101, 1e4), BAD))},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_masked_parts_of_a_spectrum_are_ignored(changes):
    pixels = to_pixels(star(**changes), GRID)
    np.testing.assert_array_equal(pixels.ivar == 0, BAD)


def test_masked_cells_of_a_mask_are_ignored():
    spectrum = star()
    spectrum._mask = np.ma.array(np.zeros(101, dtype=int), mask=BAD)  # specutils 1 keeps it, 2 drops its mask
    np.testing.assert_array_equal(to_pixels(spectrum, GRID).ivar == 0, BAD)


def test_masked_errors_of_one_of_many_stars_are_ignored():
    flux, bad = np.full((3, 101), 0.9), np.zeros((3, 101), dtype=bool)
    bad[1, 50] = True
    sigma = StdDevUncertainty(hidden(np.full((3, 101), 0.01), bad))
    stack = Spectrum(flux=flux * u.one, spectral_axis=GRID.wavelength, uncertainty=sigma)
    assert [to_pixels(stack[k], GRID).n_good for k in range(3)] == [101, 100, 101]


def test_masked_pixels_are_ignored():
    for pixels in (
        Pixels(hidden(np.ones(101), BAD), np.ones(101)),
        Pixels(np.ones(101), hidden(np.ones(101), BAD)),
    ):
        np.testing.assert_array_equal(pixels.ivar == 0, BAD)
        assert not np.any(pixels.flux == BEHIND)


def test_masked_arrays_make_masked_spectra():
    for made in (
        to_spectrum(hidden(np.ones(101), BAD), GRID),
        to_spectrum(np.ones(101), GRID, ivar=hidden(np.ones(101), BAD)),
        to_spectrum(np.ones(101), GRID, mask=np.ma.array(np.zeros(101, dtype=bool), mask=BAD)),
    ):
        np.testing.assert_array_equal(made.mask, BAD)
        assert not np.any(made.flux.value == BEHIND)


# -- translations --------------------------------------------------------------
@pytest.mark.parametrize("way", ["to_synthetic", "to_observed", "reconstruct"])
def test_translations_mask_what_had_no_data(pretrained, way):
    n = pretrained.grid.n_pixels
    mask, noisy = np.arange(n) % 11 == 0, np.arange(n) % 13 == 5
    ivar = np.where(noisy, 0.2, 0.01) ** -2.0  # an error beyond those of training does not count either
    meta = {"object": "Arcturus", "VRAD": 3}
    made = getattr(pretrained, way)(to_spectrum(np.ones(n), pretrained.grid, ivar=ivar, mask=mask, meta=meta))
    np.testing.assert_array_equal(made.mask, mask | noisy)
    assert made.uncertainty is None
    assert made.meta["object"] == "Arcturus"
    assert set(made.meta) == {"model", "domain", "object"}


def test_mask_of_a_synthetic_spectrum_without_errors_is_kept(pretrained):
    mask = np.arange(pretrained.grid.n_pixels) % 11 == 0
    given = to_spectrum(np.ones(len(mask)), pretrained.grid, mask=mask)
    np.testing.assert_array_equal(pretrained.to_observed(given).mask, mask)


def test_masked_cells_of_a_mask_are_bad():
    np.testing.assert_array_equal(bools_of(np.ma.array([0, 0, 4], mask=[0, 1, 0])), [False, True, True])
    mask = np.ma.array(np.zeros(3, dtype=bool), mask=MASK)
    np.testing.assert_array_equal(NoiseModel().used_pixels(np.ones(3), np.full(3, 0.01), mask), ~MASK)


def test_masked_rows_of_arrays_are_bad():
    flux, sigma, _ = ArrayTable(
        hidden(np.ones((1, 101)), BAD[None]), hidden(np.ones((1, 101)), BAD[None]), np.zeros((1, 101), dtype=bool)
    ).read(0, 1)
    assert np.isnan(flux[0, 50])
    assert np.isnan(sigma[0, 50])


def test_masked_flux_has_no_say_in_the_continuum():
    recipe, flux = ContinuumRecipe(GRID, np.arange(101) % 5 == 0), np.full(101, 3.0)
    np.testing.assert_allclose(recipe(flux, np.ma.filled(hidden(np.ones(101), BAD), 0)), 3)
    np.testing.assert_allclose(recipe(flux, hidden(np.ones(101), BAD)), 3)


def test_masked_continuum_pixels_are_left_out():
    listed = Masked(GRID.wavelength[::5].copy(), mask=np.arange(21) == 3)
    assert np.count_nonzero(ContinuumRecipe.from_wavelengths(GRID, listed).pixels) == 20
    mask = np.arange(101) == 15
    assert not ContinuumRecipe(GRID, np.ma.array(np.arange(101) % 5 == 0, mask=mask)).pixels[15]


def test_grid_without_some_wavelengths_is_refused():
    with pytest.raises(GridError, match="wavelength is masked"):
        WavelengthGrid(Masked(GRID.wavelength.copy(), mask=BAD))


def test_emulator_is_not_trained_on_what_is_masked():
    labels, flux = np.random.default_rng(0).uniform(size=(40, 2)), np.ones((40, 101))
    with pytest.raises(ValueError, match=r"not masked, but are not in row 3"):
        train_emulator(np.ma.array(labels, mask=np.arange(80).reshape(40, 2) == 7), flux)


def test_distance_of_masked_samples_is_refused():
    with pytest.raises(ValueError, match="finite"):
        mmd(hidden([1.0, 2.0, 3.0], MASK), [1.0, 2.0, 3.0])


# -- lines -------------------------------------------------------------------
def line_table(**changes):
    return Table(
        {
            "wavelength": [15163.0, 15168.0, 15170.0] * u.AA,
            "species": ["K I", "Fe I", "Fe I"],
            "log_gf": [0.1, 0.2, 0.3],
        }
        | changes
    )


@pytest.mark.parametrize("blank", [MaskedColumn(["K I", "Fe I", "Fe I"], mask=MASK), ["K I", " ", "Fe I"]], ids=type)
def test_line_without_a_species_is_named(blank):
    with pytest.raises(ValueError, match="'species' has no species in row 1"):
        as_line_list(line_table(species=blank), medium="vacuum")


def test_masked_strength_is_not_known():
    lines = as_line_list(line_table(log_gf=hidden([0.1, 0.2, 0.3], MASK)), medium="vacuum")
    np.testing.assert_array_equal(lines["log_gf"], [0.1, np.nan, 0.3])


def test_masked_wavelength_is_no_line():
    axis = Masked([15163.0, BEHIND, 15170.0] * u.AA, mask=MASK)
    assert len(as_line_list(QTable(line_table(wavelength=axis)), medium="vacuum")) == 2


def test_match_refuses_masked_species_and_does_not_use_masked_strength():
    found = QTable(
        {
            "wavelength": [15168.0] * u.AA, "wavelength_err": [0.05] * u.AA, "width": [0.5] * u.AA,
            "probabilities": [[0.5, 0.5]],
        },
        meta={"elements": ["Fe", "K"]},
    )  # fmt: skip
    lines = as_line_list(line_table(), medium="vacuum")
    lines["log_gf"] = hidden([0.1, 0.2, 0.3], MASK)
    assert match_lines(found, lines)["log_gf"].mask[0]
    lines["species"] = MaskedColumn(lines["species"], mask=MASK)
    with pytest.raises(ValueError, match="'species' of line_list has no value in row 1"):
        match_lines(found, lines)
