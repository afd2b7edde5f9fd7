"""Commits, issues and questions become Markdown; what is not one is dropped under a reason."""

from __future__ import annotations

import difflib
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import Document, Tally
from data_prep.rendering.commit import unified
from data_prep.steps.render import Renderer
from megatron_codemix.config.prep import SourceSpec
from megatron_codemix.config.prep_steps import RenderStep

SPEC = SourceSpec(kind="jsonl", paths=[], modality="text")


def rendered(form, text="", fields=None, spec=SPEC, **more):
    tally = Tally()
    document = Document("name", text, language="x", fields=fields or {})
    return Renderer(RenderStep(form=form, **more), spec).apply(document, tally), tally


def text_of(form, text="", fields=None, **more):
    result, _ = rendered(form, text, fields, **more)
    assert isinstance(result, Document), result
    assert (result.name, result.language, dict(result.fields)) == ("name", "x", {})
    return result.text


COMMIT = {"old_file": "a.py", "new_file": "a.py", "old_contents": "x = 1\n", "new_contents": "x = 2\n", "message": "Change x\n\nBecause."}


def test_a_commit_is_its_message_and_its_difference():
    assert text_of("commit", fields=COMMIT) == "Change x\n\nBecause.\n\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"
    diff = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
    assert text_of("commit", fields={"subject": "Fix", "diff": diff}) == f"Fix\n\n{diff}"
    files = [{"filename": "x", "patch": "@@ -1 +1 @@\n-a\n+b"}]
    assert text_of("commit", fields={"message": "Fix", "files": files}) == "Fix\n\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"


def test_the_text_field_is_part_of_the_row():
    spec = SourceSpec(kind="jsonl", paths=[], modality="text", text_field="message")
    result, _ = rendered("commit", "The message", {"diff": "-a\n+b"}, spec)
    assert result.text == "The message\n\n-a\n+b\n"


def test_long_differences_are_left_out_and_counted():
    long = "diff --git a/y b/y\n" + "+line\n" * 500
    short = "diff --git a/x b/x\n+a\n"
    result, tally = rendered("commit", "", {"message": "Two", "diff": short + long})
    assert result.text == f"Two\n\n{short}"
    assert tally.changed == {("render", "long differences"): 1}
    result, _ = rendered("commit", "", {"message": "One", "diff": long})
    assert result.reason == "difference too long"


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"diff": "x"}, "no commit message"),
        ({"message": 3, "diff": "x"}, "no commit message"),
        ({"message": "m"}, "no difference"),
        ({"message": "m", "old_contents": "a", "new_contents": "a"}, "no difference"),
        ({"message": "m", "old_contents": 3, "new_contents": "a"}, "no difference"),
    ],
)
def test_a_row_that_is_no_commit_is_dropped(fields, reason):
    result, _ = rendered("commit", "", fields)
    assert result.reason == reason


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_differences_are_those_of_difflib(seed):
    rng = random.Random(seed)
    before = [f"line {rng.randrange(30)}" for _ in range(rng.randrange(30))]
    after = list(before)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(after) + 1)
        after[place : place + rng.randrange(3)] = [f"new {rng.random()}"] * rng.randrange(3)
    ours = unified("\n".join(before), "\n".join(after), "f", "f")
    assert applied(before, ours.splitlines()[2:]) == after
    if before == after:
        return
    theirs = list(difflib.unified_diff(before, after, "a/f", "b/f", lineterm="", n=3))
    if sum(line.startswith("@@") for line in theirs) == 1 and len(set(before)) == len(before):
        assert len(ours.splitlines()) <= len(theirs)


def applied(before, hunks):
    """`before` with a unified difference applied, its line numbers checked."""
    after, place = [], 0
    for line in hunks:
        if line.startswith("@@"):
            old, new = line.split()[1:3]
            start, length = (int(part) for part in (old[1:] + ",1").split(",")[:2])
            start = start - 1 if length else start
            after += before[place:start]
            place = start
            new_start, new_length = (int(part) for part in (new[1:] + ",1").split(",")[:2])
            assert len(after) == (new_start - 1 if new_length else new_start)
            continue
        if line[0] in " -":
            assert before[place] == line[1:]
            place += 1
        if line[0] in " +":
            after.append(line[1:])
    return after + before[place:]


