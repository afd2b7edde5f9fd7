"""Licences: spellings, SPDX expressions, and the allow-list."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies

from data_prep.documents import Document, Drop, Tally
from data_prep.spdx import PERMISSIVE, covered, normalised
from data_prep.steps.license import LicenseFilter
from megatron_codemix.config import LicenseStep, SourceSpec
from megatron_codemix.errors import UserError

SPEC = SourceSpec(kind="stdlib", part="code", modality="code")


@pytest.mark.parametrize(
    "text, expression",
    [
        ("mit", "MIT"),
        ("MIT License", "MIT"),
        ("The MIT license", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("apache-2.0", "Apache-2.0"),
        ("BSD 3-Clause License", "BSD-3-Clause"),
        ('BSD 3-Clause "New" or "Revised" License', "BSD-3-Clause"),
        ("Public Domain (US)", "LicenseRef-public-domain"),
        ("MIT/Apache-2.0", "MIT OR Apache-2.0"),
        ("MIT, GPL-2.0", "MIT AND GPL-2.0-only"),
        ("mit or apache-2.0, isc", "(MIT OR Apache-2.0) AND ISC"),
        ("gpl-2.0+", "GPL-2.0-or-later"),
        ("LGPL-3.0", "LGPL-3.0-only"),
        ("Apache-2.0 with LLVM-exception", "Apache-2.0 WITH LLVM-exception"),
        ("(MIT License) AND deprecated_LGPL-3.0+", "MIT AND LGPL-3.0-or-later"),
        ("The MIT License (MIT)", "MIT"),
        ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0"),
        ("MIT (modified)", None),
        ("MIT (GPL-3.0)", None),
        ("BSD-3", "BSD-3-Clause"),
        ("3-Clause BSD", "BSD-3-Clause"),
        ("ASL 2.0", "Apache-2.0"),
        ("GPLv3+", "GPL-3.0-or-later"),
        ("gplv2", "GPL-2.0-only"),
        ("GNU General Public License v3.0", "GPL-3.0-only"),
        ("GNU Lesser General Public License v2.1 or later", "LGPL-2.1-or-later"),
        ("AGPLv3 only", "AGPL-3.0-only"),
        ('["mit","gpl-3.0"]', "MIT AND GPL-3.0-only"),
        ("['MIT']", "MIT"),
        ("[]", None),
        ("[" * 400 + "MIT" + "]" * 400, "MIT"),
        ("Public Domain / CC0-1.0 (per-PEP copyright line)", "LicenseRef-public-domain OR CC0-1.0"),
        ("UNLICENSED", None),
        ("BSD", None),
        ("GPL", None),
        ("see the file LICENSE", None),
        ("MIT, proprietary", None),
        ("mit or", None),
        ("(" * 400 + "MIT" + ")" * 400, None),
        ("", None),
        ("x" * 10_000, None),
    ],
)
def test_spelling(text, expression):
    assert normalised(text) == expression


def test_permissive_names_are_canonical():
    assert {normalised(name) for name in PERMISSIVE} == PERMISSIVE


@pytest.mark.parametrize(
    "expression, allow, expected",
    [
        ("MIT OR GPL-3.0-only", {"MIT"}, True),
        ("MIT AND GPL-3.0-only", {"MIT"}, False),
        ("MIT AND ISC OR GPL-3.0-only", {"MIT", "ISC"}, True),
        ("GPL-3.0-only OR MIT AND ISC", {"MIT"}, False),
        ("(GPL-3.0-only OR MIT) AND ISC", {"MIT", "ISC"}, True),
        ("(GPL-3.0-only OR MIT) AND ISC", {"MIT"}, False),
        ("GPL-2.0-or-later", {"GPL-2.0-only"}, True),
        ("GPL-2.0-only", {"GPL-2.0-or-later"}, False),
        ("Apache-2.0 WITH LLVM-exception", {"Apache-2.0"}, True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", {"GPL-2.0-only WITH Classpath-exception-2.0"}, True),
        ("GPL-2.0-only", {"GPL-2.0-only WITH Classpath-exception-2.0"}, False),
    ],
)
def test_coverage(expression, allow, expected):
    assert covered(expression, frozenset(allow)) is expected


@given(
    strategies.recursive(
        strategies.sampled_from(["MIT", "ISC", "GPL-2.0-only", "Zlib"]),
        lambda inner: strategies.tuples(inner, strategies.sampled_from(["AND", "OR"]), inner),
        max_leaves=8,
    ),
    strategies.sets(strategies.sampled_from(["MIT", "ISC", "Zlib"])),
)
@settings(max_examples=200, deadline=None)
def test_coverage_is_the_truth_value(tree, allow):
    def written(node):
        return node if isinstance(node, str) else f"({written(node[0])} {node[1]} {written(node[2])})"

    def truth(node):
        if isinstance(node, str):
            return node in allow
        return (truth(node[0]) and truth(node[2])) if node[1] == "AND" else (truth(node[0]) or truth(node[2]))

    expression = normalised(written(tree))
    assert expression is not None
    assert covered(expression, frozenset(allow)) is truth(tree)


@given(strategies.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text(text):
    found = normalised(text)
    assert found is None or normalised(found) == found


def run(license, **step):
    return LicenseFilter(LicenseStep(**step), SPEC).apply(Document("d", "x", license=license), Tally())


def test_the_step():
    assert run("mit license", allow=["permissive"]).license == "MIT"
    assert run("GPL-3.0", allow=["permissive"]) == Drop("licence not wanted", "GPL-3.0-only")
    assert run("GPL-3.0", allow=["permissive", "gpl-3.0"]).license == "GPL-3.0-only"
    assert run("Apache-2.0/GPL-3.0", allow=["Apache-2.0"]).license == "Apache-2.0 OR GPL-3.0-only"
    assert run("CC-BY-4.0").license == "CC-BY-4.0"


def test_without_a_licence():
    assert run(None, allow=["MIT"]) == Drop("no licence")
    assert run("  ", allow=["MIT"]) == Drop("no licence")
    assert run("ask me", allow=["MIT"]) == Drop("licence not recognised", "ask me")
    assert run("ask me", allow=["MIT"], unknown="keep").license == "ask me"
    assert run(None) == Drop("no licence")


def test_an_allow_list_that_names_no_licence():
    with pytest.raises(UserError, match="'Mitt' is no SPDX identifier"):
        run("MIT", allow=["Mitt"])
    with pytest.raises(UserError, match="'MIT OR ISC'"):
        run("MIT", allow=["MIT OR ISC"])
