"""Issues with their comments, and questions with their answers, as Markdown.

Names of people become `username_0`, `username_1` … in the order in which they speak (as in StarCoder: Li et al. 2023,
arXiv 2305.06161, section 3.3, where bots' comments are left out too).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

from data_prep.rendering.shared import Count, Unrenderable, fenced, first_text, rows_of

_TEXTS = ("text", "body", "Body", "comment", "description")
_TITLES = ("title", "Title")
_AUTHORS = ("masked_author", "author", "user", "login", "username")
_MASKED = re.compile(r"username_\d+")
_MENTION = re.compile(r"(?<![\w@/.])@([A-Za-z0-9_][A-Za-z0-9_-]{0,38})")
_TAG = re.compile(r"</?(?:p|pre|code|br|a|li|ul|ol|em|strong|blockquote|h[1-6]|img|hr|div|span)\b[^>]{0,2000}>", re.IGNORECASE)
_MOST_POST = 1 << 20
"""Characters: sites allow 30,000 (Stack Exchange) or 65,536 (GitHub); parsing HTML may take time quadratic in its length."""


def render_issue(row: Mapping[str, Any], count: Count) -> str:
    """An issue: its title, then who wrote what.

    row: `events` as in The Stack's GitHub issues (mappings with `text`, `title`, `masked_author` or `author`, `action`), or
    `title`, `body` and `comments` (mappings with `body` and `user`). Raises Unrenderable where nothing was said by a human.
    """
    posts = rows_of(row.get("events"))
    if not posts:
        posts = [{**row, "text": first_text(row, ("body", "text", "description"))}, *rows_of(row.get("comments"))]
    title = first_text(row, _TITLES) or next((title for post in posts if (title := first_text(post, _TITLES))), "")
    speakers: dict[str, str] = {}
    said: list[tuple[str, str]] = []
    seen = {""}  # an event 'closed' repeats the issue
    for post in posts:
        authors = _authors(post)
        if any(author.lower().endswith(("[bot]", "-bot")) for author in authors):
            count("posts of bots")
            continue
        text = first_text(post, _TEXTS).strip()
        if text not in seen:
            seen.add(text)
            author = authors[0] if authors else ""
            speakers.setdefault(author, author if _MASKED.fullmatch(author) else f"username_{len(speakers)}")
            said.append((speakers[author], text))
    if not said:
        raise Unrenderable("no text in the issue")
    parts = [f"# {title.strip()}"] if title.strip() else []
    parts += [f"{speaker}: {_masked(text, speakers)}" for speaker, text in said]
    return "\n\n".join(parts) + "\n"


def _authors(post: Mapping[str, Any]) -> list[str]:
    """The author's names, the one that is already masked first."""
    values = [post.get(name) for name in _AUTHORS]
    values = [value.get("login") if isinstance(value, Mapping) else value for value in values]
    return [value for value in values if isinstance(value, str) and value]


def _masked(text: str, speakers: Mapping[str, str]) -> str:
    """Mentions of those who speak, by their new names; `@property` and other words stay."""
    return _MENTION.sub(lambda found: f"@{speakers.get(found[1], found[1])}", text)


def render_question(row: Mapping[str, Any], count: Count) -> str:
    """A question of a Stack Exchange site and its answers, the accepted one first, then by score.

    row: `question` (or `body`, `text`) and perhaps `title`; `answers`, mappings with `text` or `body`, and perhaps `selected` (or
    `accepted`, `is_accepted`) and `score` (or `pm_score`). HTML becomes Markdown.
    Raises Unrenderable where the question or every answer is missing.
    """
    question = _markdown(first_text(row, ("question", "body", "Body", "text")), count)
    if not question:
        raise Unrenderable("no question")
    ranked = sorted(rows_of(row.get("answers")), key=_rank)
    answers = [text for answer in ranked if (text := _markdown(first_text(answer, _TEXTS), count))]
    if not answers:
        raise Unrenderable("no answer")
    title = first_text(row, _TITLES).strip()
    parts = [f"# {title}"] if title else []
    parts += [f"Question: {question}", *(f"Answer: {answer}" for answer in answers)]
    return "\n\n".join(parts) + "\n"


def _rank(answer: Mapping[str, Any]) -> tuple[bool, float]:
    accepted = any(answer.get(name) is True for name in ("selected", "accepted", "is_accepted"))
    scores = [answer.get(name) for name in ("score", "pm_score", "Score")]
    score = next((value for value in scores if isinstance(value, int | float) and value == value), 0)
    return not accepted, -score


def _markdown(text: str, count: Count) -> str:
    if len(text) > _MOST_POST:
        count("posts over 1 MiB")
        return ""
    if not _TAG.search(text):
        return text.strip()
    reader = _Html()
    try:
        reader.feed(text)
        reader.close()
    except (AssertionError, ValueError):  # how the standard library refuses some malformed declarations
        count("posts of broken HTML")
        return ""
    return reader.text()


class _Html(HTMLParser):
    """The little HTML that posts are written in, as Markdown."""

    _BLOCKS = frozenset({"p", "div", "ul", "ol", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "hr"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._blocks: list[str] = []
        self._line: list[str] = []
        self._code: list[str] | None = None
        self._silent = 0

    def _close_block(self) -> None:
        text = "\n".join(" ".join(line.split()) for line in "".join(self._line).split("\n")).strip()
        if text:
            self._blocks.append(text)
        self._line = []

    def handle_starttag(self, tag: str, attrs) -> None:
        if tag in ("script", "style"):
            self._silent += 1
        elif self._code is not None:
            return
        elif tag == "pre":
            self._close_block()
            self._code = []
        elif tag in self._BLOCKS:
            self._close_block()
            if tag.startswith("h") and tag != "hr":
                self._line.append("#" * int(tag[1]) + " ")
        elif tag == "li":
            self._line.append("\n- ")
        elif tag == "br":
            self._line.append("\n")
        elif tag == "code":
            self._line.append("`")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._silent = max(0, self._silent - 1)
        elif self._code is not None:
            if tag == "pre":
                self._end_code()
        elif tag in self._BLOCKS:
            self._close_block()
        elif tag == "code":
            self._line.append("`")

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        if self._code is not None:
            self._code.append(data)
        else:
            self._line.append(data.replace("\n", " "))

    def _end_code(self) -> None:
        if self._code is not None and "".join(self._code).strip():
            self._blocks.append(fenced("".join(self._code)))
        self._code = None

    def text(self) -> str:
        self._end_code()
        self._close_block()
        return "\n\n".join(self._blocks)
