"""The embedded model and the real K giant: what a user meets first."""

import warnings
from dataclasses import replace
from importlib import resources

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty

from cyclestarnet import CalibratedModel, FitFlag, FitWarning, GridError, LabelError, air_to_vacuum
from cyclestarnet.spectra import Spectrum


@pytest.fixture(scope="module")
def fits(pretrained, k_giant):
    return {space: pretrained.fit(k_giant, space=space) for space in ("emulator", "synthetic", "observed")}


def test_model_file_is_small():
    file = resources.files("cyclestarnet.data") / "apogee-giants.safetensors"
    assert len(file.read_bytes()) <= 16e6


def test_anchored_model_agrees_with_the_free_one_within_its_errors(fits, k_giant):
    """It has other zero points, and says that stars of known labels took part."""
    model = CalibratedModel.from_pretrained("apogee-giants-anchored")
    assert model.name == "apogee-giants-anchored"
    assert model.provenance["anchors"].startswith("30 stars")
    result = model.fit(k_giant, method="lm")
    assert result.flags == FitFlag(0)
    for name in ("teff", "logg", "m_h", "alpha_m"):
        difference = abs(result.labels[name].value - fits["observed"].labels[name].value)
        assert difference < 2 * fits["observed"].uncertainties[name].value, name


def test_unknown_name_lists_those_that_exist():
    with pytest.raises(ValueError, match="apogee-giants"):
        CalibratedModel.from_pretrained("apogee")


def test_translation_explains_the_real_star_several_times_better(fits):
    assert fits["observed"].reduced_chi2 < fits["emulator"].reduced_chi2 / 4


@pytest.mark.parametrize("space", ["observed", "synthetic"])
def test_k_giant_agrees_with_a_data_driven_model_of_real_giants(fits, space):
    # The Cannon model of jobovy/apogee gives 4527 K, 2.33, 0.00, 0.07 for the same pixels.
    result = fits[space]
    reference = {"teff": 4527 * u.K, "logg": 2.33, "m_h": 0.0 * u.dex, "alpha_m": 0.07 * u.dex}
    allowed = {"teff": 60, "logg": 0.2, "m_h": 0.06, "alpha_m": 0.06}
    for name, value in reference.items():
        assert abs(result.labels[name].value - getattr(value, "value", value)) < allowed[name], name


def test_k_giant_raises_no_flag(fits):
    assert fits["observed"].flags == FitFlag(0)


def test_errors_contain_the_label_error_of_the_model(fits, pretrained):
    least = np.diag(pretrained.noise.hidden_covariance(fits["observed"].values))
    assert np.all(np.diag(fits["observed"].covariance) >= least)


def test_fixed_labels_have_no_error(pretrained, k_giant):
    result = pretrained.fit(k_giant, fixed={"teff": 4500 * u.K})
    assert result.labels["teff"] == 4500 * u.K
    assert result.uncertainties["teff"] == 0 * u.K
    assert np.isnan(result.correlation("teff", "logg"))


def test_simulated_star_is_recovered(pretrained, fits, rng):
    """A spectrum predicted at known labels, with noise, comes back at them."""
    truth = pretrained.labels.to_quantities(pretrained.prior.mean)
    clean = pretrained.predict(truth)
    noisy = Spectrum(
        flux=clean.flux + 0.01 * rng.standard_normal(clean.flux.shape),
        spectral_axis=clean.spectral_axis,
        uncertainty=fits["observed"].spectrum.uncertainty.__class__(np.full(clean.flux.shape, 0.01)),
    )
    result = pretrained.fit(noisy)
    for name in ("teff", "logg", "m_h", "alpha_m"):
        offset = abs(result.labels[name].value - truth[name].value)
        assert offset < 3 * result.uncertainties[name].value, name


def test_air_wavelengths_are_recognised_and_the_conversion_offered(pretrained, k_giant):
    in_vacuum = k_giant.spectral_axis.to(u.AA)
    shift = air_to_vacuum(in_vacuum) - in_vacuum
    in_air = Spectrum(
        flux=k_giant.flux, spectral_axis=in_vacuum - shift, uncertainty=k_giant.uncertainty, mask=k_giant.mask
    )
    with pytest.raises(GridError, match="air_to_vacuum"):
        pretrained.fit(in_air)


