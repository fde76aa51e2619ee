"""Answers of a trained model: lists of numbers in, lists of numbers out."""

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vae import model, streams
from vae.errors import InputError
from vae.idx import SIDE

Rows = list[list[float]]


class Inference:
    """Answers with one model file. Images are (N, P) intensities in [0, 1], latents (N, D)."""

    def __init__(self, path: Path) -> None:
        self.vae = model.load(path)

    @torch.inference_mode()
    def generate(self, count: int, seed: int | None) -> Rows:
        """New images from the prior, other ones at each call if there is no seed. Returns (count, P)."""
        chosen = torch.Generator().seed() if seed is None else seed
        return self.vae.sample(count, streams.stream(chosen, "served samples")).tolist()

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

    def png(self, images: Rows) -> list[str]:
        """Images (N, P) as PNG files of 28x28 grey bytes, in base64."""
        files = []
        for grey in np.rint(np.array(images) * 255).astype(np.uint8).reshape(-1, SIDE, SIDE):
            Image.fromarray(grey).save(file := io.BytesIO(), "PNG")
            files.append(base64.b64encode(file.getvalue()).decode())
        return files
