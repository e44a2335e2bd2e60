"""The training by the definitions of the paper, written with plain modules, and the options beyond it."""

from copy import deepcopy

import torch
import torch.nn.functional as F


def mappings(net, x_synth, x_obs):
    """The four mappings, two cycles and latents, one plain sub-network after the other."""
    split = net.has_split

    def decode_obs(z_shared, z_split):
        hidden = net.decoder_sh(z_shared)
        return net.decoder_obs(torch.cat([hidden, net.decoder_sp(z_split)], 1) if split else hidden)

    def decode_synth(z_shared):
        return net.decoder_synth(net.decoder_sh(z_shared))

    hidden_obs = net.encoder_obs(x_obs[:, None])
    m = {"z_synth": net.encoder_sh(net.encoder_synth(x_synth[:, None])), "z_obs": net.encoder_sh(hidden_obs)}
    m["z_split"] = net.encoder_sp(hidden_obs) if split else None
    m["rec_synth"], m["rec_obs"] = decode_synth(m["z_synth"]), decode_obs(m["z_obs"], m["z_split"])
    m["synth_to_obs"], m["obs_to_synth"] = decode_obs(m["z_synth"], m["z_split"]), decode_synth(m["z_obs"])
    hidden_back = net.encoder_obs(m["synth_to_obs"])
    m["z_split_back"] = net.encoder_sp(hidden_back) if split else None
    m["cyc_synth"] = decode_synth(net.encoder_sh(hidden_back))
    m["z_back"] = net.encoder_sh(hidden_back)
    m["cyc_obs"] = decode_obs(net.encoder_sh(net.encoder_synth(m["obs_to_synth"])), m["z_split"])
    return m


# -- terms ---------------------------------------------------------------------------
def answer(critic, flux, z_shared, z_split=None):
    """What a critic says of pairs: a logit, or with least squares the number itself."""
    return critic(flux[:, 0], z_shared if z_split is None else torch.cat([z_shared, z_split], 1))


def adversarial(answers, target, kind):
    """Binary cross-entropy of probabilities (S1), or squares (LSGAN)."""
    if kind == "least_squares":
        return ((answers - target) ** 2).mean()
    return F.binary_cross_entropy(torch.sigmoid(answers), torch.full_like(answers, target))


def weighted_distance(prediction, target, weight):
    return (((prediction[:, 0] - target) * weight) ** 2).mean()


def energy_distance(a, b):
    pairs = [(i, j) for i in range(len(a)) for j in range(len(a)) if i != j]
    within = sum((z[i] - z[j]).norm() for z in (a, b) for i, j in pairs) / len(pairs)
    between = sum((p - q).norm() for p in a for q in b) / len(a) ** 2
    return (2 * between - within) / a.shape[1] ** 0.5


def window_distance(fake, true, least, width=32):
    """Mean over windows of the energy distance over what true spectra differ by, pair by pair."""
    distances = []
    for start in range(0, fake.shape[1], width):
        a, b = (x[:, start : start + width] for x in (fake, true))

        def mean(x, y, same):
            found = [(p - q).norm() for i, p in enumerate(x) for k, q in enumerate(y) if not (same and i == k)]
            return sum(found) / len(found)

        of_true = mean(b, b, True)
        unit = max(of_true.item(), least * a.shape[1] ** 0.5)
        distances.append((2 * mean(a, b, False) - mean(a, a, True) - of_true) / unit)
    return sum(distances) / len(distances)


