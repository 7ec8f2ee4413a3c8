"""An Ollama Modelfile whose template renders, byte for byte, what the student was trained on. Pure.

Ollama would guess the template by likeness, and a guess lacks what a family writes of its own accord, such as Llama 3.2's
date. So the template is read off the base's own: three texts are rendered around marks, and what stands between the
marks is the template.
"""

from __future__ import annotations

from typing import Any

from potstill.errors import InputError
from potstill.records import Message
from potstill.student.template import control_tokens, render, stop_ids

SYSTEM, USER, ANSWER, EARLIER = "SYSTEMMARK", "USERMARK", "ANSWERMARK", "EARLIERMARK"


def modelfile(tokenizer: Any, source: str, system: str) -> str:
    """A Modelfile for a merged model at `source` (a folder or a GGUF file) in one role.

    Raises InputError where the template or the system prompt cannot be written in a Modelfile.
    """
    if '"""' in system:
        message = 'a system prompt with """ in it cannot stand in a Modelfile'
        raise InputError(message)
    stops = [tokenizer.convert_ids_to_tokens(token) for token in sorted(stop_ids(tokenizer))]
    lines = [
        f"FROM {source}",
        f'TEMPLATE """{template(tokenizer)}"""',
        *([f'SYSTEM """{system}"""'] if system else []),
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
    ]
    return "\n".join(lines) + "\n"


def template(tokenizer: Any) -> str:
    """The base's chat template in Ollama's form, for turns of system, prompt and response; Ollama adds the BOS itself."""
    first = _around(tokenizer, [("system", SYSTEM), ("user", USER), ("assistant", ANSWER)])
    later = _around(
        tokenizer,
        [("system", SYSTEM), ("user", "x"), ("assistant", EARLIER), ("user", USER), ("assistant", ANSWER)],
    )
    head, rest = first.split(SYSTEM)
    between, rest = rest.split(USER)
    before_answer, end = rest.split(ANSWER)
    turn = later.split(EARLIER)[1].split(USER)[0].removeprefix(end)
    if tokenizer.bos_token and head.startswith(tokenizer.bos_token):
        head = head[len(tokenizer.bos_token) :]
    with_system = f"{{{{ if .System }}}}{head}{{{{ .System }}}}{between}{{{{ else }}}}{turn}{{{{ end }}}}"
    found = f"{with_system}{{{{ .Prompt }}}}{before_answer}{{{{ .Response }}}}{end}"
    if '"""' in found:
        message = 'a chat template with """ in it cannot stand in a Modelfile'
        raise InputError(message)
    return found


def _around(tokenizer: Any, turns: list[tuple[Any, str]]) -> str:
    messages = [Message(role=role, content=content) for role, content in turns]
    text = render(tokenizer, messages, answer_next=False)
    marks = [text.count(mark) for _, mark in turns if mark in {SYSTEM, USER, ANSWER, EARLIER}]
    if any(count != 1 for count in marks) or not control_tokens(tokenizer):
        message = "the base's chat template repeats or rewrites a turn, so it cannot be written in a Modelfile"
        raise InputError(message)
    return text
