"""From a trained model to the champion that people use: five rooms.

packaging       `align package`: a deterministic MLflow model folder
registration    `align register`: what a run and a version say of themselves
promotion       `align promote`: the evidence, the gates, the page
aliases         how the champion moves, and `align rollback`
exchange        other people's formats: `align export`, `align import_model`
"""
