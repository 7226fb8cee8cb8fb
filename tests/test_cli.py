"""The command line: forms that others rely on, exit codes, what goes where, resuming."""

import csv
import inspect
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image
from typer.testing import CliRunner

from rarvision.cli import models, options
from rarvision.cli import recognize as recognize_module
from rarvision.cli.main import app, debug_first, exit_code
from rarvision.cli.output import ResultFile, print_table, printable, progress, to_json
from rarvision.errors import ChatUnavailableError, EncoderMismatchError, ImageError, InputError, MissingExtraError
from rarvision.images import MAX_PIXELS
from rarvision.pipeline import Recognizer
from rarvision.retrieval import Retriever
from rarvision.testing.chat import FakeChat
from rarvision.testing.encoders import FakeEncoder

COLOURS = ["red", "green", "blue", "yellow", "white"]
NASTY = ["it's [red]", 'the "green" one', "two\nlines", "naïve 図", "bold [b]x"]


@pytest.fixture
def fakes(monkeypatch):
    """The embedded models replaced by fakes; what was asked for is recorded."""
    asked = {"encoders": [], "chats": []}

    def open_encoder(spec, *, device="auto"):
        asked["encoders"].append((spec, device))
        return FakeEncoder(seed=1 if spec == "other" else 0)

    def open_chat(wanted, *, device, batch_size):
        asked["chats"].append(wanted)
        error = ChatUnavailableError("nobody answers at that address") if wanted.spec == "http://down/v1" else None
        answers = "I cannot say." if wanted.spec == "silent" else None
        return FakeChat(
            {"blue": -0.1, "red": -5.0, "green": -6.0, "yellow": -7.0, "white": -8.0},
            answers=answers,
            error=error,
            name="fake chat",
        )

    monkeypatch.setattr(models, "open_encoder", open_encoder)
    monkeypatch.setattr(models, "_open_chat", open_chat)
    monkeypatch.setattr(models, "quiet_transformers", lambda: None)
    monkeypatch.delenv("RARVISION_MAX_PIXELS", raising=False)
    return asked


@pytest.fixture
def run(fakes):
    def invoke(*arguments, code=0, **options):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
        assert result.exit_code == code, (result.exit_code, result.output, result.exception)
        return result

    return invoke


