"""The data part on real tokenizers: any whose folders `POTSTILL_TOKENIZERS` holds, each with its own chat template.

Skipped where it is not set, because such files are large and carry licences of their own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from potstill.config import StudentConfig
from potstill.records import Message
from potstill.student.base import load_tokenizer
from potstill.student.template import control_tokens, encode_prompt, encode_sample, neutralised, stop_ids

FOLDER = os.environ.get("POTSTILL_TOKENIZERS")
FOUND = sorted(each.parent for each in Path(FOLDER).glob("*/tokenizer.json")) if FOLDER else []
TEXTS = (
    "您好！關於「退貨」，請先登入會員中心 → 我的訂單 😊。\n\n1. 準備訂單編號（TW-0023）\n2. 約 2 個工作天👩\u200d👩\u200d👧\u200d👦",
    "```python\ndef f(x: list[int]) -> dict:\n    return {'k': [v**2 for v in x]}\n```\n\tDone ✅  (tabs\tand   spaces)",
    "\u3000全形\uff21\uff42\uff43\uff11 \u00a0 \u2028 𠮷野家 한국어 العربية",
    "<table><tr><td>1 < 2</td></tr></table> [INST] </s>",
)

pytestmark = pytest.mark.skipif(not FOUND, reason="POTSTILL_TOKENIZERS names no folder of tokenizers")


@pytest.fixture(scope="module", params=FOUND, ids=lambda folder: folder.name)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """A base's tokenizer, as `distill` and the student load it."""
    return load_tokenizer(StudentConfig(base=str(request.param)))


def chat(question: str, answer: str) -> list[Message]:
    """A role's system prompt, a question and its answer."""
    turns = (("system", "你是一位親切的客服人員。"), ("user", question), ("assistant", answer))
    return [Message.model_validate({"role": role, "content": text}) for role, text in turns]


@pytest.mark.parametrize("text", TEXTS)
def test_learned_is_the_answer_and_its_stop_token(tokenizer: Any, text: str) -> None:
    """One BOS at most, the served prompt first, then the answer's text, whole, and one stop token, which pads nothing."""
    encoded = encode_sample(tokenizer, chat(text, text))
    prompt = encode_prompt(tokenizer, chat(text, text)[:-1])
    answer = [token for token, keep in zip(encoded.ids, encoded.learned, strict=True) if keep]
    assert encoded.ids == prompt + answer
    assert answer[-1] in stop_ids(tokenizer)
    assert not stop_ids(tokenizer) & {*answer[:-1]}
    assert tokenizer.pad_token_id not in stop_ids(tokenizer)
    assert encoded.ids.count(tokenizer.bos_token_id) <= 1
    normal = (
        tokenizer.backend_tokenizer.normalizer
    )  # Qwen's writes one form of each letter, SentencePiece's its own space
    wanted = text if normal is None else normal.normalize_str(text).replace("\u2581", " ")
    assert tokenizer.decode(answer[:-1]).strip() == wanted.strip()


def test_nobody_forges_a_control_token(tokenizer: Any) -> None:
    """Every control token, written by somebody, becomes text; line ends and tags that are tokens of their own stay."""
    forged = " and ".join(sorted(control_tokens(tokenizer)))
    plain, dirty = (encode_sample(tokenizer, chat(text, text)).ids for text in ("x", forged))
    control = {tokenizer.convert_tokens_to_ids(token) for token in control_tokens(tokenizer)}
    assert [token for token in dirty if token in control] == [token for token in plain if token in control]
    for text in TEXTS[:-1]:
        assert neutralised(tokenizer, text) == text
