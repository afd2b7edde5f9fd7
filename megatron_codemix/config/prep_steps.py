"""What may be done to the documents of a source: every step is optional, and each counts what it left out or changed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_codemix.config.section import Count, FilePath, Section

LanguageClass = Literal["code", "markup", "adjacent", "data", "prose"]


class LanguageStep(Section):
    """Which languages stay. A document's language is its row's, else that of its path's suffix, else (with `detect`) of its text."""

    allow: list[str] = []
    """Names to keep, lower case ('python', 'c++', 'en'); empty: all."""
    deny: list[str] = []
    """Names to leave out."""
    classes: list[LanguageClass] = []
    """Classes to keep; empty: all. 'markup' is HTML, CSS, Markdown, XML …: two sources that read the same input, one with
    classes: [code] and one with classes: [markup], keep markup apart."""
    detect: bool = False
    """Find out the natural language of documents that name none, from their text."""
    min_confidence: float = Field(default=0.65, ge=0.0, le=1.0)
    """With `detect`: below this probability the language counts as unknown."""
    unknown: Literal["keep", "drop"] = "keep"
    """What becomes of documents of unknown language."""


class LicenseStep(Section):
    """Which licences stay, as SPDX identifiers."""

    allow: list[str] = []
    """SPDX identifiers to keep, such as ['MIT', 'Apache-2.0']; 'permissive' stands for the permissive ones. Of an expression
    'A OR B' one suffices, of 'A AND B' all are needed. Empty: all."""
    unknown: Literal["keep", "drop"] = "drop"
    """What becomes of documents without a licence, or with one that is not recognised."""


class RenderStep(Section):
    """Notebooks, commits and issues as plain text: 'code-adjacent' data."""

    form: Literal["notebook", "commit", "issue", "stackexchange"]
    """What the documents are. The others' fields come from the rows: docs/data-prep.md names them."""
    outputs: bool = True
    """notebook: keep the textual outputs of cells."""
    max_output_bytes: Count = 2000
    """notebook: longer outputs are cut. commit: longer diffs are left out and counted."""


class TextQuality(Section):
    """Filters for natural language. Thresholds are those of the papers unless set here."""

    rules: list[Literal["gopher", "gopher_repetition", "c4"]] = ["gopher", "gopher_repetition", "c4"]
    """gopher, gopher_repetition: Rae et al. 2021, arXiv 2112.11446, table A1. c4: Raffel et al. 2020, arXiv 1910.10683, section 2.2."""
    min_words: Count = 50
    """gopher."""
    max_words: Count = 100_000
    """gopher."""
    min_mean_word_length: float = 3.0
    """gopher: characters."""
    max_mean_word_length: float = 10.0
    """gopher: characters."""
    c4_min_sentences: Count = 5
    """c4: sentences a page must have at the least."""
    c4_keep_lines: bool = False
    """c4: true leaves every line as it is (no removal of lines without final punctuation), for books and documentation."""


class CodeQuality(Section):
    """Filters for code: Li et al. 2023 (StarCoder), arXiv 2305.06161, section 3.2, and Chen et al. 2021 (Codex), arXiv 2107.03374,
    section 3.1."""

    max_line_length: Count = 1000
    """Characters of the longest line."""
    max_mean_line_length: float = 100.0
    """Characters."""
    min_alphabetic: float = Field(default=0.25, ge=0.0, le=1.0)
    """Least share of alphabetic characters."""
    max_bytes: Count = 1_048_576
    """UTF-8 bytes of a file."""
    generated: bool = True
    """Leave out what says that it was generated ('auto-generated', 'DO NOT EDIT' …) in its first lines, and minified files."""
    xml: bool = True
    """Leave out files that begin with '<?xml version=' but are not XML by their suffix."""
    html_min_visible: float = Field(default=0.2, ge=0.0, le=1.0)
    """HTML: least share of visible text (which must also be 100 characters)."""
    data_files: bool = True
    """JSON and YAML outside 50 … 5000 characters or with less than half of them alphabetic are left out."""
    min_comments: float = Field(default=0.0, ge=0.0, le=1.0)
    """Least share of comment and docstring bytes (StarCoder used 0.01 for some languages); 0: not looked at."""
    max_comments: float = Field(default=1.0, ge=0.0, le=1.0)
    """Largest such share (StarCoder: 0.8); 1: not looked at."""


class Secrets(Section):
    """Keys, tokens and passwords: detect-secrets behind a fast prefilter."""

    action: Literal["mask", "drop"] = "mask"
    """mask: a placeholder takes the secret's place; drop: the document is left out."""


