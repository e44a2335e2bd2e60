"""Surveys that know something of each star: columns of fixed labels, of starts and of priors."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from stars import SIGMA, quantities, spectrum

from cyclestarnet import LabelError

TEFF = np.array([4600.0, 4750.0, 4900.0, 5050.0])
GRAVITY = u.dex(u.cm / u.s**2)
LOGG = np.array([2.4, 1.8, 2.1, 2.7])


@pytest.fixture(scope="module")
def stars(tiny_model):
    """Four stars with noise; the labels of the first three are about those of the columns."""
    values = np.stack([TEFF + 20, LOGG, np.full(4, -0.2)], axis=1)
    flux = tiny_model.predict(quantities(tiny_model, values), domain="synthetic").flux.value
    rng = np.random.default_rng(5)
    return [spectrum(tiny_model, rng.normal(row, SIGMA)) for row in flux]


@pytest.fixture
def many(tiny_model, stars):
    """Function that fits the stars in the space of the emulator."""

    def fit(spectra=None, **options):
        return tiny_model.fit_many(stars if spectra is None else spectra, space="emulator", progress=False, **options)

    return fit


def assert_rows(table, results):
    """The same labels and errors as those of fits one by one, to the last bit."""
    for name in ("teff", "logg", "mg_h"):
        assert table[name].value.tolist() == [result.labels[name].value for result in results], name
        assert table[f"{name}_err"].value.tolist() == [result.uncertainties[name].value for result in results], name


@pytest.mark.parametrize(
    "columns",
    [
        {"fixed": {"teff": TEFF * u.K}},
        {"fixed": {"teff": TEFF / 1000 * u.kK, "logg": LOGG}},
        {"fixed": {"teff": 4800 * u.K, "logg": LOGG}},
        {"start": {"teff": TEFF * u.K, "logg": LOGG * GRAVITY}},
        {"prior": {"teff": (TEFF * u.K, 30 * u.K), "logg": (2.0, np.array([0.1, 0.2, 0.3, 0.4]))}},
        {"prior": ["training", {"alpha_m": (-LOGG / 10, 0.02)}]},
    ],
    ids=lambda columns: next(iter(columns)),
)
def test_each_star_is_fitted_with_its_own_values(tiny_model, many, stars, columns):
    def of(value, k):
        if isinstance(value, dict):
            return {name: of(item, k) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(of(item, k) for item in value)
        return value[k] if np.ndim(value) else value

    singles = [tiny_model.fit(star, space="emulator", method="lm", **of(columns, k)) for k, star in enumerate(stars)]
    assert_rows(many(**columns), singles)


@pytest.mark.parametrize(
    "column",
    [
        Column(TEFF, unit="K"),
        MaskedColumn(TEFF, unit="K"),
        [value * u.K for value in TEFF],
        Masked(TEFF * u.K),
        QTable({"teff": TEFF * u.K, "teff_err": np.full(4, 50.0) * u.K, "object": list("abcd")}),
        Table({"teff": Column(TEFF, unit="K")}),
    ],
    ids=lambda column: type(column).__name__,
)
def test_columns_come_in_many_kinds(many, column):
    fixed = column if hasattr(column, "colnames") else {"teff": column}
    table = many(fixed=fixed)
    assert table["teff"].to_value(u.K).tolist() == TEFF.tolist()
    assert (table["teff_err"].value == 0).all()


@pytest.mark.parametrize("blank", [np.nan, "mask"])
@pytest.mark.parametrize("option", ["fixed", "start", "prior"])
def test_a_blank_is_no_value_for_that_star(tiny_model, many, stars, option, blank):
    column = MaskedColumn(TEFF, unit="K", mask=np.arange(4) == 2) if blank == "mask" else TEFF * u.K
    if blank != "mask":
        column[2] = np.nan * u.K
    table = many(**{option: {"teff": (column, 10 * u.K) if option == "prior" else column}})
    without = {"prior": None} if option == "prior" else {}
    assert_rows(table[2:3], [tiny_model.fit(stars[2], space="emulator", method="lm", **without)])


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"fixed": {"teff": [4600, 4750, 9000, 5050] * u.K}}, "'teff' = 9000 K is outside the training range"),
        ({"fixed": {"logg": [2.4, 1.8, np.inf, 2.7]}}, "'logg' is not finite"),
        ({"prior": {"logg": (LOGG, [0.1, 0.1, -0.1, 0.1])}}, "sigma of 'logg' must be positive"),
        ({"prior": {"logg": (LOGG, [0.1, 0.1, np.nan, 0.1])}}, "prior of 'logg' has a mean, but no sigma"),
    ],
)
def test_a_bad_value_costs_its_star_only(many, columns, told):
    table = many(**columns)
    assert table["flag_names"].tolist()[2] == "FAILED"
    assert told in table["message"][2]
    assert table["success"].tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"fixed": {"teff": TEFF[:3] * u.K}}, r"have 3 values, but there are 4 stars"),
        ({"fixed": {"teff": TEFF[:1] * u.K}}, r"have 1 values, but there are 4 stars"),
        ({"fixed": {"teff": TEFF * u.K}, "start": {"logg": LOGG[:2]}}, r"\{\"fixed\['teff'\]\": 4, \"start\['logg'\]"),
        ({"fixed": {"teff": TEFF}}, "must be a Quantity in K"),
        ({"fixed": {"teff": TEFF * u.m}}, "must have the unit K"),
        ({"fixed": {"Teff": TEFF * u.K}}, "did you mean 'teff'"),
        ({"fixed": {"teff": np.ones((4, 2)) * u.K}}, r"one for each star, but has the shape \(4, 2\)"),
        ({"fixed": {"logg": np.array(["a", "b", "c", "d"])}}, "must hold numbers"),
        ({"fixed": {"teff": TEFF * 3 * u.K}}, "outside the training range"),
        ({"fixed": {"teff": TEFF * u.K}, "bounds": {"teff": (4500 * u.K, 5000 * u.K)}}, "have no effect"),
        ({"fixed": QTable({"flux": TEFF})}, "no column of the table fixed is a label"),
        ({"prior": {"logg": LOGG}}, "must be a pair"),
        ({"prior": {"log_g": (LOGG, 0.1)}}, "did you mean 'logg'"),
    ],
)
def test_what_no_star_can_have_is_an_error_before_the_first(many, columns, told, monkeypatch):
    monkeypatch.setattr("cyclestarnet.model.fit_survey", None)
    with pytest.raises(LabelError, match=told):
        many(**columns)


def test_a_table_of_fits_is_a_start(many):
    first = many([*range(4)])  # what is no spectrum fails
    assert np.isnan(first["teff"]).all()
    table = many(start=first)  # where no label is known, the start is the usual one
    assert table["teff"].value.tolist() == many()["teff"].value.tolist()
    assert many(start=table)["success"].all()


def test_one_row_of_a_table_is_fixed_in_a_fit(tiny_model, stars):
    row = QTable({"teff": TEFF * u.K, "snr": LOGG})[1]
    assert tiny_model.fit(stars[0], space="emulator", fixed=row)["teff"] == 4750 * u.K


def test_a_column_is_for_many_stars(tiny_model, stars):
    with pytest.raises(LabelError, match=r"shape \(4,\); a value per star is for fit_many"):
        tiny_model.fit(stars[0], fixed={"teff": TEFF * u.K})


@pytest.mark.parametrize(("n", "told"), [(3, "there are 3 stars"), (5, "there are 5 or more stars")])
def test_a_generator_must_have_as_many_stars(many, stars, n, told):
    assert len(many((star for star in stars), fixed={"teff": TEFF * u.K})) == 4
    with pytest.raises(LabelError, match=told):
        many((stars[k % 4] for k in range(n)), fixed={"teff": TEFF * u.K})


@pytest.mark.usefixtures("quick_workers")
def test_workers_know_which_star_has_which_value(many, stars):
    """More stars than fit in a block."""
    column = np.linspace(4500, 5200, 40) * u.K
    table = many(stars * 10, fixed={"teff": column, "logg": 2.0}, workers=2)
    assert table["teff"].value.tolist() == column.value.tolist()


def test_a_journal_of_other_values_is_refused(many, stars, tmp_path):
    output, column = tmp_path / "t.ecsv", TEFF * u.K

    def torn():
        yield from stars
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        many(torn(), output=output, fixed={"teff": column})
    other = column.copy()
    other[3] += 1 * u.K
    for changed in ({"fixed": {"teff": other}}, {"start": {"teff": column}}, {"fixed": {}}):
        with pytest.raises(FileExistsError, match="another, unfinished run"):
            many((star for star in stars), output=output, **changed)
    table = many((star for star in stars), output=output, fixed={"teff": list(column)})
    assert table["teff"].value.tolist() == column.value.tolist()
