"""Samplings of many stars: rows of posteriors, which depend on no company, and lose nothing to a kill."""

import sys

import astropy.units as u
import numpy as np
import pytest
from stars import SIGMA, STAR, VALUES, quantities, spectrum

from cyclestarnet import OtherRunError, Posterior
from cyclestarnet.pipeline import read_results, sample_many
from cyclestarnet.pipeline.sample import sample_one

pytest.importorskip("emcee")

TEFF = np.array([4600.0, 4750.0, 4900.0])
HELD = {name: STAR[name] for name in ("logg", "mg_h")}


@pytest.fixture(scope="module")
def stars(tiny_model):
    """Three stars with noise, and names of which no file system need like the last."""
    values = np.stack([TEFF, np.full(3, 2.2), np.full(3, -0.2)], axis=1)
    flux = tiny_model.predict(quantities(tiny_model, values), domain="synthetic").flux.value
    rng = np.random.default_rng(5)
    found = [spectrum(tiny_model, rng.normal(row, SIGMA)) for row in flux]
    for star, name in zip(found, ("one", "two", "../the third"), strict=True):
        star.meta["object"] = name
    return found


@pytest.fixture(scope="module")
def sample(tiny_model, stars):
    """Function that samples the stars with the emulator, by default in one label."""

    def sampled(spectra=None, **options):
        options = {"space": "emulator", "fixed": HELD, "progress": False} | options
        return tiny_model.sample_many(stars if spectra is None else spectra, **options)

    return sampled


@pytest.fixture(scope="module")
def whole(sample):
    """Table of a run that nothing interrupted."""
    return sample()


@pytest.fixture(scope="module")
def free(sample):
    """The same with all labels."""
    return sample(fixed=None)


def assert_same(one, other):
    """Equal to the last bit, apart from the time that it took."""
    assert one.colnames == other.colnames
    for name in one.colnames:
        if name != "seconds":
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


class Killed(KeyboardInterrupt):
    pass


@pytest.fixture
def kill_at(monkeypatch):
    """Function that lets samplings be killed at one of them: before it begins, or after some steps."""

    def at(number, n_steps=0):
        calls = []

        def killed(parts, star, options, chosen, *, digest):
            calls.append(star.meta["object"])
            if len(calls) - 1 == number:
                if n_steps:
                    options = type(options)(**vars(options) | {"max_steps": n_steps})
                    sample_one(parts, star, options, chosen, digest=digest)
                raise Killed
            return sample_one(parts, star, options, chosen, digest=digest)

        monkeypatch.setattr(sample_many, "sample_one", killed)
        return calls

    return at


# -- rows ----------------------------------------------------------------------------------
def test_a_row_is_that_of_a_sampling_alone_with_its_seed(tiny_model, stars, free):
    options = {"space": "emulator", "method": "lm", "progress": False}
    alone = tiny_model.sample(stars[1], seed=int(free["seed"][1]), **options).to_table()
    for name in alone.colnames:
        assert free[name][1] == alone[name][0], name
    assert len(set(free["seed"])) == 3


def test_labels_come_back_within_their_errors(free):
    assert free["converged"].all()
    assert (abs(free["teff"] - TEFF * u.K) < 4 * free["teff_err"]).all()
    assert ((free["teff_low"] < free["teff"]) & (free["teff"] < free["teff_high"])).all()
    assert (free["flags"] == 0).all()


def test_a_star_depends_on_its_number_alone(stars, sample, whole):
    assert_same(whole[1:2], sample(["nothing.fits", stars[1]])[1:])


def test_another_seed_gives_other_samples(sample, whole):
    assert (whole["teff"] != sample(seed=1)["teff"]).all()


def test_a_bad_star_is_a_row_that_says_why(stars, sample):
    table = sample([stars[0], "nothing.fits", 3, stars[2]])
    assert table["converged"].tolist() == [True, False, False, True]
    assert table["flag_names"].tolist() == ["", "FAILED", "FAILED", ""]
    assert np.isnan(table["teff_low"][1])
    assert "nothing.fits" in table["message"][1]
    assert table["seed"][1] == -1


def test_a_star_that_cannot_be_sampled_costs_no_other(sample, monkeypatch):
    def fails(parts, star, *rest, **options):
        if star.meta["object"] == "two":
            raise ValueError("no start")
        return sample_one(parts, star, *rest, **options)

    monkeypatch.setattr(sample_many, "sample_one", fails)
    table = sample()
    assert table["message"][1] == "ValueError: no start"
    assert table["converged"].tolist() == [True, False, True]


def test_short_chains_are_rows_without_a_warning(sample):
    table = sample(max_steps=5)
    assert not table["converged"].any()
    assert (table["n_steps"] == 5).all()
    assert "NOT converged" in table["message"][0]


def test_each_star_has_labels_held_at_its_own_values(sample):
    table = sample(fixed=HELD | {"teff": TEFF * [1, np.nan, 1] * u.K, "logg": STAR["logg"]} | {"mg_h": [np.nan] * 3})
    assert table["teff"][0] == table["teff_low"][0] == 4600 * u.K
    assert (table["teff_err"] == 0).tolist() == [True, False, True]
    assert (table["mg_h_err"] > 0).all()
    assert (table["logg"].value == VALUES[1]).all()


def test_a_space_without_a_likelihood_is_refused(sample):
    with pytest.raises(ValueError, match="space must be one of 'observed', 'emulator'"):
        sample(space="synthetic")


