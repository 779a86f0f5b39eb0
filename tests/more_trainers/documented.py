"""The recipes of examples/TRAINERS.md, and the loop by hand that each must equal."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch_awp import AdversarialWeightPerturbation, freeze_running_stats

PAGE = Path(__file__).parents[2] / "examples" / "TRAINERS.md"


def run_recipe(heading: str, **names: Any) -> dict[str, Any]:
    """Execute a section's code with these names; return all names afterwards."""
    sections = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    texts = dict(zip(sections[1::2], sections[2::2], strict=True))
    (imports,) = re.findall(r"```python\n(.*?)```", sections[0], re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", texts[heading], re.DOTALL)
    exec(compile(imports + code, f"{PAGE.name}: {heading}", "exec"), names)
    return names


def loop_of_passes(
    model: nn.Module, loss_of: Callable[..., Tensor], batches: Iterable[Any]
) -> list[Tensor]:
    """With the settings of the page; the weights at the end."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    optimizer = AdversarialWeightPerturbation(optimizer, gamma=1e-2)
    for batch in batches:
        for p in optimizer.passes():
            optimizer.zero_grad()
            with freeze_running_stats(model, p.index > 0):
                loss_of(*batch).backward()
        optimizer.step()
    return [value.detach() for value in model.state_dict().values()]
