"""Public Cycle-StarNet files, made here in their layout, against a float64 computation on the files' own arrays."""

import os
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cyclestarnet import CalibratedModel, FitFlag, GridError, LabelError, ModelFileError
from cyclestarnet.networks.published import PAYNE_LABELS, read_published_checkpoint
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.trainer import Trainer

MEAN, STD = 0.97746492, 0.05180881


@dataclass(frozen=True)
class Layout:
    """Filters and strides of a published network; every kernel has 7 pixels, but those of latents 1."""

    n_pixels: int = 415
    domain: tuple = (6,)
    shared: tuple = (9, 10)
    split: tuple = (4, 5)
    shared_filters: int = 7
    split_filters: int = 3
    critic_x: tuple = (3, 5)
    critic_z: tuple = (6, 4)
    strides: tuple = ((4,), (4, 2), (4, 4))  # of the domain, shared (and split) and critic encoders
    norm: bool = True

    def length(self, *strides):
        n = self.n_pixels
        for stride in strides:
            n = (n - 7) // stride + 1
        return n

    def shapes(self):
        """Shapes of all weights by name: convolutions (out, in, kernel), transposed ones (in, out, kernel)."""
        shapes = {}

        def chain(part, n_in, filters, kernel=7, transposed=False, last=None):
            for k, n in enumerate(filters):
                shapes[f"{part}.{2 * k}"] = (n_in, n, kernel) if transposed else (n, n_in, kernel)
                n_in = n
            if last:
                shapes[f"{part}.{2 * len(filters)}"] = (last, n_in, 1)

        latents = {"sh": (self.shared, self.shared_filters), "sp": (self.split, self.split_filters)}
        latents = {kind: pair for kind, pair in latents.items() if pair[1]}
        for kind, (filters, n) in latents.items():
            chain(f"encoder_{kind}", self.domain[-1], filters, last=n)
            chain(f"decoder_{kind}", n, filters[::-1], transposed=True)
        n_positions = self.length(*self.strides[0], *self.strides[1])
        n_joined = {"synth": (self.shared[0], self.shared_filters)}
        n_joined["obs"] = [sum(pair) for pair in zip(*((f[0], n) for f, n in latents.values()), strict=True)]
        for domain, (n_hidden, n_latent) in n_joined.items():
            chain(f"encoder_{domain}", 1, self.domain)
            chain(f"decoder_{domain}", n_hidden, self.domain[::-1], transposed=True, last=1)
            chain(f"discriminator_{domain}.discriminator_x", 1, self.critic_x)
            chain(f"discriminator_{domain}.discriminator_z", n_latent, self.critic_z, kernel=1)
            n_x = self.critic_x[-1] * self.length(*self.strides[2])
            shapes[f"discriminator_{domain}.fc"] = (1, n_x + self.critic_z[-1] * n_positions)
        return shapes

    def state(self, seed=0):
        """Random weights that keep numbers near 1."""
        generator, state = torch.Generator().manual_seed(seed), OrderedDict()
        for name, shape in self.shapes().items():
            transposed = name.startswith("decoder") and shape[2] > 1
            n_in, n_out = (shape[0] * shape[2] / 3, shape[1]) if transposed else (np.prod(shape[1:]), shape[0])
            state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / n_in) ** 0.5
            state[f"{name}.bias"] = torch.randn(n_out, generator=generator) * 0.1
        return state


TINY = Layout()
LAYOUTS = {
    "split": TINY,
    "mock study": replace(TINY, split_filters=1),
    "no split": replace(TINY, split_filters=0),
    "no norm": replace(TINY, norm=False),
    "other filters": replace(TINY, domain=(5,), shared=(12, 6), split=(3, 2), shared_filters=4, critic_z=(3, 8)),
}
PAPER = Layout(
    n_pixels=7167, domain=(32, 64), shared=(128, 256, 512), split=(32, 32, 32), shared_filters=25, split_filters=4,
    critic_x=(16, 32, 64, 128, 256), critic_z=(32, 64, 128, 256, 512), strides=((4, 4), (4, 2, 2), (4,) * 5),
)  # fmt: skip
THIN = replace(
    PAPER, domain=(3, 4), shared=(5, 6, 8), split=(2, 2, 2), shared_filters=6, split_filters=2,
    critic_x=(2,) * 5, critic_z=(2,) * 5,
)  # fmt: skip


@pytest.fixture(scope="module")
def template(tiny_settings):
    """The strides and pixels of the layouts; its filters are others."""
    return {norm: NetworkSettings(**(tiny_settings.to_dict() | {"latent_norm": norm})) for norm in (True, False)}


