"""Dataclasses from TOML and back: checked tables, and example files made of their docstrings."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import os
import re
import textwrap
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cyclestarnet.exceptions import CycleStarNetError
from cyclestarnet.networks.emulator import EmulatorSettings
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.training.settings import TrainingSettings

__all__ = ["ConfigError", "example_file", "read_tables"]

File = Annotated[Path, "file"]  # where there must be one
Range = tuple[float, float]
NONE = "none"  # TOML has no None
OPTIONAL = ("watch",)  # that are None if the file does not have them
LARGEST_FILE = 2**20  # bytes
DEEPEST = 10
PRESET_DOC = "Whose settings the others change: the paper's, or those of its authors' repository."


class ConfigError(CycleStarNetError, ValueError):
    """A configuration file has an unknown key, an impossible value, or names a file that is not there.

    Examples
    --------
    >>> from cyclestarnet.training.toml import ConfigError
    >>> issubclass(ConfigError, ValueError)
    True
    """


def read_tables(
    path: str | os.PathLike, tables: Mapping[str, type], families: Mapping[str, type] | None = None
) -> tuple[Path, dict[str, Any]]:
    """Read a file whose tables are dataclasses, and check every key.

    Parameters
    ----------
    path : path-like
        The TOML file. Relative paths in it are relative to it.
    tables : dict of type
        Names of the tables that the file may have, and the dataclass of each.
        One of them is ``"run"``, whose seed is for all that have none of their own.
    families : dict of type, optional
        Names of tables that hold any number of tables, such as ``[domains.UVES]``, and the dataclass of those.
        Default: there are none.

    Returns
    -------
    path : path
        The file.
    parts : dict
        By the names of ``tables``: an instance of the dataclass, None for a watch that is not
        there, a dictionary of instances for ``families``, and a dictionary of given values for
        `~cyclestarnet.NetworkSettings`, which cannot be made before the number of pixels is known.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ConfigError
        If it is no TOML, or a table, key or value does not fit. The message
        names it, and the nearest that there is.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cyclestarnet.training.config import LogConfig, RunConfig
    >>> from cyclestarnet.training.toml import read_tables
    >>> file = Path(tempfile.mkdtemp()) / "run.toml"
    >>> _ = file.write_text('run = { folder = "here" }')
    >>> read_tables(file, {"run": RunConfig, "log": LogConfig})[1]["log"]
    LogConfig(every=50, checkpoint_every=500, tensorboard=False)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file {path}")
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE} bytes")
        content = tomllib.loads(text.decode("utf-8"))
        _check_plain(content)
    except RecursionError as error:
        raise ConfigError(f"{path} is no valid TOML: it is nested too deep") from error
    except ValueError as error:  # of its grammar, its letters, or numbers that are too long for Python
        raise ConfigError(f"{path} is no valid TOML: {error}") from error
    known = [*tables, *(families or {})]
    for name, value in content.items():
        if name not in known or not isinstance(value, dict):
            what = f"there is no table [{name}]" if isinstance(value, dict) else f"the key {name!r} is in no table"
            raise ConfigError(f"{what}{_nearest(name, known, '[{}]')} in {path}")
    base = path.parent
    try:
        run = tables["run"]
        defaults = {own.name: own.default for own in fields(run)}
        seed = {"seed": (defaults | _table(run, content.get("run", {}), base, "run"))["seed"]}
        parts: dict[str, Any] = {}
        for name, cls in tables.items():
            if name in OPTIONAL and name not in content:
                parts[name] = None
                continue
            given = dict(content.get(name, {}))
            preset = given.pop("preset", None) if cls is TrainingSettings else None
            values = _table(cls, given, base, name)
            if cls in (TrainingSettings, EmulatorSettings):
                values = seed | values
            if cls is NetworkSettings:
                parts[name] = values
            else:
                parts[name] = _made(cls, values, name, preset)
        for name, cls in (families or {}).items():
            parts[name] = {}
            for member, given in content.get(name, {}).items():
                where = f"{name}.{member}"
                if not isinstance(given, dict):
                    raise ConfigError(f"[{name}] {member} must be a table, [{where}]")
                parts[name][member] = _made(cls, _table(cls, given, base, where), where)
    except ConfigError as error:
        raise ConfigError(f"{error} in {path}") from error.__cause__
    return path, parts


