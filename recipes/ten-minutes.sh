#!/usr/bin/env bash
# Ten minutes of training on two cores: twice the channels, eight times the epochs.
set -euo pipefail
cd "$(dirname "$0")/.."
dvc exp run --name ten-minutes "$@" \
  -S 'model.channels=[32,64]' -S model.latent_dim=40 -S model.mixture_components=1000 \
  -S train.epochs=42 -S train.kl_warmup_epochs=1
