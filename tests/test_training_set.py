"""Training files: what is refused when they are opened, what is selected, and what the writer keeps and skips."""

import tracemalloc

import astropy.units as u
import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty

from cyclestarnet import ContinuumRecipe, WavelengthGrid
from cyclestarnet.exceptions import CycleStarNetWarning, FileFormatError, GridError, SpectrumError
from cyclestarnet.grid import apogee_grid
from cyclestarnet.io import Selection, TrainingSet, read_apvisit, write_training_set
from cyclestarnet.spectra import Spectrum, to_pixels
from cyclestarnet.training.datasets import ObservedSpectra
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra

N, N_PIXELS = 30, 20
GRID = WavelengthGrid(np.linspace(1500, 1510, N_PIXELS) * u.nm)
NO_CUTS = Selection(snr=None, chi2_max=None)


@pytest.fixture
def arrays(rng):
    """The datasets of a file in the public layout: 10 % of the pixels are bad."""
    return {
        "spectra train": rng.normal(0.9, 0.05, (N, N_PIXELS)).astype("f4"),
        "spectra_err train": rng.uniform(0.005, 0.03, (N, N_PIXELS)).astype("f4"),
        "spectra_msk train": (rng.random((N, N_PIXELS)) > 0.1).astype("u1"),
        "labels train": rng.normal(size=(N, 4)).astype("f4"),
        "snr train": np.linspace(20, 600, N, dtype="f4"),
    }


@pytest.fixture
def write(tmp_path, arrays):
    """Function that writes the arrays, with some replaced, or left out where None."""

    def write(**changes):
        path = tmp_path / "set.h5"
        with h5py.File(path, "w") as file:
            for name, array in (arrays | {f"{kind} train": a for kind, a in changes.items()}).items():
                if array is not None:
                    file[name] = array
        return path

    return write


# -- what is read -----------------------------------------------------------------
def test_mask_is_true_for_bad_pixels(write, arrays):
    flux, sigma, mask = TrainingSet(write()).read(3, 9)
    np.testing.assert_array_equal(flux, arrays["spectra train"][3:9])
    np.testing.assert_array_equal(sigma, arrays["spectra_err train"][3:9])
    np.testing.assert_array_equal(mask, arrays["spectra_msk train"][3:9] == 0)


@pytest.mark.parametrize("dtype", ["f8", ">f4", "f2"])
def test_any_floats_are_read_as_single_precision(write, arrays, dtype):
    flux, sigma, _ = TrainingSet(write(spectra=arrays["spectra train"].astype(dtype))).read(0, 4)
    assert flux.dtype == sigma.dtype == np.float32
    np.testing.assert_allclose(flux, arrays["spectra train"][:4], rtol=1e-3)


@pytest.mark.parametrize("dtype", ["?", "f4", "i8"])
def test_mask_may_have_any_type(write, arrays, dtype):
    mask = TrainingSet(write(spectra_msk=arrays["spectra_msk train"].astype(dtype))).read(0, N)[2]
    np.testing.assert_array_equal(mask, arrays["spectra_msk train"] == 0)


def test_rest_of_the_file_is_there(write, arrays):
    training_set = TrainingSet(write(chi2=np.arange(N)))
    assert (len(training_set), training_set.n_spectra, training_set.n_pixels) == (N, N, N_PIXELS)
    np.testing.assert_array_equal(training_set.labels, arrays["labels train"])
    np.testing.assert_array_equal(training_set.snr, arrays["snr train"])
    np.testing.assert_array_equal(training_set.chi2, np.arange(N))


def test_what_the_file_lacks_is_none(write):
    training_set = TrainingSet(write(labels=None, snr=None))
    assert training_set.labels is training_set.snr is training_set.chi2 is training_set.label_names is None


def test_synthetic_set_needs_spectra_only(write):
    path = write(spectra_err=None, spectra_msk=None)
    assert TrainingSet(path, domain="synthetic").read(0, 2)[1:] == (None, None)


