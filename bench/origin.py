"""The tutorial that this project grew from: an MLP VAE on grey MNIST, fed by a DataLoader.

As a script it trains for 20 epochs and saves the weights: `python bench/origin.py DATA WEIGHTS`.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

EPOCHS, BATCH = 20, 128


class VAE(nn.Module):
    """784-512-256-20 and back, ReLU, sigmoid output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU())
        self.mu, self.logvar = nn.Linear(256, 20), nn.Linear(256, 20)
        self.decoder = nn.Sequential(
            nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 784), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: x (B, 784) -> reconstruction (B, 784), mu (B, 20), logvar (B, 20)."""
        h = self.encoder(x)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return self.decoder(z), mu, logvar


class Training:
    """The tutorial's loop, one epoch at a time."""

    def __init__(self, data: Path) -> None:
        torch.manual_seed(0)
        self.folder = tempfile.TemporaryDirectory()  # torchvision wants the files in MNIST/raw
        raw = Path(self.folder.name) / "MNIST" / "raw"
        raw.parent.mkdir()
        raw.symlink_to(data.resolve(), target_is_directory=True)
        flat = transforms.Compose([transforms.ToTensor(), transforms.Lambda(torch.flatten)])
        images = datasets.MNIST(self.folder.name, train=True, transform=flat)
        self.loader = DataLoader(images, batch_size=BATCH, shuffle=True)
        self.model = VAE()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.likelihood = nn.BCELoss(reduction="sum")

    def epoch(self) -> float:
        """Trains on every image once, and returns the mean loss."""
        total = 0.0
        for x, _ in self.loader:
            reconstruction, mu, logvar = self.model(x)
            kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            loss = self.likelihood(reconstruction, x) + kl
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total / len(self.loader.dataset)  # type: ignore[arg-type]


@torch.no_grad()
def neg_elbo_grey(model: VAE, images: Tensor) -> float:
    """The mean loss on images (N, 784) in [0, 1], with one sample of z each."""
    torch.manual_seed(0)
    reconstruction, mu, logvar = model(images)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return ((nn.functional.binary_cross_entropy(reconstruction, images, reduction="sum") + kl) / len(images)).item()


if __name__ == "__main__":
    training = Training(Path(sys.argv[1]))
    for epoch in range(EPOCHS):
        print(f"epoch {epoch + 1}: {training.epoch():.2f}", flush=True)
    torch.save(training.model.state_dict(), sys.argv[2])
