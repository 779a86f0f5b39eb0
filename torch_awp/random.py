"""Random weight perturbation: take the gradient at a random point near the weights."""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from torch_awp.arguments import Select
from torch_awp.perturbation import Perturbation
from torch_awp.sharding import part_like
from torch_awp.wrapper import Constraint, WeightPerturbation

GENERATOR_KEY = "perturb_generator"


class RandomWeightPerturbation(WeightPerturbation):
    r"""Wrap an optimizer so that it steps on gradients taken at randomly perturbed weights.

    Each selected tensor :math:`w` moves to :math:`w + v` with, for
    :math:`\varepsilon \sim N(0, I)` and :math:`W = \lVert w \rVert` (Eq. 9 of Yue et al. 2024),

    .. math:: v = \mathrm{gamma} \cdot W \cdot \varepsilon / \lVert \varepsilon \rVert

    whether it has a gradient or not. A step costs one forward and backward pass.

    Everything that is not said here is as in :class:`~torch_awp.AdversarialWeightPerturbation`.

    Args:
        optimizer: any constructed ``torch.optim.Optimizer``.
        gamma: magnitude relative to each layer, ``||v|| = gamma * W``. A parameter group may bring
            its own as ``"perturb_gamma"``, which is also the live value.
        constraint: ``"element"`` also keeps ``|v_i| <= gamma * |w_i|``.
        select: which tensors move, as there.
        interval: perturb every ``interval``-th step.
        start_step: the first step (counted from 0) that perturbs.
        generator: source of the noise; its state is part of ``state_dict()``. ``None`` draws from
            torch's global generators, whose state is yours to save.
        epsilon: added to both norms, as there.

    Raises:
        TypeError: ``optimizer`` is not an optimizer instance.
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

    _default_key = "perturb_random"
    _others_default_key = "perturb_adversarial"

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
        if generator is not None and not isinstance(generator, Generator):
            raise ValueError(f"generator must be None or a torch.Generator, got {generator!r}")
        self.generator = generator
        super().__init__(
            optimizer,
            gamma,
            constraint=constraint,
            select=select,
            interval=interval,
            start_step=start_step,
            epsilon=epsilon,
        )
        self._publish_generator_state()

    def _climb(self, perturbation: Perturbation) -> None:
        selected = [(param, gamma) for param, gamma, _ in self._selected()]
        self._is_anything_selected(bool(selected))
        perturbation.wander(selected, self._noise_like)

    def _noise_like(self, param: Tensor) -> Tensor:
        # For the whole tensor also where a part lies here: shards then differ, replicas agree and
        # both are what a single process would draw.
        device = param.device if self.generator is None else self.generator.device
        noise = torch.randn(param.shape, dtype=param.dtype, device=device, generator=self.generator)
        return part_like(noise, param).to(param.device)

    def state_dict(self) -> dict[str, Any]:
        self._publish_generator_state()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        state = self.param_groups[0].get(GENERATOR_KEY)
        if state is not None and self.generator is not None:
            self.generator.set_state(state.cpu())
        elif state is not None:
            del self.param_groups[0][GENERATOR_KEY]  # soon out of date, and it would be saved again
            self._warn_once(
                "generator",
                "the checkpoint has the state of a generator and this wrapper has none, so its "
                "noise does not go on where it stopped: give it generator=torch.Generator()",
            )

    def _publish_generator_state(self) -> None:
        # In a group, where torch.distributed.checkpoint looks; the live object is not a value.
        if self.generator is not None:
            self.param_groups[0][GENERATOR_KEY] = self.generator.get_state()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.generator is not None:  # a torch.Generator cannot be pickled before torch 2.9
            state["generator"] = (str(self.generator.device), self.generator.get_state())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.generator is not None:
            device, generator_state = state["generator"]
            self.generator = Generator(device)
            self.generator.set_state(generator_state)
