"""Domains around one shared latent: lines of one family, as a code and several spectrographs see them."""

import re
from copy import deepcopy

import astropy.units as u
import h5py
import numpy as np
import pytest
import torch
import training_oracle as plain
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum
from tiny import TINY_NETWORK, LineFamily

import cyclestarnet.training.translations as translations
from cyclestarnet import (
    DomainSpectra,
    EmulatedSpectra,
    GridError,
    NetworkSettings,
    OtherRunError,
    SpectrumError,
    TrainingSettings,
    Translation,
    WatchSettings,
    WavelengthGrid,
    add_domain,
    train_domains,
    train_translation,
)
from cyclestarnet.cli import main
from cyclestarnet.networks.checkpoint import save_arrays
from cyclestarnet.networks.convolutions import ChannelMaps, RowMaps
from cyclestarnet.networks.translation import SharedNetwork, TranslationNetwork
from cyclestarnet.training.datasets import ObservedSpectra
from cyclestarnet.training.domain_trainer import DomainTrainer
from cyclestarnet.training.translation_config import read_translation_config

GRID = WavelengthGrid(10 ** (4.18 + 6e-6 * np.r_[0:200, 260:475]) * u.AA, ((0, 200), (200, 415)))
WIDTH = {"code": 2.0, "A": 3.0, "B": 2.5, "C": 3.5}  # pixels: of the line-spread functions
SIGMA = 0.01
BRIEF = TrainingSettings(n_iterations=6, learning_rate=2e-3, flux_mean=0.92, flux_std=0.11, seed=3)
COMMON = {
    "learning_rate": 2e-3,
    "critic_learning_rate": 6e-4,
    "schedule": "cosine",
    "warmup": 20,
    "weight_latent": 30.0,
    "average_decay": 0.98,
    "flux_mean": 0.92,
    "flux_std": 0.11,
    "weight_synth": 9.0,
}
LAYERS = {name: value for name, value in TINY_NETWORK.to_dict().items() if name != "n_pixels"}


class LineEmulator(torch.nn.Module):
    """The family as an emulator: a code that is exact."""

    n_labels, n_pixels = 3, 415

    def __init__(self):
        super().__init__()
        self.family = LineFamily()
        self.register_buffer("lower", torch.tensor(self.family.labels.lower, dtype=torch.float32))

    def forward(self, labels):
        return self.family.emulator(labels)


def stars(n, domain, rng, other=None):
    """Truth and noisy flux of stars in a domain, and the truth in another."""
    family = LineFamily()
    labels = family.draw(n, rng)
    clean = family(labels, width=WIDTH[domain])
    return clean, rng.normal(clean, SIGMA), None if other is None else family(labels, width=WIDTH[other])


@pytest.fixture(scope="module")
def data():
    """Domains as they are given; no star is in two of them."""
    rng = np.random.default_rng(5)
    given = {"code": EmulatedSpectra(LineEmulator(), LineFamily().draw(300, rng))}
    for name in "ABC":
        _, flux, _ = stars(300, name, rng)
        given[name] = DomainSpectra(flux, np.full(flux.shape, SIGMA), rng.random(flux.shape) < 0.02)
    return given


def few(given, n=40, **changes):
    """The first spectra of a domain, perhaps with others in place of them."""
    if isinstance(given, EmulatedSpectra):
        return EmulatedSpectra(given.emulator, given.labels[:n])
    own = {"flux": given.flux[:n], "errors": given.errors[:n], "mask": given.mask[:n]}
    return DomainSpectra(**own | {"split_latent": given.split_latent} | changes)


def toy(data, names=("code", "A", "B"), **changes):
    """Train for a moment, on few spectra."""
    options = {"wavelength": GRID, "settings": BRIEF, "network": TINY_NETWORK, "progress": False}
    return train_domains({name: few(data[name]) for name in names}, **options | changes)


def toy_added(translation, data, **changes):
    beside = {"A": few(data["A"])}
    options = {"beside": beside, "settings": BRIEF, "progress": False}
    return add_domain(translation, "C", few(data["C"]), **options | changes)


