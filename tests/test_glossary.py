"""Words that kbert no longer uses: modules, names and flags that have better ones.

What stands here has been renamed everywhere at once. Ordinary words of English are not meant: they
are sought as names of code alone.
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
CODE = ("kbert", "tests", "benchmarks", "export", "docs")
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "setup.cfg",
    "configs",
    "docs",
    "export",
    "benchmarks",
    "kbert",
)
SUFFIXES = (".md", ".flags", ".yaml", ".cfg", ".config", ".html", ".js", ".css", ".sh", ".py")

# Old module, or a member that moved -> where it is now.
MODULES = {
    "kbert.attention.attention_weights": "kbert.visualization.attention.attention_weights",
    "kbert.attention.write_attention": "kbert.visualization.attention.write_attention",
    "kbert.corpus.dedup_shuffle": "kbert.corpus.deduplication",
    "kbert.data.BertTokenizer": "kbert.tokenizer.BertTokenizer",
    "kbert.data.Corpus": "kbert.corpus.Corpus",
    "kbert.data.beam": "kbert.corpus.beam_runner",
    "kbert.data.checks": "kbert.data.validation",
    "kbert.data.corpus": "kbert.corpus.text_sources",
    "kbert.data.draws": "kbert.utils.stateless_random",
    "kbert.data.fetching": "kbert.corpus.remote_cache",
    "kbert.data.finetuning": "kbert.data.bucketed_batches",
    "kbert.data.host_calls": "kbert.utils.numpy_map",
    "kbert.data.learn_vocab": "kbert.tokenizer.learn_vocab",
    "kbert.data.local": "kbert.corpus.local_runner",
    "kbert.data.offsets": "kbert.tokenizer.offsets",
    "kbert.data.pairs": "kbert.data.sentence_pairs",
    "kbert.data.pairs.Windows": "kbert.data.document_windows.DocumentWindows",
    "kbert.data.sentence_pairs.PairWindows": "kbert.data.document_windows.DocumentWindows",
    "kbert.data.pieces": "kbert.corpus.shard_builder",
    "kbert.data.preparation": "kbert.corpus.preparation",
    "kbert.data.prepare": "kbert.corpus.prepare",
    "kbert.data.pretraining": "kbert.data.pretraining_batches",
    "kbert.data.read_vocab": "kbert.tokenizer.read_vocab",
    "kbert.data.rearranging": "kbert.corpus.deduplication",
    "kbert.data.shares": "kbert.data.input_context",
    "kbert.data.store": "kbert.corpus.corpus",
    "kbert.data.tokenizer": "kbert.tokenizer.tokenizer",
    "kbert.data.tokenizer_files": "kbert.tokenizer.files",
    "kbert.data.vocab": "kbert.tokenizer.vocab",
    "kbert.data.windows": "kbert.tasks.span_ops",
    "kbert.flags": "kbert.utils.flags",
    "kbert.formats": "kbert.utils.formats",
    "kbert.locks": "kbert.utils.locks",
    "kbert.model.forms": "kbert.model.inference_ops",
    "kbert.model.fused.kept": "kbert.model.fused.dropout_keep_mask",
    "kbert.model.heads": "kbert.model.task_heads",
    "kbert.model.weights.fields": "kbert.model.weights.config_fields",
    "kbert.model.weights.heads": "kbert.model.weights.head_removal",
    "kbert.model.weights.layers": "kbert.model.weights.layer_selection",
    "kbert.processes": "kbert.corpus.local_runner",
    "kbert.program": "kbert.utils.program",
    "kbert.serving.hub": "kbert.serving.tf_hub",
    "kbert.serving.lines": "kbert.serving.messages",
    "kbert.data.question_windows": "kbert.tasks.span_ops",
    "kbert.serving.endpoint": "kbert.tasks.endpoint",
    "kbert.serving.endpoints.ENDPOINTS": "kbert.serving.endpoints.endpoints",
    "kbert.serving.method": "kbert.tasks.endpoint",
    "kbert.serving.methods": "kbert.serving.endpoints",
    "kbert.serving.methods.METHODS": "kbert.serving.endpoints.endpoints",
    "kbert.tasks.spans": "kbert.tasks.tag and kbert.tasks.qa",
    "kbert.tasks.tasks": "kbert.tasks.task, and a module for each task",
    "kbert.serving.server": "kbert.server",
    "kbert.serving.server.batching": "kbert.server.batching",
    "kbert.serving.server.demo": "kbert.server.demo",
    "kbert.serving.server.grpc_api": "kbert.server.grpc_api",
    "kbert.serving.server.metrics": "kbert.server.metrics",
    "kbert.serving.server.models": "kbert.server.models",
    "kbert.serving.server.origins": "kbert.server.http_server",
    "kbert.serving.server.refused": "kbert.server.errors",
    "kbert.serving.server.rest_api": "kbert.server.rest_api",
    "kbert.serving.server.servable": "kbert.server.servable",
    "kbert.serving.server.service": "kbert.server.service",
    "kbert.serving.server.settings": "kbert.settings.serving",
    "kbert.serving.server.tensors": "kbert.server.tensors",
    "kbert.serving.stretches": "kbert.tasks.span_ops",
    "kbert.storage": "kbert.utils.storage",
    "kbert.tasks.attention_page": "kbert.visualization.attention_page",
    "kbert.tasks.engines": "kbert.inference.backends",
    "kbert.tasks.engines.live": "kbert.inference.backends.keras_backend",
    "kbert.tasks.folders": "kbert.tasks.registry",
    "kbert.tasks.inference": "kbert.inference.batch_runner",
    "kbert.tasks.pictures": "kbert.visualization.plots",
    "kbert.tasks.predictor": "kbert.inference.predictor",
    "kbert.compression.pruning": "kbert.compression.head_pruning",
    "kbert.tasks.pruning": "kbert.compression.head_pruning",
    "kbert.tasks.scores": "kbert.tasks.metrics",
    "kbert.convert.convert": "kbert.model.conversion.convert",
    "kbert.evaluate.evaluate": "kbert.inference.evaluation.evaluate",
    "kbert.export.export": "kbert.serving.export.export",
    "kbert.export.export_tf_hub": "kbert.serving.export.export_tf_hub",
    "kbert.export.export_to_runtime": "kbert.serving.export.export_openvino",
    "kbert.predict.predict": "kbert.inference.prediction.predict",
    "kbert.prune.prune": "kbert.compression.head_pruning.prune",
    "kbert.serve.serve": "kbert.server.main.serve",
    "kbert.train.checkpoint.replace_folder": "kbert.utils.atomic.folder",
    "kbert.train.curves": "kbert.visualization.curves",
    "kbert.train.distillation_objective": "kbert.compression.distillation_objective",
    "kbert.train.estimate": "kbert.train.cost_estimate",
    "kbert.train.guards": "kbert.train.resume_checks",
    "kbert.train.guards.StopRequest": "kbert.train.trainer.Trainer.stop_training",
    "kbert.train.guards.smaller_slices": "kbert.train.distribution.smaller_slices",
    "kbert.train.guards.stop_requests": "kbert.train.signals.stop_requests",
    "kbert.train.losses.pretraining_loss": "kbert.train.losses.PretrainingObjective.loss",
    "kbert.train.losses.pretraining_sums": "kbert.train.losses.PretrainingObjective.sums",
    "kbert.train.mirror": "kbert.train.remote_sync",
    "kbert.train.loop": "kbert.train.trainer",
    "kbert.train.output": "kbert.train.callbacks",
    "kbert.train.pretraining.train": "kbert.train.pretraining.pretrain",
    "kbert.train.report.MetricsWriter": "kbert.train.callbacks.MetricsFile",
    "kbert.train.report.say": "kbert.utils.logging.log",
    "kbert.train.run_writer": "kbert.train.callbacks",
    "kbert.train.teaching": "kbert.compression.distillation_objective",
    "kbert.train.tracking": "kbert.train.wandb_logger",
    "kbert.train.task_examples": "kbert.train.finetuning_data",
    "kbert.train.train": "kbert.train.pretrain",
}

# Names of code, anywhere in it -> the new one.
NAMES = {
    "ABOUT_FILE": "METADATA_FILE",
    "DistillFinetuning": "Distillation",
    "DistillMixin": "Distillation",
    "DistillPretraining": "Distillation",
    "Distilling": "Distillation",
    "ENGINES": "BACKENDS",
    "Forward": "BatchRunner",
    "HeldOut": "HeldOutEvaluation",
    "Item": "EncodedExample",
    "ItemBatches": "BucketedBatches",
    "LabelHead": "ClassificationHead",
    "Method": "Endpoint",
    "MetricAccumulator": "collections.Counter",
    "MetricsWriter": "MetricsFile",
    "Mirror": "RemoteRunDir",
    "Pace": "ThroughputMeter",
    "PairCutter": "PairSampler",
    "Piece": "TextPiece",
    "PieceWorker": "ShardBuilder",
    "Refused": "RequestError",
    "Sums": "collections.Counter",
    "Curves": "LearningCurves",
    "RunWriter": "ModelCheckpoint",
    "Taught": "Distillation",
    "TaughtObjective": "DistillationObjective",
    "TaughtPretraining": "Distillation",
    "TextCutter": "TextSampler",
    "Tracker": "WandbLogger",
    "_HUB_FILES": "_HF_HUB_FILES",
    "_HUB_NAME": "_HF_HUB_NAME",
    "_HUB_VOCAB": "_KERAS_HUB_VOCAB",
    "_Piece": "_RequestPiece",
    "_add_norm_slopes": "_add_norm_grads",
    "_forward_of": "_runner",
    "_forwards": "_runners",
    "_gelu_slope": "_gelu_grad",
    "_heads_axis": "_attention_heads_axis",
    "_hub_settings": "_keras_hub_settings",
    "_losses_slope": "_losses_grad",
    "_pace_text": "_throughput_text",
    "_softmax_slope": "_softmax_grad",
    "_taught_by": "_teacher_of_checkpoint",
    "_told_to_stop": "_stop_signal",
    "_undrawn": "_skipping",
    "_write_hub": "_write_keras_hub",
    "attention_grid_picture": "plot_attention_grid",
    "attention_picture": "plot_attention",
    "check_free": "check_output_folder_is_free",
    "check_tracking": "check_wandb",
    "check_width": "check_column_count",
    "choose_engine": "choose_backend",
    "confusion_matrix_picture": "plot_confusion_matrix",
    "contract_lines": "output_spec_lines",
    "cost_lines": "describe_cost",
    "cross_validated": "cross_validate",
    "curves_picture": "plot_curves",
    "early_stopping": "early_stopping_patience",
    "export_hub": "export_tf_hub",
    "find_or_make": "load_or_create_inputs",
    "found_spans": "tagged_spans",
    "from_raw": "postprocess",
    "get_members": "require_keys",
    "heads_left": "attention_heads_per_layer",
    "heads_left_out": "skipped_task_heads",
    "task_heads_left_out": "skipped_task_heads",
    "host_arrays": "numpy_map",
    "kbert_waiting_texts": "kbert_queue_tokens",
    "limited_ids": "with_token_limit_check",
    "limited_texts": "with_text_limit_checks",
    "load_method": "load_endpoint",
    "max_requests": "max_concurrent_requests",
    "max_waiting": "max_queue_tokens",
    "names_text": "quote_names, abbreviate_names, join_names",
    "own_fields": "task_specific_fields",
    "own_settings": "task_specific_settings",
    "pad_items": "pad_examples",
    "picture_labels": "plot_labels",
    "plain_ops": "onnx_compatible_ops",
    "raise_file_limit": "raise_open_file_limit",
    "reads_windows": "splits_into_windows",
    "rehearse": "estimate_cost",
    "rescored": "scoring_settings",
    "resolve_inputs": "load_or_create_inputs",
    "save_method": "save_endpoint",
    "set_tokens": "set_token_count",
    "settled_engine": "frozen_backend",
    "tag_example": "parse_tag_example",
    "text_example": "parse_text_example",
    "undrawn_weights": "skip_initialization",
}

# Names of code inside `kbert/`, as variables, parameters, attributes or keywords: words that say
# little, or another thing elsewhere -> what they became, by what they were.
NAMES_IN_PACKAGE = {
    "ours": "kbert_name, student, to_kbert",
    "theirs": "hf_name, teacher, from_kbert, saved_config",
    "found": "result, or what it is",
    "asked": "request, or what it is",
    "wanted": "expected, or what it is",
    "told": "the event or the message",
    "about": "metadata",
    "asking": "query_inputs",
    "slope": "grad",
    "slopes": "grads",
    "engine": "backend, runner",
    "live": "keras_backend",
    "say": "log",
    "contract": "output_spec",
    "mirror": "run_dir",
    "pace": "throughput",
    "n_best": "top_k, candidates",
}

# Flags -> the new ones.
FLAGS = {
    "from": "--model",
    "to": "--output_dir",
    "on_bad_line": "--skip_bad_lines",
    "pairs": "--takes_pairs",
    "heads": "--prune_fraction",
    "engine": "--backend, --runner",
    "engines": "--backends",
    "k": "--top_k",
    "early_stopping": "--early_stopping_patience",
    "labels": "--label_names",
    "max_waiting": "--max_queue_tokens",
    "max_requests": "--max_concurrent_requests",
}
# Other spellings of flags, of fields and of values, as regular expressions.
SPELLINGS = (
    r"learn_vocab[^\n`]*--vocab_file",
    r"--format=hub\b",
    r"(?<![\w-])engine=",
    r"`n_best`|\bn_best\b(?!_)",
    r"kbert/data/sample",
    r"\.predicted\(|def predicted\(",
)


def files(roots, suffixes):
    """Files of the repository, but for this one and what git does not keep."""
    for root in roots:
        path = ROOT / root
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            hidden = any(part.startswith((".", "__", "_build")) for part in file.parts[:-1])
            if file.suffix in suffixes and not hidden and file != pathlib.Path(__file__):
                yield file


def names_of(tree):
    """(name, line) of what code names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg | ast.keyword):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.alias):
            yield from ((part, node.lineno) for part in (node.name, node.asname))


