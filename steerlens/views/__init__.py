"""Pictures of results: heat maps, curves, histograms, bars, and text shaded token by token.

Every function takes plain rows (a DataFrame, or a list of mappings) or plain numbers and returns a
`Picture`, a `plotly.graph_objects.Figure` with `.save(path)`; except `token_strip`, which returns
HTML. Nothing here touches a model: a picture can be drawn again from the numbers in a report. All
share one theme (`steerlens.views.theme`): colour-blind-safe, for light and dark pages.

| function | shows |
|---|---|
| `token_strip`, `text_figure` | a text shaded token by token, as HTML and as a figure |
| `layer_token_map` | one quantity over layers × the tokens of a text |
| `instruction_layer_heatmap` | one quantity over instructions × layers |
| `cosine_matrix` | how alike directions are |
| `layer_curves`, `evidence_curves` | evidence about layers, with uncertainty |
| `recovery_curve` | causal recovery over layers, beside its placebo |
| `strength_sweep` | rate, KL and perplexity over strength, with bands |
| `length_over_strength` | how long responses get |
| `projection_histogram` | instructed, uninstructed and steered residuals along a direction |
| `vector_curves`, `norm_curves` | a steering vector, and residuals, over layers |
| `survival_curve` | what later layers leave of an intervention |
| `ranked_tokens` | tokens promoted and suppressed |
| `response_lengths` | lengths of responses, and why they ended |
| `kl_over_response` | where in a response steering acts |

`.plot()` of a result picks one of them. `save` writes any figure as HTML, SVG, PNG or PDF.

>>> rows = [{"instruction": "title", "layer": n, "auroc": 0.5 + n / 10} for n in range(5)]
>>> figure = instruction_layer_heatmap(rows, "auroc", marked={"title": 4})
>>> figure.layout.xaxis.title.text
'layer'
"""

import lazy_loader

# What is public, and where it lives, is listed once, in `__init__.pyi`.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