@pytest.fixture(scope="module")
def trained(data):
    settings = TrainingSettings(n_iterations=240, warm_start=60, **COMMON)
    three = {name: data[name] for name in ("code", "A", "B")}
    return train_domains(three, wavelength=GRID, settings=settings, network=TINY_NETWORK, progress=False)


@pytest.fixture(scope="module")
def with_third(trained, data):
    settings = TrainingSettings(n_iterations=100, **COMMON)
    return add_domain(trained, "C", data["C"], beside={"code": data["code"]}, settings=settings, progress=False)


@pytest.fixture(scope="module")
def brief(data):
    return toy(data)


def spectrum(flux, sigma=SIGMA, mask=None):
    uncertainty = StdDevUncertainty(np.full(flux.shape, sigma))
    return Spectrum(flux=flux * u.one, spectral_axis=GRID.wavelength, uncertainty=uncertainty, mask=mask)


def assert_same(one, other):
    state = other.translator.network.state_dict()
    for name, weights in one.translator.network.state_dict().items():
        np.testing.assert_array_equal(weights, state[name])
    assert one.scatter.keys() == other.scatter.keys()
    for pair, scatter in one.scatter.items():
        np.testing.assert_array_equal(scatter, other.scatter[pair])


# -- the truth ---------------------------------------------------------------------------
@pytest.mark.parametrize(("source", "target"), [("A", "B"), ("B", "A"), ("A", "code"), ("code", "B")])
def test_translated_spectra_are_nearer_to_the_truth(trained, source, target, rng):
    clean, _, truth = stars(40, source, rng, target)
    found = [trained.translate(spectrum(row), source, target).flux.value for row in clean]
    assert np.std(found - truth) < np.std(clean - truth) / 2


def test_an_added_domain_is_translated_to_those_that_it_was_not_trained_beside(with_third, rng):
    for target, factor in (("code", 1.8), ("A", 1.1)):  # A is nearer to C from the beginning
        clean, _, truth = stars(40, "C", rng, target)
        found = [with_third.translate(spectrum(row), "C", target).flux.value for row in clean]
        assert np.std(found - truth) < np.std(clean - truth) / factor


def test_errors_of_translated_spectra_cover_the_truth(trained, rng):
    _, flux, truth = stars(40, "A", rng, "code")
    made = [trained.translate(spectrum(row), "A", "code") for row in flux]
    pulls = [(star.flux.value - true) / star.uncertainty.array for star, true in zip(made, truth, strict=True)]
    assert np.std(pulls) == pytest.approx(1, abs=0.2)


# -- the losses, by plain modules ----------------------------------------------------------
def encoded(network, k, x):
    own = network.domains[k]
    hidden = own.encoder(x[:, None])
    return network.encoder_sh(hidden), None if own.split_encoder is None else own.split_encoder(hidden)


def decoded(network, k, z, split):
    own, hidden = network.domains[k], network.decoder_sh(z)
    if split is not None:
        hidden = torch.cat([hidden, own.split_decoder(split)], 1)
    return own.decoder(hidden)


