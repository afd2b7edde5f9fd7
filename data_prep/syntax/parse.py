"""Source text → syntax tree, by the grammar of its language."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from time import thread_time
from typing import Literal

import tree_sitter_c
import tree_sitter_cpp
import tree_sitter_go
import tree_sitter_java
import tree_sitter_javascript
import tree_sitter_python
import tree_sitter_rust
import tree_sitter_typescript
from tree_sitter import Language, Node, Parser, Query, QueryCursor

from data_prep.languages import by_path, normalised
from data_prep.syntax.queries import NAMES, STRUCTURE, VERBATIM

MAX_BYTES = 1 << 20
"""Larger files are not parsed (Christopoulou et al. 2024 and StarCoder leave them out): they are generated, and a tree takes some
hundred times its text's memory at worst."""

_MOST_OPEN_ANGLES = 4_000
"""More '<' without '>' are no code, and the grammars with generics take quadratic time and memory to find that out ('a<a<a<…': 20 s
for 40 kB as Java)."""
_MOST_ESCAPED_LINE_ENDS = 1_000
"""The scanner of Python takes time quadratic in a run of them (20 s for 100 kB), and does not ask whether to give up meanwhile."""
_ESCAPED_LINE_ENDS = re.compile(rb"(?:\\\r?\n[ \t]*)+")
_MOST_SECONDS = 6.0
"""CPU time after which parsing is given up. Code takes 0.1 s a MiB, most text that is none below 3 s; for what takes longer, and for that
alone, the result may depend on the machine."""
_WATCHED_BYTES = 1 << 14
"""Shorter texts cannot take long."""

_MOST_CHILDREN_OF_AN_ERROR = 8_000
"""A query takes time quadratic in the children of an error node; text with such a node is not in the language."""

_MOST_DEPTH = 3_000
"""Looking up a node, and its parent, takes time with its depth, and a query far more from depth 65,536 on ('a@a@a@…'). The files of a
corpus of 72 MB are at most 278 deep. Every so many nodes the depth is looked at: in the order of the text it grows by at most one
from node to node, so that nothing is deeper than twice this."""

_GRAMMARS = {
    "python": tree_sitter_python.language,
    "javascript": tree_sitter_javascript.language,
    "typescript": tree_sitter_typescript.language_typescript,
    "tsx": tree_sitter_typescript.language_tsx,
    "java": tree_sitter_java.language,
    "go": tree_sitter_go.language,
    "rust": tree_sitter_rust.language,
    "c": tree_sitter_c.language,
    "cpp": tree_sitter_cpp.language,
}
_BY_LANGUAGE = {"c++": "cpp", **{name: name for name in _GRAMMARS}}
"""Language as `data_prep.languages` names it → grammar."""

_MORE_KEYWORDS = frozenset(
    b"Self self this super int char bool void float double long short signed unsigned true false null undefined None True False".split()
)

What = Literal["structure", "names", "verbatim"]
_QUERIES = {"structure": STRUCTURE, "names": NAMES, "verbatim": VERBATIM}


@dataclass(frozen=True, slots=True)
class Grammar:
    """A language that can be parsed; made by `grammar_of`."""

    name: str
    """'python', 'javascript', 'typescript', 'tsx', 'java', 'go', 'rust', 'c' or 'cpp'."""

    @property
    def symbol(self) -> str:
        """The reserved symbol of the language: '<python>'."""
        return "<typescript>" if self.name == "tsx" else f"<{self.name}>"


@dataclass(frozen=True, slots=True)
class Tree:
    """A parsed text."""

    grammar: Grammar
    source: bytes
    """UTF-8."""
    root: Node

    def matches(self, what: What) -> list[tuple[int, dict[str, list[Node]]]]:
        """(pattern, capture → nodes) of everything the grammar's query finds."""
        return QueryCursor(_query(self.grammar.name, what)).matches(self.root)

    def captures(self, what: What, name: str) -> list[Node]:
        """The nodes of one capture in the order of the text."""
        found = QueryCursor(_query(self.grammar.name, what)).captures(self.root).get(name, [])
        return sorted(found, key=lambda node: node.start_byte)


