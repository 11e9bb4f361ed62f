"""Other people's evaluation tools over our models: mteb. CLIP_benchmark takes `align export --format open_clip`.

models            a model by its name, and pictures as those tools hold them
mteb              our models as mteb's

A tool that measures a model by its own protocols comes in. Our own protocols are in `evaluate/`. No verb and no stage
imports this folder, and importing it needs none of the tools.
"""