class Oracle:
    """Iterations of two domains in their plainest form, from the start and the batches of a trainer."""

    def __init__(self, trainer):
        self.trainer, self.settings, self.iteration = trainer, trainer.settings, 0
        self.network, self.critics = deepcopy(trainer.network), deepcopy(trainer.parts.critics)
        self.generator = torch.Generator().manual_seed(self.settings.seed)
        s = self.settings
        self.adam = torch.optim.Adam(
            [p for p in self.network.parameters() if p.requires_grad], s.learning_rate, s.betas
        )
        self.critic_adam = torch.optim.Adam(self.critics.parameters(), s.critic_learning_rate, s.betas)

    def step(self, pair):
        s, names = self.settings, self.trainer.names
        drawn = [self.trainer._spectra[k].draw(s.batch_size, self.generator) for k in pair]
        if self.iteration < s.warm_start:
            x, weight = drawn[0]
            terms = {f"rec_{names[0]}": plain.weighted_distance(self.alone(x), x, weight)}
            self.descend(self.adam, sum(terms.values()))
        else:
            if s.warm_start and self.iteration == s.warm_start:
                self.copy_first()
            terms = self.full_step(pair, names, drawn)
        self.iteration += 1
        return {name: term.item() for name, term in terms.items()}

    def alone(self, x):
        return decoded(self.network, 0, *encoded(self.network, 0, x))

    def full_step(self, pair, names, drawn):
        s, net, weight = self.settings, self.network, {0: self.settings.weight_synth}
        latents = [encoded(net, k, x) for k, (x, _) in zip(pair, drawn, strict=True)]
        terms, seen, loss = {}, [], 0
        for here, there in ((0, 1), (1, 0)):
            k, other, (x, errors), (z, split) = pair[here], pair[there], drawn[here], latents[here]
            z_other = latents[there][0]
            rec, fake = decoded(net, k, z, split), decoded(net, k, z_other, split)
            z_fake_split = encoded(net, k, fake[:, 0])[1]
            sent = decoded(net, other, z, latents[there][1])  # with the split latent of the other's spectrum
            cyc = decoded(net, k, encoded(net, other, sent[:, 0])[0], split)
            terms[f"rec_{names[k]}"] = plain.weighted_distance(rec, x, errors)
            terms[f"cyc_{names[k]}"] = plain.weighted_distance(cyc, x, errors)
            if s.weight_adversarial:
                said = plain.answer(self.critics[k], fake, z_other, z_fake_split)
                terms[f"gen_{names[k]}"] = plain.adversarial(said, 1.0, s.adversarial)
            if s.weight_spectra:
                least = s.synthetic_sigma / s.flux_std
                apart = plain.window_distance(fake[:, 0], rec[:, 0].detach(), least)
                terms["spectra"] = terms.get("spectra", 0) + apart
            loss = loss + weight.get(k, s.weight_obs) * (terms[f"rec_{names[k]}"] + terms[f"cyc_{names[k]}"])
            loss = loss + s.weight_adversarial * terms.get(f"gen_{names[k]}", 0)
            seen.append((k, *(None if t is None else t.detach() for t in (rec, z, split, fake, z_other, z_fake_split))))
        if s.weight_latent:
            terms["latent"] = plain.energy_distance(*(z.flatten(1) for z, _ in latents))
            loss = loss + s.weight_latent * terms["latent"]
        self.descend(self.adam, loss + s.weight_spectra * terms.get("spectra", 0))
        if not s.weight_adversarial:
            return terms
        loss, right = 0, []
        for k, rec, z, split, fake, z_other, z_fake_split in seen:
            true_said = plain.answer(self.critics[k], rec, z, split)
            fake_said = plain.answer(self.critics[k], fake, z_other, z_fake_split)
            terms[f"critic_{names[k]}"] = plain.adversarial(true_said, 1.0, s.adversarial) + plain.adversarial(
                fake_said, 0.0, s.adversarial
            )
            right += [true_said > 0, fake_said < 0]
            loss = loss + s.weight_adversarial * terms[f"critic_{names[k]}"]
            if s.critic_penalty:
                latent = z if split is None else torch.cat([z, split], 1)
                terms["penalty"] = terms.get("penalty", 0) + plain.r1(self.critics[k], rec, latent)
        self.descend(self.critic_adam, loss + s.critic_penalty * terms.get("penalty", 0))
        return terms | {"critic_accuracy": torch.cat(right).double().mean()}

    def copy_first(self):
        first, n = self.network.domains[0], TINY_NETWORK.shared[0][0]
        for own in self.network.domains[1:]:
            own.encoder.load_state_dict(first.encoder.state_dict())
            state, before = deepcopy(first.decoder.state_dict()), own.decoder.state_dict()["0.weight"]
            if first.split_encoder is not None and own.split_encoder is not None:
                own.split_encoder.load_state_dict(first.split_encoder.state_dict())
                own.split_decoder.load_state_dict(first.split_decoder.state_dict())
            else:  # only what the shared latent feeds
                state["0.weight"] = torch.cat([state["0.weight"][:n], before[n:]])
            own.decoder.load_state_dict(state)

    @staticmethod
    def descend(adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()


def trainer_of(splits, layout=ChannelMaps, folder=None, base=None, **changes):
    """A trainer in float64 on 24 noisy spectra per domain."""
    rng, sources = np.random.default_rng(8), {}
    settings = TrainingSettings(**{"n_iterations": 30, "batch_size": 3, "flux_mean": 0.92, "flux_std": 0.11} | changes)
    for name in splits:
        sigma = rng.uniform(0.004, 0.055, (24, 415))
        clean, _, _ = stars(24, name, rng)
        sources[name] = ObservedSpectra(rng.normal(clean, sigma), sigma, rng.random(sigma.shape) < 0.05, settings)
    trainer = DomainTrainer(TINY_NETWORK, settings, splits, sources, folder, base=base)
    trainer.parts.double()
    trainer.parts.dtype, trainer.parts.maps = torch.float64, layout
    trainer.average = {name: array.double() for name, array in trainer.average.items()}
    for source in sources.values():
        source.flux, source.weight = source.flux.double(), source.weight.double()
    return trainer


@pytest.mark.parametrize(
    ("splits", "layout", "changes"),
    [
        ({"code": False, "A": True, "B": False}, ChannelMaps, {"warm_start": 2}),
        ({"A": True, "B": True}, RowMaps, {"weight_latent": 3.0, "warm_start": 1}),
        ({"A": True, "B": False, "C": True}, ChannelMaps, {"critic_penalty": 0.3, "warm_start": 1}),
        ({"A": False, "B": False}, RowMaps, {"weight_adversarial": 0.5}),
        ({"code": False, "A": True, "B": False}, ChannelMaps, {"weight_adversarial": 0.0, "weight_spectra": 2.0}),
    ],
)
def test_iterations_are_those_of_plain_modules(splits, layout, changes):
    trainer = trainer_of(splits, layout, **changes)
    oracle = Oracle(trainer)
    for _ in range(5):
        pair = trainer.pair
        assert trainer.step() == pytest.approx(oracle.step(pair), rel=1e-7)
    for part, own in ((oracle.network, trainer.network), (oracle.critics, trainer.parts.critics)):
        for key, expected in part.state_dict().items():
            torch.testing.assert_close(own.state_dict()[key], expected, rtol=0, atol=1e-7)


def test_iterations_of_an_added_domain_are_those_of_plain_modules():
    base = trainer_of({"A": True, "B": False}).averaged_network()
    trainer = trainer_of({"A": True, "B": False, "C": True}, base=base)
    oracle, before = Oracle(trainer), deepcopy(trainer.network.state_dict())
    for _ in range(4):
        pair = trainer.pair
        assert trainer.step() == pytest.approx(oracle.step(pair), rel=1e-7)
    changed = {
        name.removesuffix(name[name.index(".", 8) :]) for name, weights in trainer.network.state_dict().items()
        if not torch.equal(weights, before[name])
    }  # fmt: skip
    assert changed == {"domains.2"}
    for key, expected in oracle.network.state_dict().items():
        torch.testing.assert_close(trainer.network.state_dict()[key], expected, rtol=0, atol=1e-7)


def test_every_pair_comes_once_before_any_comes_again():
    trainer = trainer_of({name: False for name in WIDTH})
    rounds = []
    for _ in range(5):
        rounds.append([])
        for _ in range(6):
            rounds[-1].append(trainer.pair)
            trainer.iteration += 1
    assert all(sorted(turn) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1  # not always in the same order


def test_two_domains_begin_with_the_weights_of_the_network_of_the_paper():
    torch.manual_seed(2)
    shared = SharedNetwork(TINY_NETWORK, [False, True])
    torch.manual_seed(2)
    paper = TranslationNetwork(TINY_NETWORK)
    x = torch.randn(3, 415)
    z, split = shared.encode(x, 1)
    torch.testing.assert_close((z, split), paper.encode_obs(x), rtol=0, atol=0)
    torch.testing.assert_close(shared.decode(z, split, 1), paper.decode_obs(z, split), rtol=0, atol=0)
    torch.testing.assert_close(shared.decode(z, None, 0), paper.decode_synth(z), rtol=0, atol=0)
    torch.testing.assert_close(shared.encode(x, 0)[0], paper.encode_synth(x), rtol=0, atol=0)


def test_a_network_of_some_domains_is_the_same_function():
    network = SharedNetwork(TINY_NETWORK, [False, True, True])
    x, part = torch.randn(2, 415), network.of((2, 0))
    torch.testing.assert_close(part.encode(x, 0), network.encode(x, 2), rtol=0, atol=0)
    assert part.split_latents == (True, False)


# -- split latents ---------------------------------------------------------------------------
@pytest.mark.parametrize("with_split", [(), ("first",), ("first", "second")])
def test_either_domain_of_two_may_have_a_split_latent(data, with_split):
    a, b = few(data["A"]), few(data["B"])
    made = train_translation(
        a.flux, a.errors, b.flux, b.errors,
        wavelength=GRID, settings=BRIEF, network=TINY_NETWORK, split_latent=with_split, progress=False,
    )  # fmt: skip
    assert tuple(made.typical_split_latents) == with_split
    network, flux = made.translator.network, torch.tensor(a.flux[:1], dtype=torch.float32)
    x, lent = (flux - 0.92) / 0.11, (torch.tensor(b.flux[:1], dtype=torch.float32) - 0.92) / 0.11
    z, own = encoded(network, 0, x)
    split = encoded(network, 1, lent)[1]
    expected = x + (decoded(network, 1, z, split) - decoded(network, 0, z, own))[:, 0]
    like = {"like": spectrum(b.flux[0])} if "second" in with_split else {}
    found = made.to_second(spectrum(a.flux[0]), **like).flux.value
    np.testing.assert_allclose(found, (0.92 + 0.11 * expected[0]).numpy(), atol=1e-5)
    if "first" not in with_split:
        with pytest.raises(ValueError, match="like has no effect: domain 'first' has no split latent"):
            made.to_first(spectrum(b.flux[0]), like=spectrum(a.flux[0]))


def test_sides_that_do_not_exist_are_named(data):
    a = few(data["A"])
    with pytest.raises(ValueError, match="split_latent must be of 'first' and 'second', but has 'c', 'd'"):
        train_translation(a.flux, a.errors, a.flux, a.errors, wavelength=GRID, split_latent=("c", "d"))


def test_networks_without_filters_have_no_split_latents(data):
    with pytest.raises(ValueError, match="a domain shall have a split latent, but split_filters of the networks is 0"):
        train_domains(
            {"A": few(data["A"], split_latent=True), "B": few(data["B"])},
            wavelength=GRID, settings=BRIEF, network=LAYERS | {"split_filters": 0}, progress=False,
        )  # fmt: skip


# -- domains that are added ---------------------------------------------------------------------
def test_a_domain_is_added_without_a_change_to_the_others(trained, with_third, tmp_path):
    before, after = (made.translator.network.state_dict() for made in (trained, with_third))
    assert {name: value.numpy().tobytes() for name, value in before.items()} == {
        name: after[name].numpy().tobytes() for name in before
    }
    assert all(name.startswith("domains.3.") for name in after.keys() - before.keys())
    star = spectrum(stars(1, "A", np.random.default_rng(0))[1][0])
    first, second = (made.translate(star, "A", "B") for made in (trained, with_third))
    np.testing.assert_array_equal(first.flux.value, second.flux.value)
    np.testing.assert_array_equal(first.uncertainty.array, second.uncertainty.array)
    with_third.save(tmp_path / "four.safetensors")
    assert Translation.load(tmp_path / "four.safetensors").domains == ("code", "A", "B", "C")


def test_errors_are_known_of_what_was_seen(with_third):
    known = with_third.scatter.keys()
    assert {("C", other) for other in ("code", "A", "B")} | {("code", "C")} <= known
    assert ("A", "C") not in known
    star = spectrum(stars(1, "A", np.random.default_rng(0))[1][0])
    assert with_third.translate(star, "A", "C").uncertainty is None


def test_the_card_of_an_added_domain_keeps_what_was_there(with_third):
    card = str(with_third)
    assert card.startswith("<Translation translation>\ndomains: code, A, B and C\n")
    assert "code domain: an emulator, 300 rows of labels, 270 spectra" in card
    assert "training: 240 iterations" in card
    assert "training of C: 100 iterations" in card
    assert "C was added: beside code, all but it unchanged" in card


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("A", {}, "has a domain 'A' already"),
        ("C", {"beside": {}}, "beside must be of the domains code, A, B, but is empty"),
        ("C", {"beside": {"D": None}}, "but has 'D'"),
        ("C", {"settings": TrainingSettings(warm_start=3)}, "warm_start must be 0 where domains are added"),
    ],
)
def test_what_cannot_be_added_is_named(brief, data, name, changes, message):
    options = {"beside": {"A": few(data["A"])}, "settings": BRIEF, "progress": False} | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        add_domain(brief, name, few(data["C"]), **options)


