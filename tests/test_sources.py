"""Sources of training spectra: what is standardised, what is drawn how often, and how streams resume."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from cyclestarnet.exceptions import CycleStarNetWarning, SpectrumError
from cyclestarnet.training.datasets import ObservedSpectra, StoredSynthetic, SyntheticSpectra
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra, StreamedSynthetic

SETTINGS = TrainingSettings(flux_mean=0.9, flux_std=0.1)
N_PIXELS = 5


class Table:
    """Spectra that tell their row: flux i/1000 in all pixels, sigma 0.01, labels (i, -i)."""

    n_pixels, block_rows = N_PIXELS, 7

    def __init__(self, n=50, *, errors=True):
        self.n_spectra = n
        self.flux = np.repeat(np.arange(n) / 1000, N_PIXELS).reshape(n, N_PIXELS).astype(np.float32)
        self.sigma, self.mask = np.full_like(self.flux, 0.01), np.zeros(self.flux.shape, dtype=bool)
        self.labels = np.outer(np.arange(n), [1.0, -1.0]).astype(np.float32)
        self.errors, self.broken, self.n_read, self.n_quick = errors, False, 0, np.inf
        self.waits = threading.Event()

    def read(self, start, stop):
        if self.broken:
            raise OSError("the disk is on fire")
        self._wait_as_slow_disks_do()
        self.n_read += stop - start
        part = slice(start, stop)
        return (self.flux[part], self.sigma[part], self.mask[part]) if self.errors else (self.flux[part], None, None)

    def _wait_as_slow_disks_do(self):
        """After ``n_quick`` rows a block takes longer than anybody wants to wait for it, but not for ever."""
        reader, give_up = threading.current_thread(), time.monotonic() + 120
        while self.n_read >= self.n_quick and not reader.cancelled and time.monotonic() < give_up:
            self.waits.set()
            time.sleep(0.001)


def rows_of(flux):
    """Row numbers of spectra of a `Table`."""
    return np.rint((flux[:, 0].numpy() * 0.1 + 0.9) * 1000).astype(int).tolist()


def drawn(source, n_draws, n=6):
    return [row for _ in range(n_draws) for row in rows_of(source.draw(n)[0])]


def stream(table=None, settings=SETTINGS, **options):
    return StreamedSpectra(table or Table(), settings, **({"window_rows": 14} | options))


def observed(sigma, flux=None, mask=None, ignore=None, **changes):
    sigma = np.atleast_2d(sigma)
    flux = np.full(sigma.shape, 0.9) if flux is None else flux
    return ObservedSpectra(flux, sigma, np.zeros(sigma.shape, bool) if mask is None else mask,
                           TrainingSettings(**changes), ignore=ignore)  # fmt: skip


# -- standardised ------------------------------------------------------------------
def test_large_and_impossible_errors_mask_pixels():
    weight = observed([0.01, 0.05, 0.0501, np.nan, np.inf, 0.0, -0.01]).weight
    assert (weight[0] > 0).tolist() == [True, True, False, False, False, False, False]


def test_errors_are_floored_and_standardised():
    weight = observed([0.001, 0.005, 0.02], flux_std=0.1).weight[0].numpy()
    np.testing.assert_allclose(weight, [20, 20, 5], rtol=1e-6)


def test_flux_is_standardised():
    data = observed([0.01, 0.01], flux=np.array([[0.9, 1.1]]), flux_mean=0.95, flux_std=0.1)
    np.testing.assert_allclose(data.flux[0].numpy(), [-0.5, 1.5], rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e10, 1e300, -3.0, np.nan, np.inf])
def test_masked_flux_does_not_matter(value):
    """Neither to the networks' inputs nor to the weights of the losses."""
    mask = np.array([[False, True, False]])
    clean, spoilt = (observed([0.01] * 3, flux=np.array([[0.9, v, 0.8]]), mask=mask) for v in (1.0, value))
    assert torch.equal(clean.flux, spoilt.flux)
    assert torch.equal(clean.weight, spoilt.weight)
    assert spoilt.weight[0, 1] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_flux_that_is_not_finite_is_continuum_without_weight(value):
    data = observed([0.01, 0.01], flux=np.array([[0.9, value]]), flux_mean=0.8, flux_std=0.1)
    np.testing.assert_allclose(data.flux[0].numpy(), [1, 2], rtol=1e-5)
    assert data.weight[0, 1] == 0


