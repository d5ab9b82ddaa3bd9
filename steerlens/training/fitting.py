r"""Gradient descent on directions, all slots side by side in the engine's one pass.

The weights do not change, so what lies below a slot's first layer is read once, unsteered, and kept
(the trunk); each step runs only the blocks above it, for all slots together. Adam sees each slot's
gradient alone: slots do not influence each other, and a slot trained beside others equals the same
slot trained alone up to rounding.

Each slot keeps the values at which its loss on held-out examples was least; the values it started
with are among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import PASS_TOKENS, packs
from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.modules import unembed
from steerlens.engine.rows import out_of_memory
from steerlens.errors import SteeringError
from steerlens.training.examples import TrainingExample
from steerlens.training.objectives import (
    Forced,
    example_loss,
    forced_texts,
    log_probabilities,
)
from steerlens.training.parameters import DirectionParameters, TrainedRows

__all__ = ["Progress", "TrainingSettings", "descend", "read_trunks"]

# Positions of a pass, summed over the blocks they run through: what is kept for gradients is about
# 50 kB of each at a width of 576.
_MOST_BLOCK_POSITIONS = 2**14
# Logits of a pass: three times 128 MB in float32.
_MOST_LOGITS = 2**25
_WHOLE_PASS = 1000


@dataclass(frozen=True)
class TrainingSettings:
    """How directions are trained; by default about three minutes per layer on two CPU cores.

    On SmolLM2 the held-out loss stops falling after 10 to 20 steps of 4 examples.

    Attributes:
        n_examples: Base queries of the ``fit`` split.
        max_tokens: Longest response trained on, in tokens.
        held_out: Share of the examples that decides when to stop.
        n_steps: Most steps.
        batch_size: Examples per step.
        learning_rate: Of Adam, for the write direction in units of the residuals' norm over the
            root of the width.
        read_rate: Of Adam, for gates, in the same units.
        push_penalty: Weight of the mean squared push, as a share of the squared residual.
        patience: Stop when the held-out loss of no slot has improved for so many looks.
        look_every: Steps between looks.
    """

    n_examples: int = 48
    max_tokens: int = 64
    held_out: float = 0.25
    n_steps: int = 24
    batch_size: int = 4
    learning_rate: float = 0.1
    read_rate: float = 1.0
    push_penalty: float = 0.02
    patience: int = 2
    look_every: int = 6


@dataclass(frozen=True)
class Progress:
    """One look at the held-out examples: the step, and the loss of each slot."""

    step: int
    losses: tuple[float, ...]


@dataclass(eq=False)
class Trunks:
    """Unsteered residuals of every text at the layers where slots enter.

    Attributes:
        resid: By text and layer.
        target: For each instructed run, the final residuals that predict its response.
    """

    resid: dict[tuple[Forced, int], Float[Tensor, "pos d_model"]]
    target: dict[Forced, Float[Tensor, "step d_model"]]

    def median_norm(self, layer: int) -> float:
        """The median norm of residuals at a layer."""
        norms = [resid.float().norm(dim=-1) for (_, at), resid in self.resid.items() if at == layer]
        return float(torch.cat(norms).median())


def read_trunks(
    model: TransformerBridge,
    texts: Sequence[Forced],
    layers: Sequence[int],
    instructed: Sequence[Forced] = (),
) -> Trunks:
    """Read texts once, without steering.

    Args:
        model: A model inside `fast_modules`.
        texts: What is steered later.
        layers: Where slots enter.
        instructed: Runs whose distributions are targets.
    """
    last = model.cfg.n_layers - 1
    resid: dict[tuple[Forced, int], Tensor] = {}
    target: dict[Forced, Tensor] = {}
    with torch.no_grad():
        ordered = sorted(dict.fromkeys(texts), key=lambda text: -len(text.tokens))
        for pack in packs(ordered, lambda text: len(text.tokens), PASS_TOKENS):
            rows = [PassRow(tokens=text.tokens) for text in pack]
            passed = run_rows(model, rows, stop=max(layers) + 1, keep=layers)
            for layer in layers:
                for text, row in zip(pack, passed.kept[layer], strict=True):
                    resid[text, layer] = row[: len(text.tokens)].clone()
        for pack in packs(instructed, lambda text: len(text.tokens), PASS_TOKENS):
            passed = run_rows(model, [PassRow(tokens=text.tokens) for text in pack], keep=[last])
            for text, row in zip(pack, passed.resid, strict=True):
                target[text] = row[len(text.prompt) - 1 : len(text.tokens)].clone()
    return Trunks(resid, target)


def descend(
    model: TransformerBridge,
    parameters: DirectionParameters,
    examples: Sequence[TrainingExample],
    trunks: Trunks,
    settings: TrainingSettings,
    scope: str = "all",
    seed: int = 0,
    show_progress: bool | None = None,
) -> tuple[DirectionParameters, list[Progress]]:
    """Train all slots; the best values of each, and what was seen on the way.

    Args:
        model: A model inside `fast_modules` and `gradients`.
        parameters: What is trained, changed in place.
        examples: What it is trained on; those that do not serve a slot's objective are passed over.
        trunks: See `read_trunks`.
        settings: How.
        scope: Tokens that are steered.
        seed: Divides and shuffles the examples.
        show_progress: Show a progress bar.

    Raises:
        SteeringError: A loss that is not finite.
    """
    rng = np.random.default_rng(seed)
    pass_of = _Passes(model, parameters, trunks, scope)
    held_out, training = _divided(examples, parameters, settings.held_out, rng)
    width = parameters.write.shape[1] ** 0.5
    optimiser = torch.optim.Adam(
        [
            {"params": [parameters.write], "lr": settings.learning_rate / width},
            {"params": [parameters.read], "lr": settings.read_rate / width},
            {"params": [parameters.bias], "lr": settings.learning_rate},
        ]
    )
    best, least = parameters.snapshot(), pass_of.losses(held_out)
    looks, since = [Progress(0, tuple(least.tolist()))], 0
    queue: list[int] = []
    disable = None if show_progress is None else not show_progress
    with tqdm(total=settings.n_steps, desc="training", unit="step", disable=disable) as bar:
        for step in range(1, settings.n_steps + 1):
            while len(queue) < settings.batch_size:
                queue += rng.permutation(len(training)).tolist()
            batch = [training[i] for i in queue[: settings.batch_size]]
            del queue[: settings.batch_size]
            optimiser.zero_grad()
            pass_of.losses(batch, settings.push_penalty)
            optimiser.step()
            bar.update()
            if step % settings.look_every and step < settings.n_steps:
                continue
            now = pass_of.losses(held_out)
            better = {int(i) for i in np.flatnonzero(now < least)}
            best.keep(better, parameters)
            least, since = np.fmin(least, now), 0 if better else since + 1
            looks.append(Progress(step, tuple(now.tolist())))
            bar.set_postfix(loss=f"{now.mean():.3f}")
            if since >= settings.patience:
                break
    return best, looks


def _divided(
    examples: Sequence[TrainingExample],
    parameters: DirectionParameters,
    share: float,
    rng: np.random.Generator,
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """Examples to stop by and to train on, drawn; the first serve every slot where so many do."""
    drawn = [examples[i] for i in rng.permutation(len(examples))]
    objectives = {slot.objective for slot in parameters.slots}
    drawn.sort(key=lambda each: sum(not forced_texts(each, name) for name in objectives))
    n_held_out = max(1, round(share * len(examples)))
    return drawn[:n_held_out], drawn[n_held_out:]


@dataclass(frozen=True)
class _Item:
    """One example for one slot."""

    slot: int
    example: TrainingExample
    texts: tuple[Forced, ...]


class _Passes:
    """Losses of all slots on some examples, and their gradients."""

    def __init__(
        self,
        model: TransformerBridge,
        parameters: DirectionParameters,
        trunks: Trunks,
        scope: str,
    ) -> None:
        self.model, self.parameters, self.trunks, self.scope = model, parameters, trunks, scope
        self.slots = parameters.slots

    def losses(
        self, examples: Sequence[TrainingExample], penalty: float | None = None
    ) -> Float[np.ndarray, "slot"]:
        """Mean loss of each slot; with a `penalty`, gradients are added to the parameters.

        Infinite for a slot that none of the examples serves.

        Raises:
            SteeringError: A loss that is not finite.
        """
        items = []
        for example in examples:
            for i, slot in enumerate(self.slots):
                texts = forced_texts(example, slot.objective, slot.loop_weight > 0)
                items += [_Item(i, example, texts)] if texts else []
        n_examples = np.bincount([item.slot for item in items], minlength=len(self.slots))
        sums = np.zeros(len(self.slots))
        for chunk in packs(items, self._share, most_tokens=_WHOLE_PASS):
            self._add(chunk, n_examples, penalty, sums)
        broken = np.flatnonzero(~np.isfinite(sums))
        if len(broken):
            raise SteeringError(
                f"the loss of a direction ({self.slots[broken[0]]}) is not finite; a lower "
                "learning rate may help"
            )
        return np.where(n_examples > 0, sums / np.maximum(n_examples, 1), np.inf)

    def _add(
        self,
        chunk: Sequence[_Item],
        n_examples: Int[np.ndarray, "slot"],
        penalty: float | None,
        sums: Float[np.ndarray, "slot"],
    ) -> None:
        """Losses of some examples, and their gradients; in two halves where memory runs out."""
        trained = [self.parameters.write, self.parameters.read, self.parameters.bias]
        try:
            with torch.set_grad_enabled(penalty is not None):
                losses, pushes = self._chunk(chunk)
                counts = torch.tensor([float(n_examples[item.slot]) for item in chunk])
                whole = ((losses + (penalty or 0.0) * pushes) / counts.to(losses)).sum()
                # Not `backward`, which may have added a part when memory runs out.
                parts = torch.autograd.grad(whole, trained) if penalty is not None else ()
        except Exception as error:
            if not out_of_memory(error):
                raise
            if len(chunk) == 1:
                raise SteeringError(
                    f"one example of a direction ({self.slots[chunk[0].slot]}) needs more memory "
                    "than there is; use a smaller max_tokens, or layers further up"
                ) from error
        else:
            for values, gradient in zip(trained if parts else (), parts, strict=True):
                values.grad = gradient if values.grad is None else values.grad + gradient
            np.add.at(sums, [item.slot for item in chunk], losses.detach().cpu().double().numpy())
            return
        middle = len(chunk) // 2
        for half in (chunk[:middle], chunk[middle:]):
            self._add(half, n_examples, penalty, sums)

    def _share(self, item: _Item) -> int:
        """How much of a pass an example takes, in thousandths."""
        n_blocks = self.model.cfg.n_layers - self.slots[item.slot].layers[0]
        n_positions = n_blocks * sum(len(text.tokens) for text in item.texts)
        n_logits = self.model.cfg.d_vocab * sum(len(text.response) for text in item.texts)
        share = max(n_positions / _MOST_BLOCK_POSITIONS, n_logits / _MOST_LOGITS)
        return max(1, round(_WHOLE_PASS * share))

    def _chunk(self, chunk: Sequence[_Item]) -> tuple[Float[Tensor, "item"], Float[Tensor, "item"]]:
        """Loss and mean relative squared push of each example."""
        flat = [(number, text) for number, item in enumerate(chunk) for text in item.texts]
        # Rows join the pass lowest layer first.
        flat.sort(key=lambda entry: self._entry(chunk[entry[0]]))
        rows = []
        for number, text in flat:
            layer = self._entry(chunk[number])
            resid = self.trunks.resid[text, layer]
            rows.append(PassRow(resid=resid, layer=layer, n_prompt=len(text.prompt)))
        steer = TrainedRows(self.parameters, [chunk[n].slot for n, _ in flat], self.scope)
        passed = run_rows(self.model, rows, steer=steer, keep_gradients=torch.is_grad_enabled())
        lengths = [len(text.response) for _, text in flat]
        row_of = [row for row, length in enumerate(lengths) for _ in range(length)]
        position = [len(text.prompt) - 1 + t for _, text in flat for t in range(len(text.response))]
        logits = torch.split(unembed(self.model, passed.resid[row_of, position]), lengths)
        logits_of = {(n, text): part for (n, text), part in zip(flat, logits, strict=True)}
        losses = [
            example_loss(
                self.slots[item.slot].objective,
                [logits_of[number, text] for text in item.texts],
                item.texts,
                self._target(item),
                self.slots[item.slot].loop_weight,
            )
            for number, item in enumerate(chunk)
        ]
        pushes = torch.zeros(len(chunk), device=losses[0].device)
        for pushed, relative in steer.pushes:
            numbers = torch.tensor([flat[row][0] for row in pushed], device=pushes.device)
            shares = [1.0 / len(chunk[flat[row][0]].texts) for row in pushed]
            weighted = relative.to(pushes) * torch.tensor(shares, device=pushes.device)
            pushes = pushes.index_add(0, numbers, weighted)
        return torch.stack(losses), pushes

    def _entry(self, item: _Item) -> int:
        return self.slots[item.slot].layers[0]

    def _target(self, item: _Item) -> Float[Tensor, "step vocab"] | None:
        """Log-probabilities of the instructed run, where they are imitated."""
        if self.slots[item.slot].objective != "imitate":
            return None
        with torch.no_grad():
            text = Forced(item.example.instructed, item.example.obeyed)
            return log_probabilities(unembed(self.model, self.trunks.target[text]))
