"""Checkpoint → Hugging Face directory, which appears only when transformers' own model has been shown to say the same."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from megatron_codemix.checkpoint import hf
from megatron_codemix.checkpoint.agreement import (
    BF16_TOLERANCE,
    TOLERANCE,
    Agreement,
    Observation,
    compare,
    divergence,
    observe_llama,
    observe_ours,
)
from megatron_codemix.checkpoint.describe import Evidence, describe
from megatron_codemix.checkpoint.hf_files import DTYPES, SpecialIds, write_config, write_weights
from megatron_codemix.checkpoint.probes import Probe, make_probes, validation_readers
from megatron_codemix.checkpoint.store import Checkpoint
from megatron_codemix.config import ParallelConfig, RunConfig
from megatron_codemix.engine import load_model
from megatron_codemix.errors import UserError
from megatron_codemix.files import atomic_directory
from megatron_codemix.model import LanguageModel
from megatron_codemix.parallel import Topology
from megatron_codemix.progress import progress
from megatron_codemix.shards import SplitReader
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer_hf import export_to_hf

MAX_SHARD_BYTES = 4 * 2**30
_PROOF_DOCUMENTS = 50
"""Documents of each validation split on which the exported tokenizer is compared with SentencePiece."""


class ConversionRefused(RuntimeError):
    """The exported model does not say what the checkpoint says: a defect, never the user's mistake. Nothing was published."""


@dataclass(frozen=True)
class Converted:
    """A published Hugging Face directory."""

    folder: Path
    agreement: Agreement
    divergence: float | None
    """bf16 only: mean KL(fp32 model ‖ export), nats per token."""


@dataclass(frozen=True)
class _Job:
    """What is converted, opened and checked."""

    checkpoint: Checkpoint
    config: RunConfig
    """Of the run, but for one process and in fp32."""
    tokenizer: Tokenizer
    readers: dict[str, SplitReader]
    probes: list[Probe]
    dtype: Literal["fp32", "bf16"]
    max_shard_bytes: int


def convert_to_hf(source: Path, out: Path, *, dtype: Literal["fp32", "bf16"] = "fp32", max_shard_bytes: int = MAX_SHARD_BYTES) -> Converted:
    """Convert the newest checkpoint of a run folder, or one step folder, into a new folder `out`.

    The forward passes run in fp32 in one process, whatever layout and precision trained the model. dtype: of the
    written weights. Raises UserError (no or damaged checkpoint, `out` exists), ConversionRefused (the written model
    says something else); then `out` does not exist.
    """
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; give a new folder, or remove it first")
    job = _open(Checkpoint.open(source), dtype, max_shard_bytes)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with Topology.join(job.config.parallel) as topology:
        if topology.world_size > 1:
            raise UserError("codemix convert runs as one process, whatever layout trained the model; start it without torchrun")
        with atomic_directory(out) as folder:
            exact, before = _export(job, folder, topology)
            agreement, cost = _verify(job, folder, exact, before, topology.device)
            proven = export_to_hf(job.tokenizer, folder, _proof_texts(job))
            evidence = Evidence(job.dtype, job.probes, agreement, cost, proven)
            describe(folder, job.checkpoint, job.config, evidence, _max_positions(job.config))
    return Converted(out, agreement, cost)


def _open(checkpoint: Checkpoint, dtype: Literal["fp32", "bf16"], max_shard_bytes: int) -> _Job:
    config = checkpoint.config().model_copy(update={"parallel": ParallelConfig(), "precision": "fp32"})
    tokenizer = Tokenizer.load(checkpoint.tokenizer)
    readers = validation_readers(config, tokenizer.fingerprint)
    probes = make_probes(config, readers, tokenizer.vocab_size, key=f"{tokenizer.fingerprint} {config.seeds.data}")
    return _Job(checkpoint, config, tokenizer, readers, probes, dtype, max_shard_bytes)


def _export(job: _Job, folder: Path, topology: Topology) -> tuple[Observation, Observation]:
    """Load our model, observe it, write it as transformers' and let it go.

    Returns what it says with the weights as they are written, and with the weights as they were trained (the
    same where nothing was rounded).
    """
    model = load_model(job.config, job.tokenizer.vocab_size, topology, job.checkpoint.weights)
    before = exact = observe_ours(model, job.probes, topology.device)
    if _round(model, DTYPES[job.dtype]):
        exact = observe_ours(model, job.probes, topology.device)
    # end-of-text stands before every document in training, so it is what a text begins with
    special = SpecialIds(job.tokenizer.end_of_text_id, job.tokenizer.end_of_text_id, job.tokenizer.pad_id)
    shape, positions = job.config.model, _max_positions(job.config)
    write_config(folder, shape, job.tokenizer.vocab_size, positions, job.dtype, special, transformers.__version__)
    tensors = hf.to_hf(model.state_dict(), shape, job.tokenizer.vocab_size)
    write_weights(folder, tensors, DTYPES[job.dtype], job.max_shard_bytes)
    return exact, before


@torch.no_grad()
def _round(model: LanguageModel, dtype: torch.dtype) -> bool:
    """Round the fp32 weights in place to what `dtype` holds; whether any changed."""
    changed = False
    for parameter in model.parameters():
        rounded = parameter.to(dtype).to(parameter.dtype)
        changed |= not torch.equal(rounded, parameter)
        parameter.copy_(rounded)
    return changed


def _verify(job: _Job, folder: Path, exact: Observation, before: Observation, device: torch.device) -> tuple[Agreement, float | None]:
    """Load the written files with transformers and compare; raises ConversionRefused."""
    with progress("comparing with transformers", unit="models") as bar:
        gc.collect()  # our model has gone out of use: one model at a time is in memory
        agreement = compare(exact, _observe_written(folder, torch.float32, job.probes, device), job.probes)
        bar.advance(1)
        if agreement.problem:
            raise ConversionRefused(
                f"transformers' LlamaForCausalLM does not agree with the checkpoint within {TOLERANCE:g}: {agreement.problem}"
            )
        if job.dtype == "fp32":
            return agreement, None
        cost = divergence(before, _observe_written(folder, torch.bfloat16, job.probes, device))
        bar.advance(1)
    if not cost <= BF16_TOLERANCE:
        raise ConversionRefused(
            f"in bf16 the model is {cost:.4f} nats a token away from fp32, more than {BF16_TOLERANCE:g}; convert with --dtype fp32"
        )
    return agreement, cost


def _observe_written(folder: Path, dtype: torch.dtype, probes: Sequence[Probe], device: torch.device) -> Observation:
    loaded: Any = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    model, loading = loaded
    wrong = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if wrong:
        raise ConversionRefused(f"transformers does not take the written weights as they are: {wrong}")
    return observe_llama(model.to(device).eval(), probes, device)


def _max_positions(config: RunConfig) -> int:
    return max(stage.sequence_length for stage in config.stages)


def _proof_texts(job: _Job) -> list[str]:
    """Real documents, without their end of text."""
    return [
        job.tokenizer.decode(reader.document(number).tokens[:-1])
        for reader in job.readers.values()
        for number in range(min(_PROOF_DOCUMENTS, reader.manifest.num_documents))
    ]
