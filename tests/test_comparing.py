"""Comparing two evaluations: figures against the reports, refusals, seeds, and the command."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from colour_world import COLOURS, Pictures, ScriptedRanker, make_memory
from rarvision.comparing import compare_runs
from rarvision.errors import InputError
from rarvision.evaluate import EvaluatedImage, evaluate
from rarvision.metrics import paired_test
from rarvision.pipeline import Recognizer
from rarvision.taxonomy import Taxonomy


def write(path, answers, labels, *, k=2, **settings):
    """A results file as an evaluation writes it; an answer of None is a failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"configuration": {"retriever": {"k": k}, **settings}}]
    for i, (answer, label) in enumerate(zip(answers, labels, strict=True)):
        if answer is None:
            image = EvaluatedImage(source=f"{i}.png", label=label, error="ImageError: broken")
        else:
            image = EvaluatedImage(source=f"{i}.png", label=label, ranked=(answer, "z"), retrieved=("z", answer))
        lines.append(asdict(image))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    labels = [f"c{i % 7}" for i in range(120)]
    rows = [[label if rng.random() < share else "other" for label in labels] for share in (0.5, 0.75)]
    rows[0][3] = None
    return (*rows, labels)


def test_figures_are_those_of_the_rows(tmp_path, answers):
    first, second, labels = answers
    a, b = write(tmp_path / "a.jsonl", first, labels, k=5, x=1), write(tmp_path / "b.jsonl", second, labels, x=2)
    found = compare_runs(a, b, resamples=999)
    right = [[answer == label for answer, label in zip(row, labels, strict=True)] for row in (first, second)]
    assert found.metrics["top1"] == paired_test(*right, resamples=999)
    assert (found.n, found.seeds, found.failures) == (120, 1, (1, 0))
    assert list(found.metrics) == ["top1", "retrieval_top1", "top2", "recall2", "cacc", "sacc"]
    assert found.metrics["retrieval_top1"].first == 0.0
    assert found.metrics["recall2"].difference == found.metrics["top1"].difference
    assert found.metrics["sacc"].p_mcnemar is None
    assert found.differing == {"retriever.k": (5, 2), "x": (1, 2)}
    values = json.loads(found.to_json())
    assert values["metrics"]["top1"]["difference"] == found.metrics["top1"].difference
    assert "spelling" in values["name_encoder"]
    assert found.to_markdown().count("\n| ") >= 8


def test_order_does_not_matter_and_the_last_line_counts(tmp_path, answers):
    first, second, labels = answers
    a, b = write(tmp_path / "a.jsonl", first, labels), write(tmp_path / "b.jsonl", second, labels)
    expected = compare_runs(a, b).metrics
    head, *images = b.read_text().splitlines()
    stale = json.dumps({**json.loads(images[0]), "ranked": ["nonsense"]})
    b.write_text("\n".join([head, stale, *reversed(images)]) + "\n")
    assert compare_runs(a, b).metrics == expected


def test_seeds_are_files_of_a_folder(tmp_path, answers):
    first, second, labels = answers
    for seed in range(3):
        write(tmp_path / "a" / f"{seed}.jsonl", np.roll(first, seed).tolist(), labels)
        write(tmp_path / "b" / f"{seed}.jsonl", second, labels)
    found = compare_runs(tmp_path / "a", tmp_path / "b", resamples=500)
    assert (found.seeds, found.metrics["top1"].p_mcnemar, found.failures) == (3, None, (3, 0))
    rows = [[[x == y for x, y in zip(np.roll(first, s).tolist(), labels, strict=True)] for s in range(3)],
            [[x == y for x, y in zip(second, labels, strict=True)]] * 3]  # fmt: skip
    assert found.metrics["top1"] == paired_test(*rows, resamples=500)
    (tmp_path / "b" / "2.jsonl").rename(tmp_path / "b" / "two.jsonl")
    with pytest.raises(InputError, match=r"without a partner: .*a: 2\.jsonl; .*b: two\.jsonl"):
        compare_runs(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match="two files or two folders"):
        compare_runs(tmp_path / "a", tmp_path / "b" / "0.jsonl")
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="holds none"):
        compare_runs(tmp_path / "c", tmp_path / "c")


def test_other_images_and_labels_are_refused_by_name(tmp_path, answers):
    first, second, labels = answers
    a = write(tmp_path / "a.jsonl", first, labels)
    fewer = write(tmp_path / "b.jsonl", second[:-2], labels[:-2])
    with pytest.raises(InputError, match=r"2 only in .*a\.jsonl \(118\.png, 119\.png\)"):
        compare_runs(a, fewer)
    with pytest.raises(InputError, match=r"2 only in .*a\.jsonl"):
        compare_runs(fewer, a)
    other = write(tmp_path / "c.jsonl", second, ["else", *labels[1:]])
    with pytest.raises(InputError, match=r"for 1 images: 0\.png is 'c0' in the first, 'else' in the second"):
        compare_runs(a, other)


