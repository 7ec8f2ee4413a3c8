"""One optimizer step's gradient: packed micro-batches, the loss on learned rows, exact under splitting and over processes.

The gradient of a step is that of `sum(weight * loss of a token) / sum(weight)` over all tokens of the step, on all
processes: neither the split into micro-batches nor the number of processes changes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from potstill.distill.attention import use_packed_attention
from potstill.distill.loss import head_of, token_loss
from potstill.distill.oom import Admit, TokenLimit, admit_all, is_out_of_memory
from potstill.distill.packing import IDLE, Document, Packed, filler, pack, split
from potstill.errors import InputError, MachineError
from potstill.student.base import release_unused

Objective = Callable[[Any, Packed], Any]
"""(hidden of the learned rows, micro-batch) -> weighted sum of the tokens' losses."""

PROBE_LENGTHS = (7, 5)
COMMON = "choose a student.base of a common family: Llama, Qwen, Gemma 3, Mistral"
PROBE_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}


def cross_entropy(model: Any) -> Objective:
    """The plain objective: the teacher's tokens are right (sequence-level distillation, arXiv 1606.07947)."""
    head = head_of(model)
    return lambda hidden, packed: token_loss(hidden, head, packed)


@dataclass
class Engine:
    """Gradients of a PEFT model over packed documents. `accelerator` is the Trainer's; `admit` can refuse memory."""

    model: Any
    objective: Objective
    limit: TokenLimit
    accelerator: Any = None
    admit: Admit = admit_all
    refresh: Callable[[Sequence[Document]], Sequence[Document]] = list
    """May change a step's documents before they are trained on (see `on_policy`)."""
    dropout: bool = False
    may_checkpoint: bool = False
    """Whether activation checkpointing may be switched on when memory runs out, before batches are split."""
    rounds: bool = False
    """Whether micro-batches are filled up to a round number of tokens."""
    sharded: bool = False
    """Whether each layer is gathered from all processes, which then run the same number of micro-batches."""
    tokens_seen: int = 0
    _decoder: Any = field(init=False)

    def __post_init__(self) -> None:
        self._decoder = self.model.get_base_model().get_decoder()

    def step(self, documents: Sequence[Document]) -> Any:
        """Fill the gradients from one step's documents; gives the loss in nats a token (on each process alike).

        Out of memory, on whichever process: the step begins again with smaller micro-batches and the same dropout.
        """
        mass = self._summed(sum(document.mass for document in documents))
        with self._repeatable() as rewind:
            while True:
                total, failed = self._attempt(documents, mass)
                if not self._summed(float(bool(failed))):
                    break
                self._forget()
                rewind()
                if failed and not self._relieve():
                    self.limit.lower(failed)
        self._share_gradients()
        self.tokens_seen += int(self._summed(float(sum(len(document.ids) for document in documents))))
        return self._summed_tensor(total)

    def probe(self, documents: Sequence[Document], size: int) -> None:
        """Try the gradient of the `size` longest documents, and forget it: limits are found before training."""
        longest = sorted(documents, key=lambda document: -len(document.ids))[:size]
        seen = self.tokens_seen
        with self._repeatable() as rewind:
            self.model.train()
            self.step(longest)
            rewind()
        self.tokens_seen = seen
        self.model.zero_grad(set_to_none=True)

    def evaluate(self, batches: Iterator[Sequence[Document]]) -> tuple[float, float]:
        """Sum of losses and sum of weights over batches, without gradients, on all processes."""
        import torch

        total = mass = 0.0
        with torch.no_grad():
            parts = [part for documents in batches for part in split(documents, self.limit.tokens)]
            for part in self._in_step(parts):
                total += float(self.loss(self._pack(part)))
                mass += sum(document.mass for document in part)
        return self._summed(total), self._summed(mass)

    def loss(self, packed: Packed) -> Any:
        """The objective of one micro-batch, a sum over its learned tokens."""
        with self._autocast():
            hidden = self.hidden(packed)
            return self.objective(hidden, packed)

    def hidden(self, packed: Packed) -> Any:
        """(learned, hidden size): the last layer at the positions whose next token is learned."""
        out = self._decoder(
            input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, layout=packed.layout
        )
        return out.last_hidden_state[0].index_select(0, packed.rows)

    @property
    def _device(self) -> Any:
        return self.model.device

    def _attempt(self, documents: Sequence[Document], mass: float) -> tuple[Any, Sequence[Document]]:
        """The loss over all micro-batches of a step, and the one that ran out of memory (else nothing)."""
        import torch

        total = torch.zeros((), device=self._device)
        for part in self._in_step(split(documents, self.limit.tokens)):
            try:
                self.admit(sum(len(document.ids) for document in part))
                loss = self.loss(self._pack(part)) / mass
                self._backward(loss)
                total += loss.detach()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.sharded:  # the others wait inside a layer: nothing can be agreed on with them any more
                    self.limit.lower(part)
                    message = f"memory ran out at {sum(len(document.ids) for document in part)} tokens"
                    hint = f"the same command goes on, with at most {self.limit.tokens} tokens at once"
                    raise MachineError(message, hint=hint) from error
                return total, part
        return total, ()

    def _in_step(self, parts: list[list[Document]]) -> list[list[Document]]:
        """As many micro-batches as the process with most of them has, where the base is sharded."""
        import torch

        if not self.sharded:
            return parts
        most = torch.tensor(len(parts), device=self._device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return [*parts, *[[IDLE]] * (int(most) - len(parts))]

    def _pack(self, part: Sequence[Document]) -> Packed:
        return pack([*part, *filler(part)] if self.rounds else part, self._device)

    def _backward(self, loss: Any) -> None:
        if self.accelerator is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def _autocast(self) -> Any:
        return contextlib.nullcontext() if self.accelerator is None else self.accelerator.autocast()

    def _relieve(self) -> bool:
        """Switch on activation checkpointing, where that is still to be had; it changes no gradient."""
        found, self.may_checkpoint = self.may_checkpoint, False
        if found:
            checkpoint_layers(self.model)
        return found

    def _forget(self) -> None:
        """Drop half-made gradients and give the memory back."""
        self.model.zero_grad(set_to_none=True)
        release_unused(self._device.type)

    @contextlib.contextmanager
    def _repeatable(self) -> Iterator[Callable[[], None]]:
        """Give a function that rewinds the random numbers, where dropout draws any."""
        import torch

        if not self.dropout:
            yield lambda: None
            return
        cuda = self._device.type == "cuda"
        state = torch.cuda.get_rng_state(self._device) if cuda else torch.get_rng_state()
        yield lambda: torch.cuda.set_rng_state(state, self._device) if cuda else torch.set_rng_state(state)

    @property
    def _processes(self) -> int:
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    def _summed(self, value: float) -> float:
        """A number summed over all processes."""
        import torch

        if self._processes == 1:
            return value
        return float(self._summed_tensor(torch.tensor(value, dtype=torch.float64, device=self._device)))

    def _summed_tensor(self, tensor: Any) -> Any:
        if self._processes > 1:
            import torch

            torch.distributed.all_reduce(tensor)
        return tensor

    def _share_gradients(self) -> None:
        """Add up the adapters' gradients over all processes, in one message."""
        import torch

        if self._processes == 1:
            return
        learning = [each for each in self.model.parameters() if each.requires_grad]
        flat = torch.cat([(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in learning])
        torch.distributed.all_reduce(flat)
        for each, part in zip(learning, torch.split(flat, [each.numel() for each in learning]), strict=True):
            each.grad = part.view_as(each).to(each.dtype)


def choose_checkpointing(engine: Engine, wish: Literal["auto", "on", "off"]) -> None:
    """Recompute activations in the backward pass (arXiv 1604.06174): always, never, or when memory runs out."""
    engine.may_checkpoint = wish == "auto" and not engine.sharded
    if wish == "on" or (wish == "auto" and engine.sharded):
        checkpoint_layers(engine.model)


def checkpoint_layers(model: Any) -> None:
    """Store only each layer's input, about a third more work for a fraction of the memory."""
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})


