"""Running sums of a window of steps, and what is read off them."""

import math


class Sums:
    """Adds up the sums of steps, in float64, and turns them into metrics.

    `state` is what a checkpoint keeps, so that a window that a restart cuts in two is not lost.
    """

    def __init__(self, state=None):
        self.state = dict(state or {})

    def add(self, sums):
        """Adds one step. sums: dict of name -> float."""
        for name, value in sums.items():
            self.state[name] = self.state.get(name, 0.0) + float(value)

    def metrics(self):
        """dict of loss, mlm_loss, nsp_loss (nats), mlm_accuracy and nsp_accuracy (shares).

        All are nan if no step counted.
        """
        state = self.state
        if state["nsp_count"]:
            mlm_count = max(state["mlm_count"], 1.0)
            mlm_loss, mlm_accuracy = state["mlm_loss"] / mlm_count, state["mlm_correct"] / mlm_count
            nsp_loss = state["nsp_loss"] / state["nsp_count"]
            nsp_accuracy = state["nsp_correct"] / state["nsp_count"]
        else:
            mlm_loss = mlm_accuracy = nsp_loss = nsp_accuracy = math.nan
        return {
            "loss": mlm_loss + nsp_loss,
            "mlm_loss": mlm_loss,
            "nsp_loss": nsp_loss,
            "mlm_accuracy": mlm_accuracy,
            "nsp_accuracy": nsp_accuracy,
        }