def save(path, state, *, zipped=True, **other):
    """A file as the public code writes it: states of optimisers and schedules, numpy numbers, a default dictionary."""
    layer = torch.nn.Linear(3, 2)
    adam = torch.optim.Adam(layer.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, [5e4, 25e5], 0.7)
    layer(torch.ones(3)).sum().backward()
    adam.step()
    losses = defaultdict(list)
    losses["rec_obs"] += [np.mean([1.0, 2.0]), np.float32(3)]
    content = {
        "batch_iters": 1000, "losses": losses, "optimizer_rec_and_gen": adam.state_dict(),
        "optimizer_dis": adam.state_dict(), "lr_scheduler_rg": schedule.state_dict(), "cycle_model": state,
    }  # fmt: skip
    torch.save(content | other, path, _use_new_zipfile_serialization=zipped)
    return path


# -- independent truth -----------------------------------------------------------------
class Truth:
    """The published networks by bare functions, in float64."""

    def __init__(self, layout, state):
        self.layout = layout
        self.arrays = {name: array.double() for name, array in state.items()}

    def walk(self, part, x, strides, *, transposed=False, last=False, norm=False):
        for k, stride in enumerate(strides):
            function = F.conv_transpose1d if transposed else F.conv1d
            weight, bias = (self.arrays[f"{part}.{2 * k}.{kind}"] for kind in ("weight", "bias"))
            x = F.leaky_relu(function(x, weight, bias, stride=stride), 0.1)
        if last:
            x = F.conv1d(x, *(self.arrays[f"{part}.{2 * len(strides)}.{kind}"] for kind in ("weight", "bias")))
        return F.instance_norm(x) if norm else x

    def encode(self, domain, flux):
        """Shared latents, and split ones of the observed domain."""
        layout = self.layout
        hidden = self.walk(f"encoder_{domain}", flux[:, None], layout.strides[0])
        kinds = ["sh", "sp"] if domain == "obs" and layout.split_filters else ["sh"]
        z = [self.walk(f"encoder_{k}", hidden, layout.strides[1], last=True, norm=layout.norm) for k in kinds]
        return z[0], z[1] if len(z) > 1 else None

    def decode(self, domain, z_shared, z_split=None):
        strides = [strides[::-1] for strides in self.layout.strides]
        hidden = [self.walk("decoder_sh", z_shared, strides[1], transposed=True)]
        if domain == "obs" and z_split is not None:
            hidden.append(self.walk("decoder_sp", z_split, strides[1], transposed=True))
        return self.walk(f"decoder_{domain}", torch.cat(hidden, 1), strides[0], transposed=True, last=True)[:, 0]

    def critic(self, domain, flux, z_shared, z_split=None):
        """Logits."""
        latent = z_shared if z_split is None else torch.cat([z_shared, z_split], 1)
        part = f"discriminator_{domain}"
        x = self.walk(f"{part}.discriminator_x", flux[:, None], self.layout.strides[2])
        z = self.walk(f"{part}.discriminator_z", latent, [1] * len(self.layout.critic_z))
        features = torch.cat([x.flatten(1), z.flatten(1)], 1)
        return F.linear(features, self.arrays[f"{part}.fc.weight"], self.arrays[f"{part}.fc.bias"])[:, 0]


def random_spectra(layout, n=3, seed=1):
    return torch.randn(n, layout.n_pixels, generator=torch.Generator().manual_seed(seed))


def assert_close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def case(request, tmp_path, template):
    """A file, what we read from it, and the truth."""
    layout = request.param
    state = layout.state()
    path = save(tmp_path / "net.pth.tar", state)
    network, critics = read_published_checkpoint(path, template=template[layout.norm])
    return SimpleNamespace(layout=layout, state=state, network=network, critics=critics, truth=Truth(layout, state))


# -- the networks --------------------------------------------------------------------------
def test_mappings_of_synthetic_spectra(case):
    x, other = random_spectra(case.layout), random_spectra(case.layout, seed=2)
    z, _ = case.truth.encode("synth", x.double())
    _, split = case.truth.encode("obs", other.double())
    assert_close(case.network.decode_synth(case.network.encode_synth(x)), case.truth.decode("synth", z))
    translated = case.network.synth_to_obs(x, case.network.encode_obs(other)[1])
    assert_close(translated, case.truth.decode("obs", z, split))


