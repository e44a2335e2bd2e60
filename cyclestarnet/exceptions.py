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
    "OtherRunError",
    "SpectrumError",
    "TrainingError",
    "TrainingWarning",
    "UnknownLabelError",
]


class CycleStarNetError(Exception):
    """Base class of the errors raised by cyclestarnet.

    Examples
    --------
    Go on with the next star, whatever is wrong with one::

        try:
            result = model.fit(spectrum)
        except CycleStarNetError as error:
            log.warning("%s: %s", name, error)
    """


class LabelError(CycleStarNetError, ValueError):
    """A label has an unknown name, a wrong unit or an impossible value.

    Examples
    --------
    >>> from cyclestarnet import LabelSet
    >>> LabelSet(["teff", "logg"], [3500, 0], [6000, 4]).index("Teff")
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.LabelError: Unknown label 'Teff'; did you mean 'teff'?
    """


class UnknownLabelError(LabelError, KeyError):
    """There is no label of this name among values by name.

    Examples
    --------
    >>> from cyclestarnet.exceptions import UnknownLabelError
    >>> issubclass(UnknownLabelError, KeyError)
    True
    """

    __str__ = Exception.__str__  # a KeyError would put its message in quotes


class GridError(CycleStarNetError, ValueError):
    """Wavelengths do not fit: no overlap, not monotonic, air, or a wrong length.

    Examples
    --------
    >>> from cyclestarnet import WavelengthGrid
    >>> WavelengthGrid([15000.0, 15001.0])
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.GridError: wavelength must have a unit of length, for example u.AA, but got [15000.0, ...]
    """


class SpectrumError(CycleStarNetError, ValueError):
    """A spectrum cannot be used: its uncertainties, mask, shape or flux unit.

    Examples
    --------
    >>> from cyclestarnet.spectra import Pixels
    >>> Pixels(flux=[1.0, 0.9], ivar=[1e4, -1e4])
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.SpectrumError: ivar must be finite and 0 or positive; 0 marks a pixel to ignore
    """


class FileFormatError(CycleStarNetError, OSError):
    """A spectrum file is truncated or is not what its reader expects.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from cyclestarnet.io import read
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "star.fits"
    >>> path.touch()
    >>> read(path)
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.FileFormatError: ...star.fits: the name does not tell the kind of file; expected ...
    """


class ModelFileError(CycleStarNetError, OSError):
    """A file of weights is damaged, foreign or fails its self-test.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from cyclestarnet import CalibratedModel
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> path.touch()
    >>> CalibratedModel.load(path)
    Traceback (most recent call last):
        ...
    cyclestarnet.exceptions.ModelFileError: ...model.safetensors is truncated or no safetensors file: ...
    """


class OtherRunError(CycleStarNetError, ValueError):
    """A file that would be continued holds the work of another run: other settings, another star or model.

    Examples
    --------
    ::

        try:
            model.sample(star, backend="chain.h5")
        except OtherRunError as error:
            print(error)  # says what differs, and what to do
    """


class TrainingError(CycleStarNetError, ArithmeticError):
    """A training fails, and was stopped; what it had reached before is kept.

    Examples
    --------
    ::

        try:
            trainer.run()
        except TrainingError as error:
            print(error)  # says what failed, when, and what to change
    """


class CycleStarNetWarning(AstropyUserWarning):
    """Base class of the warnings issued by cyclestarnet.

    Examples
    --------
    Make errors of them, so that no script goes on after one::

        warnings.simplefilter("error", CycleStarNetWarning)
    """


class FitWarning(CycleStarNetWarning):
    """A fit did not converge or its answer should not be taken at face value.

    Examples
    --------
    The flags of a result say the same, star by star::

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)
            result = model.fit(spectrum)
        if result.flags:
            ...
    """


class TrainingWarning(CycleStarNetWarning):
    """A training does not go as it should.

    Examples
    --------
    Stop at the first one::

        warnings.simplefilter("error", TrainingWarning)
    """
