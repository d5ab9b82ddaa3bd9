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
# # Which rule chooses the layer?
#
# Behaviour is the judge: `set_projection` with strength 1 (Stolfo et al. 2025, eq. 2) of the
# `last_prompt` vector at every third layer, every token steered, on twelve prompts of the `report`
# split per task, decoded with a repetition penalty of 1.1. A response that falls into a loop counts
# as a failure. The rules saw none of these prompts: each is one number per layer, from the `fit`
# split, from `select`, or from nothing at all (the middle layer), and takes the layer with the
# highest. Its regret is what is lost against the best layer, which is chosen on all prompts but one
# and read from that one.
#
# A rule is chosen on half of the tasks, by a hash of their id, and then measured once on the other
# half.

# %%
import steerlens as sl
from analyses import behaviour, rules

model = sl.load_model(behaviour.MODEL, dtype="auto")
halves = [rules.tasks_of_half(half) for half in (0, 1)]
halves

# %% [markdown]
# ## The half to choose on

# %%
names = [f"rules-{behaviour.MODEL}-{half}" for half in (0, 1)]
frame = rules.behaviour_of(model, halves[0], names[0])
evidence = rules.evidence_of(model, halves[0], names[0])
good = frame.assign(good=frame.passed & ~frame.degenerate)
good.pivot_table(index="instruction", columns="layer", values="good").round(2)

# %%
comparison = rules.compared(model, frame, evidence)
comparison.left_out

# %%
comparison.table.round(2)

# %%
comparison.by_instruction.round(2)

# %% [markdown]
# ## The half to test on
#
# Regret of the rule in `best_layer` minus that of every other rule, on the same tasks.

# %%
frame_1 = rules.behaviour_of(model, halves[1], names[1])
evidence_1 = rules.evidence_of(model, halves[1], names[1])
good = frame_1.assign(good=frame_1.passed & ~frame_1.degenerate)
good.pivot_table(index="instruction", columns="layer", values="good").round(2)

# %%
test = rules.compared(model, frame_1, evidence_1)
test.left_out

# %%
test.table.round(2)

# %%
behaviour.keep(test.plot(), "which-rule")

# %%
rules.rule_verdict(test, "first_token_recovery").round(2)

# %% [markdown]
# ## Can the task be steered at all?
#
# Tasks that some layer moves against those that none does: the area under the curve of each kind of
# evidence at its best layer, over both halves.

# %%
rules.predictability(model, [frame, frame_1], {**evidence, **evidence_1}).round(2)