def test_mappings_of_observed_spectra(case):
    x = random_spectra(case.layout)
    z, split = case.truth.encode("obs", x.double())
    assert_close(case.network.decode_obs(*case.network.encode_obs(x)), case.truth.decode("obs", z, split))
    assert_close(case.network.obs_to_synth(x), case.truth.decode("synth", z))


def test_critics(case):
    x = random_spectra(case.layout)
    z, split = case.truth.encode("obs", x.double())
    latent = torch.cat([z, split] if split is not None else [z], 1).float()
    assert_close(case.critics[0](x, z.float()), case.truth.critic("synth", x.double(), z))
    assert_close(case.critics[1](x, latent), case.truth.critic("obs", x.double(), z, split))


def test_networks_are_ready_for_use(case):
    modules = [case.network, *case.critics]
    assert not any(part.training for module in modules for part in module.modules())
    assert not any(array.requires_grad for module in modules for array in module.parameters())


def test_paper_size(tmp_path):
    state = PAPER.state()
    network, critics = read_published_checkpoint(save(tmp_path / "kurucz_to_apogee_1.pth.tar", state))
    counts = [sum(array.numel() for array in module.parameters()) for module in (network, *critics)]
    assert counts == [2_686_815, 494_945, 495_073]
    x = random_spectra(PAPER, 1)
    truth = Truth(PAPER, state)
    z, split = truth.encode("obs", x.double())
    assert_close(network.decode_obs(*network.encode_obs(x)), truth.decode("obs", z, split))
    assert_close(critics[1](x, torch.cat([z, split], 1).float()), truth.critic("obs", x.double(), z, split))


def test_file_of_old_torch(tmp_path, template):
    network, _ = read_published_checkpoint(
        save(tmp_path / "old.pth.tar", TINY.state(), zipped=False), template=template[True]
    )
    torch.testing.assert_close(network.state_dict()["encoder_sh.0.weight"], TINY.state()["encoder_sh.0.weight"])


@pytest.mark.parametrize("wrapped", ["module.{0}.{1}", "{0}.module.{1}", "{0}.model.{1}", "module.{0}.model.{1}"])
def test_wrappers_are_stripped(tmp_path, template, wrapped):
    state = {wrapped.format(*name.split(".", 1)): array for name, array in TINY.state().items()}
    network, critics = read_published_checkpoint(save(tmp_path / "net.pth.tar", state), template=template[True])
    assert torch.equal(network.encoder_obs[0].weight, TINY.state()["encoder_obs.0.weight"])
    assert torch.equal(critics[1].fc.weight, TINY.state()["discriminator_obs.fc.weight"])


def test_file_without_critics(tmp_path, template):
    state = {name: array for name, array in TINY.state().items() if not name.startswith("discriminator")}
    _, critics = read_published_checkpoint(save(tmp_path / "net.pth.tar", state), template=template[True])
    assert critics is None


def test_global_random_state_is_left_alone(tmp_path, template):
    path = save(tmp_path / "net.pth.tar", TINY.state())
    before = torch.get_rng_state()
    read_published_checkpoint(path, template=template[True])
    assert torch.equal(torch.get_rng_state(), before)


# -- training goes on --------------------------------------------------------------------------
class Batches:
    """A source that gives a trainer these rows, one batch after the other."""

    def __init__(self, *arrays):
        self.arrays, self.label_mean = arrays, torch.zeros(1)
        self.n_drawn = 0

    def draw(self, n, generator):
        self.n_drawn += n
        return tuple(array[self.n_drawn - n : self.n_drawn] for array in self.arrays)

    def to(self, device):
        return self


def step_losses(truth, x_synth, x_obs, weight_obs):
    """S1, Section 2.3: every term of one iteration; the critics' on detached tensors."""
    (z_synth, _), (z_obs, split) = truth.encode("synth", x_synth), truth.encode("obs", x_obs)
    rec_synth, rec_obs = truth.decode("synth", z_synth), truth.decode("obs", z_obs, split)
    to_obs, to_synth = truth.decode("obs", z_synth, split), truth.decode("synth", z_obs)
    z_back, split_back = truth.encode("obs", to_obs)
    cyc_synth = truth.decode("synth", z_back)
    cyc_obs = truth.decode("obs", truth.encode("synth", to_synth)[0], split)

    def distance(a, b, weight):
        return (((a - b) * weight) ** 2).mean()

    def surprise(logits, target):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    weight_synth = STD / 0.005
    own = {
        "rec_synth": distance(rec_synth, x_synth, weight_synth), "rec_obs": distance(rec_obs, x_obs, weight_obs),
        "cyc_synth": distance(cyc_synth, x_synth, weight_synth), "cyc_obs": distance(cyc_obs, x_obs, weight_obs),
        "gen_synth": surprise(truth.critic("synth", to_synth, z_obs), 1.0),
        "gen_obs": surprise(truth.critic("obs", to_obs, z_synth, split_back), 1.0),
    }  # fmt: skip
    judged = {
        "synth": ((rec_synth, z_synth), (to_synth, z_obs)),
        "obs": ((rec_obs, z_obs, split), (to_obs, z_synth, split_back)),
    }

    def critics():
        losses = {}
        for domain, pairs in judged.items():
            true, fake = ([None if a is None else a.detach() for a in pair] for pair in pairs)
            right = surprise(truth.critic(domain, *true), 1.0), surprise(truth.critic(domain, *fake), 0.0)
            losses[f"critic_{domain}"] = sum(right)
        return losses

    return own, critics


