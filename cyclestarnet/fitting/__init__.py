"""Fits and samplings as mathematics: arrays and tensors in and out; no unit, no file, no network.

An `Objective` is the posterior of stars: a `Predictor`, data with errors,
`Parameters` that say what varies, and a `Prior`. `levenberg_marquardt` (and
``lbfgs.lbfgs``, by gradients) finds its `Optimum`, `sample_posterior` makes a
`Chain` of its samples, and `sample_by_gradients` another one.
"""

from cyclestarnet.fitting.chains import Chain, ChainState, ChainStore, autocorrelation_time
from cyclestarnet.fitting.isochrones import IsochronePrior, mist_isochrones
from cyclestarnet.fitting.nuts import sample_by_gradients
from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.optimum import Optimum
from cyclestarnet.fitting.parameters import Parameters
from cyclestarnet.fitting.predictor import LinearPredictor, Predictor
from cyclestarnet.fitting.priors import GaussianConstraints, GaussianPrior, LeadingLabels, Prior, ProductPrior
from cyclestarnet.fitting.sampling import sample_posterior
from cyclestarnet.fitting.solvers import levenberg_marquardt

__all__ = [
    "Chain",
    "ChainState",
    "ChainStore",
    "GaussianConstraints",
    "GaussianPrior",
    "IsochronePrior",
    "LeadingLabels",
    "LinearPredictor",
    "Objective",
    "Optimum",
    "Parameters",
    "Predictor",
    "Prior",
    "ProductPrior",
    "autocorrelation_time",
    "levenberg_marquardt",
    "mist_isochrones",
    "sample_by_gradients",
    "sample_posterior",
]
