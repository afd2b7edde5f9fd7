"""`codemix check RUN.yaml`: everything about a run that can be known without training it. Needs no GPU and no torch."""

from __future__ import annotations

import importlib
import json
import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import RunConfig, data_ranks, load_config, padded_vocab_size
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import plan_table
from megatron_codemix.train.branch import find_trunk, resolve_branch
from megatron_codemix.train.cautions import run_cautions
from megatron_codemix.train.initial import find_initial
from megatron_codemix.train.inputs import Inputs, open_inputs
from megatron_codemix.train.memory import RESERVE, estimate, most_parameters
from megatron_codemix.train.reading import reading_lines
from megatron_codemix.train.schedule_table import schedule_table
from megatron_codemix.train.space import checkpoint_bytes, lack_of_space, most_at_once, size_words
from megatron_codemix.train.suggest import GIB, suggest, suggestion_table
from megatron_codemix.train.zero import host_bytes, nvme_bytes

_DESCRIPTION = """Validate a run without training: config, shards, tokenizer, plan, layout, memory, operations, hours.

  codemix check RUN.yaml
  codemix check RUN.yaml --gpus 64 --mfu 0.35      does the layout suit 64 GPUs, and how long will they take?
  codemix check RUN.yaml --suggest --gpus 64 --memory 80      layouts that fit, the fastest first
  codemix check RUN.yaml --batches 4        decode the first 4 global batches: realised shares, samples in words
  codemix check RUN.yaml --batches 4 --from-step 1000"""

_PEAK_TFLOPS = {"bf16": 989.0, "fp32": 67.0}
"""Of an H100 SXM, dense: NVIDIA's data sheet."""
_SHOWN = 10
"""Suggestions in the table; --json has them all."""


def _memory_lines(config: RunConfig, rows: int, data: int) -> list[str]:
    memory = estimate(config, rows, data)
    parts = {
        "weights": memory.weights,
        "gradients (fp32)": memory.gradients,
        "optimizer (fp32)": memory.optimizer,
        "activations, estimated": memory.activations,
        "passing, estimated": memory.passing,
    }
    inside = ", ".join(f"{name} {size_words(size)}" for name, size in parts.items() if size)
    lines = [f"memory per rank   {size_words(memory.total)}: {inside}"]
    if config.parallel.pipeline > 1:
        lines.append(f"                  at pipeline rank {memory.pipeline_rank} of {config.parallel.pipeline}, which needs most")
    if config.engine == "deepspeed":
        offloaded = host_bytes(config, rows, pipeline_rank=memory.pipeline_rank, data_ranks=data)
        beside = f"; {size_words(offloaded)} of host memory for what is offloaded" if offloaded else ""
        if files := nvme_bytes(config, rows, pipeline_rank=memory.pipeline_rank, data_ranks=data):
            beside += f", {size_words(files)} of files in deepspeed.nvme_path"
        lines.append(f"                  DeepSpeed, ZeRO stage {config.deepspeed.zero_stage}{beside}")
    return lines


def _layout_lines(config: RunConfig, rows: int, data: int) -> list[str]:
    parallel = config.parallel
    axes = {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "context": parallel.context, "data": data}
    product = " × ".join(f"{name} {size}" for name, size in axes.items())
    lines = [
        f"layout            {product} = {math.prod(axes.values())} rank(s); at most {most_parameters(config, rows):,} parameters on one"
    ]
    stages = parallel.stage_layers(config.model.num_layers)
    if len(stages) > 1:
        held = ", ".join("+".join(str(layers) for layers in stages[rank :: parallel.pipeline]) for rank in range(parallel.pipeline))
        lines.append(f"                  layers on each pipeline rank: {held}")
    return lines


def _width_lines(config: RunConfig) -> list[str]:
    if config.width_transfer is None:
        return []
    base, width = config.width_transfer.base_hidden_size, config.model.hidden_size
    return [
        f"width transfer    tuned at hidden_size {base:,}, here {width:,}: matrices of the layers and the output's learn at "
        f"{base / width:.3g} × the rates below; embeddings, norms and biases at these"
    ]


