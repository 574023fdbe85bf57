"""Running sums over a window of steps."""


class MetricAccumulator:
    """Accumulates the sums of steps in float64.

    A checkpoint stores `state`, so that a window interrupted by a restart is not lost.
    """

    def __init__(self, state=None):
        self.state = dict(state or {})

    def add(self, sums):
        """Adds one step. sums: dict of name -> float."""
        for name, value in sums.items():
            self.state[name] = self.state.get(name, 0.0) + float(value)
