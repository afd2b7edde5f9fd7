"""Training: `codemix train RUN.yaml` and the pieces of its one-screen loop.

The public face is what other packages read of a run; it imports no torch. `command.main` trains.
"""

from megatron_codemix.train.log import finished, read_log
from megatron_codemix.train.schedule import learning_rate

__all__ = ["finished", "learning_rate", "read_log"]
