"""The contenders, each doing the same work in its own way.

Every function returns how many tokens it produced (or, for caching, how many prompt tokens it
covered, shared or not). All generation is greedy and runs to the full length, so that each
contender produces the same number of tokens.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

import steerlens as sl
from benchmarks.measure import timed
from benchmarks.work import Work
from steerlens.engine.batches import left_padded, length_batches
from steerlens.engine.generation import generate_from_tokens
from steerlens.models.loading import end_token_ids, render_prompt, tokenize_prompts
from steerlens.steering.interventions import Steering

Contender = Callable[[Work], int]


def our_answers(
    work: Work, rows: list[list[int]], n_new: int, steering: Any = None
) -> list[list[int]]:
    """Our engine's new tokens; `steering` is one for all rows, or a list with one per row.

    The end-of-turn token is made unlikely the way peers do it: forbidden.
    """
    ends = sorted(end_token_ids(work.model))

    def choose(logits: torch.Tensor, _rows: Any) -> torch.Tensor:
        logits[:, ends] = -torch.inf
        return logits.max(-1).indices

    done, _ = generate_from_tokens(
        work.model,
        rows,
        steering if isinstance(steering, list) else [steering] * len(rows),
        n_new,
        work.sizes.batch_limit,
        choose,
        show_progress=False,
    )
    return [row.produced for row in done]


def ours_unsteered(work: Work) -> int:
    """steerlens, no steering."""
    return _total(our_answers(work, work.rows, work.sizes.n_new_tokens))


def ours_steered(work: Work) -> int:
    """steerlens, one steering for all prompts."""
    steering = work.vector.at(work.steered_layer, "add", 0.5)
    return _total(our_answers(work, work.rows, work.sizes.n_new_tokens, steering))


def ours_sweep(work: Work) -> int:
    """steerlens, layers × strengths × prompts as one stream of rows."""
    rows: list[list[int]] = []
    steerings: list[Steering] = []
    for layer, strength in work.settings:
        rows += work.sweep_rows
        steerings += [work.vector.at(layer, "add", strength)] * len(work.sweep_rows)
    return _total(our_answers(work, rows, work.sizes.n_new_tokens, steerings))


def hf_answers(
    work: Work, rows: list[list[int]], n_new: int, model: Any = None, **options: Any
) -> list[list[int]]:
    """New tokens of Hugging Face `generate` in batches of similar length."""
    model = model or work.hf
    answers: dict[int, list[int]] = {}
    for batch in length_batches([len(row) for row in rows], work.sizes.batch_limit):
        tokens, mask = left_padded([rows[i] for i in batch], device=work.device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                max_new_tokens=n_new,
                min_new_tokens=n_new,
                do_sample=False,
                pad_token_id=0,
                **options,
            )
        answers.update(zip(batch, out[:, tokens.shape[1] :].tolist(), strict=True))
    return [answers[i] for i in range(len(rows))]


def _total(answers: list[list[int]]) -> int:
    return sum(map(len, answers))


def _hf_generate(work: Work, rows: list[list[int]], model: Any = None) -> int:
    return _total(hf_answers(work, rows, work.sizes.n_new_tokens, model))


def hf_generate(work: Work) -> int:
    """Hugging Face `generate`, sdpa, batched, no steering."""
    return _hf_generate(work, work.rows)


def _add_hook(work: Work, layer: int, strength: float) -> AbstractContextManager[Any]:
    shift = strength * work.vector.gaps[layer] * work.vector.directions[layer]
    shift = shift.to(work.device, work.hf.dtype)

    def hook(_module: Any, _args: Any, out: Any) -> Any:
        return (out[0] + shift, *out[1:]) if isinstance(out, tuple) else out + shift

    handle = work.hf.model.layers[layer].register_forward_hook(hook)
    return _Closing(handle.remove)


class _Closing(nullcontext[None]):
    def __init__(self, close: Callable[[], None]) -> None:
        super().__init__()
        self.close = close

    def __exit__(self, *_exc: object) -> None:
        self.close()


def hf_sweep(work: Work) -> int:
    """Hugging Face `generate` with a forward hook, one setting after another."""
    produced = 0
    for layer, strength in work.settings[:: -(-16 // work.sizes.n_peer_settings)]:
        with _add_hook(work, layer, strength):
            produced += _hf_generate(work, work.sweep_rows)
    return produced


def recipe_sweep(work: Work) -> int:
    """The published recipe: one prompt at a time, the whole prefix again for every token."""
    produced = 0
    layer, strength = work.settings[-2]
    u, z = work.vector.directions[layer], work.vector.targets[layer]
    u = u.to(work.hf.dtype)

    def hook(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        return resid + strength * (z - resid @ u)[..., None] * u

    for row in work.sweep_rows[: work.sizes.n_recipe_rows]:
        tokens = torch.tensor([row], device=work.device)
        for _ in range(work.sizes.n_new_tokens):
            with torch.inference_mode():
                logits = work.model.run_with_hooks(
                    tokens, fwd_hooks=[(f"blocks.{layer}.hook_out", hook)]
                )
            tokens = torch.cat([tokens, logits[:, -1].argmax(-1)[:, None]], dim=1)
            produced += 1
    return produced


def bridge_sweep(work: Work) -> int:
    """The TransformerLens bridge's own `generate` with hooks, one setting."""
    layer, strength = work.settings[-2]
    shift = (strength * work.vector.gaps[layer] * work.vector.directions[layer]).to(work.hf.dtype)
    prompts = [render_prompt(work.model, text) for text in work.prompts]
    prompts = prompts[: work.sizes.n_sweep_prompts]
    with (
        torch.inference_mode(),
        work.model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_out", lambda x, hook: x + shift)]),
    ):
        work.model.generate(
            prompts,
            max_new_tokens=work.sizes.n_new_tokens,
            do_sample=False,
            stop_at_eos=False,
            prepend_bos=False,
            verbose=False,
        )
    return len(prompts) * work.sizes.n_new_tokens


