"""The paper's printed figures as data: counts, spot values typed from the paper, means against the printed ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rarvision.experiments.paper as module
from rarvision.datasets import BENCHMARKS
from rarvision.experiments import ALIASES, EXPERIMENTS, published, spec_of
from rarvision.experiments.paper import Published

NAMES = (*(f"table-{number}" for number in range(1, 14)), "figure-9", "figure-10", "figure-11")

# Figures that are there, and cells that the paper has without a figure that is known.
COUNTS = {
    "table-1": (50, 0),
    "table-2": (60, 6),
    "table-3": (6, 14),
    "table-4": (2, 2),
    "table-5": (60, 0),
    "table-6": (16, 0),
    "table-7": (149, 16),
    "table-8": (22, 0),
    "table-9": (44, 0),
    "table-10": (0, 44),
    "table-11": (0, 20),
    "table-12": (88, 0),
    "table-13": (32, 0),
    "figure-9": (12, 18),
    "figure-10": (0, 10),
    "figure-11": (88, 0),
}

# Printed means that are not those of their rows.
CONTRADICTIONS = {("table-2", "rar", 2), ("table-7", "rar", 2), ("table-13", "upper-bound", None)}


def table(name: str) -> Published:
    found = published(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", NAMES)
def test_counts(name: str) -> None:
    values = [value for row in table(name).rows for value in row["values"]]
    known = sum(value is not None for value in values)
    assert (known, len(values) - known) == COUNTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_as_wide_as_the_table_and_says_why_it_has_gaps(name: str) -> None:
    found = table(name)
    assert set(found.columns) <= {*BENCHMARKS, "lvis", "v3det"}
    keys = [(row["row"], json.dumps(row["at"]), row["metric"]) for row in found.rows]
    assert len(set(keys)) == len(keys)
    for row in found.rows:
        assert len(row["values"]) == len(found.columns)
        assert bool(row.get("why")) == (None in row["values"])
        if row["metric"] != "categories":
            assert all(0 < value < 100 for value in row["values"] if value is not None)


def test_recomputed_means_are_the_printed_ones_but_for_known_contradictions() -> None:
    differing, compared = set(), 0
    for name in NAMES:
        for row in table(name).rows:
            place = row["row"], row["at"], row["metric"]
            mean, printed = table(name).mean(*place), table(name).printed_mean(*place)
            if mean is None or printed is None:
                continue
            compared += 1
            if 100 * abs(mean - printed) > 0.06 + 1e-9:
                differing.add((name, row["row"], row["at"].get("shots")))
    assert compared == 10 + 4 + 6 + 10 + 2 + 4 + 8
    assert differing == CONTRADICTIONS - {("table-2", "rar", 2)}  # Table 2 has 4 and 8 shots alone


def test_contradictions_are_told() -> None:
    assert any("57.4" in note and "56.4" in note for note in table("table-7").notes)
    assert any("+11.1" in note for note in table("table-7").notes)
    for name in ("table-5", "table-9"):
        assert any("88.1" in note and "87.2" in note for note in table(name).notes)
    assert any("95.8" in note for note in table("table-13").notes)


@pytest.mark.parametrize(
    ("name", "row", "column", "at", "metric", "percent"),
    [
        ("table-1", "finer", "stanford_cars", {}, "cacc", 49.2),
        ("table-1", "rar", "oxford_pets", {}, "sacc", 74.8),
        ("table-1", "cased", "flowers102", {}, "cacc", 67.2),
        ("table-1", "blip-2", "stanford_dogs", {}, "sacc", 58.6),
        ("table-1", "wordnet-clip", "cub200", {}, "sacc", 57.7),
        ("table-2", "rar", "dtd", {"shots": 4}, "top1", 53.9),
        ("table-2", "mllm-tuned", "food101", {"shots": 8}, "top1", 72.5),
        ("table-3", "clip", "lvis", {}, "APr", 40.6),
        ("table-3", "rar-internlm", "lvis", {}, "AP", 57.1),
        ("table-4", "rar-internlm", "v3det", {}, "AP", 11.3),
        ("table-5", "rar-first", "food101", {}, "top1", 88.1),
        ("table-5", "internlm-in-context", "ucf101", {}, "top1", 66.1),
        ("table-7", "knn", "flowers102", {"shots": 16}, "top1", 92.1),
        ("table-7", "mllm-tuned", "flowers102", {"shots": 2}, "top1", 10.03),
        ("table-7", "rar", "raf_db", {"shots": 1}, "top1", 34.8),
        ("table-8", "knn", "raf_db", {}, "top5", 48.0),
        ("table-9", "gpt-4v", "eurosat", {}, "top1", 36.2),
        ("table-9", "rar-qwen", "food101", {}, "top1", 87.2),
        ("table-9", "rar", "stanford_cars", {}, "top1", 72.6),
        ("table-12", "blur", "lvis", {"scale": 1.6}, "AP", 53.9),
        ("table-12", "plain", "lvis", {"scale": 1.2}, "AP", 47.0),
        ("table-12", "blur", "lvis", {"scale": 2.8}, "APs", 47.4),
        ("table-12", "blur", "lvis", {"scale": 1.0}, "APl", 72.4),
        ("table-13", "rar", "flowers102", {"k": 3}, "top1", 96.2),
        ("table-13", "upper-bound", "dtd", {"k": 5}, "top1", 89.0),
        ("table-13", "mllm", "oxford_pets", {"k": 7}, "top1", 28.9),
        ("figure-9", "knn", "ucf101", {}, "recall1", 64.6),
        ("figure-11", "plain", "lvis", {"scale": 3.0}, "APm", 38.5),
    ],
)
def test_spot_values(name: str, row: str, column: str, at: dict[str, float], metric: str, percent: float) -> None:
    assert table(name).value(row, column, at, metric) == pytest.approx(percent / 100)


def test_counts_are_no_shares() -> None:
    assert table("table-6").value("facts", "imagenet", {}, "categories") == 1000
    assert table("table-6").value("facts", "v3det", {}, "categories") == 13204


def test_printed_means_are_kept_apart() -> None:
    for shots, row, percent in ((4, "knn", 65.0), (4, "rar", 69.9), (8, "knn", 70.8), (8, "rar", 75.5)):
        at = {"shots": shots}
        assert table("table-10").printed_mean(row, at, "top1") == pytest.approx(percent / 100)
        assert table("table-10").mean(row, at, "top1") is None
    assert table("table-11").printed_mean("rar", {"k": 5}, "top1") == pytest.approx(0.8519)
    two_shots = table("table-7").mean("rar", {"shots": 2}, "top1")
    assert two_shots == pytest.approx(0.56427, abs=1e-5)
    assert table("table-7").printed_mean("rar", {"shots": 2}, "top1") == pytest.approx(0.574)


def test_means_over_some_columns() -> None:
    found = table("table-13")
    assert found.mean("knn", {}, "top1", ["dtd", "eurosat"]) == pytest.approx((0.684 + 0.905) / 2)
    assert found.mean("knn", {}, "top1", ["dtd", "imagenet"]) is None
    assert table("table-7").mean("mllm-tuned", {"shots": 4}, "top1") is None
    assert table("table-7").printed_mean("mllm-tuned", {"shots": 4}, "top1") is None


def test_what_is_missing_has_a_reason() -> None:
    found = table("table-7")
    assert found.value("mllm-tuned", "imagenet", {"shots": 1}, "top1") is None
    assert "context" in str(found.reason("mllm-tuned", "imagenet", {"shots": 1}, "top1"))
    assert found.reason("mllm-tuned", "dtd", {"shots": 1}, "top1") is None
    assert found.reason("fused", "dtd", {"shots": 1}, "top1") is None
    assert "between 56.2 and 57.1" in str(table("table-3").reason("rar-qwen", "lvis", {}, "AP"))


def test_what_the_paper_lacks() -> None:
    assert published("table-14") is None
    assert published("vocabulary") is None
    found = table("table-7")
    assert found.value("rar", "imagenet", {"shots": 32}, "top1") is None
    assert found.value("rar", "birds", {"shots": 4}, "top1") is None
    assert found.value("rar", "imagenet", {"shots": 4}, "top5") is None
    assert table("table-2").value("rar", "imagenet", {"shots": 1}, "top1") is None


def test_specs_and_figures_fit_each_other() -> None:
    for name in (*EXPERIMENTS, *ALIASES):
        if name == "vocabulary":
            continue
        spec, found = spec_of(name, "paper"), table(spec_of(name, "paper").paper)
        assert published(name) is not None
        assert {column.key for column in spec.columns} <= set(found.columns)
        printed = {row["row"] for row in found.rows} & {row.key for row in spec.rows}
        assert printed, name
        assert {row.key for row in spec.rows if not row.extra} - {row["row"] for row in found.rows} <= {"mllm", "knn"}


def test_the_file_is_one_table_a_name_and_lies_beside_the_module() -> None:
    names = json.loads(Path(module.__file__).with_name("paper.json").read_text(encoding="utf-8"))
    assert set(names) == set(NAMES)
