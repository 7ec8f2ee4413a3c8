"""What an answer depends on, as a key. Pure.

Two questions share an entry only where everything that changes an answer is equal: a hit across two scopes is a defect.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

from potstill.records import Record, content_id

WIDTH_FORMS = ("<wide>", "<narrow>", "<noBreak>")
"""Compatibility forms that are only another width. Full NFKC would make "2²" into "22" and "1½" into "11/2"."""
DEFAULT_NAMESPACE = "default"
TRAILING = re.compile(r"[\s?.。…]+$")
"""Closing punctuation. Not "!": "5!" is another question than "5"."""


class Scope(Record):
    """Everything beside the question that changes an answer.

    `roles` are (name, SHA-256 of the system prompt); `student` is its fingerprint; `templates` the SHA-256 of what
    Gemini is told about the candidates; `student_threshold` and `student_least_cosine` decide whose answer is served. The encoder is no part of
    it: it finds entries and changes none, so vectors carry the encoder's id and the exact layer works with any.
    """

    namespace: str
    language: str
    roles: tuple[tuple[str, str], ...]
    student: str | None
    student_max_new_tokens: int
    student_threshold: float | None
    student_least_cosine: float | None
    teacher_model: str
    teacher_url: str | None
    thinking_budget: int | None
    temperature: float
    max_output_tokens: int
    decide: str
    decision: str
    templates: str

    @property
    def id(self) -> str:
        """Content id of the scope."""
        return content_id({"cache_scope": 1, **self.model_dump(mode="json")})


def normalise(question: str) -> str:
    """One form for what differs by width, spacing or closing punctuation only; case, digits and symbols stay."""
    composed = unicodedata.normalize("NFC", question)
    narrow = "".join(_one_width(character) for character in composed)
    text = " ".join(narrow.split())
    return TRAILING.sub("", text) or text


def exact_key(scope_id: str, question: str) -> str:
    """The key of the exact layer, and the id of the entry that it finds."""
    return content_id({"scope": scope_id, "question": normalise(question)})


def first_sample(namespace: str) -> int:
    """The sample number of a tenant's first answer in the ledger, which gives an equal request its old answer for nothing.

    By what it costs and how soon it comes, that would tell one tenant what another has asked. The default namespace
    begins at 0, and shares answers with `generate`.
    """
    if namespace == DEFAULT_NAMESPACE:
        return 0
    return int.from_bytes(hashlib.sha256(namespace.encode("utf-8", "surrogatepass")).digest()[:5], "big") << 16


def _one_width(character: str) -> str:
    form = unicodedata.decomposition(character).partition(" ")[0]
    return unicodedata.normalize("NFKC", character) if form in WIDTH_FORMS else character