def picture(path, colour, size=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


@pytest.fixture
def tree(tmp_path):
    for colour in COLOURS:
        for shot in range(3):
            picture(tmp_path / "train" / colour / f"{shot}.png", colour, 10 + shot)
    return tmp_path / "train"


@pytest.fixture
def memory(run, tree, tmp_path):
    run("memory", "create", tmp_path / "colours.memory", tree, "--quiet")
    return tmp_path / "colours.memory"


@pytest.fixture
def photos(tmp_path):
    for colour in ("red", "green", "blue"):
        picture(tmp_path / "photos" / f"{colour}.png", colour, 20)
    return tmp_path / "photos"


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


# Making and filling a memory


def test_create_from_a_folder_tree(run, fakes, tree, tmp_path):
    result = run("memory", "create", tmp_path / "m", tree, "--encoder", "some/clip", "--device", "cpu", "--json")
    assert json.loads(result.stdout) == {"added": 15, "skipped": 0, "failed": 0, "entries": 15, "categories": 5}
    assert result.stderr == ""
    assert fakes["encoders"] == [("some/clip", "cpu")]
    assert "15 entries of 5 categories" in run("memory", "create", tmp_path / "n", tree).stdout


def test_create_with_shots_names_and_templates(run, tree, tmp_path):
    result = run("memory", "create", tmp_path / "m", tree, "--shots", 2, "--with-names", "--json")
    assert json.loads(result.stdout) == {"added": 15, "skipped": 0, "failed": 0, "entries": 15, "categories": 5}
    info = json.loads(run("memory", "info", tmp_path / "m", "--json").stdout)
    assert (info["images"], info["texts"]) == (10, 5)


def test_create_from_names_alone_recognises(run, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(COLOURS))
    run("memory", "create", tmp_path / "m", names, "--template", "{}")
    path = picture(tmp_path / "x.png", "yellow")
    (record,) = lines(run("recognize", path, "--memory", tmp_path / "m", "--json"))
    assert record["label"] == "yellow"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_create_from_a_file(run, tree, tmp_path, kind):
    rows = [(str(path), path.parent.name) for path in sorted(tree.rglob("*.png"))]
    file = tmp_path / f"set.{kind}"
    if kind == "csv":
        file.write_text("image,label\n" + "".join(f"{image},{label}\n" for image, label in rows))
    else:
        file.write_text("".join(json.dumps({"image": image, "label": label}) + "\n" for image, label in rows))
    result = run("memory", "create", tmp_path / "m", file, "--json")
    assert json.loads(result.stdout)["entries"] == 15


def test_add_skips_what_is_there_and_takes_single_images(run, memory, tree, photos):
    again = run("memory", "add", memory, tree, "--json")
    assert json.loads(again.stdout) == {"added": 0, "skipped": 15, "failed": 0, "entries": 15, "categories": 5}
    more = run("memory", "add", memory, photos, str(photos / "re*.png"), "--category", "mixed", "--json")
    assert json.loads(more.stdout) == {"added": 3, "skipped": 1, "failed": 0, "entries": 18, "categories": 6}


def test_bad_images_do_not_stop_an_addition(run, tree, tmp_path):
    (tree / "red" / "bad.png").write_bytes(b"")
    result = run("memory", "create", tmp_path / "m", tree, "--json", code=1)
    assert json.loads(result.stdout)["failed"] == 1
    assert json.loads(result.stdout)["added"] == 15
    assert "bad.png: the file is empty" in result.stderr


@pytest.mark.parametrize("name", NASTY)
def test_odd_category_names_travel_unchanged(run, tmp_path, name):
    picture(tmp_path / "train" / name / "1.png", "red")
    picture(tmp_path / "train" / "plain" / "1.png", "blue")
    run("memory", "create", tmp_path / "m", tmp_path / "train")
    query = picture(tmp_path / "x.png", "red")
    result = run("recognize", query, "-m", tmp_path / "m", "--json")
    assert lines(result)[0]["label"] == name
    for command in (["recognize", query, "-m", tmp_path / "m"], ["memory", "info", tmp_path / "m", "--categories"]):
        shown = run(*command).stdout
        assert printable(name).split("\\n")[0] in shown
    assert json.loads(run("memory", "remove", tmp_path / "m", "--category", name, "--json").stdout)["removed"] == 1


def test_remove(run, memory, tree):
    result = run("memory", "remove", memory, "--category", "red", "--json")
    assert json.loads(result.stdout) == {"removed": 3, "entries": 12}
    assert "removed 1 entries" in run("memory", "remove", memory, "--source", tree / "blue" / "0.png").stdout
    assert "say what to remove" in run("memory", "remove", memory, code=2).stderr


def test_info(run, memory):
    info = json.loads(run("memory", "info", memory, "--json").stdout)
    assert (info["entries"], info["categories"], info["dim"]) == (15, 5, 32)
    assert info["metadata"]["encoder"] == "embedded:clip-16"
    named = json.loads(run("memory", "info", memory, "--categories", "--json").stdout)
    assert sorted(named["category_names"]) == sorted(COLOURS)
    assert "encoder fingerprint" in run("memory", "info", memory).stdout


def test_search(run, memory, photos):
    (red,) = lines(run("memory", "search", memory, photos / "red.png", "-k", 2, "--json"))
    assert [hit["category"] for hit in red["neighbours"]] == ["red", "red"]
    assert set(red["neighbours"][0]) == {"id", "category", "modality", "source", "similarity"}
    run("memory", "add", memory, "--category", "x", photos / "green.png", "--with-names")
    (by_word,) = lines(run("memory", "search", memory, "--text", "blue", "--among", "image", "-k", 1, "--json"))
    assert by_word["neighbours"][0]["category"] == "blue"
    result = run("memory", "search", memory, photos / "missing.png", photos / "red.png", "--json", code=1)
    assert ["error" in record for record in lines(result)] == [False, True]
    assert "say what to search for" in run("memory", "search", memory, code=2).stderr


def test_memory_evaluate(run, memory):
    result = json.loads(run("memory", "evaluate", memory, "--leave-one-out", "--json").stdout)
    assert result == {
        "top1": 1.0, "recall_at_5_images": 1.0, "recall_at_5_categories": 1.0, "entries": 15, "categories": 5,
    }  # fmt: skip
    assert "100.0%" in run("memory", "evaluate", memory).stdout


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "classes", "top1", "recall"), [("cub200", 200, 0.407, 0.707), ("pets37", 37, 0.477, 0.811)]
)
def test_the_authors_memories(run, data_dir, tmp_path, name, classes, top1, recall):
    folder = data_dir / "rar-memory" / name
    files = (folder / f"{name}_database.index", folder / f"{name}_database.txt")
    run("memory", "import", *files, "--classnames", folder / "classnames.txt", "--out", tmp_path / "m", "--json")
    result = json.loads(run("memory", "evaluate", tmp_path / "m", "--leave-one-out", "--json").stdout)
    assert result["categories"] == classes
    assert result["top1"] == pytest.approx(top1, abs=0.0005)
    assert result["recall_at_5_images"] == pytest.approx(recall, abs=0.0005)


