"""Training of the translation networks: alternating steps of autoencoders and critics.

One iteration is one autoencoder step (reconstruction, cycle and adversarial
losses, the fakes' targets flipped to "true") and one critic step on the same,
detached tensors (S1, Sections 3.2.3 to 3.2.6), but for a training whose adversarial
loss is off, which has no critic step. A killed run resumes from its last
checkpoint as if it had not been.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from importlib import import_module
from operator import add
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cyclestarnet.exceptions import CycleStarNetError
from cyclestarnet.networks.checkpoint import load_state
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.training.datasets import ObservedSource, ObservedSpectra, SyntheticSource, SyntheticSpectra
from cyclestarnet.training.loop import TrainingLoop, check_weights, require_held_out, total
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.terms import Adaptation, Transfers
from cyclestarnet.training.watch import WatchSettings, alignment_scores

__all__ = ["Anchors", "Trainer", "first_goes_ahead", "join_processes"]

ANCHORS_AT_ONCE = 4


@dataclass(frozen=True, eq=False)
class Anchors:
    """A few observed spectra of known labels, which tie down the labels' zero points.

    Parameters
    ----------
    observed : `~cyclestarnet.training.datasets.ObservedSpectra`
        The spectra, in the order of ``labels``.
    labels : tensor, shape (n, n_labels)
        Their labels, in the units of the emulator.

    Raises
    ------
    ValueError
        If there are more of one than of the other, for instance because a spectrum without a good pixel was left out.

    Examples
    --------
    ::

        anchors = Anchors(ObservedSpectra(flux, sigma, mask, settings), labels)
        trainer = Trainer(sizes, settings, synthetic, observed, "run", anchors=anchors)
    """

    observed: ObservedSpectra
    labels: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", torch.as_tensor(self.labels, dtype=torch.float32))
        if len(self.observed) != len(self.labels):
            raise ValueError(f"{len(self.observed)} anchor spectra, but {len(self.labels)} rows of labels")


class Trainer(TrainingLoop):
    """Trains a `~cyclestarnet.networks.TranslationNetwork` on unpaired spectra of two domains.

    In several processes (`join_processes`) each works on its share of every
    batch; the first writes the files.

    Parameters
    ----------
    network_settings : `~cyclestarnet.NetworkSettings`
        Sizes of the networks, for spectra of as many pixels as the sources have.
    settings : `~cyclestarnet.TrainingSettings`
        Every number of the training; those that the sources were made with.
    synthetic : `~cyclestarnet.training.datasets.SyntheticSource`
        Synthetic spectra; they are moved to ``device``.
    observed : `~cyclestarnet.training.datasets.ObservedSource`
        Observed spectra; they are moved to ``device``.
    folder : path-like, optional
        Where checkpoints and ``losses.csv`` go. An existing checkpoint there is resumed.
        Default: nothing is written.
    anchors : `Anchors`, optional
        Observed spectra of known labels. Needed if ``weight_anchors`` is not 0.
    device : str, optional
        Where the networks are trained. Default: ``"cpu"``.
    tensorboard : bool, optional
        Log to TensorBoard, too. Default: False.
    watch : `~cyclestarnet.WatchSettings`, optional
        Watch the run, and keep the state of the best score in ``best.pt``. Needs ``held_out``.
    held_out : `~cyclestarnet.training.datasets.ObservedSpectra`, optional
        10 or more spectra of stars that are not in ``observed``.

    Attributes
    ----------
    iteration : int
        How many iterations are done.
    network : `~cyclestarnet.networks.TranslationNetwork`
        The networks with their latest weights; see `averaged_network`.
    parts : `~cyclestarnet.training.terms.Adaptation`
        All that is trained.

    Raises
    ------
    ValueError
        If sources and settings do not fit each other.
    OtherRunError
        If the folder's checkpoint was made with other settings.
    ModelFileError
        If the checkpoint is damaged or that of something else. The message says how to go on.

    Examples
    --------
    ::

        trainer = Trainer(sizes, settings, StoredSynthetic(...), ObservedSpectra(...), "run")
        history = trainer.run()
        network = trainer.averaged_network()
    """

    parts: Adaptation
    network: TranslationNetwork

    def __init__(
        self,
        network_settings: NetworkSettings,
        settings: TrainingSettings,
        synthetic: SyntheticSource,
        observed: ObservedSource,
        folder: str | os.PathLike | None = None,
        *,
        anchors: Anchors | None = None,
        device: str = "cpu",
        tensorboard: bool = False,
        watch: WatchSettings | None = None,
        held_out: ObservedSpectra | None = None,
    ):
        self.settings, self.synthetic, self.observed, self.anchors = settings, synthetic, observed, anchors
        if bool(settings.weight_anchors) != (anchors is not None):
            raise ValueError("anchors need weight_anchors, and weight_anchors needs anchors")
        self._check_labels()
        parts, sources = (
            Adaptation(network_settings, settings, self._n_labels),
            {"synthetic": synthetic, "observed": observed},
        )
        super().__init__(parts, settings, sources, folder, device=device, tensorboard=tensorboard, watch=watch)
        self.label_head = self.parts.label_head
        self.critic_synth, self.critic_obs = self.parts.critic_synth, self.parts.critic_obs
        self.prior_optimizer = None
        if self.parts.prior_shift is not None:
            self.prior_optimizer = self._adam([self.parts.prior_shift], settings.prior_rate)
        self._held_out = None if watch is None else self._draw_held_out(held_out, watch.n_spectra)
        self._resume()

    def start_from(self, checkpoint: str | os.PathLike) -> None:
        """Begin with networks and critics of another run, whose settings and data may differ.

        A label head is taken over if both have one. A run that has begun goes on, and takes nothing.

        Parameters
        ----------
        checkpoint : path-like
            A ``checkpoint.pt`` or ``best.pt`` of networks of the same sizes.

        Raises
        ------
        ModelFileError
            If the file is damaged, or not of such networks.

        Examples
        --------
        ::

            trainer = Trainer(sizes, settings, synthetic, observed, "fine-tuned")
            trainer.start_from("run/best.pt")
        """
        if self.iteration == 0:
            state = load_state(checkpoint)
            own = self.parts.state_dict()
            weights = state.get("parts")
            given = {name: value for name, value in weights.items() if name in own} if isinstance(weights, dict) else {}
            given.pop("prior_shift", None)
            kept = {name: value for name, value in own.items() if name.startswith(("label_head", "prior_shift"))}
            check_weights("parts", kept | given, own, checkpoint)
            check_weights("average", state.get("average"), self.average, checkpoint)
            self.parts.load_state_dict(own | given)
            self.average = {name: tensor.to(self.device) for name, tensor in state["average"].items()}

    def start_with(self, network: TranslationNetwork) -> None:
        """Begin with the weights of trained networks; critics and label head begin anew.

        A run that has begun goes on, and takes nothing.

        Parameters
        ----------
        network : `~cyclestarnet.networks.TranslationNetwork`
            Of the same sizes, such as that of a model's translator. It is copied.

        Examples
        --------
        ::

            trainer = Trainer(sizes, settings, synthetic, observed, "adapted")
            trainer.start_with(model.translator.network)
        """
        if self.iteration == 0:
            self.network.load_state_dict(network.state_dict())
            self.average = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def _check_labels(self) -> None:
        s = self.settings
        if (s.prior_rate or s.weight_anchors or s.weight_response) and not isinstance(self.synthetic, SyntheticSpectra):
            raise ValueError(
                "prior_rate, weight_anchors and weight_response need synthetic spectra that an emulator makes, "
                f"SyntheticSpectra, but these are {type(self.synthetic).__name__}"
            )
        if s.weight_response and isinstance(self.synthetic, SyntheticSpectra):
            self.synthetic.check_names(s.response_labels)
        if self.anchors is not None and self.anchors.labels.shape[1] != self._n_labels:
            raise ValueError(
                f"the anchors have {self.anchors.labels.shape[1]} labels, but the synthetic spectra {self._n_labels}"
            )

    @property
    def _n_labels(self) -> int:
        mean = self.synthetic.label_mean
        return 0 if mean is None else len(mean)

    # -- one iteration -------------------------------------------------------
    def _draw(self) -> dict[str, Tensor]:
        """The batch of this process: all draw the same spectra and take their share."""
        n = self.settings.batch_size
        drawn: dict[str, Tensor | None] = {}
        drawn["x_synth"], drawn["labels"] = self.synthetic.draw(n, self.generator)
        drawn["x_obs"], drawn["weight_obs"] = self.observed.draw(n, self.generator)
        if self.settings.weight_response and (labels := drawn["labels"]) is not None:
            assert isinstance(self.synthetic, SyntheticSpectra)  # this was checked
            drawn["changed"] = self.synthetic.changed(labels, self.settings.response_labels, self.generator)
        share = slice(self.rank, None, self.n_processes)
        batch = {name: tensor[share].to(self.device) for name, tensor in drawn.items() if tensor is not None}
        if self.anchors is not None:
            batch["anchors"] = torch.randint(len(self.anchors.labels), (ANCHORS_AT_ONCE,), generator=self.generator)
        return batch

    def _micro_batches(self, batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        return super()._micro_batches({name: tensor for name, tensor in batch.items() if name != "anchors"})

    def _warm_start_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        collected = []
        for part in self._micro_batches(batch):
            terms = self.parts.warm_start_terms(part["x_synth"])
            (terms["rec_synth"] / self.settings.micro_batches).backward()
            collected.append(terms)
        return self._finish_step(self.optimizer, self._mean(collected), batch)

    def _step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        s = self.settings
        weights = {
            "rec_synth": s.weight_synth,
            "cyc_synth": s.weight_synth,
            "rec_obs": s.weight_obs,
            "cyc_obs": s.weight_obs,
            "gen_synth": s.weight_adversarial * s.adversarial_factor(self.iteration),
            "gen_obs": s.weight_adversarial * s.adversarial_factor(self.iteration),
            "latent": s.weight_latent,
            "spectra": s.weight_spectra,
            "labels": s.weight_labels,
            "label_cycle": s.weight_label_cycle,
            "response": s.weight_response,
        }
        shift = self.parts.prior_shift
        transfers: list[Transfers] = []
        collected: list[dict[str, Tensor]] = []
        shift_gradients: list[Tensor] = []
        for parameter in self.parts.critic_parameters():
            parameter.requires_grad_(False)
        self.optimizer.zero_grad(set_to_none=True)
        for part in self._micro_batches(batch):
            if shift is not None:
                part["labels"] = part["labels"] + shift.detach()
                part["x_synth"] = self._render(part["labels"] + (shift - shift.detach()))
            if "changed" in part:
                changed = part.pop("changed") if shift is None else part.pop("changed") + shift.detach()
                with torch.no_grad():
                    part["x_changed"] = self._render(changed)
            terms, transfer = self.parts.autoencoder_terms(**part)
            if shift is not None:
                # what is easy to reconstruct must not draw the labels: only what tells the domains apart
                telling = total({name: terms[name] for name in ("gen_obs", "latent") if name in terms}, weights)
                shift_gradients += torch.autograd.grad(telling, shift, retain_graph=True)
            (total(terms, weights) / s.micro_batches).backward()
            collected.append(terms)
            transfers.append(transfer)
        terms = self._mean(collected)
        if self.anchors is not None:
            anchor_terms = self._anchor_terms(self.anchors, batch["anchors"])
            (s.weight_anchors * anchor_terms["anchors"]).backward()
            terms |= {name: term.detach() for name, term in anchor_terms.items()}
        found = self._finish_step(self.optimizer, terms, batch)
        if shift is not None and self.prior_optimizer is not None:
            gradient = reduce(add, shift_gradients) / s.micro_batches
            self._average([gradient])
            shift.grad = gradient
            self.prior_optimizer.step()
        return found | self._critic_step(transfers, batch) if s.weight_adversarial else found

    def _render(self, labels: Tensor) -> Tensor:
        """Spectra of standardised labels, which not all sources can make: that this one can was checked."""
        assert isinstance(self.synthetic, SyntheticSpectra)
        return self.synthetic.render(labels)

    def _anchor_terms(self, anchors: Anchors, rows: Tensor) -> dict[str, Tensor]:
        assert isinstance(self.synthetic, SyntheticSpectra)  # this was checked
        flux, weight = (a.to(self.device) for a in anchors.observed.rows(rows))
        labels = anchors.labels[rows].to(self.synthetic.label_mean)
        with torch.no_grad():
            x_synth = self._render((labels - self.synthetic.label_mean) / self.synthetic.label_std)
        return self.parts.anchor_terms(x_synth.to(self.device), flux, weight)

    # -- the watch -------------------------------------------------------------
    def _draw_held_out(self, held_out: ObservedSpectra | None, number: int) -> dict[str, Any]:
        """Standardised spectra of both domains that scores are measured on, the same in the whole run."""
        held_out = require_held_out(held_out)
        generator = torch.Generator().manual_seed(self.settings.seed)
        number = min(number, len(held_out))
        x_synth, _ = self.synthetic.draw(number, generator)
        x_obs, weight_obs = held_out.rows(torch.arange(number))
        weight_synth = self.settings.flux_std / self.settings.synthetic_sigma
        return {"x_synth": x_synth, "weight_synth": weight_synth, "x_obs": x_obs, "weight_obs": weight_obs}

    def _scores(self) -> dict[str, float]:
        assert self._held_out is not None  # there is a watch
        network = self.averaged_network().to(self.device)
        return alignment_scores(network, seed=self.settings.seed, **self._held_out)

    def averaged_network(self) -> TranslationNetwork:
        """The network with the averaged weights.

        Returns
        -------
        `~cyclestarnet.networks.TranslationNetwork`
            A copy in evaluation mode, without gradients, on the CPU.

        Examples
        --------
        ::

            translator = Translator(trainer.averaged_network(), settings.flux_mean, settings.flux_std)
        """
        network = TranslationNetwork(self.network.settings)
        network.load_state_dict(self.average)
        return network.eval().requires_grad_(False)

    def _copy_first(self) -> None:
        self.parts.copy_synth_to_obs()

    def _critic_terms(self, transfers: Transfers) -> dict[str, Tensor]:
        return self.parts.critic_terms(transfers)

    def _stateful(self) -> dict:
        prior = {} if self.prior_optimizer is None else {"prior_optimizer": self.prior_optimizer}
        return super()._stateful() | prior


@contextmanager
def join_processes(device: str = "cpu") -> Iterator[str]:
    """Work together with the other processes that ``torchrun`` started; alone, if it did not start this one.

    All processes need the same sources and settings, and a folder that all of
    them see. A batch is shared out, so the result is that of one process with
    the same ``batch_size``; the energy distance is the mean of those within
    each share.

    Parameters
    ----------
    device : str, optional
        ``"cuda"`` gives each process of a machine a GPU of its own.

    Yields
    ------
    str
        The device of this process.

    Examples
    --------
    In a file that is run by ``torchrun --standalone --nproc-per-node 4 train.py``::

        with join_processes("cuda") as device:
            Trainer(sizes, settings, synthetic.to(device), observed.to(device), folder, device=device).run()
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    # The first optimizer imports this module, whose functions take the group of that moment as their default. If that
    # were ours, it would outlive its destruction below, and so would gloo's threads: one that lets go of a tensor while
    # the interpreter ends is refused the GIL, and aborts the process. Imported before there is a group, it keeps none.
    import_module("torch.distributed.nn.functional")
    # the others may have to wait while the first trains an emulator, which takes hours
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(days=1))
    try:
        yield device
        dist.barrier()  # what goes wrong as a process leaves must not stop another that still saves its work
    finally:
        dist.destroy_process_group()


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """Let the first of several processes do something before the others; if it fails, all fail, and say of what.

    Raises
    ------
    CycleStarNetError
        In the other processes, if the first one failed.

    Examples
    --------
    The first process makes a file, and the others find it::

        with join_processes(), first_goes_ahead():
            emulator = load_emulator(path) if path.exists() else train_and_save(path)
    """
    if not dist.is_initialized():
        yield
        return
    failure: list[str | None] = [None]
    if dist.get_rank() > 0:
        dist.broadcast_object_list(failure)
        if failure[0] is not None:
            raise CycleStarNetError(f"the first process failed, and this one ends with it: {failure[0]}")
        yield
        return
    try:
        yield
    except Exception as error:  # a signal goes to all processes, which may be gone
        dist.broadcast_object_list([f"{type(error).__name__}: {error}"])
        raise
    dist.broadcast_object_list(failure)
