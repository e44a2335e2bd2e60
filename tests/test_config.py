"""The configuration file of a training: what it accepts, and how it names what it refuses."""

import re
import tomllib
from dataclasses import fields, replace

import pytest

from cyclestarnet.lines.config import MockLines, read_mock_config
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.training.config import example_config, read_config
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.toml import ConfigError
from cyclestarnet.training.watch import WatchSettings


@pytest.fixture
def write(tmp_path):
    """Function that writes run.toml with further lines, beside empty files that it names."""
    for name in ("observed.h5", "synthetic.h5", "emulator.pt", "labels.ecsv"):
        (tmp_path / name).touch()

    def write(text="", **tables):
        parts = {
            "run": 'folder = "run"',
            "observed": 'path = "observed.h5"',
            "synthetic": 'path = "synthetic.h5"',
        } | tables
        content = "\n".join(f"[{name}]\n{lines}" for name, lines in parts.items() if lines is not None)
        (tmp_path / "run.toml").write_text(f"{text}\n{content}\n")
        return tmp_path / "run.toml"

    return write


def assert_refused(path, message, read=read_config):
    """Assert that a file is refused with a message that also names the file."""
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "run.toml" in str(caught.value)


# -- what is accepted ----------------------------------------------------------------
def test_a_short_file_gives_the_settings_of_the_paper(write, tmp_path):
    config = read_config(write())
    assert config.training == TrainingSettings()
    assert config.network_settings(7167) == NetworkSettings()
    assert config.observed.path == tmp_path / "observed.h5"
    assert config.observed.selection.snr == (30, 500)
    assert config.model_path == tmp_path / "run" / "model.safetensors"


def test_settings_change_a_preset(write):
    training = read_config(write(training='preset = "repository"\nlearning_rate = 1\nbetas = [0, 0.9]')).training
    assert training == TrainingSettings.from_preset("repository", learning_rate=1.0, betas=(0.0, 0.9))
    assert isinstance(training.learning_rate, float)


def test_sizes_of_the_network_are_read(write):
    config = read_config(write(network="domain = [[8, 7, 4]]\nshared = [[16, 7, 4]]\nsplit = [[4, 7, 4]]\n"
                                       "critic_spectrum = [[4, 7, 4]]"))  # fmt: skip
    assert config.network_settings(47).domain == ((8, 7, 4),)


def test_none_switches_a_setting_off(write):
    config = read_config(write(**{"observed.selection": 'snr = "none"', "training": 'gradient_clip = "none"'}))
    assert config.observed.selection.snr is None
    assert config.training.gradient_clip is None


def test_one_seed_is_for_all_that_have_none_of_their_own(write):
    config = read_config(write(run='folder = "run"\nseed = 7', emulator="seed = 8"))
    assert (config.training.seed, config.emulator.seed) == (7, 8)


def test_labels_are_a_file_or_ranges(write, tmp_path):
    assert read_config(write(synthetic='emulator = "emulator.pt"\nlabels = "labels.ecsv"')).synthetic.labels == (
        tmp_path / "labels.ecsv"
    )
    ranges = read_config(write(synthetic='emulator = "emulator.pt"\nlabels = {teff = [4000, 5000]}')).synthetic.labels
    assert ranges == {"teff": (4000.0, 5000.0)}


def test_every_setting_of_the_training_is_a_key(write):
    for own in fields(TrainingSettings):
        assert_refused(write(training=f"{own.name} = {{}}"), rf"\[training\] {own.name} must be .*, but is {{}}")