def test_a_missing_sampler_is_no_fault_of_stars(sample, monkeypatch):
    monkeypatch.setitem(sys.modules, "emcee", None)
    with pytest.raises(ImportError, match=r"cyclestarnet\[sampling\]"):
        sample()


@pytest.mark.parametrize("suffix", [".ecsv", ".fits", ".csv"])
def test_a_table_comes_back_from_its_file(sample, tmp_path, suffix):
    table = sample(output=tmp_path / f"t{suffix}")
    back = read_results(tmp_path / f"t{suffix}")
    assert_same(table, back)
    assert back["teff_low"].unit == u.K


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_processes_give_the_same_table_and_samples(stars, sample, tmp_path):
    one = sample([*stars, "nothing.fits"], chains=tmp_path / "one")
    two = sample([*stars, "nothing.fits"], chains=tmp_path / "two", workers=2)
    assert_same(one, two)
    for path in (tmp_path / "one").iterdir():
        samples = [Posterior.read(folder / path.name).samples["teff"] for folder in (path.parent, tmp_path / "two")]
        np.testing.assert_array_equal(*samples)


# -- files ---------------------------------------------------------------------------------
def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_samples_of_each_star_are_in_a_file_of_its_own(sample, tmp_path):
    table = sample(chains=tmp_path / "chains")
    assert names_in(tmp_path / "chains") == ["000000-one.fits", "000001-two.fits", "000002-the_third.fits"]
    posterior = Posterior.read(tmp_path / "chains" / "000002-the_third.fits")
    assert posterior.labels["teff"] == table["teff"][2]
    assert posterior.meta["weights"] == table.meta["weights"]


@pytest.mark.parametrize("n_steps", [0, 15])
@pytest.mark.parametrize("output", [True, False], ids=["table", "no table"])
def test_a_killed_run_goes_on_and_loses_nothing(sample, whole, kill_at, tmp_path, n_steps, output):
    """Killed at the second star, before it begins or in the middle of it."""
    options = {"chains": tmp_path / "chains"} | ({"output": tmp_path / "t.fits"} if output else {})
    kill_at(1, n_steps)
    with pytest.raises(Killed):
        sample(**options)
    left = ["000000-one.fits", "000000-one.h5"] + (["000001-two.h5"] if n_steps else [])
    assert names_in(tmp_path / "chains") == left
    calls = kill_at(-1)
    assert_same(whole, sample(**options))
    assert calls == (["two", "../the third"] if output else ["one", "two", "../the third"])
    assert names_in(tmp_path / "chains") == ["000000-one.fits", "000001-two.fits", "000002-the_third.fits"]


def test_a_finished_chain_takes_no_step_again(sample, whole, kill_at, tmp_path, monkeypatch):
    """Killed after the chain was complete, before its row was written."""
    monkeypatch.setattr(Posterior, "write", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        sample(chains=tmp_path)
    monkeypatch.undo()
    time = (tmp_path / "000000-one.h5").stat().st_mtime_ns
    kill_at(1)
    with pytest.raises(Killed):
        sample(chains=tmp_path)
    assert (tmp_path / "000000-one.h5").stat().st_mtime_ns == time
    kill_at(-1)
    assert_same(whole, sample(chains=tmp_path))


def test_a_chain_that_is_too_short_can_be_prolonged(tiny_model, stars, sample, whole, tmp_path):
    table = sample(chains=tmp_path, max_steps=5)
    assert "000001-two.h5" in names_in(tmp_path)
    options = {"space": "emulator", "fixed": HELD, "method": "lm", "seed": int(table["seed"][1]), "progress": False}
    prolonged = tiny_model.sample(stars[1], backend=tmp_path / "000001-two.h5", **options)
    assert prolonged.labels["teff"] == whole["teff"][1]


def test_a_damaged_chain_is_begun_anew(sample, whole, kill_at, tmp_path, caplog):
    kill_at(1, 15)
    with pytest.raises(Killed):
        sample(chains=tmp_path)
    (tmp_path / "000001-two.h5").write_bytes(b"nothing")
    kill_at(-1)
    assert_same(whole, sample(chains=tmp_path))
    assert "a chain is begun anew" in caplog.text


def test_samples_of_a_run_that_has_ended_are_replaced_only_if_told(sample, tmp_path):
    sample(chains=tmp_path)
    with pytest.raises(FileExistsError, match=r"000000-one\.fits was there before"):
        sample(chains=tmp_path, seed=1)
    table = sample(chains=tmp_path, seed=1, overwrite=True)
    assert Posterior.read(tmp_path / "000001-two.fits").labels["teff"] == table["teff"][1]


def test_chains_of_another_run_are_refused(sample, kill_at, tmp_path):
    kill_at(1)
    with pytest.raises(Killed):
        sample(chains=tmp_path)
    kill_at(-1)
    with pytest.raises(OtherRunError, match="seed"):
        sample(chains=tmp_path, seed=1)


def test_a_journal_of_another_seed_is_refused(sample, kill_at, tmp_path):
    kill_at(1)
    with pytest.raises(Killed):
        sample(output=tmp_path / "t.fits")
    with pytest.raises(FileExistsError, match="seed: 0 then, 1 now"):
        sample(output=tmp_path / "t.fits", seed=1)


def test_a_full_disk_ends_the_run_instead_of_failing_stars(sample, whole, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Posterior, "write", full)
    with pytest.raises(OSError, match="No space left"):
        sample(chains=tmp_path)
    monkeypatch.undo()
    assert_same(whole, sample(chains=tmp_path))
