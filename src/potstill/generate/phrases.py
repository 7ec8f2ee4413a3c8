"""Answers that are none: refusals, and the system prompt said back. Pure; English and both scripts of Chinese.

A refusal is looked for at the beginning of an answer only: further in, "I cannot" is often part of a good one. A leak is
a long stretch of the role's own system prompt, or talk about having one.
"""

from __future__ import annotations

import re
import unicodedata

OPENING_CHARS = 120
"""Where a refusal has to begin."""

CAN_HELP = "(?:help|assist|answer|comply|provide|fulfil+|discuss|create|write|engage|support|do that)"
AN_AI = "(?:AI|人工智慧|人工智能|(?:大型|大)?(?:語言|语言)模型)"
CANNOT = "(?:無法|无法|不能|沒辦法|没办法|沒有辦法|没有办法|不便(?=回答|提供|透露|說|说))"
SORRY = "(?:抱歉|對不起|对不起|不好意思)"

REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bI(?:'m| am) (?:very |really |so )?sorry,? but (?:I|as an)\b",
        rf"\bI(?:'m| am) (?:not able|unable) to {CAN_HELP}\b",
        rf"\bI (?:cannot|can't|can not|could not|won't|will not) {CAN_HELP}\b",
        r"\bI must (?:respectfully )?(?:decline|refuse)\b",
        r"\bas an? (?:AI|(?:large )?language model)(?: language)?(?: model| assistant)?,? I (?:cannot|can't|don't|am)\b",
        r"\bI(?:'m| am) just an? (?:AI|language model)\b",
        rf"{SORRY}[,。!\s]*(?:但|不過|不过)?(?:是)?[,\s]*(?:我|作為|作为)?[^。!?\n]{{0,16}}?{CANNOT}",
        rf"(?:作為|作为|身為|身为)(?:一個|一个|一名|一款)?\s*{AN_AI}[^。!?\n]{{0,20}}?{CANNOT}",
        rf"^我{CANNOT}(?:協助|协助|幫助|帮助|回答|提供|滿足|满足|完成|討論|讨论|參與|参与)",
        r"^(?:請容許|请允许)?我(?:必須|必须|只能)?(?:拒絕|拒绝|婉拒)",
    )
)
"""Written for texts in NFKC, where full-width punctuation is ASCII."""

LEAKS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bmy (?:system prompt|system instructions?|initial instructions|hidden instructions)\b",
        r"\bI (?:was|am|have been) (?:instructed|told|prompted) to (?:answer|act|respond|play|be|write)\b",
        r"\b(?:according to|per) (?:my|the) (?:system prompt|system instructions?)\b",
        r"(?:我的|根據|根据|依照|按照)(?:系統|系统)(?:提示詞?|提示词?|指令|指示|設定|设定)",
        r"我(?:被|受)(?:指示|要求|設定|设定)(?:要|為|为|成|以|用|扮演|回答)",
    )
)

LEAKED_CHARS = 40
"""Characters of an alphabetic system prompt in a row that are a leak; of a Chinese one, half as many."""
LEAKED_HAN = 16
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


def refusal_in(text: str) -> str | None:
    """The words with which an answer refuses; None where it does not."""
    return _first(REFUSALS, unicodedata.normalize("NFKC", text.strip())[: OPENING_CHARS * 2], before=OPENING_CHARS)


def leak_in(text: str, system: str) -> str | None:
    """What an answer gives away of its instructions; None where it gives away nothing."""
    plain = unicodedata.normalize("NFKC", text)
    return _first(LEAKS, plain) or _echo(_squeezed(plain), _squeezed(system))


def _first(patterns: tuple[re.Pattern[str], ...], text: str, before: int | None = None) -> str | None:
    text = text.replace("\u2019", "'")
    for pattern in patterns:
        match = pattern.search(text)
        if match and (before is None or match.start() < before):
            return match.group(0)
    return None


def _echo(text: str, system: str) -> str | None:
    """A long stretch of the system prompt, word for word."""
    for start in range(len(system)):
        size = LEAKED_HAN if HAN.match(system[start]) else LEAKED_CHARS
        piece = system[start : start + size]
        if len(piece) == size and piece in text:
            return piece
    return None


def _squeezed(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
