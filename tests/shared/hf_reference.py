"""The independent computation: plain Hugging Face models with plain torch hooks.

One prompt at a time, no padding, attention in its eager form, nothing shared, nothing of
`steerlens` imported. A steering is a list of `Push`: the operations as the design states them,

    add             x + strength · gap · u
    set_projection  x + strength · (target − x·u) u
    ablate          x − strength · (x·u) u

on the outputs of blocks, at the tokens its scope names; or of `Change`, which does anything there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerBase,
)

__all__ = [
    "Change",
    "Pass",
    "Push",
    "adding",
    "blocks_of",
    "chat_tokens",
    "greedy",
    "kl",
    "load_plain",
    "logits_along",
    "modules_at_the_end",
    "one_pass",
    "residuals",
]


def load_plain(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model folder in plain Hugging Face, attention in its eager form; towers and all."""
    config = AutoConfig.from_pretrained(folder)
    sees = hasattr(config, "vision_config")
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model: nn.Module = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def chat_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a user's turn, by the tokenizer's own chat template."""
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens: list[int] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return tokens


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) in nats, of log-probabilities ``[... vocab]``."""
    return (p.exp() * (p - q)).sum(-1)


@dataclass(frozen=True)
class Change:
    """Anything that is done to the output ``[token d_model]`` of one block."""

    layer: int
    of: Callable[[Tensor], Tensor]
    scope: str = "all"


def adding(layer: int, shift: Tensor, on: Tensor | None = None) -> Change:
    """`shift` added after a block, at the positions of the mask `on` (all)."""
    return Change(layer, lambda x: x + (shift if on is None else on[:, None] * shift))


@dataclass(frozen=True)
class Push:
    """One operation on the output of one block."""

    layer: int
    direction: Tensor
    gap: float
    target: float
    operation: str
    strength: float
    scope: str

    def of(self, vectors: Tensor) -> Tensor:
        """The vectors ``[token d_model]`` after it; the amount is a float32 number."""
        u = self.direction.float()
        along = vectors.float() @ u
        amount = {
            "add": torch.full_like(along, self.strength * self.gap),
            "set_projection": self.strength * (self.target - along),
            "ablate": -self.strength * along,
        }[self.operation]
        return vectors + (amount[:, None] * u).to(vectors.dtype)


def blocks_of(hf_model: nn.Module) -> nn.ModuleList:
    """The model's list of blocks: the first list that has as many modules as the config layers."""
    config: Any = hf_model.config
    n_layers = config.get_text_config().num_hidden_layers
    lists = (one for one in hf_model.modules() if isinstance(one, nn.ModuleList))
    return next(one for one in lists if len(one) == n_layers)


def first_of(output: Any) -> Tensor:
    """Hidden states of a module that may put out a tuple, or a list."""
    hidden: Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden


def instead(output: Any, hidden: Tensor) -> Any:
    """The output with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden


def touches(scope: str, place: int) -> bool:
    """Whether a scope holds the token at this place of the response; −1 is in the prompt."""
    if scope.startswith("first:"):
        return 0 <= place < int(scope.split(":")[1])
    return scope in ("all", "prompt" if place < 0 else "response")


@contextmanager
def pushed(
    hf_model: nn.Module, pushes: Sequence[Push | Change], places: Callable[[], list[int]]
) -> Iterator[None]:
    """Hooks that push; `places` says where in the response each token of the pass stands.

    Tokens of the prompt stand at −1.
    """

    def hook_for(push: Push | Change) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            hidden = first_of(output).clone()
            touched = torch.tensor([touches(push.scope, place) for place in places()])
            hidden[0, touched] = push.of(hidden[0, touched])
            return instead(output, hidden)

        return hook

    with ExitStack() as stack:
        for push in pushes:
            handle = blocks_of(hf_model)[push.layer].register_forward_hook(hook_for(push))
            stack.callback(handle.remove)
        yield


@torch.inference_mode()
def greedy(
    hf_model: nn.Module,
    tokens: Sequence[int],
    pushes: Sequence[Push | Change] = (),
    max_new_tokens: int = 8,
    ends: frozenset[int] = frozenset(),
    again: bool = False,
) -> list[int]:
    """Greedy tokens after a prompt; the token that ends a response is not part of it.

    Args:
        hf_model: A plain causal language model.
        tokens: The prompt.
        pushes: Its steering, in order.
        max_new_tokens: Longest response.
        ends: Tokens that end it.
        again: Read everything again at each step instead of keeping keys and values.
    """
    produced: list[int] = []
    now = list(tokens)
    places = [-1] * len(tokens)
    cache: Any = None
    with pushed(hf_model, pushes, lambda: places):
        while len(produced) < max_new_tokens:
            out = hf_model(torch.tensor([now]), past_key_values=cache, use_cache=not again)
            following = int(out.logits[0, -1].argmax())
            if following in ends:
                break
            produced.append(following)
            if again:
                now, places = [*now, following], [*places, len(produced) - 1]
            else:
                cache, now, places = out.past_key_values, [following], [len(produced) - 1]
    return produced


@torch.inference_mode()
def logits_along(
    hf_model: nn.Module,
    tokens: Sequence[int],
    response: Sequence[int],
    pushes: Sequence[Push | Change] = (),
) -> Tensor:
    """Logits ``[token + 1, vocab]`` before each token of a given response and after it, float32."""
    places = [-1] * len(tokens) + list(range(len(response)))
    with pushed(hf_model, pushes, lambda: places):
        out = hf_model(torch.tensor([[*tokens, *response]]), use_cache=False)
    logits: Tensor = out.logits[0, len(tokens) - 1 :].float()
    return logits


@torch.inference_mode()
def residuals(hf_model: nn.Module, tokens: Sequence[int]) -> Tensor:
    """What every block puts out at the last token, ``[layer d_model]``, in float32."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        kept.append(first_of(output)[0, -1].float())

    with ExitStack() as stack:
        for block in blocks_of(hf_model):
            stack.callback(block.register_forward_hook(keep).remove)
        hf_model(torch.tensor([list(tokens)]), use_cache=False)
    return torch.stack(kept)


@dataclass(frozen=True)
class Pass:
    """One forward pass over one text, in float64.

    Attributes:
        logprobs: ``[pos vocab]``, of the token after each position.
        logits: ``[pos vocab]``.
        resid: ``[layer pos d_model]``, what every block puts out, changes included.
    """

    logits: Tensor
    resid: Tensor

    @property
    def logprobs(self) -> Tensor:
        return self.logits.log_softmax(-1)


@torch.no_grad()
def one_pass(
    hf_model: nn.Module,
    tokens: Sequence[int],
    changes: Sequence[Push | Change] = (),
    response: Sequence[int] = (),
) -> Pass:
    """Run one text; `response`, if any, are its last tokens, for the scope of changes."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        kept.append(first_of(output)[0].double())

    places = [-1] * len(tokens) + list(range(len(response)))
    with pushed(hf_model, changes, lambda: places), ExitStack() as stack:
        for block in blocks_of(hf_model):
            stack.callback(block.register_forward_hook(keep).remove)
        out = hf_model(torch.tensor([[*tokens, *response]]), use_cache=False)
    return Pass(out.logits[0].double(), torch.stack(kept))


@torch.no_grad()
def modules_at_the_end(
    hf_model: nn.Module, tokens: Sequence[int], changes: Sequence[Push | Change] = ()
) -> tuple[Tensor, dict[str, tuple[Tensor | None, Tensor]]]:
    """Logits, and what entered and left every module, all at the last token, in float64.

    Modules have their names in the body of the model, such as ``layers.3.mlp``.
    """
    seen: dict[str, tuple[Tensor | None, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            entered = args[0] if args else kwargs.get("hidden_states")
            left = first_of(output)
            if isinstance(left, Tensor) and left.ndim == 3:
                entered = None if entered is None else entered[0, -1].double()
                seen[name] = (entered, left[0, -1].double())

        return hook

    body: nn.Module = hf_model.model
    with pushed(hf_model, changes, lambda: [-1] * len(tokens)), ExitStack() as stack:
        for name, module in body.named_modules():
            if name:
                stack.callback(module.register_forward_hook(keep(name), with_kwargs=True).remove)
        logits = hf_model(torch.tensor([list(tokens)]), use_cache=False).logits
    return logits[0, -1].double(), seen
