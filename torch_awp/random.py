"""Random weight perturbation: take the gradient at a random point near the weights."""

from collections.abc import Iterator
from functools import reduce
from itertools import groupby
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from torch_awp.functional import in_portions, on_host, opmath_dtype
from torch_awp.optimizer import Constraint, Gradients, Select, WeightPerturbation, require
from torch_awp.perturbation import Move, Perturbation
from torch_awp.sharding import part_like

GENERATOR_KEY, SEED_KEY = "perturb_generator", "perturb_seed"
# Elements of noise that exist at a time, up to twice.
_HOST_PORTION, _DEVICE_PORTION = 2**17, 2**23


class RandomWeightPerturbation(WeightPerturbation):
    """Wrap an optimizer so that it steps on gradients taken at randomly perturbed weights.

    Each selected tensor `w` moves to `w + v` with, for `eps ~ N(0, I)` and `W = ||w||` (Eq. 9 of
    Yue et al. 2024),

        v = gamma * W * eps / ||eps||

    whether it has a gradient or not. A step costs one forward and backward pass.

    Everything else is as in :class:`~torch_awp.AdversarialWeightPerturbation`.

    Args:
        optimizer: any constructed `torch.optim.Optimizer`.
        gamma: magnitude relative to each layer, `||v|| = gamma * W`. A parameter group may have
            its own as `"perturb_gamma"`; assign that to change it while training.
        constraint: `"element"` also keeps `|v_i| <= gamma * |w_i|`.
        select: which tensors move, as there.
        interval: perturb every `interval`-th step.
        start_step: the first step (counted from 0) that perturbs.
        generator: source of the noise; its state is part of `state_dict()`. `None` draws from
            torch's global generators, whose state is yours to save.
        epsilon: added to both norms, as there.

    Raises:
        TypeError: `optimizer` is not an optimizer instance.
        ValueError: any other bad value; the message names argument and value.

    >>> import torch
    >>> from torch_awp import RandomWeightPerturbation
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> optimizer = RandomWeightPerturbation(optimizer, generator=torch.Generator().manual_seed(0))
    >>> for p in optimizer.passes():  # one, at w + v
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    >>> optimizer.step()  # from w
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gamma: float = 1e-4,
        *,
        constraint: Constraint = "layer",
        select: Select | None = None,
        interval: int = 1,
        start_step: int = 0,
        generator: Generator | None = None,
        epsilon: float = 0.0,
    ) -> None:
        valid = generator is None or isinstance(generator, Generator)
        require(valid, "generator", generator, "None or a torch.Generator")
        self.generator = generator
        super().__init__(optimizer, gamma, constraint, select, interval, start_step, epsilon)
        self._publish_generator_state()

    def _ascend(self, perturbation: Perturbation, gradients: Gradients | None = None) -> None:
        selected = self._selected()
        self._warn_if_in_vain(selected)
        gammas = {param: gamma for param, gamma, _ in selected}
        portions = _portions(list(gammas))
        perturbation.move(gammas, (self._moves(params, gammas) for params in portions))

    def _moves(self, params: list[Tensor], gammas: dict[Tensor, float]) -> list[Move]:
        # For whole tensors also where a part lies here: shards then differ, replicas agree and both
        # are what a single process would draw.
        source = params[0].device if self.generator is None else self.generator.device
        dtype = reduce(torch.promote_types, {opmath_dtype(param.dtype) for param in params})
        numels = [param.numel() for param in params]
        # On the host tensor by tensor, so that nothing but the order of tensors tells on the noise.
        sizes = numels if source.type == "cpu" else [sum(numels)]
        options: dict[str, Any] = {"dtype": dtype, "device": source, "generator": self.generator}
        draws = [torch.randn(size, **options) for size in sizes]
        if not on_host(params[0]):  # one kernel or one transfer for all
            drawn = torch.cat(draws) if len(draws) > 1 else draws[0]
            draws = list(torch.split(drawn.to(params[0].device), numels))
        noise = (part_like(d.view(p.shape), p) for p, d in zip(params, draws, strict=True))
        return [Move(p, n, gammas[p], gammas[p]) for p, n in zip(params, noise, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        self._publish_generator_state()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        first = self.param_groups[0]
        state, seed = first.get(GENERATOR_KEY), first.get(SEED_KEY)
        if state is not None and self.generator is None:
            del first[GENERATOR_KEY], first[SEED_KEY]  # soon out of date, and saved again
            self._warn_once(
                "generator",
                "the checkpoint has the state of a generator and this wrapper has no generator, so "
                "the noise is not that of before: give it generator=torch.Generator()",
            )
        elif state is not None and self.generator is not None:
            own = self.generator.initial_seed()
            if seed not in (own, None):  # checkpoints of before have none
                self._warn_once(
                    "seed",
                    f"the generator now has the checkpoint's state, of seed {seed}, and not {own}. "
                    "If each process has its own seed, load in each the checkpoint that it saved",
                )
            self.generator.set_state(state.cpu())

    def _publish_generator_state(self) -> None:
        if self.generator is not None:  # in a group, where torch.distributed.checkpoint looks
            self.param_groups[0][GENERATOR_KEY] = self.generator.get_state()
            self.param_groups[0][SEED_KEY] = self.generator.initial_seed()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.generator is not None:  # a torch.Generator cannot be pickled before torch 2.9
            state["generator"] = str(self.generator.device), self.generator.get_state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if state.get("generator") is not None:
            device, generator_state = state["generator"]
            self.generator = Generator(device).set_state(generator_state)


def _portions(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one device, so few that the noise of all never exists at once."""
    for _, some in groupby(params, lambda param: (param.device, param.is_complex())):
        alike = list(some)
        size = _HOST_PORTION if on_host(alike[0]) else _DEVICE_PORTION
        yield from in_portions(alike, [param.numel() for param in alike], size)