def test_flux_is_standardised_as_that_of_the_others(brief, data):
    """Whatever the settings say: other standardisation would make the trained networks see other spectra."""
    other = TrainingSettings(n_iterations=6, learning_rate=2e-3, flux_mean=0.5, flux_std=0.3, sigma_max=0.2, seed=3)
    assert_same(toy_added(brief, data), toy_added(brief, data, settings=other))


# -- what goes along ----------------------------------------------------------------------------
def test_masks_and_errors_go_along(brief, data):
    mask = np.arange(415) % 50 == 3
    star = spectrum(np.where(mask, np.nan, data["B"].flux[0]), mask=mask)
    other = brief.translate(star, "B", "code")
    np.testing.assert_array_equal(other.mask, mask)
    expected = np.hypot(SIGMA, brief.scatter["B", "code"])[~mask]
    np.testing.assert_allclose(other.uncertainty.array[~mask], expected)
    assert other.meta["domain"] == "code"


def test_values_of_masked_pixels_do_not_matter(brief, data):
    spoilt = {name: few(data[name]) for name in ("code", "A", "B")}
    for name in "AB":
        spoilt[name] = few(data[name], flux=np.where(data[name].mask, np.nan, data[name].flux)[:40])
    assert_same(brief, toy(spoilt | {}, names=tuple(spoilt)))


