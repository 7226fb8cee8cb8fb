"""``rarvision recognize``: results, where they go, and runs that go on where they stopped."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from cli_world import COLOURS, lines, picture, table
from rarvision.chat import LocalChat
from rarvision.cli import models
from rarvision.cli import recognize as recognize_module
from rarvision.cli.inputs import image_paths
from rarvision.cli.main import app
from rarvision.cli.output import ResultFile
from rarvision.cli.ranker_options import read_ranker_options
from rarvision.errors import InputError
from rarvision.testing.server import FakeServer


def test_recognize_json_has_the_documented_fields(run, memory, photos):
    result = run("recognize", photos, "--memory", memory, "--k", 3, "--json")
    records = lines(result)
    assert [record["label"] for record in records] == ["blue", "green", "red"]
    assert result.stderr == ""
    for record in records:
        assert set(record) == {
            "source", "label", "probability", "unknown_probability", "unknown", "fit", "candidates", "ranking",
            "retrieval_ms", "ranking_ms",
        }  # fmt: skip
        assert set(record["candidates"][0]) == {"category", "similarity", "probability"}
        assert record["ranking"] == dict.fromkeys(("strategy", "status", "reason", "raw", "unanswered"))
        total = sum(candidate["probability"] for candidate in record["candidates"]) + record["unknown_probability"]
        assert total == pytest.approx(1.0, abs=1e-4)
        assert len(record["candidates"]) == 3


@pytest.mark.parametrize("strategy", ["generate", "choice", "likelihood", "pointwise", "auto"])
def test_recognize_with_a_ranker(run, fakes, memory, photos, strategy):
    command = ["recognize", photos / "red.png", "-m", memory, "--ranker", "some/mllm", "--strategy", strategy]
    (record,) = lines(run(*command, "--ranker-weight", "replace", "--json"))
    assert record["label"] == "blue"  # what the fake chat prefers, whatever it sees
    assert record["ranking"]["status"] == "ranked"
    assert record["ranking"]["strategy"] == (strategy if strategy != "auto" else "likelihood")
    (trusting,) = lines(run(*command, "--ranker-weight", "0", "--json"))
    assert trusting["label"] == "red"


def test_the_ranker_options_arrive(run, fakes, memory, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RARVISION_API_KEY", "secret")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Sort these: {categories}")
    run(
        "recognize", photos / "red.png", "-m", memory, "-r", "http://host/v1", "--ranker-model", "m", "--timeout", "3",
        "--prompt", prompt, "--strategy", "generate", "--constrained",
    )  # fmt: skip
    (wanted,) = fakes["chats"]
    assert (wanted.spec, wanted.model, wanted.api_key, wanted.timeout_s) == ("http://host/v1", "m", "secret", 3.0)
    assert (wanted.strategy, wanted.constrained) == ("generate", True)


def test_the_retrieval_options_arrive(run, memory, photos, monkeypatch):
    seen = []
    real = models.open_recognizer

    @contextmanager
    def spy(path, **options):
        with real(path, **options) as recognizer:
            seen.append(recognizer.settings)
            yield recognizer

    monkeypatch.setattr(recognize_module.models, "open_recognizer", spy)
    command = ["recognize", photos, "-m", memory, "--json"]
    extra = ["--aggregate", "sum", "--hubness", "csls", "--views", "flip+crops", "--text-weight", "auto"]
    assert [r["label"] for r in lines(run(*command, *extra))] == ["blue", "green", "red"]
    assert seen[0]["views"] == "flip+crops"
    wanted = {"aggregate": "sum", "hubness": "csls", "text_weight": "auto"}
    assert wanted.items() <= seen[0]["retriever"].items()
    run(*command, "--text-weight", "0.25")
    assert seen[1]["retriever"]["text_weight"] == 0.25


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--ranker", "some/mllm", "--ranker-model", "m"], "--ranker-model goes with the URL"),
        (["--ranker", "http://host/v1", "--quantization", "4bit"], "--quantization goes with a local model"),
        (["--ranker-weight", "much"], "--ranker-weight must be auto, a number or replace"),
        (["--ranker", "some/mllm", "--prompt", "nope"], "--prompt must be one of paper, in-context, long"),
        (["--text-weight", "much"], "--text-weight must be a number from 0 to 1, or auto, got 'much'"),
        (["--text-weight", "nan"], "--text-weight must lie between 0 and 1, got nan"),
        (["--hubness", "csls", "--aggregate", "vote"], "choose aggregate='blend'"),
        (["--repeats"], "distinct=False"),
        (["--strategy", "choice"], "--strategy needs --ranker"),
        (["--strategy", "generate", "--constrained"], "--strategy, --constrained need --ranker"),
        (["--prompt", "paper"], "--prompt needs --ranker"),
        (["--ranker-weight", "replace"], "--ranker-weight needs --ranker"),
        (["--allow-fallback"], "--allow-fallback needs --ranker"),
        (["--quantization", "4bit"], "--quantization needs --ranker"),
        (["--ranker-model", "m", "--timeout", "9"], "--ranker-model, --timeout need --ranker"),
        (["--ranker-option", "retries=1"], "--ranker-option needs --ranker"),
    ],
)
def test_options_that_contradict(run, memory, photos, extra, message):
    result = run("recognize", photos, "-m", memory, *extra, code=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


OPEN_CHAT = models.open_mllm  # before it is replaced by a fake
SERVED, LOCAL = ["--ranker", "http://host/v1"], ["--ranker", "some/mllm"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([*SERVED, "--ranker-option", "max-token=9"], "has no key 'max_token'; did you mean max_tokens?"),
        ([*SERVED, "--ranker-option", "colour=9"], "has no key 'colour'; known are max_tokens, guided"),
        (
            [*SERVED, "--ranker-option", "retries"],
            "retries needs a value: retries=VALUE, which is a whole number from 0",
        ),
        ([*SERVED, "--ranker-option", "top_logprobs=21"], "must be a whole number from 1 to 20; got '21'"),
        ([*SERVED, "--ranker-option", "extra_body=[1]"], "extra_body must be a JSON object such as"),
        ([*SERVED, "--ranker-option", "dtype=float16"], "dtype goes with a local model as --ranker"),
        ([*LOCAL, "--ranker-option", "guided=regex"], "guided goes with the URL of a server as --ranker"),
        ([*LOCAL, "--ranker-option", "device_map=gpu"], "device_map must be auto, balanced, sequential, or a JSON"),
        ([*LOCAL, "--ranker-option", "max_tokens=9", "-s", "choice"], "max_tokens goes with --strategy generate"),
        ([*LOCAL, "--ranker-option", "max_tokens=9"], "--strategy auto is likelihood with this ranker"),
        ([*LOCAL, "--ranker-option", "dtype=auto", "--ranker-option", "dtype=auto"], "dtype was given twice"),
    ],
)
def test_ranker_options_that_are_refused(run, memory, photos, extra, message):
    result = run("recognize", photos, "-m", memory, *extra, code=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_ranker_options_reach_the_server(memory, photos, monkeypatch):
    monkeypatch.setattr(models, "open_mllm", OPEN_CHAT)
    settings = {
        "guided": "regex",
        "max_tokens": "77",
        "top_logprobs": "3",
        "extra_body": '{"seed": 5, "temperature": null}',
        "concurrency": "1",
        "retries": "1",
    }
    more = [text for item in settings.items() for text in ("--ranker-option", "=".join(item))]
    with FakeServer("['red', 'blue']", faults=["ok", "500"]) as server:
        command = ["recognize", str(photos / "red.png"), "-m", str(memory), "-r", server.url, *more]
        result = CliRunner().invoke(app, [*command, "--strategy", "generate", "--constrained", "--json"])
        assert result.exit_code == 0, result.output
        probe, *asked = server.requests
    assert len(asked) == 2
    assert probe["top_logprobs"] == 3
    assert all((body["max_tokens"], body["seed"]) == (77, 5) and "regex" in body for body in asked)
    assert all("temperature" not in body for body in asked)


def test_ranker_options_reach_a_local_model(monkeypatch):
    seen = {}
    monkeypatch.setattr(LocalChat, "__init__", lambda self, model, **given: seen.update(given))
    monkeypatch.setattr(models, "quiet_transformers", lambda: None)
    more = read_ranker_options(["dtype=bfloat16", 'device_map={"": "cpu"}', "max_tokens=3"], served=False)
    wanted = models.RankerOptions(spec="some/mllm", strategy="generate", more=more)
    models.open_mllm(wanted, device="auto", batch_size=4)
    assert (seen["dtype"], seen["device_map"]) == ("bfloat16", {"": "cpu"})
    assert "max_tokens" not in seen


def test_a_prompt_that_is_no_text(run, memory, photos, tmp_path):
    prompt = tmp_path / "prompt.txt"
    command = ["recognize", photos / "red.png", "-m", memory, "-r", "some/mllm", "--strategy", "generate"]
    prompt.write_text("Sort: {categories}", encoding="utf-16")
    result = run(*command, "--prompt", prompt, code=2)
    assert f"--prompt {prompt}: the file is not UTF-8 text" in result.stderr
    assert "save it as UTF-8" in result.stderr
    assert result.stderr.count("\n") == 1
    prompt.write_text("Sort: {categories}", encoding="utf-8-sig")
    assert models.read_prompt(str(prompt)) == "Sort: {categories}"
    run(*command, "--prompt", prompt)


def test_probabilities_follow_the_calibration(run, memory, photos, tmp_path):
    command = ["recognize", photos / "red.png", "-m", memory, "--json"]
    (default,) = lines(run(*command))
    file, out = tmp_path / "calibration.json", tmp_path / "out.jsonl"
    file.write_text('{"prior_temperature": 1000, "unknown_intercept": -50, "fitted": true}')
    (flat,) = lines(run(*command, "--calibration", file, "--output", out))
    assert flat["label"] == default["label"] == "red"
    assert [candidate["probability"] for candidate in flat["candidates"]] == pytest.approx([0.2] * 5, abs=1e-3)
    assert "other settings" in run(*command, "--output", out, code=2).stderr
    report = json.loads(run("evaluate", photos.parent / "train", "-m", memory, "--calibration", file, "--json").stdout)
    assert report["configuration"]["calibration"]["prior_temperature"] == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prior_temperature: 1", "expected a JSON object, got something else"),
        ("[1]", "expected a JSON object with some of prior_temperature"),
        ('{"temperature": 1}', "got 'temperature'"),
        ('{"prior_temperature": "1"}', "prior_temperature must be a number, got '1'"),
        ('{"prior_temperature": true}', "prior_temperature must be a number, got True"),
        ('{"fitted": 1}', "fitted must be true or false, got 1"),
        ('{"prior_temperature": 0}', "must be above 0"),
        (None, "No such file"),
    ],
)
def test_calibrations_that_are_refused(run, fakes, memory, photos, tmp_path, text, message):
    asked = len(fakes["encoders"])
    file = tmp_path / "calibration.json"
    if text is not None:
        file.write_text(text)
    result = run("recognize", photos, "-m", memory, "--calibration", file, code=2)
    assert message in result.stderr
    assert str(file) in result.stderr or "above 0" in message
    assert result.stderr.count("\n") == 1
    assert len(fakes["encoders"]) == asked


def test_a_bad_image_never_stops_the_others(run, memory, photos):
    (photos / "aaa.png").write_bytes(b"not an image")
    (photos / "empty.jpg").touch()
    result = run("recognize", photos, photos / "missing.png", photos / "x*.png", "-m", memory, "--json", code=1)
    records = lines(result)
    assert ["error" in record for record in records] == [True, False, True, False, False, True, True]
    assert all(set(record) == {"source", "error"} for record in records if "error" in record)
    assert result.stderr.count("\n") == 4
    assert "Traceback" not in result.stderr


def test_a_list_on_standard_input(run, memory, photos):
    names = [str(photos / "red.png"), str(photos / "blue.png")]
    result = run("recognize", "-", "-m", memory, "--json", input="\n".join(names) + "\n\n")
    assert [record["source"] for record in lines(result)] == names
    strange = picture(photos / "two\nlines.png", "green")
    result = run("recognize", "-", "-0", "-m", memory, "--json", input=f"{names[0]}\0{strange}\0")
    assert [record["source"] for record in lines(result)] == [names[0], str(strange)]


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        (["-"], "", "which is empty; pipe image paths into it"),
        (["-", "-0"], "\0\0", "which is empty"),
        (["-", "-"], "x.png\n", "got - several times"),
        (["x.png", "-0"], "", "name that list as -"),
        (["-"], "a.png\0b.png\0", "holds NUL bytes; give -0"),
        (["-"], "a.png\n".encode("utf-16"), "write the list in UTF-8"),
    ],
)
def test_lists_that_are_refused_before_anything_is_loaded(run, fakes, tmp_path, arguments, given, message):
    result = run("recognize", *arguments, "-m", tmp_path / "nowhere", code=2, input=given)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert fakes["encoders"] == []


def test_names_in_a_list_may_be_any_bytes(run, memory, photos):
    odd = (photos / "red.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    (record,) = lines(run("recognize", "-", "-m", memory, "--json", input=os.fsencode(odd) + b"\r\n"))
    assert (record["source"], record["label"]) == (str(odd), "red")


class Broken(io.RawIOBase):
    def readable(self):
        return True

    def readinto(self, _buffer):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_no_list_where_standard_input_is_closed_a_terminal_or_unreadable(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="which is closed; pipe image paths"):
        image_paths(["-"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Broken())))
    with pytest.raises(InputError, match="cannot be read: Input/output error"):
        image_paths(["-"])
    terminal, other_end = os.openpty()
    with os.fdopen(terminal, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(InputError, match="which is a terminal"):
            image_paths(["-"])
    os.close(other_end)


def test_larger_images_are_refused_where_asked(run, memory, photos, monkeypatch):
    monkeypatch.setenv("RARVISION_MAX_PIXELS", "")  # restored afterwards: the option sets it for the process
    result = run("recognize", photos / "red.png", "-m", memory, "--max-pixels", 399, "--json", code=1)
    assert "limit of 399" in lines(result)[0]["error"]
    assert lines(run("recognize", photos / "red.png", "-m", memory, "--max-pixels", 400, "--json"))[0]["label"] == "red"


def test_people_see_a_table_or_a_line_an_image(run, memory, photos):
    alone = run("recognize", photos / "red.png", "-m", memory).stdout
    assert "none of these" in alone
    assert "probability" in alone
    several = run("recognize", photos, "-m", memory).stdout.splitlines()
    assert len(several) == 3
    assert several[2].startswith(f"{photos / 'red.png'}: red ")


def test_unanswerable_mllm(run, memory, photos):
    command = ["recognize", photos, "-m", memory, "--ranker"]
    result = run(*command, "http://down/v1", "--json", code=4)
    assert "nobody answers" in result.stderr
    assert result.stdout == ""
    kept = lines(run(*command, "http://down/v1", "--allow-fallback", "--json"))
    assert {record["ranking"]["status"] for record in kept} == {"fallback"}
    assert all("nobody answers" in record["ranking"]["reason"] for record in kept)
    assert [record["label"] for record in kept] == ["blue", "green", "red"]
    silent = lines(run(*command, "silent", "--strategy", "generate", "--json"))
    assert {record["ranking"]["status"] for record in silent} == {"fallback"}
    assert silent[0]["ranking"]["raw"] == "I cannot say."


def test_csv(run, memory, photos, tmp_path):
    (photos / "bad.png").touch()
    file = tmp_path / "out" / "table.csv"
    run("recognize", photos, "-m", memory, "--k", 2, "--csv", file, code=1)
    rows = table(file)
    assert [row["label"] for row in rows] == ["", "blue", "green", "red"]
    assert "empty" in rows[0]["error"]
    assert rows[1]["candidate_1"] == "blue"
    assert 0 <= float(rows[1]["probability_2"]) < float(rows[1]["probability_1"])
    assert "candidate_3" not in rows[0]


# Resuming


def test_output_resumes(run, memory, photos, tmp_path, monkeypatch):
    out = tmp_path / "runs" / "out.jsonl"
    command = ["recognize", photos, "-m", memory, "--output", out]
    bad = photos / "bad.png"
    bad.touch()
    run(*command, code=1)
    first = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(first) == 4
    picture(bad, "white")
    picture(photos / "new.png", "yellow")
    with out.open("a") as file:
        file.write('{"source": "cut o')
    asked = []
    real = recognize_module._samples

    def samples(paths, **keywords):
        for sample in real(paths, **keywords):
            asked.append(sample.source)
            yield sample

    monkeypatch.setattr(recognize_module, "_samples", samples)
    result = run(*command, "--json", "--csv", tmp_path / "all.csv")
    assert asked == [str(bad), str(photos / "new.png")]  # what failed, and what is new
    assert [record["label"] for record in lines(result)] == ["white", "yellow"]
    assert "going on after 3 results" in result.stderr
    assert sorted(json.loads(line)["label"] for line in out.read_text().splitlines()) == sorted(
        ["red", "green", "blue", "white", "yellow"]
    )
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 6
    asked.clear()
    run(*command)
    assert asked == []
    run(*command, "--no-resume")
    assert len(asked) == 5


def test_what_the_mllm_did_not_answer_is_asked_again(run, fakes, memory, photos, tmp_path):
    out = tmp_path / "out.jsonl"
    command = ["recognize", photos, "-m", memory, "--allow-fallback", "--output", out, "--ranker"]
    run(*command, "http://down/v1")
    down = [json.loads(line)["ranking"] for line in out.read_text().splitlines()]
    assert [(ranking["status"], ranking["unanswered"]) for ranking in down] == [("fallback", True)] * 3
    assert len(lines(run(*command, "silent", "--strategy", "generate", "--json"))) == 3
    kept = [json.loads(line)["ranking"] for line in out.read_text().splitlines()]
    assert [(ranking["status"], ranking["unanswered"]) for ranking in kept] == [("fallback", False)] * 3
    assert lines(run(*command, "silent", "--strategy", "generate", "--json")) == []


def test_output_of_other_settings_is_refused(run, memory, photos, tmp_path):
    out = tmp_path / "out.jsonl"
    run("recognize", photos, "-m", memory, "--output", out)
    before = out.read_text()
    result = run("recognize", photos, "-m", memory, "--output", out, "--k", 2, code=2)
    assert "other settings" in result.stderr
    run("memory", "remove", memory, "--category", "white")
    assert "another memory" in run("recognize", photos, "-m", memory, "--output", out, code=2).stderr
    assert out.read_text() == before
    out.write_text("some notes\n")
    assert "line 1: not a result of rarvision" in run("recognize", photos, "-m", memory, "-o", out, code=2).stderr
    assert out.read_text() == "some notes\n"


def test_an_image_given_twice_is_done_once_into_a_file(run, memory, photos, tmp_path):
    out = tmp_path / "out.jsonl"
    run("recognize", photos / "red.png", photos, "-m", memory, "--output", out)
    assert len(out.read_text().splitlines()) == 3
    assert len(lines(run("recognize", photos / "red.png", photos / "red.png", "-m", memory, "--json"))) == 2


INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
from rarvision.cli import models, recognize
from rarvision.testing.encoders import FakeEncoder
models.open_encoder = lambda spec, device="auto": FakeEncoder()
real = recognize._samples
def slowly(*args, **kwargs):
    for number, sample in enumerate(real(*args, **kwargs)):
        if number >= 8:
            time.sleep(0.6)
        yield sample
recognize._samples = slowly
from rarvision.cli.main import run
run()
"""


