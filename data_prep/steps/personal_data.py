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

_DOMAIN = re.compile(r"@([^\W_](?:[^\W_]|-){0,62}(?:\.(?:[^\W_]|-){1,63}){0,8}\.([^\W\d_]{2,18}))(?![\w(-])")
_LOCAL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.%+'-]{0,62}[A-Za-z0-9_+-])?\Z")
_LONGEST_LOCAL = 64
_GENERIC = """
academy accountant accountants actor adult aero agency ai airforce amsterdam apartments app archi army arpa art asia associates
attorney auction audio auto band bank bar barcelona bayern beer berlin best bike bio biz black blog blue boston bot boutique brussels
build builders business buzz cab cafe camera camp capetown capital cards care career careers casa cash casino cat catering center
ceo charity chat cheap church city claims cleaning click clinic clothing cloud club co coach codes coffee college cologne com
community company computer condos construction consulting contact contractors cooking cool coop country coupons courses cpa credit
creditcard cricket cruises dance date dating deals degree delivery democrat dental dentist design dev diamonds diet digital direct
directory discount doctor dog domains earth eco edu education email energy engineer engineering enterprises equipment estate eu
events exchange expert exposed express fail faith family fans farm fashion film finance financial fish fishing fit fitness flights
florist flowers football forex forsale foundation fun fund furniture futbol fyi gallery games garden gives glass global gmbh gold golf
gop gov graphics gratis green gripe group guide guitars guru hamburg health healthcare help hiphop hockey holdings holiday horse
hospital host hosting house how inc industries info ink institute insurance insure int international investments io irish istanbul
jetzt jewelry jobs joburg kaufen kim kitchen koeln koln kyoto land law lawyer lease legal lgbt life lighting limited limo link live llc
loan loans lol london love ltd luxe luxury madrid management market marketing markets mba me media melbourne memorial men menu miami
mil mobi moda moe mom money mortgage moscow museum nagoya name net network news ngo ninja nrw nyc okinawa one ong online org osaka
page paris partners parts party pet photo photography photos physio pics pictures pink pizza place plumbing plus poker press pro
productions properties property pub quebec racing realtor realty recipes red rehab reisen rent rentals repair report republican
restaurant review reviews rio rip rocks rodeo rugby ruhr run saarland sale salon sarl school schule science scot security services sh
shiksha shoes shop shopping show singles site ski soccer social software solar solutions space sport srl store stream studio style
supplies supply support surf surgery swiss sydney systems tattoo tax taxi team tech technology tel tennis theater tienda tips tires
tirol today tokyo tools tours town toys trade trading training travel tube tv university uno us vacations vegas ventures versicherung
vet viajes video villas vin vip vision vlaanderen vote voyage wales watch webcam website wedding wien wiki wine work works world wtf
xxx xyz yoga yokohama zone
"""
_TOP_LEVEL = frozenset(_GENERIC.split())
"""The generic top-level domains (IANA's root zone) but for brands'; of two letters, all are countries'."""
_ALSO_NAMES = frozenset({"info", "name", "data", "run", "call", "show", "link", "one", "page"})
"""Those that attributes are called after: `x@batch.info` is a product of matrices (as is any `a@b.at` of two letters)."""
_ENCLOSED = re.compile(r"(?:[<\"'`]|mailto:)\Z", re.IGNORECASE)
_IN_PROGRAM = re.compile(
    r"(?:^|\n)[^\n\"'`#]*?(?:[\w)\]]\s*[-+*/%@|&^]?=[ \t]*|\b(?:return|assert|yield|lambda\s\w+:)\s+|[-+*%@(\[]\s*|/\s+)\Z"
)
"""What stands before the operand of an expression, outside of literals and comments."""
_NO_HOST = re.compile(r"sha\d+|md5|self|this|v\d+", re.IGNORECASE)
_RESERVED = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local)$", re.IGNORECASE)
_SERVICES = frozenset({"git", "hg", "svn"})
"""User names of URLs of the form git@host:path, which nobody writes to."""

# What follows the first dot or colon of an address: patterns that begin with a letter of their own are searched for several times as fast.
_REST_V4 = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\.?\w)")
_REST_V6 = re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{0,29}(?![\w:])")
_FIRST_V4, _FIRST_V6 = re.compile(r"\d{1,3}\Z"), re.compile(r"[23][0-9A-Fa-f]{3}\Z")
_IN_URL = re.compile(r"://[^\s/@]*\Z")
_VERSION = re.compile(
    r"(?:(?:version|release|\bver)\w{0,12}[\s:='\"(>]{0,6}|\bv ?|(?<!\bip)(?<!host)(?<!addr)(?<!server)(?<=\w)[/_-])\Z", re.IGNORECASE
)
_NEAR_ADDRESSES = re.compile(
    r"(?:\bip|host|addr|address|server|ping|ssh|scp|node|from|to|at|gateway|dns|peer|inet|remote|connect|listen|bind|proxy|via)"
    r"\w{0,8}[\s:=,'\"(/@]{1,12}\Z|[@/]\Z|://\[?\Z|::ffff:\Z",
    re.IGNORECASE,
)
_PORT_OR_MASK = re.compile(r":\d{2,5}\b|/(?:[1-9]|[12]\d|3[0-2])\b")
_LEAST_OCTET = 100
"""All four numbers of 98 % of addresses are not below it; those of nearly all versions are."""
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
        if (len(top) == 2 or top in _TOP_LEVEL) and _is_address(text, local, domain, top):
            yield local.start(), domain.end(), EMAIL, "email"


def _is_address(text: str, local: re.Match[str], domain: re.Match[str], top: str) -> bool:
    """Whether it is no product of two matrices, nor an image with its digest."""
    host, written = domain[1].split(".")[0], domain[2]
    if not (written.islower() or written.isupper() or written.istitle()):
        return False
    if (len(top) > 2 and top not in _ALSO_NAMES) or _ENCLOSED.search(text, max(0, local.start() - 7), local.start()):
        return True
    if min(len(local[0]), len(host)) < 2 or _NO_HOST.fullmatch(host) or local[0].startswith(("self.", "this.")):
        return False
    if text[domain.end() : domain.end() + 1] == "[":
        return False
    return not _IN_PROGRAM.search(text, max(0, text.rfind("\n", 0, local.start()), local.start() - 120), local.start())


def ip_addresses(text: str) -> Iterator[Found]:
    """Public IPv4 and IPv6 addresses."""
    for rest in _REST_V4.finditer(text):
        first = _FIRST_V4.search(text, max(0, rest.start() - 3), rest.start())
        if first is None or not _is_public_v4(first[0] + rest[0]):
            continue
        if not _stands_alone(text, first.start()) and not text.endswith("::ffff:", 0, first.start()):
            continue
        if max(map(int, (first[0] + rest[0]).split("."))) < _LEAST_OCTET and not (
            _NEAR_ADDRESSES.search(text, max(0, first.start() - 24), first.start())
            or _PORT_OR_MASK.match(text, rest.end())
            or (first.start() and text[first.start() - 1] in "\"'" and text[rest.end() : rest.end() + 1] == text[first.start() - 1])
        ):
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
        if _stands_alone(text, match.start(), "._:)]-*/=") and (8 <= digits <= 15) and (digits >= 11 or not match[0][1:].isdigit()):
            yield match.start(), match.end(), PHONE, "phone"


def _stands_alone(text: str, start: int, joins: str = "._:)]") -> bool:
    """Whether no word, number or longer address ends at `start`."""
    before = text[start - 1] if start else " "
    return not (before.isalnum() or before in joins)


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
