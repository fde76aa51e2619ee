#!/usr/bin/env bash
# Two hours of training on two cores: the channels of ten-minutes, twice its depth, many epochs of images moved a
# little, and fewer images kept from training; at last five on 32 samples each. Networks this deep want a lower rate
# of Muon.
# Killed, it goes on where it was when it is started again, after `git restore params.yaml`.
source "$(dirname "$0")/start.sh"
dvc exp run --name two-hours "$@" \
  -S data.validation=1000 \
  -S 'model.channels=[32,64]' -S model.blocks=4 -S model.latent_dim=40 \
  -S train.epochs=195 -S train.prior_epochs=40 -S train.refine_epochs=5 -S train.refine_rate=0.2 \
  -S train.augmentation=0.6 -S train.muon_learning_rate=0.008
