"""timm's training style: its optimizer factory, schedule, clipping and EMA, under a scaler."""

import copy

import pytest
import timm
import torch
from reference import same_bits
from tiers import first_fast
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.task import ClassificationTask
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad
from torch import Tensor, nn

from torch_awp import AdversarialWeightPerturbation, freeze_running_stats


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 3, 32, 32), torch.randint(0, 3, (4,))) for _ in range(3)]


def setup(model: nn.Module, wrapped: bool = True):
    base = create_optimizer_v2(model, opt="momentum", lr=1e-2, weight_decay=0.05, layer_decay=0.9)
    optimizer = AdversarialWeightPerturbation(base, gamma=1e-2) if wrapped else base
    scheduler = CosineLRScheduler(optimizer, t_initial=6, warmup_t=2, t_in_epochs=False)
    return optimizer, scheduler, ModelEmaV3(model, decay=0.9)


def train(model: nn.Module, data: list[tuple[Tensor, Tensor]], scaler: torch.amp.GradScaler):
    """timm's `train_one_epoch`, with a second pass."""
    optimizer, scheduler, ema = setup(model)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
    model.train()
    for update, (images, labels) in enumerate(data):
        scheduler.step_update(update)
        for p in optimizer.passes():
            optimizer.zero_grad()
            with freeze_running_stats(model, p.index > 0):
                scaler.scale(loss_fn(model(images), labels)).backward()
        scaler.unscale_(optimizer)
        dispatch_clip_grad(model.parameters(), 1.0, mode="norm")
        scaler.step(optimizer)
        scaler.update()
        ema.update(model)
    return optimizer, ema


def by_hand(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The same from the equations, with timm's unwrapped optimizer."""
    base, scheduler, _ = setup(model, wrapped=False)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
    model.train()
    rates = []
    for update, (images, labels) in enumerate(data):
        scheduler.step_update(update)
        base.zero_grad()
        loss_fn(model(images), labels).backward()
        home = {p: p.detach().clone() for p in model.parameters()}
        with torch.no_grad():
            for param in model.parameters():
                if param.ndim > 1 and param.grad.any():
                    param += 1e-2 * param.norm() * param.grad / param.grad.norm()
        base.zero_grad()
        running = copy.deepcopy(dict(model.named_buffers()))
        loss_fn(model(images), labels).backward()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(running[name])
            for param, weight in home.items():
                param.copy_(weight)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        base.step()
        rates.append([group["lr"] for group in base.param_groups])
    assert rates[0] != rates[1]
    return [t.detach() for t in model.state_dict().values()]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timms_loop_trains_as_the_equations_say(name):
    options = {"num_classes": 3, **({"img_size": 32} if "vit" in name else {})}
    model, data = timm.create_model(name, **options), batches()
    twin = copy.deepcopy(model)
    train(model, data, torch.amp.GradScaler("cpu", init_scale=2.0**10))
    measured = [t.detach() for t in model.state_dict().values()]
    torch.testing.assert_close(measured, by_hand(twin, data), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", first_fast(["test_resnet", "test_vit"]))
def test_timms_own_task_scaler_and_ema_attached_equal_its_loop_of_passes(name):
    options = {"num_classes": 3, **({"img_size": 32} if "vit" in name else {})}
    model, data = timm.create_model(name, **options), batches()
    twin = copy.deepcopy(model)
    optimizer, scheduler, ema = setup(model)
    task = ClassificationTask(model, nn.CrossEntropyLoss(label_smoothing=0.1), verbose=False)
    optimizer.attach(task)
    scaler = NativeScaler("cpu")
    model.train()
    for update, (images, labels) in enumerate(data):
        scheduler.step_update(update)
        loss = task(images, labels)["loss"]
        scaler(loss, optimizer, clip_grad=1.0, parameters=task.get_clip_parameters())
        optimizer.zero_grad()
        ema.update(model)

    _, expected = train(twin, data, torch.amp.GradScaler("cpu"))
    assert same_bits(list(model.state_dict().values()), list(twin.state_dict().values()))
    assert same_bits(list(ema.state_dict().values()), list(expected.state_dict().values()))


def test_names_given_to_the_groups_of_its_factory_serve_select():
    model = timm.create_model("test_resnet", num_classes=3)
    base = create_optimizer_v2(model, opt="momentum", lr=1e-2, weight_decay=0.05, layer_decay=0.9)
    names = {param: name for name, param in model.named_parameters()}
    for group in base.param_groups:
        group["param_names"] = [names[param] for param in group["params"]]
    optimizer = AdversarialWeightPerturbation(
        base, gamma=1e-2, select=lambda name, param: name == "fc.weight"
    )
    home = copy.deepcopy(dict(model.named_parameters()))
    images, labels = batches()[0]
    for p in optimizer.passes():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        if p.perturbed:
            moved = {n for n, param in model.named_parameters() if not param.equal(home[n])}
    assert moved == {"fc.weight"}


def test_the_ema_averages_weights_at_home():
    model, data = timm.create_model("test_resnet", num_classes=3), batches()
    average = [p.detach().clone() for p in model.parameters()]
    _, ema = train(model, data[:1], torch.amp.GradScaler("cpu", init_scale=1.0))
    expected = [a.lerp(p.detach(), 0.1) for a, p in zip(average, model.parameters(), strict=True)]
    torch.testing.assert_close([p.detach() for p in ema.module.parameters()], expected)


def test_timms_checkpoint_resumes_bitwise(tmp_path):
    model, data = timm.create_model("test_resnet", num_classes=3), batches()
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    optimizer, _ = train(model, data, scaler)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "last.pth")
    twin = timm.create_model("test_resnet", num_classes=3)
    resumed = setup(twin)[0]
    for part, state in zip([twin, resumed], torch.load(tmp_path / "last.pth"), strict=True):
        part.load_state_dict(state)
    for module, stepper in [(model, optimizer), (twin.train(), resumed)]:
        images, labels = data[0]

        def closure(module=module, images=images, labels=labels):
            module.zero_grad()
            loss = nn.functional.cross_entropy(module(images), labels)
            loss.backward()
            return loss

        stepper.step(closure)
    measured, expected = ([p.detach() for p in m.parameters()] for m in (twin, model))
    assert same_bits(measured, expected)
