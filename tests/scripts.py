"""Scripts of the repository, as modules."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load_script(path):
    """Import a script by its path in the repository, with those beside it within reach, as when it is run."""
    folder = str((ROOT / path).parent)
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(Path(path).stem)
    finally:
        sys.path.remove(folder)
