"""From two sets of spectra to a model: losses, trainer, data, configuration, assembly and evaluation."""

from cyclestarnet.training.adaptation import adapt, adaptation_settings, draw_labels
from cyclestarnet.training.alignment import (
    LabelTransport,
    classifier_accuracy,
    gaussian_transport,
    mmd,
    overlap_weights,
    principal_components,
    prior_mismatch,
    regress_labels,
    sliced_wasserstein,
    tsne,
)
from cyclestarnet.training.assembly import (
    Residuals,
    assemble_model,
    correlation_inflation,
    filled_flux,
    fit_residuals,
    label_prior,
    learn_errors,
    misfits,
    model_scatter,
    quiet_pixels,
    typical_latent,
)
from cyclestarnet.training.before_after import AdaptationReport, Standing, compare_models
from cyclestarnet.training.calibration import calibration_ranks
from cyclestarnet.training.config import Config, example_config, read_config
from cyclestarnet.training.datasets import ObservedSpectra, StoredSynthetic, SyntheticSpectra
from cyclestarnet.training.domain_trainer import DomainTrainer
from cyclestarnet.training.emulators import load_emulator, save_emulator
from cyclestarnet.training.evaluation import (
    LabelOffsets,
    compare_labels,
    label_table,
    learn_label_error,
    offset_figures,
)
from cyclestarnet.training.evidence import Evidence, collect_evidence
from cyclestarnet.training.inputs import read_labels
from cyclestarnet.training.logs import read_run
from cyclestarnet.training.masks import find_mask
from cyclestarnet.training.ranks import Ranks, rank_table
from cyclestarnet.training.repeats import Repeatability, repeatability
from cyclestarnet.training.runs import Run, finish, joined_processes, prepare, train
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra, StreamedSynthetic
from cyclestarnet.training.trainer import Anchors, Trainer
from cyclestarnet.training.translation_config import example_translation_config, read_translation_config
from cyclestarnet.training.translations import (
    DomainSpectra,
    EmulatedSpectra,
    TranslationRun,
    add_domain,
    finish_translation,
    prepare_translation,
    train_domains,
    train_translation,
)
from cyclestarnet.training.watch import Watch, WatchSettings, alignment_scores
from cyclestarnet.training.zero_points import learn_zero_points, population_offset

__all__ = [
    "AdaptationReport",
    "Anchors",
    "Config",
    "DomainSpectra",
    "DomainTrainer",
    "EmulatedSpectra",
    "Evidence",
    "LabelOffsets",
    "LabelTransport",
    "ObservedSpectra",
    "Ranks",
    "Repeatability",
    "Residuals",
    "Run",
    "Standing",
    "StoredSynthetic",
    "StreamedSpectra",
    "StreamedSynthetic",
    "SyntheticSpectra",
    "Trainer",
    "TrainingSettings",
    "TranslationRun",
    "Watch",
    "WatchSettings",
    "adapt",
    "adaptation_settings",
    "add_domain",
    "alignment_scores",
    "assemble_model",
    "calibration_ranks",
    "classifier_accuracy",
    "collect_evidence",
    "compare_labels",
    "compare_models",
    "correlation_inflation",
    "draw_labels",
    "example_config",
    "example_translation_config",
    "filled_flux",
    "find_mask",
    "finish",
    "finish_translation",
    "fit_residuals",
    "gaussian_transport",
    "joined_processes",
    "label_prior",
    "label_table",
    "learn_errors",
    "learn_label_error",
    "learn_zero_points",
    "load_emulator",
    "misfits",
    "mmd",
    "model_scatter",
    "offset_figures",
    "overlap_weights",
    "population_offset",
    "prepare",
    "prepare_translation",
    "principal_components",
    "prior_mismatch",
    "quiet_pixels",
    "rank_table",
    "read_config",
    "read_labels",
    "read_run",
    "read_translation_config",
    "regress_labels",
    "repeatability",
    "save_emulator",
    "sliced_wasserstein",
    "train",
    "train_domains",
    "train_translation",
    "tsne",
    "typical_latent",
]
