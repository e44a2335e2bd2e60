"""From spectra to results: options, fits, samples, errors and flags, and many stars."""

from cyclestarnet.pipeline.continuum_terms import ContinuumTerms
from cyclestarnet.pipeline.journal import read_results, write_results
from cyclestarnet.pipeline.options import FitOptions, ManyOptions, SampleManyOptions, SampleOptions
from cyclestarnet.pipeline.parts import FlagLimits, ModelParts, Population
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.pipeline.translate import EncodedSpectra

__all__ = [
    "ContinuumTerms",
    "EncodedSpectra",
    "FitOptions",
    "FitSetup",
    "FlagLimits",
    "ManyOptions",
    "ModelParts",
    "Population",
    "SampleManyOptions",
    "SampleOptions",
    "read_results",
    "write_results",
]
