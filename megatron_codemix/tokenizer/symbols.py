"""The symbols every codemix tokenizer reserves, in the order of their ids.

All are SentencePiece CONTROL pieces: no text is ever encoded to one, so a document that spells
`<|endoftext|>` stays a document. Their ids are the same in every vocabulary (0 … NUM_RESERVED - 1), which
lets objectives, chat templates and checkpoints name them before a tokenizer exists. New symbols take the
place of a spare, never a place in the middle.
"""

from __future__ import annotations

UNKNOWN = "<unk>"
BEGIN_OF_TEXT = "<|beginoftext|>"
END_OF_TEXT = "<|endoftext|>"
PAD = "<pad>"

_FIM = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
_OBJECTIVES = ("<mask>", "<comments>", "<text>", "<code>")
_STRUCTURE = ("<NEW_LINE>", "<INDENT>", "<DEDENT>")
_CHAT = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>")
_REPOSITORY = ("<repo_name>", "<file_name>", "<file_sep>")
LANGUAGES = (
    *("python", "java", "javascript", "typescript", "go", "rust", "c", "cpp", "csharp", "php", "ruby", "kotlin", "swift", "scala"),
    *("haskell", "lua", "perl", "r", "julia", "shell", "sql", "html", "css", "json", "yaml", "markdown", "tex", "assembly"),
)
"""Languages with a tag of their own, `<python>` …; natural language is `<text>`."""
NUM_SPARES = 64

RESERVED: tuple[str, ...] = (
    *(UNKNOWN, BEGIN_OF_TEXT, END_OF_TEXT, PAD),
    *_FIM,
    *_OBJECTIVES,
    *_STRUCTURE,
    *_CHAT,
    *_REPOSITORY,
    *(f"<{language}>" for language in LANGUAGES),
    *(f"<spare_{number}>" for number in range(NUM_SPARES)),
)
"""Every reserved symbol; its place is its id."""
NUM_RESERVED = len(RESERVED)

SPACE = "\u2581"
"""SentencePiece's name for a space inside a piece; a literal one in a document is cut out (see tokenizer.py)."""

WHITESPACE: tuple[str, ...] = (
    *("\n", "\n\n", "\n\n\n"),
    *("\t", "\t\t", "\t\t\t", "\t\t\t\t"),
    *("\r\n", "\r"),
    # written with U+2581: SentencePiece silently never matches a symbol written as plain spaces
    *(SPACE * length for length in (*range(2, 17), 20, 24, 28, 32)),
)
"""Runs of whitespace that are one token each; the longest match from the left wins."""
