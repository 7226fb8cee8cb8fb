"""Order bias: cyclic permutations, the prior of letters and places, names without an image."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rarvision.chat.base import Capabilities
from rarvision.errors import ChatUnsupportedError, InputError, OptionError
from rarvision.ranking import OptionPrior, Ranker
from rarvision.ranking.bias import BlankScores, estimate_prior
from rarvision.ranking.permutations import join_scores, mean_ranks, normalised, rotations
from rarvision.testing import FakeChat, check_ranker

IMAGE = Image.new("RGB", (4, 4), "red")
NAMES = ["tulip", "rose", "daisy", "lily"]
SCORES = {"daisy": -1.0, "tulip": -2.0, "rose": -3.0, "lily": -4.0}
BIAS = (4.0, 0.0, -1.0, 2.0)  # stronger than any difference of the names
EVERY_ORDER = [[*NAMES[turn:], *NAMES[:turn]] for turn in range(4)] + [NAMES[::-1], ["lily", "daisy", "tulip", "rose"]]
CORRECTABLE = ("choice", "likelihood")


def biased(**options):
    """Scores low enough that a bias leaves log-probabilities below 0."""
    return FakeChat({name: score - 20.0 for name, score in SCORES.items()}, place_bias=BIAS, **options)


def firsts(ranker):
    """The first name of the ranking, for each of the orders in which the names are given."""
    return [names[ranker.rank(IMAGE, names).order[0]] for names in EVERY_ORDER]


# ---- permutations ----


@pytest.mark.parametrize("strategy", ["generate", *CORRECTABLE])
def test_all_permutations_take_a_bias_out(strategy):
    assert set(firsts(Ranker(biased(), strategy=strategy))) != {"daisy"}
    corrected = Ranker(biased(), strategy=strategy, permutations="all")
    if strategy == "generate":  # ranks are coarser than scores
        best = [corrected.rank(IMAGE, names).order for names in EVERY_ORDER[:4]]
        assert len({tuple(names[i] for i in order) for names, order in zip(EVERY_ORDER, best, strict=False)}) == 1
    else:
        assert set(firsts(corrected)) == {"daisy"}
        ranking = corrected.rank(IMAGE, NAMES)
        assert [NAMES[i] for i in ranking.order] == ["daisy", "tulip", "rose", "lily"]
        plain = Ranker(FakeChat(SCORES), strategy=strategy).rank(IMAGE, NAMES)
        np.testing.assert_allclose(normalised(np.array(ranking.log_scores)), normalised(np.array(plain.log_scores)))


def test_rotations():
    assert rotations(4, 1) == [[0, 1, 2, 3]]
    assert rotations(4, 2) == [[0, 1, 2, 3], [2, 3, 0, 1]]
    assert rotations(5, 3) == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [3, 4, 0, 1, 2]]
    assert rotations(3, 99) == rotations(3, "all")
    for n in range(1, 9):
        orders = np.array(rotations(n, "all"))
        assert all(sorted(column) == list(range(n)) for column in orders.T), "every name at every place once"
        for count in range(1, n):
            few = rotations(n, count)
            assert len({tuple(order) for order in few}) == count
            assert all(order in orders.tolist() for order in few)


@pytest.mark.parametrize("strategy", CORRECTABLE)
def test_the_mean_is_of_normalised_log_probabilities(strategy):
    """Written out: what each order gives alone, normalised, averaged."""
    two = Ranker(biased(), strategy=strategy, permutations=2).rank(IMAGE, NAMES)
    rows = []
    for order in ([0, 1, 2, 3], [2, 3, 0, 1]):
        alone = Ranker(biased(), strategy=strategy).rank(IMAGE, [NAMES[i] for i in order]).log_scores
        probabilities = np.exp(alone) / np.exp(alone).sum()
        rows.append(np.log(probabilities)[np.argsort(order)])
    np.testing.assert_allclose(two.log_scores, np.mean(rows, axis=0))
    assert two.status == "ranked"


def test_each_different_question_is_asked_once():
    chat = FakeChat(SCORES)
    Ranker(chat, strategy="choice", permutations="all").rank_batch([IMAGE] * 5, [*EVERY_ORDER[:4], NAMES[:3]])
    texts = [request.messages[0].parts[1] for _, request in chat.calls]
    assert len(texts) == len(set(texts)) == 4 + 3
    Ranker(chat, strategy="choice").rank_batch([IMAGE, IMAGE.copy()], [NAMES, NAMES])
    assert len(chat.calls) == 4 + 3 + 2, "two images are two questions, though they look alike"


def test_generated_lists_are_joined_by_mean_rank():
    said = {"tulip": "['tulip', 'rose', 'daisy']", "rose": "['rose', 'daisy', 'tulip']", "daisy": "['rose', 'tulip']"}

    def answer(request):
        return said[request.messages[0].parts[1].split("categories:['")[1].split("'")[0]]

    ranking = Ranker(FakeChat(answers=answer), strategy="generate", permutations="all").rank(IMAGE, NAMES[:3])
    # ranks: tulip 0 2 1, rose 1 0 0, daisy 2 1 2
    assert ranking.order == (1, 0, 2)
    assert ranking.log_scores is None
    assert (ranking.status, ranking.reason) == ("repaired", "1 of 3 orders, the first: 1 of 3 candidates missing")
    assert ranking.raw == "\n".join(said.values())


def test_ties_of_ranks_keep_retrievals_order():
    assert mean_ranks([(2, 0, 1), (0, 2, 1)]) == (0, 2, 1)
    assert mean_ranks([(1, 0), (0, 1)]) == (0, 1)


def test_lists_that_cannot_be_read_do_not_count():
    def answer(request):
        return "no idea" if "categories:['tulip'" in request.messages[0].parts[1] else "['daisy', 'rose', 'tulip']"

    ranking = Ranker(FakeChat(answers=answer), strategy="generate", permutations="all").rank(IMAGE, NAMES[:3])
    assert (ranking.order, ranking.status) == ((2, 1, 0), "repaired")
    assert ranking.reason.startswith("1 of 3 orders, the first: no candidate recognised")
    none = Ranker(FakeChat(answers="no idea"), strategy="generate", permutations=2).rank(IMAGE, NAMES[:3])
    assert (none.order, none.status) == ((0, 1, 2), "fallback")


@pytest.mark.parametrize(
    ("rows", "scores", "reason"),
    [
        ([[-1.0, -2.0]], [-1.0, -2.0], None),
        ([[-1.0, np.nan], [-1.0, -2.0]], None, "1 of 4 scores in 2 orders are not numbers"),
        ([[-np.inf] * 2] * 2, None, "no candidate's score was reported"),
        ([[-np.inf] * 2, [0.0, 0.0]], [-np.log(2)] * 2, "2 of 4 scores in 2 orders were not reported"),
        ([[-3.0, -np.inf], [-4.0, -np.inf]], [np.log(np.e / (1 + np.e)), -np.inf], "2 of 4 scores in 2 orders were"),
        (
            [[-3.0, -np.inf], [-3.0, -3.0]],
            [(np.log(np.e / (1 + np.e)) - np.log(2)) / 2, (-np.log(1 + np.e) - np.log(2)) / 2],
            "1 of 4 scores in 2 orders were not reported",
        ),
    ],
)
def test_scores_that_are_missing_or_wrong(rows, scores, reason):
    joined = join_scores(np.array(rows))
    if scores is None:
        assert joined.log_scores is None
    else:
        np.testing.assert_allclose(joined.log_scores, scores)
    assert (joined.reason or "").startswith(reason or "")
    assert (joined.reason is None) == (reason is None)


def test_a_score_that_is_no_number_is_a_fallback_in_whatever_order_it_comes():
    def score(request, name):
        return np.nan if name == "rose" and "A. rose" in request.messages[0].parts[1] else -1.0

    ranking = Ranker(FakeChat(score), strategy="choice", permutations="all").rank(IMAGE, NAMES)
    assert (ranking.status, ranking.order) == ("fallback", (0, 1, 2, 3))
    assert ranking.reason.endswith("scores in 4 orders are not numbers")


@given(
    st.lists(st.floats(-5, 0), min_size=2, max_size=6).flatmap(
        lambda names: st.tuples(st.just(names), st.lists(st.floats(-5, 5), min_size=len(names), max_size=len(names)))
    )
)
def test_whatever_the_bias_is_it_cancels(drawn):
    names, bias = map(np.array, drawn)
    n = len(names)
    orders = rotations(n, "all")
    shown = np.array([(names[order] + bias)[np.argsort(order)] for order in orders])
    np.testing.assert_allclose(join_scores(shown).log_scores - normalised(names), join_scores(shown).log_scores[0]
                               - normalised(names)[0], atol=1e-9)  # fmt: skip
    prior = estimate_prior([np.array([names[order] + bias for order in orders])], chat="", asked={})
    np.testing.assert_allclose(prior.log_priors[n], normalised(bias), atol=1e-5)


@pytest.mark.parametrize("options", [{"permutations": "all"}, {"permutations": 2}, {"permutations": 2, "shuffle": 3}])
@pytest.mark.parametrize("strategy", ["generate", *CORRECTABLE])
def test_contract(strategy, options):
    check_ranker(Ranker(FakeChat(SCORES), strategy=strategy, **options))


# ---- the prior of letters and places ----


@pytest.mark.parametrize("strategy", CORRECTABLE)
def test_a_prior_takes_a_bias_out(strategy):
    ranker = Ranker(biased(), strategy=strategy)
    prior = ranker.estimate_bias([IMAGE] * 2, [NAMES, ["x", "tulip", "rose", "daisy"]])
    np.testing.assert_allclose(prior.log_priors[4], normalised(np.array(BIAS)), atol=1e-5)
    assert (prior.images, prior.chat) == ({4: 2}, "fake")
    corrected = ranker.with_bias(prior)
    assert set(firsts(corrected)) == {"daisy"}
    assert firsts(corrected.with_bias(None)) == firsts(ranker)
    plain = Ranker(FakeChat(SCORES), strategy=strategy).rank(IMAGE, NAMES)
    ranking = corrected.rank(IMAGE, NAMES)
    np.testing.assert_allclose(
        normalised(np.array(ranking.log_scores)), normalised(np.array(plain.log_scores)), atol=1e-5
    )
    check_ranker(Ranker(biased(), strategy=strategy, bias=estimated_for_six(strategy)))


def estimated_for_six(strategy):
    return Ranker(biased(), strategy=strategy).estimate_bias([IMAGE], [list("abcdef")])


def test_the_prior_is_the_mean_over_images_of_each_ones_own():
    """Written out, from two tables of log-scores that do not agree."""
    tables = [np.log([[0.7, 0.3], [0.6, 0.4]]), np.log([[0.9, 0.1], [0.5, 0.5]])]
    own = []
    for table in tables:
        strength = np.exp(table.mean(axis=0))
        own.append(strength / strength.sum())
    prior = estimate_prior(tables, chat="c", asked={"strategy": "choice"})
    np.testing.assert_allclose(np.exp(prior.log_priors[2]), np.mean(own, axis=0), atol=1e-5)


def test_shorter_lists_take_the_first_places_and_longer_ones_are_refused():
    ranker = Ranker(biased(), strategy="choice")
    corrected = ranker.with_bias(ranker.estimate_bias([IMAGE], [NAMES]))
    np.testing.assert_allclose(corrected.bias.for_options(2), normalised(np.array(BIAS[:2])), atol=1e-5)
    assert [corrected.rank(IMAGE, names).order[0] for names in (["rose", "daisy"], ["daisy", "rose"])] == [1, 0]
    with pytest.raises(OptionError, match="up to 4 names, got a list of 5"):
        corrected.rank(IMAGE, [*NAMES, "orchid"])
    prior = ranker.estimate_bias([IMAGE] * 3, [NAMES, NAMES[:2], ["rose", "rose"]])
    assert prior.images == {2: 1, 4: 1}


def test_images_without_numbers_are_left_out():
    def score(request, name):
        return np.nan if request.images[0] is not IMAGE else SCORES[name]

    ranker = Ranker(FakeChat(score, place_bias=BIAS), strategy="choice")
    assert ranker.estimate_bias([IMAGE.copy(), IMAGE], [NAMES, NAMES]).images == {4: 1}
    with pytest.raises(InputError, match="got none among 1"):
        ranker.estimate_bias([IMAGE.copy()], [NAMES])
    with pytest.raises(InputError, match="at least two different candidates"):
        ranker.estimate_bias([IMAGE], [["rose"]])
    with pytest.raises(InputError, match="1 images, 2 lists"):
        ranker.estimate_bias([IMAGE], [NAMES, NAMES])


def test_a_prior_goes_through_json():
    prior = Ranker(biased(), strategy="choice").estimate_bias([IMAGE], [NAMES])
    again = OptionPrior.from_dict(json.loads(prior.to_json()))
    assert again == prior
    assert Ranker(biased(), strategy="choice", bias=again).rank(IMAGE, NAMES).order[0] == 2
    for wrong in ({}, {"log_priors": 3}, [], {**prior.to_dict(), "log_priors": {"x": [0.0]}}):
        with pytest.raises(OptionError, match="expected an OptionPrior's JSON object"):
            OptionPrior.from_dict(wrong)


@pytest.mark.parametrize(
    ("log_priors", "images", "message"),
    [
        ({}, {}, "at least one number of options"),
        ({2: (-0.5, -1.0, -2.0)}, {2: 1}, "must be 2 finite numbers"),
        ({2: (0.0, -np.inf)}, {2: 1}, "must be 2 finite numbers"),
        ({2: (-0.1, -0.1)}, {2: 1}, "must sum to 1"),
        ({2: (np.log(0.5), np.log(0.5))}, {3: 1}, "the same numbers of options"),
    ],
)
def test_a_prior_is_checked(log_priors, images, message):
    with pytest.raises(OptionError, match=message):
        OptionPrior(log_priors=log_priors, images=images)


def test_a_prior_of_other_questions_is_refused():
    prior = Ranker(biased(), strategy="choice").estimate_bias([IMAGE], [NAMES])
    with pytest.raises(OptionError, match=r"other questions \(strategy: 'choice' there, 'likelihood' here"):
        Ranker(biased(), strategy="likelihood", bias=prior)
    with pytest.raises(OptionError, match="prompt: "):
        Ranker(biased(), strategy="choice", prompt="Which?\n{options}", bias=prior)


def test_a_prior_is_estimated_without_it_and_without_permutations():
    ranker = Ranker(biased(), strategy="choice")
    prior = ranker.estimate_bias([IMAGE], [NAMES])
    others = (ranker.with_bias(prior), Ranker(biased(), strategy="choice", permutations="all", shuffle=2))
    assert all(other.estimate_bias([IMAGE], [NAMES]) == prior for other in others)


# ---- names without an image ----


def test_what_names_score_under_a_blank_image_is_subtracted():
    def score(request, name):
        """A daisy, and a model that says rose whatever it sees."""
        blank = len(set(request.images[0].resize((2, 2)).get_flattened_data())) == 1 and request.images[0].width == 224
        return (-9.0 if name != "rose" else -1.0) + (3.0 if name == "daisy" and not blank else 0.0)

    chat = FakeChat(score)
    assert Ranker(chat, strategy="likelihood").rank(IMAGE, NAMES).order[0] == 1
    ranker = Ranker(chat, strategy="likelihood", blank_weight=1.0)
    ranking = ranker.rank(IMAGE, NAMES)
    assert ranking.order[0] == 2
    np.testing.assert_allclose(np.array(ranking.log_scores) - ranking.log_scores[0], [0.0, 0.0, 3.0, 0.0], atol=1e-9)
    asked = len(chat.calls)
    ranker.rank_batch([IMAGE, IMAGE.copy()], [NAMES, NAMES])
    assert len(chat.calls) == asked + 2, "the blank image is asked about once a list"
    half = Ranker(chat, strategy="likelihood", blank_weight=0.5).rank(IMAGE, NAMES)
    np.testing.assert_allclose(np.array(half.log_scores) - half.log_scores[0], [0.0, 4.0, 3.0, 0.0], atol=1e-9)
    check_ranker(Ranker(FakeChat(SCORES), strategy="likelihood", blank_weight=1.0, permutations=2))


def test_blank_scores_that_are_no_numbers_are_a_fallback():
    def score(request, name):
        return np.nan if request.images[0] is not IMAGE else SCORES[name]

    ranking = Ranker(FakeChat(score), strategy="likelihood", blank_weight=1.0).rank(IMAGE, NAMES)
    assert (ranking.status, ranking.reason) == ("fallback", "4 of 4 scores are not numbers")


def test_blank_scores_are_kept_up_to_a_bound():
    kept = BlankScores(size=2)
    for name in "abac":
        kept.put((name,), np.zeros(1))
    assert len(kept) == 2
    assert kept.get(("a",)) is not None
    assert kept.get(("b",)) is None


# ---- options ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"permutations": 0}, "whole number from 1, or 'all'"),
        ({"permutations": "both"}, "whole number from 1, or 'all'"),
        ({"permutations": True}, "whole number from 1, or 'all'"),
        ({"strategy": "pointwise", "permutations": 2}, "'pointwise' asks name by name, in no order"),
        ({"strategy": "likelihood", "with_list": False, "permutations": "all"}, "without the list asks name by name"),
        ({"strategy": "choice", "blank_weight": 1.0}, "blank_weight goes with the strategy 'likelihood'"),
        ({"strategy": "likelihood", "blank_weight": -1.0}, "from 0 up"),
        ({"strategy": "likelihood", "blank_weight": float("nan")}, "from 0 up"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(OptionError, match=message):
        Ranker(FakeChat(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "generate"}, "'generate' gives no scores"),
        ({"strategy": "pointwise"}, "'pointwise' asks name by name"),
        ({"strategy": "likelihood", "with_list": False}, "'likelihood' without the list asks name by name"),
    ],
)
def test_strategies_without_scores_of_places(options, message):
    prior = OptionPrior(log_priors={2: (np.log(0.5), np.log(0.5))}, images={2: 1})
    with pytest.raises(OptionError, match=f"bias goes with 'choice' and 'likelihood' with the list; {message}"):
        Ranker(FakeChat(), bias=prior, **options)
    with pytest.raises(OptionError, match=f"a prior of letters and places goes with .*; {message}"):
        Ranker(FakeChat(), **options).estimate_bias([IMAGE], [NAMES])


def test_a_server_without_log_probabilities_names_what_works():
    served = Capabilities(option_log_probs=False, continuation_log_probs=False, list_constraint=False)
    with pytest.raises(ChatUnsupportedError, match=r"'choice'; it can serve: generate"):
        Ranker(FakeChat(capabilities=served), strategy="choice", permutations="all")
    assert Ranker(FakeChat(SCORES, capabilities=served), permutations="all").rank(IMAGE, NAMES).status == "ranked"


def test_corrections_show_in_name_and_settings():
    chat = biased()
    prior = Ranker(chat, strategy="likelihood", blank_weight=0.5).estimate_bias([IMAGE], [NAMES])
    ranker = Ranker(chat, strategy="likelihood", permutations="all", bias=prior, blank_weight=0.5)
    assert ranker.name == "fake (likelihood in all orders, debiased, less 0.5 of blank)"
    settings = json.loads(json.dumps(ranker.settings))
    assert (settings["permutations"], settings["blank_weight"]) == ("all", 0.5)
    assert OptionPrior.from_dict(settings["bias"]) == prior
    assert Ranker(chat, strategy="choice", permutations=2).name == "fake (choice in 2 orders)"
    assert Ranker(chat, strategy="choice").settings["bias"] is None


def test_the_fakes_place_bias():
    chat = FakeChat({"a": -1.0, "b": -1.0}, place_bias=(0.0, 1.0))
    said = [Ranker(chat, strategy=s).rank(IMAGE, ["a", "b"]).order for s in ("generate", "choice", "likelihood")]
    assert said == [(1, 0)] * 3
    assert Ranker(chat, strategy="generate", constrained=True).rank(IMAGE, ["a", "b"]).order == (1, 0)