class Adam:
    """Kingma & Ba (2015), Algorithm 1, with β = 0.5, 0.999."""

    def __init__(self, arrays, rate):
        self.arrays, self.rate, self.t = arrays, rate, 0
        self.m, self.v = ([torch.zeros_like(array) for array in arrays] for _ in range(2))

    def step(self, loss):
        self.t += 1
        gradients = torch.autograd.grad(loss, self.arrays)
        with torch.no_grad():
            for array, g, m, v in zip(self.arrays, gradients, self.m, self.v, strict=True):
                m += 0.5 * (g - m)
                v += 0.001 * (g**2 - v)
                array -= self.rate * (m / (1 - 0.5**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)


@pytest.mark.parametrize(
    "layout", [TINY, LAYOUTS["no split"], LAYOUTS["no norm"]], ids=["split", "no split", "no norm"]
)
def test_training_goes_on_as_the_paper_says(tmp_path, template, layout):
    """In float64: Adam turns the rounding of a gradient that is zero into a step of full size."""
    path = save(tmp_path / "net.pth.tar", layout.state())
    network, critics = read_published_checkpoint(path, template=template[layout.norm])
    x_synth, x_obs = (random_spectra(layout, 6, seed).double() for seed in (1, 2))
    weight = torch.rand(x_obs.shape, generator=torch.Generator().manual_seed(3)).double() * 10
    settings = TrainingSettings.from_preset("paper", batch_size=3)
    trainer = Trainer(network.settings, settings, Batches(x_synth, torch.zeros(6, 1)), Batches(x_obs, weight))
    parts = {"network": network, "critic_synth": critics[0], "critic_obs": critics[1]}
    for name, part in parts.items():
        getattr(trainer, name).load_state_dict(part.state_dict())
        getattr(trainer, name).double()
    trainer.average = {name: array.double() for name, array in network.state_dict().items()}
    trainer._dtype = getattr(trainer, "parts", trainer).dtype = torch.float64

    truth = Truth(layout, layout.state())
    leaves = {name: array.requires_grad_() for name, array in truth.arrays.items()}
    own = Adam([a for name, a in leaves.items() if not name.startswith("discriminator")], 1e-4)
    judges = Adam([a for name, a in leaves.items() if name.startswith("discriminator")], 1e-4)
    for rows in (slice(3), slice(3, 6)):
        terms, critic_terms = step_losses(truth, x_synth[rows], x_obs[rows], weight[rows])
        synth, obs = (terms[f"rec_{d}"] + terms[f"cyc_{d}"] for d in ("synth", "obs"))
        own.step(3 * synth + 9 * obs + terms["gen_synth"] + terms["gen_obs"])
        terms |= critic_terms()
        judges.step(terms["critic_synth"] + terms["critic_obs"])
        found = trainer.step()
        assert {name: found[name] for name in terms} == pytest.approx({n: t.item() for n, t in terms.items()}, rel=1e-5)
    for name, array in leaves.items():
        part = name.partition(".")[0]
        module = {"discriminator_synth": trainer.critic_synth, "discriminator_obs": trainer.critic_obs}.get(part)
        found = module.state_dict()[name.removeprefix(f"{part}.")] if module else trainer.network.state_dict()[name]
        assert_close(found, array.detach(), 1e-7)


# -- files that do not fit ---------------------------------------------------------------------
def without(*names):
    return lambda state: {name: array for name, array in state.items() if not name.startswith(names)}


def with_changes(**changes):
    changes = {name.replace("__", "."): array for name, array in changes.items()}
    return lambda state: state | changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("encoder_sh."), "sub-networks of cycle_model do not fit: missing encoder_sh"),
        (without("decoder_sp."), "sub-networks of cycle_model do not fit: missing decoder_sp"),
        (without("discriminator_obs."), "sub-networks of cycle_model do not fit: missing discriminator_obs"),
        (with_changes(flow__0__weight=torch.ones(1)), "sub-networks of cycle_model do not fit: unexpected flow"),
        (without("encoder_obs.0.bias"), "arrays of cycle_model do not fit: missing encoder_obs.0.bias"),
        (without("decoder_obs.2."), "missing decoder_obs.2.bias, decoder_obs.2.weight"),
        (with_changes(decoder_obs__4__bias=torch.ones(1)), "unexpected decoder_obs.4.bias"),
        (with_changes(encoder_obs__0__bias=torch.ones(8)), r"misshapen encoder_obs.0.bias \(8,\) where \(6,\) fits"),
        (with_changes(encoder_sh__6__weight=torch.ones(4, 7, 1)), r"has weights at the layers \[0, 2, 4, 6\], but"),
        (without("encoder_synth.0.weight"), r"encoder_synth has weights at the layers \[\], but .* strides for \[0\]"),
        (with_changes(encoder_synth__0__weight=torch.ones(4, 7)), r"must be of convolutions, .* shapes \[\(4, 7\)\]"),
        (with_changes(encoder_synth__0__weight=torch.ones(6, 1, 3)), "layers do not fit the pixels and strides"),
        (with_changes(encoder_obs__0__bias=torch.full((6,), np.nan)), "encoder_obs.0.bias must be an array of finite"),
        (with_changes(encoder_obs__0__bias=3), "encoder_obs.0.bias must be an array of finite"),
        (with_changes(module__encoder_obs__0__bias=torch.ones(6)), "encoder_obs.0.bias is there twice"),
        (lambda state: list(state), "cycle_model must be a state dict, but is a list"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, template, change, message):
    path = save(tmp_path / "net.pth.tar", change(dict(TINY.state())))
    with pytest.raises(ModelFileError, match=message):
        read_published_checkpoint(path, template=template[True])


