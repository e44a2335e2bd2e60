"""Figures of many stars: maps of both domains, and diagrams of labels."""

import pytest

pytest.importorskip("matplotlib")

from matplotlib import pyplot
from matplotlib.colors import to_hex

from cyclestarnet.plotting import plot_embeddings
from cyclestarnet.plotting.axes import DOMAIN_STYLES


@pytest.fixture(autouse=True)
def headless():
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")


# -- maps --------------------------------------------------------------------------------------
def test_maps_show_each_star_in_the_colour_of_its_domain(rng):
    synthetic, observed = rng.normal(size=(7, 2)), rng.normal(size=(5, 2))
    first, second = plot_embeddings({"spectra": (synthetic, observed), "latents": (observed, synthetic)})
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["spectra", "latents"]
    (dots,) = first.collections
    shown = {tuple(place): to_hex(color) for place, color in zip(dots.get_offsets(), dots.get_facecolor(), strict=True)}
    for places, (_, color) in zip((synthetic, observed), DOMAIN_STYLES.values(), strict=True):
        assert {shown[tuple(place)] for place in places} == {to_hex(color)}


def test_maps_that_are_none_are_refused(rng):
    with pytest.raises(ValueError, match="there are no maps"):
        plot_embeddings({})
    with pytest.raises(ValueError, match=r"places must have the shape \(n, 2\), but have .*latents"):
        plot_embeddings({"latents": (rng.normal(size=(5, 3)), rng.normal(size=(5, 3)))})
