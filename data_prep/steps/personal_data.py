"""E-mail addresses, IP addresses and telephone numbers → placeholders, those of Li et al. 2023 (StarCoder), arXiv 2305.06161, section 4.

Masked is what can belong to a person: not addresses reserved for examples (RFC 2606), private, local and documentation networks (the
registries of `ipaddress`), nor the well-known resolvers. What only looks like an address (versions, matrix products, file names)
stays.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from data_prep.documents import Document, Tally
from megatron_codemix.config import PersonalData, SourceSpec

EMAIL, IP, PHONE = "<EMAIL>", "<IP_ADDRESS>", "<PHONE>"

Found = tuple[int, int, str, str]
"""(start, end, placeholder, what is counted)."""

_DOMAIN = re.compile(r"@([A-Za-z0-9][A-Za-z0-9-]{0,62}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.([A-Za-z]{2,18}))(?![\w(-])")
_LOCAL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.%+'-]{0,62}[A-Za-z0-9_+-])?\Z")
_LONGEST_LOCAL = 64
_GENERIC = """
aero ai app arpa art asia biz blog bot build business cash cat center chat city cloud club co codes com community company coop
design dev digital earth edu education email engineer engineering eu expert finance foundation fun fyi games global gmbh gov group
health help host house inc info ink institute int international io jobs land law legal life link live ltd me media mil mobi moe
money museum name net network news ninja one online org page partners party photo photography plus press pro rocks run school
science services sh shop site social software solutions space store studio systems team tech technology tips today tokyo tools
town travel tv university us video vip website wiki work works world xyz zone
"""
_TOP_LEVEL = frozenset(_GENERIC.split())
"""The generic top-level domains that addresses are mostly in; of two letters, all are countries'."""
_RESERVED = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local)$", re.IGNORECASE)
_SERVICES = frozenset({"git", "hg", "svn"})
"""User names of URLs of the form git@host:path, which nobody writes to."""

# What follows the first dot or colon of an address: patterns that begin with a letter of their own are searched for several times as fast.
_REST_V4 = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\.?\w)")
_REST_V6 = re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{0,29}(?![\w:])")
_FIRST_V4, _FIRST_V6 = re.compile(r"\d{1,3}\Z"), re.compile(r"[23][0-9A-Fa-f]{3}\Z")
_IN_URL = re.compile(r"://[^\s/@]*\Z")
_VERSION = re.compile(r"(?:version|release|\bver|\bv|\w[/_-])[\s:='\"(]{0,4}\Z", re.IGNORECASE)
_RESOLVERS = frozenset({"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222", "208.67.220.220"})
_RESOLVERS_V6 = ("2001:4860:4860:", "2606:4700:4700:", "2620:fe:", "2620:119:")

_PHONE = re.compile(r"\+[1-9]\d{0,3}(?:[ .\-/]?(?:\(\d{1,5}\)|\d{1,5})){2,6}(?![\w.])")


class PersonalDataMask:
    """Puts placeholders in the place of addresses."""

    name = "personal_data"

    def __init__(self, settings: PersonalData, spec: SourceSpec) -> None:
        self.settings = settings

    def apply(self, document: Document, tally: Tally) -> Document:
        """See `data_prep.documents.Step`. Changes counted: 'email', 'ip', 'phone'."""
        text, settings = document.text, self.settings
        found = chain(
            emails(text) if settings.email and "@" in text else (),
            ip_addresses(text) if settings.ip else (),
            phone_numbers(text) if settings.phone and "+" in text else (),
        )
        pieces, place = [], 0
        for start, end, placeholder, what in sorted(found):
            if start < place:
                continue
            pieces += [text[place:start], placeholder]
            place = end
            tally.changed[self.name, what] += 1
        if not pieces:
            return document
        return replace(document, text="".join([*pieces, text[place:]]))


def emails(text: str) -> Iterator[Found]:
    """E-mail addresses (the part of RFC 5321 that is in use)."""
    for domain in _DOMAIN.finditer(text):
        local = _LOCAL.search(text, max(0, domain.start() - _LONGEST_LOCAL), domain.start())
        top = domain[2].lower()
        if local is None or local[0].lower() in _SERVICES or _RESERVED.search(domain[1]):
            continue
        if _IN_URL.search(text, max(0, local.start() - _LONGEST_LOCAL), local.start()):
            continue  # user:password@host
        if len(top) == 2 or top in _TOP_LEVEL:
            yield local.start(), domain.end(), EMAIL, "email"


def ip_addresses(text: str) -> Iterator[Found]:
    """Public IPv4 and IPv6 addresses."""
    for rest in _REST_V4.finditer(text):
        first = _FIRST_V4.search(text, max(0, rest.start() - 3), rest.start())
        if first is None or not _stands_alone(text, first.start()) or not _is_public_v4(first[0] + rest[0]):
            continue
        if not _VERSION.search(text, max(0, first.start() - 16), first.start()):
            yield first.start(), rest.end(), IP, "ip"
    for rest in _REST_V6.finditer(text):
        first = _FIRST_V6.search(text, max(0, rest.start() - 4), rest.start())
        if first and _stands_alone(text, first.start()) and _is_public_v6(first[0] + rest[0]):
            yield first.start(), rest.end(), IP, "ip"


def phone_numbers(text: str) -> Iterator[Found]:
    """Telephone numbers in international form (ITU-T E.123 and E.164): a plus sign, and 8 to 15 digits."""
    for match in _PHONE.finditer(text):
        digits = sum(map(str.isdigit, match[0]))
        # sums have a plus sign and one number behind it; a number that is written for people is grouped, or long
        if _stands_alone(text, match.start()) and (8 <= digits <= 15) and (digits >= 11 or not match[0][1:].isdigit()):
            yield match.start(), match.end(), PHONE, "phone"


def _stands_alone(text: str, start: int) -> bool:
    """Whether no word, number or longer address ends at `start`."""
    before = text[start - 1] if start else " "
    return not (before.isalnum() or before in "._:)]")


def _is_public_v4(written: str) -> bool:
    if written in _RESOLVERS:
        return False
    octets = written.split(".")
    if max(map(int, octets)) < 10:  # sections and versions; of addresses, one in half a million
        return False
    try:
        return _is_one_host(ipaddress.IPv4Address(written))
    except ValueError:
        return False


def _is_public_v6(written: str) -> bool:
    if len(written.replace("::", ":").strip(":").split(":")) < 3:  # a number before '::', as at the end of a line of prose
        return False
    try:
        return _is_one_host(ipaddress.IPv6Address(written)) and not written.lower().startswith(_RESOLVERS_V6)
    except ValueError:
        return False


def _is_one_host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_global and not address.is_multicast
