"""`steerlens calibrate`: the strength that meets a divergence budget, or an instruction."""

import argparse
import math
from typing import Any

from steerlens.cli.options import load, local_path, positive, print_json, refuse
from steerlens.cli.vectors import add_intervention, operation_of
from steerlens.errors import SteerlensError

__all__ = ["add_calibrate", "calibrate"]


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    """Options of `steerlens calibrate`."""
    add_intervention(parser)
    parser.add_argument("--target-kl", type=float, help="budget, nats a token (default: 0.1)")
    parser.add_argument(
        "--quantile", type=float, help="the quantile over tokens that meets it; the mean by default"
    )
    parser.add_argument(
        "--instruction", help="find the strength at which responses follow it, not a KL budget"
    )
    parser.add_argument(
        "--target-rate", type=float, help="share that must follow it; the most by default"
    )
    parser.add_argument("--n", type=int, default=24, help="prompts of the select split")
    parser.add_argument(
        "--max-new-tokens", type=positive, help="longest response; 64, or 128 with --instruction"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=local_path, help="write the vector with its calibration here")


def calibrate(arguments: argparse.Namespace) -> None:
    """`steerlens calibrate`: the strength that meets a divergence budget, or an instruction."""
    from steerlens.files import check_writable
    from steerlens.vectors.formats import load_vector

    if arguments.target_rate is not None and arguments.instruction is None:
        raise SteerlensError("--target-rate needs --instruction, whose check counts the responses")
    if arguments.instruction is not None:
        budget = "is of a KL budget, and with --instruction the strength is found by its check"
        refuse(arguments, ["--quantile", "--target-kl"], budget)
    vector = load_vector(arguments.vector)
    steering = vector.at(arguments.layer, operation_of(arguments, vector), 1.0, arguments.scope)
    if arguments.out is not None:
        check_writable(arguments.out)
    by = _by_budget if arguments.instruction is None else _by_rate
    found = by(arguments, vector, steering)
    if arguments.out is not None:
        found.saved_with(vector).save(arguments.out)
    if arguments.json:
        print_json({**found.record, "reason": found.reason})
        return
    print(found)
    if arguments.out is not None:
        print(f"the vector with its calibration: {arguments.out}")


def _by_budget(arguments: argparse.Namespace, vector: Any, steering: Any) -> Any:
    from steerlens.behaviour.calibration import calibrate as run_calibrate
    from steerlens.effects.divergence import check_statistic
    from steerlens.engine.generation import generate
    from steerlens.tasks import base_queries

    queries = [query.text for query in base_queries("select")]
    if not 2 <= arguments.n <= len(queries):
        raise SteerlensError(
            f"--n must be 2 to {len(queries)}, the queries of the select split; got {arguments.n}"
        )
    target_kl = 0.1 if arguments.target_kl is None else arguments.target_kl
    # Answers take minutes: what cannot be met is refused before.
    if not 0 < target_kl < math.inf:
        raise SteerlensError(f"--target-kl must be a positive number of nats; got {target_kl:g}")
    check_statistic(arguments.quantile, 1, arguments.seed)
    model = load(arguments)
    vector.check_model(model)
    answers = generate(
        model,
        queries[: arguments.n],
        max_new_tokens=arguments.max_new_tokens or 64,
        chat_format=arguments.chat_format,
    )
    return run_calibrate(
        model,
        steering,
        answers,
        target_kl=target_kl,
        quantile=arguments.quantile,
        seed=arguments.seed,
    )


def _by_rate(arguments: argparse.Namespace, vector: Any, steering: Any) -> Any:
    from steerlens.behaviour.calibration import calibrate_rate
    from steerlens.tasks import catalogue
    from steerlens.tasks.pairs import contrast_pairs

    task = catalogue[arguments.instruction]
    contrast_pairs(task, n=arguments.n, seed=arguments.seed, split="select")  # or refused at once
    if arguments.target_rate is not None and not 0 < arguments.target_rate <= 1:
        raise SteerlensError(
            f"--target-rate must be above 0 and at most 1; got {arguments.target_rate:g}"
        )
    model = load(arguments)
    vector.check_model(model)
    return calibrate_rate(
        model,
        steering,
        task,
        arguments.target_rate,
        n_prompts=arguments.n,
        max_new_tokens=arguments.max_new_tokens or 128,
        seed=arguments.seed,
        chat_format=arguments.chat_format,
    )
