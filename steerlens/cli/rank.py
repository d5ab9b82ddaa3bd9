"""`steerlens rank`: which layer, by which evidence."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.cli.engine import add_engine, workers_of
from steerlens.cli.options import (
    EVIDENCE_HELP,
    caches,
    evidence_kinds,
    finite,
    load,
    local_path,
    pair_sets,
    position_of,
    print_json,
    seed_of,
)
from steerlens.errors import PairsError, SteerlensError

if TYPE_CHECKING:
    from steerlens.attribution.evidence import Evidence
    from steerlens.tasks.pairs import ContrastSet

__all__ = ["add_rank", "rank"]

_N_HELD_OUT = 16
_FROM_MODEL = {"causal", "components"}
_COLUMNS = ("layer", "auroc", "auroc_low", "auroc_high", "d_prime", "split_half_cosine")
_UNSEEN = ("unseen_phrasing", "unseen_kind")
_CAUSAL = (
    "first_token_recovery",
    "first_token_recovery_low",
    "first_token_recovery_high",
    "first_token_placebo",
    "response_recovery_prompt",
    "response_recovery_all",
)


def add_rank(parser: argparse.ArgumentParser) -> None:
    """Options of `steerlens rank`."""
    parser.add_argument("--evidence", default="separability", help=EVIDENCE_HELP)
    parser.add_argument(
        "--shards",
        type=local_path,
        metavar="DIR",
        help="keep residuals there, for more pairs than fit in memory; separability only",
    )
    add_engine(parser)
    parser.add_argument(
        "--out",
        type=local_path,
        help="folder for ranking.json, ranking.csv, ranking.html and the rest",
    )


def rank(arguments: argparse.Namespace) -> None:
    """`steerlens rank`."""
    sets = pair_sets(arguments)  # before the slow imports: a mistyped name is refused at once
    from steerlens.attribution.evidence import gather_evidence
    from steerlens.files import check_writable

    wanted = evidence_kinds(arguments.evidence)
    if arguments.evidence == "all" and not all(pair.phrasing for pair in sets[0]):
        wanted = tuple(name for name in wanted if name != "generalisation")
    divided: list[tuple[ContrastSet, ContrastSet | None]] = [
        _held_out(pairs, arguments) if _FROM_MODEL & set(wanted) else (pairs, None)
        for pairs in sets
    ]
    if arguments.out is not None:
        check_writable(arguments.out / "ranking.json")
    workers = workers_of(arguments)
    _check_shards(arguments, wanted)
    model = load(arguments)
    found = []
    for pairs, rest in divided:
        if arguments.shards is not None:
            found.append(_from_shards(model, pairs, arguments, workers, len(divided) > 1))
            continue
        [cache] = caches(arguments, [pairs], model)
        found.append(
            gather_evidence(
                model,
                cache,
                rest,
                wanted,
                seed=seed_of(arguments),
                chat_format=arguments.chat_format,
                fitted_on=pairs,
            )
        )
    for one in found if arguments.out is not None else []:
        folder = arguments.out
        if len(found) > 1:
            folder /= str(one.ranking.metadata["instruction"]).replace(":", "-")
        _write(one, folder)
    if arguments.json:
        records = [one.to_json() for one in found]
        print_json(records[0] if len(records) == 1 else records)
        return
    for one in found:
        _print(one, one.ranking.metadata.get("instruction") or arguments.pairs)


def _check_shards(arguments: argparse.Namespace, wanted: Sequence[str]) -> None:
    if arguments.shards is None:
        if arguments.engine != "local":
            raise SteerlensError(
                f"--engine {arguments.engine} computes shards of residuals; say with --shards DIR "
                "where they are kept"
            )
    elif set(wanted) != {"separability"}:
        raise SteerlensError(
            f"from shards only separability is computed, not {', '.join(wanted)}; leave --shards "
            "out, or the other evidence"
        )


def _from_shards(
    model: Any,
    pairs: "ContrastSet",
    arguments: argparse.Namespace,
    workers: Any,
    several: bool,
) -> "Evidence":
    """Separability of residuals that stay on the disk."""
    from steerlens.activations.shards import shard_residuals
    from steerlens.attribution.evidence import Evidence
    from steerlens.attribution.separability import rank_layers

    folder = arguments.shards
    if several:
        folder /= str(pairs.instruction_id).replace(":", "-")
    shards = shard_residuals(
        model,
        pairs,
        folder,
        position=position_of(arguments),
        batch_size=arguments.batch_size,
        chat_format=arguments.chat_format,
        workers=workers,
    )
    return Evidence(rank_layers(shards, seed=seed_of(arguments)))


def _held_out(
    pairs: "ContrastSet", arguments: argparse.Namespace
) -> "tuple[ContrastSet, ContrastSet]":
    """The pairs to fit on, and others to measure on: of the select split, or a quarter of a file's.

    Raises:
        PairsError: A file with too few base queries to keep some back.
    """
    from steerlens.tasks.pairs import ContrastSet, contrast_pairs

    if arguments.pairs is None:
        from steerlens.tasks import catalogue

        name = str(pairs.instruction_id)
        n = min(_N_HELD_OUT, catalogue[name].n_pairs("select"))
        return pairs, contrast_pairs(name, n=n, seed=seed_of(arguments), split="select")
    # Near-duplicates are kept back together.
    queries = list(dict.fromkeys(pairs.query_groups))
    n_kept = min(_N_HELD_OUT, len(queries) // 4)
    if n_kept < 2:
        raise PairsError(
            f"{arguments.pairs} has {len(queries)} base queries; causal evidence keeps a quarter "
            "of them back and needs at least 8; give more, or --evidence separability"
        )
    kept = set(queries[-n_kept:])
    grouped = list(zip(pairs, pairs.query_groups, strict=True))
    sides = (
        [pair for pair, group in grouped if group not in kept],
        [pair for pair, group in grouped if group in kept],
    )
    fit, rest = (ContrastSet(tuple(side), pairs.instruction_id) for side in sides)
    return fit, rest


def _write(one: "Evidence", folder: Path) -> None:
    from steerlens.files import write_text
    from steerlens.views import layer_curves

    ranking = one.ranking
    write_text(folder / "ranking.json", json.dumps(finite(one.to_json()), indent=1))
    write_text(folder / "ranking.csv", ranking.table.to_csv(index=False))
    figure = (
        layer_curves(ranking.table, best_layer=None if ranking.caveat else ranking.best_layer)
        if one.drawn == ("auroc",)
        else one.plot()
    )
    write_text(folder / "ranking.html", figure.to_html())
    if one.recovery is not None:
        write_text(folder / "recovery.csv", one.recovery.table.to_csv(index=False))
    if one.writing is not None:
        write_text(folder / "components.csv", one.writing.table.to_csv(index=False))


def _print(one: "Evidence", name: object) -> None:
    ranking = one.ranking
    print(name)
    columns: Sequence[str] = [
        *(_COLUMNS if one.recovery is None else _COLUMNS[:2]),
        *(column for column in (*_UNSEEN, *_CAUSAL, "writing") if column in ranking.table),
        *(["selection_frequency"] if ranking.selection_frequency else []),
    ]
    print(ranking.table[columns].to_string(index=False, float_format="{:.3f}".format, na_rep="–"))
    if ranking.caveat:
        print(
            f"best layer: none, {ranking.caveat}; the highest is layer {ranking.best_layer} "
            f"({ranking.rule})"
        )
    else:
        print(f"best layer: {ranking.best_layer} ({ranking.rule})")
    if ranking.p_value is not None:
        print(f"p = {ranking.p_value:.3g} that no layer separates")
    for row in one.agreement.itertuples():
        print(
            f"agreement of {row.one} and {row.other} over layers: {row.spearman:.2f} "
            f"[{row.low:.2f}, {row.high:.2f}]"
        )
    if one.writing is not None:
        parts = ", ".join(f"{r.component} {r.share:.0%}" for r in one.writing.top(8).itertuples())
        print(f"written at layer {one.writing.layer} by: {parts}")
    if one.recovery is None:
        print("note: separability does not tell where steering works; add --evidence causal")
    print()