def autoencoder_losses(parts, settings, x_synth, x_obs, weight_obs, labels, x_changed=None):
    """Every term of the autoencoder step, from DESIGN: distances over all pixels, fakes' targets flipped."""
    m = mappings(parts["network"], x_synth, x_obs)
    weight = {"synth": settings.flux_std / settings.synthetic_sigma, "obs": weight_obs}
    target = {"synth": x_synth, "obs": x_obs}
    terms = {
        f"{kind}_{domain}": weighted_distance(m[f"{kind}_{domain}"], target[domain], weight[domain])
        for kind in ("rec", "cyc")
        for domain in ("synth", "obs")
    }
    if settings.weight_adversarial:
        fake_synth = answer(parts["critic_synth"], m["obs_to_synth"], m["z_obs"])
        # S1, Eq. 4: the re-encoded split latent
        fake_obs = answer(parts["critic_obs"], m["synth_to_obs"], m["z_synth"], m["z_split_back"])
        terms["gen_synth"] = adversarial(fake_synth, 1.0, settings.adversarial)
        terms["gen_obs"] = adversarial(fake_obs, 1.0, settings.adversarial)
    if settings.weight_spectra:
        least, n = settings.synthetic_sigma / settings.flux_std, settings.micro_batches
        pairs = [("obs_to_synth", "rec_synth"), ("synth_to_obs", "rec_obs")]
        terms["spectra"] = sum(
            window_distance(fake, true.detach(), least) / n
            for names in pairs
            for fake, true in zip(*(m[name][:, 0].chunk(n) for name in names), strict=True)
        )
    if settings.weight_latent:
        parts_of_both = (m[z].flatten(1).chunk(settings.micro_batches) for z in ("z_synth", "z_obs"))
        within_parts = [energy_distance(a, b) for a, b in zip(*parts_of_both, strict=True)]
        terms["latent"] = sum(within_parts) / settings.micro_batches
    if settings.weight_labels:
        terms["labels"] = ((parts["label_head"](m["z_synth"]) - labels) ** 2).mean()
    if settings.weight_label_cycle:
        terms["label_cycle"] = ((parts["label_head"](m["z_back"]) - labels) ** 2).mean()
    if x_changed is not None:
        other = mappings(parts["network"], x_changed, x_obs)  # with the split latents of the same observed stars
        gaps = [n["synth_to_obs"] - n["rec_synth"] for n in (m, other)]
        terms["response"] = weighted_distance(gaps[1], gaps[0][:, 0], weight["synth"])
    return terms, m


def critic_losses(parts, m, settings):
    m = {name: None if array is None else array.detach() for name, array in m.items()}
    kind = settings.adversarial
    true = answer(parts["critic_synth"], m["rec_synth"], m["z_synth"])
    fake = answer(parts["critic_synth"], m["obs_to_synth"], m["z_obs"])
    true_obs = answer(parts["critic_obs"], m["rec_obs"], m["z_obs"], m["z_split"])
    fake_obs = answer(parts["critic_obs"], m["synth_to_obs"], m["z_synth"], m["z_split_back"])
    middle = 0.5 if kind == "least_squares" else 0.0
    right = [true > middle, fake < middle, true_obs > middle, fake_obs < middle]
    terms = {
        "critic_synth": adversarial(true, 1.0, kind) + adversarial(fake, 0.0, kind),
        "critic_obs": adversarial(true_obs, 1.0, kind) + adversarial(fake_obs, 0.0, kind),
        "critic_accuracy": torch.cat(right).double().mean(),
    }
    if settings.critic_penalty:
        latent_obs = m["z_obs"] if m["z_split"] is None else torch.cat([m["z_obs"], m["z_split"]], 1)
        terms["penalty"] = r1(parts["critic_synth"], m["rec_synth"], m["z_synth"])
        terms["penalty"] = terms["penalty"] + r1(parts["critic_obs"], m["rec_obs"], latent_obs)
    return terms


def r1(critic, flux, latent):
    """Half the squared gradient of a critic's answer with respect to its inputs, by the chain rule."""
    branches = (critic.discriminator_x, flux), (critic.discriminator_z, latent)
    n_x = critic.discriminator_x(flux)[0].numel()
    last = critic.fc.weight[0].split([n_x, critic.fc.weight.shape[1] - n_x])
    gradients = [input_gradient(*branch, weights) for branch, weights in zip(branches, last, strict=True)]
    return sum((gradient**2).sum((1, 2)).mean() for gradient in gradients) / 2