def test_critics_show_that_the_pixels_are_others(tmp_path, template):
    longer = NetworkSettings(**(template[True].to_dict() | {"n_pixels": 447}))
    with pytest.raises(ModelFileError, match=r"of other pixels or strides than the template: discriminator_synth\.fc"):
        read_published_checkpoint(save(tmp_path / "net.pth.tar", TINY.state()), template=longer)


def test_file_of_something_else(tmp_path):
    torch.save({"Payne": {}}, tmp_path / "net.pth.tar")
    with pytest.raises(ModelFileError, match=r"must hold cycle_model, but holds \['Payne'\]"):
        read_published_checkpoint(tmp_path / "net.pth.tar")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file(tmp_path, template, zipped):
    path = save(tmp_path / "net.pth.tar", TINY.state(), zipped=zipped)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ModelFileError, match="damaged"):
        read_published_checkpoint(path, template=template[True])


class Planted:
    """Makes a folder when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"mkdir {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, template, zipped):
    path = save(tmp_path / "net.pth.tar", TINY.state(), zipped=zipped, losses=Planted(tmp_path / "planted"))
    with pytest.raises(ModelFileError, match="no file of plain weights"):
        read_published_checkpoint(path, template=template[True])
    assert not (tmp_path / "planted").exists()


# -- the emulator, and the whole model ---------------------------------------------------------
def payne_arrays(n_labels=25, n_pixels=7214, seed=5):
    """A Payne of spectra near 1 on both sides of the kink of its activation, which no label crosses."""
    rng = np.random.default_rng(seed)
    sizes, state = (n_labels, 30, 30, n_pixels), {}
    for k, size in enumerate((0.4, 0.1, 0.02)):
        bias = np.ones(n_pixels) if k == 2 else rng.choice([-3.0, 3.0], sizes[k + 1])
        state[f"{2 * k}.weight"] = torch.tensor(rng.normal(0, size, (sizes[k + 1], sizes[k])), dtype=torch.float32)
        state[f"{2 * k}.bias"] = torch.tensor(bias, dtype=torch.float32)
    lower = np.array([3500.0, 0.0, 0.5, *[-1.5] * (n_labels - 3)])
    upper = np.array([6500.0, 5.0, 3.0, *[0.5] * (n_labels - 3)])
    return state, torch.tensor(lower, dtype=torch.float32), torch.tensor(upper, dtype=torch.float32)


def save_payne(path, state, lower, upper):
    torch.save({"Payne": OrderedDict(state), "y_min": lower, "y_max": upper}, path)
    return path


def payne(state, scaled):
    """Ting et al. (2019) on scaled labels, in float64."""
    x = torch.as_tensor(scaled, dtype=torch.float64)
    for k in (0, 2):
        x = F.leaky_relu(F.linear(x, state[f"{k}.weight"].double(), state[f"{k}.bias"].double()), 0.01)
    return F.linear(x, state["4.weight"].double(), state["4.bias"].double())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint with a thin network of the paper's strides and its emulator."""
    folder = tmp_path_factory.mktemp("published")
    state, arrays = THIN.state(seed=7), payne_arrays()
    whole = state | {f"emulator.{name}": array for name, array in arrays[0].items()}
    return SimpleNamespace(
        checkpoint=save(folder / "kurucz_to_apogee_1.pth.tar", whole),
        emulator=save_payne(folder / "PAYNE.pth.tar", *arrays),
        truth=Truth(THIN, state),
        arrays=arrays,
        folder=folder,
    )


