"""The TOML file of a training: read, checked down to the last key, and turned into settings.

A table of the file is a frozen dataclass. Its fields are the keys, their type
hints say what fits, and its docstring has the comments of the example file: a
new setting anywhere in the package is a new key here by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, Protocol

from cyclestarnet.exceptions import GridError
from cyclestarnet.io.training_set import Selection
from cyclestarnet.networks.emulator import EmulatorSettings
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.toml import ConfigError, File, Range, example_file, read_tables
from cyclestarnet.training.watch import WatchSettings

__all__ = [
    "AnyPlan",
    "Config",
    "LabelConfig",
    "LogConfig",
    "ModelConfig",
    "ObservedConfig",
    "Plan",
    "RunConfig",
    "SyntheticConfig",
    "example_config",
    "network_settings_of",
    "read_config",
]

LEAST_POPULATION = 500  # stars: the mean of fewer is off by more than 5 % of the population's width by chance


# -- tables of the file that no other room has settings for -----------------------------
@dataclass(frozen=True)
class RunConfig:
    """Where and how a training runs.

    Parameters
    ----------
    folder : path
        For checkpoints and logs. A run that finds its checkpoint here goes on from it.
    name : str
        Of the model: letters, digits, "-", "_" and ".".
    seed : int
        Of everything random; [training] and [emulator] may have seeds of their own.
    threads : int or None
        Of the CPU. None: as many as PyTorch takes.
    device : str
        "cpu", "cuda" or "cuda:N": where the networks are trained.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cyclestarnet.training.config import RunConfig
    >>> RunConfig(Path("run")).name
    'model'
    """

    folder: Path
    name: str = "model"
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
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
    known : file or None
        HDF5 with observed spectra of stars of which some or all labels are known (label_names
        tells which; NaN: not of this star). Nothing is trained on them. Errors of the labels
        that spectra do not show are learnt from those of the split ``validation``, and those
        of the split "test", if there is one, are fitted in the end: a table of offsets and of
        how often errors cover them is written beside the model.
    selection : table
        Which spectra are good enough.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cyclestarnet.training.config import ObservedConfig
    >>> ObservedConfig(Path("observed.h5")).validation
    'val'
    """

    path: File
    split: str = "train"
    validation: str = "val"
    pixels: tuple[int, int] | None = None
    memory: Literal["resident", "streamed"] = "resident"
    anchors: File | None = None
    known: File | None = None
    selection: Selection = field(default_factory=Selection)

    def __post_init__(self) -> None:
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
        Labels to spectra: .pt (`cyclestarnet.training.emulators.save_emulator`), the
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

    Examples
    --------
    >>> from pathlib import Path
    >>> from cyclestarnet.training.config import SyntheticConfig
    >>> SyntheticConfig(emulator=Path("PAYNE.pth.tar"), labels={"teff": (4000, 5000)}).file.name
    'PAYNE.pth.tar'
    """

    path: File | None = None
    split: str = "train"
    memory: Literal["resident", "streamed"] = "resident"
    emulator: File | None = None
    labels: File | dict[str, Range] | None = None
    n_drawn: int = 20_000
    n_emulator: int = 20_000

    @property
    def file(self) -> Path:
        """The file that the synthetic spectra come from, or that of the emulator which makes them."""
        path = self.path or self.emulator
        assert path is not None  # or the configuration was refused
        return path

    def __post_init__(self) -> None:
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

    Examples
    --------
    >>> from cyclestarnet.training.config import LabelConfig
    >>> LabelConfig(("teff", "fe_h"), lower=(4000, -1), upper=(5000, 0.5), combinations={"m_h": {"fe_h": 1.0}}).names
    ('teff', 'fe_h')
    """

    names: tuple[str, ...] | None = None
    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None
    combinations: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
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
    translation : {"paper", "residual"}
        Form of the translation between domains: the other domain's decoder makes the whole
        spectrum, or the decoders make the difference between the domains only, so that what
        the latents lose of a spectrum, such as weak lines, comes straight from the spectrum.
        The networks are trained in the same way for both.
    n_validation : int
        Stars whose fits tell the model's errors; each takes seconds.
    n_cloud : int
        Stars that tell which spectra are familiar, at most.
    n_zero_points : int
        Stars whose labels, as fits find them, shall have the mean of the label prior, at most: that takes off by how
        much the networks miss it. 0: nothing is taken off. Not with anchors, which tell zero points
        themselves, and not if there are fewer than 500 stars, whose mean is uncertain.
    n_twin : int
        Iterations of a twin, a training of stars that the model makes of labels which it chooses, and of the twin of
        that: they tell the errors of labels that spectra do not show, where no stars are known. 0: they stay
        unknown. A quarter to half as many as those of the training are good. Not with anchors, and not if stars are
        known.
    continuum : "apogee", file or None
        Continuum pixels that normalised the spectra, and will normalise all
        that the model fits: this package's for APOGEE, or a table with a
        column "wavelength" or "pixel". None: they are not known, and spectra
        that are fitted must be normalised in the same way; for those in
        physical units, quiet pixels of the synthetic spectra stand in.
    degree : int
        Of the continuum polynomial.
    half : bool
        Store weights in half precision.
    provenance : table
        Texts for the model card.

    Examples
    --------
    >>> from cyclestarnet.training.config import ModelConfig
    >>> ModelConfig(n_validation=200).weights
    'best'
    """

    path: Path | None = None
    weights: Literal["best", "last"] = "best"
    translation: Literal["paper", "residual"] = "paper"
    n_validation: int = 100
    n_cloud: int = 3000
    n_zero_points: int = 2000
    n_twin: int = 0
    continuum: Literal["apogee"] | File | None = None
    degree: int = 4
    half: bool = False
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("n_validation", 3), ("n_cloud", 8), ("n_zero_points", 0), ("n_twin", 0), ("degree", 0)):
            given = getattr(self, name)
            if not isinstance(given, Integral) or isinstance(given, bool) or given < least:
                raise ValueError(f"{name} must be a whole number, {least} or more, but is {given!r}")
        if 0 < self.n_zero_points < LEAST_POPULATION:
            raise ValueError(f"n_zero_points must be 0, or {LEAST_POPULATION} or more, but is {self.n_zero_points}")
        if self.translation not in ("paper", "residual"):
            raise ValueError(f"translation must be 'paper' or 'residual', but is {self.translation!r}")
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

    Examples
    --------
    >>> from cyclestarnet.training.config import LogConfig
    >>> LogConfig(every=10).checkpoint_every
    500
    """

    every: int = 50
    checkpoint_every: int = 500
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, but is {getattr(self, name)}")


