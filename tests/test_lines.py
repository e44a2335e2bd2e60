"""Strong features and their masks, on Gaussian lines whose derivatives and extents are known."""

import astropy.units as u
import numpy as np
import pytest

from cyclestarnet import (
    FileFormatError,
    GaussianPrior,
    GridError,
    LabelError,
    LabelSet,
    WavelengthGrid,
    air_to_vacuum,
)
from cyclestarnet.derivatives import DerivativeSpectra
from cyclestarnet.lines.features import FeatureMask, Features, find_features, k_giant

N, START = 600, 15000.0
GRID = WavelengthGrid((START + np.arange(N)) * u.AA)  # pixels of 1 Å


def gaussians(lines, width=3.0):
    """Derivative (n_pixels,) of lines at {centre: -slope}: weak Gaussian ones, depth ∝ 10^[X/H]."""
    return -sum(slope * np.exp(-0.5 * ((np.arange(N) - centre) / width) ** 2) for centre, slope in lines.items())


def derivatives(*, grid=GRID, **lines):
    """Derivative spectra of elements with given lines, and the flux that weak lines then have."""
    slopes = {name: gaussians(table) for name, table in lines.items()}
    return DerivativeSpectra(grid, 1 + sum(slopes.values()) / np.log(10), slopes)


def half_width(slope, edge=0.02, width=3.0):
    """Distance from the centre at which a Gaussian derivative falls to the edge."""
    return width * np.sqrt(2 * np.log(slope / edge))


def spread(first, slope, n=4):
    """n lines of equal strength, 40 pixels apart."""
    return {first + 40 * k: slope for k in range(n)}


FOUR = derivatives(mg_h=spread(50, 0.3))
TWO_ELEMENTS = derivatives(c_h=spread(50, 0.3), fe_h=spread(56, 0.5, n=10))  # every line of C within one of Fe


# -- finding -------------------------------------------------------------------------------------
@pytest.mark.parametrize("slope", [0.11, 0.3, 2.0])
def test_extents_are_those_of_a_gaussian(slope):
    reach = int(half_width(slope))  # whole pixels on either side
    found = find_features(derivatives(mg_h=spread(50, slope)))
    assert [(f.start, f.stop) for f in found] == [(c - reach, c + reach + 1) for c in (50, 90, 130, 170)]
    assert [f.extent.to_value(u.AA) for f in found] == pytest.approx([2 * reach + 1] * 4)


def test_a_feature_knows_its_core():
    feature = find_features(FOUR)[1]
    assert (feature.element, feature.label, feature.peak) == ("Mg", "mg_h", 90)
    assert feature.wavelength == (START + 90) * u.AA
    assert feature.slope.value == pytest.approx(-0.3)
    assert feature.slope.unit == 1 / u.dex
    assert feature.depth == pytest.approx(0.3 / np.log(10))  # of a weak line


@pytest.mark.parametrize(("slope", "n"), [(0.0999, 0), (0.1001, 4)])
def test_only_strong_features_count(slope, n):
    assert len(find_features(derivatives(mg_h=spread(50, slope)))) == n


def test_lines_that_weaken_with_the_abundance_are_none():
    assert len(find_features(derivatives(mg_h=spread(50, -0.3)))) == 0


@pytest.mark.parametrize(("n", "counts"), [(3, {}), (4, {"Mg": 4})])
def test_elements_need_more_than_three_features(n, counts):
    assert find_features(derivatives(mg_h=spread(50, 0.3, n=n))).counts == counts


def test_weak_features_do_not_help_an_element_to_take_part():
    assert len(find_features(derivatives(mg_h=spread(50, 0.3, n=3) | {300: 0.08, 350: 0.08}))) == 0


def test_thresholds_can_be_chosen():
    found = find_features(derivatives(mg_h={50: 0.3, 300: 0.06}), strong=-0.05, edge=-0.01, least=2)
    reaches = [int(half_width(slope, edge=0.01)) for slope in (0.3, 0.06)]
    assert [(f.stop - f.start - 1) / 2 for f in found] == reaches


