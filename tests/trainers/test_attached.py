"""Trainers that nobody rewrote: two lines before them, and each equals a loop written by hand."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning.pytorch.plugins import MixedPrecision
from plain_loop import BATCH, WRAPS, Regressor, build, by_hand, dataset, loader, weights
from reference import same_bits
from tiers import first_fast
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import (
    PretrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from torch_awp import AdversarialWeightPerturbation

pytestmark = [
    # torch's DataLoader about memory that Trainer pins for an accelerator it does not find.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
    # Lightning's advice on our loader, and its use of a class that torch deprecates.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
]


@pytest.fixture(autouse=True)
def _forget_the_last_accelerator() -> Iterator[None]:
    """Its state is shared by a whole process and holds the precision of the first."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class WithConfig(Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig()  # which label smoothing asks


# -- Hugging Face Trainer ------------------------------------------------------------------------


class InOrder(Trainer):
    """Data as they come, so that a loop can be compared; nothing else is changed."""

    def _get_train_sampler(self, *args: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def trained(
    folder: Path,
    wrap: str,
    pieces: int = 1,
    resume: bool = False,
    callbacks: Any = (),
    compute_loss_func: Callable[..., Tensor] | None = None,
    **options: Any,
) -> list[Tensor]:
    model = WithConfig()
    optimizer, scheduler = build(wrap, model)
    optimizer.attach(model)
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
    InOrder(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows[:BATCH],
        optimizers=(optimizer, scheduler),
        callbacks=list(callbacks),
        compute_loss_func=compute_loss_func,
    ).train(resume_from_checkpoint=resume)
    return weights(model)


@pytest.mark.parametrize("wrap", first_fast(WRAPS))
def test_trainer_accumulates_and_clips_like_a_loop_by_hand(wrap, tmp_path):
    measured = trained(tmp_path, wrap, pieces=2, max_grad_norm=0.05)
    torch.testing.assert_close(measured, by_hand(wrap, pieces=2, clip=0.05), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_trainer_in_bf16_equals_a_loop_by_hand(tmp_path):
    measured = trained(tmp_path, "awp", bf16=True)
    expected = by_hand("awp", dtype=torch.bfloat16)
    torch.testing.assert_close(measured, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrap", first_fast(["awp", "rwp"]))
def test_trainer_evaluates_saves_and_resumes_to_the_same_weights(wrap, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    whole = trained(tmp_path / "whole", wrap)
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    trained(tmp_path / "parts", wrap, callbacks=[Stop()], **options)
    resumed = trained(tmp_path / "parts", wrap, resume=True, **options)
    assert same_bits(resumed, whole)


def test_a_trainer_that_computes_the_loss_outside_is_an_error_that_names_the_cure(tmp_path):
    def outside(outputs, labels, **kwargs):
        return nn.functional.mse_loss(outputs["logits"], labels)

    with pytest.raises(RuntimeError, match="ends in its loss"):
        trained(tmp_path, "awp", compute_loss_func=outside)
    measured = trained(tmp_path, "rwp", compute_loss_func=outside)  # needs no loss
    torch.testing.assert_close(measured, by_hand("rwp"), rtol=1e-6, atol=1e-7)


def test_label_smoothing_is_an_error_that_names_the_cure(tmp_path):
    with pytest.raises(RuntimeError, match="ends in its loss"):
        trained(tmp_path, "awp", label_smoothing_factor=0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("wrap", ["awp", "rwp"])
def test_trainers_own_flag_compiles_and_equals_a_loop_by_hand(wrap, tmp_path):
    measured = trained(tmp_path, wrap, torch_compile=True, torch_compile_backend="eager")
    torch.testing.assert_close(measured, by_hand(wrap), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["awp", "rwp"])
def test_trainers_activation_checkpointing_changes_nothing(wrap, tmp_path):
    runs = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
                num_attention_heads=2, num_key_value_heads=2,
            )
        )  # fmt: skip
        optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), lr=0.05))
        optimizer.attach(model)
        rows = [{"input_ids": row, "labels": row} for row in torch.randint(20, (12, 6))]
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            activation_checkpointing=checkpointing,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        InOrder(model, arguments, train_dataset=rows, optimizers=(optimizer, None)).train()
        runs.append(weights(model))
    assert same_bits(*runs)


