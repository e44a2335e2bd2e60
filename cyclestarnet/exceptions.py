"""The package's own errors and warnings.

Every error is also one of Python's own, so that callers who do not know this
package can still catch them by their usual names.
"""

from astropy.utils.exceptions import AstropyUserWarning

__all__ = [
    "CycleStarNetError",
    "CycleStarNetWarning",
    "FileFormatError",
    "FitWarning",
    "GridError",
    "LabelError",
    "ModelFileError",
    "SpectrumError",
    "TrainingError",
    "TrainingWarning",
]


class CycleStarNetError(Exception):
    """Base class of the errors raised by cyclestarnet."""


class LabelError(CycleStarNetError, ValueError):
    """A label has an unknown name, a wrong unit or an impossible value."""


class GridError(CycleStarNetError, ValueError):
    """Wavelengths do not fit: no overlap, not monotonic, air, or a wrong length."""


class SpectrumError(CycleStarNetError, ValueError):
    """A spectrum cannot be used: its uncertainties, mask, shape or flux unit."""


class FileFormatError(CycleStarNetError, OSError):
    """A spectrum file is truncated or is not what its reader expects."""


class ModelFileError(CycleStarNetError, OSError):
    """A file of weights is damaged, foreign or fails its self-test."""


class TrainingError(CycleStarNetError, ArithmeticError):
    """A training fails, and was stopped; what it had reached before is kept."""


class CycleStarNetWarning(AstropyUserWarning):
    """Base class of the warnings issued by cyclestarnet."""


class FitWarning(CycleStarNetWarning):
    """A fit did not converge or its answer should not be taken at face value."""


class TrainingWarning(CycleStarNetWarning):
    """A training does not go as it should."""
