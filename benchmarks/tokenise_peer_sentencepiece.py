"""The plain pipeline that `tokenise.py` compares with: JSON lines → SentencePiece → one webdataset sample a document.

python benchmarks/tokenise_peer_sentencepiece.py MODEL OUTPUT.tar FILE [FILE …]
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import webdataset


def main(model: str, output: str, *files: str) -> None:
    """Ids of every document as a .npy member, keyed by file and line."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=model)
    dtype = np.uint16 if tokenizer.vocab_size() <= 1 << 16 else np.uint32
    with webdataset.TarWriter(output) as shard:  # pyright: ignore[reportAttributeAccessIssue]
        for place, file in enumerate(files):
            opened = gzip.open if file.endswith(".gz") else open
            with opened(file, "rb") as lines:
                for number, line in enumerate(lines):
                    ids = tokenizer.encode(json.loads(line)["text"])
                    shard.write({"__key__": f"{place:02d}{Path(file).name.split('.')[0]}-{number:08d}", "npy": np.array(ids, dtype)})


if __name__ == "__main__":
    main(*sys.argv[1:])
