"""Lines of elements: strong features, lines that synthetic spectra lack, whose they are, and mock studies of both."""

from cyclestarnet.lines.attribution import attribute
from cyclestarnet.lines.differences import FluxDifferences, model_differences, star_differences
from cyclestarnet.lines.dips import dip_centre
from cyclestarnet.lines.elements import elements_of
from cyclestarnet.lines.features import Feature, FeatureMask, Features, find_features, k_giant
from cyclestarnet.lines.line_files import read_line_list
from cyclestarnet.lines.line_lists import as_line_list
from cyclestarnet.lines.matching import match_lines
from cyclestarnet.lines.missing import MissingLines, find_missing_lines, with_elements
from cyclestarnet.lines.score import Score, score_missing_lines

__all__ = [
    "Feature",
    "FeatureMask",
    "Features",
    "FluxDifferences",
    "MissingLines",
    "Score",
    "as_line_list",
    "attribute",
    "dip_centre",
    "elements_of",
    "find_features",
    "find_missing_lines",
    "k_giant",
    "match_lines",
    "model_differences",
    "read_line_list",
    "score_missing_lines",
    "star_differences",
    "with_elements",
]
