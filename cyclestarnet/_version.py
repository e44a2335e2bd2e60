"""Version of the installed package, which comes from the tags of its repository."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("cyclestarnet")
except PackageNotFoundError:  # a copy of the source on the path, without an installation
    __version__ = "0+unknown"
