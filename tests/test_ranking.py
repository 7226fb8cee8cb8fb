"""The ranking strategies, against a chat that follows a script."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rarvision.chat.base import Capabilities, Chat, Completion
from rarvision.errors import ChatUnavailableError, ChatUnsupportedError, InputError, OptionError
from rarvision.ranking import STRATEGIES, BaseRanker, Ranker, format_list, servable_strategies
from rarvision.testing.ranking import check_ranker
from rarvision.types import Ranking

IMAGE = Image.new("RGB", (4, 4), "red")
NAMES = ["tulip", "rose", "daisy"]
ALL = Capabilities(option_log_probs=True, continuation_log_probs=True, list_constraint=True)
NONE = Capabilities(option_log_probs=False, continuation_log_probs=False, list_constraint=False)


class Scripted(Chat):
    """Prefers names by a table of log-scores, whatever is asked; records what it was asked."""

    def __init__(self, scores=None, *, capabilities=ALL, answer=None, finish="stop"):
        self.scores, self._capabilities, self.answer, self.finish = scores or {}, capabilities, answer, finish
        self.calls = []

    name = "scripted"
    context_limit = None

    @property
    def capabilities(self):
        return self._capabilities

    def score(self, name):
        return self.scores.get(name, -9.0)

    def generate(self, requests, *, max_tokens, constraints=None):
        self.calls.append(("generate", requests, max_tokens, constraints))
        out = []
        for i, request in enumerate(requests):
            listed = request.messages[-1].parts[-1].split("categories:")[1].rstrip(".")
            names = constraints[i].names if constraints else listed[2:-2].split("', '")
            ranked = sorted(names, key=lambda name: -self.score(name))
            out.append(Completion(text=format_list(ranked) if self.answer is None else self.answer,
                                  finish_reason=self.finish))  # fmt: skip
        return out

    def option_log_probs(self, requests, options):
        self.calls.append(("option_log_probs", requests, options))
        out = []
        for request, given in zip(requests, options, strict=True):
            text = request.messages[-1].parts[-1]
            if list(given) == ["yes", "no"]:
                yes = 1 / (1 + np.exp(-self.score(text.split(": ")[1].split("?")[0])))
                out.append(np.log([yes, 1 - yes]))
            else:
                lines = dict(line.split(". ", 1) for line in text.splitlines() if line[1:3] == ". ")
                out.append(np.array([self.score(lines[letter]) for letter in given]))
        return out

    def continuation_log_probs(self, requests, continuations):
        self.calls.append(("continuation_log_probs", requests, continuations))
        return [
            (
                np.array([self.score(text.removeprefix("['").removesuffix("'")) for text in given]),
                tuple(len(text) for text in given),
            )
            for given in continuations
        ]


SCORES = {"daisy": -1.0, "tulip": -2.0, "rose": -3.0}


KINDS = {
    **{strategy: {"strategy": strategy} for strategy in STRATEGIES},
    "constrained": {"strategy": "generate", "constrained": True},
    "without list": {"strategy": "likelihood", "with_list": False},
}


def rankers(chat):
    return {which: Ranker(chat, **options) for which, options in KINDS.items()}


@pytest.mark.parametrize("which", list(KINDS))
class TestEveryStrategy:
    def test_best_first(self, which):
        ranking = rankers(Scripted(SCORES))[which].rank(IMAGE, NAMES)
        assert ranking.order == (2, 0, 1)
        assert ranking.status == "ranked"
        assert (ranking.log_scores is None) == (which in {"generate", "constrained"})
        assert (ranking.raw is None) == (ranking.log_scores is not None)
        if ranking.log_scores is not None:
            assert np.argmax(ranking.log_scores) == 2

    def test_contract(self, which):
        check_ranker(rankers(Scripted(SCORES))[which])

    def test_ties_keep_retrievals_order(self, which):
        assert rankers(Scripted())[which].rank(IMAGE, NAMES).order == (0, 1, 2)

    def test_repeated_names_are_asked_once(self, which):
        chat = Scripted(SCORES)
        ranking = rankers(chat)[which].rank(IMAGE, ["rose", "daisy", "rose", "tulip", "daisy"])
        assert ranking.order == (1, 4, 3, 0, 2)
        _, requests, *_ = chat.calls[0]
        assert all(request.messages[-1].parts[-1].count("rose") <= 1 for request in requests)

    def test_nothing_to_rank_asks_nothing(self, which):
        chat = Scripted(SCORES)
        none, one, same = rankers(chat)[which].rank_batch([IMAGE] * 3, [[], ["rose"], ["rose", "rose"]])
        assert (none.order, one.order, same.order) == ((), (0,), (0, 1))
        assert {none.status, one.status, same.status} == {"ranked"}
        assert chat.calls == []

    def test_batches_of_different_lengths(self, which):
        chat = Scripted(SCORES)
        ranker = rankers(chat)[which]
        lists = [NAMES, ["rose"], ["rose", "tulip"], [], NAMES[::-1]]
        batch = ranker.rank_batch([IMAGE] * len(lists), lists)
        assert len(chat.calls) == 1
        assert [ranking.order for ranking in batch] == [(2, 0, 1), (0,), (1, 0), (), (0, 2, 1)]
        assert batch == [ranker.rank(IMAGE, names) for names in lists]

    def test_shuffled_order_is_mapped_back(self, which):
        shown = set()
        names = [*NAMES, "lily", "orchid", "poppy"]
        scores = {**SCORES, "lily": -4.0, "orchid": -5.0, "poppy": -6.0}
        plain = rankers(Scripted(scores))[which].rank(IMAGE, names)
        for seed in range(5):
            chat = Scripted(scores)
            ranking = Ranker(chat, shuffle=seed, **KINDS[which]).rank(IMAGE, names)
            assert ranking.order == plain.order
            assert ranking.log_scores == plain.log_scores
            shown.add(repr(chat.calls[0][1][0].messages[-1].parts[-1]) + repr(chat.calls[0][2:]))
        assert len(shown) > 1

    def test_chat_errors_pass_through(self, which):
        class Down(Scripted):
            def generate(self, requests, **_):
                raise ChatUnavailableError("down")

            option_log_probs = continuation_log_probs = lambda self, *_: self.generate([])

        with pytest.raises(ChatUnavailableError):
            rankers(Down())[which].rank(IMAGE, NAMES)


def test_what_each_strategy_asks():
    chat = Scripted(SCORES)
    for ranker in rankers(chat).values():
        ranker.rank(IMAGE, NAMES)
    generate, choice, likelihood, pointwise, constrained, bare = chat.calls
    text = generate[1][0].messages[0].parts[1]
    assert text.startswith("Please play the role of a classification expert")
    assert "top-3 similarity" in text
    assert "categories:['tulip', 'rose', 'daisy']." in text
    assert generate[1][0].images == (IMAGE,)
    assert generate[3] is None
    assert constrained[3][0].names == tuple(NAMES)
    assert choice[2] == [["A", "B", "C"]]
    assert "A. tulip\nB. rose\nC. daisy" in choice[1][0].messages[0].parts[1]
    assert likelihood[1] == generate[1]
    assert likelihood[2] == [["['tulip'", "['rose'", "['daisy'"]]
    assert bare[2] == [NAMES]
    assert "tulip" not in bare[1][0].messages[0].parts[1]
    assert [request.messages[0].parts[1].split(": ")[1].split("?")[0] for request in pointwise[1]] == NAMES


def test_length_normalisation():
    chat = Scripted({"a": -2.0, "abcdefghij": -3.0})
    assert Ranker(chat, strategy="likelihood").rank(IMAGE, ["a", "abcdefghij"]).order == (0, 1)
    mean = Ranker(chat, strategy="likelihood", normalize="mean").rank(IMAGE, ["a", "abcdefghij"])
    assert mean.order == (1, 0)
    assert mean.log_scores == pytest.approx((-2.0 / 4, -3.0 / 13))


@pytest.mark.parametrize(
    ("answer", "finish", "order", "status", "reason"),
    [
        ("['daisy', 'rose'", "length", (2, 1, 0), "repaired", "1 of 3 candidates missing; cut at the token limit"),
        ("['daisy', 'rose', 'tulip', ['", "length", (2, 1, 0), "ranked", None),
        ("no idea", "stop", (0, 1, 2), "fallback", "no candidate recognised in the answer (7 characters)"),
        (
            "['daisy', 'rose'",
            "characters",
            (2, 1, 0),
            "repaired",
            "1 of 3 candidates missing; cut at the character limit",
        ),
        ("", "length", (0, 1, 2), "fallback", "the answer is empty; cut at the token limit"),
    ],
)
def test_generated_answers_keep_their_status_and_text(answer, finish, order, status, reason):
    for shuffle in (None, 0, 1, 2):
        ranker = Ranker(Scripted(answer=answer, finish=finish), strategy="generate", shuffle=shuffle)
        ranking = ranker.rank(IMAGE, NAMES)
        assert (ranking.order, ranking.status, ranking.reason, ranking.raw) == (order, status, reason, answer)


def test_answers_have_room():
    chat = Scripted()
    Ranker(chat, strategy="generate").rank(IMAGE, ["x" * 300, "y"])
    Ranker(chat, strategy="generate", max_tokens=7).rank(IMAGE, NAMES)
    assert chat.calls[0][2] >= 300
    assert chat.calls[1][2] == 7


@pytest.mark.parametrize("strategy", ["choice", "likelihood"])
@pytest.mark.parametrize(
    ("bad", "status", "order", "reason"),
    [
        (np.nan, "fallback", (0, 1, 2), "1 of 3 scores are not numbers"),
        (np.inf, "fallback", (0, 1, 2), "1 of 3 scores are not numbers"),
        (-np.inf, "repaired", (0, 1, 2), "1 of 3 scores were not reported"),
    ],
)
def test_scores_that_are_not_numbers(strategy, bad, status, order, reason):
    ranking = Ranker(Scripted({**SCORES, "daisy": bad}), strategy=strategy).rank(IMAGE, NAMES)
    assert (ranking.status, ranking.order, ranking.reason) == (status, order, reason)


def test_no_score_reported_is_a_fallback():
    scores = dict.fromkeys(NAMES, -np.inf)
    ranking = Ranker(Scripted(scores), strategy="choice").rank(IMAGE, NAMES)
    assert (ranking.status, ranking.log_scores) == ("fallback", None)
    assert ranking.reason == "no candidate's score was reported"


def test_pointwise_log_odds_and_unreported_answers():
    class Answers(Scripted):
        def option_log_probs(self, requests, options):
            table = [[np.log(0.8), np.log(0.2)], [np.log(0.9), -np.inf], [-np.inf, np.log(0.9)], [-np.inf, -np.inf]]
            return [np.array(row) for row in table]

    ranking = Ranker(Answers(), strategy="pointwise").rank(IMAGE, ["a", "b", "c", "d"])
    assert ranking.log_scores == pytest.approx((np.log(4), np.log(9), -np.log(9), -np.inf))
    assert ranking.order == (1, 0, 2, 3)
    assert ranking.status == "repaired"


def test_strategies_need_what_the_backend_serves():
    assert servable_strategies(ALL) == STRATEGIES
    assert servable_strategies(NONE) == ("generate",)
    assert Ranker(Scripted(), strategy="auto").strategy == "likelihood"
    options = Capabilities(option_log_probs=True, continuation_log_probs=False, list_constraint=False, max_options=5)
    assert Ranker(Scripted(capabilities=options)).strategy == "choice"
    assert Ranker(Scripted(capabilities=NONE)).strategy == "generate"
    for strategy in ("choice", "likelihood", "pointwise"):
        with pytest.raises(ChatUnsupportedError, match=f"'{strategy}'.*it can serve: generate$"):
            Ranker(Scripted(capabilities=NONE), strategy=strategy)
    with pytest.raises(ChatUnsupportedError, match=r"likelihood.*generate, choice, pointwise"):
        Ranker(Scripted(capabilities=options), strategy="likelihood")
    with pytest.raises(ChatUnsupportedError, match="constrained=False"):
        Ranker(Scripted(capabilities=options), strategy="generate", constrained=True)
    with pytest.raises(ChatUnsupportedError, match=r"5 likeliest options, 6 were asked.*generate, pointwise"):
        Ranker(Scripted(capabilities=options), strategy="choice").rank(IMAGE, list("abcdef"))


def test_choice_has_26_letters():
    names = [f"name {i}" for i in range(27)]
    ranker = Ranker(Scripted({"name 25": -1.0}), strategy="choice")
    assert ranker.rank(IMAGE, names[:26]).order[0] == 25
    with pytest.raises(OptionError, match="likelihood"):
        ranker.rank(IMAGE, names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "guess"}, "unknown strategy 'guess'.*generate, choice"),
        ({"strategy": "generate", "prompt": "papper"}, "unknown prompt 'papper'.*paper, in-context, long"),
        ({"strategy": "generate", "prompt": "Sort {names}"}, "{categories}"),
        ({"strategy": "likelihood", "with_list": False, "prompt": "paper"}, "without {categories}"),
        ({"strategy": "choice", "prompt": "Which?"}, "{options}"),
        ({"strategy": "pointwise", "prompt": "Is it?"}, "{category}"),
        ({"strategy": "choice", "constrained": True}, "constrained"),
        ({"strategy": "choice", "with_list": False}, "with_list"),
        ({"normalize": "median"}, "normalize"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(OptionError, match=message):
        Ranker(Scripted(), **options)


def test_the_users_own_template():
    chat = Scripted()
    Ranker(chat, strategy="generate", prompt="Rank these {k} categories:{categories}.").rank(IMAGE, ["{k}", "b"])
    assert chat.calls[0][1][0].messages[0].parts[1] == "Rank these 2 categories:['{k}', 'b']."


def test_name_and_settings_tell_rankers_apart():
    settings = [str(sorted(ranker.settings.items())) for ranker in rankers(Scripted()).values()]
    names = [ranker.name for ranker in rankers(Scripted()).values()]
    assert len(set(settings)) == len(set(names)) == len(settings)


def test_bad_input():
    ranker = Ranker(Scripted())
    with pytest.raises(InputError, match="1 images, 2 lists"):
        ranker.rank_batch([IMAGE], [NAMES, NAMES])
    with pytest.raises(InputError, match="blank"):
        ranker.rank(IMAGE, ["a", " "])


def test_a_rankers_author_writes_one_method():
    class Alphabetical(BaseRanker):
        name = "alphabetical"

        def _rank_distinct(self, images, names):
            orders = [sorted(range(len(c)), key=c.__getitem__) for c in names]
            return [Ranking(order=tuple(order), strategy="alphabetical") for order in orders]

    check_ranker(Alphabetical())
    assert Alphabetical().rank(IMAGE, ["b", "a", "b"]).order == (1, 0, 2)


def test_the_contract_notices_a_broken_ranker():
    class Stateful(BaseRanker):
        name = "stateful"
        turn = 0

        def _rank_distinct(self, images, names):
            self.turn += 1
            return [Ranking(order=tuple(np.roll(range(len(c)), self.turn).tolist()), strategy="s") for c in names]

    with pytest.raises(AssertionError, match="batch"):
        check_ranker(Stateful())
