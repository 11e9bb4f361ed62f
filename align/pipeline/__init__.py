"""The verbs that start a run of the pipeline, plan one and list those that there are; and what joins stages.

run            `align run`
plan           `align plan`
runs           `align runs`
estimate       what a model's training needs, counted without training it
blend          `align blend`
logged_evaluation  `align evaluate --log`: a model measured apart from the pipeline
validation     what a training run is measured on, as `align evaluate` measures

The runs themselves are flows of Prefect (`flows`). They are programs that replace these verbs' process: nothing here
imports them.
"""
