"""lm-eval's model interface on the engine, under one steering.

lm-eval asks three things of a model, and each is one pass of many rows here:

====================== =========================================================================
``loglikelihood``      log-likelihood of a continuation, and whether it is the greedy one
``loglikelihood_…``    of a whole text after BOS (or end of text), in windows of the context's
``…rolling``           length
``generate_until``     an answer that ends at a stop text
====================== =========================================================================

A context is a prompt and a continuation a response, as scopes have it. Texts become tokens as in
lm-eval's ``hf``: unsteered, both give the same numbers up to rounding.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.generation import generate_from_tokens
from steerlens.engine.likelihood import log_likelihoods
from steerlens.engine.sampling import Decoding, stream_seed
from steerlens.engine.scoring import ForcedRow
from steerlens.errors import SteerlensError, unknown_name
from steerlens.harness.saved import saved_steering
from steerlens.models.identity import attached_tokenizer
from steerlens.models.loading import load_model, model_info
from steerlens.models.sources import DEFAULT_MODEL
from steerlens.steering.interventions import Steering

__all__ = ["SteeredLM"]

_LONGEST_ANSWER = 256
# How lm-eval's tasks spell the longest answer; its own first.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DRAWN = ("temperature", "top_p", "top_k", "min_p")


class SteeredLM(TemplateLM):  # type: ignore[misc]
    """A model and a steering, as lm-eval takes them.

    Args:
        pretrained: A hooked model, or a reference that `steerlens.load_model` takes.
        steering: A `Steering`, or the file of one.
        dtype: Numbers the weights are loaded in.
        device: Where they are loaded.
        batch_size: Most rows per forward pass; by default, for ``auto`` and for lm-eval's own
            default of 1, as many as memory allows.
        max_batch_size: lm-eval's, not used.
        max_length: Longest context read, in tokens; the model's by default.
        seed: Seed of answers that are drawn.
        options: Instead of `steering`, a vector's or a plan's, by name: see
            `steerlens.harness.saved.saved_steering`.

    Raises:
        SteerlensError: As `saved_steering`, or an argument that does not exist.
        ModelError: As `steerlens.load_model`.
    """

    def __init__(
        self,
        pretrained: Any = DEFAULT_MODEL,
        steering: Steering | str | Path | None = None,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | str | None = None,
        max_length: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        is_model = isinstance(pretrained, TransformerBridge)
        self.model = pretrained if is_model else load_model(pretrained, dtype=dtype, device=device)
        self.tokenizer = attached_tokenizer(self.model)
        known = set(inspect.signature(saved_steering).parameters) - {"model", "steering"}
        for name in options:
            if name not in known:
                raise unknown_name("argument of lm-eval's model", name, known)
        if isinstance(steering, Steering):
            if options:
                raise SteerlensError(f"{', '.join(options)} is for a steering from files")
            steering.check_model(self.model)
        else:
            steering = saved_steering(self.model, steering=steering, **options)
        self.steering = steering
        is_all = batch_size is None or str(batch_size).startswith("auto") or int(batch_size) <= 1
        self.batch_size = None if is_all else int(str(batch_size))
        context = model_info(self.model).context_length
        self.max_length = context if max_length is None else min(max_length, context)
        self.seed = seed

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests is named by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; BOS comes first where the model's tokenizer puts one and the text has none."""
        if add_special_tokens is None:
            has_bos = string.startswith(self.tokenizer.decode([self.prefix_token_id]))
            add_special_tokens = model_info(self.model).prepends_bos and not has_bos
        begin = [self.prefix_token_id] if add_special_tokens else []
        return begin + list(self.tokenizer.encode(string, add_special_tokens=False))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model's template renders it."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        rows = []
        for i, (_, context, continuation) in enumerate(requests):
            # Too long a context loses its beginning, as in lm-eval's own models.
            read = [*context, *continuation][-(self.max_length + 1) :]
            n_prompt = max(len(read) - len(continuation), 1)
            rows.append(ForcedRow(i, tuple(read[:n_prompt]), tuple(read[n_prompt:]), self.steering))
        n_tokens, disable = sum(len(row.continuation) for row in rows), disable_tqdm or None
        with tqdm(total=n_tokens, desc="scoring", unit="token", disable=disable) as bar:
            totals, greedy = log_likelihoods(self.model, rows, self.batch_size, bar.update)
        scored = [(float(x), bool(y)) for x, y in zip(totals, greedy, strict=True)]
        for (texts, _, _), result in zip(requests, scored, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return scored

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each text, every token predicted once; nats."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(utils.make_disjoint_window, rolling):
                windows.append((None, *window))
                owners.append(owner)
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for owner, (value, _) in zip(owners, scored, strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """An answer to each context, without the text it ended at."""
        answers: list[str] = [""] * len(requests)
        by_length: dict[int, list[tuple[int, Decoding]]] = {}
        for i, request in enumerate(requests):
            longest, decoding = self._decoding(request.args[1])
            by_length.setdefault(longest, []).append((i, decoding))
        for longest, asked in by_length.items():
            room = self.max_length - longest
            if room < 1:
                raise SteerlensError(
                    f"an answer of {longest} tokens leaves no room for its context, of at most "
                    f"{self.max_length} tokens together; lower max_gen_toks"
                )
            contexts = [requests[i].args[0] for i, _ in asked]
            rows, _ = generate_from_tokens(
                self.model,
                [self.tok_encode(context)[-room:] for context in contexts],
                [self.steering] * len(asked),
                longest,
                self.batch_size,
                show_progress=False if disable_tqdm else None,
                decodings=[decoding for _, decoding in asked],
                seeds=[stream_seed(self.seed, i) for i, _ in asked],
            )
            for (i, decoding), row in zip(asked, rows, strict=True):
                text = str(self.tokenizer.decode(row.produced, skip_special_tokens=True))
                for stop in decoding.stop:
                    text = text.split(stop)[0]
                answers[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return answers

    def _decoding(self, options: Mapping[str, Any]) -> tuple[int, Decoding]:
        """The longest answer and the decoding that a task's ``generation_kwargs`` ask for.

        Raises:
            SteerlensError: "generation_kwargs num_beams is not supported …".
        """
        asked = dict(options)
        lengths = [asked.pop(name) for name in _LENGTHS if name in asked]
        until = asked.pop("until", None) or []
        stop = [until] if isinstance(until, str) else list(until)
        is_drawn = asked.pop("do_sample", None)
        temperature = float(asked.pop("temperature", 1.0 if is_drawn else 0.0))
        drawn = {name: asked.pop(name) for name in _DRAWN[1:] if name in asked}
        penalty = float(asked.pop("repetition_penalty", 1.0))
        if asked:
            raise SteerlensError(
                f"generation_kwargs {', '.join(map(str, asked))} is not supported; it takes until, "
                f"do_sample, repetition_penalty, {', '.join(_DRAWN)} and {_LENGTHS[0]}"
            )
        if is_drawn is False or temperature == 0:
            temperature, drawn = 0.0, {}
        return int(lengths[0]) if lengths else _LONGEST_ANSWER, Decoding(
            temperature=temperature,
            repetition_penalty=penalty,
            stop=tuple(text for text in stop if text),
            **drawn,
        )