def steering_vectors_sweep(work: Work) -> int:
    """`steering-vectors` around Hugging Face `generate`, one setting after another."""
    import steering_vectors

    produced = 0
    for layer, strength in work.settings[:: -(-16 // work.sizes.n_peer_settings)]:
        shift = work.vector.gaps[layer] * work.vector.directions[layer]
        peer = steering_vectors.SteeringVector({layer: shift.to(work.hf.dtype)}, "decoder_block")
        with peer.apply(work.hf, multiplier=strength):
            produced += _hf_generate(work, work.sweep_rows)
    return produced


def repeng_sweep(work: Work) -> int:
    """`repeng` around Hugging Face `generate`, one setting."""
    import numpy

    if not hasattr(numpy, "float_"):  # repeng 0.4.0 asks for a name that numpy 2 dropped
        numpy.float_ = numpy.float64  # type: ignore[attr-defined]
    import repeng

    layer, strength = work.settings[-2]
    shift = work.vector.gaps[layer] * work.vector.directions[layer]
    control = repeng.ControlModel(work.hf, [layer])
    try:
        control.set_control(
            repeng.ControlVector(model_type="llama", directions={layer: shift.numpy()}), strength
        )
        return _hf_generate(work, work.sweep_rows, control)
    finally:
        control.reset()
        control.unwrap()


def _prompt_tokens(work: Work) -> tuple[list[list[int]], int]:
    prompts = [pair.instructed for pair in work.pairs] + [pair.uninstructed for pair in work.pairs]
    rows = tokenize_prompts(work.model, prompts)
    return rows, sum(len(row) for row in rows)


def ours_caching(work: Work) -> int:
    """steerlens: last-prompt residuals of both sides at all layers."""
    batch_size, _ = work.sizes.caching_batches
    sl.cache_residuals(work.model, work.pairs, batch_size=batch_size, show_progress=False)
    return _prompt_tokens(work)[1]


def hf_caching(work: Work) -> int:
    """A plain forward pass, length-sorted batches, sdpa, no LM head, hidden states kept."""
    rows, n_tokens = _prompt_tokens(work)
    _, batch_size = work.sizes.caching_batches
    for batch in length_batches([len(row) for row in rows], batch_size):
        tokens, mask = left_padded([rows[i] for i in batch], device=work.device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        with torch.inference_mode():
            work.hf.model(
                input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False
            )
    return n_tokens


def best_batch_size(work: Work) -> int:
    """The batch size at which `steering-vectors` trains fastest, tried on an eighth of the pairs.

    It does not sort prompts by length, so what a large batch gains it can lose to padding.
    """
    some = replace(work, pairs=work.pairs[: max(2, len(work.pairs) // 8)])
    sizes = [replace(some, peer_batch_size=size) for size in (1, 4, 8, 16, 32)]
    steering_vectors_caching(sizes[0])  # imports, and kernels of a first pass
    fastest = min(sizes, key=lambda own: timed(lambda: steering_vectors_caching(own)).seconds)
    return fastest.peer_batch_size


def steering_vectors_caching(work: Work) -> int:
    """`steering-vectors` training, in the batch size that suits it best here."""
    import steering_vectors

    samples = [
        steering_vectors.SteeringVectorTrainingSample(
            render_prompt(work.model, pair.instructed), render_prompt(work.model, pair.uninstructed)
        )
        for pair in work.pairs
    ]
    tokenizer = work.model.tokenizer
    steering_vectors.train_steering_vector(
        work.hf, tokenizer, samples, batch_size=work.peer_batch_size, read_token_index=-1
    )
    return _prompt_tokens(work)[1]


def bridge_caching(work: Work) -> int:
    """The bridge's `run_with_cache`, one prompt at a time, residuals only."""
    rows, _ = _prompt_tokens(work)
    some = rows[:: max(1, len(rows) // 64)]
    for row in some:
        with torch.inference_mode():
            work.model.run_with_cache(
                torch.tensor([row], device=work.device),
                names_filter=lambda name: name.endswith("hook_out") and name.count(".") == 2,
            )
    return sum(len(row) for row in some)


GENERATION: dict[str, Contender] = {
    "steerlens, unsteered": ours_unsteered,
    "steerlens, steered": ours_steered,
    "Hugging Face generate (sdpa)": hf_generate,
}
SWEEP: dict[str, Contender] = {
    "steerlens": ours_sweep,
    "Hugging Face generate + hook": hf_sweep,
    "steering-vectors": steering_vectors_sweep,
    "repeng": repeng_sweep,
    "TransformerLens bridge": bridge_sweep,
    "published recipe": recipe_sweep,
}
CACHING: dict[str, Contender] = {
    "steerlens": ours_caching,
    "Hugging Face forward (sdpa)": hf_caching,
    "steering-vectors": steering_vectors_caching,
    "TransformerLens bridge": bridge_caching,
}
