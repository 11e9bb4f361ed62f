"""The arguments that each verb has in addition to those of all verbs (`align.cli`); `align.verbs` says whose they are.

They are apart from the verbs' modules, so that help and a wrong word are answered before anything heavy is imported:
only Python's own library is imported here.
"""
