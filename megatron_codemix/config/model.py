"""The shape of a Llama-like model, and the arithmetic that follows from it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from megatron_codemix.config.section import Count, Section, is_count, whole


def padded_vocab_size(vocab_size: int, multiple: int) -> int:
    """Rows of the embedding: `vocab_size` rounded up to `multiple`.

    A constant of the run, independent of tensor parallelism (docs/decisions); padding rows are
    outside the softmax and are removed at conversion.
    """
    return -(-vocab_size // multiple) * multiple


class ModelConfig(Section):
    """A decoder-only Transformer: RMSNorm, SwiGLU, rotary positions, grouped-query attention, no biases."""

    num_layers: Count
    """Transformer layers."""
    hidden_size: Count
    """Width of the residual stream."""
    num_attention_heads: Count
    """Query heads; divides hidden_size."""
    num_query_groups: Count | None = None
    """Key/value heads (grouped-query attention); divides num_attention_heads. Default: as many as query heads."""
    ffn_hidden_size: Count
    """Inner width of the SwiGLU feed-forward layer (each of its two input projections)."""
    tied_embeddings: bool = False
    """Share one matrix between the input embedding and the output layer."""
    rope_base: float = Field(default=10_000.0, gt=1.0)
    """Base of the rotary position frequencies."""
    norm_epsilon: float = Field(default=1e-5, gt=0.0)
    """Epsilon inside RMSNorm."""
    init_std: float = Field(default=0.02, gt=0.0)
    """Standard deviation of the normal initialisation; output projections use init_std / sqrt(2 · num_layers)."""
    hidden_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on what attention and feed-forward layer add to the residual stream, and on the embedding."""
    attention_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on attention probabilities."""
    vocab_multiple: Count = 128
    """The embedding's rows are the vocabulary size rounded up to this multiple (128 suits tensor cores and TP ≤ 128)."""

    @property
    def query_groups(self) -> int:
        """Key/value heads after the default."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def num_parameters(self, rows: int, embeddings: bool = True) -> int:
        """Trainable parameters with `rows` embedding rows (padded vocabulary); tied matrices count once.

        embeddings=False leaves the embedding and output matrices out.
        """
        kv_size = self.query_groups * self.head_size
        attention = self.hidden_size * (2 * self.hidden_size + 2 * kv_size)
        feed_forward = 3 * self.hidden_size * self.ffn_hidden_size
        body = self.num_layers * (attention + feed_forward + 2 * self.hidden_size) + self.hidden_size
        matrices = (1 if self.tied_embeddings else 2) * rows * self.hidden_size
        return body + (matrices if embeddings else 0)

    def flops_per_token(self, rows: int, sequence_length: int) -> float:
        """Floating-point operations of one forward and backward pass per token (Megatron-LM's count).

        6 · weights that multiply activations, plus attention scores and values at half the square
        (causal): 6 · L · S · h (PaLM, arXiv 2204.02311, appendix B, with the causal half).
        """
        kv_size = self.query_groups * self.head_size
        per_layer = self.hidden_size * (2 * self.hidden_size + 2 * kv_size) + 3 * self.hidden_size * self.ffn_hidden_size
        matrices = self.num_layers * per_layer + rows * self.hidden_size
        return 6.0 * matrices + 6.0 * self.num_layers * sequence_length * self.hidden_size

    @classmethod
    def cross_problems(cls, raw: dict[str, Any]) -> list[str]:
        """Divisibility of heads and groups."""
        problems = []
        hidden, heads, groups = (whole(raw.get(key)) for key in ("hidden_size", "num_attention_heads", "num_query_groups"))
        if is_count(hidden) and is_count(heads):
            if hidden % heads:
                problems.append(f"num_attention_heads: {heads} does not divide hidden_size {hidden}; choose a divisor")
            elif (hidden // heads) % 2:
                problems.append(f"num_attention_heads: head size {hidden // heads} is odd, rotary positions need an even one")
        if is_count(heads) and is_count(groups) and heads % groups:
            problems.append(f"num_query_groups: {groups} does not divide num_attention_heads {heads}; choose a divisor")
        return problems
