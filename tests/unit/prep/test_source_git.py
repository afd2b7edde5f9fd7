"""Repositories: what is committed at a revision, and nothing that lies elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pygit2
import pytest
from identify.vendor.licenses import LICENSES

from data_prep.documents import Document, Tally
from data_prep.sources import open_source
from data_prep.sources.license_file import license_of
from megatron_codemix.config import SourceSpec
from megatron_codemix.errors import UserError

MIT = dict(LICENSES)["MIT"].replace("[year]", "2024").replace("[fullname]", "A. Nyone")
AUTHOR = pygit2.Signature("A", "a@example.org", 1_700_000_000, 0)


def raw_tree(repository: pygit2.Repository, entries: list[tuple[int, bytes, pygit2.Oid]]) -> pygit2.Oid:
    """A tree object as it is, without the checks of honest tools."""
    content = b"".join(b"%o %s\0" % (mode, name) + identity.raw for mode, name, identity in entries)
    return repository.odb.write(pygit2.enums.ObjectType.TREE, content)


def commit_tree(repository: pygit2.Repository, tree: pygit2.Oid) -> pygit2.Oid:
    parents = [] if repository.head_is_unborn else [repository.head.target]
    return repository.create_commit("HEAD", AUTHOR, AUTHOR, "m", tree, parents)


def commit(repository: pygit2.Repository, files: dict[str, bytes], modes: dict[str, int] | None = None) -> pygit2.Oid:
    """Commit `files` (path → content) as the whole content."""

    def tree(prefix: str) -> pygit2.Oid:
        builder = repository.TreeBuilder()
        inside = {path[len(prefix) :] for path in files if path.startswith(prefix)}
        for name in sorted({path.split("/")[0] for path in inside}):
            if prefix + name in files:
                builder.insert(name, repository.create_blob(files[prefix + name]), (modes or {}).get(prefix + name, 0o100644))
            else:
                builder.insert(name, tree(f"{prefix}{name}/"), 0o040000)
        return builder.write()

    return commit_tree(repository, tree(""))


def spec(**values) -> SourceSpec:
    return SourceSpec.model_validate({"kind": "git", "modality": "code", **values})


def read(source_spec: SourceSpec, tally: Tally | None = None) -> list[Document]:
    source = open_source("s", source_spec)
    assert source.inputs()
    return [document for chunk in source.chunks() for document in chunk.documents(tally or Tally())]


def test_committed_files_at_a_revision(tmp_path: Path) -> None:
    repository = pygit2.init_repository(tmp_path / "corpus" / "owner" / "one")
    first = commit(repository, {"a.py": b"old = 1\n"})
    commit(repository, {"LICENSE": MIT.encode(), "a.py": b"new = 1\n", "src/b.py": "é = 2\n".encode(), "logo.png": b"\x89PNG\xff"})
    (tmp_path / "corpus" / "owner" / "one" / "uncommitted.py").write_text("no = 1\n")
    bare = pygit2.init_repository(tmp_path / "corpus" / "two.git", bare=True)
    commit(bare, {"c.rs": b"fn main() {}\n"})

    paths = [tmp_path / "corpus"]
    assert read(spec(paths=paths, suffixes=[".py", ".rs"])) == [
        Document("owner/one/a.py", "new = 1\n", "owner/one", "python", "MIT", "a.py"),
        Document("owner/one/src/b.py", "é = 2\n", "owner/one", "python", "MIT", "src/b.py"),
        Document("two/c.rs", "fn main() {}\n", "two", "rust", None, "c.rs"),
    ]
    tally = Tally()
    assert [document.path for document in read(spec(paths=paths), tally)] == ["LICENSE", "a.py", "src/b.py", "c.rs"]
    assert tally.skipped == {"undecodable": 1}

    [old] = read(spec(paths=[tmp_path / "corpus" / "owner" / "one"], revision=str(first)))
    assert (old.name, old.text, old.license) == ("one/a.py", "old = 1\n", None)
    inputs = open_source("s", spec(paths=paths)).inputs()
    assert inputs[0][0] == f"owner/one@{repository.head.target}"
    commit(repository, {"a.py": b"newer = 1\n"})
    assert open_source("s", spec(paths=paths)).inputs() != inputs


def test_links_submodules_and_pointers_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("outside")
    repository = pygit2.init_repository(tmp_path / "r")
    blob, link = repository.create_blob(b"x = 1\n"), repository.create_blob(str(secret).encode())
    pointer = repository.create_blob(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    inner = raw_tree(repository, [(0o100644, b"evil.py", blob)])
    tree = raw_tree(
        repository,
        [
            (0o040000, b"..", inner),
            (0o040000, b".git", inner),
            (0o100644, b"../../evil.py", blob),
            (0o100644, b"a.py", blob),
            (0o100644, b"data.bin", pointer),
            (0o120000, b"link.py", link),
            (0o160000, b"module", pygit2.Oid(hex="1" * 40)),
            (0o100644, b"nul.py", repository.create_blob(b"x\0y")),
        ],
    )
    commit_tree(repository, tree)
    tally = Tally()
    assert [document.name for document in read(spec(paths=[tmp_path / "r"]), tally)] == ["r/a.py"]
    assert tally.skipped == {
        "unsafe path": 3,
        "pointer of Git LFS": 1,
        "link, not followed": 1,
        "submodule": 1,
        "holds NUL bytes": 1,
    }


@pytest.mark.parametrize("target", [1, 120, 10**9])
def test_chunks_hold_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: int) -> None:
    monkeypatch.setattr("data_prep.sources.git.chunk_bytes", lambda total: target)
    names = []
    for number in range(4):
        files = {f"d{i % 3}/{i}.py": b"#" * (i + 1) for i in range(number * 7 + 1)}
        commit(pygit2.init_repository(tmp_path / f"r{number}"), files)
        names += sorted(f"r{number}/{name}" for name in files)
    moved: list[int] = []
    source = open_source("s", spec(paths=[tmp_path]))
    chunks = source.chunks()
    documents = [document for chunk in chunks for document in chunk.documents(Tally(), moved.append)]
    assert sorted(document.name for document in documents) == sorted(names)
    assert sum(moved) == sum(size for _, size in source.inputs()) == sum(chunk.input_bytes for chunk in chunks)
    assert len(chunks) == (1 if target == 10**9 else len(names) if target == 1 else len(chunks))


def test_objects_outside_the_repository_are_refused(tmp_path: Path) -> None:
    commit(pygit2.init_repository(tmp_path / "private"), {"key.py": b"SECRET = 1\n"})
    thief = pygit2.init_repository(tmp_path / "corpus" / "thief")
    commit(thief, {"a.py": b"a = 1\n"})
    alternates = tmp_path / "corpus" / "thief" / ".git" / "objects" / "info" / "alternates"
    alternates.write_text(str(tmp_path / "private" / ".git" / "objects"))
    with pytest.raises(UserError, match=r"thief: borrows objects .*alternates"):
        read(spec(paths=[tmp_path / "corpus"]))
    commit(pygit2.init_repository(tmp_path / "corpus" / "honest"), {"b.py": b"b = 1\n"})
    tally = Tally()
    assert [document.name for document in read(spec(paths=[tmp_path / "corpus"], on_undecodable="skip"), tally)] == ["honest/b.py"]
    assert tally.skipped == {"repository that cannot be read": 1}
    # neither a `.git` file nor a link is searched for repositories
    for name in ("worktree", "linked"):
        (tmp_path / "corpus" / name).mkdir()
    (tmp_path / "corpus" / "worktree" / ".git").write_text(f"gitdir: {tmp_path}/private/.git\n")
    (tmp_path / "corpus" / "linked" / ".git").symlink_to(tmp_path / "private" / ".git")
    (tmp_path / "corpus" / "circle").symlink_to(tmp_path / "corpus")
    assert len(read(spec(paths=[tmp_path / "corpus"], on_undecodable="skip"))) == 1
    os.rename(alternates, alternates.with_name("gone"))
    os.rename(tmp_path / "corpus" / "thief" / ".git" / "objects", tmp_path / "objects")
    (tmp_path / "corpus" / "thief" / ".git" / "objects").symlink_to(tmp_path / "objects")
    with pytest.raises(UserError, match="its objects is a link"):
        read(spec(paths=[tmp_path / "corpus" / "thief"]))


def test_links_among_the_objects_lead_nowhere(tmp_path: Path) -> None:
    private = pygit2.init_repository(tmp_path / "private")
    identity = commit(private, {"key.py": b"SECRET = 1\n"})
    objects = tmp_path / "private" / ".git" / "objects"
    for name in ("folders", "files", "head"):
        thief = tmp_path / "corpus" / name
        commit(pygit2.init_repository(thief), {"a.py": b"a = 1\n"})
        for folder in objects.glob("??"):
            mine = thief / ".git" / "objects" / folder.name
            if name == "folders" and not mine.exists():
                mine.symlink_to(folder)
            elif name == "files":
                mine.mkdir(exist_ok=True)
                for file in folder.iterdir():
                    (mine / file.name).symlink_to(file)
        branch = thief / ".git" / (thief / ".git" / "HEAD").read_text().split()[1]
        if name == "head":
            branch.unlink()
            branch.symlink_to(tmp_path / "private" / ".git" / "HEAD")
        else:
            branch.write_text(f"{identity}\n")
        with pytest.raises(UserError, match=rf"{name}: its (objects|refs)/.* is a link; make a clone of it"):
            read(spec(paths=[thief]))
    tally = Tally()
    commit(pygit2.init_repository(tmp_path / "corpus" / "honest"), {"b.py": b"b = 1\n"})
    (tmp_path / "corpus" / "honest" / ".git" / "hooks").rename(tmp_path / "hooks")
    (tmp_path / "corpus" / "honest" / ".git" / "hooks").symlink_to(tmp_path / "hooks")  # nothing is run
    assert [document.name for document in read(spec(paths=[tmp_path / "corpus"], on_undecodable="skip"), tally)] == ["honest/b.py"]
    assert tally.skipped == {"repository that cannot be read": 3}


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "place", ["config", "packed-refs", "shallow", "info/grafts", "objects/info/commit-graph", "object", "refs/heads/x", "x"]
)
def test_pipes_in_a_repository_are_not_waited_for(tmp_path: Path, place: str) -> None:
    repository = pygit2.init_repository(tmp_path / "r")
    commit(repository, {"a.py": b"a = 1\n"})
    identity = str(pygit2.hash(b"a = 1\n"))
    file = tmp_path / "r" / ".git" / (f"objects/{identity[:2]}/{identity[2:]}" if place == "object" else place)
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    with pytest.raises(UserError, match=r"r: its .* is neither a file nor a folder"):
        read(spec(paths=[tmp_path / "r"], revision="x" if place == "x" else "HEAD"))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "section", ["[include]\n\tpath = PIPE", "[core] [Include] path=PIPE", '[includeIf "gitdir:/"]\npath=PIPE', "[include.x]\npath=PIPE"]
)
def test_configurations_that_include_others_are_refused(tmp_path: Path, section: str) -> None:
    commit(pygit2.init_repository(tmp_path / "r"), {"a.py": b"a = 1\n"})
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "r" / ".git" / "config", "a") as config:
        config.write(section.replace("PIPE", str(tmp_path / "pipe")) + "\n")
    with pytest.raises(UserError, match=r"r: its config includes other files; make a clone of it"):
        read(spec(paths=[tmp_path / "r"]))


def test_a_repository_that_a_git_file_names(tmp_path: Path) -> None:
    """A submodule's checkout, given by its own path."""
    commit(pygit2.init_repository(tmp_path / "r"), {"a.py": b"a = 1\n"})
    (tmp_path / "r" / ".git").rename(tmp_path / "inner")
    (tmp_path / "r" / ".git").write_text("gitdir: ../inner\n")
    assert [document.name for document in read(spec(paths=[tmp_path / "r"]))] == ["r/a.py"]
    (tmp_path / "inner" / "objects" / "x").symlink_to(tmp_path)
    with pytest.raises(UserError, match="its objects/x is a link"):
        read(spec(paths=[tmp_path / "r"]))


