"""The commands reproduce, report and name, on the field guide and on photos; with bad input, too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cli_world import picture

SMALL = ("--field-guide", "--quick", "--datasets", "aircraft", "--limit", "6")


def test_without_a_name_the_experiments_are_listed(run):
    text = run("reproduce").stdout
    for name in ("table-1", "table-13", "figure-10", "vocabulary", "figure-11"):
        assert name in text
    lines = [json.loads(line) for line in run("reproduce", "--json").stdout.splitlines()]
    assert {"experiment", "title", "source", "question"} == set(lines[0])


def test_an_experiment_and_its_report(run, tmp_path):
    run("reproduce", "table-8", *SMALL, "--out", tmp_path)
    folder = tmp_path / "table-8"
    for name in ("experiment.json", "outcomes.jsonl", "table.md", "table.csv", "report.html"):
        assert (folder / name).is_file(), name
    assert "RAR" in (folder / "table.md").read_text()
    page = (folder / "report.html").read_text()
    again = run("report", tmp_path, "--json").stdout
    found = json.loads(again)
    assert found["experiment"] == "table-8"
    assert {outcome["row"] for outcome in found["outcomes"]} == {"knn", "fused", "rar", "rar-mixed"}
    assert found["verdicts"]
    assert (folder / "report.html").read_text() == page, "the folder is all that a report needs"
    before = (folder / "outcomes.jsonl").read_text()
    run("reproduce", "table-8", *SMALL, "--out", tmp_path)
    assert (folder / "outcomes.jsonl").read_text() == before


def test_several_and_figures(run, tmp_path):
    run("reproduce", "figure-10", "figure-9", *SMALL, "--out", tmp_path, "--seeds", "3")
    assert (tmp_path / "figure-10" / "figure.png").stat().st_size > 5_000
    assert "<svg" in (tmp_path / "figure-9" / "report.html").read_text()
    lines = (tmp_path / "figure-10" / "outcomes.jsonl").read_text().splitlines()
    assert {json.loads(line)["seed"] for line in lines} == {3}


def test_a_part_by_shots(run, tmp_path):
    run("reproduce", "table-2", *SMALL, "--out", tmp_path, "-r", "none")
    lines = [json.loads(line) for line in (tmp_path / "table-7" / "outcomes.jsonl").read_text().splitlines()]
    assert {line["at"].get("shots") for line in lines} == {4, 8, None}
    assert {line["why"] for line in lines if line["row"] == "rar"} == {"no MLLM was given (--ranker)"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table-70", "--field-guide"), "did you mean table-7?"),
        (("table-7", "--field-guide", "--datasets", "cats"), "table-7 has birds, fish, flowers, butterflies, aircraft"),
        (("table-7", "--field-guide", "--shots", "four"), "--shots must be numbers"),
        (("table-7", "--field-guide", "--shots", "0"), "--shots must be at least 1"),
        (("table-8", "--field-guide", "--shots", "1,2"), "takes one number"),
        (("table-3", "--field-guide", "--seeds", "a"), "--seeds must be numbers"),
        (("table-7", "--quick"), "--quick goes with --field-guide"),
        (("vocabulary",), "--field-guide"),
        (("table-7", "--field-guide", "--data-root", "."), "goes without --field-guide"),
        (("table-1", "--field-guide", "--words", "w.txt"), "go without --field-guide"),
        (("table-7", "--data-root", "nowhere"), "no such folder"),
    ],
)
def test_what_is_asked_for_wrongly(run, tmp_path, arguments, message):
    result = run("reproduce", *arguments, "--out", tmp_path / "results", code=2)
    assert message in result.stderr
    assert not (tmp_path / "results").exists()


def test_results_of_other_settings_are_refused_or_made_anew(run, tmp_path):
    run("reproduce", "figure-9", *SMALL, "--out", tmp_path)
    refused = run("reproduce", "figure-9", *SMALL, "--strategy", "choice", "--out", tmp_path, code=2)
    assert "strategy: 'auto' there, 'choice' now" in refused.stderr
    run("reproduce", "figure-9", *SMALL, "--strategy", "choice", "--out", tmp_path, "--no-resume")
    (tmp_path / "table-8").mkdir()
    (tmp_path / "table-8" / "mine.txt").write_text("precious")
    refused = run("reproduce", "table-8", *SMALL, "--out", tmp_path, "--no-resume", code=2)
    assert "something else than results" in refused.stderr
    assert (tmp_path / "table-8" / "mine.txt").read_text() == "precious"


def test_reports_of_nothing(run, tmp_path):
    assert "no such folder" in run("report", tmp_path / "nowhere", code=2).stderr
    assert "holds no results" in run("report", tmp_path, code=2).stderr


def test_data_sets_that_are_not_there(run, tmp_path):
    result = run("reproduce", "table-8", "--data-root", tmp_path, "--datasets", "dtd", "--out", tmp_path / "o", code=2)
    assert "rarvision datasets info dtd" in result.stderr


def test_one_that_fails_does_not_stop_the_others(run, tmp_path):
    common = ("--field-guide", "--quick", "--limit", "4", "--datasets", "aircraft", "--out", tmp_path)
    (tmp_path / "table-8").mkdir(parents=True)
    (tmp_path / "table-8" / "outcomes.jsonl").write_text("\n")
    result = run("reproduce", "table-8", "figure-9", *common, code=2)
    assert "table-8: " in result.stderr
    assert "1 of 2 experiments stopped" in result.stderr
    assert (tmp_path / "figure-9" / "report.html").is_file()


@pytest.mark.slow
def test_killed_and_interrupted_it_goes_on(tmp_path):
    command = [
        sys.executable, "-m", "rarvision", "reproduce", "figure-10", "--field-guide", "--quick", "--datasets",
        "aircraft,butterflies", "--limit", "16", "--out", str(tmp_path / "results"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    images = tmp_path / "results" / "figure-10" / "images"

    def lines():
        return sum(len(path.read_bytes().splitlines()) for path in images.glob("*")) if images.exists() else 0

    for kill in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        before = lines()
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        while lines() < before + 25 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(kill)
        _, error = process.communicate(timeout=120)
        assert process.returncode in (-9, 130, 0)
        if process.returncode == 130:
            assert "the same command goes on with figure-10" in error
    whole = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    fresh = [*command[:-1], str(tmp_path / "fresh")]
    subprocess.run(fresh, env=environment, check=True, capture_output=True)
    assert "MLLM" in whole.stdout

    def measured(name):
        text = (tmp_path / name / "figure-10" / "outcomes.jsonl").read_text()
        kept = [json.loads(line) for line in text.splitlines()]
        return {(each["column"], each["row"], str(each["at"])): each["values"]["top1"] for each in kept}

    assert measured("results") == measured("fresh")


# Naming -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    for number, colour in enumerate(["red", "red", "blue", "green"]):
        picture(tmp_path / "photos" / f"{number}.png", colour, size=12 + number)
    return tmp_path / "photos"


def test_the_nearest_words_name_photos(run, photos, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("red\nblue\ngreen\nyellow\n")
    out, table = tmp_path / "guesses.jsonl", tmp_path / "names.csv"
    common = ("--preset", "wordnet-clip", "--words", words, "-e", "embedded:clip-16", "--output", out)
    found = json.loads(run("name", photos, *common, "--csv", table, "--json").stdout)
    assert len(found["images"]) == 4
    assert sum(found["votes"].values()) == 4
    assert found["images"][0]["name"] == found["images"][1]["name"]
    assert table.read_text().splitlines()[0] == "source,name,guesses,reason"
    assert len(out.read_text().splitlines()) == 5
    text = run("name", photos, *common, "--memory", tmp_path / "memory").stdout
    assert "names of 4 images" in text
    info = json.loads(run("memory", "info", tmp_path / "memory", "--json").stdout)
    assert info["images"] == 4


def test_an_mllm_names_photos(run, photos, fakes, tmp_path):
    result = run("name", photos, "-r", "silent", "-e", "embedded:clip-16", code=2)
    assert "no name was guessed for any of 4 images" in result.stderr
    assert "I cannot say." in result.stderr
    assert fakes["chats"][0].spec == "silent"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "asks a multimodal LLM: say which, with --ranker"),
        (("--preset", "cased"), "needs --captions"),
        (("--preset", "wordnet-clip"), "needs --words"),
        (("--preset", "wordnet-clip", "-r", "x", "--words", "w"), "leave --ranker out"),
        (("-r", "x", "--captions", "c.txt"), "--captions goes with --preset cased"),
        (("-r", "x", "--llm", "y"), "--llm goes with --preset finer"),
        (("--preset", "wordnet-clip", "--words", "nowhere.txt"), "nowhere.txt"),
        (("--preset", "cased", "--captions", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_what_naming_lacks(run, photos, arguments, message):
    assert message in run("name", photos, *arguments, code=2).stderr


def test_no_photos_no_names(run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images there" in run("name", empty, "-r", "x", code=2).stderr


def test_a_broken_photo_is_told_of_and_the_others_are_named(run, photos, tmp_path):
    (photos / "9.png").write_bytes(b"no picture")
    words = tmp_path / "words.txt"
    words.write_text("red\nblue\n")
    result = run(
        "name", photos, "--preset", "wordnet-clip", "--words", words, "-e", "embedded:clip-16", "--json", code=1
    )
    broken = json.loads(result.stdout)["images"][-1]
    assert broken["name"] is None
    assert "9.png" in broken["reason"]
