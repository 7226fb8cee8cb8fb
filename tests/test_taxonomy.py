"""Trees over categories: groups, sums up the tree, right at which level, thresholds; reading them; in results."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colour_world import COLOURS, Pictures, make_memory
from rarvision.datasets import field_guide_taxonomy, open_taxonomy, taxonomy_of_metadata
from rarvision.datasets.fieldguide import FieldGuide
from rarvision.errors import DatasetError, InputError, OptionError
from rarvision.evaluate import evaluate
from rarvision.fitting import fit_recognizer
from rarvision.pipeline import Recognizer
from rarvision.retrieval import Retriever
from rarvision.taxonomy import Taxonomy, check_sure, fit_sure
from rarvision.types import Sample

PATHS = {"crow": ("birds", "corvus"), "raven": ("birds", "corvus"), "finch": ("birds", "fringilla"),
         "carp": ("fish", "cyprinus"), "pike": ("fish", "esox")}  # fmt: skip
TREE = Taxonomy(PATHS, levels=("class", "genus", "species"), name="tree")
NAMES = [*PATHS, "unicorn"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.floats(0.01, 1), min_size=1), st.floats(0.5, 1))
def test_sums_up_the_tree_agree_with_a_plain_rewrite(weights, total):
    shares = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
    answers = {answer.level: answer for answer in TREE.answers(shares)}
    for depth, level in enumerate(TREE.levels):
        sums = {}
        for name, share in shares.items():
            group = name if depth == 2 else PATHS[name][depth] if name in PATHS else None
            sums[group] = sums.get(group, 0.0) + share
        sums.pop(None, None)
        if sums:
            assert answers[level].probability == pytest.approx(max(sums.values()))
            assert sums[answers[level].name] == pytest.approx(max(sums.values()))
        else:
            assert level not in answers
    known = [answer.probability for answer in TREE.answers({n: p for n, p in shares.items() if n in PATHS})]
    assert known == sorted(known, reverse=True), "the finer, the less sure"


def test_right_at_which_level():
    predicted = ["crow", "raven", "finch", "carp", None, "unicorn"]
    expected = [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(TREE.hits(predicted, ["crow"] * 6), np.array(expected, dtype=bool))
    assert TREE.right(["birds", "esox", None], "crow", groups=True).tolist() == [True, False, False]
    with pytest.raises(InputError, match="no category 'unicorn'"):
        TREE.hits(["crow"], ["unicorn"])


def test_fingerprint_and_check():
    again = Taxonomy(dict(reversed(PATHS.items())), levels=TREE.levels)
    assert again.fingerprint == TREE.fingerprint
    assert Taxonomy({**PATHS, "pike": ("fish", "other")}, levels=TREE.levels).fingerprint != TREE.fingerprint
    with pytest.raises(InputError, match=r"tree \(5 categories\) lacks 4 of the labels: 'a', 'b', 'c', …"):
        TREE.check(["a", "b", "c", "d", "crow"], "the labels")


@pytest.mark.parametrize(
    ("paths", "levels", "message"),
    [
        ({}, ("a", "b"), "at least one category"),
        ({"x": ()}, ("a",), "two levels"),
        ({"x": ("g",)}, ("a", "a"), "each once"),
        ({"x": ("g", "h")}, ("a", "b"), "has 3 names"),
        ({"x": (" ",)}, ("a", "b"), "has no a"),
        ({"x": ("g", "m"), "y": ("h", "m")}, ("a", "b", "c"), "b 'm' lies in two groups of the level a: 'g' and 'h'"),
    ],
)
def test_what_is_no_tree_is_refused(paths, levels, message):
    with pytest.raises(InputError, match=message):
        Taxonomy(paths, levels=levels)


def test_the_field_guide_has_a_tree():
    tree = field_guide_taxonomy()
    for domain in ("birds", "fish", "flowers", "butterflies", "aircraft"):
        for name in FieldGuide(domain, categories=30).names:
            first, second, pattern, shape, kind = name.split(" ")
            assert tree.path(name) == (domain, kind, f"{shape} {kind}", f"{pattern} {shape} {kind}", name)
            del first, second
    assert len(tree) == 5 * 10 * 10 * 6 * 5 * 5


def test_trees_from_files(tmp_path):
    csv, nested, rows = tmp_path / "t.csv", tmp_path / "t.json", tmp_path / "rows.json"
    csv.write_text("class,genus,species\n" + "".join(f"{a},{b},{name}\n" for name, (a, b) in PATHS.items()))
    levels = ["class", "genus", "species"]
    tree = {
        "birds": {"corvus": ["crow", "raven"], "fringilla": ["finch"]},
        "fish": {"cyprinus": ["carp"], "esox": ["pike"]},
    }
    nested.write_text(json.dumps({"levels": levels, "tree": tree}))
    rows.write_text(json.dumps([{"class": a, "genus": b, "species": name} for name, (a, b) in PATHS.items()]))
    assert {open_taxonomy(path).fingerprint for path in (csv, nested, rows)} == {TREE.fingerprint}
    csv.write_text("label;genus\ncrow;corvus\ncrow;corvus\ncarp;cyprinus\n")
    assert (open_taxonomy(csv).levels, open_taxonomy(csv).path("crow")) == (("genus", "label"), ("corvus", "crow"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "a", "expected a .csv"),
        ("none.csv", None, "no such file"),
        ("t.csv", "class,species\n", "no rows"),
        ("t.csv", "class,species\nbirds,\n", "line 2: expected a name for each level"),
        ("t.csv", "class,species\nbirds,crow\nfish,crow\n", "line 3: 'crow' lies in fish; before in birds"),
        ("t.csv", "a,b,c\nx,m,1\ny,m,2\n", "lies in two groups"),
        ("t.csv", "species\ncrow\n", "two levels"),
        ("t.json", "{", "not JSON"),
        ("t.json", '{"levels": ["a", "b"]}', 'or {"levels"'),
        ("t.json", '{"levels": ["a", "b"], "tree": {"x": {"y": 1}}}', "x: expected a list"),
        ("t.json", '{"levels": ["a", "b", "c"], "tree": {"x": ["y"]}}', "x: expected an object"),
        ("t.json", '{"levels": ["a", "b"], "tree": {"x": ["n"], "y": ["n"]}}', "two places"),
        ("t.json", '[{"a": "x", "b": "y"}, {"a": "x"}]', "row 2: expected the levels a, b"),
        ("t.json", '["a"]', "row 1: expected a name"),
    ],
)
def test_files_that_are_no_trees(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=re.escape(message)):
        open_taxonomy(tmp_path / name)


def test_trees_from_metadata():
    entries = [(name, {"class": a, "genus": b, "x": 1}) for name, (a, b) in PATHS.items()]
    tree = taxonomy_of_metadata([*entries, ("crow", {})], ["class", "genus"])
    assert tree.path("crow") == ("birds", "corvus", "crow")
    assert tree.levels == ("class", "genus", "category")
    with pytest.raises(InputError, match=r"'crow' lies in \['birds'\] and in \['fish'\]"):
        taxonomy_of_metadata([("crow", {"c": "birds"}), ("crow", {"c": "fish"})], ["c"])
    with pytest.raises(InputError, match="nothing says the c of 'crow'"):
        taxonomy_of_metadata([("crow", {})], ["c"])


def test_the_threshold_is_the_lowest_that_reaches_the_target():
    rng = np.random.default_rng(0)
    shares = np.sort(rng.random((150, 3)), axis=1)[:, ::-1]
    right = rng.random((150, 3)) < shares
    weights = rng.random(150)

    def accuracy(threshold, rows=slice(None)):
        given = hit = 0.0
        for p, r, w in zip(shares[rows], right[rows], weights[rows], strict=True):
            depths = [depth for depth in range(3) if p[depth] >= threshold]
            if depths:
                given, hit = given + w, hit + w * r[depths[-1]]
        return hit / given if given else None

    fit, reason = fit_sure(shares, right, taxonomy="t", weights=weights, target=0.9)
    assert reason is None
    reached = [t for t in np.unique(shares) if accuracy(t) >= 0.9]
    assert fit.threshold == pytest.approx(min(reached))
    assert (fit.taxonomy, fit.images, fit.target) == ("t", 150, 0.9)
    assert 0.75 < fit.accuracy <= 1.0
    assert 0.0 < fit.answered <= 1.0
    assert fit_sure(shares[:39], right[:39], taxonomy="t") == (None, "39 images were left out, at least 40 are needed")
    assert fit_sure(shares, np.zeros_like(right), taxonomy="t")[1] == "at no threshold are 95% of the answers right"
    with pytest.raises(OptionError, match="accuracy"):
        fit_sure(shares, right, taxonomy="t", target=0.0)
    for wrong in (0.0, 1.5, True, "x"):
        with pytest.raises(OptionError, match="sure"):
            check_sure(wrong)


WARM = Taxonomy(
    {c: ["warm" if c in ("red", "yellow", "white") else "cold"] for c in COLOURS}, levels=("tone", "colour")
)


@pytest.fixture
def memory(tmp_path):
    with make_memory(tmp_path / "memory") as made:
        yield made


def test_predictions_answer_at_each_level(memory):
    recognizer = Recognizer(memory, k=6, taxonomy=WARM, sure=0.6)
    assert recognizer.taxonomy is WARM
    for prediction in recognizer.recognize_batch(Pictures(COLOURS)):
        tone, colour = prediction.levels
        members = [c.probability for c in prediction.candidates if WARM.path(c.category)[0] == tone.name]
        assert tone.probability == pytest.approx(sum(members))
        assert (colour.name, colour.probability) == (prediction.label, pytest.approx(prediction.probability))
        deep = colour if colour.probability >= 0.6 else tone if tone.probability >= 0.6 else None
        assert prediction.sure == deep
        assert prediction.outside == ()
    plain = Recognizer(memory, k=6).recognize(next(iter(Pictures(COLOURS))))
    assert (plain.levels, plain.sure) == ((), None)
    assert "taxonomy" not in Recognizer(memory).settings
    assert recognizer.settings["taxonomy"]["sure"] == 0.6
    assert recognizer.with_ranker(None).settings == recognizer.settings


def test_categories_that_the_tree_lacks(memory):
    with pytest.raises(InputError, match=r"lacks 1 of the memory's categories: 'white'"):
        Recognizer(memory, taxonomy=Taxonomy({c: ["x"] for c in COLOURS[:-1]}, levels=("a", "b")))
    recognizer = Recognizer(memory, k=7, taxonomy=WARM)
    image = Pictures(["red"])[0].image
    memory.add([Sample(source="new", image=image, label="scarlet")])
    prediction = recognizer.recognize(image)
    assert prediction.outside == ("scarlet",)
    known = sum(c.probability for c in prediction.candidates if c.category != "scarlet")
    assert prediction.levels[0].probability <= known + 1e-9


def test_reports_and_files_hold_the_levels(memory, tmp_path):
    out = tmp_path / "run.jsonl"
    labels = ["red", "green", "blue", "blue", "white", "black"]  # yellow called blue; black and white exchanged
    recognizer = Recognizer(memory, k=3, taxonomy=WARM, sure=0.3)
    report = evaluate(recognizer, Pictures(COLOURS, labels, broken=[0]), out=out)
    predictions = [None, *recognizer.recognize_batch(list(Pictures(COLOURS))[1:])]
    tones = [None if p is None else WARM.path(p.label)[0] for p in predictions]
    right = [tone == WARM.path(label)[0] for tone, label in zip(tones, labels, strict=True)]
    assert report.levels["tone"].top1 == pytest.approx(np.mean(right))
    assert report.levels["colour"].top1 == report.top1
    sure = [
        (p.sure, label) for p, label in zip(predictions, labels, strict=True) if p is not None and p.sure is not None
    ]
    hit = [s.name == dict(zip(WARM.levels, WARM.path(label), strict=True))[s.level] for s, label in sure]
    assert (report.sure.answered, report.sure.threshold) == (pytest.approx(len(sure) / 6), 0.3)
    assert report.sure.right == pytest.approx(np.mean(hit))
    assert sum(level.sure for level in report.levels.values()) == pytest.approx(report.sure.answered)
    rows = dict(report.table())
    assert {"right at tone", "right at colour", "sure from 30% on"} <= set(rows)
    values = json.loads(report.to_json())
    assert values["levels"]["tone"]["top1"] == report.levels["tone"].top1
    again = evaluate(recognizer, Pictures(COLOURS, labels, broken=[0]), out=out)
    assert (again.levels, again.sure) == (report.levels, report.sure)
    with pytest.raises(InputError, match="taxonomy"):
        evaluate(Recognizer(memory, k=3, taxonomy=WARM, sure=0.4), Pictures(COLOURS, labels), out=out)
    with pytest.raises(InputError, match=r"lacks 1 of the labels of pictures: 'pink'"):
        evaluate(recognizer, Pictures(["red"], ["pink"]))


def test_the_threshold_is_fitted_on_the_memory(tmp_path):
    with make_memory(tmp_path / "memory", shots=12) as memory:
        retriever = Retriever(memory, k=4)
        recognizer = Recognizer(memory, retriever=retriever, taxonomy=WARM)
        with pytest.raises(OptionError, match="nothing was fitted"):
            Recognizer(memory, retriever=retriever, taxonomy=WARM, sure=True)
        fit = fit_recognizer(recognizer, sure_accuracy=0.9)
        assert fit.sure is not None, fit.sure_reason
        assert fit.sure.taxonomy == WARM.fingerprint
        assert type(fit).from_dict(json.loads(json.dumps(fit.to_dict()))) == fit
        fitted = Recognizer(memory, retriever=retriever, taxonomy=WARM, sure=True)
        assert fitted.settings["taxonomy"]["sure"] == fit.sure.threshold
        other = Taxonomy({c: ["all"] for c in COLOURS}, levels=("a", "b"))
        with pytest.raises(OptionError, match="another taxonomy"):
            Recognizer(memory, retriever=retriever, taxonomy=other, sure=True)
        with pytest.raises(OptionError, match="give a taxonomy"):
            Recognizer(memory, retriever=retriever, sure=True)
        bare = fit_recognizer(Recognizer(memory, retriever=retriever))
        assert (bare.sure, bare.sure_reason) == (None, "there was no taxonomy to fit it for")
        with pytest.raises(OptionError, match="the fit has none: there was no taxonomy"):
            Recognizer(memory, retriever=retriever, taxonomy=WARM, sure=True)
