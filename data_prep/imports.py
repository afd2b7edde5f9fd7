"""Which files of a repository a file imports, by the import statements of its language.

Found by line patterns, not by parsing: a statement that stands in a string costs a superfluous edge, never a wrong document.
What lies outside the repository (a library) is no edge.
"""

from __future__ import annotations

import posixpath
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from data_prep.syntax import grammar_of

_PYTHON = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*)[ \t]*([\w.]*)[ \t]+import[ \t]*(\([^)]*\)|[^\n#;]*)|import[ \t]+([^\n#;]+))",
    re.MULTILINE,
)
_CONTINUED = re.compile(r"\\\r?\n")
_ECMASCRIPT = re.compile(
    r"""(?:\bfrom[ \t]*|\bimport[ \t]*\(?[ \t]*|\brequire[ \t]*\([ \t]*)["']([^"'\n]+)["']""",
)
_JAVA = re.compile(r"^[ \t]*import[ \t]+(static[ \t]+)?([\w.]+(?:\.\*)?)[ \t]*;", re.MULTILINE)
_GO_BLOCK = re.compile(r"^import[ \t]*(?:\(([^)]*)\)|(?:[\w.]+[ \t]+)?\"([^\"\n]+)\")", re.MULTILINE)
_GO_PATH = re.compile(r"[\"`]([^\"`\n]+)[\"`]")
_RUST_MODULE = re.compile(r"^[ \t]*(?:pub(?:\([^)]*\))?[ \t]+)?mod[ \t]+(\w+)[ \t]*;", re.MULTILINE)
_RUST_USE = re.compile(r"^[ \t]*(?:pub(?:\([^)]*\))?[ \t]+)?use[ \t]+((?:crate|self|super)::[^;]*);", re.MULTILINE)
_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*([\"<])([^\">\n]+)[\">]", re.MULTILINE)

_ECMASCRIPT_ENDS = ("", ".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mjs", ".cjs", ".mts", ".cts")
_INDEX_ENDS = tuple(f"/index{end}" for end in _ECMASCRIPT_ENDS[1:])
_MOST_SUFFIX_PARTS = 12
_MOST_USES = 1000
_MOST_MEMBERS = 32


class Files:
    """The paths of a repository's files, to look up what an import names; each look-up in the time of a path's depth."""

    def __init__(self, paths: Sequence[str]) -> None:
        """paths: of the repository's files with '/' between parts; the same path twice names the first."""
        self.places: dict[str, int] = {}
        self.packages: list[set[int]] = []
        """Members of large packages; an import of the k-th one is one of place `len(paths) + k`."""
        self._number = len(paths)
        self._by_end: defaultdict[str, list[str]] = defaultdict(list)
        self._modules: dict[str, list[str]] = {}
        self._folders: defaultdict[str, list[str]] = defaultdict(list)
        self._folders_by_end: defaultdict[str, list[str]] = defaultdict(list)
        self._packages: dict[tuple[str, str], set[int]] = {}
        for place, path in enumerate(paths):
            self.places.setdefault(path, place)
        for path in sorted(self.places):
            for end in _ends(path):
                self._by_end[end].append(path)
            self._folders[posixpath.dirname(path)].append(path)
        for folder in self._folders:
            for end in _ends(folder):
                self._folders_by_end[end].append(folder)

    def exact(self, folder: str, name: str, ends: Iterable[str] = ("",)) -> str | None:
        """The file FOLDER/NAME+END of the first end that there is; None also where it leads out of the repository."""
        base = posixpath.normpath(posixpath.join(folder, name))
        if base.startswith("../") or base == "..":
            return None
        base = "" if base == "." else base
        return next((name for name in ((base + end).lstrip("/") for end in ends) if name in self.places), None)

    def ending(self, end: str, near: str) -> str | None:
        """The file whose path ends with the parts of `end`: of several the one that shares most leading folders with `near`."""
        return _nearest(self._by_end.get(end, []), near)

    def module(self, end: str, near: str) -> str | None:
        """The same of those below a folder that is no package of Python itself: a source root."""
        if end not in self._modules:
            found = self._by_end.get(end, [])
            self._modules[end] = [path for path in found if f"{path[: len(path) - len(end)]}__init__.py" not in self.places]
        return _nearest(self._modules[end], near)

    def folders(self, end: str) -> list[str]:
        """The folders whose path ends with the parts of `end`."""
        return self._folders_by_end.get(end, [])

    def package(self, folder: str, language: str) -> set[int]:
        """Places of the files of Go or Java right in a folder, without tests of Go; of many the one place that stands for them."""
        key = (folder, language)
        if key not in self._packages:
            names = (path for path in self._folders.get(folder, ()) if path.endswith(f".{language}") and not path.endswith("_test.go"))
            members = {self.places[path] for path in names}
            if len(members) > _MOST_MEMBERS:
                self.packages.append(members)
                members = {self._number + len(self.packages) - 1}
            self._packages[key] = members
        return self._packages[key]


def _ends(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[-length:]) for length in range(1, min(len(parts), _MOST_SUFFIX_PARTS) + 1))


def _nearest(paths: list[str], near: str) -> str | None:
    """Of ascending paths `near` itself, else the first of those that share most leading folders with it."""
    folder = near
    while True:
        begin = folder if folder == near else f"{folder}/" if folder else ""
        place = bisect_left(paths, begin)
        if place < len(paths) and (paths[place].startswith(begin) if folder != near else paths[place] == near):
            return paths[place]
        parent = posixpath.dirname(folder)
        if not folder or parent == folder:
            return None
        folder = parent


