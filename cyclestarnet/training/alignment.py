"""How far two samples of spectra, latents or labels are apart, without labelled stars, and what to do about labels.

An adversarial training has no loss that says how good it is: its result is good
when samples of both domains cannot be told apart. `classifier_accuracy`,
`sliced_wasserstein` and `mmd` measure that. Label zero points follow the label
prior of the synthetic spectra whatever these say; `regress_labels`,
`prior_mismatch` and `overlap_weights` help to choose that prior, and
`gaussian_transport` is the baseline that any network has to beat.

Samples are arrays (n, ...); their sizes may differ. What needs scikit-learn
imports it late.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import numpy as np
from astropy.table import QTable
from numpy.typing import ArrayLike

from cyclestarnet.blanks import floats_of
from cyclestarnet.exceptions import CycleStarNetWarning

__all__ = [
    "LabelTransport",
    "classifier_accuracy",
    "gaussian_transport",
    "mmd",
    "overlap_weights",
    "principal_components",
    "prior_mismatch",
    "regress_labels",
    "sliced_wasserstein",
    "tsne",
]

N_FOLDS = 5


# -- distances of samples ------------------------------------------------------------------
def principal_components(
    a: ArrayLike, b: ArrayLike, *, seed: int, n_components: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of two samples along the principal directions of both together.

    Columns are standardised first. The first direction gets unit scatter and the
    others keep their size relative to it, so that a difference counts by its
    size: with all directions blown up to the same scatter, a classifier
    separates even well-aligned spectra by details far below their scatter.

    Parameters
    ----------
    a, b : array, shapes (n_a, ...) and (n_b, ...)
        Two samples of 2 or more members; what follows ``n`` is flattened.
    seed : int
        Of the randomised decomposition.
    n_components : int, optional
        Directions kept, at most. Default: 20.

    Returns
    -------
    a, b : array, shapes (n_a, n_components) and (n_b, n_components)
        The coordinates of their members.

    Raises
    ------
    ValueError
        If the samples differ in what follows ``n``, or hold NaN or infinities.
    ImportError
        If scikit-learn is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.alignment import principal_components
    >>> a = np.random.default_rng(0).normal(size=(20, 5))
    >>> first, second = principal_components(a, a + 0.1, seed=0, n_components=2)
    >>> first.shape, second.shape
    ((20, 2), (20, 2))
    """
    a, b = _standardised(a, b)
    pooled = np.concatenate([a, b])
    pca = _sklearn("decomposition").PCA(min(n_components, *pooled.shape), random_state=seed)
    with np.errstate(invalid="ignore"):  # scikit-learn divides by the total variance, 0 if nothing has scatter
        scores = pca.fit_transform(pooled)
    scores /= np.sqrt(pca.explained_variance_[0]) or 1.0
    return scores[: len(a)], scores[len(a) :]


def classifier_accuracy(
    a: ArrayLike | tuple[ArrayLike, ...],
    b: ArrayLike | tuple[ArrayLike, ...],
    *,
    seed: int,
    n_components: int = 20,
) -> tuple[float, float]:
    """Cross-validated accuracy of a classifier that tells two samples apart; 0.5 if it cannot.

    The classifier two-sample test [1]_: a small neural network on the
    `principal_components`, which sees differences of mean and covariance as
    well as curved ones. It never sees what it is tested on.

    Parameters
    ----------
    a, b : array, shapes (n_a, ...) and (n_b, ...), or tuples of such arrays
        At least 10 members each. Tuples hold several things known of each
        member, such as spectrum and latent, each with directions of its own.
    seed : int
        Of the decomposition, the classifier and the folds.
    n_components : int, optional
        Directions that the classifier sees, at most, of each thing. Default: 20.

    Returns
    -------
    accuracy : float
        Mean of the fractions of both samples that are recognised; samples that
        are alike may give a little less than 0.5.
    error : float
        Binomial standard error that the accuracy has if the samples are alike.

    Raises
    ------
    ValueError
        As `principal_components`, or if a sample is too small.
    ImportError
        If scikit-learn is not installed.

    References
    ----------
    .. [1] Lopez-Paz & Oquab 2017, ICLR; arXiv 1610.06545.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.alignment import classifier_accuracy
    >>> a = np.random.default_rng(0).normal(size=(50, 3))
    >>> accuracy, error = classifier_accuracy(a, a + 5, seed=0)
    >>> accuracy, round(error, 3)
    (1.0, 0.05)
    """
    first, second = (x if isinstance(x, tuple) else (x,) for x in (a, b))
    blocks = list(zip(first, second, strict=True))
    n_a, n_b = (np.shape(sample)[0] for sample in blocks[0])
    if min(n_a, n_b) < 2 * N_FOLDS:
        raise ValueError(f"a and b need at least {2 * N_FOLDS} members each, but have {n_a} and {n_b}")
    scores = np.hstack(
        [np.concatenate(principal_components(*block, seed=seed, n_components=n_components)) for block in blocks]
    )
    truth = np.repeat([False, True], [n_a, n_b])
    selection = _sklearn("model_selection")
    network = _sklearn("neural_network").MLPClassifier(
        (32,), solver="lbfgs", alpha=3.0, max_iter=100, random_state=seed
    )
    with warnings.catch_warnings():
        # 100 iterations are enough to classify, converged or not
        warnings.simplefilter("ignore", _sklearn("exceptions").ConvergenceWarning)
        folds = selection.StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
        probability = selection.cross_val_predict(network, scores, truth, cv=folds, method="predict_proba")[:, 1]
    found = probability > n_b / (n_a + n_b)  # the larger sample must not win by its size
    accuracy = 0.5 * (np.mean(~found[:n_a]) + np.mean(found[n_a:]))
    return float(accuracy), float(0.25 * np.sqrt(1 / n_a + 1 / n_b))


