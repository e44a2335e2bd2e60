"""Chains of posteriors that are known in closed form, and files of chains that end in many ways."""

import signal
import sys

import h5py
import numpy as np
import pytest
from deaths import DieAtCall, lives

from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.fitting.chains import Chain, autocorrelation_time
from cyclestarnet.fitting.sampling import sample_posterior
from cyclestarnet.pipeline.chains import ChainFile

emcee = pytest.importorskip("emcee")

MEAN = np.array([4600.0, 2.0, -0.3])
SIZE = np.array([30.0, 0.1, 0.02])
COVARIANCE = np.array([[1, 0.8, 0.3], [0.8, 1, -0.1], [0.3, -0.1, 1]]) * np.outer(SIZE, SIZE)
PRECISION = np.linalg.inv(COVARIANCE)


def gaussian(positions):
    return -0.5 * np.einsum("ni,ij,nj->n", positions - MEAN, PRECISION, positions - MEAN)


def standard(positions):
    return -0.5 * (positions**2).sum(1)


def sample(log_posterior=gaussian, *, seed=1, centre=MEAN, covariance=COVARIANCE, lower=None, upper=None, **options):
    """100 steps within 20 sigma of the centre, unless told otherwise."""
    reach = 20 * np.sqrt(np.diag(covariance))
    lower, upper = centre - reach if lower is None else lower, centre + reach if upper is None else upper
    options = {"max_steps": 100} | options
    return sample_posterior(log_posterior, lower, upper, centre, covariance, rng=np.random.default_rng(seed), **options)


# an approximation that is far too narrow: such chains need more than a hundred steps
NARROW = {"covariance": 1e-4 * COVARIANCE, "lower": MEAN - 20 * SIZE, "upper": MEAN + 20 * SIZE}

BAD = NARROW | {"centre": MEAN + 3 * SIZE}


def sample_one(log_posterior=standard, **options):
    """The same of one parameter, around 0 and within -10 and 10."""
    options = {"lower": [-10.0], "upper": [10.0], "max_steps": 4000, "n_walkers": 8} | options
    return sample(log_posterior, centre=np.zeros(1), covariance=np.eye(1), **options)


def n_independent(chain):
    return chain.n_walkers * chain.n_steps / chain.autocorrelation_time.max()


def assert_equal(first, second):
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(second, name), err_msg=name)


@pytest.fixture(scope="module")
def long_chain():
    """About 2000 independent samples."""
    return sample(max_steps=6000, n_walkers=32)


# -- the right distribution ----------------------------------------------------------------
def test_mean_is_that_of_the_posterior(long_chain):
    deviation = (long_chain.samples.mean(0) - MEAN) / SIZE
    assert (np.abs(deviation) < 4 / np.sqrt(n_independent(long_chain))).all()


def test_covariance_is_that_of_the_posterior(long_chain):
    difference = (np.cov(long_chain.samples.T) - COVARIANCE) / np.outer(SIZE, SIZE)
    assert (np.abs(difference) < 4 * np.sqrt(2 / n_independent(long_chain))).all()


def test_log_posterior_belongs_to_the_samples():
    chain = sample(**NARROW, max_steps=500)
    assert chain.thin > 1
    np.testing.assert_allclose(chain.log_posterior, gaussian(chain.samples), rtol=1e-9, atol=1e-9)


def assert_half_normal(chain):
    """Mean and variance of |x| of a standard normal x."""
    x, error = chain.samples[:, 0], 4 / np.sqrt(n_independent(chain))
    assert x.min() >= 0
    assert x.mean() == pytest.approx(np.sqrt(2 / np.pi), abs=error)
    assert x.var() == pytest.approx(1 - 2 / np.pi, abs=error)


def test_gaussian_that_is_cut_at_a_bound():
    chain = sample_one(lower=[0.0])
    assert_half_normal(chain)
    assert chain.n_nan == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_positions_without_a_density_count_as_impossible(value):
    chain = sample_one(lambda x: np.where(x[:, 0] < 0, value, standard(x)))
    assert_half_normal(chain)
    assert chain.n_nan > 100


def test_density_is_asked_only_inside_the_bounds():
    asked = []
    sample(lambda x: asked.append(x) or gaussian(x), lower=MEAN - 0.5 * SIZE, upper=MEAN + SIZE)
    asked = np.concatenate(asked)
    assert len(asked) > 200
    assert (asked >= MEAN - 0.5 * SIZE).all()
    assert (asked <= MEAN + SIZE).all()


def test_burn_in_is_left_out():
    """Walkers that start 30 sigma away, and end in the right place."""
    chain = sample(centre=MEAN - 30 * SIZE, lower=MEAN - 40 * SIZE, upper=MEAN + 40 * SIZE, max_steps=2000)
    assert (np.abs(chain.samples - MEAN) < 5 * SIZE).all()


