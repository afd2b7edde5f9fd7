"""Checkpoints: what is in one, publishing it whole, and turning it into a Hugging Face directory."""

from __future__ import annotations
