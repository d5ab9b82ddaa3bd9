"""How fast this model is here: some seconds of the run's own kind of work, timed.

Every rate is measured by the function that the run will call, on the run's prompts, after a first
call that nobody times (it builds kernels, and compares the engine with the bridge). What workers
will compute is measured with a worker's number of threads, the driver's own part with all of its.

Caveat: a worker's device is taken to be as fast as the driver's; where workers have GPUs and the
driver has none, the estimate is far too high.

Caveat: a machine that is busy with other work while it is measured, or becomes so later, makes the
estimate wrong by as much.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.costs.stream import fitted, stream
from steerlens.costs.work import Work
from steerlens.engine.residuals import residuals_at
from steerlens.generation import generate
from steerlens.models import tokenize_prompts
from steerlens.steering import Intervention, Steering

if TYPE_CHECKING:
    from steerlens.evaluation.judge import Judge

__all__ = ["Rates", "calibrate_rates", "peak_memory"]

# As many steps as decoding needs to pack its weights (`steerlens.engine.decoding`): shorter lists
# are decoded in another way than most of a run.
_SHORT_TOKENS = 48
_LONG_ROWS = 24
_LONGEST = 256
_DEPTH = 0.75


@dataclass(frozen=True)
class Rates:
    """Measured on this model and device.

    Attributes:
        read: Seconds to read a prompt that is answered unsteered.
        read_steered: The same where it is steered at three quarters of the depth, prompts repeated.
        step: Seconds a decoding step takes by itself.
        step_row: Seconds more for each active row.
        step_position: Seconds more for each position an active row looks at.
        lengths: Response lengths seen, in tokens, cut at `longest`.
        longest: Longest response sampled.
        prompt_tokens: Mean tokens of a rendered prompt.
        characters: Characters a response token makes.
        cache: Seconds to run a prompt for its residuals.
        recover: Seconds a row of causal recovery takes.
        judge: Seconds the judge takes for a response.
        check: Seconds to check a response.
        memory: Peak memory after calibration, in bytes.
        token_memory: Keys and values of a token, in bytes.
        positions: Most positions of key-value memory that calibration held.
        seconds: What calibration itself took.
        threads: Threads that answers were timed with.
    """

    read: float
    read_steered: float
    step: float
    step_row: float
    step_position: float
    lengths: tuple[int, ...]
    longest: int
    prompt_tokens: float
    characters: float
    cache: float
    recover: float
    judge: float
    check: float
    memory: int
    token_memory: int
    positions: int
    seconds: float
    threads: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the single lengths."""
        record = {key: value for key, value in asdict(self).items() if key != "lengths"}
        return {**record, "mean_length": sum(self.lengths) / max(len(self.lengths), 1)}


def calibrate_rates(
    model: TransformerBridge,
    work: Work,
    batch_size: int,
    judge: "Judge | None" = None,
    worker_threads: int = 0,
) -> Rates:
    """Time a little of each kind of work that will be done.

    Args:
        model: The model.
        work: What will be done.
        batch_size: Rows decoded together.
        judge: Reads responses.
        worker_threads: Threads of a worker, where workers answer, cache residuals and judge; 0
            where this process does.
    """
    started = time.perf_counter()
    rows = tokenize_prompts(model, list(work.prompts))
    with _computing_with(worker_threads):
        threads = torch.get_num_threads()
        answered = _answering(model, work, rows, batch_size) if work.askings else _Answering()
    total = max(sum(answered.lengths), 1)
    texts = answered.texts
    # Residuals are cached, and responses judged, where answers are; causal recovery is this
    # process's.
    with _computing_with(worker_threads):
        cache = _cache_rate(model, rows) if work.cached else 0.0
        reading = _judge_rate(judge, texts, work) if judge is not None else 0.0
    recover = cache
    if work.recovered and (worker_threads or not cache):
        recover = _cache_rate(model, rows)
    return Rates(
        read=answered.read,
        read_steered=answered.read_steered,
        step=answered.step,
        step_row=answered.step_row,
        step_position=answered.step_position,
        lengths=answered.lengths,
        longest=answered.longest,
        prompt_tokens=sum(map(len, rows)) / len(rows),
        characters=sum(map(len, texts)) / total,
        cache=cache,
        recover=recover,
        judge=reading,
        check=_check_rate(work, texts),
        memory=peak_memory(),
        token_memory=_token_memory(model),
        positions=answered.positions,
        seconds=time.perf_counter() - started,
        threads=threads,
    )


