"""What test_bulk_ray.py runs in a process of its own: Ray starts servers, and looks for addresses as tests must not.

``python ray_world.py SCENARIO FOLDER`` prints one JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from rarvision.encoders import Encoder, TransformersEncoder
from rarvision.errors import EncoderError, EncoderMismatchError, ImageError, InputError, RarvisionError
from rarvision.memory import LocalMemory, bulk_ray
from rarvision.memory.bulk_ray import add_with_ray
from rarvision.testing import FakeEncoder
from rarvision.types import Sample

FAKE = partial(FakeEncoder, dim=24)


class SlowEncoder(Encoder):
    """The fake encoder, slow enough for a node to die while it works."""

    def __init__(self):
        self._fake = FAKE()

    name = property(lambda self: self._fake.name)
    dim = property(lambda self: self._fake.dim)
    fingerprint = property(lambda self: self._fake.fingerprint)

    def _encode_images(self, images):
        time.sleep(0.1 * len(images))
        return self._fake._encode_images(images)

    def _encode_texts(self, texts):
        return self._fake._encode_texts(texts)


def samples(folder, count):
    folder.mkdir(exist_ok=True)
    made = []
    for n in range(count):
        pixels = np.random.default_rng(n).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        path = folder / f"{n}.png"
        Image.fromarray(pixels).save(path)
        image = Image.fromarray(pixels[::-1]) if n % 10 == 9 else path  # some are no files
        box = (2, 2, 20, 16) if n % 7 == 3 else None
        made.append(Sample(source=str(path), image=image, label=f"class {n % 3}", metadata={"n": n}, box_xyxy=box))
    return made


def told(report):
    return {"added": report.added, "skipped": report.skipped, "failed": report.failed}


def compared(first, second):
    """How two memories differ."""
    mine, theirs = list(first.entries()), list(second.entries())
    vectors = [
        memory.vectors([entry.id for entry in memory.entries()]).astype(np.float64) for memory in (first, second)
    ]
    return {
        "same_entries": mine == theirs,
        "same_records": list(first.records([e.id for e in mine])) == list(second.records([e.id for e in theirs])),
        "thumbnails": sum(second.thumbnail(entry.id) is not None for entry in theirs),
        "cosine": float((vectors[0] * vectors[1]).sum(axis=1).min()) if mine == theirs else 0.0,
        "count": len(theirs),
    }


def error_of(kind, function):
    try:
        function()
    except kind as error:
        return str(error)
    return "no error"


def one_machine(folder):
    """Everything that needs no second node, in one local Ray."""
    import ray

    start = partial(ray.init, num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        start()
    except Exception:  # noqa: BLE001 - a busy machine takes longer than the 30 seconds that Ray waits
        ray.shutdown()
        start()
    result = {}
    broken = folder / "broken.png"
    broken.write_bytes(b"not an image")
    unlabelled = Sample(source="unlabelled", image=Image.new("RGB", (3, 3)))
    bad = Sample(source="broken", image=broken, label="class 0")
    given = samples(folder / "images", 40)
    mixed = [*given[:10], bad, *given[10:20], unlabelled, *given[20:], given[3]]
    encoder = TransformersEncoder(folder / "clip", device="cpu")
    with (
        LocalMemory.create(folder / "a", encoder=encoder) as local,
        LocalMemory.create(folder / "b", encoder=encoder) as distributed,
    ):
        failures = []
        plain = local.add(mixed, on_error=lambda sample, _: None, batch_size=8)
        done = []
        report = add_with_ray(
            distributed,
            mixed,
            batch_size=8,
            workers=2,
            on_error=lambda sample, error: failures.append((sample.source, type(error).__name__)),
            progress=done.append,
        )
        result["plain"], result["ray"], result["done"] = told(plain), told(report), done[-1]
        result["failures"] = sorted(failures)
        result["same_failures"] = sorted(report.failures) == sorted(plain.failures)
        result["compared"] = compared(local, distributed)
    with LocalMemory.create(folder / "c", encoder=FAKE()) as memory:
        result["by_name"] = error_of(EncoderError, lambda: add_with_ray(memory, given))
        other = partial(FakeEncoder, dim=24, seed=1)
        result["other"] = error_of(EncoderMismatchError, lambda: add_with_ray(memory, given, load=other))
        result["broken"] = error_of(ImageError, lambda: add_with_ray(memory, mixed, load=FAKE, batch_size=4))
        result["before_broken"] = len(memory)
        unlabelled_too = [*given[:15], unlabelled, *given[15:]]
        result["unlabelled"] = error_of(
            InputError, lambda: add_with_ray(memory, unlabelled_too, load=FAKE, batch_size=4)
        )
        result["before_unlabelled"] = len(memory)

        def stop(count):
            if len(memory) >= 24:
                raise KeyboardInterrupt

        result["stopped"] = error_of(
            KeyboardInterrupt, lambda: add_with_ray(memory, given, load=FAKE, batch_size=4, progress=stop)
        )
        result["after_stop"] = len(memory)
        result["resumed"] = told(add_with_ray(memory, given, load=FAKE, batch_size=4))
        result["sources_in_order"] = [e.source for e in memory.entries()] == [s.source for s in given]
        bulk_ray._cluster = None  # nothing is left to encode: Ray is not even asked
        result["again"] = told(add_with_ray(memory, given, load=FAKE))
    return result


def lost_node(folder):
    """Two nodes, one of which is killed once something has been stored."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    result = {"nodes": len([node for node in ray.nodes() if node["Alive"]])}
    given = samples(folder / "images", 120)
    killed = []
    with (
        LocalMemory.create(folder / "a", encoder=FAKE()) as local,
        LocalMemory.create(folder / "b", encoder=FAKE()) as distributed,
    ):

        def kill(count):
            if count >= 12 and not killed:
                actors = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
                result["busy_nodes"] = len({actor["Address"]["NodeID"] for actor in actors})
                if result["busy_nodes"] == 2:
                    killed.append(count)
                    cluster.remove_node(second, allow_graceful=False)

        local.add(given, batch_size=4)
        report = add_with_ray(distributed, given, load=SlowEncoder, batch_size=4, workers=3, progress=kill)
        result |= {"killed": killed, "ray": told(report), "compared": compared(local, distributed)}
    for _ in range(60):  # until the head has noticed
        result["left"] = len([node for node in ray.nodes() if node["Alive"]])
        if result["left"] == 1:
            break
        time.sleep(0.5)
    ray.shutdown()
    cluster.shutdown()
    return result


def unreachable(folder):
    """No cluster at the address."""
    with LocalMemory.create(folder / "a", encoder=FAKE()) as memory:
        given = samples(folder / "images", 2)
        return {
            "told": error_of(RarvisionError, lambda: add_with_ray(memory, given, load=FAKE, address="127.0.0.1:1")),
            "count": len(memory),
        }


if __name__ == "__main__":
    print(  # noqa: T201 - what the test reads
        json.dumps(globals()[sys.argv[1]](Path(sys.argv[2])))
    )
