"""What the field's own tools answer, written by the scripts here: `python -m tests.golden.MODULE`, with the tool."""
