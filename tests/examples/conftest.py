from pathlib import Path

import pytest
import torch
from PIL import Image

from vqa.synthetic.mini_iqa import MiniIqaSettings, build_mini_iqa
from vqa.synthetic.mini_ugc import MiniUgcSettings, build_mini_ugc

Labels = dict[str, object]


@pytest.fixture(scope="session")
def few_videos(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """Settings of a script for a small mini-UGC as a list of one's own: 18 videos and 8."""
    root = tmp_path_factory.mktemp("few") / "mini-ugc"
    settings = MiniUgcSettings(photographs=2, train_clips=9, test_clips=4)
    build_mini_ugc(root, settings, processes=1)
    return {"dataset": "list", "data_root": root, "annotations": root / "train.txt"}


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """Settings of a script for a small mini-IQA as a folder of one's own with a CSV."""
    root = tmp_path_factory.mktemp("few") / "mini-iqa"
    build_mini_iqa(root, MiniIqaSettings(photographs=2, train_images=12, test_images=6))
    (csv,) = root.glob("*.csv")
    return {"dataset": "csv", "data_root": root, "annotations": csv}


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """File of a picture that nobody has rated."""
    pixels = torch.randint(256, (200, 300, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"
