"""Licence texts → SPDX: known ones as they are found in repositories, and copies that take rights away."""

from __future__ import annotations

import pytest
from identify.vendor.licenses import LICENSES

from data_prep.sources.license_file import license_of

_TEXTS = dict(LICENSES)
_MIT = _TEXTS["MIT"]


@pytest.mark.parametrize("name", ["MIT", "Apache-2.0", "BSD-3-Clause", "BSD-2-Clause", "ISC", "GPL-3.0", "MPL-2.0", "Unlicense"])
def test_known_licences_are_recognised(name):
    found = license_of(_TEXTS[name].encode())
    assert found is not None
    assert found.startswith(name)


@pytest.mark.parametrize("holder", ["Copyright (c) 2020 Research Foundation, non-profit", "Copyright (c) 2009-2024 Not Only Code Ltd."])
def test_the_holder_of_the_copyright_changes_nothing(holder):
    assert license_of(f"MIT License\n\n{holder}\n\n{_MIT[_MIT.index('Permission') :]}".encode()) == "MIT"


@pytest.mark.parametrize(
    "changed",
    [
        _MIT + "\nThe Software may not be used for commercial purposes.\n",
        _MIT.replace("without restriction", "for academic research only"),
        _MIT.replace("any person", "students"),
        _MIT.replace("without restriction", "with restriction"),
    ],
)
def test_a_copy_that_takes_rights_away_is_not_recognised(changed):
    assert changed != _MIT
    assert license_of(changed.encode()) is None


def test_a_tag_counts_at_the_beginning_only():
    gpl = _TEXTS["GPL-3.0"] if "GPL-3.0" in _TEXTS else _TEXTS["GPL-3.0-only"]
    assert license_of(b"SPDX-License-Identifier: MIT\n\nsee the files") == "MIT"
    assert license_of((gpl + "\n// SPDX-License-Identifier: MIT\n").encode()) != "MIT"
