"""Filters for natural language: every rule on both sides of its threshold, and repetition against a plain reading of the paper."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings, strategies

from data_prep.documents import Document, Drop, Tally
from data_prep.steps import gopher
from data_prep.steps.text_quality import TextQualityFilter
from data_prep.words import words
from megatron_codemix.config import SourceSpec, TextQuality

SPEC = SourceSpec(kind="stdlib", part="text", modality="text")


def run(text, rules, language=None, **more):
    tally = Tally()
    result = TextQualityFilter(TextQuality(rules=[rules], **more), SPEC).apply(Document("d", text, language=language), tally)
    return result, tally


def reason(text, rules="gopher", **more):
    result, _ = run(text, rules, **more)
    return result.reason if isinstance(result, Drop) else None


def prose(num_words, seed=0):
    """Distinct words of five letters, with the two stop words that every English text has."""
    draw = random.Random(seed)
    made = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(num_words - 2)]
    return " ".join(["the", "that", *made])


# --- gopher ---------------------------------------------------------------------------------------------------------------------------


def test_number_of_words():
    assert reason(prose(49)) == "gopher: too few words"
    assert reason(prose(50)) is None
    assert reason(prose(60), max_words=60) is None
    assert reason(prose(61), max_words=60) == "gopher: too many words"
    assert TextQuality().max_words == 100_000


@pytest.mark.parametrize("length, stays", [(2, False), (3, True), (10, True), (11, False)])
def test_mean_word_length(length, stays):
    text = " ".join(["the that", *["a" * length] * 97, "b" * (3 * length - 7)])
    assert reason(text) == (None if stays else "gopher: mean word length")


def test_symbols_per_word():
    assert reason(prose(100) + " #" * 11) is None  # 11 of 111
    assert reason(prose(100) + " #" * 12) == "gopher: too many hash signs"
    assert reason(prose(99) + " aaa..." * 11 + " end") is None
    assert reason(prose(99) + " aaa..." * 12 + " end") == "gopher: too many ellipses"
    assert reason(prose(99) + " aaa…" * 12 + " end") == "gopher: too many ellipses"


def test_bullet_lines():
    lines = [f"- {prose(9, seed)}" for seed in range(20)]
    assert reason("\n".join(lines)) == "gopher: too many bullet lines"
    for number in range(2):
        lines[number] = lines[number][2:]
    assert reason("\n".join(lines)) is None  # 18 of 20 are 0.9


def test_ellipsis_lines():
    lines = [prose(20, seed) for seed in range(10)]
    three = [line + "..." if number < 3 else line for number, line in enumerate(lines)]
    four = [line + "…" if number < 4 else line for number, line in enumerate(lines)]
    assert reason("\n".join(three)) is None
    assert reason("\n".join(four)) == "gopher: too many lines end in an ellipsis"


def test_alphabetic_words():
    assert reason(prose(80) + " 12345" * 20) is None
    assert reason(prose(80) + " 12345" * 21) == "gopher: too few alphabetic words"
    assert reason(prose(80) + " a2345" * 21) is None


def test_stop_words_are_asked_of_english_only():
    text = "the " + prose(100).removeprefix("the that ")
    assert reason(text) == "gopher: too few stop words"
    assert reason(text, language="en") == "gopher: too few stop words"
    assert reason(text, language="markdown") == "gopher: too few stop words"
    assert reason(text, language="de") is None
    assert reason("The " + text) == "gopher: too few stop words"  # two different ones
    assert reason("OF " + text) is None


@pytest.mark.parametrize("text", ["", " \n\n ", "\x00" * 100, "語" * 1000])
def test_what_holds_no_words(text):
    assert reason(text) == "gopher: too few words"


ODD = "ab1 \n\t\u3000éß語…#.\U0001f600\U00020000\ud800"


@given(strategies.lists(strategies.text(ODD, max_size=12), max_size=20).map(" ".join))
@settings(max_examples=150, deadline=None)
def test_word_statistics_are_those_of_split(text):
    expected = text.split()
    num_words, mean, alphabetic = gopher._word_statistics(text)
    assert num_words == len(expected)
    assert mean == pytest.approx(sum(map(len, expected)) / max(len(expected), 1))
    assert alphabetic == pytest.approx(sum(any(map(str.isalpha, word)) for word in expected) / max(len(expected), 1))


def test_word_statistics_of_blocks(monkeypatch):
    text = prose(3000) + "\nénd " + prose(500, 1)
    whole = gopher._word_statistics(text)
    monkeypatch.setattr(gopher, "MOST_CHARACTERS", 100)
    assert gopher._word_statistics(text) == whole


# --- repetition -----------------------------------------------------------------------------------------------------------------------


def test_duplicate_lines_and_paragraphs():
    lines = [prose(12, seed) for seed in range(7)]
    short = ["abc"] * 4
    assert reason("\n".join(lines + short[:3]), "gopher_repetition") is None  # 2 of 10
    assert reason("\n".join(lines[:6] + short), "gopher_repetition") is None  # 3 of 10
    assert reason("\n".join(lines[:5] + short), "gopher_repetition") == "gopher: duplicate lines"  # 3 of 9
    paragraphs = "\n\n".join(f"{line}\nabc {number}" for number, line in enumerate(lines[:5])) + "\n\n" + "x\ny\n\n" * 4
    assert reason(paragraphs, "gopher_repetition") == "gopher: duplicate lines"
    # paragraphs without repeated lines cannot repeat, so the rule on them sees what the one on lines lets through
    many = "\n\n".join(f"{one}" for one in [*lines, lines[0], lines[1]])
    assert reason(many, "gopher_repetition") == "gopher: characters in duplicate lines"


def test_characters_in_duplicate_lines():
    filler = [prose(12, seed) for seed in range(12)]
    fits = "\n".join([*filler, filler[0], filler[1]])  # 2 of 14
    over = "\n".join([*filler[:5], filler[0], filler[1]])  # 2 of 7: 0.286
    assert "lines" not in str(reason(fits, "gopher_repetition"))
    assert reason(over, "gopher_repetition") == "gopher: characters in duplicate lines"


@pytest.mark.parametrize("size", [2, 3, 4])
def test_most_frequent_gram(size):
    def text(times):
        # a run of words that comes back between words that never do; nothing longer than it does
        run_of_words = " ".join(["qqqqq", "vvvvv", "jjjjj", "zzzzz"][:size])
        parts = prose(250).split()
        return " ".join(f"{run_of_words} {parts[number]}" for number in range(times)) + " " + " ".join(parts[times:])

    most = gopher.MAX_TOP_GRAM[size]
    under = max(times for times in range(200) if plain_gram_share(text(times), size) <= most)
    assert reason(text(under + 1), "gopher_repetition") == f"gopher: most frequent {size}-gram"
    if size == 2:  # shorter ones of the longer runs are over their own limit later, so they stay
        assert reason(text(under), "gopher_repetition") is None


@pytest.mark.parametrize("size", [5, 6, 7, 8, 9, 10])
def test_duplicate_grams(size):
    def text(times):
        draw = random.Random(size)
        fresh = iter(prose(1500).split())
        runs = [" ".join(next(fresh) for _ in range(size)) for _ in range(times)]
        parts = [*runs, *runs, *(next(fresh) for _ in range(260))]
        draw.shuffle(parts)
        return " ".join(f"{part} {next(fresh)}" for part in parts)

    most = gopher.MAX_DUPLICATE_GRAMS[size]
    over = next(times for times in range(1, 200) if plain_duplicates(text(times), size) > most)
    assert reason(text(over - 1), "gopher_repetition") is None
    assert reason(text(over), "gopher_repetition") == f"gopher: duplicate {size}-grams"


def grams(text, size):
    found = [(match.start(), match.end(), match[0].lower()) for match in re.finditer(r"[^\W_]+", text)]
    return [
        (found[place][0], found[place + size - 1][1], tuple(word for *_, word in found[place : place + size]))
        for place in range(len(found) - size + 1)
    ]


def plain_gram_share(text, size):
    covered = Counter()
    for start, end, gram in grams(text, size):
        covered[gram] += end - start
    return max(covered.values(), default=0) / len(text)


def plain_duplicates(text, size):
    seen, covered = set(), set()
    for start, end, gram in grams(text, size):
        if gram in seen:
            covered |= set(range(start, end))
        seen.add(gram)
    return len(covered) / len(text)


FEW_WORDS = ["a", "b", "c", "dd", "ee", "ff", "the", "of", "x1", "é", "—", "."]


@given(strategies.lists(strategies.sampled_from(FEW_WORDS), min_size=1, max_size=120).map(" ".join))
@settings(max_examples=150, deadline=None)
def test_gram_rules_are_those_of_the_paper(text):
    drop = gopher._gram_rules(words(text), len(text))
    over = [f"gopher: most frequent {size}-gram" for size, most in gopher.MAX_TOP_GRAM.items() if plain_gram_share(text, size) > most]
    over += [f"gopher: duplicate {size}-grams" for size, most in gopher.MAX_DUPLICATE_GRAMS.items() if plain_duplicates(text, size) > most]
    assert (drop.reason if drop else None) == (over[0] if over else None)


# --- c4 -------------------------------------------------------------------------------------------------------------------------------

PAGE = "\n".join(f"Line {word} has words of its own." for word in ("one", "two", "three", "four", "five"))


def lines_kept(extra):
    result, tally = run(PAGE + "\n" + extra, "c4")
    assert isinstance(result, Document)
    removed = tally.changed["text_quality", "c4: lines removed"]
    assert result.text.startswith(PAGE) and removed == (result.text == PAGE) * (extra.count("\n") + 1)
    return result.text != PAGE


@pytest.mark.parametrize(
    "line, kept",
    [
        ("It ends here.", True),
        ("It ends here!", True),
        ("Does it end?", True),
        ('She said "it ends"', True),
        ("She said “it ends.”", True),
        ("It goes on", False),
        ("It goes on...", False),
        ("Two words.", False),
        ("Now three words.", True),
        ("Please enable JavaScript to read this.", False),
        ("Read our Privacy Policy before you go on.", False),
        ("This site uses cookies, as all do.", False),
        ("a " + "x" * 1000 + " b.", True),
        ("a " + "x" * 1001 + " b.", False),
    ],
)
def test_lines(line, kept):
    assert lines_kept(line) is kept


def test_pages():
    assert reason(PAGE, "c4") is None
    four = PAGE.rsplit("\n", 1)[0]
    assert run(four, "c4")[0] == Drop("c4: too few sentences", "4")
    assert reason(four, "c4", c4_min_sentences=4) is None
    quotation = 'He says "it ends"'  # a line that C4 keeps is a sentence at least, with a full stop or without
    assert reason(four + "\n" + quotation, "c4") is None
    assert reason("\n".join([quotation] * 5), "c4") is None
    assert run("\n".join([quotation] * 4), "c4")[0] == Drop("c4: too few sentences", "4")
    assert reason(PAGE + "\nLorem IPSUM dolor sit amet.", "c4") == "c4: lorem ipsum"
    assert reason(PAGE + "\nif (x) { y; } now.", "c4") == "c4: curly bracket"
    assert reason("", "c4") == "c4: too few sentences"


def test_lines_may_be_left_as_they_are():
    page = PAGE + "\nA heading\n\n  indented[1]"
    kept, tally = run(page, "c4", c4_keep_lines=True)
    assert kept.text == page and not tally.changed


def test_citation_marks():
    kept, tally = run(PAGE + "\nIt was so[12] for long.[citation needed] And more[edit].", "c4")
    assert kept.text == PAGE + "\nIt was so for long. And more."
    assert tally.changed["text_quality", "c4: citation marks removed"] == 3


def test_what_is_removed_of_documents_that_are_dropped_is_not_counted():
    dropped, tally = run("menu\n" * 20 + PAGE.split("\n")[0], "c4")
    assert dropped.reason == "c4: too few sentences" and not tally.changed


def test_rules_are_done_in_their_order():
    body = "\n".join(f"{prose(12, seed)}." for seed in range(5))
    text = body + "\n" + "\n".join(["menu"] * 40)
    step = TextQualityFilter(TextQuality(rules=["c4", "gopher_repetition"]), SPEC)
    assert step.apply(Document("d", text), Tally()).text == body
    step = TextQualityFilter(TextQuality(rules=["gopher_repetition", "c4"]), SPEC)
    assert step.apply(Document("d", text), Tally()).reason == "gopher: duplicate lines"


@given(strategies.text(max_size=400))
@settings(max_examples=150, deadline=None)
def test_anything(text):
    result = TextQualityFilter(TextQuality(min_words=1, c4_min_sentences=1), SPEC).apply(Document("d", text), Tally())
    assert isinstance(result, (Document, Drop))
