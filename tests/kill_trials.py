"""``python kill_trials.py FOLDER TRIALS SEED``: kill a writer at random moments and look at what is left each time.

Writers and inspectors are forked from this process, which has everything imported and uses nothing of it: starting
Python anew 200 times would take most of the time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

import crash_world
from rarvision.memory import LocalMemory
from rarvision.testing import FakeEncoder


def forked(work):
    """Run ``work(pipe)`` in a child; its process id and the reading end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                work(pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, reading


def main(folder, trials, seed):
    """Each trial goes on with what the last one left."""
    generator = random.Random(seed)
    make, pipe = forked(
        lambda _: LocalMemory.create(folder, encoder=FakeEncoder(dim=crash_world.DIM), index="hnsw").close()
    )
    os.close(pipe)
    assert os.waitpid(make, 0)[1] == 0
    held, repaired = 0, 0
    for trial in range(trials):
        writer, pipe = forked(
            lambda out, first=held: crash_world.write(folder, first, lambda n: (out.write(f"{n}\n"), out.flush()))
        )
        time.sleep(generator.uniform(0.0, 0.4))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        with os.fdopen(pipe) as said:
            acknowledged = max([held, *(int(line) + 1 for line in said if line.endswith("\n"))])

        def inspect(out, acknowledged=acknowledged):
            json.dump(crash_world.steps_held(folder, acknowledged), out)

        inspector, pipe = forked(inspect)
        with os.fdopen(pipe) as said:
            found = said.read()
        assert os.waitpid(inspector, 0)[1] == 0, f"trial {trial}, {acknowledged} steps acknowledged"
        held, repairs, _ = json.loads(found)
        repaired += bool(repairs)
    sys.stdout.write(json.dumps({"trials": trials, "steps": held, "repaired": repaired}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
