"""Line lists of MOOG, VALD and archives, and what in them missing lines may be."""

import gzip
import tracemalloc
import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable, Table

from cyclestarnet.exceptions import CycleStarNetWarning, FileFormatError
from cyclestarnet.grid import air_to_vacuum
from cyclestarnet.lines import as_line_list, match_lines, read_line_list

# K I 15163.067 in air is 15167.211 in vacuum, from its energy levels.
AIR, VACUUM = 15163.067, 15167.211

MOOG = """a title
 15163.067      19.0     2.670     0.630
 15500.000      26.1     3.100    -2.500       0.1
 15600.000 607.01214     0.900    -1.900               7.724
"""

# Laid out as VALD-3 does; the numbers are made up but for the wavelength of K I.
SHORT_ALL = """\
                                             Damping parameters   Lande
Elm Ion       WL_air(A) Excit(eV) log gf*   Rad.  Stark    Waals  factor   References
'K 1',      15163.06700,    2.670,  0.630, 8.350,-6.530,-7.840,  1.270,'   1 wl:AAA   1 AAA   1 gf:AAA   K'
'CN 1',     15200.00000,    1.100, -1.540, 8.350, 0.000, 0.000, 99.000,'   2 wl:BBB   2 BBB   2 gf:BBB   CN'
* oscillator strengths were scaled by the solar isotopic ratios.
 References:
  1. An author
"""
SHORT_STELLAR = """\
 15160.00000, 15210.00000, 2, 3097, 1.5 Wavelength region, lines selected, lines processed, Vmicro
                                                 Damping parameters   Lande  Central
Spec Ion       WL_vac(nm) Excit(cm^-1) Vmic log gf*  Rad.   Stark  Waals  factor  depth  Reference
'K 1',       1516.72110, 21535.000, 1.5,  0.630, 8.350,-6.530,-7.840,  1.270, 0.300, 'AAA'
'Fe 2',      1520.00000, 24197.000, 1.5, -1.540, 8.350,-6.530,-7.840,  1.270, 0.200, 'BBB'
'19000G50.KRZ',
'H :  0.92','He: -1.11',
'Es:-20.00','END'
"""
LONG_ALL = """\
                                                                     Lande factors        Damping parameters
Elm Ion       WL_air(A)  log gf* E_low(eV) J lo  E_up(eV) J up   lower   upper    mean   Rad.  Stark    Waals
'K 1',      15163.06700,   0.630,  2.6700,  1.5,  3.4870,  2.5,  1.080,  1.500,  0.650, 8.310,-4.710,-7.660,
'  LS                                                                         3p6.3d 2D'
'  LS                                                                         3p6.4f 2F*'
'_          An author         1 wl:AAA   1 gf:AAA   1 AAA   1 AAA   1 AAA   1 AAA   1 AAA   1 AAA   1 AAA    K'
'Fe 2',     15500.00000,  -2.834,  5.9465,  2.0,  6.7464,  3.0,  1.500,  0.870,  0.240, 6.300,-3.040,-6.660,
  LS                                                                        3d6.4s.11p 3P*
  LS                                                                          3d6.3d.7g 3G
'_      A   An author         1 wl:AAA   1 gf:AAA   1 AAA   1 AAA   1 AAA   1 AAA   1 AAA   1 AAA   1 AAA   Fe+'
 References:
  1. An author
"""


@pytest.fixture
def read(tmp_path):
    """Function that reads a text as a file."""

    def read(text, **settings):
        path = tmp_path / "lines.txt"
        path.write_text(text)
        return read_line_list(path, **settings)

    return read


# -- MOOG --------------------------------------------------------------------------
def test_moog_columns(read):
    lines = read(MOOG, medium="vacuum")
    assert lines["wavelength"].unit == u.AA
    assert lines["ep"].unit == u.eV
    np.testing.assert_array_equal(lines["wavelength"].value, [15163.067, 15500, 15600])
    np.testing.assert_array_equal(lines["ep"].value, [2.67, 3.1, 0.9])
    np.testing.assert_array_equal(lines["log_gf"], [0.63, -2.5, -1.9])
    assert list(lines["species"]) == ["K I", "Fe II", "CN"]
    assert list(lines["elements"]) == ["K", "Fe", "C N"]


def test_wavelengths_in_air_are_converted(read):
    assert read(MOOG, medium="air")["wavelength"][0].value == pytest.approx(VACUUM, abs=1e-3)