# -- what is refused -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"training": "learnig_rate = 1"}, r"\[training\] has no key 'learnig_rate'; did you mean 'learning_rate'\?"),
        ({"trainig": "seed = 1"}, r"there is no table \[trainig\]; did you mean \[training\]\?"),
        ({"training": "learning_rate = -1"}, r"^\[training\] learning_rate must be positive, but is -1\.0 in .*run"),
        ({"training": "learning_rate = true"}, r"\[training\] learning_rate must be a number, but is true in"),
        ({"training": "n_iterations = 1e5"}, r"\[training\] n_iterations must be an integer, but is 100000\.0 in"),
        ({"training": 'mixed_precision = "yes"'}, r'mixed_precision must be true or false, but is "yes"'),
        ({"training": "betas = [0.5]"}, r"\[training\] betas must be a list of 2 numbers, but is \[0\.5\]"),
        ({"training": "steps = 3"}, r"\[training\] steps must be a list of integers, but is 3"),
        ({"training": 'gradient_clip = "off"'}, r'gradient_clip must be a number or "none", but is "off"'),
        ({"training": 'preset = "papr"'}, r"\[training\] the preset must be one of 'paper', 'repository'"),
        ({"network": "domain = [[8, 7, 4.5]]"}, r"\[network\] domain must be a list of lists of 3 integers"),
        ({"run": 'folder = "run"\ndevice = "gpu"'}, r"\[run\] device must be 'cpu', 'cuda' or 'cuda:N', but is 'gpu'"),
        ({"run": "seed = 1"}, r"\[run\] folder is missing in"),
        ({"run": None}, r"\[run\] folder is missing in"),
        ({"observed": 'path = "observd.h5"'}, r"\[observed\] path: there is no file .*observd\.h5 in .*run\.toml"),
        ({"observed": 'path = "observed.h5"\nmemory = "disk"'}, r'must be "resident" or "streamed", but is "disk"'),
        ({"observed": 'path = "observed.h5"\npixels = [9, 3]'}, r"pixels must be \[first, end\].*but is \[9, 3\]"),
        ({"observed.selection": "snr = [500, 30]"}, r"\[observed\.selection\] snr must be \(low, high\)"),
        ({"observed.selection": "sn = 30"}, r"\[observed\.selection\] has no key 'sn'; did you mean 'snr'\?"),
        ({"synthetic": ""}, r"\[synthetic\] path or emulator must say where synthetic spectra come from"),
        ({"synthetic": 'emulator = "emulator.pt"'}, r"\[synthetic\] labels must say what the emulator shall"),
        ({"synthetic": 'path = "synthetic.h5"\nlabels = "x.csv"'}, r"\[synthetic\] labels: there is no file .*x\.csv"),
        ({"synthetic": 'path = "synthetic.h5"\nlabels = {teff = 5000}'},
         r"labels must be the path of a file, in quotes or a table of lists of 2 numbers or \"none\""),
        ({"labels": 'lower = [1.0]'}, r"\[labels\] lower must have one number per name"),
        ({"model": 'path = "model.pt"'}, r"\[model\] path must end in \.safetensors"),
        ({"training": "weight_anchors = 1"}, r"weight_anchors is 1\.0, but \[observed\] anchors is missing"),
        ({"training": "prior_rate = 0.1"}, r"\[training\] prior_rate needs .*: \[synthetic\] labels must say"),
        ({"log": "every = 0"}, r"\[log\] every must be 1 or more, but is 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_table_key_and_file(write, tables, message):
    assert_refused(write(**tables), message)


def test_a_key_outside_of_all_tables_is_refused(write):
    assert_refused(write("folder = 3"), r"the key 'folder' is in no table")


def test_broken_toml_is_named_with_its_line(write):
    assert_refused(write("[run\n"), r"is no valid TOML: .*line 1")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*nothing\.toml"):
        read_config(tmp_path / "nothing.toml")


def test_pixels_that_do_not_fit_the_network_say_which_do(write):
    config = read_config(write())
    with pytest.raises(ConfigError, match=r"\[network\] 7214 pixels do not fit .* 7167 .*choose \[observed\] pixels"):
        config.network_settings(7214)


def test_another_number_of_pixels_than_the_data_have_is_refused(write):
    with pytest.raises(ConfigError, match=r"\[network\] n_pixels of the network is 7167, but the spectra have 415"):
        read_config(write(network="n_pixels = 7167")).network_settings(415)


# -- a mock study ----------------------------------------------------------------------
@pytest.fixture
def write_mock(write):
    """Function that writes the file of a mock study with a table [mock] of these lines."""
    return lambda mock="", **tables: write(**({"observed": None, "synthetic": None, "mock": mock} | tables))


def test_a_mock_study_needs_a_folder_only(write_mock, tmp_path):
    config = read_mock_config(write_mock(mock=None))
    assert config.run.folder == tmp_path / "run"
    assert config.training == TrainingSettings()
    assert config.mock == MockLines()
    assert (config.mock.fractions, config.mock.n_observed, config.mock.snr) == ((0.3,), 22_000, (30, 500))


def test_a_mock_study_is_read_as_its_file_says(write_mock, tmp_path):
    path = write_mock(
        'labels = "labels.ecsv"\nfractions = [0, 0.3]\nseeds = [3]\nsnr = [50, 200]\npixels = [0, 415]\nn_observed = 8',
        run='folder = "run"\nseed = 7',
        training='preset = "repository"',
        network="shared_filters = 8",
    )
    config = read_mock_config(path)
    assert config.mock == MockLines(
        labels=tmp_path / "labels.ecsv", fractions=(0, 0.3), seeds=(3,), snr=(50, 200), pixels=(0, 415), n_observed=8
    )
    assert config.training == TrainingSettings.from_preset("repository", seed=7)
    assert (config.path, config.network) == (path, {"shared_filters": 8})


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"mokc": "seeds = [1]"}, r"there is no table \[mokc\]; did you mean \[mock\]\?"),
        ({"observed": 'path = "observed.h5"'}, r"there is no table \[observed\]; there are run, mock, training"),
        ({"mock": "fractoins = [0.3]"}, r"\[mock\] has no key 'fractoins'; did you mean 'fractions'\?"),
        ({"mock": "fractions = [0.3, 1.2]"}, r"^\[mock\] fractions must .*but are \[0\.3, 1\.2\] in .*run\.toml"),
        ({"mock": "fractions = [nan]"}, r"\[mock\] fractions must be one or more .*, but are \[nan\]"),
        ({"mock": "fractions = []"}, r"\[mock\] fractions must be one or more .*, but are \[\]"),
        ({"mock": "seeds = []"}, r"\[mock\] seeds must be one or more.* but are \[\]"),
        ({"mock": "seeds = [1, 1]"}, r"\[mock\] seeds must .*differ, but are \[1, 1\]"),
        ({"mock": "seeds = [-1]"}, r"\[mock\] seeds must .*0 or above.* but are \[-1\]"),
        ({"mock": "seeds = 1"}, r"\[mock\] seeds must be a list of integers, but is 1"),
        ({"mock": "element_scatter = -0.1"}, r"\[mock\] element_scatter must not be negative, but is -0\.1"),
        ({"mock": "snr = [500, 30]"}, r"\[mock\] snr must be \[low, high\] and positive, but is \[500\.0, 30\.0\]"),
        ({"mock": "snr = [0, 30]"}, r"\[mock\] snr must be \[low, high\] and positive, but is \[0\.0, 30\.0\]"),
        ({"mock": "pixels = [9, 3]"}, r"\[mock\] pixels must be \[first, end\].*but is \[9, 3\]"),
        ({"mock": "n_drawn = 1"}, r"\[mock\] n_drawn must be 2 or more, but is 1 in"),
        ({"mock": "n_observed = 7"}, r"\[mock\] n_observed must be 8 or more, but is 7 in"),
        ({"mock": "n_validation = 2"}, r"\[mock\] n_validation must be 3 or more, but is 2 in"),
        ({"mock": "n_stars = -1"}, r"\[mock\] n_stars must be 0 or more, but is -1 in"),
        ({"mock": "n_scored = 0"}, r"\[mock\] n_scored must be 1 or more, but is 0 in"),
        ({"mock": 'fractions = ["all"]'}, r'\[mock\] fractions must be a list of numbers, but is \["all"\]'),
        ({"mock": "n_observed = 1e3"}, r"\[mock\] n_observed must be an integer, but is 1000\.0"),
        ({"mock": "snr = [30]"}, r"\[mock\] snr must be a list of 2 numbers, but is \[30\]"),
        ({"mock": "pixels = [0, 1.5]"}, r"\[mock\] pixels must be a list of 2 integers"),
        ({"mock": "model = 3"}, r"\[mock\] model must be .*, but is 3"),
        ({"mock": 'labels = "absent.npz"'}, r"\[mock\] labels: there is no file .*absent\.npz in .*run\.toml"),
        ({"training": "learning_rate = -1"}, r"\[training\] learning_rate must be positive"),
        ({"run": None}, r"\[run\] folder is missing in"),
    ],
)
def test_what_is_wrong_with_a_mock_study_is_named(write_mock, tables, message):
    assert_refused(write_mock(**tables), message, read_mock_config)