@pytest.fixture(scope="module")
def model(files):
    return CalibratedModel.from_published(files.checkpoint, files.emulator, preset="paper")


def star(model, scaled=0.1):
    """Labels this far from the middle, in units of their ranges."""
    values = (model.labels.lower + model.labels.upper) / 2 + scaled * model.labels.scale
    return model.labels.to_quantities(values)


def standardised(flux):
    return (torch.as_tensor(flux) - MEAN) / STD


def test_labels_are_those_of_the_payne(model):
    assert model.labels.names == PAYNE_LABELS
    assert len(set(PAYNE_LABELS)) == 25
    assert [model.labels.units[name] for name in ("teff", "vmacro")] == [u.K, u.km / u.s]
    assert (model.labels.lower[0], model.labels.upper[0]) == (3500, 6500)


@pytest.mark.parametrize(("preset", "pixels"), [("paper", slice(0, 7167)), ("repository", slice(47, 7214))])
def test_pixels_of_the_presets(files, preset, pixels):
    model = CalibratedModel.from_published(files.checkpoint, files.emulator, preset=preset)
    assert model.translation == "paper"
    predicted = model.predict(star(model), domain="synthetic")
    np.testing.assert_allclose(predicted.flux.value, payne(files.arrays[0], np.full(25, 0.1))[pixels], atol=1e-5)
    index = np.r_[322:3242, 3648:6048, 6412:8306][pixels]
    np.testing.assert_allclose(predicted.spectral_axis.to_value(u.AA), 10 ** (4.179 + 6e-6 * index), rtol=1e-12)


def test_prediction_of_observed_spectra(model, files):
    x = standardised(payne(files.arrays[0], np.full((1, 25), 0.1))[:, :7167])
    expected = files.truth.decode("obs", files.truth.encode("synth", x)[0], torch.zeros(1, 2, 24).double())
    np.testing.assert_allclose(model.predict(star(model)).flux.value, expected[0] * STD + MEAN, atol=1e-5)


def test_translations(model, files):
    flux = payne(files.arrays[0], np.full(25, -0.2))[:7167].numpy()
    spectrum = to_spectrum(flux, model.grid, ivar=np.full(7167, 1e4))
    truth, x = files.truth, standardised(flux)[None]
    (z_synth, _), (z_obs, split) = truth.encode("synth", x), truth.encode("obs", x)
    pairs = {
        "to_observed": (model.to_observed(spectrum, like=spectrum), truth.decode("obs", z_synth, split)),
        "to_synthetic": (model.to_synthetic(spectrum), truth.decode("synth", z_obs)),
        "observed": (model.reconstruct(spectrum), truth.decode("obs", z_obs, split)),
        "synthetic": (model.reconstruct(spectrum, domain="synthetic"), truth.decode("synth", z_synth)),
    }
    for name, (found, expected) in pairs.items():
        np.testing.assert_allclose(found.flux.value, expected[0] * STD + MEAN, atol=1e-5, err_msg=name)


def test_temperatures_in_units_of_1000_kelvin(model, files, tmp_path):
    state, lower, upper = files.arrays
    in_kilokelvin = torch.tensor([1e-3, *[1] * 24])
    path = save_payne(tmp_path / "PAYNE.pth.tar", state, lower * in_kilokelvin, upper * in_kilokelvin)
    other = CalibratedModel.from_published(files.checkpoint, path, preset="paper")
    np.testing.assert_allclose(other.labels.upper, model.labels.upper, rtol=1e-6)
    labels = star(model) | {"teff": 5500 * u.K}
    np.testing.assert_allclose(other.predict(labels).flux.value, model.predict(labels).flux.value, atol=1e-5)


