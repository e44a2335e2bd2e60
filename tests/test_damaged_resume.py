"""Checkpoints of other things, or damaged ones, are refused before anything is taken from them."""

from copy import deepcopy

import pytest
import torch
from tiny import tiny_trainer

from cyclestarnet import ModelFileError
from cyclestarnet.networks.checkpoint import load_state, save_state
from cyclestarnet.training.emulators import load_emulator


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny_trainer(folder)
    for _ in range(2):
        trainer.step()
    trainer.save()
    return load_state(folder / "checkpoint.pt")


def test_what_was_saved_is_resumed(begun, tmp_path):
    save_state(begun, tmp_path / "checkpoint.pt")
    assert tiny_trainer(tmp_path).iteration == 2


CHANGES = {
    "something else": (lambda state: [state.pop(name) for name in list(state)[1:]], "is no checkpoint of a training"),
    "settings": (lambda state: state.update(settings=[1]), "is no checkpoint of a training"),
    "weights of other sizes": (
        lambda state: state["average"].update({next(iter(state["average"])): torch.ones(3)}),
        "the average are not of these networks",
    ),
    "weights that are missing": (lambda state: state["parts"].popitem(), "the parts are not of these networks"),
    "texts for weights": (lambda state: state.update(average="heavy"), "the average are not of these networks"),
    "negative iteration": (lambda state: state.update(iteration=-1), "iteration cannot be that of a training"),
    "iteration beyond the end": (lambda state: state.update(iteration=10**9), "iteration cannot be"),
    "rate": (lambda state: state.update(rate=float("nan")), "rate cannot be"),
    "sums": (lambda state: state.update(sums={"a": 3}), "sums cannot be"),
    "generator": (lambda state: state.update(generator=torch.zeros(3, dtype=torch.uint8)), "generator cannot be"),
    "optimizer": (lambda state: state.update(optimizer={"state": {}, "param_groups": []}), "the state of optimizer"),
    "momenta of other sizes": (
        lambda state: state["critic_optimizer"]["state"][0].update(exp_avg=torch.ones(1, 1)),
        "the state of critic_optimizer",
    ),
    "other betas": (
        lambda state: state["optimizer"]["param_groups"][0].update(betas=(0.0, 0.0)),
        "the state of optimizer",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=list(CHANGES))
def test_state_of_something_else_is_refused(begun, tmp_path, change, message):
    state = deepcopy(begun)
    change(state)
    save_state(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelFileError, match=rf"checkpoint\.pt.*{message}"):
        tiny_trainer(tmp_path)


def test_generator_that_torch_refuses(begun, tmp_path):
    state = deepcopy(begun)
    state["generator"].fill_(255)
    save_state(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelFileError, match=r"cannot be resumed"):
        tiny_trainer(tmp_path)


def test_start_from_something_else(begun, tmp_path):
    save_state({"weights": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ModelFileError, match=r"other\.pt: the parts are not of these networks"):
        tiny_trainer().start_from(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("emulator", {"layers.0.weight": torch.full((2, 2), float("nan")), "layers.0.bias": torch.ones(2)}),
        ("emulator", {"layers.0.weight": torch.ones(2, 2)}),
        ("emulator", 3),
        ("labels", {"names": ["teff"], "lower": [1], "upper": [0]}),
        ("labels", {"names": 7}),
    ],
)
def test_emulator_of_something_else(tmp_path, key, value):
    state = {"labels": {"names": ["teff", "logg"], "lower": [0, 0], "upper": [1, 1]}, "emulator": {}} | {key: value}
    save_state(state, tmp_path / "emulator.pt")
    with pytest.raises(ModelFileError, match=r"emulator\.pt holds no emulator"):
        load_emulator(tmp_path / "emulator.pt")
