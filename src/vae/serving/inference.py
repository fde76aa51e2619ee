"""Answers of a trained model: lists of numbers in, lists of numbers out."""

from pathlib import Path

import torch

from vae import model, streams
from vae.errors import InputError

Rows = list[list[float]]


class Inference:
    """Answers with one model file. Images are (N, P) intensities in [0, 1], latents (N, D)."""

    def __init__(self, path: Path) -> None:
        self.vae = model.load(path)

    @torch.inference_mode()
    def generate(self, count: int, seed: int) -> Rows:
        """New images from the prior. Returns (count, P)."""
        return self.vae.sample(count, streams.stream(seed, "served samples")).tolist()

    @torch.inference_mode()
    def decode(self, latents: Rows) -> Rows:
        """Images of latents: (N, D) -> (N, P). Raises InputError if a latent has another dimension than the model."""
        dimension = self.vae.config.latent_dim
        if wrong := [len(latent) for latent in latents if len(latent) != dimension]:
            raise InputError(f"latents: {dimension} values each, got {wrong[0]}")
        return self.vae.means(torch.tensor(latents)).tolist()

    @torch.inference_mode()
    def encode(self, images: Rows) -> tuple[Rows, Rows]:
        """mu and logvar of q(z|x): (N, P) -> (N, D), (N, D)."""
        mu, logvar = self.vae.encode(torch.tensor(images))
        return mu.tolist(), logvar.tolist()

    @torch.inference_mode()
    def reconstruct(self, images: Rows) -> Rows:
        """The images of the posterior means: (N, P) -> (N, P)."""
        return self.vae.means(self.vae.encode(torch.tensor(images))[0]).tolist()
