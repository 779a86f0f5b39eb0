"""Tensor parallelism, with and without FSDP2 after it: v is that of the whole tensors.

Whole tensors are taken apart and put together here by what column- and row-wise mean, and moved by
hand in float64.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed
from ranks import mesh_of
from reference import ascent, same_bits
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

GAMMA, SEED, ROWS = 0.1, 5, 12
CUT = [0, 1]  # column-wise cuts the rows of the first weight, row-wise the columns of the second
MODES: dict[str, dict[str, Any]] = {
    "layer": {},
    "element": {"constraint": "element"},
    "3 steps": {"steps": 3, "step_size": 0.07},
    "update": {"ascent": "update"},
    "random": {},
}


def whole_tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((ROWS, 8), (6, ROWS))
    )
    first[: ROWS // 2] *= 20  # parts that differ, as trained ones do
    return [first, second]


class Net:
    """Two layers spread over 2 x 2 ranks, and what lies where."""

    def __init__(self, rank: int, fully: bool) -> None:
        self.mesh = mesh_of((2, 2), ("data", "tensor"))
        self.data, self.tensor = divmod(rank, 2)
        self.fully = fully
        layers = nn.Sequential(nn.Linear(8, ROWS, bias=False), nn.Linear(ROWS, 6, bias=False))
        layers.double()
        for layer, weight in zip(layers, whole_tensors(0), strict=True):
            layer.weight.data = weight
        styles = {"0": ColwiseParallel(), "1": RowwiseParallel()}
        parallelize_module(layers, self.mesh["tensor"], styles)
        if fully:
            fully_shard(layers, mesh=self.mesh["data"])
        self.weights: list[Any] = [layer.weight for layer in layers]

    def part(self, whole: Tensor, cut: int) -> Tensor:
        """What lies here: FSDP2 deals the rows that tensor parallelism left."""
        part = whole.chunk(2, cut)[self.tensor]
        return (part.chunk(2)[self.data] if self.fully else part).clone()

    def whole(self) -> list[Tensor]:
        tensors = []
        for part, cut in zip(self.parts(), CUT, strict=True):
            if self.fully:
                part = torch.cat(gathered(part, self.mesh, "data"))
            tensors.append(torch.cat(gathered(part, self.mesh, "tensor"), cut))
        return tensors

    def parts(self) -> list[Tensor]:
        return [weight.detach().to_local().clone() for weight in self.weights]

    def set_gradients(self, seed: int) -> None:
        for weight, whole, cut in zip(self.weights, whole_tensors(seed), CUT, strict=True):
            weight.grad = DTensor.from_local(
                self.part(whole, cut),
                weight.device_mesh,
                weight.placements,
                shape=weight.shape,
                stride=weight.stride(),
            )


def gathered(part: Tensor, mesh: DeviceMesh, dim: str) -> list[Tensor]:
    parts = [part] * mesh[dim].size()
    torch.distributed.all_gather_object(parts, part, mesh.get_group(dim))
    return parts


def wrapped(net: Net, mode: str) -> AdversarialWeightPerturbation | RandomWeightPerturbation:
    base = torch.optim.SGD(net.weights, lr=0.1)
    if mode == "random":
        generator = torch.Generator().manual_seed(SEED)
        return RandomWeightPerturbation(base, GAMMA, generator=generator)
    return AdversarialWeightPerturbation(base, GAMMA, **MODES[mode])


def move(rank: int, fully: bool, mode: str) -> dict[str, Any]:
    net = Net(rank, fully)
    optimizer = wrapped(net, mode)
    net.set_gradients(1)
    if mode == "update":  # it climbs from the second step on
        with optimizer.perturb():
            pass
        optimizer.step()
        net.set_gradients(2)
    home, parts = net.whole(), net.parts()
    with optimizer.perturb():
        for seed in range(2, 1 + MODES[mode].get("steps", 1)):
            net.set_gradients(seed)
            optimizer.ascend()
        away = net.whole()
    return {
        "home": home,
        "away": away,
        "restored": same_bits(net.parts(), parts),
    }


def by_hand(home: list[Tensor], mode: str) -> list[Tensor]:
    if mode == "random":
        generator = torch.Generator().manual_seed(SEED)
        noise = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in home]
        return ascent(home, lambda _: noise, GAMMA)
    if mode == "update":
        change = [w - start for w, start in zip(home, whole_tensors(0), strict=True)]
        return ascent(home, lambda _: change, GAMMA)
    seeds = iter([1, 2, 3])
    settings = MODES[mode]
    return ascent(home, lambda _: whole_tensors(next(seeds)), GAMMA, **settings)


@pytest.mark.parametrize("fully", [False, True], ids=["alone", "fully sharded"])
@pytest.mark.parametrize("mode", MODES)
def test_column_and_row_wise_layers_move_as_whole_ones(four_ranks, fully, mode):
    """Replicas agree, since each rank tells what it sees; random parts differ, as they do here."""
    for answer in four_ranks.run(move, fully, mode):
        away = by_hand(answer["home"], mode)
        torch.testing.assert_close(answer["away"], away, rtol=1e-12, atol=1e-13)
        assert answer["restored"]


@dataclass(frozen=True)
class Unheard(Placement):
    """A placement that torch may know one day."""

    def is_replicate(self) -> bool:
        return False


PLACEMENTS = {"summed later": Partial(), "unheard of": Unheard()}


def move_placed(rank: int, placement: str) -> list[str]:
    """What each wrapper says of a parameter that is placed so."""
    mesh = mesh_of((2,))
    whole = DTensor.from_local(torch.ones(2, 3), mesh, [Replicate()])
    param = nn.Parameter(whole)
    param.grad = DTensor.from_local(torch.ones(2, 3), mesh, [Replicate()])
    param._spec.placements = (PLACEMENTS[placement],)
    said = []
    for wrapper in (AdversarialWeightPerturbation, RandomWeightPerturbation):
        with pytest.raises(RuntimeError) as error, wrapper(torch.optim.SGD([param]), 0.1).perturb():
            pass
        said.append(str(error.value))
    return said


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_another_placement_is_an_error_that_names_it(two_ranks, placement):
    for said in two_ranks.run(move_placed, placement):
        for message in said:
            assert f"is placed as {PLACEMENTS[placement]}, whose norm cannot be taken" in message