def test_wavelengths_below_2000_angstrom_are_never_in_air(read):
    assert read("title\n 1800.5 14.0 0.0 -1.0\n", medium="air")["wavelength"][0].value == 1800.5


def test_the_medium_of_a_moog_list_must_be_given(read):
    with pytest.raises(ValueError, match="medium='air'"):
        read(MOOG)


def test_compressed_lists_are_read(tmp_path):
    path = tmp_path / "lines.dat.gz"
    path.write_bytes(gzip.compress(MOOG.encode()))
    assert len(read_line_list(path, medium="air")) == 3


def test_truncated_gzip_is_a_format_error(tmp_path):
    path = tmp_path / "lines.dat.gz"
    path.write_bytes(gzip.compress(MOOG.encode())[:40])
    with pytest.raises(FileFormatError, match="truncated"):
        read_line_list(path, medium="air")


@pytest.mark.parametrize(
    ("code", "species", "elements"),
    [
        ("26.0", "Fe I", "Fe"),
        ("56.1152", "Ba II", "Ba"),  # an isotope
        ("106.00112", "CH", "C H"),
        ("108.00000", "OH", "O H"),
        ("117.00135", "HCl", "H Cl"),
        ("126.00000", "FeH", "Fe H"),
        ("606.01212", "C2", "C"),
        ("607.01314", "CN", "C N"),
        ("608.01216", "CO", "C O"),
        ("822.01648", "TiO", "Ti O"),
        ("10108.0", "H2O", "H O"),
    ],
)
def test_species_codes(read, code, species, elements):
    line = read(f"title\n 15500.0 {code} 1.0 -1.0\n", medium="vacuum")[0]
    assert (line["species"], line["elements"]) == (species, elements)


def test_columns_of_ten_characters_may_touch(read):
    line = read("title\n15163.0670608.012160     2.670-0.6300000\n", medium="vacuum")[0]
    assert (line["wavelength"].value, line["species"], line["log_gf"]) == (15163.067, "CO", -0.63)


def test_lines_are_sorted_and_parts_of_blends_kept(read):
    lines = read("title\n15500. 26.0 1. -1.\n-15400. 14.0 1. -1.\n", medium="vacuum")
    assert lines["wavelength"].value.tolist() == [15400, 15500]
    assert list(lines["species"]) == ["Si I", "Fe I"]


def test_moog_energies_above_50_are_wavenumbers(read):
    lines = read("title\n15500. 26.0 8065.544 -1.\n15600. 26.0 0.0 -1.\n", medium="vacuum")
    np.testing.assert_allclose(lines["ep"].value, [1, 0], atol=1e-6)


@pytest.mark.parametrize(
    "bad", [" 15500.000 26.0 3.1", " 15500.000 Fe 3.1 -1.0", " 15500.0 26.0 nan -1.0", " 15500. 26.0 1. --"]
)
def test_malformed_moog_lines_are_named(read, bad):
    with pytest.raises(FileFormatError, match=r"lines.txt, line 3: expected wavelength in Angstrom, species code"):
        read("title\n 15400.0 26.0 1.0 -1.0\n" + bad, medium="air")


def test_unknown_species_codes_are_named(read):
    with pytest.raises(FileFormatError, match=r"line 2: 2600\.0 is no species code"):
        read("title\n 15400.0 2600.0 1.0 -1.0\n", medium="air")


def test_a_file_without_lines_is_a_format_error(read):
    with pytest.raises(FileFormatError, match="no lines"):
        read("only a title\n", medium="air")


@pytest.mark.needs_shared
def test_list_of_the_moog_grid(shared):
    lines = read_line_list(shared / "data/moog_grid/lines_grid.dat.gz", medium="vacuum")
    assert len(lines) == 21242
    assert np.all(np.diff(lines["wavelength"]) >= 0)
    atoms = np.char.count(np.asarray(lines["species"]), " ").sum()
    counts = {name: np.count_nonzero(lines["species"] == name) for name in ("CN", "CO", "OH", "HCl", "FeH")}
    assert atoms == 4539
    assert counts == {"CN": 6652, "CO": 4726, "OH": 1506, "HCl": 194, "FeH": 3625}
    potassium = lines[lines["species"] == "K I"]["wavelength"].value
    assert np.min(np.abs(potassium - VACUUM)) < 2e-3


# -- VALD --------------------------------------------------------------------------
def test_short_format_of_extract_all(read):
    lines = read(SHORT_ALL)
    assert list(lines["species"]) == ["K I", "CN"]
    assert list(lines["elements"]) == ["K", "C N"]
    assert lines["wavelength"][0].value == pytest.approx(VACUUM, abs=1e-3)
    assert lines["ep"].value.tolist() == [2.67, 1.1]
    assert list(lines["log_gf"]) == [0.63, -1.54]