# -- convergence ------------------------------------------------------------------------------
def test_sampling_stops_at_50_autocorrelation_times(long_chain):
    assert long_chain.converged
    assert 50 * long_chain.autocorrelation_time.max() < long_chain.n_steps < 300
    assert 0.5 < long_chain.lowest_acceptance < long_chain.acceptance_fraction < 1


def test_too_short_a_chain_is_not_converged():
    chain = sample(max_steps=50)
    assert not chain.converged
    assert chain.n_steps == 50


def test_autocorrelation_time_of_very_few_steps_is_not_known():
    assert np.isnan(sample(max_steps=5).autocorrelation_time).all()


def test_two_islands_never_converge():
    """Walkers of either island mix well among themselves: only their distance from the others tells."""
    islands = sample_one(lambda x: -0.5 * ((np.abs(x[:, 0]) - 6) / 0.02) ** 2, max_steps=1500, n_walkers=12)
    assert 0 < (islands.samples < 0).mean() < 1
    assert not islands.converged


def test_walker_that_never_moves_is_noticed(caplog):
    """Its start is, by mistake, better than everything else."""
    calls = []

    def one_stuck(x):
        calls.append(len(x))
        return standard(x) + 1e9 * ((np.arange(len(x)) == 0) & (len(calls) == 1))

    chain = sample_one(one_stuck, max_steps=2000)
    assert (chain.lowest_acceptance, chain.converged) == (0, False)
    assert "1 of 8 walkers never moved" in caplog.text


@pytest.mark.parametrize("a", [0.5, 0.9])
def test_autocorrelation_time_of_an_autoregressive_chain(rng, a):
    """x' = a x + noise has (1 + a) / (1 - a)."""
    chain = np.zeros((20000, 100, 1))
    for k in range(1, len(chain)):
        chain[k] = a * chain[k - 1] + rng.normal(size=(100, 1))
    assert autocorrelation_time(chain)[0] == pytest.approx((1 + a) / (1 - a), rel=0.05)


def test_autocorrelation_time_of_standing_walkers_is_not_known():
    assert np.isnan(autocorrelation_time(np.ones((100, 4, 2)))).all()


def test_autocorrelation_time_of_derived_numbers_is_in_steps():
    """Draws that are 10 steps apart, each five times in a row: 50 steps."""
    draws = np.repeat(np.random.default_rng(1).normal(size=(4000, 4)), 5, axis=0)
    chain = Chain(draws.reshape(-1, 1), np.zeros(draws.size), 0.2, np.ones(1), True, 200_000, 10, 4, 0.2, 0)
    assert chain.autocorrelation_time_of(draws.ravel()) == pytest.approx(50, rel=0.1)


def test_autocorrelation_time_of_derived_numbers_is_at_least_the_step_between_draws():
    """Numbers that alternate would have a shorter one."""
    draws = np.random.default_rng(1).normal(size=(2000, 4)) * 0.1 + (-1.0) ** np.arange(2000)[:, None]
    chain = Chain(draws.reshape(-1, 1), np.zeros(draws.size), 0.2, np.ones(1), True, 20_000, 10, 4, 0.2, 0)
    assert chain.autocorrelation_time_of(draws.ravel()) == 10


# -- how long it takes -----------------------------------------------------------------------------
def watched(**options):
    told = []
    return sample(watch=told.append, **options), told


def test_progress_is_told_before_the_first_step_and_after_each():
    _, told = watched(max_steps=30)
    assert [progress.n_steps for progress in told] == list(range(31))
    assert all(progress.seconds_per_step > 0 for progress in told)