def use_packing(model: Any) -> None:
    """Switch a base to packed attention and make sure, on two short documents, that they stay apart.

    Raises InputError for an architecture whose attention or output layer this does not reproduce.
    """
    import torch

    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        message = f"{model.config.model_type} caps its attention scores, which packed attention does not"
        raise InputError(message, hint=COMMON)
    decoder = model.get_decoder()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    chats = [tuple((3 + 7 * place * size) % vocabulary for place in range(size)) for size in PROBE_LENGTHS]
    packed = pack([Document(ids, ids) for ids in chats], model.device)
    with torch.no_grad():
        alone = [torch.tensor([ids], device=model.device) for ids in chats]
        apart = torch.cat([decoder(input_ids=ids, use_cache=False).last_hidden_state[0] for ids in alone])
        logits = torch.cat([model(input_ids=ids, use_cache=False).logits[0] for ids in alone])
        use_packed_attention(model)
        together = decoder(
            input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, layout=packed.layout
        ).last_hidden_state[0]
        _compare(model, "packed attention", together, apart)
        _compare(model, "the output layer", head_of(model).logits(apart), logits)


def _compare(model: Any, part: str, found: Any, expected: Any) -> None:
    """Raise InputError where our way comes to something else than the architecture's own, or that is not finite."""
    kind = str(expected.dtype).removeprefix("torch.")
    if not bool(expected.isfinite().all()):
        message = f"{model.config.model_type} overflows in {kind}"
        raise InputError(message, hint="a card that has bfloat16, another student.base, or --set student.dtype=float32")
    tolerance = PROBE_TOLERANCE[kind]
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= tolerance:
        message = f"{model.config.model_type}: {part} differs from its own by {difference:.2g}"
        raise InputError(message, hint=COMMON)
