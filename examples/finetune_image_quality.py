"""Fine-tune any backbone of timm on images with opinion scores, with weight perturbation.

One training from top to bottom: settings, images, model, loop, scores. It wants a folder of images
and a table of names and scores (a CSV file, or any list that the other scripts take):

    pip install -e '.[examples,pretrained]'
    python examples/finetune_image_quality.py --data-root my-images --perturb awp --gamma 5e-4
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import tyro
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn

from torch_awp import freeze_running_stats
from vqa.datasets import Sample, load_dataset
from vqa.datasets.splits import carve_validation, split
from vqa.errors import expected_errors_in_one_line
from vqa.io.files import write_json
from vqa.metrics import Agreement, agreement
from vqa.models.backbone import PACKAGED, Backbone
from vqa.provenance import provenance
from vqa.sampling.squares import Images, load_images
from vqa.training.checkpoint import Checkpoint, save_checkpoint
from vqa.training.distributed import DeviceName, own_device
from vqa.training.evaluate import scale_of
from vqa.training.losses import quality_loss
from vqa.training.optim import split_off_head, warm_up_cosine
from vqa.training.perturbation import Method, Perturbed, perturbed
from vqa.training.settings import plain

_RUNS = Path(__file__).resolve().parents[1] / "runs" / "finetune_image_quality"


@dataclass(frozen=True)
class Finetuning:
    """What to train on, and how."""

    data_root: Path
    """Folder of the images."""
    annotations: Path | None = None
    """The table of names and scores; looked for in that folder if not given. A column `split` or
    `part` says train, validation or test; without one a fifth is drawn to test on."""
    dataset: str = "csv"
    """`csv`, `list`, or the name of a published data set of images."""
    backbone: str = PACKAGED
    """Any image model of timm."""
    weights: str = "package"
    """What it begins with: `package` (ImageNet, of the extra `pretrained`; for the default backbone
    only), the file of a `state_dict()`, `timm` (downloaded by timm), or `none`."""
    size: int = 256
    """Pixels of the short side that images are brought to."""
    crop: int = 192
    """Pixels a side of what the model sees: a random square in training, else the middle one."""

    perturb: Method = "awp"
    gamma: float = 5e-4
    """Size of the perturbation relative to each weight tensor; `plain` has none."""
    epochs: int = 8
    batch: int = 32
    learning_rate: float = 2e-3
    """Of the head, at the beginning of a cosine."""
    backbone_factor: float = 0.1
    """Learning rate of the backbone relative to the head's."""
    weight_decay: float = 0.01
    dropout: float = 0.0
    """Before the head."""
    validation_share: float = 0.1
    """Of the training images, set aside to choose the epoch; with 0 the last one counts."""
    clean_statistics: bool = False
    """Take BatchNorm's statistics anew at the end, at the weights that are scored."""
    seed: int = 0

    device: DeviceName = "auto"
    compile: bool = False
    """Train through `torch.compile`."""
    output: Path = _RUNS
    """Folder of best.pt and results.json."""

    def __post_init__(self) -> None:
        for name, least in (("batch", 2), ("epochs", 1), ("crop", 1), ("size", self.crop)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(
                f"validation_share: expected at least 0 and below 1, got {self.validation_share}"
            )

    @property
    def place(self) -> torch.device:
        """The device that `device` names or finds."""
        return own_device(self.device)


def load_parts(settings: Finetuning) -> dict[str, Images]:
    """The images of "train", "validation" (none if nothing is set aside) and "test".

    Raises:
        ValueError: a part has too few images; besides as `load_dataset` and `load_images`.
    """
    dataset = load_dataset(settings.dataset, settings.data_root, settings.annotations)
    parts: dict[str, Sequence[Sample]] = {
        part: [sample for sample in dataset.samples if sample.part == part]
        for part in ("train", "validation", "test")
    }
    if all(sample.part is None for sample in dataset.samples):
        train, test = split(len(dataset.samples))
        parts["train"] = [dataset.samples[number] for number in train]
        parts["test"] = [dataset.samples[number] for number in test]
    if not parts["validation"] and settings.validation_share:
        parts["train"], parts["validation"] = carve_validation(
            parts["train"], settings.validation_share, settings.seed
        )
    for part, least in (("train", settings.batch), ("test", 2)):
        if len(parts[part]) < least:
            raise ValueError(
                f"{dataset.source}: expected at least {least} images to {part}, got"
                f" {len(parts[part])}"
            )
    return {
        part: load_images([s.path for s in own], [s.score for s in own], settings.size)
        for part, own in parts.items()
    }


@dataclass
class Finetuned:
    """A trained model, the epoch its weights are of, and the course of the training."""

    model: Backbone
    epoch: int
    history: list[dict[str, float]] = field(default_factory=list)


def finetune(settings: Finetuning, parts: Mapping[str, Images]) -> Finetuned:
    """Train on the part "train"; the part "validation", if it has images, chooses the epoch.

    Whatever the method, the same seed means the same first weights, batches and squares.
    """
    torch.manual_seed(settings.seed)  # the head, dropout
    model = Backbone(settings.backbone, settings.weights, settings.dropout).to(settings.place)
    base = adamw(model.to(memory_format=torch.channels_last), settings)
    optimizer = perturbed(base, settings.perturb, settings.gamma, settings.seed)
    steps = settings.epochs * (len(parts["train"]) // settings.batch)
    schedule = LambdaLR(optimizer, lambda step: warm_up_cosine(step, steps, warm_up=0))
    forward: nn.Module = torch.compile(model) if settings.compile else model  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(settings.seed)  # batches, squares
    trained, best, chosen = Finetuned(model, settings.epochs), -math.inf, model.state_dict()
    for epoch in range(1, settings.epochs + 1):
        model.train()
        losses = []
        for images, scores in batches(parts["train"], settings, generator):
            losses.append(train_step(forward, optimizer, images, scores))
            schedule.step()
        row = {"epoch": epoch, "loss": float(torch.stack(losses).mean())}
        if len(parts["validation"]):
            predicted = predict(model, parts["validation"], settings)
            row["validation_srcc"] = agreement_of(predicted, parts["validation"].scores).srcc
            if row["validation_srcc"] > best:
                best, trained.epoch = row["validation_srcc"], epoch
                chosen = copy.deepcopy(model.state_dict())
        trained.history.append(row)
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    model.load_state_dict(chosen)  # where nothing chose, they are the model's own
    return trained


def adamw(model: Backbone, settings: Finetuning) -> torch.optim.Optimizer:
    """The base optimizer: the fresh head learns faster than the pretrained rest."""
    pretrained, head = split_off_head(model, model.head)
    rate = settings.learning_rate
    slower = {"params": pretrained, "lr": rate * settings.backbone_factor}
    return torch.optim.AdamW(
        [slower, {"params": head, "lr": rate}], weight_decay=settings.weight_decay
    )


def batches(
    images: Images, settings: Finetuning, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random squares and scores of one epoch, on the device.

    A last partial batch is left out: the loss and BatchNorm compare the images of a batch.
    """
    order, place = torch.randperm(len(images), generator=generator), settings.place
    for which in torch.split(order, settings.batch)[: len(images) // settings.batch]:
        squares = images.squares(which, settings.crop, generator)
        yield squares.to(place, memory_format=torch.channels_last), images.scores[which].to(place)


def train_step(model: nn.Module, optimizer: Perturbed, images: Tensor, scores: Tensor) -> Tensor:
    """One step of whatever method; the loss of its first pass."""
    losses = []
    for p in optimizer.passes():  # AWP: at w, then at w + v; the others once
        optimizer.zero_grad()
        with freeze_running_stats(model, p.index > 0):
            loss = quality_loss(model(images), scores)
        torch.autograd.backward(loss)
        losses.append(loss.detach())
    optimizer.step()  # from w
    return losses[0]


@torch.no_grad()
def predict(model: Backbone, images: Images, settings: Finetuning) -> Tensor:
    """Scores [N] of the middle squares."""
    model.eval()
    predicted = []
    for which in torch.split(torch.arange(len(images)), settings.batch):
        squares = images.squares(which, settings.crop).to(settings.place)
        predicted.append(model(squares.contiguous(memory_format=torch.channels_last)).cpu())
    return torch.cat(predicted)


def agreement_of(predicted: ArrayLike, scores: ArrayLike) -> Agreement:
    """Agreement of predictions [N] with opinion scores [N]; NaN where the training came to nothing.

    It has diverged then, or says the same of every image.
    """
    try:
        return agreement(predicted, scores)
    except ValueError:
        return Agreement(math.nan, math.nan, math.nan, math.nan)


def clean_statistics(model: Backbone, images: Images, settings: Finetuning) -> None:
    """BatchNorm's statistics anew, over an epoch at the weights that the model has now.

    The modes of one pass gather them at perturbed weights; AWP's clean pass does not.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    update_bn(batches(images, settings, generator), model)


def main(settings: Finetuning) -> None:
    """Load, train, score, keep."""
    parts = load_parts(settings)
    trained = finetune(settings, parts)
    if settings.clean_statistics:
        clean_statistics(trained.model, parts["train"], settings)
    predicted = {
        part: predict(trained.model, own, settings) for part, own in parts.items() if len(own)
    }
    scores = {part: agreement_of(own, parts[part].scores) for part, own in predicted.items()}
    for part, own in scores.items():
        print(f"{part}: SRCC {own.srcc:.3f}, PLCC {own.plcc:.3f}, {len(parts[part])} images")
    values = plain(settings)
    weights = {name: tensor.cpu() for name, tensor in trained.model.state_dict().items()}
    scale = scale_of(predicted["train"], parts["train"].scores)
    checkpoint = Checkpoint("finetune_image_quality", values, trained.epoch, weights, scale)
    save_checkpoint(settings.output / "best.pt", checkpoint)
    write_json(
        settings.output / "results.json",
        {
            "settings": values,
            "images": {part: len(own) for part, own in parts.items()},
            "epoch": trained.epoch,
            "scores": {part: asdict(own) for part, own in scores.items()},
            "history": trained.history,
            "provenance": provenance(settings.place),
        },
    )
    print(f"Written: {settings.output / 'best.pt'} (score.py takes it), results.json beside it")


if __name__ == "__main__":
    with expected_errors_in_one_line():
        main(tyro.cli(Finetuning, description=__doc__))
