"""The walls between the rooms of the package: who may import whom, and nobody in a circle.

What a function imports late counts as well: a late import is an arrow that hides.
"""

import ast
from pathlib import Path

import pytest

import cyclestarnet

PACKAGE = Path(cyclestarnet.__file__).parent

NOUNS = {
    "blanks", "exceptions", "files", "labels", "grid", "spectra", "continuum", "derivatives", "noise", "results",
    "progress", "masks", "_version", "reading", "journal", "processes", "storage", "descriptions", "residuals",
    "resolution",
}  # fmt: skip
# Rooms, and modules that stand higher than their room, from the ground up; each may import itself and what is named.
MAY_IMPORT = {
    "io": NOUNS,
    "datasets": NOUNS | {"io", "data"},
    "networks": NOUNS,
    "fitting": {"exceptions", "labels"},
    "pipeline": NOUNS | {"fitting", "networks"},
    "published": NOUNS | {"networks", "fitting", "pipeline", "data"},
    "translation": NOUNS | {"networks"},
    "model_file": NOUNS | {"networks", "fitting", "pipeline"},
    "cards": NOUNS | {"datasets", "model_file"},
    "model": NOUNS | {"io", "datasets", "networks", "pipeline", "published", "model_file"},
    "training": NOUNS | {"io", "networks", "data"},
    "lines": NOUNS,
    "plotting": NOUNS | {"lines", "networks", "training"},
}
# These join what their rooms hold to a model, and run it.
ABOVE_MODEL = {
    "training", "training.adaptation", "training.arrays", "training.assembly", "training.before_after",
    "training.calibration", "training.emulators",
    "training.evaluation", "training.evidence", "training.fitted_sets", "training.inputs", "training.masks",
    "training.repeats", "training.runs",
    "training.shortcuts", "training.translations", "training.twins",
    "training.zero_points", "lines.mock", "lines.mock_study", "lines.config",
}  # fmt: skip
ANYTHING = {"cli", "__main__", "__init__"}
# Arrows that run up, late, from a method that only passes on: a result draws itself (`plot`), a model adapts itself.
LATE = {("results", "plotting"), ("lines", "plotting"), ("model", "training.adaptation")}


def modules():
    """Module names within the package, and their files."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts), path


MODULES = dict(modules())


def imports(path):
    """(module within the package, name, line) of every import of ours, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cyclestarnet":
            for alias in node.names:
                module = node.module.removeprefix("cyclestarnet").lstrip(".")
                whole = f"{module}.{alias.name}".lstrip(".")
                yield (whole, "", node.lineno) if whole in MODULES else (module or "__init__", alias.name, node.lineno)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "cyclestarnet":
                    yield alias.name.removeprefix("cyclestarnet").lstrip(".") or "__init__", "", node.lineno


def room(module):
    return module.split(".")[0]


def allowed(module):
    own = room(module)
    if own in ANYTHING or module in ABOVE_MODEL:
        return None
    return MAY_IMPORT.get(own, NOUNS) | {own}


def is_late(module, target):
    return bool({(room(module), room(target)), (module, target)} & LATE)


@pytest.mark.parametrize("module", [m for m in MODULES if allowed(m) is not None])
def test_arrows_go_one_way(module):
    wrong = [
        f"line {line}: {target}"
        for target, _, line in imports(MODULES[module])
        if not is_late(module, target)
        and (
            room(target) not in allowed(module)
            or (target in ABOVE_MODEL and not (module == target or room(module) == "data"))
        )
    ]
    assert not wrong, f"{module} must not import {wrong}"


@pytest.mark.parametrize("module", list(MODULES))
def test_private_names_stay_at_home(module):
    wrong = [
        f"line {line}: {target}.{name}"
        for target, name, line in imports(MODULES[module])
        if name.startswith("_") and not name.startswith("__")
    ]
    assert not wrong, f"{module} takes private names of others: {wrong}"


def test_no_circles():
    """No module imports itself by way of others, if what methods that only pass on import late is left out."""
    arrows = {
        module: {target for target, _, _ in imports(path) if not is_late(module, target)} - {module}
        for module, path in MODULES.items()
    }
    done, path = set(), []

    def visit(module):
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done and module in arrows:
            path.append(module)
            for target in sorted(arrows[module]):
                visit(target)
            path.pop()
            done.add(module)

    for module in arrows:
        visit(module)


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in ("pipeline", "lines", "plotting", "training")])
def test_no_room_uses_private_members_of_a_model(module):
    """What a room needs of a model is handed to it, or public."""
    names = ("model", "parts", "result", "posterior", "start", "star", "spectrum")
    wrong = [
        f"line {node.lineno}: {node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        and isinstance(node.value, ast.Name) and node.value.id in names
    ]  # fmt: skip
    assert not wrong, f"{module}: {wrong}"
