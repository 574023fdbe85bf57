"""Running sums of a window of steps."""


class MetricAccumulator:
    """Adds up the sums of steps, in float64.

    `state` is what a checkpoint keeps, so that a window that a restart cuts in two is not lost.
    """

    def __init__(self, state=None):
        self.state = dict(state or {})

    def add(self, sums):
        """Adds one step. sums: dict of name -> float."""
        for name, value in sums.items():
            self.state[name] = self.state.get(name, 0.0) + float(value)
