"""params.yaml -> frozen, strict sections. One module a section, so that a stage depends on its own sections only.

Values live in params.yaml and nowhere else: the section classes have types and bounds, no defaults.
"""

from align.config.params import Params, Section, load_params

__all__ = ["Params", "Section", "load_params"]
