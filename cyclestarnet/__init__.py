"""Calibrate synthetic stellar spectra on observed ones without labelled stars (Cycle-StarNet), and fit with them."""

from cyclestarnet._version import __version__
from cyclestarnet.cards import ModelCard, model_card
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.datasets import list_models
from cyclestarnet.derivatives import DerivativeSpectra, ensemble_derivatives
from cyclestarnet.exceptions import (
    CycleStarNetError,
    CycleStarNetWarning,
    FileFormatError,
    FitWarning,
    GridError,
    LabelError,
    ModelFileError,
    OtherRunError,
    SpectrumError,
    TrainingError,
    TrainingWarning,
)
from cyclestarnet.fitting.isochrones import IsochronePrior, mist_isochrones
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.grid import WavelengthGrid, air_to_vacuum
from cyclestarnet.io import read_apstar, read_apvisit, read_aspcapstar
from cyclestarnet.labels import LabelSet, difference_unit, unit_of_label
from cyclestarnet.masks import SpectroscopicMask
from cyclestarnet.model import CalibratedModel
from cyclestarnet.networks.emulator import EmulatorSettings
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.noise import NoiseModel
from cyclestarnet.pipeline import (
    ContinuumTerms,
    FitOptions,
    ManyOptions,
    SampleManyOptions,
    SampleOptions,
    read_results,
    write_results,
)
from cyclestarnet.resolution import LineSpreadFunction, TabulatedLineSpreadFunction, degrade_resolution
from cyclestarnet.results import FitFlag, FitResult, Posterior
from cyclestarnet.training.adaptation import adapt
from cyclestarnet.training.runs import train
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.translations import (
    DomainSpectra,
    EmulatedSpectra,
    add_domain,
    train_domains,
    train_translation,
)
from cyclestarnet.training.watch import WatchSettings
from cyclestarnet.translation import Translation

__all__ = [
    "CalibratedModel",
    "ContinuumRecipe",
    "ContinuumTerms",
    "CycleStarNetError",
    "CycleStarNetWarning",
    "DerivativeSpectra",
    "DomainSpectra",
    "EmulatedSpectra",
    "EmulatorSettings",
    "FileFormatError",
    "FitFlag",
    "FitOptions",
    "FitResult",
    "FitWarning",
    "GaussianPrior",
    "GridError",
    "IsochronePrior",
    "LabelError",
    "LabelSet",
    "LineSpreadFunction",
    "ManyOptions",
    "ModelCard",
    "ModelFileError",
    "NetworkSettings",
    "NoiseModel",
    "OtherRunError",
    "Posterior",
    "SampleManyOptions",
    "SampleOptions",
    "SpectroscopicMask",
    "SpectrumError",
    "TabulatedLineSpreadFunction",
    "TrainingError",
    "TrainingSettings",
    "TrainingWarning",
    "Translation",
    "WatchSettings",
    "WavelengthGrid",
    "__version__",
    "adapt",
    "add_domain",
    "air_to_vacuum",
    "degrade_resolution",
    "difference_unit",
    "ensemble_derivatives",
    "list_models",
    "mist_isochrones",
    "model_card",
    "read_apstar",
    "read_apvisit",
    "read_aspcapstar",
    "read_results",
    "train",
    "train_domains",
    "train_translation",
    "unit_of_label",
    "write_results",
]
