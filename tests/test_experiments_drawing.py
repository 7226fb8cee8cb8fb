"""An experiment's figure: lines, bands, the paper's beside them, panels; the same outcomes give the same files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rarvision.errors import MissingExtraError
from rarvision.experiments import Axis, Column, Metric, Outcome, Plot, Published, Row, Spec, drawing, published, spec_of
from rarvision.experiments.drawing import draw

DTD, PETS = Column(key="dtd", title="DTD"), Column(key="oxford_pets", title="Pets")
KNN = Row(key="knn", title="CLIP + kNN", method="knn")
RAR = Row(key="rar", title="RAR", method="rar")
SHOTS = (1, 2, 4)
PAPER = Published(
    columns=("dtd", "oxford_pets"),
    notes=(),
    rows=[
        {"row": "knn", "at": {"shots": shots}, "metric": "top1", "values": [values[0], values[1]]}
        for shots, values in ((1, (35.1, 41.3)), (2, (41.2, 49.0)), (4, (47.5, 55.6)))
    ],
)


def spec(**changes: Any) -> Spec:
    values: dict[str, Any] = {
        "name": "table-x",
        "title": "A table",
        "question": "?",
        "kind": "classification",
        "columns": (DTD, PETS),
        "rows": (KNN, RAR),
        "metrics": (Metric(key="top1", title="top-1"), Metric(key="ms", title="time", share=False, unit="ms")),
        "axis": Axis(key="shots", title="shots", values=SHOTS),
        "plot": Plot(log=True),
    }
    return Spec(**{**values, **changes})


def outcomes(*, seeds: int = 2) -> list[Outcome]:
    return [
        Outcome(
            experiment="table-x",
            column=column,
            row=row,
            at={"shots": shots},
            seed=seed,
            values={"top1": 0.4 + 0.05 * place + 0.1 * (row == "rar") + 0.02 * seed, "ms": 3.0 + 90 * (row == "rar")},
        )
        for column in ("dtd", "oxford_pets")
        for row in ("knn", "rar")
        for place, shots in enumerate(SHOTS)
        for seed in range(seeds)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were written."""
    kept: list[Any] = []
    save = drawing.save_figure
    monkeypatch.setattr(drawing, "save_figure", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def lines(figure: Any, panel: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in figure.axes[panel].lines
    }


def test_lines_are_means_in_percent_with_a_band_over_seeds_and_the_papers_dashed(
    tmp_path: Path, drawn: list[Any]
) -> None:
    assert draw(spec(), outcomes(), PAPER, [tmp_path / "figure.png"]) == []
    (axes,) = drawn[0].axes
    found = lines(drawn[0])
    assert set(found) == {"CLIP + kNN", "CLIP + kNN, paper", "RAR"}
    assert found["CLIP + kNN"] == ([1, 2, 4], pytest.approx([41, 46, 51]))
    assert found["RAR"][1] == pytest.approx([51, 56, 61])
    assert found["CLIP + kNN, paper"][1] == pytest.approx([38.2, 45.1, 51.55])
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "-"]
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (pytest.approx(40), pytest.approx(52))
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]
    assert axes.get_xlabel() == "shots"
    assert axes.get_ylabel() == "top-1, %"
    assert "mean of 2 data sets" in axes.get_title()
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["CLIP + kNN", "CLIP + kNN, paper", "RAR"]


def test_one_seed_has_no_band(tmp_path: Path, drawn: list[Any]) -> None:
    draw(spec(), outcomes(seeds=1), None, [tmp_path / "figure.png"])
    assert not drawn[0].axes[0].collections
    assert set(lines(drawn[0])) == {"CLIP + kNN", "RAR"}


