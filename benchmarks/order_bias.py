"""How much answers depend on the order of the candidates, and what corrects it: ``python benchmarks/order_bias.py``.

On the field guide with the embedded models: retrieval proposes five names an image, which are shown to the MLLM in
random orders; the ranker alone answers. Each way of asking is audited on the same images and orders. Two bars: the
share of images whose answer changes with the order at least halved, and top-1 not below the uncorrected mean.

Every different question (an image and a list as shown) is computed once, whichever way needs it: the audits after the
first are arithmetic. The prior is estimated on further images of the same categories, without their labels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from rarvision.audit import OrderAudit, audit_order
from rarvision.chat import Chat, ChatRequest, LocalChat
from rarvision.datasets import Dataset, Item
from rarvision.datasets.fieldguide import DOMAINS, FieldGuide
from rarvision.demo import field_guide_memory
from rarvision.embedded import weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.errors import ChatUnsupportedError
from rarvision.images import load_image
from rarvision.ranking import Ranker
from rarvision.retrieval import Retriever

WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "choice": {
        "all orders": {"permutations": "all"},  # first: it asks what all others need
        "uncorrected": {},
        "2 orders": {"permutations": 2},
        "prior": {"bias": True},
        "prior, 2 orders": {"bias": True, "permutations": 2},
    },
    "likelihood": {
        "all orders": {"permutations": "all"},
        "uncorrected": {},
        "2 orders": {"permutations": 2},
        "prior": {"bias": True},
        "prior, 2 orders": {"bias": True, "permutations": 2},
        "blank image": {"blank_weight": 1.0},
        "length": {"normalize": "mean"},
    },
    "generate": {"all orders": {"permutations": "all"}, "uncorrected": {}, "2 orders": {"permutations": 2}},
}
"""Options of the ranker by strategy and name; ``bias`` stands for a prior that is estimated with the other options."""


class RememberingChat(Chat):
    """Asks another chat each different question once."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._answers: dict[bytes, Any] = {}
        self.name, self.capabilities, self.context_limit = chat.name, chat.capabilities, chat.context_limit

    name: str = ""
    capabilities: Any = None
    context_limit: int | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The other chat's."""
        return self._chat.settings

    def count_tokens(self, request: ChatRequest) -> int | None:
        """As the other chat counts."""
        return self._chat.count_tokens(request)

    def forget(self) -> None:
        """Of another domain, nothing is asked again."""
        self._answers.clear()

    def generate(self, requests, *, max_tokens, constraints=None):
        """Free answers only."""
        if constraints is not None:
            raise ChatUnsupportedError("answers that are confined are not remembered")

        def write(asked, _):
            return self._chat.generate(asked, max_tokens=max_tokens)

        return self._ask("generate", requests, [()] * len(requests), write)

    def option_log_probs(self, requests, options):
        """What was asked before, or is asked now."""
        return self._ask("options", requests, options, self._chat.option_log_probs)

    def continuation_log_probs(self, requests, continuations):
        """What was asked before, or is asked now."""
        return self._ask("continuations", requests, continuations, self._chat.continuation_log_probs)

    def _ask(self, what, requests, texts, ask):
        seen: dict[int, bytes] = {}
        keys = []
        for request, given in zip(requests, texts, strict=True):
            for image in request.images:
                if id(image) not in seen:
                    seen[id(image)] = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            parts = [p if isinstance(p, str) else seen[id(p)].hex() for m in request.messages for p in m.parts]
            keys.append(hashlib.blake2b(repr((what, parts, list(given))).encode(), digest_size=16).digest())
        new = [at for at, key in enumerate(keys) if key not in self._answers]
        if new:
            answers = ask([requests[at] for at in new], [texts[at] for at in new])
            self._answers.update((keys[at], answer) for at, answer in zip(new, answers, strict=True))
        return [self._answers[key] for key in keys]


class Drawn(Dataset):
    """Images that are drawn once and kept."""

    def __init__(self, guide: FieldGuide) -> None:
        samples = list(guide)
        self.name, self.items = guide.name, [Item(source=s.source, label=s.label) for s in samples]
        self.images = [load_image(sample.image) for sample in samples]

    name: str = ""
    items: Sequence[Item] = ()

    def _image(self, index: int) -> Image:
        return self.images[index]


