"""What a project is made of, a checkout or a folder of `align init`, and which code decides what.

init          `align init`
code          the digests of code that dvc.yaml's stages depend on: its first stage
provenance    which modules decide the bytes of a stage
declared      what dvc.yaml and code.yaml say of a stage, checked before it runs
installed     files that come with the code
template      what `align init` copies

What is true of a project as a whole comes in. What a stage does is in its folder, and where runs work is in `flows/`.
"""