def test_short_format_of_extract_stellar_in_other_units(read):
    lines = read(SHORT_STELLAR)
    assert list(lines["species"]) == ["K I", "Fe II"]
    assert list(lines["log_gf"]) == [0.63, -1.54]
    np.testing.assert_allclose(lines["wavelength"].value, [VACUUM, 15200])
    np.testing.assert_allclose(lines["ep"].value, [2.67, 3.0], atol=1e-4)  # 8065.544 / cm per eV


def test_long_format(read):
    lines = read(LONG_ALL)
    assert list(lines["species"]) == ["K I", "Fe II"]
    assert list(lines["log_gf"]) == [0.63, -2.834]
    assert lines["wavelength"][0].value == pytest.approx(VACUUM, abs=1e-3)
    assert lines["ep"].value.tolist() == [2.67, 5.9465]


def test_wavenumbers_of_vald_are_in_vacuum(read):
    text = SHORT_ALL.replace("WL_air(A)", "WL_vac(cm^-1)").replace("15163.06700", "6593.170")
    assert read(text)["wavelength"].max().value == pytest.approx(1e8 / 6593.170)
    with pytest.raises(FileFormatError, match="WL_air"):
        read(text.replace("WL_vac", "WL_air"))


def test_the_header_tells_the_medium(read):
    assert read(SHORT_ALL.replace("WL_air", "WL_vac"))["wavelength"][0].value == AIR
    with pytest.raises(ValueError, match=r"'vacuum', but the header of .* says WL_air\(A\)"):
        read(SHORT_ALL, medium="vacuum")


def test_vald_lists_without_header_are_format_errors(read):
    with pytest.raises(FileFormatError, match="no header of VALD"):
        read(SHORT_ALL.partition("Elm")[2].partition("\n")[2], format="vald")


@pytest.mark.parametrize(
    "bad", ["'Fe 1', 15180.0000, 3.0", "'Fe 1', 15180.0000, abc, -1.0, 0.0", "Fe 1, 15180.0, 3.0, -1.0"]
)
def test_malformed_vald_lines_are_named(read, bad):
    text = SHORT_ALL.replace("'CN 1'", bad + "\n'CN 1'")
    with pytest.raises(FileFormatError, match=r"lines.txt, line 4: expected a species in quotes, WL_air\(A\), Excit"):
        read(text)


def test_truncated_vald_lists_are_told(read):
    with pytest.raises(FileFormatError, match="announces 3 lines but holds 2"):
        read(SHORT_STELLAR.replace(", 2, 3097", ", 3, 3097"))
    with pytest.raises(FileFormatError, match="line 7: expected 4 lines per record"):
        read(LONG_ALL.partition("\n  LS   ")[0])


# -- tables ------------------------------------------------------------------------
def test_plain_columns():
    table = Table({"wave": [1516.7211] * u.nm, "Species": ["Fe 1"], "loggf": [-1.0], "E_low(cm-1)": [8065.544]})
    lines = as_line_list(table, medium="vacuum")
    assert lines.colnames == ["wavelength", "species", "elements", "log_gf", "ep"]
    line = lines[0]
    assert (line["species"], line["elements"], line["log_gf"]) == ("Fe I", "Fe", -1.0)
    np.testing.assert_allclose([line["wavelength"].value, line["ep"].value], [VACUUM, 1], rtol=1e-6)


def test_tables_of_nist():
    """Two rows as of astroquery.nist: energies are text, wavelengths may be masked, no column names the spectrum."""
    table = Table({"Observed": MaskedColumn([15168.0, 15172.521], mask=[True, False]), "Ritz": ["15167.211+", ""]})
    table["Ei           Ek"] = ["[2.670] - 3.487", "2.670 - 3.487"]
    for name, unit in (("Observed", "Angstrom"), ("Ritz", "Angstrom"), ("Ei           Ek", "eV")):
        table[name].unit = unit
    lines = as_line_list(table, medium="vacuum", species="K I")
    assert lines["wavelength"].value.tolist() == [15167.211, 15172.521]
    assert lines["ep"].value.tolist() == [2.67, 2.67]
    assert np.all(np.isnan(lines["log_gf"]))
    assert list(lines["elements"]) == ["K", "K"]