def test_what_is_no_results_file_is_refused(tmp_path, answers):
    a = write(tmp_path / "a.jsonl", *answers[1:])
    with pytest.raises(InputError, match="no such file"):
        compare_runs(a, tmp_path / "none.jsonl")
    (tmp_path / "text.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="not the file of an evaluation"):
        compare_runs(a, tmp_path / "text.jsonl")
    with pytest.raises(InputError, match="holds no images"):
        compare_runs(a, write(tmp_path / "empty.jsonl", [], []))
    head, *rest = a.read_text().splitlines()
    (tmp_path / "odd.jsonl").write_text("\n".join(['{"configuration": {}}', *rest]) + "\n")
    with pytest.raises(InputError, match="names no retriever"):
        compare_runs(a, tmp_path / "odd.jsonl")
    (tmp_path / "audit.jsonl").write_text(f'{head}\n{{"source": "a", "orders": []}}\n')
    with pytest.raises(InputError, match="not the file of an evaluation"):
        compare_runs(a, tmp_path / "audit.jsonl")


def test_levels_of_a_taxonomy(run, tmp_path, answers):
    first, _, labels = answers
    a, b = write(tmp_path / "a.jsonl", first, labels), write(tmp_path / "b.jsonl", ["c1"] * len(labels), labels)
    tree = {f"c{i}": ["odd" if i % 2 else "even"] for i in range(7)}
    found = compare_runs(a, b, taxonomy=Taxonomy(tree, levels=("parity", "name")))
    assert found.metrics["top1_parity"].second == pytest.approx(np.mean([int(label[1]) % 2 for label in labels]))
    assert found.metrics["top1_parity"].first == found.metrics["top1"].first, "a name that the tree lacks is wrong"
    assert "right at parity" in found.to_markdown()
    fewer = Taxonomy({name: groups for name, groups in tree.items() if name != "c6"}, levels=("parity", "name"))
    with pytest.raises(InputError, match=r"lacks 1 of the labels of .*a\.jsonl: 'c6'"):
        compare_runs(a, b, taxonomy=fewer)
    file = tmp_path / "tree.csv"
    file.write_text("parity,name\n" + "".join(f"{i % 2},c{i}\n" for i in range(7)))
    assert "right at parity" in run("compare", a, b, "--taxonomy", file).stdout
    assert "no memory here" in run("compare", a, b, "--taxonomy", "metadata:x", code=2).stderr


def test_files_of_real_runs(tmp_path):
    with make_memory(tmp_path / "memory") as memory:
        kept, always = tmp_path / "kept.jsonl", tmp_path / "blue.jsonl"
        alone = evaluate(Recognizer(memory, k=6), Pictures(COLOURS), out=kept)
        ranker = Recognizer(memory, k=6, ranker=ScriptedRanker("blue"), ranker_weight="replace")
        ranked = evaluate(ranker, Pictures(COLOURS), out=always)
    found = compare_runs(kept, always)
    assert found.metrics["top1"].first == alone.top1 == 1.0
    assert found.metrics["top1"].second == ranked.top1 == pytest.approx(1 / 6)
    assert found.metrics["top1"].only_first == 5
    assert found.metrics["top1"].p_mcnemar == pytest.approx(2 / 32)
    assert {"ranker", "ranker_weight"} <= set(found.differing)
    assert "memory_content" not in found.differing


def test_command(run, tmp_path, answers):
    first, second, labels = answers
    a, b = write(tmp_path / "a.jsonl", first, labels), write(tmp_path / "b.jsonl", second, labels)
    result = run("compare", a, b, "--resamples", 500, "--json")
    report = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert report["metrics"]["top1"] == json.loads(compare_runs(a, b, resamples=500).to_json())["metrics"]["top1"]
    text = run("compare", a, b, "--confidence", 0.9).stdout
    assert "90 % interval" in text
    assert "cACC" in text
    assert "without an answer" in text
    assert "is 'c0'" in run("compare", a, write(tmp_path / "c", first, ["x", *labels[1:]]), code=2).stderr
    assert "confidence" in run("compare", a, b, "--confidence", 1.5, code=2).stderr
    assert "no memory here" in run("compare", a, b, "--name-encoder", "memory", code=2).stderr
