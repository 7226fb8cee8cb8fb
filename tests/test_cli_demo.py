"""``rarvision demo``: what its figures mean, and its picture."""

import json
import re

import pytest
from typer.testing import CliRunner

from rarvision.cli.main import app
from rarvision.errors import OptionError
from rarvision.picture import draw_panels


def demo(*arguments):
    shared = ["--no-picture", "--json", "--categories", "50", "--shots", "1", "--queries", "20"]
    result = CliRunner().invoke(app, ["demo", *shared, *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_recall_at_5_is_measured_at_5_whatever_k_is():
    one, five = demo("--k", "1"), demo("--k", "5")
    for method in ("knn_recall_at_5", "recall_at_5", "retrieval_top1", "knn_top1"):
        assert one[method] == five[method], method
    assert one["recall_at_5"] > one["retrieval_top1"]
    assert one["rar_recall_at_5"] == one["rar_top1"] == one["retrieval_top1"]  # it answers one name, retrieval's
    assert five["rar_recall_at_5"] == five["recall_at_5"]


def test_a_picture_of_nothing_is_refused(tmp_path):
    with pytest.raises(OptionError, match="at least one panel"):
        draw_panels([], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_more_categories_than_there_are():
    result = CliRunner().invoke(app, ["demo", "--no-picture", "--domain", "fish", "--categories", "100000"])
    assert result.exit_code == 2
    expected = r"--categories\) must be at most [\d,]+, which is what fish has for tests; got 100,000\n"
    assert re.search(expected, result.stderr)
