"""A student for other programs: merged 16-bit weights and a GGUF file, each read back and compared with the adapter."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.config import StudentConfig
from potstill.distill.alone import alone
from potstill.distill.gguf_file import refusal, write_gguf
from potstill.distill.modelfile import modelfile
from potstill.errors import InputError, QualityGateError
from potstill.files import write_atomic
from potstill.records import Record, Sample
from potstill.student.base import base_sha, load_base, load_tokenizer
from potstill.student.hub import silent
from potstill.student.manifest import StudentManifest, adapter_folders, read_manifest
from potstill.student.template import encode_prompt, encode_sample, stop_ids
from potstill.workspace import StudentFiles

CHECKED = 50
"""Held-out answers on which an export is compared with the adapter."""
LEAST_AGREEMENT = 0.98
"""Share of positions at which adapter and export must prefer the same token; rounding to 16 bits moves near ties."""
ANSWERED, ANSWER_TOKENS = 8, 32
"""Held-out questions that adapter and export answer greedily, and how far."""
UNFINISHED = "."
"""Begins the name of an export's folder until it is whole. No role and no student is called like this."""


class Agreement(Record):
    """Adapter against export on held-out answers: same preferred tokens, and the largest difference of a logit.

    `same_answers`: how many of the questions `answered` greedily got the same tokens; one near tie changes the rest of
    an answer, so no bar stands on it.
    """

    positions: int
    same_token: float
    largest_logit_difference: float
    answered: int
    same_answers: int


class Exported(Record):
    """One exported model: its role (None: all), its folder, its Modelfiles, and the check of what was read back.

    `gguf` is the file for llama.cpp, `gguf_agreement` its check; where it could not be written, `gguf_reason` says why
    and `gguf_command` makes one.
    """

    role: str | None
    folder: str
    modelfiles: dict[str, str]
    agreement: Agreement
    gguf: str | None
    gguf_agreement: Agreement | None
    gguf_reason: str | None
    gguf_command: str


@dataclass(frozen=True)
class _Words:
    """What a model says of held-out answers: logits at their positions, and its own greedy answers."""

    logits: list[Any]
    answers: list[list[int]]


def export(
    files: StudentFiles, config: StudentConfig, held_out: Sequence[Sample], least_agreement: float = LEAST_AGREEMENT
) -> list[Exported]:
    """Merge each adapter into the unquantised base and write it to `export/`, with a Modelfile for each role.

    Raises QualityGateError where a merged model prefers other tokens than the adapter it was made from.
    """
    manifest = read_manifest(files)
    config = config.model_copy(update={"base": manifest.base, "revision": manifest.revision, "quantization": "none"})
    if base_sha(config) != manifest.base_sha:
        message = f"the base {manifest.base} is not the one that {manifest.name!r} was trained on"
        raise InputError(message, hint="restore it, or distill anew under another --name")
    folders = adapter_folders(files, manifest.adapters, manifest.roles)
    parts: list[tuple[str | None, Path, list[str]]] = []
    for adapter in dict.fromkeys(folders.values()):
        roles = [role for role, folder in folders.items() if folder == adapter]
        parts.append((None if manifest.adapters == "shared" else roles[0], adapter, roles))
    with alone(files, silent):
        exported = [_export_one(files, manifest, config, part, held_out) for part in parts]
    for item in exported:
        for path, check in ((item.folder, item.agreement), (item.gguf, item.gguf_agreement)):
            if check is not None and check.same_token < least_agreement:
                share = f"{check.same_token:.1%}"
                message = f"the merged model in {path} prefers other tokens than its adapter: {share} are the same"
                raise QualityGateError(message)
    return exported


def _export_one(
    files: StudentFiles,
    manifest: StudentManifest,
    config: StudentConfig,
    part: tuple[str | None, Path, list[str]],
    held_out: Sequence[Sample],
) -> Exported:
    """Write one model beside its place, compare it, and put it there whole: an earlier export serves until then."""
    role, adapter, roles = part
    place = files.export / (role or manifest.name)
    folder = files.export / f"{UNFINISHED}{place.name}"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = load_tokenizer(config)
    samples = [sample for sample in held_out if sample.role in roles][:CHECKED]
    name = f"{manifest.name}{f'-{role}' if role else ''}"
    gguf = folder / f"{name}.gguf"
    wanted, reason = _save_merged(config, tokenizer, adapter, gguf, samples)
    merged = config.model_copy(update={"base": str(folder), "revision": None})
    agreement = _compare(wanted, _words(load_base(merged), tokenizer, samples))
    check = None if reason else _compare(wanted, _words(load_gguf(gguf), tokenizer, samples))
    systems = {entry.name: entry.system for entry in manifest.roles if entry.name in roles}
    for name, system in systems.items():
        text = modelfile(tokenizer, "." if reason else f"./{gguf.name}", system)
        write_atomic(folder / f"Modelfile.{name}", text)
    shutil.rmtree(place, ignore_errors=True)
    folder.rename(place)
    return Exported(
        role=role,
        folder=str(place),
        modelfiles={name: str(place / f"Modelfile.{name}") for name in systems},
        agreement=agreement,
        gguf=None if reason else str(place / gguf.name),
        gguf_agreement=check,
        gguf_reason=reason,
        gguf_command=f"python llama.cpp/convert_hf_to_gguf.py {place} --outtype f16 --outfile {place / gguf.name}",
    )


