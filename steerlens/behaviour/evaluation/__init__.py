"""Evaluation: does a response follow its instructions, is it fluent, and how sure is that?

====================== ===========================================================================
`prompts`              prompts with instructions, and reading them from an IFEval-shaped file
`drawing`              the same records from the catalogue, with one instruction or several
`checks`               a verdict a response: strict and loose, one for each instruction
`fluency`              repetition, and the rule by which a response counts as degenerate
`judge`                perplexity under an independent language model
`statistics`           intervals on rates, paired differences, the price of choosing the best
====================== ===========================================================================
"""

from steerlens.behaviour.evaluation.drawing import catalogue_prompts, several
from steerlens.behaviour.evaluation.prompts import EvaluationPrompt, PromptFile, read_prompts
from steerlens.behaviour.fluency import Fluency, fluency, is_degenerate, why_degenerate
from steerlens.behaviour.judge import DEFAULT_JUDGE, Judge, load_judge
from steerlens.stats.rates import (
    BestOfMany,
    Interval,
    best_of_many,
    holm,
    mcnemar_exact,
    median_ratio_bootstrap,
    paired_bootstrap,
    wilson,
)
from steerlens.tasks.checks import Verdict, is_known, verdict

__all__ = [
    "DEFAULT_JUDGE",
    "BestOfMany",
    "EvaluationPrompt",
    "Fluency",
    "Interval",
    "Judge",
    "PromptFile",
    "Verdict",
    "best_of_many",
    "catalogue_prompts",
    "fluency",
    "holm",
    "is_degenerate",
    "is_known",
    "load_judge",
    "mcnemar_exact",
    "median_ratio_bootstrap",
    "paired_bootstrap",
    "read_prompts",
    "several",
    "verdict",
    "why_degenerate",
    "wilson",
]
