"""Configuration of a mock study of missing lines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclestarnet.training.config import HEADER, TABLES, LogConfig, ModelConfig, RunConfig, require_different
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.toml import ConfigError, File, Range, example_file, read_tables

__all__ = ["MockConfig", "MockLines", "example_mock_config", "read_mock_config"]

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

    Examples
    --------
    >>> from cyclestarnet.lines.config import MockLines
    >>> MockLines(fractions=[0.1, 0.3]).n_stars
    2000
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
        if not all(0 <= fraction <= 1 for fraction in self.fractions) or not require_different(self.fractions):
            given = list(self.fractions)
            raise ValueError(f"fractions must be one or more between 0 and 1, all different, but are {given}")
        if not require_different(self.seeds) or min(self.seeds) < 0:
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


MOCK_TABLES = {name: TABLES.get(name, MockLines) for name in ("run", "mock", "training", "network", "model", "log")}


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

    Examples
    --------
    ::

        config = read_mock_config("mock.toml")
        config.mock.fractions
    """

    path: Path
    run: RunConfig
    mock: MockLines
    training: TrainingSettings
    network: Mapping[str, Any]
    model: ModelConfig
    log: LogConfig


def read_mock_config(path: str | os.PathLike) -> MockConfig:
    """Read and check the file of a mock study, as `read_config` does that of a training.

    Parameters
    ----------
    path : path-like
        Of the TOML file; files that it names are sought beside it.

    Returns
    -------
    `MockConfig`

    Raises
    ------
    FileNotFoundError, ConfigError
        As `read_config`; also if ``[training] sigma_max`` would mask the noisiest spectra.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cyclestarnet.lines.config import example_mock_config, read_mock_config
    >>> path = Path(tempfile.mkdtemp()) / "mock.toml"
    >>> _ = path.write_text(example_mock_config(), encoding="utf-8")
    >>> read_mock_config(path).mock.fractions
    (0.0, 0.3)
    """
    path, parts = read_tables(path, MOCK_TABLES)
    snr, limit = parts["mock"].snr[0], parts["training"].sigma_max
    if 1 / snr > limit:
        raise ConfigError(
            f"[mock] snr begins at {snr:g}, an error of {1 / snr:.3f} in every pixel, but [training] sigma_max "
            f"= {limit:g} masks them all; raise one of the two in {path}"
        )
    return MockConfig(path=path, **parts)


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
MOCK_HEADER = HEADER.replace("A training", "A mock study of missing lines").replace("train THIS", "mock-lines THIS")


def example_mock_config() -> str:
    """Return the file of a mock study with all keys, as `example_config` does that of a training.

    Returns
    -------
    str
        TOML, with a comment for each key.

    Examples
    --------
    >>> from cyclestarnet.lines.config import example_mock_config
    >>> "fractions = [0.0, 0.3]" in example_mock_config()
    True
    """
    return example_file(MOCK_HEADER, MOCK_TABLES, MOCK_EXAMPLE)
