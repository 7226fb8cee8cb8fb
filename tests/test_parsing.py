"""parse_ranking: any text whatever -> a full permutation with an honest status."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarvision.ranking.parsing import parse_ranking
from rarvision.ranking.prompts import format_list

ABC = ["tulip", "rose", "daisy"]


def read(answer, names=ABC):
    parsed = parse_ranking(answer, names)
    assert sorted(parsed.order) == list(range(len(names)))
    assert (parsed.status == "ranked") == (parsed.reason is None)
    return [names[i] for i in parsed.order], parsed.status


@pytest.mark.parametrize(
    "answer",
    [
        "['daisy', 'tulip', 'rose']",
        '["daisy", "tulip", "rose"]',
        "[daisy, tulip, rose]",
        "[`daisy`, `tulip`, `rose`]",
        "[‘daisy’, ‘tulip’, ‘rose’]",  # noqa: RUF001
        "[“daisy”, “tulip”, “rose”]",
        "daisy, tulip, rose",
        "daisy; tulip; rose.",
        "daisy > tulip > rose",
        "daisy>tulip>rose",
        "daisy → tulip → rose",
        "1. daisy\n2. tulip\n3. rose",
        "1) daisy 2) tulip 3) rose",
        "1. daisy 2. tulip 3. rose",
        "- daisy\n- tulip\n- rose",
        "• daisy\n• tulip\n• rose\n",
        "* **daisy**\n* **tulip**\n* **rose**",
        "_daisy_, _tulip_, _rose_",
        "daisy\ntulip\nrose",
        "DAISY, Tulip, ROSE",
        "I think it is a daisy, then a tulip, then rose.",
        "The image most resembles daisy. After that come tulip and finally rose",
        "Here is the ranking:\n\n1. daisy - white petals and a yellow heart\n2. tulip (red)\n3. rose: unlikely",
        "Sure! Comparing tulip and rose and daisy:\n1. daisy\n2. tulip\n3. rose",
        "The categories are tulip, rose, daisy. Answer: daisy, tulip, rose",
        '```json\n["daisy", "tulip", "rose"]\n```',
        "```python\n['daisy',\n 'tulip',\n 'rose']\n```",
        '{"ranking": ["daisy", "tulip", "rose"]}',
        '{"1": "daisy", "3": "rose", "2": "tulip"}',
        '{"tulip": 0.3, "rose": 0.1, "daisy": 0.6}',
        '{"rose": 3, "daisy": 1, "tulip": 2}',
        '[{"name": "daisy", "score": 0.9}, {"name": "tulip", "score": 0.1}, {"name": "rose", "score": 0}]',
        "[['daisy', 'tulip'], ['rose']]",
        "[[daisy], [tulip], [rose]]",
        "('daisy', 'tulip', 'rose')",
        "{'daisy', 'tulip', 'rose'}",
        "| 1 | daisy |\n| 2 | tulip |\n| 3 | rose |",
        "First, daisy; second, a tulip; and lastly the rose.",
        "<daisy> <tulip> <rose>",
        "['daisy' 'tulip' 'rose']",
        "\\boxed{['daisy', 'tulip', 'rose']}",
        "Rank 1: daisy\nRank 2: tulip\nRank 3: rose",
        "daisy (most similar) > tulip > rose (least similar)",
        "[1] daisy > [2] tulip > [3] rose",
        "A. daisy\nB. tulip\nC. rose",
        "<think>Rose? No, tulip.</think>['daisy', 'tulip', 'rose']",
        "Perhaps a rose or a tulip.</think>\n\ndaisy, tulip, rose",
        "<THINKING>rose, tulip, daisy</THINKING>daisy, tulip, rose",
        "<|channel|>final<|message|>['daisy', 'tulip', 'rose']<|end|>",
        "['daisy', 'tulip', 'rose']</s>",
        "<answer>daisy, tulip, rose</answer>",
        "['daisy', 'tulip', 'rose'",
        "['daisy', 'tulip', 'rose",
        "C, A, B",
        "C > A > B",
        "[3] > [1] > [2]",
        "3 1 2",
        "2, 0, 1",
        "(C) (A) (B)",
        "1. C\n2. A\n3. B",
    ],
)
def test_complete_answers_are_ranked(answer):
    assert read(answer) == (["daisy", "tulip", "rose"], "ranked")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("['daisy', 'tulip']", ["daisy", "tulip", "rose"]),
        ("daisy", ["daisy", "tulip", "rose"]),
        ("It is a rose.", ["rose", "tulip", "daisy"]),
        ("['rose', 'rose', 'daisy', 'rose', 'tulip']", ["rose", "daisy", "tulip"]),
        ("['rose', 'sunflower', 'daisy', 'tulip']", ["rose", "daisy", "tulip"]),
        ("sunflower, rose, daisy, tulip", ["rose", "daisy", "tulip"]),
        ("['rose', 'daissy', 'tullip']", ["rose", "daisy", "tulip"]),
        ("rose, daisy, tulp", ["rose", "daisy", "tulip"]),
        ("['rose', 'dais", ["rose", "daisy", "tulip"]),
        ("<think>tulip, tulip</think>rose", ["rose", "tulip", "daisy"]),
        ("rose <think>or rather a daisy", ["rose", "tulip", "daisy"]),
        ("B", ["rose", "tulip", "daisy"]),
        ("[2]", ["rose", "tulip", "daisy"]),
        ("['tulip','rose','daisy'] sorted is ['daisy','rose','tulip']", ["daisy", "rose", "tulip"]),
        ("Options: tulip, rose, daisy. Answer: daisy", ["daisy", "tulip", "rose"]),
        ("From tulip, rose and daisy I choose ['daisy']", ["daisy", "tulip", "rose"]),
    ],
)
def test_incomplete_answers_are_repaired(answer, expected):
    assert read(answer) == (expected, "repaired")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   \n",
        "I cannot tell.",
        "[]",
        "[[[[",
        "['sunflower', 'orchid']",
        "<think>tulip, rose, daisy",
        "<html><body>502 Bad Gateway</body></html>",
        "Roses? No idea",
        "tulips",  # prose is read word by word; as an item it is a typo, see below
        "0",
        "D",
        "17",
        "A 1",
        "🌷",
        "\x00\x01",
        '{"error": {"code": 500}}',
    ],
)
def test_nothing_recognised_is_a_fallback(answer):
    order, status = read(answer)
    if answer == "tulips":
        assert (order, status) == (ABC, "repaired")
    else:
        assert (order, status) == (ABC, "fallback")


def test_reasons_say_what_was_wrong():
    assert parse_ranking("['rose', 'rose', 'sunflower', 'daissy']", ABC).reason == (
        "1 of 3 candidates missing; 1 named more than once; 1 not among the candidates; 1 misspelt"
    )
    assert parse_ranking("", ABC).reason == "the answer is empty"
    assert parse_ranking("<think>hm", ABC).reason == "the answer ended inside its thinking"


NASTY = [
    "Black-eyed Susan's",
    "Bird's eye",
    "Susan",
    "rocking_chair",
    "Boeing 707-320",
    "Boeing 707-320 [late]",
    "Boeing 707-320B",
    'the "Great" auk',
    "salt, pepper and cloves",
    "salt",
    "first\nsecond",
    "Crème brûlée",
    "老虎",
    "虎",
    "Großer Panda",
    "тигр",
    "St. John's wort",
]


@pytest.mark.parametrize("quote", ["'", '"', "`", ""])
@pytest.mark.parametrize("separator", [", ", ",", ",\n "])
def test_nasty_names_in_lists_of_any_quoting(quote, separator):
    order = NASTY[::-1]
    answer = "[" + separator.join(f"{quote}{name}{quote}" for name in order) + "]"
    assert read(answer, NASTY) == (order, "ranked")


@pytest.mark.parametrize("form", ["{i}. {name}\n", "{i}) {name}\n", "- {name}\n", "{name}\n", "{name} > "])
def test_nasty_names_line_by_line(form):
    order = NASTY[::-1]
    answer = "".join(form.format(i=i, name=name) for i, name in enumerate(order, 1))
    assert read(answer, NASTY) == (order, "ranked")


def test_nasty_names_in_json():
    order = NASTY[::-1]
    assert read(json.dumps(order), NASTY) == (order, "ranked")
    assert read("Here:\n" + json.dumps({"ranking": order}, indent=1), NASTY) == (order, "ranked")


def test_nasty_names_as_python_writes_them():
    order = [name for name in NASTY[::-1] if "\n" not in name]
    assert read(repr(order), order[::-1]) == (order, "ranked")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("rocking chair", "rocking_chair"),
        ("Rocking-Chair", "rocking_chair"),
        ("CREME BRULEE", "Crème brûlée"),
        ("grosser panda", "Großer Panda"),
        ("black eyed susan’s", "Black-eyed Susan's"),  # noqa: RUF001
        ("bird`s  eye", "Bird's eye"),
        ("first second", "first\nsecond"),
        ("ТИГР", "тигр"),
    ],
)
def test_case_accents_hyphens_and_quotes_do_not_matter(written, name):
    order, status = read(f"['{written}', 'dodo']", [*NASTY[:3], name, "dodo"] if name not in NASTY[:3] else NASTY)
    assert order[0] == name
    assert status == "repaired"  # the others are missing
    assert read(f"{written}, dodo", [name, "dodo"]) == ([name, "dodo"], "ranked")


def test_a_neighbouring_fine_grained_name_is_not_a_typo():
    names = ["Boeing 707-320", "azure finch", "crimson-throated warbler"]
    assert read("['Boeing 707-300', 'amber finch', 'crimson-crowned warbler']", names) == (names, "fallback")
    assert read("['crimson-throted warbler', 'azur finch', 'Boing 707-320']", names) == (names[::-1], "repaired")


def test_a_typo_that_fits_two_names_is_left_alone():
    assert read("['golden plovex']", ["golden plover", "golden ploves"])[1] == "fallback"


def test_substring_of_an_off_list_name_is_not_a_mention_in_a_list():
    assert read("['Susan vine', 'rose']", ["Susan", "rose"]) == (["rose", "Susan"], "repaired")


def test_longest_name_wins():
    names = ["chair", "rocking chair", "armchair", "rock"]
    assert read("rocking chair, chair, rock, armchair", names)[0] == ["rocking chair", "chair", "rock", "armchair"]
    assert read("It is an armchair, not a chair.", names)[0][:2] == ["armchair", "chair"]
    assert read("这是老虎，然后是虎", ["虎", "老虎"]) == (["老虎", "虎"], "ranked")  # noqa: RUF001


def test_names_equal_up_to_normalisation():
    assert read("['A b', 'a b']", ["a b", "A b"]) == (["A b", "a b"], "ranked")
    assert read("[A_B, a b]", ["a b", "A b"])[1] == "repaired"


def test_names_that_are_letters_or_numbers():
    assert read("B, A", ["A", "B"]) == (["B", "A"], "ranked")
    assert read("3, 1, 2", ["2", "3", "1"]) == (["3", "1", "2"], "ranked")
    assert read("C, A, B", ["B", "C", "A"]) == (["C", "A", "B"], "ranked")


def test_repeated_names_stay_together():
    parsed = parse_ranking("['b', 'a']", ["a", "b", "a"])
    assert parsed.order == (1, 0, 2)
    assert parsed.status == "ranked"


def test_missing_names_in_a_given_order():
    assert parse_ranking("rose", ABC, missing_order=[2, 1, 0]).order == (1, 2, 0)
    assert parse_ranking("", ABC, missing_order=[2, 1, 0]).order == (2, 1, 0)


def test_no_names_and_one_name():
    assert parse_ranking("anything", []).order == ()
    assert read("rose", ["rose"]) == (["rose"], "ranked")
    assert read("'rose'", ["rose"]) == (["rose"], "ranked")
    assert read("hm", ["rose"]) == (["rose"], "fallback")


def test_two_readings_are_owned_up_to():
    parsed = parse_ranking(format_list(["a", "b", "a', 'b"]), ["a", "b", "a', 'b"])
    assert parsed.status == "repaired"
    assert "more than one way" in str(parsed.reason)


NAMES = st.lists(st.text(min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=8, unique=True)
TRICKY = st.lists(
    st.text(alphabet="ab'\", []\n.1A-é>虎", min_size=1, max_size=6).filter(str.strip),
    min_size=1,
    max_size=6,
    unique=True,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), names=NAMES | TRICKY)
def test_round_trip_of_format_list(data, names):
    order = data.draw(st.permutations(names))
    parsed = parse_ranking(format_list(order), names)
    if parsed.status == "ranked":
        assert [names[i] for i in parsed.order] == order
    else:  # only what truly allows two readings
        assert parsed.reason == "the list can be read in more than one way"
        assert any("'" in name for name in names)


@settings(max_examples=150, deadline=None)
@given(answer=st.text(max_size=200), names=NAMES | TRICKY)
def test_any_text_gives_a_permutation(answer, names):
    read(answer, names)


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(
            [*ABC, *NASTY, "[", "]", "'", '"', ", ", "\n", "{", "}", ":", "1.", "A", " > ", "<think>", "</think>", "\\"]
        ),
        max_size=30,
    )
)
def test_any_jumble_gives_a_permutation(pieces):
    read("".join(pieces), ABC + NASTY)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), kept=st.integers(1, 3))
def test_what_is_named_keeps_its_order(data, kept):
    order = data.draw(st.permutations(ABC))
    answer = data.draw(st.sampled_from(["[{}]", "{}", "1. {}", "I say: {}", "<think>x</think>{}"]))
    joined = data.draw(st.sampled_from([", ", "\n", " > ", "; "])).join(order[:kept])
    ranked, status = read(answer.format(joined))
    assert ranked[:kept] == order[:kept]
    assert status == ("ranked" if kept == 3 else "repaired")


@pytest.mark.parametrize(
    "unit",
    ["[", "'", "a ", "'x ", "['tulip', ", "tulip ", "tulipx, ", "1. ", "<think>", '{"a": ', "\\",
     ", ", "tulpi, ", " ",
     "虎", "tulip [", "answer: ", "- ", "a_", "['", "x'y, ",
     "tulip: x, "],
)  # fmt: skip
def test_long_answers_take_linear_time(unit):
    """Eight times as long an answer takes about eight times as long; where time is quadratic, 64 times."""

    def seconds(length):
        answer = "rose - " + unit * (length // len(unit))
        started = time.process_time()
        read(answer, [*ABC, *NASTY])
        return time.process_time() - started

    short = min(seconds(2_000) for _ in range(3))
    assert seconds(16_000) < 24 * short + 0.1
