"""Repositories found, opened without trust, and the files of a commit listed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pygit2

from data_prep.documents import unicode_path
from data_prep.sources.inputs import is_folder
from megatron_codemix.errors import UserError

_FOLDER, _LINK, _SUBMODULE = 0o040000, 0o120000, 0o160000
_MOST_DEPTH, _MOST_ENTRIES = 200, 20_000_000
_OUTSIDE = ("objects/info/alternates", "objects/info/http-alternates", "commondir")
_READ = ("objects", "refs", "info", "logs")
"""Folders of a repository that libgit2 reads, besides the files at its top."""
_NEVER_READ = ("hooks",)
_INCLUDE = re.compile(rb"\[\s*include", re.IGNORECASE)
_MOST_CONFIG_BYTES, _MOST_POINTER_BYTES = 1 << 20, 1 << 14


class Hostile(Exception):
    """A repository that is not what an honest one is, in words."""


class Entry(NamedTuple):
    """One file of a commit."""

    path: str
    what: Literal["file", "link, not followed", "submodule", "unsafe path"]
    id: pygit2.Oid


def find_repositories(source: str, path: Path) -> list[Path]:
    """`path` itself where it is a repository (bare or not), else those in the folders below it, in order.

    Below it, links are not followed, and `.git` files (of submodules and work trees) are no repositories: they lead elsewhere.
    Raises UserError where there is none.
    """
    if not is_folder(source, path):
        raise UserError(f"sources.{source}.paths: {path}: not a folder; check the path")
    if _is_bare(path) or os.path.exists(path / ".git"):
        return [path]
    found = list(_below(path, 0))
    if not found:
        raise UserError(f"sources.{source}.paths: {path}: no git repository in it; check the path, or set kind: files")
    return found


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted((entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); check the folder") from None
    for entry in entries:
        path = Path(entry.path)
        if _is_bare(path) or (os.path.isdir(path / ".git") and not (path / ".git").is_symlink()):
            yield path
        elif depth < _MOST_DEPTH:
            yield from _below(path, depth + 1)


def _is_bare(path: Path) -> bool:
    return os.path.isfile(path / "HEAD") and os.path.isdir(path / "objects") and os.path.isdir(path / "refs")


def open_repository(path: Path) -> pygit2.Repository:
    """Open a repository for reading. Raises GitError or OSError where it is none, Hostile where parts of it lie outside it."""
    inner = _inner(path)
    _check_inside(inner)
    # Whose folder it is matters to programs that run what its configuration says; here nothing is run.
    pygit2.settings.owner_validation = False
    pygit2.settings.mwindow_size = 16 << 20
    pygit2.settings.mwindow_mapped_limit = 64 << 20
    pygit2.settings.cache_max_size(32 << 20)
    return pygit2.Repository(str(inner), pygit2.enums.RepositoryOpenFlag.NO_SEARCH | pygit2.enums.RepositoryOpenFlag.NO_DOTGIT)


def _inner(path: Path) -> Path:
    """The folder that holds a repository's objects: itself, its `.git`, or what the file `.git` of a submodule names."""
    if not os.path.lexists(path / ".git"):
        return path
    if os.path.isdir(path / ".git"):
        return path / ".git"
    pointer = _content(path / ".git", _MOST_POINTER_BYTES)
    if not pointer.startswith(b"gitdir:"):
        raise Hostile("its .git is neither a folder nor names one; make a clone of it")
    return path / os.fsdecode(pointer.removeprefix(b"gitdir:").strip())


def _check_inside(folder: Path) -> None:
    """Raises Hostile unless all that libgit2 reads in a repository are files and folders of it. Looked at before anything is opened: a
    link leads out of it, and whoever opens a pipe waits for ever."""
    for name in _OUTSIDE:
        if os.path.lexists(folder / name):
            raise Hostile(f"borrows objects from another repository ({name}); clone it anew without --shared and --reference")
    pending = [""]
    while pending:
        below = pending.pop()
        for entry in os.scandir(folder / below):
            name = below + entry.name
            if entry.is_dir(follow_symlinks=False):
                if below or entry.name in _READ:
                    pending.append(f"{name}/")
            elif name in _NEVER_READ or entry.is_file(follow_symlinks=False):
                continue
            elif entry.is_symlink():
                raise Hostile(f"its {name} is a link; make a clone of it")
            elif below or not stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):  # git's own daemon has one, and none can be opened
                raise Hostile(f"its {name} is neither a file nor a folder; make a clone of it")
    for name in ("config", "config.worktree"):
        if os.path.lexists(folder / name) and _INCLUDE.search(_content(folder / name, _MOST_CONFIG_BYTES)):
            raise Hostile(f"its {name} includes other files; make a clone of it")


def _content(file: Path, most: int) -> bytes:
    """A small file. Raises Hostile where it is none."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as handle:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            raise Hostile(f"its {file.name} is no file, or has more than {most:,} bytes; make a clone of it")
        return handle.read()


def committed(repository: pygit2.Repository, revision: str) -> pygit2.Commit | None:
    """The commit that `revision` names; None for HEAD of a repository without commits. Raises Hostile for an unknown revision."""
    try:
        return repository.revparse_single(revision).peel(pygit2.Commit)
    except (KeyError, ValueError, pygit2.GitError):
        if revision == "HEAD" and repository.head_is_unborn:
            return None
        raise Hostile(f"has no commit named '{revision}'") from None


def walk_tree(tree: pygit2.Tree) -> Iterator[Entry]:
    """Everything in a commit's tree but folders, in the order in which git keeps it.

    Raises Hostile for a tree that is deeper or has more entries than any honest one.
    """
    seen = 0
    stack: list[tuple[bytes, Iterator[pygit2.Object]]] = [(b"", iter(tree))]
    while stack:
        prefix, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        seen += 1
        if seen > _MOST_ENTRIES or len(stack) > _MOST_DEPTH:
            raise Hostile(f"its tree is deeper than {_MOST_DEPTH} folders or has more than {_MOST_ENTRIES:,} files")
        raw = entry.raw_name or b""
        path = unicode_path(prefix + raw)
        if raw in (b"", b".", b"..") or b"/" in raw or raw.lower() == b".git":
            yield Entry(path, "unsafe path", entry.id)
        elif entry.filemode == _FOLDER:
            stack.append((prefix + raw + b"/", iter(entry)))  # type: ignore[arg-type]
        elif entry.filemode == _LINK:
            yield Entry(path, "link, not followed", entry.id)
        elif entry.filemode == _SUBMODULE:
            yield Entry(path, "submodule", entry.id)
        else:
            yield Entry(path, "file", entry.id)