def sliced_wasserstein(a: ArrayLike, b: ArrayLike, *, seed: int, n_projections: int = 200) -> float:
    """Mean 1-Wasserstein distance of two samples along random directions, in units of their scatter.

    Columns are standardised by the scatter of both samples together, so that
    units do not matter. The figure of finite samples that are alike is about
    1 / sqrt(n), not 0; compare figures of equal sizes.

    Parameters
    ----------
    a, b : array, shapes (n_a, ...) and (n_b, ...)
        Two samples of 2 or more members; what follows ``n`` is flattened.
    seed : int
        Of the directions.
    n_projections : int, optional
        How many directions. Default: 200.

    Returns
    -------
    float
        0 for equal samples. Two finite samples of the same kind are a little apart.

    Raises
    ------
    ValueError
        If the samples differ in what follows ``n``, or hold NaN or infinities.

    References
    ----------
    .. [1] Bonneel et al. 2015, J. Math. Imaging Vis. 51, 22.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.alignment import sliced_wasserstein
    >>> a = np.random.default_rng(0).normal(size=(500, 1))
    >>> sliced_wasserstein(a, a, seed=0)
    0.0
    >>> 0.8 < sliced_wasserstein(a, a + 1, seed=0) < 0.9  # a shift by 1 is 0.9 σ of both together
    True
    """
    from scipy.stats import wasserstein_distance  # late: it takes as long to load as a tenth of the package

    a, b = _standardised(a, b)
    directions = np.random.default_rng(seed).standard_normal((a.shape[1], n_projections))
    directions /= np.linalg.norm(directions, axis=0)
    slices = zip((a @ directions).T, (b @ directions).T, strict=True)
    return float(np.mean([wasserstein_distance(*pair) for pair in slices]))


def mmd(a: ArrayLike, b: ArrayLike) -> float:
    """Squared maximum mean discrepancy of two samples, unbiased: 0 on average if they are alike.

    For its definition see [1]_. Columns are standardised as in `sliced_wasserstein`. The kernel is
    exp(-d² / 2h²), with the median of all distances d as h. Single values may
    be negative.

    Parameters
    ----------
    a, b : array, shapes (n_a, ...) and (n_b, ...)
        Two samples of 2 or more members; what follows ``n`` is flattened.

    Returns
    -------
    float
        In units of the kernel, whose largest value is 1.

    Raises
    ------
    ValueError
        If the samples differ in what follows ``n``, or hold NaN or infinities.

    References
    ----------
    .. [1] Gretton et al. 2012, JMLR 13, 723, Eq. 3.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.alignment import mmd
    >>> a, b = np.random.default_rng(0).normal(size=(2, 500, 3))
    >>> abs(mmd(a, b)) < 0.005, mmd(a, b + 1) > 0.1
    (True, True)
    """
    a, b = _standardised(a, b)
    pooled = np.concatenate([a, b])
    norms = (pooled**2).sum(1)
    squares = (norms[:, None] + norms - 2 * pooled @ pooled.T).clip(0)
    width2 = np.median(squares[np.triu_indices(len(pooled), 1)]) or 1.0
    kernel = np.exp(-0.5 * squares / width2)
    n = len(a)
    within_a, within_b = ((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel[:n, :n], kernel[n:, n:]))
    return float(within_a + within_b - 2 * kernel[:n, n:].mean())


