"""What a secret looks like: names that secrets are assigned to, and values that only stand for one. All patterns are for bytes read
as Latin-1, so that offsets are those of the UTF-8 text."""

from __future__ import annotations

import re

from detect_secrets.filters import heuristic

from data_prep.steps.randomness import LEAST_BITS, entropy, randomness

LEAST_LENGTH = 20
"""Characters of the shortest token that is looked for by its own form."""
MOST_LENGTH = 2048
"""Characters of the longest: what is longer is data, an image or a font in base64."""
LEAST_PASSWORD = 6
_BITS_PER_CHARACTER = 0.4
"""Of a random value; those of long names that hold something random are fewer."""

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
HARMLESS_NAME = re.compile(
    r"sha\d|md5|hash|digest|checksum|commit|public|publishable|websocket|fingerprint|uuid|guid|etag|placeholder|integrity", re.IGNORECASE
)
"""Names of values that look like keys and are known to everybody."""

_PLACEHOLDER = re.compile(
    r"""^(?:x+|\*+|\.+|[\W_]*|(?:my|your|the|some|a|an|test|new|old|db|user|root|admin|default|example|dummy|fake|sample|insert|enter|change)?
    [_\-.\s]?(?:super)?[_\-.\s]?(?:secret|password|passwd|passw0rd|passphrase|passcode|pass|pwd|token|key|apikey|api[_\-]?key|changeme|change_?me|tiger|foobar|foo|bar|baz
    |example|test(?:ing)?|secretkey|username|user|value|here|none|null|true|false|undefined|redacted|hidden|invalid|required|string|email)
    [_\-.\s]?(?:here|me|123?4?|\d)?)$""",
    re.IGNORECASE | re.VERBOSE,
)
# Of the names of variables, so many letters that a random password seldom has them behind the same sign.
_TEMPLATE = re.compile(
    r"""\$\{ | \{\{ | \{[\w.\[\]]*\} | \$\( | (?-i:\$(?:[a-z_]{4}|[A-Z_]{4})) | ^\$\w+$ | ^%\w+%$ | %\(\w+\) | %[-+0\#]?\d*[sdiufgxq](?!\w)
    | <[\w\s-]+> | __\w+__ | \.\.\. | \*{3} | x{4} | your[_-] | [_-]your | example | placeholder""",
    re.IGNORECASE | re.VERBOSE,
)
_VARIABLE = re.compile(r"^\$\{?[A-Za-z_]\w*\}?$|^\$[\w.>()\[\]-]+$")
_CODE = re.compile(r"^[\w.]+\(|^(?:self|this|os|process|env|config|settings|request|args|options)\.|[()\[\]{}<>]|::|->|//|^\.{0,2}/|\\")
_CALL = re.compile(r"^[A-Za-z_][\w.]*\([^()]*\)$|^\w+:[?/]|://|^(?:[A-Z]:)?[\\/]{1,2}[a-z_]{2,}[\\/]")
_WORD = re.compile(r"(?:^|(?<=[-_/.]))[A-Za-z]?[a-z]{3,}(?=[-_/.]|$)")
_NUMBERED_NAME = re.compile(r"[A-Za-z]+(?:[_\-.:/][A-Za-z]+)*[_\-.:/]?v?\d{1,2}")
_LONG_WORD = re.compile(r"(?:^|(?<=[-_/.]))[A-Za-z][a-z]{3,}(?=[-_/.]|$)")
_DIGIT_EDGES = re.compile(r"(?<=\d)(?=[^\d])|(?<=[^\d])(?=\d)")
_PREFIX = re.compile(r"hf_|gl[a-z]{2,5}-|[rs]k_(?:live|test)_|gh[opsur]_|AKIA|ASIA|xox[a-z]-|npm_|sk-")
_LETTERS = re.compile(r"[a-z]{8,40}")
_ABOUT_PASSWORDS = re.compile(
    r"pass|word|secret|string|required|invalid|hidden|text|field|input|label|prompt|empty|default|plain|crypt|auth"
)
"""What words say about passwords."""
_HEX = re.compile(r"[0-9a-fA-F]+")
_NO_TOKEN = re.compile(r"[\[\]{}<>|\\,;\"']|\(\?|\w\(\w*\)")
_MANGLED = re.compile(r"^(?:_+Z|0[xX])|^[\d.:TZ_-]*$")
"""Names of linkers, numbers, dates."""


def may_be_random(token: str) -> bool:
    """Whether a run of letters and digits may be a token: words with a number change between letters and digits less often."""
    if not any(map(str.isalpha, token)):
        return False
    return len(_DIGIT_EDGES.findall(token)) >= 2 or _PREFIX.match(token) is not None or randomness(token) >= LEAST_BITS


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


def is_uuid(value: str) -> bool:
    """Whether a value has the form of a UUID, of more than a few digits."""
    return heuristic.is_potential_uuid(value) and len(value) == 36 and len(set(value)) > 9


def is_random(token: str) -> bool:
    """Whether a token was drawn at random; not one of a known alphabet's order, a UUID, a phrase, or a number."""
    if heuristic.is_potential_uuid(token) or heuristic.is_sequential_string(token) or _MANGLED.match(token) or _CALL.search(token):
        return False
    if _NO_TOKEN.search(token):
        return False
    if _HEX.fullmatch(token):  # letters make a checksum of a number
        letters = sum(map(str.isalpha, token))
        return letters >= 2 and len(token) - letters >= 2 and entropy(token) > (3.0 if len(token) >= 24 else 2.4)
    if len(_WORD.findall(token)) >= 3 or entropy(token) < (2.9 if len(token) >= 24 else 2.5):
        return False
    return randomness(token) >= max(LEAST_BITS, _BITS_PER_CHARACTER * len(token))


def is_password(value: str, letters: bool = False, numbered: bool = False) -> bool:
    """Whether a value assigned to the name of a secret is one, not a placeholder, a template, a name or code.

    letters, numbered: whether small letters alone, and words with a number, can be one.
    """
    if len(value) < LEAST_PASSWORD or heuristic.is_not_alphanumeric_string(value) or heuristic.is_templated_secret(value):
        return False
    if _PLACEHOLDER.match(value) or _TEMPLATE.search(value) or _VARIABLE.match(value) or _CALL.search(value):
        return False
    if len(value) >= 8 and len(set(value)) >= 6 and randomness(value) >= LEAST_BITS:
        return True
    if _CODE.search(value):
        return False
    if _LETTERS.fullmatch(value):
        return letters and not _ABOUT_PASSWORDS.search(value)
    odd = any(character in "!@#$%^&*?+~=" for character in value)
    # names and phrases have letters and separators alone, and perhaps a number at the end
    if odd or not any(map(str.isdigit, value)):
        return odd
    return (numbered and len(value) >= 8 and not _ABOUT_PASSWORDS.search(value.lower())) or not _NUMBERED_NAME.fullmatch(value)


def is_password_in_url(value: str) -> bool:
    """Whether what stands before the '@' of a URL is a password; there, one word is one too, unless it is what manuals write."""
    if len(value) < 4 or heuristic.is_templated_secret(value) or _VARIABLE.match(value):
        return False
    return not (_PLACEHOLDER.match(value) or _TEMPLATE.search(value) or re.search(r"[{}\[\]<>\\|]|\w\(", value) or value.isdigit())
