"""The benchmark of adversarial training: attacks that find what there is, fair ways, kept runs."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from benchmarks import adversarial
from benchmarks.adversarial import (
    EARLY,
    Adversarial,
    Ground,
    build_ground,
    compared,
    contrasts,
    main,
)
from benchmarks.adversarial_training.attack import Attack, attacked, margin_loss, robust
from benchmarks.adversarial_training.images import Digits, FashionMnist, read_idx
from benchmarks.adversarial_training.training import (
    Plain,
    Way,
    build_network,
    build_optimizer,
    robust_accuracy,
    train,
)

PLAIN = Plain(Attack(0.1, steps=2), epochs=2, batch=10, channels=2, checks=2)
TINY = Ground(Digits(fitted=20, validation=20), PLAIN, Attack(0.1, steps=2, restarts=2))
WAYS = {
    "plain": [Way()],
    "SAM": [Way("sam", 0.05)],
    "AWP": [Way("awp", 0.01), Way("awp", 0.02)],
    "AWP at the end": [Way("awp-end", 0.01)],
    "RWP": [Way("rwp", 0.1)],
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def linear_problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A linear model of two classes, images, and the classes that it puts them into."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    images = 0.5 + 0.2 * torch.rand(60, 1, 3, 3)
    with torch.no_grad():
        logits = model(images)
        model[1].bias[0] -= (logits[:, 0] - logits[:, 1]).median()  # so that both occur
        return model, images, model(images).argmax(dim=1)


def test_the_attack_on_a_linear_model_is_the_worst_there_is():
    model, images, labels = linear_problem()
    with torch.no_grad():
        logits, direction = model(images), model[1].weight[0] - model[1].weight[1]
    left = (logits[:, 0] - logits[:, 1]).abs() - 0.02 * direction.abs().sum()
    clear = left.abs() > 1e-5

    standing = robust(model, images, labels, Attack(0.02, steps=20, restarts=2), generator())

    assert standing[clear].equal((left > 0)[clear])
    assert 0 < int(standing.sum()) < len(standing)


@pytest.mark.parametrize("loss", [nn.functional.cross_entropy, margin_loss])
def test_attacked_images_stay_in_the_ball_and_among_images(loss):
    images, labels = torch.rand(5, 1, 8, 8), torch.randint(10, (5,))

    moved = attacked(build_network(8, 2), images, labels, Attack(0.3, 3), generator(), loss)

    assert float((moved - images).abs().max()) <= 0.3 + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


def test_an_image_must_stay_right_after_every_restart():
    """The model is wrong on the second attack, whatever the image."""
    _, images, labels = linear_problem()
    calls = 0

    class SecondTimeWrong(nn.Module):
        def forward(self, x):
            nonlocal calls
            calls += 1
            right = nn.functional.one_hot(labels, 2).float()
            return 1 - right if calls == 3 else right

    attack = Attack(0.1, steps=0, restarts=2)

    assert not robust(SecondTimeWrong(), images, labels, attack, generator()).any()
    calls = 10
    assert robust(SecondTimeWrong(), images, labels, attack, generator()).all()


def idx(values: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    )


@pytest.fixture
def fashion(tmp_path) -> FashionMnist:
    for part, count in (("train", 60), ("t10k", 10)):
        pixels = np.arange(count * 16, dtype=np.uint8).reshape(count, 4, 4)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels), mtime=0))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels), mtime=0))
    return FashionMnist(tmp_path, fitted=20, validation=10)


def test_fashion_mnist_is_read_and_halved(fashion):
    test = fashion.split(0).test

    assert test.images.shape == (10, 1, 2, 2)
    assert float(test.images[0, 0, 0, 0]) == pytest.approx((0 + 1 + 4 + 5) / 4 / 255)
    assert test.labels.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no gzip", "expected a gzip file"),
        (gzip.compress(idx(np.zeros((2, 2), np.uint8)), mtime=0)[:-9], "expected a gzip file"),
        (gzip.compress(idx(np.zeros(3, np.uint8)), mtime=0), "IDX file of 2 dimensions"),
        (gzip.compress(idx(np.zeros((2, 2), np.uint8))[:-1], mtime=0), "expected 4 bytes .* got 3"),
    ],
)
def test_a_damaged_file_is_named(content, words, tmp_path):
    (tmp_path / "images.gz").write_bytes(content)

    with pytest.raises(ValueError, match=f"images.gz: .*{words}"):
        read_idx(tmp_path / "images.gz", dimensions=2)


def test_fashion_mnist_without_its_folder_is_refused():
    with pytest.raises(ValueError, match=r"fashion_mnist: .*dataset-fashion-mnist"):
        build_ground("fashion-mnist", None)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_image_is_in_two_parts(seed):
    split = Digits(fitted=500, validation=500).split(seed)

    parts = (split.fitted, split.validation, split.test)
    different = {image.numpy().tobytes() for part in parts for image in part.images}
    assert len(different) == 500 + 500 + 797


def test_the_seed_decides_what_is_drawn_and_not_what_is_tested():
    first, again, other = (Digits(20, 20).split(seed) for seed in (0, 0, 1))

    assert first.fitted.images.equal(again.fitted.images)
    assert not first.fitted.images.equal(other.fitted.images)
    assert first.test.images.equal(other.test.images)


@pytest.mark.parametrize(
    ("way", "last"),
    [
        (Way(), 1),
        (Way(weight_decay=0.1), 1),
        (Way("rwp", 0.1), 1),
        (Way("awp", 0.1), 2),
        (Way("awp-end", 0.1), 2),
        (Way("sam", 0.1), 2),
    ],
    ids=str,
)
def test_every_way_trains_on_the_same_attacks_and_takes_statistics_once_a_step(way, last):
    split = TINY.data.split(0)
    plain = train(split, Way(), PLAIN, seed=0)

    trained = train(split, way, PLAIN, seed=0)

    steps = PLAIN.epochs * 2
    assert trained.passes == steps * (PLAIN.attack.steps + last)
    counts = [int(b) for n, b in trained.last.named_buffers() if n.endswith("tracked")]
    assert counts == [steps, steps]
    same = all(
        a.equal(b) for a, b in zip(trained.last.parameters(), plain.last.parameters(), strict=True)
    )
    assert same == (way == Way())


def test_without_magnitude_awp_is_plain_training_to_the_bit():
    split = TINY.data.split(0)

    plain, awp = (train(split, way, PLAIN, seed=0).last for way in (Way(), Way("awp", 0.0)))

    assert all(a.equal(b) for a, b in zip(plain.parameters(), awp.parameters(), strict=True))


def test_at_the_end_the_last_convolution_and_the_linear_layer_move():
    model = build_network(8, 2)
    homes = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = build_optimizer(model, Way("awp-end", 0.1), learning_rate=0.1, seed=0)
    model(torch.rand(4, 1, 8, 8)).square().sum().backward()

    with optimizer.perturb():
        moved = [n for n, weight in model.named_parameters() if not weight.equal(homes[n])]

    assert moved == ["3.weight", "7.weight"]


def test_early_stopping_keeps_the_weights_of_the_best_check():
    split = TINY.data.split(0)

    trained = train(split, Way(), replace(PLAIN, epochs=6, checks=3), seed=0)

    assert [check.epoch for check in trained.checks] == [2, 4, 6]
    scores = [check.validation_robust for check in trained.checks]
    assert robust_accuracy(trained.best, split.validation, PLAIN.attack) == max(scores)
    assert robust_accuracy(trained.last, split.validation, PLAIN.attack) == scores[-1]


@pytest.fixture
def benchmark(tmp_path, monkeypatch) -> Adversarial:
    monkeypatch.setattr(adversarial, "WAYS", WAYS)
    monkeypatch.setattr(adversarial, "build_ground", lambda name, folder: TINY)
    return Adversarial(seeds=2, tuning_seeds=1, output=tmp_path)


def test_everything_runs_once_and_every_method_has_a_row(benchmark, capsys):
    main(benchmark)
    first = capsys.readouterr().out

    main(benchmark)

    assert first.count(", validation\n") == 6
    assert first.count(", test\n") == 2 * 5
    again = capsys.readouterr().out
    assert "seed" not in again
    assert again.strip() in first
    document = json.loads((benchmark.output / "adversarial.json").read_text("utf-8"))["digits"]
    assert [row["method"] for row in document["methods"]] == [
        "plain", EARLY, "SAM", "AWP", "AWP at the end", "RWP",
    ]  # fmt: skip
    assert {"versions", "device", "time"} <= document["provenance"].keys()
    lines = kept(benchmark)
    assert len(lines) == 16
    tuned = document["tuning"]["AWP"]
    best = max(tuned, key=lambda way: way["validation_robust"])["magnitude"]
    tested = [own["way"] for own in lines if own["part"] == "test"]
    assert {way["magnitude"] for way in tested if way["kind"] == "awp"} == {best}


def kept(benchmark: Adversarial) -> list[dict]:
    path = benchmark.output / "adversarial-runs" / "digits.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_tuning_never_sees_the_test_images(benchmark):
    main(benchmark)

    for line in kept(benchmark):
        assert (line["seed"] >= 1000) == (line["part"] == "validation")
        assert ("robust" in line["outcome"]) == (line["part"] == "test")


def test_an_interrupted_benchmark_goes_on(benchmark, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        if len(kept(benchmark)) == 3:
            raise KeyboardInterrupt
        return real(*_)

    real = adversarial.train_and_measure
    path = benchmark.output / "adversarial-runs" / "digits.jsonl"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(adversarial, "train_and_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(benchmark)
    monkeypatch.setattr(adversarial, "train_and_measure", real)
    before = kept(benchmark)
    capsys.readouterr()

    main(benchmark)

    assert kept(benchmark)[:3] == before
    assert capsys.readouterr().out.count("seed") == 16 - 3


def test_differences_are_paired_by_seed_and_corrected_over_methods():
    def runs(values):
        return [
            {"passes": 6, "robust": v, "clean": 0.9, "train_robust": 0.95,
             "early": {"robust": v + 0.01 * i, "clean": 0.9, "train_robust": 0.9}}
            for i, v in enumerate(values)
        ]  # fmt: skip

    plain, awp = [0.50, 0.60, 0.55, 0.40], [0.52, 0.66, 0.58, 0.41]

    rows = {row["method"]: row for row in compared({"plain": runs(plain), "AWP": runs(awp)})}

    test = rows["AWP"]["robust_minus_plain"]
    wanted = stats.ttest_rel(awp, plain)
    assert test["difference"] == pytest.approx(np.mean(awp) - np.mean(plain))
    assert test["p_value"] == pytest.approx(wanted.pvalue)
    both = sorted(rows[m]["robust_minus_plain"]["p_value"] for m in ("AWP", EARLY))
    holm = sorted(rows[m]["robust_minus_plain"]["p_holm"] for m in ("AWP", EARLY))
    assert holm == pytest.approx([2 * both[0], max(2 * both[0], both[1])])
    assert rows["AWP"]["gap"] == pytest.approx(0.95 - np.mean(awp))
    assert rows["AWP"]["gap_minus_plain"]["difference"] == pytest.approx(-test["difference"])
    (contrast,) = contrasts({"plain": runs(plain), "AWP": runs(awp)})
    assert (contrast.method, contrast.baseline) == ("AWP", EARLY)
