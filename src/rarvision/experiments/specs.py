"""The experiments by name: the paper's tables and figures, and one that it lacks; on benchmarks or the field guide."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from rarvision.errors import OptionError
from rarvision.experiments.columns import DOMAINS, ELEVEN, FIVE, LVIS, SCENES, V3DET
from rarvision.experiments.spec import Axis, Claim, Column, Metric, Plot, Row, Spec

__all__ = ["ALIASES", "EXPERIMENTS", "Edition", "spec_of"]

Edition = Literal["paper", "field-guide"]

_TOP1 = Metric(key="top1", title="top-1")
_CLIP = Row(key="clip", title="CLIP zero-shot", method="clip", extra=True, once=True)
_KNN = Row(key="knn", title="CLIP + kNN", method="knn")
_TIP = Row(key="tip", title="Tip-Adapter", method="tip", extra=True)
_FUSED = Row(key="fused", title="best retrieval (image + text)", method="fused", extra=True)
_TUNED = Row(key="mllm-tuned", title="MLLM + fine-tuning", method="mllm-tuned")
_ALONE = Row(key="mllm", title="MLLM alone, all names", method="mllm", once=True)
_RAR = Row(key="rar", title="RAR", method="rar")
_MIXED = Row(key="rar-mixed", title="RAR, fused and mixed", method="rar-mixed", extra=True)
_WIDE = replace(_MIXED, key="rar-mixed-20", title="RAR, fused and mixed, 20 candidates", options={"k": 20})

_RANKING_GAINS = Claim(
    text="Ranking the retrieved categories is better than CLIP + kNN.", kind="gain", first="rar", second="knn"
)
_OVER_BEST = Claim(
    text="Ranking is better than the best retrieval (which the paper does not compare with).",
    kind="gain",
    first="rar-mixed",
    second="fused",
)


def _few_shot(edition: Edition) -> Spec:
    small = {"most_names": 20, "recipe": {"epochs": 6, "learning_rate": 2e-3, "batch_size": 8}}
    tuned = _TUNED if edition == "paper" else replace(_TUNED, options=small)
    return Spec(
        name="table-7",
        title="Few-shot image classification, 1 to 16 shots",
        question="Does ranking by an MLLM gain over CLIP + kNN at any number of shots? And over better retrieval?",
        kind="classification",
        columns=ELEVEN if edition == "paper" else DOMAINS,
        rows=(_CLIP, _KNN, _TIP, _FUSED, tuned, _RAR, _MIXED),
        metrics=(_TOP1,),
        axis=Axis(key="shots", title="shots", values=(1, 2, 4, 8, 16)),
        settings={"k": 5},
        claims=(
            _RANKING_GAINS,
            Claim(
                text="RAR is better than the MLLM tuned on the same shots.",
                kind="gain",
                first="rar",
                second="mllm-tuned",
            ),
            Claim(text="More shots are better.", kind="rises", first="rar"),
            _OVER_BEST,
        ),
        plot=Plot(panels="mean", log=True),
        source="Tables 2 and 7, section 4.3",
        paper="table-7",
    )


def _naming(edition: Edition) -> Spec:
    settings = {"shots": 3} if edition == "paper" else {"shots": 3, "categories": 50}
    columns = FIVE if edition == "paper" else tuple(replace(each, options={"categories": 50}) for each in DOMAINS)
    return Spec(
        name="table-1",
        title="Fine-grained recognition without a vocabulary",
        question="Unlabelled images are named, a memory is built of the names: does it tell test images apart?",
        kind="naming",
        columns=columns,
        rows=(
            Row(
                key="wordnet-clip",
                title="WordNet + CLIP" if edition == "paper" else "large vocabulary + CLIP",
                method="wordnet-clip",
            ),
            Row(key="blip-2", title="BLIP-2" if edition == "paper" else "MLLM, each image by itself", method="blip-2"),
            Row(key="cased", title="CaSED", method="cased"),
            Row(key="finer", title="FineR", method="finer"),
            Row(key="rar", title="RAR", method="rar-finer"),
            Row(key="rar-direct", title="RAR, names asked directly", method="rar", extra=True),
        ),
        metrics=(Metric(key="cacc", title="cACC"), Metric(key="sacc", title="sACC")),
        settings=settings,
        claims=tuple(
            Claim(
                text=f"RAR's clusters are better than {title}'s.", kind="gain", first="rar", second=key, metric="cacc"
            )
            for key, title in (
                ("wordnet-clip", "WordNet + CLIP"),
                ("blip-2", "BLIP-2"),
                ("cased", "CaSED"),
                ("finer", "FineR"),
            )
        ),
        source="Table 1, sections 4.2 and C.1",
        paper="table-1",
    )


_AP = tuple(
    Metric(key=key, title=title) for key, title in (("APr", "AP_r"), ("APc", "AP_c"), ("APf", "AP_f"), ("AP", "AP"))
)


def _boxes(name: str, edition: Edition) -> Spec:
    plain, seen = (
        {"scale": 1.0, "shape": "box"},
        {"scale": [1.2, 1.2, 1.2] if edition == "field-guide" else [2.7, 1.6, 1.0], "blur": True},
    )
    table_3 = name == "table-3"
    paper = edition == "paper" and table_3
    given = (Row(key="regionclip", title="RegionCLIP", method="region-given"),) if paper else ()
    return Spec(
        name=name,
        title=f"Zero-shot recognition of annotated boxes, {'LVIS' if table_3 else 'V3Det'}"
        if edition == "paper"
        else "Zero-shot recognition of annotated boxes",
        question="Names alone in the memory: does ranking gain over CLIP on crops, most of all for rare categories?",
        kind="regions",
        columns=((LVIS if table_3 else V3DET),) if edition == "paper" else (SCENES,),
        rows=(
            Row(key="clip", title="CLIP, box", method="region", options=plain),
            Row(key="clip-blur", title="CLIP, blur and scale", method="region", options=seen, extra=True),
            *given,
            Row(key="rar", title="RAR", method="region-rar", options=seen),
            Row(key="rar-mixed", title="RAR, mixed", method="region-mixed", options=seen, extra=True),
        ),
        metrics=_AP if table_3 else (Metric(key="AP", title="AP"),),
        settings={"shots": 0, "k": 5},
        claims=(
            Claim(text="RAR is better than CLIP.", kind="gain", first="rar", second="clip", metric="AP"),
            *(
                (Claim(text="Rare categories gain.", kind="gain", first="rar", second="clip", metric="APr"),)
                if table_3
                else ()
            ),
            Claim(
                text="The same with crops alike (which the paper does not compare).",
                kind="gain",
                first="rar",
                second="clip-blur",
                metric="AP",
            ),
        ),
        source="Table 3, section 4.4" if table_3 else "Table 4, section 4.4",
        paper=name,
    )


def _tuning_source(edition: Edition) -> Spec:
    if edition == "paper":
        first, second = ("fgvc_aircraft", "FGVC-Aircraft"), ("stanford_cars", "Stanford Cars")
        columns = tuple(each for each in ELEVEN if each.key != "stanford_cars")
    else:
        first, second = ("aircraft", "aircraft"), ("birds", "birds")
        columns = DOMAINS
    return Spec(
        name="table-5",
        title="What the ranker was tuned on, and a worked example instead",
        question="Does it matter which dataset the ranker is tuned on? Is tuning better than a worked example?",
        kind="classification",
        columns=columns,
        rows=(
            Row(key="rar", title="RAR as it comes", method="rar", extra=True),
            Row(key="rar-first", title=f"RAR tuned on {first[1]}", method="rar-tuned", options={"tuned_on": first[0]}),
            Row(
                key="rar-second", title=f"RAR tuned on {second[1]}", method="rar-tuned", options={"tuned_on": second[0]}
            ),
            Row(key="rar-in-context", title="RAR, worked example", method="rar-in-context"),
        ),
        metrics=(_TOP1,),
        settings={"k": 5, "shots": "all" if edition == "paper" else 4},
        claims=(
            Claim(
                text="Which dataset it was tuned on matters little: a point or two.",
                kind="alike",
                first="rar-first",
                second="rar-second",
            ),
            Claim(
                text="Tuning is better than a worked example.", kind="gain", first="rar-first", second="rar-in-context"
            ),
        ),
        source="Table 5, section 4.5",
        paper="table-5",
    )


def _facts(edition: Edition) -> Spec:
    return Spec(
        name="table-6",
        title="The datasets",
        question="How many categories and images are there?",
        kind="facts",
        columns=(*ELEVEN, *(each for each in FIVE if each.key in ("cub200", "stanford_dogs")))
        if edition == "paper"
        else DOMAINS,
        rows=(Row(key="facts", title="count", method="facts"),),
        metrics=tuple(Metric(key=key, title=key, share=False) for key in ("categories", "train", "test")),
        settings={"shots": "all"},
        source="Table 6",
        paper="table-6",
    )


def _top5(edition: Edition) -> Spec:
    return Spec(
        name="table-8",
        title="Top-5 accuracy of ten ranked categories",
        question="Ten categories are retrieved and ranked: is the truth among the first five more often?",
        kind="classification",
        columns=ELEVEN if edition == "paper" else DOMAINS,
        rows=(_KNN, _FUSED, _RAR, _MIXED),
        metrics=(Metric(key="top5", title="top-5"), _TOP1),
        settings={"k": 10, "shots": 4},
        claims=(
            Claim(text="Ranking ten improves top-5.", kind="gain", first="rar", second="knn", metric="top5"),
            Claim(text="Also over the best retrieval.", kind="gain", first="rar-mixed", second="fused", metric="top5"),
        ),
        source="Table 8",
        paper="table-8",
    )


def _whole(edition: Edition) -> Spec:
    alone = (
        Row(key="gpt-4v", title="GPT-4V", method="mllm-other")
        if edition == "paper"
        else Row(key="mllm", title="MLLM alone, all names", method="mllm")
    )
    return Spec(
        name="table-9",
        title="The whole training set in the memory",
        question="With all training images in the memory, is RAR with a small MLLM better than a large MLLM alone?",
        kind="classification",
        columns=ELEVEN if edition == "paper" else DOMAINS,
        rows=(alone, _KNN, _FUSED, _RAR, _MIXED),
        metrics=(_TOP1,),
        settings={"k": 5, "shots": "all"},
        claims=(
            Claim(text="RAR is better than the MLLM alone.", kind="gain", first="rar", second=alone.key),
            _RANKING_GAINS,
            _OVER_BEST,
        ),
        source="Table 9",
        paper="table-9",
    )


def _better_encoder(edition: Edition) -> Spec:
    def better(row: Row) -> Row:
        return replace(row, options={"encoder": "better"})

    usual = tuple(
        replace(row, key=f"{row.key}-base", title=f"{row.title}, usual encoder", extra=True) for row in (_KNN, _RAR)
    )
    return Spec(
        name="table-10",
        title="A better encoder",
        question="Does ranking still gain when retrieval is better? The paper has CLIP ViT-L/14@336 for ViT-B/16.",
        kind="classification",
        columns=ELEVEN if edition == "paper" else DOMAINS,
        rows=(*usual, better(_KNN), better(_RAR)),
        metrics=(_TOP1,),
        axis=Axis(key="shots", title="shots", values=(4, 8)),
        settings={"k": 5},
        claims=(
            _RANKING_GAINS,
            Claim(text="The better encoder is better.", kind="gain", first="knn", second="knn-base"),
        ),
        source="Table 10",
        paper="table-10",
    )


def _candidates(edition: Edition) -> Spec:
    keys = ("dtd", "flowers102", "oxford_pets", "eurosat")
    return Spec(
        name="table-13",
        title="The number of candidates, and what a perfect ranker would reach",
        question="Does it matter how many categories the MLLM ranks? How far is it from the bound?",
        kind="classification",
        columns=tuple(next(each for each in ELEVEN if each.key == key) for key in keys)
        if edition == "paper"
        else DOMAINS,
        rows=(
            _ALONE,
            replace(_KNN, once=True),
            _RAR,
            _MIXED,
            Row(key="upper-bound", title="upper bound", method="upper-bound"),
        ),
        metrics=(_TOP1,),
        axis=Axis(key="k", title="candidates", values=(3, 4, 5, 6, 7)),
        settings={"shots": "all"},
        claims=(
            Claim(text="The number of candidates, 3 to 7, matters little.", kind="flat", first="rar", margin=0.01),
            _RANKING_GAINS,
            Claim(
                text="RAR is below what a perfect ranker would reach.", kind="gain", first="upper-bound", second="rar"
            ),
        ),
        plot=Plot(panels="mean"),
        source="Tables 11 and 13",
        paper="table-13",
    )


_SCALES = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0)
_SIZES = (("AP", "AP"), ("APs", "AP_s"), ("APm", "AP_m"), ("APl", "AP_l"))


def _crops(edition: Edition) -> Spec:
    return Spec(
        name="table-12",
        title="How much around a box CLIP should see, with and without blur",
        question="Blur makes larger crops useful, most of all for small objects: does it?",
        kind="regions",
        columns=(LVIS,) if edition == "paper" else (SCENES,),
        rows=(
            Row(key="plain", title="no blur", method="region", options={"blur": False}),
            Row(key="blur", title="blur", method="region", options={"blur": True}),
        ),
        metrics=tuple(Metric(key=key, title=title) for key, title in _SIZES),
        axis=Axis(key="scale", title="crop over box", values=_SCALES),
        settings={"shots": 0, "k": 5},
        claims=(
            Claim(text="Blur is better at every scale.", kind="gain", first="blur", second="plain", metric="AP"),
            Claim(text="Without blur, more context is worse.", kind="falls", first="plain", metric="AP"),
            Claim(
                text="With blur, more context is better for small objects.", kind="rises", first="blur", metric="APs"
            ),
        ),
        plot=Plot(panels="metrics"),
        source="Table 12 and Fig. 11",
        paper="table-12",
    )


_AT = (1, 5, 10, 15, 20)


def _recall(edition: Edition) -> Spec:
    keys = ("caltech101", "flowers102", "raf_db", "oxford_pets", "dtd", "ucf101")
    return Spec(
        name="figure-9",
        title="How often the truth is among the first categories of CLIP + kNN",
        question="Does recall rise fast with the number of retrieved categories?",
        kind="classification",
        columns=tuple(next(each for each in ELEVEN if each.key == key) for key in keys)
        if edition == "paper"
        else DOMAINS,
        rows=(_KNN, replace(_FUSED, key="fused")),
        metrics=tuple(Metric(key=f"recall{k}", title=f"recall@{k}") for k in _AT),
        settings={"k": 20, "shots": 4},
        claims=(
            Claim(
                text="Recall rises with the number of categories.",
                kind="rises",
                first="knn",
                metric=",".join(f"recall{k}" for k in _AT),
            ),
        ),
        plot=Plot(x="metrics", panels="columns"),
        source="Fig. 9",
        paper="figure-9",
    )


def _long_lists(edition: Edition) -> Spec:
    keys = ("caltech101", "flowers102")
    return Spec(
        name="figure-10",
        title="An MLLM among ever more names",
        question="The MLLM orders the nearest 5 to 30 categories: how often is the truth first where it is among them?",
        kind="classification",
        columns=tuple(next(each for each in ELEVEN if each.key == key) for key in keys)
        if edition == "paper"
        else DOMAINS,
        rows=(
            Row(key="mllm", title="MLLM, so many names", method="rar"),
            replace(_RAR, title="RAR, 5 names", options={"k": 5}, once=True, extra=True),
        ),
        metrics=(Metric(key="given", title="top-1 where the truth is shown"), _TOP1),
        axis=Axis(key="k", title="names", values=(5, 10, 15, 20, 25, 30)),
        settings={"shots": 4},
        claims=(
            Claim(text="The MLLM declines as names are added.", kind="falls", first="mllm", metric="given"),
            Claim(text="Top-1 declines as well.", kind="falls", first="mllm", metric="top1"),
        ),
        plot=Plot(panels="mean"),
        source="Fig. 10",
        paper="figure-10",
    )


def _vocabulary(edition: Edition) -> Spec:
    if edition == "paper":
        raise OptionError(
            "vocabulary is an experiment of the field guide, whose vocabulary can be chosen: --field-guide"
        )
    return Spec(
        name="vocabulary",
        title="Accuracy and time against the number of categories",
        question="The paper's motive, which it never measures: how do methods fare from 50 to 13,000 categories?",
        kind="classification",
        columns=(Column(key="all", title="all domains"),),
        rows=(replace(_CLIP, once=False), _KNN, _FUSED, replace(_ALONE, once=False), _RAR, _MIXED, _WIDE),
        metrics=(
            _TOP1,
            Metric(key="ms", title="ms an image", share=False, unit="ms"),
            Metric(key="recall5", title="recall@5"),
        ),
        axis=Axis(key="categories", title="categories", values=(50, 100, 500, 2000, 5000, 13000)),
        settings={"k": 5, "shots": 1},
        claims=(
            Claim(text="CLIP + kNN declines.", kind="falls", first="knn"),
            Claim(text="Ranking gains at every size.", kind="gain", first="rar", second="knn"),
            Claim(text="Where the MLLM alone can be asked, RAR is better.", kind="gain", first="rar", second="mllm"),
            _OVER_BEST,
            Claim(
                text="More candidates help where there are many categories.",
                kind="gain",
                first="rar-mixed-20",
                second="rar-mixed",
            ),
        ),
        plot=Plot(panels="metrics", log=True),
    )


EXPERIMENTS: Mapping[str, Callable[[Edition], Spec]] = {
    "table-1": _naming,
    "table-3": lambda edition: _boxes("table-3", edition),
    "table-4": lambda edition: _boxes("table-4", edition),
    "table-5": _tuning_source,
    "table-6": _facts,
    "table-7": _few_shot,
    "table-8": _top5,
    "table-9": _whole,
    "table-10": _better_encoder,
    "table-12": _crops,
    "table-13": _candidates,
    "figure-9": _recall,
    "figure-10": _long_lists,
    "vocabulary": _vocabulary,
}
"""By name: the spec for an edition."""

ALIASES: Mapping[str, tuple[str, str, tuple[Any, ...]]] = {
    "table-2": ("table-7", "4 and 8 shots of Table 7", (4, 8)),
    "table-11": ("table-13", "Table 13 without its baselines", ()),
    "figure-11": ("table-12", "Table 12 drawn", ()),
}
"""What the paper shows twice: the experiment that has it, what of it, and the places on its axis if not all."""


def spec_of(name: str, edition: Edition) -> Spec:
    """The experiment of that name, or the one that has it.

    Raises:
        OptionError: There is none; the message names the nearest.
    """
    name = ALIASES[name][0] if name in ALIASES else name
    if name not in EXPERIMENTS:
        known = (*EXPERIMENTS, *ALIASES)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise OptionError(f"no experiment {name!r} among {', '.join(known)}{hint}")
    return EXPERIMENTS[name](edition)