@pytest.mark.parametrize(("distance", "n"), [(14, 1), (15, 2)])
def test_lines_are_one_feature_where_the_derivative_stays_below_the_edge(distance, n):
    """Halfway between two lines of 0.3 it is 2 · 0.3 exp(-(distance / 6)² / 2): 0.039 and 0.026 on pixels."""
    middle = 2 * 0.3 * np.exp(-0.5 * (distance / 6) ** 2)
    edge = -0.6 * np.exp(-0.5 * (14.5 / 6) ** 2)  # between those of 14 and 15 pixels
    assert (middle > -edge) == (n == 1)
    assert len(find_features(derivatives(mg_h={100: 0.3, 100 + distance: 0.3}), edge=edge, least=1)) == n


def test_no_feature_crosses_the_edge_of_a_chip():
    grid = WavelengthGrid((START + np.arange(N) + 500 * (np.arange(N) > 99)) * u.AA, ((0, 100), (100, N)))
    found = find_features(derivatives(grid=grid, mg_h={100: 0.3}), least=1)
    reach = int(half_width(0.3))
    assert [(f.start, f.stop) for f in found] == [(100 - reach, 100), (100, 100 + reach + 1)]
    assert [f.extent.value for f in found] == pytest.approx([reach, reach + 1])  # without the gap


def test_features_at_the_ends_of_the_grid_are_found():
    found = find_features(derivatives(mg_h={0: 0.3, N - 1: 0.3}), least=2)
    assert (found[0].start, found[1].stop) == (0, N)


def test_metallicity_and_other_labels_are_no_elements():
    given = DerivativeSpectra(GRID, np.ones(N), {n: gaussians(spread(50, 0.3)) for n in ("teff", "m_h", "si_h")})
    assert find_features(given).counts == {"Si": 4}


def test_a_model_is_asked_at_the_k_giant(tiny_model):
    found = find_features(tiny_model, least=1)
    star = {"teff": 4750 * u.K, "logg": 2.5, "mg_h": 0.0}
    table = tiny_model.derivative_spectra(star, domain="synthetic")
    np.testing.assert_allclose([f.slope.value for f in found], table["mg_h"].value[[f.peak for f in found]])
    assert {f.element for f in found} == {"Mg"}
    assert found.settings["labels"] | {"alpha_m": 0.0} == {"teff": 4750, "logg": 2.5, "mg_h": 0, "alpha_m": 0}


