#!/usr/bin/env bash
# The tutorial that this project grew from: an MLP of 784-512-256-20 on grey values, with Adam at a constant 1e-3.
source "$(dirname "$0")/start.sh"
recipe seed \
  -S data.binarization=none \
  -S model.architecture=mlp -S 'model.encoder=[512,256]' -S 'model.decoder=[256,512]' -S model.latent_dim=20 \
  -S model.prior=standard-normal \
  -S train.initial_bias=default -S train.importance_samples=1 -S train.optimizer=adam -S train.epochs=20 -S train.batch_size=128 \
  -S train.learning_rate=0.001 -S train.schedule=constant -S train.warmup_steps=0 -S train.kl_warmup_epochs=0 "$@"