@pytest.mark.parametrize(("name", "value"), [("LAMBDA VAC ANG", VACUUM), ("LAMBDA AIR ANG", AIR)])
def test_tables_of_the_atomic_line_list(name, value):
    table = Table({name: [value], "SPECTRUM": ["K I"], "TT": ["E1"], "LEVEL ENERGY  CM 1": ["21535.0 - 28127.85"]})
    line = as_line_list(table)[0]
    assert line["wavelength"].value == pytest.approx(VACUUM, abs=1e-3)
    assert line["ep"].value == pytest.approx(2.67, abs=1e-4)


def test_line_lists_stay_as_they_are(read):
    lines = read(MOOG, medium="air")
    again = as_line_list(lines)
    assert again.colnames == lines.colnames
    assert all(np.all(again[name] == lines[name]) for name in lines.colnames)


def test_rows_without_wavelength_are_left_out():
    table = Table({"wavelength": [np.nan, 15500] * u.AA, "species": ["Fe I", "Si I"]})
    assert list(as_line_list(table, medium="vacuum")["species"]) == ["Si I"]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"wavelength": [15500.0], "species": ["Fe I"]}, {"medium": "air"}, r"set table\['wavelength'\].unit = 'Ang"),
        ({"wavelength": [1.0] * u.s, "species": ["Fe I"]}, {"medium": "air"}, "must have a unit such as 'Angstrom'"),
        ({"wavelength": [15500.0] * u.AA, "species": ["Fe I"]}, {}, "give medium='vacuum' or medium='air'"),
        ({"wl_air": [15500.0] * u.AA, "species": ["Fe I"]}, {"medium": "vacuum"}, "'wl_air' is in air"),
        ({"wl_air": [15500.0] * u.AA}, {}, "no column of species"),
        ({"position": [15500.0] * u.AA, "species": ["Fe I"]}, {}, "no column of wavelengths"),
        ({"wl_air": [15500.0] * u.AA, "species": ["FeI"]}, {}, "'Fe I', 'Fe 1', 'CN' or 26.0, but one is 'FeI'"),
        ({"wl_air": [15500.0] * u.AA, "species": ["Xy I"]}, {}, "but one is 'Xy I'"),
        ({"wl_air": [15500.0] * u.AA, "species": ["Fe I"], "ep": [3.0]}, {}, r"set table\['ep'\].unit = 'eV'"),
        ({"wl_air": [15500.0] * u.AA, "species": ["Fe I"]}, {"medium": "glass"}, "'vacuum' or 'air', but is 'glass'"),
    ],
)
def test_errors_say_what_is_right(columns, settings, message):
    with pytest.raises(ValueError, match=message):
        as_line_list(Table(columns), **settings)


# -- matching ----------------------------------------------------------------------
def line_list(*rows):
    """Of (wavelength in vacuum, species, log gf, ep in eV)."""
    wavelength, species, log_gf, ep = zip(*rows, strict=True)
    table = {"wavelength": wavelength * u.AA, "species": species, "log_gf": log_gf, "ep": ep * u.eV}
    return as_line_list(Table(table), medium="vacuum")


def catalogue(*rows, names=("C", "N", "Fe", "Si"), error=0.02, width=0.6):
    """Of (wavelength, probabilities by name)."""
    table = QTable({"wavelength": [row[0] for row in rows] * u.AA})
    table["wavelength_err"] = np.full(len(rows), error) * u.AA
    table["width"] = np.full(len(rows), width) * u.AA
    table["probabilities"] = np.array([[p.get(name, 0.0) for name in names] for _, p in rows]).reshape(-1, len(names))
    table.meta["elements"] = list(names)
    return table


def test_the_closest_of_equal_lines_wins():
    lines = line_list((15500.00, "Fe I", -1, 5), (15500.30, "Fe I", -1, 5))
    match = match_lines(catalogue((15500.20, {"Fe": 1})), lines).filled(0)[0]
    assert match["line_wavelength"].value == 15500.30
    assert match["line_offset"].to_value(u.AA) == pytest.approx(0.10)
    assert (match["species"], match["log_gf"], match["ep"].value) == ("Fe I", -1, 5)


def test_the_likelier_element_wins_where_lines_are_as_close():
    lines = line_list((15500.00, "Fe I", -1, 5), (15500.00, "Si I", -1, 5))
    for element in ("Fe", "Si"):
        assert match_lines(catalogue((15500.1, {element: 1})), lines)["species"][0] == f"{element} I"