def test_a_spectrum_with_an_uncertainty_is_a_domain(brief, data):
    given = {name: few(data[name]) for name in ("code", "A", "B")}
    given["A"] = spectrum(given["A"].flux, mask=given["A"].mask)
    options = {"settings": BRIEF, "network": TINY_NETWORK, "progress": False}
    assert_same(brief, train_domains(given, **options))  # and brings the wavelengths along


def test_a_translation_of_more_than_two_asks_for_names(brief, data):
    star = spectrum(data["A"].flux[0])
    with pytest.raises(ValueError, match=r"has 3 domains, code, A and B; use translate"):
        brief.to_second(star)
    with pytest.raises(ValueError, match="there is no domain 'D'; those of 'translation' are code, A and B"):
        brief.translate(star, "A", "D")
    with pytest.raises(ValueError, match="source and target must differ, but both are 'A'; see reconstruct"):
        brief.translate(star, "A", "A")


# -- the file ---------------------------------------------------------------------------------
def test_a_saved_translation_is_the_same_to_the_bit(brief, data, tmp_path):
    brief.save(tmp_path / "saved.safetensors")
    again, star = Translation.load(tmp_path / "saved.safetensors"), spectrum(data["A"].flux[0])
    assert_same(brief, again)
    assert str(again) == str(brief)
    one, other = (made.translate(star, "A", "code").flux.value for made in (brief, again))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("split_filters", [2, 0])