def require_different(values: Sequence[float]) -> bool:
    """Whether there are values, and no two of them are the same.

    Parameters
    ----------
    values : sequence of float
        Such as seeds or fractions of a study.

    Returns
    -------
    bool

    Examples
    --------
    >>> from cyclestarnet.training.config import require_different
    >>> require_different((0.0, 0.3)), require_different((1, 1)), require_different(())
    (True, False, False)
    """
    return 0 < len(values) == len(set(values))


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


class AnyPlan(Protocol):
    """What every training has, whatever becomes of its networks.

    Examples
    --------
    ::

        check_machine(plan)
    """

    @property
    def run(self) -> RunConfig: ...

    @property
    def training(self) -> TrainingSettings: ...

    @property
    def watch(self) -> WatchSettings | None: ...


def network_settings_of(network: Mapping[str, Any], n_pixels: int) -> NetworkSettings:
    """Sizes of the networks for the spectra.

    Parameters
    ----------
    network : dict
        Changes to the paper's `~cyclestarnet.NetworkSettings`, by name.
    n_pixels : int
        Pixels of a spectrum.

    Returns
    -------
    `~cyclestarnet.NetworkSettings`

    Raises
    ------
    GridError
        If the strides do not fit that number, or ``network`` has another ``n_pixels``.
    ValueError
        If a size is impossible.

    Examples
    --------
    >>> from cyclestarnet.training.config import network_settings_of
    >>> network_settings_of({"split_filters": 1}, 7167).latent_length
    24
    """
    given = network.get("n_pixels", n_pixels)
    if given != n_pixels:
        raise GridError(f"n_pixels of the network is {given}, but the spectra have {n_pixels} pixels")
    return NetworkSettings(**(dict(network) | {"n_pixels": n_pixels}))


