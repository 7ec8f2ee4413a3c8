"""What the emulator says of a question that it does not know, in English or Chinese. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

HAN = re.compile(r"[\u3400-\u9fff]")
SENTENCE = re.compile(r"[^。.!?！？;；:：\n|#]{4,}")
SOURCE = re.compile(r"\A(?:段落出處|Passage from)[^\n]*\n")
WORDS, CHARACTERS = 12, 24
"""How much of a question an answer takes up, in English and in Chinese."""


@dataclass(frozen=True)
class Phrases:
    """One language's. `claim` and `question` have a place for a piece of text."""

    openings: tuple[str, ...]
    claim: str
    question: str
    fillers: tuple[str, ...]


ENGLISH = Phrases(
    openings=("In short: ", "It depends, but mostly: ", "A plain answer: ", "What matters first: "),
    claim="{} comes down to measuring it on your own data first.",
    question="What is worth knowing about this: {}?",
    fillers=(
        "Start with the part that you can measure today.",
        "Write down what a mistake would cost before you choose.",
        "Small changes that are checked beat large ones that are hoped for.",
        "Most of the time goes into data, not into the model.",
        "Keep the first version simple enough to throw away.",
        "Ask who will run it next year, and with which machine.",
    ),
)
CHINESE = Phrases(
    openings=("簡單說：", "看情況，但多半是：", "直接回答：", "先看要緊的："),
    claim="{}，關鍵是先用自己的資料量過。",
    question="關於「{}」，有什麼要注意的？",
    fillers=(
        "先從今天就能測量的部分開始。",
        "做選擇以前，先寫下出錯的代價。",
        "查核過的小改動，勝過滿懷期待的大改動。",
        "時間多半花在資料上，而不是模型上。",
        "第一版要簡單到捨得丟掉。",
        "問清楚明年由誰來維護，用哪一台機器。",
    ),
)


def phrases_for(text: str) -> Phrases:
    """Those of a text's language."""
    return CHINESE if HAN.search(text) else ENGLISH


def claim(question: str) -> str:
    """What an answer to a question says, whatever it opens with."""
    first = question.strip().split("\n", 1)[0].rstrip("?？")
    chinese = phrases_for(question) is CHINESE
    piece = first[:CHARACTERS] if chinese else " ".join(first.split()[:WORDS])
    return phrases_for(question).claim.format(piece or "nothing that was asked")


def questions_to(passage: str, count: int) -> tuple[str, ...]:
    """So many questions at most to a passage, one a sentence; the line that says where it is from is none."""
    pieces = [found.strip(" -*、，,") for found in SENTENCE.findall(SOURCE.sub("", passage))]
    return tuple(phrases_for(passage).question.format(piece) for piece in pieces[:count])
