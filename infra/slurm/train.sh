#!/bin/bash
# Training on the machines of a SLURM job, from the root of a checkout that all of them see:
#
#   sbatch infra/slurm/train.sh pretrain
#   sbatch --nodes=4 infra/slurm/train.sh pretrain --set pretrain.batch_size=4096
#
# SLURM starts one task on each machine; align learns its place from SLURM's variables, and starts a rank for each GPU.
# Where a task for each GPU is the custom, `sbatch --ntasks-per-node=8`: each task is then a rank.
#
# What was run: this script with a stand-in for srun (tests/unit/infra/test_clusters.py), and machines and ranks that
# train together with such variables, on CPUs (tests/integration/test_lost_machines.py). What was only validated: the
# script, by shellcheck. SLURM was not at hand: the #SBATCH lines and its variables are untried.
#SBATCH --job-name=align
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
# All memory of each machine: --exclusive alone gives a job its cores, and the site's default of memory.
#SBATCH --mem=0
# A job that lost a machine starts again by itself, resumes from the last checkpoint, and continues its log.
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time limit, training gets SIGTERM and writes a checkpoint, in cluster.stop_s at most; the next
# job resumes from it.
#SBATCH --signal=TERM@120
set -eu

# a task that fails ends the others, which would wait for it
exec srun --kill-on-bad-exit=1 align "$@"
