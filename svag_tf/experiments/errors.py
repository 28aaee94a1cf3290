"""The exceptions for what the user of an experiment can put right."""


class ExperimentError(Exception):
    """A bad config, corrupt or missing data, or a workdir that cannot be used.

    Its message is meant for the user: it says what is wrong, what would be right
    and what was found.
    """


class DivergedError(ExperimentError):
    """A training whose loss is no longer finite."""
