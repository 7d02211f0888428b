"""The one error of checkpoints: which file or tensor, what was expected, what came, what to do."""


class WeightsError(ValueError):
    """A checkpoint that cannot be read, converted or trusted. Nothing was written, or what was is gone again."""
