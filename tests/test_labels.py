"""Labels go by name, with units, and inside a range."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable, Table

from cyclestarnet.exceptions import LabelError
from cyclestarnet.labels import LabelSet, difference_unit, kelvin_scale, unit_of_label

DEX_LOGG = u.dex(u.cm / u.s**2)


@pytest.fixture
def labels():
    return LabelSet(
        ["teff", "logg", "mg_h", "fe_h"],
        [3500, 0, -2, -2],
        [6000, 4, 0.5, 0.5],
        {"mg_fe": {"mg_h": 1, "fe_h": -1}},
    )


@pytest.fixture
def star():
    return {"teff": 4800 * u.K, "logg": 2.5 * DEX_LOGG, "mg_h": -0.1 * u.dex, "fe_h": -0.4 * u.dex}


@pytest.mark.parametrize(("name", "unit"), [("teff", u.K), ("logg", DEX_LOGG), ("vmicro", u.km / u.s), ("xx_h", u.dex)])
def test_every_label_name_has_a_unit(name, unit):
    assert unit_of_label(name) == unit


@pytest.mark.parametrize(("name", "unit"), [("teff", u.K), ("logg", u.dex), ("mg_h", u.dex)])
def test_difference_of_logarithmic_gravities_is_in_dex(name, unit):
    assert difference_unit(name) == unit


def test_to_array_is_in_the_order_of_the_set(labels, star):
    reversed_star = dict(reversed(star.items()))
    np.testing.assert_allclose(labels.to_array(reversed_star), [4800, 2.5, -0.1, -0.4])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("teff", 4.8 * u.kK, 4800),
        ("logg", 2.5, 2.5),
        ("logg", 2.5 * u.dex, 2.5),
        ("logg", 2.5 * u.one, 2.5),
        ("logg", 0.5 * u.dex(u.m / u.s**2), 2.5),
        ("mg_h", -0.3, -0.3),
    ],
)
def test_value_converts_to_the_unit_of_the_label(labels, name, value, expected):
    assert labels.value(name, value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("teff", 4800, r"'teff' must be a Quantity in K, but got the bare number 4800; write"),
        ("teff", 4800 * u.m, r"'teff' must have the unit K, but got 'm'"),
        ("logg", 2.5 * u.K, r"'logg' must have the unit dex\(cm / s2\)"),
        ("mg_h", np.nan, r"'mg_h' is not finite"),
        ("teff", [4800, np.inf] * u.K, r"'teff' is not finite"),
    ],
)
def test_value_refuses_wrong_units_and_numbers(labels, name, value, message):
    with pytest.raises(LabelError, match=message):
        labels.value(name, value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Teff", r"Unknown label 'Teff'; did you mean 'teff'\?"),
        ("mgh", r"did you mean 'mg_h'\?"),
        ("zzzzzz", r"known labels: teff, logg, mg_h, fe_h, mg_fe"),
        ("mg_fe", r"combination of \['fe_h', 'mg_h'\]: name one of those"),
    ],
)
def test_unknown_name_suggests_another(labels, name, message):
    with pytest.raises(LabelError, match=message):
        labels.index(name)


def test_missing_label_is_named(labels, star):
    del star["logg"]
    with pytest.raises(LabelError, match=r"\['logg'\] are missing; this model needs teff, logg, mg_h, fe_h"):
        labels.to_array(star)


def test_misspelt_label_is_not_ignored(labels, star):
    with pytest.raises(LabelError, match="did you mean"):
        labels.to_array(star | {"feh": 0.0})


def test_arrays_of_stars_broadcast(labels, star):
    star["teff"] = [4000, 4500, 5000] * u.K
    assert labels.to_array(star).shape == (3, 4)


@pytest.mark.parametrize("kind", [QTable, Table])
def test_tables_are_taken_with_their_units(labels, star, kind):
    table = kind(QTable({name: u.Quantity([value, value], subok=True) for name, value in star.items()}))
    np.testing.assert_allclose(labels.to_array(table), [[4800, 2.5, -0.1, -0.4]] * 2)


def test_masked_values_are_refused(labels, star):
    table = Table(QTable({name: u.Quantity([value], subok=True) for name, value in star.items()}), masked=True)
    table["logg"].mask = True
    with pytest.raises(LabelError, match="'logg' is masked"):
        labels.to_array(table)


def test_range_check_names_label_value_and_range(labels, star):
    star["teff"] = 9000 * u.K
    with pytest.raises(LabelError, match=r"'teff' = 9000 K is outside the training range 3500 to 6000 K"):
        labels.to_array(star, check_range=True)


def test_range_check_refuses_nan(labels):
    with pytest.raises(LabelError, match="'mg_h' = nan"):
        labels.check_range([4800, 2.5, np.nan, 0])


def test_edges_of_the_range_are_inside(labels):
    assert labels.check_range([labels.lower, labels.upper]) is None


def test_quantities_survive_the_round_trip(labels, star):
    back = labels.to_quantities(labels.to_array(star))
    assert all(u.isclose(back[name], star[name]) for name in ("teff", "mg_h", "fe_h"))
    assert back["logg"].unit == DEX_LOGG


def test_combinations_are_computed(labels, star):
    assert u.isclose(labels.to_quantities(labels.to_array(star))["mg_fe"], 0.3 * u.dex)


def test_combination_matrix_has_the_weights(labels):
    np.testing.assert_array_equal(labels.combination_matrix, [[0, 0, 1, -1]])


def test_plain_data_round_trip(labels):
    assert LabelSet(**labels.to_dict()) == labels


def test_sets_with_other_ranges_differ(labels):
    other = labels.to_dict() | {"lower": [3000, 0, -2, -2]}
    assert LabelSet(**other) != labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["teff", "teff"], [0, 0], [1, 1]), "must be unique"),
        (([], [], []), "at least one"),
        ((["teff"], [0, 1], [1, 2]), r"must have shape \(1,\)"),
        ((["teff"], [5], [5]), r"range of \['teff'\] is empty"),
        ((["teff"], [np.nan], [5]), r"range of \['teff'\] is empty"),
        ((["mg_h"], [0], [1], {"mg_h": {"mg_h": 1}}), "has the name of a label"),
        ((["mg_h"], [0], [1], {"a": {"si_h": 1}}), "Unknown label 'si_h'"),
    ],
)
def test_impossible_sets_are_refused(arguments, message):
    with pytest.raises(LabelError, match=message):
        LabelSet(*arguments)


def test_bounds_cannot_be_changed(labels):
    with pytest.raises(ValueError, match="read-only"):
        labels.lower[0] = 0


def test_caller_keeps_its_own_bounds():
    lower = np.zeros(1)
    labels = LabelSet(["teff"], lower, [1])
    lower[0] = 0.5  # still writeable
    assert labels.lower[0] == 0


def test_table_shows_units_and_ranges(labels):
    table = labels.to_table()
    assert list(table["unit"]) == ["K", "dex(cm / s2)", "dex", "dex"]
    assert "teff" in labels._repr_html_()


def test_a_notebook_shows_all_labels_and_short_numbers():
    """Twenty-two labels are more rows than astropy shows of a table; 1/3 has more digits than anybody reads."""
    names = [f"x{k}_h" for k in range(22)]
    text = LabelSet(names, np.full(22, -1 / 3), np.ones(22))._repr_html_()
    assert all(f"<td>{name}</td>" in text for name in names)
    assert "<td>-0.3333</td>" in text


def test_container_protocol(labels):
    assert "teff" in labels
    assert "mg_fe" not in labels
    assert list(labels) == ["teff", "logg", "mg_h", "fe_h"]
    assert len(labels) == 4


def test_scale_is_the_width_of_the_range(labels):
    np.testing.assert_array_equal(labels.scale, [2500, 4, 2.5, 2.5])


@pytest.mark.parametrize(
    ("values", "scale"),
    [([[np.nan, 2], [4.5, 3]], [1000, 1]), ([4.5, 2], [1000, 1]), ([[4500, 2]], [1, 1]), ([[np.nan, 2]], [1, 1])],
)
def test_teff_in_units_of_1000_kelvin_is_told_by_its_size(values, scale):
    np.testing.assert_array_equal(kelvin_scale(("teff", "logg"), values), scale)


def test_labels_without_teff_have_no_scale():
    np.testing.assert_array_equal(kelvin_scale(("logg", "m_h"), [[2, 0.1]]), [1, 1])


def test_arrays_of_several_shapes_are_named(labels, star):
    with pytest.raises(LabelError, match=r"must be of one shape.*'logg': \(3,\)"):
        labels.to_array(star | {"teff": [4000, 5000] * u.K, "logg": [1, 2, 3]})


def test_labels_must_have_names(labels):
    with pytest.raises(LabelError, match=r"must be a mapping of name to value or a table.* of class list"):
        labels.to_array([4000, 2.0, 0.0])
