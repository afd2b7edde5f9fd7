"""The licence of a repository, from the licence files in its root, as an SPDX expression."""

from __future__ import annotations

import re
import tempfile

import pygit2
from identify.identify import license_id

_NAME = re.compile(r"(li[cs]en[cs]e|copying|unlicense)([-_.][a-z0-9.+-]+)?", re.IGNORECASE)
_SUFFIXES = ("", ".txt", ".md", ".markdown", ".rst")
_TAG = re.compile(r"^\W*SPDX-License-Identifier:\s*([A-Za-z0-9.+()\- ]+?)\s*\W*$", re.MULTILINE)
_MOST_BYTES = 100_000
UNRECOGNISED = "LicenseRef-unrecognised"


def _is_license_file(name: str) -> bool:
    matched = _NAME.fullmatch(name)
    if not matched:
        return False
    # LICENSE.py is a module, LICENSE-MIT a licence
    ending = matched.group(2) or ""
    return not ending.startswith(".") or ending.lower() in _SUFFIXES or ending.lower().startswith((".mit", ".apache", ".bsd"))


def license_of(content: bytes) -> str | None:
    """SPDX expression of a licence's text, None where it is not recognised: its own SPDX tag, or a known text within an edit
    distance of 5 % (`identify`)."""
    text = content.decode("utf-8", "replace")
    if tag := _TAG.search(text):
        return tag.group(1)
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
