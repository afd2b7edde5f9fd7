"""`python -m megatron_codemix VERB …` is `codemix VERB …`."""

import sys

from megatron_codemix.cli import main

if __name__ == "__main__":
    sys.exit(main())
