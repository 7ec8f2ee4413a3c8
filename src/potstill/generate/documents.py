"""Documents cut into passages that say where they stand: text, Markdown, PDF."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from potstill.config import DocumentsConfig
from potstill.errors import InputError, MachineError
from potstill.files import read_text

SUFFIXES = (".txt", ".md", ".markdown", ".pdf")
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$")
HANGUL = re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
"""As wide as Chinese, but written with spaces."""
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
            hint = (
                "a scanned PDF has to be put through text recognition first" if path.suffix.lower() == ".pdf" else None
            )
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
    return Passage(joined((before, text)), f"{name}:{place}{headings}")


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
        held = joined((held, rest))
    if held.strip():
        yield held.strip()


def _tail(text: str, most: int) -> str:
    """The last whole sentences of a text that fit."""
    kept = ""
    for sentence in reversed(SENTENCE_END.split(text)):
        longer = joined((sentence, kept))
        if len(longer) > most:
            break
        kept = longer
    return kept


def joined(pieces: Iterable[str]) -> str:
    """Pieces of a text that a line's end or a cut parted: by a space, but for Chinese and Japanese, which have none.

    No space stands beside a full-width mark either.
    """
    kept = [piece for piece in map(str.strip, pieces) if piece]
    return "".join([*kept[:1], *(_gap(before, after) + after for before, after in pairwise(kept))])


def _gap(before: str, after: str) -> str:
    left, right = _script(reversed(before)), _script(iter(after))
    return "" if "mark" in (left, right) or left == right == "wide" else " "


def _script(characters: Iterator[str]) -> Literal["mark", "wide", "narrow"]:
    """How the first character is set that says so: a quotation mark or a dash is set as its neighbour is."""
    for character in characters:
        width, is_mark = unicodedata.east_asian_width(character), unicodedata.category(character)[0] == "P"
        if width in "WF":
            return "mark" if is_mark else "narrow" if HANGUL.match(character) else "wide"
        if not (width == "A" and is_mark):
            break
    return "narrow"


def _size(blocks: Sequence[_Block]) -> int:
    return sum(len(block.text) + 2 for block in blocks)


def _text_blocks(path: Path) -> Iterator[_Block]:
    """Paragraphs of a text, which blank lines part; in Markdown with the headings above them, code kept whole."""
    markdown = path.suffix.lower() != ".txt"
    headings: dict[int, str] = {}
    lines: list[str] = []
    first, fenced = 1, False

    def block(number: int) -> Iterator[_Block]:
        text = "\n".join(lines).strip() if fenced or markdown else joined(lines)
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
                if text := joined(" ".join(line.split()) for line in paragraph.splitlines()):
                    yield _Block(text, f"p{number}", f"p{number}")
    except FileNotFoundError as error:
        message = f"document not found: {path}"
        raise InputError(message) from error
    except (PyPdfError, OSError, ValueError) as error:
        message = f"{path}: not a PDF that can be read: {error}"
        raise InputError(message) from error
