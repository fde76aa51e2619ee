#!/usr/bin/env bash
# Two hours of training on two cores: thrice the channels of the committed params.yaml, a larger prior, many epochs.
# Killed, it goes on where it was when it is started again.
set -euo pipefail
cd "$(dirname "$0")/.."
dvc exp run --name two-hours "$@" \
  -S 'model.channels=[48,96]' -S model.latent_dim=40 -S model.flow_couplings=12 -S model.mixture_components=1024 \
  -S train.epochs=175 -S train.prior_epochs=0
