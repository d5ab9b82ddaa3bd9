"""Generation in a worker thread, given up when a new trial arrives.

The function that chooses each step's tokens also reports the step, and raises where a generation
was cancelled; the engine then puts the model back as for any other failure. When `Session.cancel`
returns, the older trial reports nothing more, and what it showed can be cleared.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.effects.run import SteeredRun, record_run
from steerlens.engine.generation import generate_from_tokens
from steerlens.engine.rows import Row, choose_tokens
from steerlens.engine.sampling import stream_seed
from steerlens.errors import SteerlensError
from steerlens.explorer.trials import Trial, read_at
from steerlens.models.loading import end_token_ids, tokenize_prompts
from steerlens.vectors import SteeringVector

__all__ = ["Session"]


class _CancelledError(Exception):
    """A newer trial has arrived."""


class Session:
    """Runs the newest trial; older ones end at their next token.

    Args:
        model: A hooked model, which only one worker uses at a time.
        on_text: Called after each step with the baseline and the steered texts so far, one per
            sample.
        on_run: Called with the trial and its recorded run.
        on_error: Called with the sentence of what went wrong.
    """

    def __init__(
        self,
        model: TransformerBridge,
        on_text: Callable[[list[str], list[str]], None],
        on_run: Callable[[Trial, SteeredRun], None],
        on_error: Callable[[str], None],
    ) -> None:
        self.model = model
        self.on_text = on_text
        self.on_run = on_run
        self.on_error = on_error
        self._stop = threading.Event()
        self._in_use = threading.Lock()
        # Entered again by a callback that cancels.
        self._telling = threading.RLock()
        self._worker: threading.Thread | None = None

    def start(self, trial: Trial, vector_of: Callable[[str], SteeringVector]) -> None:
        self.cancel()
        self._stop = threading.Event()
        self._worker = threading.Thread(
            target=self._run, args=(trial, vector_of, self._stop), daemon=True
        )
        self._worker.start()

    def cancel(self) -> None:
        """Give up what is running; it tells nothing more and ends at its next token."""
        with self._telling:
            self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the newest worker has ended."""
        if self._worker is not None:
            self._worker.join(seconds)

    @property
    def is_running(self) -> bool:
        """Whether the newest worker is still at work."""
        return self._worker is not None and self._worker.is_alive()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The model to oneself: waits until the worker has ended, and holds back the next."""
        with self._in_use:
            yield

    def _tell(self, stop: threading.Event, callback: Callable[..., None], *told: Any) -> None:
        """Call back, unless a newer trial has arrived."""
        with self._telling:
            if not stop.is_set():
                callback(*told)

    def _run(
        self,
        trial: Trial,
        vector_of: Callable[[str], SteeringVector],
        stop: threading.Event,
    ) -> None:
        with self._in_use:
            try:
                if not stop.is_set():
                    run = self._steered_run(trial, vector_of(trial.source), stop)
                    self._tell(stop, self.on_run, trial, run)
            except _CancelledError:
                return
            except (SteerlensError, OSError) as error:
                self._tell(stop, self.on_error, str(error))
            except Exception as error:
                # Nothing waits for a worker: what is not told here leaves "answering" for ever.
                self._tell(stop, self.on_error, f"{type(error).__name__}: {error}")
                raise

    def _steered_run(
        self, trial: Trial, vector: SteeringVector, stop: threading.Event
    ) -> SteeredRun:
        steering = trial.steering(vector)
        steering.check_model(self.model)
        [prompt] = tokenize_prompts(self.model, [trial.asked])
        ends = end_token_ids(self.model)
        n = trial.decoding.samples
        so_far: list[list[int]] = [[] for _ in range(2 * n)]

        def choose(logits: Float[Tensor, "row vocab"], rows: Sequence[Row]) -> Int[Tensor, "row"]:
            if stop.is_set():
                raise _CancelledError
            following = choose_tokens(logits, rows)
            for row, token in zip(rows, following.tolist(), strict=True):
                so_far[row.index] = row.produced if token in ends else [*row.produced, token]
            texts = [self._text(tokens) for tokens in so_far]
            self._tell(stop, self.on_text, texts[:n], texts[n:])
            return following

        rows, how = generate_from_tokens(
            self.model,
            [prompt] * (2 * n),
            [None] * n + [steering] * n,
            trial.max_new_tokens,
            choose=choose,
            show_progress=False,
            decodings=[trial.decoding] * (2 * n),
            # Both sides draw from the streams of the first prompt, as in `sl.steer`.
            seeds=[stream_seed(trial.decoding.seed, 0, sample) for sample in range(n)] * 2,
        )
        if any(row.reason == "non-finite" for row in rows):
            raise SteerlensError("the model's logits hold NaN or infinity; lower the strength")
        if stop.is_set():
            raise _CancelledError
        baseline, steered = rows[0].produced, rows[n].produced
        texts = [self._text(row.produced) for row in rows]
        effects, free = record_run(
            self.model,
            prompt,
            baseline,
            steered,
            steering,
            read_at=read_at(vector, len(prompt)),
        )
        return SteeredRun(
            prompt=trial.asked,
            baseline=texts[0],
            steered=texts[n],
            effects=effects,
            free=free,
            settings={
                **how,
                "steering": [one.describe() for one in steering.interventions],
                "decoding": asdict(trial.decoding),
            },
            finish_reasons=tuple(row.reason or "length" for row in rows[::n]),
            samples=tuple(zip(texts[:n], texts[n:], strict=True)),
        )

    def _text(self, tokens: Sequence[int]) -> str:
        tokenizer: Any = self.model.tokenizer
        text: str = tokenizer.decode(tokens, skip_special_tokens=True)
        return text