def audits(
    domain: str, strategy: str, options: argparse.Namespace, encoder: TransformersEncoder, chat: RememberingChat
) -> dict[str, OrderAudit]:
    """Each way's audit on one domain."""
    guide = FieldGuide(domain, categories=200, seed=options.seed)
    queries = max(1, options.queries // len(options.domains))
    drawn = Drawn(guide.queries(queries + options.prior_images, seed=options.seed))
    with (
        tempfile.TemporaryDirectory() as scratch,
        field_guide_memory(Path(scratch) / "memory", guide, encoder, shots=4, seed=options.seed) as memory,
    ):
        found = Retriever(memory, k=options.k).retrieve(encoder.encode_images(drawn.images))
    names = [[candidate.category for candidate in candidates] for candidates in found]
    asked = drawn.select(range(queries))

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{domain}, {strategy}: {done} of {total} ")

    audited = {}
    for way, given in WAYS[strategy].items():
        ranker = Ranker(chat, strategy=strategy, **{key: value for key, value in given.items() if key != "bias"})
        if given.get("bias"):
            ranker = ranker.with_bias(ranker.estimate_bias(drawn.images[queries:], names[queries:]))
        audited[way] = audit_order(
            ranker, asked, candidates=names[:queries], orders=options.orders, seed=options.seed, progress=progress
        )
    chat.forget()
    return audited


def figures(domain: str, strategy: str, audited: Mapping[str, OrderAudit]) -> list[dict[str, Any]]:
    """One row a way; shares in percent."""
    plain = audited["uncorrected"]
    return [
        {
            "domain": domain,
            "strategy": strategy,
            "way": way,
            "images": audit.n,
            "orders": audit.orders,
            "top-1": 100 * audit.top1_mean,
            "worst": 100 * audit.top1_min,
            "best": 100 * audit.top1_max,
            "changing": 100 * audit.changing,
            "agreement": 100 * audit.agreement,
            "gained": 100 * (audit.top1_mean - plain.top1_mean),
            "picked": [100 * share for share in audit.picked],
            "halved": audit.changing <= plain.changing / 2,
            "not below": audit.top1_mean >= plain.top1_mean,
        }
        for way, audit in sorted(audited.items(), key=lambda item: item[0] != "uncorrected")
    ]


def overall(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The means over the domains, by strategy and way."""
    means = []
    for strategy, way in dict.fromkeys((row["strategy"], row["way"]) for row in rows):
        mine = [row for row in rows if (row["strategy"], row["way"]) == (strategy, way)]
        plain = [row for row in rows if (row["strategy"], row["way"]) == (strategy, "uncorrected")]
        keys = ("top-1", "worst", "best", "changing", "agreement", "gained")
        mean = {key: float(np.mean([row[key] for row in mine])) for key in keys}
        before = {key: float(np.mean([row[key] for row in plain])) for key in keys}
        means.append(
            {
                "domain": "mean",
                "strategy": strategy,
                "way": way,
                "images": sum(row["images"] for row in mine),
                "orders": mine[0]["orders"],
                **mean,
                "picked": np.mean([row["picked"] for row in mine], axis=0).tolist(),
                "halved": mean["changing"] <= before["changing"] / 2,
                "not below": mean["top-1"] >= before["top-1"],
            }
        )
    return means


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    text = (
        f"{row['domain']:12s} {row['strategy']:10s} {row['way']:16s} top-1 {row['top-1']:5.1f} "
        f"({row['worst']:5.1f} to {row['best']:5.1f})  changing {row['changing']:5.1f}  "
        f"agreement {row['agreement']:5.1f}  picked {' '.join(f'{share:4.1f}' for share in row['picked'])}"
    )
    if row["way"] == "uncorrected":
        return text
    halved = "halved" if row["halved"] else "NOT halved"
    return f"{text}  {halved}, {row['gained']:+.2f}{'' if row['not below'] else ' BELOW'}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=500, help="images, over all domains (docs: 5,000)")
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=list(DOMAINS))
    parser.add_argument("--strategies", nargs="+", default=["choice", "likelihood"], choices=list(WAYS))
    parser.add_argument("--k", type=int, default=5, help="candidates")
    parser.add_argument("--prior-images", type=int, default=64, help="images a domain that the prior is estimated from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    encoder = TransformersEncoder(weights_path("clip-16"))
    chat = RememberingChat(LocalChat(weights_path("mllm"), batch_size=16))
    rows: list[dict[str, Any]] = []
    for strategy in options.strategies:
        for domain in options.domains:
            rows += figures(domain, strategy, audits(domain, strategy, options, encoder, chat))
            for row in rows[-len(WAYS[strategy]) :]:
                print(line(row), flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    if len(options.domains) > 1:
        means = overall(rows)
        print(*map(line, means), sep="\n")
        if options.json:
            options.json.write_text(json.dumps(rows + means, indent=1))


if __name__ == "__main__":
    main()
