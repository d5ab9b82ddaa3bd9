"""Evaluation: does a response follow its instructions, is it fluent, and how sure is that?

====================== ===========================================================================
`prompts`              prompts with instructions, and reading them from an IFEval-shaped file
`drawing`              the same records from the catalogue, with one instruction or several
`conditions`           what each prompt is answered under
`summary`              rates with intervals, and differences between conditions
`run`                  `evaluate`: a run that can be resumed
====================== ===========================================================================
"""

from steerlens.behaviour.evaluation.drawing import catalogue_prompts, several
from steerlens.behaviour.evaluation.prompts import EvaluationPrompt, PromptFile, read_prompts
from steerlens.behaviour.evaluation.run import Evaluation, EvaluationSettings, evaluate
from steerlens.behaviour.judge import DEFAULT_JUDGE, Judge, load_judge
from steerlens.tasks.checks import Verdict, is_known, verdict
from steerlens.tasks.fluency import Fluency, fluency, is_degenerate, why_degenerate

__all__ = [
    "DEFAULT_JUDGE",
    "Evaluation",
    "EvaluationPrompt",
    "EvaluationSettings",
    "Fluency",
    "Judge",
    "PromptFile",
    "Verdict",
    "catalogue_prompts",
    "evaluate",
    "fluency",
    "is_degenerate",
    "is_known",
    "load_judge",
    "read_prompts",
    "several",
    "verdict",
    "why_degenerate",
]
