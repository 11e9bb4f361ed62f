"""The only door to DVC: nothing else imports it, or knows how its cache and its run cache are laid out.

What comes in: settings, the files of a git revision, single objects, the state of a stage against the caches, its
commands. What does not: which
stages there are and what they mean (`align.project.declared`, `flows.dag`). Only public names of DVC are used.
"""
