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
# # What steering does to each token
#
# Two modes answer different questions. *Teacher-forced*: both models score the same text, the
# steered one, so every difference is due to the intervention. *Free-running*: each model continues
# its own text.

# %%
import steerlens as sl
from steerlens.effects import token_contributions

model = sl.load_model("smollm2-135m-instruct")
task = sl.catalogue["detectable_format:title"]
pairs = sl.contrast_pairs(task, n=64, split="fit")
vector = sl.difference_of_means(sl.cache_residuals(model, pairs))
run = sl.steer(
    model,
    "Tell me about Rome.",
    vector.at(layer=24, strength=1.5, scope="prompt"),
    max_new_tokens=48,
    lens_layers=range(24, model.cfg.n_layers),
    read_at="last_prompt",
)

# %% [markdown]
# ## Teacher-forced: KL(steered‖baseline) at every token
#
# Underlined tokens were steered. The box marks where the vector was read, the prompt's last token.

# %% tags=["figure:token-effects"]
run.effects.plot()

# %%
columns = ["token", "role", "kl", "projection_before", "projection_after", "entropy_change"]
run.effects.table[columns].round(3)

# %% [markdown]
# ## How the intervention propagates
#
# The vector is written to the prompt at layer 24. The map shows, at every later layer and token,
# how much further along the direction the steered stream lies than the baseline. Tokens of the
# response can only have received it through attention.

# %%
run.effects.plot("propagation")

# %% [markdown]
# ## What both streams would say at each layer
#
# The logit lens reads each layer's residuals as if that layer were the last. KL(steered‖baseline)
# of the two readouts shows from which layer on the streams *say* different things. Below are the
# most likely first tokens of the response, read at the prompt's last token.

# %%
run.effects.plot("lens")

# %%
lens = run.effects.lens.table
read = lens[lens.position == run.effects.n_prompt - 1]
read.set_index("layer")[["kl", "top_baseline", "top_steered"]].round(3)

# %% [markdown]
# ## Which position of the intervention changed a token
#
# For the response token whose log-probability changed most, the intervention is switched on
# position by position, from left to right. What each position adds is its contribution; together
# they sum to the whole change. A small contribution does not mean that steering there alone would
# do little: if two positions do the same job, the first takes the credit.

# %%
response = run.effects.table.query("role == 'response'")
change = response.logprob_steered - response.logprob_baseline
contributions = token_contributions(model, run.effects, int(change.abs().idxmax()))
contributions.plot()

# %%
contributions

# %% [markdown]
# ## Free-running: where the two texts part

# %% tags=["figure:two-texts"]
run.plot()

# %% [markdown]
# ## Too strong
#
# At some point more strength only breaks the text. Calibration finds the strength at which the
# steered model stays within a divergence budget.

# %%
prompts = [pair.uninstructed for pair in sl.contrast_pairs(task, n=8, split="select")]
calibration = sl.calibrate(
    model,
    vector.at(layer=24, operation="add"),
    prompts,
    target_kl=0.1,
    max_new_tokens=48,
)
calibration
