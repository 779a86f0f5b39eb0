"""Two processes share the points of a landscape and both hold all of it."""

import pytest
import torch
from landscape_models import Residual, image_loss, noise
from reference import same_bits
from torch import distributed, multiprocessing

from torch_awp.landscape import interpolation_curve, loss_curve, loss_surface

ALPHAS = [-1.0, -0.5, 0.0, 0.5, 1.0]


def measured(process_group=None, rank=0):
    """All landscapes of one model, and how often its loss ran for each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, other = Residual(dropout=0.5), Residual()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    calls = []

    def loss_fn(model):
        calls[-1] += 1
        return image_loss(model)

    def run(measure, *args):
        calls.append(0)
        return measure(model, loss_fn, *args, process_group=process_group)

    first, second = noise(model, rank), noise(model, 10 + rank)  # the ranks do not agree
    ends = model.state_dict(), other.state_dict()
    results = {
        "curve": run(loss_curve, first, ALPHAS),
        "one point": run(loss_curve, first, [0.5]),
        "python floats": loss_curve(
            model, lambda m: image_loss(m).item(), first, ALPHAS, process_group=process_group
        ),
        "surface": run(loss_surface, (first, second), ALPHAS, [0.0, 1.0, 2.0]),
        "interpolation": run(interpolation_curve, *ends, ALPHAS),
    }
    assert same_bits(list(model.state_dict().values()), before)
    assert same_bits(list(first.values()), list(noise(model, rank).values()))
    return results, calls


def work(rank, folder):
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    groups = [distributed.new_group([0]), distributed.new_group([1])]
    shared = measured(distributed.group.WORLD, rank)
    alone, _ = measured(groups[rank], rank)
    torch.save((*shared, alone), f"{folder}/{rank}")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / str(rank)) for rank in range(2)]


def test_every_rank_holds_the_landscape_of_one_process(of_ranks):
    expected, _ = measured()
    for results, _, _ in of_ranks:
        assert results.keys() == expected.keys()
        for name, landscape in results.items():
            assert landscape.shape == expected[name].shape
            assert same_bits([landscape], [expected[name]]), name


def test_every_rank_evaluates_its_share(of_ranks):
    _, all_calls = measured()
    assert all_calls == [5, 1, 15, 5]
    for _, calls, _ in of_ranks:
        assert calls == [3, 1, 8, 3]


def test_a_group_of_one_is_a_process_of_its_own(of_ranks):
    for rank, (_, _, alone) in enumerate(of_ranks):
        expected, _ = measured(rank=rank)
        assert all(same_bits([alone[name]], [expected[name]]) for name in expected)
