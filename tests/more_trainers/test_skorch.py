"""skorch hands the optimizer a closure: the wrapper alone is enough, in every mode."""

from typing import Any

import pytest
import torch
from documented import loop_of_passes, run_recipe
from reference import same_bits
from skorch import NeuralNetRegressor
from skorch.callbacks import GradientNormClipping, LRScheduler
from torch import nn
from torch.utils.data import DataLoader
from trainers.plain_loop import (
    BATCH,
    WRAPS,
    assert_same_weights,
    dataset,
    network,
    plain_run,
    weights,
)

mse = nn.functional.mse_loss


def test_the_recipe_equals_a_loop_by_hand():
    x, y = dataset().tensors
    net = run_recipe("skorch", model=network(), x=x, y=y)["net"]

    twin = network()
    batches = DataLoader(dataset(), batch_size=net.batch_size)
    assert same_bits(
        weights(net.module_), loop_of_passes(twin, lambda x, y: mse(twin(x), y), batches)
    )


@pytest.mark.parametrize("wrap", WRAPS)
def test_it_clips_and_schedules_like_a_loop_by_hand(wrap):
    def perturbed(parameters: Any, **settings: Any) -> torch.optim.Optimizer:
        return WRAPS[wrap](torch.optim.AdamW(parameters, **settings))

    net = NeuralNetRegressor(
        network(),
        optimizer=perturbed,
        lr=0.05,
        batch_size=BATCH,
        max_epochs=1,
        train_split=None,
        verbose=0,
        callbacks=[
            ("clip", GradientNormClipping(0.05)),
            ("schedule", LRScheduler("StepLR", step_size=1, gamma=0.7, step_every="batch")),
        ],
    )
    net.fit(*dataset().tensors)
    assert_same_weights(weights(net.module_), plain_run(wrap, clip=0.05))


def test_its_checkpoint_brings_everything_back(tmp_path):
    def perturbed(parameters: Any, **settings: Any) -> torch.optim.Optimizer:
        return WRAPS["awp-update"](torch.optim.AdamW(parameters, **settings))

    def begun() -> NeuralNetRegressor:
        return NeuralNetRegressor(
            network(), optimizer=perturbed, batch_size=BATCH, train_split=None, verbose=0
        ).initialize()

    whole, first, resumed = begun(), begun(), begun()
    data = dataset().tensors
    for _ in range(2):
        whole.partial_fit(*data, epochs=1)
    first.partial_fit(*data, epochs=1)
    files = {"f_params": tmp_path / "model.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    first.save_params(**files)
    resumed.load_params(**files)
    resumed.partial_fit(*data, epochs=1)
    assert same_bits(weights(resumed.module_), weights(whole.module_))
