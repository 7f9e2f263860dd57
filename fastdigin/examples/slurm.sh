#!/bin/bash
# A Slurm array: each task does its part of the photos, on a GPU of its own, into one folder that all
# machines see. Submit it again after a failure: what is done is not done twice.
#
#   sbatch --array=1-16 slurm.sh photos.csv
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
set -euo pipefail

fastdigin counterfactual "$1" \
    --model CompVis/stable-diffusion-v1-4 \
    --classifier timm:vit_base_patch16_384.augreg_in21k_ft_in1k \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
    --out counterfactuals
