"""From a trained model to the champion that people use: five rooms, each of which knows only those below it.

promotion       `align promote`: the evidence, the gates, the page
aliases         how the champion moves, and `align rollback`
registration    `align register`: what a run and a version say of themselves
exchange        other people's formats: `align export`, `align import_model`
packaging       `align package`: a deterministic MLflow model folder

How MLflow is spoken to is in `services/tracking`, how a model is measured in `evaluate/`.
"""
