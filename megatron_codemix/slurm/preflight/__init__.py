"""Is every node fit to train on? Looked at before each start of a job: a bad node is named, with its reason, and left out.

    python -m megatron_codemix.slurm.preflight …      from the batch script, and `codemix preflight` by hand (command.py)

coordinator.py starts an agent on every node (agent.py, by channel.py), which does its own checks (checks.py, and worker.py with
torch) and answers; pairs.py says who tries an all-reduce with whom, verdict.py what all of it means. Only worker.py imports torch,
in processes of its own. The faces are the modules: `settings` (what a site asks for) and `command`.
"""

__all__: list[str] = []
