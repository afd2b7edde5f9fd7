"""The fast engine's memory is bounded, whatever words it meets, and its ids do not depend on that."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_codemix.tokenizer import Tokenizer, fast
from megatron_codemix.tokenizer.training import train_tokenizer

TEXTS = ["def f(x):\n    return x\n", "words of prose, ▁ and <|endoftext|>", "\0 nul", ""] * 30

GROWTH = """
import random, sys
from pathlib import Path
from megatron_codemix.tokenizer import Tokenizer, fast

fast._MAX_GROWTH = int(sys.argv[2])
tokenizer = Tokenizer.load(Path(sys.argv[1]))
tokenizer.encode_batch(["begin"])
generator, peak = random.Random(0), 0
begun = fast._resident()
for _ in range(500):
    words = " ".join("".join(generator.choices("abcdefghij", k=12)) for _ in range(4000))
    tokenizer.encode_batch([words])
    peak = max(peak, fast._resident() - begun)
print(peak)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    file.write_bytes(train_tokenizer(TEXTS, 424))
    return file


@pytest.mark.skipif(not fast._STATM.exists(), reason="this system does not say how large a process is")
def test_words_never_seen_before_do_not_fill_the_memory(model: Path) -> None:
    def peak(bound: int) -> int:
        command = [sys.executable, "-c", GROWTH, str(model), str(bound)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)

    bounded, unbounded = peak(8 << 20), peak(1 << 40)
    assert unbounded > 120e6  # 25 MB of words: what is bounded here is real
    assert bounded < 0.6 * unbounded


@pytest.mark.parametrize("sizes", [None, range(0, 1 << 60, 200 << 20)])
def test_starting_anew_changes_no_id(model: Path, monkeypatch: pytest.MonkeyPatch, sizes: range | None) -> None:
    tokenizer = Tokenizer.load(model)
    expected = [tokenizer.encode(text) for text in TEXTS]
    starts = []
    start_anew = fast.FastEngine._start_anew
    monkeypatch.setattr(fast.FastEngine, "_start_anew", lambda engine: (starts.append(1), start_anew(engine))[1])
    monkeypatch.setattr(fast, "_MAX_GROWTH", 1000)
    grown = iter(sizes) if sizes is not None else None
    monkeypatch.setattr(fast, "_resident", lambda: None if grown is None else next(grown))
    for _ in range(3):
        for ids, found in zip(expected, tokenizer.encode_batch(TEXTS), strict=True):
            np.testing.assert_array_equal(ids, found)
    assert len(starts) == 3


def test_the_fast_form_travels_with_a_pickle(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.load(model)
    content = pickle.dumps(tokenizer)
    copy = pickle.loads(content)  # noqa: S301 - our own bytes
    monkeypatch.setattr(type(copy.reference), "fast_form", lambda _: pytest.fail("made a second time"))
    assert copy.library == "gigatoken"
    np.testing.assert_array_equal(copy.encode_batch(["def f"])[0], tokenizer.encode("def f"))