def test_names_that_are_no_unicode_stay_apart(tmp_path: Path) -> None:
    repository = pygit2.init_repository(tmp_path / "r")
    blob = repository.create_blob(b"x = 1\n")
    names = [b"\\xfe.py", b"\\xff\\xfe.py", b"\xfe.py", b"\xff\\xfe.py", b"\xff\xfe.py"]
    inner = raw_tree(repository, [(0o100644, name, blob) for name in names])
    commit_tree(repository, raw_tree(repository, [*((0o100644, name, blob) for name in names), (0o040000, b"\xff", inner)]))
    found = [document.name for document in read(spec(paths=[tmp_path / "r"], suffixes=[".py"]))]
    assert len(set(found)) == len(found) == 10
    assert "r/\\xfe.py" in found


def test_a_bomb_of_trees_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.git_tree._MOST_ENTRIES", 10_000)
    repository = pygit2.init_repository(tmp_path / "bomb")
    tree = raw_tree(repository, [(0o100644, b"a", repository.create_blob(b"boom"))])
    for _ in range(12):
        tree = raw_tree(repository, [(0o040000, b"%d" % i, tree) for i in range(10)])
    commit_tree(repository, tree)
    with pytest.raises(UserError, match=r"bomb: its tree is deeper .* or has more than 10,000 files"):
        read(spec(paths=[tmp_path]))


