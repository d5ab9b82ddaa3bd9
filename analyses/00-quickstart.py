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
# # Quickstart
#
# An instruction in a prompt shifts the residual stream. The mean of that shift over many prompts is
# a direction. Adding it back makes the model follow the instruction without being told (Stolfo et
# al. 2025).

# %%
import steerlens as sl

model = sl.load_model("smollm2-135m-instruct", dtype="auto")
task = sl.catalogue["detectable_format:title"]
task.phrasings[0]

# %% [markdown]
# ## Pairs with and without the instruction, and the direction between them

# %%
pairs = sl.contrast_pairs(task, n=64, split="fit")
cache = sl.cache_residuals(model, pairs)
vector = sl.difference_of_means(cache)
vector

# %% [markdown]
# ## Where does steering move the model?
#
# How much of the instruction's effect on the first response token does steering at a layer
# reproduce, on pairs the vector has not seen? The placebo is a random direction pushed as far.

# %%
held_out = sl.contrast_pairs(task, n=16, split="select")
layers = range(0, model.cfg.n_layers - 1, 2)
recovery = sl.first_token_recovery(
    model, held_out, vector, layers=layers, placebo=sl.random_direction(cache)
)
recovery

# %% tags=["figure:recovery"]
recovery.plot()

# %% [markdown]
# ## Steer there
#
# The prompts are from a third split, and none contains the instruction. One prompt shows little;
# sixteen are enough to see a difference. (Strength 2 and only the prompt steered, as in the README.
# On 24 prompts of the `select` split 22 answers then have a title, 12 at strength 1, and none
# without steering.)

# %%
prompts = [pair.uninstructed for pair in sl.contrast_pairs(task, n=16, split="report")]
steering = vector.at(layer=recovery.best_layer, strength=2.0, scope="prompt")
plain = sl.generate(model, prompts, max_new_tokens=48)
steered = sl.generate(model, prompts, steering, max_new_tokens=48)
{
    name: sum(task.check(text, loose=True) for text in answers.texts)
    for name, answers in {"without": plain, "with": steered}.items()
}

# %%
for before, after in list(zip(plain.texts, steered.texts, strict=True))[:3]:
    print(f"without: {before!r}\nwith:    {after!r}\n")
