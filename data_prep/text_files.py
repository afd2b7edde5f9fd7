"""Whole files below folders: one document a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.documents import Document, Tally, each_once, unique_names
from megatron_codemix.config import SourceSpec
from megatron_codemix.errors import UserError

_UNIT_BYTES = 4 << 20


@dataclass(slots=True)
class FilesUnit:
    """Some files of a source."""

    source: str
    spec: SourceSpec
    files: list[tuple[str, str]]
    """(path, source-relative name)."""
    input_bytes: int

    def documents(self, tally: Tally) -> Iterator[Document]:
        """See `Unit.documents`."""
        for path, name in self.files:
            try:
                text = Path(path).read_bytes().decode("utf-8")
            except UnicodeDecodeError as error:
                # without a list of suffixes, files that are no text (images, archives) are not a mistake
                if self.spec.on_undecodable == "skip" or not self.spec.suffixes:
                    tally.skipped["undecodable"] += 1
                    continue
                line = error.object.count(b"\n", 0, error.start) + 1
                raise UserError(
                    f"{path}:{line}: not valid UTF-8 ({error.reason}); mend the file, or set sources.{self.source}.on_undecodable: skip"
                ) from None
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from None
            yield Document(name, text)


class FilesSource:
    """Files and folders; links to folders are not followed."""

    def __init__(self, name: str, spec: SourceSpec) -> None:
        self.name, self.spec = name, spec

    def _wanted(self, file: str) -> bool:
        return not self.spec.suffixes or file.endswith(tuple(self.spec.suffixes))

    def _files(self) -> list[tuple[Path, Path]]:
        found: list[tuple[Path, Path]] = []
        for path in self.spec.paths:
            if path.is_file():
                found.append((path, path))
            elif path.is_dir():
                for folder, folders, names in os.walk(path):
                    folders[:] = sorted(name for name in folders if name != ".git")
                    files = (Path(folder, name) for name in sorted(names) if self._wanted(name))
                    found += [(path, file) for file in files if file.is_file()]
            else:
                raise UserError(f"sources.{self.name}.paths: {path}: no such file or folder; check the path")
        if not found:
            wanted = f" that ends in {', '.join(self.spec.suffixes)}" if self.spec.suffixes else ""
            raise UserError(f"sources.{self.name}.paths: no file{wanted} in {', '.join(map(str, self.spec.paths))}; check the paths")
        return each_once(self.name, found)

    def inputs(self) -> list[tuple[str, int]]:
        """See `Source.inputs`."""
        files = self._files()
        return [(name, file.stat().st_size) for name, (_, file) in zip(unique_names(files), files, strict=True)]

    def units(self) -> Iterator[FilesUnit]:
        """See `Source.units`: files in groups of some 4 MiB."""
        files = self._files()
        batch: list[tuple[str, str]] = []
        size = 0
        for name, (_, file) in zip(unique_names(files), files, strict=True):
            batch.append((str(file), name))
            size += file.stat().st_size
            if size >= _UNIT_BYTES or len(batch) >= 1000:
                yield FilesUnit(self.name, self.spec, batch, size)
                batch, size = [], 0
        if batch:
            yield FilesUnit(self.name, self.spec, batch, size)