def test_a_panel_a_column_and_a_panel_a_metric(tmp_path: Path, drawn: list[Any]) -> None:
    draw(spec(plot=Plot(panels="columns")), outcomes(), PAPER, [tmp_path / "a.png"])
    assert [axes.get_title() for axes in drawn[0].axes] == ["DTD", "Pets"]
    assert lines(drawn[0], 1)["CLIP + kNN, paper"][1] == pytest.approx([41.3, 49.0, 55.6])
    draw(spec(plot=Plot(panels="metrics")), outcomes(), PAPER, [tmp_path / "b.png"])
    assert [axes.get_ylabel() for axes in drawn[1].axes] == ["top-1, %", "ms"]
    assert lines(drawn[1], 1)["RAR"][1] == pytest.approx([93, 93, 93])


def test_metrics_along_x(tmp_path: Path, drawn: list[Any]) -> None:
    metrics = tuple(Metric(key=f"recall{k}", title=f"recall@{k}") for k in (1, 5, 10))
    values = {"recall1": 0.4, "recall5": 0.7, "recall10": 0.9}
    found = [Outcome(experiment="x", column=key, row="knn", values=values) for key in ("dtd", "oxford_pets")]
    part = spec(metrics=metrics, axis=None, plot=Plot(x="metrics", panels="columns"))
    draw(part, found, None, [tmp_path / "a.png"])
    assert lines(drawn[0], 1) == {"CLIP + kNN": ([1, 5, 10], pytest.approx([40, 70, 90]))}


def test_many_panels_go_on_below(tmp_path: Path, drawn: list[Any]) -> None:
    columns = tuple(Column(key=f"c{number}", title=f"C{number}") for number in range(7))
    draw(spec(columns=columns, plot=Plot(panels="columns")), [], None, [tmp_path / "a.png"])
    assert len(drawn[0].axes) == 7
    width, height = drawn[0].get_size_inches()
    assert width < 13 < 3 * height


def test_rows_that_are_measured_once_go_through_all_places(tmp_path: Path, drawn: list[Any]) -> None:
    once = Row(key="clip", title="CLIP", method="clip", once=True)
    found = [Outcome(experiment="x", column=key, row="clip", values={"top1": 0.3}) for key in ("dtd", "oxford_pets")]
    draw(spec(rows=(once,)), found, None, [tmp_path / "a.png"])
    assert lines(drawn[0]) == {"CLIP": ([1, 2, 4], pytest.approx([30, 30, 30]))}


def test_means_over_some_data_sets_are_left_out_and_told(tmp_path: Path, drawn: list[Any]) -> None:
    kept = [each for each in outcomes() if not (each.row == "rar" and each.column == "dtd" and each.at["shots"] == 4)]
    assert draw(spec(), kept, PAPER, [tmp_path / "a.png"]) == ["RAR"]
    assert lines(drawn[0])["RAR"][0] == [1, 2]


def test_the_same_outcomes_give_the_same_files_and_nothing_else(tmp_path: Path) -> None:
    names = ("figure.png", "figure.svg")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        draw(spec(), outcomes(), PAPER, [tmp_path / folder / name for name in names])
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(names)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with Image.open(tmp_path / "a" / "figure.png") as image:
        assert image.width > 300


def test_nothing_measured_is_an_empty_figure(tmp_path: Path) -> None:
    draw(spec(), [], None, [tmp_path / "figure.svg"])
    assert (tmp_path / "figure.svg").exists()


@pytest.mark.parametrize("name", ["table-7", "table-12", "table-13", "figure-9", "figure-10"])
@pytest.mark.parametrize("edition", ["paper", "field-guide"])
def test_every_spec_with_a_plot_can_be_drawn(name: str, edition: Any, tmp_path: Path) -> None:
    each = spec_of(name, edition)
    places = each.places
    found = [
        Outcome(
            experiment=name,
            column=column.key,
            row=row.key,
            at={} if row.once else at,
            values={metric.key: 0.5 for metric in each.metrics},
        )
        for column in each.columns
        for row in each.rows
        for at in (places[:1] if row.once else places)
    ]
    draw(each, found, published(each.paper), [tmp_path / "figure.svg"])


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"rarvision\[plots\]"):
        draw(replace(spec()), outcomes(), PAPER, [tmp_path / "figure.png"])
