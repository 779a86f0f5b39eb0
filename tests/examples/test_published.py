"""Published files load completely, with a reason for what is left out, or not at all."""

import json
from collections import OrderedDict
from itertools import permutations
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from published_fill import fill
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models.video import swin3d_t

from vqa.models import PublishedWeightsError, build_model, load_published
from vqa.models.published import Drop, Format

DATA = Path(__file__).parents[1] / "data"
MAP = json.loads((DATA / "map_fastvqa_backbone_to_torchvision_swin3d_t.json").read_text())
FRAGMENT_TABLES = 10


class Toy(nn.Module):
    """Two tensors that a published file must have, and a table that it may lack."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.table = nn.Parameter(torch.zeros(2))

    @property
    def published_formats(self):
        return (
            Format(
                name="toy file",
                marks=("trunk.weight",),
                place=lambda key: (
                    Drop("classifier") if key.startswith("cls.") else key.replace("trunk", "body")
                ),
                keeps=lambda name: "not in toy files" if name == "table" else None,
                copies=lambda name: "body.bias" if name == "table" else None,
            ),
        )


def toy_file():
    return {
        "trunk.weight": torch.full((2, 3), 5.0),
        "trunk.bias": torch.full((2,), 6.0),
        "cls.weight": torch.zeros(9),
    }


def test_the_report_says_what_became_of_every_tensor():
    report = load_published(Toy(), toy_file())

    assert report.format == "toy file"
    assert report.loaded == ("body.weight", "body.bias")
    assert report.kept == {"table": "not in toy files"}
    assert report.dropped == {"cls.weight": "classifier"}
    assert str(report).splitlines() == [
        "toy file: loaded 2 of the model's 3 tensors",
        "  kept 1 (not in toy files): table",
        "  dropped 1 (classifier): cls.weight",
    ]


def test_the_tensors_are_in_the_model_afterwards():
    model = Toy()

    load_published(model, toy_file())

    assert model.body.weight.unique().item() == 5
    assert model.body.bias.unique().item() == 6
    assert model.table.unique().item() == 0


def test_a_missing_tensor_can_be_a_copy_of_another():
    model = Toy()

    report = load_published(model, toy_file(), copy_missing=True)

    assert model.table.tolist() == [6, 6]
    assert report.copied == {"table": "body.bias"}
    assert not report.kept
    assert "copied 1: table from body.bias" in str(report)


@pytest.mark.parametrize(
    "wrapper",
    ["state_dict", "model", "weights", "params_ema", "params", "model_state_dict", "net"],
)
def test_wrapped_state_dicts_and_data_parallel_prefixes_are_unwrapped(wrapper, tmp_path):
    prefixed = OrderedDict((f"module.{key}", tensor) for key, tensor in toy_file().items())
    torch.save({wrapper: prefixed, "meta": {"epoch": 30}}, tmp_path / "toy.pth")

    report = load_published(Toy(), tmp_path / "toy.pth")

    assert report.loaded == ("body.weight", "body.bias")


PREFIXES = ("_orig_mod.", "module.", "model.")


@pytest.mark.parametrize(
    "prefix", ["".join(order) for count in (1, 2, 3) for order in permutations(PREFIXES, count)]
)
@pytest.mark.parametrize("state", ["published", "own"])
def test_prefixes_are_removed_in_any_order(prefix, state):
    tensors = toy_file() if state == "published" else Toy().state_dict()
    model = Toy()

    load_published(model, {f"{prefix}{key}": tensor for key, tensor in tensors.items()})

    bias = tensors["trunk.bias" if state == "published" else "body.bias"]
    assert model.body.bias.equal(bias)


def test_a_prefix_that_is_a_models_own_stays():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(3, 2)

    trained, model = Wrapped(), Wrapped()

    load_published(model, {f"module.{key}": t for key, t in trained.state_dict().items()})

    assert model.model.weight.equal(trained.model.weight)


def test_weights_that_torch_averaged_and_compiled_load():
    trained, model = Toy(), Toy()
    average = AveragedModel(torch.compile(trained))
    assert "n_averaged" in average.state_dict()

    load_published(model, {"state_dict_ema": average.state_dict()})

    assert model.body.weight.equal(trained.body.weight)


def test_the_moving_average_comes_before_the_weights_themselves():
    averaged = toy_file()
    content = {"params": {k: v + 1 for k, v in averaged.items()}, "params_ema": averaged}
    model = Toy()

    load_published(model, content)

    assert model.body.weight.equal(averaged["trunk.weight"])


def test_wrappers_may_be_nested():
    model = Toy()

    load_published(model, {"model": {"state_dict": toy_file()}, "epoch": 3})

    assert model.body.weight.equal(toy_file()["trunk.weight"])


@pytest.mark.parametrize("name", ["toy.safetensors", "toy.bin"])
def test_safetensors_files_load_whatever_their_names(tmp_path, name):
    save_file(toy_file(), tmp_path / name)
    model = Toy()

    report = load_published(model, tmp_path / name)

    assert report.format == "toy file"
    assert model.body.weight.equal(toy_file()["trunk.weight"])


def test_a_cut_safetensors_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "toy.safetensors"
    save_file(toy_file(), path)
    path.write_bytes(path.read_bytes()[:-8])

    with pytest.raises(
        PublishedWeightsError, match=r"toy\.safetensors: expected a file of tensors"
    ):
        load_published(Toy(), path)


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("share", ["all", "one"])
def test_weights_that_are_no_numbers_are_refused(allow, share):
    state = toy_file()
    state["trunk.weight"].view(-1)[slice(None) if share == "all" else slice(1)] = float("nan")
    model = Toy()
    before = model.body.bias.clone()

    with pytest.raises(PublishedWeightsError, match=r"1 with NaN: body\.weight"):
        load_published(model, state, allow_shape_mismatch=allow)

    assert model.body.bias.equal(before)


def test_own_names_load_too_and_completely():
    trained, model = Toy(), Toy()
    trained.table.data.fill_(7)

    report = load_published(model, trained.state_dict())

    assert model.table.tolist() == [7, 7]
    assert len(report.loaded) == 3


def test_own_names_must_all_be_there():
    state = Toy().state_dict()
    del state["table"]

    with pytest.raises(PublishedWeightsError, match="1 missing: table"):
        load_published(Toy(), state)


def changed(**tensors):
    state = toy_file() | {key.replace("_", "."): tensor for key, tensor in tensors.items()}
    return {key: tensor for key, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(trunk_bias=None), "1 missing: body.bias"),
        (changed(neck_bias=torch.zeros(1)), "1 unknown: neck.bias"),
        (
            changed(trunk_bias=torch.zeros(4)),
            r"1 of another shape: body.bias \(shape \(2,\), in the file \(4,\)\)",
        ),
        (changed(body_bias=torch.zeros(2)), "one tensor for body.bias, got another in 'body.bias'"),
        ({"stem.weight": torch.zeros(1)}, r"weights for Toy \(toy file; names of this project\)"),
        ({"state_dict": {"trunk.weight": [1.0]}}, "a state dict of tensors, got list under"),
        ({}, "expected a state dict, got dict"),
    ],
    ids=["missing", "unknown", "shape", "twice", "other model", "no tensor", "empty"],
)
def test_what_does_not_fit_is_an_error_and_changes_nothing(state, message):
    model = Toy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with pytest.raises(PublishedWeightsError, match=message):
        load_published(model, state)

    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_a_tensor_of_another_shape_is_kept_and_reported_if_asked():
    model = Toy()
    before = model.body.bias.clone()

    report = load_published(model, changed(trunk_bias=torch.zeros(4)), allow_shape_mismatch=True)

    assert model.body.bias.equal(before)
    assert report.kept["body.bias"] == "shape (2,), in the file (4,)"
    assert report.loaded == ("body.weight",)


def test_errors_name_the_file(tmp_path):
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "stem.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")

    for name in ("stem.pth", "text.pth", "none.pth"):
        with pytest.raises(ValueError, match=name):
            load_published(Toy(), tmp_path / name)


@pytest.mark.parametrize("address", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numbers_of_new_and_old_numpy_beside_the_weights_are_read(tmp_path, address):
    results = {"srcc": np.float64(0.87), "plcc": [np.float32(0.88)], "epoch": np.int64(3)}
    torch.save({"state_dict": toy_file(), "validation_results": results}, tmp_path / "new.pth")
    with ZipFile(tmp_path / "new.pth") as new, ZipFile(tmp_path / "toy.pth", "w") as toy:
        for name in new.namelist():
            toy.writestr(name, new.read(name).replace(b"numpy._core.multiarray", address))

    assert load_published(Toy(), tmp_path / "toy.pth").format == "toy file"


class Harmful:
    def __reduce__(self):
        return (print, ("code of the file runs",))


def test_a_file_that_would_run_code_is_an_error(tmp_path, capsys):
    torch.save({"state_dict": toy_file(), "meta": Harmful()}, tmp_path / "toy.pth")

    with pytest.raises(PublishedWeightsError, match="without running code from it"):
        load_published(Toy(), tmp_path / "toy.pth")

    assert capsys.readouterr().out == ""


def test_the_models_dtype_stays():
    model = Toy().double()

    load_published(model, toy_file())

    assert model.body.weight.dtype == torch.float64


@pytest.fixture(scope="module")
def authors():
    """A FAST-VQA file with the buffers that the authors' code stores."""
    index = torch.zeros(392, 392, dtype=torch.int64)
    return fill(DATA / "keys_fastvqa_swin_tiny_grpb.json") | {
        f"fragments_backbone.layers.{stage}.blocks.{block}.attn.relative_position_index": index
        for stage, blocks in enumerate((2, 2, 6, 2))
        for block in range(blocks)
    }