def test_derivatives_against_finite_differences(model, files):
    table = model.derivative_spectra(star(model), domain="synthetic").to_table()
    assert table.colnames == ["wavelength", *PAYNE_LABELS]
    assert table["teff"].unit == 1 / u.K
    step = np.zeros(25)
    step[0] = 1e-6
    low, high = (payne(files.arrays[0], 0.1 + sign * step)[:7167] for sign in (-1, 1))
    np.testing.assert_allclose(table["teff"].value, (high - low) / (2e-6 * 3000), atol=1e-8)


def test_derivatives_of_observed_spectra(model, files):
    zero = torch.zeros(1, 2, 24).double()

    def flux(scaled):
        x = standardised(payne(files.arrays[0], scaled)[None, :7167])
        return files.truth.decode("obs", files.truth.encode("synth", x)[0], zero)[0] * STD

    step = np.zeros(25)
    step[PAYNE_LABELS.index("mg_h")] = 1e-6
    expected = (flux(0.1 + step) - flux(0.1 - step)) / (2e-6 * 2.0)
    found = model.derivative_spectrum(star(model), "mg_h")
    np.testing.assert_allclose(found.value, expected, atol=1e-4)


def test_fit_without_translation_finds_the_labels(model, files):
    rng = np.random.default_rng(3)
    truth = np.full(25, 0.1)
    flux = rng.normal(payne(files.arrays[0], truth)[:7167].numpy(), 0.005)
    result = model.fit(to_spectrum(flux, model.grid, ivar=np.full(7167, 0.005**-2)), space="emulator")
    assert result.success
    offset = result.values - (model.labels.lower + model.labels.upper) / 2 - truth * model.labels.scale
    assert np.sqrt(offset @ np.linalg.solve(result.covariance, offset) / 25) < 1.2
    assert not result.flags & (FitFlag.UNFAMILIAR | FitFlag.OUTSIDE_TRAINING | FitFlag.POOR_FIT)


def test_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model.safetensors")
    again = CalibratedModel.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.predict(star(model)).flux.value, model.predict(star(model)).flux.value)
    assert (again.name, again.labels, again.limits) == ("kurucz_to_apogee_1", model.labels, model.limits)
    assert again.population.shared_latents.distance(np.ones((1, 6, 24))) == pytest.approx(1)


def test_provenance_says_what_was_assumed(model, files):
    assert "prior" in model.provenance["assumed"]
    assert model.provenance["preset"] == "paper"
    assert model.provenance["emulator"].startswith("PAYNE.pth.tar, sha256 ")


@pytest.mark.parametrize("preset", ["paper", "repository"])
def test_continuum_pixels_lie_where_they_were_found(files, preset):
    model = CalibratedModel.from_published(files.checkpoint, files.emulator, preset=preset)
    chosen = model.grid.wavelength[model.recipe.pixels].to_value(u.AA)
    original = CalibratedModel.from_pretrained().recipe
    listed = original.grid.wavelength[original.pixels].to_value(u.AA)
    np.testing.assert_allclose(chosen, listed[listed > model.grid.wavelength.value[0] - 0.01], rtol=1e-9)


@pytest.fixture(scope="module")
def small(files):
    """A model of three labels without split latent, and its truth."""
    layout, arrays = replace(THIN, split_filters=0), payne_arrays(3)
    state = layout.state(seed=11)
    checkpoint = save(files.folder / "mock.pth.tar", state)
    emulator = save_payne(files.folder / "mock_PAYNE.pth.tar", *arrays)
    model = CalibratedModel.from_published(checkpoint, emulator, preset="paper", labels=["teff", "logg", "vmicro"])
    return SimpleNamespace(
        model=model, truth=Truth(layout, state), arrays=arrays, checkpoint=checkpoint, emulator=emulator
    )


def translated_star(small, scaled):
    """An emulator spectrum in the observed domain, with noise."""
    x = standardised(payne(small.arrays[0], scaled)[None, :7167])
    flux = small.truth.decode("obs", small.truth.encode("synth", x)[0])[0].numpy() * STD + MEAN
    flux = np.random.default_rng(9).normal(flux, 0.002)
    return to_spectrum(flux, small.model.grid, ivar=np.full(7167, 0.002**-2))


