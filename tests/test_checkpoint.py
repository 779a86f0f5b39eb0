"""Checkpoints: a run resumes bitwise, and wrapper and plain base read each other's."""

import copy
import io

import pytest
import torch
from pytorch_optimizer import Lookahead
from reference import batch, closure_for, same_bits, small_net, weights_of
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

BASES = [
    lambda params: torch.optim.SGD(params, lr=0.05),
    lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    lambda params: torch.optim.AdamW(params, lr=0.01, amsgrad=True),
    lambda params: torch.optim.Adagrad(params, lr=0.05),
    lambda params: torch.optim.Rprop(params, lr=0.01),
    lambda params: torch.optim.Adafactor(params),
]
WRAPS = {
    "awp": lambda base: AdversarialWeightPerturbation(base, 0.1),
    "awp-steps-interval": lambda base: AdversarialWeightPerturbation(
        base, 0.1, steps=2, interval=3, start_step=1
    ),
    "awp-update": lambda base: AdversarialWeightPerturbation(base, 0.1, ascent="update"),
    "awp-update-interval": lambda base: AdversarialWeightPerturbation(
        base, 0.1, ascent="update", interval=2
    ),
    "rwp": lambda base: RandomWeightPerturbation(
        base, 0.1, interval=2, generator=torch.Generator().manual_seed(5)
    ),
}
ADAGRAD = BASES[3]
KEEPING = [wrap for name, wrap in WRAPS.items() if "update" in name]


def through_a_file(state_dict: dict) -> dict:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def continue_both(optimizer, model, resumed, resumed_model, data) -> None:
    for _ in range(4):
        optimizer.step(closure_for(model, data))
        resumed.step(closure_for(resumed_model, data))
    assert same_bits(weights_of(model), weights_of(resumed_model))


@pytest.mark.parametrize("build", BASES)
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("steps_before", [0, 1, 4])
def test_a_run_resumes_bitwise(build, wrap, steps_before):
    model, data = small_net(torch.float32), batch(torch.float32)
    optimizer = wrap(build(model.parameters()))
    for _ in range(steps_before):
        optimizer.step(closure_for(model, data))
    saved = through_a_file(optimizer.state_dict())
    resumed_model = copy.deepcopy(model)
    resumed_model.zero_grad()
    resumed = wrap(build(resumed_model.parameters()))
    if "generator" in vars(resumed) and resumed.generator is not None:
        torch.randn(7, generator=resumed.generator)
    resumed.load_state_dict(saved)
    continue_both(optimizer, model, resumed, resumed_model, data)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_base_that_saves_the_optimizer_inside_it_resumes_bitwise(wrap):
    test_a_run_resumes_bitwise(lambda params: Lookahead(BASES[2](params)), wrap, 4)


@pytest.mark.parametrize("build", BASES)
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_the_plain_base_loads_a_wrappers_checkpoint(build, wrap):
    model, data = small_net(), batch()
    optimizer = wrap(build(model.parameters()))
    for _ in range(3):
        optimizer.step(closure_for(model, data))
    twin = copy.deepcopy(model)
    plain, continued = build(twin.parameters()), copy.deepcopy(model)
    plain.load_state_dict(through_a_file(optimizer.state_dict()))
    off = wrap(build(continued.parameters()))
    off.load_state_dict(through_a_file(optimizer.state_dict()))
    off.param_groups[0]["perturb_gamma"] = 0.0
    for _ in range(2):
        plain.step(closure_for(twin, data))
        off.step(closure_for(continued, data))
    assert same_bits(weights_of(twin), weights_of(continued))


@pytest.mark.parametrize("build", BASES)
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_the_wrapper_loads_a_plain_checkpoint(build, wrap):
    model, data = small_net(), batch()
    plain = build(model.parameters())
    for _ in range(3):
        plain.step(closure_for(model, data))
    saved = through_a_file(plain.state_dict())
    twin = copy.deepcopy(model)
    optimizer, again = wrap(build(model.parameters())), wrap(build(twin.parameters()))
    for each in (optimizer, again):
        each.load_state_dict(copy.deepcopy(saved))
    continue_both(optimizer, model, again, twin, data)


