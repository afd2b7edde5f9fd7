"""Licences as SPDX expressions: one spelling each, and whether an allow-list covers them (SPDX specification 2.3, annex D)."""

from __future__ import annotations

import re
from functools import lru_cache

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

__all__ = ["PERMISSIVE", "covered", "normalised"]

PERMISSIVE = frozenset(
    {
        "0BSD",
        "AFL-3.0",
        "Apache-1.1",
        "Apache-2.0",
        "Artistic-2.0",
        "BlueOak-1.0.0",
        "BSD-1-Clause",
        "BSD-2-Clause",
        "BSD-2-Clause-Patent",
        "BSD-3-Clause",
        "BSD-3-Clause-Clear",
        "BSD-3-Clause-LBNL",
        "BSD-4-Clause",
        "BSD-Source-Code",
        "BSL-1.0",
        "CC0-1.0",
        "CNRI-Python",
        "curl",
        "ECL-2.0",
        "EFL-2.0",
        "FSFAP",
        "FTL",
        "HPND",
        "ICU",
        "IJG",
        "ISC",
        "JSON",
        "Libpng",
        "libpng-2.0",
        "libtiff",
        "LicenseRef-public-domain",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "MIT-Modern-Variant",
        "MulanPSL-2.0",
        "NCSA",
        "NTP",
        "OLDAP-2.8",
        "PHP-3.01",
        "PostgreSQL",
        "PSF-2.0",
        "Python-2.0",
        "Ruby",
        "SGI-B-2.0",
        "TCL",
        "Unicode-3.0",
        "Unicode-DFS-2016",
        "Unlicense",
        "UPL-1.0",
        "W3C",
        "WTFPL",
        "X11",
        "Xnet",
        "Zlib",
        "zlib-acknowledgement",
        "ZPL-2.0",
        "ZPL-2.1",
    }
)
"""What 'permissive' stands for: the Blue Oak Council's list (blueoakcouncil.org/list), which The Stack used (Kocetkov et al. 2022,
arXiv 2211.15533, section 3.1), as far as its licences occur, with dedications to the public domain."""

_NAMES = {
    "al2": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache software": "Apache-2.0",
    "apache2": "Apache-2.0",
    "asl 2.0": "Apache-2.0",
    "boost software 1.0": "BSL-1.0",
    "2 clause bsd": "BSD-2-Clause",
    "3 clause bsd": "BSD-3-Clause",
    "bsd 2": "BSD-2-Clause",
    "bsd 3": "BSD-3-Clause",
    "bsd 2 clause": "BSD-2-Clause",
    "bsd 3 clause": "BSD-3-Clause",
    "bsd 3 clause new or revised": "BSD-3-Clause",
    "cc by 4.0": "CC-BY-4.0",
    "cc by sa 4.0": "CC-BY-SA-4.0",
    "cc0": "CC0-1.0",
    "cc0 1.0": "CC0-1.0",
    "mit x11": "MIT",
    "mozilla public 2.0": "MPL-2.0",
    "mpl 2.0": "MPL-2.0",
    "modified bsd": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "psf": "PSF-2.0",
    "public domain": "LicenseRef-public-domain",
    "public domain (us)": "LicenseRef-public-domain",
    "publicdomain": "LicenseRef-public-domain",
    "simplified bsd": "BSD-2-Clause",
    "revised bsd": "BSD-3-Clause",
    "the unlicense": "Unlicense",
    "zope public 2.1": "ZPL-2.1",
    "zpl 2.1": "ZPL-2.1",
    "unlicensed": "",  # npm's word for "no licence is granted", which is not the Unlicense
}
"""How licences are written out, without 'the', 'license' and punctuation → SPDX. A bare 'BSD' or 'GPL' says too little to be one."""
_NOISE = re.compile(r"^the\s|\s?\blicen[cs]e\b|[,\"']|(?<=\s)v(?:ersion )?(?=\d)", re.IGNORECASE)
_LATER = r" or (?:any )?(?:later|newer)(?: version)?| only|\+"
_GNU = re.compile(
    rf"(?:gnu )?(?P<kind>affero |lesser |library )?general public (?P<long>\d(?:\.\d)?)(?P<rest>{_LATER})?"
    rf"|(?:gnu )?(?P<short>[al]?)gpl ?v?(?P<number>\d(?:\.\d)?)(?P<end>{_LATER})?"
)
"""The GNU licences written out, after the noise is gone: 'gnu lesser general public 2.1 or later', 'gplv3+'."""
_WHERE = re.compile(r"\s?\(per[ -][^()]*\)", re.IGNORECASE)
"""'(per-file notice)': where it is said, not what."""
_TWICE = re.compile(r"([^()]+)\(([^()]+)\)\s*")
"""'The MIT License (MIT)'."""
_FAMILY = re.compile(r"((?:A|L)?GPL|GFDL)-(\d\.\d)(\+|-only|-or-later)?")
_OR_LATER = re.compile(r"(.+?)(?:\+|-or-later)")
_WORD = re.compile(r"[()]|[^\s()]+")
_LONGEST = 1000


