"""A program with a flag of each kind, which test_config.py runs."""

import dataclasses

from kbert.fields import check_settings, setting
from kbert.utils import program


@dataclasses.dataclass(frozen=True)
class Example:
    """Settings of each kind."""

    count: int = setting(3, "a count", group="common", at_least=1)
    rate: float = setting(0.5, "a rate")
    on: bool = setting(False, "a switch")
    name: str = setting("x", "a name", choices=("x", "y"), group="required")
    file: str | None = setting(None, "a file")
    limit: int | None = setting(None, "a limit")

    def __post_init__(self):
        check_settings(self)


def main(config):
    """Prints the settings."""
    print(config)


if __name__ == "__main__":
    program.run(main, Example)
