"""Words and UCDs of the columns of results, which VOTables keep."""

import io

import numpy as np
import pytest
from astropy.io.votable import from_table
from astropy.io.votable.ucd import check_ucd
from astropy.table import QTable, Table
from stars import STAR, spectrum

from cyclestarnet.descriptions import described


@pytest.fixture(scope="module")
def star(tiny_model):
    return spectrum(tiny_model, tiny_model.predict(STAR).flux.value)


@pytest.fixture(scope="module")
def table(tiny_model, star):
    return tiny_model.fit_many([star, "not there.fits"], progress=False)


def test_every_column_says_what_it_is_in_controlled_words(table):
    for name in table.colnames:
        info = table[name].info
        assert info.description, name
        assert check_ucd(info.meta["ucd"], check_controlled_vocabulary=True, has_colon=True), name


def test_a_fit_and_a_survey_say_the_same(table, tiny_model, star):
    row = tiny_model.fit(star).to_table()
    assert [row[name].info.description for name in row.colnames] == [
        table[name].info.description for name in row.colnames
    ]


def test_votable_keeps_them(table):
    out = io.BytesIO()
    from_table(Table(table["teff", "teff_err"])).to_xml(out)  # the standard has no dex
    fields = Table.read(io.BytesIO(out.getvalue()), format="votable")
    assert fields["teff"].meta["ucd"] == "phys.temperature.effective"
    assert fields["teff_err"].description == "standard error of the effective temperature"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ni_h", ("[Ni/H]", "phys.abund")),
        ("mg_fe", ("[Mg/Fe]", "phys.abund")),
        ("fe_h_low", ("lower end of the central 68 % of the [Fe/H]", "stat.min;phys.abund.Fe")),
        ("my_column", (None, None)),
        ("weather", (None, None)),
        ("weather_err", (None, None)),
    ],
)
def test_names(name, words):
    table = described(QTable({name: np.zeros(1)}))
    info = table[name].info
    assert (info.description, (info.meta or {}).get("ucd")) == words


def test_spectra_for_other_programs(tiny_model, star):
    result = tiny_model.fit(star)
    spectra = result.to_spectra()
    assert [own.meta["name"] for own in spectra] == ["data", "model", "residual"]
    data, model, residual = spectra
    good = ~data.mask
    np.testing.assert_array_equal((data.flux - model.flux)[good], residual.flux[good])
    np.testing.assert_array_equal(data.uncertainty.array, residual.uncertainty.array)
    assert "name" not in result.spectrum.meta


@pytest.mark.filterwarnings("ignore")  # those of jdaviz, and of what it imports
def test_jdaviz_opens_them(tiny_model, star):
    jdaviz = pytest.importorskip("jdaviz")
    spectra = tiny_model.fit(star).to_spectra()
    for own in spectra:  # as on the page "How do I …?"
        jdaviz.load(own, format="1D Spectrum", data_label=own.meta["name"])
    assert list(jdaviz.data_labels) == ["data", "model", "residual"]
    for own in spectra:
        loaded = jdaviz.gca().get_data(own.meta["name"])
        np.testing.assert_array_equal(loaded.flux.value, own.flux.value)
        np.testing.assert_allclose(loaded.spectral_axis.to_value("nm"), own.spectral_axis.to_value("nm"))
        if own.uncertainty is not None:
            np.testing.assert_array_equal(loaded.uncertainty.array, own.uncertainty.array)