@pytest.fixture(scope="module")
def kinetics(authors):
    """A Kinetics-400 file as Video Swin's authors publish it."""
    tensors = {
        key.removeprefix("fragments_"): tensor
        for key, tensor in authors.items()
        if key.startswith("fragments_backbone.") and "fragment_position" not in key
    }
    return tensors | {
        "cls_head.fc_cls.weight": torch.zeros(400, 768),
        "cls_head.fc_cls.bias": torch.zeros(400),
    }


def test_the_authors_fast_vqa_loads_completely(authors):
    model = build_model("fast_vqa")

    report = load_published(model, {"state_dict": authors, "validation_results": []})

    state = model.state_dict()
    assert sorted(report.loaded) == sorted(state)
    assert report.dropped.keys() == {key for key in authors if "position_index" in key}
    assert state["head.score.bias"].equal(authors["vqa_head.fc_last.bias"])
    for theirs, torchvisions in MAP.items():
        if torchvisions is not None and "position_index" not in theirs:
            name = f"backbone.{torchvisions}"
            assert state[name].equal(authors[f"fragments_backbone.{theirs}"]), name


def test_after_kinetics_the_fragment_tables_are_zero_and_the_head_is_new(kinetics):
    model = build_model("fast_vqa")
    head = model.head.hidden.weight.clone()

    report = load_published(model, {"meta": {"epoch": 30}, "state_dict": kinetics})

    tables = {name for name in model.state_dict() if "fragment_position" in name}
    assert report.format == "Video Swin, Kinetics-400, authors"
    assert len(report.loaded) == 185 - FRAGMENT_TABLES - 4
    assert report.kept.keys() == tables | {name for name in model.state_dict() if "head." in name}
    assert set(report.dropped.values()) == {
        "classifier of Kinetics-400",
        "position index, follows from the window",
    }
    assert not any(model.get_parameter(name).any() for name in tables)
    assert model.head.hidden.weight.equal(head)


