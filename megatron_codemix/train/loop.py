"""The main loop. `assemble.open_run` opened everything it needs; the config decides everything it does."""

from __future__ import annotations

from megatron_codemix.train.going_back import go_back
from megatron_codemix.train.run import Run


def train(run: Run) -> bool:
    """Make every update from `run.first_step` to the plan's end; False when asked to stop before it.

    Step s reads the plan's samples of step s and keeps nothing of the steps before it but the engine's state, the
    ledger and the guard's memory, all of which lie in a checkpoint: so a run stopped or killed anywhere continues from
    its newest one as if it had not been. The guard may refuse an update, or send the run back to a checkpoint.
    """
    run.validate_what_was_missed()
    run.record_an_early_end()
    for step in run.steps():
        if why := run.guard.leaves_out(step):
            run.pass_over(step, why)
        else:
            rate = run.learning_rate(step)
            with run.meter.timed():
                with run.meter.loading():
                    batches = run.loader.batches(step)
                result = run.engine.train_step(batches, rate, run.guard.at(step))
            run.made(step, batches, result, rate)
            if run.guard.verdict.action == "rewind":
                go_back(run, step)
                continue
        done = step + 1

        stop = run.exchange(done)
        if stop or run.save_due(done):
            run.save(done, leaving=stop)
        if stop and done < run.plan.num_steps:
            return False
        if run.validation_due(done):
            run.validate(done)
    return True
