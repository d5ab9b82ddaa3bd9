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
# Two modes that answer different questions. *Forced*: both models score the same text, the steered
# one, so that every difference is the intervention's. *Free*: each model continues its own text.

# %%
import steerlens as sl
from analyses import behaviour
from steerlens.effects import token_contributions

model = sl.load_model(behaviour.MODEL)
task = sl.catalogue["detectable_format:title"]
pairs = sl.contrast_pairs(task, n=8 if behaviour.SMALL else 64, split="fit")
vector = sl.difference_of_means(sl.cache_residuals(model, pairs))
run = sl.steer(
    model,
    "Tell me about Rome.",
    vector.at(layer=24, strength=1.5, scope="prompt"),
    max_new_tokens=8 if behaviour.SMALL else 48,
    lens_layers=range(24, model.cfg.n_layers),
    read_at="last_prompt",
)

# %% [markdown]
# ## Forced: KL(steered‖baseline) at every token
#
# Underlined tokens were steered; the box is where the vector was read, the prompt's last token.

# %%
behaviour.figure(run.effects.plot(), "token-effects")

# %%
columns = ["token", "role", "kl", "projection_before", "projection_after", "entropy_change"]
run.effects.table[columns].round(3)

# %% [markdown]
# ## How the intervention travels
#
# The vector is written at layer 24, to the prompt. At every later layer and token: how much further
# along its direction the steered stream is than the baseline's. What tokens of the response have of
# it reached them through attention.

# %%
run.effects.plot("propagation")

# %% [markdown]
# ## What both streams would say at each layer
#
# The logit lens reads each layer's residuals as if they were the last. KL(steered‖baseline) of the
# two read-outs says from which layer on the streams *say* different things. Below, the likeliest
# first tokens of the response, read at the prompt's last one.

# %%
run.effects.plot("lens")

# %%
lens = run.effects.lens.table
read = lens[lens.position == run.effects.n_prompt - 1]
read.set_index("layer")[["kl", "top_baseline", "top_steered"]].round(3)

# %% [markdown]
# ## Which position of the intervention changed a token
#
# The token of the response whose log-probability changed most, and the intervention switched on
# position by position, from left to right. What each adds is its contribution; they sum to the
# whole change. A small one does not say that steering there alone would do little: where two
# positions do the same job, the first takes the credit.

# %%
response = run.effects.table.query("role == 'response'")
change = response.logprob_steered - response.logprob_baseline
contributions = token_contributions(model, run.effects, int(change.abs().idxmax()))
contributions.plot()

# %%
contributions

# %% [markdown]
# ## Free: where the two texts part

# %%
behaviour.figure(run.plot(), "two-texts")

# %% [markdown]
# ## Too strong
#
# Sooner or later more strength only breaks the text. Calibration finds the strength at which the
# steered model stays within a budget of divergence.

# %%
prompts = [pair.uninstructed for pair in sl.contrast_pairs(task, n=8, split="select")]
calibration = sl.calibrate(
    model,
    vector.at(layer=24, operation="add"),
    prompts[: 2 if behaviour.SMALL else 8],
    target_kl=0.1,
    max_new_tokens=8 if behaviour.SMALL else 48,
)
calibration
