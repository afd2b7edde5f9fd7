"""Personal data: what is masked, and what only looks like an address."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies

from data_prep.documents import Document, Tally
from data_prep.steps.personal_data import PersonalDataMask
from megatron_codemix.config import PersonalData, SourceSpec

SPEC = SourceSpec(kind="stdlib", part="code", modality="code")
ALL = PersonalData(phone=True)


def masked(text, step=ALL):
    tally = Tally()
    return PersonalDataMask(step, SPEC).apply(Document("d", text), tally).text, dict(tally.changed)


@pytest.mark.parametrize(
    "address",
    [
        "ada@lovelace.org",
        "ada.lovelace+code@mail.uni-koeln.de",
        "a_b-c@x1.co.uk",
        "O'Brien@irish.ie",
        "ADA@LOVELACE.COM",
        "1815@ada.io",
        "ada@lovelace.consulting",
        "ada@lovelace.bank",
        "ada@universität-köln.de",
    ],
)
def test_emails(address):
    for text in ("# Author: Ada <{}>", "mail {}.", "('{}')", "{}", "é{}\n", "to:{},"):
        expected = text.format("<EMAIL>")
        assert masked(text.format(address)) == (expected, {("personal_data", "email"): 1})


@pytest.mark.parametrize(
    "text",
    [
        "git clone git@github.com:a/b.git",
        "user@example.com, user@mail.example.org, a@b.test, root@localhost, me@host.local",
        "http://user:word@lovelace.org/path",
        "@property",
        "npm install lodash@4.17.21",
        "icon@2x.png",
        "y = x@self.weight",
        "y = a@b.to(device)",
        "x@y",
        "@decorator.com",
        "a @b.com",
        "res = q@k.mT",
        "assert W@inp.at[0]",
        "y = rows@cols.pl + x@media.info",
        "k@v.in",
        "return self.a@self.b.to",
        "docker.io/x@sha256.ab",
    ],
)
def test_no_emails(text):
    assert masked(text) == (text, {})


@pytest.mark.parametrize("address", ["93.184.216.34", "5.9.10.113", "2a00:1450:4001:81b::200e", "2606:2800:220:1:248:1893:25c8:1946"])
def test_ip_addresses(address):
    for text in ('HOST = "{}"', "ping {}\n", "http://{}/x", "({})", "{},", "at {}."):
        assert masked(text.format(address)) == (text.format("<IP_ADDRESS>"), {("personal_data", "ip"): 1})


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1 10.0.0.17 192.168.100.20 172.16.33.4 0.0.0.0 255.255.255.255 169.254.10.20",
        "192.0.2.17 198.51.100.20 203.0.113.90",  # documentation
        "8.8.8.8 1.1.1.1 208.67.222.222",
        "2001:4860:4860::8888",
        "2001:db8::17 ::1 fe80::1 std::cout a::b 12:34:56 00:1a:2b:3c:4d:5e",
        "1.2.3.4",
        "version 12.34.56.78",
        "v12.34.56.78 Chrome/88.0.43.150 lib-10.20.30.40",
        "12.34.56.789 12.34.56 1.3.6.1.4.1.311 12.34.56.78.9",
        "x12.34.56.78 3.12.34.56.78",
        "2021:12:31 2001:12:34:56",
        "::ffff, Python 2 and 3000::, 2262::1",
        "224.0.0.251",
        "OpenSSL 1.1.1.12, bazel 20.3.1.10",
        "<version>11.22.33.44</version>",
        'Version="199.1.22.3" __version__ = "10.20.30.40"',
    ],
)
def test_no_ip_addresses(text):
    assert masked(text) == (text, {})


def test_addresses_that_are_like_versions_count_beside_what_addresses_are_for():
    for text in ("host={}", "ping {}", "{}:8080", "{}/24", "ip/{}", "http://{}/", "::ffff:{}", "ClientIP:     '{}'", '["{}", 3]'):
        assert masked(text.format("46.4.84.2")) == (text.format("<IP_ADDRESS>"), {("personal_data", "ip"): 1})
    assert masked("v=81.2.69.160") == ("v=<IP_ADDRESS>", {("personal_data", "ip"): 1})


def test_enclosed_addresses_of_two_letters():
    for text in ("<{}>", '"{}"', "mailto:{}"):
        assert masked(text.format("a@b.no"))[0] == text.format("<EMAIL>")


@pytest.mark.parametrize("number", ["+49 221 470-2240", "+1 (415) 555-2671", "+14155552671", "+44 20 7946 0958", "+33.1.42.68.53.00"])
def test_phone_numbers(number):
    for text in ("Tel. {}", "call {}\n", "tel:{}"[:3] + " {}"):
        assert masked(text.format(number)) == (text.format("<PHONE>"), {("personal_data", "phone"): 1})
    assert masked(number, PersonalData()) == (number, {})


@pytest.mark.parametrize("text", ["x = y +1", "a +123456789", "b[1]+14155552671", "1e+10", "x+14155552671", "+0 221 4702240", "C++17"])
def test_no_phone_numbers(text):
    assert masked(text) == (text, {})


def test_each_can_be_left_out():
    text = "ada@lovelace.org 93.184.216.34"
    assert masked(text, PersonalData(email=False)) == ("ada@lovelace.org <IP_ADDRESS>", {("personal_data", "ip"): 1})
    assert masked(text, PersonalData(ip=False)) == ("<EMAIL> 93.184.216.34", {("personal_data", "email"): 1})


def test_a_document_without_any_is_the_same():
    document = Document("d", "def f(): pass")
    assert PersonalDataMask(ALL, SPEC).apply(document, Tally()) is document


def test_masking_twice_changes_nothing():
    text, _ = masked("ada@lovelace.org, bob@lovelace.org; 93.184.216.34:80 or 93.184.216.34/24 (+49 221 470-2240)")
    assert text == "<EMAIL>, <EMAIL>; <IP_ADDRESS>:80 or <IP_ADDRESS>/24 (<PHONE>)"
    assert masked(text) == (text, {})


@pytest.mark.parametrize("unit", ["a@", "@a.", "a", "1.", "12.34.56.78", "2a00:", "+1 ", "@a.b.c.d.e.f.", "+1(", "a.a@a-"])
def test_long_lines_take_linear_time(unit):
    text = unit * (600_000 // len(unit))
    assert isinstance(masked(text)[0], str)


@given(strategies.text(max_size=200) | strategies.text("a1.@:+-f2 ", max_size=80))
@settings(max_examples=300, deadline=None)
def test_anything(text):
    once, counted = masked(text)
    assert (once == text) == (not counted)
