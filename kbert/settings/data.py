"""Settings of the programs that prepare text."""

import dataclasses

from kbert.config import check_settings, setting
from kbert.errors import UserError


@dataclasses.dataclass(frozen=True)
class LearnVocabConfig:
    """Settings of `kbert.learn_vocab`, one flag each."""

    input: str = setting(
        "", "text: comma-separated globs, tfds:NAME or sample:train", group="required"
    )
    output_file: str = setting("vocab.txt", "file to write", group="common")
    vocab_size: int = setting(
        30522, "entries, special tokens included", at_least=32, group="common"
    )
    lower_case: bool = setting(
        True, "lower-case and strip accents (an uncased BERT)", group="common"
    )
    skip_bad_lines: bool = setting(
        False, "skip JSON lines without a text, instead of ending with an error"
    )

    def __post_init__(self):
        check_settings(self)


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Settings of `kbert.prepare`, one flag each."""

    input: str = setting(
        "",
        "text: comma-separated globs, local or remote (gs://...), tfds:NAME or sample:train",
        group="required",
    )
    output_dir: str = setting("corpora/prepared", "folder to make, local or remote", group="common")
    vocab_file: str | None = setting(
        None, "vocabulary, such as `python -m kbert.learn_vocab` writes", group="required"
    )
    lower_case: bool = setting(
        True, "lower-case and strip accents (an uncased BERT)", group="common"
    )
    processes: int | None = setting(
        None,
        "worker processes of the local runner; default: one per core",
        at_least=1,
        group="common",
    )
    runner: str = setting(
        "local",
        "processes of this machine, or an Apache Beam pipeline; the corpus is the same",
        choices=("local", "beam"),
        group="common",
    )
    beam_options: str = setting(
        "", "flags of Beam, in quotes: '--runner=FlinkRunner --flink_master=HOST:8081'"
    )
    deduplicate: bool = setting(False, "leave out documents that are there already")
    skip_bad_lines: bool = setting(
        False, "skip JSON lines without a text and count them, instead of ending with an error"
    )

    def __post_init__(self):
        check_settings(self)
        if self.beam_options and self.runner != "beam":
            raise UserError("--beam_options is for --runner=beam.")
        if self.processes and self.runner == "beam":
            raise UserError(
                "--processes is for --runner=local. Runners of Beam have flags of their own for "
                "it, such as --beam_options='--direct_num_workers=2'."
            )