def test_files_of_version_1_are_read(tmp_path, split_filters):
    """Two domains in the network of the paper, as `Translation` wrote them at first."""
    torch.manual_seed(1)
    sizes = NetworkSettings(**TINY_NETWORK.to_dict() | {"split_filters": split_filters})
    network = TranslationNetwork(sizes).eval()
    rng = np.random.default_rng(0)
    typical = rng.normal(size=(2, 10)) if split_filters else None

    def translated(flux, to_second):
        x = (torch.tensor(flux, dtype=torch.float32) - 0.92) / 0.11
        with torch.no_grad():
            z, split = (network.encode_synth(x), None) if to_second else network.encode_obs(x)
            if to_second:
                split = None if typical is None else torch.tensor(typical[None], dtype=torch.float32)
            gap = network.decode_obs(z, split) - network.decode_synth(z)
        return (0.92 + 0.11 * (x + gap if to_second else x - gap)).double().numpy()

    flat, scatter = np.ones((1, 415)), {"first": rng.uniform(0.01, 0.02, 415), "second": rng.uniform(0.01, 0.02, 415)}
    arrays = {f"network.{key}": value.numpy() for key, value in network.state_dict().items()}
    arrays |= {f"scatter.{side}": array for side, array in scatter.items()}
    arrays |= {"grid.wavelength": GRID.wavelength.value, "selftest.first": translated(flat, False)[0]}
    arrays["selftest.second"] = translated(flat, True)[0]
    if typical is not None:
        arrays["typical_split_latent"] = typical
    meta = {
        "kind": "translation", "version": 1, "name": "old", "domains": ["UVES", "APOGEE"], "chips": GRID.chips,
        "degree": None, "network": sizes.to_dict(), "flux_mean": 0.92, "flux_std": 0.11, "translation": "residual",
        "noise": {"sigma_floor": 0.005, "sigma_max": 0.05, "fill": 1.0}, "provenance": {"training": "long ago"},
    }  # fmt: skip
    save_arrays(arrays, meta, tmp_path / "old.safetensors")
    made = Translation.load(tmp_path / "old.safetensors")
    flux = LineFamily()(LineFamily().draw(1, rng))
    for function, to_second, to in ((made.to_second, True, "second"), (made.to_first, False, "first")):
        star = function(spectrum(flux[0]))
        np.testing.assert_allclose(star.flux.value, translated(flux, to_second)[0], atol=1e-5)
        np.testing.assert_allclose(star.uncertainty.array, np.hypot(SIGMA, scatter[to]))
    assert made.provenance == {"training": "long ago"}