def test_import_refuses_what_does_not_fit(run, tmp_path):
    (tmp_path / "labels.txt").write_text("a.png 0\n")
    result = run("memory", "import", tmp_path / "no.index", tmp_path / "labels.txt", "--out", tmp_path / "m", code=2)
    assert "no.index: no such file" in result.stderr
    assert not (tmp_path / "m").exists()


# Recognising


def test_recognize_json_has_the_documented_fields(run, memory, photos):
    result = run("recognize", photos, "--memory", memory, "--k", 3, "--json")
    records = lines(result)
    assert [record["label"] for record in records] == ["blue", "green", "red"]
    assert result.stderr == ""
    for record in records:
        assert set(record) == {
            "source", "label", "probability", "unknown_probability", "candidates", "ranking", "retrieval_ms",
            "ranking_ms",
        }  # fmt: skip
        assert set(record["candidates"][0]) == {"category", "similarity", "probability"}
        assert record["ranking"] == {"strategy": None, "status": None, "reason": None, "raw": None}
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


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--ranker", "some/mllm", "--ranker-model", "m"], "--ranker-model goes with the URL"),
        (["--ranker", "http://host/v1", "--quantization", "4bit"], "--quantization goes with a local model"),
        (["--ranker-weight", "much"], "--ranker-weight must be a number or replace"),
        (["--ranker", "some/mllm", "--prompt", "nope"], "--prompt must be one of paper, in-context, long"),
        (["--repeats"], "distinct=False"),
    ],
)
def test_options_that_contradict(run, memory, photos, extra, message):
    result = run("recognize", photos, "-m", memory, *extra, code=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


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
    table = tmp_path / "out" / "table.csv"
    run("recognize", photos, "-m", memory, "--k", 2, "--csv", table, code=1)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
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


# Evaluating


def test_evaluate(run, memory, tree, tmp_path):
    result = run("evaluate", tree, "--memory", memory, "--json")
    report = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert (report["n"], report["top1"], report["failures"]) == (15, 1.0, 0)
    assert {"topk", "recall", "retrieval_top1", "fallback_rate", "repaired_rate", "ranking_ms"} <= set(report)
    assert "100.0%" in run("evaluate", tree, "-m", memory).stdout
    table, out = tmp_path / "report.csv", tmp_path / "run.jsonl"
    run("evaluate", tree, "-m", memory, "-r", "x", "--csv", table, "--output", out)
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["retrieval_top1"]) == 1.0
    assert int(row["statuses_ranked"]) == 15
    assert len(out.read_text().splitlines()) == 16
    run("evaluate", tree, "-m", memory, "-r", "x", "--output", out)
    assert len(out.read_text().splitlines()) == 16


