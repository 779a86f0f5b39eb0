"""A training run stops and goes on bit for bit, alone or beside other processes."""

import copy
import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiers import first_fast
from toy_task import SETTINGS, score_toy, toy_samples, toy_task, with_settings

from vqa.training.checkpoint import CheckpointError
from vqa.training.distributed import ProcessGroup
from vqa.training.loop import TrainingRun
from vqa.training.settings import METHOD_NAMES

HERE = ProcessGroup(torch.device("cpu"))
PERTURB = ["none", "rwp", "awp", "awp-update"]


def new_run(settings=SETTINGS, samples=None, place=HERE, split=0):
    samples = toy_samples(18) if samples is None else samples
    return TrainingRun(toy_task(settings), settings, samples, split, place)


def train(run, epochs=1):
    losses = []
    for _ in range(epochs):
        losses += [step.loss for step in run.steps()]
    return losses


def everything(run):
    states = [run.model.state_dict(), run.tested_model.state_dict()]
    return [copy.deepcopy(state) for state in states]


def assert_equal(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("perturb", PERTURB)
@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_a_run_goes_on_bit_for_bit_wherever_it_stopped(tmp_path, perturb, stop):
    settings = with_settings(perturb=perturb)
    whole = new_run(settings)
    whole_losses = train(whole, 3)

    interrupted, losses = new_run(settings), []
    for step in itertools.chain.from_iterable(interrupted.steps() for _ in range(3)):
        losses.append(step.loss)
        if len(losses) == stop:
            interrupted.save(tmp_path / "last.pt")
            break
    torch.manual_seed(99)
    resumed = new_run(settings)
    resumed.load(tmp_path / "last.pt")
    losses += train(resumed, 3 - resumed.state.epoch)

    assert losses == whole_losses
    assert_equal(everything(resumed), everything(whole))


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 2},
        {"amp": "fp16", "perturb": "awp-update"},
        {"linear_epochs": 1, "epochs": 2, "perturb": "awp-update"},
        {"linear_epochs": 1, "epochs": 2, "perturb": "rwp", "drop_last": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("stop", [2, 5])
def test_it_does_so_with_every_way_to_train(tmp_path, changes, stop):
    settings = with_settings(**changes)
    whole = new_run(settings)
    steps = itertools.chain.from_iterable(whole.steps() for _ in range(3))
    losses = []
    for step in steps:
        losses.append(step.loss)
        if len(losses) == stop:
            whole.save(tmp_path / "last.pt")
    resumed = new_run(settings)
    resumed.load(tmp_path / "last.pt")

    assert train(resumed, 3 - resumed.state.epoch) == losses[stop:]
    assert_equal(everything(resumed), everything(whole))


@pytest.mark.parametrize(
    ("perturb", "steps", "phases"),
    [
        ("none", 1, ["first"]),
        ("rwp", 1, ["first"]),
        ("awp", 1, ["first", "later"]),
        ("awp", 3, ["first", "later", "later", "later"]),
        ("awp-update", 1, ["first"]),
    ],
)
@pytest.mark.parametrize("amp", ["none", "fp16"])
def test_a_step_takes_the_passes_of_its_method(perturb, steps, phases, amp):
    seen = []

    def scores(model, inputs, phase):
        seen.append(phase)
        return score_toy(model, inputs, phase)

    settings = with_settings(perturb=perturb, steps=steps, amp=amp)
    run = TrainingRun(
        replace(toy_task(settings), scores=scores), settings, toy_samples(18), 0, HERE
    )
    next(run.steps())

    assert seen == phases


def plain_sgd(model):
    return torch.optim.SGD(model.named_parameters(), lr=0.1)


def smooth_run(settings):
    """Nothing in it depends on how samples are batched, and its steps are gradients."""
    task = toy_task(settings)
    task = replace(
        task,
        build=lambda: _without_noise(toy_task(settings)),
        optimizer=plain_sgd,
        loss=torch.nn.functional.mse_loss,
    )
    return TrainingRun(task, settings, toy_samples(16), 0, HERE)


@pytest.mark.parametrize("perturb", PERTURB)
def test_batches_accumulate_to_a_larger_one(perturb):
    whole = smooth_run(with_settings(perturb=perturb, batch=8, schedule="fixed"))
    halves = smooth_run(with_settings(perturb=perturb, batch=4, accumulate=2, schedule="fixed"))

    torch.testing.assert_close(train(halves), train(whole), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(everything(halves), everything(whole), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("perturb", ["none", "awp"])
def test_the_loss_of_a_step_is_the_one_before_it(perturb):
    run = smooth_run(with_settings(perturb=perturb))
    batch = run.first_batch()
    before = torch.nn.functional.mse_loss(run.model(*batch.inputs), batch.scores)

    assert next(run.steps()).loss == pytest.approx(before.item(), rel=1e-6)


def test_an_overflow_leaves_the_step_out_and_the_weights_alone():
    settings = with_settings(amp="fp16", schedule="fixed")
    task = replace(toy_task(settings), loss=lambda predicted, target: predicted.sum() * torch.inf)
    run = TrainingRun(task, settings, toy_samples(18), 0, HERE)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    scale = run.scaler.get_scale()

    next(run.steps())

    assert_equal(dict(run.model.named_parameters()), before)
    assert run.scaler.get_scale() < scale


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a single core
@pytest.mark.parametrize("workers", first_fast([1, 2]))
def test_the_number_of_workers_does_not_show(workers):
    alone = train(new_run(), 2)

    assert train(new_run(with_settings(workers=workers)), 2) == alone


def test_a_run_with_other_settings_or_labels_is_not_resumed(tmp_path):
    new_run().save(tmp_path / "last.pt")

    for other in (
        new_run(with_settings(gamma=0.02)),
        new_run(split=1),
        new_run(samples=toy_samples(17)),
    ):
        with pytest.raises(
            CheckpointError, match=r"last\.pt: expected a run with these settings and files, but "
        ):
            other.load(tmp_path / "last.pt")
    new_run(with_settings(workers=1, output=tmp_path)).load(tmp_path / "last.pt")


def test_a_run_of_another_number_of_processes_or_device_is_not_resumed(tmp_path):
    path = tmp_path / "last.pt"
    new_run().save(path)
    values = torch.load(path, weights_only=True)
    (state,) = values["parts"]["random"]

    for random, got in (([state, state], "2 on cpu"), ([{**state, "cuda": state["cpu"]}], "cuda")):
        torch.save({**values, "parts": {**values["parts"], "random": random}}, path)
        with pytest.raises(CheckpointError, match=rf"state of 1 process.* on cpu, got .*{got}"):
            new_run().load(path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_damaged_state_is_named(tmp_path, content):
    (tmp_path / "last.pt").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"last\.pt: expected a checkpoint, cannot be read"):
        new_run().load(tmp_path / "last.pt")


def test_the_checkpoint_of_weights_is_no_state(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "best.pt")

    with pytest.raises(CheckpointError, match=r"best\.pt: expected the checkpoint of a run"):
        new_run().load(tmp_path / "best.pt")


def test_the_average_begins_with_the_first_weights_and_decays():
    run = new_run(with_settings(schedule="fixed"))
    expected = {name: p.detach().clone() for name, p in run.model.named_parameters()}

    for _ in run.steps():
        for name, p in run.model.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * p.detach()

    torch.testing.assert_close(dict(run.tested_model.named_parameters()), expected)


def test_without_an_average_the_model_itself_is_tested():
    run = new_run(with_settings(ema=0.0))

    assert run.tested_model is run.model


def test_the_published_schedule_leaves_the_first_step_without_effect():
    run = new_run()
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}

    next(run.steps())

    assert_equal(dict(run.model.named_parameters()), before)


def test_learning_rates_follow_the_schedule_and_the_group():
    run = new_run(with_settings(backbone_factor=0.1))
    rates = [run.state.learning_rates for _ in run.steps()]

    assert rates[1] == pytest.approx([0.002 / 2, 0.02 / 2])
    assert rates[2] == pytest.approx([0.002, 0.02])


def test_only_the_head_learns_in_linear_epochs():
    run = new_run(with_settings(linear_epochs=1, epochs=1, schedule="fixed"))
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    changed = []
    for _ in range(2):
        train(run)
        now = dict(run.model.named_parameters())
        changed.append({name for name in now if not now[name].equal(before[name])})

    assert changed[0] == {"head.1.weight", "head.1.bias"}
    assert changed[1] == set(before)


def test_batch_statistics_stand_still_in_perturbed_passes_unless_the_task_lets_them_move():
    counts = []
    for freeze in (True, False):
        task = replace(toy_task(), freeze_statistics=freeze)
        run = TrainingRun(task, SETTINGS, toy_samples(18), 0, HERE)
        steps = len(train(run))
        counts.append(int(run.model.backbone[1].num_batches_tracked) / steps)

    assert counts == [1, 2]


def test_bad_files_are_left_out_and_counted():
    samples = toy_samples(18, bad=(3, 11))
    run = new_run(with_settings(bad_files="skip"), samples)

    losses = train(run)

    assert all(math.isfinite(loss) for loss in losses)
    assert len(run.state.bad_files) == 2
    assert all("cannot be decoded" in message for message in run.state.bad_files)


def test_a_bad_file_stops_a_run_that_was_not_told_to_skip_it():
    with pytest.raises(ValueError, match="bad-3-3: cannot be decoded"):
        train(new_run(samples=toy_samples(18, bad=(3,))))


def test_nothing_is_made_of_batches_without_a_pair():
    samples = toy_samples(18, bad=tuple(range(17)))
    run = new_run(with_settings(bad_files="skip"), samples)
    before = copy.deepcopy(run.model.state_dict())

    assert set(train(run)) == {None}
    assert_equal(dict(run.model.state_dict()), dict(before))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("perturb", ["none", "awp"])
def test_mixed_precision_is_within_rounding_of_float32(amp, perturb):
    plain = torch.tensor(train(new_run(with_settings(perturb=perturb))))
    half = torch.tensor(train(new_run(with_settings(perturb=perturb, amp=amp))))

    assert not half.equal(plain)
    torch.testing.assert_close(half, plain, rtol=0.1, atol=0.02)


def test_a_compiled_model_trains_as_the_plain_one_and_is_saved_under_its_names(
    tmp_path, monkeypatch
):
    plain = new_run()
    losses = train(plain, 2)
    # Without a C++ compiler: the capture of the model is what could go wrong here.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = new_run(with_settings(compile=True))

    assert train(compiled, 2) == pytest.approx(losses, rel=1e-5)
    compiled.save(tmp_path / "last.pt")
    plain.load(tmp_path / "last.pt")
    assert_equal(everything(plain), everything(compiled))


def run_of_rank(rank, perturb, end=False):
    place = ProcessGroup(torch.device("cpu"), rank, 2)
    # Dropout and batch statistics differ between processes by nature; without them all is equal.
    settings = with_settings(perturb=perturb, perturb_end=end, batch=6, schedule="fixed")
    task = toy_task(settings)
    run = TrainingRun(
        replace(task, build=lambda: _without_noise(task)),
        settings,
        toy_samples(20),
        0,
        place if rank is not None else HERE,
    )
    losses = torch.tensor(train(run))
    # The loss does not see the last bias: its gradient is rounding, which AdamW makes large.
    weights = {name: p.detach() for name, p in run.model.named_parameters()}
    return losses, {name: weights[name] for name in weights if name != "head.1.bias"}


def _without_noise(task):
    model = task.build()
    model.head[0].p = 0.0
    model.backbone[1] = torch.nn.LayerNorm(8)
    return model


@pytest.mark.parametrize("perturb", PERTURB)
def test_two_processes_train_as_one_does(two_ranks, perturb):
    (losses, weights), (other_losses, other_weights) = two_ranks.run(run_of_rank, perturb)
    alone_losses, alone_weights = run_of_rank(None, perturb)

    assert_equal([losses, weights], [other_losses, other_weights])
    torch.testing.assert_close(losses, alone_losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights, alone_weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("perturb", ["awp", "rwp"])
def test_two_processes_train_as_one_does_where_the_end_alone_is_perturbed(two_ranks, perturb):
    (losses, weights), (other_losses, other_weights) = two_ranks.run(run_of_rank, perturb, True)
    alone_losses, alone_weights = run_of_rank(None, perturb, True)

    assert_equal([losses, weights], [other_losses, other_weights])
    torch.testing.assert_close(losses, alone_losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights, alone_weights, rtol=1e-3, atol=1e-4)


def statistics_of_rank(rank):
    settings = with_settings(ema=0.0, drop_last=True)
    run = new_run(settings, place=ProcessGroup(torch.device("cpu"), rank, 2))
    train(run)
    return dict(run.tested_model.named_buffers())


def test_all_processes_test_the_same_batch_statistics(two_ranks):
    first, second = two_ranks.run(statistics_of_rank)

    assert first["backbone.1.running_var"].ne(1).all()
    assert_equal(first, second)


def test_every_method_has_a_setting():
    assert {with_settings(perturb=perturb).method for perturb in PERTURB} == set(METHOD_NAMES)