def test_a_model_is_asked_at_given_labels(tiny_model):
    star = {"teff": 4300 * u.K, "logg": 1.0, "mg_h": 0.2}
    table = tiny_model.derivative_spectra(star, domain="synthetic")
    found = find_features(tiny_model, star, least=1)
    np.testing.assert_allclose([f.slope.value for f in found], table["mg_h"].value[[f.peak for f in found]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strong": 0.1}, "strong and edge must be negative"),
        ({"edge": -0.2}, "strong not above edge"),
        ({"labels": {}}, "labels can be given for a model only"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        find_features(FOUR, **options)


def test_features_of_several_stars_are_refused():
    several = DerivativeSpectra(GRID, np.ones((2, N)), {"mg_h": np.zeros((2, N))})
    with pytest.raises(ValueError, match=r"one star, but these are of shape \(2,\)"):
        find_features(several)


def test_no_elements_are_an_error():
    with pytest.raises(LabelError, match="no element among the labels teff, m_h"):
        find_features(DerivativeSpectra(GRID, np.ones(N), {"teff": np.zeros(N), "m_h": np.zeros(N)}))


# -- the star of the paper -----------------------------------------------------------------------
RANGES = {"teff": (3500, 6000), "logg": (0, 4), "vmicro": (0, 4), "m_h": (-2, 0.5), "mg_h": (-2, 0.5)}


def label_set(*names):
    return LabelSet(names, *np.transpose([RANGES[name] for name in names]))


def gaussian(mean, sigma, correlation):
    return GaussianPrior(mean, np.outer(sigma, sigma) * correlation)


def test_the_k_giant_is_that_of_the_paper():
    prior = gaussian([4300, 1.5, -0.3, -0.2], [300, 0.5, 0.2, 0.2], 0.5 + 0.5 * np.eye(4))
    assert k_giant(label_set("teff", "logg", "m_h", "mg_h"), prior).tolist() == [4750, 2.5, 0, 0]


@pytest.mark.parametrize("rho", [-0.8, 0.0, 0.5])
@pytest.mark.parametrize(("name", "known"), [("teff", 4750), ("logg", 2.5), ("mg_h", 0.0)])
def test_other_labels_are_as_a_gaussian_prior_expects_them(name, known, rho):
    mean, sigma = {"teff": (4300, 300), "logg": (1.5, 0.5), "mg_h": (-0.3, 0.2)}[name]
    prior = gaussian([1.6, mean], [0.3, sigma], [[1, rho], [rho, 1]])
    expected = 1.6 + rho * 0.3 / sigma * (known - mean)
    assert k_giant(label_set("vmicro", name), prior) == pytest.approx([expected, known])


def test_expected_labels_are_the_regression_on_all_known_ones(rng):
    """Of many draws, the line that least squares find in the others has that mean at the K giant."""
    covariance = np.cov(rng.normal(size=(4, 20)) * [[200], [0.4], [0.2], [0.15]])
    mean = np.array([4500, 2.0, 1.5, -0.2])
    found = k_giant(label_set("teff", "logg", "vmicro", "mg_h"), GaussianPrior(mean, covariance))
    draws = rng.multivariate_normal(mean, covariance, 100_000)
    known, scale = [0, 1, 3], np.array([200, 0.4, 0.15])
    line = np.linalg.lstsq((draws - mean)[:, known] / scale, draws[:, 2] - mean[2], rcond=None)[0]
    assert found[2] == pytest.approx(mean[2] + (np.array([4750, 2.5, 0]) - mean[known]) / scale @ line, abs=0.01)


def test_the_k_giant_stays_in_the_range_of_the_labels():
    prior = gaussian([3900, 1.0], [100, 0.9], [[1, 0.9], [0.9, 1]])  # expects vmicro 7.9 km/s at 4750 K
    assert k_giant(label_set("teff", "vmicro"), prior).tolist() == [4750, 4]


def test_the_prior_is_not_changed():
    prior = gaussian([4300, 1.6], [300, 0.3], np.eye(2))
    k_giant(label_set("teff", "vmicro"), prior)
    assert prior.mean.tolist() == [4300, 1.6]


# -- choosing and masking ------------------------------------------------------------------------
@pytest.mark.parametrize(("fraction", "counts"), [(0, (0, 0)), (0.3, (1, 3)), (0.4, (2, 4)), (1, (4, 10))])
def test_a_fraction_of_each_element_is_chosen(fraction, counts):
    masked = find_features(TWO_ELEMENTS).choose(fraction, seed=3).masked
    assert tuple(sum(f.element == e for f in masked) for e in ("C", "Fe")) == counts


def test_seeds_repeat_and_differ():
    features = find_features(TWO_ELEMENTS)
    chosen = [tuple(features.choose(0.3, seed=seed).chosen) for seed in (1, 1, 2, 3, 4)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[1:])) > 1


def test_every_feature_is_chosen_as_often():
    features = find_features(TWO_ELEMENTS)
    rng = np.random.default_rng(0)
    often = np.mean([features.choose(0.5, seed=rng).chosen for _ in range(1000)], axis=0)
    np.testing.assert_allclose(often, 0.5, atol=5 * np.sqrt(0.25 / 1000))


def test_larger_fractions_contain_smaller_ones():
    features = find_features(TWO_ELEMENTS)
    small, large = (features.choose(fraction, seed=5).chosen for fraction in (0.3, 0.7))
    assert large[small].all()


def test_masked_pixels_are_those_of_the_chosen_features():
    mask = FeatureMask(find_features(FOUR), [True, False, False, True])
    reach = int(half_width(0.3))
    expected = [c + k for c in (50, 170) for k in range(-reach, reach + 1)]
    assert np.flatnonzero(mask.pixels).tolist() == expected


def test_features_that_share_pixels_with_chosen_ones_are_touched():
    features = find_features(TWO_ELEMENTS)
    mask = FeatureMask(features, [f.element == "C" for f in features])
    assert [(f.element, f.peak) for f in mask.touched] == [("Fe", c) for c in (56, 96, 136, 176)]


def test_masked_pixels_hold_the_continuum_and_others_are_kept(rng):
    mask, flux = find_features(FOUR).choose(0.5, seed=1), rng.uniform(0.3, 0.9, (2, 3, N))
    before, found = flux.copy(), mask.apply(flux)
    assert (found[..., mask.pixels] == 1).all()
    np.testing.assert_array_equal(found[..., ~mask.pixels], flux[..., ~mask.pixels])
    np.testing.assert_array_equal(flux, before)


def test_the_precision_of_the_flux_is_kept():
    assert find_features(FOUR).choose(0.5, seed=1).apply(np.ones(N, dtype=np.float32)).dtype == np.float32


def test_flux_of_another_length_is_refused():
    with pytest.raises(GridError, match=r"must have shape \(\.\.\., 600\), as the mask has, but has \(2, 599\)"):
        find_features(FOUR).choose(0.5, seed=1).apply(np.ones((2, 599)))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, np.nan])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
        find_features(FOUR).choose(fraction, seed=1)