def test_interrupting_loses_nothing(run, memory, tmp_path):
    for number in range(40):
        picture(tmp_path / "many" / f"{number:02}.png", COLOURS[number % 5])
    out = tmp_path / "out.jsonl"
    command = ["recognize", str(tmp_path / "many"), "-m", str(memory), "--output", str(out), "--batch-size", "2"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *command], stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 60
    while (not out.exists() or len(out.read_text().splitlines()) < 4) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.strip().endswith("interrupted")
    assert "Traceback" not in stderr
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert 4 <= len(written) < 40
    run(*command)
    assert sorted(json.loads(line)["source"] for line in out.read_text().splitlines()) == sorted(
        str(path) for path in (tmp_path / "many").iterdir()
    )


def test_result_file_refuses_other_files(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a result file"):
        ResultFile(path, settings={})
    path.write_text('{"source": "a"}\n{"source": "b"}\n')
    with pytest.raises(InputError, match="line 1"):
        ResultFile(path, settings={})


def test_another_encoders_memory(run, memory, photos):
    result = run("recognize", photos, "-m", memory, "--encoder", "other", code=3)
    assert "made by" in result.stderr


def test_more_candidates_than_categories(run, memory, photos):
    (record,) = lines(run("recognize", photos / "red.png", "-m", memory, "--k", 50, "--json"))
    assert len(record["candidates"]) == 5


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_results_reach_a_file_while_the_bar_is_on_the_terminal(run, memory, photos, form):
    terminal, other_end = os.openpty()
    command = ["recognize", str(photos), "-m", str(memory), *form]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *command],
        stdout=subprocess.PIPE,
        stderr=other_end,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(other_end)
    stdout, _ = process.communicate(timeout=60)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert process.returncode == 0
    assert len(stdout.splitlines()) == 3
    assert "Recognising" in shown
    assert "red.png" not in shown
