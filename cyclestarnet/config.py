"""The TOML file of a training: read, checked down to the last key, and turned into settings.

A table of the file is a frozen dataclass. Its fields are the keys, their type
hints say what fits, and its docstring has the comments of the example file: a
new setting anywhere in the package is a new key here by itself.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import textwrap
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cyclestarnet.backend.emulator import EmulatorSettings
from cyclestarnet.backend.networks import NetworkSettings
from cyclestarnet.backend.settings import TrainingSettings
from cyclestarnet.backend.watch import WatchSettings
from cyclestarnet.exceptions import CycleStarNetError
from cyclestarnet.io.training_set import Selection

__all__ = [
    "Config",
    "ConfigError",
    "LabelConfig",
    "LogConfig",
    "MockConfig",
    "MockLines",
    "ModelConfig",
    "ObservedConfig",
    "RunConfig",
    "SyntheticConfig",
    "example_config",
    "example_mock_config",
    "read_config",
    "read_mock_config",
]

File = Annotated[Path, "file"]  # where there must be one
Range = tuple[float, float]
NONE = "none"  # TOML has no None


class ConfigError(CycleStarNetError, ValueError):
    """A configuration file has an unknown key, an impossible value, or names a file that is not there."""


# -- tables of the file that no other room has settings for -----------------------------
@dataclass(frozen=True)
class RunConfig:
    """Where and how a training runs.

    Parameters
    ----------
    folder : path
        For checkpoints and logs. A run that finds its checkpoint here goes on from it.
    name : str
        Of the model.
    seed : int
        Of everything random; [training] and [emulator] may have seeds of their own.
    threads : int or None
        Of the CPU. None: as many as PyTorch takes.
    device : str
        "cpu", "cuda" or "cuda:N": where the networks are trained.
    """

    folder: Path
    name: str = "model"
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name must consist of letters, digits, '-', '_' and '.', but is {self.name!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be 1 or more, but is {self.threads}")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', but is {self.device!r}")


@dataclass(frozen=True)
class ObservedConfig:
    """The observed spectra.

    Parameters
    ----------
    path : file
        HDF5, as `cyclestarnet.io.write_training_set` makes it.
    split, validation : str
        Splits of the file to train on, and to learn the model's errors from.
    pixels : (int, int) or None
        Part of the pixels to use, half-open. The network fits certain numbers
        only: [0, 7167] of APOGEE's 7214 cuts the red end, as in the paper.
    memory : {"resident", "streamed"}
        Hold all spectra in memory, or read them as training goes.
    anchors : file or None
        HDF5 with a few observed spectra of known labels, all of the model's,
        for weight_anchors of [training]; same split.
    selection : table
        Which spectra are good enough.
    """

    path: File
    split: str = "train"
    validation: str = "val"
    pixels: tuple[int, int] | None = None
    memory: Literal["resident", "streamed"] = "resident"
    anchors: File | None = None
    selection: Selection = field(default_factory=Selection)

    def __post_init__(self):
        if self.pixels is not None and not 0 <= self.pixels[0] < self.pixels[1]:
            raise ValueError(f"pixels must be [first, end], 0 or more and rising, but is {list(self.pixels)}")
        if self.split == self.validation:
            raise ValueError(f"validation must be another split than {self.split!r}, which training sees")


@dataclass(frozen=True)
class SyntheticConfig:
    """The synthetic spectra: a file of spectra, an emulator that makes them, or both.

    Parameters
    ----------
    path : file or None
        HDF5 like that of the observed spectra, without errors and masks.
    split : str
        Split of that file.
    memory : {"resident", "streamed"}
        As for the observed spectra.
    emulator : file or None
        Labels to spectra: .pt (`cyclestarnet.runs.save_emulator`), the
        .safetensors of a model, PAYNE.pth.tar, or The Payne's .npz. None: one
        is trained on spectra of ``path``.
    labels : file, table or None
        Labels of spectra that the emulator makes for the training: a file
        (.ecsv, .fits, .csv, .npz, .h5), or ranges to draw from, such as
        { teff = [4000, 5000] }. None: train on the spectra of ``path``
        themselves. The labels of the training are the model's prior.
    n_drawn : int
        How many labels are drawn from ranges.
    n_emulator : int
        An emulator is trained on so many spectra at most.
    """

    path: File | None = None
    split: str = "train"
    memory: Literal["resident", "streamed"] = "resident"
    emulator: File | None = None
    labels: File | dict[str, Range] | None = None
    n_drawn: int = 20_000
    n_emulator: int = 20_000

    def __post_init__(self):
        if self.path is None and self.emulator is None:
            raise ValueError("path or emulator must say where synthetic spectra come from, but neither is there")
        if self.path is None and self.labels is None:
            raise ValueError("labels must say what the emulator shall make spectra of, but is missing")
        for name in ("n_drawn", "n_emulator"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be 2 or more, but is {getattr(self, name)}")
        for name, (low, high) in self.labels.items() if isinstance(self.labels, Mapping) else ():
            if not low <= high:
                raise ValueError(f"labels.{name} must be [low, high], but is {[low, high]}")


@dataclass(frozen=True)
class LabelConfig:
    """Names and ranges of the labels, where the files do not tell them.

    Parameters
    ----------
    names : list of str or None
        In the order of the emulator, or of the file of synthetic spectra.
    lower, upper : list of float or None
        Range in which the model is valid. None: that of the emulator or of the labels in the file.
    combinations : table
        Labels reported besides, as sums of the others: m_h = { fe_h = 1.0 }.
    """

    names: tuple[str, ...] | None = None
    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None
    combinations: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("lower", "upper"):
            values = getattr(self, name)
            if values is not None and (self.names is None or len(values) != len(self.names)):
                raise ValueError(f"{name} must have one number per name, but has {len(values)}; names: {self.names}")


@dataclass(frozen=True)
class ModelConfig:
    """The model that the training ends in.

    Parameters
    ----------
    path : path or None
        File to write. None: NAME.safetensors in the folder of the run.
    weights : {"best", "last"}
        Of the best score, if there is a watch, or of the last iteration.
    n_validation : int
        Stars whose fits tell the model's errors; each takes seconds.
    n_cloud : int
        Stars that tell which spectra are familiar, at most.
    continuum : "apogee", file or None
        Continuum pixels that normalised the spectra: this package's for
        APOGEE, or a table with a column "wavelength" or "pixel". None: quiet
        pixels of the synthetic spectra. Used for spectra in physical units.
    degree : int
        Of the continuum polynomial.
    half : bool
        Store weights in half precision.
    provenance : table
        Texts for the model card.
    """

    path: Path | None = None
    weights: Literal["best", "last"] = "best"
    n_validation: int = 100
    n_cloud: int = 3000
    continuum: Literal["apogee"] | File | None = None
    degree: int = 4
    half: bool = False
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for name, least in (("n_validation", 3), ("n_cloud", 8), ("degree", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, but is {getattr(self, name)}")
        if self.path is not None and self.path.suffix != ".safetensors":
            raise ValueError(f"path must end in .safetensors, but is {self.path.name!r}")


@dataclass(frozen=True)
class LogConfig:
    """What is written down on the way.

    Parameters
    ----------
    every, checkpoint_every : int
        Iterations between rows of losses.csv, and between checkpoints.
    tensorboard : bool
        Log for TensorBoard as well (needs the extra "training").
    """

    every: int = 50
    checkpoint_every: int = 500
    tensorboard: bool = False

    def __post_init__(self):
        for name in ("every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, but is {getattr(self, name)}")


def _differ(values):
    return 0 < len(values) == len(set(values))


LEAST_MOCK = {"n_drawn": 2, "n_observed": 8, "n_validation": 3, "n_stars": 0, "n_scored": 1}


@dataclass(frozen=True)
class MockLines:
    """The two domains of a mock study of missing lines.

    Parameters
    ----------
    model : str
        Embedded model, or .safetensors file, whose emulator makes all spectra.
    labels : file or None
        Labels of both domains, as for [synthetic] of a training. None: drawn from the label
        prior of the model.
    n_drawn : int
        How many are drawn from the prior.
    element_scatter : float
        By how much elements vary on their own besides, in dex.
    fractions : list of float
        Of the strong features of each element that the synthetic domain lacks:
        a training for each. That of 0 tells what other trainings find by chance.
    seeds : list of int
        Of the choice of features, and of the training: each fraction is trained once per seed.
    n_observed, n_validation : int
        Observed spectra for the training, and held out.
    n_stars : int
        Observed spectra of the training that are fitted, to tell elements.
    n_scored : int
        Label sets of synthetic spectra, at most, at which restored pixels are compared with the truth.
    snr : (float, float)
        Range of the signal-to-noise ratios of observed spectra, per pixel. They are
        drawn from a log-normal distribution with a median of 120 and a scatter of 0.5.
    pixels : (int, int) or None
        Part of the pixels to use, half-open; no chip may be cut to less than 2.
    """

    model: str = "apogee-giants"
    labels: File | None = None
    n_drawn: int = 60_000
    element_scatter: float = 0.0
    fractions: tuple[float, ...] = (0.3,)
    seeds: tuple[int, ...] = (0,)
    n_observed: int = 22_000
    n_validation: int = 1_000
    n_stars: int = 2_000
    n_scored: int = 10_000
    snr: Range = (30.0, 500.0)
    pixels: tuple[int, int] | None = None

    def __post_init__(self):
        if not all(0 <= fraction <= 1 for fraction in self.fractions) or not _differ(self.fractions):
            given = list(self.fractions)
            raise ValueError(f"fractions must be one or more between 0 and 1, all different, but are {given}")
        if not _differ(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be one or more, 0 or above, and differ, but are {list(self.seeds)}")
        if not self.element_scatter >= 0:
            raise ValueError(f"element_scatter must not be negative, but is {self.element_scatter}")
        if not 0 < self.snr[0] <= self.snr[1]:
            raise ValueError(f"snr must be [low, high] and positive, but is {list(self.snr)}")
        for name, least in LEAST_MOCK.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, but is {getattr(self, name)}")
        if self.pixels is not None and not 0 <= self.pixels[0] < self.pixels[1]:
            raise ValueError(f"pixels must be [first, end], 0 or more and rising, but is {list(self.pixels)}")


TABLES = {
    "run": RunConfig,
    "observed": ObservedConfig,
    "synthetic": SyntheticConfig,
    "labels": LabelConfig,
    "training": TrainingSettings,
    "network": NetworkSettings,
    "watch": WatchSettings,
    "emulator": EmulatorSettings,
    "model": ModelConfig,
    "log": LogConfig,
}
MOCK_TABLES = {name: TABLES.get(name, MockLines) for name in ("run", "mock", "training", "network", "model", "log")}
OPTIONAL = ("watch",)  # that are None if the file does not have them
PRESET_DOC = "Whose settings the others change: the paper's, or those of its authors' repository."


@dataclass(frozen=True)
class Config:
    """A training as its file describes it.

    Attributes
    ----------
    path : path
        The file.
    run, observed, synthetic, labels, training, emulator, model, log
        Its tables.
    watch : `~cyclestarnet.backend.watch.WatchSettings` or None
        None: the file has no such table, and nobody watches.
    network : dict
        Its table of changes to `NetworkSettings`; see `network_settings`.
    """

    path: Path
    run: RunConfig
    observed: ObservedConfig
    synthetic: SyntheticConfig
    labels: LabelConfig
    training: TrainingSettings
    network: Mapping[str, Any]
    watch: WatchSettings | None
    emulator: EmulatorSettings
    model: ModelConfig
    log: LogConfig

    @property
    def model_path(self) -> Path:
        """Where the finished model goes."""
        return self.model.path or self.run.folder / f"{self.run.name}.safetensors"

    def network_settings(self, n_pixels: int) -> NetworkSettings:
        """Sizes of the networks for spectra of so many pixels.

        Raises
        ------
        ConfigError
            If the strides do not fit that number, or the file says another.
        """
        given = self.network.get("n_pixels", n_pixels)
        if given != n_pixels:
            raise ConfigError(f"[network] n_pixels is {given} in {self.path}, but the spectra have {n_pixels} pixels")
        try:
            return NetworkSettings(**(dict(self.network) | {"n_pixels": n_pixels}))
        except ValueError as error:
            raise ConfigError(f"[network] {error}; choose [observed] pixels in {self.path} to suit") from error


@dataclass(frozen=True)
class MockConfig:
    """A mock study of missing lines as its file describes it.

    Attributes
    ----------
    path : path
        The file.
    run, mock, training, model, log
        Its tables. Each training has a folder, a name, a file of its model and a
        seed of its own, whatever these say.
    network : dict
        Its table of changes to `NetworkSettings`.
    """

    path: Path
    run: RunConfig
    mock: MockLines
    training: TrainingSettings
    network: Mapping[str, Any]
    model: ModelConfig
    log: LogConfig


# -- reading -------------------------------------------------------------------------------
def read_config(path) -> Config:
    """Read and check the file of a training.

    Parameters
    ----------
    path : path-like
        TOML; see `example_config`. Relative paths in it are relative to the file.

    Returns
    -------
    `Config`

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ConfigError
        If it is no TOML, has an unknown table or key, lacks one that is
        needed, a value does not fit, or a file that it names is not there.
        The message says which.
    """
    path, parts = _parts(path, TABLES)
    try:
        _check_together(**parts)
    except ConfigError as error:
        raise ConfigError(f"{error} in {path}") from None
    return Config(path=path, **parts)


def read_mock_config(path) -> MockConfig:
    """Read and check the file of a mock study, as `read_config` does that of a training.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    `MockConfig`

    Raises
    ------
    FileNotFoundError, ConfigError
        As `read_config`; also if ``[training] sigma_max`` would mask the noisiest spectra.
    """
    path, parts = _parts(path, MOCK_TABLES)
    snr, limit = parts["mock"].snr[0], parts["training"].sigma_max
    if 1 / snr > limit:
        raise ConfigError(
            f"[mock] snr begins at {snr:g}, an error of {1 / snr:.3f} in every pixel, but [training] sigma_max "
            f"= {limit:g} masks them all; raise one of the two in {path}"
        )
    return MockConfig(path=path, **parts)


def _parts(path, tables):
    """Path and tables of a file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file {path}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid TOML: {error}") from error
    for name, value in content.items():
        if name not in tables or not isinstance(value, dict):
            what = f"there is no table [{name}]" if isinstance(value, dict) else f"the key {name!r} is in no table"
            raise ConfigError(f"{what}{_nearest(name, tables, '[{}]')} in {path}")
    base = path.parent
    try:
        seed = {"seed": _table(RunConfig, content.get("run", {}), base, "run").get("seed", RunConfig.seed)}
        parts = {}
        for name, cls in tables.items():
            if name in OPTIONAL and name not in content:
                parts[name] = None
                continue
            given = dict(content.get(name, {}))
            preset = given.pop("preset", None) if cls is TrainingSettings else None
            values = _table(cls, given, base, name)
            if cls in (TrainingSettings, EmulatorSettings):
                values = seed | values
            if cls is NetworkSettings:
                parts[name] = values
            else:
                parts[name] = _made(cls, values, name, preset)
    except ConfigError as error:
        raise ConfigError(f"{error} in {path}") from error.__cause__
    return path, parts


