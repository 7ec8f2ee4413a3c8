"""Models by their name on the Hugging Face hub: told before they are looked for, and looked for once where no hub answers."""

from __future__ import annotations

import contextlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from potstill.errors import InputError

LOOK_S = 5.0
"""How long a hub may take to answer at all."""
Say = Callable[[str], None]


def silent(text: str) -> None:
    """Say nothing."""


def check_name(name: str) -> None:
    """Raise InputError for what is neither a folder nor can be a model's name on the hub."""
    if Path(name).is_dir() or (re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not Path(name).exists()):
        return
    message = f"there is no folder {name!r}" + (": it is a file" if Path(name).exists() else "")
    raise InputError(message, hint="student.base names a folder with config.json and weights, or a model on the hub")


def tell(name: str, say: Say) -> None:
    """Say that a model which is no folder here comes from the hub, before that takes its time; see `check_name`."""
    from huggingface_hub import constants

    check_name(name)
    if not Path(name).is_dir():
        say(f"{name!r} is no folder here: looking for it on {constants.ENDPOINT} and among earlier downloads")


@contextlib.contextmanager
def one_look(name: str) -> Iterator[None]:
    """Within it a model is read from earlier downloads alone, where its hub does not answer.

    The model libraries would ask an absent hub six times for each file: 53 s for a tokenizer. Not for several threads.
    """
    from huggingface_hub import constants

    if Path(name).is_dir() or constants.HF_HUB_OFFLINE or answers(constants.ENDPOINT, LOOK_S):
        yield
        return
    constants.HF_HUB_OFFLINE = True  # what the variable of that name sets; it is read at every request
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def answers(endpoint: str, timeout_s: float) -> bool:
    """Whether anybody answers there, whatever the answer."""
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310  (the user's own HF_ENDPOINT, or the hub's)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
