"""Documents that hold items of benchmarks go, whatever was done to the items; others stay."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import Document, Drop, Tally
from data_prep.steps import decontaminate
from data_prep.steps.decontaminate import Decontaminator, benchmark_counts, compared_against, prepare
from data_prep.words import windows, word_blocks, words
from megatron_codemix.config import Decontaminate, SourceSpec
from megatron_codemix.errors import UserError

QUESTION = "A farmer sells seventeen geese at the market and buys three goats, two ropes and a very small red wagon."
SOLUTION = """def pair_sums(numbers, wanted):
    found = []
    for first in range(len(numbers)):
        for second in range(first + 1, len(numbers)):
            if numbers[first] + numbers[second] == wanted and first not in found:
                found.append((first, second))
    return sorted(found)
"""
HOST = "\n".join(
    f"line {number} of a file that has nothing to do with any benchmark, number{number * 7} = {number}" for number in range(200)
)
KINDS = {kind: SourceSpec(kind="jsonl", paths=[Path("x")], modality=kind) for kind in ("code", "text")}


def make(folder: Path, rows: list, modality: str = "code", **more) -> Decontaminator:
    """A step that compares with a benchmark of these rows."""
    file = folder / "bench.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = Decontaminate(against=[file], **more)
    prepare(chosen, folder / "work")
    return Decontaminator(chosen, KINDS[modality], folder=folder / "work")


def embedded(text: str) -> str:
    return HOST + "\n" + text + "\n" + HOST


def verdict(step: Decontaminator, text: str) -> Document | Drop:
    return step.apply(Document("a", text), Tally())


def test_an_item_laid_out_anew_is_found(tmp_path: Path) -> None:
    step = make(tmp_path, [{"question": QUESTION}])
    changed = "\n> ".join(textwrap.wrap(QUESTION.upper().replace(",", " – "), 30))
    found = verdict(step, embedded(changed))
    assert isinstance(found, Drop)
    assert found.reason == "holds text of bench.jsonl"
    assert found.detail.startswith("A FARMER SELLS SEVENTEEN GEESE > AT THE MARKET")
    clean = Document("a", HOST)
    assert step.apply(clean, Tally()) is clean


@pytest.mark.parametrize("shared, found", [(9, False), (10, True), (11, True)])
def test_a_run_of_ten_words_is_a_leak(tmp_path: Path, shared: int, found: bool) -> None:
    step = make(tmp_path, [{"question": QUESTION}])
    assert isinstance(verdict(step, "other words " + " ".join(QUESTION.split()[:shared]) + " more words"), Drop) == found


def test_the_number_of_words_is_a_setting(tmp_path: Path) -> None:
    step = make(tmp_path, [{"question": QUESTION}], ngram_words=13)
    assert not isinstance(verdict(step, " ".join(QUESTION.split()[:12])), Drop)
    assert isinstance(verdict(step, " ".join(QUESTION.split()[:13])), Drop)


def test_renamed_code_is_found_in_code_only(tmp_path: Path) -> None:
    renamed = re.sub(r"\b(numbers|wanted|found|first|second|pair_sums)\b", lambda match: f"{match[0][::-1]}_{len(match[0])}", SOLUTION)
    renamed = renamed.replace("    ", "\t").replace(" + ", "+").replace("\n", "\n\n")
    step = make(tmp_path, [{"solution": SOLUTION}])
    assert not set(windows(words(renamed).hashes, 10)) & set(windows(words(SOLUTION).hashes, 10))
    found = verdict(step, embedded(renamed))
    assert isinstance(found, Drop)
    assert found.reason == "holds code of bench.jsonl"
    assert found.detail.startswith("def smus_riap_9(srebmun_7, detnaw_6): dnuof_5 = []")
    assert not isinstance(verdict(make(tmp_path, [{"solution": SOLUTION}], "text"), embedded(renamed)), Drop)


@pytest.mark.parametrize(
    "common",
    [
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24",
        "[[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]",
        "for i in range(1, m + 1):\n    for j in range(1, n + 1):\n        for k in range(n):",
        "'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l'",
    ],
)
def test_what_stands_everywhere_tells_nothing(tmp_path: Path, common: str) -> None:
    step = make(tmp_path, [{"prompt": f"{common}\n{QUESTION}"}, {"prompt": common}])
    assert not isinstance(verdict(step, embedded(common)), Drop)
    assert benchmark_counts(tmp_path / "work")[0]["compared"] == 1
    assert isinstance(verdict(step, embedded(f"{common}\n{QUESTION}")), Drop)


def test_short_questions_are_looked_for_whole(tmp_path: Path) -> None:
    rows = [{"text": "Write a function to swap two numbers.", "choices": ["the distance between Earth and the Sun", "yes"]}]
    step = make(tmp_path, rows)
    found = verdict(step, embedded("# WRITE a function\n# to swap two numbers"))
    assert isinstance(found, Drop)
    assert found.detail == "WRITE a function # to swap two numbers"
    assert not isinstance(verdict(step, embedded("write a function to swap three numbers")), Drop)
    assert not isinstance(verdict(step, embedded("the distance between Earth and the Sun")), Drop), "a choice is not the question"


def test_a_question_of_six_or_seven_words_stands_alone(tmp_path: Path) -> None:
    step = make(tmp_path, [{"text": "He reached the bottom of the stairs."}, {"text": "Add up all the even numbers below the limit."}])
    assert isinstance(verdict(step, embedded("Q: he reached the bottom of the stairs. A: then")), Drop)
    assert not isinstance(verdict(step, embedded("and when he reached the bottom of the stairs he fell")), Drop)
    assert not isinstance(verdict(step, "he reached the bottom of the stairs to fall"), Drop)
    assert isinstance(verdict(step, "please add up all the even numbers below the limit now"), Drop)


def test_questions_of_common_words_are_looked_for_whole(tmp_path: Path) -> None:
    """No run of ten words of MBPP/920 has four that are no keyword of some language."""
    question = "Write a function to remove all tuples with all none values in the given tuple list."
    assert isinstance(verdict(make(tmp_path, [{"text": question}]), embedded("# " + question)), Drop)


def test_what_many_items_of_a_file_say_is_no_question(tmp_path: Path) -> None:
    """Rows of the sanitized MBPP begin with the name of a notebook."""
    rows = [
        {"source_file": "somebody@: Benchmark Questions Verification V2.ipynb", "prompt": f"Write a function to sort {kind}."}
        for kind in ("small fruit", "red stones", "old ships", "wild geese", "cold rivers")
    ]
    step = make(tmp_path, rows)
    for row in rows:
        assert isinstance(verdict(step, embedded("# " + row["prompt"])), Drop)
    assert not isinstance(verdict(step, embedded(rows[0]["source_file"])), Drop)


@pytest.mark.parametrize("sentence, found", [(QUESTION, True), (" ".join(QUESTION.split()[:12]), False)])
def test_long_documents_go_for_more_than_a_phrase(tmp_path: Path, sentence: str, found: bool) -> None:
    context = "He had left his other daughter with the strange tall miller who never slept at night."
    step, long = make(tmp_path, [{"question": QUESTION, "context": context}]), embedded(embedded(HOST))
    assert len(long) > decontaminate.LONG
    assert isinstance(verdict(step, f"x {sentence} x"), Drop)
    assert isinstance(verdict(step, f"{long} x {sentence} x {long}"), Drop) == found
    second = "his other daughter with the strange tall miller who never slept"
    assert isinstance(verdict(step, f"{long} x {sentence} x {long} y {second} y"), Drop), "two runs of one item"


def test_short_questions_in_long_documents(tmp_path: Path) -> None:
    step, long = make(tmp_path, [{"text": "Write a function to swap two numbers."}]), embedded(embedded(HOST))
    assert isinstance(verdict(step, f"{long}\n# Write a function to swap two numbers.\n{long}"), Drop)
    assert not isinstance(verdict(step, f"{long} please write a function to swap two numbers now {long}"), Drop)


ADD = 'def add(x: int, y: int):\n    """Add two numbers x and y\n    >>> add(2, 3)\n    5\n    >>> add(5, 7)\n    12\n    """\n'
SAME = "def same_chars(s0: str, s1: str):\n    '''\n    Check if two words have the same characters.\n    '''\n"
NTH = 'def fib(n: int):\n    """Return n-th one.\n    >>> fib(10)\n    55\n    >>> fib(1)\n    1\n    >>> fib(8)\n    21\n    """\n'
PRODUCT = """    sum_value = 0
    prod_value = 1

    for n in numbers:
        sum_value += n
        prod_value *= n
    return sum_value, prod_value