def imported(files: Files, path: str, text: str, language: str | None) -> set[int]:
    """Places (in the list that `files` was made of, or behind it: `Files.packages`) of what this file imports, itself left out."""
    grammar = grammar_of(language, path)
    if grammar is None:
        return set()
    found: set[int] = set()
    for one in _FINDERS[grammar.name](files, path, text):
        found |= {files.places[one]} if isinstance(one, str) else one
    return found - {files.places.get(path, -1)}


def _python(files: Files, path: str, text: str) -> Iterator[str]:
    folder = posixpath.dirname(path)
    for dots, module, names, modules in _PYTHON.findall(_CONTINUED.sub(" ", text)):
        if modules:
            for module in modules.split(","):
                if found := _python_module(files, path, (module.split() or [""])[0].replace(".", "/")):
                    yield found
            continue
        taken = [(name.split() or [""])[0] for name in names.strip("() \t").split(",")]
        start = folder
        for _ in dots[1:]:
            start = posixpath.dirname(start)
        for name in taken:
            inner = "/".join(part for part in (module.replace(".", "/"), name) if part and part != "*")
            outer = module.replace(".", "/")
            if not dots:
                if found := _python_module(files, path, inner) or _python_module(files, path, outer):
                    yield found
            elif found := _python_at(files, start, inner) or _python_at(files, start, outer):
                yield found


def _python_at(files: Files, folder: str, module: str) -> str | None:
    ends = (".py", "/__init__.py", ".pyi", "/__init__.pyi") if module else ("/__init__.py", "__init__.py")
    return files.exact(folder, module, ends)


def _python_module(files: Files, path: str, module: str) -> str | None:
    """The file of an absolute module."""
    module = module.strip("/")
    while module:
        if found := files.module(f"{module}.py", path) or files.module(f"{module}/__init__.py", path):
            return found
        module = posixpath.dirname(module)
    return None


def _ecmascript(files: Files, path: str, text: str) -> Iterator[str]:
    folder = posixpath.dirname(path)
    for name in _ECMASCRIPT.findall(text):
        base = folder if name.startswith(".") else ""
        ends = (*_ECMASCRIPT_ENDS, *_INDEX_ENDS)
        # modules of TypeScript import './a.js' where there is './a.ts'
        stem = re.sub(r"\.[mc]?jsx?$", "", name)
        if found := files.exact(base, name, ends) or files.exact(base, stem, ends):
            yield found


def _java(files: Files, path: str, text: str) -> Iterator[str | set[int]]:
    for static, name in _JAVA.findall(text):
        parts = name.split(".")
        if parts[-1] == "*" and not static:
            yield from (files.package(folder, "java") for folder in files.folders("/".join(parts[:-1])))
            continue
        # a static import names a member, an import may name an inner class
        for length in range(len(parts), max(len(parts) - 3, 0), -1):
            if found := files.ending("/".join(parts[:length]) + ".java", path):
                yield found
                break


def _go(files: Files, path: str, text: str) -> Iterator[set[int]]:
    for block, single in _GO_BLOCK.findall(text):
        for name in [single] if single else _GO_PATH.findall(block):
            parts = name.split("/")
            found = (files.package("/".join(parts[start:]), "go") for start in range(len(parts)))
            yield next((members for members in found if members), set())


def _rust(files: Files, path: str, text: str) -> Iterator[str]:
    folder, name = posixpath.split(path)
    own = folder if name in ("mod.rs", "lib.rs", "main.rs") else posixpath.join(folder, name.removesuffix(".rs"))
    root = folder
    while root and posixpath.basename(root) != "src":
        root = posixpath.dirname(root)
    for module in _RUST_MODULE.findall(text):
        if found := files.exact(own, module, (".rs", "/mod.rs")):
            yield found
    for use in _RUST_USE.findall(text):
        for parts in _rust_paths("".join(use.split())):
            start = {"crate": root, "self": own, "super": posixpath.dirname(own)}[parts[0]]
            rest = parts[1:]
            while rest and rest[0] == "super":
                start, rest = posixpath.dirname(start), rest[1:]
            for length in range(len(rest), 0, -1):
                if found := files.exact(start, "/".join(rest[:length]), (".rs", "/mod.rs")):
                    yield found
                    break


def _rust_paths(use: str) -> list[list[str]]:
    """`crate::{a::b,c}` → [[crate, a, b], [crate, c]]."""
    prefixes: list[str] = [""]
    found, name = [], ""
    for character in use + ",":
        if character == "{":
            prefixes.append(prefixes[-1] + name)
            name = ""
        elif character in ",}":
            if name:
                found.append((prefixes[-1] + name).split("::"))
            name = ""
            if character == "}" and len(prefixes) > 1:
                prefixes.pop()
        else:
            name += character
        if len(found) > _MOST_USES:
            break
    return found


def _c(files: Files, path: str, text: str) -> Iterator[str]:
    folder = posixpath.dirname(path)
    for quote, name in _INCLUDE.findall(text):
        found = files.exact(folder, name) if quote == '"' else None
        # <vector> is no file of the repository, <project/part.h> may be
        if found is None and (quote == '"' or "/" in name):
            found = files.ending(posixpath.normpath(name), path)
        if found:
            yield found


_FINDERS: dict[str, Callable[[Files, str, str], Iterator[str | set[int]]]] = {
    "python": _python,
    "javascript": _ecmascript,
    "typescript": _ecmascript,
    "tsx": _ecmascript,
    "java": _java,
    "go": _go,
    "rust": _rust,
    "c": _c,
    "cpp": _c,
}
