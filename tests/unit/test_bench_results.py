"""The benchmark's results: from outcomes to summaries, result files, tables and a picture; the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from benchmarks.__main__ import show
from benchmarks.command_line import parse_arguments
from benchmarks.compact import HEAD, compact_report, compact_rows
from benchmarks.plot import plot
from benchmarks.ratio_plot import places_of, plot_ratios, ratios_of, styles_of
from benchmarks.results import Results
from benchmarks.summary import Outcome, Summary, seconds_until_halved, share_at_home, summarise
from benchmarks.tables import markdown_report, text_report

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unmeasured


def test_summary_count_what_failed_and_what_was_cut() -> None:
    good = [Outcome(float(i), first_token=0.1 * i, per_token=0.05, node=0) for i in range(1, 11)]
    outcomes = [*good, Outcome(11.0, problem="failed"), Outcome(12.0, 0.5, 0.2, "cut"), Outcome(13.0, 2.5, 0.01)]
    summary = summarise(outcomes)
    assert (summary.requests, summary.failed, summary.cut) == (13, 1, 1)
    assert summary.goodput == pytest.approx(10 / 13)
    assert summary.ttft_p50 == pytest.approx(550)


def test_a_turn_is_at_home_where_the_turn_before_was() -> None:
    turns = [(1.0, 7, 0), (2.0, 8, 1), (3.0, 7, 0), (4.0, 8, 2), (5.0, 8, None), (6.0, 8, 2), (7.0, 9, 0)]
    outcomes = [Outcome(at, node=node, conversation=conversation) for at, conversation, node in reversed(turns)]
    assert share_at_home(outcomes, since=0.0) == pytest.approx(2 / 3)
    assert share_at_home(outcomes, since=3.5) == pytest.approx(1 / 2)
    assert share_at_home(outcomes, since=6.5) is None


@pytest.mark.parametrize(("seconds", "good"), [(2.9, 1.0), (3.1, 0.5)])
def test_an_answer_that_is_not_streamed_is_good_by_the_time_of_all_its_tokens(seconds: float, good: float) -> None:
    found = summarise([Outcome(0.0, whole_answer=seconds, tokens=11), Outcome(1.0, first_token=0.5)])
    assert found.goodput == good
    assert found.ttft_p99 == pytest.approx(500)


def test_the_time_until_a_share_has_halved() -> None:
    def sent(at: float, node: int) -> Outcome:
        return Outcome(at, 0.1, 0.1, None, node)

    even = [sent(at / 10, at % 2) for at in range(1000)]
    after = [sent(100 + at / 10, at % 2) for at in range(300)] + [
        sent(130 + at / 10, int(at % 8 == 0)) for at in range(300)
    ]
    found = seconds_until_halved([*even, *after], node=1, since=100, until=160)
    assert found is not None
    assert 15 <= found <= 30
    assert seconds_until_halved(even, node=1, since=50, until=100) is None


def test_results_are_kept_shown_and_drawn(tmp_path: Path) -> None:
    summary = Summary(
        requests=1, ttft_p50=1, ttft_p90=2, ttft_p99=3, tpot_p99=4, goodput=1.0, failed=0, cut=0, halved_after=12.0
    )
    results = Results({"mode": "test"})
    results.add("nginx-least-conn", "unequal", 0, replace(summary, ttft_p99=6))
    results.add("ours-capacity", "unequal", 0, summary)
    results.add("ours-capacity", "unequal", 1, replace(summary, ttft_p99=5))
    results.missing["other"] = "cannot be installed"
    results.save(tmp_path / "results.json")
    again = Results.load(tmp_path / "results.json")
    assert again == results
    assert again.has("ours-capacity", "unequal", 1)
    text = markdown_report(again)
    assert "| ours-capacity | 1 | 2 | 4 (3-5) |" in text
    assert "| 0.67 | 0.67 |" in text
    assert "Missing: other: cannot be installed" in text
    assert "ours-capacity" in text_report(again)
    plot(again, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def times(p50: float, p90: float, p99: float, at_home: float | None = None) -> Summary:
    """Return the summary of a run with these times to first token, ms."""
    return Summary(
        requests=1,
        ttft_p50=p50,
        ttft_p90=p90,
        ttft_p99=p99,
        tpot_p99=4,
        goodput=1.0,
        failed=0,
        cut=0,
        at_home=at_home,
    )


def virtual_results(runs: dict[str, dict[str, Summary]]) -> Results:
    """Return results with one run each, by scenario and contestant."""
    results = Results({"mode": "virtual"})
    for scenario, summaries in runs.items():
        for contestant, summary in summaries.items():
            results.add(contestant, scenario, 0, summary)
    return results


LEAST_CONN = {"nginx-least-conn": times(200, 400, 1000)}
# By case: the runs of a scenario, and its row after its name.
ROWS: dict[str, tuple[dict[str, Summary], str]] = {
    "ours is best": (
        LEAST_CONN
        | {
            "ours-work": times(100, 200, 500, at_home=0.9876),
            "ours-work-no-prefix": times(1, 1, 1),
            "llm-d": times(90, 300, 800),
            "limit-exact": times(80, 160, 400),
            "limit-jsq": times(1, 1, 1),
        },
        "**100** 200 500 1000 llm-d 90 300 800 400 0.50 0.62 1.25 98.8%",
    ),
    "ours is far better": (
        LEAST_CONN | {"ours-work": times(1, 2, 4)},
        "1 2 4 1000 nginx-least-conn 200 400 1000 - 0.004 0.004 - -",
    ),
    "a peer is better": (
        LEAST_CONN | {"ours-work": times(102, 207, 900), "jsq": times(100, 200, 870), "llm-d": times(1, 1, 880)},
        "102 **207** 900 1000 jsq 100 200 870 - 0.90 **1.03** - -",
    ),
    "least_conn is better": (
        LEAST_CONN | {"ours-work": times(200, 400, 1040), "llm-d": times(200, 400, 2000)},
        "200 400 1040 1000 nginx-least-conn 200 400 1000 - **1.04** **1.04** - -",
    ),
    "the same within three percent": (
        LEAST_CONN | {"ours-work": times(206, 412, 1030)},
        "206 412 1030 1000 nginx-least-conn 200 400 1000 - 1.03 1.03 - -",
    ),
    "only ours ran": ({"ours-work": times(100, 200, 500)}, "100 200 500 - - - - - - - - - -"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_compact_table_has_what_is_lost_in_bold(case: str) -> None:
    runs, row = ROWS[case]
    rows = compact_rows(virtual_results({"agents": runs, "rag": LEAST_CONN}), ("agents", "rag", "reasoning"))
    assert rows == [list(HEAD), ["agents", *row.split()]]


def test_compact_tables_are_made_of_each_group_with_runs_of_ours() -> None:
    runs = LEAST_CONN | {"ours-work": times(100, 200, 500)}
    report = compact_report(virtual_results({"fleet-2": runs, "agents": runs, "rag": runs, "small-kv": LEAST_CONN}))
    lines = report.splitlines()
    assert [line for line in lines if line.startswith("#")] == ["### workloads", "### fleets"]
    assert [line.split()[1] for line in lines if line.startswith("| ")] == [
        *("scenario", "---", "agents", "rag"),
        *("scenario", "---", "fleet-2"),
    ]


def test_a_series_that_was_ended_compares_seeds_that_all_have_run_with() -> None:
    results = virtual_results({"agents": LEAST_CONN | {"ours-work": times(100, 200, 500)}, "rag": LEAST_CONN})
    results.add("ours-work", "agents", 1, times(100, 200, 9000))
    results.add("nginx-least-conn", "rag", 1, times(100, 200, 300))
    kept = results.of_common_seeds()
    assert [(row["scenario"], row["contestant"], row["seed"]) for row in kept.rows] == [
        ("agents", "nginx-least-conn", 0),
        ("agents", "ours-work", 0),
        ("rag", "nginx-least-conn", 0),
        ("rag", "nginx-least-conn", 1),
    ]
    assert "| agents | 100 | 200 | 500 |" in compact_report(results)


def test_a_picture_has_a_row_for_each_scenario_and_a_mark_for_each_rival(tmp_path: Path) -> None:
    runs = LEAST_CONN | {"ours-work": times(1, 2, 600), "ours-work-no-prefix": times(1, 2, 3), "jsq": times(1, 2, 9e4)}
    limit = {"limit-exact": times(1, 2, 500), "limit-jsq": times(1, 2, 3)}
    results = virtual_results(
        {"agents": runs | limit, "rag": runs, "fleet-2": runs, "small-kv": {"jsq": times(1, 2, 3)}}
    )
    ratios = ratios_of(results)
    assert ratios["agents"] == {"ours-work": 0.6, "limit-exact": 0.5, "jsq": 90}
    assert ratios["rag"] == {"ours-work": 0.6, "jsq": 90}
    assert places_of(ratios) == {"agents": 0, "rag": 1, "fleet-2": 3}
    assert list(styles_of(ratios)) == ["ours-work", "limit-exact", "jsq"]
    plot_ratios(results, tmp_path / "plot.png")
    assert 5000 < (tmp_path / "plot.png").stat().st_size < 120_000


@pytest.mark.parametrize("mode", ["virtual", "full"])
def test_a_kept_file_can_be_shown_in_compact_tables_and_drawn(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = virtual_results({"agents": LEAST_CONN | {"ours-work": times(100, 200, 500)}})
    results.conditions["mode"] = mode
    results.save(tmp_path / "kept.json")
    words = ["show", "--results", str(tmp_path / "kept.json"), "--compact", "--picture", str(tmp_path / "kept.png")]
    show(parse_arguments(words))
    assert "| agents | 100 | 200 | 500 | 1000 |" in capsys.readouterr().out
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_nothing_can_be_drawn(tmp_path: Path) -> None:
    plot_ratios(virtual_results({"agents": {"ours-work": times(1, 2, 3)}}), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_tables_can_be_shown_of_a_file_that_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kept.json"
    with pytest.raises(SystemExit):
        parse_arguments(["show", "--results", str(path)])
    assert f"{path}: no such file; a run in the mode" in capsys.readouterr().err
    path.write_text("{}")
    options = parse_arguments(["show", "--results", str(path), "--compact"])
    assert (options.results, options.compact) == (path, True)


def test_the_command_line_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["quick", "--only", "nginx-least-conn,unheard-of"])
    assert "unknown: unheard-of; --help lists what there is" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_arguments(["full", "--scenarios", "agents,fleet-1000"])
    assert "only in virtual time: fleet-1000" in capsys.readouterr().err
    assert {each.name for each in parse_arguments(["virtual"]).scenarios} >= {"fleet-1000", "agents"}
    assert "fleet-1000" not in {each.name for each in parse_arguments(["full"]).scenarios}
    some = parse_arguments(["full", "--scenarios", "agents,fleets"]).scenarios
    assert [each.name for each in some] == ["agents", "fleet-2", "fleet-2-reasoning-mix"]
    quick = parse_arguments(["quick"])
    assert [each.name for each in quick.scenarios] == ["equal-75", "unequal"]
    assert (quick.seeds, quick.results.name) == (1, "quick.json")
