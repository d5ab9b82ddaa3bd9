"""steerlens: where to steer a language model, how hard, and what it did to every token.

Activation steering for instruction following (Stolfo et al., ICLR 2025, arXiv 2410.12877) on
hooked models from TransformerLens::

    import steerlens as sl

    model = sl.load_model("smollm2-135m-instruct")
    pairs = sl.contrast_pairs("detectable_format:title", n=64)
    cache = sl.cache_residuals(model, pairs)
    ranking = sl.rank_layers(cache)
    vector = sl.difference_of_means(cache)
    steering = vector.at(layer=24, strength=2.0, scope="prompt")
    run = sl.steer(model, "Tell me about Rome.", steering)
    run.effects.table

Names are imported on first use, so ``import steerlens`` and the command line start at once.
"""

import lazy_loader

__version__ = "0.1.0"

# What is public, and where it lives, is listed once, in `__init__.pyi`.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
