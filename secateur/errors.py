"""The outcomes of a step that are not its result: the input is wrong, or there is nothing left to do."""


class InputError(ValueError):
    """Something the user gave cannot be used: a retry cannot help.

    The message is one sentence: the setting, what was expected, what was seen, what to do next.
    """


class NothingRemovedError(InputError):
    """A cut was asked for so little that it would remove nothing."""


class NothingToDo(Exception):  # noqa: N818 (not an error: the step is skipped)
    """The step has no work in this run; its message says why."""