def test_evaluate_tells_failures_and_refuses_names(run, memory, tree, tmp_path):
    (tree / "red" / "bad.png").touch()
    result = run("evaluate", tree, "-m", memory, "--json", code=1)
    assert json.loads(result.stdout)["failures"] == 1
    (tmp_path / "names.txt").write_text("red")
    assert "holds names only" in run("evaluate", tmp_path / "names.txt", "-m", memory, code=2).stderr


# Errors and exit codes


def test_exit_codes_of_errors():
    assert exit_code(KeyboardInterrupt()) == 130
    assert exit_code(ZeroDivisionError()) == 70
    assert exit_code(ImageError("x")) == exit_code(OSError()) == 2
    assert exit_code(EncoderMismatchError("x")) == 3
    assert exit_code(ChatUnavailableError("x")) == exit_code(MissingExtraError("x")) == 4


def test_memory_errors(run, tree, memory, tmp_path):
    missing = run("recognize", "x.png", "-m", tmp_path / "nowhere", code=3)
    assert missing.stderr.count("\n") == 1
    assert str(tmp_path / "nowhere") in missing.stderr
    assert "create" in missing.stderr or "no memory" in missing.stderr
    run("memory", "create", memory, tree, code=3)
    run("memory", "create", tmp_path / "empty")
    assert run("recognize", tree / "red" / "0.png", "-m", tmp_path / "empty", code=3).stdout == ""


def test_another_encoders_memory(run, memory, photos):
    result = run("recognize", photos, "-m", memory, "--encoder", "other", code=3)
    assert "made by" in result.stderr


def test_more_candidates_than_categories(run, memory, photos):
    (record,) = lines(run("recognize", photos / "red.png", "-m", memory, "--k", 50, "--json"))
    assert len(record["candidates"]) == 5


def test_bad_sources_are_told_before_anything_is_made(run, fakes, tmp_path):
    result = run("memory", "create", tmp_path / "m", tmp_path / "trian", code=2)
    assert "no such file or folder" in result.stderr
    assert not (tmp_path / "m").exists()
    assert fakes["encoders"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recognize", "x.png"], "--memory"),
        (["recognize", "x.png", "-m", "m", "--strategy", "guess"], "guess"),
        (["recognize", "x.png", "-m", "m", "--k", "0"], "'--k'"),
        (["recognise"], "recognise"),
        (["memory", "crate"], "crate"),
    ],
)
def test_usage_errors(run, arguments, message):
    result = run(*arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_debug_shows_the_traceback_wherever_it_stands(run, tmp_path):
    command = ["recognize", "x.png", "-m", str(tmp_path / "nowhere")]
    assert "Traceback" not in run(*command, code=3).stderr
    assert "Traceback" in run(*debug_first([*command, "--debug"]), code=3).stderr
    assert debug_first(["a", "--", "--debug"]) == ["a", "--", "--debug"]
    assert debug_first(["a", "--debug"]) == ["--debug", "a"]


def test_unwritable_output_is_one_line(run, memory, photos, tmp_path):
    (tmp_path / "file").touch()
    result = run("recognize", photos, "-m", memory, "--csv", tmp_path / "file" / "x.csv", code=2)
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_embedded_models_have_names():
    with pytest.raises(InputError, match=r"no embedded model 'clip16' here; did you mean embedded:clip-16\?"):
        models.open_encoder("embedded:clip16")
    with pytest.raises(InputError, match="did you mean embedded:mllm"):
        models.open_ranker(models.RankerOptions(spec="embedded:llava", strategy="auto"))


def test_revisions(tmp_path, monkeypatch):
    assert models._revision("openai/clip@abc123") == ("openai/clip", "abc123")
    assert models._revision("openai/clip") == ("openai/clip", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me@home").mkdir()
    assert models._revision("me@home") == ("me@home", None)


# Help, version, defaults


def commands():
    import typer.main

    def walk(command, path):
        if not hasattr(command, "commands"):
            yield path, command
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*path, name])

    return list(walk(typer.main.get_command(app), []))


