"""Comments and functions of the languages in which a keyword or a mark announces each of them: Python, Go, Rust.

Looking up the nodes at these words takes half as long as walking the tree by a query. The tree decides: a word in a
string, or one that announces nothing, is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tree_sitter import Node

_PLAIN_STRING = re.compile(rb"[rRuU]?[\"']")
_FIRST_STATEMENT = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s|#[^\n\r]*|\\\r?\n)*")

_WORDS = {"python": (b"#", b"def", b"class"), "go": (b"//", b"/*", b"func"), "rust": (b"//", b"/*", b"fn")}
_NEXT_COMMENT = {
    "python": re.compile(rb"[ \t]*\r?\n[ \t]*(#[^\r\n]*)"),
    "go": re.compile(rb"[ \t]*\r?\n[ \t]*(//[^\n]*)"),
    "rust": re.compile(rb"[ \t]*\r?\n[ \t]*(//[^\n]*)"),
}
LANGUAGES = frozenset(_WORDS)
_FUNCTIONS = frozenset(("function_definition", "function_declaration", "method_declaration", "function_item"))


@dataclass(slots=True)
class Found:
    """(first byte, the one behind the last) of comments and docstrings; (first byte, body, end) of functions."""

    comments: list[tuple[int, int]] = field(default_factory=list)
    docstrings: list[tuple[int, int]] = field(default_factory=list)
    functions: list[tuple[int, int, int]] = field(default_factory=list)


def find_by_keywords(grammar: str, source: bytes, root: Node) -> Found:
    """Everything in the order of the text. Docstrings: those of Python, where they are no comments."""
    found = Found()
    skip = 0
    if grammar == "python":
        _add_docstring(source, _first_statement(source, root), found)
    for start, end in _places(source, _WORDS[grammar]):
        if start < skip:
            continue
        node = root.descendant_for_byte_range(start, end)
        kind = node.type if node is not None else ""
        if node is None or "string" in kind:
            # the rest of a string is passed over; what is computed in a formatted one has nodes of its own
            skip = node.end_byte if node is not None and kind.endswith("content") else 0
        elif kind in ("def", "func", "fn", "class"):
            _add_definition(source, node.parent, found)
        elif comment := _comment(node):
            skip = _add_comments(grammar, source, start, comment.end_byte, found)
    return found


def _places(source: bytes, words: tuple[bytes, ...]) -> list[tuple[int, int]]:
    """Where any of the words stands, in order: several times as fast as a pattern of them all."""
    places = []
    for word in words:
        start = source.find(word)
        while start >= 0:
            places.append((start, start + len(word)))
            start = source.find(word, start + len(word))
    return sorted(places)


def _add_comments(grammar: str, source: bytes, start: int, end: int, found: Found) -> int:
    """Count in a comment, and the line comments on the lines behind it: a line that begins so cannot be anything else there."""
    # some grammars count the line end in
    end = start + len(source[start:end].rstrip())
    found.comments.append((start, end))
    if source.startswith(b"/*", start):
        return end
    following = _NEXT_COMMENT[grammar]
    while match := following.match(source, end):
        start = match.start(1)
        end = start + len(match[1].rstrip())
        found.comments.append((start, end))
    return end


def _comment(node: Node) -> Node | None:
    if node.type.endswith("comment"):
        return node
    parent = node.parent
    return (
        parent if parent is not None and parent.type in ("line_comment", "block_comment") and parent.start_byte == node.start_byte else None
    )


def _add_definition(source: bytes, definition: Node | None, found: Found) -> None:
    body = definition.child_by_field_name("body") if definition is not None else None
    if definition is None or body is None:
        return
    if definition.type in _FUNCTIONS:
        outer = definition.parent
        start = outer.start_byte if outer is not None and outer.type == "decorated_definition" else definition.start_byte
        start = _attributes_start(source, definition) if definition.type == "function_item" else start
        found.functions.append((start, body.start_byte, definition.end_byte))
    if definition.type in ("function_definition", "class_definition"):
        first = body.named_child(0) if body.named_child_count else None
        if first is not None and first.start_byte == body.start_byte:
            _add_docstring(source, first, found)


def _attributes_start(source: bytes, definition: Node) -> int:
    """Where the attributes in front of a function of Rust begin, which are its siblings; its own start where there are none."""
    start, before = definition.start_byte, definition
    while source[_solid_end(source, start) - 1 : start].startswith(b"]"):
        attribute = before.prev_sibling
        if attribute is None or attribute.type != "attribute_item":
            break
        start, before = attribute.start_byte, attribute
    return start


def _solid_end(source: bytes, end: int) -> int:
    """Behind the last byte before `end` that is no white space."""
    while end and source[end - 1] in b" \t\r\n":
        end -= 1
    return end


def _first_statement(source: bytes, root: Node) -> Node | None:
    blank = _FIRST_STATEMENT.match(source)
    assert blank is not None
    start = blank.end()
    if source[start : start + 1] not in b"\"'rRuU(" or start == len(source):
        return None
    node = root.descendant_for_byte_range(start, start + 1)
    while node is not None and node.type != "expression_statement":
        node = node.parent
    return node if node is not None and node.start_byte == start and node.parent == root else None


def _add_docstring(source: bytes, statement: Node | None, found: Found) -> None:
    """Count a statement in that is a string and nothing else, neither bytes nor formatted."""
    if statement is None or statement.type != "expression_statement" or statement.named_child_count != 1:
        return
    text = statement.named_child(0)
    while text is not None and text.type == "parenthesized_expression":
        text = text.named_child(0) if text.named_child_count == 1 else None
    if text is None or text.type not in ("string", "concatenated_string"):
        return
    if all(_PLAIN_STRING.match(source, part) is not None for part in _parts(text)):
        found.docstrings.append(statement.byte_range)


def _parts(text: Node) -> Iterator[int]:
    if text.type == "string":
        yield text.start_byte
    else:
        yield from (part.start_byte for part in text.named_children if part.type == "string")
