"""What a converted model says of itself: codemix.json and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from megatron_codemix.checkpoint.agreement import BF16_TOLERANCE, TOLERANCE, Agreement
from megatron_codemix.checkpoint.model_card import CardFacts, model_card
from megatron_codemix.checkpoint.probes import Probe
from megatron_codemix.checkpoint.provenance import SourceUse, source_uses
from megatron_codemix.checkpoint.store import Checkpoint
from megatron_codemix.config import RunConfig
from megatron_codemix.files import write_json, write_text

FORMAT_VERSION = 1
"""Of codemix.json."""


@dataclass(frozen=True)
class Evidence:
    """What was compared, and with what outcome."""

    dtype: str
    """fp32 or bf16, of the written weights."""
    probes: Sequence[Probe]
    agreement: Agreement
    divergence: float | None
    """bf16 only: mean KL(fp32 model ‖ export computing in bf16), nats per token."""
    tokenizer_texts: int
    """Texts on which the exported tokenizer equalled the run's own."""


def describe(folder: Path, checkpoint: Checkpoint, config: RunConfig, evidence: Evidence, max_positions: int) -> None:
    """Write codemix.json and README.md into `folder`. Raises UserError for a malformed ledger."""
    uses = source_uses(checkpoint, config)
    parameters = config.model.num_parameters(checkpoint.record.vocab_size)
    facts = CardFacts(checkpoint.record, config, uses, parameters, evidence.dtype, max_positions, _sentences(evidence))
    write_text(folder / "README.md", model_card(facts))
    write_json(folder / "codemix.json", _conversion_record(checkpoint, evidence, uses, parameters))


def _sentences(evidence: Evidence) -> list[str]:
    probes, agreement = evidence.probes, evidence.agreement
    real = sum(not probe.random for probe in probes)
    sentences = [
        f"transformers {transformers.__version__} loaded these files. Computing in fp32, its LlamaForCausalLM gave the log-probabilities "
        f"of the model that was trained (megatron-core {version('megatron-core')}, with the weights as written here), for every "
        f"vocabulary entry, at {agreement.tokens:,} positions of {len(probes)} inputs: {real} from held-out documents, "
        f"{len(probes) - real} of random ids. Largest difference: {agreement.largest:.2e} nats; accepted: {TOLERANCE:g}."
    ]
    if evidence.divergence is not None:
        sentences.append(
            f"Computing in bf16, it diverges from the fp32 model by {evidence.divergence:.2e} nats a token on these inputs; "
            f"accepted: {BF16_TOLERANCE:g}."
        )
    sentences.append(f"The tokenizer gave the ids of the one used in training, and the text back, for {evidence.tokenizer_texts:,} texts.")
    return sentences


def _conversion_record(checkpoint: Checkpoint, evidence: Evidence, uses: Sequence[SourceUse], parameters: int) -> dict[str, Any]:
    record = checkpoint.record
    return {
        "format_version": FORMAT_VERSION,
        "created_by": version("megatron-codemix"),
        "run": record.run,
        "step": record.step,
        "engine": record.engine,
        "plan": record.plan,
        "model": record.model.model_dump(mode="json"),
        "parameters": parameters,
        "vocab_size": record.vocab_size,
        "dtype": evidence.dtype,
        "trained_in": record.precision,
        "tokenizer_fingerprint": record.tokenizer_fingerprint,
        "ledger": checkpoint.ledger(),
        "sources": [use.as_json() for use in uses],
        "agreement": {
            "largest_difference": evidence.agreement.largest,
            "tolerance": TOLERANCE,
            "positions": evidence.agreement.tokens,
            "inputs": [probe.origin for probe in evidence.probes],
            "bf16_divergence": evidence.divergence,
            "bf16_tolerance": BF16_TOLERANCE,
            "tokenizer_texts": evidence.tokenizer_texts,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "megatron_core": version("megatron-core"),
        },
    }