def _check_together(training, observed, synthetic, **_):
    """Check what no table can know alone."""
    if bool(training.weight_anchors) != (observed.anchors is not None):
        given = f"[training] weight_anchors is {training.weight_anchors}, but [observed] anchors is"
        raise ConfigError(f"{given} {'missing' if observed.anchors is None else 'given: raise the weight'}")
    for name in ("weight_anchors", "prior_rate"):
        if getattr(training, name) and synthetic.labels is None:
            raise ConfigError(
                f"[training] {name} needs spectra that the emulator makes: [synthetic] labels must say of what"
            )


def _made(cls, values, where, preset=None):
    """The dataclass of a table; what it objects to is said with the table's name."""
    try:
        if cls is TrainingSettings:
            return TrainingSettings.from_preset("paper" if preset is None else preset, **values)
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"[{where}] {error}") from error


def _table(cls, given, base, where):
    """Converted values of the keys of a table."""
    known = {f.name: f for f in fields(cls)}
    offered = [*known, "preset"] if cls is TrainingSettings else list(known)
    for key in given:
        if key not in known:
            raise ConfigError(f"[{where}] has no key {key!r}{_nearest(key, offered, '{!r}')}")
    for key, own in known.items():
        if key not in given and own.default is MISSING and own.default_factory is MISSING:
            raise ConfigError(f"[{where}] {key} is missing")
    hints = get_type_hints(cls, include_extras=True)
    values = {}
    for key, value in given.items():
        try:
            values[key] = _converted(value, hints[key], base, f"{where}.{key}")
        except _Misfit as misfit:
            shown = json.dumps(value, default=str)
            raise ConfigError(f"[{where}] {key} must be {misfit}, but is {shown}") from None
    return values


