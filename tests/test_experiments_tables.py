"""An experiment's table: our figures, the paper's, differences, means over what both have, and what is missing."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from rarvision.experiments import Axis, Column, Metric, Outcome, Plot, Published, Row, Spec, Table, measured_part
from rarvision.experiments.tables import Entry, speed_table

TOP1 = Metric(key="top1", title="top-1")


def spec(**changes: object) -> Spec:
    values: dict[str, object] = {
        "name": "table-x",
        "title": "A table",
        "question": "Which is better?",
        "kind": "classification",
        "columns": (
            Column(key="dtd", title="DTD", group="Common"),
            Column(key="eurosat", title="EuroSAT", group="Common"),
            Column(key="oxford_pets", title="Pets", group="Fine-grained"),
        ),
        "rows": (
            Row(key="knn", title="CLIP + kNN", method="knn"),
            Row(key="tip", title="Tip", method="tip", extra=True),
            Row(key="rar", title="RAR", method="rar"),
        ),
        "metrics": (TOP1,),
        "axis": Axis(key="shots", title="shots", values=(4, 8)),
        "plot": Plot(),
    }
    return Spec(**{**values, **changes})


PAPER = Published(
    columns=("dtd", "eurosat", "oxford_pets"),
    notes=("A note of the paper.",),
    rows=[
        {"row": "knn", "at": {"shots": 4}, "metric": "top1", "values": [47.5, 67.6, 55.6], "printed_mean": 99.9},
        {"row": "rar", "at": {"shots": 4}, "metric": "top1", "values": [53.9, None, 60.9], "why": "too | long"},
    ],
)


def outcome(
    column: str, row: str, shots: int | None, value: float | None, seed: int = 0, why: str | None = None, **more: object
) -> Outcome:
    return Outcome(
        experiment="table-x",
        column=column,
        row=row,
        at={} if shots is None else {"shots": shots},
        seed=seed,
        n=100,
        values={"top1": value},
        why=why,
        **more,
    )


def some() -> list[Outcome]:
    return [
        outcome("dtd", "knn", 4, 0.5),
        outcome("dtd", "knn", 4, 0.54, seed=1),
        outcome("eurosat", "knn", 4, 0.7),
        outcome("eurosat", "knn", 4, 0.7, seed=1),
        outcome("oxford_pets", "knn", 4, 0.6),
        outcome("oxford_pets", "knn", 4, 0.62, seed=1),
        outcome("dtd", "rar", 4, 0.58),
        outcome("eurosat", "rar", 4, 0.8),
        outcome("oxford_pets", "rar", 4, None, why="the names do not fit"),
        outcome("dtd", "tip", 4, 0.6),
        outcome("eurosat", "tip", 4, 0.6),
        outcome("oxford_pets", "tip", 4, 0.3),
    ]


def entry(table: Table, row: str, column: str, shots: int = 4) -> Entry:
    names = [each.key for each, _ in table.columns] + ["mean"]
    line = next(each for each in table.lines if each.row.key == row and each.at.get("shots", shots) == shots)
    return line.entries[names.index(column)]


def test_a_cell_has_our_mean_over_seeds_half_their_range_the_papers_figure_and_the_difference() -> None:
    found = entry(Table(spec(), some(), PAPER), "knn", "dtd")
    assert found.ours == pytest.approx(0.52)
    assert found.spread == pytest.approx(0.02)
    assert found.paper == pytest.approx(0.475)
    assert found.difference == pytest.approx(0.045)
    assert found.text() == "52.0 ± 2.0 (paper 47.5, +4.5)"
    assert entry(Table(spec(), some(), PAPER), "knn", "eurosat").text() == "70.0 (paper 67.6, +2.4)"
    assert entry(Table(spec(), some(), PAPER), "tip", "dtd").text() == "60.0"


def test_a_mean_is_recomputed_for_both_over_all_data_sets() -> None:
    found = entry(Table(spec(), some(), PAPER), "knn", "mean")
    assert found.ours == pytest.approx((0.52 + 0.7 + 0.61) / 3)
    assert found.spread == pytest.approx(((0.54 + 0.7 + 0.62) - (0.5 + 0.7 + 0.6)) / 6)
    assert found.paper == pytest.approx((0.475 + 0.676 + 0.556) / 3)  # not the printed one
    assert (found.over, found.of, found.partial) == (3, 3, False)


def test_a_mean_is_over_the_data_sets_that_both_have_and_says_so() -> None:
    table = Table(spec(), some(), PAPER)
    found = entry(table, "rar", "mean")
    assert (found.ours, found.paper) == (pytest.approx(0.58), pytest.approx(0.539))  # DTD is the only one
    assert found.text() == "58.0 (paper 53.9, +4.1, over 1 of 3)"
    assert any(note.startswith("A mean over some of the data sets") for note in table.notes)
    tip = entry(table, "tip", "mean")
    assert (tip.ours, tip.paper, tip.over) == (pytest.approx(0.5), None, 3)


def test_a_mean_without_the_papers_is_over_what_was_measured() -> None:
    found = entry(Table(spec(), [o for o in some() if o.row == "tip"][:2], PAPER), "tip", "mean")
    assert found.text() == "60.0 (over 2 of 3)"


def test_a_mean_takes_data_sets_with_every_seed() -> None:
    kept = [o for o in some() if not (o.column == "eurosat" and o.seed == 1)]
    found = entry(Table(spec(), kept, PAPER), "knn", "mean")
    assert found.over == 2
    assert found.ours == pytest.approx((0.52 + 0.61) / 2)
    assert found.paper == pytest.approx((0.475 + 0.556) / 2)


def test_dashes_have_their_reason_below_and_what_is_not_measured_is_counted() -> None:
    table = Table(spec(), some(), PAPER)
    assert entry(table, "rar", "oxford_pets").text() == "- (paper 60.9)"
    assert table.reasons == {"the names do not fit": 1}
    assert table.missing == 9  # three methods on three data sets at eight shots
    assert entry(table, "knn", "dtd", shots=8).text() == ""
    assert "`-` in 1 cell: the names do not fit." in table.notes
    assert "Not measured yet: 9 cells; the same command goes on with them." in table.notes
    assert "No figure of the paper in 1 cell: too | long." in table.notes
    assert "A note of the paper." in table.notes
    assert "Not in the paper: Tip." in table.notes


def test_no_difference_has_no_minus() -> None:
    same = Entry(metric=TOP1, ours=0.4749999, paper=0.475)
    assert same.text() == "47.5 (paper 47.5, +0.0)"
    assert Entry(metric=Metric(key="n", title="n", share=False), ours=12345.0).text() == "12,345"


def test_several_reasons_are_told_apart() -> None:
    found = [outcome("dtd", "rar", 4, None, why="too long"), outcome("eurosat", "rar", 4, None, why="no MLLM")]
    table = Table(spec(), found)
    assert [entry(table, "rar", key).text() for key in ("dtd", "eurosat", "oxford_pets", "mean")] == [
        "-¹",
        "-²",
        "",
        "-",
    ]
    assert table.notes[:2] == ["`-¹` in 1 cell: too long.", "`-²` in 1 cell: no MLLM."]


def test_the_papers_mean_stands_alone_where_ours_is_missing() -> None:
    table = Table(spec(), [], PAPER)
    assert entry(table, "knn", "mean").text() == f"(paper {100 * (0.475 + 0.676 + 0.556) / 3:.1f})"
    assert entry(table, "rar", "mean").text() == ""  # the paper's row has a gap
    assert table.missing == 18


def test_of_other_images_the_papers_mean_is_shown_and_not_subtracted() -> None:
    guide = spec(columns=(Column(key="birds", title="Birds"), Column(key="fish", title="Fish")))
    table = Table(guide, [outcome("birds", "knn", 4, 0.5), outcome("fish", "knn", 4, 0.3)], PAPER)
    assert table.foreign
    assert entry(table, "knn", "birds").paper is None
    mean = entry(table, "knn", "mean")
    assert mean.difference is None
    assert mean.text() == "40.0 (paper† 56.9)"
    assert any(note.startswith("† The paper's mean is of other data sets") for note in table.notes)
    assert not any("†" in note for note in Table(spec(), some(), PAPER).notes)


def test_a_printed_mean_stands_where_no_figure_by_data_set_is_known() -> None:
    rows = [{"row": "knn", "at": {}, "metric": "top1", "values": [None] * 3, "why": "lost", "printed_mean": 65.0}]
    paper = replace(PAPER, rows=rows)
    assert entry(Table(spec(), some(), paper), "knn", "mean").text() == "61.0 ± 1.0 (paper 65.0, -4.0)"
    fewer = Table(spec(), [o for o in some() if o.column != "dtd"], paper)
    found = entry(fewer, "knn", "mean")
    assert (found.over, found.difference) == (2, None)  # the paper's is over three
    assert entry(Table(spec(columns=spec().columns[:2]), some(), paper), "knn", "mean").paper is None


def test_rows_that_the_axis_does_not_matter_to_come_once_and_first() -> None:
    rows = (*spec().rows, Row(key="clip", title="CLIP", method="clip", once=True, extra=True))
    table = Table(spec(rows=rows), [outcome("dtd", "clip", None, 0.4)], PAPER)
    assert [(line.place, line.row.key) for line in table.lines][:2] == [("", "clip"), ("4", "knn")]
    assert len(table.lines) == 7


def test_several_metrics_and_counts() -> None:
    counts = spec(
        axis=None,
        rows=(Row(key="facts", title="count", method="facts"),),
        metrics=(Metric(key="categories", title="categories", share=False), Metric(key="sacc", title="sACC")),
    )
    values = {"categories": 1234.0, "sacc": 0.25}
    table = Table(counts, [replace(outcome("dtd", "facts", None, None), values=values)])
    assert table.heads[:2] == ["DTD categories", "DTD sACC"]
    assert table.heads[-1] == "mean sACC"  # of counts there is no mean
    assert table.rows() == [["count", "1,234", "25.0", "", "", "", "", "25.0 (over 1 of 3)"]]


def test_groups_stand_above_their_columns() -> None:
    assert Table(spec(), []).groups == [("Common", 2), ("Fine-grained", 1), ("", 1)]
    assert Table(spec(columns=(Column(key="birds", title="Birds"),)), []).groups == []


def test_markdown() -> None:
    text = Table(spec(axis=None), [replace(each, at={}) for each in some()]).to_markdown().splitlines()
    assert text[0] == "| method | DTD | EuroSAT | Pets | mean |"
    assert text[1] == "|---|---:|---:|---:|---:|"
    assert text[2] == "| CLIP + kNN | 52.0 ± 2.0 | 70.0 | 61.0 ± 1.0 | 61.0 ± 1.0 |"
    assert text[5] == ""
    assert all(line.startswith("- ") for line in text[6:])
    bars = spec(axis=None, rows=(Row(key="knn", title="a | b", method="knn"),))
    assert "| a \\| b |" in Table(bars, []).to_markdown()


def test_csv_and_records_hold_the_same() -> None:
    table = Table(spec(), some(), PAPER)
    records = table.to_dicts()
    assert len(records) == 6 * 4
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    read = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(read) == len(records)
    first = read[0]
    assert (first["at"], first["row"], first["column"], first["metric"]) == ("4", "knn", "dtd", "top1")
    assert (first["ours"], first["spread"], first["paper"], first["difference"]) == ("0.52", "0.02", "0.475", "0.045")
    dash = next(each for each in read if each["row"] == "rar" and each["column"] == "oxford_pets" and each["at"] == "4")
    assert (dash["ours"], dash["why"]) == ("", "the names do not fit")


def test_speed() -> None:
    timed = [
        outcome("dtd", "knn", 4, 0.5, retrieval_ms=2.0),
        outcome("dtd", "rar", 4, 0.6, retrieval_ms=2.0, ranking_ms=30.25),
        outcome("eurosat", "rar", 4, None, why="too long"),
    ]
    table = speed_table(spec(), timed)
    assert [entry.text() for entry in table.lines[0].entries[:3]] == ["2.0", "0.0", "2.0"]
    assert [entry.text() for entry in table.lines[2].entries[:6]] == ["2.0", "30.2", "32.2", "-", "-", "-"]
    assert table.reasons == {"too long": 3}


def test_measured_part_leaves_out_what_was_not_asked_for() -> None:
    part = measured_part(spec(), [outcome("dtd", "rar", 8, 0.5)])
    assert [column.key for column in part.columns] == ["dtd"]
    assert [row.key for row in part.rows] == ["rar"]
    assert part.axis is not None
    assert part.axis.values == (8,)
    assert measured_part(spec(), []) == spec()
