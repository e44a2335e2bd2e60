"""Torch: the emulator, the translation networks and their fast forms, and predictors of flux and derivatives."""

from cyclestarnet.networks.clouds import LatentCloud, SplitLatentCloud
from cyclestarnet.networks.emulator import Emulator, EmulatorSettings, train_emulator
from cyclestarnet.networks.kinematics import Kinematics
from cyclestarnet.networks.predictor import (
    EmulatorPredictor,
    FreeSplitLatentPredictor,
    MovingPredictor,
    NetworkPredictor,
    ObservedPredictor,
)
from cyclestarnet.networks.published import (
    PAYNE_LABELS,
    PUBLISHED_SPECTRA,
    PublishedSpectra,
    adapt_emulator,
    read_payne_checkpoint,
    read_payne_npz,
    read_published_checkpoint,
)
from cyclestarnet.networks.shortcuts import Shortcuts
from cyclestarnet.networks.threads import one_thread
from cyclestarnet.networks.translation import (
    Critic,
    DomainNetwork,
    NetworkSettings,
    SharedNetwork,
    TranslationNetwork,
)
from cyclestarnet.networks.translator import DomainTranslator, Translator

__all__ = [
    "PAYNE_LABELS",
    "PUBLISHED_SPECTRA",
    "Critic",
    "DomainNetwork",
    "DomainTranslator",
    "Emulator",
    "EmulatorPredictor",
    "EmulatorSettings",
    "FreeSplitLatentPredictor",
    "Kinematics",
    "LatentCloud",
    "MovingPredictor",
    "NetworkPredictor",
    "NetworkSettings",
    "ObservedPredictor",
    "PublishedSpectra",
    "SharedNetwork",
    "Shortcuts",
    "SplitLatentCloud",
    "TranslationNetwork",
    "Translator",
    "adapt_emulator",
    "one_thread",
    "read_payne_checkpoint",
    "read_payne_npz",
    "read_published_checkpoint",
    "train_emulator",
]
