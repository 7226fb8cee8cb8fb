"""Evaluation: the report, and files that resume."""

from __future__ import annotations

import json

import pytest

from colour_world import COLOURS, Pictures, ScriptedRanker, make_memory, picture
from rarvision.errors import ChatProtocolError, ChatUnavailableError, DatasetError, InputError, OptionError
from rarvision.evaluate import evaluate
from rarvision.pipeline import Recognizer
from rarvision.types import Sample

LABELS = ["red", "green", "blue", "blue", "white", "black"]  # yellow is called blue: one error


@pytest.fixture
def memory(tmp_path):
    with make_memory(tmp_path / "memory") as made:
        yield made


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_report_of_retrieval_alone(memory):
    report = evaluate(Recognizer(memory, k=3), Pictures(COLOURS, ["red", "green", "blue", "blue", "black", "white"]))
    assert report.n == 6
    assert report.failures == 0
    assert report.top1 == report.retrieval_top1 == report.topk[1] == report.recall[1] == pytest.approx(5 / 6)
    assert report.mean_per_class == pytest.approx((4 + 0.5) / 5)
    assert list(report.topk) == [1, 3]
    assert report.topk[3] == report.recall[3] >= report.top1
    low, high = report.top1_interval
    assert low < report.top1 < high
    assert 0.0 <= report.calibration_error <= 1.0
    assert report.statuses == {"ranked": 0, "repaired": 0, "fallback": 0, "skipped": 0}
    assert (report.fallback_rate, report.repaired_rate) == (0.0, 0.0)
    assert (report.dataset, report.encoder, report.ranker) == ("pictures", "fake", None)
    assert report.retrieval_ms > 0
    assert report.ranking_ms == 0


def test_report_of_a_ranker(memory):
    ranker = ScriptedRanker("blue", failing=["red"])
    recognizer = Recognizer(memory, ranker=ranker, k=6, ranker_weight="replace", allow_fallback=True)
    report = evaluate(recognizer, Pictures(COLOURS))
    assert report.top1 == pytest.approx(2 / 6)  # blue as ranked, red by retrieval
    assert report.retrieval_top1 == 1.0
    assert report.statuses == {"ranked": 5, "repaired": 0, "fallback": 1, "skipped": 0}
    assert report.fallback_rate == pytest.approx(1 / 6)
    assert report.ranker == "scripted"
    repaired = evaluate(Recognizer(memory, ranker=ScriptedRanker(status="repaired")), Pictures(COLOURS))
    assert repaired.repaired_rate == 1.0


def test_failures_count_as_wrong(memory):
    report = evaluate(Recognizer(memory), Pictures(COLOURS, broken=[0, 3]))
    assert (report.n, report.failures) == (6, 2)
    assert report.top1 == report.recall[5] == pytest.approx(4 / 6)
    report = evaluate(Recognizer(memory), Pictures(["red"], broken=[0]))
    assert (report.top1, report.calibration_error) == (0.0, None)


def test_forms_of_the_report(memory):
    report = evaluate(Recognizer(memory, ranker=ScriptedRanker()), Pictures(COLOURS))
    values = json.loads(report.to_json())
    assert values == json.loads(json.dumps(report.to_dict()))
    assert values["top1"] == report.top1
    assert values["recall"]["5"] == report.recall[5]
    assert values["configuration"]["encoder_fingerprint"] == "fake:32:0"
    assert {"fallback_rate", "repaired_rate", "retrieval_ms", "ranking_ms", "version"} <= set(values)
    rows = dict(report.table())
    assert rows["top-1"].startswith(f"{report.top1:.1%}")
    assert rows["ranker"] == "scripted"
    markdown = report.to_markdown().splitlines()
    assert len(markdown) == len(rows) + 2
    assert all(line.count("|") == 3 for line in markdown)


