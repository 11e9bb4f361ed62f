"""The only door to DVC: nothing else imports it, or knows how its cache is laid out.

What comes in: settings, the files of a git revision, single objects, the status of stages, commands. What does not:
which stages there are and what they mean (`align.project.declared`, `flows.dag`). Only public names of DVC are used.
"""
