"""Marks what starts trainers, environments or commands as slow, so that `make check` takes about a minute.

One thread a process, before anything imports torch: tests run side by side, start processes of their own, and compare the
bits of both, which depend on how many threads share a sum.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from megatron_codemix.shards import SplitWriter
from megatron_codemix.tokenizer import Tokenizer

os.environ["OMP_NUM_THREADS"] = "1"

_SOAK_FACTOR = 10
if os.environ.get("CODEMIX_SOAK") == "1":
    _plain = hypothesis.settings.__init__

    def _with_larger_budget(self: hypothesis.settings, *args: Any, **options: Any) -> None:
        """What each test asks for, times ten; this file is imported before any of them."""
        if isinstance(options.get("max_examples"), int):
            options["max_examples"] *= _SOAK_FACTOR
        _plain(self, *args, **options)

    hypothesis.settings.__init__ = _with_larger_budget  # type: ignore[method-assign]

_SLOW = ("dist/", "gpu/", "slurm/", "unit/train/", "unit/study/", "unit/eval/", "unit/test_cli", "unit/test_compat", "unit/convert/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by place: a test file that belongs to one of these is slow as a whole."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(_SLOW):
            item.add_marker(pytest.mark.slow)


def _write_split(
    folder: Path, tokenizer: Tokenizer, texts: Sequence[str], *, modality: str = "code", licenses: Sequence[str | None] = (None,)
) -> None:
    writer = SplitWriter(
        folder,
        source=folder.parent.name,
        split=folder.name,
        modality=modality,
        token_dtype="uint16",
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
        pack_tokens=2048,
        shard_tokens=8192,
        prep={},
    )
    with writer:
        for number, text in enumerate(texts):
            ids = [*tokenizer.encode(text).tolist(), tokenizer.end_of_text_id]
            writer.add(ids, num_bytes=len(text.encode()), document_id=number, license=licenses[number % len(licenses)])


@pytest.fixture(scope="session")
def write_split() -> Callable[..., None]:
    """`write_split(SOURCE/SPLIT, tokenizer, texts, modality=, licenses=)`: shards of these documents; licences in turn."""
    return _write_split
