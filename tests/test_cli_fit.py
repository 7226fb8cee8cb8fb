"""``rarvision fit``, and what --gate and --unknown make of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cli_world import fakes, lines, run

__all__ = ["fakes", "run"]  # fixtures


@pytest.fixture
def many(run, tmp_path):
    for c in range(8):
        folder = tmp_path / "many" / f"c{c}"
        folder.mkdir(parents=True)
        for n in range(6):
            pixels = np.random.default_rng(c).integers(0, 256, (12, 12, 3)).astype(int)
            pixels += np.random.default_rng([c, n]).integers(-90, 90, (12, 12, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{n}.png")
    run("memory", "create", tmp_path / "many.memory", tmp_path / "many", "--quiet")
    return tmp_path / "many.memory"


def test_it_says_what_it_found_and_keeps_it(run, many, tmp_path):
    command = ["-m", many, "--ranker", "some/mllm", "--strategy", "choice", "--k", 4]
    dry = run("fit", *command, "--dry-run", "--json")
    (found,) = lines(dry)
    assert found["mix"]["status"] == "fitted"
    assert "nothing was kept" in dry.stderr
    photo = tmp_path / "many" / "c3" / "1.png"
    (record,) = lines(run("recognize", photo, *command, "--json"))
    assert record["fit"] == "unfitted"
    told = run("fit", *command)
    assert "weight" in told.stdout
    assert "kept with" in told.stderr
    (record,) = lines(run("recognize", photo, *command, "--json"))
    assert record["fit"] == "fitted"
    (record,) = lines(run("recognize", photo, *command, "--json", "--no-fit"))
    assert record["fit"] == "unfitted"
    (record,) = lines(run("recognize", photo, *command, "--json", "--unknown", "auto"))
    assert record["unknown"] is False
    (record,) = lines(run("recognize", photo, *command, "--json", "--unknown", "1e-9"))
    assert record["unknown"] is True
    shown = run("recognize", photo, *command, "--unknown", "1e-9").stdout
    assert shown.index("unknown") < shown.index("c3  ")


def test_unknown_without_a_ranker(run, many, tmp_path):
    (found,) = lines(run("fit", "-m", many, "--k", 4, "--json"))
    assert found["mix"]["ranker"] is None
    photo = tmp_path / "many" / "c3" / "1.png"
    (record,) = lines(run("recognize", photo, "-m", many, "--k", 4, "--unknown", "auto", "--json"))
    assert (record["unknown"], record["fit"]) == (False, "fitted")


def test_evaluate_counts_foreign_images(run, many, tmp_path):
    rows = ["image,label", *(f"many/c{c}/{n}.png,c{c}" for c in range(8) for n in range(2)), "many/c0/3.png,stranger"]
    (tmp_path / "test.csv").write_text("\n".join(rows) + "\n")
    (report,) = lines(run("evaluate", tmp_path / "test.csv", "-m", many, "--k", 4, "--unknown", "0.9999", "--json"))
    assert (report["n"], report["foreign"], report["rejected"], report["foreign_rejected"]) == (17, 1, 0, 0)
    assert report["open_top1"] == report["top1"] == report["top1_accepted"]
    assert 0.0 <= report["unknown_auroc"] <= 1.0
    assert report["call_rate"] is None
    coverage, risk = report["risk_coverage"]
    assert coverage[-1] == 1.0
    assert risk[-1] == pytest.approx(1 - report["top1"])
    (report,) = lines(run("evaluate", tmp_path / "test.csv", "-m", many, "--k", 4, "--unknown", "1e-9", "--json"))
    assert (report["rejected"], report["foreign_rejected"]) == (17, 1)
    assert report["open_top1"] == pytest.approx(1 / 17)
    assert report["top1_accepted"] is None
    drawn = run("evaluate", tmp_path / "test.csv", "-m", many, "--k", 4, "--plot", tmp_path / "risk.svg")
    assert "1, called unknown 0" in drawn.stdout
    assert (tmp_path / "risk.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gate", "auto"], "--gate does not go with fit"),
        (["--ranker-weight", "2"], "--ranker-weight does not go with fit"),
        (["--debias", "64"], "a prior that is there already"),
        (["--repeats"], "--repeats does not go with fit"),
        (["--foreign", "0"], "foreign_share must lie between 0 and 1"),
        (["--views", "flip"], "views='whole'"),
        (["--plot", "x.gif"], "written as .png or .svg"),
    ],
)
def test_what_does_not_go_together_is_said_at_once(run, many, options, said):
    ended = run("fit", "-m", many, "--ranker", "some/mllm", *options, code=2)
    assert said in ended.stderr


@pytest.mark.parametrize("value", ["7", "0", "x"])
def test_gates_out_of_range(run, many, tmp_path, value):
    photo = tmp_path / "many" / "c3" / "1.png"
    ended = run("recognize", photo, "-m", many, "--ranker", "some/mllm", "--gate", value, code=2)
    assert "--gate must be off, auto, or a number above 0 and at most 1" in ended.stderr
    assert json.dumps(value)[1:-1] in ended.stderr


def test_a_gate_needs_a_fit(run, many, tmp_path):
    photo = tmp_path / "many" / "c3" / "1.png"
    ended = run("recognize", photo, "-m", many, "--ranker", "some/mllm", "--gate", "auto", code=2)
    assert "nothing was fitted on this memory for these settings" in ended.stderr
    ended = run("recognize", photo, "-m", many, "--unknown", "auto", code=2)
    assert "there is no fitted threshold" in ended.stderr


def test_a_fit_goes_along_when_a_memory_migrates(run, many, tmp_path):
    run("fit", "-m", many, "--k", 4)
    run("memory", "migrate", many, tmp_path / "elsewhere.memory")
    photo = tmp_path / "many" / "c3" / "1.png"
    (record,) = lines(run("recognize", photo, "-m", tmp_path / "elsewhere.memory", "--k", 4, "--json"))
    assert record["fit"] in ("fitted", "stale")