def test_every_image_is_a_line_at_once(memory, tmp_path):
    out = tmp_path / "deep" / "out.jsonl"
    seen = []
    report = evaluate(
        Recognizer(memory, batch_size=2),
        Pictures(COLOURS, broken=[1]),
        out=out,
        progress=lambda done, total: seen.append((done, total, len(lines(out)) - 1)),
    )
    assert seen == [(i, 6, i) for i in range(7)]
    header, *images = lines(out)
    assert header["configuration"]["retriever"]["k"] == 5
    assert [image["source"] for image in images] == [f"{i}:{colour}" for i, colour in enumerate(COLOURS)]
    assert images[1]["error"].startswith("ImageError")
    assert images[0]["ranked"][0] == "red"
    assert report.failures == 1


class StopError(Exception):
    pass


def stop_at(n):
    def progress(done, _):
        if done == n:
            raise StopError

    return progress


@pytest.mark.parametrize("damage", ["", '{"source": "3:yellow", "lab', "\x00"])
def test_an_interrupted_run_resumes(memory, tmp_path, damage):
    out = tmp_path / "out.jsonl"
    whole = evaluate(Recognizer(memory, batch_size=2), Pictures(COLOURS, LABELS))
    with pytest.raises(StopError):
        evaluate(Recognizer(memory, batch_size=2), Pictures(COLOURS, LABELS), out=out, progress=stop_at(3))
    assert len(lines(out)) == 4
    with out.open("a") as file:
        file.write(damage)
    again = Pictures(COLOURS, LABELS)
    seen = []
    resumed = evaluate(Recognizer(memory), again, out=out, progress=lambda done, _: seen.append(done))
    assert seen == [3, 4, 5, 6]
    assert again.opened == [3, 4, 5]
    assert len(lines(out)) == 7
    assert (resumed.top1, resumed.n, resumed.mean_per_class) == (whole.top1, whole.n, whole.mean_per_class)
    finished = Pictures(COLOURS, LABELS)
    assert evaluate(Recognizer(memory), finished, out=out).top1 == whole.top1
    assert finished.opened == []