def test_missing_and_empty_repositories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read(spec(paths=[tmp_path / "nowhere"]))
    with pytest.raises(UserError, match="no git repository in it"):
        read(spec(paths=[tmp_path]))
    pygit2.init_repository(tmp_path / "empty")
    with pytest.raises(UserError, match="no repository with a commit"):
        read(spec(paths=[tmp_path]))
    commit(pygit2.init_repository(tmp_path / "full"), {"a.py": b"a = 1\n", "b.py": b"\n\xff\n"})
    tally = Tally()
    assert len(read(spec(paths=[tmp_path]), tally)) == 1
    assert tally.skipped == {"repository without a commit": 1, "undecodable": 1}
    with pytest.raises(UserError, match=r"full: has no commit named 'v9'"):
        read(spec(paths=[tmp_path / "full"], revision="v9"))
    with pytest.raises(UserError, match=r"full: b\.py:2: not valid UTF-8"):
        read(spec(paths=[tmp_path / "full"], suffixes=[".py"]))


def test_a_damaged_object_is_told(tmp_path: Path) -> None:
    repository = pygit2.init_repository(tmp_path / "r")
    commit(repository, {"a.py": b"a = 1\n" * 100})
    source = open_source("s", spec(paths=[tmp_path / "r"]))
    [chunk] = source.chunks()
    name = str(pygit2.hash(b"a = 1\n" * 100))
    loose = tmp_path / "r" / ".git" / "objects" / name[:2] / name[2:]
    loose.chmod(0o644)
    loose.unlink()
    with pytest.raises(UserError, match=r"r: cannot be read at commit .*git fsck"):
        list(chunk.documents(Tally()))


