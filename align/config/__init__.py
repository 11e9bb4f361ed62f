"""params.yaml -> frozen, strict sections: their types and bounds, and what contradicts what.

params      reads, overrides and writes the file
sections    all classes, and their JSON Schema
checks      the whole file, before a command starts
suite       another file of people's: evaluation sets where they lie
the others  classes of sections; `given` and `model` have types that several use

A section's keys have no defaults: params.yaml has their values, and a file without one is refused. What people write
within a value or into a suite may leave out keys whose defaults are written beside them here. A stage depends on the
modules of the classes that it reads, so sections share one only if the same stages read them, or if none does. What a
value leads to is decided where it is read.
"""

from align.config.params import Params, Section, load_params

__all__ = ["Params", "Section", "load_params"]
