"""codemix in miniature: the same files, no model. FAIL=ARM:STAGE makes a stage fail, HANG=ARM makes training hang."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path


def train(path, processes=1):
    from megatron_codemix.checkpoint import NEUTRAL, State
    from megatron_codemix.checkpoint.record import FileEntry
    from megatron_codemix.checkpoint.state import write_state
    from megatron_codemix.checkpoint.store import step_folder
    from megatron_codemix.config import RunConfig, load_config
    from megatron_codemix.train.inputs import open_inputs

    config = load_config(Path(path), RunConfig)
    if os.environ.get("HANG") == config.name:
        Path(os.environ["STARTED"]).touch()
        time.sleep(60)
    inputs = open_inputs(config)
    plan = inputs.plan
    config.output.mkdir(parents=True, exist_ok=True)
    per_step = config.stages[0].batch_size * config.stages[0].sequence_length
    with open(config.output / "log.jsonl", "a") as log:
        for step in range(1, plan.num_steps + 1):
            line = {
                "kind": "step",
                "step": step,
                "stage": "main",
                "loss": 8 - step / plan.num_steps + processes * step * 1e-6,
                "tokens": step * per_step,
                "learning_rate": 1e-3,
                "grad_norm": 1.0,
                "tokens_per_second": 1e4,
                "tflops": 0.1,
                "mfu": None,
                "seconds": 0.1,
            }
            log.write(json.dumps(line) + "\n")
        for name in config.sources:
            line = {
                "kind": "validation",
                "step": plan.num_steps,
                "tokens": plan.num_steps * per_step,
                "source": name,
                "loss": 2.0,
                "bits_per_byte": 3.0,
                "target_tokens": 10,
                "bytes": 30,
            }
            log.write(json.dumps(line) + "\n")
    sources = {}
    for name, windows in plan.cursors(plan.num_steps).items():
        tokens = windows * config.stages[0].sequence_length
        sources[name] = {"windows": windows, "tokens": tokens, "targets": tokens, "padding": 0, "bytes": 3 * tokens, "hash": "0" * 32}
    state = State(
        step=plan.num_steps,
        config=config,
        vocab_size=inputs.tokenizer.vocab_size,
        plan=plan.fingerprint,
        tokenizer_model=inputs.tokenizer.model,
        cursors=plan.cursors(plan.num_steps),
        ledger={"format_version": 1, "sources": sources},
        lineage={},
        world_size=processes,
    )
    folder = step_folder(config.output, plan.num_steps)
    (folder / "weights").mkdir(parents=True)
    weights = config.name.encode()
    (folder / "weights" / "all.bin").write_bytes(weights)
    write_state(folder, state, NEUTRAL, {"weights/all.bin": FileEntry(size=len(weights), sha256=hashlib.sha256(weights).hexdigest())})
    return config.name


def main(verb, *rest):
    paths = {"train": 0, "audit": 0, "convert": 2, "eval": 0}
    arm = Path(rest[0]).name if verb == "audit" else Path(rest[paths[verb]]).parent.name
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"{arm}:{verb}\n")
    if os.environ.get("FAIL") == f"{arm}:{verb}":
        print("line before the end\nthis is why it failed")
        sys.exit(3)
    if verb == "train":
        train(rest[0], int(rest[2]) if rest[1:2] == ("--nproc",) else 1)
    elif verb == "audit":
        print("code and text agree with the plan")
    elif verb == "convert":
        out = Path(rest[2])
        out.mkdir()
        (out / "codemix.json").write_text(json.dumps({"agreement": {"largest_difference": 2e-6, "positions": 9}}))
    elif verb == "eval":
        out = Path(rest[rest.index("--output") + 1])
        out.mkdir(exist_ok=True)
        place = int(hashlib.sha256(arm.encode()).hexdigest()[:6], 16) / 2**24
        tasks = {
            pair.split("=")[0]: {
                "kind": "bits_per_byte",
                "num_items": 3,
                "items": "-",
                "metrics": {"bits_per_byte": 2 + place, "nats": 1.0, "bytes": 9, "tokens": 4, "documents": 3},
            }
            for pair in rest
            if "=" in pair
        }
        (out / "results.json").write_text(json.dumps({"format_version": 1, "tasks": tasks}))


main(*sys.argv[1:])
