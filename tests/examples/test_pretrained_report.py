"""What the pages say of pretrained networks is what the results beside them say."""

import json
import re

import pytest
from command_line import REPOSITORY

from benchmarks.pretrained_report import RESULTS, drawn, figure, report

README = REPOSITORY / "README.md"
STUDIES = json.loads((RESULTS / "pretrained.json").read_text("utf-8"))
GAIN = r"\**[+-]\d\.\d{3} \([+-]\d\.\d{3} to [+-]\d\.\d{3}"
MACHINE = {
    "device": "cpu",
    "threads": 1,
    "versions": {"python": "3.11.7", "torch": "2.15.0", "torch_awp": "0.3.0"},
}


@pytest.fixture
def rows():
    return drawn(STUDIES)


def scored(method, **more):
    """A row of a study, with two seeds."""
    scores = ("test_srcc", "test_srcc_clean_statistics", "train_srcc")
    return {
        "method": method,
        "values": {"perturb": method, "gamma": 0.0},
        "passes": 1.0,
        "seeds": [2, 3],
        "time": ["2026-01-02T03:04:05+00:00", "2026-01-03T03:04:05+00:00"],
        **{name: [0.5, 0.75] for name in scores},
        **more,
    }


def study(*methods, tuning):
    return {
        "asks": "does it help?",
        "finished_runs": 3,
        "planned_runs": 9,
        "made_on": [MACHINE],
        "tuning": tuning,
        "methods": methods,
    }


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

    studies = {
        "methods": {"methods": [row(3, 0.1)]},
        "end": {"methods": [row(5, 0.2)]},
        "controls": {"methods": []},
    }
    assert drawn(studies) == [row(5, 0.2)]
    studies["end"]["methods"] = [row(2, 0.2)]
    assert drawn(studies) == [row(3, 0.1)]


@pytest.mark.parametrize("p_holm", [0.04, 0.06])
def test_a_gain_stands_beside_its_cost_and_is_bold_where_it_is_clear(p_holm):
    test = {
        "difference": 0.125, "low": 0.0625, "high": 0.1875, "over_images": [-0.25, 0.5],
        "wins": 2, "n": 2, "p_value": 0.01, "p_holm": p_holm,
    }  # fmt: skip
    given = {"perturb": "awp", "perturb_last": 0.25, "gamma": 0.002}
    awp = scored("awp, last 25 %", values=given, passes=1.28, train_srcc=[0.9, 1.0], **test)

    lines = report({"small": study(scored("plain"), awp, tuning={})}).splitlines()

    gain = "+0.125 (+0.062 to +0.188; -0.250 to +0.500)"
    shown = f"**{gain}**" if p_holm < 0.05 else gain
    assert (
        f"| AWP, last 25 % | gamma 0.002 | 1.28 | 2 | 0.625 | {shown} | 2 of 2 | 0.01 | {p_holm}"
        " | 0.625 | 0.950 |"
    ) in lines
    assert "| plain |  | 1.00 | 2 | 0.625 |  |  |  |  | 0.625 | 0.625 |" in lines


def test_a_study_says_how_far_it_is_where_and_when_it_ran():
    page = report({"small": study(scored("plain"), tuning={})})

    assert (
        "Does it help? 3 of 9 runs; cpu, threads: 1, Python 3.11.7, torch 2.15.0, torch_awp 0.3.0;"
        " 2026-01-02 to 2026-01-03."
    ) in page


def test_sizes_that_ways_share_are_told_once_and_the_chosen_one_is_bold():
    tried = [{"gamma": 0.001, "validation_srcc": 0.5}, {"gamma": 0.01, "validation_srcc": 0.25}]

    page = report({"small": study(tuning={"awp": tried, "awp, again": tried, "rwp": []})})

    assert "Does it help? 3 of 9 runs.\n" in page  # no way has been scored
    assert page.endswith("* AWP: gamma 0.001 **0.500**, gamma 0.01 0.250\n")


def test_the_page_of_tables_is_that_of_the_results():
    assert (RESULTS / "pretrained.md").read_text("utf-8") == report(STUDIES)


def test_every_gain_with_an_interval_that_the_benchmarks_tell_is_in_the_tables():
    text = (REPOSITORY / "benchmarks" / "README.md").read_text("utf-8")
    own = text.partition("### A pretrained network")[2].partition("\n### ")[0]

    told = re.findall(GAIN, own)

    assert told
    assert set(told) <= set(re.findall(GAIN, report(STUDIES)))


@pytest.mark.parametrize(
    "study",
    [
        "end",
        "mobilenet",
        "from stock photographs to snapshots",
        "from snapshots to stock photographs",
        "learning rate",
        "mobilenet, learning rate",
    ],
)
def test_the_readme_gives_the_gain_of_awp_on_the_last_quarter_as_the_results_do(study):
    rows = STUDIES[study]["methods"]
    (quarter,) = (row for row in rows if row["method"] == "awp, last 25 %")
    assert f"{quarter['difference']:+.3f}" in README.read_text("utf-8")