def _check_plain(value: Any, where: str = "", depth: int = 0) -> None:
    """Raise if a value is nested deeper, or a number larger, than any setting can be."""
    if depth > DEEPEST:
        raise ValueError(f"{where:.80} is nested more than {DEEPEST} times")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(item, f"{where}.{key}" if where else key, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, where, depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{where:.80} is a whole number of more than 64 bits")
    elif isinstance(value, str) and "\0" in value:
        raise ValueError(f"{where:.80} has a character that no text here may have, NUL")


def _made(cls: type, values: Mapping[str, Any], where: str, preset: str | None = None) -> Any:
    """The dataclass of a table; what it objects to is said with the table's name."""
    try:
        if cls is TrainingSettings:
            made = TrainingSettings.from_preset("paper" if preset is None else preset, **values)
        else:
            made = cls(**values)
        for own in fields(cls):
            _check_finite(own.name, getattr(made, own.name))
        return made
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ConfigError(f"[{where}] {error}") from error


def _check_finite(name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, but is {value}")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ():
        _check_finite(name, item)


def _table(cls: type, given: Mapping[str, Any], base: Path, where: str) -> dict[str, Any]:
    """Converted values of the keys of a table."""
    known = {f.name: f for f in fields(cls)}
    offered = [*known, "preset"] if cls is TrainingSettings else list(known)
    for key in given:
        if key not in known:
            raise ConfigError(f"[{where}] has no key {key!r}{_nearest(key, offered, '{!r}')}")
    for key, own in known.items():
        if key not in given and own.default is MISSING and own.default_factory is MISSING:
            raise ConfigError(f"[{where}] {key} is missing")
    hints = get_type_hints(cls, include_extras=True)
    values = {}
    for key, value in given.items():
        try:
            values[key] = _converted(value, hints[key], base, f"{where}.{key}")
        except _Misfit as misfit:
            shown = json.dumps(value, default=str)
            raise ConfigError(f"[{where}] {key} must be {misfit}, but is {shown}") from None
    return values


class _Misfit(Exception):
    """A value is of another kind than its hint; the message says what fits."""


def _converted(value: Any, hint: Any, base: Path, where: str) -> Any:
    """A TOML value as its type hint wants it."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:  # a file
        path = _converted(value, parts[0], base, where)
        if not path.is_file():
            table, _, key = where.rpartition(".")
            raise ConfigError(f"[{table}] {key}: there is no file {path}")
        return path
    if kind in (Union, types.UnionType):
        if value == NONE and types.NoneType in parts:
            return None
        for part in parts:
            try:
                return _converted(value, part, base, where)
            except _Misfit:
                continue
    elif kind is Literal:
        if value in parts:
            return value
    elif kind is tuple and isinstance(value, list):
        hints = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        if len(hints) == len(value):
            try:
                return tuple(_converted(v, h, base, where) for v, h in zip(value, hints, strict=True))
            except _Misfit:
                pass
    elif kind is dict and isinstance(value, dict):
        return {key: _inner(item, parts[1], base, f"{where}.{key}", hint) for key, item in value.items()}
    elif isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        return _made(hint, _table(hint, value, base, where), where)
    elif hint is Path and isinstance(value, str):
        return base / value
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    raise _Misfit(_expected(hint))


def _inner(value: Any, hint: Any, base: Path, where: str, whole: Any) -> Any:
    try:
        return _converted(value, hint, base, where)
    except _Misfit:
        raise _Misfit(_expected(whole)) from None


def _expected(hint: Any) -> str:
    """What fits a type hint, in words."""
    kind, parts = get_origin(hint), get_args(hint)
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", Path: "a path in quotes"}
    if hint in words:
        return words[hint]
    if kind is Annotated:
        return "the path of a file, in quotes"
    if kind in (Union, types.UnionType):
        return " or ".join(f'"{NONE}"' if part is types.NoneType else _expected(part) for part in parts)
    if kind is Literal:
        return " or ".join(f'"{part}"' for part in parts)
    if kind is tuple:
        number = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        return f"a list of {number}{_plural(parts[0])}"
    if kind is dict:
        return f"a table of {_plural(parts[1])}"
    return "a table"


def _plural(hint: Any) -> str:
    words = {int: "integers", float: "numbers", str: "texts"}
    return (
        words.get(hint) or f"{_expected(hint).removeprefix('a ').replace('list', 'lists').replace('table', 'tables')}"
    )


def _nearest(name: str, known: Iterable[str], template: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {template.format(near[0])}?" if near else f"; there are {', '.join(known)}"


def example_file(header: str, tables: Mapping[str, type], examples: Mapping[str, Mapping[str, Any]]) -> str:
    """Make a file that shows every key of its tables, with defaults and comments from their docstrings.

    Parameters
    ----------
    header : str
        Comment lines that come first.
    tables : dict of type
        Names of the tables, and the dataclass of each.
    examples : dict of dict
        Values of keys that the file gives, by table; all others are comments.

    Returns
    -------
    str

    Examples
    --------
    >>> from cyclestarnet.training.config import LogConfig
    >>> from cyclestarnet.training.toml import example_file
    >>> print(example_file("# An example.", {"log": LogConfig}, {"log": {"every": 10}}))
    # An example.
    # What is written down on the way.
    [log]
    <BLANKLINE>
    # Iterations between rows of losses.csv, and between checkpoints.
    every = 10
    #checkpoint_every = 500
    <BLANKLINE>
    # Log for TensorBoard as well (needs the extra "training").
    #tensorboard = false
    <BLANKLINE>
    """
    return "\n".join([header, *(_example_table(name, cls, examples.get(name, {})) for name, cls in tables.items())])


def _example_table(name: str, cls: type, values: Mapping[str, Any]) -> str:
    text = _documentation(cls)
    lines, nested = [f"# {_first_line(cls)}", f"[{name}]"], []
    if name in OPTIONAL:
        lines.insert(1, "# The training does without it if this table is deleted, its title included.")
    if cls is TrainingSettings:
        lines += [*_comment(PRESET_DOC), f'preset = "{values["preset"]}"']
    said = None
    for own in fields(cls):
        if (cls, own.name) == (NetworkSettings, "n_pixels") or (own.name == "seed" and name != "run"):
            continue  # the data say it, and [run] has one seed for all
        default = own.default if own.default_factory is MISSING else own.default_factory()
        if is_dataclass(default):
            nested.append(_example_table(f"{name}.{own.name}", type(default), {}))
            continue
        if text.get(own.name) not in (None, said):
            said = text[own.name]
            lines += _comment(said)
        if own.name in values:
            lines.append(f"{own.name} = {_toml(values[own.name])}")
        else:
            lines.append(f"#{own.name} = {_toml(default)}")
    return "\n".join([*lines, "", *nested])


def _comment(text: str) -> list[str]:
    return ["", *textwrap.wrap(text, 88, initial_indent="# ", subsequent_indent="# ")]


def _first_line(cls: type) -> str:
    return _plain((inspect.getdoc(cls) or "").partition("\n")[0])


def _plain(text: str) -> str:
    """Text without the marks of a docstring."""
    return re.sub(r"`~?([^`]*)`", r"\1", text.replace("``", ""))


def _documentation(cls: type) -> dict[str, str]:
    """Description of each parameter in a numpydoc docstring."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n-+\n|\Z)", inspect.getdoc(cls) or "", re.M | re.S)
    if section is None:
        return {}
    out: dict[str, str] = {}
    names: list[str] = []
    for line in section.group(1).splitlines():
        if line and not line.startswith(" "):
            names = line.partition(" : ")[0].split(", ")
            out |= dict.fromkeys(names, "")
        else:
            out |= {name: f"{out[name]} {line.strip()}".strip() for name in names}
    return {name: re.sub(r"\bNone\b", f'"{NONE}"', _plain(text)) for name, text in out.items() if text}


def _toml(value: Any) -> str:
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, default=str)
