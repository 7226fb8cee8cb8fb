"""Encoding by Ray workers: the entries of the local engine, whatever dies; each scenario in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from needs import need
from tiny_encoders import tiny_clip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _ray():
    need("ray", "pyarrow", group="scale")


def python(*arguments):
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )


def play(scenario, folder):
    ended = python(HERE / "ray_world.py", scenario, folder)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_one_machine(tmp_path):
    tiny_clip(tmp_path / "clip")
    result = play("one_machine", tmp_path)
    assert result["ray"] == result["plain"] == {"added": 40, "skipped": 1, "failed": 2}
    assert result["done"] == 43
    assert result["failures"] == [["broken", "ImageError"], ["unlabelled", "InputError"]]
    assert result["same_failures"]
    assert result["compared"].pop("cosine") >= 1 - 1e-6
    assert result["compared"] == {"same_entries": True, "same_records": True, "thumbnails": 40, "count": 40}
    assert "cannot be loaded so; give load=" in result["by_name"]
    assert "the memory was made by the encoder fake:24:0; the workers load fake (fake:24:1)" in result["other"]
    assert "not an image" in result["broken"]
    assert result["before_broken"] == 10, "what came before the bad image is stored"
    assert "has no label" in result["unlabelled"]
    assert result["before_unlabelled"] == 15
    assert (result["stopped"], result["after_stop"]) == ("", 27), "batches that were stored stay stored"
    assert result["resumed"] == {"added": 13, "skipped": 27, "failed": 0}
    assert result["sources_in_order"]
    assert result["again"] == {"added": 0, "skipped": 40, "failed": 0}


def test_a_node_that_is_killed_costs_time_only(tmp_path):
    result = play("lost_node", tmp_path)
    assert (result["nodes"], result["left"]) == (2, 1)
    assert result["busy_nodes"] == 2, "both were at work"
    assert result["killed"][0] < 100, "it was killed midway"
    assert result["ray"] == {"added": 120, "skipped": 0, "failed": 0}
    assert result["compared"].pop("cosine") >= 1 - 1e-6
    assert result["compared"] == {"same_entries": True, "same_records": True, "thumbnails": 120, "count": 120}


def test_no_cluster_there(tmp_path):
    result = play("unreachable", tmp_path)
    assert "cannot start or reach the Ray cluster 127.0.0.1:1" in result["told"]
    assert result["count"] == 0


def test_the_command_prints_json_and_nothing_else(tmp_path):
    from PIL import Image

    for colour in ("red", "blue"):
        (tmp_path / "train" / colour).mkdir(parents=True)
        for n in range(4):
            Image.new("RGB", (20 + n, 20), colour).save(tmp_path / "train" / colour / f"{n}.png")
    command = ("-m", "rarvision", "memory")
    made = python(*command, "create", tmp_path / "m", "--encoder", tiny_clip(tmp_path / "clip"), "--json")
    assert made.returncode == 0, made.stderr
    added = python(
        *command, "add", tmp_path / "m", tmp_path / "train", "--engine", "ray", "--workers", 1, "--with-names", "--json"
    )
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout) == {"added": 10, "skipped": 0, "failed": 0, "entries": 10, "categories": 2}
    assert [line for line in added.stderr.splitlines() if "logging.cc" not in line] == []  # Ray's own, of its level
