"""What a person is asked who starts a run of a DAG: its params, with the patterns that a step would refuse anything else by."""

from airflow.sdk import Param

# Python's $ alone would let a line break follow.
_NAME = r"[a-z0-9][a-z0-9._-]{0,99}"
_MODEL = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,194}$(?!\n)"

_OF_A_VERSION = {
    "model": Param(
        type="string",
        title="Model",
        description="Name of the registered model in MLflow, such as `digits-cnn`.",
        pattern=_MODEL,
    ),
    "version": Param(
        "latest",
        type="string",
        title="Version",
        description="Version of the registered model: a number, or `latest`.",
        pattern=r"^([1-9][0-9]{0,8}|latest)$(?!\n)",
    ),
}

_FRESH = Param(
    False,
    type="boolean",
    title="Fresh",
    description="Do every step again, also those whose result an earlier run with the same inputs left in MLflow.",
)

PRUNE = {
    **_OF_A_VERSION,
    "recipe": Param(
        type="string",
        title="Recipe",
        description="Name of the recipe, a file `<name>.yaml` in the recipes folder: the goal, the budget and the gate. Or a "
        "sweep's candidate, `<sweep>:<candidate>`.",
        pattern=rf"^{_NAME}(:{_NAME}(:[1-9])?)?$(?!\n)",  # of a candidate also the rung
    ),
    "fresh": _FRESH,
    "trial": Param(
        False,
        type="boolean",
        title="Trial",
        description="Judge on validation alone: the test split is not looked at, nothing is promoted. For a sweep's candidates.",
    ),
    "sweep_run": Param(
        None,
        type=["null", "string"],
        title="Sweep",
        description="The MLflow run of the sweep that this run is a part of; its DAG fills it in.",
        pattern=r"^[0-9a-f]{32}$(?!\n)",
    ),
}

SWEEP = {
    **_OF_A_VERSION,
    "sweep": Param(
        type="string",
        title="Sweep",
        description="Name of the sweep, a file `<name>.yaml` in the recipes folder: recipes, or a matrix over one.",
        pattern=rf"^{_NAME}$(?!\n)",
    ),
    "fresh": _FRESH,
}

ROLLBACK = {
    "model": Param(
        type="string",
        title="Model",
        description="Name of the source model, such as `digits-cnn`; its deployable versions are those of `<model>-onnx`.",
        pattern=_MODEL,
    ),
    "to": Param(
        "previous",
        type="string",
        title="To",
        description="Version of `<model>-onnx` that shall serve: a number, `previous` (the last that served before), or `dense`.",
        pattern=r"^([1-9][0-9]{0,8}|previous|dense)$(?!\n)",
    ),
    "reason": Param(
        type="string", title="Reason", description="Why; it is kept in the promotion journal.", minLength=1
    ),
    "who": Param(
        None, type=["null", "string"], title="Who", description="Who asks for it; empty: the user who triggers the run."
    ),
}

MONITOR = {
    "model": Param(
        None,
        type=["null", "string"],
        title="Model",
        description="Name of the source model, such as `digits-cnn`; empty: every model of which something serves.",
        pattern=_MODEL,
    ),
}