def test_oversized_files_are_counted(tmp_path: Path) -> None:
    commit(pygit2.init_repository(tmp_path / "r"), {"a.py": b"a" * 100, "b.py": b"b" * 101})
    tally = Tally()
    assert [document.path for document in read(spec(paths=[tmp_path / "r"], oversized_bytes=100), tally)] == ["a.py"]
    assert tally.skipped == {"larger than oversized_bytes": 1}


@pytest.mark.parametrize(
    "text",
    [
        MIT + "\nThe Software may not be used for commercial purposes.\n",
        MIT.replace("without restriction", "for non-commercial purposes"),
        MIT.replace("any person", "academic users only"),
        MIT + "\nThe Software shall be used for Good, not Evil.\n",
        "SPDX-License-Identifier: MIT\n\n" + dict(LICENSES)["GPL-3.0"],
        "This text tells how a licence is named\n\nby a tag,\n\nas in\n\nSPDX-License-Identifier: MIT\n\nThis is under another one.\n",
    ],
)
def test_licences_that_are_stricter_than_they_look(text: str) -> None:
    assert license_of(text.encode()) is None


def test_licences_that_differ_in_their_holder_alone() -> None:
    holder = "Copyright (c) 2024 Academic Research Only, Inc., not for personal use. All rights reserved.\n"
    for changed in (MIT.replace("Copyright", f"{holder}Copyright", 1), MIT.replace("\n", "\r\n"), f"# License\n\n```\n{MIT}```\n"):
        assert license_of(changed.encode()) == "MIT"
    assert license_of(b"SPDX-License-Identifier: GPL-3.0-or-later\n\n" + dict(LICENSES)["GPL-3.0"].encode()) == "GPL-3.0-or-later"
    for name, known in LICENSES:
        assert license_of(known.encode()) == name


def test_licences(tmp_path: Path) -> None:
    apache = dict(LICENSES)["Apache-2.0"]
    assert license_of(MIT.replace("Software", "software", 3).encode()) == "MIT"
    assert license_of(b"all rights reserved") is None
    assert license_of(b"// SPDX-License-Identifier: BSD-2-Clause OR MIT\n") == "BSD-2-Clause OR MIT"
    repository = pygit2.init_repository(tmp_path / "r")
    commit(repository, {"LICENSE-MIT": MIT.encode(), "LICENSE-APACHE": apache.encode(), "license.py": b"x = 1\n", "sub/COPYING": b"?"})
    assert {document.license for document in read(spec(paths=[tmp_path / "r"], suffixes=[".py"]))} == {"Apache-2.0 AND MIT"}
    commit(repository, {"LICENSE": MIT.encode(), "COPYING.txt": b"ask me", "a.py": b"x = 1\n"})
    assert {document.license for document in read(spec(paths=[tmp_path / "r"], suffixes=[".py"]))} == {"LicenseRef-unrecognised AND MIT"}


def test_two_repositories_of_one_name(tmp_path: Path) -> None:
    for folder in ("x", "x.git"):
        commit(pygit2.init_repository(tmp_path / folder, bare=folder.endswith(".git")), {"a.py": b"a = 1\n"})
    with pytest.raises(UserError, match="have the same name"):
        read(spec(paths=[tmp_path]))