def test_molecules_collect_the_probabilities_of_their_elements():
    lines = line_list((15500.00, "CN", -1, 1), (15500.00, "Fe I", -1, 5))
    assert match_lines(catalogue((15500, {"C": 0.3, "N": 0.3, "Fe": 0.4})), lines)["species"][0] == "CN"
    assert match_lines(catalogue((15500, {"C": 0.2, "N": 0.2, "Fe": 0.6})), lines)["species"][0] == "Fe I"


def test_the_stronger_line_of_a_species_wins():
    """At 4500 K, 1 eV costs 1.12 dex; at 50,400 K, 0.1 dex."""
    lines = line_list((15500.0, "Fe I", -1.0, 6.0), (15500.0, "Fe I", -1.5, 5.0))
    found = catalogue((15500.0, {"Fe": 1}))
    assert match_lines(found, lines)["log_gf"][0] == -1.5
    assert match_lines(found, lines, temperature=50_400 * u.K)["log_gf"][0] == -1.0


def test_scores_follow_the_formula():
    """Two lines that tie: ln(0.6 / 0.4) nats of probability against as many of a Gaussian with σ = tolerance / 3."""
    for factor, species in ((0.99, "Si I"), (1.01, "Fe I")):
        offset = factor * 0.12 / 3 * np.sqrt(2 * np.log(0.6 / 0.4))
        lines = line_list((15500.0, "Fe I", -1, 5), (15500.0 + offset, "Si I", -3, 0))
        found = catalogue((15500.0, {"Fe": 0.4, "Si": 0.6}))
        assert match_lines(found, lines, tolerance=0.12 * u.AA)["species"][0] == species


def test_a_tenfold_strength_is_worth_half_as_many_nats():
    """The weaker line, 1 dex below, is nearer by more or less than ln(10) / 2 nats."""
    for factor, log_gf in ((0.99, 0.0), (1.01, -1.0)):
        offset = factor * 0.12 / 3 * np.sqrt(np.log(10))
        lines = line_list((15500.0, "Fe I", -1, 2), (15500.0 + offset, "Fe I", 0, 2))
        assert match_lines(catalogue((15500.0, {"Fe": 1})), lines, tolerance=0.12 * u.AA)["log_gf"][0] == log_gf


def test_strength_counts_within_a_species_only():
    """The strongest Si I of the list is as good as the strongest Fe I, which is 3 dex stronger."""
    lines = line_list((15500.0, "Fe I", -1, 2), (15500.01, "Si I", -4, 2))
    assert match_lines(catalogue((15500.01, {"Fe": 0.5, "Si": 0.5})), lines)["species"][0] == "Si I"


def test_default_tolerance():
    """3 x 0.02 + 0.6 / 2 = 0.36 Angstrom."""
    lines = line_list((15500.0, "Fe I", -1, 5))
    near, far = match_lines(catalogue((15500.35, {"Fe": 1}), (15500.37, {"Fe": 1})), lines)["candidates"]
    assert near == "Fe I 15500.000"
    assert far == ""


def test_rows_without_candidates_are_masked():
    match = match_lines(catalogue((15400.0, {}), (15500.0, {})), line_list((15500.0, "Fe I", -1, 5)))
    for name in ("species", "line_wavelength", "line_offset", "log_gf", "ep"):
        assert match[name].mask.tolist() == [True, False], name


def test_candidates_are_the_best_in_order():
    lines = line_list(*((15500 + 0.01 * n, "Fe I", -1, 5) for n in range(5)))
    assert match_lines(catalogue((15500.0, {"Fe": 1})), lines, n_best=2)["candidates"][0] == (
        "Fe I 15500.000, Fe I 15500.010"
    )


def test_lists_without_strengths_are_matched():
    table = Table({"wavelength": [15500.0, 15500.1] * u.AA, "species": ["Fe I", "Si I"]})
    match = match_lines(catalogue((15500.02, {"Fe": 1})), as_line_list(table, medium="vacuum"))
    assert match["species"][0] == "Fe I"
    assert match["log_gf"].mask[0]
    assert match["ep"].mask[0]


def test_elements_that_the_catalogue_does_not_know_may_match():
    match = match_lines(catalogue((15500.0, {"Fe": 1})), line_list((15500.0, "Y II", -1, 2)))
    assert match["species"][0] == "Y II"


def test_the_catalogue_stays_as_it_is():
    found = catalogue((15500.0, {"Fe": 1}))
    match = match_lines(found, line_list((15500.0, "Fe I", -1, 5)))
    assert "species" not in found.colnames
    assert match.meta["elements"] == found.meta["elements"]