@lru_cache(maxsize=4096)
def normalised(text: str) -> str | None:
    """The SPDX expression that a row's licence stands for, in canonical form; None where it is none.

    'mit', 'MIT License' and 'The MIT license' are 'MIT'; 'MIT/Apache-2.0' is 'MIT OR Apache-2.0', as Cargo meant it; of a list
    joined by commas all hold. GPL-2.0 is GPL-2.0-only and GPL-2.0+ GPL-2.0-or-later, as SPDX says since version 3 of its list.
    """
    if not text or len(text) > _LONGEST:
        return None
    text = _WHERE.sub("", text)
    whole = _one(text)
    if whole is not None:
        return whole
    if text[:1] == "[" and text[-1:] == "]" and len(text) > 2:  # a list that became a text
        return normalised(text.strip("[] "))
    twice = _TWICE.fullmatch(text)
    if twice and (first := _one(twice[1])) is not None and first == _one(twice[2]):
        return first
    for separators, joint in ((r"[,;]|\sAND\s", " AND "), (r"/|\sOR\s", " OR ")):  # names written out have no place in an expression
        parts = [part.strip().removeprefix("(").removesuffix(")") for part in re.split(separators, text)]
        if len(parts) > 1:
            found = [normalised(part) for part in parts]
            if None in found:
                return None
            return joint.join(f"({part})" if " " in part else part for part in found if part)
    return None


def _one(text: str) -> str | None:
    """A single identifier, name, or expression of identifiers."""
    text = text.strip().removeprefix("deprecated_")  # The Stack writes so for identifiers that SPDX replaced
    name = " ".join(_NOISE.sub("", text.lower()).replace("-", " ").split())
    gnu = _GNU.fullmatch(name)
    for candidate in (_gnu(gnu) if gnu else _NAMES.get(name), text, _NOISE.sub("", text).strip()):
        try:
            if candidate and len(candidate) <= _LONGEST:
                return _FAMILY.sub(_family, _PUBLIC.sub("LicenseRef-public-domain", canonicalize_license_expression(candidate)))
        except InvalidLicenseExpression:
            continue
    return None


def _gnu(match: re.Match[str]) -> str:
    letter = match["short"] if match["number"] else (match["kind"] or "")[:1]
    number, said = match["number"] or match["long"], match["end"] or match["rest"] or ""
    version = number if "." in number else f"{number}.0"
    return f"{letter.upper()}GPL-{version}{'-or-later' if said not in ('', ' only') else '-only'}"


_PUBLIC = re.compile("LicenseRef-public-domain", re.IGNORECASE)


def _family(match: re.Match[str]) -> str:
    later = {"+": "-or-later", None: "-only"}.get(match[3], match[3])
    return f"{match[1]}-{match[2]}{later}"


def covered(expression: str, allow: frozenset[str]) -> bool:
    """Whether who may use what `allow` names may use what is under `expression` (both normalised).

    Of 'A OR B' one suffices, of 'A AND B' both are needed. An exception ('WITH …') only adds permissions. 'or later' is covered by
    its own version.
    """
    return _Reader(_WORD.findall(expression), allow).either()


class _Reader:
    """Evaluates an expression: OR binds weakest, then AND."""

    def __init__(self, words: list[str], allow: frozenset[str]) -> None:
        self.words, self.allow, self.place = words, allow, 0

    def _take(self, word: str) -> bool:
        if self.place < len(self.words) and self.words[self.place] == word:
            self.place += 1
            return True
        return False

    def either(self) -> bool:
        """A OR B …"""
        value = self.both()
        while self._take("OR"):
            value = self.both() or value
        return value

    def both(self) -> bool:
        """A AND B …"""
        value = self.single()
        while self._take("AND"):
            value = self.single() and value
        return value

    def single(self) -> bool:
        """An identifier, with its exception, or what stands in parentheses."""
        if self._take("("):
            value = self.either()
            self._take(")")
            return value
        name = self.words[self.place]
        self.place += 1
        names = {name}
        later = _OR_LATER.fullmatch(name)
        if later:
            names |= {later[1], later[1] + "-only"}
        if self._take("WITH"):
            names.add(f"{name} WITH {self.words[self.place]}")
            self.place += 1
        return not names.isdisjoint(self.allow)
