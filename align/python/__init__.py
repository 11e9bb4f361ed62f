"""The Python API: what `import align` offers (docs/python.md), and our models in mteb.

models            `align.load`: a model that embeds pictures and texts, and is measured
datasets          `align.open_dataset`: pairs of data/raw, decisions or shards
mteb              our models as mteb's

What people call from notebooks and scripts comes in, and other people's tools that call us. No verb and no stage
imports this folder.
"""