def tsne(
    a: ArrayLike, b: ArrayLike, *, seed: int, perplexity: float = 30.0, n_components: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Lay two samples out on a plane by t-SNE [1]_, so that neighbours stay neighbours (S1, Figure 10).

    The map is made of their `principal_components`. It shows whether the samples mix, and which members are alike;
    distances across the map, and the sizes of its islands, mean nothing.

    Parameters
    ----------
    a, b : array, shapes (n_a, ...) and (n_b, ...)
        Two samples of 2 or more members; what follows ``n`` is flattened.
    seed : int
        Of the decomposition and the map.
    perplexity : float, optional
        About how many neighbours a member has. Default: 30, or less of samples of fewer than 90 together.
    n_components : int, optional
        Directions kept, at most. Default: 50.

    Returns
    -------
    a, b : array, shapes (n_a, 2) and (n_b, 2)
        Places on the map.

    Raises
    ------
    ValueError
        If the samples differ in what follows ``n``, or hold NaN or infinities, or ``perplexity`` is not positive.
    ImportError
        If scikit-learn is not installed.

    References
    ----------
    .. [1] van der Maaten & Hinton 2008, JMLR 9, 2579.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.alignment import tsne
    >>> a = np.random.default_rng(0).normal(size=(20, 5))
    >>> first, second = tsne(a, a + 20, seed=0)
    >>> first.shape, second.shape
    ((20, 2), (20, 2))
    """
    if not perplexity > 0:
        raise ValueError(f"perplexity must be positive, but is {perplexity}")
    first, second = principal_components(a, b, seed=seed, n_components=n_components)
    pooled = np.concatenate([first, second])
    start = pooled[:, :2] * 1e-4 if pooled.shape[1] > 1 else "random"  # the same map of the same samples
    perplexity = min(perplexity, (len(pooled) - 1) / 3)
    places = _sklearn("manifold").TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(pooled)
    return places[: len(first)], places[len(first) :]


def _standardised(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both samples as (n, d), each column with mean 0 and scatter 1 over the two, which count alike."""
    a, b = _finite(a=a, b=b)
    mean = 0.5 * (a.mean(0) + b.mean(0))
    scatter = np.sqrt(0.5 * (a.var(0) + b.var(0)) + 0.25 * (a.mean(0) - b.mean(0)) ** 2)
    scatter[scatter == 0] = 1.0
    return (a - mean) / scatter, (b - mean) / scatter


def _finite(**samples: ArrayLike) -> list[np.ndarray]:
    """Samples (n, ...) as float arrays (n, d), if they can be compared."""
    flat = [floats_of(sample).reshape(np.shape(sample)[0], -1) for sample in samples.values()]
    for name, sample in zip(samples, flat, strict=True):
        if len(sample) < 2:
            raise ValueError(f"{name} needs at least 2 members, but has {len(sample)}")
        if not np.isfinite(sample).all():
            raise ValueError(f"{name} holds NaN or infinite values; leave those members out or fill them")
    if len({sample.shape[1] for sample in flat}) > 1:
        sizes = " and ".join(str(sample.shape[1]) for sample in flat)
        raise ValueError(f"members of {' and '.join(samples)} must have the same size, but have {sizes}")
    return flat


def _sklearn(module: str) -> ModuleType:
    """A module of scikit-learn."""
    try:
        return import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError(
            f'scores of the alignment need scikit-learn ({error}): pip install "cyclestarnet[training]"'
        ) from error


# -- labels ------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class LabelTransport:
    """Affine map of labels, made by `gaussian_transport`.

    Parameters
    ----------
    source_mean, target_mean : array, shape (n_labels,)
        Mean labels of both samples.
    matrix : array, shape (n_labels, n_labels)
        What differences to the mean of the source are multiplied by.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.alignment import LabelTransport
    >>> transport = LabelTransport(np.array([4500.0, 2.0]), np.array([4600.0, 2.1]), np.eye(2))
    >>> transport([4510.0, 2.5])
    array([4.61e+03, 2.60e+00])
    """

    source_mean: np.ndarray
    target_mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, labels: ArrayLike) -> np.ndarray:
        """Carry labels (..., n_labels) from the source to the target."""
        return self.target_mean + (floats_of(labels) - self.source_mean) @ self.matrix.T

    def covariance(self, covariance: ArrayLike) -> np.ndarray:
        """Carry the errors of labels from the source to the target.

        Parameters
        ----------
        covariance : array, shape (..., n_labels, n_labels)
            Of labels of the source.

        Returns
        -------
        array, shape (..., n_labels, n_labels)

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.training.alignment import LabelTransport
        >>> LabelTransport(np.zeros(1), np.zeros(1), np.array([[2.0]])).covariance([[0.25]])
        array([[1.]])
        """
        return self.matrix @ np.asarray(covariance, dtype=float) @ self.matrix.T


