# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Format instructions, without and with the instruction in the prompt
#
# Stolfo et al. (2025, §3) steer with the difference of means at the last prompt token, at one
# layer, and raise adherence to format instructions by up to 30 points without the instruction in
# the prompt. Here estimator, layer, operation, strength and scope are chosen for each instruction
# by behaviour on prompts set aside for this (`select`), and everything below is measured on others.

# %%
import steerlens as sl
from analyses import behaviour

model = sl.load_model(behaviour.MODEL, dtype="auto")

FORMAT = behaviour.FORMAT

# %% [markdown]
# ## What the search chose
#
# `rate` was measured on the prompts the choice was made on; `corrected_rate` subtracts what
# choosing the best of many settings adds to it.

# %%
plan = behaviour.planned(model, FORMAT, "format")
plan.table

# %% [markdown]
# ## The catalogue's report split

# %%
result = behaviour.evaluated(model, behaviour.report_prompts(FORMAT), "format-report", plan)
behaviour.figure(behaviour.keep(result.plot(), "format-report"), "format-report")

# %%
result.table[result.table.instruction == "all prompts"].set_index("condition")

# %% [markdown]
# ## IFEval's single-format prompts, if the file is given
#
# Nothing was fitted or chosen on any of them.

# %%
given = behaviour.given_prompts("ifeval_single_format.jsonl")
public = behaviour.evaluated(model, given, "format-ifeval", plan) if given else None
if public is not None:
    drawn = behaviour.keep(public.plot(), "format-ifeval")
    behaviour.figure(drawn, "format-ifeval").show()

# %%
if public is not None:
    print(public.table[public.table.instruction == "all prompts"].to_string(index=False))

# %% [markdown]
# ## Claims and verdicts
#
# A verdict is *shown* when the 95 % interval of the difference lies above zero, *refuted* when it
# lies below, and *open* otherwise.

# %%
behaviour.verdicts(
    [
        row
        for name, found in (("report split", result), ("IFEval", public))
        if found is not None
        for row in (
            behaviour.claim(
                "steering replaces the instruction (up to +30 points)",
                found,
                "uninstructed+steering",
                "uninstructed",
                name,
            ),
            behaviour.claim(
                "steering adds to the instruction",
                found,
                "instructed+steering",
                "instructed",
                name,
            ),
            behaviour.claim(
                "steering does as well as the instruction",
                found,
                "uninstructed+steering",
                "instructed",
                name,
            ),
            behaviour.claim(
                "a random direction does the same (control)",
                found,
                "uninstructed+placebo",
                "uninstructed",
                name,
            ),
        )
    ]
)
