"""`steerlens rank`: which layer, by which evidence."""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from steerlens.cli.choices import rank_choices
from steerlens.cli.options import EngineOptions, ModelOptions, PairOptions
from steerlens.cli.values import (
    Evidence,
    Json,
    evidence_kinds,
    given,
    local_path,
    option,
    print_json,
    refuse_unused,
    seed_of,
)
from steerlens.errors import PairsError, SteerlensError

if TYPE_CHECKING:
    from steerlens.attribution import evidence as gathered
    from steerlens.tasks.pairs import ContrastSet

__all__ = ["rank"]

_N_HELD_OUT = 16
_COLUMNS = ("layer", "auroc", "auroc_low", "auroc_high", "d_prime", "split_half_cosine")
_MORE = (
    "specific_auroc",
    "own_share",
    "unseen_phrasing",
    "unseen_kind",
    "first_token_recovery",
    "first_token_recovery_low",
    "first_token_recovery_high",
    "first_token_placebo",
    "other_task_recovery",
    "specific_recovery",
    "response_recovery_prompt",
    "response_recovery_all",
    "ceiling",
    "ceiling_low",
    "ceiling_high",
    "ceiling_share",
    "patching",
    "writing",
    "reading",
    "next_cosine",
    "vocabulary_z",
)


def rank(
    model: ModelOptions,
    pairs: PairOptions,
    engine: EngineOptions,
    *,
    evidence: Annotated[str, Evidence] = "separability",
    shards: Annotated[
        Path | None,
        local_path("keep residuals there, if there are too many for memory; separability only"),
    ] = None,
    out: Annotated[
        Path | None, local_path("folder for ranking.json, ranking.csv, ranking.html and the rest")
    ] = None,
    scope: Annotated[
        str | None, option("choices: which tokens are steered, answer, all or prompt")
    ] = None,
    resume: Annotated[
        bool, option("choices: continue the run in --out, task by task", "--resume")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rank layers by evidence, with intervals."""
    if evidence == "choices":
        if shards is not None or pairs.pairs is not None or engine.worker_settings() is not None:
            raise SteerlensError(
                "--evidence choices takes neither --pairs nor --shards, and is computed here"
            )
        if resume and out is None:
            raise SteerlensError("--resume continues the run in --out DIR; give both")
        rank_choices(model, pairs, scope or "answer", out, resume, as_json)
        return
    refuse_unused({"--scope": scope, "--resume": resume or None}, "is for --evidence choices")
    sets = pairs.sets()  # before the slow imports: a mistyped name is refused at once
    from steerlens.attribution.evidence import (
        BESIDE_A_TASK,
        ON_HELD_OUT,
        applicable_evidence,
        gather_evidence,
    )
    from steerlens.files import check_writable

    kinds = evidence_kinds(evidence)
    needs_held_out = bool(set(ON_HELD_OUT) & set(kinds))
    if needs_held_out and any(fit.same_prompts for fit in sets):
        raise SteerlensError(
            "causal evidence and components compare prompts, and choices have only one; use "
            "--evidence choices"
        )
    if out is not None:
        check_writable(out / "ranking.json")
    workers = engine.worker_settings()
    if shards is None and workers is not None:
        raise SteerlensError(
            f"--engine {engine.engine} computes shards of residuals; say with --shards DIR where "
            "they are kept"
        )
    if shards is not None and set(kinds) != {"separability"}:
        raise SteerlensError(
            f"from shards only separability is computed, not {', '.join(kinds)}; leave out "
            "--shards, or the other evidence"
        )
    every = _Several(len(sets) > 1)
    divided = [
        every.attempt(fit.instruction_id, partial(_held_out, fit, pairs))
        if needs_held_out
        else (fit, None)
        for fit in sets
    ]
    loaded = model.load()
    records = []
    for fit, held_out in filter(None, divided):

        def gather(fit: "ContrastSet" = fit, held_out: "ContrastSet | None" = held_out) -> Any:
            if shards is not None:
                folder = shards / _file_name(fit.instruction_id) if len(sets) > 1 else shards
                return _from_shards(loaded, fit, folder, pairs, model.chat_format, workers)
            return gather_evidence(
                loaded,
                pairs.cache(loaded, fit, model.chat_format),
                held_out,
                applicable_evidence(kinds, fit) if evidence == "all" else kinds,
                seed=seed_of(pairs.seed),
                chat_format=model.chat_format,
                fitted_on=fit,
                task=pairs.task_of(fit) if set(BESIDE_A_TASK) & set(kinds) else None,
            )

        result = every.attempt(fit.instruction_id, gather)
        if result is None:
            continue
        if out is not None:
            name = _file_name(result.ranking.metadata["instruction"])
            _write(result, out / name if len(sets) > 1 else out)
        if as_json:
            records.append(_record(result))
        else:
            _print(result, result.ranking.metadata.get("instruction") or pairs.pairs)
    if as_json:
        print_json(records[0] if len(sets) == 1 else records)
    every.finish(len(sets))


class _Several:
    """Tasks one after the other: one that fails is named, and the others go on."""

    def __init__(self, several: bool) -> None:
        self.several = several
        self.failed: list[str] = []

    def attempt(self, task: object, compute: Callable[[], Any]) -> Any:
        """What `compute` returns; None where it fails and there are other tasks."""
        try:
            return compute()
        except SteerlensError as error:
            if not self.several:
                raise
            print(f"steerlens: {task}: {error}", file=sys.stderr)
            self.failed.append(str(task))
            return None

    def finish(self, n: int) -> None:
        """`SteerlensError` that names the tasks that failed."""
        if self.failed:
            raise SteerlensError(
                f"{len(self.failed)} of {n} tasks failed, for the reasons above: "
                f"{', '.join(self.failed)}"
            )


def _file_name(task: object) -> str:
    return str(task).replace(":", "-")


def _record(result: "gathered.Evidence") -> dict[str, Any]:
    record = result.to_json()
    return {"model": record["model"], "task": record["instruction"], **record}


def _from_shards(
    model: Any,
    fit: "ContrastSet",
    folder: Path,
    pairs: PairOptions,
    chat_format: Any,
    workers: Any,
) -> "gathered.Evidence":
    """Separability of residuals that stay on disk."""
    from steerlens.activations.shards import shard_residuals
    from steerlens.attribution.evidence import Evidence
    from steerlens.attribution.separability import rank_layers

    residuals = shard_residuals(
        model,
        fit,
        folder,
        position=pairs.read_at(fit),
        chat_format=chat_format,
        workers=workers,
        **given(batch_size=pairs.batch_size),
    )
    return Evidence(rank_layers(residuals, seed=seed_of(pairs.seed)))


def _held_out(pairs: "ContrastSet", options: PairOptions) -> "tuple[ContrastSet, ContrastSet]":
    """Pairs to fit on, and others to measure on: of the select split, or a quarter of a file's.

    Raises:
        PairsError: A file with too few base queries to keep some back.
    """
    from steerlens.tasks.drawing import contrast_pairs
    from steerlens.tasks.pairs import ContrastSet

    if options.pairs is None:
        (task,) = (task for task in options.tasks() if task.id == pairs.instruction_id)
        n = min(_N_HELD_OUT, task.n_pairs("select"))
        return pairs, contrast_pairs(task, n=n, seed=seed_of(options.seed), split="select")
    # Near-duplicates are kept back together.
    queries = list(dict.fromkeys(pairs.query_groups))
    n_kept = min(_N_HELD_OUT, len(queries) // 4)
    if n_kept < 2:
        raise PairsError(
            f"{options.pairs} has {len(queries)} base queries; causal evidence keeps a quarter "
            "of them back and needs at least 8; give more, or --evidence separability"
        )
    kept = set(queries[-n_kept:])
    sides: dict[bool, list[Any]] = {False: [], True: []}
    for pair, group in zip(pairs, pairs.query_groups, strict=True):
        sides[group in kept].append(pair)
    fit, rest = (ContrastSet(tuple(side), pairs.instruction_id) for side in sides.values())
    return fit, rest


def _write(result: "gathered.Evidence", folder: Path) -> None:
    from steerlens.files import without_nan, write_text
    from steerlens.views import layer_curves

    ranking = result.ranking
    write_text(folder / "ranking.json", json.dumps(without_nan(_record(result)), indent=1))
    write_text(folder / "ranking.csv", ranking.table.to_csv(index=False))
    figure = (
        layer_curves(ranking.table, best_layer=None if ranking.caveat else ranking.best_layer)
        if result.drawn == ("auroc",)
        else result.plot()
    )
    write_text(folder / "ranking.html", figure.to_html())
    if result.recovery is not None:
        write_text(folder / "recovery.csv", result.recovery.table.to_csv(index=False))
    if result.writing is not None:
        write_text(folder / "components.csv", result.writing.table.to_csv(index=False))
    for kind, detail in result.details.items():
        write_text(folder / f"{kind}.csv", detail.table.to_csv(index=False))


def _print(result: "gathered.Evidence", name: object) -> None:
    ranking = result.ranking
    print(name)
    columns: Sequence[str] = [
        *(_COLUMNS if result.recovery is None else _COLUMNS[:2]),
        *(column for column in _MORE if column in ranking.table),
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
    for row in result.agreement.itertuples():
        print(
            f"agreement of {row.one} and {row.other} over layers: {row.spearman:.2f} "
            f"[{row.low:.2f}, {row.high:.2f}]"
        )
    if result.writing is not None:
        parts = ", ".join(
            f"{r.component} {r.share:.0%}" for r in result.writing.top(8).itertuples()
        )
        print(f"written at layer {result.writing.layer} by: {parts}")
    if result.recovery is None:
        print("note: separability does not tell where steering works; add --evidence causal")
    print()
