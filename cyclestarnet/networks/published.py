"""Readers of the public files of The Payne and of Cycle-StarNet; nothing in a file is ever executed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cyclestarnet.exceptions import ModelFileError
from cyclestarnet.networks.checkpoint import load_state
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.translation import Critic, Layers, NetworkSettings, TranslationNetwork
from cyclestarnet.reading.archives import read_npz

__all__ = [
    "PAYNE_LABELS",
    "PUBLISHED_SPECTRA",
    "PublishedSpectra",
    "adapt_emulator",
    "read_payne_checkpoint",
    "read_payne_npz",
    "read_published_checkpoint",
]


@dataclass(frozen=True)
class PublishedSpectra:
    """How a published training prepared its spectra: what a network must be fed, and its file does not hold.

    Parameters
    ----------
    cut : {"red", "blue"}
        End of the 7214 APOGEE pixels that the spectra lack; see `~cyclestarnet.grid.apogee_grid`.
    flux_mean : float
        What is subtracted from all normalised flux before it enters the networks, ...
    flux_std : float
        ... and what it is then divided by.
    sigma_floor : float
        Smallest error of an observed pixel: smaller ones are raised to it.
    sigma_max : float
        Error above which an observed pixel is masked.

    Examples
    --------
    >>> from cyclestarnet.networks.published import PUBLISHED_SPECTRA
    >>> PUBLISHED_SPECTRA["repository"].cut
    'blue'
    """

    cut: Literal["red", "blue"]
    flux_mean: float = 0.97746492
    flux_std: float = 0.05180881
    sigma_floor: float = 0.005
    sigma_max: float = 0.05


PUBLISHED_SPECTRA = {"paper": PublishedSpectra(cut="red"), "repository": PublishedSpectra(cut="blue")}
"""Spectra of the two published trainings, by the names of the presets of
`~cyclestarnet.TrainingSettings`: as the paper has them, and as the authors' repository has them."""

PAYNE_LABELS = (
    "teff", "logg", "vmicro",
    "c_h", "n_h", "o_h", "na_h", "mg_h", "al_h", "si_h", "p_h", "s_h", "k_h", "ca_h",
    "ti_h", "v_h", "cr_h", "mn_h", "fe_h", "co_h", "ni_h", "cu_h", "ge_h",
    "c12_c13", "vmacro",
)  # fmt: skip
"""Labels of the Kurucz emulator of the paper (Ting et al. 2019) in its order; the files do not hold them."""

_ALWAYS = ("encoder_synth", "encoder_obs", "encoder_sh", "decoder_sh", "decoder_synth", "decoder_obs")
_SPLIT = ("encoder_sp", "decoder_sp")
_CRITICS = ("discriminator_synth", "discriminator_obs")
_WRAPPERS = {"module", "model"}  # torch.nn.DataParallel, and a Sequential kept as an attribute