def test_unrest_spectrum_is_flagged(pretrained, k_giant):
    moved = Spectrum(
        flux=k_giant.flux,
        spectral_axis=k_giant.spectral_axis.to(u.AA) * (1 + 40 / 299792.458),
        uncertainty=k_giant.uncertainty,
        mask=k_giant.mask,
    )
    assert pretrained.fit(moved, space="emulator").flags & FitFlag.VELOCITY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tefff": 4500 * u.K}, "did you mean 'teff'"),
        ({"teff": 4500 * u.km}, "must have the unit K"),
        ({"teff": 9000 * u.K}, "outside the training range"),
        ({"m_h": 0.1}, "combination of"),
    ],
)
def test_wrong_fixed_labels_are_explained(pretrained, k_giant, change, message):
    with pytest.raises(LabelError, match=message):
        pretrained.fit(k_giant, fixed=change)


@pytest.mark.parametrize("name", ["teff", "mg_h", "vbroad"])
def test_derivative_spectra_match_finite_differences(pretrained, name):
    centre = pretrained.labels.to_quantities(pretrained.prior.mean)
    step = 0.001 * pretrained.labels.scale[pretrained.labels.index(name)] * centre[name].unit
    up, down = (pretrained.predict({**centre, name: centre[name] + sign * step}).flux.value for sign in (1, -1))
    exact = pretrained.derivative_spectrum(centre, name)
    assert exact.unit == 1 / centre[name].unit
    numeric = (up - down) / (2 * step.value)
    np.testing.assert_allclose(exact.value, numeric, atol=0.05 * np.abs(numeric).max())


def test_a_bad_star_does_not_stop_the_rest(pretrained, k_giant):
    bad = Spectrum(flux=k_giant.flux, spectral_axis=k_giant.spectral_axis)  # no uncertainty
    table = pretrained.fit_many([bad, k_giant], space="emulator", progress=False)
    assert list(table["flag_names"]) == ["FAILED", table["flag_names"][1]]
    assert "uncertainty" in table["message"][0]
    alone = pretrained.fit(k_giant, space="emulator", method="lm")
    assert table["teff"][1] == alone.labels["teff"]


def test_results_show_themselves(fits, pretrained):
    result = fits["observed"]
    assert "teff" in repr(result)
    assert "<table" in result._repr_html_()
    assert "Not real spectra" in pretrained._repr_html_()
    shown = replace(pretrained, name="<q>x", provenance={"<q>y": "<q>z"})._repr_html_()
    assert "<q>" not in shown
    assert "&lt;q&gt;z" in shown


def test_plot_has_a_flux_and_a_residual_panel_per_chip(fits, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = fits["observed"].plot()
    assert axes == axes[0].figure.axes
    assert [ax.get_ylabel() for ax in axes] == 3 * ["normalised flux", "residual"]
    for window in ((15700, 15800), (1.57, 1.58) * u.um):
        assert [ax.get_xlim() for ax in fits["observed"].plot(window=window)] == 2 * [pytest.approx((15700, 15800))]
    with pytest.raises(GridError, match="window 5000 to 6000 Angstrom holds no pixel of the fit"):
        fits["observed"].plot(window=(5000, 6000))
    with pytest.raises(ValueError, match="axes must be two per panel, 6, but are 1"):
        fits["observed"].plot(axes[:1])
    matplotlib.pyplot.close("all")


def moving(pretrained, star, velocity):
    """The star on the model's pixels, receding that fast."""
    wavelength, found = pretrained.grid.wavelength.value, pretrained.fit(star, method="lm").spectrum
    at = wavelength / (1 + velocity / 299792.458)
    flux = np.interp(at, wavelength, found.flux.value)
    error = np.interp(at, wavelength, found.uncertainty.array)
    mask = np.interp(at, wavelength, found.mask.astype(float)) > 0
    return Spectrum(flux=flux * u.one, spectral_axis=wavelength * u.AA, uncertainty=StdDevUncertainty(error), mask=mask)


@pytest.mark.parametrize("velocity", [200.0, -700.0])
def test_fast_star_is_found_by_its_velocity(pretrained, k_giant, velocity):
    """Interpolation smooths the spectrum, so that labels need not agree to their errors."""
    star, at_rest = moving(pretrained, k_giant, velocity), pretrained.fit(k_giant, method="lm")
    fit = pretrained.fit(star, motion="velocity", method="lm")
    assert fit.labels["velocity"].to_value(u.km / u.s) == pytest.approx(velocity, abs=1)
    assert fit.labels["teff"].value == pytest.approx(at_rest.labels["teff"].value, abs=40)
    assert fit.labels["m_h"].value == pytest.approx(at_rest.labels["m_h"].value, abs=0.05)


def test_fast_star_that_is_fitted_at_rest_is_flagged(pretrained, k_giant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        fit = pretrained.fit(moving(pretrained, k_giant, 300.0), method="lm")
    assert FitFlag.VELOCITY in fit.flags
    assert fit.meta["velocity"].to_value(u.km / u.s) == pytest.approx(300, abs=3)
