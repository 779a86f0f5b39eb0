"""mmengine: its runner and optimizer wrapper around an attached model."""

from typing import Any

import pytest
import torch
from documented import loop_of_passes, run_recipe
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from reference import same_bits
from torch import Tensor, nn
from trainers.plain_loop import WRAPS, build, by_hand, loader, network, weights

mse = nn.functional.mse_loss


class Model(BaseModel):
    """Two losses, one in a list, as detectors return them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, y: Tensor, mode: str) -> Any:
        assert mode == "loss"
        error = mse(self.net(x), y)
        return {"loss_first": 0.25 * error, "loss_second": [0.5 * error, 0.25 * error]}


def test_the_recipe_equals_a_loop_by_hand(tmp_path):
    model = Model()
    run_recipe("mmengine", model=model, loader=loader(), folder=str(tmp_path))

    twin = Model()
    expected = loop_of_passes(
        twin, lambda x, y: twin.parse_losses(twin(x, y, mode="loss"))[0], loader()
    )
    assert same_bits(weights(model), expected)


@pytest.mark.parametrize("wrap", WRAPS)
def test_its_optimizer_wrapper_accumulates_and_clips_like_a_loop_by_hand(wrap):
    model = Model()
    optimizer, _ = build(wrap, model)
    optimizer.attach(model, loss=lambda losses, *_, **__: model.parse_losses(losses)[0])
    wrapper = OptimWrapper(optimizer, accumulative_counts=2, clip_grad={"max_norm": 0.05})
    wrapper.initialize_count_status(model, 0, len(loader(2)))
    model.train()
    for batch in loader(2):
        model.train_step(batch, wrapper)
    expected = by_hand(wrap, pieces=2, clip=0.05, scheduled=False)
    torch.testing.assert_close(weights(model), expected, rtol=1e-6, atol=1e-7)
