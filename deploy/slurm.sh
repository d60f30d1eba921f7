#!/usr/bin/env bash
# One process a GPU, as JAX expects under SLURM. Run directory and images lie on a file system that all nodes see.
#   sbatch deploy/slurm.sh --config=configs/mednist.py --workdir=runs/mednist --config.data.path=/data/mednist
# A job that loses a node, or comes to its time limit, is sent again, and goes on from its newest whole checkpoint.
#SBATCH --job-name=vaejax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM to every step two minutes before the limit: the step in flight is saved, and the job exits with 143.
#SBATCH --signal=TERM@120
set -euo pipefail

# JAX finds address, number and rank of the processes in SLURM's own variables.
status=0
srun --kill-on-bad-exit=1 vaejax train --distributed "$@" || status=$?
if [ "$status" = 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
