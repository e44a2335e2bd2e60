"""Models that others publish: fetched once, verified, and refused in words; and the cards of all models."""

import hashlib
import shutil
from importlib import resources

import pytest
from astropy.config import set_temp_cache
from astropy.utils.data import conf

from cyclestarnet import CalibratedModel, ModelFileError, list_models, model_card
from cyclestarnet.cli import main
from cyclestarnet.datasets import fetch_model
from cyclestarnet.model_file import digest_of


@pytest.fixture(scope="module")
def file(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("survey") / "tiny.safetensors"
    tiny_model.save(path)
    return path


@pytest.fixture
def published(file, tmp_path):
    """A model at an address, and an empty cache."""
    (tmp_path / "cache").mkdir()
    path = shutil.copy(file, tmp_path / "tiny.safetensors")
    with set_temp_cache(tmp_path / "cache"):
        yield path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- fetching ------------------------------------------------------------------------------------
def test_a_published_model_is_fetched_once(tiny_model, published):
    model = CalibratedModel.from_pretrained(published.as_uri())
    assert digest_of(model) == digest_of(tiny_model)
    published.unlink()
    assert CalibratedModel.from_pretrained(published.as_uri()).name == "tiny"


def test_what_is_cached_is_there_without_a_network(published):
    fetch_model(published.as_uri())
    with conf.set_temp("allow_internet", False):
        assert CalibratedModel.from_pretrained(published.as_uri()).name == "tiny"


@pytest.mark.parametrize("allowed", [True, False])
def test_what_cannot_be_fetched_is_told_with_a_way_out(published, allowed):
    lost = published.with_name("lost.safetensors").as_uri()
    with (
        conf.set_temp("allow_internet", allowed),
        pytest.raises(
            OSError, match=r"lost\.safetensors is not in the download cache .* CalibratedModel\.load\(path\)"
        ),
    ):
        CalibratedModel.from_pretrained(lost)


def test_the_file_is_the_one_that_was_asked_for(published):
    address, digest = published.as_uri(), sha256(published)
    assert sha256(fetch_model(f"{address}#sha256={digest.upper()}")) == digest
    with pytest.raises(ModelFileError, match=f"its sha256 is {digest}, not {'0' * 64}"):
        fetch_model(f"{address}#sha256={'0' * 64}")
    published.unlink()
    with pytest.raises(OSError, match="is not in the download cache"):  # what did not fit is not kept
        fetch_model(address)


def test_a_newer_file_replaces_the_cached_one_if_its_digest_is_asked_for(published):
    fetch_model(published.as_uri())
    published.write_bytes(b"newer")
    assert sha256(fetch_model(published.as_uri())) != sha256(published)
    assert fetch_model(f"{published.as_uri()}#sha256={sha256(published)}").read_bytes() == b"newer"


@pytest.mark.parametrize("fragment", ["sha256=123", "md5=" + 32 * "0", ""])
def test_what_is_no_digest_is_refused(published, fragment):
    with pytest.raises(ValueError, match="64 hexadecimal digits may follow an address, but"):
        fetch_model(f"{published.as_uri()}#{fragment}")


def test_what_is_no_model_is_refused(published):
    published.write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelFileError, match="no safetensors file"):
        CalibratedModel.from_pretrained(published.as_uri())


# -- cards ---------------------------------------------------------------------------------------
def test_a_card_tells_what_a_file_is(tiny_model, file):
    card = model_card(file)
    assert (card.name, card.source, card.sha256) == ("tiny", str(file), sha256(file))
    assert card.n_bytes == file.stat().st_size
    assert card.weights == digest_of(tiny_model)
    assert card.facts["made by"] == "tests/conftest.py"
    for text in (repr(card), card._repr_html_()):
        assert all(part in text for part in ("teff", "tests/conftest.py", card.sha256, "415 pixels"))


def test_a_card_has_all_that_is_needed_to_ask_for_the_same_file(published):
    card = model_card(published.as_uri())
    assert card.source == published.as_uri()
    assert CalibratedModel.from_pretrained(f"{card.source}#sha256={card.sha256}").name == "tiny"


def test_packaged_models_have_cards():
    name = list_models()[0]
    card = model_card(name)
    packaged = resources.files("cyclestarnet.data") / f"{name}.safetensors"
    assert card.sha256 == hashlib.sha256(packaged.read_bytes()).hexdigest()
    assert card.version
    with pytest.raises(ValueError, match="there are "):
        model_card("apogee")


def test_the_command_line_takes_addresses(published, capsys):
    assert main(["info", published.as_uri()]) == 0
    assert "<ModelCard tiny>" in capsys.readouterr().out
    assert main(["info", published.with_name("lost.safetensors").as_uri()]) == 2
    assert "cannot be fetched" in capsys.readouterr().err
