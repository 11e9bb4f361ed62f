#!/bin/bash
# Training on the machines of a SLURM job, from the root of a checkout that all of them see:
#
#   sbatch --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=12 infra/slurm/train.sh pretrain
#
# A task is one rank, so there is one for each GPU, with its share of the machine's cores. Machines without GPUs need no
# such option; the site says what their kinds are called. With one task in all, align starts a rank for each GPU.
#
# What was run: this script on SLURM 24.11 with two nodes, on CPUs: stopped, requeued, and with a node lost
# (tests/integration/test_launchers.py).
#SBATCH --job-name=align
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# All memory of each machine: --exclusive alone gives a job its cores, and the site's default of memory.
#SBATCH --mem=0
# A job that lost a machine starts again by itself, resumes from the last checkpoint, and continues its log.
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time limit this script gets USR1 and has training stop, which writes a checkpoint. What scancel
# ends gets TERM, and does not start again.
#SBATCH --signal=B:USR1@120
set -u

stopped=
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # TERM goes to the tasks, not to this script

# a task that fails ends the others, which would wait for it
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} align "$@" &
wait $!
code=$?
[ -z "$stopped" ] || { wait $!; code=$?; } # the signal has ended the first wait

if [ -n "$stopped" ] && [ "$code" = 143 ]; then # training's own code for a stop, see StoppedError
  echo "train.sh: training was stopped before the time limit; job $SLURM_JOB_ID starts again and resumes"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