def test_a_training_has_no_table_of_a_mock_study(write):
    assert_refused(write(mock="seeds = [1]"), r"there is no table \[mock\]; there are run, observed")


def test_a_missing_file_of_a_mock_study_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*nothing\.toml"):
        read_mock_config(tmp_path / "nothing.toml")


# -- the example -----------------------------------------------------------------------
def test_the_example_is_valid_and_changes_nothing(write, tmp_path):
    (tmp_path / "run.toml").write_text(example_config())
    config = read_config(tmp_path / "run.toml")
    assert config.training == TrainingSettings()
    assert config.network_settings(7167) == NetworkSettings()


def test_the_defaults_that_the_example_tells_are_the_defaults(write, tmp_path):
    uncommented = re.sub(r"^#(?=\w+ = )", "", example_config(), flags=re.M)
    assert tomllib.loads(uncommented)["training"]["weight_obs"] == 9.0
    path = write()
    short = read_config(path)
    path.write_text(uncommented.replace('name = "my-model"', 'name = "model"'))
    whole = read_config(path)
    assert replace(whole, network={}, watch=None) == short
    assert whole.watch == WatchSettings()
    assert whole.network_settings(7167) == NetworkSettings()


def test_every_key_of_the_example_is_explained():
    lines = example_config().splitlines()
    for name in ("folder", "snr", "n_iterations", "shared_filters", "n_validation", "tensorboard"):
        (k,) = [k for k, line in enumerate(lines) if re.match(rf"#?{name} = ", line)]
        assert lines[k - 1].startswith(("# ", "#checkpoint", "#every"))
