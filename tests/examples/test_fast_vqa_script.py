"""FAST-VQA's script, from real video files to results."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import run_command
from torch import nn
from video_files import textured_clip, write_video

import fast_vqa
from vqa.training.main import run_script

SCRIPT, KILLED = Path(fast_vqa.__file__), Path(__file__).with_name("killed_script.py")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of five real .mp4 files of different sizes."""
    root = tmp_path_factory.mktemp("videos")
    rows = []
    for number, (height, width) in enumerate([(240, 320), (320, 240), (224, 224), (180, 320)] * 2):
        clip = textured_clip(frames=20, height=height, width=width, seed=number)
        write_video(root / f"{number}.mp4", clip, quantiser=20 + 2 * number)
        rows.append(f"{number}.mp4, -1, -1, {5 - number / 2}\n")
    (root / "labels.txt").write_text("".join(rows))
    return root


def scores_of(results: Path) -> object:
    split = json.loads(results.read_text())["splits"][0]
    return {part: split[part] for part in ("train", "validation", "test", "steps", "best_epoch")}


@pytest.mark.slow
def test_the_full_size_model_takes_a_step_of_awp_and_is_tested_on_real_files(videos, tmp_path):
    settings = replace(
        fast_vqa.PAPER,
        dataset="list",
        data_root=videos,
        annotations=videos / "labels.txt",
        output=tmp_path,
        schedule="fixed",
        sampling="fixed",
        epochs=1,
        frames=2,
        test_clips=1,
        batch=6,
        workers=0,
        device="cpu",
        select_on="last",
        train_score=False,
        checkpoint_activations=True,
    )

    results = run_script(settings, fast_vqa.task(settings))

    assert scores_of(results)["steps"] == 1
    saved = torch.load(tmp_path / "split-0" / "last.pt", weights_only=True)["parts"]
    moved = [
        name
        for name, tensor in saved["model"].items()
        if name.endswith("weight") and not tensor.equal(saved["average"][f"module.{name}"])
    ]
    assert len(moved) > 80


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_result(few_videos, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_command(*training(few_videos, whole)).returncode == 0
    died = run_command(KILLED, 5, *training(few_videos, killed))
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert (killed / "split-0" / "last.pt").exists()
    assert not (killed / "results.json").exists()

    assert run_command(*training(few_videos, killed)).returncode == 0

    assert scores_of(killed / "results.json") == scores_of(whole / "results.json")


def training(labels: dict[str, object], output: Path) -> list[object]:
    data = ["--dataset", "list", "--data-root", labels["data_root"]]
    data += ["--annotations", labels["annotations"], "--output", output]
    return [SCRIPT, "tiny", *data, "--epochs", "4", "--save-every", "1"]


def test_the_backbone_learns_at_a_tenth_of_the_heads_rate():
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})

    optimizer = fast_vqa.task(fast_vqa.PAPER).optimizer(model)

    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4, 1e-3])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05}


def test_the_paper_preset_has_the_papers_values():
    paper = fast_vqa.PAPER

    assert (paper.epochs, paper.warm_up_epochs, paper.batch, paper.ema) == (30, 2.5, 16, 0.999)
    assert (paper.perturb, paper.gamma, paper.steps, paper.constraint) == (
        "awp",
        1e-4,
        1,
        "element",
    )
    assert paper.named_weight
    assert (paper.rank_weight, paper.test_clips, paper.seed) == (0.3, 4, 42)
