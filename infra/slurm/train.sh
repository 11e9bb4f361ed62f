#!/bin/bash
# Training on the machines of a SLURM job, from the root of a checkout that all of them see:
#
#   sbatch infra/slurm/train.sh pretrain
#   sbatch --nodes=4 infra/slurm/train.sh pretrain --set pretrain.batch_size=4096
#
# align starts a rank for each GPU itself, so SLURM starts one task on each machine.
#
# What was run: this script with stand-ins for srun and scontrol (tests/unit/infra/test_clusters.py), and two machines
# that train together with these options, on CPUs (tests/integration/test_training_processes.py). What was only
# validated: the script, by shellcheck. SLURM was not at hand: the #SBATCH lines and its variables are untried.
#SBATCH --job-name=align
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
# Two minutes before the time limit, training gets SIGTERM and writes a checkpoint; the next job resumes from it.
#SBATCH --signal=TERM@120
set -eu

port=29500
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
nodes=$SLURM_JOB_NUM_NODES
if [ "$nodes" -gt 1 ]; then rendezvous="$first:$port"; else rendezvous=null; fi

# shellcheck disable=SC2016 # SLURM_NODEID is each machine's own
srun bash -c 'exec align "$@" --set cluster.node_rank="$SLURM_NODEID"' align "$@" \
  --set "cluster.num_nodes=$nodes" --set "cluster.rendezvous=$rendezvous"