def test_a_chat_error_keeps_what_is_done(memory, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(ChatProtocolError):
        evaluate(Recognizer(memory, batch_size=1, ranker=ScriptedRanker(failing=["blue"])), Pictures(COLOURS), out=out)
    assert len(lines(out)) == 3
    report = evaluate(Recognizer(memory, batch_size=1, ranker=ScriptedRanker()), Pictures(COLOURS), out=out)
    assert report.n == 6


def test_another_configuration_is_refused(memory, tmp_path):
    out = tmp_path / "out.jsonl"
    evaluate(Recognizer(memory), Pictures(COLOURS), out=out)
    before = out.read_text()
    with pytest.raises(InputError, match=r"retriever: .*'k': 5.*there.*'k': 4.*resume=False"):
        evaluate(Recognizer(memory, k=4), Pictures(COLOURS), out=out)
    with pytest.raises(InputError, match="dataset_fingerprint"):
        evaluate(Recognizer(memory), Pictures(COLOURS, LABELS), out=out)
    assert out.read_text() == before
    report = evaluate(Recognizer(memory, k=4), Pictures(COLOURS), out=out, resume=False)
    assert list(report.topk) == [1, 4]
    assert len(lines(out)) == 7


def test_a_memory_with_other_entries_is_refused_though_as_many(memory, tmp_path):
    out = tmp_path / "out.jsonl"
    recognizer = Recognizer(memory)
    evaluate(recognizer, Pictures(COLOURS), out=out)
    before, written = recognizer.settings, out.read_text()
    memory.remove(source="red 0")
    memory.add([Sample(source="red 0", image=picture("darkred"), label="red")])
    changed = {key for key, value in recognizer.settings.items() if before[key] != value}
    assert changed == {"memory_content"}
    with pytest.raises(InputError, match=r"\(memory_content: the memory's entries changed since\); .*resume=False"):
        evaluate(recognizer, Pictures(COLOURS), out=out)
    assert out.read_text() == written


def test_failures_are_tried_again(memory, tmp_path):
    out = tmp_path / "out.jsonl"
    first = evaluate(Recognizer(memory), Pictures(COLOURS, broken=[1, 4]), out=out)
    assert (first.failures, first.top1) == (2, pytest.approx(4 / 6))
    partly = Pictures(COLOURS, broken=[4])
    seen = []
    second = evaluate(Recognizer(memory), partly, out=out, progress=lambda done, total: seen.append((done, total)))
    assert partly.opened == [1, 4]
    assert seen == [(4, 6), (5, 6), (6, 6)]
    assert (second.n, second.failures, second.top1) == (6, 1, pytest.approx(5 / 6))
    mended = Pictures(COLOURS)
    third = evaluate(Recognizer(memory), mended, out=out)
    assert mended.opened == [4]
    assert (third.n, third.failures, third.top1) == (6, 0, 1.0)
    sources = [line["source"] for line in lines(out)[1:]]
    assert sources == [f"{i}:{COLOURS[i]}" for i in (0, 1, 2, 3, 4, 5, 1, 4, 4)]
    again = Pictures(COLOURS)
    assert evaluate(Recognizer(memory), again, out=out).top1 == 1.0
    assert again.opened == [], "the last line of an image counts"


class NamelessWhenDown(ScriptedRanker):
    """Like a server, which says its model's name only while it is up."""

    @property
    def settings(self):
        return {"name": "the model at an address" if self.failing else "model"}


def test_what_the_mllm_did_not_answer_is_asked_again(memory, tmp_path):
    out = tmp_path / "out.jsonl"

    def run(ranker):
        pictures = Pictures(COLOURS)
        recognizer = Recognizer(memory, k=6, ranker=ranker, ranker_weight="replace", allow_fallback=True, batch_size=2)
        return evaluate(recognizer, pictures, out=out), pictures.opened

    assert run(ScriptedRanker(failing=["red", "green"], error=ChatUnavailableError))[0].statuses["fallback"] == 6
    assert [line["unanswered"] for line in lines(out)[1:]] == [True] * 6
    report, opened = run(ScriptedRanker(failing=["white"], error=ChatUnavailableError))
    assert (opened, report.statuses) == ([0, 1, 2, 3, 4, 5], {"ranked": 5, "repaired": 0, "fallback": 1, "skipped": 0})
    report, opened = run(ScriptedRanker(status="fallback"))
    assert (opened, report.statuses) == ([5], {"ranked": 5, "repaired": 0, "fallback": 1, "skipped": 0})
    assert lines(out)[-1]["unanswered"] is False, "an answer that could not be read"
    assert run(ScriptedRanker())[1] == []

    out.unlink()
    run(NamelessWhenDown(failing=COLOURS, error=ChatUnavailableError))
    assert run(NamelessWhenDown())[0].statuses["ranked"] == 6
    assert len(lines(out)) == 7
    with pytest.raises(InputError, match=r"ranker: .*the model at an address"):
        run(NamelessWhenDown(failing=COLOURS, error=ChatUnavailableError))


@pytest.mark.parametrize("text", ["no JSON\n", '["list"]\n', '{"configuration": 3}\n', '{"a": 1}\n{"b": 2}\n'])
def test_a_file_of_something_else_is_left_alone(memory, tmp_path, text):
    out = tmp_path / "notes.txt"
    out.write_text(text)
    with pytest.raises(InputError, match="is not the file of an evaluation"):
        evaluate(Recognizer(memory), Pictures(COLOURS), out=out)
    assert out.read_text() == text


def test_a_file_without_a_whole_line_is_left_alone_unless_empty(memory, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("dear diary")
    with pytest.raises(InputError, match="is not the file of an evaluation"):
        evaluate(Recognizer(memory), Pictures(COLOURS), out=out)
    out.write_text("")
    assert evaluate(Recognizer(memory), Pictures(COLOURS), out=out).n == 6


def test_bad_datasets_are_refused_before_anything_runs(memory):
    with pytest.raises(DatasetError, match="no images"):
        evaluate(Recognizer(memory), Pictures([]))
    unlabelled = Pictures(["red", "blue"], ["red", None])
    with pytest.raises(DatasetError, match="1:blue has no label"):
        evaluate(Recognizer(memory), unlabelled)

    class Twice(Pictures):
        @property
        def items(self):
            return [super().items[0]] * 2

    with pytest.raises(DatasetError, match="occurs twice"):
        evaluate(Recognizer(memory), Twice(["red", "red"]))
    with pytest.raises(OptionError, match="ks"):
        evaluate(Recognizer(memory), Pictures(COLOURS), ks=(0,))
