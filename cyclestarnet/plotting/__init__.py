"""All figures: of results, of trainings, of ranks and of lines."""

from cyclestarnet.plotting.adaptation import adaptation_page, plot_adaptation
from cyclestarnet.plotting.derivatives import plot_derivatives, plot_recovery
from cyclestarnet.plotting.diagrams import plot_networks
from cyclestarnet.plotting.evidence import evidence_figures
from cyclestarnet.plotting.lines import (
    plot_error_map,
    plot_missing_lines,
    plot_precision_recall,
    plot_recovery_error,
)
from cyclestarnet.plotting.populations import plot_embeddings, plot_kiel
from cyclestarnet.plotting.ranks import plot_ranks
from cyclestarnet.plotting.residuals import plot_residuals
from cyclestarnet.plotting.results import plot_fit, plot_fits, plot_posterior
from cyclestarnet.plotting.training import plot_training

__all__ = [
    "adaptation_page",
    "evidence_figures",
    "plot_adaptation",
    "plot_derivatives",
    "plot_embeddings",
    "plot_error_map",
    "plot_fit",
    "plot_fits",
    "plot_kiel",
    "plot_missing_lines",
    "plot_networks",
    "plot_posterior",
    "plot_precision_recall",
    "plot_ranks",
    "plot_recovery",
    "plot_recovery_error",
    "plot_residuals",
    "plot_training",
]
