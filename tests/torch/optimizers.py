"""The optimizers and schedulers that seeds are tried with: all of torch's, and strangers' kinds."""

import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

o = torch.optim


class Lion(torch.optim.Optimizer):
    """As its paper has it (Chen et al. 2023, algorithm 2)."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                average, (fast, slow) = state["exp_avg"], group["betas"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(average.lerp(p.grad, 1 - fast).sign(), alpha=-group["lr"])
                average.lerp_(p.grad, 1 - slow)


class Bare(torch.optim.Optimizer):
    """Gives its groups no defaults: each brings all that it needs."""

    def __init__(self, params):
        super().__init__([{"params": list(params), "lr": 0.02}], {})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad)


class Mixing(torch.optim.SGD):
    """Clips by one norm over all its groups, as LAMB does."""

    @torch.no_grad()
    def step(self):
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([each.norm() for each in gradients]).norm()
        for each in gradients:
            each.div_(norm.clamp(min=1.0))
        super().step()


class Early(torch.optim.SGD):
    """Steps what it was built with."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.first = self.param_groups[0]

    @torch.no_grad()
    def step(self):
        for p in self.first["params"]:
            if p.grad is not None:
                p.sub_(self.first["lr"] * p.grad)


class Noisy(torch.optim.SGD):
    """Langevin dynamics: draws for each parameter from the one stream."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.add_(torch.randn_like(p.grad))
        super().step()


class Demanding(torch.optim.SGD):
    """Wants to be told what no group holds: it cannot be tried."""

    def __init__(self, params, *, plan):
        super().__init__(params, lr=0.02)
        self.plan = plan


OPTIMIZERS = {
    "Adadelta": lambda p: o.Adadelta(p, lr=0.5),
    "Adafactor": lambda p: o.Adafactor(p, lr=1e-2),
    "Adagrad": lambda p: o.Adagrad(p, lr=0.05, lr_decay=0.1),
    "Adagrad, begun above 0": lambda p: o.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "Adagrad, foreach": lambda p: o.Adagrad(p, lr=0.05, foreach=True),
    "Adagrad, fused": lambda p: o.Adagrad(p, lr=0.05, fused=True),
    "Adam": lambda p: o.Adam(p, lr=1e-2),
    "Adam, foreach": lambda p: o.Adam(p, lr=1e-2, foreach=True),
    "Adam, amsgrad": lambda p: o.Adam(p, lr=1e-2, amsgrad=True, weight_decay=0.1),
    "AdamW": lambda p: o.AdamW(p, lr=1e-2),
    "AdamW, fused": lambda p: o.AdamW(p, lr=1e-2, fused=True),
    "AdamW, fused, tensor rate": lambda p: o.AdamW(p, lr=torch.tensor(1e-2), fused=True),
    "Adamax": lambda p: o.Adamax(p, lr=1e-2),
    "Adamax, foreach": lambda p: o.Adamax(p, lr=1e-2, foreach=True),
    "ASGD": lambda p: o.ASGD(p, lr=1e-2),
    "NAdam": lambda p: o.NAdam(p, lr=1e-2),
    "NAdam, foreach": lambda p: o.NAdam(p, lr=1e-2, foreach=True),
    "RAdam": lambda p: o.RAdam(p, lr=1e-2),
    "RAdam, foreach": lambda p: o.RAdam(p, lr=1e-2, foreach=True),
    "RMSprop": lambda p: o.RMSprop(p, lr=1e-2, momentum=0.5, centered=True),
    "RMSprop, foreach": lambda p: o.RMSprop(p, lr=1e-2, foreach=True),
    "Rprop": lambda p: o.Rprop(p, lr=1e-2),
    "SGD": lambda p: o.SGD(p, lr=0.05),
    "SGD, momentum": lambda p: o.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "SGD, momentum, fused": lambda p: o.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "SGD, momentum, foreach": lambda p: o.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "Lion, one's own": lambda p: Lion(p, lr=1e-3, weight_decay=0.1),
    "a class without defaults, one's own": Bare,
    "a class that cannot be tried, one's own": lambda p: Demanding(p, plan="mine"),
}
REFUSED = {
    "LBFGS": (o.LBFGS, "steps its first parameter group alone"),
    "SparseAdam": (o.SparseAdam, "takes sparse gradients alone"),
    "one that clips by one norm over its groups": (
        lambda p: Mixing(p, lr=0.1),
        "lets parameter groups act on each other",
    ),
    "one that draws noise for each parameter": (
        lambda p: Noisy(p, lr=0.1),
        "lets parameter groups act on each other",
    ),
    "one that steps what it was built with": (
        lambda p: Early(p, lr=0.1),
        "does not step a parameter group that was added later",
    ),
}


def lively(step):
    return 1.0 / (1 + step) + 0.1 * (step % 3)


SCHEDULERS = {
    "LambdaLR": lambda opt: schedulers.LambdaLR(opt, lively),
    "LambdaLR, a list": lambda opt: schedulers.LambdaLR(opt, [lively, lambda _: 0.5]),
    "MultiplicativeLR": lambda opt: schedulers.MultiplicativeLR(opt, lambda _: 0.9),
    "StepLR": lambda opt: schedulers.StepLR(opt, 3),
    "MultiStepLR": lambda opt: schedulers.MultiStepLR(opt, [4, 9]),
    "ExponentialLR": lambda opt: schedulers.ExponentialLR(opt, 0.8),
    "CosineAnnealingLR": lambda opt: schedulers.CosineAnnealingLR(opt, T_max=8, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda opt: schedulers.CosineAnnealingWarmRestarts(opt, T_0=4),
    "OneCycleLR": lambda opt: schedulers.OneCycleLR(opt, max_lr=0.3, total_steps=40),
    "OneCycleLR, a list": lambda opt: schedulers.OneCycleLR(opt, max_lr=[0.3, 0.1], total_steps=40),
    "LinearLR": lambda opt: schedulers.LinearLR(opt, total_iters=10),
    "ConstantLR": lambda opt: schedulers.ConstantLR(opt, total_iters=6),
    "PolynomialLR": lambda opt: schedulers.PolynomialLR(opt, total_iters=15, power=2.0),
    "SequentialLR": lambda opt: schedulers.SequentialLR(
        opt,
        [schedulers.LinearLR(opt, total_iters=6), schedulers.CosineAnnealingLR(opt, T_max=8)],
        milestones=[6],
    ),
    "ChainedScheduler": lambda opt: schedulers.ChainedScheduler(
        [schedulers.LambdaLR(opt, lively), schedulers.ExponentialLR(opt, 0.9)]
    ),
    "CyclicLR": lambda opt: schedulers.CyclicLR(opt, 0.01, 0.1, step_size_up=3),
    "CyclicLR, a list": lambda opt: schedulers.CyclicLR(
        opt, [0.01, 0.02], [0.1, 0.2], step_size_up=3
    ),
    "ReduceLROnPlateau": lambda opt: schedulers.ReduceLROnPlateau(opt, patience=1, min_lr=1e-4),
    "ReduceLROnPlateau, a list": lambda opt: schedulers.ReduceLROnPlateau(
        opt, patience=1, min_lr=[1e-4, 0.0]
    ),
    "SWALR": lambda opt: SWALR(opt, swa_lr=0.02, anneal_epochs=6),
    "SWALR, a list": lambda opt: SWALR(opt, swa_lr=[0.02, 0.01], anneal_strategy="linear"),
}


def host():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def seed():
    return nn.Linear(4, 4)


def sgd(model):
    groups = [
        {"params": model[0].parameters(), "weight_decay": 0.01},
        {"params": model[1].parameters(), "lr": 0.05},
    ]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def give_gradients(optimizer, generator):
    for group in optimizer.param_groups[:2]:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
