r"""What a run will take, before it is started: tokens, time, memory and disk.

Three steps, each a module:

1. `work` lists what a command will ask of the model: answers (rows × longest response), prompts to
   cache, rows of causal recovery, texts to judge and check.
2. `rates` measures this model on this device for some seconds, with the run's own prompts.
3. `forecast` puts both together, and holds the result against what the run took (`ledger`).

Decoding is simulated (`stream`): a step takes the longer the more rows are active and the more
positions they look at; rows leave when their response ends, waiting rows take their slots. How long
responses become is read from a sample; most of an estimate's error is there, and in what a search
finds out only while it runs (which estimators have vectors; which candidates survive).
"""