def gaussian_transport(source: ArrayLike, target: ArrayLike, *, clip: float = 5.0) -> LabelTransport:
    """Optimal transport of labels between two samples that are taken for Gaussians.

    This [1]_ is the baseline without any network: labels that were fitted with the emulator
    alone (Eq. 9) are carried to the label prior of the synthetic spectra.
    Like the translated fit it has the zero points of that prior. Labels count
    in units of the target's scatter.

    Parameters
    ----------
    source, target : array, shapes (n_source, n_labels) and (n_target, n_labels)
        For example fitted labels of observed stars, and the label prior.
    clip : float, optional
        Rows with a label further than this from the median, in robust σ, do
        not count in means and covariances.

    Returns
    -------
    `LabelTransport`

    Raises
    ------
    ValueError
        If a sample has too few rows for its covariance, or a label does not vary.

    References
    ----------
    .. [1] Peyré & Cuturi 2019, Computational Optimal Transport, Remark 2.31.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.alignment import gaussian_transport
    >>> source = np.random.default_rng(1).normal([4400, 2.2], [200, 0.5], (500, 2))
    >>> transport = gaussian_transport(source, 1.1 * source + [60, 0.1])
    >>> transport([4500.0, 2.0]).round(2)
    array([5.01e+03, 2.30e+00])
    """
    means, covariances = [], []
    for name, sample in zip(("source", "target"), _finite(source=source, target=target), strict=True):
        middle, width = _location_and_width(sample)
        kept = sample[(np.abs(sample - middle) <= clip * width).all(1)]
        covariance = np.atleast_2d(np.cov(kept.T)) if len(kept) > sample.shape[1] else np.zeros((1, 1))
        if not (np.diag(covariance) > 0).all() or np.linalg.cond(_correlation(covariance)) > 1e10:
            raise ValueError(
                f"{name} has {len(kept)} usable rows of {sample.shape[1]} labels, whose covariance is singular; "
                "give more rows, and leave out labels that do not vary or follow from others"
            )
        means.append(kept.mean(0))
        covariances.append(covariance)
    unit = np.sqrt(np.diag(covariances[1]))
    first, second = (covariance / np.outer(unit, unit) for covariance in covariances)
    root = _root(first)
    inverse = np.linalg.inv(root)
    matrix = inverse @ _root(root @ second @ root) @ inverse
    return LabelTransport(means[0], means[1], matrix * unit[:, None] / unit)


