#!/usr/bin/env bash
# Ten minutes of training on two cores: twice the channels, twice the depth with a lower rate of Muon, more latents and
# more epochs.
source "$(dirname "$0")/start.sh"
recipe ten-minutes \
  -S 'model.channels=[32,64]' -S model.blocks=2 -S model.latent_dim=40 \
  -S train.batch_size=256 -S train.warmup_steps=100 -S train.kl_warmup_epochs=0.25 -S train.schedule=cosine \
  -S train.importance_epochs=1000 -S train.epochs=36 -S train.prior_epochs=12 -S train.muon_learning_rate=0.012 "$@"