def test_splits_are_separate(write, arrays):
    path = write()
    with h5py.File(path, "a") as file:
        file["spectra val"] = arrays["spectra train"][:5]
    assert len(TrainingSet(path, split="val", domain="synthetic")) == 5


def test_repr_says_what_is_there(write):
    expected = "<TrainingSet 'set.h5' train: 30 observed spectra of 20 pixels, labels, snr>"
    assert repr(TrainingSet(write())) == expected


@pytest.mark.parametrize(
    ("chunks", "rows"), [(None, 64), ((1, 20), 64), ((10, 5), 60), ((100, 20), 100), ((1000, 20), 512)]
)
def test_blocks_are_whole_chunks_of_a_bounded_size(tmp_path, chunks, rows):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("spectra train", data=np.ones((2000, 20)), chunks=chunks)
    assert TrainingSet(tmp_path / "a.h5", domain="synthetic").block_rows == rows


# -- pixels -----------------------------------------------------------------------
@pytest.mark.parametrize("pixels", [slice(0, 15), slice(5, None), slice(-7, -2)])
def test_pixels_are_cut(write, arrays, pixels):
    training_set = TrainingSet(write(), pixels=pixels)
    flux, sigma, mask = training_set.read(0, 3)
    np.testing.assert_array_equal(flux, arrays["spectra train"][:3, pixels])
    assert sigma.shape == mask.shape == (3, training_set.n_pixels)


