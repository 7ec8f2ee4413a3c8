"""A CUDA card that computes nothing, on a machine without one: devices, types, shapes and memory are real, numbers are not.

torch's FakeTensorMode runs a program without data. A build for CPUs alone still refuses autograd on CUDA tensors, because it
knows no such device; a few lines of C++, compiled here in seconds, name one. What this shows: tensors on different
devices, types that do not go together, every wait of the program for the card, and the bytes that torch would hold. What
it cannot show: numbers, time, and what a kernel takes for itself (see `KERNELS`).

`insert()` comes before torch is imported, so a process of its own is needed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

SOURCE = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::Stream;
const Device card{DeviceType::CUDA, 0};
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};
struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return card; }
  Device exchangeDevice(Device) const override { return card; }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, card); }
  Stream exchangeStream(Stream stream) const noexcept override { return stream; }
};
}
namespace at { REGISTER_CUDA_HOOKS(CUDAHooks) }
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, Guard) }
"""


def insert() -> None:
    """Make torch, imported next, believe in a card; raises RuntimeError where that is too late or nothing compiles."""
    compiler, found = shutil.which("g++"), importlib.util.find_spec("torch")
    if "torch" in sys.modules or compiler is None or found is None or found.origin is None:
        message = "a card is inserted before torch is imported, and needs torch and g++"
        raise RuntimeError(message)
    torch = Path(found.origin).parent
    with tempfile.TemporaryDirectory() as name:
        source, library = Path(name, "card.cpp"), Path(name, "card.so")
        source.write_text(SOURCE, "utf-8")
        where = [f"-I{torch / 'include'}", f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}"]
        command = [compiler, "-std=c++20", "-shared", "-fPIC", str(source), "-o", str(library), *where, "-lc10"]
        subprocess.run([*command, "-ltorch_cpu"], check=True)
        ctypes.CDLL(str(library))


