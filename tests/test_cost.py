"""What a perturbation costs: operations, waiting, memory."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation


class Dispatched(TorchDispatchMode):
    """Records the name of every operation that reaches the dispatcher."""

    def __enter__(self):
        self.names: list[str] = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class TakenOneByOne(Dispatched):
    """Records the foreach operations that CUDA cannot take many tensors at a time through.

    So it is where the lists that go in differ in sizes (read in ATen/native/ForeachUtils.h).
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        lists = [[t.shape for t in arg] for arg in args if isinstance(arg, (list, tuple))]
        if "_foreach" in str(func) and any(shapes != lists[0] for shapes in lists):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's convolutions and classifier, from its definition."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    channels = 64
    for width, blocks in [(64, 3), (128, 4), (256, 6), (512, 3)]:
        for block in range(blocks):
            if block == 0:
                shapes.append((4 * width, channels, 1, 1))
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            channels = 4 * width
    return [*shapes, (1000, 2048)]


def parameters(shapes, device: str = "cpu") -> list[nn.Parameter]:
    params = [nn.Parameter(torch.ones(shape, device=device)) for shape in shapes]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


def renew_gradients(params) -> None:
    """What a backward pass does, for nothing: another tensor in the same memory."""
    for param in params:
        param.grad = param.grad.detach()


def operations(params, **kwargs) -> list[str]:
    base = torch.optim.SGD(params, lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1, **kwargs)
    with optimizer.perturb():
        pass  # where tensors lie is looked up once
    with Dispatched() as dispatched, optimizer.perturb():
        for _ in range(kwargs.get("steps", 1)):
            optimizer.ascend()
    return dispatched.names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_number_of_operations_does_not_grow_with_the_number_of_tensors(dtype, steps):
    """Elsewhere than on the host, where starting one costs no more than what it does."""
    counts = set()
    for tensors in (10, 400):
        params = [
            nn.Parameter(torch.ones(4, 4, device="meta", dtype=dtype)) for _ in range(tensors)
        ]
        for param in params:
            param.grad = torch.ones_like(param)
        counts.add(len(operations(params, steps=steps)))
    assert len(counts) == 1


@pytest.mark.parametrize("constraint", ["layer", "element"])
def test_a_step_along_the_update_takes_as_many_operations_for_400_tensors_as_for_10(constraint):
    counts = set()
    for tensors in (10, 400):
        params = parameters([(4, 4)] * tensors, "meta")
        base = torch.optim.SGD(params, lr=0.1, foreach=True)
        optimizer = AdversarialWeightPerturbation(
            base, 0.1, ascent="update", constraint=constraint, step_size=0.2
        )
        for _ in range(3):  # where tensors lie is looked up once
            with Dispatched() as dispatched:
                last = []
                for p in optimizer.passes():
                    renew_gradients(params)
                    last.append(p)
                optimizer.step()
        assert [p.perturbed for p in last] == [True]
        # Another view of the same memory starts nothing on the device.
        counts.add(len([name for name in dispatched.names if "detach" not in name]))
    assert len(counts) == 1


@pytest.mark.parametrize("constraint", ["layer", "element"])
def test_a_climb_takes_two_operations_tensor_by_tensor(constraint):
    """Those with a number for each tensor: torch has no foreach kernel that reads it there."""
    params = parameters([(4, 4)] * 10, "meta")
    base = torch.optim.SGD(params, lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1, step_size=0.05, constraint=constraint)
    with TakenOneByOne() as recorded, optimizer.perturb():
        pass
    assert len(recorded.names) == 2


def test_resnet50_takes_as_many_operations_as_ten_tensors_where_starting_one_is_what_costs():
    shapes = resnet50_shapes()
    assert sum(torch.Size(shape).numel() for shape in shapes) == 25_502_912  # of 25.6 M in all
    ten = operations(parameters([(8, 8)] * 10, "meta"))
    assert len(operations(parameters(shapes, "meta"))) == len(ten)


WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique")


def test_nothing_on_resnet50_waits_for_a_value():
    names = operations(parameters(resnet50_shapes()), steps=3)
    assert not [name for name in names if any(f".{word}." in name for word in WAITING)]


WRAPS = [
    lambda base, **kw: AdversarialWeightPerturbation(base, 0.1, steps=2, **kw),
    lambda base, **kw: AdversarialWeightPerturbation(base, 0.1, ascent="update", **kw),
    lambda base, **kw: RandomWeightPerturbation(base, 0.1, **kw),
]


