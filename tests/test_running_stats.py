"""freeze_running_stats: statistics stand still while layers normalise by the batch."""

import copy

import pytest
import torch
from reference import same_bits
from torch import nn

from torch_awp import AdversarialWeightPerturbation, freeze_running_stats

LAYERS = {
    "BatchNorm1d": (nn.BatchNorm1d(3), (4, 3, 5)),
    "BatchNorm2d": (nn.BatchNorm2d(3), (4, 3, 5, 5)),
    "BatchNorm3d": (nn.BatchNorm3d(3), (4, 3, 2, 5, 5)),
    "cumulative": (nn.BatchNorm1d(3, momentum=None), (4, 3)),
    "SyncBatchNorm": (nn.SyncBatchNorm(3), (4, 3, 5)),
    "InstanceNorm1d": (nn.InstanceNorm1d(3, track_running_stats=True), (4, 3, 5)),
    "InstanceNorm2d": (nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (4, 3, 5, 5)),
    "InstanceNorm3d": (nn.InstanceNorm3d(3, track_running_stats=True), (4, 3, 2, 5, 5)),
}


class HomeMade(nn.Module):
    """A layer of nobody's family, with statistics by the usual names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x):
        self.running_mean += x.mean(0)
        self.num_batches_tracked += 1
        return x - x.mean(0)


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.detach().clone() for buffer in model.buffers()]


@pytest.fixture(params=LAYERS)
def layer_and_input(request):
    layer, shape = copy.deepcopy(LAYERS[request.param])
    layer(torch.randn(shape))  # statistics that are not the initial ones
    return layer, 3 + 2 * torch.randn(shape)


def test_statistics_stand_still_also_inside(layer_and_input):
    layer, x = layer_and_input
    before = statistics(layer)
    with freeze_running_stats(layer):
        layer(x)
        assert same_bits(statistics(layer), before)
    assert same_bits(statistics(layer), before)


def test_the_batch_still_normalises(layer_and_input):
    layer, x = layer_and_input
    expected = copy.deepcopy(layer)(x)
    with freeze_running_stats(layer):
        assert torch.equal(layer(x), expected)


def test_eval_mode_inside_uses_the_statistics(layer_and_input):
    layer, x = layer_and_input
    expected = copy.deepcopy(layer).eval()(x)
    with freeze_running_stats(layer):
        assert torch.equal(layer.eval()(x), expected)


def test_statistics_move_again_afterwards(layer_and_input):
    layer, x = layer_and_input
    twin = copy.deepcopy(layer)
    with freeze_running_stats(layer):
        layer(x)
    layer(x)
    twin(x)
    assert same_bits(statistics(layer), statistics(twin))


def test_contexts_nest(layer_and_input):
    layer, x = layer_and_input
    before, twin = statistics(layer), copy.deepcopy(layer)
    with freeze_running_stats(layer):
        with freeze_running_stats(layer):
            layer(x)
        layer(x)
        assert same_bits(statistics(layer), before)
    layer(x)
    twin(x)
    assert same_bits(statistics(layer), statistics(twin))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_non_finite_batch_leaves_no_trace(layer_and_input, bad):
    layer, x = layer_and_input
    before = statistics(layer)
    x.view(-1)[0] = bad
    with freeze_running_stats(layer):
        layer(x)
    assert same_bits(statistics(layer), before)


def test_an_exception_restores_the_layers(layer_and_input):
    layer, x = layer_and_input
    twin = copy.deepcopy(layer)
    with pytest.raises(KeyboardInterrupt), freeze_running_stats(layer):
        raise KeyboardInterrupt
    layer(x)
    twin(x)
    assert same_bits(statistics(layer), statistics(twin))


def test_a_home_made_layer_is_put_back():
    layer = HomeMade()
    with freeze_running_stats(layer):
        layer(torch.randn(4, 3))
    assert same_bits(statistics(layer), statistics(HomeMade()))


def test_layers_without_statistics_are_fine():
    model = nn.Sequential(
        nn.BatchNorm1d(3, track_running_stats=False), nn.InstanceNorm1d(3), nn.LayerNorm(3)
    )
    x = torch.randn(4, 3)
    expected = model[0](x)
    with freeze_running_stats(model):
        assert torch.equal(model[0](x), expected)


def test_with_a_frozen_second_pass_statistics_move_once_a_step():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    x = torch.randn(8, 3)
    model(x).square().sum().backward()
    with optimizer.perturb(), freeze_running_stats(model):
        optimizer.zero_grad()
        model(x).square().sum().backward()
    optimizer.step()
    assert model[1].num_batches_tracked == 1


def test_a_backward_pass_may_follow_the_context():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3))
            self.register_buffer("running_var", torch.ones(3))

        def forward(self, x):
            mean, var = self.running_mean, self.running_var
            return nn.functional.batch_norm(x, mean, var, training=True)

    layer, x = Own(), torch.randn(4, 3, requires_grad=True)
    with freeze_running_stats(layer):
        loss = layer(x).square().sum()
    loss.backward()
    assert x.grad.isfinite().all()


def test_a_lazy_layer_may_be_made_inside():
    layer = nn.LazyBatchNorm1d()
    with freeze_running_stats(layer):
        layer(torch.randn(4, 3))
    assert layer.running_mean.shape == (3,)


def test_a_context_that_is_not_enabled_does_nothing():
    layer, twin = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    x = torch.randn(4, 3)
    with freeze_running_stats(layer, enabled=False):
        layer(x)
    twin(x)
    assert same_bits(statistics(layer), statistics(twin))


class Reassigning(nn.Module):
    """Replaces its buffer instead of writing into it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(3))

    def forward(self, x):
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return x - self.average


