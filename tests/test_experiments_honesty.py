"""Experiments say what their figures are of: other shots, other seeds, other MLLMs, and what failed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from benchmark_world import flowers102
from colour_world import COLOURS, Pictures
from experiments_world import ColourWorld, colour_lab, colours_spec
from rarvision.cli.experimenting import ExperimentOptions, _published, seeds_of
from rarvision.embedded import weights_path
from rarvision.errors import InputError
from rarvision.experiments import (
    EXPERIMENT,
    OUTCOMES,
    Axis,
    BenchmarkWorld,
    Claim,
    Column,
    Metric,
    Outcome,
    Row,
    Task,
    judge,
    measured_part,
    read_outcomes,
    rebuild_report,
    run_experiment,
    spec_of,
)
from rarvision.experiments.lab import _remove
from rarvision.experiments.tables import Table
from rarvision.reporting import EvaluatedImage

ROWS = (Row(key="knn", title="CLIP + kNN", method="knn"), Row(key="rar", title="RAR", method="rar"))


def outcome(row, value, *, at=None, column="one", seed=0, images="", metric="top1", **more):
    return Outcome(
        experiment="table-7", column=column, row=row, at=at or {}, seed=seed, n=100, values={metric: value},
        images=images, **more,
    )  # fmt: skip


def write_images(folder, name, hits, *, order=None):
    path = folder / "images" / name
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps({"configuration": {}})]
    for number in order or range(len(hits)):
        ranked = ("a",) if hits[number] else ("b",)
        lines.append(json.dumps(asdict(EvaluatedImage(source=str(number), label="a", ranked=ranked))))
    path.write_text("\n".join(lines) + "\n")
    return f"images/{name}"


def gain(folder, seeds, *, order=None):
    rows = []
    for seed in seeds:
        for row, right in (("rar", 60), ("knn", 50)):
            hits = [(number * (37 if row == "rar" else 59)) % 100 < right for number in range(100)]
            name = write_images(folder, f"{row}.{seed}", hits, order=order if row == "rar" else None)
            rows.append(outcome(row, right / 100, seed=seed, images=name))
    claim = Claim(text="Gains.", kind="gain", first="rar", second="knn")
    return judge(colours_spec(axis=None, claims=(claim,)), rows, folder)[0].evidence


def test_the_same_images_under_more_seeds_are_no_more_images(tmp_path):
    assert gain(tmp_path, (0, 1, 2)) == gain(tmp_path, (0,)), "the interval is as wide"


def test_images_that_were_tried_again_stand_last_and_pair_all_the_same(tmp_path):
    assert gain(tmp_path, (0,), order=[*range(1, 100), 0]) == gain(tmp_path, (0,))


def test_trends_are_over_the_data_sets_that_have_every_place(tmp_path):
    claims = (Claim(text="Rises.", kind="rises", first="rar"), Claim(text="Flat.", kind="flat", first="rar"))
    rows = [outcome("rar", 0.5, at={"shots": shots}) for shots in (1, 2)]
    rows.append(outcome("rar", 0.9, at={"shots": 2}, column="two"))
    rises, flat = judge(colours_spec(claims=claims), rows, tmp_path)
    assert rises.evidence.startswith("RAR: 1: 50.0, 2: 50.0;")
    assert (rises.verdict, flat.verdict) == ("undecided", "holds")
    (rises, _) = judge(colours_spec(claims=claims), [rows[0], rows[2]], tmp_path)
    assert rises.verdict == "not measured"


def test_places_are_in_order_whatever_order_they_were_asked_for_in():
    spec = colours_spec(axis=Axis(key="shots", title="shots", values=(4, 1)))
    rows = [outcome("rar", 0.5, at={"shots": shots}) for shots in (4, 1, 2)]
    assert measured_part(spec, rows).axis.values == (1, 2, 4)


class Broken(ColourWorld):
    def task(self, column, settings, seed):
        known = super().task(column, settings, seed)
        return Task(
            names=known.names, templates=known.templates, known=known.known,
            queries=Pictures(list(COLOURS), broken=(1,)),
        )  # fmt: skip


def test_images_that_cannot_be_read_are_counted_and_told(tmp_path):
    spec = colours_spec(rows=ROWS[:1], columns=(Column(key="one", title="One"),))
    with colour_lab(tmp_path, world=Broken()) as lab:
        found = run_experiment(spec, lab)
    assert [each.failures for each in found] == [1, 1]
    assert found[0].values["top1"] == pytest.approx(5 / 6)
    note = "Without an answer, and counted as wrong: 2 images in 2 cells."
    assert note in rebuild_report(tmp_path, spec).table.notes
    assert "1 without an answer" in (tmp_path / "report.html").read_text()


def test_rankings_that_are_retrievals_are_told():
    fallen = outcome("rar", 0.5, statuses={"ranked": 7, "fallback": 3})
    notes = Table(colours_spec(axis=None), [fallen]).notes
    assert "Retrieval's order for want of a usable answer: 3 of 10 rankings in 1 cell." in notes


def test_more_candidates_than_categories_find_all_of_them(tmp_path):
    metrics = tuple(Metric(key=f"recall{k}", title=f"recall@{k}") for k in (1, 5, 20))
    spec = colours_spec(rows=ROWS[:1], axis=None, metrics=metrics, settings={"k": 20, "shots": 1})
    with colour_lab(tmp_path, world=ColourWorld(wrong=0)) as lab:
        found = run_experiment(spec, lab)
    assert {each.values["recall20"] for each in found} == {1.0}


class Shades(ColourWorld):
    def task(self, column, settings, seed):
        known = super().task(column, settings, seed)
        shades = [f"#{step:02x}{green:02x}00" for step in range(0, 100, 10) for green in (0, 200)]
        return replace(known, known=lambda _shots, _seed: Pictures(shades, ["red", "green"] * 10))


def test_with_repeated_names_k_is_of_images(tmp_path):
    spec = colours_spec(rows=ROWS[:1], axis=None, settings={"k": 10, "shots": 3, "distinct": False})
    with colour_lab(tmp_path, world=Shades()) as lab:
        run_experiment(spec, lab)
    line = json.loads((tmp_path / "images" / "one.knn.seed-0.jsonl").read_text().splitlines()[1])
    assert len(line["retrieved"]) == 10, "of six categories"


def test_an_mllm_may_be_given_later_and_not_be_changed(tmp_path):
    spec = colours_spec()
    with colour_lab(tmp_path, open_chat=None) as lab:
        run_experiment(spec, lab, configuration={"encoder": "a"})
    later = {"encoder": "a", "ranker": "b", "strategy": "likelihood"}
    with colour_lab(tmp_path) as lab:
        found = run_experiment(spec, lab, configuration=later)
    assert all(each.why is None for each in found)
    with pytest.raises(InputError, match="ranker: 'b' there, 'c' now"), colour_lab(tmp_path) as lab:
        run_experiment(spec, lab, configuration={**later, "ranker": "c"})
    with colour_lab(tmp_path, open_chat=None) as lab:
        run_experiment(spec, lab, configuration={"encoder": "a"})
    assert json.loads((tmp_path / EXPERIMENT).read_text())["ranker"] == "b"


def test_words_may_be_given_later_and_are_known_by_what_they_are(tmp_path):
    plain = BenchmarkWorld(tmp_path).settings
    assert not {"words", "captions"} & set(plain)
    one, two = (BenchmarkWorld(tmp_path, words=words).settings["words"] for words in (["a", "b"], ["a", "c"]))
    assert one != two
    assert one.startswith("2 (")
    without, with_words = (BenchmarkWorld(tmp_path, captions=["x"], words=words).settings for words in ((), ("a",)))
    assert without["nouns"] != with_words["nouns"], "what counts as a noun in captions"


def test_results_name_no_folder_and_no_password(tmp_path):
    folder = weights_path("clip-16")
    told = _published(str(folder))
    assert told.startswith("clip-16 (weights:")
    assert str(folder.parent) not in told
    assert _published(str(weights_path("clip-32"))).split("(")[1] != told.split("(")[1]
    assert _published("https://me:secret@host:8000/v1") == "https://host:8000/v1"
    assert _published("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"


def test_a_second_process_is_refused(tmp_path):
    spec = colours_spec(rows=ROWS[:1])
    refused = []

    def try_too(*_):
        with colour_lab(tmp_path) as second, pytest.raises(InputError, match="another process is measuring") as error:
            run_experiment(spec, second)
        refused.append(error)

    with colour_lab(tmp_path) as lab:
        run_experiment(spec, lab, done=try_too)
    assert refused
    with colour_lab(tmp_path) as lab:
        run_experiment(spec, lab)


def test_reading_leaves_a_line_that_is_being_written(tmp_path):
    spec = colours_spec(rows=ROWS[:1])
    with colour_lab(tmp_path) as lab:
        run_experiment(spec, lab)
    path = tmp_path / OUTCOMES
    with path.open("a") as file:
        file.write('{"experiment": "tab')
    before = path.read_bytes()
    rebuild_report(tmp_path, spec)
    assert path.read_bytes() == before
    read_outcomes(path, repair=True)
    assert path.read_bytes() == before[: before.rfind(b"\n") + 1]


def test_what_is_removed_is_gone_at_once(tmp_path, monkeypatch):
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "part").touch()
    monkeypatch.setattr("rarvision.experiments.lab.shutil.rmtree", lambda *_args, **_more: None)  # as if killed
    _remove(folder)
    assert not folder.exists()
    monkeypatch.undo()
    folder.mkdir()
    _remove(folder)
    assert not list(tmp_path.iterdir())


def test_likenesses_of_names_by_another_model_are_not_set_against_the_papers(tmp_path):
    spec = spec_of("table-1", "paper")
    spec = replace(spec, columns=spec.columns[:1], rows=spec.rows[:1])
    for name, told in (("spelling", True), ("sentence-transformers/all-mpnet-base-v2", False)):
        rows = [outcome("wordnet-clip", 0.4, column="cub200", metric="sacc", settings={"name_encoder": name})]
        (tmp_path / OUTCOMES).write_text("".join(json.dumps(asdict(each)) + "\n" for each in rows))
        (tmp_path / EXPERIMENT).write_text("{}")
        table = rebuild_report(tmp_path, spec).table
        assert (table.lines[0].entries[1].difference is None) == told
        assert any("sACC is by spelling" in note for note in table.notes) == told


def test_the_papers_figures_are_of_its_own_shots_and_of_all_images(tmp_path):
    spec = spec_of("table-8", "paper")
    (tmp_path / OUTCOMES).write_text(json.dumps(asdict(outcome("knn", 0.4, column="dtd"))) + "\n")
    for shots, limit in ((4, 9), (8, None)):
        (tmp_path / EXPERIMENT).write_text(json.dumps({"settings": {"k": 10, "shots": shots}, "limit": limit}))
        table = rebuild_report(tmp_path, spec).table
        assert (table.published is None) == (shots == 8)
        (note,) = [note for note in table.notes if "the paper's figures are" in note]
        assert note.startswith("Of 8 shots" if shots == 8 else "Of a data set at most 9 test images")


def test_results_of_benchmarks_do_not_depend_on_where_they_lie(tmp_path):
    found = []
    for place in ("here", "there"):
        flowers102(tmp_path / place)
        column = Column(key="flowers102", title="Flowers102", options={"reference": "flowers102@official"})
        task = BenchmarkWorld(tmp_path / place).task(column, dict(column.options), 0)
        found.append((task.queries.fingerprint, [item.source for item in task.queries.items], task.names))
        assert task.queries[0].image.is_file()
    assert found[0] == found[1]
    assert found[0][1][0] == "oxford_flowers/jpg/image_00004.jpg"


@pytest.mark.parametrize(
    ("name", "field_guide", "seeds"),
    [("table-7", False, 3), ("table-9", False, 1), ("table-3", False, 1), ("table-3", True, 3), ("table-1", False, 3)],
)
def test_seeds_are_several_where_something_is_drawn(name, field_guide, seeds):
    spec = spec_of(name, "field-guide" if field_guide else "paper")
    assert len(seeds_of(spec, ExperimentOptions(field_guide=field_guide))) == seeds


def test_a_file_of_which_a_full_disk_left_a_part_of_the_first_line_is_started_anew(tmp_path):
    spec = colours_spec(rows=ROWS[:1], axis=None, settings={"k": 3, "shots": 1})
    with colour_lab(tmp_path / "one") as lab:
        whole = run_experiment(spec, lab)
    name = "images/one.knn.seed-0.jsonl"
    header = (tmp_path / "one" / name).read_bytes().splitlines(keepends=True)[0]
    for kept in (0, 40, len(header) - 1, len(header)):
        folder = tmp_path / str(kept)
        (folder / "images").mkdir(parents=True)
        (folder / name).write_bytes(header[:kept])
        with colour_lab(folder) as lab:
            found = run_experiment(spec, lab)
        assert [each.values["top1"] for each in found] == [each.values["top1"] for each in whole]
        assert (folder / name).read_bytes().startswith(header)


def test_tip_adapters_cache_is_summed_as_a_whole(tmp_path):
    spec = colours_spec(rows=(Row(key="tip", title="Tip", method="tip"),), axis=None, settings={"k": 2, "shots": 1})
    with colour_lab(tmp_path, world=Shades()) as lab:
        run_experiment(spec, lab)
    header = (tmp_path / "images" / "one.tip.seed-0.jsonl").read_text().splitlines()[0]
    assert json.loads(header)["configuration"]["retriever"]["neighbours"] == 20, "all of the memory's images"


def test_a_trend_of_one_place_is_said_to_be_one(tmp_path):
    claims = (Claim(text="Rises.", kind="rises", first="rar"), Claim(text="Flat.", kind="flat", first="rar"))
    for verdict in judge(colours_spec(claims=claims), [outcome("rar", 0.5, at={"shots": 1})], tmp_path):
        assert (verdict.verdict, verdict.evidence) == (
            "not measured",
            "RAR has figures at 1 alone; two places are needed.",
        )
