"""What ``torch.save`` writes, read by a machine that knows weights, plain values and numeric arrays, and nothing else.

``torch.load``, also with ``weights_only``, passes over the checksums of an
archive, and calls what is on its list with whatever arguments the file has:
bytes that are taken for objects end the process. Here, nothing that a file
names is called, and every length is compared with what is there.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from cyclestarnet.reading.archives import check_archive

__all__ = ["read_saved"]

MAGIC = 0x1950A86A20F9469CFC6C  # that files of torch before 1.6 begin with
LARGEST_CONTENT = 10_000_000  # values, each counted as often as it is named
DEEPEST = 40  # containers within each other
LONGEST_AXIS = 2**40

_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
_ARRAY_KINDS = {"b1", *(f"{kind}{n}" for kind in "iu" for n in (1, 2, 4, 8)), "f2", "f4", "f8"}


def read_saved(path: str | os.PathLike[str]) -> Any:
    """Read the content of a file of ``torch.save``.

    Parameters
    ----------
    path : path-like
        An archive, of which all checksums are verified, or a file of torch before 1.6, which has none.

    Returns
    -------
    object
        Dictionaries, lists, tuples and sets of plain values, tensors on the processor, and arrays of numbers.
        Parameters are tensors, ordered dictionaries and those with a default are dictionaries.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    Exception
        Of many classes, if the file is damaged or holds anything else.

    Examples
    --------
    >>> import tempfile, torch
    >>> from cyclestarnet.networks.saved import read_saved
    >>> path = tempfile.mkdtemp() + "/weights.pt"
    >>> torch.save({"bias": torch.ones(2), "losses": [0.5, 0.25]}, path)
    >>> read_saved(path)
    {'bias': tensor([1., 1.]), 'losses': [0.5, 0.25]}
    """
    with Path(path).open("rb") as file:
        is_archive = file.read(2) == b"PK"
        file.seek(0)
        content = _of_archive(file) if is_archive else _of_old_file(file)
    _check_extent(content, {}, 0)
    return content


def _of_archive(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        check_archive(archive, compressed=False)
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError(f"an archive of weights has one data.pkl, but this has {len(names)}")
        folder = names[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in archive.namelist() else "little"
        if order not in ("little", "big"):
            raise ValueError(f"the order of bytes is {order!r}, but must be 'little' or 'big'")
        found: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype | None, key: object, n_values: object) -> Tensor:
            if not isinstance(key, str):
                raise ValueError("a storage must be named by a text")
            if key not in found:
                found[key] = _flat(bytearray(archive.read(f"{folder}data/{key}")), dtype, order)
            return _of_length(found[key], dtype, n_values, key)

        return _Machine(storage).run(io.BytesIO(archive.read(names[0])))


def _of_old_file(file: BinaryIO) -> Any:
    begun: dict[str, _Later] = {}

    def later(dtype: torch.dtype | None, key: object, n_values: object) -> Tensor:
        """A tensor without content, which comes after all of the pickle."""
        if not isinstance(key, str) or not isinstance(n_values, int) or dtype is None:
            raise ValueError("a storage must have a name, a type and a length")
        n_bytes = n_values * dtype.itemsize
        if not 0 <= n_bytes <= size:
            raise ValueError(f"a storage of {n_values} values is longer than the file")
        if key not in begun:
            begun[key] = _Later(dtype, torch.zeros(n_values, dtype=dtype))
        return _of_length(begun[key].values, dtype, n_values, key)

    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    plain = _Machine(None)
    if plain.run(file) != MAGIC:
        raise ValueError("it does not begin as a file of torch.save does")
    plain.run(file)  # version
    machine_then = plain.run(file)
    order = "little" if not isinstance(machine_then, dict) or machine_then.get("little_endian", True) else "big"
    content = _Machine(later).run(file)
    keys = plain.run(file)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(begun):
        raise ValueError("the storages at its end are not those of its content")
    for key in keys:
        (n_values,) = struct.unpack("<q" if order == "little" else ">q", file.read(8))
        values, dtype = begun[key].values, begun[key].dtype
        raw = bytearray(file.read(values.nbytes))
        if n_values != len(values) or len(raw) != values.nbytes:
            raise ValueError(f"storage {key} is cut short")
        values.copy_(_flat(raw, dtype, order))
    if file.read(1):
        raise ValueError("something follows after its end")
    return content


class _Later:
    """A storage of an old file, whose values follow after all content."""

    def __init__(self, dtype: torch.dtype, values: Tensor):
        self.dtype, self.values = dtype, values


def _flat(raw: bytearray, dtype: torch.dtype | None, order: str) -> Tensor:
    """Values of a storage, in one dimension; bytes if it does not say of what."""
    dtype = torch.uint8 if dtype is None else dtype
    if len(raw) % dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes are no whole number of {dtype}")
    if not raw:
        return torch.empty(0, dtype=dtype)
    if dtype is torch.bool:
        return torch.frombuffer(raw, dtype=torch.uint8) != 0  # other bytes than 0 and 1 are no truth values
    values = torch.frombuffer(raw, dtype=dtype)
    if order != sys.byteorder and dtype.itemsize > 1:
        values.untyped_storage().byteswap(dtype)
    return values


def _of_length(values: Tensor, dtype: torch.dtype | None, n_values: object, key: str) -> Tensor:
    if values.dtype != (torch.uint8 if dtype is None else dtype):
        raise ValueError(f"storage {key} is of two types")
    if n_values != len(values):
        raise ValueError(f"storage {key} shall have {n_values} values, but has {len(values)}")
    return values


def _check_extent(value: object, known: dict[int, int], depth: int) -> int:
    """Number of values within one, which a file of a few bytes can make astronomical by naming lists of lists twice."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if depth > DEEPEST:
        raise ValueError(f"its content is nested more than {DEEPEST} times, or within itself")
    if id(value) not in known:
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_check_extent(item, known, depth + 1) for item in inside)
        if known[id(value)] > LARGEST_CONTENT:
            raise ValueError(f"it holds more than {LARGEST_CONTENT} values")
    return known[id(value)]