class Unseen(Reassigning):
    """Writes where autograd does not look."""

    def forward(self, x):
        self.average.data.lerp_(x.detach().mean(0), 0.1)
        return x - self.average


class Averaging(nn.BatchNorm1d):
    """Updates its statistics itself and asks no flag, as detectron2's NaiveSyncBatchNorm."""

    def forward(self, x):
        self.running_mean += 0.1 * (x.detach().mean(0) - self.running_mean)
        return x - x.mean(0)


def observed() -> nn.Module:
    fake_quantize = torch.ao.quantization.FakeQuantize(
        observer=torch.ao.quantization.MovingAverageMinMaxObserver
    )
    return nn.Sequential(nn.Linear(3, 3), fake_quantize)


def spectrally_normalised() -> nn.Module:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
    for vector in layer.buffers():  # the constructor may have found them to the last bit
        vector.copy_(nn.functional.normalize(torch.ones_like(vector), dim=0))
    return layer


UPDATED_BY_FORWARD = {
    "replaced": Reassigning,
    "written unseen": Unseen,
    "made from BatchNorm": lambda: Averaging(3),
    "quantisation observer": observed,
    "spectral norm": spectrally_normalised,
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(3, 4)),
}


@pytest.mark.filterwarnings("ignore:torch.nn.utils.spectral_norm:FutureWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization:FutureWarning")
@pytest.mark.parametrize("kind", UPDATED_BY_FORWARD)
def test_every_buffer_that_a_forward_pass_updates_is_put_back(kind):
    model = UPDATED_BY_FORWARD[kind]()
    model(torch.randn(4, 3))
    before, objects = statistics(model), list(model.buffers())
    with freeze_running_stats(model):
        model(5 + torch.randn(4, 3))
        assert not same_bits(statistics(model), before)
    assert same_bits(statistics(model), before)
    assert all(now is was for now, was in zip(model.buffers(), objects, strict=True))


def test_a_cache_that_grew_inside_stays():
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(2.0), persistent=False)

        def forward(self, x):
            if len(x) > len(self.table):
                self.table = torch.arange(float(len(x)))
            return x * self.table[: len(x)]

    model = Cached()
    with freeze_running_stats(model):
        model(torch.ones(4))
    assert len(model.table) == 4
    model(torch.ones(3))