def test_fit_finds_the_labels_of_a_translated_star(small):
    scaled = np.array([0.2, -0.1, 0.1])
    result = small.model.fit(translated_star(small, scaled), method="lbfgs")  # to much less than an error bar
    middle = (small.model.labels.lower + small.model.labels.upper) / 2
    np.testing.assert_allclose((result.values - middle) / small.model.labels.scale, scaled, atol=0.01)
    assert result.success


def test_fit_in_the_synthetic_space_runs(small):
    result = small.model.fit(translated_star(small, np.array([0.2, -0.1, 0.1])), space="synthetic")
    assert result.success
    assert np.isfinite(result.covariance).all()


def test_other_emulators_need_names_of_labels(small):
    with pytest.raises(LabelError, match="takes 3 labels, not the paper's 25; name them by `labels`"):
        CalibratedModel.from_published(small.checkpoint, small.emulator, preset="paper")


def test_names_of_labels_must_be_as_many(files):
    with pytest.raises(LabelError, match="labels names 2 labels, but the emulator takes 25: teff, logg"):
        CalibratedModel.from_published(files.checkpoint, files.emulator, preset="paper", labels=["teff", "logg"])


def test_unknown_preset(files):
    with pytest.raises(ValueError, match="must be one of 'paper', 'repository', but is 'ours'"):
        CalibratedModel.from_published(files.checkpoint, files.emulator, preset="ours")


def test_emulator_on_the_pixels_of_the_network(small, tmp_path):
    state, lower, upper = small.arrays
    cut = state | {name: state[name][:7167] for name in ("4.weight", "4.bias")}
    emulator = save_payne(tmp_path / "PAYNE.pth.tar", cut, lower, upper)
    model = CalibratedModel.from_published(small.checkpoint, emulator, preset="paper", labels=small.model.labels.names)
    labels = star(model)
    np.testing.assert_array_equal(model.predict(labels).flux.value, small.model.predict(labels).flux.value)


def test_emulator_of_other_pixels(small, tmp_path):
    emulator = save_payne(tmp_path / "PAYNE.pth.tar", *payne_arrays(3, n_pixels=7200))
    with pytest.raises(GridError, match="has 7200 pixels, but must have 7214, or the network's 7167"):
        CalibratedModel.from_published(small.checkpoint, emulator, preset="paper", labels=small.model.labels.names)


def test_emulator_that_the_network_was_not_trained_with(files, tmp_path):
    emulator = save_payne(tmp_path / "PAYNE.pth.tar", *payne_arrays(seed=6))
    with pytest.raises(ModelFileError, match="trained with another emulator than the one given"):
        CalibratedModel.from_published(files.checkpoint, emulator, preset="paper")


def test_network_that_knows_the_pixels_of_the_other_preset(files, tmp_path):
    """Its decoder makes the one spectrum of the emulator, whatever comes in, on the 7167 reddest pixels."""
    state = THIN.state(seed=13)
    state["encoder_sh.6.weight"] *= 0
    truth = Truth(THIN, state)
    spectrum = truth.decode("synth", truth.encode("synth", torch.zeros(1, 7167).double())[0])[0] * STD + MEAN
    arrays, lower, upper = payne_arrays()
    arrays["4.weight"], arrays["4.bias"] = arrays["4.weight"] * 0, torch.cat([spectrum[:47], spectrum]).float()
    checkpoint, emulator = (
        save(tmp_path / "net.pth.tar", state),
        save_payne(tmp_path / "P.pth.tar", arrays, lower, upper),
    )
    with pytest.raises(GridError, match=r"of preset='paper', but .* on those of preset='repository'; use that one"):
        CalibratedModel.from_published(checkpoint, emulator, preset="paper")
    model = CalibratedModel.from_published(checkpoint, emulator, preset="repository")
    assert model.grid.chips[0] == (0, 2873)
    assert model.noise.fill is None  # networks see bad pixels as they are, as in the published code


def test_network_without_normalised_latents(files):
    plain = CalibratedModel.from_published(
        files.checkpoint, files.emulator, template=NetworkSettings(latent_norm=False)
    )
    x = standardised(payne(files.arrays[0], np.full((1, 25), 0.1))[:, :7167])
    truth = Truth(replace(THIN, norm=False), files.truth.arrays)
    flux = to_spectrum((x[0] * STD + MEAN).numpy(), plain.grid)
    expected = truth.decode("synth", truth.encode("synth", x)[0])[0] * STD + MEAN
    np.testing.assert_allclose(plain.reconstruct(flux, domain="synthetic").flux.value, expected, atol=1e-5)
