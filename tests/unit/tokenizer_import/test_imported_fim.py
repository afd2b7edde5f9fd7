"""Fill-in-the-middle with tokenizers that were taken over: no byte is lost or added, and no text becomes a control symbol."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers

from megatron_codemix.batches import Block, WindowObjective, number_documents
from megatron_codemix.config import Objective
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.importing import import_tokenizer


def of_kind(kind: str, originals: Any, folder: Any) -> Tokenizer:
    if kind == "gpt2":
        return originals.take(originals.gpt2(), folder)[0]
    if kind == "normalised":
        backend = originals.gpt2()
        backend.normalizer = normalizers.NFC()
        return originals.take(backend, folder)[0]
    path = folder / "tokenizer.model"
    path.write_bytes(originals.sentencepiece_model(kind, add_dummy_prefix=True))
    return Tokenizer(import_tokenizer(path).model)


@pytest.mark.parametrize("kind", ["gpt2", "normalised", "bpe", "unigram"])
def test_fim_loses_no_byte(originals, tmp_path, kind):
    tokenizer = of_kind(kind, originals, tmp_path)
    texts = [text for text in originals.random_texts(300) if text]
    texts += ["e\u0301a\u0301 cafe\u0301", " leading", "  two", "\u2581x \u2581", "\r\n\r\n", "<fim_prefix>a<fim_suffix>"]
    streams = [np.append(tokenizer.encode(text), tokenizer.end_of_text_id) for text in texts]
    length = max(map(len, streams)) * 4 + 40
    windows = np.full((len(streams), length), tokenizer.end_of_text_id, np.uint32)
    for window, stream in zip(windows, streams, strict=True):
        window[: len(stream)] = stream
    ids = np.empty((len(windows), length - 1), np.int64)
    number_documents(windows[:, :-1], tokenizer.end_of_text_id, ids)
    source, numbers, zeros = np.zeros(len(windows), int), np.arange(len(windows)), np.zeros(len(windows), int)
    block = Block(windows, np.zeros(windows.shape, np.uint8), source, numbers, zeros, ids)
    WindowObjective(Objective.model_validate({"fim": {"rate": 1}}), tokenizer, ("code",), 0)(block)
    marks = {tokenizer.special_ids[name]: name for name in ("<fim_prefix>", "<fim_middle>", "<fim_suffix>")}
    controls, forms = set(tokenizer.special_ids.values()), set()
    for window, text in zip(block.tokens.tolist(), texts, strict=True):
        document = window[: window.index(tokenizer.end_of_text_id)]
        at = [place for place, number in enumerate(document) if number in controls]
        order = [marks[document[place]] for place in at]
        assert order == ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], text
        first, second, third = (tokenizer.decode(document[start + 1 : end]) for start, end in pairwise([*at, len(document)]))
        spm = at[1] == 1
        assert text == (third + second if spm else first + third + second)
        assert int(tokenizer.token_num_bytes[document].sum()) == len(text.encode())
        forms.add(spm)
    assert forms == {False, True}
