"""A student for other programs: merged 16-bit weights that old and new readers understand, checked against the adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.config import StudentConfig
from potstill.distill.modelfile import modelfile
from potstill.errors import InputError, QualityGateError
from potstill.records import Record, Sample
from potstill.student.base import base_sha, load_base, load_tokenizer
from potstill.student.manifest import StudentManifest, read_manifest
from potstill.student.template import encode_sample, stop_ids
from potstill.workspace import StudentFiles, write_atomic

CHECKED = 50
"""Held-out answers on which an export is compared with the adapter."""
LEAST_AGREEMENT = 0.98
"""Share of positions at which adapter and export must prefer the same token; rounding to 16 bits moves near ties."""


class Agreement(Record):
    """Adapter against export on held-out answers: same preferred tokens, and the largest difference of a logit."""

    positions: int
    same_token: float
    largest_logit_difference: float


class Exported(Record):
    """One exported model: its role (None: all), its folder, its Modelfile, and the check."""

    role: str | None
    folder: str
    modelfiles: dict[str, str]
    agreement: Agreement
    gguf_command: str


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
    parts: list[tuple[str | None, Path, list[str]]]
    if manifest.adapters == "shared":
        parts = [(None, files.adapter, [role.name for role in manifest.roles])]
    else:
        parts = [(role.name, files.role_adapter(role.name), [role.name]) for role in manifest.roles]
    exported = [_export_one(files, manifest, config, part, held_out) for part in parts]
    worst = min(exported, key=lambda item: item.agreement.same_token)
    if worst.agreement.same_token < least_agreement:
        share = f"{worst.agreement.same_token:.1%}"
        message = f"the merged model in {worst.folder} prefers other tokens than its adapter: {share} are the same"
        raise QualityGateError(message)
    return exported


def _export_one(
    files: StudentFiles,
    manifest: StudentManifest,
    config: StudentConfig,
    part: tuple[str | None, Path, list[str]],
    held_out: Sequence[Sample],
) -> Exported:
    role, adapter, roles = part
    folder = files.export / (role or manifest.name)
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = load_tokenizer(config)
    samples = [sample for sample in held_out if sample.role in roles][:CHECKED]
    wanted = _save_merged(config, tokenizer, adapter, folder, samples)
    found = _scores(load_base(config.model_copy(update={"base": str(folder), "revision": None})), tokenizer, samples)
    agreement = _compare(wanted, found)
    modelfiles = {}
    for entry in manifest.roles:
        if entry.name in roles:
            path = folder / f"Modelfile.{entry.name}"
            write_atomic(path, modelfile(tokenizer, ".", entry.system))
            modelfiles[entry.name] = str(path)
    name = f"{manifest.name}{f'-{role}' if role else ''}.gguf"
    command = f"python llama.cpp/convert_hf_to_gguf.py {folder} --outtype f16 --outfile {folder / name}"
    return Exported(role=role, folder=str(folder), modelfiles=modelfiles, agreement=agreement, gguf_command=command)


def _save_merged(
    config: StudentConfig, tokenizer: Any, adapter: Path, folder: Path, samples: Sequence[Sample]
) -> list[Any]:
    """Write the merged model; gives what the unmerged one says of the samples."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_base(config), str(adapter)).eval()
    scores = _scores(model, tokenizer, samples)
    merged = model.merge_and_unload()
    stops = sorted(stop_ids(tokenizer))
    merged.generation_config.eos_token_id = stops
    merged.generation_config.pad_token_id = tokenizer.pad_token_id
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    write_atomic(folder / "chat_template.jinja", tokenizer.chat_template)
    make_readable(folder)
    return scores


def make_readable(folder: Path) -> None:
    """Make a folder that transformers 5 wrote readable for what knows version 4 only, such as Ollama's importer.

    Version 5 writes `rope_parameters` only, and version 4 then silently takes a rope_theta of 10,000; it names a
    tokenizer class that version 4 does not have.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    write_atomic(path, json.dumps(config, indent=2) + "\n")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("backend", None)
    write_atomic(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _scores(model: Any, tokenizer: Any, samples: Sequence[Sample]) -> list[Any]:
    """Logits at the answers' positions, one matrix a sample, on the CPU in float32."""
    import torch

    found = []
    device = next(model.parameters()).device
    with torch.inference_mode():
        for sample in samples:
            encoded = encode_sample(tokenizer, sample.messages)
            places = [place - 1 for place, keep in enumerate(encoded.learned) if keep]
            ids = torch.tensor([encoded.ids], device=device)
            out = model(input_ids=ids, use_cache=False, logits_to_keep=torch.tensor(places, device=device))
            found.append(out.logits[0].float().cpu())
    return found


def _compare(left: Sequence[Any], right: Sequence[Any]) -> Agreement:
    positions = sum(len(rows) for rows in left)
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(left, right, strict=True))
    largest = max((float((a - b).abs().max()) for a, b in zip(left, right, strict=True)), default=0.0)
    return Agreement(
        positions=positions,
        same_token=same / positions if positions else 1.0,
        largest_logit_difference=largest,
    )
