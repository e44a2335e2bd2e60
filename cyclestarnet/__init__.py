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
)
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.grid import WavelengthGrid, air_to_vacuum
from cyclestarnet.io import read_apstar, read_apvisit, read_aspcapstar
from cyclestarnet.labels import LabelSet
from cyclestarnet.model import CalibratedModel
from cyclestarnet.noise import NoiseModel
from cyclestarnet.results import FitFlag, FitResult, Posterior

__all__ = [
    "CalibratedModel",
    "ContinuumRecipe",
    "CycleStarNetError",
    "CycleStarNetWarning",
    "FileFormatError",
    "FitFlag",
    "FitResult",
    "FitWarning",
    "GaussianPrior",
    "GridError",
    "LabelError",
    "LabelSet",
    "ModelFileError",
    "NoiseModel",
    "Posterior",
    "SpectrumError",
    "WavelengthGrid",
    "__version__",
    "air_to_vacuum",
    "read_apstar",
    "read_apvisit",
    "read_aspcapstar",
]
