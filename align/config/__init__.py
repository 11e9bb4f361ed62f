"""params.yaml -> frozen, strict sections.

There is one module per section, so that a stage depends only on its own sections.

Values live in params.yaml and nowhere else: the section classes have types and bounds, no defaults.
"""

from align.config.params import Params, Section, load_params

__all__ = ["Params", "Section", "load_params"]