def test_ignored_pixels_are_bad_in_every_spectrum():
    data = observed(np.full((3, 4), 0.01), ignore=[False, True, False, False], flux_mean=0.8, flux_std=0.1)
    assert (data.weight > 0).tolist() == [[True, False, True, True]] * 3
    np.testing.assert_allclose(data.flux[:, 1].numpy(), 2, rtol=1e-5)


def test_ignore_must_have_the_pixels():
    with pytest.raises(ValueError, match=r"ignore must have the shape \(3,\), True = ignore .* has \(2,\)"):
        observed([0.01] * 3, ignore=[True, False])


@pytest.mark.parametrize("name", ["flux", "mask"])
def test_shapes_must_agree(name):
    with pytest.raises(ValueError, match="must share a shape"):
        observed([0.01] * 3, **{name: np.zeros((1, 4), bool)})


def test_arrays_are_not_changed():
    arrays = [np.array([[0.9, 5.0]]), np.array([[0.001, 0.2]]), np.array([[False, True]])]
    before = [array.copy() for array in arrays]
    ObservedSpectra(*arrays, SETTINGS)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


# -- spectra without a good pixel --------------------------------------------------------
def test_spectra_without_good_pixels_are_left_out_and_named():
    sigma = np.array([[0.01, 0.01], [-0.01, np.inf], [0.02, 0.06], [np.nan, 0.0]])
    with pytest.warns(CycleStarNetWarning, match=r"2 of 4 spectra .* no good pixel.* left out: rows 1, 3$"):
        data = observed(sigma, flux_std=0.1)
    np.testing.assert_allclose(data.weight.numpy(), [[10, 10], [5, 0]], rtol=1e-6)


def test_a_spectrum_noisier_than_the_limit_is_kept():
    data = observed(np.array([[0.01, 0.01], [0.06, 0.08]]), flux_std=0.1)
    np.testing.assert_allclose(data.weight.numpy(), [[10, 10], [10 / 6, 10 / 8]], rtol=1e-6)


def test_no_good_pixel_at_all_is_an_error():
    with pytest.raises(SpectrumError, match=r"all 2 spectra .* check .* mask, errors and sigma_max"):
        observed(np.full((2, 3), np.inf))


def test_no_spectrum_at_all_is_an_error():
    with pytest.raises(SpectrumError, match="there must be one spectrum or more"):
        observed(np.ones((0, 3)))


def test_stream_leaves_out_spectra_without_good_pixels():
    table = Table()
    table.mask[13] = True
    with pytest.warns(CycleStarNetWarning, match="1 of 50 spectra .* rows 13$"):
        source = stream(table)
    with source:
        assert len(source) == 49
        assert sorted(drawn(source, 7, 7)) == [row for row in range(50) if row != 13]


def test_observed_spectra_need_errors():
    with pytest.raises(SpectrumError, match="need errors and masks; open the file with domain='observed'"):
        stream(Table(errors=False))


# -- in memory ------------------------------------------------------------------------
def test_memory_and_stream_hold_the_same_values():
    table, rng = Table(), np.random.default_rng(1)
    table.sigma[:] = rng.uniform(0.001, 0.06, table.sigma.shape)
    table.mask[:, 1:] = rng.random((50, N_PIXELS - 1)) < 0.2
    table.sigma[:, 0], table.flux[4, 2], table.flux[5, 2] = 0.01, np.nan, np.inf
    ignore = np.arange(N_PIXELS) == 3
    stored = ObservedSpectra.from_table(table, SETTINGS, ignore=ignore)
    with stream(table, ignore=ignore) as source:
        flux, weight = source.draw(50)
    order = rows_of(flux)
    assert torch.equal(flux, stored.flux[order])
    assert torch.equal(weight, stored.weight[order])


