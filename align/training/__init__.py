"""The training loop and what it stands on: loader, optimiser, checkpoints, process group."""
