"""`codemix prep fetch`: the beginning of a public dataset, as JSON lines on this disk.

Rows are read as a stream and written as they are into files of some 128 MiB of text each, until about as many tokens are
there as were asked for. How many bytes a token has is an assumption (--bytes-per-token) until a tokenizer is there.
A fetch that was killed, or is to become larger, continues behind its last whole file when the command is given again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import huggingface_hub
import orjson
import zstandard

from data_prep.documents import Tally
from data_prep.presets import PRESETS
from data_prep.sources.huggingface import one_line, open_stream
from data_prep.sources.rows import RowReader
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import SourceSpec
from megatron_codemix.config.prep import HuggingFaceData
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.files import atomic_file, read_json, sha256_file, write_json
from megatron_codemix.progress import progress

RECORD_NAME = "fetch.json"
_FILE_BYTES = 128 << 20
_BYTES_PER_TOKEN = {"text": 4.0, "code": 3.0}


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, PRESETS))
    known = "\n".join(f"  {name:<{width}}  {preset.about}" for name, preset in PRESETS.items())
    parser = ArgumentParser(prog="codemix prep fetch", description=__doc__, epilog=f"presets (docs/data-access.md):\n{known}")
    parser.add_argument("preset", help="one of those below")
    parser.add_argument("--tokens", type=float, required=True, help="about how many tokens of text to fetch (1e9)")
    parser.add_argument("--output", type=Path, required=True, help="folder that receives PRESET-00000.jsonl.zst … and fetch.json")
    parser.add_argument("--from", dest="place", help="another place of the same data: a folder here, or a dataset's name")
    parser.add_argument("--revision", help="commit or tag; default: the newest, which fetch.json then names")
    parser.add_argument("--config", help="configuration of the dataset; default: the preset's")
    parser.add_argument("--data-dir", help="folder inside the dataset, such as data/python")
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE", help="rows to take; may be given several times")
    parser.add_argument("--bytes-per-token", type=float, help="default: 4 for text, 3 for code")
    return parser


def main(argv: Sequence[str]) -> int:
    """`codemix prep fetch PRESET --tokens N --output DIR`."""
    arguments = _parser().parse_args(argv)
    if arguments.preset not in PRESETS:
        raise UserError(f"unknown preset '{arguments.preset}'; one of: {', '.join(PRESETS)}")
    preset = PRESETS[arguments.preset]
    bytes_per_token = arguments.bytes_per_token if arguments.bytes_per_token is not None else _BYTES_PER_TOKEN[preset.modality]
    for name, value in (("--tokens", arguments.tokens), ("--bytes-per-token", bytes_per_token)):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}: {value} is not a number above 0; give one")
    if preset.access == "withdrawn" and not arguments.place:
        raise UserError(f"{arguments.preset} ({preset.dataset}) cannot be fetched: {preset.way_out}")
    wanted = HuggingFaceData(
        name=arguments.place or preset.dataset,
        config=arguments.config or (None if arguments.place else preset.config),
        data_dir=arguments.data_dir or (None if arguments.place else preset.data_dir),
        split=preset.split,
        revision=arguments.revision,
        network=True,
    )
    only = _only(arguments.only) or dict(preset.only)
    record = fetch(arguments.preset, wanted, only, arguments.output, int(arguments.tokens * bytes_per_token))
    _report(arguments.preset, record, arguments.output, bytes_per_token, arguments.tokens)
    return 0


def _only(given: list[str]) -> dict[str, list[str]]:
    only: dict[str, list[str]] = {}
    for item in given:
        key, sign, value = item.partition("=")
        if not sign:
            raise UserError(f"--only {item}: must be KEY=VALUE, such as meta.pile_set_name=Github")
        only.setdefault(key, []).append(value)
    return only


def _report(name: str, record: dict[str, Any], output: Path, bytes_per_token: float, tokens: float) -> None:
    text_bytes = _text_bytes(record)
    skipped = "".join(f", {count:,} {reason}" for reason, count in record["skipped"].items())
    print(
        f"{output}: {sum(file['rows'] for file in record['files']):,} rows, {text_bytes / 1e6:,.1f} MB of text in {len(record['files'])} "
        f"files{skipped}: about {text_bytes / bytes_per_token:,.0f} tokens, if a token has {bytes_per_token:g} bytes"
    )
    if record["complete"] and text_bytes < tokens * bytes_per_token:
        print(f"{output}: that is all there is: fewer than the {tokens:,.0f} tokens that were asked for")
    preset = PRESETS[name]
    print("for the prep file:\n  sources:")
    print(f"    {name}: {{kind: jsonl, paths: [{output}], rows: {preset.rows}, modality: {preset.modality}, on_undecodable: skip}}")


def fetch(name: str, wanted: HuggingFaceData, only: dict[str, list[str]], output: Path, text_bytes: int) -> dict[str, Any]:
    """Fetch rows of a preset until they hold `text_bytes` bytes of text, or end; returns the record that stands in OUTPUT/fetch.json.

    only: rows to take, as `sources.NAME.only` of a prep file.
    Raises UserError for data that cannot be had and for a folder that holds another fetch; JobError where the connection breaks.
    """
    record = _begin(name, wanted, only, output)
    done = _text_bytes(record)
    if done >= text_bytes or record["complete"]:
        return record
    wanted = wanted.model_copy(update={"revision": record["dataset"]["revision"]})
    with _opening(name, wanted):
        dataset = open_stream(wanted)
        if record["state"] is not None:
            dataset.load_state_dict(record["state"])
    tally = Tally()
    tally.skipped.update(record["skipped"])
    stream = _rows(name, _reader(name, wanted, only), iter(dataset), tally)
    with progress(f"fetch {name}", text_bytes, "bytes of text") as bar:
        bar.advance(done)
        while done < text_bytes:
            first = next(stream, None)
            if first is not None:
                path = output / f"{name}-{len(record['files']):05d}.jsonl.zst"
                with _writing(path), atomic_file(path) as handle:
                    num_rows, num_bytes = _write(handle, chain([first], stream), min(_FILE_BYTES, text_bytes - done), bar)
                file = {"name": path.name, "rows": num_rows, "text_bytes": num_bytes, "size": path.stat().st_size}
                record["files"].append({**file, "sha256": sha256_file(path)})
                done += num_bytes
            record |= {"state": dataset.state_dict(), "skipped": dict(tally.skipped), "complete": first is None}
            write_json(output / RECORD_NAME, record)
            if first is None:
                break
    return record


def _text_bytes(record: dict[str, Any]) -> int:
    return sum(file["text_bytes"] for file in record["files"])


def _begin(name: str, wanted: HuggingFaceData, only: dict[str, list[str]], output: Path) -> dict[str, Any]:
    """The record of the fetch in `output`, or a new one. Raises UserError where another one is there, or files of it are gone."""
    described = wanted.model_dump(mode="json", exclude={"network", "revision"})
    if (output / RECORD_NAME).exists():
        record = read_json(output / RECORD_NAME, "record of a fetch")
        there = {key: value for key, value in record["dataset"].items() if key != "revision"}
        same = record["preset"] == name and there == described and record["only"] == only
        if not same or wanted.revision not in (None, record["dataset"]["revision"]):
            raise UserError(f"{output}: holds a fetch of {record['preset']} from {record['dataset']['name']}; give another --output")
        for file in record["files"]:
            path = output / file["name"]
            if not path.is_file() or path.stat().st_size != file["size"]:
                raise UserError(f"{path}: is gone or was changed; delete {output} and fetch anew")
        for leftover in output.glob(f".{name}-*.tmp"):
            leftover.unlink()
        return record
    if output.exists() and any(not path.name.startswith(".") for path in output.iterdir()):
        raise UserError(f"{output}: is not empty and holds no {RECORD_NAME}; give another --output")
    revision = wanted.revision
    if not Path(wanted.name).is_dir():
        with _opening(name, wanted):
            revision = huggingface_hub.HfApi().dataset_info(wanted.name, revision=wanted.revision).sha
    record = {"format_version": 1, "preset": name, "dataset": {**described, "revision": revision}, "only": only, "files": []}
    return {**record, "skipped": {}, "state": None, "complete": False}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JobError(f"{path}: cannot be written ({error.strerror or error}); make room and give the same command again") from None


@contextmanager
def _opening(name: str, wanted: HuggingFaceData) -> Iterator[None]:
    preset = PRESETS[name]
    try:
        yield
    except Exception as error:  # whatever the hub, its client and the network raise
        raise UserError(f"{name} ({wanted.name}) cannot be opened ({one_line(error)}); {preset.way_out}: docs/data-access.md") from None


def _reader(name: str, wanted: HuggingFaceData, only: dict[str, list[str]]) -> RowReader:
    rows, modality = PRESETS[name].rows, PRESETS[name].modality
    spec = SourceSpec(kind="huggingface", dataset=wanted, rows=rows, modality=modality, only=only, on_undecodable="skip")
    return RowReader(name, spec, with_fields=False)


def _rows(name: str, reader: RowReader, dataset: Iterator[Any], tally: Tally) -> Iterator[tuple[bytes, int]]:
    """(JSON of a row, bytes of its text); rows that make no document are counted."""
    while True:
        try:
            row = next(dataset)
        except StopIteration:
            return
        except Exception as error:  # whatever the hub, its client and the network raise
            raise JobError(f"{name}: broke off ({one_line(error)}); give the same command again to continue") from None
        document = reader.document(row, "", lambda: name, tally)
        if document is None:
            continue
        try:
            yield orjson.dumps(row, default=str) + b"\n", len(document.text.encode("utf-8"))
        except (TypeError, UnicodeEncodeError):
            tally.skipped["undecodable"] += 1


def _write(handle: BinaryIO, rows: Iterator[tuple[bytes, int]], enough: int, bar: Any) -> tuple[int, int]:
    """Write rows until they hold `enough` bytes of text; returns (rows, bytes of text)."""
    num_rows = num_bytes = 0
    packer = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with packer.stream_writer(handle, closefd=False) as packed:
        for line, size in rows:
            packed.write(line)
            num_rows += 1
            num_bytes += size
            bar.advance(size)
            if num_bytes >= enough:
                break
    return num_rows, num_bytes
