"""ignite: its supervised trainer around an attached model."""

import pytest
import torch
from documented import loop_of_passes, run_recipe
from ignite.engine import Events, create_supervised_trainer
from reference import same_bits
from torch import nn
from trainers.plain_loop import WRAPS, build, by_hand, loader, network, weights

mse = nn.functional.mse_loss


def test_the_recipe_equals_a_loop_by_hand():
    model = network()
    run_recipe("ignite", model=model, loss_fn=mse, loader=loader())

    twin = network()
    expected = loop_of_passes(twin, lambda x, y: mse(twin(x), y), loader())
    assert same_bits(weights(model), expected)


@pytest.mark.parametrize("wrap", WRAPS)
def test_it_accumulates_and_schedules_like_a_loop_by_hand(wrap):
    model = network()
    optimizer, scheduler = build(wrap, model)
    trainer = create_supervised_trainer(model, optimizer, mse, gradient_accumulation_steps=2)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda _: scheduler.step())
    optimizer.attach(model, loss=lambda output, *_: mse(output, trainer.state.batch[1]))
    trainer.run(loader(2), max_epochs=1)
    torch.testing.assert_close(weights(model), by_hand(wrap, pieces=2), rtol=1e-6, atol=1e-7)
