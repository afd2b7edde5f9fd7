"""Files of a repository stand behind those they import; joined documents hold every file once."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import Document, Symbol
from data_prep.imports import Files, imported
from data_prep.repositories import arrange, dependency_order
from megatron_codemix.config.prep_steps import Repositories
from megatron_codemix.shards import Kind

CASES = {
    "python": (
        {
            "src/pack/__init__.py": "",
            "src/pack/base.py": "import os, sys\n",
            "src/pack/types.py": "",
            "src/pack/sub/__init__.py": "",
            "src/pack/sub/leaf.py": "from ..base import thing\nfrom . import twin\nfrom .twin import (\n    a,\n    b as c,\n)\n",
            "src/pack/sub/twin.py": "import pack.base as base, types\n",
            "tests/test_leaf.py": "from pack.sub \\\n import leaf  # the one\nfrom \\\r\n    pack import *\n",
        },
        {
            "src/pack/sub/leaf.py": {"src/pack/base.py", "src/pack/sub/twin.py"},
            # `types` is the standard library's: pack/types.py lies in a package
            "src/pack/sub/twin.py": {"src/pack/base.py"},
            "tests/test_leaf.py": {"src/pack/sub/leaf.py", "src/pack/__init__.py"},
        },
    ),
    "typescript": (
        {
            "src/a.ts": "import { b } from './lib/b';\nimport './side.js';\nimport type { X } from \"./types\";\nimport fs from 'fs';\n",
            "src/lib/b.tsx": "export * from '../types';\nconst c = require('../lib');\n",
            "src/lib/index.ts": "export const x = await import('./deep/c.mjs')\n",
            "src/lib/deep/c.mts": "import out from '../../../../outside'\n",
            "src/side.ts": "",
            "src/types.d.ts": "",
        },
        {
            "src/a.ts": {"src/lib/b.tsx", "src/side.ts", "src/types.d.ts"},
            "src/lib/b.tsx": {"src/types.d.ts", "src/lib/index.ts"},
            "src/lib/index.ts": {"src/lib/deep/c.mts"},
        },
    ),
    "java": (
        {
            "main/java/org/x/A.java": "package org.x;\nimport org.x.util.B;\nimport static org.x.util.C.helper;\nimport java.util.List;\n",
            "main/java/org/x/util/B.java": "import org.x.util.C.Inner;\n",
            "main/java/org/x/util/C.java": "",
            "main/java/org/x/All.java": "import org.x.util.*;\n",
        },
        {
            "main/java/org/x/A.java": {"main/java/org/x/util/B.java", "main/java/org/x/util/C.java"},
            "main/java/org/x/util/B.java": {"main/java/org/x/util/C.java"},
            "main/java/org/x/All.java": {"main/java/org/x/util/B.java", "main/java/org/x/util/C.java"},
        },
    ),
    "go": (
        {
            "main.go": 'package main\nimport (\n\t"fmt"\n\tx "github.com/o/r/pkg/a"\n)\n',
            "pkg/a/one.go": 'import "github.com/o/r/pkg/b"\n',
            "pkg/a/one_test.go": "",
            "pkg/b/two.go": "",
        },
        {"main.go": {"pkg/a/one.go"}, "pkg/a/one.go": {"pkg/b/two.go"}},
    ),
    "rust": (
        {
            "crate/src/lib.rs": "mod a;\npub mod b;\nmod inline { }\n",
            "crate/src/a.rs": "use crate::b::{self, inner::{Thing, Other}};\nuse std::fmt;\n",
            "crate/src/b/mod.rs": "mod inner;\n",
            "crate/src/b/inner.rs": "use super::super::a;\nuse super::nothing;\n",
        },
        {
            "crate/src/lib.rs": {"crate/src/a.rs", "crate/src/b/mod.rs"},
            "crate/src/a.rs": {"crate/src/b/mod.rs", "crate/src/b/inner.rs"},
            "crate/src/b/mod.rs": {"crate/src/b/inner.rs"},
            "crate/src/b/inner.rs": {"crate/src/a.rs"},
        },
    ),
    "c": (
        {
            "src/main.c": '#include <stdio.h>\n#include "util.h"\n#  include <proj/deep.h>\n',
            "src/util.h": '#include "../../../etc/passwd.h"\n',
            "include/proj/deep.h": '#include "util.h"\n',
        },
        {"src/main.c": {"src/util.h", "include/proj/deep.h"}, "include/proj/deep.h": {"src/util.h"}},
    ),
}


@pytest.mark.parametrize("language", CASES)
def test_imports(language: str) -> None:
    texts, expected = CASES[language]
    paths = list(texts)
    files = Files(paths)
    found = {path: {paths[place] for place in imported(files, path, text, None)} for path, text in texts.items()}
    assert {path: names for path, names in found.items() if names} == expected


def _repository(texts: dict[str, str]) -> list[Document]:
    return [Document(f"repo/{path}", text, group="o/repo", license="MIT", path=path) for path, text in texts.items()]


@pytest.mark.parametrize("language", CASES)
def test_files_follow_what_they_import(language: str) -> None:
    texts, expected = CASES[language]
    documents = _repository(texts)
    random.Random(1).shuffle(documents)
    order = [document.path for document in arrange(documents, Repositories(join=False))]
    if language != "rust":  # its modules import each other
        for path, names in expected.items():
            assert all(order.index(name) < order.index(path) for name in names)
    assert sorted(map(str, order)) == sorted(texts)


def test_cycle_is_cut_at_the_file_of_fewest_open_imports() -> None:
    # each needs another; 2 needs one, the others two
    assert dependency_order([{1, 2}, {0, 2}, {0}]) == [2, 0, 1]
    # 0 ⇄ 1, and 1 also needs 2: 2 needs nothing
    assert dependency_order([{1}, {0, 2}, set()]) == [2, 0, 1]
    assert dependency_order([{1}, set(), {3}, set()]) == [1, 0, 3, 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.sets(st.integers(0, n - 1), max_size=4), min_size=n, max_size=n)))
def test_any_graph_is_ordered(graph: list[set[int]]) -> None:
    imports = [needed - {place} for place, needed in enumerate(graph)]
    order = dependency_order(imports)
    assert sorted(order) == list(range(len(imports)))
    # only who imports each other, directly or not, may stand before what he imports
    position = {place: index for index, place in enumerate(order)}
    for place, needed in enumerate(imports):
        for other in needed:
            assert position[other] < position[place] or place in _reached(imports, other)


def _reached(imports: list[set[int]], start: int) -> set[int]:
    found, edge = {start}, [start]
    while edge:
        new = imports[edge.pop()] - found
        found |= new
        edge += new
    return found


def test_packages_of_many_files_are_one_edge() -> None:
    """Each file behind all of the package that it imports, in time that grows with the files."""
    texts = {f"z/d{number}.go": 'package z\nimport "x/y"\n' for number in range(300)}
    texts |= {f"x/y/e{number}.go": "package y\n" for number in range(300)} | {"x/y/e_test.go": 'package y\nimport "x/z"\n'}
    texts |= {f"org/a/F{number}.java": "import org.a.*;\nimport org.b.*;\n" for number in range(300)}
    texts |= {f"src/org/b/G{number}.java": "package org.b;\n" for number in range(300)}
    files = Files(list(texts))
    edges = [imported(files, path, text, None) for path, text in texts.items()]
    assert sum(map(len, edges)) <= 3 * len(texts)
    order = [str(document.path) for document in arrange(_repository(texts), Repositories(join=False))]
    assert sorted(order) == sorted(texts)
    for first, then in (("x/y/e", "z/d"), ("src/org/b/", "org/a/")):
        members = [place for place, path in enumerate(order) if path.startswith(first) and "test" not in path]
        assert max(members) < min(place for place, path in enumerate(order) if path.startswith(then))


def test_of_files_of_one_name_the_nearest_is_meant() -> None:
    paths = [f"lib/d{number}/v1/types.py" for number in range(50)] + ["lib/d7/v1/a.py", "lib/d7/b.py", "lib/c.py", "e.h", "lib/d7/e.h"]
    files = Files(paths)
    for path, name in (("lib/d7/v1/a.py", "lib/d7/v1/types.py"), ("lib/d7/b.py", "lib/d7/v1/types.py"), ("lib/c.py", "lib/d0/v1/types.py")):
        assert imported(files, path, "import types\n", None) == {paths.index(name)}
    assert imported(files, "lib/d3/v1/types.py", "import types\n", None) == set(), "itself"
    assert imported(files, "lib/d7/v1/f.c", '#include "e.h"\n', "c") == {paths.index("lib/d7/e.h")}
    assert imported(files, "other/f.c", '#include "e.h"\n', "c") == {paths.index("e.h")}


def test_imports_of_nonsense_end() -> None:
    files = Files(["a.py", "b/a.go", "c.js", "d.rs", "E.java", "f.c"])
    text = "import ..a, .b\nfrom . import .\nfrom ... import a\nimport a.\nimport .\nuse crate::{{}, ::a;\nuse super::super::super::a;\n"
    text += 'import "/"\nimport ""\nimport x from "/"\nrequire("..")\n#include ""\n#include "/"\n#include "../"\nimport ..;\nimport a..*;\n'
    for language in ("python", "go", "javascript", "rust", "java", "c"):
        assert imported(files, "a.py", text, language) <= {1, 2, 3, 4, 5}


def test_joined_document() -> None:
    documents = _repository({"b.py": "import a\n", "a.py": "x = 'ä'\n"})
    (whole,) = arrange(documents, Repositories())
    source = whole.text.encode()
    assert whole.text == "o/repoa.py\nx = 'ä'\nb.py\nimport a\n"
    assert [(symbol.name, source[: symbol.offset].decode()) for symbol in whole.symbols] == [
        ("<repo_name>", ""),
        ("<file_sep>", "o/repo"),
        ("<file_sep>", "o/repoa.py\nx = 'ä'\n"),
    ]
    assert (whole.group, whole.license, whole.name) == ("o/repo", "MIT", "o/repo#0")
    assert whole.fields["files"] == ["repo/a.py", "repo/b.py"]
    assert whole.segments is None


def test_documents_are_closed_at_max_bytes() -> None:
    documents = _repository({f"{name}.txt": "x" * 10 for name in "abcde"})
    joined = arrange(documents, Repositories(max_bytes=20))
    assert [document.fields["files"] for document in joined] == [
        ["repo/a.txt", "repo/b.txt"],
        ["repo/c.txt", "repo/d.txt"],
        ["repo/e.txt"],
    ]
    assert len({document.name for document in joined}) == 3


def test_licenses_of_all_files() -> None:
    documents = _repository({"a.py": "", "b.py": ""})
    both = [documents[0], Document("repo/b.py", "", group="o/repo", license="GPL-2.0 OR MIT", path="b.py")]
    assert arrange(both, Repositories())[0].license == "(GPL-2.0 OR MIT) AND MIT"


def test_segments_and_symbols_of_files_move_with_them() -> None:
    plain, divided = _repository({"a.txt": "é", "b.py": "# c\nx"})
    divided = replace(divided, segments=((0, Kind.COMMENT), (3, Kind.CODE)), symbols=(Symbol(1, "<mask>", Kind.CODE),))
    (whole,) = arrange([plain, divided], Repositories())
    start = len("o/repoa.txt\néb.py\n".encode())
    assert whole.segments == ((0, Kind.CODE), (start, Kind.COMMENT), (start + 3, Kind.CODE))
    assert whole.symbols[-1] == Symbol(start + 1, "<mask>", Kind.CODE)
    (text,) = arrange([plain, divided], Repositories(), "text")
    assert text.segments == ((0, Kind.TEXT), (start, Kind.COMMENT), (start + 3, Kind.CODE))


def test_documents_are_shaped_after_they_are_ordered() -> None:
    documents = _repository({"a.py": "import b\n", "b.py": "1\n"})
    joined = arrange(documents, Repositories(), shape=lambda document: [replace(document, text="")] if document.path == "a.py" else [])
    assert [document.text for document in joined] == ["o/repoa.py\n"]
    shaped = arrange(documents, Repositories(join=False), shape=lambda document: [replace(document, text="same")])
    assert [document.path for document in shaped] == ["b.py", "a.py"]


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=30), min_size=1, max_size=6),
    st.integers(1, 60),
    st.sampled_from(["dependencies", "path"]),
)
def test_every_file_is_kept_whatever_it_is(texts: dict[str, str], max_bytes: int, order: str) -> None:
    documents = [Document(f"n{number}", text, group="g", path=path) for number, (path, text) in enumerate(texts.items())]
    files = []
    for document in arrange(documents, Repositories(order=order, max_bytes=max_bytes)):  # type: ignore[arg-type]
        source = document.text.encode()
        bounds = [symbol.offset for symbol in document.symbols if symbol.name == "<file_sep>"]
        for name, start, end in zip(document.fields["files"], bounds, [*bounds[1:], len(source)], strict=True):
            files.append((name, source[start:end].decode().split("\n", 1)[1]))
    assert sorted(files) == sorted((document.name, document.text) for document in documents)
