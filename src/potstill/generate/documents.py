"""Documents cut into passages that say where they stand: text, Markdown, PDF."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.config import DocumentsConfig
from potstill.errors import InputError, MachineError
from potstill.files import read_text

SUFFIXES = (".txt", ".md", ".markdown", ".pdf")
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


@dataclass(frozen=True)
class Passage:
    """A piece of a document; `source` is `file:line-line` or `file:page`, with the headings above it."""

    text: str
    source: str


@dataclass(frozen=True)
class _Block:
    """A paragraph, the place where it stands, and the headings above it."""

    text: str
    first: str
    last: str
    headings: tuple[str, ...] = ()


def read_passages(documents: DocumentsConfig) -> Iterator[Passage]:
    """The passages of all documents; raises InputError for a document that cannot be read or has no text."""
    for name in documents.files:
        path = Path(name)
        if path.suffix.lower() not in SUFFIXES:
            message = f"{path}: a document ends in {', '.join(SUFFIXES)}"
            raise InputError(message)
        blocks = list(_pdf_blocks(path) if path.suffix.lower() == ".pdf" else _text_blocks(path))
        if not blocks:
            hint = "a scanned PDF has to be put through text recognition first" if path.suffix == ".pdf" else None
            message = f"{path}: no text in it"
            raise InputError(message, hint=hint)
        yield from chunk(path.name, blocks, documents)


def chunk(name: str, blocks: Sequence[_Block], documents: DocumentsConfig) -> Iterator[Passage]:
    """Pack paragraphs into passages of at most `chunk_chars`, beginning anew at a heading.

    Each passage repeats the end of the one before, whole sentences of at most `overlap_chars`. Pure.
    """
    held: list[_Block] = []
    before = ""
    for block in _cut(blocks, documents.chunk_chars):
        if held and (
            held[-1].headings != block.headings
            or _size(held) + len(block.text) + 2 > documents.chunk_chars - len(before)
        ):
            yield _passage(name, held, before)
            same = held[-1].headings == block.headings
            before = _tail(held[-1].text, documents.overlap_chars) if same else ""
            if len(before) + len(block.text) + 1 > documents.chunk_chars:
                before = ""
            held = []
        held.append(block)
    if held:
        yield _passage(name, held, before)


def _passage(name: str, blocks: Sequence[_Block], before: str) -> Passage:
    first, last = blocks[0].first, blocks[-1].last
    place = first if first == last else f"{first}-{last}"
    headings = "".join(f" > {heading}" for heading in blocks[0].headings)
    text = "\n\n".join(block.text for block in blocks)
    return Passage(f"{before} {text}".strip(), f"{name}:{place}{headings}")


def _cut(blocks: Iterable[_Block], most: int) -> Iterator[_Block]:
    """Paragraphs that are too long, cut at the ends of sentences, or anywhere where there are none."""
    for block in blocks:
        for text in _pieces(block.text, most):
            yield _Block(text, block.first, block.last, block.headings)


def _pieces(text: str, most: int) -> Iterator[str]:
    held = ""
    for sentence in SENTENCE_END.split(text):
        rest = sentence
        if held and len(held) + len(rest) + 1 > most:
            yield held
            held = ""
        while len(rest) > most:
            yield rest[:most]
            rest = rest[most:]
        held = f"{held} {rest}".strip() if held and held[-1].isascii() else held + rest
    if held.strip():
        yield held.strip()


def _tail(text: str, most: int) -> str:
    """The last whole sentences of a text that fit."""
    kept = ""
    for sentence in reversed(SENTENCE_END.split(text)):
        longer = f"{sentence} {kept}".strip()
        if len(longer) > most:
            break
        kept = longer
    return kept


def _size(blocks: Sequence[_Block]) -> int:
    return sum(len(block.text) + 2 for block in blocks)


def _text_blocks(path: Path) -> Iterator[_Block]:
    """Paragraphs of a text, which blank lines part; in Markdown with the headings above them, code kept whole."""
    markdown = path.suffix.lower() != ".txt"
    headings: dict[int, str] = {}
    lines: list[str] = []
    first, fenced = 1, False

    def block(number: int) -> Iterator[_Block]:
        text = "\n".join(lines).strip() if fenced or markdown else " ".join(line.strip() for line in lines).strip()
        if text:
            yield _Block(text, str(first), str(number), tuple(headings[level] for level in sorted(headings)))
        lines.clear()

    number = 0
    for number, line in enumerate(read_text(path, "document").splitlines(), start=1):
        if markdown and line.lstrip().startswith("```"):
            fenced = not fenced
        heading = HEADING.match(line) if markdown and not fenced else None
        if heading or (not line.strip() and not fenced):
            yield from block(number - 1)
            first = number + 1
        else:
            lines.append(line)
        if heading:
            depth = len(heading.group(1))
            headings = {level: text for level, text in headings.items() if level < depth} | {depth: heading.group(2)}
    yield from block(number)


def _pdf_blocks(path: Path) -> Iterator[_Block]:
    """Paragraphs of a PDF, page by page, by pypdf."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ModuleNotFoundError as error:
        message = "PDF documents need pypdf"
        raise MachineError(message, hint="pip install 'potstill[documents]'") from error
    try:
        reader: Any = PdfReader(path)
        for number, page in enumerate(reader.pages, start=1):
            for paragraph in re.split(r"\n\s*\n", page.extract_text() or ""):
                text = " ".join(paragraph.split())
                if text:
                    yield _Block(text, f"p{number}", f"p{number}")
    except FileNotFoundError as error:
        message = f"document not found: {path}"
        raise InputError(message) from error
    except (PyPdfError, OSError, ValueError) as error:
        message = f"{path}: not a PDF that can be read: {error}"
        raise InputError(message) from error
