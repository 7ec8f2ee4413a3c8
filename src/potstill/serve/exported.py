"""The lines that serve an exported student with Ollama or llama.cpp. Pure but for looking at what was exported."""

from __future__ import annotations

from pathlib import Path

from potstill.config import ServeConfig
from potstill.errors import InputError

MODELFILE = "Modelfile."
WHOLE = "[!.]*"
"""What an export's folder is called once all of it is written."""


def export_commands(export: Path, serve: ServeConfig) -> list[list[str]]:
    """One line a role for Ollama, which then serves it by its name; for llama.cpp a server for each model, port by port.

    Raises InputError where nothing was exported that the engine reads.
    """
    wanted = f"{MODELFILE}*" if serve.engine == "ollama" else "*.gguf"
    found = sorted(export.glob(f"{WHOLE}/{wanted}"))
    if not found:
        message = f"there is nothing for {serve.engine} in {export}"
        raise InputError(message, hint="write it: `potstill distill --export`")
    if serve.engine == "ollama":
        return [["ollama", "create", path.name.removeprefix(MODELFILE), "-f", str(path.resolve())] for path in found]
    return [
        ["llama-server", "--model", str(path.resolve()), "--alias", path.parent.name, "--host", serve.host,
         "--port", str(serve.port + place), "--jinja"]
        for place, path in enumerate(found)
    ]  # fmt: skip