# -- what a file may name ---------------------------------------------------------------
class _Kind:
    """Stand-in of a numeric dtype."""

    def __init__(self, code: object = None, *_: object):
        if code not in _ARRAY_KINDS:
            raise ValueError(f"arrays must be of numbers, but one is of {code!r:.40}")
        self.dtype = np.dtype(str(code))

    def build(self, state: object) -> None:
        """Take the order of bytes from the state of a dtype, which must be that of a plain number."""
        if not (isinstance(state, tuple) and len(state) == 8 and state[1] in ("<", ">", "=", "|")):
            raise ValueError("the state of a numeric type must be 8 values")
        if state[2:5] != (None, None, None) or state[5:] != (-1, -1, 0):
            raise ValueError("arrays must be of plain numbers, but one has fields, a sub-array or objects")
        self.dtype = self.dtype.newbyteorder(state[1])


def _array_to_fill(*_: object) -> np.ndarray:
    return np.empty(0)


def _fill_array(array: np.ndarray, state: object) -> None:
    if not (isinstance(state, tuple) and len(state) == 5):
        raise ValueError("the state of an array must be 5 values")
    _, shape, kind, by_columns, raw = state
    raw = raw.encode("latin-1") if isinstance(raw, str) else raw
    if not isinstance(kind, _Kind) or not isinstance(raw, bytes):
        raise ValueError("arrays must be of numbers")
    if math.prod(_lengths(shape)) * kind.dtype.itemsize != len(raw):
        raise ValueError(f"an array of the shape {shape} has {len(raw)} bytes")
    array.__setstate__((1, shape, kind.dtype, bool(by_columns), raw))  # type: ignore[arg-type]


def _scalar(kind: object, raw: object) -> Any:
    raw = raw.encode("latin-1") if isinstance(raw, str) else raw
    if not isinstance(kind, _Kind) or not isinstance(raw, bytes) or len(raw) != kind.dtype.itemsize:
        raise ValueError("a number must have the bytes of its type")
    return np.frombuffer(raw, kind.dtype.newbyteorder("=") if kind.dtype.isnative else kind.dtype)[0]


