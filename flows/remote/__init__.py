"""A stage on another machine: a worker of another work pool runs it, and its result comes back through DVC's remote.

The machine of the run (its head) and the worker share a git remote, a DVC remote and Prefect's server, and no disk:

1. head: what the stage reads goes to DVC's remote, a snapshot of the checkout to git's (`send`);
2. worker: takes both, runs `dvc repro` for this one stage, and pushes the outs with the entry of DVC's run cache
   (`stage`);
3. head: takes the entry, and `dvc repro` of the same stage ends as cached, with the same bytes.

So nothing but DVC decides what a stage's result is, and where a stage ran changes nothing. `exchange` is what goes
between the two.
"""