class _Misfit(Exception):
    """A value is of another kind than its hint; the message says what fits."""


def _converted(value, hint, base, where):
    """A TOML value as its type hint wants it."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:  # a file
        path = _converted(value, parts[0], base, where)
        if not path.is_file():
            table, _, key = where.rpartition(".")
            raise ConfigError(f"[{table}] {key}: there is no file {path}")
        return path
    if kind in (Union, types.UnionType):
        if value == NONE and types.NoneType in parts:
            return None
        for part in parts:
            try:
                return _converted(value, part, base, where)
            except _Misfit:
                continue
    elif kind is Literal:
        if value in parts:
            return value
    elif kind is tuple and isinstance(value, list):
        hints = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        if len(hints) == len(value):
            try:
                return tuple(_converted(v, h, base, where) for v, h in zip(value, hints, strict=True))
            except _Misfit:
                pass
    elif kind is dict and isinstance(value, dict):
        return {key: _inner(item, parts[1], base, f"{where}.{key}", hint) for key, item in value.items()}
    elif is_dataclass(hint) and isinstance(value, dict):
        return _made(hint, _table(hint, value, base, where), where)
    elif hint is Path and isinstance(value, str):
        return base / value
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    raise _Misfit(_expected(hint))


def _inner(value, hint, base, where, whole):
    try:
        return _converted(value, hint, base, where)
    except _Misfit:
        raise _Misfit(_expected(whole)) from None


def _expected(hint):
    """What fits a type hint, in words."""
    kind, parts = get_origin(hint), get_args(hint)
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", Path: "a path in quotes"}
    if hint in words:
        return words[hint]
    if kind is Annotated:
        return "the path of a file, in quotes"
    if kind in (Union, types.UnionType):
        return " or ".join(f'"{NONE}"' if part is types.NoneType else _expected(part) for part in parts)
    if kind is Literal:
        return " or ".join(f'"{part}"' for part in parts)
    if kind is tuple:
        number = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        return f"a list of {number}{_plural(parts[0])}"
    if kind is dict:
        return f"a table of {_plural(parts[1])}"
    return "a table"


def _plural(hint):
    words = {int: "integers", float: "numbers", str: "texts"}
    return (
        words.get(hint) or f"{_expected(hint).removeprefix('a ').replace('list', 'lists').replace('table', 'tables')}"
    )


def _nearest(name, known, template):
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {template.format(near[0])}?" if near else f"; there are {', '.join(known)}"


# -- the example ---------------------------------------------------------------------------
EXAMPLE = {
    "run": {"folder": "run", "name": "my-model"},
    "observed": {"path": "observed.h5"},
    "synthetic": {"path": "synthetic.h5"},
    "training": {"preset": "paper"},
}
MOCK_EXAMPLE = {
    "run": {"folder": "mock", "name": "mock"},
    "mock": {"fractions": [0.0, 0.3]},
    # An hour on one core; the paper's own schedule takes days.
    "training": {
        "preset": "paper",
        "n_iterations": 12_000,
        "learning_rate": 1e-3,
        "critic_learning_rate": 5e-4,
        "schedule": "cosine",
        "weight_latent": 2.0,
        "weight_labels": 5.0,
        "gradient_clip": 300.0,
        "average_decay": 0.995,
        "mixed_precision": True,
    },
    "network": {"split_filters": 1},  # as in the paper's mock study
}
HEADER = """\
# A training of cyclestarnet:  cyclestarnet train THIS_FILE
#
# Paths are relative to this file. A key behind a # has the value that it has
# by default; "none" is no value. Unknown keys are errors.
"""


MOCK_HEADER = HEADER.replace("A training", "A mock study of missing lines").replace("train THIS", "mock-lines THIS")


def example_config() -> str:
    """Return a configuration file with all keys, their defaults, and what they mean.

    Examples
    --------
    >>> from cyclestarnet.config import example_config
    >>> print(example_config().splitlines()[0])
    # A training of cyclestarnet:  cyclestarnet train THIS_FILE
    """
    return _example(HEADER, TABLES, EXAMPLE)


def example_mock_config() -> str:
    """Return the file of a mock study with all keys, as `example_config` does that of a training."""
    return _example(MOCK_HEADER, MOCK_TABLES, MOCK_EXAMPLE)


def _example(header, tables, examples):
    return "\n".join([header, *(_example_table(name, cls, examples.get(name, {})) for name, cls in tables.items())])


def _example_table(name, cls, values):
    text = _documentation(cls)
    lines, nested = [f"# {_first_line(cls)}", f"[{name}]"], []
    if name in OPTIONAL:
        lines.insert(1, "# The training does without it if this table is deleted, its title included.")
    if cls is TrainingSettings:
        lines += [*_comment(PRESET_DOC), f'preset = "{values["preset"]}"']
    said = None
    for own in fields(cls):
        if (cls, own.name) == (NetworkSettings, "n_pixels"):
            continue  # the data say it
        default = own.default if own.default_factory is MISSING else own.default_factory()
        if is_dataclass(default):
            nested.append(_example_table(f"{name}.{own.name}", type(default), {}))
            continue
        if text.get(own.name) not in (None, said):
            said = text[own.name]
            lines += _comment(said)
        if own.name in values:
            lines.append(f"{own.name} = {_toml(values[own.name])}")
        elif own.name != "seed" or name == "run":
            lines.append(f"#{own.name} = {_toml(default)}")
    return "\n".join([*lines, "", *nested])


def _comment(text):
    return ["", *textwrap.wrap(text, 88, initial_indent="# ", subsequent_indent="# ")]


def _first_line(cls):
    return inspect.getdoc(cls).partition("\n")[0].replace("`", "")


def _documentation(cls):
    """Description of each parameter in a numpydoc docstring."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n-+\n|\Z)", inspect.getdoc(cls), re.M | re.S)
    if section is None:
        return {}
    out, names = {}, []
    for line in section.group(1).splitlines():
        if line and not line.startswith(" "):
            names = line.partition(" : ")[0].split(", ")
            out |= dict.fromkeys(names, "")
        else:
            out |= {name: f"{out[name]} {line.strip()}".strip().replace("`", "") for name in names}
    return {name: re.sub(r"\bNone\b", f'"{NONE}"', text) for name, text in out.items() if text}


def _toml(value):
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, default=str)
