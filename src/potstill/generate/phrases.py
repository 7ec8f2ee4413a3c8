"""Answers that are none: refusals, and the system prompt said back. Pure; English and both scripts of Chinese.

A refusal is looked for at the beginning of an answer only: further in, "I cannot" is often part of a good one. A leak is
a long stretch of the role's own system prompt, or talk about having one.
"""

from __future__ import annotations

import re
import unicodedata

OPENING_CHARS = 120
"""Where a refusal has to begin."""

HELP = (
    "(?:help|assist|answer|comply|provide|fulfil+|discuss|create|write|engage|support|share|continue|offer|reply"
    "|do that|do what|tell you how|go into)"
)
NO = r"(?:cannot|can't|can not|could not|won't|will not|can't and won't|cannot and will not)"
AN_AI = "(?:AI|人工智慧|(?:大型|大)?語言模型)"
CANNOT = "(?:無法|不能|不會|不便|不方便|沒辦法|沒有辦法|沒有能力|不適合|不被允許)"
WORK = (
    "(?:協助|幫|回答|提供|透露|告訴|撰寫|寫|討論|完成|繼續|查詢|存取|給[您你]|發表|滿足|產生|談|就|作答|說(?=[。!?]|$))"
)
SORRY = "(?:抱歉|對不起|不好意思|遺憾)"

REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bI(?:'m| am) (?:very |really |so )?sorry,? but (?:I|as an)\b",
        rf"\bI(?:'m| am) (?:not able|unable|not (?:allowed|permitted)) to {HELP}\b",
        rf"\bI {NO} {HELP}\b",
        rf"\b(?:sorry|apologies|regrettably|afraid|I regret that)\b[^.?\n]{{0,20}}? I (?:{NO} (?!say exactly)|can only\b|must\b)",
        r"\bI must (?:respectfully )?(?:decline|refuse)\b",
        r"\b(?:not something|not a topic|isn't a topic|topic|subject) (?:that )?I (?:can (?:do|assist|help|engage|discuss)|have to)\b",
        r"\bas an? (?:AI|(?:large )?language model)\b[^.\n]{0,30}, I (?:cannot|can't|don't|do not|am|have no)\b",
        r"\bI(?:'m| am) just an? (?:AI|language model)\b",
        r"\bI (?:don't|do not) feel comfortable\b|^I'd rather not\b|^I can only answer\b",
        r"\b(?:against|violates?) (?:my|our|the) (?:\w+ )?(?:policy|policies|guidelines|principles)\b[^.\n]{0,20}\bI\b",
        r"\bmy (?:guidelines|policies|programming|principles) (?:do not|don't|prevent|prohibit)\b",
        r"^your request (?:has been|was|is) (?:declined|denied|refused|rejected)\b",
        r"\bI (?:have no way of|do not have the ability to|don't have the ability to) (?:access|brows)",
        r"\bbeyond my (?:capabilities|abilities)\b|\boutside (?:of )?what I(?:'m| am) allowed\b",
        rf"{SORRY}[^。!?\n]{{0,20}}?(?:我|作為){CANNOT}{WORK}",
        rf"{SORRY},?[^。!?\n]{{0,6}}?我(?:只能|{CANNOT})",
        rf"(?:作為|身為|只是)(?:一個|一名|一款)?\s*{AN_AI}[^。!?\n]{{0,20}}?(?:{CANNOT}|我沒有)",
        rf"(?:^|[。,!?\s])(?:但|但是|所以|因此)?我{CANNOT}(?:(?:也|為|幫|對|就)[^。,!?\n]{{0,6}})?{WORK}",
        rf"(?:^|[。,!?\s])(?:但|但是)?這(?:部分|類內容|個)我?[^。,!?\n]{{0,2}}{CANNOT}{WORK}|這個(?:問題)?我幫不上忙",
        r"(?:^|[。,!?\s])(?:請)?恕我?(?:無法|不能|難|不)|恕不(?:回應|回答)|^歉難",
        r"(?:超出|不在)了?我的[^。!?\n]{0,4}範圍|^無法提供您所|^我沒有足夠的資訊",
        r"[您你]的(?:請求|要求)[^。!?\n]{0,14}被拒絕",
        r"^(?:請容許)?我(?:必須|只能)?(?:拒絕|婉拒)",
    )
)
"""Written for texts in NFKC, where full-width punctuation is ASCII, and in Traditional characters."""

SIMPLIFIED = str.maketrans(
    "无没办协帮给诉写讨论续谈请围务资绝应满产询对为个语总难规范会说违够虑让与发见够这类问题适许复确认进并体识护权将从遗",
    "無沒辦協幫給訴寫討論續談請圍務資絕應滿產詢對為個語總難規範會說違夠慮讓與發見夠這類問題適許復確認進並體識護權將從遺",
)
"""The characters that the patterns use; one for one, so that a match stands at the same place in the text."""
QUOTED = re.compile(r'(?<!^)(?:"[^"\n]*"|“[^”\n]*”|「[^」\n]*」|『[^』\n]*』)')
"""What an answer quotes is not what it says; a quotation that begins it may be all of it."""

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
    begins = unicodedata.normalize("NFKC", text.strip())[: OPENING_CHARS * 2].replace("\u2019", "'")
    said = QUOTED.sub(lambda match: " " * len(match.group()), begins).translate(SIMPLIFIED)
    for pattern in REFUSALS:
        match = pattern.search(said)
        if match and match.start() < OPENING_CHARS:
            return begins[match.start() : match.end()].strip(" ,。!?")
    return None


def leak_in(text: str, system: str) -> str | None:
    """What an answer gives away of its instructions; None where it gives away nothing."""
    plain = unicodedata.normalize("NFKC", text)
    return _first(LEAKS, plain) or _echo(_squeezed(plain), _squeezed(system))


def _first(patterns: tuple[re.Pattern[str], ...], text: str) -> str | None:
    found = (pattern.search(text.replace("\u2019", "'")) for pattern in patterns)
    return next((match.group() for match in found if match), None)


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
