"""A tiny model through the package and through plain Hugging Face: how far apart the two are.

Prompts are in the plain format, one token a byte. Some share a long beginning, some are shorter
than any window or switch of `architectures`, some longer, and some cross one while they decode.
Every row has another steering. In half precision greedy tokens part at near ties, so both sides
are given the plain model's tokens and their logits compared with those of the same half-precision
weights computed in float32: what is wrong there is rounding, and how much of it is right is told by
the plain model's own.

Run as a script, it prints which path each family takes in each dtype, why, and how far residuals
and logits are from plain Hugging Face's:

    python tests/shared/beside_hugging_face.py [family …] [--dtypes float32 bfloat16 float16]
"""

import argparse
import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures import FAMILIES, write_family
from family import SWITCH, Family
from hf_reference import Push, greedy, load_plain, logits_along, residuals
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import cache_residuals
from steerlens.engine import Row
from steerlens.engine.generation import generate_from_tokens
from steerlens.models.loading import end_token_ids, load_model, tokenize_prompts
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention
from steerlens.tasks.pairs import ContrastSet

N_NEW = 4
SHARING = (
    "Tell me about it",
    "Tell me about Rome",
    "Tell me about Rome, the city on seven hills.",
    "Tell me about the sea.",
    "Tell me about the sea. Answer in one word only, please.",
)
MIXED = (
    "a",
    "bc",
    "a cat",
    "Why is the sky bl",
    "Why is the sky blu",
    "Is it raining today",
    "List five words that end in the letter x.",
)
ENDING = " Be brief."


def loaded(folder: Path, dtype: str) -> TransformerBridge:
    """The folder through the package."""
    return load_model(folder, dtype=dtype, device="cpu")


def exact(half: nn.Module) -> nn.Module:
    """The same weights, rounded as they are, computed in float32; buffers stay as they are."""
    model = copy.deepcopy(half)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    for buffer in model.buffers():
        if buffer.dtype in (torch.bfloat16, torch.float16):
            buffer.data = buffer.data.float()
    model.config.dtype = torch.float32
    return model


