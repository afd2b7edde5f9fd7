"""Which files of a repository a file imports, by the import statements of its language.

Found by line patterns, not by parsing: a statement that stands in a string costs a superfluous edge, never a wrong document.
What lies outside the repository (a library) is no edge.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from data_prep.syntax import grammar_of

_PYTHON = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*)[ \t]*([\w.]*)[ \t]+import[ \t]*(\([^)]*\)|[^\n#;]*)|import[ \t]+([^\n#;]+))",
    re.MULTILINE,
)
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


class Files:
    """The paths of a repository's files, to look up what an import names."""

    def __init__(self, paths: Sequence[str]) -> None:
        """paths: of the repository's files with '/' between parts; the same path twice names the first."""
        self.places: dict[str, int] = {}
        self._by_end: defaultdict[str, list[str]] = defaultdict(list)
        self._folders: defaultdict[str, list[str]] = defaultdict(list)
        for place, path in enumerate(paths):
            if path in self.places:
                continue
            self.places[path] = place
            parts = path.split("/")
            for length in range(1, min(len(parts), _MOST_SUFFIX_PARTS) + 1):
                self._by_end["/".join(parts[-length:])].append(path)
            self._folders[posixpath.dirname(path)].append(path)

    def exact(self, folder: str, name: str, ends: Iterable[str] = ("",)) -> str | None:
        """The file FOLDER/NAME+END of the first end that there is; None also where it leads out of the repository."""
        base = posixpath.normpath(posixpath.join(folder, name))
        if base.startswith("../") or base == "..":
            return None
        base = "" if base == "." else base
        return next((name for name in ((base + end).lstrip("/") for end in ends) if name in self.places), None)

    def ending(self, end: str, near: str) -> list[str]:
        """Files whose path ends with the parts of `end`, those that share more leading folders with `near` first."""
        return sorted(self._by_end.get(end, ()), key=lambda path: (-len(posixpath.commonpath(["/" + path, "/" + near])), path))

    def folder(self, folder: str) -> list[str]:
        """The files right in a folder."""
        return self._folders.get(folder, [])


def imported(files: Files, path: str, text: str, language: str | None) -> set[int]:
    """Places (in the list that `files` was made of) of the files that this one imports, itself left out."""
    grammar = grammar_of(language, path)
    if grammar is None:
        return set()
    found = {files.places[name] for name in _FINDERS[grammar.name](files, path, text)}
    return found - {files.places.get(path, -1)}


def _python(files: Files, path: str, text: str) -> Iterator[str]:
    folder = posixpath.dirname(path)
    for dots, module, names, modules in _PYTHON.findall(text):
        if modules:
            for module in modules.split(","):
                yield from _python_module(files, path, (module.split() or [""])[0].replace(".", "/"))
            continue
        taken = [(name.split() or [""])[0] for name in names.strip("() \t").split(",")]
        start = folder
        for _ in dots[1:]:
            start = posixpath.dirname(start)
        for name in taken:
            inner = "/".join(part for part in (module.replace(".", "/"), name) if part and part != "*")
            outer = module.replace(".", "/")
            if not dots:
                yield from _python_module(files, path, inner) or _python_module(files, path, outer)
            elif found := _python_at(files, start, inner) or _python_at(files, start, outer):
                yield found


def _python_at(files: Files, folder: str, module: str) -> str | None:
    ends = (".py", "/__init__.py", ".pyi", "/__init__.pyi") if module else ("/__init__.py", "__init__.py")
    return files.exact(folder, module, ends)


def _python_module(files: Files, path: str, module: str) -> list[str]:
    """The file of an absolute module: below a folder that is no package itself (a source root)."""
    module = module.strip("/")
    while module:
        for end in (f"{module}.py", f"{module}/__init__.py"):
            for found in files.ending(end, path):
                root = found[: len(found) - len(end)]
                if f"{root}__init__.py" not in files.places:
                    return [found]
        module = posixpath.dirname(module)
    return []


def _ecmascript(files: Files, path: str, text: str) -> Iterator[str]:
    folder = posixpath.dirname(path)
    for name in _ECMASCRIPT.findall(text):
        base = folder if name.startswith(".") else ""
        ends = (*_ECMASCRIPT_ENDS, *_INDEX_ENDS)
        # modules of TypeScript import './a.js' where there is './a.ts'
        stem = re.sub(r"\.[mc]?jsx?$", "", name)
        if found := files.exact(base, name, ends) or files.exact(base, stem, ends):
            yield found


def _java(files: Files, path: str, text: str) -> Iterator[str]:
    for static, name in _JAVA.findall(text):
        parts = name.split(".")
        if parts[-1] == "*" and not static:
            package = "/".join(parts[:-1])
            for folder in {posixpath.dirname(found) for found in files.places if posixpath.dirname(found).endswith(package)}:
                if folder == package or folder.endswith("/" + package):
                    yield from (found for found in files.folder(folder) if found.endswith(".java"))
            continue
        # a static import names a member, an import may name an inner class
        for length in range(len(parts), max(len(parts) - 3, 0), -1):
            if found := files.ending("/".join(parts[:length]) + ".java", path):
                yield found[0]
                break


def _go(files: Files, path: str, text: str) -> Iterator[str]:
    for block, single in _GO_BLOCK.findall(text):
        for name in [single] if single else _GO_PATH.findall(block):
            parts = name.split("/")
            for start in range(len(parts)):
                if found := [
                    file for file in files.folder("/".join(parts[start:])) if file.endswith(".go") and not file.endswith("_test.go")
                ]:
                    yield from found
                    break


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
            found = next(iter(files.ending(posixpath.normpath(name), path)), None)
        if found:
            yield found


_FINDERS: dict[str, Callable[[Files, str, str], Iterator[str]]] = {
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
