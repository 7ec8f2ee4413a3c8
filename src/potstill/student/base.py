"""Loading a base model: by hub name or folder, in the type that the card has, never with code from the hub."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.config import StudentConfig
from potstill.errors import InputError, MachineError
from potstill.student.hub import one_look
from potstill.student.template import stop_ids

PAD_NAMES = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "<|pad|>", "[PAD]")
"""What Llama 3, Qwen and others keep for padding. Padding with a stop token is what makes students endless."""

FOLDER_HINT = (
    "a base is config.json, a tokenizer and *.safetensors, of a kind that transformers knows without code of the base's own;"
    " pickled weights (*.bin) are not read, because they can run code"
)


def pick_device(config: StudentConfig) -> str:
    """`cuda` or `cpu`; raises MachineError where CUDA is asked for and not there."""
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        message = "student.device is cuda, but torch finds no GPU"
        raise MachineError(message, hint="use --set student.device=cpu, or install torch for your CUDA version")
    if config.quantization == "nf4" and (config.device == "cpu" or not torch.cuda.is_available()):
        message = "student.quantization nf4 needs a CUDA GPU"
        raise MachineError(message, hint="use --set student.quantization=none")
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def load_tokenizer(config: StudentConfig) -> Any:
    """The base's tokenizer, with a pad token that is not its end of text; raises InputError without a chat template.

    Of several templates it keeps the default one.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, config)
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if not tokenizer.chat_template:
        message = f"{config.base} has no chat template"
        raise InputError(message, hint="choose an instruction-tuned base")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in stop_ids(tokenizer):
        tokenizer.pad_token = _pad_token(tokenizer)
    return tokenizer


def _pad_token(tokenizer: Any) -> str:
    """A pad token that ends no answer: one that the vocabulary keeps for that, else its unknown or first token."""
    known, stops = tokenizer.get_vocab(), stop_ids(tokenizer)
    for name in (*PAD_NAMES, tokenizer.unk_token, tokenizer.bos_token):
        if name is not None and name in known and known[name] not in stops:
            return str(name)
    message = "the base's tokenizer has no token to pad with but those that end an answer"
    raise InputError(message, hint="choose another student.base")


def read_limits(config: StudentConfig) -> tuple[int, int | None]:
    """Rows of the base's embedding, and the tokens that it looks at, where its config says."""
    from transformers import AutoConfig

    found = _from_pretrained(AutoConfig, config).get_text_config()
    return int(found.vocab_size), getattr(found, "max_position_embeddings", None)


def load_base(config: StudentConfig) -> Any:
    """The base model on its device, frozen; raises InputError where its weights are not all that its config describes."""
    import torch
    from transformers import AutoModelForCausalLM

    device = pick_device(config)
    release_unused(device)
    dtype = pick_dtype(config, device)
    more: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if config.quantization == "nf4":
        from transformers import BitsAndBytesConfig

        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        more["device_map"] = {"": torch.cuda.current_device()}
    else:
        more["ignore_mismatched_sizes"] = True  # told by `_check_whole`, in one line
    model, loaded = _from_pretrained(AutoModelForCausalLM, config, output_loading_info=True, **more)
    if config.quantization == "none":
        _check_whole(config.base, loaded)
    model.requires_grad_(requires_grad=False)
    return model if config.quantization == "nf4" else model.to(device)


def release_unused(device: str) -> None:
    """Give back what nothing refers to any more: a base that training left behind would stand beside the next one.

    A Trainer and its parts refer to each other, so that only Python's collector frees them, which does not know of memory
    on a card.
    """
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def pick_dtype(config: StudentConfig, device: str) -> Any:
    """The weights' type: float32 on CPU, bfloat16 where the card really has it, else float16."""
    import torch

    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def base_sha(config: StudentConfig) -> str:
    """A hash of the base: of its weights' bytes for a folder, of name and revision for a hub model."""
    folder = Path(config.base)
    digest = hashlib.sha256(f"{config.base}@{config.revision}".encode() if not folder.is_dir() else b"")
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_whole(base: str, loaded: Mapping[str, Any]) -> None:
    """Raise InputError for weights that are not there, which transformers would make up at random."""
    for what, names in (
        ("lack", sorted(loaded["missing_keys"])),
        ("have another shape for", sorted(name for name, *_ in loaded["mismatched_keys"])),
    ):
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            message = f"the weights of {base!r} {what} {names[0]}{more}, which its config.json describes"
            raise InputError(message, hint="get the base anew, all of it")


def _from_pretrained(kind: Any, config: StudentConfig, **more: Any) -> Any:
    """What `kind` makes of the base; raises InputError for a folder that it cannot read, MachineError for a hub's model."""
    from safetensors import SafetensorError

    try:
        with one_look(config.base):
            return kind.from_pretrained(config.base, revision=config.revision, trust_remote_code=False, **more)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        message = f"cannot load the base {config.base!r}: {first}"
        if Path(config.base).is_dir():
            raise InputError(message, hint=FOLDER_HINT) from error
        raise MachineError(message, hint="name a local folder, or a hub model that this machine can reach") from error
