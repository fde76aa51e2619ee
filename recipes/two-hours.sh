#!/usr/bin/env bash
# Two hours of training on two cores: the channels of ten-minutes, twice its depth, many epochs of augmented images, and
# fewer validation images. The last five epochs have 32 samples for each image. Networks this deep need a lower rate of
# Muon. If it is killed, run `git restore params.yaml` and start it again: it resumes after its last epoch.
source "$(dirname "$0")/start.sh"
recipe two-hours \
  -S data.validation=1000 \
  -S 'model.channels=[32,64]' -S model.blocks=4 -S model.latent_dim=40 \
  -S train.batch_size=256 -S train.warmup_steps=100 -S train.kl_warmup_epochs=0.25 -S train.schedule=cosine \
  -S train.importance_epochs=1000 -S train.epochs=195 -S train.prior_epochs=40 \
  -S train.refine_epochs=5 -S train.refine_rate=0.2 -S train.augmentation=0.6 -S train.muon_learning_rate=0.008 "$@"
