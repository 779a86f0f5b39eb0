"""README's picture of the pretrained network shows the numbers of the results beside it."""

import json
from pathlib import Path

import pytest

from benchmarks.pretrained_figure import RESULTS, drawn, figure

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def rows():
    return drawn(json.loads((RESULTS / "pretrained.json").read_text("utf-8")))


def test_every_method_with_enough_seeds_has_a_point_at_its_gain_beside_its_passes(rows):
    (axes,) = figure(rows).axes
    points = [container.lines[0].get_xdata()[0] for container in axes.containers]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert sorted(points) == sorted(row["difference"] for row in rows)
    passes = sorted(row["passes"] for row in rows)
    assert [float(name.split()[-1]) for name in names] == pytest.approx(passes, abs=0.01)


def test_a_method_of_two_studies_is_drawn_once_from_the_one_with_more_seeds():
    def row(seeds, gain):
        return {"method": "awp", "n": seeds, "difference": gain, "passes": 2.0}

    studies = {"methods": {"methods": [row(3, 0.1)]}, "end": {"methods": [row(5, 0.2)]}}
    assert drawn(studies) == [row(5, 0.2)]
    studies["end"]["methods"] = [row(2, 0.2)]
    assert drawn(studies) == [row(3, 0.1)]


@pytest.mark.parametrize("study", ["end", "mobilenet"])
def test_the_readme_gives_the_gain_of_awp_on_the_last_quarter_as_the_results_do(study):
    rows = json.loads((RESULTS / "pretrained.json").read_text("utf-8"))[study]["methods"]
    (quarter,) = (row for row in rows if row["method"] == "awp, last 25 %")
    assert f"{quarter['difference']:+.3f}" in README.read_text("utf-8")
