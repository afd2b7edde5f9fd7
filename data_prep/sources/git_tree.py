"""Repositories found, opened without trust, and the files of a commit listed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pygit2

from data_prep.sources.inputs import is_folder
from megatron_codemix.errors import UserError

_FOLDER, _LINK, _SUBMODULE = 0o040000, 0o120000, 0o160000
_MOST_DEPTH, _MOST_ENTRIES = 200, 20_000_000
_OUTSIDE = ("objects/info/alternates", "objects/info/http-alternates", "commondir")
_INSIDE = ("HEAD", "objects", "objects/info", "objects/pack", "refs", "packed-refs", "config")


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
    """Open a repository for reading. Raises GitError where it is none, Hostile where its objects lie outside it."""
    # Whose folder it is matters to programs that run what its configuration says; here nothing is run.
    pygit2.settings.owner_validation = False
    pygit2.settings.mwindow_size = 16 << 20
    pygit2.settings.mwindow_mapped_limit = 64 << 20
    pygit2.settings.cache_max_size(32 << 20)
    repository = pygit2.Repository(str(path), pygit2.enums.RepositoryOpenFlag.NO_SEARCH)
    inner = Path(repository.path)
    for name in _OUTSIDE:
        if os.path.lexists(inner / name):
            raise Hostile(f"borrows objects from another repository ({name}); clone it anew without --shared and --reference")
    for name in _INSIDE:
        if (inner / name).is_symlink():
            raise Hostile(f"its {name} is a link; make a clone of it")
    return repository


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
    stack: list[tuple[str, Iterator[pygit2.Object]]] = [("", iter(tree))]
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
        path = prefix + raw.decode("utf-8", "backslashreplace")
        if raw in (b"", b".", b"..") or b"/" in raw or raw.lower() == b".git":
            yield Entry(path, "unsafe path", entry.id)
        elif entry.filemode == _FOLDER:
            stack.append((f"{path}/", iter(entry)))  # type: ignore[arg-type]
        elif entry.filemode == _LINK:
            yield Entry(path, "link, not followed", entry.id)
        elif entry.filemode == _SUBMODULE:
            yield Entry(path, "submodule", entry.id)
        else:
            yield Entry(path, "file", entry.id)