def _hours(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _every(steps: int) -> str:
    return f"every {steps:,} steps, and at the end" if steps else "at the end only"


def _kill_note(config: RunConfig) -> str:
    return "" if config.checkpoint.every_steps else " (a kill would cost all of the run: set checkpoint.every_steps)"


def _checkpoint_lines(config: RunConfig, num_steps: int, rows: int) -> list[str]:
    each, most = checkpoint_bytes(config, rows), most_at_once(config, num_steps)
    lines = [
        f"checkpoints       {_every(config.checkpoint.every_steps)}{_kill_note(config)}",
        f"                  {size_words(each)} each, up to {size_words(most * each)} at once",
    ]
    lack = lack_of_space(config, num_steps, rows)
    return [*lines, f"                  warning: {lack}"] if lack else lines


def model_lines(config: RunConfig, inputs: Inputs, *, data: int = 1, mfu: float = 0.4, peak_tflops: float | None = None) -> list[str]:
    """Parameters, layout, operations, memory and hours, a fact a line. data: data-parallel ranks; peak_tflops: of one GPU."""
    model, plan = config.model, inputs.plan
    rows = padded_vocab_size(inputs.tokenizer.vocab_size, model.vocab_multiple)
    parameters, body = model.num_parameters(rows), model.num_parameters(rows, embeddings=False)
    own = [stage for stage in plan.stages if not stage.inherited]
    num_steps, tokens = plan.num_steps - own[0].first_step, sum(stage.tokens for stage in own)
    operations = sum(stage.tokens * model.flops_per_token(rows, stage.sequence_length) for stage in own)
    peak = peak_tflops or config.logging.peak_tflops or _PEAK_TFLOPS[config.precision]
    gpus = config.parallel.tensor * config.parallel.pipeline * config.parallel.context * data
    hours = operations / (peak * 1e12 * mfu) / 3600
    return [
        f"model             {parameters:,} parameters, {body:,} of them outside the embeddings; {config.precision}",
        f"vocabulary        {inputs.tokenizer.vocab_size:,} pieces in {rows:,} rows",
        *_layout_lines(config, rows, data),
        *_width_lines(config),
        f"training          {num_steps:,} steps, {tokens:,} tokens, {tokens / parameters:.3g} tokens per parameter",
        f"operations        {operations:.3g} floating-point operations, forward and backward; {operations / tokens:.4g} per token",
        f"time              {_hours(hours / gpus)} hours on {gpus} GPU(s), {_hours(hours)} GPU-hours, at {mfu:.0%} MFU of {peak:g} TFLOP/s",
        *_memory_lines(config, rows, data),
        *_checkpoint_lines(config, plan.num_steps, rows),
        f"validation        {_every(config.validation.every_steps)}",
    ]


def suggestion_lines(config: RunConfig, inputs: Inputs, arguments: Namespace) -> list[str]:
    """Layouts that fit, as a table, or as one JSON list."""
    if config.engine != "megatron":
        raise UserError(f"check --suggest: proposes layouts of engine 'megatron', and this run's is '{config.engine}'; add engine=megatron")
    rows = padded_vocab_size(inputs.tokenizer.vocab_size, config.model.vocab_multiple)
    peak = arguments.peak_tflops or config.logging.peak_tflops or _PEAK_TFLOPS[config.precision]
    found = suggest(config, inputs.plan, rows, num_gpus=arguments.gpus, memory=arguments.memory * GIB, peak_tflops=peak)
    if arguments.json:
        return [json.dumps([suggestion.as_json() for suggestion in found], indent=2)]
    head = (
        f"{arguments.gpus} GPU(s) of {arguments.memory:g} GiB, {RESERVE:.0%} left free, and {peak:g} TFLOP/s: {len(found)} layouts fit; "
        "the fastest by the cost model of docs/planner.md first"
    )
    return [head, "", *suggestion_table(found[:_SHOWN])]


def main(argv: Sequence[str]) -> int:
    """Run the verb; raises UserError for anything that would stop the run."""
    arguments = _arguments(argv)
    config = resolve_branch(load_config(arguments.run, RunConfig, arguments.overrides))
    data = data_ranks(config, arguments.gpus) if arguments.gpus and not arguments.suggest else 1
    inputs = open_inputs(config)
    initial, trunk = find_initial(config, inputs.tokenizer), find_trunk(config, inputs)
    if arguments.suggest:
        print("\n".join(suggestion_lines(config, inputs, arguments)))
        return 0
    for reader in (*inputs.readers.values(), *inputs.validation.values()):
        reader.read_all_sidecars()  # what is damaged there is found now
    cautious = run_cautions(config, inputs)
    last = inputs.plan.num_steps - 1
    from_step = (config.branch.step if config.branch else 0) if arguments.from_step is None else arguments.from_step
    if not 0 <= from_step <= last:
        _parser().error(f"--from-step {from_step}: the plan has the steps 0 to {last}")
    facts = model_lines(config, inputs, data=data, mfu=arguments.mfu, peak_tflops=arguments.peak_tflops)
    if trunk is not None:
        facts.append(f"branch            {trunk.folder}: {trunk.record.run}, step {trunk.step:,}")
    facts += reading_lines(config, inputs, data)
    if initial is not None:
        facts.append(f"initial weights   {initial.folder}: {initial.record.run}, step {initial.step:,}, of {initial.record.engine}")
    lines = [f"{arguments.run}: valid", "", *facts, "", *plan_table(inputs.plan), "", *schedule_table(config, inputs.plan)]
    lines += [f"caution: {caution}" for caution in cautious]
    if arguments.batches:
        decode = importlib.import_module("megatron_codemix.train.decode")  # needs torch, which takes seconds to import
        lines += ["", *decode.batch_lines(config, inputs, from_step, arguments.batches)]
    print("\n".join(lines))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="codemix check", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="run config; see docs/config.md")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="fields to set after reading the file; values are YAML")
    parser.add_argument("--gpus", type=int, metavar="N", help="processes of the run (default: one data-parallel rank)")
    parser.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="share of the peak for the hours (default 0.4)")
    parser.add_argument("--peak-tflops", type=float, metavar="T", help="of one GPU (default: logging.peak_tflops, else an H100's)")
    parser.add_argument("--suggest", action="store_true", help="propose layouts for --gpus that fit into --memory")
    parser.add_argument("--memory", type=float, default=80.0, metavar="GIB", help="of one GPU, for --suggest (default 80)")
    parser.add_argument("--json", action="store_true", help="suggestions as JSON, all of them")
    parser.add_argument("--batches", type=int, default=0, metavar="N", help="decode N global batches")
    parser.add_argument("--from-step", type=int, metavar="STEP", help="first step to decode (default: the run's first)")
    return parser


def _arguments(argv: Sequence[str]) -> Namespace:
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)  # overrides may stand before and after options
    if arguments.batches < 0:
        parser.error(f"--batches {arguments.batches}: give a number of global batches, 1 or more")
    if arguments.gpus is not None and arguments.gpus < 1:
        parser.error(f"--gpus {arguments.gpus}: give a number of GPUs, 1 or more")
    if not 0 < arguments.mfu <= 1:
        parser.error(f"--mfu {arguments.mfu:g}: give a share above 0, at most 1")
    for option in ("memory", "peak_tflops"):
        value = getattr(arguments, option)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{option.replace('_', '-')} {value:g}: give a number above 0")
    if arguments.suggest and arguments.gpus is None:
        parser.error("--suggest: needs --gpus N, the number of GPUs to lay the run out on")
    if arguments.json and not arguments.suggest:
        parser.error("--json: goes with --suggest")
    return arguments
