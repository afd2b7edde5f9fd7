"""Names of programming and natural languages: one spelling each, found by a file's suffix, with the class it belongs to.

Programming languages are named as GitHub's Linguist names them, in lower case ('c++', 'c#', 'jupyter notebook'), because The Stack
and most other corpora of code do; natural languages by their ISO 639-1 code, else 639-3 ('en', 'hbs').
"""

from __future__ import annotations

import difflib
import re
from pathlib import PurePosixPath

from data_prep.documents import Document
from megatron_codemix.config import LanguageClass

__all__ = ["by_path", "document_language", "language_class", "near_names", "normalised"]

_SUFFIXES: dict[LanguageClass, dict[str, str]] = {
    "code": {
        "ada": "adb ads ada",
        "agda": "agda",
        "assembly": "asm s nasm",
        "awk": "awk",
        "batchfile": "bat cmd",
        "c": "c h",  # a header may be C++ too; its name does not tell
        "c#": "cs csx",
        "c++": "cc cpp cxx c++ hh hpp hxx h++ ipp tpp inl",
        "clojure": "clj cljs cljc edn",
        "cmake": "cmake",
        "coffeescript": "coffee",
        "common lisp": "lisp lsp cl",
        "crystal": "cr",
        "cuda": "cu cuh",
        "cython": "pyx pxd pxi",
        "d": "d di",
        "dart": "dart",
        "dockerfile": "dockerfile",
        "elixir": "ex exs",
        "elm": "elm",
        "emacs lisp": "el",
        "erlang": "erl hrl",
        "f#": "fs fsi fsx",
        "fortran": "f f77 f90 f95 f03 f08 for",
        "glsl": "glsl vert frag geom",
        "go": "go",
        "groovy": "groovy gradle",
        "haskell": "hs lhs",
        "hcl": "tf hcl tfvars",
        "idris": "idr",
        "java": "java",
        "javascript": "js mjs cjs jsx",
        "julia": "jl",
        "kotlin": "kt kts",
        "lean": "lean",
        "lua": "lua",
        "makefile": "mk mak",
        "matlab": "matlab",
        "mojo": "mojo",
        "nim": "nim nims",
        "nix": "nix",
        "objective-c": "m",
        "objective-c++": "mm",
        "ocaml": "ml mli",
        "pascal": "pas pp dpr",
        "perl": "pl pm t",
        "php": "php phtml php5",
        "powershell": "ps1 psm1 psd1",
        "prolog": "pro prolog",
        "protocol buffer": "proto",
        "python": "py pyi pyw",
        "r": "r",
        "racket": "rkt",
        "ruby": "rb rake gemspec",
        "rust": "rs",
        "sas": "sas",
        "scala": "scala sc sbt",
        "scheme": "scm ss sld",
        "shell": "sh bash zsh ksh",
        "solidity": "sol",
        "sql": "sql",
        "standard ml": "sml sig fun",
        "starlark": "bzl star",
        "svelte": "svelte",
        "swift": "swift",
        "systemverilog": "sv svh",
        "tcl": "tcl",
        "thrift": "thrift",
        "tsx": "tsx",
        "typescript": "ts mts cts",
        "verilog": "v vh",
        "vhdl": "vhd vhdl",
        "vim script": "vim",
        "visual basic": "vb vbs bas",
        "vue": "vue",
        "wgsl": "wgsl",
        "zig": "zig",
    },
    "markup": {
        "asciidoc": "adoc asciidoc",
        "css": "css",
        "haml": "haml",
        "html": "html htm xhtml",
        "jinja": "j2 jinja jinja2",
        "less": "less",
        "markdown": "md markdown mkd mdx",
        "org": "org",
        "pug": "pug jade",
        "restructuredtext": "rst rest",
        "sass": "sass",
        "scss": "scss",
        "stylus": "styl",
        "svg": "svg",
        "tex": "tex sty cls bib ltx",
        "textile": "textile",
        "xml": "xml xsd xsl xslt wsdl plist csproj",
    },
    "adjacent": {
        "diff": "diff patch",
        "git commit": "",
        "github issue": "",
        "jupyter notebook": "ipynb",
        "stack exchange": "",
    },
    "data": {
        "csv": "csv",
        "dotenv": "env",
        "graphql": "graphql gql",
        "ini": "ini cfg conf properties",
        "json": "json jsonl geojson webmanifest",
        "toml": "toml",
        "tsv": "tsv",
        "yaml": "yaml yml",
    },
    "prose": {"text": "txt text"},
}
_NAMES = {
    "cmakelists.txt": "cmake",
    "containerfile": "dockerfile",
    "dockerfile": "dockerfile",
    "gemfile": "ruby",
    "gnumakefile": "makefile",
    "jenkinsfile": "groovy",
    "makefile": "makefile",
    "pkgbuild": "shell",
    "rakefile": "ruby",
    "build.bazel": "starlark",
    "sconstruct": "python",
    "vagrantfile": "ruby",
    ".bashrc": "shell",
    ".env": "dotenv",
    ".netrc": "ini",
    ".npmrc": "ini",
    ".profile": "shell",
    ".pypirc": "ini",
    ".zshrc": "shell",
    "credentials": "ini",
    "license": "text",
    "copying": "text",
    "readme": "text",
}
"""Files whose whole name says what they are, lower case."""
_ALIASES = {
    "bash": "shell",
    "bat": "batchfile",
    "c-sharp": "c#",
    "commits": "git commit",
    "cplusplus": "c++",
    "cpp": "c++",
    "csharp": "c#",
    "docker": "dockerfile",
    "emacs-lisp": "emacs lisp",
    "f-sharp": "f#",
    "fsharp": "f#",
    "git-commits": "git commit",
    "git-commits-cleaned": "git commit",
    "github-issues": "github issue",
    "github-issues-filtered-structured": "github issue",
    "golang": "go",
    "hpp": "c++",
    "issues": "github issue",
    "js": "javascript",
    "jsx": "javascript",
    "jupyter": "jupyter notebook",
    "latex": "tex",
    "make": "makefile",
    "md": "markdown",
    "notebook": "jupyter notebook",
    "objc": "objective-c",
    "objectivec": "objective-c",
    "plain text": "text",
    "plaintext": "text",
    "protobuf": "protocol buffer",
    "py": "python",
    "python3": "python",
    "rs": "rust",
    "rst": "restructuredtext",
    "sh": "shell",
    "stackexchange": "stack exchange",
    "ts": "typescript",
    "viml": "vim script",
    "visual basic .net": "visual basic",
    "yml": "yaml",
    "zsh": "shell",
    # natural languages that corpora write out
    "arabic": "ar",
    "chinese": "zh",
    "czech": "cs",
    "dutch": "nl",
    "english": "en",
    "eng": "en",
    "french": "fr",
    "german": "de",
    "hindi": "hi",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "polish": "pl",
    "portuguese": "pt",
    "russian": "ru",
    "spanish": "es",
    "turkish": "tr",
    "ukrainian": "uk",
    "vietnamese": "vi",
}
_CLASSES: dict[str, LanguageClass] = {language: kind for kind, languages in _SUFFIXES.items() for language in languages}
_BY_SUFFIX = {
    suffix: language for languages in _SUFFIXES.values() for language, suffixes in languages.items() for suffix in suffixes.split()
}
# Of ISO 639-3 those that the identifier of data_prep.steps.language knows.
_NATURAL_CODES = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu fa
ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr
ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl
ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur
uz ve vi vo wa wo xh yi yo za zh zu als arz ast azb bar bcl bpy bxr cbk ceb ckb diq dsb eml frr gom hbs hif hsb ilo jbo krc lez
lmo lrc mai mhr min mrj mwl myv mzn nah nap nds new pam pfl pms pnb rue sah scn sco tyv vec vep vls war wuu xal xmf yue
"""
_NATURAL_LANGUAGES = frozenset(_NATURAL_CODES.split())
# Names that rows may carry and that no table above has, though they look like a misspelling of one that stands there.
_NO_MISSPELLINGS = frozenset(["jav", "json5", "les", "objective-j", "per", "perl6", "purescript", "rus", "yam"])
_NEAR = 0.82
# A code, maybe with a script or region ('en-US', 'zh_Hant'), which is left away.
_NATURAL = re.compile(r"([a-z]{2,3})(?:[-_][a-z0-9]{2,8})*")


def normalised(name: str) -> str:
    """The one spelling of a language's name: 'C++', 'cpp' and 'CPlusPlus' are 'c++'; 'en-US' and 'English' are 'en'.

    A name that is not known stays as it is, in lower case.
    """
    name = name.strip().lower()
    if name in _CLASSES:
        return name
    if name in _ALIASES:
        return _ALIASES[name]
    spaced = name.replace("-", " ").replace("_", " ")
    if spaced in _CLASSES:
        return spaced
    natural = _NATURAL.fullmatch(name)
    return natural[1] if natural and natural[1] in _NATURAL_LANGUAGES else name


def by_path(path: str) -> str | None:
    """The language that a path's name or suffix stands for; None where it stands for none that is known."""
    file = PurePosixPath(path.lower())
    if file.name in _NAMES:
        return _NAMES[file.name]
    if file.name.startswith("dockerfile."):
        return "dockerfile"
    return _BY_SUFFIX.get(file.suffix[1:]) if file.suffix else None


def language_class(name: str) -> LanguageClass | None:
    """What a language (normalised) is: 'code', 'markup', 'adjacent', 'data' or 'prose'; None for a name that is not known."""
    known = _CLASSES.get(name)
    if known is not None:
        return known
    return "prose" if name in _NATURAL_LANGUAGES else None


def near_names(name: str) -> list[str]:
    """Known names that a name which is not known may be a misspelling of, the nearest first; none for one that is known.

    Codes of natural languages are not among them: with two or three letters each is near to any other.
    """
    name = normalised(name)
    if language_class(name) is not None or name in _NO_MISSPELLINGS:
        return []
    near = difflib.get_close_matches(name, [*_CLASSES, *_ALIASES], n=3, cutoff=_NEAR)
    return list(dict.fromkeys(map(normalised, near)))


def document_language(document: Document) -> str | None:
    """The language of a document: what its row says, else what its path's suffix says; normalised. None: neither says."""
    if document.language:
        return normalised(document.language)
    return by_path(document.path) if document.path else None