def regress_labels(
    synthetic_flux: ArrayLike,
    labels: ArrayLike,
    observed_flux: ArrayLike,
    weight: ArrayLike,
    *,
    seed: int,
    n_components: int = 10,
) -> tuple[np.ndarray, np.ndarray]:
    """Rough labels of observed spectra by a linear regression on synthetic ones.

    Each synthetic spectrum gets the noise and the bad pixels of a random observed
    one; labels are then regressed on the principal components. A regression
    on noisy spectra pulls labels to their mean; as the labels of the synthetic
    spectra are estimated in the same way (each by a regression without itself), the
    two estimates returned are pulled alike and may be compared. Neither is
    to be compared with true labels, and the observed ones bear the gap
    between the domains as an offset.

    Parameters
    ----------
    synthetic_flux : array, shape (n_synth, n_pixels)
        Normalised flux, by the same continuum recipe as the observed.
    labels : array, shape (n_synth, n_labels)
        Labels of the synthetic spectra in any units; finite.
    observed_flux, weight : array, shape (n_obs, n_pixels)
        Normalised flux and its 1/σ, 0 for bad pixels, whose flux is not used.
    seed : int
        Of the noise and of the decomposition.
    n_components : int, optional
        More find labels better, but take more of the gap between the domains for labels. Default: 10.

    Returns
    -------
    synthetic_estimate, observed_estimate : array, shapes (n_synth, n_labels) and (n_obs, n_labels)
        Rough labels in the units of ``labels``.

    Raises
    ------
    ValueError
        If shapes do not fit, or spectra are too few for the components.
    ImportError
        If scikit-learn is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.alignment import regress_labels
    >>> labels = np.random.default_rng(0).uniform(-1, 1, (60, 1))
    >>> flux = 1 - 0.1 * (1 + labels) * np.exp(-np.linspace(-2, 2, 30) ** 2)
    >>> rough, rough_observed = regress_labels(flux, labels, flux, np.full(flux.shape, 1e4), seed=0, n_components=1)
    >>> bool(np.abs(rough_observed - labels).max() < 0.01)
    True
    """
    labels = floats_of(labels)
    synthetic, observed, weight = (floats_of(a).astype(np.float32) for a in (synthetic_flux, observed_flux, weight))
    if len(synthetic) != len(labels) or observed.shape != weight.shape or synthetic.shape[1] != observed.shape[1]:
        shapes = ", ".join(str(a.shape) for a in (synthetic, labels, observed, weight))
        raise ValueError(f"shapes of synthetic_flux, labels, observed_flux and weight do not fit together: {shapes}")
    n_components = min(n_components, synthetic.shape[1])
    if len(synthetic) < 5 * n_components:
        raise ValueError(
            f"{len(synthetic)} synthetic spectra are too few for {n_components} components; give 5 for each"
        )
    rng = np.random.default_rng(seed)
    typical, importance = synthetic.mean(0), weight.mean(0)
    # directions of clean spectra: those of noisy ones would fit the noise of the very spectra they come from
    pca = _sklearn("decomposition").PCA(n_components, random_state=seed).fit((synthetic - typical) * importance)
    of_star = weight[rng.integers(len(weight), size=len(synthetic))]
    noise = rng.standard_normal(synthetic.shape, dtype=np.float32) / np.where(of_star > 0, of_star, 1.0)

    def design(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
        filled = np.where(good, flux - typical, 0.0)  # bad pixels, alike in both domains
        return np.column_stack([np.ones(len(flux)), pca.transform(filled * importance)])

    noisy = design(synthetic + noise, of_star > 0)
    orthonormal, triangle = np.linalg.qr(noisy)
    coefficients = np.linalg.solve(triangle, orthonormal.T @ labels)
    leverage = (orthonormal**2).sum(1, keepdims=True)
    left_out = labels - (labels - noisy @ coefficients) / (1 - leverage)  # what a fit without each spectrum says of it
    return left_out, design(observed, weight > 0) @ coefficients


def overlap_weights(
    synthetic_estimate: ArrayLike, observed_estimate: ArrayLike, *, max_ratio: float = 30.0
) -> tuple[np.ndarray, float]:
    """Importance weights that make synthetic labels cover the range of the observed ones, and no other (S1, 5.2).

    The ratio of the densities of both samples, by a logistic regression on the
    labels, their squares and products (exact for Gaussians).

    Label zero points of a model follow the label prior of its synthetic
    spectra. Where the estimates of observed stars are off, as rough ones are by the gap
    between the domains, the weights carry that error into every label:
    unless their zero points are trusted, subtract from both estimates their own medians first, so that
    only widths and correlations are matched.

    Parameters
    ----------
    synthetic_estimate, observed_estimate : array, shapes (n_synth, n_labels) and (n_obs, n_labels)
        Labels as one and the same method estimates them for both domains, such as
        `regress_labels`; few and well-determined ones.
    max_ratio : float, optional
        Density ratios beyond this many times their mean count as this. Default: 30.

    Returns
    -------
    weights : array, shape (n_synth,)
        Of the synthetic rows, with mean 1.
    effective_size : float
        (Σw)² / Σw², of at most ``n_synth``. Below 10 % of it, a warning says so.

    Raises
    ------
    ValueError
        If the samples have other labels, are too small, or hold NaN or infinities.
    ImportError
        If scikit-learn is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.alignment import overlap_weights
    >>> rng = np.random.default_rng(0)
    >>> synthetic, observed = rng.normal(0, 1.0, (2000, 1)), rng.normal(0.5, 0.7, (2000, 1))
    >>> weights, effective_size = overlap_weights(synthetic, observed)
    >>> bool(abs(np.average(synthetic[:, 0], weights=weights) - 0.5) < 0.1)
    True
    """
    synthetic, observed = _standardised(synthetic_estimate, observed_estimate)
    pooled = np.concatenate([synthetic, observed])
    features = _sklearn("preprocessing").PolynomialFeatures(2, include_bias=False).fit_transform(pooled)
    truth = np.repeat([False, True], [len(synthetic), len(observed)])
    model = _sklearn("linear_model").LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000)
    score = model.fit(features, truth).decision_function(features[: len(synthetic)])
    weights = np.exp(score - score.max())
    weights = np.minimum(weights / weights.mean(), max_ratio)
    weights /= weights.mean()
    effective_size = float(len(weights) / np.mean(weights**2))
    if effective_size < 0.1 * len(weights):
        warnings.warn(
            f"synthetic and observed labels hardly overlap: {len(weights)} weighted synthetic rows count as "
            f"{effective_size:.0f}; draw synthetic labels from the observed range",
            CycleStarNetWarning,
            stacklevel=2,
        )
    return weights, effective_size


