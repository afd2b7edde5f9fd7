"""DeepSpeed's ZeRO around our model. Nothing outside imports it but `engine.build_engine`, and only for `engine: deepspeed`."""

from megatron_codemix.engine.zero.engine import DeepSpeedEngine

__all__ = ["DeepSpeedEngine"]
