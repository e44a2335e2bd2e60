"""The log of a run: rows, resuming, TensorBoard."""

import sys

import numpy as np
import pytest

from cyclestarnet.training.logs import LossLog, read_log


def rows(*iterations):
    return [{"iteration": i, "rec_obs": 100 / i, "critic_obs": 0.5} for i in iterations]


def filled(folder, *iterations, **options):
    log = LossLog(folder, **options)
    for row in rows(*iterations):
        log.write(row)
    return log


def test_rows_come_back_as_numbers(tmp_path):
    table = read_log(filled(tmp_path / "new" / "run", 50, 100).path)
    np.testing.assert_array_equal(table["iteration"], [50, 100])
    np.testing.assert_array_equal(table["rec_obs"], [2.0, 1.0])


def test_a_second_log_appends_to_the_first(tmp_path):
    filled(tmp_path, 50)
    assert filled(tmp_path, 100).path.read_text().splitlines() == [
        "iteration,rec_obs,critic_obs", "50,2,0.5", "100,1,0.5"
    ]  # fmt: skip


def test_a_resumed_log_is_that_of_an_uninterrupted_run(tmp_path):
    killed = filled(tmp_path / "killed", 50, 100, 150, 200)  # the checkpoint is of iteration 120
    killed.rewind(120)
    for row in rows(150, 200, 250):
        killed.write(row)
    whole = filled(tmp_path / "whole", 50, 100, 150, 200, 250)
    assert killed.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("half", ["150,0.66", "150,0.66667,0.5", "15", "150,"])
def test_half_a_line_of_a_killed_process_is_dropped(tmp_path, half):
    log = filled(tmp_path, 50, 100)
    before = log.path.read_bytes()
    with log.path.open("a") as file:
        file.write(half)
    assert len(read_log(log.path)["iteration"]) == 2
    log.rewind(200)
    assert log.path.read_bytes() == before


def test_a_run_that_begins_anew_replaces_the_log(tmp_path):
    filled(tmp_path, 50, 100, 150)  # killed before the first checkpoint
    assert filled(tmp_path, 50, 100).path.read_bytes() == filled(tmp_path / "whole", 50, 100).path.read_bytes()


def test_rewind_before_the_first_row_is_no_error(tmp_path):
    log = LossLog(tmp_path)
    log.rewind(0)
    assert not log.path.exists()


def test_a_new_term_gets_a_column_and_earlier_rows_are_empty_there(tmp_path):
    log = filled(tmp_path, 50)
    log.write({"iteration": 100, "rec_obs": 1.0, "latent": 0.3, "critic_obs": None})
    table = read_log(log.path)
    np.testing.assert_array_equal(table["latent"], [np.nan, 0.3])
    np.testing.assert_array_equal(table["critic_obs"], [0.5, np.nan])


def test_words_stay_words(tmp_path):
    log = LossLog(tmp_path, name="scores")
    log.write({"iteration": 10, "verdict": "collapse", "distance": float("inf")})
    table = read_log(tmp_path / "scores.csv")
    assert list(table["verdict"]) == ["collapse"]
    assert table["distance"][0] == np.inf


def test_tensorboard_holds_every_number_at_its_iteration(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = filled(tmp_path, 50, 100, 150, tensorboard=True)
    log.rewind(100)
    for row in rows(150, 200):
        log.write(row)
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "losses")).Reload()
    found = [(e.step, e.value) for e in events.Scalars("rec_obs")]
    assert found == [(i, pytest.approx(100 / i)) for i in (50, 100, 150, 200)]


def test_tensorboard_that_is_missing_is_named_before_the_first_row(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install .*cyclestarnet\[training\]"):
        LossLog(tmp_path, tensorboard=True)