def test_fragment_tables_can_start_as_the_relative_tables(kinetics):
    model = build_model("fast_vqa")

    report = load_published(model, kinetics, copy_missing=True)

    assert len(report.copied) == FRAGMENT_TABLES
    for table, relative in report.copied.items():
        assert model.get_parameter(table).equal(model.get_parameter(relative))
        assert model.get_parameter(table).any()


@pytest.mark.slow
def test_torchvisions_kinetics_file_gives_the_authors_network(kinetics):
    torchvisions = swin3d_t().state_dict()
    torchvisions |= {
        ours: kinetics[f"backbone.{theirs}"]
        for theirs, ours in MAP.items()
        if ours is not None and "position_index" not in theirs
    }
    ours, expected = build_model("fast_vqa"), build_model("fast_vqa")

    report = load_published(ours, torchvisions)
    load_published(expected, kinetics)

    assert report.format == "Video Swin, Kinetics-400, torchvision"
    assert {"head.weight", "head.bias"} < report.dropped.keys()
    for name, tensor in ours.backbone.state_dict().items():
        assert tensor.equal(expected.backbone.state_dict()[name]), name


@pytest.mark.slow
def test_kinetics_tables_do_not_fit_the_small_variant_unless_asked(kinetics):
    model = build_model("fast_vqa_m")
    with pytest.raises(PublishedWeightsError, match="12 of another shape"):
        load_published(model, kinetics)

    report = load_published(model, kinetics, allow_shape_mismatch=True)

    kept = {name for name in report.kept if not name.startswith("head.")}
    assert kept == {name for name in model.state_dict() if "relative_position" in name}


def test_the_small_variant_refuses_the_large_ones_file(authors):
    with pytest.raises(PublishedWeightsError, match=r"10 unknown: [^\n]*fragment_position"):
        load_published(build_model("fast_vqa_m"), authors)
