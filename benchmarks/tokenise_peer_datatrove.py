"""datatrove's way from JSON lines to tokens on disk, for `tokenise.py`; runs in an environment of its own.

DATATROVE_PYTHON benchmarks/tokenise_peer_datatrove.py TOKENIZER.json OUTPUT WORKERS FOLDER
"""

from __future__ import annotations

import sys

from datatrove.executor import LocalPipelineExecutor  # pyright: ignore[reportMissingImports]
from datatrove.pipeline.readers import JsonlReader  # pyright: ignore[reportMissingImports]
from datatrove.pipeline.tokens import DocumentTokenizer  # pyright: ignore[reportMissingImports]


def main(tokenizer: str, output: str, workers: str, folder: str) -> None:
    """Tokenise every file of a folder, a task each, without shuffling."""
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder, glob_pattern="*.jsonl*"),
            DocumentTokenizer(
                output_folder=f"{output}/tokens",
                tokenizer_name_or_path=tokenizer,
                eos_token="<|endoftext|>",
                shuffle_documents=False,
                save_index=True,
            ),
        ],
        tasks=int(workers),
        workers=int(workers),
        logging_dir=f"{output}/logs",
        skip_completed=False,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
