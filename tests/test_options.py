"""Options stand once: classes that check themselves, and functions that take their fields."""

import inspect
import re

import numpy as np
import pytest

from cyclestarnet import CalibratedModel
from cyclestarnet.pipeline import FitOptions, ManyOptions, SampleManyOptions, SampleOptions
from cyclestarnet.pipeline.options import sorted_options, takes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"space": "sky"}, ValueError, "space must be one of 'observed', 'synthetic', 'emulator', but is 'sky'"),
        ({"space": None}, ValueError, "space must be one of .*, but is None"),
        ({"method": "newton"}, ValueError, "method must be one of 'lm', 'lbfgs', but is 'newton'"),
        ({"split_latent": "mine"}, ValueError, "split_latent must be one of 'own', 'typical', 'fitted'"),
        ({"inflation": np.inf}, ValueError, "inflation must be a positive factor"),
        ({"tied": "mg_h"}, TypeError, "tied must be a sequence of groups"),
        ({"fixed": [1]}, TypeError, r"fixed must be a mapping by name of label, but is \[1\]"),
        ({"motion": "velocity", "space": "synthetic"}, ValueError, "a translated spectrum is at rest"),
    ],
)
def test_options_of_fits_check_themselves(options, error, message):
    with pytest.raises(error, match=message):
        FitOptions(**options)


def test_motions_have_one_order_and_form():
    assert FitOptions(motion=["broadening", "velocity"]).motion == ("velocity", "broadening")
    assert FitOptions(motion=None).motion == ()


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "two"])
def test_workers_are_a_number_of_processes(workers):
    with pytest.raises(ValueError, match="workers must be a number of processes, 1 or more"):
        ManyOptions(workers=workers)


def test_workers_and_a_client_exclude_each_other():
    with pytest.raises(ValueError, match="workers=2, or a client"):
        ManyOptions(workers=2, client=object())


def test_a_seed_and_a_generator_exclude_each_other():
    with pytest.raises(ValueError, match="not both"):
        SampleOptions(seed=1, rng=np.random.default_rng(1))


def test_an_unknown_option_is_named_with_the_one_that_may_be_meant():
    with pytest.raises(TypeError, match=r"unknown options \['max_step'\]; did you mean 'max_steps'\?"):
        sorted_options({"max_step": 1}, SampleOptions, FitOptions)


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("fit", (FitOptions,)),
        ("sample", (SampleOptions, FitOptions)),
        ("fit_many", (ManyOptions, FitOptions)),
        ("sample_many", (ManyOptions, SampleManyOptions, FitOptions)),
    ],
)
def test_methods_show_the_options_that_they_take(method, kinds):
    function = getattr(CalibratedModel, method)
    shown = inspect.signature(function).parameters
    for kind in kinds:
        for name, parameter in inspect.signature(kind).parameters.items():
            assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
            assert re.search(rf"^ *{name} : ", function.__doc__, re.M), name
            assert shown[name].default is parameter.default
    assert "**options" not in function.__doc__


def test_words_of_options_stand_in_place_of_the_catch_all():
    @takes(SampleOptions)
    def function(first, **options):
        """Do it.

        Parameters
        ----------
        first : int
            What comes first.
        **options
            Fields of something.

        Returns
        -------
        int
        """

    lines = inspect.getdoc(function).splitlines()
    assert lines.index("first : int") < lines.index("seed : int, optional") < lines.index("Returns")
    assert "    Fields of something." not in lines


@pytest.mark.parametrize(
    ("given", "meant"),
    [("n_steps", "max_steps"), ("nsteps", "max_steps"), ("n_walker", "n_walkers"), ("random_state", "seed"),
     ("guess", "start"), ("fix", "fixed"), ("mask", "ignore")],
)  # fmt: skip
def test_what_an_option_is_called_elsewhere_is_known(given, meant):
    with pytest.raises(TypeError, match=rf"unknown options \['{given}'\]; did you mean '{meant}'\?"):
        CalibratedModel.sample(None, None, **{given: 5})


@pytest.mark.parametrize("method", ["fit", "sample", "fit_many"])
def test_arrays_in_place_of_a_spectrum_are_answered_with_how_to_make_one(method):
    arrays = np.ones((3, 5))
    with pytest.raises(
        TypeError, match=rf"{method} takes .* got 2 more \(ndarray, ndarray\)\. Arrays become a spectrum"
    ):
        getattr(CalibratedModel, method)(None, *arrays)
    assert list(inspect.signature(getattr(CalibratedModel, method)).parameters)[2] in ("space", "seed", "output")