def test_the_commands_are_those_promised():
    assert {" ".join(path) for path, _ in commands()} == {
        "demo", "recognize", "evaluate", "memory create", "memory add", "memory remove", "memory info",
        "memory import", "memory evaluate", "memory search",
    }  # fmt: skip


@pytest.mark.parametrize("path", [" ".join(path) for path, _ in commands()])
def test_every_help_teaches_by_example(run, path):
    text = run(*path.split(), "--help").stdout
    assert f"  rarvision {path}" in text.split("Example")[1]
    assert "\b" not in text


def test_help_tells_the_exit_codes(run):
    text = run("--help").stdout
    assert all(f"\n    {code} " in text for code in (0, 1, 2, 3, 4, 130))


def test_version(run):
    assert run("--version").stdout == "rarvision 0.1.0\n"


def test_defaults_are_the_library_s():
    library = {
        **{name: p.default for name, p in inspect.signature(Retriever.__init__).parameters.items()},
        **{name: p.default for name, p in inspect.signature(Recognizer.__init__).parameters.items() if name != "k"},
    }
    for function in (recognize_module.recognize, __import__("rarvision.cli.evaluate", fromlist=["x"]).evaluate):
        ours = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        assert ours["k"] == library["k"]
        assert float(ours["ranker_weight"]) == library["ranker_weight"]
        assert ours["aggregate"].value == library["aggregate"]
        assert ours["retrieval"].value == library["source"]
        assert ours["repeats"] is not library["distinct"]
        assert ours["allow_fallback"] is library["allow_fallback"]


def test_the_pixel_limit_in_the_help_is_the_library_s(run):
    assert str(MAX_PIXELS) in "".join(run("recognize", "--help").stdout.split())


# Pieces


def test_json_of_names_that_are_not_unicode():
    text = to_json({"source": os.fsdecode(b"caf\xe9.png")})
    assert json.loads(text.encode())["source"] == os.fsdecode(b"caf\xe9.png")
    assert to_json({"source": "図"}) == '{"source": "図"}'


def test_control_characters_do_not_reach_the_terminal(capsys):
    print_table(("name",), [("\x1b[31mred\nline [b]x[/b]",)])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[31mred\\nline [b]x[/b]" in shown


def test_progress_shows_rate_and_time_left_on_a_terminal_only(monkeypatch, capsys):
    with progress("Encoding", total=10, quiet=False) as bar:
        bar.advance(3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("Encoding", total=10, quiet=True) as bar:
        bar.advance(3)
    assert capsys.readouterr().err == ""
    with progress("Encoding", total=10, quiet=False) as bar:
        for _ in range(4):
            time.sleep(0.02)
            bar.advance()
    shown = capsys.readouterr()
    assert "4/10" in shown.err
    assert "images/s" in shown.err
    assert "left" in shown.err
    assert shown.out == ""


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


def test_strategies_are_the_library_s():
    from rarvision.ranking import STRATEGIES

    assert {strategy.value for strategy in options.Strategy} == {"auto", *STRATEGIES}


def test_an_unexpected_error_is_one_line_and_its_own_exit_code(monkeypatch, capsys):
    import rarvision.demo

    def broken(**_):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(rarvision.demo, "run_demo", broken)
    with pytest.raises(SystemExit) as exit_info:
        app(["demo", "--quiet"], prog_name="rarvision")
    assert exit_info.value.code == 70
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        "rarvision: unexpected ZeroDivisionError: by nought (--debug shows where)"
    )
