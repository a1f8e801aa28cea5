"""A run whose store fails under it: host, slots, seeds and optimizer stay, bit for bit."""

import io

import pytest
import torch

from kasmina.domain.errors import StoreUnavailable
from kasmina.domain.stages import Stage
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.testing import caught
from tests.faults.troubles import TROUBLES, FullDisk, Locked, LockedExclusively
from tests.journeys.loop import Loop

EPOCHS = 8


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bits(loop):
    """The bytes of everything that the next step of training depends on."""
    tensors = [*loop.host.parameters(), *loop.host.buffers()]
    buffer = io.BytesIO()
    everything = {
        "host": tensors,
        "gradients": [tensor.grad for tensor in tensors],
        "optimizer": loop.optimizer.state_dict(),
        "scheduler": loop.scheduler.state_dict(),
        "draws": torch.get_rng_state(),
        "modes": [(name, module.training) for name, module in loop.host.named_modules()],
    }
    torch.save(everything, buffer)
    return buffer.getvalue()


def parts(loop):
    """The very modules and parameters, and what the slots do with them."""
    groups = [[id(p) for p in group["params"]] for group in loop.optimizer.param_groups]
    return groups, {slot_id: (slot.view, id(slot.seed)) for slot_id, slot in loop.slots.items()}


def trained(database, disturb=lambda loop, run: None):
    """What a training came to in which the slots were used in every way."""
    loop = Loop.fresh()
    with loop.open(database) as run:
        run.germinate("2", "conv_light")
        for epoch in range(EPOCHS):
            loop.train(run.step, run.rehearse)
            if epoch in (1, 4):
                disturb(loop, run)
            run.end_epoch(loop.evaluate)
            if epoch == 2:
                run.germinate("0", "norm")
        assert run.state.slot("2").stage is Stage.FOSSILIZED
    with open_store(f"sqlite:///{database}", access=Access.READ) as store:
        assert store.verify(run.run_id).sound
        events = [record.event for record in store.read(run.run_id)]
    told = [(type(event), event.epoch, event.step) for event in events]
    tensors = [*loop.host.parameters(), *loop.host.buffers()]
    return loop.losses, told, [tensor.detach().numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: type(trouble).__name__)
def test_a_training_in_trouble_stays_as_it_is_and_ends_as_if_there_had_been_none(
    trouble, tmp_path, start, impatient
):
    undisturbed = trained(tmp_path / "undisturbed.db")

    def disturb(loop, run):
        before, state = (bits(loop), parts(loop)), run.state
        with trouble.begun(database, start):
            caught(StoreUnavailable, run.end_epoch, loop.evaluate)
            caught(StoreUnavailable, run.end_epoch, None)
            caught(StoreUnavailable, run.cull, "2", "anyway")
            caught(StoreUnavailable, run.pause, "2")
            caught(StoreUnavailable, run.change_policy, state.policy)
            if loop.slots["0"].seed is None:
                caught(StoreUnavailable, run.germinate, "0", "norm")
        assert (bits(loop), parts(loop)) == before
        assert run.state is state

    with trouble.place(tmp_path) as folder:
        database = folder / "runs.db"
        assert trained(database, disturb) == undisturbed


@pytest.mark.parametrize(
    "trouble",
    [FullDisk(), Locked(), LockedExclusively()],
    ids=lambda trouble: type(trouble).__name__,
)
def test_a_run_that_cannot_be_opened_leaves_host_and_optimizer_free(
    trouble, tmp_path, start, impatient
):
    with trouble.place(tmp_path) as folder:
        database = folder / "runs.db"
        with open_store(f"sqlite:///{database}"):
            pass
        loop = Loop.fresh()
        before = bits(loop), parts(loop)
        with trouble.begun(database, start):
            caught(StoreUnavailable, loop.open, database)
            assert (bits(loop), parts(loop)) == before
        with loop.open(database) as run:
            run.germinate("2", "conv_light")
            loop.epoch(run)