def prior_mismatch(prior_labels: ArrayLike, observed_estimate: ArrayLike, *, names: Sequence[str]) -> QTable:
    """Compare the label prior of the synthetic spectra with rough labels of the observed ones, and warn.

    A label is named in the warning if the medians are further apart than
    0.5 σ, or the widths differ by more than a factor 1.5, and neither is
    by chance. Give estimates for both that one method made (as
    `regress_labels`): errors of one side alone look like another width. A
    shift may also be the gap between the domains, which the estimates of observed
    stars bear: with a prior that was right, a regression on simulated giants was off by
    0.2 σ in Teff and 0.9 σ in [alpha/M].

    Parameters
    ----------
    prior_labels, observed_estimate : array, shapes (n_prior, n_labels) and (n_obs, n_labels)
        Labels of the synthetic and of the observed spectra, in the same units, from one method; finite.
    names : sequence of str
        Names of the labels, in their order.

    Returns
    -------
    `~astropy.table.QTable`
        A row per label: ``label``; ``shift``, median of the prior less that of the
        observed, in σ (half 16-84 % range) of the observed; ``width_ratio``, σ of the prior over
        σ of the observed.

    Raises
    ------
    ValueError
        If the shapes do not fit, or labels are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.alignment import prior_mismatch
    >>> labels = np.random.default_rng(0).normal([4500, 2.0], [200, 0.5], (500, 2))
    >>> table = prior_mismatch(labels + [20, 0], labels, names=["teff", "logg"])  # a tenth of σ: no warning
    >>> bool(0 < table["shift"][0] < 0.2)
    True
    """
    prior, observed = _finite(prior_labels=prior_labels, observed_estimate=observed_estimate)
    if len(names) != prior.shape[1]:
        raise ValueError(f"names must name {prior.shape[1]} labels, but has {len(names)}")
    (prior_middle, prior_width), (middle, width) = _location_and_width(prior), _location_and_width(observed)
    shift, ratio = (prior_middle - middle) / width, prior_width / width
    chance = 4 * np.sqrt(1 / len(prior) + 1 / len(observed))
    complaints = []
    for name, s, r in zip(names, shift, ratio, strict=True):
        if abs(s) > max(0.5, chance):
            complaints.append(f"{name!r} is probably shifted by {s:+.2f} σ")
        if abs(np.log(r)) > max(np.log(1.5), chance):
            complaints.append(f"{name!r} is probably too {'wide' if r > 1 else 'narrow'}, {r:.2f} times the observed")
    if complaints:
        warnings.warn(
            f"the label prior of the synthetic spectra does not fit rough labels of the observed ones: "
            f"{'; '.join(complaints)}. Label zero points follow the prior. Compare it with a catalogue or with stars "
            "of known labels: it needs correction, unless the gap between the domains spoils the rough labels",
            CycleStarNetWarning,
            stacklevel=2,
        )
    return QTable({"label": list(names), "shift": shift, "width_ratio": ratio})


def _location_and_width(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and half of the 16-84 % range of each column."""
    low, middle, high = np.percentile(sample, [15.865, 50, 84.135], axis=0)
    return middle, 0.5 * (high - low)


def _correlation(covariance: np.ndarray) -> np.ndarray:
    scatter = np.sqrt(np.diag(covariance))
    return covariance / np.outer(scatter, scatter)


def _root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric square root of a positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