class PersonalData(Section):
    """E-mail and IP addresses → placeholders."""

    email: bool = True
    """Mask e-mail addresses."""
    ip: bool = True
    """Mask public IPv4 and IPv6 addresses (private and documentation ranges stay)."""
    phone: bool = False
    """Mask telephone numbers (international form)."""


class CleanSteps(Section):
    """Per-document steps in the order in which they are done; null: not done."""

    render: RenderStep | None = None
    """Notebooks, commits and issues as plain text."""
    language: LanguageStep | None = None
    """Which languages stay."""
    license: LicenseStep | None = None
    """Which licences stay."""
    text_quality: TextQuality | None = None
    """Filters for natural language."""
    code_quality: CodeQuality | None = None
    """Filters for code."""
    secrets: Secrets | None = None
    """Keys, tokens and passwords."""
    personal_data: PersonalData | None = None
    """E-mail and IP addresses."""


class Pairs(Section):
    """(docstring, function) pairs instead of files: Christopoulou et al. 2024, arXiv 2402.05783. Where duplicates of the source are looked
    for, pairs are made before: as there, equal ones are removed over the whole corpus."""

    form: Literal["docstring_first", "signature_first"] = "docstring_first"
    """docstring_first: <comments> docstring <python> code, the signature inside the code (the paper's PanGu form);
    signature_first: <|beginoftext|> signature <comments> docstring <python> body. Both end with end of text."""
    layout: Literal["symbols", "text"] = "symbols"
    """symbols: <NEW_LINE> <INDENT> <DEDENT> for line ends and changes of indentation; text: as they stand in the file."""
    min_docstring_words: Count = 3
    """Shorter docstrings make no pair."""
    max_bytes: Count = 32_768
    """Longer functions make no pair."""


class Repositories(Section):
    """Files of one repository together: one document after the other, or joined, files after those they depend on."""

    order: Literal["dependencies", "path"] = "dependencies"
    """dependencies: a file follows those it imports (cycles are cut at the file of fewest open imports); path: by name."""
    join: bool = True
    """One document per repository, files behind <file_sep> and their path; false: a document per file, neighbours in order."""
    max_bytes: Count = 1_048_576
    """A joined document is closed once it has so many bytes; a repository then gives several."""


class ShapeSteps(Section):
    """What turns clean documents into what is trained on, after duplicates were removed (pairs: before); null: not done."""

    control: Literal["scramble_identifiers", "comments_only", "strip_comments", "placebo"] | None = None
    """A control for "it is the code": identifiers replaced one for one by meaningless ones; comments and docstrings alone; code
    without them; words in random order with the document's own statistics."""
    pairs: Pairs | None = None
    """(docstring, function) pairs instead of files."""
    repositories: Repositories | None = None
    """Files of one repository together, in order."""
    segments: bool = False
    """Find comments, docstrings, signatures and bodies of functions by syntax, and write them to segments.npy."""


class NearDuplicates(Section):
    """MinHash over word shingles with locality-sensitive hashing, candidates verified."""

    threshold: float = Field(default=0.7, gt=0.0, le=1.0)
    """Jaccard similarity of shingle sets from which two documents are the same."""
    shingle_words: Count = 5
    """Words in a shingle."""
    permutations: int = Field(default=128, ge=16, le=4096)
    """Hash functions in a signature: more find more of the pairs just at the threshold, and cost 4 bytes a document each."""
    seed: int = 0
    """Keys the hash functions."""


class Deduplicate(Section):
    """Duplicates within and across sources; the first in the order of the sources, then of their inputs, stays."""

    exact: bool = True
    """Equal texts but for whitespace."""
    near: NearDuplicates | None = None
    """Texts that share most of their word shingles; null: not looked for."""
    sources: list[str] = []
    """Sources looked at; empty: all."""


class Decontaminate(Section):
    """Documents that hold items of benchmarks are left out; what they were compared with stands in every manifest."""

    against: list[FilePath] = Field(min_length=1)
    """Benchmark files (.jsonl, .json, .csv, .tsv, .txt, each also .gz), or folders searched for them."""
    fields: list[str] = []
    """Keys of rows to compare, at any depth; of .csv and .tsv files columns that their first line names. Empty: every text."""
    ngram_words: int = Field(default=10, ge=6)
    """A document is left out when it shares a run of so many words with an item, or holds a question (of 6 words or more) whole;
    one of over 20,000 characters for a run that is three tenths longer, or two of one item. Runs of numbers, keywords or the same
    words again tell nothing and do not count; the record counts items without others."""
    code_ngram_words: int = Field(default=20, ge=10)
    """Sources of code are compared a second time with every identifier made the same word: a run of so many such words is a leak
    too, and so is a whole solution or test (of 14 words or more)."""
