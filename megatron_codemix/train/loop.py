"""The main loop. `assemble.open_run` opened everything it needs; the config decides everything it does."""

from __future__ import annotations

from megatron_codemix.train.run import Run


def train(run: Run) -> bool:
    """Make every update from `run.first_step` to the plan's end; False when asked to stop before it.

    Step s reads the plan's samples of step s and keeps nothing of the steps before it but the engine's state and
    the ledger, so a run stopped or killed anywhere continues from its newest checkpoint as if it had not been.
    """
    run.validate_what_was_missed()
    for step in range(run.first_step, run.plan.num_steps):
        rate = run.learning_rate(step)
        with run.meter.timed():
            with run.meter.loading():
                batches = run.loader.batches(step)
            result = run.engine.train_step(batches, rate)
        done = step + 1
        run.ledger.count(batches)
        run.recorder.step(done, run.plan.stage_at(step), result, rate)

        stop = run.exchange(done)
        if stop or run.save_due(done):
            run.save(done, leaving=stop)
        if stop and done < run.plan.num_steps:
            return False
        if run.validation_due(done):
            run.validate(done)
    return True