@pytest.mark.parametrize("n_rows", [0, 2])
def test_empty_catalogues_and_lists(n_rows):
    lines = line_list((15500.0, "Fe I", -1, 5))
    assert len(match_lines(catalogue(), lines)) == 0
    match = match_lines(catalogue(*[(15500.0, {"Fe": 1})] * n_rows), lines[:0])
    assert np.all(match["species"].mask)
    assert len(match) == n_rows


def test_missing_columns_are_named():
    lines = line_list((15500.0, "Fe I", -1, 5))
    with pytest.raises(ValueError, match="lacks probabilities"):
        match_lines(catalogue((15500.0, {}))["wavelength", "wavelength_err", "width"], lines)
    with pytest.raises(ValueError, match="lacks elements; pass it through as_line_list first"):
        match_lines(catalogue((15500.0, {})), lines["wavelength", "species", "log_gf", "ep"])
    with pytest.raises(ValueError, match="n_best must be 1 or more"):
        match_lines(catalogue((15500.0, {})), lines, n_best=0)


# -- media -------------------------------------------------------------------------
def random_lines(rng, n, spacing=0.5):
    """Many lines, and a catalogue of some of them with errors of 0.02 Angstrom."""
    wavelength = 15200 + spacing * np.arange(n) + rng.uniform(-0.2, 0.2, n)
    species = rng.choice(["Fe I", "Si I", "CN"], n)
    lines = line_list(*zip(wavelength, species, rng.uniform(-3, 0, n), rng.uniform(0, 6, n), strict=True))
    chosen = np.sort(rng.choice(n, 60, replace=False))
    share = {"Fe I": {"Fe": 1}, "Si I": {"Si": 1}, "CN": {"C": 0.5, "N": 0.5}}
    return lines, catalogue(*((wavelength[i] + rng.normal(0, 0.02), share[species[i]]) for i in chosen)), chosen


def test_lists_in_the_wrong_medium_are_told(rng):
    lines, found, _ = random_lines(rng, 2000)
    in_air = lines.copy()
    in_air["wavelength"] -= air_to_vacuum(lines["wavelength"]) - lines["wavelength"]
    with pytest.warns(CycleStarNetWarning, match="its wavelengths may be in air"):
        match_lines(found, in_air)
    twice = lines.copy()
    twice["wavelength"] = air_to_vacuum(lines["wavelength"])
    with pytest.warns(CycleStarNetWarning, match="in vacuum but read with medium='air'"):
        match_lines(found, twice)


def test_lists_in_vacuum_give_no_warning_and_the_right_lines(rng):
    lines, found, chosen = random_lines(rng, 2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        match = match_lines(found, lines)
    assert np.mean(match["line_wavelength"].unmasked == lines["wavelength"][chosen]) > 0.9


def test_large_catalogues_are_matched_without_comparing_all_with_all(rng):
    """That would take 84 MB."""
    lines, found, _ = random_lines(rng, 21_000, spacing=0.09)
    found = found[rng.integers(0, len(found), 500)]
    tracemalloc.start()
    try:
        match_lines(found, lines)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6


# -- what a list must hold -------------------------------------------------------
BARE_MOOG = " 15163.067 19.0 2.670 0.630\n 15168.376 19.0 2.670 0.480\n"


def test_moog_without_a_title_keeps_its_first_line(tmp_path):
    (tmp_path / "a").write_text(BARE_MOOG)
    (tmp_path / "b").write_text("a title\n" + BARE_MOOG)
    bare, titled = (read_line_list(tmp_path / name, medium="air") for name in "ab")
    assert len(bare) == len(titled) == 2
    assert list(bare["wavelength"]) == list(titled["wavelength"])


SHORT_VALD = "    WL_air(A)  Excit(eV) Vmic log gf*\n"
SHORT_VALD += "'Fe 1',  {0},  5.0, 1.0, {1}, 0, 0, 0\n'Fe 1',  15195.0,  5.0, 1.0, -1.0, 0, 0, 0\n"
NOTES = "* oscillator strengths were scaled\n"


def test_vald_that_ends_without_notes_may_be_cut(tmp_path):
    (tmp_path / "a").write_text(SHORT_VALD.format(15194.0, -1.0))
    with pytest.warns(CycleStarNetWarning, match="ends after 2 lines without the notes"):
        assert len(read_line_list(tmp_path / "a")) == 2
    (tmp_path / "a").write_text(SHORT_VALD.format(15194.0, -1.0) + NOTES)
    assert len(read_line_list(tmp_path / "a")) == 2