# -- the training -----------------------------------------------------------------------------
def test_an_interrupted_training_goes_on_to_the_same_translation(brief, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # Ctrl-C after 4 of 6 iterations
        until = translations.TranslationRun.train

        def interrupted(run, **options):
            until(run, until=4, **options)
            raise KeyboardInterrupt

        patch.setattr(translations.TranslationRun, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy(data, folder=tmp_path)
    assert_same(brief, toy(data, folder=tmp_path))
    with pytest.raises(ValueError, match=r"has a training on other spectra \(A"):
        toy(data | {"A": few(data["A"], flux=data["A"].flux[:40] + 0.001)}, folder=tmp_path)
    (tmp_path / "spectra.json").unlink()
    with pytest.raises(OtherRunError, match="was made with other settings: domains"):
        toy(data, names=("code", "A", "C"), folder=tmp_path)


def test_a_watch_scores_all_pairs(data, tmp_path):
    toy(data, watch=WatchSettings(every=3), held_out=0.3, folder=tmp_path)
    assert (tmp_path / "scores.csv").read_text().count("\n") == 3  # titles, iterations 3 and 6
    assert (tmp_path / "best.pt").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"A": np.ones((40, 415))}, TypeError, "domain 'A' must be DomainSpectra(flux, errors), EmulatedSpectra("),
        ({"A": DomainSpectra(np.ones((40, 415)))}, SpectrumError, "errors of A must be given once"),
        (
            {"A": DomainSpectra(np.ones((40, 300)), np.ones((40, 300)))},
            GridError,
            "A has 300 pixels, but there are 415",
        ),
        ({"": DomainSpectra(np.ones((40, 415)))}, ValueError, "the name of a domain must be a text in one line"),
        (
            {"code": EmulatedSpectra(LineEmulator(), np.ones((40, 2)))},
            SpectrumError,
            "labels of 'code' must be finite, of the shape (n, 3) as the emulator's, but have (40, 2)",
        ),
    ],
)
def test_wrong_domains_are_named(data, changes, error, message):
    given = {name: few(data[name]) for name in ("code", "A", "B")} | changes
    with pytest.raises(error, match=re.escape(message)):
        train_domains(given, wavelength=GRID, settings=BRIEF, network=TINY_NETWORK, progress=False)


