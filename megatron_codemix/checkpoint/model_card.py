"""README.md of a converted model: what it is, what it was trained on, how it was checked. Every figure is the run's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from megatron_codemix.checkpoint.provenance import SourceUse
from megatron_codemix.checkpoint.record import Record
from megatron_codemix.config import BatchRamp, LearningRate, ModelConfig, RunConfig, Stage
from megatron_codemix.config.stage import Ramp

_MOST_LICENSES = 12


@dataclass(frozen=True)
class CardFacts:
    """Everything a model card says."""

    record: Record
    config: RunConfig
    uses: Sequence[SourceUse]
    parameters: int
    """Trainable parameters without padding rows."""
    dtype: str
    """fp32 or bf16."""
    max_positions: int
    verification: Sequence[str]
    """Sentences that say what was compared, and with what outcome."""
    origin: str | None = None
    """What a model that no run trained was taken from, in words."""
    begun_from: Mapping[str, Any] | None = None
    """The weights that the run began with, as its lineage names them; None: it began from scratch."""
    members: Sequence[str] = ()
    """Names of the checkpoints whose average this is; one: no average."""


def model_card(facts: CardFacts) -> str:
    """The text of README.md: YAML front matter, then Markdown."""
    training = [] if facts.origin else [_data(facts), _schedule(facts)]
    return "\n".join([_front_matter(facts), _head(facts), _architecture(facts), *training, _checked(facts), _use(facts)])


def _front_matter(facts: CardFacts) -> str:
    # only of text sources: 'go' or 'c' would be read as natural languages
    languages = sorted(
        {code for use in facts.uses if use.modality == "text" for code in use.languages if re.fullmatch(r"[a-z]{2,3}", code)}
    )
    family = facts.config.model.architecture.removesuffix("ForCausalLM").lower()
    tags = ["codemix", family, *(["code"] if any(use.modality == "code" and use.tokens for use in facts.uses) else [])]
    matter: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}
    if languages:
        matter["language"] = languages
    return "---\n" + yaml.safe_dump(matter, sort_keys=False, allow_unicode=True) + "---\n"


def _head(facts: CardFacts) -> str:
    record = facts.record
    what = f"# {record.run}\n\nA decoder-only language model of {facts.parameters:,} parameters, "
    if facts.origin:
        return f"{what}taken over from {_cell(facts.origin)} with nothing trained since: its own card says what it is.\n"
    tokens = sum(use.targets for use in facts.uses)
    trained = f"{tokens:,} target tokens ({record.step:,} optimizer steps)"
    average = ""
    if len(facts.members) > 1:
        average = f" These weights are the average of {len(facts.members)} checkpoints: {_cell(', '.join(facts.members))}."
    if facts.begun_from:
        begun = f"{facts.begun_from['run']} (step {facts.begun_from['step']:,}, {facts.begun_from['engine']})"
        return f"{what}whose training went on from the weights of {_cell(begun)}, on {trained}.{average}\n"
    return f"{what}pretrained from scratch on {trained}. It continues text; it has not been tuned to follow instructions.{average}\n"


def _architecture(facts: CardFacts) -> str:
    model = facts.config.model
    rows = {
        "Architecture": f"{model.architecture} ({_parts(model)})",
        "Parameters": f"{facts.parameters:,}",
        "Layers": model.num_layers,
        "Hidden size": model.hidden_size,
        "Feed-forward size": model.ffn_hidden_size,
        "Query heads / key-value heads": f"{model.num_attention_heads} / {model.query_groups}",
        "Head size": model.head_width,
        "Embeddings": "tied" if model.tied_embeddings else "separate input and output matrices",
        "Rotary base": f"{model.rope_base:g}",
        "Norm epsilon": f"{model.norm_epsilon:g}",
        "Vocabulary": f"{facts.record.vocab_size:,} pieces",
        "Context": f"{facts.max_positions:,} tokens",
        "Weights": f"{facts.dtype} ({'from' if facts.origin else 'trained in'} {facts.record.precision})",
    }
    return "## Architecture\n\n" + _table(("", ""), list(rows.items()))


def _parts(model: ModelConfig) -> str:
    parts = [
        "LayerNorm" if model.norm == "layernorm" else "RMSNorm",
        "SwiGLU" if model.activation == "swiglu" else "GELU",
        "rotary positions",
    ]
    parts += ["biases" if model.bias else "biases on queries, keys and values" if model.qkv_bias else "no biases"]
    parts += ["normalised queries and keys"] if model.qk_norm else []
    parts += [f"a sliding window of {model.sliding_window:,} tokens"] if model.sliding_window else []
    return ", ".join(parts)


def _data(facts: CardFacts) -> str:
    header = ("Source", "Kind", "Windows", "Window tokens", "Target tokens", "Bytes", "Share", "Epochs")
    rows = [
        (
            use.name,
            use.modality or "?",
            f"{use.windows:,}",
            f"{use.tokens:,}",
            f"{use.targets:,}",
            f"{use.bytes:,}",
            f"{100 * use.share:.2f} %",
            "not known" if use.epochs is None else f"{use.epochs:.3f}",
        )
        for use in facts.uses
    ]
    text = (
        "## Training data\n\nCounted from the batches that were trained on. Share: of window tokens. Bytes: UTF-8 bytes of the target "
        "tokens. Epochs: window tokens over the tokens of the source's training split.\n\n"
    )
    return text + _table(header, rows) + "\n" + _licenses(facts.uses)


def _licenses(uses: Sequence[SourceUse]) -> str:
    lines = ["### Licences of the training data\n"]
    for use in uses:
        if use.documents is None:
            lines.append(f"- **{use.name}**: the shards were not at hand when this card was written; see their manifest.json.")
        elif not use.licenses:
            lines.append(f"- **{use.name}**: none recorded for its {use.documents:,} documents.")
        else:
            lines.append(f"- **{use.name}** ({use.documents:,} documents in its training split): {_counted(use.licenses)}.")
    lines.append(
        "\nThe licence of these weights is for whoever publishes them to state, with the licences above in view: this card sets none.\n"
    )
    return "\n".join(lines)


def _counted(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{_cell(name)} {number:,}" for name, number in ranked[:_MOST_LICENSES])
    rest = len(ranked) - _MOST_LICENSES
    return f"{shown}, and {rest} more" if rest > 0 else shown


def _schedule(facts: CardFacts) -> str:
    header = ("Stage", "Tokens", "Mixture", "Learning rate", "Windows a step", "Window")
    rows = [
        (
            stage.name,
            f"{stage.tokens:,}",
            _mixture(stage),
            _rate(stage.learning_rate),
            _batch(stage.batch_size),
            f"{stage.sequence_length:,}",
        )
        for stage in facts.config.history
    ]
    optimizer = facts.config.optimizer
    text = (
        f"\nAdamW, betas {optimizer.beta1:g} and {optimizer.beta2:g}, epsilon {optimizer.epsilon:g}, weight decay "
        f"{optimizer.weight_decay:g}, gradients clipped at {optimizer.clip_grad_norm:g}. "
        f"Attention {'stays inside each document' if facts.config.document_masking else 'crosses documents'} of a window. "
        f"Seeds: data {facts.config.seeds.data}, initialisation {facts.config.seeds.init}.\n"
    )
    branch = facts.config.branch
    if branch:
        left = ", ".join(f"step {part.until:,}" for part in branch.history or [])
        text = f"\nBranched off from another run: the stages of the trunk come first; they were left at {left}.\n" + text
    return "## Schedule\n\nAs declared; the table above says how much of it this checkpoint has seen.\n\n" + _table(header, rows) + text


def _mixture(stage: Stage) -> str:
    parts = []
    for name, share in stage.mixture.items():
        parts.append(f"{name} {share}" if not isinstance(share, Ramp) else f"{name} {share.start} → {share.end}")
    return ", ".join(parts)


def _batch(size: int | BatchRamp) -> str:
    return f"{size:,}" if isinstance(size, int) else f"{size.start:,} → {size.end:,} over {size.tokens:,} tokens"


def _rate(rate: LearningRate | str) -> str:
    if isinstance(rate, str):
        return "the schedule of the stage before goes on"
    peak, start = (f"{value:g}" if isinstance(value, float) else "the rate before" for value in (rate.peak, rate.warmup_start))
    begins = f" from {start}" if rate.warmup_start else ""
    warmup = f", {rate.warmup_tokens:,} tokens of warm-up{begins}" if rate.warmup_tokens else ""
    end = "" if rate.shape in ("constant", "inverse_sqrt") else f" → {rate.final:g}"
    decay = f" over the last {rate.decay_tokens:,} tokens ({rate.decay_shape})" if rate.shape == "wsd" else ""
    return f"{rate.shape}, {peak}{end}{decay}{warmup}"


def _checked(facts: CardFacts) -> str:
    lines = "\n".join(f"- {sentence}" for sentence in facts.verification)
    return f"## How this conversion was verified\n\n{lines}\n\n`codemix.json` holds the figures.\n"


def _use(facts: CardFacts) -> str:
    return (
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("PATH")\ntokenizer = AutoTokenizer.from_pretrained("PATH")\n'
        'inputs = tokenizer("def main():", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))\n```\n\n"
        "Untrusted text may spell control symbols: pass `split_special_tokens=True` to read them as plain text.\n\n"
        f"Made by `codemix convert to-hf` (checkpoint written by codemix {facts.record.created_by}, engine {facts.record.engine}).\n"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [_row(header), "|" + " --- |" * len(header), *(_row(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