"""
COUNT = """def count(string: str, sub):
    # how often
    index = (len(string) - len(sub)) + 1
    return sum([1 for i in range(0, index) if (string[i] == sub)])
"""
COUNT_LEAKED = """def f(word: str, part):
  place = len(word) - len(part) + 1
  return sum([1 for j in range(0, place) if word[j] == part])
"""
PARTS = {
    "prompt": ({"prompt": ADD, "solution": "    return x + y\n"}, re.sub(r"\b(x|y|add)\b", r"\1_1", ADD)),
    "docstring": ({"prompt": SAME}, "def f(a, b):\n    '''Check if two words have the same characters.'''"),
    "examples": ({"prompt": NTH}, ">>> g(10)\n55\n>>> g(1)\n1\n>>> g(8)\n21"),
    "solution": ({"prompt": "def sum_product(numbers):\n", "solution": PRODUCT}, PRODUCT),
    "solution renamed": (
        {"prompt": "def sum_product(numbers):\n", "solution": PRODUCT},
        re.sub(r"\b(n|numbers|\w+_value)\b", r"\1x", PRODUCT).replace("sum_valuex, prod_valuex", "(sum_valuex, prod_valuex)"),
    ),
    "names of others' keywords renamed, no comment": ({"code": COUNT}, COUNT_LEAKED),
    "test": ({"tests": ["assert lucky([3, 4, 5, 6], 7) == [4, 9]"]}, "def test():\n    assert chosen([3,4,5,6],7)==[4,9]"),
}


@pytest.mark.parametrize("row, leaked", PARTS.values(), ids=PARTS)
def test_parts_of_code_with_other_names(tmp_path: Path, row: dict, leaked: str) -> None:
    step = make(tmp_path, [row])
    host = HOST[: decontaminate.LONG // 3]
    assert isinstance(verdict(step, f"{host}\n{leaked}\n{host}"), Drop)
    assert not isinstance(verdict(step, embedded("def f(x):\n    for i in range(len(x)):\n        print(x[i])\n")), Drop)


def test_items_that_are_too_short_count_together_with_their_answers(tmp_path: Path) -> None:
    step = make(tmp_path, [{"q": "who wrote it", "a": ["an old man called Herbert", "perhaps his sister"]}, {"q": "2 + 2", "a": "4"}])
    assert benchmark_counts(tmp_path / "work")[0] | {"sha256": ""} == {"name": "bench.jsonl", "sha256": "", "items": 2, "compared": 1}
    assert isinstance(verdict(step, "Who wrote it? An old man called Herbert, perhaps his sister."), Drop)


def test_only_the_fields_that_are_named(tmp_path: Path) -> None:
    rows = [{"question": QUESTION, "source": "The Goose Fair by an unknown author from the north of somewhere cold"}]
    step = make(tmp_path, rows, fields=["question"])
    assert isinstance(verdict(step, QUESTION), Drop)
    assert not isinstance(verdict(step, rows[0]["source"]), Drop)


def test_leaks_across_the_blocks_of_a_long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = make(tmp_path, [{"question": QUESTION}, {"solution": SOLUTION}])
    monkeypatch.setattr(decontaminate, "BLOCK_CHARACTERS", 60)
    monkeypatch.setattr(decontaminate, "word_blocks", lambda text, overlap: word_blocks(text, overlap, 25))
    renamed = re.sub(r"\b(numbers|wanted|found|first|second|pair_sums)\b", lambda match: match[0].upper() + "x", SOLUTION)
    for start in range(0, 60, 7):
        assert isinstance(verdict(step, "a" * start + " " + QUESTION), Drop)
        found = verdict(step, "b" * start + "\n" + renamed)
        assert isinstance(found, Drop)
        assert found.reason.startswith("holds code of")


def test_tables_are_made_once_and_anew_when_a_file_changes(tmp_path: Path) -> None:
    make(tmp_path, [{"question": QUESTION}])
    chosen = Decontaminate(against=[tmp_path / "bench.jsonl"])
    record = tmp_path / "work" / "benchmarks" / "record.json"
    before, made = record.read_bytes(), record.stat().st_mtime_ns
    prepare(chosen, tmp_path / "work")
    assert record.stat().st_mtime_ns == made
    step = make(tmp_path, [{"question": SOLUTION}])
    assert record.read_bytes() != before
    assert not isinstance(verdict(step, QUESTION), Drop)


def test_another_task_that_was_faster_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bench.jsonl"
    file.write_text(json.dumps({"question": QUESTION}))
    chosen, make_ = Decontaminate(against=[file]), decontaminate._make

    def slowly(*arguments) -> None:
        monkeypatch.setattr(decontaminate, "_make", make_)
        prepare(chosen, tmp_path / "work")
        make_(*arguments)

    monkeypatch.setattr(decontaminate, "_make", slowly)
    prepare(chosen, tmp_path / "work")
    assert isinstance(verdict(Decontaminator(chosen, KINDS["text"], folder=tmp_path / "work"), QUESTION), Drop)
    assert [one.name for one in (tmp_path / "work").iterdir()] == ["benchmarks"]


def test_what_is_recorded_names_the_files_and_their_content(tmp_path: Path) -> None:
    (tmp_path / "sets" / "math").mkdir(parents=True)
    (tmp_path / "sets" / "math" / "a.csv").write_text("x,y\n")
    (tmp_path / "sets" / "b.json").write_text("[]")
    (tmp_path / "sets" / "README.md").write_text("no benchmark")
    recorded = compared_against(Decontaminate(against=[tmp_path / "sets"]))
    assert [line.split(" sha256:")[0] for line in recorded] == ["b.json", "math/a.csv"]
    assert all(len(line.split(" sha256:")[1]) == 64 for line in recorded)


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> list[Decontaminator]:
    folder = tmp_path_factory.mktemp("steps")
    return [make(folder, [{"question": QUESTION, "solution": SOLUTION}], modality) for modality in ("code", "text")]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60), st.booleans())
def test_anything_around_an_item_changes_nothing(steps: list[Decontaminator], before: str, behind: str, leaks: bool) -> None:
    middle = QUESTION if leaks else "nothing of interest"
    for step in steps:
        found = verdict(step, f"{before} {middle} {behind}")
        assert isinstance(found, Drop) == leaks
        if isinstance(found, Drop):
            found.detail.encode()


@pytest.mark.parametrize(
    "against, message", [("missing.jsonl", "does not exist"), ("notes.md", "is no benchmark file"), ("empty", "holds none")]
)
def test_paths_without_benchmarks_are_told(tmp_path: Path, against: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match=message):
        prepare(Decontaminate(against=[tmp_path / against]), tmp_path / "work")
    assert not (tmp_path / "work").exists()
