"""How the teacher came to its answers: asked for beside them, one request for each answer that is kept.

Distilling step-by-step (arXiv 2305.02301) has the rationale written before the answer, in one reply. Here it is asked for
afterwards, for the answer that is there: answers keep their names in the ledger, so that switching rationales on pays
for them alone, and the answers are the same with and without.
"""

from __future__ import annotations

from collections.abc import Callable

from potstill.config import Config
from potstill.generate.judge import conversation
from potstill.generate.phrases import refusal_in
from potstill.generate.sift import repeated_share
from potstill.prompts import fill, load_template
from potstill.records import Message, Sample
from potstill.teacher.calls import Answer, TeacherRequest, build_request

WHOLE = "STOP"


class Rationales:
    """The requests for rationales, and samples with what came back. Pure but for the template's file."""

    def __init__(self, config: Config) -> None:
        """Load the template of a config; raises InputError where it cannot be read."""
        self._config = config
        self._template = load_template(config.generate.rationales.template, config.language)

    def request(self, sample: Sample) -> TeacherRequest:
        """The request for the reasoning behind a sample's last answer, in the sample's role."""
        *chat, answer = sample.messages
        system = [message for message in chat if message.role == "system"]
        asked = [message for message in chat if message.role != "system"]
        values = {"question": conversation(asked), "answer": answer.content}
        prompt = fill(self._template, values, origin="template rationale")
        return build_request(
            self._config.teacher,
            (*system, Message(role="user", content=prompt)),
            temperature=0.0,
            max_output_tokens=self._config.generate.rationales.max_output_tokens,
            role=sample.role,
        )

    def explained(self, sample: Sample, stored: Callable[[TeacherRequest], Answer | None]) -> Sample:
        """The sample with its rationale, where the ledger holds one that is whole, no loop and no refusal."""
        answer = stored(self.request(sample))
        if answer is None or not self._is_sound(answer):
            return sample
        return sample.model_copy(update={"rationale": answer.text.strip()})

    def _is_sound(self, answer: Answer) -> bool:
        text, most = answer.text.strip(), self._config.generate.filters.max_repetition
        whole = bool(text) and answer.finish_reason == WHOLE
        return whole and refusal_in(text) is None and repeated_share(text) <= most
