"""The arguments that each verb has beside those of all verbs (`align.cli`); `align.verbs` says which are whose.

They are apart from the verbs' modules, so that help and a wrong word are answered before anything heavy is imported:
only Python's own library is imported here.
"""
