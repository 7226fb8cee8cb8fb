"""The measurement of the embedded models: what its tables say of figures made up."""

import pytest

from rarvision.embedded.measure import Row, bars, markdown, write_card


def _rows(**changed):
    figures = {f"{kind} top-1": 60.0 for kind in ("1-NN", "class means", "zero-shot text")} | {"fused top-1": 70.0}
    for strategy in ("likelihood", "choice", "generate, free"):
        figures[f"RAR {strategy}"] = 90.0
    figures |= {"complete permutations: generate, free": 96.0, "complete permutations: generate, constrained": 100.0}
    for strategy in ("likelihood", "choice", "generate"):
        figures |= {
            f"control {strategy}": 95.0,
            f"control {strategy}, shuffled": 94.0,
            f"control {strategy}, image swapped": 21.0,
        }
    return [Row(name, (value,)) for name, value in (figures | changed).items()]


def _line(table, start):
    return next(line for line in table.splitlines() if line.startswith(f"| {start}"))


def test_all_bars_reached_are_unmarked():
    table = bars({"birds": _rows(), "aircraft": _rows()})
    assert "!" not in table
    assert _line(table, "likelihood, over 1-NN").endswith("| 30.0 | 30.0 |")
    assert _line(table, "choice, over retrieval").endswith("| 20.0 | 20.0 |")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"RAR choice": 74.0}, "choice, over 1-NN"),
        ({"class means top-1": 83.0}, "likelihood, over retrieval"),
        ({"complete permutations: generate, free": 94.9}, "complete lists, free"),
        ({"complete permutations: generate, constrained": 99.9}, "complete lists, constrained"),
        ({"control generate, shuffled": 93.0}, "generate: cost of shuffling"),
        ({"control likelihood, image swapped": 40.0}, "likelihood: image swapped"),
    ],
)
def test_a_bar_that_is_missed_is_marked(changed, line):
    table = bars({"birds": _rows(**changed)})
    assert _line(table, line).endswith("!** |")


def test_the_held_out_domain_has_its_own_bars():
    changed = {"RAR likelihood": 71.0, "RAR choice": 69.0}
    table = bars({"birds": _rows(**changed), "aircraft": _rows(**changed)})
    assert _line(table, "likelihood, over 1-NN").endswith("| **11.0 !** | 11.0 |")
    assert _line(table, "choice, over retrieval").endswith("| **-1.0 !** | **-1.0 !** |")


def test_tables_give_mean_and_spread_and_go_between_the_marks(tmp_path):
    table = markdown({"birds": [Row("1-NN", (60.0, 64.0))], "fish": [Row("RAR", (90.0,))]})
    assert _line(table, "1-NN") == "| 1-NN | 62.0 ± 2.0 |  |"
    assert _line(table, "RAR") == "| RAR |  | 90.0 |"
    card = tmp_path / "card.md"
    card.write_text("before\n<!-- figures: begin -->\nold\n<!-- figures: end -->\nafter\n")
    write_card(card, table)
    assert "old" not in card.read_text()
    assert card.read_text().startswith("before")
    assert card.read_text().endswith("after\n")
    assert table in card.read_text()
