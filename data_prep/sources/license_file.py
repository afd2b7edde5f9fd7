"""The licence of a repository, from the licence files in its root, as an SPDX expression."""

from __future__ import annotations

import re
import tempfile
from collections import Counter

import pygit2
from identify.identify import license_id
from identify.vendor.licenses import LICENSES

_NAME = re.compile(r"(li[cs]en[cs]e|copying|unlicense)([-_.][a-z0-9.+-]+)?", re.IGNORECASE)
_SUFFIXES = ("", ".txt", ".md", ".markdown", ".rst")
_TAG = re.compile(r"^\W*SPDX-License-Identifier:\s*([A-Za-z0-9.+()\- ]+?)\s*\W*$", re.MULTILINE)
_TAG_LINES = 3
_MOST_BYTES = 100_000
_COPYRIGHT = re.compile(r"^.*\bcopyright\b.*(\d{4}|\(c\)|©|<|\[).*$", re.MULTILINE | re.IGNORECASE)
_RESTRICTING = frozenset(
    (
        *("academic", "commercial", "commercially", "noncommercial", "non", "educational", "ethical", "evaluation"),
        *("except", "excluding", "forbidden", "internal", "may", "military", "must", "no"),
        *("not", "only", "personal", "prohibited", "research", "restricted", "shall", "solely", "unless"),
    )
)
"""Words by which a changed copy of a licence takes rights away."""
_GRANTING = frozenset(["any", "commercial", "free", "freely", "irrevocable", "perpetual", "royalty", "sell", "unlimited", "without"])
_TEXTS = dict(LICENSES)
UNRECOGNISED = "LicenseRef-unrecognised"


def _is_license_file(name: str) -> bool:
    matched = _NAME.fullmatch(name)
    if not matched:
        return False
    # LICENSE.py is a module, LICENSE-MIT a licence
    ending = matched.group(2) or ""
    return not ending.startswith(".") or ending.lower() in _SUFFIXES or ending.lower().startswith((".mit", ".apache", ".bsd"))


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[a-z]+", _COPYRIGHT.sub("", text).lower()))


def _is_changed(text: str, name: str) -> bool:
    """Whether a text that resembles a licence adds restricting words to it, or lacks granting ones: five per cent of a licence are
    enough for "not for commercial use"."""
    own, known = _words(text), _words(_TEXTS[name])
    return any(own[word] > known[word] for word in _RESTRICTING) or any(own[word] < known[word] for word in _GRANTING)


def license_of(content: bytes) -> str | None:
    """SPDX expression of a licence's text, None where it is not recognised: the SPDX tag in its first lines, unless the text of another
    licence follows; or a known text within an edit distance of 5 % (`identify`) that changes no rights."""
    text = content.decode("utf-8", "replace")
    beginning = [line for line in text.splitlines() if line.strip()][:_TAG_LINES]
    if tag := _TAG.search("\n".join(beginning)):
        known = _resembled(_TAG.sub("", text))
        return tag.group(1) if known is None or known in tag.group(1) else None
    name = _resembled(text)
    return None if name is None or _is_changed(text, name) else name


def _resembled(text: str) -> str | None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write(text)
        file.flush()
        return license_id(file.name)


def repository_license(repository: pygit2.Repository, tree: pygit2.Tree) -> str | None:
    """None where there is no licence file in the root. Of several 'A AND B', since nothing says which covers what; one that
    is not recognised counts as `UNRECOGNISED`."""
    found: set[str] = set()
    for entry in tree:
        name = (entry.raw_name or b"").decode("utf-8", "replace")
        if entry.type_str != "blob" or entry.filemode == 0o120000 or not _is_license_file(name):
            continue
        if repository.odb.read_header(entry.id)[1] > _MOST_BYTES:
            found.add(UNRECOGNISED)
            continue
        found.add(license_of(repository.odb.read(entry.id)[1]) or UNRECOGNISED)
    names = sorted(found)
    return " AND ".join(f"({name})" if " " in name and len(names) > 1 else name for name in names) or None
