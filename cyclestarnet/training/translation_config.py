"""The TOML file of a training of domains without labels, two or more: that of a model, but for what they lack."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cyclestarnet.exceptions import GridError
from cyclestarnet.io.training_set import Selection
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.training.config import LogConfig, RunConfig, network_settings_of
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.toml import ConfigError, File, example_file, read_tables
from cyclestarnet.training.watch import WatchSettings

__all__ = [
    "DomainConfig",
    "SavedConfig",
    "TranslationConfig",
    "TranslationPlan",
    "example_translation_config",
    "is_translation",
    "read_translation_config",
]


@dataclass(frozen=True)
class DomainConfig:
    """Spectra of one of the domains.

    Parameters
    ----------
    path : file
        HDF5, as `cyclestarnet.io.write_training_set` makes it, with errors and masks; no labels are read.
    name : str or None
        What the domain is called. None: as the table, such as "first".
    split, validation : str
        Splits of the file to train on, and to learn the errors of the translation from.
    pixels : (int, int) or None
        Part of the pixels to use, half-open, so that both domains have the same ones.
    memory : {"resident", "streamed"}
        Hold all spectra in memory, or read them as training goes.
    split_latent : bool or None
        Whether spectra of the domain have a latent of their own, for what they have besides the stars, such as a
        resolution that varies. None: only the second of two domains has one.
    selection : table
        Which spectra are good enough.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cyclestarnet.training.translation_config import DomainConfig
    >>> DomainConfig(Path("uves.h5"), name="UVES").validation
    'val'
    """

    path: File
    name: str | None = None
    split: str = "train"
    validation: str = "val"
    pixels: tuple[int, int] | None = None
    memory: Literal["resident", "streamed"] = "resident"
    split_latent: bool | None = None
    selection: Selection = field(default_factory=Selection)

    def __post_init__(self) -> None:
        if self.pixels is not None and not 0 <= self.pixels[0] < self.pixels[1]:
            raise ValueError(f"pixels must be [first, end], 0 or more and rising, but is {list(self.pixels)}")
        if self.split == self.validation:
            raise ValueError(f"validation must be another split than {self.split!r}, which training sees")


@dataclass(frozen=True)
class SavedConfig:
    """The translation that the training ends in.

    Parameters
    ----------
    path : path or None
        File to write. None: NAME.safetensors in the folder of the run.
    weights : {"best", "last"}
        Of the best score, if there is a watch, or of the last iteration.
    translation : {"residual", "paper"}
        Form of the translation. "residual": the decoders make the difference between the domains only, and noise and
        weak lines come straight from the spectrum, whose errors then hold for the translated one. "paper": the other
        domain's decoder makes the whole spectrum, which has no uncertainty.
    n_validation : int
        Spectra of each domain that tell the errors of translations, at most.
    continuum : "apogee", file or None
        Continuum pixels that normalised the spectra of all domains, and will normalise all that are
        translated: this package's for APOGEE, or a table with a column "wavelength" or "pixel". None: spectra
        that are translated must be normalised in the same way.
    degree : int
        Of the continuum polynomial.
    provenance : table
        Texts for the card.

    Examples
    --------
    >>> from cyclestarnet.training.translation_config import SavedConfig
    >>> SavedConfig().translation
    'residual'
    """

    path: Path | None = None
    weights: Literal["best", "last"] = "best"
    translation: Literal["residual", "paper"] = "residual"
    n_validation: int = 300
    continuum: Literal["apogee"] | File | None = None
    degree: int = 4
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("n_validation", 3), ("degree", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, but is {getattr(self, name)}")
        if self.translation not in ("residual", "paper"):
            raise ValueError(f"translation must be 'residual' or 'paper', but is {self.translation!r}")
        if self.path is not None and self.path.suffix != ".safetensors":
            raise ValueError(f"path must end in .safetensors, but is {self.path.name!r}")


COMMON = {
    "run": RunConfig,
    "training": TrainingSettings,
    "network": NetworkSettings,
    "watch": WatchSettings,
    "model": SavedConfig,
    "log": LogConfig,
}
TABLES = {"run": RunConfig, "first": DomainConfig, "second": DomainConfig} | COMMON


@dataclass(frozen=True)
class TranslationPlan:
    """How a training of domains without labels goes, whatever its spectra are.

    Parameters
    ----------
    run : `~cyclestarnet.training.config.RunConfig`
        Folder, name, seed and device.
    training : `~cyclestarnet.TrainingSettings`
        Every number of the training; what is called synthetic there is of the first domain, what is called observed
        of the others.
    network : dict
        Changes to the paper's `~cyclestarnet.NetworkSettings`, by name.
    watch : `~cyclestarnet.WatchSettings` or None
        How the run is watched. None: nobody watches.
    model : `SavedConfig`
        What becomes of the trained networks.
    log : `~cyclestarnet.training.config.LogConfig`
        What is written down on the way.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cyclestarnet import TrainingSettings
    >>> from cyclestarnet.training.config import LogConfig, RunConfig
    >>> from cyclestarnet.training.translation_config import SavedConfig, TranslationPlan
    >>> run = RunConfig(Path("run"), name="uves-to-apogee")
    >>> TranslationPlan(run, TrainingSettings(), {}, None, SavedConfig(), LogConfig()).model_path.as_posix()
    'run/uves-to-apogee.safetensors'
    """

    run: RunConfig
    training: TrainingSettings
    network: Mapping[str, Any]
    watch: WatchSettings | None
    model: SavedConfig
    log: LogConfig

    @property
    def model_path(self) -> Path:
        """Where the finished translation goes."""
        return self.model.path or self.run.folder / f"{self.run.name}.safetensors"

    def network_settings(self, n_pixels: int) -> NetworkSettings:
        """Sizes of the networks for the spectra, as `~cyclestarnet.training.config.network_settings_of`.

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

        Examples
        --------
        ::

            sizes = plan.network_settings(grid.n_pixels)
        """
        return network_settings_of(self.network, n_pixels)


@dataclass(frozen=True)
class TranslationConfig(TranslationPlan):
    """A training of domains without labels as its file describes it.

    Parameters
    ----------
    run, training, network, watch, model, log
        Tables of the file; see `TranslationPlan`.
    path : path
        The file itself.
    domains : mapping of `DomainConfig`
        Where the spectra are, by the titles of their tables: ``"first"`` and ``"second"``, or such
        as ``"domains.UVES"``.

    Examples
    --------
    ::

        config = read_translation_config("mine.toml")
        print([own.path for own in config.domains.values()])
    """

    path: Path
    domains: Mapping[str, DomainConfig]

    def network_settings(self, n_pixels: int) -> NetworkSettings:
        """Sizes of the networks for the spectra, as `TranslationPlan.network_settings`; errors name the file.

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

            sizes = read_translation_config("mine.toml").network_settings(7167)
        """
        try:
            return super().network_settings(n_pixels)
        except (GridError, ValueError) as error:
            raise ConfigError(
                f"[network] {error}; choose pixels of {' and '.join(f'[{name}]' for name in self.domains)} in "
                f"{self.path} to suit"
            ) from error


def is_translation(path: str | os.PathLike) -> bool:
    """Whether a file describes a training of domains without labels.

    Parameters
    ----------
    path : path-like
        TOML.

    Returns
    -------
    bool
        True if it has a table ``[first]``, ``[second]`` or ``[domains]``; False also of what cannot be read, which
        the reader of the other kind will say.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cyclestarnet.training.translation_config import is_translation
    >>> file = Path(tempfile.mkdtemp()) / "mine.toml"
    >>> _ = file.write_text('first = { path = "uves.h5" }')
    >>> is_translation(file)
    True
    """
    return not {"first", "second", "domains"}.isdisjoint(_titles(path))


def _titles(path: str | os.PathLike) -> set[str]:
    """Tables of a file; none of what cannot be read."""
    try:
        return set(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return set()


def read_translation_config(path: str | os.PathLike) -> TranslationConfig:
    """Read and check the file of a training of domains without labels.

    Parameters
    ----------
    path : path-like
        TOML; see `example_translation_config`. Relative paths in it are relative to the file.

    Returns
    -------
    `TranslationConfig`

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ConfigError
        If it is no TOML, has an unknown table or key, lacks one that is needed, a value does not fit, or a
        file that it names is not there. The message says which.

    Examples
    --------
    ::

        config = read_translation_config("mine.toml")
        print(config.training.n_iterations, config.model_path)
    """
    if "domains" not in _titles(path):
        path, parts = read_tables(path, TABLES)
        domains = {side: parts.pop(side) for side in ("first", "second")}
        return TranslationConfig(path=path, domains=domains, **parts)
    path, parts = read_tables(path, COMMON, {"domains": DomainConfig})
    domains = {f"domains.{name}": own for name, own in parts.pop("domains").items()}
    if len(domains) < 2:
        raise ConfigError(f"[domains] must have two tables or more, such as [domains.UVES], in {path}")
    return TranslationConfig(path=path, domains=domains, **parts)


EXAMPLE = {
    "run": {"folder": "run", "name": "first-to-second"},
    "first": {"path": "first.h5"},
    "second": {"path": "second.h5"},
    "training": {"preset": "paper"},
}
HEADER = """\
# A training of cyclestarnet between two domains without labels:  cyclestarnet train THIS_FILE
#
# In [training], "synth" stands for the first domain, "obs" for the second. Paths are relative
# to this file. A key behind a # has the value that it has by default; "none" is no value.
# Unknown keys are errors.
"""


def example_translation_config() -> str:
    """Return a configuration file with all keys, their defaults, and what they mean.

    Returns
    -------
    str
        A text to save as a ``.toml`` file and to edit.

    Examples
    --------
    >>> from cyclestarnet.training.translation_config import example_translation_config
    >>> "[second]" in example_translation_config()
    True
    """
    return example_file(HEADER, TABLES, EXAMPLE)