@dataclass(frozen=True)
class _Answering:
    """What timing answers gave; see `Rates`."""

    read: float = 0.0
    read_steered: float = 0.0
    step: float = 0.0
    step_row: float = 0.0
    step_position: float = 0.0
    lengths: tuple[int, ...] = ()
    longest: int = 0
    positions: int = 0
    texts: tuple[str, ...] = ()


def _answering(
    model: TransformerBridge, work: Work, rows: Sequence[Sequence[int]], batch_size: int
) -> _Answering:
    prompts = list(work.prompts)
    mean_tokens = sum(map(len, rows)) / len(rows)
    room = max(1, min(int(model.cfg.n_ctx) - max(map(len, rows)) - 1, _LONGEST))
    longest = min(max(one.max_new_tokens for one in work.askings), room)
    wide = [prompts[i % len(prompts)] for i in range(batch_size)]
    middle = _steering(model)
    generate(model, wide[:4], middle, max_new_tokens=2, progress=False)

    def answered(some: Sequence[str], n: int, steering: Steering | None = None) -> Any:
        return generate(
            model,
            list(some),
            steering,
            max_new_tokens=n,
            batch_size=batch_size,
            progress=False,
        )

    few = prompts[:_LONG_ROWS]
    read = _timed(lambda: answered(few, 1)) / len(few)
    read_steered = _timed(lambda: answered(wide, 1, middle)) / len(wide)
    short = min(_SHORT_TOKENS, longest)
    # Many rows, few rows, long responses: what tells steps, rows and positions apart.
    timed = []
    for some, n, how, reading in (
        (wide, short, middle, read_steered),
        (few, short, None, read),
        (few, longest, None, read),
    ):
        begun = time.perf_counter()
        sample = answered(some, n, how)
        seconds = time.perf_counter() - begun - reading * len(some)
        # The end-of-turn token is a step as well; the first token comes with reading.
        stepped = [min(len(one) + 1, n) - 1 for one in sample.tokens]
        timed.append((stream(stepped, batch_size, mean_tokens), seconds))
    step, step_row, step_position = fitted(timed)
    return _Answering(
        read=read,
        read_steered=read_steered,
        step=step,
        step_row=step_row,
        step_position=step_position,
        lengths=tuple(map(len, sample.tokens)),
        longest=longest,
        positions=max(
            int(size * (mean_tokens + n)) for size, n in ((len(wide), short), (len(few), longest))
        ),
        texts=tuple(sample.texts),
    )


@contextmanager
def _computing_with(threads: int) -> Iterator[None]:
    """So many threads in this block; 0 leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory() -> int:
    """The most this process has held so far, in bytes: of the GPU if it uses one, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, whose peak begins with what the parent process held.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _steering(model: TransformerBridge) -> Steering:
    """An intervention that changes nothing, at three quarters of the depth."""
    width, depth = int(model.cfg.d_model), int(model.cfg.n_layers)
    direction = torch.zeros(width, dtype=torch.float32)
    direction[0] = 1.0
    layer = min(int(_DEPTH * depth), depth - 1)
    return Steering((Intervention(layer, direction, 0.0, 0.0, "add", 0.0, "all"),))


def _cache_rate(model: TransformerBridge, rows: Sequence[Sequence[int]]) -> float:
    spans = [(len(row) - 1, len(row)) for row in rows]
    layers = range(int(model.cfg.n_layers))

    def run() -> None:
        residuals_at(model, rows, spans, layers, batch_size=32, progress=False)

    run()
    return _timed(run) / len(rows)


def _judge_rate(judge: "Judge", texts: Sequence[str], work: Work) -> float:
    some = [text for text in dict.fromkeys(texts) if text.strip()][:16]
    if not some or not work.judged:
        return 0.0
    judge.perplexities(some[:2], max_tokens=work.judge_tokens, progress=False)
    seconds = _timed(lambda: judge.perplexities(some, max_tokens=work.judge_tokens, progress=False))
    return seconds / len(some)


def _check_rate(work: Work, texts: Sequence[str]) -> float:
    if not work.checked or not texts:
        return 0.0
    from steerlens.evaluation.checks import verdict
    from steerlens.evaluation.fluency import fluency

    name = work.instruction or "punctuation:no_comma"

    def run() -> None:
        for text in texts:
            verdict(text, [name], [{}])
            fluency(text)

    try:
        run()
    except (ValueError, TypeError, KeyError):  # a check that needs arguments of its own
        name = "punctuation:no_comma"
        run()
    return _timed(run) / len(texts)


def _token_memory(model: TransformerBridge) -> int:
    config = model.cfg
    heads = getattr(config, "n_key_value_heads", None) or config.n_heads
    size = next(model.parameters()).element_size()
    return int(2 * config.n_layers * heads * config.d_head * size)