def test_a_small_change_in_a_large_file_is_found_quickly_and_a_large_one_refused():
    lines = [f"{number} words" for number in range(200_000)]
    changed = [*lines[:150_000], "new", *lines[150_000:]]
    started = time.process_time()
    diff = unified("\n".join(lines), "\n".join(changed), "f", "f")
    assert diff.splitlines()[2] == "@@ -149998,6 +149998,7 @@"
    assert unified("\n".join(lines), "\n".join(lines[::-1]), "f", "f") is None
    assert time.process_time() - started < 20


def test_an_issue_is_who_said_what_without_names():
    events = [
        {"type": "IssuesEvent", "action": "opened", "author": "Ann-Lee", "title": "It fails", "text": "See @bob, not @property"},
        {"type": "IssueCommentEvent", "action": "created", "author": "bob", "text": "Thanks @Ann-Lee"},
        {"author": "ci[bot]", "text": "build failed"},
        {"action": "closed", "author": "bob", "title": "It fails", "text": "See @bob, not @property"},
    ]
    result, tally = rendered("issue", "", {"events": events})
    assert result.text == "# It fails\n\nusername_0: See @username_1, not @property\n\nusername_1: Thanks @username_0\n"
    assert tally.changed == {("render", "posts of bots"): 1}
    comments = [{"user": {"login": "b"}, "body": "me too"}, {"user": {"login": "a"}, "body": "fixed"}]
    fields = {"title": "T", "body": "B", "user": {"login": "a"}, "comments": comments}
    assert text_of("issue", fields=fields) == "# T\n\nusername_0: B\n\nusername_1: me too\n\nusername_0: fixed\n"


def test_names_that_are_masked_already_stay():
    events = [
        {"author": "ann", "masked_author": "username_3", "text": "Hello"},
        {"author": "ci[bot]", "masked_author": "username_4", "text": "x"},
    ]
    assert text_of("issue", fields={"events": events}) == "username_3: Hello\n"


def test_an_issue_of_bots_alone_is_dropped():
    result, _ = rendered("issue", "", {"events": [{"author": "x-bot", "text": "hello"}]})
    assert result.reason == "no text in the issue"


def test_a_question_is_markdown_with_the_accepted_answer_first():
    fields = {
        "title": "How?",
        "question": "<p>How do I <code>x</code>?</p><pre><code>a &lt; b\n  c</code></pre><ul><li>one</li><li>two</li></ul>",
        "answers": [
            {"text": "plain a < b", "score": 1},
            {"text": "<p>best<br>second line</p>", "score": 9},
            {"text": "<h2>Yes</h2><script>alert(1)</script>chosen", "score": 0, "selected": True},
        ],
    }
    assert text_of("stackexchange", fields=fields) == (
        "# How?\n\nQuestion: How do I `x`?\n\n```\na < b\n  c\n```\n\n- one\n- two\n\n"
        "Answer: ## Yes\n\nchosen\n\nAnswer: best\nsecond line\n\nAnswer: plain a < b\n"
    )


@pytest.mark.parametrize(
    "fields, reason", [({}, "no question"), ({"question": "q"}, "no answer"), ({"question": "q", "answers": 3}, "no answer")]
)
def test_a_question_alone_is_dropped(fields, reason):
    result, _ = rendered("stackexchange", "", fields)
    assert result.reason == reason


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["<p>", "</p>", "<pre>", "</pre>", "<code>", "<!", "<![", "<?", "&", "&#x;", "x", "\n", "</li>", "<h1", ">"])
    )
)
def test_any_html_is_read(parts):
    result, _ = rendered("stackexchange", "", {"question": "<p>q</p>", "answers": [{"text": "<p>" + "".join(parts)}, {"text": "y"}]})
    assert result.text.startswith("Question: q\n\nAnswer: ")
