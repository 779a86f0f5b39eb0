"""Hugging Face Trainer: a small subclass makes the second pass, with accumulation and clipping."""

from typing import Any

import pytest
import torch
from plain_loop import (
    BATCH,
    WRAPS,
    assert_same_weights,
    build,
    dataset,
    network,
    plain_run,
    weights,
)
from reference import same_bits
from tiers import first_fast
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

# torch's DataLoader about memory that Trainer pins for an accelerator it does not find.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(self.net(x), labels)}


class PerturbingTrainer(Trainer):
    """Holds the micro-batches of a step until the last, and then takes the passes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: list[dict[str, Tensor]] = []

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.held.append(inputs)
        loss = torch.zeros(())
        if not self.accelerator.sync_gradients:
            return loss
        for p in self.optimizer.optimizer.passes():
            model.zero_grad()
            for held in self.held:
                held_loss = super().training_step(model, held, num_items_in_batch)
                loss = loss + held_loss if p.index == 0 else loss
        self.held.clear()
        return loss

    def _get_train_sampler(self, *args: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def trained(folder: Any, wrap: str, pieces: int = 1, resume: bool = False, **options: Any) -> Any:
    model = Regressor()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=pieces,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"num_train_epochs": 1, "max_grad_norm": 0.0, "save_strategy": "no", **options},
    )
    rows = [{"x": x, "labels": y} for x, y in dataset(pieces)]
    trainer = PerturbingTrainer(
        model, arguments, train_dataset=rows, optimizers=build(wrap, model.net)
    )
    trainer.train(resume_from_checkpoint=resume)
    return weights(model.net)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("wrap", WRAPS)
def test_it_accumulates_like_one_big_batch(wrap, pieces, tmp_path):
    assert_same_weights(trained(tmp_path, wrap, pieces), plain_run(wrap, pieces=pieces))


def test_it_clips_the_gradients_the_base_uses(tmp_path):
    measured = trained(tmp_path, "awp", max_grad_norm=0.01)
    assert_same_weights(measured, plain_run("awp", clip=0.01))


@pytest.mark.parametrize("wrap", first_fast(WRAPS))
def test_it_resumes_bitwise_from_its_checkpoint(wrap, tmp_path):
    whole = trained(tmp_path / "whole", wrap, num_train_epochs=2)
    options = {"save_strategy": "epoch", "save_only_model": False}
    trained(tmp_path / "parts", wrap, **options)
    resumed = trained(tmp_path / "parts", wrap, resume=True, num_train_epochs=2)
    assert same_bits(resumed, whole)
