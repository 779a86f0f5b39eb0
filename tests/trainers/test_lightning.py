"""Lightning: automatic and manual optimization, accumulation, clipping, scheduler, checkpoint."""

from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from plain_loop import WRAPS, assert_same_weights, build, loader, network, plain_run, weights
from reference import same_bits
from torch import Tensor, nn

pytestmark = [
    # Lightning's advice on our loader, and its use of a class that torch deprecates.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
]


class Automatic(lightning.LightningModule):
    def __init__(self, wrap: str) -> None:
        super().__init__()
        self.net = network()
        self.wrap = wrap
        self.losses: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build(self.wrap, self.net)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def loss(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss


class Manual(Automatic):
    """Holds the micro-batches of a step, since both passes need all of them."""

    def __init__(self, wrap: str, pieces: int = 1) -> None:
        super().__init__(wrap)
        self.automatic_optimization = False
        self.pieces = pieces
        self.held: list[list[Tensor]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.held.append(batch)
        if len(self.held) < self.pieces:
            return
        optimizer = self.optimizers()
        for _ in optimizer.passes():
            optimizer.zero_grad()
            for piece in self.held:
                self.manual_backward(self.loss(piece) / self.pieces)
        optimizer.step()
        self.lr_schedulers().step()
        self.held.clear()


def trainer(folder: Any, max_epochs: int = 1, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


@pytest.mark.parametrize("wrap", WRAPS)
def test_automatic_optimization_is_the_closure_form(wrap, tmp_path):
    module = Automatic(wrap)
    fit = trainer(tmp_path)
    fit.fit(module, loader())
    assert_same_weights(weights(module.net), plain_run(wrap))
    assert len(module.losses) == {"awp": 12, "awp-interval": 9}.get(wrap, 6)
    assert fit.global_step == 6


def test_automatic_clipping_clips_the_gradients_the_base_uses(tmp_path):
    module = Automatic("awp")
    trainer(tmp_path, gradient_clip_val=0.01).fit(module, loader())
    assert_same_weights(weights(module.net), plain_run("awp", clip=0.01))


@pytest.mark.parametrize("wrap", WRAPS)
def test_automatic_accumulation_is_an_error_not_a_mixture(wrap, tmp_path):
    """Lightning shows the optimizer only the last micro-batch: the others stay unperturbed."""
    with pytest.raises(RuntimeError, match="added to older gradients"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(Automatic(wrap), loader(2))


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("wrap", ["awp", "awp-interval", "awp-update"])
def test_manual_optimization_accumulates_like_one_big_batch(wrap, pieces, tmp_path):
    module = Manual(wrap, pieces)
    fit = trainer(tmp_path)
    fit.fit(module, loader(pieces))
    assert_same_weights(weights(module.net), plain_run(wrap, pieces=pieces))
    assert fit.global_step == 6


def test_manual_optimization_draws_noise_for_lightnings_empty_closure_too(tmp_path):
    """Lightning's `step()` brings a closure that does nothing: one more, unused draw."""
    module = Manual("rwp")
    trainer(tmp_path).fit(module, loader())
    model = network()
    optimizer, scheduler = build("rwp", model)
    for step, (x, y) in enumerate(loader()):
        if step > 0:
            with optimizer.perturb():
                pass
        with optimizer.perturb():
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        scheduler.step()
    assert_same_weights(weights(module.net), weights(model))


def scaling() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))


def test_manual_optimization_under_a_grad_scaler(tmp_path):
    module = Manual("awp", pieces=2)
    trainer(tmp_path, plugins=[scaling()]).fit(module, loader(2))
    measured, expected = weights(module.net), plain_run("awp", pieces=2)
    torch.testing.assert_close(measured, expected, rtol=0.05, atol=0.02)  # fp16 forward passes


def test_automatic_optimization_under_a_grad_scaler_stays_unperturbed_and_says_so(tmp_path):
    """A known limit: Lightning calls the closure itself, since the scaler takes none."""
    module = Automatic("awp")
    with pytest.warns(UserWarning, match="unperturbed weights"):
        trainer(tmp_path, plugins=[scaling()]).fit(module, loader())
    assert len(module.losses) == 6


def test_a_run_resumes_from_lightnings_checkpoint(tmp_path):
    whole, begun, resumed = (Automatic("rwp") for _ in range(3))
    trainer(tmp_path, max_epochs=2).fit(whole, loader())
    first = trainer(tmp_path)
    first.fit(begun, loader())
    first.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, max_epochs=2).fit(resumed, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert same_bits(weights(resumed.net), weights(whole.net))
