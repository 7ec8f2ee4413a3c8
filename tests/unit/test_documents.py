"""Documents cut into passages: nothing lost, nothing too long, and each says where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import DocumentsConfig
from potstill.errors import InputError
from potstill.generate.documents import _Block, chunk, read_passages

WORDS = st.lists(
    st.sampled_from(["memory", "heat", "card", "記憶體。", "model.", "rank!", "x"]), min_size=1, max_size=80
)


def passages(path: Path, **values: int) -> list[tuple[str, str]]:
    """Source and text of each passage of a file."""
    return [(found.source, found.text) for found in read_passages(DocumentsConfig(files=(str(path),), **values))]


def test_markdown_by_headings(tmp_path: Path) -> None:
    """A passage begins anew at a heading, names the headings above it and its lines, and keeps code together."""
    path = tmp_path / "guide.md"
    path.write_text(
        "# Guide\n\nIntro.\n\n## Cooling\n\nClean the fans.\n\nLower the limit.\n\n```\n# no heading\n\nrun\n```\n\n## Power\nWatts.\n"
    )
    assert passages(path) == [
        ("guide.md:3 > Guide", "Intro."),
        ("guide.md:7-15 > Guide > Cooling", "Clean the fans.\n\nLower the limit.\n\n```\n# no heading\n\nrun\n```"),
        ("guide.md:18 > Guide > Power", "Watts."),
    ]


def test_text_by_paragraphs_with_overlap(tmp_path: Path) -> None:
    """Paragraphs are packed up to the limit; the next passage repeats the last sentences before it."""
    path = tmp_path / "notes.txt"
    path.write_text("One sentence here. " * 8 + "\n\n" + "Another sentence there. " * 6 + "\n")
    found = passages(path, chunk_chars=200, overlap_chars=40)
    assert len(found) == 2
    assert found[0][0] == "notes.txt:1"
    assert found[1][1].startswith("One sentence here. One sentence here. Another sentence there.")


@pytest.mark.parametrize(
    ("lines", "whole"),
    [
        (("這張顯示卡的", "記憶體不夠。"), "這張顯示卡的記憶體不夠。"),
        (("先清理風扇，", "  再降低上限"), "先清理風扇，再降低上限"),
        (("價格是", "「一萬元」"), "價格是「一萬元」"),
        (("他說：", "“好”", "就走了"), "他說：“好”就走了"),
        (("メモリ", "不足"), "メモリ不足"),
        (("Clean the", "fans."), "Clean the fans."),
        (("end.”", "“Next"), "end.” “Next"),
        (("用", "GPU，", "CPU 也行"), "用 GPU，CPU 也行"),
        (("메모리가", "부족"), "메모리가 부족"),
    ],
)
def test_lines_are_joined_as_their_script_is_written(tmp_path: Path, lines: tuple[str, ...], whole: str) -> None:
    """Chinese and Japanese run on over a line's end, in paragraphs and where a passage repeats what came before."""
    path = tmp_path / "notes.txt"
    path.write_text("\n".join(lines) + "\n")
    assert [text for _, text in passages(path)] == [whole]


def test_chinese_sentences_are_repeated_without_spaces(tmp_path: Path) -> None:
    """The sentences that a passage repeats stand before it as they stood in the text."""
    path = tmp_path / "notes.txt"
    path.write_text("清理風扇。降低上限。" * 12 + "\n\n" + "查看功耗。" * 30 + "\n")
    found = passages(path, chunk_chars=200, overlap_chars=40)
    assert found[1][1].startswith("清理風扇。降低上限。")
    assert not any(" " in text for _, text in found)


def test_pdf_by_pages(tmp_path: Path) -> None:
    """The text of a PDF is read by pypdf, and each passage names its page."""
    path = tmp_path / "paper.pdf"
    path.write_bytes(pdf("Clean the fans.", "Lower the limit."))
    assert passages(path) == [("paper.pdf:p1-p2", "Clean the fans.\n\nLower the limit.")]


@pytest.mark.parametrize(
    ("name", "content", "needle"),
    [
        ("a.docx", b"", "ends in"),
        ("empty.txt", b"\n\n", "no text"),
        ("broken.pdf", b"not a PDF", "not a PDF"),
        ("latin.md", b"caf\xe9", "not UTF-8"),
    ],
)
def test_bad_documents_are_input_errors(tmp_path: Path, name: str, content: bytes, needle: str) -> None:
    """What cannot be read is said with the file's name."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=needle) as caught:
        passages(tmp_path / name)
    assert name in caught.value.message


def test_a_missing_document_is_an_input_error(tmp_path: Path) -> None:
    """Text and PDF alike."""
    for name in ("none.txt", "none.pdf"):
        with pytest.raises(InputError, match="not found"):
            passages(tmp_path / name)


@given(st.lists(WORDS, min_size=1, max_size=8), st.integers(200, 400), st.integers(0, 80))
def test_every_word_is_in_a_passage_and_none_is_too_long(blocks: list[list[str]], most: int, overlap: int) -> None:
    """Whatever the paragraphs: the passages without their overlap have all of the text, within the limit."""
    texts = [" ".join(words) for words in blocks]
    given_blocks = [_Block(text, str(number), str(number)) for number, text in enumerate(texts)]
    found = list(chunk("f", given_blocks, DocumentsConfig(chunk_chars=most, overlap_chars=overlap)))
    assert all(0 < len(passage.text) <= most for passage in found)
    plain = list(chunk("f", given_blocks, DocumentsConfig(chunk_chars=most, overlap_chars=0)))
    squeezed = "".join("".join(passage.text.split()) for passage in plain)
    assert squeezed == "".join("".join(text.split()) for text in texts)


def pdf(*pages: str) -> bytes:
    """A PDF with one line of text on each page, written by hand."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    body, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    tail = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return (body + tail).encode("latin-1")