def _encoded(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes must be written as a text in latin1")
    return text.encode("latin-1")


def _lengths(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < LONGEST_AXIS for n in shape):
        raise ValueError(f"a shape must be of whole numbers, but one is {shape!r:.80}")
    return shape


def _tensor(storage: object, offset: object, size: object, stride: object, *more: object) -> Tensor:
    """A tensor of a storage, none of whose values lie beyond it."""
    size, stride = _lengths(size), _lengths(stride)
    (offset,) = _lengths((offset,))
    if not isinstance(storage, Tensor) or len(size) != len(stride) or len(size) > 16:
        raise ValueError("a tensor must have a storage, and a stride per axis")
    if any(isinstance(item, dict) and item for item in more):
        raise ValueError("a tensor with hooks or metadata is no plain one")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size:
        return torch.empty(size, dtype=storage.dtype)
    if last >= len(storage) or math.prod(size) > len(storage):
        raise ValueError(f"a tensor of the shape {size} is larger than the {len(storage)} values of its storage")
    return storage.as_strided(size, stride, offset)


def _tensor_of_bytes(storage: object, offset: object, size: object, stride: object, *more: object) -> Tensor:
    """The same of a storage that does not say of what it is."""
    dtype = next((item for item in more if isinstance(item, torch.dtype)), None)
    if not isinstance(storage, Tensor) or dtype is None:
        raise ValueError("a tensor must have a storage and a type")
    return _tensor(storage.view(dtype), offset, size, stride)


def _tensor_itself(tensor: object, *_: object) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError("a parameter must be a tensor")
    return tensor


def _pairs(pairs: object = ()) -> dict:
    if not isinstance(pairs, tuple | list):
        raise ValueError("a dictionary must be made of pairs")
    made: dict = {}
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError("a dictionary must be made of pairs")
        made[_key(pair[0])] = pair[1]
    return made


def _counts(counts: object) -> dict:
    if not isinstance(counts, dict | None):
        raise ValueError("a counter must be made of a dictionary")
    return counts or {}


def _size(lengths: object) -> tuple[int, ...]:
    return _lengths(tuple(lengths) if isinstance(lengths, list) else lengths)


class _Name(str):
    """A class that is an argument, and is never called."""


_BUILDERS: dict[str, Callable] = {
    "collections.OrderedDict": _pairs,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": lambda counts=None: _pairs(list(_counts(counts).items())),
    "builtins.set": lambda items=(): set(map(_key, items)),
    "__builtin__.set": lambda items=(): set(map(_key, items)),
    "torch.device": lambda *name: ":".join(str(part)[:80] for part in name),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _tensor_itself,
    "torch.Size": _size,
    "_codecs.encode": _encoded,
    "numpy.dtype": _Kind,
    **{f"numpy.{core}.multiarray._reconstruct": _array_to_fill for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
_NAMES: dict[str, Any] = (
    {f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()}
    | {str(dtype): dtype for dtype in (*_STORAGES.values(), torch.uint16, torch.uint32, torch.uint64)}
    | {f"{module}.{name}": _Name(name) for module in ("builtins", "__builtin__") for name in ("list", "dict", "int")}
    | {"numpy.ndarray": _Name("numpy.ndarray"), "torch.storage.UntypedStorage": None}
)


def _key(value: object) -> Any:
    """What may be a key: a plain value, or a tuple of such, whose hash is quick."""
    parts = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(part, str | int | float | bytes | None) for part in parts):
        raise ValueError(f"keys must be plain values, but one is a {type(value).__name__}")
    return value


class _Machine:
    """Follows the instructions of a pickle, as far as they make data.

    Parameters
    ----------
    storage : callable or None
        Gives the values of a storage of a type, name and length. None: there are none.
    """

    def __init__(self, storage: Callable[[torch.dtype | None, object, object], Tensor] | None):
        self._storage = storage

    def run(self, file: BinaryIO) -> Any:
        """Content of the pickle that begins where a file stands."""
        self.stack: list = []
        self.below: list[list] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _DOERS:
                _DOERS[name](self, argument)
            else:
                raise ValueError(f"it has the instruction {name}, which makes no weights")
        raise ValueError("it has no end")

    def _since_mark(self) -> list:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def _memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def _tuple(self, n: int) -> None:
        items = tuple(self.stack[-n:])
        if len(items) < n:
            raise ValueError("it is cut short")
        self.stack[-n:] = [items]

    def _tuple_since_mark(self, _: object) -> None:
        items = tuple(self._since_mark())
        self.stack.append(items)

    def _extend(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("items can be appended to a list only")
        self.stack[-1].extend(items)

    def _add(self, _: object) -> None:
        items = self._since_mark()
        if type(self.stack[-1]) is not set:
            raise ValueError("items can be added to a set only")
        self.stack[-1].update(map(_key, items))

    def _set(self, items: list) -> None:
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise ValueError("values can be set in a dictionary only")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    def _set_one(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _named(self, name: str) -> None:
        if name not in _BUILDERS and name not in _NAMES:
            raise ValueError(f"it names {name!r:.80}, which is neither weights nor a plain value")
        self.stack.append(_BUILDERS.get(name) or _NAMES[name])

    def _named_by_stack(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._named(f"{module}.{name}")

    def _reduce(self, _: object) -> None:
        arguments, builder = self.stack.pop(), self.stack.pop()
        if not callable(builder) or not isinstance(arguments, tuple):
            raise ValueError(f"it builds a value by {builder!s:.80}, which makes no weights")
        self.stack.append(builder(*arguments))

    def _build(self, _: object) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, np.ndarray):
            _fill_array(value, state)
        elif isinstance(value, _Kind):
            value.build(state)
        elif not isinstance(value, dict):  # what torch notes beside a state dict, is not needed
            raise ValueError(f"it has a state for a {type(value).__name__}, which has none")

    def _stored(self, _: object) -> None:
        known = self.stack.pop()
        if self._storage is None or not isinstance(known, tuple) or len(known) not in (5, 6) or known[0] != "storage":
            raise ValueError("it names a storage in an unknown way")
        _, dtype, key, _, n_values = known[:5]
        if (len(known) == 6 and known[5] is not None) or not (dtype is None or isinstance(dtype, torch.dtype)):
            raise ValueError("it has a storage of an unknown kind")
        self.stack.append(self._storage(dtype, key, n_values))


_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip
_DOERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine._mark,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "TUPLE": _Machine._tuple_since_mark,
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "APPEND": lambda machine, _: machine._extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine._extend(machine._since_mark()),
    "ADDITEMS": _Machine._add,
    "SETITEM": _Machine._set_one,
    "SETITEMS": lambda machine, _: machine._set(machine._since_mark()),
    "GLOBAL": lambda machine, name: machine._named(str(name).replace(" ", ".", 1)),
    "STACK_GLOBAL": _Machine._named_by_stack,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._stored,
}
