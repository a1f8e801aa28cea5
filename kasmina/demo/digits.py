"""The task: 1,797 images of 8×8 pixels in ten classes, as scikit-learn ships them."""

from collections.abc import Iterator, Mapping

import torch
from attrs import frozen
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 50
_TRAINING, _VALIDATION = 1000, 400
_SHUFFLE = 0


@frozen(eq=False)
class Split:
    """Images ``(n, 1, 8, 8)`` in [0, 1], float32, and their labels ``(n,)``, int64."""

    images: Tensor
    labels: Tensor


@frozen(kw_only=True, eq=False)
class Digits:
    """A fixed split. Gates see ``validation`` alone; ``test`` is for the final table."""

    training: Split
    validation: Split
    test: Split

    @classmethod
    def load(cls) -> "Digits":
        """1,000 images to train on, 400 for the gates, 397 for the table."""
        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SHUFFLE))
        images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16
        classes = torch.as_tensor(labels, dtype=torch.int64)[order]
        cuts = [_TRAINING, _VALIDATION, len(classes) - _TRAINING - _VALIDATION]
        parts = map(Split, torch.split(images, cuts), torch.split(classes, cuts))
        training, validation, test = parts
        return cls(training=training, validation=validation, test=test)

    def batches(self) -> Iterator[Split]:
        """One epoch in a fresh random order, drawn from torch's own generator."""
        for chosen in torch.split(torch.randperm(_TRAINING), BATCH):
            yield Split(self.training.images[chosen], self.training.labels[chosen])

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Accuracies in percent and the validation loss. Leaves the model in training mode."""
        model.eval()
        with torch.no_grad():
            judged, tested = model(self.validation.images), model(self.test.images)
        model.train()
        return {
            "val_accuracy": _accuracy(judged, self.validation.labels),
            "val_loss": F.cross_entropy(judged, self.validation.labels).item(),
            "test_accuracy": _accuracy(tested, self.test.labels),
        }


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return 100.0 * (logits.argmax(dim=1) == labels).double().mean().item()
