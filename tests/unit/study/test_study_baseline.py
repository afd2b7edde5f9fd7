"""What a study reads: the growing log, and the unigram baseline against its formula."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
import zstandard

from megatron_codemix.errors import UserError
from megatron_codemix.shards import SplitReader
from megatron_codemix.study.baseline import UnigramBaseline, read_documents, token_counts, unigram_distribution
from megatron_codemix.study.runlog import TokenCounter
from megatron_codemix.tokenizer import Tokenizer


def test_tokens_are_followed_while_a_log_grows(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "step", "step": 1, "tokens": 900}\n')  # an earlier process
    counter = TokenCounter(path)
    assert counter.tokens() == 0
    with open(path, "a") as log:
        log.write('{"kind": "step", "step": 2, "tokens": 20}\n{"kind": "validation"}\n{"kind": "step", "tok')
        log.flush()
        assert counter.tokens() == 20
        log.write('ens": 30}\n')
        log.flush()
        assert counter.tokens() == 30
    assert TokenCounter(tmp_path / "absent").tokens() == 0


def test_the_unigram_baseline_is_what_its_formula_says(corpus, texts):
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    length = 16
    expected = {}
    for source in ("code", "text"):
        reader = SplitReader(corpus / source / "train")
        windows = reader.read_windows(np.arange(reader.num_windows(length)), length)[:, 1:]
        expected[source] = np.bincount(windows.ravel().astype(np.int64), minlength=tokenizer.vocab_size)
        assert np.array_equal(token_counts(reader, length, 10**9), expected[source])
        assert token_counts(reader, length, 320).sum() == 320
    consumed = {"code": 300, "text": 900}
    weighted = sum(consumed[source] * expected[source] / expected[source].sum() for source in expected)
    probabilities = (weighted + 1) / (1200 + tokenizer.vocab_size)
    assert unigram_distribution(expected, consumed) == pytest.approx(probabilities)
    assert probabilities.sum() == pytest.approx(1)
    nats = num_bytes = 0.0
    for text in texts("code", 20):
        ids = [*tokenizer.encode(text).tolist(), tokenizer.end_of_text_id]
        nats -= sum(math.log(probabilities[identity]) for identity in ids)
        num_bytes += len(text.encode())
    baseline = UnigramBaseline(tokenizer, {"code": corpus / "code" / "valid" / "documents.jsonl.gz"}, 10**9)
    folders = {source: corpus / source / "train" for source in consumed}
    assert baseline.of(folders, [length], consumed)["code"] == pytest.approx(nats / math.log(2) / num_bytes)


def test_documents_without_text_are_refused_by_line(corpus, tmp_path):
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    bad, empty = tmp_path / "bad.jsonl", tmp_path / "empty.jsonl"
    bad.write_text('{"text": "fine"}\n{"body": "not"}\n')
    empty.write_text("\n")
    with pytest.raises(UserError, match="line 2: not a JSON object with a 'text' field"):
        UnigramBaseline(tokenizer, {"code": bad}, 100)
    with pytest.raises(UserError, match="holds no text"):
        UnigramBaseline(tokenizer, {"code": empty}, 100)


def test_documents_are_read_from_plain_and_packed_files(tmp_path):
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in ("one", "zwei ä", "")).encode()
    for name, packed in (("a.jsonl", lines), ("a.jsonl.gz", gzip.compress(lines)), ("a.jsonl.zst", zstandard.compress(lines))):
        (tmp_path / name).write_bytes(packed)
        assert list(read_documents(tmp_path / name)) == ["one", "zwei ä", ""]
