"""The dataset in other forms: OpenAI messages, ShareGPT, Alpaca, Parquet. Each is written from the dataset's own files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from potstill.config import ExportFormat
from potstill.errors import MachineError
from potstill.files import LineFile, read_lines, whole_file
from potstill.generate.dataset import SPLITS
from potstill.records import Sample, from_json
from potstill.workspace import Workspace

Row = dict[str, Any]
PARQUET_ROWS = 10_000
"""Rows of one row group: what is held in memory at once."""
ANEW = "`potstill generate` writes the dataset anew, and pays nothing"
SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}


def export(workspace: Workspace, form: ExportFormat) -> list[Path]:
    """Write all splits that have samples in one form; gives the files. Raises MachineError where a library is missing."""
    written = []
    for split in SPLITS:
        samples = read_split(workspace, split)
        if form == "parquet":
            path = workspace.export(form, split, "parquet")
            rows = _write_parquet(path, samples)
        else:
            path = workspace.export(form, split, "jsonl")
            rows = _write_lines(path, FORMS[form], samples)
        if rows:
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return written


def read_split(workspace: Workspace, split: str) -> Iterator[Sample]:
    """The samples of a split, one at a time; raises InputError naming file and line."""
    path = workspace.split(split)
    for number, line in enumerate(read_lines(path, "dataset"), start=1):
        yield from_json(Sample, line, f"{path}:{number}", hint=ANEW)


def openai_rows(sample: Sample) -> Iterator[Row]:
    """`{"messages": [{"role", "content"}]}`: OpenAI fine-tuning, TRL, Axolotl's chat_template."""
    yield {"messages": [message.model_dump() for message in sample.messages]}


def sharegpt_rows(sample: Sample) -> Iterator[Row]:
    """`{"conversations": [{"from": "system|human|gpt", "value"}]}`: FastChat, LLaMA-Factory, Axolotl."""
    yield {
        "conversations": [
            {"from": SHAREGPT_NAMES[message.role], "value": message.content} for message in sample.messages
        ]
    }


def alpaca_rows(sample: Sample) -> Iterator[Row]:
    """`{"instruction", "input", "output", "system", "history"}`, as LLaMA-Factory reads it; `input` stays empty."""
    system = "\n".join(message.content for message in sample.messages if message.role == "system")
    turns = [message.content for message in sample.messages if message.role != "system"]
    pairs = list(zip(turns[::2], turns[1::2], strict=False))
    *history, (instruction, output) = pairs
    yield {
        "instruction": instruction,
        "input": "",
        "output": output,
        "system": system,
        "history": [list(pair) for pair in history],
    }


FORMS: Mapping[str, Callable[[Sample], Iterator[Row]]] = {
    "openai": openai_rows,
    "sharegpt": sharegpt_rows,
    "alpaca": alpaca_rows,
}


def _write_lines(path: Path, form: Callable[[Sample], Iterator[Row]], samples: Iterator[Sample]) -> int:
    file = LineFile(path)
    try:
        for sample in samples:
            for row in form(sample):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.publish()
    finally:
        file.discard()
    return file.lines


def _write_parquet(path: Path, samples: Iterator[Sample]) -> int:
    """All fields of a sample, messages as a list of structs; money as a decimal string, as in the JSON Lines."""
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter
    except ModuleNotFoundError as error:
        message = "Parquet needs pyarrow"
        raise MachineError(message, hint="pip install 'potstill[parquet]'") from error
    text, count = pa.string(), pa.int64()
    tokens = ("input_tokens", "output_tokens", "thinking_tokens", "cached_tokens")
    kinds = {
        "id": text,
        "messages": pa.list_(pa.struct([("role", text), ("content", text)])),
        "role": text,
        "prompt_id": text,
        "sample": count,
        "model": text,
        "finish_reason": text,
        "usage": pa.struct([(name, count) for name in tokens]),
        "cost_usd": text,
        "prompt_sha": text,
        "created_at": text,
    }
    schema, total = pa.schema(kinds), 0
    with ExitStack() as stack:
        temporary = stack.enter_context(whole_file(path))
        writer = stack.enter_context(ParquetWriter(temporary, schema))
        for rows in _batches(samples):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            total += len(rows)
    return total


def _batches(samples: Iterator[Sample]) -> Iterator[list[Row]]:
    rows: list[Row] = []
    for sample in samples:
        rows.append(sample.model_dump(mode="json"))
        if len(rows) == PARQUET_ROWS:
            yield rows
            rows = []
    if rows:
        yield rows
