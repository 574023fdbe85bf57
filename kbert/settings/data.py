"""Settings of the programs that prepare text."""

import dataclasses

from kbert.errors import UserError
from kbert.fields import check_settings, common, required, setting


@dataclasses.dataclass(frozen=True)
class LearnVocabConfig:
    """Settings of `kbert.learn_vocab`; each is a flag."""

    input: str = required(
        "",
        "text to read: comma-separated globs, local or remote (gs://...), a folder of Hugging Face "
        "datasets, tfds:NAME or sample:train",
    )
    output_file: str = common("vocab.txt", "vocabulary file to write")
    vocab_size: int = common(
        30522,
        "maximum number of entries, including special tokens and the entries of --extend",
        at_least=32,
    )
    extend: str | None = common(
        None, "vocabulary file to extend with words of the text; existing entries keep their ids"
    )
    lower_case: bool | None = common(
        None,
        "lower-case the text and strip accents (uncased BERT); default: the casing of --extend, "
        "else true",
    )
    skip_bad_lines: bool = setting(
        False, "skip bad lines, such as JSON without text, instead of stopping with an error"
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Settings of `kbert.prepare`; each is a flag."""

    input: str = required(
        "",
        "text to read: comma-separated globs, local or remote (gs://...), a folder of Hugging Face "
        "datasets, tfds:NAME or sample:train",
    )
    output_dir: str = common("corpora/prepared", "folder to create, local or remote")
    vocab_file: str | None = required(
        None, "vocabulary file, as written by `python -m kbert.learn_vocab`"
    )
    lower_case: bool = common(True, "lower-case the text and strip accents (uncased BERT)")
    processes: int | None = common(
        None,
        "maximum number of worker processes of the local runner; default: one per CPU core",
        at_least=1,
    )
    runner: str = common(
        "local",
        "local: processes on this machine; beam: an Apache Beam pipeline; both write the same "
        "corpus",
        choices=("local", "beam"),
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
