"""Controls for "it is the code": the same documents without what code is thought to teach by.

- scramble_identifiers: the syntax without the meaning of names. Every identifier becomes another of the same length and shape, one
  for one in a document; keywords, strings, comments and numbers stay.
- comments_only: the natural language that stands in code. Comments and docstrings, one below the other, as they are.
- strip_comments: code without its natural language. A body that would be empty gets `pass`.
- placebo: the words and the layout without their order. Runs of non-spaces change places, white space stays: so a document keeps
  its bytes, its words and the number of words in each line.

What is drawn is keyed by the seed of the prep file and the document's name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from data_prep.documents import Document, Drop, Segment, Tally
from data_prep.syntax import Tree, find_spans, grammar_of, parse
from data_prep.syntax.parse import keywords
from data_prep.syntax.spans import Range
from megatron_codemix.config import SourceSpec
from megatron_codemix.shards import MODALITY_KINDS, Kind

_WORD = re.compile(r"\S+")
_C_NAME = re.compile(rb"\b[A-Za-z_][A-Za-z0-9_]*\b")
_BEHIND = re.compile(rb"[ \t]*(?:\r?\n|\Z)")
_SEMICOLON = re.compile(rb"[ \t]*;[ \t]*")
_NO_NAMES = {"rust": frozenset((b"Self",)), "java": frozenset((b"var",)), "go": frozenset((b"make", b"new"))}
"""Keywords that are identifiers to their grammars; and in Go the two functions that alone may be given a type such as `[]int`."""
_TRIES = 64

What = Literal["scramble_identifiers", "comments_only", "strip_comments", "placebo"]


class Control:
    """The step `control`."""

    name = "control"

    def __init__(self, settings: What, spec: SourceSpec, *, seed: int) -> None:
        self._what, self._seed = settings, seed
        self._default = MODALITY_KINDS[spec.modality]

    def apply(self, document: Document, tally: Tally) -> Document | Drop:
        """The control of a document; a Drop where there is none, so that no document passes as it was."""
        key = hashlib.blake2b(f"{self._seed}\0{document.name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if self._what == "placebo":
            # it has no syntax that segments could be found by
            result = replace(document, text=_placebo(document.text, key), segments=((0, self._default),) if document.text else None)
        else:
            grammar = grammar_of(document.language, document.path)
            if grammar is None:
                return Drop("language without grammar", document.language or document.path or "")
            tree = parse(document.text.encode("utf-8"), grammar)
            if tree is None:
                return Drop("too large or not in its language")
            result = self._by_syntax(document, tree, key)
        if not isinstance(result, Drop):
            tally.changed[self.name, self._what] += 1
        return result

    def _by_syntax(self, document: Document, tree: Tree, key: bytes) -> Document | Drop:
        if self._what == "scramble_identifiers":
            return replace(document, text=_scrambled(tree, key).decode("utf-8"), segments=None)
        if self._what == "strip_comments":
            text = _stripped(tree).decode("utf-8")
            return replace(document, text=text, segments=None) if text.strip() else Drop("nothing but comments")
        text, segments = _comments(tree)
        return replace(document, text=text.decode("utf-8"), segments=segments) if text else Drop("no comment")


def _placebo(text: str, key: bytes) -> str:
    words = _WORD.findall(text)
    # raw words of a counter-based generator: the same in every version of numpy
    order = np.argsort(np.random.Philox(key=int.from_bytes(key, "big")).random_raw(len(words)), kind="stable").tolist()
    shuffled = iter([words[place] for place in order])
    return _WORD.sub(lambda _: next(shuffled), text)


def _comments(tree: Tree) -> tuple[bytes, tuple[Segment, ...]]:
    spans = find_spans(tree)
    found = [(span, Kind.COMMENT) for span in spans.comments] + [(span, Kind.DOCSTRING) for span in spans.docstrings]
    text = bytearray()
    segments: list[Segment] = []
    for (start, end), kind in sorted(found):
        if not segments or segments[-1][1] != kind:
            segments.append((len(text), kind))
        text += tree.source[start:end].rstrip() + b"\n"
    return bytes(text), tuple(segments)


def _scrambled(tree: Tree, key: bytes) -> bytes:
    source = tree.source
    names = [node.byte_range for node in tree.captures("names", "name")]
    no_names = _NO_NAMES.get(tree.grammar.name, frozenset())
    reserved = keywords(tree.grammar) | no_names
    taken: set[bytes] = set()
    known: dict[bytes, bytes] = {}
    pieces, place = [], 0
    for start, end in names:
        # r#type: a name of Rust that is a keyword elsewhere
        start += 2 * source.startswith(b"r#", start, end)
        name = source[start:end]
        if start < place or name in no_names or not name:
            continue
        if name not in known:
            known[name] = _meaningless(name, key, taken, reserved)
            taken.add(known[name])
        pieces += (source[place:start], known[name])
        place = end
    result = b"".join((*pieces, source[place:]))
    return _with_macros(tree, names, known) if tree.grammar.name in ("c", "cpp") else result


def _with_macros(tree: Tree, names: Sequence[Range], known: dict[bytes, bytes]) -> bytes:
    """The same for C, where the bodies of macros are text to the grammar: names known from elsewhere are replaced there too."""
    source = tree.source
    macros = [found for node in tree.captures("verbatim", "text") if node.type == "preproc_arg" for found in [node.byte_range]]
    pieces, place = [], 0
    for start, end in sorted([*names, *macros]):
        if start < place:
            continue
        text = source[start:end]
        pieces += (source[place:start], _C_NAME.sub(lambda match: known.get(match[0], match[0]), text))
        place = end
    return b"".join((*pieces, source[place:]))


def _meaningless(name: bytes, key: bytes, taken: set[bytes], reserved: frozenset[bytes]) -> bytes:
    """A name of the same shape (letters of the same case, digits, underscores), and of the same length while there is one left."""
    shape = "".join("a" if character.isalpha() and not character.isupper() else character for character in name.decode("utf-8"))
    tries = 0
    while True:
        draw = hashlib.shake_128(key + tries.to_bytes(4, "big") + name).digest(len(shape))
        letters = "".join(_letter(character, byte) for character, byte in zip(shape, draw, strict=True)).encode()
        if letters not in reserved and letters not in taken:
            return letters
        tries += 1
        if tries % _TRIES == 0:
            shape += "a"


def _letter(character: str, byte: int) -> str:
    if character.isdigit():
        return chr(ord("0") + byte % 10)
    if character.isalpha():
        return chr(ord("A" if character.isupper() else "a") + byte % 26)
    return character


def _stripped(tree: Tree) -> bytes:
    source, spans = tree.source, find_spans(tree)
    ranges = [(start, end, b"") for start, end in spans.comments]
    if tree.grammar.name == "python":
        ranges += [(start, end, b"pass" if _is_alone(tree, (start, end)) else b"") for start, end in spans.docstrings]
    else:
        ranges += [(start, end, b"") for start, end in spans.docstrings]
    pieces: list[bytes] = []
    place = 0
    for start, end, instead in sorted(ranges):
        start, end, instead = _with_its_line(source, start, end, instead, place)
        pieces += (source[place:start], instead)
        place = end
    return b"".join((*pieces, source[place:])).lstrip(b"\r\n")


def _with_its_line(source: bytes, start: int, end: int, instead: bytes, place: int) -> tuple[int, int, bytes]:
    """What goes with a comment: the line that holds nothing else, the spaces before one at the end of a line; and what stays."""
    if instead:
        return start, end, instead
    line = max(source.rfind(b"\n", 0, start) + 1, place)
    before = source[line:start]
    semicolon = _SEMICOLON.match(source, end)
    if semicolon is not None and source[start : start + 1] not in (b"/", b"#"):  # "text"; x = 1
        return start, semicolon.end(), b""
    behind = _BEHIND.match(source, end)
    if behind is not None:
        if not before.strip() and (line == 0 or source[line - 1 : line] == b"\n"):
            return line, behind.end(), b""
        return start - (len(before) - len(before.rstrip())), end, b""
    if not before.strip():
        return start, end, b""
    # code on both sides: a comment separates words, one of several lines also ends a line
    return start, end, b"\n" if b"\n" in source[start:end] else b" "


def _is_alone(tree: Tree, docstring: Range) -> bool:
    """Whether a docstring of Python is all there is in its block."""
    node = tree.root.descendant_for_byte_range(*docstring)
    while node is not None and node.type not in ("block", "module"):
        node = node.parent
    if node is None or node.type == "module":
        return False
    return not any(child.type != "comment" and child.start_byte != docstring[0] for child in node.named_children)