def read_payne_npz(path: str | os.PathLike[str], *, activation: str = "leaky_relu") -> Emulator:
    """Read an emulator from The Payne's ``NN_normalized_spectra.npz``.

    Parameters
    ----------
    path : path-like
        Arrays ``w_array_0`` ... ``w_array_2``, ``b_array_0`` ..., ``x_min``, ``x_max``.
        Pickled objects in it are refused.
    activation : {"leaky_relu", "sigmoid"}, optional
        The file does not say. Files of 2019 and later have leaky ReLU, older ones sigmoids.

    Returns
    -------
    `~cyclestarnet.networks.Emulator`
        In evaluation mode, without gradients. A temperature is in units of
        1000 K, as in the file; see `adapt_emulator`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged, arrays are missing, not finite or their shapes do
        not fit, or the range of a label is empty.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from cyclestarnet.networks import read_payne_npz
    >>> sizes = [(8, 3), (8, 8), (50, 8)]  # 3 labels, 50 pixels
    >>> arrays = {f"w_array_{k}": np.zeros(size) for k, size in enumerate(sizes)}
    >>> arrays |= {f"b_array_{k}": np.ones(size[0]) for k, size in enumerate(sizes)}
    >>> path = tempfile.mkdtemp() + "/NN_normalized_spectra.npz"
    >>> np.savez(path, x_min=[4.0, 0.0, -1.0], x_max=[6.0, 4.0, 0.5], **arrays)
    >>> read_payne_npz(path).n_pixels
    50
    """
    try:
        arrays = read_npz(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and zipfile raise a class of their own for each kind of damage
        raise ModelFileError(f"{path} is damaged or no .npz file of plain arrays: {error}") from error
    needed = [f"{kind}_array_{k}" for k in range(3) for kind in "wb"] + ["x_min", "x_max"]
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ModelFileError(f"{path} lacks the arrays {missing} of The Payne; it has {sorted(arrays)}")
    arrays = {name: _numbers(arrays[name], name, path) for name in needed}
    weights = [(arrays[f"w_array_{k}"], arrays[f"b_array_{k}"]) for k in range(3)]
    return _emulator(weights, arrays["x_min"], arrays["x_max"], activation, path)


def read_payne_checkpoint(path: str | os.PathLike[str]) -> Emulator:
    """Read an emulator from the public ``PAYNE.pth.tar`` of Cycle-StarNet.

    Parameters
    ----------
    path : path-like
        A dictionary of ``Payne`` (state dict: two hidden layers and an output
        layer), ``y_min`` and ``y_max``. Read with ``weights_only``.

    Returns
    -------
    `~cyclestarnet.networks.Emulator`
        In evaluation mode, without gradients. The temperature is in units of
        1000 K, as in the file; see `adapt_emulator`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged, holds code, or has another layout, a weight is not
        finite, or the range of a label is empty.

    Examples
    --------
    With labels in K, and on the 7167 pixels of the published weights::

        emulator = read_payne_checkpoint("PAYNE.pth.tar")
        scale = np.where(np.array(PAYNE_LABELS) == "teff", 1000, 1)
        emulator = adapt_emulator(emulator, pixels=slice(47, None), label_scale=scale)
    """
    content = _content(path, "Payne", "y_min", "y_max")
    state = content["Payne"]
    if not isinstance(state, dict):
        raise ModelFileError(f"{path}: Payne must be a state dict, but is a {type(state).__name__}")
    tensors = [_numbers(value, str(name), path) for name, value in state.items()]
    weights = [value for value in tensors if value.ndim == 2]
    biases = [value for value in tensors if value.ndim == 1]
    if len(weights) != 3 or len(biases) != 3:
        raise ModelFileError(f"{path}: the emulator must have three linear layers, but its arrays are {list(state)}")
    layers = list(zip(weights, biases, strict=True))
    lower, upper = (_numbers(content[name], name, path) for name in ("y_min", "y_max"))
    return _emulator(layers, lower, upper, "leaky_relu", path)


def read_published_checkpoint(
    path: str | os.PathLike[str], *, template: NetworkSettings | None = None, emulator: Emulator | None = None
) -> tuple[TranslationNetwork, tuple[Critic, Critic] | None]:
    """Read the networks of a public Cycle-StarNet file such as ``kurucz_to_apogee_1.pth.tar``.

    The numbers of filters, the kernels and whether there is a split latent
    are read off the weights; ``template`` has what weights do not tell.

    Parameters
    ----------
    path : path-like
        A dictionary with the state dict ``cycle_model``; optimiser states and
        losses beside it are ignored. Read with ``weights_only``.
    template : `~cyclestarnet.NetworkSettings`, optional
        Its number of pixels, strides (hence the number of layers), slope and
        ``latent_norm`` are used, its filters and kernels are not. Default:
        the paper's, which are the repository's as well. The critics of a file
        show whether pixels and strides are right.
    emulator : `~cyclestarnet.networks.Emulator`, optional
        The emulator that the networks were trained with, on all its pixels;
        a copy of another one in the file raises.

    Returns
    -------
    network : `~cyclestarnet.networks.TranslationNetwork`
        In evaluation mode, without gradients.
    critics : tuple of two `~cyclestarnet.networks.Critic`, or None
        Of the synthetic and of the observed domain, likewise, if the file has them.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged or holds code, if sub-networks or arrays are
        missing, unexpected or of shapes that do not fit together, or if the
        emulator is another one.

    Examples
    --------
    Continue a published training::

        network, (critic_synth, critic_obs) = read_published_checkpoint("kurucz_to_apogee_1.pth.tar")
        trainer = Trainer(network.settings, TrainingSettings.from_preset("repository"), synthetic, observed)
        trainer.network.load_state_dict(network.state_dict())
        trainer.critic_synth.load_state_dict(critic_synth.state_dict())
        trainer.critic_obs.load_state_dict(critic_obs.state_dict())
    """
    state = _unwrapped(_content(path, "cycle_model")["cycle_model"], path)
    found = {name.partition(".")[0] for name in state}
    wanted = [*_ALWAYS, *(part for parts in (_SPLIT, _CRITICS) if found & set(parts) for part in parts)]
    _refuse(path, "sub-networks", missing=set(wanted) - found, unexpected=found - {*wanted, "emulator"})
    own_emulator = {name: state.pop(name) for name in list(state) if name.startswith("emulator.")}
    if emulator is not None and own_emulator:
        _check_emulator(own_emulator, emulator, path)

    settings = _settings(state, template or NetworkSettings(), path)
    with torch.device("meta"):  # of sizes alone: a file can claim networks that no memory holds
        expected = _networks(settings, found)[0].state_dict()
    misfits = [
        f"{name} {tuple(array.shape)} where {tuple(expected[name].shape)} fits"
        for name, array in state.items()
        if name in expected and array.shape != expected[name].shape
    ]
    if misfits and all(".fc." in misfit for misfit in misfits):
        raise ModelFileError(f"{path} is of other pixels or strides than the template: {'; '.join(misfits)}")
    _refuse(
        path, "arrays", missing=set(expected) - set(state), unexpected=set(state) - set(expected), misshapen=misfits
    )
    with torch.random.fork_rng(devices=[]):  # the random weights are overwritten
        whole, network, critics = _networks(settings, found)
    whole.load_state_dict(state)
    whole.eval().requires_grad_(False)
    return network.eval(), critics


def adapt_emulator(
    emulator: Emulator, *, pixels: slice = slice(None), label_scale: float | np.ndarray = 1.0
) -> Emulator:
    """Return the same emulator on part of its pixels and with its labels in other units.

    Parameters
    ----------
    emulator : `~cyclestarnet.networks.Emulator`
        On the processor; is left as it is.
    pixels : slice, optional
        The pixels to keep. Default: all.
    label_scale : float or array, shape (n_labels,), optional
        How many new units are one old unit of each label: 1000 for K instead
        of kK. Default: 1, the same units.

    Returns
    -------
    `~cyclestarnet.networks.Emulator`
        In evaluation mode, without gradients.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from cyclestarnet.networks import Emulator, adapt_emulator
    >>> emulator = Emulator([4.0, 0.0], [6.0, 4.0], n_pixels=50, hidden=(8,))
    >>> adapted = adapt_emulator(emulator, pixels=slice(0, 20), label_scale=np.array([1000, 1]))
    >>> flux = adapted(torch.tensor([4500.0, 2.0]))
    >>> torch.allclose(flux, emulator(torch.tensor([4.5, 2.0]))[:20], atol=1e-6)
    True
    """
    lower, upper = (bound.double().numpy() * label_scale for bound in (emulator.lower, emulator.upper))
    layers = [
        (part.weight.detach().numpy(), part.bias.detach().numpy())
        for part in emulator.layers
        if isinstance(part, nn.Linear)
    ]
    weight, bias = layers[-1]
    layers[-1] = weight[pixels], bias[pixels]
    return _emulator(layers, lower, upper, emulator.activation, "the emulator")


# -- inside ----------------------------------------------------------------------------
def _networks(
    settings: NetworkSettings, found: set[str]
) -> tuple[nn.ModuleDict, TranslationNetwork, tuple[Critic, Critic] | None]:
    """All networks of a file with these parts, as one and one by one."""
    network = TranslationNetwork(settings)
    n_shared, n_split = settings.shared_filters, settings.split_filters
    critics = (Critic(settings, n_shared), Critic(settings, n_shared + n_split)) if found & set(_CRITICS) else None
    return (
        nn.ModuleDict(dict(network.named_children()) | dict(zip(_CRITICS, critics or (), strict=False))),
        network,
        critics,
    )


def _content(path: str | os.PathLike[str], *names: str) -> dict:
    """Read a file and check that it has the parts of these names."""
    content = load_state(path)
    if not set(names) <= set(content):
        wanted = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        raise ModelFileError(f"{path} must hold {wanted}, but holds {sorted(map(str, content))}")
    return content


def _numbers(value: object, name: str, path: str | os.PathLike[str]) -> np.ndarray:
    """Finite numbers of a file; in double precision, in which all that others write have their place."""
    try:
        array = np.asarray(value.double() if isinstance(value, Tensor) else value)
        fine = array.dtype.kind in "fiu" and bool(np.all(np.abs(array) <= np.finfo(np.float32).max))  # False for NaN
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise ModelFileError(f"{path}: {name} must be an array of finite numbers")
    return array.astype(np.float64)


def _unwrapped(state: object, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Strip the names of wrappers and check that everything is a finite array."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ModelFileError(f"{path}: cycle_model must be a state dict, but is a {type(state).__name__}")
    plain: dict[str, Tensor] = {}
    for name, array in state.items():
        if not isinstance(array, Tensor) or not torch.isfinite(array.float()).all():
            raise ModelFileError(f"{path}: {name} must be an array of finite numbers")
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if short in plain:
            raise ModelFileError(f"{path}: {short} is there twice, with and without a wrapper; which one is meant?")
        plain[short] = array
    return plain


def _refuse(path: str | os.PathLike[str], what: str, **problems: Iterable[str]) -> None:
    """Raise an error that lists all problems, if there are any."""
    said = []
    for problem, names in problems.items():
        names = sorted(names)
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        said += [f"{problem} {', '.join(names[:8])}{more}"] if names else []
    if said:
        raise ModelFileError(f"{path}: the {what} of cycle_model do not fit: {'; '.join(said)}")


def _check_emulator(own: dict[str, Tensor], emulator: Emulator, path: str | os.PathLike[str]) -> None:
    given = {f"emulator.{name}": array for name, array in emulator.layers.state_dict().items()}
    different = set(own) ^ set(given)
    for name in set(own) & set(given):
        if own[name].shape != given[name].shape or not torch.allclose(own[name].to(given[name].dtype), given[name]):
            different.add(name)
    if different:
        raise ModelFileError(
            f"{path} was trained with another emulator than the one given: {', '.join(sorted(different))} differ"
        )


def _settings(state: dict[str, Tensor], template: NetworkSettings, path: str | os.PathLike[str]) -> NetworkSettings:
    """Sizes of the networks that weights belong to."""

    def layers(part: str, like: Layers, n_more: int = 0) -> tuple[Layers, int]:
        """Layers with the strides of ``like``, and the filters of the last of all."""
        found = [re.fullmatch(rf"{re.escape(part)}\.(\d+)\.weight", name) for name in state]
        numbers = sorted(int(match[1]) for match in found if match)
        wanted = list(range(0, 2 * (len(like) + n_more), 2))
        if numbers != wanted:
            raise ModelFileError(
                f"{path}: {part} has weights at the layers {numbers}, but the template has strides for {wanted}"
            )
        shapes = [tuple(state[f"{part}.{number}.weight"].shape) for number in numbers]
        if any(len(shape) != 3 for shape in shapes):
            raise ModelFileError(f"{path}: {part} must be of convolutions, but has weights of the shapes {shapes}")
        sizes = [(shape[0], shape[2], stride) for shape, (_, _, stride) in zip(shapes, like, strict=False)]
        return tuple(sizes), shapes[-1][0]

    sizes: dict = {"split_filters": 0}
    sizes["domain"], _ = layers("encoder_synth", template.domain)
    sizes["shared"], sizes["shared_filters"] = layers("encoder_sh", template.shared, 1)
    parts = {name.partition(".")[0] for name in state}
    if _SPLIT[0] in parts:
        sizes["split"], sizes["split_filters"] = layers("encoder_sp", template.split, 1)
    if _CRITICS[0] in parts:
        sizes["critic_spectrum"], _ = layers("discriminator_synth.discriminator_x", template.critic_spectrum)
        sizes["critic_latent"], _ = layers("discriminator_synth.discriminator_z", template.critic_latent)
    try:
        return NetworkSettings(**(template.to_dict() | sizes))
    except ValueError as error:
        raise ModelFileError(
            f"{path}: its layers do not fit the pixels and strides of the template: {error}"
        ) from error


def _emulator(
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    lower: ArrayLike,
    upper: ArrayLike,
    activation: str,
    path: str | os.PathLike[str],
) -> Emulator:
    """Emulator of weights and biases, layer by layer."""
    lower, upper = np.ravel(lower), np.ravel(upper)
    empty = np.flatnonzero(~(lower < upper)) if lower.shape == upper.shape else None
    if empty is None or len(empty):
        which = "have other lengths" if empty is None else f"do not rise at the labels {empty.tolist()} (from 0)"
        raise ModelFileError(f"{path}: the ranges of the labels, {lower} to {upper}, {which}")
    if any(weight.ndim != 2 for weight, _ in layers):
        raise ModelFileError(f"{path}: weights must have two axes, but have {[w.shape for w, _ in layers]}")
    sizes = [weight.shape[0] for weight, _ in layers]
    emulator = Emulator(lower, upper, sizes[-1], sizes[:-1], activation)
    state = emulator.state_dict()
    for k, (weight, bias) in enumerate(layers):
        for name, value in ((f"layers.{2 * k}.weight", weight), (f"layers.{2 * k}.bias", bias)):
            if state[name].shape != value.shape:
                wanted = tuple(state[name].shape)
                raise ModelFileError(f"{path}: layer {k} has an array of shape {value.shape} where {wanted} fits")
            state[name] = torch.from_numpy(value.copy())
    emulator.load_state_dict(state)
    return emulator.eval().requires_grad_(False)