def test_trainers_own_optimizer_gets_names_for_select(tmp_path):
    model = WithConfig()
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    base = Trainer(model, arguments, train_dataset=[]).create_optimizer()
    names = {param: name for name, param in model.named_parameters()}
    for group in base.param_groups:
        group["param_names"] = [names[param] for param in group["params"]]
    optimizer = AdversarialWeightPerturbation(
        base, gamma=0.1, select=lambda name, _: name == "net.2.weight"
    )
    optimizer.attach(model)
    home = copy.deepcopy(dict(model.named_parameters()))
    loss = model(*next(iter(loader())))["loss"]
    moved = {name for name, param in model.named_parameters() if not param.equal(home[name])}
    assert moved == {"net.2.weight"}
    loss.backward()


# -- Lightning -----------------------------------------------------------------------------------


class LossInside(lightning.LightningModule):
    """Automatic optimization, as Lightning's first example has it."""

    def __init__(self, wrap: str, **options: Any) -> None:
        super().__init__()
        self.net, self.wrap, self.options = Regressor(), wrap, options
        self.calls = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.calls += 1
        return self.net(*batch)["loss"]

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build(self.wrap, self.net)
        optimizer.attach(self.net, **self.options)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class LossOutside(LossInside):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0])["logits"], batch[1])


def fit(module: Any, folder: Path, pieces: int = 1, resume: Any = None, **options: Any) -> Any:
    options = {"max_epochs": 1, **options}
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        accumulate_grad_batches=pieces,
        **options,
    )
    trainer.fit(module, loader(pieces), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("wrap", first_fast(WRAPS))
def test_lightning_accumulates_and_clips_like_a_loop_by_hand(wrap, tmp_path):
    module = LossInside(wrap)
    fit(module, tmp_path, pieces=2, gradient_clip_val=0.05)
    expected = by_hand(wrap, pieces=2, clip=0.05)
    torch.testing.assert_close(weights(module.net), expected, rtol=1e-6, atol=1e-7)
    assert module.calls == 12


@pytest.mark.parametrize("wrap", first_fast(["rwp", "awp-update"]))
def test_lightning_computes_the_loss_outside_in_modes_of_one_pass(wrap, tmp_path):
    module = LossOutside(wrap)
    fit(module, tmp_path)
    torch.testing.assert_close(weights(module.net), by_hand(wrap), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_lightning_resumes_from_its_checkpoint_to_the_same_weights(tmp_path):
    whole, begun, resumed = (LossInside("rwp") for _ in range(3))
    fit(whole, tmp_path, max_epochs=2)
    fit(begun, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    fit(resumed, tmp_path, max_epochs=2, resume=tmp_path / "last.ckpt")
    assert same_bits(weights(resumed.net), weights(whole.net))


@pytest.mark.slow
def test_lightning_in_float16_with_its_own_scaler(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    module = LossInside("awp", loss=lambda output, *_: scaler.scale(output["loss"]))
    fit(module, tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    expected = by_hand("awp", dtype=torch.float16)
    torch.testing.assert_close(weights(module.net), expected, rtol=0.02, atol=0.01)
    assert module.calls == 6


# -- Accelerate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", first_fast(WRAPS))
def test_accelerate_accumulates_and_clips_like_a_loop_by_hand(wrap):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    plain = Regressor()
    optimizer, scheduler = build(wrap, plain)
    optimizer.attach(plain)
    model, optimizer, batches, scheduler = accelerator.prepare(
        plain, optimizer, loader(2), scheduler
    )
    for x, y in batches:
        with accelerator.accumulate(model):
            accelerator.backward(model(x, y)["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    expected = by_hand(wrap, pieces=2, clip=0.05)
    torch.testing.assert_close(weights(plain), expected, rtol=1e-6, atol=1e-7)