def grammar_of(language: str | None, path: str | None = None) -> Grammar | None:
    """The grammar of a language ('C++', 'python'), else of a path's suffix; None where there is none.

    A language that names no grammar has none, whatever the path; '.tsx' is decided by the path.
    """
    known = normalised(language) if language else by_path(path) if path else None
    name = _BY_LANGUAGE.get(known) if known else None
    if name == "typescript" and path and path.lower().endswith(".tsx"):
        name = "tsx"
    return Grammar(name) if name else None


def parse(source: bytes, grammar: Grammar) -> Tree | None:
    """The syntax tree; None for a text over `MAX_BYTES` or one that is plainly not in the language.

    Broken code has a tree with error nodes: `tree.root.has_error`.
    """
    if len(source) > MAX_BYTES or _open_angles(source) > _MOST_OPEN_ANGLES or _has_many_escaped_line_ends(source):
        return None
    parser = _parser(grammar.name)
    if len(source) < _WATCHED_BYTES:
        root = parser.parse(source).root_node
    else:
        limit, asked = thread_time() + _MOST_SECONDS, count(1)

        def is_late(offset: int, has_error: bool) -> bool:
            # asked for every hundred steps of the parser; the clock is a system call
            return not next(asked) & 15 and thread_time() > limit

        try:
            root = parser.parse(lambda offset, _: source[offset:], progress_callback=is_late).root_node
        except ValueError:  # given up
            parser.reset()
            return None
    if _is_deep(root) or (root.has_error and _is_rubble(root)):
        return None
    return Tree(grammar, source, root)


def _open_angles(source: bytes) -> int:
    if source.count(b"<") <= _MOST_OPEN_ANGLES:
        return 0
    return source.count(b"<") - 2 * source.count(b"<<") - source.count(b">")


def _has_many_escaped_line_ends(source: bytes) -> bool:
    if source.count(b"\\\n") + source.count(b"\\\r\n") <= _MOST_ESCAPED_LINE_ENDS:
        return False
    return any(match[0].count(b"\\") > _MOST_ESCAPED_LINE_ENDS for match in _ESCAPED_LINE_ENDS.finditer(source))


def _is_deep(root: Node) -> bool:
    nodes = root.descendant_count
    if nodes <= _MOST_DEPTH:
        return False
    cursor = root.walk()
    for number in range(_MOST_DEPTH, nodes, _MOST_DEPTH):
        cursor.goto_descendant(number)
        if cursor.depth > _MOST_DEPTH:
            return True
    return False


def _is_rubble(root: Node) -> bool:
    open_nodes = [root]
    while open_nodes:
        node = open_nodes.pop()
        if node.is_error and node.child_count > _MOST_CHILDREN_OF_AN_ERROR:
            return True
        open_nodes.extend(child for child in node.children if child.has_error)
    return False


@cache
def keywords(grammar: Grammar) -> frozenset[bytes]:
    """Words that are no names in a language: those that its grammar knows, and a few that are names only to the grammar."""
    language = _language(grammar.name)
    kinds = (language.node_kind_for_id(number) for number in range(language.node_kind_count) if not language.node_kind_is_named(number))
    return frozenset(kind.encode() for kind in kinds if kind and kind.isidentifier()) | _MORE_KEYWORDS


def kinds(grammar: Grammar, meanings: Mapping[str, int]) -> dict[int, int]:
    """What the named nodes of a grammar mean, by their `kind_id`. meanings: by their names, those of other grammars among them."""
    language = _language(grammar.name)
    numbers = (number for number in range(language.node_kind_count) if language.node_kind_is_named(number))
    names = ((number, language.node_kind_for_id(number)) for number in numbers)
    return {number: meanings[name] for number, name in names if name is not None and name in meanings}


@cache
def _parser(name: str) -> Parser:
    return Parser(_language(name))


@cache
def _language(name: str) -> Language:
    return Language(_GRAMMARS[name]())


@cache
def _query(name: str, what: What) -> Query:
    return Query(_language(name), _QUERIES[what][name])