@contextmanager
def running(capability: tuple[int, int] = (9, 0), total_bytes: int = 80 * 2**30) -> Iterator[Card]:
    """Everything inside runs on the fake card of this compute capability."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Mode(FakeTensorMode):
        avoid_device_init = True  # there is no card on which constants could be computed in advance

    card = Card()
    with ExitStack() as stack:
        for module, name, found in _replaced(capability, total_bytes):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, found)
        library = stack.enter_context(torch.library._scoped_library("aten", "IMPL"))  # noqa: SLF001
        # One kernel on a card; a build without it would take it apart, and hold the parts.
        library.impl("silu_backward", lambda gradient, _: torch.empty_like(gradient), "CUDA")
        stack.enter_context(Mode(allow_non_fake_inputs=True))
        stack.enter_context(_watch()(card))
        yield card


def _replaced(capability: tuple[int, int], total_bytes: int) -> Iterator[tuple[Any, str, Any]]:
    """What a build without CUDA would answer or do otherwise."""
    import torch
    from torch._subclasses import fake_tensor

    properties = type("Properties", (), {"name": "fake", "total_memory": total_bytes, "uuid": "0"})()
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_name": "fake",
        "get_device_capability": capability, "is_bf16_supported": capability >= (8, 0), "empty_cache": None,
        "get_device_properties": properties, "synchronize": None, "is_initialized": True,
        "mem_get_info": (total_bytes, total_bytes),
    }  # fmt: skip
    for name, answer in answers.items():
        yield torch.cuda, name, lambda *_, _answer=answer, **__: _answer
    make = torch.tensor

    def tensor(data: Any, *, device: Any = None, **named: Any) -> Any:
        return make(data, **named) if device is None else make(data, **named).to(device)

    yield torch, "tensor", tensor
    yield fake_tensor, "CONSTANT_NUMEL_LIMIT", -1  # in inference mode it would copy known numbers to a true card
    yield torch.utils, "swap_tensors", _become
    yield (
        torch.nn.functional,
        "scaled_dot_product_attention",
        partial(_attend, torch.nn.functional.scaled_dot_product_attention),
    )


def _become(old: Any, new: Any) -> None:
    """What `Module.to` does to a parameter, in the way that a fake one allows."""
    old.data, old.fake_device = new.data, new.fake_device


class Card:
    """What the card holds, in bytes as torch's allocator rounds them, and how often the program waited for it."""

    def __init__(self) -> None:
        self.kind = "other"
        self.held: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self._alive: dict[int, tuple[int, str]] = {}

    def reset(self) -> None:
        """Begin to look for a peak, and for waits, anew."""
        self.peak, self.syncs = self.held.copy(), Counter()

    def takes(self, tensor: Any) -> None:
        """A tensor that an operation gave; its storage is counted once, until it dies, as what `kind` says."""
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001
        if tensor.device.type != "cuda" or key in self._alive:
            return
        size = -(-storage.nbytes() // 512) * 512
        self._alive[key] = (size, self.kind)
        weakref.finalize(storage, self._lets_go, key)
        self.held[self.kind] += size
        self.looks()

    def looks(self, kernel: int = 0) -> None:
        """Remember the peak; `kernel`: bytes that the operation at work takes for itself."""
        if self.held.total() + kernel > self.peak.total():
            self.peak = self.held + Counter({"kernel": kernel})

    def _lets_go(self, key: int) -> None:
        size, kind = self._alive.pop(key)
        self.held[kind] -= size


def kernel_bytes(name: str, arguments: Any) -> int:
    """What an operation takes besides its results: flash attention's backward sums in float32, for every query head."""
    if name != "torch_attn::_varlen_attn_backward":
        return 0
    query, key = arguments[1], arguments[2]
    expanded = 2 * query.element_size() * query.numel() if key.shape[1] != query.shape[1] else 0
    return 4 * int(query.numel()) + int(expanded)


ONE_TYPE = ("mm", "addmm", "bmm", "baddbmm", "index_put_", "_scaled_dot_product_efficient_attention", "_varlen_attn")
"""Operations that refuse mixed types on a card, which a fake one does not notice."""


def check_types(name: str, arguments: Any) -> None:
    """Raise RuntimeError where a card would for the types of an operation's tensors."""
    if name.partition("::")[2].partition(".")[0] in ONE_TYPE:
        found = {each.dtype for each in arguments if getattr(each, "is_floating_point", bool)()}
        if len(found) > 1:
            message = f"{name}: expected one dtype, got {', '.join(sorted(map(str, found)))}"
            raise RuntimeError(message)


def _watch() -> Any:
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class Watch(TorchDispatchMode):
        """Tells the card of every result; a number that the program asks for is 1."""

        def __init__(self, card: Card) -> None:
            super().__init__()
            self.card = card

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.name() in ("aten::_local_scalar_dense", "aten::item"):
                self.card.syncs[_caller()] += args[0].is_cuda
                return 1.0 if args[0].dtype.is_floating_point else 1
            check_types(func.name(), args)
            found = func(*args, **(kwargs or {}))
            if func.name() == "aten::_to_copy" and args[0].is_cuda and not found.is_cuda:
                self.card.syncs[_caller()] += 1
            if extra := kernel_bytes(func.name(), args):
                self.card.looks(extra)
            for tensor in tree_iter(found):
                if isinstance(tensor, Tensor):
                    self.card.takes(tensor)
            return found

    return Watch


def _attend(plain: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, **named: Any) -> Any:
    """The kernel that torch has below Ampere and for float32: memory-efficient, but not for grouped heads."""
    import torch

    causal, scale = bool(named.get("is_causal")), named.get("scale")
    if not query.is_cuda or query.shape[1] != key.shape[1]:
        return plain(query, key, value, attn_mask, **named)
    if attn_mask is not None:  # as numbers to add, in the queries' type
        mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device=attn_mask.device)
        attn_mask = mask.expand(*query.shape[:3], key.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention  # noqa: SLF001
    return efficient(query, key, value, attn_mask, query.requires_grad, 0.0, causal, scale=scale)[0]


def _caller() -> str:
    """The line of the program that waits."""
    lines = (frame for frame in reversed(traceback.extract_stack()) if "/torch/" not in frame.filename)
    line = next(frame for frame in lines if frame.filename != __file__)
    return f"{Path(line.filename).name}:{line.lineno}"
