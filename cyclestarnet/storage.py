"""Objects in FITS files, each in a file that knows whether it is damaged; and what every file says of its origin.

A file holds what `pack` makes of an object: arrays and tables as extensions that any reader of FITS
shows, and plain values as JSON in the table ``FACTS``. Nothing in a file is executed: of classes it can only
name those that were handed to `storable`.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable, Table
from astropy.utils.exceptions import AstropyWarning

from cyclestarnet._version import __version__
from cyclestarnet.exceptions import CycleStarNetWarning, FileFormatError
from cyclestarnet.files import as_json, write_atomically
from cyclestarnet.spectra import Spectrum

__all__ = ["Lost", "origin", "read_object", "storable", "write_object"]

FORMAT = "cyclestarnet-object-1"
_DIGEST = re.compile(rb"SHA256  = '([0-9a-f]{64})'")
_classes: dict[str, type] = {}


@dataclasses.dataclass(frozen=True)
class Lost:
    """What stands where an object was that a file could not keep, such as a prior of the user's own class.

    Parameters
    ----------
    name : str
        Of its class.

    Examples
    --------
    >>> from cyclestarnet.storage import Lost
    >>> Lost("MyPrior")
    <a MyPrior that the file could not keep>
    """

    name: str

    def __repr__(self) -> str:
        return f"<a {self.name} that the file could not keep>"


def storable(kind: type) -> type:
    """Let objects of a class be kept in files: a dataclass by its fields, another by its attributes.

    Parameters
    ----------
    kind : type
        The class.

    Returns
    -------
    type
        The same, so that this is a decorator, too.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from cyclestarnet.storage import storable
    >>> @storable
    ... @dataclass
    ... class Offset:
    ...     value: float
    """
    _classes[kind.__qualname__] = kind
    return kind


def origin(meta: Mapping[str, Any], options: object = None) -> dict[str, str]:
    """What a file or table says of its origin: model, digest of its weights, version of the package, date, options.

    Parameters
    ----------
    meta : mapping
        May have ``model``, ``weights``, ``version`` and ``date``.
    options : object, optional
        Of the fit. Arrays are told by their digest.

    Returns
    -------
    dict of str
        Without what is not known. Without a version it is this one, without a date it is now (UTC).

    Examples
    --------
    >>> from cyclestarnet.storage import origin
    >>> list(origin({"model": "apogee-giants"}, {"space": "emulator"}))
    ['model', 'version', 'date', 'options']
    """
    now = {"version": __version__, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    told = {name: str(meta.get(name) or now.get(name, "")) for name in ("model", "weights", "version", "date")}
    if options is not None:
        told["options"] = _text(options)
    return {name: text for name, text in told.items() if text}


@lru_cache(maxsize=4)
def _text_of(options: object) -> str:
    return as_json(vars(options), longest=32)


def _text(options: object) -> str:
    return as_json(options, longest=32) if isinstance(options, Mapping) else _text_of(options)


# -- files -----------------------------------------------------------------------------
def write_object(value: object, path: str | os.PathLike[str], *, told: Mapping[str, str], tables: Mapping[str, Table]):
    """Write an object to a FITS file, in one step.

    Parameters
    ----------
    value : object
        Of a class that is `storable`. What a file cannot keep in it is left out, with a warning.
    path : path-like
        Of the file, which is replaced if it exists.
    told : mapping of str to str
        Words for the primary header, by keyword.
    tables : mapping of str to `~astropy.table.Table`
        For people; they are not read.

    Raises
    ------
    OSError
        If the file cannot be written.

    Warns
    -----
    CycleStarNetWarning
        If something in the object cannot be kept.

    Examples
    --------
    >>> import tempfile
    >>> from cyclestarnet import LabelSet
    >>> from cyclestarnet.storage import read_object, storable, write_object
    >>> path, labels = tempfile.mkdtemp() + "/labels.fits", LabelSet(["teff"], [3500], [6000])
    >>> write_object(labels, path, told={}, tables={})
    >>> read_object(path, LabelSet).names
    ('teff',)
    """
    packer = _Packer()
    plain = {name: packer.pack(part, name) for name, part in _state(value).items()}
    if packer.lost:
        warnings.warn(
            f"{os.fspath(path)} cannot keep {' and '.join(sorted(packer.lost))}; after reading, give it again",
            CycleStarNetWarning,
            stacklevel=3,
        )
    primary = fits.PrimaryHDU()
    primary.header["FORMAT"], primary.header["KIND"] = FORMAT, type(value).__qualname__
    for name, text in told.items():
        primary.header[name.upper()] = text.encode("ascii", "backslashreplace").decode()
    primary.header["SHA256"] = "0" * 64  # of the whole file, with zeros in this place
    facts = Table({"name": list(plain), "value": [json.dumps(part) for part in plain.values()]}, dtype=(str, str))
    shown = [_table_hdu(table, name.upper()) for name, table in tables.items()]
    buffer = io.BytesIO()
    fits.HDUList([primary, *shown, _table_hdu(facts, "FACTS"), *packer.extensions]).writeto(buffer)
    content = buffer.getvalue()
    place = content.index(b"SHA256  = '") + 11
    digest = hashlib.sha256(content).hexdigest().encode()
    content = content[:place] + digest + content[place + 64 :]
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def read_object(path: str | os.PathLike[str], kind: type) -> Any:
    """Read what `write_object` wrote.

    Parameters
    ----------
    path : path-like
        The file.
    kind : type
        Class of the object.

    Returns
    -------
    object
        Of that class. Arrays and numbers are equal to the last bit.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is damaged, or holds something else.

    Examples
    --------
    ::

        result = read_object("star.fits", FitResult)
    """
    content = Path(path).read_bytes()
    found = _DIGEST.search(content[: 100 * 2880])
    if not content.startswith(b"SIMPLE  =") or found is None:
        raise FileFormatError(f"{path} is no file of cyclestarnet, or damaged at its beginning")
    zeroed = content[: found.start(1)] + b"0" * 64 + content[found.end(1) :]
    if hashlib.sha256(zeroed).hexdigest().encode() != found.group(1):
        raise FileFormatError(
            f"{path} was altered or damaged after it was written: its content does not fit its digest"
        )
    try:
        with fits.open(io.BytesIO(content)) as extensions:
            header = extensions[0].header
            if header["FORMAT"] != FORMAT:
                raise FileFormatError(
                    f"{path} has the format {header['FORMAT']!r}, but this cyclestarnet reads {FORMAT!r}; update it"
                )
            if header["KIND"] != kind.__qualname__:
                raise FileFormatError(f"{path} holds a {header['KIND']}, not a {kind.__qualname__}")
            facts = {row["name"]: json.loads(row["value"]) for row in extensions["FACTS"].data}
            return _object(kind, {name: _unpack(part, extensions) for name, part in facts.items()})
    except FileFormatError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise FileFormatError(
            f"{path} holds no {kind.__qualname__} that this cyclestarnet understands: {error}"
        ) from error


# -- to and from plain values ---------------------------------------------------------
def _state(value: object) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        return {own.name: getattr(value, own.name) for own in dataclasses.fields(value) if own.init}
    return dict(vars(value))


def _object(kind: type, state: Mapping[str, Any]) -> Any:
    if dataclasses.is_dataclass(kind):
        return kind(**state)
    value = kind.__new__(kind)
    value.__dict__.update(state)
    return value


def _table_hdu(table: Table, name: str) -> fits.BinTableHDU:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # of units that FITS does not know: FACTS have them
        hdu = fits.table_to_hdu(Table({name: np.asarray(column) for name, column in table.items()}))
        for k, column in enumerate(table.itercols(), 1):
            unit = getattr(column, "unit", None)
            if unit is not None and not isinstance(unit, u.LogUnit) and unit not in (u.dex, u.one):
                hdu.header[f"TUNIT{k}"] = unit.to_string("fits")
    hdu.name = name
    return hdu


class _Packer:
    """Turns objects into plain values, and collects arrays and tables as extensions."""

    def __init__(self):
        self.extensions: list = []
        self.lost: set[str] = set()

    def pack(self, value: Any, name: str) -> Any:
        if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, enum.Enum)):
            return float(value) if isinstance(value, float) else value
        if isinstance(value, np.generic) and not isinstance(value, u.Quantity):
            return self.pack(value.item(), name)
        if isinstance(value, enum.Enum) and type(value).__qualname__ in _classes:
            return {"class": type(value).__qualname__, "value": value.value}
        if isinstance(value, u.Quantity):
            return {"quantity": self.pack(value.value, name), "unit": value.unit.to_string()}
        if isinstance(value, Table):
            return self._table(value, name)
        if isinstance(value, np.ndarray):
            return self._array(np.asarray(value), name)
        if isinstance(value, fits.Header):
            return {"header": value.tostring(sep="\n")}
        if isinstance(value, Mapping):
            return {"mapping": [[str(key), self.pack(part, f"{name}_{key}")] for key, part in value.items()]}
        if isinstance(value, list | tuple):
            parts = [self.pack(part, f"{name}_{k}") for k, part in enumerate(value)]
            return {type(value).__name__ if type(value) in (list, tuple) else "tuple": parts}
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, Spectrum):
            return self._spectrum(value, name)
        if type(value).__qualname__ in _classes and _classes[type(value).__qualname__] is type(value):
            state = [[key, self.pack(part, f"{name}_{key}")] for key, part in _state(value).items()]
            return {"class": type(value).__qualname__, "state": state}
        self.lost.add(f"{name}, a {type(value).__qualname__}")
        return {"lost": type(value).__qualname__}

    def _extension(self, hdu, name):
        hdu.name = f"{name.upper()[:50]}"
        if hdu.name in {other.name for other in self.extensions} | {"FACTS", "LABELS", "PRIMARY"}:
            hdu.name = f"{hdu.name} {len(self.extensions)}"
        self.extensions.append(hdu)
        return hdu.name

    def _array(self, array, name):
        if array.dtype.kind not in "biuf" or array.size <= 16:
            kind = "U" if array.dtype.kind in "SUO" else array.dtype.str
            return {"array": array.tolist(), "type": kind, "shape": array.shape}
        stored = array.astype("u1") if array.dtype.kind == "b" else array
        return {"extension": self._extension(fits.ImageHDU(stored), name), "type": array.dtype.str}

    def _table(self, table, name):
        units = {column: str(part.unit) for column, part in table.items() if getattr(part, "unit", None) is not None}
        meta = self.pack({key: part for key, part in table.meta.items()}, f"{name}_meta")
        return {"table": self._extension(_table_hdu(table, name), name), "units": units, "meta": meta}

    def _spectrum(self, spectrum, name):
        columns = {"wavelength": spectrum.spectral_axis.value, "flux": spectrum.flux.value}
        if spectrum.uncertainty is not None:
            columns["uncertainty"] = spectrum.uncertainty.represent_as(StdDevUncertainty).array
        if spectrum.mask is not None:
            columns["mask"] = np.broadcast_to(spectrum.mask, spectrum.flux.shape)
        hdu = _table_hdu(Table(columns), name)
        hdu.header["TUNIT1"] = spectrum.spectral_axis.unit.to_string("fits")
        return {
            "spectrum": self._extension(hdu, name),
            "units": [str(spectrum.spectral_axis.unit), str(spectrum.flux.unit)],
            "meta": self.pack(dict(spectrum.meta), f"{name}_meta"),
        }


def _native(array: np.ndarray, kind: str | None = None) -> np.ndarray:
    """A copy in the byte order of this computer, which FITS files do not have."""
    return np.array(array, dtype=array.dtype.newbyteorder("=") if kind is None else np.dtype(kind))


def _unpack(plain: Any, extensions: fits.HDUList) -> Any:
    if not isinstance(plain, dict):
        return plain
    if "quantity" in plain:
        value = _unpack(plain["quantity"], extensions)
        return u.Quantity(value, u.Unit(plain["unit"]), subok=True)
    if "array" in plain:
        array = np.array(plain["array"], dtype=None if plain["type"] == "U" else plain["type"])
        return (array.astype(str) if plain["type"] == "U" else array).reshape(plain["shape"])
    if "extension" in plain:
        return _native(extensions[plain["extension"]].data, plain["type"])
    if "mapping" in plain:
        return {key: _unpack(part, extensions) for key, part in plain["mapping"]}
    if "header" in plain:
        return fits.Header.fromstring(plain["header"], sep="\n")
    if "class" in plain:
        kind = _classes[plain["class"]]
        if "value" in plain:
            return kind(plain["value"])
        return _object(kind, {key: _unpack(part, extensions) for key, part in plain["state"]})
    if "table" in plain:
        data = extensions[plain["table"]].data
        columns = {name: _native(data[name]) for name in data.names}
        columns = {n: c << u.Unit(plain["units"][n]) if n in plain["units"] else c for n, c in columns.items()}
        return QTable(columns, meta=_unpack(plain["meta"], extensions))
    if "spectrum" in plain:
        data, (axis_unit, unit) = extensions[plain["spectrum"]].data, map(u.Unit, plain["units"])
        error = StdDevUncertainty(_native(data["uncertainty"])) if "uncertainty" in data.names else None
        return Spectrum(
            flux=_native(data["flux"]) * unit,
            spectral_axis=_native(data["wavelength"]) * axis_unit,
            uncertainty=error,
            mask=_native(data["mask"]) if "mask" in data.names else None,
            meta=_unpack(plain["meta"], extensions),
        )
    if "lost" in plain:
        return Lost(plain["lost"])
    ((kind, parts),) = plain.items()
    return {"list": list, "tuple": tuple}[kind](_unpack(part, extensions) for part in parts)
