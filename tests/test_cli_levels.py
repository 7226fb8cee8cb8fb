"""Taxonomies, name encoders and intervals on the command line."""

import json

import pytest

from cli_world import COLOURS, lines, table
from tiny_encoders import sentence_model


@pytest.fixture
def tones(tmp_path):
    path = tmp_path / "tones.csv"
    path.write_text("tone,colour\n" + "".join(f"{'warm' if c in 'red yellow' else 'cold'},{c}\n" for c in COLOURS))
    return path


def test_recognize_says_the_levels(run, memory, photos, tones, tmp_path):
    file = tmp_path / "out.csv"
    result = run("recognize", photos, "-m", memory, "--taxonomy", tones, "--sure", 0.2, "--json", "--csv", file)
    for record in lines(result):
        tone, colour = record["levels"]
        assert (tone["level"], colour["level"]) == ("tone", "colour")
        assert tone["probability"] >= colour["probability"] > 0
        assert record["sure"] == (colour if colour["probability"] >= 0.2 else tone)
        assert record["outside"] == []
    rows = table(file)
    assert {row["sure_level"] for row in rows} <= {"tone", "colour"}
    assert "sure of the " in run("recognize", photos, "-m", memory, "--taxonomy", tones, "--sure", 0.2).stdout
    assert "sure of no level" in run("recognize", photos, "-m", memory, "--taxonomy", tones, "--sure", 1.0).stdout
    alone = run("recognize", photos / "red.png", "-m", memory, "--taxonomy", tones, "--sure", 0.2).stdout
    assert "(sure)" in alone
    assert "levels" not in lines(run("recognize", photos, "-m", memory, "--json"))[0]


def test_evaluate_says_the_levels_and_intervals(run, memory, tree, tones, tmp_path):
    report = json.loads(run("evaluate", tree, "-m", memory, "--taxonomy", tones, "--json").stdout)
    assert list(report["levels"]) == ["tone", "colour"]
    assert report["levels"]["tone"]["top1"] == 1.0
    assert report["sure"]["threshold"] == 0.9
    assert {"top5", "recall5", "retrieval_top1", "mean_per_class", "cacc", "sacc"} == set(report["intervals"])
    assert report["cacc"] == report["sacc"] == 1.0
    text = run("evaluate", tree, "-m", memory, "--taxonomy", tones, "--csv", tmp_path / "r.csv").stdout
    assert "right at tone" in text
    assert "cACC" not in text, "every label is in the memory"
    (row,) = table(tmp_path / "r.csv")
    assert float(row["intervals_mean_per_class_low"]) == float(row["levels_tone_top1"]) == 1.0


def test_names_that_were_guessed(run, memory, tree, tmp_path):
    for colour in COLOURS:
        (tree / colour).rename(tree / f"{colour} thing")
    text = run("evaluate", tree, "-m", memory).stdout
    assert "cACC" in text
    assert "not meaning" in text
    folder = sentence_model(tmp_path / "sentences")
    report = json.loads(run("evaluate", tree, "-m", memory, "--name-encoder", folder, "--json").stdout)
    assert (report["top1"], report["cacc"], report["name_encoder"]) == (
        0.0,
        1.0,
        f"{folder} (mean over the tokens, assumed)",
    )
    report = json.loads(run("evaluate", tree, "-m", memory, "--name-encoder", "memory", "--json").stdout)
    assert report["name_encoder"] == "text tower of fake"
    assert "no model folder" in run("evaluate", tree, "-m", memory, "--name-encoder", "./none", code=4).stderr


def test_metadata_and_the_field_guide(run, tree, tmp_path):
    listed = tmp_path / "train.csv"
    rows = [
        f"{tree}/{c}/{shot}.png,{c},{'warm' if c in 'red yellow' else 'cold'}" for c in COLOURS for shot in range(3)
    ]
    listed.write_text("image,label,tone\n" + "\n".join(rows))
    run("memory", "create", tmp_path / "m", listed, "--quiet")
    report = json.loads(run("evaluate", tree, "-m", tmp_path / "m", "--taxonomy", "metadata:tone", "--json").stdout)
    assert list(report["levels"]) == ["tone", "category"]
    refused = {
        "metadata:": "expects keys",
        "metadata:nothing": "nothing says the nothing of",
        "fieldguide": "lacks 5 of the memory's categories",
        "none.csv": "no such file",
    }
    for spec, message in refused.items():
        assert message in run("evaluate", tree, "-m", tmp_path / "m", "--taxonomy", spec, code=2).stderr


def test_what_does_not_go_together(run, memory, tree, tones):
    for options, message in {
        ("--sure", "0.5"): "goes with --taxonomy",
        ("--sure", "auto"): "goes with --taxonomy",
        ("--sure", "x", "--taxonomy", tones): "probability above 0",
        ("--sure", "auto", "--taxonomy", tones): "nothing was fitted",
        ("--taxonomy", tones, "-r", "x", "--audit-order", "2"): "do not go with --audit-order",
    }.items():
        assert message in run("evaluate", tree, "-m", memory, *options, code=2).stderr
    assert (
        "--sure does not go with fit" in run("fit", "-m", memory, "--sure", "0.5", "--taxonomy", tones, code=2).stderr
    )


def test_fit_says_why_there_is_no_threshold(run, memory, tones):
    report = json.loads(run("fit", "-m", memory, "--taxonomy", tones, "--json").stdout)
    assert report["sure"] is None
    assert "at least 40 are needed" in report["sure_reason"]
    assert "no threshold: 30 images" in run("fit", "-m", memory, "--taxonomy", tones).stdout
