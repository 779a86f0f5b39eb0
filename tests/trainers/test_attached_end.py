"""The end of a model with transformers: attached in a Trainer, or unsplit in a loop."""

from typing import Any

import pytest
import torch
from plain_loop import BATCH, STEPS, dataset, loader, network, weights
from reference import same_bits
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from torch_awp import AdversarialWeightPerturbation

# torch's DataLoader about memory that Trainer pins for an accelerator it does not find.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


class Head(nn.Sequential):
    """Ends in its loss, so that the climb has one."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.mse_loss(super().forward(features), labels)


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        *body, last = network()
        self.body, self.head = nn.Sequential(*body), Head(last)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": self.head(self.body(x), labels)}


class InOrder(Trainer):
    """Data as they come, so that a loop can be compared; nothing else is changed."""

    def _get_train_sampler(self, *args: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def by_hand() -> list[Tensor]:
    """The loop over the whole model, of which the last weight is selected."""
    model = network()
    optimizer = AdversarialWeightPerturbation(
        torch.optim.AdamW(model.named_parameters(), lr=0.05),
        0.1,
        select=lambda name, _: name == "2.weight",
    )
    for x, y in loader():
        for _ in optimizer.passes():
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return weights(model)


def test_trainer_takes_the_steps_of_a_loop_and_runs_the_end_alone_twice(tmp_path):
    model, runs = Regressor(), {"body": 0, "head": 0}
    for name in runs:

        def count(*_: object, name: str = name) -> None:
            runs[name] += 1

        getattr(model, name).register_forward_hook(count)
    base = torch.optim.AdamW(model.parameters(), lr=0.05)
    optimizer = AdversarialWeightPerturbation(base, 0.1)
    optimizer.attach(model.head)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"x": x, "labels": y} for x, y in dataset()]

    InOrder(model, arguments, train_dataset=rows, optimizers=(optimizer, None)).train()

    assert same_bits(weights(model), by_hand())
    assert runs == {"body": STEPS, "head": 2 * STEPS}


def fine_tuned(inputs_alone: bool) -> list[Tensor]:
    """A small BERT, with dropout, after three steps of AWP on its last block and head."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = BertForSequenceClassification(config)
    end = ("bert.encoder.layer.1.", "bert.pooler.", "classifier.")
    optimizer = AdversarialWeightPerturbation(
        torch.optim.AdamW(model.named_parameters(), lr=0.01),
        0.05,
        select=lambda name, param: param.ndim > 1 and name.startswith(end),
    )
    for _ in range(3):
        tokens, labels = torch.randint(50, (4, 7)), torch.randint(2, (4,))
        for p in optimizer.passes():
            optimizer.zero_grad()
            loss = model(input_ids=tokens, labels=labels).loss
            loss.backward(inputs=p.inputs if inputs_alone else None)
        optimizer.step()
    return weights(model)


def test_unsplit_the_end_of_bert_takes_the_steps_of_the_whole():
    assert same_bits(fine_tuned(inputs_alone=True), fine_tuned(inputs_alone=False))
