"""The end of a model is perturbed alone: what comes before it runs once a step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from toy_task import Toy, toy_samples, toy_task, with_settings

import fast_vqa
import sama_iqa
import sama_vqa
import simple_vqa
from torch_awp import AdversarialWeightPerturbation
from vqa.models import ENDS, build_model
from vqa.models.computed_once import ComputedOnce
from vqa.training.distributed import ProcessGroup
from vqa.training.loop import TrainingRun

HERE = ProcessGroup(torch.device("cpu"))
TINY = {
    "tiny_fast_vqa": lambda: (build_model("tiny_fast_vqa", width=8), torch.rand(3, 3, 4, 16, 16)),
    "tiny_sama_iqa": lambda: (build_model("tiny_sama_iqa"), torch.rand(3, 3, 32, 32)),
    "tiny_simple_vqa": lambda: (
        build_model("tiny_simple_vqa", motion=4),
        torch.rand(3, 2, 3, 48, 48),
        torch.rand(3, 2, 4),
    ),
}
PAPER = (fast_vqa, sama_vqa, sama_iqa, simple_vqa)


def counted(model: torch.nn.Module) -> dict[str, int]:
    """How often the forward method of every module of the model runs from now on."""
    calls = dict.fromkeys((name for name, _ in model.named_modules()), 0)

    def counting(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            calls[name] += 1
            return forward(*args)

        return called

    for name, module in model.named_modules():
        module.forward = counting(name, module.forward)
    return calls


def trained(name: str, once: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model, *inputs = TINY[name]()
    end = ENDS[name]
    optimizer = AdversarialWeightPerturbation(
        torch.optim.AdamW(model.named_parameters(), lr=1e-2),
        gamma=0.1,
        select=lambda name, w: w.ndim > 1 and name.startswith(tuple(f"{own}." for own in end)),
    )
    kept = ComputedOnce(model, end if once else ())
    for _ in range(2):
        for p in optimizer.passes():
            torch.manual_seed(1)  # dropout of the head
            optimizer.zero_grad()
            with kept.outputs_of("batch"):
                loss = model(*inputs).square().mean()
            loss.backward(inputs=p.inputs if once else None)
        kept.forget()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("name", ["tiny_fast_vqa"])
def test_it_gives_what_the_whole_model_gives_with_the_same_select(name):
    whole, once = (trained(name, once) for once in (False, True))

    assert all(own.equal(once[name]) for name, own in whole.items())


@pytest.mark.parametrize("name", TINY)
def test_the_later_pass_calls_the_end_alone(name):
    model, *inputs = TINY[name]()
    end = ENDS[name]
    kept = ComputedOnce(model, end)
    with kept.outputs_of(0):
        first = model(*inputs)
    calls = counted(model)

    with kept.outputs_of(0):
        second = model(*inputs)

    ran = {name for name, count in calls.items() if count}
    with_weights = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    own = tuple(f"{name}." for name in end)
    assert second.shape == first.shape
    assert ran & with_weights == {name for name in with_weights if f"{name}.".startswith(own)}


def test_another_batch_and_another_step_are_computed_anew():
    model, images = TINY["tiny_fast_vqa"]()
    kept = ComputedOnce(model, ENDS["tiny_fast_vqa"])
    calls = counted(model)

    for batch in (0, 0, 1, 1, 0):
        with kept.outputs_of(batch):
            model(images)
    kept.forget()
    with kept.outputs_of(0):
        model(images)

    assert (calls["space.0"], calls["head"]) == (3, 6)


def test_a_module_that_the_end_calls_too_is_not_taken_from_before_it():
    act = torch.nn.Tanh()
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), act, torch.nn.Linear(2, 2), act)
    kept = ComputedOnce(model, ("2",))
    x = torch.randn(1, 2)

    for _ in range(2):
        with kept.outputs_of(0), torch.no_grad():
            found = model(x)
            model[2].weight.mul_(2)

    model[2].weight.data.div_(2)
    assert found.equal(model(x))


def test_outside_of_it_the_model_is_as_it_was():
    model, images = TINY["tiny_fast_vqa"]()
    with ComputedOnce(model, ENDS["tiny_fast_vqa"]).outputs_of(0):
        model(images)

    assert not any("forward" in vars(module) for module in model.modules())


def test_a_forward_method_that_another_has_replaced_comes_back():
    model, images = TINY["tiny_fast_vqa"]()
    before = model.head.forward = lambda features: features.mean(1, keepdim=True)

    with ComputedOnce(model, ENDS["tiny_fast_vqa"]).outputs_of(0):
        model(images)

    assert model.head.forward is before


def weights_of(settings, samples=18) -> dict[str, torch.Tensor]:
    run = TrainingRun(
        replace(toy_task(settings), freeze_statistics=True),
        settings,
        toy_samples(samples),
        0,
        HERE,
    )
    list(run.steps())
    return run.model.state_dict()


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"steps": 2}, {"amp": "bf16"}], ids=str)
def test_a_training_is_that_of_the_whole_model(changes, monkeypatch):
    settings = with_settings(perturb_end=True, named_weight=False, gamma=0.1, **changes)
    once = weights_of(settings)

    monkeypatch.setattr("vqa.training.loop.ComputedOnce", _Nothing)
    whole = weights_of(settings)

    assert all(own.equal(once[name]) for name, own in whole.items())
    assert not once["head.1.weight"].equal(
        weights_of(replace(settings, perturb_end=False))["head.1.weight"]
    )


class _Nothing(ComputedOnce):
    """Computes everything in every pass."""

    def __init__(self, model, end) -> None:
        super().__init__(model, ())


def test_only_the_end_moves():
    settings = with_settings(perturb_end=True, gamma=0.5)
    run = TrainingRun(toy_task(settings), settings, toy_samples(18), 0, HERE)
    at: list[dict[str, torch.Tensor]] = []

    def look(model: Toy, _: object) -> None:
        at.append({name: own.detach().clone() for name, own in model.named_parameters()})

    run.model.register_forward_pre_hook(look)
    next(run.steps())

    moved = {name for name, own in at[0].items() if not own.equal(at[1][name])}
    assert moved == {"head.1.weight"}


@pytest.mark.parametrize("script", PAPER, ids=lambda script: script.__name__)
def test_the_papers_presets_move_everything(script):
    assert not script.PRESETS["paper"][1].perturb_end


@pytest.mark.parametrize("script", PAPER, ids=lambda script: script.__name__)
def test_every_script_names_the_end_of_its_models(script):
    for _, settings in script.PRESETS.values():
        settings = replace(settings, perturb="awp", perturb_end=True)
        assert script.task(settings).end == ENDS[settings.model]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"perturb": "none"}, "perturb_end: has an effect with perturb"),
        ({"compile": True}, "compile"),
    ],
)
def test_what_does_not_go_with_it_is_said(changes, told):
    with pytest.raises(ValueError, match=told):
        with_settings(perturb_end=True, **changes)
