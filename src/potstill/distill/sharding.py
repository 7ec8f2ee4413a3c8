"""A frozen base whose layers lie in shares on all processes of a training, and are gathered one by one as they are used (FSDP).

Fully sharded data parallelism: arXiv 2304.11277, in torch's second form (`fully_shard`). The adapters are added afterwards and
stay whole on every process, so gradients, optimizer, checkpoints and the saved adapter are those of unsharded training.
Embeddings, head and norms stay whole too: the head's loss reads its weights directly.
"""

from __future__ import annotations

from typing import Any

from potstill.config import Config, StudentConfig, take_wish
from potstill.errors import MachineError
from potstill.student.base import load_base, pick_device, pick_dtype

WISH = "ACCELERATE_USE_FSDP"
"""What `accelerate launch --use_fsdp` sets; `torchrun` may be given it by hand."""


def wants_sharding(config: Config) -> bool:
    """Whether the launcher wants the base sharded; raises MachineError for what cannot be.

    The wish is taken out of the environment, where transformers and accelerate would shard a second time by it.
    """
    if take_wish("ACCELERATE_USE_DEEPSPEED"):
        message = "distill cannot train under DeepSpeed"
        raise MachineError(
            message, hint="launch with torchrun, or with `accelerate launch --multi_gpu` or `--use_fsdp`"
        )
    if not take_wish(WISH):
        return False
    unlike = {
        "student.quantization nf4": config.student.quantization == "nf4",
        "distill.compile": config.distill.compile,
        "distill.soft_targets.on_policy": config.distill.soft_targets.on_policy > 0,
    }
    if refused := [name for name, on in unlike.items() if on]:
        message = f"a sharded base (FSDP) does not go with {' and '.join(refused)}"
        raise MachineError(message, hint="change that, or launch with torchrun or `accelerate launch --multi_gpu`")
    return True


def load_sharded(config: StudentConfig) -> Any:
    """The base, frozen, its layers in shares; the weights pass through each process's main memory."""
    from accelerate import PartialState
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = pick_device(config)
    dtype = str(pick_dtype(config, device)).removeprefix("torch.")
    base = load_base(config.model_copy(update={"device": "cpu", "dtype": dtype}))
    mesh = init_device_mesh(device, (PartialState().num_processes,))
    decoder = base.get_decoder()
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh)
    inside = {id(each) for layer in decoder.layers for each in layer.parameters()}
    whole = {each for each in decoder.parameters() if id(each) not in inside}
    fully_shard(decoder, mesh=mesh, ignored_params=whole)
    return base.to(device)


def is_sharded(model: Any) -> bool:
    """Whether a model's layers lie in shares; without a group none do, and some builds of torch could not tell."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())
