"""What a converted model says of itself: codemix.json and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from megatron_codemix.checkpoint.agreement import BF16_TOLERANCE, TOLERANCE, Agreement
from megatron_codemix.checkpoint.model_card import CardFacts, model_card
from megatron_codemix.checkpoint.origin import Origin, begun_from, weights_digest
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


def describe(folder: Path, members: Sequence[Checkpoint], config: RunConfig, evidence: Evidence, positions: int) -> None:
    """Write codemix.json and README.md into `folder`. Raises UserError for a malformed ledger.

    members: the checkpoint, or those whose average was converted, the first of which tells what was trained on. positions:
    the longest context.
    """
    checkpoint = members[0]
    origin = Origin.of(checkpoint)
    uses = [] if origin else source_uses(checkpoint, config)
    facts = CardFacts(
        record=checkpoint.record,
        config=config,
        uses=uses,
        parameters=config.model.num_parameters(checkpoint.record.vocab_size),
        dtype=evidence.dtype,
        max_positions=positions,
        verification=_sentences(evidence, config.model.architecture),
        origin=_named(origin) if origin else None,
        begun_from=None if origin else begun_from(checkpoint),
        members=[f"{member.record.run} step {member.step:,}" for member in members],
    )
    write_text(folder / "README.md", model_card(facts))
    record = _conversion_record(checkpoint, evidence, uses, facts.parameters)
    if origin:
        record["origin"] = asdict(origin)
    elif facts.begun_from:
        record["initial_weights"] = facts.begun_from
    if len(members) > 1:
        record["average"] = [
            {"run": member.record.run, "step": member.step, "weights": weights_digest(member.record)} for member in members
        ]
    write_json(folder / "codemix.json", record)


def _named(origin: Origin) -> str:
    added = f"{origin.added_entries:,} entries behind its vocabulary, each the mean of its rows," if origin.added_entries else ""
    return f"{origin.name} ({origin.kind}, {origin.dtype})" + (f", with {added}" if added else "")


def max_positions(checkpoint: Checkpoint, config: RunConfig) -> int:
    """The longest context of a checkpoint's model: of its training, and of the model that it began from."""
    origin = Origin.of(checkpoint)
    if origin:
        return origin.max_positions
    before = (begun_from(checkpoint) or {}).get("max_positions", 0)
    return max(before, *(stage.sequence_length for stage in config.history))


def _sentences(evidence: Evidence, architecture: str) -> list[str]:
    probes, agreement = evidence.probes, evidence.agreement
    real = sum(not probe.random for probe in probes)
    sentences = [
        f"transformers {transformers.__version__} loaded these files. Computing in fp32, its {architecture} gave the log-probabilities "
        f"of the checkpoint's model (megatron-core {version('megatron-core')}, with the weights as written here), for every "
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
        "ledger": checkpoint.ledger() if "ledger.json" in record.files else None,
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
