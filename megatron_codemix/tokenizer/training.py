"""Training: SentencePiece BPE or unigram with the reserved symbols of `symbols`, lossless on code.

The same texts in the same order give the same bytes: nothing about the machine (paths, threads) enters the model.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import Literal

import sentencepiece

from megatron_codemix.errors import UserError
from megatron_codemix.tokenizer.sentencepiece_kind import LEAST_SCORE, NORMAL, SCORE_STEP, USER_DEFINED, parse_proto
from megatron_codemix.tokenizer.symbols import BEGIN_OF_TEXT, END_OF_TEXT, NUM_RESERVED, PAD, RESERVED, SPACE, UNKNOWN, WHITESPACE

_CHUNK_CHARACTERS = 10_000
_NUM_THREADS = 4  # is written into the model: a constant, so that machines agree
_WHITESPACE_SCORE = -2.0
"""Unigram: log-probability of a whitespace run, near that of the most frequent pieces, so that few long ones win."""
_TOO_LARGE = re.compile(r"Please set it to a value <= (\d+)")
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
# A literal of a control symbol must never be learned as an ordinary piece of the same name, nor U+2581 as a space.
_CUT = re.compile(f"{SPACE}|\0|(?<=<)(?=" + "|".join(re.escape(symbol[1:]) for symbol in RESERVED) + ")")


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Pieces of the texts, at most some 10,000 characters each (SentencePiece skips what is too long), cut at line ends."""
    for text in texts:
        for part in _CUT.split(text):
            start = 0
            while len(part) - start > _CHUNK_CHARACTERS:
                end = part.rfind("\n", start, start + _CHUNK_CHARACTERS) + 1 or start + _CHUNK_CHARACTERS
                yield part[start:end]
                start = end
            if start < len(part):
                yield part[start:]


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_type: Literal["bpe", "unigram"] = "bpe") -> bytes:
    """Learn a model from `texts`; returns the contents of `tokenizer.model`.

    vocab_size: all pieces: reserved symbols, whitespace runs, 256 bytes and what is learned. model_type: byte-pair encoding
    (Sennrich et al. 2016, arXiv:1508.07909) or a unigram language model (Kudo 2018, arXiv:1804.10959).
    Raises UserError when there is no text, or when the vocabulary is too large or too small for it.
    """
    model = io.BytesIO()
    sentences = _sentences(texts)
    first = next(sentences, None)
    if first is None:
        raise UserError("tokenizer: there is no text to learn from; give sources that hold documents")

    def all_sentences() -> Iterator[str]:
        yield first
        yield from sentences

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=all_sentences(),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            byte_fallback=True,
            split_digits=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            character_coverage=0.9995,
            max_sentence_length=16 * _CHUNK_CHARACTERS,
            num_threads=_NUM_THREADS,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            unk_piece=UNKNOWN,
            bos_piece=BEGIN_OF_TEXT,
            eos_piece=END_OF_TEXT,
            pad_piece=PAD,
            control_symbols=list(RESERVED[4:]),
            user_defined_symbols=list(WHITESPACE),
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _as_user_error(error, vocab_size) from None
    assert model.getvalue(), "SentencePiece wrote no model"
    return model.getvalue() if model_type == "bpe" else with_exact_scores(model.getvalue(), dict.fromkeys(WHITESPACE, _WHITESPACE_SCORE))


def with_exact_scores(model: bytes, scores: dict[str, float]) -> bytes:
    """A unigram model whose sums of scores are exact in any engine: scores in steps of 1/1024, and no piece outside the search.

    scores: log-probabilities of user-defined pieces, which become ordinary ones.
    """
    proto = parse_proto(model, "model")
    for piece in proto.pieces:
        if piece.type == USER_DEFINED:
            piece.type, piece.score = NORMAL, scores[piece.piece]
        piece.score = max(LEAST_SCORE, round(piece.score * SCORE_STEP) / SCORE_STEP)
    return proto.SerializeToString(deterministic=True)


def _as_user_error(error: RuntimeError, vocab_size: int) -> Exception:
    if found := _TOO_LARGE.search(str(error)):
        return UserError(
            f"tokenizer.vocab_size: {vocab_size} is more than these documents can fill; the largest possible is {found[1]}: "
            "lower it, or give more text"
        )
    if found := _TOO_SMALL.search(str(error)):
        return UserError(
            f"tokenizer.vocab_size: {vocab_size} is too small: {NUM_RESERVED} reserved symbols, {len(WHITESPACE)} whitespace runs, "
            f"256 bytes and the characters of these documents need {found[1]}; raise it"
        )
    if "sentences_.empty()" in str(error):
        return UserError("tokenizer: there is no text to learn from; give sources that hold documents")
    return error