def test_public_files_fit_the_networks(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["spectra train"] = np.ones((2, 7214), "f4")
    message = r"gives 7214 pixels, but the grid has 7167; use pixels=slice\(0, 7167\) or slice\(47, None\)"
    with pytest.raises(GridError, match=message):
        TrainingSet(tmp_path / "a.h5", domain="synthetic", grid=apogee_grid())
    for pixels in (slice(0, 7167), slice(47, None)):
        cut = TrainingSet(tmp_path / "a.h5", domain="synthetic", grid=apogee_grid(), pixels=pixels)
        assert cut.n_pixels == 7167


def test_too_few_pixels_cannot_be_cut(write):
    with pytest.raises(GridError, match=r"gives 20 pixels, but the grid has 7167$"):
        TrainingSet(write(), grid=apogee_grid())


def test_wrong_end_is_noticed_if_the_file_has_wavelengths(write):
    path = write()
    with h5py.File(path, "a") as file:
        file["wavelength"] = GRID.wavelength.to_value(u.AA)
    inner = WavelengthGrid(GRID.wavelength[:15])
    assert TrainingSet(path, grid=inner, pixels=slice(0, 15)).n_pixels == 15
    with pytest.raises(GridError, match=r"wavelengths of .* are not those of the grid \(15000.00 .*check pixels"):
        TrainingSet(path, grid=inner, pixels=slice(5, None))


@pytest.mark.parametrize("pixels", [slice(0, 10, 2), 5, [1, 2]], ids=str)
def test_pixels_must_be_a_plain_slice(write, pixels):
    with pytest.raises(ValueError, match="pixels must be a slice without a step"):
        TrainingSet(write(), pixels=pixels)


def test_some_pixels_must_be_left(write):
    with pytest.raises(GridError, match="leaves none of the 20 pixels"):
        TrainingSet(write(), pixels=slice(20, None))


# -- what is refused --------------------------------------------------------------
@pytest.mark.parametrize("kind", ["spectra", "spectra_err", "spectra_msk"])
def test_missing_dataset_is_named_and_the_others_listed(write, kind):
    present = "it has 'labels train', 'snr train', "
    with pytest.raises(FileFormatError, match=f"lacks '{kind} train', which a set of observed .*; {present}"):
        TrainingSet(write(**{kind: None}))


def test_missing_split_lists_what_there_is(write):
    with pytest.raises(FileFormatError, match=r"lacks 'spectra test', 'spectra_err test', .* it has .*'spectra train'"):
        TrainingSet(write(), split="test")


@pytest.mark.parametrize(
    ("kind", "shape", "wanted"),
    [
        ("spectra", (N,), "n_spectra, n_pixels"),
        ("spectra", (0, N_PIXELS), "n_spectra, n_pixels"),
        ("spectra_err", (N, N_PIXELS - 1), "30, 20"),
        ("spectra_msk", (N - 1, N_PIXELS), "30, 20"),
        ("labels", (N - 1, 4), "30, 4"),
        ("labels", (N,), "30, 'n_labels'"),
        ("snr", (N, 1), "30,"),
        ("chi2", (N + 1,), "30,"),
    ],
)
def test_wrong_shapes_are_refused(write, kind, shape, wanted):
    with pytest.raises(FileFormatError, match=rf"'{kind} train' of .* must (be|have the shape) \({wanted}\)"):
        TrainingSet(write(**{kind: np.ones(shape)}))


def test_text_is_refused(write):
    with pytest.raises(FileFormatError, match=r"'snr train' of .* must hold numbers"):
        TrainingSet(write(snr=np.array([b"30"] * N)))


@pytest.mark.parametrize("fraction", [0.3, 0.99])
def test_truncated_file_is_refused(write, fraction):
    path = write()
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    with pytest.raises(FileFormatError, match=r"set.h5 is truncated or no HDF5 file"):
        TrainingSet(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.h5").write_text("hello")
    with pytest.raises(FileFormatError, match="is truncated or no HDF5 file"):
        TrainingSet(tmp_path / "a.h5")


def test_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no training file .*nothing.h5"):
        TrainingSet(tmp_path / "nothing.h5")


def test_file_that_is_cut_later_raises_when_it_is_read(write):
    path = write()
    training_set = TrainingSet(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FileFormatError, match="truncated"):
        training_set.read(0, 2)


def test_domain_must_be_known(write):
    with pytest.raises(ValueError, match=r"domain must be one of \('observed', 'synthetic'\), but is 'real'"):
        TrainingSet(write(), domain="real")


def test_spectra_without_any_number_are_refused(write):
    with pytest.raises(FileFormatError, match="has no finite value in"):
        TrainingSet(write(spectra=np.full((N, N_PIXELS), np.nan)))


# -- the mask's convention ----------------------------------------------------------
def test_mask_the_wrong_way_round_is_refused(write, arrays):
    """Bad pixels have huge errors, as the survey's."""
    good = arrays["spectra_msk train"] == 1
    sigma = np.where(good, arrays["spectra_err train"], 10)
    with pytest.raises(FileFormatError, match=r"calls 100% of the pixels bad .* 1 = good and 0 = bad: is the mask"):
        TrainingSet(write(spectra_err=sigma, spectra_msk=(~good).astype("u1")))


def test_mask_the_wrong_way_round_is_refused_also_with_plausible_errors(write, arrays):
    with pytest.raises(FileFormatError, match="1 = good"):
        TrainingSet(write(spectra_msk=(np.arange(N_PIXELS) < 1) * np.ones((N, 1), "u1")))


def test_mask_that_calls_many_pixels_bad_is_right(write):
    mask = np.tile(np.arange(N_PIXELS) < 4, (N, 1))  # 80 % are bad
    assert TrainingSet(write(spectra_msk=mask)).read(0, N)[2].mean() == 0.8


def test_mask_of_bits_is_refused(write):
    bits = np.tile([0, 4096, 1, 0], (N, N_PIXELS // 4))
    with pytest.raises(FileFormatError, match=r"must hold 1 = good and 0 = bad, but holds \[0, 1, 4096\]; is it a"):
        TrainingSet(write(spectra_msk=bits))


# -- selection ----------------------------------------------------------------------
def test_cuts_are_those_of_the_paper(write):
    snr = np.full(N, 100.0)
    snr[:6] = 30, 30.001, 499.99, 500, np.nan, -1
    assert set(range(N)) - set(TrainingSet(write(snr=snr)).rows()) == {0, 3, 4, 5}


def test_chi2_is_cut_where_the_file_has_it(write):
    snr, chi2 = np.full(N, 100.0), np.full(N, 1.0)
    chi2[:4] = 49.9, 50, 1e9, np.nan
    rows = TrainingSet(write(snr=snr, chi2=chi2)).rows()
    assert set(range(N)) - set(rows) == {1, 2, 3}


def test_cuts_are_settings(write):
    path = write(snr=np.arange(N), chi2=np.arange(N) % 2)
    np.testing.assert_array_equal(TrainingSet(path).rows(Selection(snr=(9, 15), chi2_max=0.5)), [10, 12, 14])


def test_no_cuts_keep_all(write):
    path = write(snr=np.full(N, np.nan), chi2=np.full(N, np.nan))
    np.testing.assert_array_equal(TrainingSet(path).rows(NO_CUTS), np.arange(N))


def test_cut_on_snr_needs_snr(write):
    with pytest.raises(FileFormatError, match=r"no dataset 'snr train' to select by; use Selection\(snr=None\)"):
        TrainingSet(write(snr=None)).rows()


def test_empty_selection_says_what_the_file_has(write):
    with pytest.raises(SpectrumError, match=r"no spectrum of .* passes .*; in the file snr is 20 to 600"):
        TrainingSet(write()).rows(Selection(snr=(1, 2)))


@pytest.mark.parametrize("bad", [{"snr": (50, 50)}, {"snr": (5,)}, {"snr": (1, np.nan)}, {"chi2_max": 0}], ids=str)
def test_impossible_selections_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        Selection(**bad)


# -- into the sources ------------------------------------------------------------------
def test_file_and_arrays_give_the_same_training_data(write, arrays):
    arrays["spectra train"][4, 4] = np.nan
    flux, sigma, good = (arrays[f"{kind} train"] for kind in ("spectra", "spectra_err", "spectra_msk"))
    settings = TrainingSettings(sigma_max=0.02)
    expected = ObservedSpectra(flux[5:12], sigma[5:12], good[5:12] == 0, settings)
    found = ObservedSpectra.from_table(TrainingSet(write()), settings, rows=range(5, 12))
    np.testing.assert_array_equal(found.flux, expected.flux)
    np.testing.assert_array_equal(found.weight, expected.weight)


def test_file_is_streamed(write, arrays):
    with StreamedSpectra(TrainingSet(write()), TrainingSettings(flux_mean=0, flux_std=1)) as source:
        flux, weight = (array.numpy() for array in source.draw(N))
    order = [
        int(np.argmin(np.abs(arrays["spectra train"] - row)[:, weight[k] > 0].sum(1))) for k, row in enumerate(flux)
    ]
    good = arrays["spectra_msk train"][order] == 1
    assert sorted(order) == list(range(N))
    np.testing.assert_array_equal(flux, np.where(good, arrays["spectra train"][order], 1))


def test_stream_names_the_file_that_fails(write):
    path = write()
    with StreamedSpectra(TrainingSet(path), TrainingSettings()) as source:
        path.write_bytes(b"")
        with pytest.raises(FileFormatError, match=r"set.h5 is truncated or no HDF5 file"):
            source.draw(4)


# -- writing -----------------------------------------------------------------------------
def spectrum(level=0.9, sigma=0.01, uncertainty=StdDevUncertainty, mask=None, **meta):
    """A normalised spectrum on the grid."""
    power = {StdDevUncertainty: 1, VarianceUncertainty: 2, InverseVariance: -2}[uncertainty]
    return Spectrum(
        flux=np.full(N_PIXELS, level) * u.one,
        spectral_axis=GRID.wavelength,
        uncertainty=uncertainty(np.full(N_PIXELS, float(sigma)) ** power),
        mask=mask,
        meta=meta,
    )


def save(path, spectra, **options):
    return write_training_set(path, spectra, **({"grid": GRID, "progress": False} | options))


def stored(path, kind, split="train"):
    with h5py.File(path) as file:
        return file[f"{kind} {split}"][()]


@pytest.mark.parametrize("uncertainty", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
def test_spectra_come_back(tmp_path, uncertainty):
    mask = np.arange(N_PIXELS) == 3
    save(tmp_path / "a.h5", [spectrum(0.8, 0.02, uncertainty, mask)])
    flux, sigma, found = TrainingSet(tmp_path / "a.h5", grid=GRID).read(0, 1)
    np.testing.assert_array_equal(found[0], mask)
    np.testing.assert_allclose(flux[0], np.where(mask, 1, 0.8), rtol=1e-6)
    np.testing.assert_allclose(sigma[0], np.where(mask, 10, 0.02), rtol=1e-6)


def test_layout_is_that_of_the_public_files(tmp_path):
    save(tmp_path / "a.h5", [spectrum()] * 3, labels=np.ones((3, 2)))
    with h5py.File(tmp_path / "a.h5") as file:
        found = {name: (dataset.shape, dataset.dtype) for name, dataset in file.items()}
    assert found.pop("wavelength") == ((N_PIXELS,), np.float64)
    assert found == {
        "spectra train": ((3, N_PIXELS), np.float32),
        "spectra_err train": ((3, N_PIXELS), np.float32),
        "spectra_msk train": ((3, N_PIXELS), np.uint8),
        "labels train": ((3, 2), np.float32),
        "snr train": ((3,), np.float32),
    }


def test_many_spectra_keep_their_order_and_columns(tmp_path):
    """More than two blocks, from a generator."""
    spectra = (spectrum(0.5 + k / 1000) for k in range(150))
    save(tmp_path / "a.h5", spectra, labels=np.arange(300).reshape(150, 2), chi2=np.arange(150), label_names=["x", "y"])
    training_set = TrainingSet(tmp_path / "a.h5")
    np.testing.assert_allclose(training_set.read(0, 150)[0][:, 7], 0.5 + np.arange(150) / 1000, rtol=1e-6)
    np.testing.assert_array_equal(training_set.labels, np.arange(300).reshape(150, 2))
    np.testing.assert_array_equal(training_set.chi2, np.arange(150))
    assert training_set.label_names == ("x", "y")


def test_memory_holds_a_block_and_not_the_set(tmp_path, monkeypatch):
    """Flux, errors and mask of 60 spectra of 5000 pixels are 5 MB; a block of 4 is 7 % of that."""
    monkeypatch.setattr("cyclestarnet.io.training_set.BLOCK_ROWS", 4)
    grid = WavelengthGrid(np.linspace(1500, 1510, 5000) * u.nm)
    options = {"flux": np.ones(5000) * u.one, "spectral_axis": grid.wavelength}
    spectra = (Spectrum(uncertainty=StdDevUncertainty(np.full(5000, 0.01)), **options) for _ in range(60))
    tracemalloc.start()
    try:
        save(tmp_path / "a.h5", spectra, grid=grid)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(TrainingSet(tmp_path / "a.h5")) == 60
    assert peak < 2e6


@pytest.mark.parametrize(
    ("meta", "snr"), [({"snr": 77}, 77), ({}, 45), ({"snr": None}, 45), ({"snr": "?"}, 45)], ids=str
)
def test_snr_is_that_of_the_metadata_or_the_median(tmp_path, meta, snr):
    save(tmp_path / "a.h5", [spectrum(0.9, 0.02, **meta)])
    assert TrainingSet(tmp_path / "a.h5").snr.tolist() == [snr]


def test_bad_spectra_are_skipped_and_named_once(tmp_path):
    bad = [spectrum(mask=np.ones(N_PIXELS, bool), object="star 7"), "apStar-nowhere.fits", 3.0]
    spectra = [spectrum(0.6), bad[0], spectrum(0.7), *bad[1:], spectrum(0.8)]
    with pytest.warns(
        CycleStarNetWarning, match=r"3 of 6 spectra .* 1 \(star 7\): all 20 pixels .*; 4 \(float\)"
    ) as log:
        skipped = save(tmp_path / "a.h5", spectra, labels=np.arange(6)[:, None])
    assert len(log) == 1
    assert skipped["index"].tolist() == [1, 3, 4]
    assert skipped["name"].tolist() == ["star 7", "apStar-nowhere.fits", "float"]
    assert "apStar-nowhere.fits" in skipped["reason"][1]
    np.testing.assert_array_equal(TrainingSet(tmp_path / "a.h5").labels[:, 0], [0, 2, 5])


def test_nothing_skipped_is_an_empty_table(tmp_path):
    skipped = save(tmp_path / "a.h5", [spectrum()])
    assert (len(skipped), skipped.colnames) == (0, ["index", "name", "reason"])


@pytest.mark.parametrize("spectra", [[], [3.0, 4.0]], ids=["none", "bad ones"])
def test_no_usable_spectrum_writes_nothing(tmp_path, spectra):
    with pytest.raises(SpectrumError, match=f"none of {len(spectra)} spectra can be used, and nothing was written"):
        save(tmp_path / "a.h5", spectra)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("one", [spectrum(), "apStar-a.fits"], ids=["spectrum", "path"])
def test_one_spectrum_is_no_list(tmp_path, one):
    with pytest.raises(TypeError, match=r"spectra must be an iterable .* write \[spectrum\]"):
        save(tmp_path / "a.h5", one)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("kind", ["labels", "chi2"])
@pytest.mark.parametrize("lazy", [False, True])
def test_columns_must_have_a_row_per_spectrum(tmp_path, kind, n, lazy):
    spectra = [spectrum()] * 3
    with pytest.raises(ValueError, match=kind):
        save(tmp_path / "a.h5", iter(spectra) if lazy else spectra, **{kind: np.ones((n, 2)[: 2 - (kind == "chi2")])})
    assert list(tmp_path.iterdir()) == []


def test_label_names_must_name_the_labels(tmp_path):
    with pytest.raises(ValueError, match="label_names must name the columns of labels"):
        save(tmp_path / "a.h5", [spectrum()], labels=[[1.0, 2.0]], label_names=["teff"])


# -- into existing files ----------------------------------------------------------------
@pytest.fixture
def existing(tmp_path):
    """A file with a split "train" of two spectra, and something of the user's."""
    path = tmp_path / "a.h5"
    save(path, [spectrum(0.6), spectrum(0.7)], labels=[[1.0], [2.0]], label_names=["teff"])
    with h5py.File(path, "a") as file:
        file["nuisance/fibre"], file.attrs["author"] = [3, 4], "me"
    return path


def test_other_splits_are_kept(existing):
    before = {kind: stored(existing, kind) for kind in ("spectra", "spectra_err", "labels", "snr")}
    save(existing, [spectrum(0.5)] * 3, split="val", labels=np.ones((3, 1)), label_names=["teff"])
    for kind, array in before.items():
        np.testing.assert_array_equal(stored(existing, kind), array)
    assert len(TrainingSet(existing, split="val")) == 3
    with h5py.File(existing) as file:
        assert (file["nuisance/fibre"][1], file.attrs["author"]) == (4, "me")


def test_split_is_not_overwritten_by_accident(existing):
    before = existing.read_bytes()
    with pytest.raises(FileExistsError, match="has the split 'train' already; use overwrite=True"):
        save(existing, [spectrum()])
    assert existing.read_bytes() == before


def test_split_is_replaced_on_demand(existing):
    save(existing, [spectrum(0.5)], overwrite=True)
    np.testing.assert_array_equal(stored(existing, "spectra"), np.full((1, N_PIXELS), 0.5))
    assert TrainingSet(existing).labels is None


def failing():
    yield spectrum()
    raise KeyboardInterrupt


@pytest.mark.parametrize("options", [{"overwrite": True}, {"split": "val"}], ids=str)
def test_interrupt_leaves_the_file_as_it_was(existing, options):
    before = existing.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        save(existing, failing(), **options)
    assert existing.read_bytes() == before
    assert list(existing.parent.iterdir()) == [existing]


@pytest.mark.parametrize("grid", [GRID.wavelength[:-1], GRID.wavelength * 1.0001], ids=["length", "shift"])
def test_one_file_has_one_grid(existing, grid):
    with pytest.raises(GridError, match=r"but the grid has 19|has another grid"):
        save(existing, [spectrum()], split="val", grid=WavelengthGrid(grid))


def test_one_file_has_one_set_of_labels(existing):
    with pytest.raises(ValueError, match=r"label_names are \['logg'\], but those of the other splits .* \['teff'\]"):
        save(existing, [spectrum()], split="val", labels=[[1.0]], label_names=["logg"])


@pytest.mark.parametrize("names", [["logg", "m_h"], None])
def test_labels_that_are_replaced_take_their_names_along(existing, names):
    save(existing, [spectrum()], labels=[[1.0, 2.0]], label_names=names, overwrite=True)
    assert TrainingSet(existing).label_names == (names and tuple(names))


def test_names_stay_as_long_as_another_split_has_the_labels(existing):
    save(existing, [spectrum()], split="val", labels=[[3.0]])
    save(existing, [spectrum()], overwrite=True)
    assert TrainingSet(existing, split="val").label_names == ("teff",)
    with pytest.raises(ValueError, match=r"labels has 2 columns, but the other splits of .* \['teff'\]"):
        save(existing, [spectrum()], labels=[[1.0, 2.0]], overwrite=True)


def test_names_that_are_not_as_many_as_the_labels_are_refused(existing):
    with h5py.File(existing, "r+") as file:
        file.attrs["label_names"] = ["teff", "logg"]
    with pytest.raises(FileFormatError, match=r"'labels train' of .* has 1 columns, but .* names 2"):
        TrainingSet(existing)


def test_damaged_file_is_left_alone(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"precious")
    with pytest.raises(FileFormatError, match="truncated or no HDF5 file"):
        save(tmp_path / "a.h5", [spectrum()])
    assert (tmp_path / "a.h5").read_bytes() == b"precious"


# -- from APOGEE files --------------------------------------------------------------------
def test_apstar_files_are_normalised_and_masked(tmp_path):
    """Flux 80 on a flat continuum, error 2, SNR of the header; bits 13 and 0 at two pixels."""
    grid = WavelengthGrid(10 ** (4.179 + 6e-6 * np.arange(100, 400)) * u.AA)
    bits = np.zeros((3, 500), ">i2")
    bits[0, [200, 300]] = 1 << 13, 1
    header = fits.Header({"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1})
    images = [fits.ImageHDU(a, header) for a in (np.full((3, 500), 80, ">f4"), np.full((3, 500), 2, ">f4"), bits)]
    primary = fits.PrimaryHDU(header=fits.Header({"SNR": 90.0}))
    fits.HDUList([primary, *images]).writeto(tmp_path / "apStar-1.fits")
    recipe = ContinuumRecipe(grid, np.ones(300, bool), degree=1)
    for mask_bits, bad in ((None, 300), ([13], 200)):
        path = tmp_path / f"{bad}.h5"
        save(path, [tmp_path / "apStar-1.fits"], grid=grid, recipe=recipe, mask_bits=mask_bits)
        assert np.flatnonzero(stored(path, "spectra_msk")[0] == 0).tolist() == [bad - 100]
        np.testing.assert_allclose(stored(path, "spectra")[0], 1, rtol=1e-6)
        np.testing.assert_allclose(np.delete(stored(path, "spectra_err")[0], bad - 100), 0.025, rtol=1e-5)
        assert stored(path, "snr") == 90


def test_real_visit_is_what_a_fit_would_see(tmp_path, pretrained, k_giant):
    path = k_giant.meta["file"]
    save(tmp_path / "a.h5", [path], grid=pretrained.grid, recipe=pretrained.recipe)
    expected = to_pixels(read_apvisit(path), pretrained.grid, recipe=pretrained.recipe)
    flux, sigma, mask = TrainingSet(tmp_path / "a.h5", grid=pretrained.grid).read(0, 1)
    np.testing.assert_array_equal(mask[0], expected.ivar == 0)
    np.testing.assert_allclose(flux[0], expected.flux, rtol=1e-6)
    np.testing.assert_allclose(sigma[0, ~mask[0]] ** -2, expected.ivar[~mask[0]], rtol=1e-5)
