"""Several networks, optimizers or passes in one step: each equals a loop by hand to the bit."""

from typing import Any

import pytest
import torch
from reference import same_bits
from tiers import first_fast
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation, freeze_running_stats

STEPS = 3
AWP = {"awp": lambda base, seed=5: AdversarialWeightPerturbation(base, 0.1)}
ONE_PASS = {
    "rwp": lambda base, seed=5: RandomWeightPerturbation(
        base, 0.1, generator=torch.Generator().manual_seed(seed)
    ),
    "update": lambda base, seed=5: AdversarialWeightPerturbation(base, 0.1, ascent="update"),
}
EVERY = AWP | ONE_PASS
Optimizer = Any


def sgd(*parts: nn.Module) -> torch.optim.Optimizer:
    parameters = [param for part in parts for param in part.parameters()]
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 6), nn.BatchNorm1d(6), nn.LeakyReLU(0.2), nn.Linear(6, outputs)
    )


def states(*models: nn.Module) -> list[Tensor]:
    return [value.clone() for model in models for value in model.state_dict().values()]


def in_passes(optimizer: Optimizer, loss: nn.Module, *batch: Tensor) -> None:
    """A step by hand."""
    for p in optimizer.passes():
        optimizer.zero_grad()
        with freeze_running_stats(loss, p.index > 0):
            loss(*batch).backward()
    optimizer.step()


# -- a generator and a discriminator -------------------------------------------------------------


def adversaries() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return network(4, 5), network(5, 1)


def real_and_noise() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 5), torch.randn(8, 4)) for _ in range(STEPS)]


def judged(logits: Tensor, real: bool) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


@pytest.mark.parametrize("wrap", first_fast(ONE_PASS))
def test_a_gan_pauses_the_discriminator_in_the_generators_step(wrap):
    """The usual loop: the generator's graph lives through the discriminator's step."""
    generator, critic = adversaries()
    of_generator, of_critic = (
        EVERY[wrap](sgd(part), seed) for seed, part in enumerate((generator, critic))
    )
    of_generator.attach(generator)
    handle = of_critic.attach(critic)
    for real, noise in real_and_noise():
        critic.zero_grad()
        judged(critic(real), True).backward()
        fake = generator(noise)
        judged(critic(fake.detach()), False).backward()
        of_critic.step()
        generator.zero_grad()
        with handle.paused():
            judged(critic(fake), True).backward()
        of_generator.step()

    assert same_bits(states(generator, critic), gan_by_hand(wrap))


def gan_by_hand(wrap: str) -> list[Tensor]:
    generator, critic = adversaries()
    of_generator, of_critic = (
        EVERY[wrap](sgd(part), seed) for seed, part in enumerate((generator, critic))
    )

    for real, noise in real_and_noise():
        critic.zero_grad()
        with of_critic.perturb():
            judged(critic(real), True).backward()
        with of_generator.perturb():
            fake = generator(noise)
            with of_critic.perturb():
                judged(critic(fake.detach()), False).backward()
            of_critic.step()
            generator.zero_grad()
            judged(critic(fake), True).backward()
        of_generator.step()
    return states(generator, critic)


class CriticLoss(nn.Module):
    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        return judged(self.critic(real), True) + judged(self.critic(fake), False)


