"""How a command of a run is started, watched and ended: supervised children, servers that fail.

A task knows one stage or command, never the whole run.
"""
