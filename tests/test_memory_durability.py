"""Kills, crashes that lose what was not synced, full disks: nothing acknowledged is lost, nothing half-done shows."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import crash_world
from needs import do_without
from rarvision.errors import MemoryStoreError
from rarvision.memory import LocalMemory
from rarvision.testing import FakeEncoder

HERE = Path(__file__).parent
KILLS = int(os.environ.get("RARVISION_KILLS", "40"))
CRASHES = int(os.environ.get("RARVISION_CRASHES", "12"))
PAGE = 4_096

pytestmark = pytest.mark.slow


def test_nothing_is_lost_by_killing_the_writer(tmp_path):
    command = [sys.executable, str(HERE / "kill_trials.py"), str(tmp_path / "memory"), str(KILLS), "0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["trials"] == KILLS
    assert found["steps"] > KILLS / 4, "the writer must have come somewhere"
    assert found["repaired"] > 0, "some kills must have hit the middle of writing, and opening must say so"


# Crashes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shadow_library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        do_without("a C compiler on Linux, to build the layer that remembers what was synced")
    library = tmp_path_factory.mktemp("shadow") / "crash_shadow.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "crash_shadow.c"), "-ldl"], check=True
    )
    return library


def crash(base, shadow, library, seconds, first, **environment):
    """Write from step ``first`` on, and stop dead after so long; returns how many steps were acknowledged."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "crash_world.py"), str(base / "memory"), str(first)],
        env={**os.environ, "LD_PRELOAD": str(library), "CRASH_SHADOW": str(shadow), **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        said = process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        lines = [said, *process.stdout.read().splitlines(keepends=True)]
    return max([first, *(int(line) + 1 for line in lines if line.endswith("\n"))])


def survivor(base, shadow, out, generator):
    """What the disk may hold after the crash: all that was synced; of the rest, nothing or, by chance, parts.

    Without a generator what was not synced is lost. With one, each name that came or went in a folder since it was
    synced has or has not, whatever came first, and each page that was written since is the old or the new one.
    """
    out.mkdir()
    listing = shadow / f"folder-{base.stat().st_ino}"
    synced = dict(reversed(line.split(" ", 1)) for line in listing.read_text().splitlines()) if listing.exists() else {}
    present = {path.name: str(path.stat().st_ino) for path in base.iterdir()}
    names = dict(synced)
    if generator is not None:
        for name in sorted({*synced, *present}):
            if synced.get(name) != present.get(name) and generator.random() < 0.5:
                names.pop(name, None)
                if name in present:
                    names[name] = present[name]
    for name, inode in names.items():
        if name.endswith("-shm"):
            continue  # shared memory, rebuilt by whoever opens first
        there = base / name if present.get(name) == inode else None
        if there is not None and there.is_dir():
            survivor(there, shadow, out / name, generator)
            continue
        if (shadow / f"folder-{inode}").exists():
            continue  # a folder that was renamed away since
        kept = shadow / f"file-{inode}"
        old = kept.read_bytes() if kept.exists() else b""
        new = there.read_bytes() if there is not None else old
        (out / name).write_bytes(old if generator is None else mixed(old, new, generator))


def mixed(old, new, generator):
    """Page by page the old or the new content; the length is one of both."""
    size = generator.choice((len(old), len(new)))
    pages = []
    for start in range(0, size, PAGE):
        chosen = generator.choice((old, new))
        page = chosen[start : min(start + PAGE, size)]
        pages.append(page + b"\0" * (min(PAGE, size - start) - len(page)))
    return b"".join(pages)


@pytest.fixture
def world(tmp_path, shadow_library):
    """A memory made under the eyes of the layer."""
    base, shadow = tmp_path / "disk", tmp_path / "shadow"
    base.mkdir()
    shadow.mkdir()
    code = (
        "import sys; from rarvision.memory import LocalMemory; from rarvision.testing import FakeEncoder; "
        f"LocalMemory.create(sys.argv[1], encoder=FakeEncoder(dim={crash_world.DIM}), index='hnsw').close()"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(base / "memory")],
        env={**os.environ, "LD_PRELOAD": str(shadow_library), "CRASH_SHADOW": str(shadow)},
        check=True,
    )
    return base, shadow, shadow_library


def test_nothing_is_lost_by_a_crash_that_drops_what_was_not_synced(world, tmp_path):
    base, shadow, library = world
    generator = random.Random(1)
    held = 0
    for trial in range(CRASHES):
        acknowledged = crash(base, shadow, library, generator.uniform(0.05, 0.6), held)
        survivors = []
        for kind in range(4):
            out = tmp_path / f"disk {trial} {kind}"
            survivor(base, shadow, out, None if kind == 0 else generator)
            survivors.append((out, crash_world.steps_held(out / "memory", acknowledged)[0]))
        base, held = survivors.pop(generator.randrange(len(survivors)))  # the writer goes on with one of them
        shadow = tmp_path / f"shadow {trial}"
        shadow.mkdir()
        as_synced(base, shadow)
        for out, _ in survivors:
            shutil.rmtree(out)
    assert held > CRASHES


def as_synced(folder, shadow):
    """Take a folder as it is for what the disk holds."""
    entries = list(folder.iterdir())
    listing = "".join(f"{path.stat().st_ino} {path.name}\n" for path in entries)
    (shadow / f"folder-{folder.stat().st_ino}").write_text(listing)
    for path in entries:
        if path.is_dir():
            as_synced(path, shadow)
        else:
            shutil.copyfile(path, shadow / f"file-{path.stat().st_ino}")


def test_the_layer_finds_a_writer_that_does_not_sync(world, tmp_path):
    base, shadow, library = world
    held = crash(base, shadow, library, 1.0, 0, CRASH_WITHOUT_SYNC="1")
    assert held > 5
    survivor(base, shadow, tmp_path / "after", None)
    with pytest.raises((AssertionError, MemoryStoreError)):
        crash_world.steps_held(tmp_path / "after" / "memory", held)


# Full disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        do_without("the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_and_loses_nothing(small_disk):
    folder = small_disk / "memory"
    crash_world.prepare()
    filler = small_disk / "filler"
    generator = random.Random(2)
    with LocalMemory.create(folder, encoder=FakeEncoder(dim=crash_world.DIM), index="hnsw", thumbnails=None):
        pass
    held, errors = 0, []
    while len(errors) < 15 and held < crash_world.STEPS - 1:
        filler.write_bytes(b"x" * max(0, shutil.disk_usage(small_disk).free - generator.randrange(60_000)))
        try:
            with LocalMemory.open(folder) as memory:
                while held < crash_world.STEPS - 1:
                    crash_world.apply(memory, held)
                    held += 1
        except MemoryStoreError as error:
            errors.append(str(error))
        filler.unlink()
        held = crash_world.steps_held(folder, held)[0]
    assert len(errors) == 15
    assert all("space" in message for message in errors), errors
    with LocalMemory.open(folder) as memory:
        crash_world.apply(memory, held)
    assert crash_world.steps_held(folder, held + 1)[0] == held + 1