@pytest.mark.parametrize("options", [{}, NARROW])
def test_expected_length_is_about_right_at_half_time(options):
    chain, told = watched(max_steps=20_000, **options)
    assert chain.converged
    assert told[chain.n_steps // 2].expected_steps == pytest.approx(chain.n_steps, rel=0.5)
    assert (told[-1].expected_steps, told[-1].seconds_left) == (chain.n_steps, 0)


def test_expected_length_is_within_what_is_allowed():
    _, told = watched(max_steps=40)
    assert {progress.expected_steps for progress in told} == {40}


def test_guess_before_the_first_step_tells_good_approximations_from_bad_ones():
    """Of a Gaussian that is known, (2 - 0.75²) / 0.75²: new draws are tried in three of four steps."""
    (_, good), (_, bad) = (watched(max_steps=1, n_walkers=60, **options) for options in ({}, BAD))
    assert good[0].autocorrelation_time == pytest.approx(2 / 0.75**2 - 1)
    assert bad[0].autocorrelation_time > 5 * good[0].autocorrelation_time


# -- the start --------------------------------------------------------------------------------
def start_of(**options):
    """Positions at which the density is asked first."""
    asked = []
    sample(lambda x: asked.append(x) or gaussian(x), max_steps=1, **options)
    return asked[0]


def test_walkers_start_at_draws_of_the_laplace_approximation():
    start = start_of(n_walkers=4000)
    np.testing.assert_allclose(start.mean(0), MEAN, atol=0.08 * SIZE.max(), rtol=0)
    np.testing.assert_allclose(np.cov(start.T) / np.outer(SIZE, SIZE), COVARIANCE / np.outer(SIZE, SIZE), atol=0.1)


def test_walkers_start_within_the_bounds():
    """Even if the optimum lies on a bound and the covariance reaches far beyond."""
    start = start_of(upper=MEAN, lower=MEAN - SIZE, covariance=1e4 * COVARIANCE, n_walkers=100)
    assert (start >= MEAN - SIZE).all()
    assert (start <= MEAN).all()
    assert (start.std(0) > 0.2 * SIZE).all()


def test_walkers_start_where_the_density_is_positive():
    chain = sample_one(lambda x: np.where(np.abs(x[:, 0]) < 0.01, 0.0, np.nan), max_steps=20)
    assert np.isfinite(chain.log_posterior).all()


def test_parameter_without_variance_is_sampled():
    """A Laplace covariance of 0, as at a bound, does not hold the walkers together."""
    chain = sample(covariance=np.diag([900.0, 0, 0]), lower=MEAN - 20 * SIZE, upper=MEAN + 20 * SIZE, max_steps=1000)
    assert (chain.samples.std(0) > 0.5 * SIZE).all()


# -- what is refused ------------------------------------------------------------------------------
def test_a_chain_is_as_long_as_was_asked_for():
    short, long = (sample(length=length, max_steps=5000) for length in (10, 50))
    assert short.converged
    assert short.n_steps > 10 * short.autocorrelation_time.max()
    assert short.n_steps < long.n_steps


def test_default_number_of_walkers():
    assert sample(max_steps=2).n_walkers == 2 * (3 + 1)


def test_too_few_walkers_are_refused():
    with pytest.raises(ValueError, match="n_walkers must be at least 8 for 3 free parameters, but is 7"):
        sample(n_walkers=7)


def test_start_without_a_density_is_refused():
    with pytest.raises(ValueError, match="−inf or NaN at the starts of 8 of 8 walkers"):
        sample(lambda x: np.full(len(x), np.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower": MEAN[:2]}, r"must have shapes .* not \(\(2,\), \(3,\)"),
        ({"lower": MEAN + 30 * SIZE}, "lower must be below upper"),
        ({"centre": MEAN * np.nan, "lower": MEAN - SIZE, "upper": MEAN + SIZE}, "centre and covariance must be finite"),
        ({"max_steps": 0}, "max_steps and check_every must be positive, but are 0 and 20"),
        ({"length": 9.9}, "length must be 10 autocorrelation times or more, but is 9.9"),
        ({"log_posterior": lambda x: x}, r"log_posterior must give shape \(8,\), but gave \(8, 3\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample(**options)


def test_nothing_is_printed_if_the_density_raises(capfd):
    calls = []

    def fails(x):
        calls.append(x)
        return gaussian(x) if len(calls) < 5 else 1 / 0

    with pytest.raises(ZeroDivisionError):
        sample(fails)
    assert capfd.readouterr() == ("", "")


# -- the same numbers ----------------------------------------------------------------------------
def test_same_seed_same_chain():
    assert_equal(sample(), sample())


def test_other_seed_other_chain():
    assert not np.array_equal(sample().samples, sample(seed=2).samples)


def test_global_random_state_does_not_matter():
    np.random.seed(3)  # noqa: NPY002
    first = sample()
    np.random.seed(4)  # noqa: NPY002
    assert_equal(sample(), first)


# -- the file --------------------------------------------------------------------------------------
def sometimes_nan(x):
    return np.where(x[:, 0] > MEAN[0] + 2 * SIZE[0], np.nan, gaussian(x))


def sample_into(path):
    sample(sometimes_nan, **NARROW, max_steps=300, check_every=30, store=ChainFile(path))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_chain_of_a_killed_process_ends_as_if_it_had_lived(tmp_path):
    """Bit by bit, with all its figures; the random state is that of the file, not of the new seed."""
    path = tmp_path / "chain.h5"
    assert list(lives([DieAtCall(__name__, "gaussian", 300)], sample_into, path)) == [-signal.SIGKILL]
    with h5py.File(path) as file:
        assert file["mcmc"].attrs["iteration"] in range(30, 300, 30)
    options = NARROW | {"max_steps": 300, "check_every": 30}
    resumed = sample(sometimes_nan, store=ChainFile(path), seed=99, **options)
    assert_equal(resumed, sample(sometimes_nan, **options))


def test_interrupted_chain_is_kept_to_the_last_step(tmp_path):
    calls, steps = [], []

    def interrupted(x):
        calls.append(x)
        if len(calls) == 72:
            raise KeyboardInterrupt
        return gaussian(x)

    with pytest.raises(KeyboardInterrupt):
        sample(interrupted, store=ChainFile(tmp_path / "chain.h5"), watch=lambda now: steps.append(now.n_steps))
    with h5py.File(tmp_path / "chain.h5") as file:
        assert file["mcmc"].attrs["iteration"] == steps[-1]
    assert steps[-1] % 20
    assert_equal(sample(store=ChainFile(tmp_path / "chain.h5"), seed=99), sample())


def test_continued_chain_goes_on_with_its_own_approximation(tmp_path):
    """Another optimum or covariance, as of another fit, would break it."""
    sample(**NARROW, max_steps=30, store=ChainFile(tmp_path / "chain.h5"))
    other = NARROW | {"centre": MEAN + SIZE, "covariance": COVARIANCE, "max_steps": 70}
    assert_equal(sample(**other, store=ChainFile(tmp_path / "chain.h5")), sample(**NARROW, max_steps=70))


def test_chain_can_be_made_longer(tmp_path):
    for max_steps in (150, 250):
        chain = sample(**NARROW, max_steps=max_steps, store=ChainFile(tmp_path / "chain.h5"))
        assert chain.n_steps == max_steps


def test_converged_chain_is_read_again(tmp_path):
    """Without a call of the density."""
    first = sample_one(store=ChainFile(tmp_path / "chain.h5"))
    assert first.converged
    assert first.n_steps < 4000
    assert_equal(sample_one(None, store=ChainFile(tmp_path / "chain.h5")), first)


def test_emcee_reads_the_file(tmp_path):
    chain = sample(max_steps=20, store=ChainFile(tmp_path / "chain.h5"))
    backend = emcee.backends.HDFBackend(tmp_path / "chain.h5", read_only=True)
    np.testing.assert_array_equal(backend.get_chain(flat=True)[-80:], chain.samples[-80:])
    assert np.mean(backend.accepted / backend.iteration) == chain.acceptance_fraction


@pytest.mark.parametrize(
    ("identity", "difference"),
    [({"star": "b", "seed": 1}, "differs in star, .*star 'a', here 'b'"),
     ({"star": "a", "seed": 2}, "differs in seed, .*seed 1, here 2"),
     ({"star": "b", "seed": 2, "prior": "none"}, "differs in star and seed and prior")],
)  # fmt: skip
def test_chain_of_another_problem_is_refused(tmp_path, identity, difference):
    """The message says what differs."""
    sample(max_steps=10, store=ChainFile(tmp_path / "chain.h5", {"star": "a", "seed": 1}))
    with pytest.raises(ValueError, match=f"chain.h5 holds a chain that {difference}"):
        sample(max_steps=10, store=ChainFile(tmp_path / "chain.h5", identity))


def test_what_is_not_told_is_not_compared(tmp_path):
    sample(max_steps=10, store=ChainFile(tmp_path / "chain.h5", {"star": "a", "seed": 1}))
    chain = sample(max_steps=20, store=ChainFile(tmp_path / "chain.h5", {"star": "a", "seed": None}))
    assert_equal(chain, sample(max_steps=20))


def test_chain_of_another_number_of_walkers_is_refused(tmp_path):
    sample(max_steps=10, store=ChainFile(tmp_path / "chain.h5"))
    with pytest.raises(ValueError, match=r"chain.h5 holds .* of 8 walkers in 3 dimensions, but this one has 9 in 3"):
        sample(max_steps=10, store=ChainFile(tmp_path / "chain.h5"), n_walkers=9)


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path):
    """Change a number in the middle of the chain."""
    with h5py.File(path) as file:
        place = file["mcmc/chain"].id.get_chunk_info(0).byte_offset
    contents = bytearray(path.read_bytes())
    contents[place + 100] ^= 1
    path.write_bytes(contents)


def lose_the_random_state(path):
    with h5py.File(path, "r+") as file:
        del file["mcmc"].attrs["random_state_1"]


def forget_steps(path):
    with h5py.File(path, "r+") as file:
        file["mcmc"].attrs["iteration"] = 7


@pytest.mark.parametrize(
    "damage", [cut_short, alter, lose_the_random_state, forget_steps, lambda path: path.write_text("a,b\n")]
)
def test_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "chain.h5"
    sample(max_steps=20, store=ChainFile(path))
    damage(path)
    with pytest.raises(FileFormatError, match=r"chain.h5 is damaged or holds no chain of cyclestarnet"):
        sample(max_steps=20, store=ChainFile(path))
