"""Training of the translation networks: alternating steps of autoencoders and critics.

One iteration is one autoencoder step (reconstruction, cycle and adversarial
losses, the fakes' targets flipped to "true") and one critic step on the same,
detached tensors (S1, Sections 3.2.3 to 3.2.6), but for a training whose adversarial
loss is off, which has no critic step. A killed run resumes from its last
checkpoint as if it had not been.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import reduce
from importlib import import_module
from operator import add
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cyclestarnet.exceptions import CycleStarNetError, ModelFileError, OtherRunError, TrainingError, TrainingWarning
from cyclestarnet.files import locked
from cyclestarnet.networks.checkpoint import load_state, save_state
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.progress import tqdm
from cyclestarnet.training.datasets import ObservedSource, ObservedSpectra, SyntheticSource, SyntheticSpectra
from cyclestarnet.training.logs import LossLog
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.terms import Adaptation, Transfers
from cyclestarnet.training.watch import Verdict, Watch, WatchSettings, alignment_scores

__all__ = ["Anchors", "Trainer", "first_goes_ahead", "join_processes"]

log = logging.getLogger(__name__)

ANCHORS_AT_ONCE = 4
MOST_ROLLBACKS = 4
LEAST_HELD_OUT = 10  # what a two-sample score needs
CHECKPOINT, BEST = "checkpoint.pt", "best.pt"  # in the folder of a run


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


class Trainer:
    """Trains a `~cyclestarnet.networks.TranslationNetwork` on unpaired spectra of two domains.

    In several processes (`join_processes`) each works on its share of every
    batch; the first writes the files.

    Parameters
    ----------
    network_settings : `~cyclestarnet.NetworkSettings`
        Sizes of the networks, for spectra of as many pixels as the sources have.
    settings : `~cyclestarnet.TrainingSettings`
        Every number of the training; those that the sources were made with.
    synthetic : `~cyclestarnet.training.datasets.SyntheticSource` or `~cyclestarnet.training.datasets.ObservedSource`
        Synthetic spectra; they are moved to ``device``. If they are observed ones, both
        domains have errors and masks, and none has labels.
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

    def __init__(
        self,
        network_settings: NetworkSettings,
        settings: TrainingSettings,
        synthetic: SyntheticSource | ObservedSource,
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
        self.device = torch.device(device)
        synthetic.to(self.device)
        observed.to(self.device)
        self.rank, self.n_processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._check_together()
        self.folder = Path(folder) if folder is not None else None
        self.iteration = 0
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.parts = Adaptation(network_settings, settings, self._n_labels).to(self.device)
        self.network, self.label_head = self.parts.network, self.parts.label_head
        self.critic_synth, self.critic_obs = self.parts.critic_synth, self.parts.critic_obs
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.optimizer = self._adam(self.parts.autoencoder_parameters(), settings.learning_rate)
        self.critic_optimizer = self._adam(self.parts.critic_parameters(), settings.critic_learning_rate)
        self.prior_optimizer = None
        if self.parts.prior_shift is not None:
            self.prior_optimizer = self._adam([self.parts.prior_shift], settings.prior_rate)
        self._sums: dict[str, tuple[float, int]] = {}  # of each loss term since the last row, over how many iterations
        self._rate = 1.0  # halved when the run is rolled back
        self.watch = None if watch is None else Watch(watch)
        self._held_out = None if watch is None else self._draw_held_out(held_out, watch.n_spectra)
        self._logs: dict[str, LossLog] = {}
        if self.folder is not None and self.rank == 0:
            self._logs = {name: LossLog(self.folder, tensorboard, name=name) for name in ("losses", "scores")}
        if self.folder is not None and (self.folder / CHECKPOINT).exists():
            self._load(self.folder)

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
            _check_weights("parts", kept | given, own, checkpoint)
            _check_weights("average", state.get("average"), self.average, checkpoint)
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

    def _check_together(self) -> None:
        s, n_parts = self.settings, self.n_processes * self.settings.micro_batches
        if s.batch_size % n_parts:
            raise ValueError(
                f"batch_size ({s.batch_size}) must be a multiple of "
                f"{self.n_processes} processes x {s.micro_batches} micro_batches"
            )
        compared = [name for name in ("weight_latent", "weight_spectra") if getattr(s, name)]
        if compared and s.batch_size < 2 * n_parts:
            raise ValueError(
                f"{compared[0]} needs at least 2 spectra in each of the {n_parts} parts of a batch, which has "
                f"{s.batch_size}: the energy distance compares spectra of one domain, too"
            )
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
        mean = getattr(self.synthetic, "label_mean", None)  # observed spectra know of no labels
        return 0 if mean is None else len(mean)

    def _draw_first(self, n: int, generator: torch.Generator) -> dict[str, Tensor | None]:
        """Spectra of the first domain, with the labels of synthetic ones or the weights of observed ones."""
        spectra, more = self.synthetic.draw(n, generator)
        return {"x_synth": spectra, "labels" if hasattr(self.synthetic, "label_mean") else "weight_synth": more}

    def _adam(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, rate, self.settings.betas, fused=True)

    # -- one iteration -------------------------------------------------------
    def step(self) -> dict[str, float]:
        """Do one iteration.

        Returns
        -------
        dict of float
            Its loss terms, unweighted, as means over all processes.

        Raises
        ------
        FloatingPointError
            If a term or a gradient is not finite. The batch is kept in the folder.

        Examples
        --------
        ::

            terms = trainer.step()
            print(terms["rec_obs"], terms["critic_accuracy"])
        """
        s = self.settings
        for optimizer, rate in ((self.optimizer, s.learning_rate), (self.critic_optimizer, s.critic_learning_rate)):
            for group in optimizer.param_groups:
                group["lr"] = self._rate * rate * s.rate_factor(self.iteration)
        if self.iteration == s.warm_start and s.warm_start:
            self.parts.copy_synth_to_obs()
            self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        batch = self._draw()
        terms = self._warm_start_step(batch) if self.iteration < s.warm_start else self._step(batch)
        with torch.no_grad():
            current = self.network.state_dict()
            decay = min(s.average_decay, (1 + self.iteration) / (10 + self.iteration)) if s.average_decay else 0.0
            torch._foreach_lerp_(list(self.average.values()), [current[k] for k in self.average], 1 - decay)
        self.iteration += 1
        return terms

    def _draw(self) -> dict[str, Tensor]:
        """The batch of this process: all draw the same spectra and take their share."""
        n = self.settings.batch_size
        drawn = self._draw_first(n, self.generator)
        labels = drawn.get("labels")
        drawn["x_obs"], drawn["weight_obs"] = self.observed.draw(n, self.generator)
        if self.settings.weight_response and labels is not None:
            assert isinstance(self.synthetic, SyntheticSpectra)  # this was checked
            drawn["changed"] = self.synthetic.changed(labels, self.settings.response_labels, self.generator)
        share = slice(self.rank, None, self.n_processes)
        batch = {name: tensor[share].to(self.device) for name, tensor in drawn.items() if tensor is not None}
        if self.anchors is not None:
            batch["anchors"] = torch.randint(len(self.anchors.labels), (ANCHORS_AT_ONCE,), generator=self.generator)
        return batch

    def _micro_batches(self, batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        n_parts = self.settings.micro_batches
        for k in range(n_parts):
            yield {name: tensor.chunk(n_parts)[k] for name, tensor in batch.items() if name != "anchors"}

    def _warm_start_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        collected = []
        for part in self._micro_batches(batch):
            terms = self.parts.warm_start_terms(part["x_synth"], part.get("weight_synth"))
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
                telling = _total({name: terms[name] for name in ("gen_obs", "latent") if name in terms}, weights)
                shift_gradients += torch.autograd.grad(telling, shift, retain_graph=True)
            (_total(terms, weights) / s.micro_batches).backward()
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

    def _critic_step(self, transfers: list[Transfers], batch: dict[str, Tensor]) -> dict[str, float]:
        s = self.settings
        for parameter in self.parts.critic_parameters():
            parameter.requires_grad_(True)
        self.critic_optimizer.zero_grad(set_to_none=True)
        collected = []
        for transfer in transfers:
            terms = self.parts.critic_terms(transfer)
            loss = s.weight_adversarial * (terms["critic_synth"] + terms["critic_obs"])
            loss = loss + s.critic_penalty * terms.get("penalty", 0.0)
            (loss / s.micro_batches).backward()
            collected.append(terms)
        return self._finish_step(self.critic_optimizer, self._mean(collected), batch)

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

    @staticmethod
    def _mean(collected: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([terms[name].detach() for terms in collected]).mean() for name in collected[0]}

    def _average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        if self.n_processes == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.n_processes
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def _finish_step(
        self, optimizer: torch.optim.Optimizer, terms: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> dict[str, float]:
        """Average gradients and terms over the processes, and let the optimizer step if all terms are finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        values = list(terms.values())
        own = torch.stack(values)  # of this process, whose share of the batch may be a fine one
        self._average([*(p.grad for p in parameters), *(v.unsqueeze(0) for v in values)])
        found = dict(zip(terms, torch.stack(values).tolist(), strict=True))
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if bad or not torch.isfinite(norm):
            where = ""
            if self.folder is not None and not (bad and own.isfinite().all()):
                path = self.folder / ("bad_batch.pt" if self.n_processes == 1 else f"bad_batch.{self.rank}.pt")
                where = f"; the batch is in {path}"
                save_state({name: tensor.cpu() for name, tensor in batch.items()}, path)
            what = f"loss terms {bad} are" if bad else "the gradient is"
            raise FloatingPointError(f"{what} not finite at iteration {self.iteration}{where}")
        if optimizer is self.optimizer and self.settings.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.gradient_clip, norm)
        optimizer.step()
        return found

    # -- the run --------------------------------------------------------------
    def run(
        self, *, until: int | None = None, progress: bool = True, every: int = 50, checkpoint_every: int = 500
    ) -> list[dict[str, float]]:
        """Train up to the number of iterations of the settings, or for now to an earlier one.

        Ctrl-C and SIGTERM let the iteration end and save a checkpoint before
        they are passed on.

        Parameters
        ----------
        until : int, optional
            Stop when so many iterations are done. Default: ``n_iterations`` of the settings.
        progress : bool, optional
            Show a bar. Default: True.
        every : int, optional
            Iterations between rows of the log. Default: 50.
        checkpoint_every : int, optional
            Iterations between checkpoints; there is one in the end in any case. Default: 500.

        Returns
        -------
        list of dict of float
            The rows of the log: ``iteration``, and the loss terms, unweighted,
            as means over the iterations since the row before.

        Raises
        ------
        FloatingPointError
            If a loss is not finite, and the watch does not roll back. The
            weights may be spoilt: the last checkpoint stays as it was.
        TrainingError
            If the watch stops the run.
        FileExistsError
            If another process trains in the folder.

        Examples
        --------
        ::

            history = trainer.run(until=1000, every=100)
            print([row["rec_obs"] for row in history])
        """
        last = self.settings.n_iterations if until is None else min(until, self.settings.n_iterations)
        history: list[dict[str, float]] = []
        action = None if self.watch is None else self.watch.settings.action
        bar = tqdm(total=last, initial=self.iteration, desc="training", disable=not progress or self.rank > 0)
        with locked(self.folder if self.rank == 0 else None, "trains in"), _delayed_signals() as caught, bar:
            while self.iteration < last:
                verdicts: list[Verdict] = []
                try:
                    terms = self.step()
                except FloatingPointError as error:
                    if action != "roll_back":
                        raise
                    self._roll_back(str(error))
                    bar.update(self.iteration - bar.n)
                    continue
                for name, value in terms.items():
                    total, n = self._sums.get(name, (0.0, 0))
                    self._sums[name] = total + value, n + 1
                bar.update()
                if self.iteration % every == 0:
                    history.append(self._report(bar))
                    if self.watch is not None and self.iteration > self.settings.warm_start:
                        verdicts += self.watch.see_losses(history[-1])
                if self.watch is not None and self.iteration % self.watch.settings.every == 0:
                    verdicts += self._evaluate(self.watch)
                failing = self._heed(verdicts)
                stop = self._agree(caught[0] if caught else 0)
                if failing is not None and action == "roll_back":
                    self._roll_back(str(failing))
                    bar.update(self.iteration - bar.n)
                elif self.iteration % checkpoint_every == 0 or self.iteration == last or stop or failing:
                    self.save()
                if failing is not None and action == "stop":
                    best = [path for path in self._saved_states() if path.name == BEST]
                    raise TrainingError(f"{failing}; the best state is in {best[0]}" if best else f"{failing}")
                if stop:
                    break
            # of the last iteration, too; and no process ends before the first has written its checkpoint
            signal_number = self._agree(caught[0] if caught else 0)
        if signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        if signal_number:
            raise SystemExit(128 + signal_number)
        return history

    def _report(self, bar: tqdm) -> dict[str, float]:
        row = {"iteration": self.iteration} | {name: total / n for name, (total, n) in self._sums.items()}
        self._sums = {}
        shown = ("rec_obs", "cyc_obs", "gen_obs", "critic_accuracy")
        bar.set_postfix({name: f"{row[name]:.3g}" for name in shown if name in row})
        if self._logs:
            self._logs["losses"].write(row)
        return row

    # -- the watch -------------------------------------------------------------
    def _draw_held_out(self, held_out: ObservedSpectra | None, number: int) -> dict[str, Any]:
        """Standardised spectra of both domains that scores are measured on, the same in the whole run."""
        if held_out is None or len(held_out) < LEAST_HELD_OUT:
            found = "none" if held_out is None else len(held_out)
            raise ValueError(
                f"a watch needs held_out, {LEAST_HELD_OUT} or more observed spectra that are not trained on, "
                f"but got {found}"
            )
        generator = torch.Generator().manual_seed(self.settings.seed)
        number = min(number, len(held_out))
        first = self._draw_first(number, generator)
        x_obs, weight_obs = held_out.rows(torch.arange(number))
        weight_synth: Tensor | float | None = first.get("weight_synth")
        if weight_synth is None:
            weight_synth = self.settings.flux_std / self.settings.synthetic_sigma
        return {"x_synth": first["x_synth"], "weight_synth": weight_synth, "x_obs": x_obs, "weight_obs": weight_obs}

    def _evaluate(self, watch: Watch) -> list[Verdict]:
        """Score the averaged weights, log the scores, and keep the state if it is the best."""
        s = self.settings
        measured: list[dict[str, float]] = [{}]
        if self.rank == 0 and self._held_out is not None:
            network = self.averaged_network().to(self.device)
            measured = [alignment_scores(network, seed=s.seed, **self._held_out)]
        if self.n_processes > 1:  # all are to come to the same verdict
            dist.broadcast_object_list(measured)
        scores = measured[0]
        verdicts = watch.see_scores(self.iteration, scores)
        if self._logs:
            codes = " ".join(verdict.code for verdict in verdicts)
            self._logs["scores"].write({"iteration": self.iteration, **scores, "verdicts": codes})
        if watch.is_best:
            self.save(BEST)
        return verdicts

    def _heed(self, verdicts: list[Verdict]) -> Verdict | None:
        """Warn of all verdicts; return one that says that the run is failing."""
        for verdict in verdicts if self.rank == 0 else ():
            warnings.warn(str(verdict), TrainingWarning, stacklevel=3)
        return next((verdict for verdict in verdicts if verdict.severity == "failing"), None)

    def _roll_back(self, why: str) -> None:
        """Go back to the best state, or the last one saved, with half the learning rates and other random numbers."""
        saved = self._saved_states()
        if not saved or self._rate <= 0.5**MOST_ROLLBACKS:
            reason = f"was rolled back {MOST_ROLLBACKS} times" if saved else "has no saved state to go back to"
            raise TrainingError(f"the run {reason}, and fails: {why}")
        failed, rate = self.iteration, 0.5 * self._rate
        # streams stay where they are, and the generator goes elsewhere: the same batches would fail the same way
        streams = [source.state_dict() for source in (self.synthetic, self.observed)]
        self._restore(self.read_state(saved[0]))
        for source, state in zip((self.synthetic, self.observed), streams, strict=True):
            source.load_state_dict(state)
        self._rate = rate
        self.generator.manual_seed(self.settings.seed + failed)
        warnings.warn(
            f"rolled back from iteration {failed} to {self.iteration}, with {rate:g} times the learning rates: {why}",
            TrainingWarning,
            stacklevel=3,
        )
        self.save()

    def _saved_states(self) -> list[Path]:
        """States of this run that it can go back to: the best one first."""
        # a best.pt that this run has not written may be another's
        best = self.watch is not None and self.watch.best is not None
        names = (BEST, CHECKPOINT) if best else (CHECKPOINT,)
        return [self.folder / name for name in names if (self.folder / name).exists()] if self.folder else []

    def _agree(self, signal_number: int) -> int:
        """The largest number of all processes, so that they stop at the same iteration."""
        if self.n_processes == 1:
            return signal_number
        number = torch.tensor(signal_number, device=self.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

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

    # -- checkpoints -----------------------------------------------------------
    def _stateful(self) -> dict:
        """All objects whose state the next iteration depends on."""
        parts = {
            "parts": self.parts,
            "optimizer": self.optimizer,
            "critic_optimizer": self.critic_optimizer,
            "prior_optimizer": self.prior_optimizer,
            "synthetic": self.synthetic,
            "observed": self.observed,
            "watch": self.watch,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint with everything that the next iteration depends on; without a folder, do nothing.

        Parameters
        ----------
        name : str, optional
            File in the folder of the run. Default: ``"checkpoint.pt"``, the one
            that a new `Trainer` resumes.

        Examples
        --------
        ::

            trainer.save("before_the_experiment.pt")
        """
        if self.folder is None or self.rank > 0:
            return
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        state |= {
            "iteration": self.iteration,
            "average": self.average,
            "generator": self.generator.get_state(),
            "sums": self._sums,
            "rate": self._rate,
            "settings": asdict(self.settings) | {"network": self.network.settings.to_dict()},
        }
        save_state(state, self.folder / name)

    def _load(self, folder: Path) -> None:
        try:
            state = self.read_state(folder / CHECKPOINT)
        except ModelFileError as error:
            way_out = "remove it to begin anew"
            if (folder / f"{CHECKPOINT}.previous").exists():
                way_out = f"to go on from the one before it, rename {CHECKPOINT}.previous to {CHECKPOINT}"
            raise ModelFileError(f"{error}; {way_out}") from error
        self._restore(state)
        log.info("resumed %s at iteration %d", folder / CHECKPOINT, self.iteration)

    def read_state(self, path: Path) -> dict:
        """Read a saved state of this run, without going there.

        Parameters
        ----------
        path : path
            ``checkpoint.pt`` or ``best.pt`` in its folder.

        Returns
        -------
        dict
            What `save` wrote.

        Raises
        ------
        ModelFileError
            If the file is damaged or that of something else.
        OtherRunError
            If it was made with other settings.

        Examples
        --------
        ::

            trainer.read_state(trainer.folder / "best.pt")["iteration"]
        """
        state = load_state(path)
        wanted = asdict(self.settings) | {"network": self.network.settings.to_dict()}
        if not isinstance(state.get("settings"), dict):
            raise ModelFileError(f"{path} is no checkpoint of a training: it holds {', '.join(map(str, state))}")
        then = asdict(TrainingSettings()) | state["settings"]  # an older run had the defaults of what it did not know
        different = sorted(k for k in wanted if then.get(k) != wanted[k])
        if different:
            raise OtherRunError(f"{path} was made with other settings: {', '.join(different)}; use another folder")
        if missing := sorted(self._stateful().keys() - state.keys()):
            raise OtherRunError(f"the run in {self.folder} was begun without {', '.join(missing)}; use another folder")
        self._check_state(state, path)
        return state

    def _check_state(self, state: dict, path: Path) -> None:
        """Raise before anything is taken from a state that is not one of this training."""
        for name, own in (("average", self.average), ("parts", self.parts.state_dict())):
            _check_weights(name, state.get(name), own, path)
        for name, part in self._stateful().items():
            if isinstance(part, torch.optim.Optimizer):
                _check_optimizer(name, state[name], part, path)
            elif not isinstance(state[name], dict):
                raise ModelFileError(f"{path}: {name} must be a dictionary, but is a {type(state[name]).__name__}")
        generator, sums = state.get("generator"), state.get("sums")
        checks = {
            "iteration": type(state.get("iteration")) is int and 0 <= state["iteration"] <= self.settings.n_iterations,
            "rate": type(state.get("rate")) is float and 0 < state["rate"] <= 1,
            "generator": _like(generator, self.generator.get_state()),
            "sums": isinstance(sums, dict) and all(map(_is_sum, sums.values())),
        }
        if wrong := [name for name, fine in checks.items() if not fine]:
            raise ModelFileError(f"{path}: {', '.join(wrong)} cannot be that of a training of these settings")

    def _restore(self, state: dict) -> None:
        try:
            for name, part in self._stateful().items():
                part.load_state_dict(state[name])
            self.generator.set_state(state["generator"])
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:  # torch's words for a state that is none
            raise ModelFileError(f"the checkpoint in {self.folder} cannot be resumed: {error}") from error
        self.average = {name: tensor.to(self.device) for name, tensor in state["average"].items()}
        self.iteration, self._rate, self._sums = state["iteration"], state["rate"], state["sums"]
        for table in self._logs.values():
            table.rewind(self.iteration)


def _like(given: object, own: Tensor) -> bool:
    if not isinstance(given, Tensor) or given.shape != own.shape:
        return False
    return given.dtype.is_floating_point == own.dtype.is_floating_point


def _is_sum(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(item, int | float) for item in value)


def _check_weights(name: str, given: object, own: dict[str, Tensor], path: str | os.PathLike) -> None:
    """Raise if weights are not those of networks of our sizes."""
    found = given if isinstance(given, dict) else {}
    if wrong := sorted(str(key) for key in own | found if key not in own or not _like(found.get(key), own[key])):
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ModelFileError(f"{path}: the {name} are not of these networks: {', '.join(wrong[:5])}{more}")


def _check_optimizer(name: str, given: object, own: torch.optim.Optimizer, path: str | os.PathLike) -> None:
    """Raise if a state of an optimizer is not that of our parameters and settings; rates may differ."""
    problem = ModelFileError(f"{path}: the state of {name} is not that of these networks")
    if not isinstance(given, dict) or not isinstance(given.get("state"), dict):
        raise problem
    groups, ours = given.get("param_groups"), own.state_dict()["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(ours) or not all(isinstance(group, dict) for group in groups):
        raise problem
    for group, known in zip(groups, ours, strict=True):
        if any(group[key] != known[key] for key in known.keys() & group.keys() - {"lr", "initial_lr"}):
            raise problem
    parameters = [parameter for group in own.param_groups for parameter in group["params"]]
    for number, entry in given["state"].items():
        if number not in range(len(parameters)) or not isinstance(entry, dict):
            raise problem
        if {"step", "exp_avg", "exp_avg_sq"} != entry.keys() or not all(
            isinstance(value, Tensor) and value.shape == (() if key == "step" else parameters[number].shape)
            for key, value in entry.items()
        ):
            raise problem


def _total(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Weighted sum of loss terms."""
    return reduce(add, (weights[name] * term for name, term in terms.items()))


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


@contextmanager
def _delayed_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of letting them cut an iteration; only a second Ctrl-C is not delayed.

    Schedulers send SIGTERM to every process, and so does ``torchrun``: it may come twice.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
