"""fastai: its optimizer wrapper around ours, its learner around an attached model."""

from functools import partial
from typing import Any

import pytest
import torch
from documented import loop_of_passes, run_recipe
from fastai.callback.schedule import *  # noqa: F403  (adds methods to Learner, as users import it)
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from reference import same_bits
from torch import Tensor, nn
from trainers.plain_loop import BATCH, WRAPS, build, by_hand, loader, network, weights

from torch_awp import AdversarialWeightPerturbation

mse = nn.functional.mse_loss


def test_the_recipe_equals_a_loop_by_hand():
    model = network()
    run_recipe("fastai", model=model, loss_fn=mse, dls=DataLoaders(loader(), loader()))

    twin = network()
    expected = loop_of_passes(twin, lambda x, y: mse(twin(x), y), loader())
    assert same_bits(weights(model), expected)


def learned(wrap: str, pieces: int, *callbacks: Any) -> list[Tensor]:
    model = network()
    optimizer, _ = build(wrap, model)
    learn = Learner(
        DataLoaders(loader(pieces), loader()),
        model,
        loss_func=mse,
        opt_func=OptimWrapper(opt=optimizer),
    )
    optimizer.attach(model, loss=lambda output, *_: mse(output, *learn.yb))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, lr=0.05, cbs=callbacks)
    return weights(model)


@pytest.mark.parametrize("wrap", WRAPS)
def test_it_accumulates_and_clips_like_a_loop_by_hand(wrap):
    measured = learned(wrap, 2, GradientAccumulation(2 * BATCH), GradientClip(0.05))
    expected = by_hand(wrap, pieces=2, clip=0.05, scheduled=False)
    torch.testing.assert_close(measured, expected, rtol=1e-6, atol=1e-7)


def test_names_for_select_where_its_splitter_builds_the_groups():
    model = network()
    names = {param: name for name, param in model.named_parameters()}

    def built(parameters: Any, **settings: Any) -> torch.optim.Optimizer:
        base = torch.optim.AdamW(parameters, **settings)
        for group in base.param_groups:
            group["param_names"] = [names[param] for param in group["params"]]
        return AdversarialWeightPerturbation(base, 0.1, select=lambda name, _: name == "2.weight")

    learn = Learner(
        DataLoaders(loader(), loader()),
        model,
        loss_func=mse,
        opt_func=partial(OptimWrapper, opt=built),
        splitter=lambda net: [list(net[0].parameters()), list(net[2].parameters())],
    )
    learn.create_opt()
    optimizer = learn.opt.opt
    home = {name: param.detach().clone() for name, param in model.named_parameters()}
    x, y = next(iter(loader()))
    mse(model(x), y).backward()
    with optimizer.perturb():
        moved = {name for name, param in model.named_parameters() if not param.equal(home[name])}
    assert moved == {"2.weight"}
