"""Experiments end to end: cells, resuming, what cannot be measured, other folders, verdicts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from colour_world import COLOURS, Pictures
from experiments_world import ColourWorld, colour_lab, colours_spec
from rarvision.chat import Chat
from rarvision.errors import ChatUnavailableError, ContextLengthError, DatasetError, InputError, OptionError
from rarvision.experiments import (
    ALIASES,
    EXPERIMENTS,
    METHODS,
    OUTCOMES,
    Axis,
    BenchmarkWorld,
    Claim,
    Column,
    FieldGuideWorld,
    Metric,
    Outcome,
    Row,
    append_outcome,
    cells_of,
    judge,
    read_outcomes,
    rebuild_report,
    run_experiment,
    spec_of,
)
from rarvision.naming import NAMING_PRESETS
from rarvision.reporting import EvaluatedImage
from rarvision.testing.chat import FakeChat


def values(outcomes, metric="top1"):
    return {outcome.id: outcome.values[metric] for outcome in outcomes}


def test_every_cell_is_measured_once(tmp_path):
    spec = colours_spec()
    with colour_lab(tmp_path) as lab:
        found = run_experiment(spec, lab, seeds=(0, 1))
    assert len(found) == 2 * 2 * (2 + 2 * 2)
    right = 10 / 12  # two labels are wrong
    assert values(found)["one.shots-1.knn.seed-0"] == pytest.approx(right)
    # the MLLM prefers blue, then red: only pictures of these can be right where they are retrieved
    assert values(found)["one.mllm.seed-0"] == pytest.approx(sum(x == "blue" for x in labels()) / 12)
    assert not (tmp_path / "work").exists(), "what is no result is gone"
    lines = (tmp_path / "images" / "two.shots-2.rar.seed-1.jsonl").read_text().splitlines()
    assert len(lines) == 13
    first = next(outcome for outcome in found if outcome.row == "rar")
    assert first.prompt_hash
    assert len(first.prompt_hash) == 12
    assert first.version
    assert first.dataset_fingerprint
    assert first.ranker == "fake (likelihood)"
    assert sum(first.statuses.values()) == 12


def labels():
    return list(Pictures([COLOURS[i % 6] for i in range(12)], [COLOURS[(i + (i < 2)) % 6] for i in range(12)])._labels)


def test_what_is_done_is_not_done_again(tmp_path):
    spec, chat = colours_spec(), FakeChat({"blue": -0.1})
    with colour_lab(tmp_path, chat=chat) as lab:
        first = run_experiment(spec, lab)
    asked = len(chat.calls)
    assert asked
    told = []
    with colour_lab(tmp_path, chat=chat) as lab:
        again = run_experiment(spec, lab, done=lambda outcome, number, of: told.append((outcome.id, number, of)))
    assert again == first
    assert len(chat.calls) == asked
    assert [number for _, number, _ in told] == list(range(1, 13))
    with colour_lab(tmp_path, chat=chat) as lab:
        more = run_experiment(spec, lab, seeds=(0, 3))
    assert {o.id for o in first} < {o.id for o in more}
    assert [o for o in more if o.seed == 0] == first
    assert len(chat.calls) > asked


def test_an_interrupted_run_goes_on_with_the_image_where_it_was(tmp_path):
    spec = colours_spec(rows=(Row(key="rar", title="RAR", method="rar"),), axis=None, settings={"k": 3, "shots": 1})
    calls = []

    def scores(_request, name):
        calls.append(name)
        if len(calls) == 3 * 8:
            raise KeyboardInterrupt
        return -float(len(name))

    with pytest.raises(KeyboardInterrupt), colour_lab(tmp_path, chat=FakeChat(scores), batch_size=2) as lab:
        run_experiment(spec, lab)
    file = tmp_path / "images" / "one.rar.seed-0.jsonl"
    done = len(file.read_text().splitlines()) - 1
    assert 0 < done < 12
    assert (tmp_path / "work" / "memories").is_dir()
    with file.open("a") as cut:
        cut.write('{"source": "cut')
    later = FakeChat(lambda _request, name: -float(len(name)))
    with colour_lab(tmp_path, chat=later, batch_size=2) as lab:
        found = run_experiment(spec, lab)
    assert len(later.calls) == 12 - done + 12, "what is left of the first data set, and the second"
    with colour_lab(tmp_path / "whole", chat=FakeChat(lambda _r, name: -float(len(name))), batch_size=2) as lab:
        whole = run_experiment(spec, lab)
    assert values(found) == values(whole)


def test_names_that_do_not_fit_are_said_to(tmp_path):
    chat = ShortChat(context_limit=20)
    spec = colours_spec()
    with colour_lab(tmp_path, chat=chat) as lab:
        found = run_experiment(spec, lab)
    alone = [outcome for outcome in found if outcome.row == "mllm"]
    assert {outcome.why for outcome in alone} == {"6 names do not fit the MLLM's context of 20 tokens"}
    assert all(outcome.values["top1"] is None for outcome in alone)
    lines = (tmp_path / OUTCOMES).read_text().splitlines()
    with colour_lab(tmp_path, chat=chat) as lab:
        run_experiment(spec, lab)
    assert (tmp_path / OUTCOMES).read_text().splitlines() == lines, "the same again is no news"
    table = rebuild_report(tmp_path, spec).table
    assert table.reasons == {"6 names do not fit the MLLM's context of 20 tokens": 2}


class ShortChat(Chat):
    """A chat whose context holds lists of few names."""

    name = "short"

    def __init__(self, context_limit):
        self._limit = context_limit
        self._inner = FakeChat({"blue": -0.1})

    capabilities = FakeChat().capabilities

    @property
    def context_limit(self):
        return self._limit

    def generate(self, requests, *, max_tokens, constraints=None):
        return self._inner.generate(requests, max_tokens=max_tokens, constraints=constraints)

    def continuation_log_probs(self, requests, continuations):
        if any(len(each) > 4 for each in continuations):
            raise ContextLengthError("too long")
        return self._inner.continuation_log_probs(requests, continuations)


def test_without_an_mllm_the_rows_that_rank_say_so_and_are_tried_later(tmp_path):
    spec = colours_spec()
    with colour_lab(tmp_path, open_chat=None) as lab:
        found = run_experiment(spec, lab)
    assert {o.why for o in found if o.row in ("rar", "mllm")} == {"no MLLM was given (--ranker)"}
    assert all(o.why is None for o in found if o.row in ("clip", "knn"))
    with colour_lab(tmp_path) as lab:
        later = run_experiment(spec, lab)
    assert all(o.why is None for o in later)


def test_an_mllm_that_is_down_stops_and_loses_nothing(tmp_path):
    spec = colours_spec()
    down = FakeChat(error=ChatUnavailableError("nobody answers"))
    with pytest.raises(ChatUnavailableError), colour_lab(tmp_path, chat=down) as lab:
        run_experiment(spec, lab)
    assert [outcome.row for outcome in read_outcomes(tmp_path / OUTCOMES)] == ["clip", "knn"]


def test_another_configuration_is_refused_by_what_differs(tmp_path):
    with colour_lab(tmp_path) as lab:
        run_experiment(colours_spec(), lab, configuration={"encoder": "a"})
    with pytest.raises(InputError, match=r"encoder: 'a' there, 'b' now.*--no-resume"), colour_lab(tmp_path) as lab:
        run_experiment(colours_spec(), lab, configuration={"encoder": "b"})
    fewer = ColourWorld(queries=6)
    with pytest.raises(InputError, match="queries: 12 there, 6 now"), colour_lab(tmp_path, world=fewer) as lab:
        run_experiment(colours_spec(), lab, configuration={"encoder": "a"})
    with pytest.raises(InputError, match="settings"), colour_lab(tmp_path) as lab:
        run_experiment(colours_spec(settings={"k": 2}), lab, configuration={"encoder": "a"})
    with pytest.raises(InputError, match="methods"), colour_lab(tmp_path) as lab:
        run_experiment(
            colours_spec(rows=(Row(key="rar", title="RAR", method="rar-mixed"),)), lab, configuration={"encoder": "a"}
        )


def test_a_part_may_be_asked_for_now_and_another_later(tmp_path):
    whole = colours_spec()
    one = replace(whole, columns=whole.columns[:1], axis=replace(whole.axis, values=(2,)))
    with colour_lab(tmp_path) as lab:
        run_experiment(one, lab)
    assert [column.key for column in rebuild_report(tmp_path, whole).table.spec.columns] == ["one"]
    with colour_lab(tmp_path) as lab:
        run_experiment(replace(whole, columns=whole.columns[1:]), lab)
    table = rebuild_report(tmp_path, whole).table
    assert [column.key for column in table.spec.columns] == ["one", "two"]
    assert table.missing, "one data set lacks a place on the axis"
    with colour_lab(tmp_path) as lab:
        run_experiment(whole, lab)
    assert rebuild_report(tmp_path, whole).table.missing == 0


def test_damaged_results_are_named(tmp_path):
    with colour_lab(tmp_path) as lab:
        run_experiment(colours_spec(), lab)
    path = tmp_path / OUTCOMES
    with path.open("a") as file:
        file.write('{"experiment": "table-7", "col')
    assert len(read_outcomes(path)) == 12, "a line that was cut short does not count"
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(InputError, match="line 1: is no outcome"):
        rebuild_report(tmp_path, colours_spec())
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        rebuild_report(tmp_path, colours_spec())
    (tmp_path / "experiment.json").unlink()
    with pytest.raises(InputError, match="holds no results"):
        rebuild_report(tmp_path, colours_spec())
    with pytest.raises(InputError, match="says what they are"), colour_lab(tmp_path) as lab:
        run_experiment(colours_spec(), lab)


def test_seeds_must_be_some(tmp_path):
    for seeds in ((), (1, 1)):
        with pytest.raises(OptionError, match="seeds"), colour_lab(tmp_path) as lab:
            run_experiment(colours_spec(), lab, seeds=seeds)


# Specs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", ["paper", "field-guide"])
@pytest.mark.parametrize("name", [*EXPERIMENTS, *ALIASES])
def test_specs_are_consistent(name, edition):
    if name == "vocabulary" and edition == "paper":
        with pytest.raises(OptionError, match="--field-guide"):
            spec_of(name, edition)
        return
    spec = spec_of(name, edition)
    rows = {row.key for row in spec.rows}
    metrics = {metric.key for metric in spec.metrics}
    known = {"naming": set(NAMING_PRESETS), "facts": {"facts"}}.get(spec.kind, set(METHODS))
    assert {row.method for row in spec.rows} <= known
    for claim in spec.claims:
        assert {claim.first, claim.second} - {""} <= rows
        assert set(claim.metric.split(",")) <= metrics
    assert len(list(cells_of(spec, [0, 1]))) % 2 == 0
    ids = [Outcome(experiment=spec.name, column=c.column.key, row=c.row.key, at=c.at, seed=c.seed).id
           for c in cells_of(spec, [0, 1])]  # fmt: skip
    assert len(set(ids)) == len(ids)


def test_all_tables_and_figures_are_there():
    wanted = {f"table-{number}" for number in range(1, 14)} | {"figure-9", "figure-10", "figure-11"}
    assert wanted <= {*EXPERIMENTS, *ALIASES}
    with pytest.raises(OptionError, match=r"no experiment 'table-77'.*did you mean table-7\?"):
        spec_of("table-77", "paper")


# Worlds -------------------------------------------------------------------------------------------------------------


def test_the_field_guide_gives_columns():
    world = FieldGuideWorld(queries=20, whole=3)
    column = Column(key="birds", title="Birds")
    task = world.task(column, {"categories": 20}, 1)
    assert len(task.names) == 20
    assert len(task.known(2, 1)) == 40
    assert len(task.known(None, 1)) == 60
    assert len(task.queries) == 20
    assert not task.words
    everything = world.task(Column(key="all", title="All"), {"categories": 50, "naming": True}, 0)
    assert len(everything.names) == len(set(everything.names)) == 50
    assert len(everything.queries) == 20
    assert {item.label for item in everything.queries.items} <= set(everything.names)
    assert set(everything.names) <= set(everything.words)
    assert len(everything.words) > 10_000
    captioned = {name for name in everything.names if f"a photo of a {name}." in everything.captions}
    assert len(captioned) == 25
    with pytest.raises(OptionError, match="multiple of 5"):
        world.task(Column(key="all", title="All"), {"categories": 51}, 0)


def test_a_data_set_half_of_which_is_missing_is_refused(tmp_path):
    from PIL import Image

    root = tmp_path / "data" / "eurosat"
    splits = {"train": [], "val": [], "test": []}
    for number in range(6):
        for split in ("train", "test"):
            name = f"Forest/{split}_{number}.jpg"
            splits[split].append([name, number % 2, ("Forest", "River")[number % 2]])
            path = root / "2750" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 9, 9)).save(path)
    (root / "split_zhou_EuroSAT.json").write_text(json.dumps(splits))
    world = BenchmarkWorld(tmp_path / "data")
    column = Column(key="eurosat", title="EuroSAT")
    task = world.task(column, {}, 0)
    assert len(task.queries) == 6
    assert len(task.known(1, 0)) == 2
    assert task.templates == ("a centered satellite photo of {}.",)
    limited = BenchmarkWorld(tmp_path / "data", limit=2, order="first")
    assert len(limited.task(column, {}, 0).queries) == 2
    first = limited.task(column, {}, 0).known(2, 5)
    assert {item.source.rsplit("_", 1)[1] for item in first.items} == {"0.jpg", "2.jpg", "1.jpg", "3.jpg"}
    (root / "2750" / "Forest" / "test_3.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 6 images are not there.*test_3\.jpg.*datasets check"):
        world.task(column, {}, 0)


# Verdicts -----------------------------------------------------------------------------------------------------------


def outcome(row, value, *, at=None, column="one", seed=0, images="", metric="top1"):
    return Outcome(
        experiment="table-7",
        column=column,
        row=row,
        at=at or {},
        seed=seed,
        n=100,
        values={metric: value},
        images=images,
    )


def write_images(folder, name, hits):
    path = folder / "images" / name
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps({"configuration": {}})]
    for number, hit in enumerate(hits):
        image = EvaluatedImage(source=str(number), label="a", ranked=("a",) if hit else ("b",), retrieved=("a", "b"))
        lines.append(json.dumps(asdict(image)))
    path.write_text("\n".join(lines) + "\n")
    return f"images/{name}"


def gain_spec(**changes):
    claim = Claim(text="Gains.", kind="gain", first="rar", second="knn")
    return colours_spec(axis=None, claims=(claim,), **changes)


@pytest.mark.parametrize(
    ("first", "second", "word"), [(90, 50, "holds"), (50, 90, "does not hold"), (52, 50, "undecided")]
)
def test_a_gain_is_judged_by_paired_images(tmp_path, first, second, word):
    rows = []
    for row, right in (("rar", first), ("knn", second)):
        hits = [(number * 37) % 100 < right for number in range(100)]
        rows.append(outcome(row, right / 100, images=write_images(tmp_path, row, hits)))
    if word == "undecided":  # other images are right, so that the difference is within chance
        hits = [(number * 59 + 7) % 100 < first for number in range(100)]
        rows[0] = outcome("rar", first / 100, images=write_images(tmp_path, "rar", hits))
    (verdict,) = judge(gain_spec(), rows, tmp_path)
    assert verdict.verdict == word
    assert f"{first - second:+.1f}" in verdict.evidence
    assert " to " in verdict.evidence


def test_without_images_there_is_no_interval(tmp_path):
    (verdict,) = judge(gain_spec(), [outcome("rar", 0.6), outcome("knn", 0.5)], tmp_path)
    assert verdict.verdict == "holds"
    assert "+10.0" in verdict.evidence
    assert " to " not in verdict.evidence
    assert "without interval" in verdict.evidence


def test_a_row_that_is_missing_is_not_judged(tmp_path):
    gone = replace(outcome("rar", None), why="no MLLM was given")
    (verdict,) = judge(gain_spec(), [gone, outcome("knn", 0.5)], tmp_path)
    assert verdict.verdict == "not measured"
    assert "no MLLM was given" in verdict.evidence


def test_clusters_are_paired_by_image(tmp_path):
    (tmp_path / "naming").mkdir()
    rows = []
    for row, names in (("rar", ["x", "x", "y", "y"] * 10), ("knn", ["x", "x", "x", "x"] * 10)):
        lines = [json.dumps({"configuration": {}})]
        for number, name in enumerate(names):
            label = "ab"[number % 4 // 2]
            image = EvaluatedImage(source=str(number), label=label, ranked=(name,), retrieved=(name,))
            lines.append(json.dumps(asdict(image)))
        (tmp_path / "naming" / row).write_text("\n".join(lines) + "\n")
        value = 1.0 if row == "rar" else 0.5
        rows.append(outcome(row, value, images=f"naming/{row}", metric="cacc"))
    claim = Claim(text="Gains.", kind="gain", first="rar", second="knn", metric="cacc")
    (verdict,) = judge(colours_spec(axis=None, claims=(claim,)), rows, tmp_path)
    assert verdict.verdict == "holds"
    assert "+50.0 (+3" in verdict.evidence


def test_trends_and_what_is_flat(tmp_path):
    claims = (
        Claim(text="Rises.", kind="rises", first="rar"),
        Claim(text="Falls.", kind="falls", first="rar"),
        Claim(text="Flat.", kind="flat", first="rar", margin=0.02),
        Claim(text="Alike.", kind="alike", first="rar", second="knn", margin=0.02),
    )
    spec = colours_spec(claims=claims)
    rows = [outcome("rar", 0.5, at={"shots": 1}), outcome("rar", 0.7, at={"shots": 2})]
    rows += [outcome("knn", 0.51, at={"shots": 1}), outcome("knn", 0.69, at={"shots": 2})]
    assert [v.verdict for v in judge(spec, rows, tmp_path)] == ["holds", "does not hold", "does not hold", "holds"]
    flat = [replace(each, values={"top1": 0.5}) for each in rows]
    assert [v.verdict for v in judge(spec, flat, tmp_path)] == ["undecided", "undecided", "holds", "holds"]


def test_recall_rises_over_metrics(tmp_path):
    metrics = tuple(Metric(key=f"recall{k}", title=f"recall@{k}") for k in (1, 5))
    claim = Claim(text="Rises.", kind="rises", first="knn", metric="recall1,recall5")
    spec = colours_spec(axis=None, metrics=metrics, claims=(claim,))
    both = replace(outcome("knn", 0.5), values={"recall1": 0.5, "recall5": 0.9})
    (verdict,) = judge(spec, [both], tmp_path)
    assert verdict.verdict == "holds"
    assert "+40.0" in verdict.evidence


def test_outcomes_are_the_last_of_their_cell(tmp_path):
    path = tmp_path / OUTCOMES
    assert read_outcomes(path) == []
    append_outcome(path, outcome("rar", 0.1))
    append_outcome(path, outcome("rar", 0.2))
    append_outcome(path, outcome("rar", 0.3, seed=1))
    assert [each.values["top1"] for each in read_outcomes(path)] == [0.2, 0.3]


def test_an_axis_names_its_places():
    spec = colours_spec(axis=Axis(key="k", title="k", values=(3, 5)))
    assert [dict(at) for at in spec.places] == [{"k": 3}, {"k": 5}]
    with pytest.raises(OptionError, match="different keys"):
        colours_spec(rows=(spec.rows[0], spec.rows[0]))


# Regions ------------------------------------------------------------------------------------------------------------


def test_boxes_of_scenes_and_given_scores(tmp_path):
    from rarvision.detection import Detections, write_detections
    from rarvision.experiments import embedded_lab

    world = FieldGuideWorld(scenes=1)
    spec = spec_of("table-3", "field-guide")
    column = replace(spec.columns[0], options={**spec.columns[0].options, "categories": 50})
    given = Row(key="regionclip", title="RegionCLIP", method="region-given")
    spec = replace(spec, columns=(column,), rows=(spec.row("clip"), given, spec.row("rar")))
    with embedded_lab(tmp_path / "one", world) as lab:
        clip, none, rar = run_experiment(spec, lab)
    assert none.why == "no text-region scores were given (--region-scores)"
    assert clip.n == rar.n > 10
    assert set(clip.values) >= {"AP", "APr", "APs", "top1"}
    assert rar.values["top1"] >= clip.values["top1"]
    # the truth itself as somebody's scores has every box right
    boxes = world.regions(column, column.options, 0, tmp_path)
    truth = boxes.annotations
    perfect = Detections(
        image_ids=truth.image_ids[truth.box_images],
        category_ids=truth.category_ids,
        boxes_xywh=truth.boxes_xywh,
        scores=np.ones(len(truth.category_ids)),
    )
    write_detections(tmp_path / "scores.json", perfect)
    with embedded_lab(tmp_path / "two", world, region_scores=tmp_path / "scores.json") as lab:
        (found,) = run_experiment(replace(spec, rows=(given,), claims=()), lab)
    assert found.values["AP"] == pytest.approx(1.0)
    assert found.encoder == "scores.json"
