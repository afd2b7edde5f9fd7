"""Batch scripts for SLURM clusters; no logic that belongs in Python."""
