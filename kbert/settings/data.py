"""Settings of the programs that prepare text."""

import dataclasses

from kbert.errors import UserError
from kbert.fields import check_settings, setting


@dataclasses.dataclass(frozen=True)
class LearnVocabConfig:
    """Settings of `kbert.learn_vocab`; each is a flag."""

    input: str = setting(
        "",
        "text to read: comma-separated globs, local or remote (gs://...), a folder of Hugging Face "
        "datasets, tfds:NAME or sample:train",
        group="required",
    )
    output_file: str = setting("vocab.txt", "vocabulary file to write", group="common")
    vocab_size: int = setting(
        30522,
        "maximum number of entries, including special tokens and the entries of --extend",
        at_least=32,
        group="common",
    )
    extend: str | None = setting(
        None,
        "vocabulary file to extend with words of the text; existing entries keep their ids",
        group="common",
    )
    lower_case: bool | None = setting(
        None,
        "lower-case the text and strip accents (uncased BERT); default: the casing of --extend, "
        "else true",
        group="common",
    )
    skip_bad_lines: bool = setting(
        False, "skip bad lines, such as JSON without text, instead of stopping with an error"
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Settings of `kbert.prepare`; each is a flag."""

    input: str = setting(
        "",
        "text to read: comma-separated globs, local or remote (gs://...), a folder of Hugging Face "
        "datasets, tfds:NAME or sample:train",
        group="required",
    )
    output_dir: str = setting(
        "corpora/prepared", "folder to create, local or remote", group="common"
    )
    vocab_file: str | None = setting(
        None, "vocabulary file, as written by `python -m kbert.learn_vocab`", group="required"
    )
    lower_case: bool = setting(
        True, "lower-case the text and strip accents (uncased BERT)", group="common"
    )
    processes: int | None = setting(
        None,
        "maximum number of worker processes of the local runner; default: one per CPU core",
        at_least=1,
        group="common",
    )
    runner: str = setting(
        "local",
        "local: processes on this machine; beam: an Apache Beam pipeline; both write the same "
        "corpus",
        choices=("local", "beam"),
        group="common",
    )
    beam_options: str = setting(
        "", "Beam flags, in quotes: '--runner=FlinkRunner --flink_master=HOST:8081'"
    )
    deduplicate: bool = setting(False, "drop documents that are exact duplicates of earlier ones")
    skip_bad_lines: bool = setting(
        False,
        "skip and count bad lines, such as JSON without text, instead of stopping with an error",
    )
    single_document: bool = setting(
        False, "accept text with one document, which only pretrain --next_sentence=false can use"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.beam_options and self.runner != "beam":
            raise UserError("--beam_options requires --runner=beam.")
        if self.processes and self.runner == "beam":
            raise UserError(
                "--processes requires --runner=local. Beam runners have their own flags for this, "
                "such as --beam_options='--direct_num_workers=2'."
            )