@dataclass(frozen=True)
class Plan:
    """How a training goes, whatever its spectra are.

    Parameters
    ----------
    run : `RunConfig`
        Folder, name, seed and device.
    training : `~cyclestarnet.TrainingSettings`
        Every number of the training.
    network : dict
        Changes to the paper's `~cyclestarnet.NetworkSettings`, by name.
    watch : `~cyclestarnet.WatchSettings` or None
        How the run is watched. None: nobody watches.
    emulator : `~cyclestarnet.EmulatorSettings`
        For an emulator that the run trains itself.
    model : `ModelConfig`
        What becomes of the trained networks.
    log : `LogConfig`
        What is written down on the way.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cyclestarnet import EmulatorSettings, TrainingSettings
    >>> from cyclestarnet.training.config import LogConfig, ModelConfig, Plan, RunConfig
    >>> run = RunConfig(Path("run"), name="giants")
    >>> plan = Plan(run, TrainingSettings(), {"split_filters": 1}, None, EmulatorSettings(), ModelConfig(), LogConfig())
    >>> plan.model_path.as_posix()
    'run/giants.safetensors'
    """

    run: RunConfig
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
        """Sizes of the networks for the spectra.

        Parameters
        ----------
        n_pixels : int
            Pixels of a spectrum.

        Returns
        -------
        `~cyclestarnet.NetworkSettings`

        Raises
        ------
        GridError
            If the strides do not fit that number, or ``network`` has another ``n_pixels``.
        ValueError
            If a size is impossible.

        Examples
        --------
        ::

            sizes = plan.network_settings(grid.n_pixels)
        """
        return network_settings_of(self.network, n_pixels)


@dataclass(frozen=True)
class Config(Plan):
    """A training as its file describes it: a plan, and the files with its spectra.

    Parameters
    ----------
    run, training, network, watch, emulator, model, log
        Tables of the file; see `Plan`. ``watch`` is None if the file has no such table.
    path : path
        The file itself.
    observed : `ObservedConfig`
        Where the observed spectra are.
    synthetic : `SyntheticConfig`
        Where the synthetic spectra come from.
    labels : `LabelConfig`
        What those files do not tell of their labels.

    Examples
    --------
    ::

        config = read_config("mine.toml")
        print(config.synthetic.file, config.training.n_iterations)
    """

    path: Path
    observed: ObservedConfig
    synthetic: SyntheticConfig
    labels: LabelConfig

    def network_settings(self, n_pixels: int) -> NetworkSettings:
        """Sizes of the networks for the spectra, as `Plan.network_settings`; errors name the file.

        Parameters
        ----------
        n_pixels : int
            Pixels of a spectrum.

        Returns
        -------
        `~cyclestarnet.NetworkSettings`

        Raises
        ------
        ConfigError
            If the strides do not fit that number, or the file says another.

        Examples
        --------
        ::

            sizes = read_config("mine.toml").network_settings(7167)
        """
        try:
            return super().network_settings(n_pixels)
        except ValueError as error:
            raise ConfigError(f"[network] {error}; choose [observed] pixels in {self.path} to suit") from error


# -- reading -------------------------------------------------------------------------------
def read_config(path: str | os.PathLike) -> Config:
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

    Examples
    --------
    ::

        config = read_config("mine.toml")
        print(config.training.n_iterations, config.model_path)
    """
    path, parts = read_tables(path, TABLES)
    try:
        _check_together(**parts)
    except ConfigError as error:
        raise ConfigError(f"{error} in {path}") from None
    return Config(path=path, **parts)


def _check_together(
    training: TrainingSettings, observed: ObservedConfig, synthetic: SyntheticConfig, model: ModelConfig, **_: object
) -> None:
    """Check what no table can know alone."""
    if model.n_twin and observed.anchors is not None:
        raise ConfigError("[model] n_twin: a twin has no anchors; leave it out, or [observed] anchors")
    if bool(training.weight_anchors) != (observed.anchors is not None):
        given = f"[training] weight_anchors is {training.weight_anchors}, but [observed] anchors is"
        raise ConfigError(f"{given} {'missing' if observed.anchors is None else 'given: raise the weight'}")
    for name in ("weight_anchors", "prior_rate"):
        if getattr(training, name) and synthetic.labels is None:
            raise ConfigError(
                f"[training] {name} needs spectra that the emulator makes: [synthetic] labels must say of what"
            )


# -- the example ---------------------------------------------------------------------------
EXAMPLE = {
    "run": {"folder": "run", "name": "my-model"},
    "observed": {"path": "observed.h5"},
    "synthetic": {"path": "synthetic.h5"},
    "training": {"preset": "paper"},
}
HEADER = """\
# A training of cyclestarnet:  cyclestarnet train THIS_FILE
#
# Paths are relative to this file. A key behind a # has the value that it has
# by default; "none" is no value. Unknown keys are errors.
"""


def example_config() -> str:
    """Return a configuration file with all keys, their defaults, and what they mean.

    Returns
    -------
    str
        A text to save as a ``.toml`` file and to edit.

    Examples
    --------
    >>> from cyclestarnet.training.config import example_config
    >>> print(example_config().splitlines()[0])
    # A training of cyclestarnet:  cyclestarnet train THIS_FILE
    """
    return example_file(HEADER, TABLES, EXAMPLE)
