"""lm-eval's tasks under a steering: any benchmark, generative or by log-likelihood.

================== ================================================================
`language_model`   `SteeredLM`, lm-eval's model interface on the engine
`run`              `run_tasks`: tasks unsteered, steered and under a placebo
`saved`            a steering from a vector's file or a plan's folder
`registration`     the model's name in lm-eval's registry
================== ================================================================

The harness is EleutherAI's lm-evaluation-harness (`lm-eval`); nothing here imports it before it is
used. lm-eval finds models by name in its registry, which has no entry points: `register` adds the
name ``steerlens`` to it, and ``python -m steerlens.harness run --model steerlens …`` is lm-eval's
own command line with that name.

    from steerlens.harness import register
    register()
    lm_eval.simple_evaluate("steerlens", "vector=title.safetensors,layer=22", tasks=["arc_easy"])
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