def test_a_mask_is_of_its_features():
    with pytest.raises(ValueError, match=r"a value for each of 4 features, got \(3,\)"):
        FeatureMask(find_features(FOUR), [True, False, True])


# -- tables and files ----------------------------------------------------------------------------
def test_a_table_has_a_row_per_feature_and_the_settings():
    table = find_features(FOUR).to_table()
    assert (len(table), table["wavelength"].unit, table["slope"].unit) == (4, u.AA, 1 / u.dex)
    assert (table.meta["strong"], table.meta["edge"], table.meta["least"]) == (-0.1, -0.02, 4)


@pytest.mark.parametrize("given", [TWO_ELEMENTS, derivatives(mg_h={50: 0.01})], ids=["features", "none"])
def test_a_written_mask_is_read_as_it_was(tmp_path, given):
    mask = find_features(given).choose(0.3, seed=7)
    mask.write(tmp_path / "mask.ecsv")
    again = FeatureMask.read(tmp_path / "mask.ecsv")
    np.testing.assert_array_equal(again.pixels, mask.pixels)
    assert list(again.features) == list(mask.features)
    assert (again.features.settings, again.settings) == (mask.features.settings, {"fraction": 0.3, "seed": 7})


@pytest.mark.parametrize("text", ["", "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: a, datatype: int64}\na\n1\n", "\0"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "mask.ecsv").write_text(text)
    with pytest.raises(FileFormatError, match=r"mask\.ecsv is no file of masked features"):
        FeatureMask.read(tmp_path / "mask.ecsv")


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        FeatureMask.read(tmp_path / "absent.ecsv")


def test_a_mask_tells_what_it_does():
    mask = FeatureMask(find_features(FOUR), [True, False, False, False])
    assert repr(mask) == "<FeatureMask 1 of 4 features, 13 of 600 pixels, 0 other features touched>"
    assert repr(mask.features) == "<Features 4: 4 of Mg>"


def test_features_without_settings_can_be_made():
    features = find_features(FOUR)
    assert Features(features[:2], N).counts == {"Mg": 2}


# -- the model that ships ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("element", "air"), [("Mg", 15740.72), ("Mg", 15748.99), ("Mg", 15765.84), ("Si", 15888.41), ("Si", 16094.79)]
)
def test_the_shipped_model_has_features_where_laboratories_found_lines(pretrained, element, air):
    """Strong lines of Mg I and Si I, wavelengths from NIST; a saturated line has its peak beside its core."""
    line, wavelength = air_to_vacuum(air * u.AA), pretrained.grid.wavelength
    features = [f for f in find_features(pretrained) if f.element == element]
    assert any(wavelength[f.start] < line < wavelength[f.stop - 1] for f in features)
