"""Readers of spectrum files, each to a `~specutils.Spectrum` with its mask, in vacuum and at rest; training files."""

from cyclestarnet.io.apogee import APOGEE_BAD_BITS, read_apstar, read_apvisit, read_aspcapstar
from cyclestarnet.io.normalised import read_normalised
from cyclestarnet.io.preparation import StarCuts, prepare_training_set, summarise_preparation
from cyclestarnet.io.readers import read
from cyclestarnet.io.sdss_v import read_astrastar, read_mwmstar
from cyclestarnet.io.stars import StarSource, star_sources
from cyclestarnet.io.training_set import Selection, TrainingSet, write_training_set

__all__ = [
    "APOGEE_BAD_BITS",
    "Selection",
    "StarCuts",
    "StarSource",
    "TrainingSet",
    "prepare_training_set",
    "read",
    "read_apstar",
    "read_apvisit",
    "read_aspcapstar",
    "read_astrastar",
    "read_mwmstar",
    "read_normalised",
    "star_sources",
    "summarise_preparation",
    "write_training_set",
]
