"""What a secret looks like: formats of tokens that detect-secrets 1.5 does not know, names that secrets are assigned to, and values
that only stand for one. All patterns are for bytes read as Latin-1, so that offsets are those of the UTF-8 text."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

from detect_secrets.filters import heuristic
from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString, HexHighEntropyString

LEAST_LENGTH = 20
"""Characters of the shortest token that is looked for by its own form."""
MOST_LENGTH = 2048
"""Characters of the longest: what is longer is data, an image or a font in base64."""
LEAST_PASSWORD = 6


class Format(NamedTuple):
    """A kind of token that its own form betrays."""

    kind: str
    pattern: re.Pattern[str]


FORMATS = tuple(
    Format(kind, re.compile(pattern))
    for kind, pattern in {
        # The forms are those of the providers' own documentation, as gitleaks 8 and GitHub's secret scanning list them.
        "Anthropic API Key": r"sk-ant-[\w-]{20,}",
        "Databricks Token": r"\bdapi[0-9a-f]{32}\b",
        "DigitalOcean Token": r"\bdo[opr]_v1_[0-9a-f]{64}\b",
        "GitHub Token": r"\bgithub_pat_\w{22,}|\bgh[opsur]_\w{36,}",
        "GitLab Token": r"\bgl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)-[\w-]{20,}|\bGR1348941[\w-]{20,}",
        "Google API Key": r"\bAIza[\w-]{35}",
        "Google OAuth Secret": r"\bGOCSPX-[\w-]{28}|\bya29\.[\w-]{20,}",
        "Grafana Token": r"\bglsa_[A-Za-z0-9]{32}_[0-9a-f]{8}\b|\bglc_[A-Za-z0-9+/]{32,}",
        "Hugging Face Token": r"\b(?:hf|api_org)_[A-Za-z]{34}\b|\bhf_[A-Za-z0-9]{34}\b",
        "JSON Web Token": r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?",
        "Linear API Key": r"\blin_api_[A-Za-z0-9]{40}",
        "NPM Token": r"\bnpm_[A-Za-z0-9]{36}\b",
        "OpenAI Token": r"\bsk-(?:proj-|svcacct-|admin-)?[\w-]*T3BlbkFJ[\w-]{20,}|\bsk-[A-Za-z0-9]{48}\b|\bsk-proj-[\w-]{40,}",
        "Postman API Key": r"\bPMAK-[0-9a-f]{24}-[0-9a-f]{34}\b",
        "PyPI Token": r"\bpypi-AgE[\w-]{50,}",
        "SendGrid API Key": r"\bSG\.[\w-]{16,32}\.[\w-]{32,64}",
        "Shopify Token": r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}\b",
        "Slack Token": r"\bxox[abeoprs](?:\.xox[bp])?-[\w-]{10,}|\bxapp-\d-[\w-]{20,}",
        "Slack Webhook": r"hooks\.slack\.com/(?:services|workflows)/[\w/+-]{30,}",
        "Stripe Access Key": r"\b(?:sk|rk)_(?:live|test)_[0-9a-zA-Z]{16,}|\bwhsec_[A-Za-z0-9+/=]{32,}",
        "Discord Webhook": r"discord(?:app)?\.com/api/webhooks/\d{17,20}/[\w-]{60,}",
        "Bearer Token": r"(?i:\bbearer\s+)[\w.~+/-]{20,}=*",
        "Basic Authorization": r"(?i:authorization[\"']?\s*[:=,]\s*[\"']?basic\s+)[A-Za-z0-9+/]{16,}=*",
    }.items()
)

_SECRET_NAME = r"""(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|credentials?|bearer|authorization|webhook
    |(?:api|app|auth|access|account|admin|aws|azure|client|consumer|cred|crypt\w*|db|database|deploy|encrypt\w*|encryption|gcp|google|jwt|license
       |master|oauth|priv|private|secret|security|service|session|shared|sign\w*|storage|stripe|subscription|twilio|user|write|x)[_\-\s.]?keys?
    |(?:auth|api|access|session|client)[_\-]?(?:id[_\-]?)?(?:secret|token)|connection[_\-]?string|dsn|\bauth\b|(?-i:\bKEY|_KEY|Key)\b)"""
_ASSIGNED = re.compile(
    rf"""{_SECRET_NAME}[\w\-]{{0,40}}["'`\]\)]{{0,3}}(?:\[\d*\])?  # api_key, "client-secret", config['TOKEN']
    \s{{0,20}}
    (?:
        (?:=>|:=|={{1,3}}|!==?|::?|\|\||\?\?)\s{{0,20}}(?:[&\w<>.\[\]\ ]{{1,30}}=\s*)?(?:[bruf@$]{{0,2}}["'`]|\\["'])?  # assigns
      | (?:[,(]|(?<=\s))\s{{0,20}}(?:\w{{1,20}}\s*=\s*)?(?:[bruf@$]{{0,2}}["'`]|\\["'])                                         # or passes
    )$""",
    re.IGNORECASE | re.VERBOSE,
)
"""What ends where a value begins that is assigned to the name of a secret."""
_ASSIGNS = re.compile(r"""[\s=:,('"`]\Z""")
HARMLESS_NAME = re.compile(r"sha\d*|md5|hash|digest|checksum|commit|public|fingerprint|uuid|guid|etag|placeholder", re.IGNORECASE)
"""Names of values that look like keys and are known to everybody."""

KEYWORDS = (b"passwd", b"password", b"passphrase", b"pwd", b"secret", b"identified by", b"curl", b"mysql", b"key")
"""In lower-cased text: the names of detect-secrets' keyword detector, and a few more; where a password may stand."""
KEY_OF = re.compile(rb"(?:api|auth|service|account|db|database|priv|private|client|access|encryption)[_-]?\Z")
"""What stands before 'key' if it is that of a lock, not of a mapping."""
_REST = r"""[\w\-]{0,40}["'\])]{0,3}"""
VALUES = tuple(
    re.compile(pattern)
    for pattern in (
        # password = "…", {"password": "…"}, set_password("…"), #define PASSWORD "…", env.PASSWORD || '…'
        _REST
        + r"""\s{0,20}(?:=>|:=|={1,3}|!==?|:|,|\(|\|\||\?\?|\bor\b|(?<=\s))\s{0,20}(?:ConvertTo-SecureString\s+)?"""
        + r"""[@bruf]{0,2}(?:"([^"\s]{6,200})"|'([^'\s]{6,200})'|`([^`\s]{6,200})`)""",
        # <password>…</password>
        r"""[\w\-]{0,40}>([^<>\s]{6,200})</""",
        # "Server=…;Password=…;"
        r"""\s?=\s?([^;"'\s<>=]{6,200})(?=;\s?\w[\w ]{0,30}=|;?["'])""",
        # name: DB_PASSWORD, and on the next line value: …; <add key="ApiKey" value="…" />
        _REST + r"""[,\s]{1,40}["']?value["']?\s?[:=]\s{0,4}["']?([^"'\s]{6,200})""",
    )
)
"""Behind such a name; the value is the last group."""
BARE_VALUE = re.compile(r"""[\w\-]{0,40}\s{0,20}[=:]\s{0,20}([^"'`\s#;,<>(){}\[\]]{8,200})\s*(?:[#;].*)?$""", re.MULTILINE)
"""KEY=value and key: value of configuration files, to the end of the line."""
COMMANDS = {
    b"curl": re.compile(r"""[^\n|;]{0,200}?\s(?:-u|--user)[ =]["']?[\w.@+-]{1,60}:([^\s"':]{6,200})"""),
    b"mysql": re.compile(r"""[^\n|;]{0,200}?\s(?:-p|--password=)["']?([^\s"']{6,200})"""),
}
"""Command → its rest up to a password that is an argument."""

_PLACEHOLDER = re.compile(
    r"""^(?:x+|\*+|\.+|[\W_]*|(?:my|your|the|some|a|an|test|new|old|db|user|root|admin|default|example|dummy|fake|sample|insert|enter|change)?
    [_\-.\s]?(?:super)?[_\-.\s]?(?:secret|password|passwd|passw0rd|pass|pwd|token|key|apikey|api[_\-]?key|changeme|change_?me|tiger|foobar|foo|bar|baz
    |example|test|secretkey|username|user|value|here|none|null|true|false|undefined|redacted|hidden|invalid|required|string|email)
    [_\-.\s]?(?:here|me|123?4?|\d)?)$""",
    re.IGNORECASE | re.VERBOSE,
)
_TEMPLATE = re.compile(
    r"\$\{|\{\{|\{[\w.\[\]]*\}|%\(?\w|<[\w\s-]+>|\$\(|\$[A-Za-z_]|__\w+__|\.\.\.|\*{3}|x{4}|your[_-]|[_-]your|example|placeholder",
    re.IGNORECASE,
)
_CODE = re.compile(r"^[\w.]+\(|^(?:self|this|os|process|env|config|settings|request|args|options)\.|[()\[\]{}<>]|::|->|//|^\.{0,2}/|\\")
_WORD = re.compile(r"(?:^|(?<=[-_/.]))[A-Za-z]?[a-z]{3,}(?=[-_/.]|$)")
_CALL = re.compile(r"^[\w.]+\(.*\)?$|^\w+:[?/]|\$\{|\{\{|%\(")
_NUMBERED_NAME = re.compile(r"[A-Za-z]+(?:[_\-.:/][A-Za-z]+)*[_\-.:/]?v?\d{1,2}")
_LONG_WORD = re.compile(r"(?:^|(?<=[-_/.]))[A-Za-z][a-z]{3,}(?=[-_/.]|$)")
_DIGIT_EDGES = re.compile(r"(?<=\d)(?=[^\d])|(?<=[^\d])(?=\d)")
_EDGES = re.compile(r"(?<=[a-z])(?=[A-Z\d])|(?<=[A-Z])(?=[a-z\d])|(?<=\d)(?=[A-Za-z])")
_PREFIX = re.compile(r"hf_|gl[a-z]{2,5}-|[rs]k_(?:live|test)_|gh[opsur]_|AKIA|ASIA|xox[a-z]-|npm_|sk-")
_HEX = re.compile(r"[0-9a-fA-F]+")
_base64, _hex = Base64HighEntropyString(), HexHighEntropyString()


def may_be_random(token: str) -> bool:
    """Whether a run of letters and digits changes between small ones, capitals and digits as random ones do: words with a number
    do less often."""
    if not any(map(str.isalpha, token)):
        return False
    return len(_DIGIT_EDGES.findall(token)) >= 2 or changes_case(token) or _PREFIX.match(token) is not None


def changes_case(token: str) -> bool:
    """Whether a token changes between small letters, capitals and digits more often than CamelCase does (in random ones half of the
    neighbours differ, or more)."""
    return len(_EDGES.findall(token)) >= 0.42 * len(token)


def is_phrase(token: str) -> bool:
    """Whether a run is made of words: the path of a page, a name of many parts."""
    return len(_LONG_WORD.findall(token)) >= 3


def may_be_assigned(before: str) -> bool:
    """Whether a text ends with the name of a secret and what assigns or passes a value to it."""
    found = _ASSIGNS.search(before) and _ASSIGNED.search(before)
    if not found:
        return False
    name = re.search(r"[\w.\-]*\Z", before[: found.start()])
    return not HARMLESS_NAME.search((name[0] if name else "") + found[0])


def is_random(token: str) -> bool:
    """Whether a token's entropy is that of a key: detect-secrets' measures; its limit for base64 holds for 40 characters and more,
    so that of shorter ones, which cannot reach it, is lower."""
    if heuristic.is_potential_uuid(token) or heuristic.is_sequential_string(token) or len(_WORD.findall(token)) >= 2:
        return False
    if _HEX.fullmatch(token):
        return len(token) >= 24 and _hex.calculate_shannon_entropy(token) > 3.0
    return _base64.calculate_shannon_entropy(token) > (4.3 if len(token) >= 40 else 3.6)


def is_password(value: str) -> bool:
    """Whether a value assigned to the name of a secret is one, not a placeholder, a template, a name or code."""
    if len(value) < LEAST_PASSWORD or heuristic.is_not_alphanumeric_string(value) or heuristic.is_templated_secret(value):
        return False
    if len(value) >= 24 and len(_DIGIT_EDGES.findall(value)) >= 3 and _entropy(value) > 4.0 and not _CALL.search(value):
        return True
    if heuristic.is_prefixed_with_dollar_sign(value) or _PLACEHOLDER.match(value) or _TEMPLATE.search(value) or _CODE.search(value):
        return False
    if len(value) >= 10 and changes_case(value):
        return True
    odd = any(character in "!@#$%^&*?+~=" for character in value)
    # names and phrases have letters and separators alone, and perhaps a number at the end
    return odd or (any(map(str.isdigit, value)) and not _NUMBERED_NAME.fullmatch(value))


def _entropy(value: str) -> float:
    """Bits per character (Shannon) of the characters of a value."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())


def is_password_in_url(value: str) -> bool:
    """Whether what stands before the '@' of a URL is a password; there, one word is one too, unless it is what manuals write."""
    if len(value) < 4 or heuristic.is_templated_secret(value) or heuristic.is_prefixed_with_dollar_sign(value):
        return False
    return not (_PLACEHOLDER.match(value) or _TEMPLATE.search(value) or re.search(r"[{}\[\]()<>\\|]", value) or value.isdigit())
