"""The name of a star survives every route."""

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import StdDevUncertainty

from cyclestarnet import WavelengthGrid
from cyclestarnet.io import TrainingSet, star_sources, write_training_set
from cyclestarnet.spectra import Spectrum, star_name

GRID = WavelengthGrid(np.linspace(15000, 15020, 101) * u.AA)


def star(meta, *, good=True, shape=(101,)):
    sigma = StdDevUncertainty(np.full(shape, 0.01 if good else -1.0))
    return Spectrum(flux=np.ones(shape) * u.one, spectral_axis=GRID.wavelength, uncertainty=sigma, meta=meta)


class Hostile(dict):
    def __getitem__(self, key):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("meta", "name"),
    [
        ({"object": "Vega"}, "Vega"),
        ({"object": None}, ""),
        ({"object": None, "apogee_id": "2M1"}, "2M1"),
        ({"object": "None", "apogee_id": "2M1"}, "2M1"),
        ({"object": " "}, ""),
        ({"object": np.nan}, ""),
        ({"object": np.ma.masked}, ""),
        ({"object": b"Vega "}, "Vega"),
        ({"object": np.str_("Vega")}, "Vega"),
        ({"object": np.array(["Vega"])}, "Vega"),
        ({"object": 1234}, "1234"),
        ({"OBJECT": "Vega"}, "Vega"),
        ({"header": {"OBJECT": "Vega"}}, "Vega"),
        ({"header": fits.Header({"OBJID": "2M1"})}, "2M1"),
        ({"header": fits.Header({"TARGNAME": "Vega"})}, "Vega"),
        ({"header": "Vega"}, ""),
        ({"header": None}, ""),
        ({"header": Hostile(object=1)}, ""),
        ({"object": ["a", "b"]}, ""),
        ({}, ""),
    ],
    ids=str,
)
def test_names_of_metadata(meta, name):
    assert star_name(star(meta)) == name


@pytest.mark.parametrize("thing", [None, 3, "text", object()])
def test_what_is_no_spectrum_has_no_name(thing):
    assert star_name(thing) == ""


def test_training_set_keeps_the_names_of_what_went_in(tmp_path):
    path = tmp_path / "s.h5"
    stars = [star({"object": "a"}), star({"object": "b"}, good=False), star({"header": {"OBJECT": "Ü c"}}), star({})]
    with pytest.warns(match="1 of 4 spectra"):
        write_training_set(path, stars, grid=GRID, progress=False)
    assert TrainingSet(path).names == ("a", "Ü c", "")
    sources = star_sources(path)
    assert [source.name for source in sources] == ["a", "Ü c", f"{path} train 2"]
    assert [star_name(source.read()) for source in sources] == ["a", "Ü c", ""]
    assert len({source.identity for source in sources}) == 3


def test_rows_of_a_stack_have_the_names_of_a_list():
    stack = star({"object": ["a", "b"]}, shape=(2, 101))
    assert [source.name for source in star_sources(stack)] == ["a", "b"]
    assert [source.name for source in star_sources(star({"object": "a"}, shape=(2, 101)))] == ["a", "a"]


def test_results_have_the_name(pretrained):
    n = pretrained.grid.n_pixels
    flux = pretrained.predict(pretrained.labels.to_quantities(pretrained.prior.mean)).flux
    axis, sigma = pretrained.grid.wavelength, StdDevUncertainty(np.full(n, 0.01))
    metas = [{"object": None}, {"object": None, "header": {"OBJECT": "Vega"}}]
    stars = [Spectrum(flux=flux, spectral_axis=axis, uncertainty=sigma, meta=meta) for meta in metas]
    table = pretrained.fit_many(stars, space="emulator", progress=False)
    assert list(table["object"]) == ["", "Vega"]
    assert pretrained.to_synthetic(stars[1]).meta["object"] == "Vega"