@pytest.mark.parametrize("constraint", ["layer", "element"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_whole_step_needs_no_value_on_the_host(wrap, constraint):
    """Tensors of the meta device have no values: whatever looks at one fails."""
    params = parameters([(8, 8)] * 5, device="meta")
    optimizer = wrap(torch.optim.SGD(params, lr=0.1), constraint=constraint)
    for _ in range(2):
        for _ in optimizer.passes():
            for param in params:
                param.grad = torch.ones_like(param)
        optimizer.step()
        with optimizer.perturb():
            if getattr(optimizer, "steps", 1) > 1:
                optimizer.ascend()
            renew_gradients(params)
        optimizer.step()


@pytest.mark.skipif(torch.__version__ < (2, 9), reason="older fakes ask for a driver")
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("constraint", ["layer", "element"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_whole_step_brings_nothing_from_the_host(wrap, constraint):
    """Fake tensors know their device: what mixes one of an accelerator with the host's fails."""
    with FakeTensorMode():
        params = parameters([(8, 8)] * 5, device="cuda")
        optimizer = wrap(torch.optim.AdamW(params, capturable=True), constraint=constraint)
        for _ in range(3):
            for _ in optimizer.passes():
                for param in params:
                    param.grad = torch.ones_like(param)
            optimizer.step()
        assert {param.device.type for param in params} == {"cuda"}


def bytes_alive() -> int:
    gc.collect()
    storages = {
        o.untyped_storage().data_ptr(): o.untyped_storage().nbytes()
        for o in gc.get_objects()
        if type(o) in (torch.Tensor, nn.Parameter)  # other tests' compilers leave fakes behind
    }
    return sum(storages.values())


PERTURBED = 4 * 64 * 64 * 4


def adversarial(shapes, **kwargs) -> AdversarialWeightPerturbation:
    return AdversarialWeightPerturbation(torch.optim.SGD(parameters(shapes), lr=0.1), 0.1, **kwargs)


@pytest.mark.parametrize("constraint", ["layer", "element"])
@pytest.mark.parametrize("steps", [1, 3])
def test_blocks_hold_one_copy_of_the_perturbed_tensors(constraint, steps):
    optimizer = adversarial([(64, 64)] * 4 + [(4096,)], steps=steps, constraint=constraint)
    before = bytes_alive()
    for _ in range(3):
        with optimizer.perturb():
            for _ in range(steps - 1):
                optimizer.ascend()
            held = bytes_alive() - before
        assert PERTURBED <= held <= 1.05 * PERTURBED
    assert bytes_alive() - before <= 1.05 * PERTURBED


@pytest.mark.parametrize("constraint", ["layer", "element"])
def test_the_update_costs_one_copy_between_steps_and_a_second_inside_a_step(constraint):
    optimizer = adversarial(
        [(64, 64)] * 4 + [(4096,)], ascent="update", constraint=constraint, step_size=0.2
    )
    before = bytes_alive()
    in_step: list[int] = []
    for hook in ("register_step_pre_hook", "register_step_post_hook"):
        getattr(optimizer, hook)(lambda *_: in_step.append(bytes_alive() - before))
    for _ in optimizer.passes():
        renew_gradients(optimizer.param_groups[0]["params"])
    optimizer.step()
    for _ in range(3):
        assert PERTURBED <= bytes_alive() - before <= 1.05 * PERTURBED
        for p in optimizer.passes():
            assert p.perturbed
            renew_gradients(optimizer.param_groups[0]["params"])
            assert 2 * PERTURBED <= bytes_alive() - before <= 2.05 * PERTURBED
        assert PERTURBED <= bytes_alive() - before <= 1.05 * PERTURBED
        optimizer.step()
    assert PERTURBED <= max(in_step) <= 2.05 * PERTURBED


def test_the_memory_of_a_copy_is_found_once():
    optimizer = adversarial([(64, 64)] * 4)
    for _ in range(2):
        with Dispatched() as dispatched, optimizer.perturb():
            pass
    assert not [name for name in dispatched.names if "clone" in name or "empty_like" in name]


def test_memory_that_no_tensor_needs_any_more_is_let_go():
    optimizer = adversarial([(64, 64)] * 4)
    before = bytes_alive()
    with optimizer.perturb():
        pass
    for param in optimizer.param_groups[0]["params"][:3]:
        param.requires_grad_(False)
    with optimizer.perturb():
        pass
    assert bytes_alive() - before <= 1.05 * PERTURBED / 4


def test_a_copy_of_an_optimizer_does_not_copy_the_memory():
    optimizer = adversarial([(64, 64)] * 4)
    with optimizer.perturb():
        pass
    before = bytes_alive()
    twin = copy.deepcopy(optimizer)
    parameters_and_gradients = 2 * PERTURBED
    assert bytes_alive() - before <= 1.05 * parameters_and_gradients
    assert twin.gamma == optimizer.gamma
