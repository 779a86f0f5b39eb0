"""What a perturbation costs: operations, waiting, memory."""

import copy
import gc
import weakref

import pytest
import torch
from launches import Launches
from on_device import COPIES
from on_device import MODES as ON_DEVICE
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation


def parameters(shapes, device: str = "cpu", dtype: torch.dtype | None = None) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.ones(shape, device=device, dtype=dtype)) for shape in shapes]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


def renew_gradients(params) -> None:
    """What a backward pass does, for nothing: another tensor in the same memory."""
    for param in params:
        param.grad = param.grad.detach()


def launches(wrap, params) -> Launches:
    optimizer = wrap(torch.optim.SGD(params, lr=0.1))
    with optimizer.perturb():
        pass  # what is sent to the device once
    with Launches() as counted, optimizer.perturb():
        pass
    return counted


MODES = {
    "layer": (lambda base: AdversarialWeightPerturbation(base, 0.1), 100, 41),
    "layer, cut": (lambda base: AdversarialWeightPerturbation(base, 0.1, step_size=0.2), 180, 64),
    "element": (
        lambda base: AdversarialWeightPerturbation(base, 0.1, step_size=0.2, constraint="element"),
        180,
        48,
    ),
    "random": (lambda base: RandomWeightPerturbation(base, 0.1), 130, 51),
    "random, element": (
        lambda base: RandomWeightPerturbation(base, 0.1, constraint="element"),
        180,
        51,
    ),
}


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1.0), (torch.bfloat16, 1.3)])
@pytest.mark.parametrize("mode", MODES)
def test_four_hundred_tensors_start_few_kernels(mode, dtype, factor):
    """A kernel for each tensor would be 400 and more; counted by the rules of torch's sources."""
    wrap, for_400, for_10 = MODES[mode]
    for tensors, bound in ((400, for_400), (10, for_10)):
        params = parameters([(64, 64)] * tensors, "meta", dtype)
        assert launches(wrap, params).total <= factor * bound


class Calls(TorchFunctionMode):
    """Counts what is asked of tensors."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", MODES)
def test_the_work_on_the_host_grows_with_the_number_of_tensors_and_not_with_its_square(mode):
    def calls(tensors: int) -> int:
        optimizer = MODES[mode][0](torch.optim.SGD(parameters([(2, 2)] * tensors), lr=0.1))
        with Calls() as counted, optimizer.perturb():
            pass
        return counted.count

    assert calls(400) < 5 * calls(100)


def test_tensors_that_lie_otherwise_do_not_slow_down_the_others():
    params = []
    for i in range(400):
        shape = ((63, 65), (64, 3, 3, 3), (64, 64), (7, 5))[i % 4]
        weight = torch.ones(shape, device="meta")
        if i % 4 == 1:
            weight = weight.to(memory_format=torch.channels_last)
        gradient = torch.ones_like(weight)
        if i % 100 == 50:
            weight = torch.ones(64, 128, device="meta")[:, :64]
            gradient = torch.ones(64, 64, device="meta")
        if i % 100 == 51:
            gradient = torch.ones((), device="meta").expand(shape)  # as autograd gives sums
        params.append(nn.Parameter(weight))
        params[-1].grad = gradient
    assert launches(MODES["layer"][0], params).total <= 220


def test_a_step_along_the_update_starts_few_kernels_too():
    params = parameters([(64, 64)] * 400, "meta")
    base = torch.optim.SGD(params, lr=0.1, foreach=True)
    optimizer = AdversarialWeightPerturbation(base, 0.1, ascent="update")
    for _ in range(3):
        with Launches() as counted:
            perturbed = []
            for p in optimizer.passes():
                renew_gradients(params)
                perturbed.append(p.perturbed)
            optimizer.step()
    assert perturbed == [True]
    assert counted.total <= 110


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


class Memory(TorchDispatchMode):
    """Bytes held by what operations make: now, and at most. On `meta` it is the sizes alone."""

    now = peak = 0

    def __init__(self) -> None:
        super().__init__()
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in self._tensors((args, kwargs)):
            self._known[tensor.untyped_storage()] = True
        result = func(*args, **(kwargs or {}))
        for tensor in self._tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known[storage] = True
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _tensors(self, tree):
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_while_tensors_move_an_accelerator_holds_little_beside_the_backups(mode, dtype):
    """Two copies in float32 of 2 ** 26 elements, whatever the sizes and the number of tensors."""
    shapes = [(2**13, 2**13)] * 2 + [(2**12, 2**12)] * 6 + [(64, 64)] * 40
    if not mode.startswith("random"):  # the noise of one tensor is drawn at once
        shapes += [(2**14, 2**13)]
    params = parameters(shapes, "meta", dtype)
    backups = sum(param.numel() * param.itemsize for param in params)
    optimizer = MODES[mode][0](torch.optim.SGD(params, lr=0.1))
    for _ in range(2):
        with Memory() as memory, optimizer.perturb():
            assert backups <= memory.now <= 1.01 * backups
        assert memory.peak <= backups + 2 * 4 * 2**26 * 1.01


@pytest.mark.parametrize("mode", COPIES)
def test_an_accelerator_holds_the_copies_that_are_to_be_found_on_one(mode):
    """As `tests/gpu` measures them there, of tensors below the size at which they are cut."""
    params = parameters([(1024, 1024)] * 4 + [(4096,)], "meta")
    one = sum(param.nbytes for param in params[:-1])
    optimizer = ON_DEVICE[mode](torch.optim.SGD(params, lr=0.1, foreach=True))
    if mode.startswith("rwp"):
        optimizer.generator = None  # of the device, since `meta` has no generators
    between, away, peak = COPIES[mode]
    with Memory() as memory:
        for _ in range(3):
            for p in optimizer.passes():
                renew_gradients(params)
                assert not p.perturbed or memory.now == pytest.approx(away * one, rel=0.01)
            optimizer.step()
            assert memory.now == pytest.approx(between * one, rel=0.01, abs=0.01 * one)
    assert memory.peak == pytest.approx(peak * one, rel=0.01)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mode", MODES)
def test_copies_of_views_hold_the_views_alone(mode, device):
    flat = torch.ones(40 * 64 * 64, device=device)
    params = [nn.Parameter(part.view(64, 64)) for part in flat.split(64 * 64)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = MODES[mode][0](torch.optim.SGD(params, lr=0.1))
    with Memory() as memory, optimizer.perturb():
        assert flat.nbytes <= memory.now <= 1.05 * flat.nbytes


class Allocations(TorchDispatchMode):
    """Counts tensors made like another, as backups are."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("empty_like", "clone")
        return func(*args, **(kwargs or {}))


def test_the_memory_of_a_copy_is_found_once():
    optimizer = adversarial([(64, 64)] * 4)
    counts = []
    for _ in range(2):
        with Allocations() as allocations, optimizer.perturb():
            counts.append(allocations.count)
    assert counts == [4, 0]


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
