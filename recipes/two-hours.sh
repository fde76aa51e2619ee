#!/usr/bin/env bash
# Two hours of training on two cores: thrice the channels of the committed params.yaml, twice the depth, a larger prior,
# many epochs of images that are moved a little, and fewer images kept from training.
# Killed, it goes on where it was when it is started again.
set -euo pipefail
cd "$(dirname "$0")/.."
dvc exp run --name two-hours "$@" \
  -S data.validation=1000 \
  -S 'model.channels=[48,96]' -S model.blocks=2 -S model.latent_dim=40 \
  -S model.flow_couplings=12 -S model.mixture_components=1024 \
  -S train.epochs=175 -S train.prior_epochs=40 -S train.augmentation=0.8