def pushes_for(n_rows: int, n_layers: int, d_model: int) -> list[list[Push]]:
    """A steering for each row: none, one operation or two, at every layer and in every scope."""
    draw = torch.Generator().manual_seed(7)
    kinds = ("add", "set_projection", "ablate")
    scopes = ("all", "prompt", "response", "first:2")
    strengths = (1.0, -1.0, 0.5, 2.0)

    def push(k: int, layer: int) -> Push:
        u = torch.randn(d_model, generator=draw)
        operation = kinds[k % 3]
        return Push(
            layer=layer,
            direction=u / u.norm(),
            gap=5.0,
            target=4.0,
            operation=operation,
            strength=1.0 if operation == "ablate" else strengths[k % 4],
            scope=scopes[(k // 2) % 4],
        )

    rows: list[list[Push]] = []
    for k in range(n_rows):
        pushes = [] if k % 6 == 5 else [push(k, k % n_layers)]
        if k % 4 == 3:
            pushes.append(push(k + 1, (k + 1) % n_layers))
        rows.append(pushes)
    return rows


def as_steering(pushes: Sequence[Push]) -> Steering | None:
    """The same in the package's words."""
    if not pushes:
        return None
    return Steering(
        tuple(
            Intervention(
                layer=push.layer,
                direction=push.direction,
                gap=push.gap,
                target=push.target,
                operation=push.operation,
                strength=push.strength,
                scope=push.scope,
            )
            for push in pushes
        )
    )


def crosses(n_prompt: int) -> bool:
    """Whether a response passes the length at which longrope's factors change."""
    return n_prompt <= SWITCH < n_prompt + N_NEW - 1


def relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """Distance of vectors in units of the right one's norm."""
    return (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)


class Sides:
    """One family's model on both sides, loaded once.

    Args:
        name: The family.
        dtype: "float32", "bfloat16" or "float16".
    """

    def __init__(self, name: str, dtype: str) -> None:
        self.family: Family = FAMILIES[name]
        self.dtype = dtype
        with tempfile.TemporaryDirectory() as folder:
            write_family(name, Path(folder), half=dtype != "float32")
            self.model = loaded(Path(folder), dtype)
            self.plain = load_plain(Path(folder), getattr(torch, dtype))
        self.exact = self.plain if dtype == "float32" else exact(self.plain)
        self.ends = end_token_ids(self.model)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Their token ids."""
        return tokenize_prompts(self.model, texts, chat_format="plain")

    def answerable(self, texts: Sequence[str]) -> tuple[list[str], list[list[Push]]]:
        """The texts whose responses must be right, and their steerings."""
        pushes = pushes_for(len(texts), self.model.cfg.n_layers, self.model.cfg.d_model)
        kept = [
            i
            for i, tokens in enumerate(self.prompts(texts))
            if not (self.family.may_refuse == "crossing" and crosses(len(tokens)))
        ]
        return [texts[i] for i in kept], [pushes[i] for i in kept]

    def residual_errors(self) -> tuple[Tensor, Tensor]:
        """Errors of the package's residuals and of the plain model's, ``[prompt layer]``."""
        texts = [*SHARING[1:3], *MIXED[0:6:3], *MIXED[4::2]]
        longer = [text + ENDING for text in texts]
        pairs = ContrastSet.from_prompts(longer, texts)
        cache = cache_residuals(self.model, pairs, chat_format="plain", batch_size=5)
        ours = torch.cat([cache.instructed, cache.uninstructed])
        prompts = self.prompts([*longer, *texts])
        true = torch.stack([residuals(self.exact, tokens) for tokens in prompts])
        theirs = torch.stack([residuals(self.plain, tokens) for tokens in prompts])
        return relative(ours, true), relative(theirs, true)

    def decoded(
        self, texts: Sequence[str], pushes: Sequence[Sequence[Push]]
    ) -> tuple[list[list[int]], list[Tensor], Any]:
        """The package's greedy tokens of a ragged batch, their logits, and how it ran.

        Returns:
            Tokens of each row; for each row ``[step vocab]``, float32; the settings.
        """
        kept: list[list[Tensor]] = [[] for _ in texts]

        def choose(logits: Tensor, rows: Sequence[Row]) -> Tensor:
            for row, own in zip(rows, logits, strict=True):
                kept[row.index].append(own.float().cpu().clone())
            return logits.argmax(-1)

        steerings = [as_steering(row) for row in pushes]
        rows, how = generate_from_tokens(
            self.model, self.prompts(texts), steerings, N_NEW, 4, choose=choose
        )
        return [row.produced for row in rows], [torch.stack(steps) for steps in kept], how

    def expected(
        self, texts: Sequence[str], pushes: Sequence[Sequence[Push]], again: bool | None = None
    ) -> list[list[int]]:
        """The plain model's greedy tokens, one prompt at a time."""
        again = self.family.recomputes if again is None else again
        return [
            greedy(self.plain, tokens, row, N_NEW, self.ends, again=again)
            for tokens, row in zip(self.prompts(texts), pushes, strict=True)
        ]

    def greedy_errors(self) -> tuple[list[list[int]], list[list[int]], Tensor, Any]:
        """Greedy tokens of the package and of the plain loop, and how far the logits are apart.

        Returns:
            Tokens, row by row, twice; the largest relative error of each row's logits on the plain
            loop's text; the settings.
        """
        ours: list[list[int]] = []
        theirs: list[list[int]] = []
        errors: list[Tensor] = []
        for texts in (SHARING, MIXED):
            some, pushes = self.answerable(texts)
            tokens, logits, how = self.decoded(some, pushes)
            expected = self.expected(some, pushes)
            ours += tokens
            theirs += expected
            for row, prompt, response, push in zip(
                logits, self.prompts(some), expected, pushes, strict=True
            ):
                true = logits_along(self.plain, prompt, response, push)[:N_NEW]
                errors.append(relative(row[: len(true)], true).max())
        return ours, theirs, torch.stack(errors), how

    def forced_logits(
        self,
        texts: Sequence[str],
        pushes: Sequence[Sequence[Push]],
        responses: Sequence[Sequence[int]],
    ) -> tuple[list[Tensor], Any]:
        """The package's logits before each token of given responses, and how it ran.

        Returns:
            For each row ``[step vocab]``, float32; the settings.
        """
        kept: list[list[Tensor]] = [[] for _ in texts]

        def choose(logits: Tensor, rows: Sequence[Row]) -> Tensor:
            for row, own in zip(rows, logits, strict=True):
                kept[row.index].append(own.float().cpu().clone())
            # A row of a batch that has ended is asked for tokens until the batch ends.
            return torch.tensor([responses[row.index][len(kept[row.index]) - 1] for row in rows])

        steerings = [as_steering(row) for row in pushes]
        n_new = len(responses[0])
        _, how = generate_from_tokens(
            self.model, self.prompts(texts), steerings, n_new, 4, choose=choose
        )
        return [torch.stack(rows) for rows in kept], how

    def logit_errors(self) -> tuple[Tensor, Tensor, Any]:
        """Errors of the package's logits and of the plain model's on the same text.

        Returns:
            Root mean square over steps for each row, twice; the settings.
        """
        draw = torch.Generator().manual_seed(3)
        ours: list[Tensor] = []
        theirs: list[Tensor] = []
        for texts in (SHARING, MIXED):
            some, pushes = self.answerable(texts)
            responses = torch.randint(3, 250, (len(some), N_NEW), generator=draw).tolist()
            logits, how = self.forced_logits(some, pushes, responses)
            for row, prompt, response, push in zip(
                logits, self.prompts(some), responses, pushes, strict=True
            ):
                true = logits_along(self.exact, prompt, response, push)[:-1]
                theirs_here = logits_along(self.plain, prompt, response, push)[:-1]
                ours.append(relative(row, true).square().mean().sqrt())
                theirs.append(relative(theirs_here, true).square().mean().sqrt())
        return torch.stack(ours), torch.stack(theirs), how


def row_of_table(sides: Sides) -> str:
    """What the script prints for one family in one dtype."""
    resid, resid_of_plain = sides.residual_errors()
    logits, logits_of_plain, how = sides.logit_errors()
    ours, theirs, _, _ = sides.greedy_errors()
    equal = [a == b for a, b in zip(ours, theirs, strict=True)]
    return (
        f"{how['attention']} | {resid.max():.1e} ({resid_of_plain.max():.1e}) | "
        f"{logits.max():.1e} ({logits_of_plain.max():.1e}) | {sum(equal)}/{len(equal)} | "
        f"{how['attention_reason']}"
    )


def main() -> None:
    """Print one line for each family and dtype."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("family | dtype | path | residuals off by (plain's own) | logits | tokens equal | reason")
    for name in arguments.families:
        for dtype in arguments.dtypes:
            try:
                line = row_of_table(Sides(name, dtype))
            except Exception as error:  # the table says what happened and goes on
                line = f"{type(error).__name__}: {str(error)[:150]}"
            print(f"{name} | {dtype} | {line}", flush=True)


if __name__ == "__main__":
    main()
