"""Evaluation: what a model can do, as figures with their intervals and chance levels (`align evaluate`).

`measure` applies `protocols/` to a set that `embed` has shown to the model once; `report`, `page` and `figures` show
it. What measures a model on a set comes in. What a figure decides is in `release/promotion`, what a set is on disk in
`formats/`.
"""
