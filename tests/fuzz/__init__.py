"""Fuzzing: `make fuzz`. Targets are in `targets.py`; `make test` replays every file of `corpus/` and `finds/`."""
