"""Calibrate synthetic stellar spectra on observed ones without labelled stars (Cycle-StarNet), and fit with them."""

from cyclestarnet._version import __version__
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import (
    CycleStarNetError,
    CycleStarNetWarning,
    FileFormatError,
    FitWarning,
    GridError,
    LabelError,
    ModelFileError,
    SpectrumError,
    TrainingError,
    TrainingWarning,
)
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.grid import WavelengthGrid, air_to_vacuum
from cyclestarnet.io import read_apstar, read_apvisit, read_aspcapstar
from cyclestarnet.labels import LabelSet
from cyclestarnet.model import CalibratedModel
from cyclestarnet.networks.emulator import EmulatorSettings
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.noise import NoiseModel
from cyclestarnet.results import FitFlag, FitResult, Posterior
from cyclestarnet.training.runs import train
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.watch import WatchSettings

__all__ = [
    "CalibratedModel",
    "ContinuumRecipe",
    "CycleStarNetError",
    "CycleStarNetWarning",
    "EmulatorSettings",
    "FileFormatError",
    "FitFlag",
    "FitResult",
    "FitWarning",
    "GaussianPrior",
    "GridError",
    "LabelError",
    "LabelSet",
    "ModelFileError",
    "NetworkSettings",
    "NoiseModel",
    "Posterior",
    "SpectrumError",
    "TrainingError",
    "TrainingSettings",
    "TrainingWarning",
    "WatchSettings",
    "WavelengthGrid",
    "__version__",
    "air_to_vacuum",
    "read_apstar",
    "read_apvisit",
    "read_aspcapstar",
    "train",
]