def load_gguf(path: Path) -> Any:
    """A GGUF file's weights, read by transformers' own reader, under the config that stands beside it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path.parent)
    with redirect_stderr(io.StringIO()):  # a progress bar that transformers' own switch leaves on
        return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=config, dtype="float32")


def _save_merged(
    config: StudentConfig, tokenizer: Any, adapter: Path, gguf: Path, samples: Sequence[Sample]
) -> tuple[_Words, str | None]:
    """Write the merged model; gives what the unmerged one says of the samples, and why there is no GGUF file."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_base(config), str(adapter)).eval()
    words = _words(model, tokenizer, samples)
    merged = model.merge_and_unload().to(_half(config))
    merged.generation_config.eos_token_id = sorted(stop_ids(tokenizer) | _own_stops(merged))
    merged.generation_config.pad_token_id = tokenizer.pad_token_id
    folder = gguf.parent
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    write_atomic(folder / "chat_template.jinja", tokenizer.chat_template)
    make_readable(folder)
    if (reason := refusal(merged, tokenizer)) is None:
        write_gguf(merged, tokenizer, gguf, gguf.stem)
    return words, reason


def _own_stops(model: Any) -> frozenset[int]:
    """What the base's makers let an answer end with, such as Llama 3's `<|end_of_text|>` beside its end of turn."""
    own = model.generation_config.eos_token_id
    return frozenset(own if isinstance(own, list) else [] if own is None else [own])


def _half(config: StudentConfig) -> Any:
    """The 16-bit type to write: the base's own, or bfloat16 for a base in 32 bits, whose range float16 may not hold."""
    import torch
    from transformers import AutoConfig

    own = AutoConfig.from_pretrained(config.base, revision=config.revision).dtype
    return own if own in {torch.float16, torch.bfloat16} else torch.bfloat16


def make_readable(folder: Path) -> None:
    """Make a folder that transformers 5 wrote readable for what knows version 4 only, such as Ollama's importer.

    Version 5 writes `rope_parameters` only, and version 4 then silently takes a rope_theta of 10,000; it names a
    tokenizer class that version 4 does not have.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for part in (config, config.get("text_config") or {}):
        _add_old_keys(part)
    write_atomic(path, json.dumps(config, indent=2) + "\n")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("backend", None)
    write_atomic(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _add_old_keys(config: dict[str, Any]) -> None:
    """What version 4 reads, beside what version 5 wrote. Gemma 3 has one rotary setting for each kind of layer."""
    rope = config.get("rope_parameters") or {}
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]


def _words(model: Any, tokenizer: Any, samples: Sequence[Sample]) -> _Words:
    """Logits at the answers' positions, one matrix a sample, on the CPU in float32, and some greedy answers."""
    import torch

    logits, said = [], []
    device = next(model.parameters()).device
    settings = _greedy(tokenizer)
    with torch.inference_mode():
        for sample in samples:
            encoded = encode_sample(tokenizer, sample.messages)
            places = [place - 1 for place, keep in enumerate(encoded.learned) if keep]
            ids = torch.tensor([encoded.ids], device=device)
            out = model(input_ids=ids, use_cache=False, logits_to_keep=torch.tensor(places, device=device))
            logits.append(out.logits[0].float().cpu())
        for sample in samples[:ANSWERED]:
            ids = torch.tensor([encode_prompt(tokenizer, sample.messages[:-1])], device=device)
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            said.append(out[0, ids.shape[1] :].tolist())
    return _Words(logits, said)


def _greedy(tokenizer: Any) -> Any:
    from transformers import GenerationConfig

    stops = sorted(stop_ids(tokenizer))
    return GenerationConfig(max_new_tokens=ANSWER_TOKENS, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)


def _compare(left: _Words, right: _Words) -> Agreement:
    pairs = list(zip(left.logits, right.logits, strict=True))
    positions = sum(len(rows) for rows in left.logits)
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs)
    return Agreement(
        positions=positions,
        same_token=same / positions if positions else 1.0,
        largest_logit_difference=max((float((a - b).abs().max()) for a, b in pairs), default=0.0),
        answered=len(left.answers),
        same_answers=sum(a == b for a, b in zip(left.answers, right.answers, strict=True)),
    )