def test_one_domain_is_not_enough(data):
    with pytest.raises(ValueError, match="domains must be two or more, but there is A"):
        toy(data, names=("A",))


# -- the command line -------------------------------------------------------------------------
CONFIG = f"""
[run]
folder = "run"
name = "toy"
[domains.A]
path = "A.h5"
selection = {{snr = "none"}}
[domains.B]
path = "B.h5"
split_latent = true
memory = "streamed"
selection = {{snr = "none"}}
[domains.C]
path = "C.h5"
name = "third"
selection = {{snr = "none"}}
[training]
n_iterations = 6
flux_mean = 0.92
flux_std = 0.11
[network]
{
    "".join(
        f"{name} = {[list(layer) for layer in v] if isinstance(v, (list, tuple)) else v}" + chr(10)
        for name, v in LAYERS.items()
        if name not in ("slope", "latent_norm")
    )
}
"""


@pytest.fixture
def folder(data, tmp_path):
    """A folder with the files of a training."""
    for name in "ABC":
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["wavelength"] = GRID.wavelength.value
            for split, rows in {"train": slice(30), "val": slice(30, 40)}.items():
                file[f"spectra {split}"] = data[name].flux[rows].astype("f4")
                file[f"spectra_err {split}"] = data[name].errors[rows].astype("f4")
                file[f"spectra_msk {split}"] = (~data[name].mask[rows]).astype("u1")
    (tmp_path / "toy.toml").write_text(CONFIG)
    return tmp_path


def test_files_of_several_domains_are_trained_on(folder, capsys):
    assert main(["train", str(folder / "toy.toml"), "--until", "4"]) == 0
    assert "toy: A, B and third" in capsys.readouterr().out
    assert main(["train", str(folder / "toy.toml")]) == 0
    assert "goes on from iteration 4" in capsys.readouterr().out
    made = Translation.load(folder / "run" / "toy.safetensors")
    assert made.domains == ("A", "B", "third")
    assert tuple(made.typical_split_latents) == ("B",)
    assert made.provenance["third domain"] == "C.h5, 30 spectra"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('path = "C.h5"', 'path = "none.h5"', "[domains.C] path"),
        ('name = "third"', 'name = "A"', "names of domains must differ, but are A, B, A"),
        ('name = "third"', "pixels = [0, 300]", "[domains.C]"),
        ('name = "third"', "splits = 3", "[domains.C] has no key 'splits'"),
        ("[domains.C]", "[second]", "there is no table [second]"),
        ("[training]", "[domains]\nD = 3\n[training]", "[domains] D must be a table, [domains.D]"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said_in_one_line(folder, capsys, old, new, message):
    (folder / "toy.toml").write_text(CONFIG.replace(old, new))
    assert main(["train", str(folder / "toy.toml")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_configuration_of_one_domain_is_refused(folder):
    one = CONFIG[: CONFIG.index("[domains.B]")] + CONFIG[CONFIG.index("[training]") :]
    (folder / "one.toml").write_text(one)
    with pytest.raises(ValueError, match=r"\[domains\] must have two tables or more"):
        read_translation_config(folder / "one.toml")
