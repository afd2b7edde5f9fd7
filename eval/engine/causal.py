"""Any Hugging Face causal language model: its forward pass, and what it allows, found out by trial.

Legend: B rows of a batch, S positions, K keys, H hidden size, V vocabulary, N states, Q (state, target) pairs.
Rows are padded on the right and given no mask: under causal attention no real position sees padding.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from eval.directory import ModelDirectory
from eval.engine.head import pick, pick_logits
from eval.engine.linear import use_fast_linear
from eval.engine.loading import boundary_ids, context_length, load_model, load_tokenizer
from eval.engine.requests import Settings
from megatron_codemix.errors import UserError

BATCH_TOKENS = {"cpu": 512, "cuda": 32768}
"""Tokens per forward pass where the settings do not say; see benchmarks/loglikelihood.py."""

WRITING_TOKENS = {"cpu": 4096, "cuda": 65536}
"""The same for completions, prompts and what is written included: steps of one token want many rows."""

_TRIAL_WINDOW = 256
"""Sliding windows up to this length are tried beyond their end."""

_LOCAL = ("attention_types", "attention_layers", "attention_chunk_size", "attention_window", "window_size", "local_attention")
"""Fields of configs whose models attend locally by a rule of their own, which a short trial would not notice."""

_NOT_ALLOWED = (AttributeError, TypeError, RuntimeError, ValueError, NotImplementedError, IndexError, KeyError)
"""What a trial of something that an architecture does not allow raises."""


class CausalModel:
    """A model and its tokenizer; everything that scoring and generation use of them."""

    def __init__(self, directory: ModelDirectory, settings: Settings) -> None:
        self.directory, self.settings = directory, settings
        self.device = torch.device(settings.device)
        self.batch_tokens = settings.batch_tokens or BATCH_TOKENS[settings.device]
        self.writing_tokens = settings.batch_tokens or WRITING_TOKENS[settings.device]
        self.tokenizer = load_tokenizer(directory)
        self.model = load_model(directory, settings).to(self.device)
        use_fast_linear(self.model)
        self.vocab_size: int = self.model.get_input_embeddings().num_embeddings
        self.hidden_size: int = self.model.get_input_embeddings().embedding_dim
        self.start_id, self.end_id = boundary_ids(directory, self.tokenizer, self.model.config)
        self.context = context_length(directory, self.model.config, settings.context)
        self.unknown_id: int | None = self.tokenizer.unk_token_id if self.tokenizer.unk_token_id != self.end_id else None
        self._takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of untrusted texts: no special token is added, and the text of one stays plain text."""
        if not texts:
            return []
        ids = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for row in ids:
            if row and max(row) >= self.vocab_size:
                raise UserError(
                    f"{self.directory.path}: the tokenizer gives id {max(row)}, the model has {self.vocab_size} embedding rows; "
                    "it is not this model's tokenizer"
                )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are written out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    # What the architecture allows.

    @cached_property
    def separate_head(self) -> bool:
        """Whether logits are exactly output_embeddings(base_model(tokens)): tried once, since some models scale or cap them."""
        tokens_BS = self._trial_tokens(8)[None]
        head = self.model.get_output_embeddings()
        with torch.inference_mode(), contextlib.suppress(*_NOT_ALLOWED):
            mine = head(self.model.base_model(input_ids=tokens_BS, use_cache=False).last_hidden_state).float()
            theirs = self.model(input_ids=tokens_BS, use_cache=False).logits.float()
            return bool((mine - theirs).abs().max() <= 1e-5 * (1.0 + theirs.abs().max()))
        return False

    @cached_property
    def shares_prefixes(self) -> bool:
        """Whether continuing from a cache gives what the whole sequence gives: tried once, since not every architecture allows it."""
        if self.context < 16:
            return False
        tokens_BS = self._trial_tokens(16)[None].repeat(2, 1)
        with torch.inference_mode(), contextlib.suppress(*_NOT_ALLOWED):
            whole = self.hidden(tokens_BS)[:, 8:]
            cache = DynamicCache(config=self.model.config)
            self.hidden(tokens_BS[:, :8], cache=cache)
            cache.batch_select_indices(torch.tensor([0, 1, 1], device=self.device))
            return self._same(self.hidden(tokens_BS[[0, 1, 1], 8:], cache=cache)[:2], whole)
        return False

    @cached_property
    def branches(self) -> bool:
        """Whether a tree of tokens in one row, under a mask of its own, gives what its paths give alone: tried once."""
        if self._windows is None or not self._takes_positions or self.context < 16:
            return False
        with torch.inference_mode(), contextlib.suppress(*_NOT_ALLOWED):
            whole, tokens, allowed, depths = self._trial_tree()
            return self._same(self.hidden(tokens[None], self.tree_options(allowed, depths, depths))[0], whole)
        return False

    @cached_property
    def branches_behind_prefixes(self) -> bool:
        """Whether that holds for trees behind a cached prefix too."""
        if not self.branches:
            return False
        with torch.inference_mode(), contextlib.suppress(*_NOT_ALLOWED):
            whole, tokens, allowed, depths = self._trial_tree()
            cache = self.prefill(tokens[None, :3])
            options = self.tree_options(allowed[:, 3:], depths[:, 3:], depths)
            first = self._same(self.hidden(tokens[None, 3:], options, branch(cache))[0], whole[3:])
            return first and self._same(self.hidden(tokens[None, 3:], options, branch(cache))[0], whole[3:])
        return False

    @cached_property
    def _windows(self) -> dict[str, int | None] | None:
        """Kind of attention layer → tokens that its queries see, their own included (None: all); None where trees are not understood."""
        config = self.model.config
        if any(getattr(config, name, None) for name in _LOCAL):
            return None
        window = getattr(config, "sliding_window", None)
        known = {"full_attention": None, "sliding_attention": window}
        kinds = sorted(set(getattr(config, "layer_types", None) or (["sliding_attention"] if window else ["full_attention"])))
        return {kind: known[kind] for kind in kinds} if all(kind in known for kind in kinds) else None

    def _trial_tokens(self, count: int) -> torch.Tensor:
        return (torch.arange(count, device=self.device) * 7 + 3).remainder(self.vocab_size)

    def _trial_tree(self) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
        """(states of the paths run alone (S, ·), tokens (S,), allowed (1, S, S), depths (1, S)) of a fork behind a common beginning."""
        spans = [window for window in (self._windows or {}).values() if window is not None]
        stem = max([8, *(window + 2 for window in spans if window <= min(_TRIAL_WINDOW, self.context - 8))])
        tokens = self._trial_tokens(stem + 8)
        size, fork = stem + 8, stem + 4
        allowed = np.tri(size, dtype=bool)
        allowed[fork:, stem:fork] = False
        depths = np.concatenate([np.arange(fork), np.arange(stem, stem + 4)])
        index = torch.from_numpy(np.concatenate([np.arange(stem), np.arange(fork, size)])).to(self.device)
        one, other = self.hidden(tokens[None, :fork])[0], self.hidden(tokens[index][None])[0]
        return torch.cat([one, other[stem:]]), tokens, allowed[None], depths[None]

    def _same(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        tolerance = 1e-4 if self.settings.dtype == "fp32" else 5e-2
        found, expected = found.float(), expected.float()
        return bool((found - expected).abs().max() <= tolerance * (1.0 + expected.abs().max()))

    # The forward pass.

    def pad(self, rows: Sequence[np.ndarray]) -> torch.Tensor:
        """Rows of ids, padded on the right with an arbitrary id: int64 (B, S) on the device."""
        tokens_BS = np.full((len(rows), max(map(len, rows))), self.end_id, dtype=np.int64)
        for row, ids in zip(tokens_BS, rows, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(tokens_BS).to(self.device)

    def tree_options(self, allowed_BSK: np.ndarray, depths_BS: np.ndarray, keys_BK: np.ndarray) -> dict[str, Any]:
        """Arguments of the forward pass: who attends to whom, and positions.

        allowed: bool (B, S, K) by the tree alone; depths, keys: int64 positions of queries and keys, from which sliding windows follow.
        """
        assert self._windows is not None
        masks = {kind: self._mask(allowed_BSK, depths_BS, keys_BK, window) for kind, window in self._windows.items()}
        mask = next(iter(masks.values())) if len(masks) == 1 else masks
        return {"attention_mask": mask, "position_ids": torch.from_numpy(depths_BS).to(self.device)}

    def _mask(self, allowed_BSK: np.ndarray, depths_BS: np.ndarray, keys_BK: np.ndarray, window: int | None) -> torch.Tensor:
        """Additive, (B, 1, S, K) in the model's dtype: 0 where attention is allowed."""
        if window is not None and int(keys_BK.max()) >= window:
            allowed_BSK = allowed_BSK & (depths_BS[:, :, None] - keys_BK[:, None, :] < window)
        allowed = torch.from_numpy(allowed_BSK)[:, None].to(self.device)
        dtype = self.model.dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=self.device).masked_fill_(~allowed, torch.finfo(dtype).min)

    def hidden(self, tokens_BS: torch.Tensor, options: dict[str, Any] | None = None, cache: DynamicCache | None = None) -> torch.Tensor:
        """Final hidden states (B, S, H); logits (B, S, V) where the output layer is not separate."""
        arguments = {"input_ids": tokens_BS, "use_cache": cache is not None, "past_key_values": cache, **(options or {})}
        if self.separate_head:
            return self.model.base_model(**arguments).last_hidden_state
        return self.model(**arguments).logits

    def prefill(self, tokens_BS: torch.Tensor) -> DynamicCache:
        """The cache after rows of equal length, for trees behind it: whole, also where layers see a window only."""
        cache = DynamicCache()
        count = tokens_BS.shape[1]
        depths = np.arange(count)[None]
        self.hidden(tokens_BS, self.tree_options(np.tri(count, dtype=bool)[None], depths, depths), cache)
        return cache

    def pick(self, states_NX: torch.Tensor, rows_Q: np.ndarray, targets_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(log P(target), natural, float64; whether no token is more likely) of (state, target) pairs, from what `hidden` gave."""
        rows, targets = (torch.from_numpy(index).to(self.device) for index in (rows_Q, targets_Q))
        if self.separate_head:
            values, best = pick(self.model.get_output_embeddings(), states_NX, rows, targets)
        else:
            values, best = pick_logits(states_NX, rows, targets)
        return values.cpu().numpy().astype(np.float64), best.cpu().numpy()

    def last_logits(self, tokens_BS: torch.Tensor, mask_BS: torch.Tensor, cache: DynamicCache, num_new: int) -> torch.Tensor:
        """Logits (B, V) after the last token of rows padded on the LEFT; the last `num_new` columns are new to the cache.

        mask_BS: int64, 0 on padding, over all columns so far.
        """
        options: dict[str, Any] = {"attention_mask": mask_BS}
        if self._takes_positions:
            options["position_ids"] = (mask_BS.cumsum(-1) - 1).clamp(min=0)[:, -num_new:]
        hidden_BSX = self.hidden(tokens_BS[:, -num_new:], options, cache)
        return self.model.get_output_embeddings()(hidden_BSX[:, -1]) if self.separate_head else hidden_BSX[:, -1]


def branch(cache: DynamicCache) -> DynamicCache:
    """A cache that goes on from `cache` and leaves it as it is: layers grow by new tensors, never in place."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other