def test_gammas_survive_a_plain_checkpoint():
    model = small_net()
    groups = [
        {"params": [model[0].weight], "perturb_gamma": 0.02},
        {"params": [model[2].weight]},
    ]
    plain = torch.optim.SGD([{"params": g["params"]} for g in groups], lr=0.1)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(groups, lr=0.1), 0.1)
    optimizer.param_groups[1]["perturb_gamma"] = 0.03
    optimizer.load_state_dict(plain.state_dict())
    assert [g["perturb_gamma"] for g in optimizer.param_groups] == [0.02, 0.03]


def test_a_plain_checkpoint_starts_the_count_anew():
    model, data = small_net(), batch()
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(model.parameters(), lr=0.1), 0.1, interval=2
    )
    optimizer.step(closure_for(model, data))
    optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
    losses: list[float] = []
    optimizer.step(closure_for(model, data, losses))
    assert len(losses) == 2


def test_names_survive_a_checkpoint_without_names():
    model, data = small_net(), batch()
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(model.named_parameters(), lr=0.1),
        0.1,
        select=lambda name, param: name == "0.bias",
    )
    optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
    closure_for(model, data)()
    before = model[0].bias.detach().clone()
    with optimizer.perturb():
        assert not torch.equal(model[0].bias, before)


def test_two_wrappers_that_loaded_one_checkpoint_are_independent():
    model, data = small_net(), batch()
    optimizer = WRAPS["rwp"](torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer.step(closure_for(model, data))
    saved = optimizer.state_dict()
    twins = [copy.deepcopy(model) for _ in range(2)]
    runs = [WRAPS["rwp"](torch.optim.SGD(twin.parameters(), lr=0.1)) for twin in twins]
    for run in runs:
        run.load_state_dict(saved)
    for run, twin in zip(runs, twins, strict=True):
        for _ in range(3):
            run.step(closure_for(twin, data))
    assert same_bits(weights_of(twins[0]), weights_of(twins[1]))


@pytest.mark.parametrize(
    ("flatten", "build", "wrap"),
    [
        (flatten, build, wrap)
        for flatten in (False, True)
        for build in BASES
        for wrap in WRAPS.values()
        # Flattened, torch asks a fresh optimizer for its keys by a step, which it spares Adagrad.
        if not (flatten and build is ADAGRAD and wrap in KEEPING)
    ],
)
def test_distributed_checkpoint_round_trip(flatten, build, wrap):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, data = small_net(torch.float32), batch(torch.float32)
    optimizer = wrap(build(model.parameters()))
    for _ in range(3):
        optimizer.step(closure_for(model, data))
    optimizer.zero_grad()
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    resumed_model = copy.deepcopy(model)
    resumed = wrap(build(resumed_model.parameters()))
    set_optimizer_state_dict(resumed_model, resumed, optim_state_dict=saved, options=options)
    continue_both(optimizer, model, resumed, resumed_model, data)


@pytest.mark.parametrize("build", BASES)
def test_distributed_checkpoint_does_not_advance_the_count(build):
    model, data = small_net(), batch()
    optimizer = AdversarialWeightPerturbation(build(model.parameters()), 0.1, interval=2)
    for _ in range(2):
        get_optimizer_state_dict(model, optimizer)
        optimizer.zero_grad()
    losses: list[float] = []
    optimizer.step(closure_for(model, data, losses))
    assert len(losses) == 2  # step 0, which perturbs


def test_a_first_step_at_learning_rate_zero_counts():
    model, data = small_net(), batch()
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(model.parameters(), lr=0.0), 0.1, interval=2
    )
    for _ in optimizer.passes():
        closure_for(model, data)()
    optimizer.step()
    losses: list[float] = []
    optimizer.step(closure_for(model, data, losses))
    assert len(losses) == 1  # step 1, which does not perturb
