"""``rarvision evaluate``: the report, and what it refuses."""

import json

from cli_world import table


def test_evaluate(run, memory, tree, tmp_path):
    result = run("evaluate", tree, "--memory", memory, "--json")
    report = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert (report["n"], report["top1"], report["failures"]) == (15, 1.0, 0)
    assert {"topk", "recall", "retrieval_top1", "fallback_rate", "repaired_rate", "ranking_ms"} <= set(report)
    assert "100.0%" in run("evaluate", tree, "-m", memory).stdout
    file, out = tmp_path / "report.csv", tmp_path / "run.jsonl"
    run("evaluate", tree, "-m", memory, "-r", "x", "--csv", file, "--output", out)
    (row,) = table(file)
    assert float(row["top1_interval_low"]) <= float(row["topk_1"]) == float(row["top1"])
    assert not any(name.startswith("configuration") for name in row)
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
