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
# # Which evidence predicts where steering works?
#
# Behaviour first: `set_projection` with strength 1 (Stolfo et al. 2025, eq. 2) of the `last_prompt`
# vector at every second layer, without early stopping, for every instruction of the catalogue, on
# prompts of the `report` split. Then the evidence, which saw none of these prompts: separability
# from the `fit` split, causal recovery on `select`. The regret of a kind of evidence is what is
# lost by steering at the layer where it is highest instead of at the best layer, which is chosen on
# all prompts but one and read from that one.

# %%
import pandas as pd

import steerlens as sl
from analyses import behaviour, steerability

model = sl.load_model(behaviour.MODEL, dtype="auto")
frame = steerability.behaviour_by_layer(model, steerability.INSTRUCTIONS)
evidence = steerability.evidence_by_layer(model, steerability.INSTRUCTIONS)

# %% [markdown]
# ## Rates by layer

# %%
steered = frame[frame.scope != "none"]
rates = steered.pivot_table(index=["scope", "instruction"], columns="layer", values="passed")
rates.round(2)

# %% [markdown]
# ## Regret and agreement, by scope
#
# For instructions that no layer steers there is nothing to predict; they are listed.

# %%
comparisons = steerability.compared(model, frame, evidence)
table = pd.concat({scope: one.table for scope, one in comparisons.items()}, names=["scope"])
table.round(2)

# %%
{scope: one.left_out for scope, one in comparisons.items()}

# %%
behaviour.figure(comparisons["all"].plot(), "which-evidence")

# %% [markdown]
# ## Layer by layer

# %%
pd.concat({scope: one.by_instruction for scope, one in comparisons.items()}, names=["scope"]).round(
    2
)

# %% [markdown]
# ## Is first-token recovery a better rule than AUROC?
#
# With causal evidence `best_layer` follows first-token recovery. This rule was fixed before most of
# these instructions were measured; the other kinds are shown for comparison. The table shows its
# regret minus that of the highest AUROC (ties broken by held-out d′) on the same instructions, and
# minus half of it.

# %%
steerability.rule_verdict(comparisons).T.round(3)

# %% [markdown]
# Only instructions that some layer moves by at least a quarter of the prompts, instead of an
# eighth:

# %%
stricter = steerability.compared(model, frame, evidence, least_gain=0.25)
steerability.rule_verdict(stricter).T.round(3)

# %% [markdown]
# The same, if a response that falls into a loop counts as a failure:

# %%
clean = steerability.compared(model, frame, evidence, clean=True)
rows = {scope: one.table.round(2) for scope, one in clean.items()}
pd.concat(rows, names=["scope"]) if rows else None

# %% [markdown]
# ## What each kind costs
#
# Token positions through the whole model, and seconds, for one instruction, counted while the
# evidence is computed. Measuring behaviour is the standard that evidence should make unnecessary.

# %%
steerability.evidence_costs(model, "detectable_format:title")

# %% [markdown]
# ## Another model
#
# The same for Gemma-3-270M, a base model, where it is installed: fewer instructions, shorter
# answers.

# %%
theirs = steerability.elsewhere()
{scope: one.left_out for scope, one in theirs.items()}

# %%
rows = {scope: one.table.round(2) for scope, one in theirs.items()}
pd.concat(rows, names=["scope"]) if rows else None