@pytest.mark.parametrize("make", [ObservedSpectra.from_table, StreamedSpectra])
def test_rows_can_be_chosen(make):
    source = make(Table(), SETTINGS, rows=np.array([3, 49, 20, 21]))
    flux, _ = source.draw(200, torch.Generator().manual_seed(1))
    assert len(source) == 4
    assert set(rows_of(flux)) == {3, 20, 21, 49}


@pytest.mark.parametrize("rows", [[], [1, 1], [-1, 2], [50], [0.5], [[1, 2]], [True] * 50], ids=str)
def test_impossible_rows_are_refused(rows):
    with pytest.raises(ValueError, match="rows must be"):
        stream(rows=rows)


def test_given_rows_are_given():
    flux, weight = ObservedSpectra.from_table(Table(), SETTINGS).rows(torch.tensor([7, 3]))
    assert rows_of(flux) == [7, 3]
    assert weight.shape == flux.shape


def test_draws_from_memory_follow_the_generator():
    source = ObservedSpectra.from_table(Table(), SETTINGS)
    first, second, other = (source.draw(20, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


# -- the order of a stream ---------------------------------------------------------------
@pytest.mark.parametrize("window_rows", [1, 14, 20, 1000])
@pytest.mark.parametrize("n", [1, 49, 50])
def test_every_spectrum_comes_once_per_epoch(window_rows, n):
    with stream(Table(n), window_rows=window_rows) as source:
        rows = drawn(source, n, 3)  # three epochs, in batches that cross windows and epochs
    for epoch in range(3):
        assert sorted(rows[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_a_batch_may_be_larger_than_an_epoch():
    with stream() as source:
        counts = np.bincount(drawn(source, 1, 120), minlength=50)
    assert set(counts) == {2, 3}


def test_every_epoch_has_its_own_order_of_blocks():
    with stream(Table(700)) as source:
        first, second = ({row // 7 for row in drawn(source, 1, 700)[:14]} for _ in range(2))
    assert first != second


def test_every_window_has_its_own_order_of_rows():
    """Four windows of one block each, in two epochs of two."""
    with stream(Table(14), window_rows=7) as source:
        orders = {tuple(row % 7 for row in drawn(source, 1, 7)) for _ in range(4)}
    assert len(orders) == 4


def test_windows_mix_rows_of_blocks_from_anywhere():
    """Two blocks per window; among their 14 rows, neighbours in the file are rarely neighbours in the stream."""
    with stream(Table(700)) as source:
        rows = np.array(drawn(source, 50, 14)).reshape(50, 14)
    blocks = [np.unique(window // 7) for window in rows]
    assert all(len(pair) == 2 for pair in blocks)
    assert np.mean([high - low for low, high in blocks]) > 20  # 33.7 for random pairs of 100
    assert np.mean(np.diff(rows, axis=1) == 1) < 0.15


def test_same_seed_same_order():
    with stream() as first, stream() as second:
        assert drawn(first, 20) == drawn(second, 20)


def test_other_seed_other_order():
    with stream() as first, stream(settings=TrainingSettings(flux_mean=0.9, flux_std=0.1, seed=1)) as second:
        assert drawn(first, 8) != drawn(second, 8)


def test_both_domains_are_not_paired_row_by_row():
    with stream() as first, StreamedSynthetic(Table(), SETTINGS, window_rows=14) as second:
        assert drawn(first, 8) != drawn(second, 8)


# -- the state of a stream ----------------------------------------------------------------
@pytest.mark.parametrize("n_before", [0, 1, 5, 14, 16, 49, 50, 73, 500])
def test_resumed_stream_equals_an_uninterrupted_one(n_before):
    """At the start, within a window, at its end, at the end of an epoch, and later."""
    with stream() as whole, stream() as resumed:
        if n_before:
            whole.draw(n_before)
        resumed.draw(3)
        resumed.load_state_dict(whole.state_dict())
        for _ in range(4):
            for a, b in zip(whole.draw(9), resumed.draw(9), strict=True):
                assert torch.equal(a, b)


def test_batches_do_not_change_the_order():
    with stream() as first, stream() as second:
        assert drawn(first, 12, 5) == drawn(second, 4, 15)


def test_state_is_plain(tmp_path):
    with stream() as source:
        source.draw(11)
        torch.save(source.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == source.state_dict()


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"table": Table(49)}, "n_spectra"),
        ({"settings": TrainingSettings(seed=4)}, "seed"),
        ({"window_rows": 21}, "window"),
    ],
)
def test_state_of_another_stream_is_refused(other, name):
    with pytest.raises(ValueError, match=f"state is that of another stream of spectra: {{'{name}'"):
        stream(**other).load_state_dict(stream().state_dict())


def test_sources_in_memory_keep_no_state():
    source = ObservedSpectra.from_table(Table(), SETTINGS)
    assert source.state_dict() == {}
    source.load_state_dict({})
    with pytest.raises(ValueError, match="ObservedSpectra keeps none: the run was begun with a streamed source"):
        source.load_state_dict(stream().state_dict())


# -- the thread of a stream ------------------------------------------------------------------
def test_two_windows_are_read_and_no_more():
    table = Table(700)
    with stream(table) as source:
        table.n_read = 0
        source.draw(1)
        source._reader._ahead.join()
        assert table.n_read == 2 * 14


def draw_until_error(source, rows):
    while True:
        rows += drawn(source, 1)


def test_disk_error_is_raised_by_the_draw_and_loses_nothing():
    table, rows = Table(), []
    with stream(table) as source, stream() as whole:
        rows += drawn(source, 1)
        table.broken = True
        with pytest.raises(OSError, match="the disk is on fire"):
            draw_until_error(source, rows)
        table.broken = False
        rows += drawn(source, 5)
        assert rows == drawn(whole, 1, len(rows))


def test_failed_draw_does_not_move_on():
    table = Table()
    with stream(table) as source:
        source.draw(10)
        table.broken = True
        with pytest.raises(OSError, match="on fire"):
            source.draw(50)
        assert source.state_dict()["position"] == 10


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("window")]


@pytest.fixture
def slow():
    """A table of two windows, of which the second is still being read when somebody has drawn from the first."""
    table = Table(140)
    table.n_quick = 140 + 70  # a source goes through the whole table when it is made
    return table


def start_reading(table):
    source = stream(table, window_rows=70)
    source.draw(1)
    assert table.waits.wait(120)
    assert len(threads()) == 1
    return source


def test_close_stops_the_thread_within_its_window(slow):
    """After the block of seven rows that it is at."""
    start_reading(slow).close()
    assert threads() == []
    assert slow.n_read == 140 + 70 + 7


def test_forgotten_stream_stops_its_thread(slow):
    source = start_reading(slow)
    del source
    assert threads() == []


def test_with_block_stops_the_thread(slow):
    with start_reading(slow):
        pass
    assert threads() == []


def test_closed_stream_goes_on_with_the_next_draw():
    with stream() as whole, stream() as source:
        rows = drawn(source, 2)
        source.close()
        assert rows + drawn(source, 2) == drawn(whole, 4)


def test_window_must_hold_something():
    with pytest.raises(ValueError, match="window_rows must be positive, but is 0"):
        stream(window_rows=0)


PROGRAM = """
import os, sys
import h5py, numpy as np
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra
from cyclestarnet.io import TrainingSet

with h5py.File(sys.argv[1], "w") as file:
    for kind, value in (("spectra", 1.0), ("spectra_err", 0.01), ("spectra_msk", 1)):
        file[f"{kind} train"] = np.full((2000, 500), value)
source = StreamedSpectra(TrainingSet(sys.argv[1]), TrainingSettings(), window_rows=200)
for _ in range(5):
    source.draw(150)  # a thread is reading most of the time
    child = os.fork()
    if child == 0:
        source.draw(450)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
source.draw(201)
print("done")  # and ends in the middle of a window, without close
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_and_the_end_of_the_program_do_not_hang(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "a.h5")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


# -- synthetic spectra from an emulator ------------------------------------------------------------
def test_synthetic_spectra_are_standardised(line_family, rng):
    settings, pool = TrainingSettings(flux_mean=0.9, flux_std=0.1), line_family.draw(20, rng)
    emulator = lambda labels: torch.from_numpy(line_family(labels))  # noqa: E731
    flux, labels = SyntheticSpectra(emulator, pool, settings).draw(50, torch.Generator().manual_seed(1))
    drawn = labels.numpy() * pool.std(0, ddof=1) + pool.mean(0)
    assert np.abs(drawn[:, None] - pool).max(2).min(1).max() < 1e-3  # each is one of the pool
    np.testing.assert_allclose(flux.numpy(), (line_family(drawn) - 0.9) / 0.1, atol=1e-4)


def pooled(weights=None, pool=((1.0,), (2.0,), (3.0,), (4.0,))):
    return SyntheticSpectra(lambda labels: labels, pool, TrainingSettings(flux_mean=0, flux_std=1), weights=weights)


def test_weights_are_the_frequencies():
    """20 000 draws: the standard deviations of the four frequencies are 0.0035 and less."""
    weights = np.array([1.0, 0.0, 3.0, 6.0])
    flux, _ = pooled(weights).draw(20_000, torch.Generator().manual_seed(1))
    frequency = np.bincount(flux[:, 0].int(), minlength=5)[1:] / 20_000
    np.testing.assert_allclose(frequency, weights / 10, atol=0.012)
    assert frequency[1] == 0


def test_labels_are_rendered_as_they_are_drawn(line_family, rng):
    emulator = lambda labels: torch.from_numpy(line_family(labels))  # noqa: E731
    source = SyntheticSpectra(emulator, line_family.draw(20, rng), SETTINGS)
    flux, labels = source.draw(5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(source.render(labels), flux, rtol=0, atol=1e-4)


def test_weights_do_not_change_the_scale_of_the_labels():
    weighted, plain = pooled([1, 0, 0, 5]), pooled()
    assert torch.equal(weighted.label_mean, plain.label_mean)
    assert torch.equal(weighted.label_std, plain.label_std)


@pytest.mark.parametrize(
    "weights", [[1, 1, 1], [1, 1, 1, -1], [1, np.nan, 1, 1], [0, 0, 0, 0], [[1, 1, 1, 1]]], ids=str
)
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be finite, not negative and not all 0"):
        pooled(weights)


@pytest.mark.parametrize("pool", [[1.0, 2.0], np.zeros((0, 2)), [[1.0, np.nan]]], ids=str)
def test_impossible_pools_are_refused(pool):
    with pytest.raises(ValueError, match=r"label_pool must be finite, of shape \(n_pool, n_labels\)"):
        pooled(pool=pool)


@pytest.mark.parametrize("pool", [[[4.0, 1.0], [6.0, 1.0]], [[4.0, 1.0]]])
def test_label_that_never_changes_is_zero(pool):
    _, labels = pooled(pool=pool).draw(20, torch.Generator().manual_seed(1))
    assert torch.all(labels[:, 1] == 0)


# -- stored synthetic spectra -----------------------------------------------------------------------
def synthetic(kind, table=None, **options):
    table = table or Table(errors=False)
    return (StoredSynthetic.from_table if kind == "memory" else StreamedSynthetic)(table, SETTINGS, **options)


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_stored_labels_are_those_of_the_spectra_and_standardised(kind):
    flux, labels = synthetic(kind).draw(40, torch.Generator().manual_seed(1))
    rows = np.array(rows_of(flux))
    scaled = (rows - 24.5) / np.arange(50).std(ddof=1)
    np.testing.assert_allclose(labels.numpy(), np.stack([scaled, -scaled], 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_stored_flux_is_standardised_by_the_settings(kind):
    table = Table(errors=False)
    flux, _ = synthetic(kind, table).draw(30, torch.Generator().manual_seed(1))
    np.testing.assert_allclose(flux.numpy(), (table.flux[rows_of(flux)] - 0.9) / 0.1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_label_scale_can_be_that_of_another_set(kind):
    source = synthetic(kind, label_scale=([0.0, 0.0], [2.0, 4.0]))
    flux, labels = source.draw(10, torch.Generator().manual_seed(1))
    np.testing.assert_allclose(labels.numpy(), np.outer(rows_of(flux), [0.5, -0.25]), rtol=1e-5)
    assert source.label_std.tolist() == [2, 4]


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_labels_of_unused_rows_do_not_enter_the_scale(kind):
    assert synthetic(kind, rows=[1, 3]).label_mean.tolist() == [2, -2]


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_stored_spectra_may_have_no_labels(kind):
    table = Table(errors=False)
    table.labels = None
    source = synthetic(kind, table)
    flux, labels = source.draw(3, torch.Generator().manual_seed(1))
    assert flux.shape == (3, N_PIXELS)
    assert labels is source.label_mean is None


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_stored_spectra_that_are_not_finite_are_left_out(kind):
    table = Table(errors=False)
    table.flux[11, 2], table.labels[30, 1] = np.nan, np.inf
    with pytest.warns(CycleStarNetWarning, match="2 of 50 spectra .* not finite, and are left out: rows 11, 30$"):
        source = synthetic(kind, table)
    flux, labels = source.draw(300, torch.Generator().manual_seed(1))
    assert len(source) == 48
    assert not {11, 30} & set(rows_of(flux))
    assert torch.isfinite(labels).all()


def test_labels_none_of_which_is_finite_are_named():
    with pytest.raises(SpectrumError, match=r"all 4 spectra .* check flux and labels"):
        StoredSynthetic(np.ones((4, 3)), np.full((4, 2), np.nan), SETTINGS)


def test_stored_spectra_come_from_arrays():
    table = Table()
    from_arrays, from_table = StoredSynthetic(table.flux, table.labels, SETTINGS), synthetic("memory")
    assert torch.equal(from_arrays.flux, from_table.flux)
    assert torch.equal(from_arrays.labels, from_table.labels)


@pytest.mark.parametrize("labels", [np.zeros((3, 2)), np.zeros(4)])
def test_stored_arrays_must_fit(labels):
    with pytest.raises(ValueError, match=r"flux must be \(n, n_pixels\) and labels \(n, n_labels\)"):
        StoredSynthetic(np.ones((4, 6)), labels, SETTINGS)


# -- devices -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "make",
    [
        lambda: ObservedSpectra.from_table(Table(), SETTINGS),
        lambda: synthetic("memory"),
        lambda: synthetic("stream"),
        lambda: stream(),
        lambda: SyntheticSpectra(nn.Linear(2, N_PIXELS), Table().labels, SETTINGS),
    ],
    ids=["observed", "stored", "streamed synthetic", "streamed", "emulator"],
)
def test_draws_are_on_the_device(make):
    """The device "meta" has no values; it is there on every computer."""
    source = make()
    assert source.to("meta") is source
    flux, other = source.draw(4, torch.Generator().manual_seed(1))
    assert flux.shape == (4, N_PIXELS)
    assert flux.device.type == other.device.type == "meta"


def test_emulator_of_the_caller_stays_where_it_is():
    emulator = nn.Linear(2, N_PIXELS)
    SyntheticSpectra(emulator, Table().labels, SETTINGS).to("meta")
    assert emulator.weight.device.type == "cpu"
