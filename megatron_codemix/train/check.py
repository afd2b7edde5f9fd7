"""`codemix check RUN.yaml`: everything about a run that can be known without training it. Needs no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.batches import Loader, describe_batches
from megatron_codemix.config import RunConfig, load_config, padded_vocab_size
from megatron_codemix.mixture import plan_table
from megatron_codemix.train.inputs import Inputs, open_inputs
from megatron_codemix.train.memory import MemoryEstimate, estimate

_DESCRIPTION = """Validate a run without training: config, shards, tokenizer, plan, memory, operations.

  codemix check RUN.yaml
  codemix check RUN.yaml --batches 4        decode the first 4 global batches: realised shares, samples in words
  codemix check RUN.yaml --batches 4 --from-step 1000"""


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} TiB"


def _memory_lines(memory: MemoryEstimate) -> list[str]:
    parts = {
        "weights": memory.weights,
        "gradients (fp32)": memory.gradients,
        "optimizer (fp32)": memory.optimizer,
        "activations, estimated": memory.activations,
        "logits, estimated": memory.logits,
    }
    inside = ", ".join(f"{name} {_size(size)}" for name, size in parts.items())
    return [f"memory per rank   {_size(memory.total)}: {inside}"]


def _every(steps: int) -> str:
    return f"every {steps:,} steps, and at the end" if steps else "at the end only"


def _kill_note(config: RunConfig) -> str:
    return "" if config.checkpoint.every_steps else " (a kill would cost all of the run: set checkpoint.every_steps)"


def model_lines(config: RunConfig, inputs: Inputs) -> list[str]:
    """Parameters, operations and memory, a fact a line."""
    model, plan = config.model, inputs.plan
    rows = padded_vocab_size(inputs.tokenizer.vocab_size, model.vocab_multiple)
    parameters, body = model.num_parameters(rows), model.num_parameters(rows, embeddings=False)
    tokens = sum(stage.tokens for stage in plan.stages)
    operations = sum(stage.tokens * model.flops_per_token(rows, stage.sequence_length) for stage in plan.stages)
    return [
        f"model             {parameters:,} parameters, {body:,} of them outside the embeddings; {config.precision}",
        f"vocabulary        {inputs.tokenizer.vocab_size:,} pieces in {rows:,} rows",
        f"training          {plan.num_steps:,} steps, {tokens:,} tokens, {tokens / parameters:.3g} tokens per parameter",
        f"operations        {operations:.3g} floating-point operations, forward and backward",
        *_memory_lines(estimate(config, rows)),
        f"checkpoints       {_every(config.checkpoint.every_steps)}" + _kill_note(config),
        f"validation        {_every(config.validation.every_steps)}",
    ]


def batch_lines(config: RunConfig, inputs: Inputs, first_step: int, num_batches: int) -> list[str]:
    """Realised shares of some global batches, and samples of them in words; not beyond the stage of the first one."""
    stage = inputs.plan.stage_at(first_step)
    loader = Loader(
        inputs.plan,
        inputs.readers,
        token_num_bytes=inputs.tokenizer.token_num_bytes,
        micro_batch_size=config.micro_batch_size,
    )
    steps = range(first_step, min(first_step + num_batches, stage.end_step))
    batches = [batch for step in steps for batch in loader.batches(step)]
    words = describe_batches(batches, inputs.plan.sources, inputs.tokenizer, stage.mixture)
    return [f"steps {steps.start} to {steps.stop} of stage '{stage.name}', decoded:", *words]


def main(argv: Sequence[str]) -> int:
    """Run the verb; raises UserError for anything that would stop the run."""
    parser = ArgumentParser(prog="codemix check", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="run config; see docs/config.md")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="fields to set after reading the file; values are YAML")
    parser.add_argument("--batches", type=int, default=0, metavar="N", help="decode N global batches")
    parser.add_argument("--from-step", type=int, default=0, metavar="STEP", help="first step to decode (default 0)")
    arguments = parser.parse_args(argv)
    if arguments.batches < 0:
        parser.error(f"--batches {arguments.batches}: give a number of global batches, 1 or more")

    config = load_config(arguments.run, RunConfig, arguments.overrides)
    inputs = open_inputs(config)
    for reader in (*inputs.readers.values(), *inputs.validation.values()):
        reader.read_all_sidecars()
    last = inputs.plan.num_steps - 1
    if not 0 <= arguments.from_step <= last:
        parser.error(f"--from-step {arguments.from_step}: the plan has the steps 0 to {last}")
    lines = [f"{arguments.run}: valid", "", *model_lines(config, inputs), "", *plan_table(inputs.plan)]
    if arguments.batches:
        lines += ["", *batch_lines(config, inputs, arguments.from_step, arguments.batches)]
    print("\n".join(lines))
    return 0