class GeneratorLoss(nn.Module):
    def __init__(self, generator: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.generator, self.critic = generator, critic

    def forward(self, noise: Tensor) -> Tensor:
        return judged(self.critic(self.generator(noise)), True)


@pytest.mark.parametrize("wrap", first_fast(EVERY))
def test_a_gan_whose_losses_are_modules_needs_no_pause(wrap):
    generator, critic = adversaries()
    of_generator, of_critic = (EVERY[wrap](sgd(part)) for part in (generator, critic))
    generator_loss, critic_loss = GeneratorLoss(generator, critic), CriticLoss(critic)
    of_generator.attach(generator_loss)
    of_critic.attach(critic_loss)
    for real, noise in real_and_noise():
        with torch.no_grad():
            fake = generator(noise)
        of_critic.zero_grad()
        critic_loss(real, fake).backward()
        of_critic.step()
        of_generator.zero_grad()
        generator_loss(noise).backward()
        of_generator.step()
    measured = states(generator, critic)

    generator, critic = adversaries()
    of_generator, of_critic = (EVERY[wrap](sgd(part)) for part in (generator, critic))
    generator_loss, critic_loss = GeneratorLoss(generator, critic), CriticLoss(critic)
    for real, noise in real_and_noise():
        with torch.no_grad():
            fake = generator(noise)
        in_passes(of_critic, critic_loss, real, fake)
        in_passes(of_generator, generator_loss, noise)
    assert same_bits(measured, states(generator, critic))


# -- pairs of inputs through one network ---------------------------------------------------------


class Pairs(nn.Module):
    """Ends in its loss, and makes both forward passes itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return contrast(self.net(first), self.net(second))


def contrast(first: Tensor, second: Tensor) -> Tensor:
    """The cross-entropy of finding its own partner among all."""
    similarity = cosine_similarity(first[:, None], second[None], dim=2) / 0.1
    return nn.functional.cross_entropy(similarity, torch.arange(len(first)))


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return network(5, 4)


def pairs() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 5), torch.randn(8, 5)) for _ in range(STEPS)]


@pytest.mark.parametrize("wrap", first_fast(ONE_PASS))
def test_both_passes_of_a_siamese_network_are_at_the_same_weights(wrap):
    net = encoder()
    optimizer = EVERY[wrap](sgd(net))
    optimizer.attach(net)
    for first, second in pairs():
        optimizer.zero_grad()
        contrast(net(first), net(second)).backward()
        optimizer.step()

    assert same_bits(states(net), pairs_by_hand(wrap))


@pytest.mark.parametrize("wrap", first_fast(EVERY))
def test_a_siamese_network_climbs_in_a_module_that_makes_both_passes(wrap):
    net = encoder()
    module = Pairs(net)
    optimizer = EVERY[wrap](sgd(net))
    optimizer.attach(module)
    for first, second in pairs():
        optimizer.zero_grad()
        module(first, second).backward()
        optimizer.step()

    assert same_bits(states(net), pairs_by_hand(wrap))


def pairs_by_hand(wrap: str) -> list[Tensor]:
    net = encoder()
    optimizer = EVERY[wrap](sgd(net))
    for first, second in pairs():
        in_passes(optimizer, Pairs(net), first, second)
    return states(net)


# -- two optimizers of one model -----------------------------------------------------------------


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = network(5, 6)
        self.end = nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.end(self.body(x)), y)


def halves_data() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 5), torch.randn(8, 4)) for _ in range(STEPS)]


def optimizers_of(wrap: str, *parts: nn.Module) -> list[Optimizer]:
    return [EVERY[wrap](sgd(part)) for part in parts]


def zipped(model: Halves, body: Optimizer, end: Optimizer, x: Tensor, y: Tensor) -> None:
    for p, _ in zip(body.passes(), end.passes(), strict=True):
        model.zero_grad()
        with freeze_running_stats(model, p.index > 0):
            model(x, y).backward()


def in_two_blocks(model: Halves, body: Optimizer, end: Optimizer, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    model(x, y).backward()
    with body.perturb(), end.perturb(), freeze_running_stats(model):
        model.zero_grad()
        model(x, y).backward()


@pytest.mark.parametrize(
    ("wrap", "gradients"), [("awp", zipped), ("awp", in_two_blocks), ("update", zipped)]
)
def test_two_optimizers_of_one_model_step_like_one_of_all(wrap, gradients):
    model, twin = Halves(), Halves()
    body, end = optimizers_of(wrap, model.body, model.end)
    (of_all,) = optimizers_of(wrap, twin)
    for x, y in halves_data():
        gradients(model, body, end, x, y)
        body.step()
        end.step()
        in_passes(of_all, twin, x, y)

    assert same_bits(states(model), states(twin))


def plainly(model: Halves, body: Optimizer, end: Optimizer, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    model(x, y).backward()


def test_two_attached_optimizers_of_one_pass_step_like_one_of_all():
    model, twin = Halves(), Halves()
    body, end = optimizers_of("update", model.body, model.end)
    (of_all,) = optimizers_of("update", twin)
    body.attach(model)
    end.attach(model)
    for x, y in halves_data():
        plainly(model, body, end, x, y)
        body.step()
        end.step()
        in_passes(of_all, twin, x, y)

    assert same_bits(states(model), states(twin))


def test_two_attached_optimizers_climb_one_after_the_other():
    """The later attached first, where the other would be by its own climb; then that one."""
    model, twin = Halves(), Halves()
    body, end = optimizers_of("awp", model.body, model.end)
    body.attach(model)
    end.attach(model)
    first, second = optimizers_of("awp", twin.end, twin.body)
    for x, y in halves_data():
        plainly(model, body, end, x, y)
        body.step()
        end.step()

        def backward(x: Tensor = x, y: Tensor = y) -> None:
            twin.zero_grad()
            twin(x, y).backward()

        backward()
        with freeze_running_stats(twin):
            with second.perturb():
                backward()
            with first.perturb():
                backward()
                with second.perturb():
                    backward()
        second.step()
        first.step()

    assert same_bits(states(model), states(twin))