def words(words):
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


DOTTED = re.compile(rf"(?<![\w.])({words(MODULES)})(?!\w)")
OLD_FLAGS = re.compile(rf"--(?:no)?({words(FLAGS)})(?![\w-])")
OLD_WORDS = re.compile(rf"(?<!\w)({words(name for name in NAMES if '_' in name)})(?!\w)")


def test_no_old_name_is_left():
    offenders = []

    def note(file, line, old, new):
        offenders.append(f"{file.relative_to(ROOT)}:{line}: {old} -> {new}")

    for file in files(CODE, (".py",)):
        in_package = file.is_relative_to(ROOT / "kbert")
        banned = NAMES | (NAMES_IN_PACKAGE if in_package else {})
        for name, line in names_of(ast.parse(file.read_text(encoding="utf-8"))):
            if name in banned:
                note(file, line, name, banned[name])
    for file in files(sorted({*PAGES, *CODE}), SUFFIXES):
        text = file.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            for match in DOTTED.finditer(line):
                note(file, number, match[1], MODULES[match[1]])
            for match in OLD_FLAGS.finditer(line):
                note(file, number, match[0], FLAGS[match[1]])
            for match in OLD_WORDS.finditer(line):
                note(file, number, match[1], NAMES[match[1]])
            for pattern in SPELLINGS:
                if match := re.search(pattern, line):
                    note(file, number, match[0], "see SPELLINGS")
    assert not offenders, "\n".join(offenders)


def test_no_old_module_is_left():
    there = [
        name
        for name in MODULES
        if (ROOT / name.replace(".", "/")).with_suffix(".py").exists()
        or (ROOT / name.replace(".", "/") / "__init__.py").exists()
    ]
    assert there == []
