"""Slurm: jobs written, submitted, followed, started again. `codemix submit` and `codemix jobs`; the batch scripts are launch_scripts'.

Imports no torch, and here nothing at all: `python -m megatron_codemix.slurm.chain` must start in a fraction of a second.
The faces are the modules: `site` (what a cluster asks), `script` (a batch script as text), `submit` (sbatch), `chain` (what follows
a start).
"""

__all__: list[str] = []
