"""An error says what happened, what was expected and how to mend it, and carries the figures."""

import inspect

import pytest

from kasmina.domain import errors
from kasmina.domain.stages import Stage, Trigger

LEGAL = (Trigger.GERMINATE,)

# One of each, with the figures it must carry and words its text must hold.
CASES = [
    (
        errors.UnknownSlot("layer22", ["layer2", "layer3", "head"]),
        {"name": "layer22", "known": ("head", "layer2", "layer3"), "nearest": ("layer2", "layer3")},
        "there is no slot 'layer22'; did you mean 'layer2' or 'layer3'?",
    ),
    (
        errors.UnknownSlot("q", ["b", "a"]),
        {"nearest": ()},
        "there is no slot 'q'; known: 'a', 'b'",
    ),
    (errors.UnknownRun("q", []), {"known": ()}, "there is no run 'q'; there are none yet"),
    (errors.UnknownBlueprint("nrm", ["norm"]), {"nearest": ("norm",)}, "blueprint 'nrm'"),
    (errors.UnknownModule("layer", ["layer1"]), {"nearest": ("layer1",)}, "module 'layer'"),
    (
        errors.IllegalTransition("a", Stage.DORMANT, Trigger.CULL, LEGAL),
        {"slot_id": "a", "stage": Stage.DORMANT, "trigger": Trigger.CULL, "legal": LEGAL},
        "slot 'a' is DORMANT: it cannot cull; legal from here: germinate",
    ),
    (
        errors.SlotOccupied("a", Stage.FOSSILIZED, Trigger.GERMINATE, ()),
        {"legal": ()},
        "cannot germinate; legal from here: nothing, the stage is terminal",
    ),
    (
        errors.EmbargoActive("a", epochs=2, required=5),
        {"slot_id": "a", "epochs": 2, "required": 5},
        "2 of 5 epochs; record 3 more, or lower GatePolicy.embargo_epochs",
    ),
    (
        errors.EpochWentBackwards(last=4, given=3),
        {"last": 4, "given": 3},
        "epoch 3 was given after epoch 4 was recorded; epochs only grow: give 5",
    ),
    (
        errors.StepWentBackwards(last=40, given=30),
        {"last": 40, "given": 30},
        "step 30 was given after step 40",
    ),
    (errors.SeedIsPaused("a"), {"slot_id": "a"}, "is paused; resume it first"),
    (
        errors.CullPending("a", step=5, end_step=9),
        {"slot_id": "a", "step": 5, "end_step": 9},
        "until step 9 (now 5); go on until then, or cull it at once",
    ),
    (
        errors.WrongStage("a", "a pause", stage=Stage.DORMANT, allowed=[Stage.TRAINING]),
        {"slot_id": "a", "stage": Stage.DORMANT, "allowed": (Stage.TRAINING,)},
        "slot 'a' is DORMANT: a pause is for TRAINING",
    ),
    (errors.RunIsClosed("r"), {"run_id": "r"}, "resume this one from a checkpoint"),
    (errors.CorruptHistory("it is torn"), {"problem": "it is torn"}, "run `kasmina verify`"),
    (
        errors.NewerHistory("r", unknown=2),
        {"run_id": "r", "unknown": 2},
        "run 'r' holds 2 events of a newer kasmina",
    ),
    (
        errors.BrokenChain("r", 41),
        {"run_id": "r", "sequence": 41},
        "event 41 of run 'r' is not the one that was recorded",
    ),
    (
        errors.StoreUnavailable("runs.db", "it is locked", "try again"),
        {"target": "runs.db", "problem": "it is locked", "mend": "try again"},
        "runs.db: it is locked; nothing was written; try again",
    ),
    (
        errors.ConcurrentAppend("r", expected=41, found=44),
        {"run_id": "r", "expected": 41, "found": 44},
        "expected to end at sequence 41, but ends at 44",
    ),
    (
        errors.SchemaMismatch("runs.db", found="0009", expected="0001", mend="upgrade kasmina"),
        {"target": "runs.db", "found": "0009", "expected": "0001", "mend": "upgrade kasmina"},
        "has 0009, expected schema 0001; upgrade kasmina",
    ),
    (
        errors.SchemaMismatch("runs.db", found=None, expected="0001", mend="upgrade"),
        {"found": None},
        "has no kasmina schema",
    ),
    (
        errors.UnreadableEvent("seed-culled", 1, "no field 'reason'"),
        {"type_name": "seed-culled", "version": 1, "problem": "no field 'reason'"},
        "event seed-culled (version 1) cannot be read: no field 'reason'",
    ),
    (
        errors.UnfitSeed("norm", "a", ("changes shape", "has no parameters")),
        {"blueprint": "norm", "slot_id": "a", "defects": ("changes shape", "has no parameters")},
        "does not fit slot 'a': changes shape; has no parameters",
    ),
    (
        errors.UngraftableModule("a.b", "it returns a tuple", "graft a.b.c"),
        {"path": "a.b", "problem": "it returns a tuple", "mend": "graft a.b.c"},
        "module 'a.b' cannot be grafted: it returns a tuple; graft a.b.c",
    ),
    (
        errors.FeatureMismatch("a", host="(2, 8) float32", seed="(2, 9) float32"),
        {"slot_id": "a", "host": "(2, 8) float32", "seed": "(2, 9) float32"},
        "turned features (2, 8) float32 into (2, 9) float32",
    ),
    (
        errors.HostMismatch("r", recorded="cnn", given="gpt"),
        {"run_id": "r", "recorded": "cnn", "given": "gpt"},
        "was opened with host cnn, but this one is gpt",
    ),
    (
        errors.CheckpointError("a.pt", "it is empty", "take an earlier one"),
        {"path": "a.pt", "problem": "it is empty", "mend": "take an earlier one"},
        "checkpoint a.pt: it is empty; take an earlier one",
    ),
]


@pytest.mark.parametrize(("error", "figures", "words"), CASES, ids=lambda case: type(case).__name__)
def test_it_carries_its_figures_and_says_them(error, figures, words):
    assert {name: vars(error)[name] for name in figures} == figures
    assert words in str(error)
    assert isinstance(error, errors.KasminaError)


def test_every_error_with_a_text_of_its_own_is_shown_above():
    raisable = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.KasminaError) and "__init__" in vars(kind)
    }
    assert raisable - {type(error) for error, _, _ in CASES} <= {errors.UnknownName}


def test_an_advance_without_a_trigger_is_called_by_its_name():
    error = errors.IllegalTransition("a", Stage.DORMANT, None, LEGAL)
    assert "it cannot advance" in str(error)
    assert error.trigger is None


def test_a_long_list_of_names_is_cut_short():
    error = errors.UnknownSlot("zzz", [f"block{n:02}" for n in range(40)])
    assert "'block11'" in str(error)
    assert "'block12'" not in str(error)
    assert len(error.known) == 40