def input_gradient(layers, x, weights):
    """Gradient of ``layers(x).flatten() @ weights``: transposed convolutions, and slopes of the LeakyReLUs."""
    inputs = []
    for layer in layers:
        inputs.append(x)
        x = layer(x)
    gradient = weights.view(1, *x.shape[1:]).expand(x.shape)
    for layer, x in zip(reversed(layers), reversed(inputs), strict=True):
        if isinstance(layer, torch.nn.Conv1d):
            gradient = F.conv_transpose1d(gradient, layer.weight, stride=layer.stride)
            gradient = F.pad(gradient, (0, x.shape[2] - gradient.shape[2]))  # pixels that no window reaches
        else:
            gradient = torch.where(x > 0, gradient, layer.negative_slope * gradient)
    return gradient


# -- steps ---------------------------------------------------------------------------
class Oracle:
    """The training in its plainest form, from the same start and the same batches as a trainer."""

    def __init__(self, trainer):
        names = ("network", "critic_synth", "critic_obs", "label_head")
        self.parts = {name: deepcopy(getattr(trainer, name)) for name in names if getattr(trainer, name) is not None}
        self.trainer, self.settings = trainer, trainer.settings
        self.generator = torch.Generator().manual_seed(self.settings.seed)
        self.iteration = 0
        s = self.settings
        own = [p for name in ("network", "label_head") if name in self.parts for p in self.parts[name].parameters()]
        critics = [p for name in ("critic_synth", "critic_obs") for p in self.parts[name].parameters()]
        self.own = own
        self.adam = torch.optim.Adam(own, s.learning_rate, s.betas)
        self.critic_adam = torch.optim.Adam(critics, s.critic_learning_rate, s.betas)
        schedule = torch.optim.lr_scheduler.MultiStepLR
        self.schedules = [schedule(adam, s.steps, s.step_factor) for adam in (self.adam, self.critic_adam)]

    def draw(self):
        """The next batch of the trainer, and its anchors."""
        x_synth, labels = self.trainer.synthetic.draw(self.settings.batch_size, self.generator)
        x_obs, weight = self.trainer.observed.draw(self.settings.batch_size, self.generator)
        anchors, changed = None, None
        if self.settings.weight_response:
            s, synthetic = self.settings, self.trainer.synthetic
            others = synthetic.changed(labels, s.response_labels, self.generator)
            flux = synthetic.emulator(synthetic.label_mean + others * synthetic.label_std)
            changed = (flux - s.flux_mean) / s.flux_std
        if self.settings.weight_anchors:
            anchors = torch.randint(len(self.trainer.anchors.labels), (4,), generator=self.generator)
        return (x_synth, x_obs, weight, labels, changed), anchors

    def step(self):
        s = self.settings
        batch, anchors = self.draw()
        if self.iteration < s.warm_start:
            found = self.warm_start_step(batch[0])
        else:
            if s.warm_start and self.iteration == s.warm_start:
                self.copy_branch()
            found = self.full_step(batch, anchors)
        for schedule in self.schedules:
            schedule.step()
        self.iteration += 1
        return {name: term.item() for name, term in found.items()}

    def full_step(self, batch, anchors):
        s = self.settings
        terms, m = autoencoder_losses(self.parts, s, *batch)
        factors = {"synth": s.weight_synth, "obs": s.weight_obs}
        total = sum(factors[d] * (terms[f"rec_{d}"] + terms[f"cyc_{d}"]) for d in factors)
        ramp = min(1, (self.iteration + 1) / s.adversarial_ramp) if s.adversarial_ramp else 1
        if s.weight_adversarial:
            total = total + s.weight_adversarial * ramp * (terms["gen_synth"] + terms["gen_obs"])
        total = total + s.weight_spectra * terms.get("spectra", 0)
        total = total + s.weight_latent * terms.get("latent", 0) + s.weight_labels * terms.get("labels", 0)
        total = total + s.weight_label_cycle * terms.get("label_cycle", 0)
        total = total + s.weight_response * terms.get("response", 0)
        if s.weight_anchors:
            terms["anchors"] = self.anchor_loss(anchors)
            total = total + s.weight_anchors * terms["anchors"]
        self.descend(total)
        if not s.weight_adversarial:
            self.critic_adam.step()  # no gradients, no step; the schedule wants it to be called
            return terms
        critic_terms = critic_losses(self.parts, m, s)
        self.critic_adam.zero_grad()
        loss = s.weight_adversarial * (critic_terms["critic_synth"] + critic_terms["critic_obs"])
        (loss + s.critic_penalty * critic_terms.get("penalty", 0)).backward()
        self.critic_adam.step()
        return terms | critic_terms

    def warm_start_step(self, x_synth):
        """The synthetic autoencoder alone."""
        net, s = self.parts["network"], self.settings
        rec_synth = net.decoder_synth(net.decoder_sh(net.encoder_sh(net.encoder_synth(x_synth[:, None]))))
        loss = weighted_distance(rec_synth, x_synth, s.flux_std / s.synthetic_sigma)
        self.descend(loss)
        self.critic_adam.step()  # no gradients, no step; the schedule wants it to be called
        return {"rec_synth": loss}

    def copy_branch(self):
        """The observed branch becomes the synthetic one, but for the first weights of the split latent's maps."""
        net = self.parts["network"]
        net.encoder_obs.load_state_dict(net.encoder_synth.state_dict())
        copied = deepcopy(net.decoder_synth.state_dict())
        first = next(name for name in copied if name.endswith("weight"))
        own = net.decoder_obs.state_dict()[first]
        copied[first] = torch.cat([copied[first], own[len(copied[first]) :]])
        net.decoder_obs.load_state_dict(copied)

    def anchor_loss(self, rows):
        """Translated synthetic spectra of the anchors' labels against the anchors, which give the split latents."""
        net, anchors, synthetic = self.parts["network"], self.trainer.anchors, self.trainer.synthetic
        x_obs, weight = anchors.observed.flux[rows], anchors.observed.weight[rows]
        flux = synthetic.emulator(anchors.labels[rows].to(x_obs.dtype))
        x_synth = (flux - self.settings.flux_mean) / self.settings.flux_std
        return weighted_distance(mappings(net, x_synth, x_obs)["synth_to_obs"], x_obs, weight)

    def descend(self, loss):
        self.adam.zero_grad()
        loss.backward()
        if self.settings.gradient_clip:
            with_gradient = [p for p in self.own if p.grad is not None]
            norm = sum((p.grad**2).sum() for p in with_gradient) ** 0.5
            for p in with_gradient:
                p.grad *= min(1, self.settings.gradient_clip / norm)
        self.adam.step()


# -- comparisons ------------------------------------------------------------------------
def assert_same_weights(trainer, oracle):
    """In float64, to 1e-7."""
    for name, part in oracle.parts.items():
        for key, expected in part.state_dict().items():
            torch.testing.assert_close(getattr(trainer, name).state_dict()[key], expected, rtol=0, atol=1e-7)


def state(trainer):
    """Everything that the next iteration depends on, flat."""
    flat = {f"average.{name}": array for name, array in trainer.average.items()}
    flat["generator"] = trainer.generator.get_state()
    for name in ("network", "critic_synth", "critic_obs"):
        flat |= {f"{name}.{key}": array for key, array in getattr(trainer, name).state_dict().items()}
    for name in ("optimizer", "critic_optimizer"):
        for k, moments in getattr(trainer, name).state_dict()["state"].items():
            flat |= {f"{name}.{k}.{key}": array for key, array in moments.items()}
    return flat


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
