"""A small training with everything in it that a checkpoint must hold."""

import copy
import random

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from kasmina.adapters.torch.checkpoint import (
    pack_checkpoint,
    read_checkpoint,
    restore_checkpoint,
    write_checkpoint,
)
from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.optimizer import SeedGroups
from kasmina.adapters.torch.slot import Sprout
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.evidence import Probe
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import Stage, Topology

POSITION = {"run_id": "r1", "sequence": 17, "digest": bytes(range(32)), "epoch": 3, "step": 42}


class Host(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.Dropout(0.2))
        self.head = nn.Linear(width, 2)

    def forward(self, images):
        return self.head(self.second(self.first(images).relu()).mean((2, 3)))


def conv_seed(width):
    return nn.Sequential(nn.Conv2d(width, width, 1), nn.Dropout(0.5))


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


class Training:
    """A host in training with a dropping-out seed in each slot named."""

    def __init__(
        self,
        seeds=("first", "second"),
        *,
        width=4,
        build=adamw,
        seed=conv_seed,
        wrap=lambda model: model,
        device="cpu",
    ):
        torch.manual_seed(0)
        self.model = Host(width).to(device)
        self.slots = graft(self.model, {"first": Topology.CNN, "second": Topology.CNN})
        self.optimizer = build(self.model)
        self.scheduler = schedulers.CosineAnnealingLR(self.optimizer, T_max=20)
        groups = SeedGroups(self.optimizer)
        for slot_id in seeds:
            slot = self.slots[slot_id]
            module = seed(slot.width).to(device)
            slot.attach(Sprout(module=module, probe=Probe(), parameters=1, stream=Stream(7)))
            slot.follow(blending(slot_id), 0)
            groups.add(f"seed of {slot_id}", slot.seed_parameters(), learning_rate=0.005)
        self.forward = wrap(self.model)
        self.device = device

    @property
    def extra(self):
        return {"scheduler": self.scheduler}

    def run(self, steps):
        losses = []
        for _ in range(steps):
            images = torch.randn(4, 1, 6, 6).to(self.device)
            loss = self.forward(images).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item() + random.random() + np.random.rand())  # noqa: NPY002 - the stream that is saved
        return losses

    def save(self, path, **other):
        given = {"slots": self.slots, "optimizer": self.optimizer, "extra": self.extra} | other
        write_checkpoint(path, pack_checkpoint(path, **given, **POSITION))

    def restore(self, path, **other):
        return restore_checkpoint(
            read_checkpoint(path),
            **{"slots": self.slots, "optimizer": self.optimizer, "extra": self.extra} | other,
        )

    def snapshot(self):
        """All that a refused restore must leave alone."""
        parts = (self.model, self.optimizer, self.scheduler)
        streams = [slot.stream.state() for slot in self.slots.values() if slot.stream is not None]
        drawn = (torch.get_rng_state(), random.getstate())
        return copy.deepcopy([*(part.state_dict() for part in parts), streams, drawn])


def blending(slot_id):
    return SlotView(
        slot_id=slot_id,
        stage=Stage.BLENDING,
        seed_id=f"seed of {slot_id}",
        behaviour=Behaviour.BLEND,
        learning=True,
        schedule=held(0.5),
    )


def alike(one, other):
    """Equal to the last bit, through dicts and lists."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
