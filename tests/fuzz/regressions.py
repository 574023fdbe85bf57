"""Inputs that once were faults: they stay in the tests, and fuzzing starts from them, too."""

DEEP = b"[" * 5000
LONG = b"long " * 600
NUMBER = b"1" * 5000
HEX = b"0x" + b"f" * 4000
VOCAB = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
ADDED = (
    b'{"normalizer": {"type": "BertNormalizer"}, "pre_tokenizer": {"type": "BertPreTokenizer"},'
    b'"model": {"type": "WordPiece", "vocab": {"a": 0}}, "added_tokens": [{"content": 7, "id": 1}]}'
)
# Lists of lists of lists, of 9 ** 8 values in all.
BOMB = b"type_vocab_size: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%s: &%c [%s]\n" % (name, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9))
    for i, name in enumerate(
        (
            *(b"max_position_embeddings", b"hidden_act", b"intermediate_size", b"hidden_size"),
            *(b"num_attention_heads", b"num_hidden_layers", b"layer_norm_eps", b"num_labels"),
        )
    )
)
EXPORT = (
    b'{"method": "classify", "inputs": ["a"], "max_seq_length": %s, "padded": %s, "weights": %s,'
    b'"token_outputs": [], "batch_timeout_ms": 0, "pad_id": 0, "files": {},'
    b'"limits": {"max_text_tokens": 9, "max_windows": 2, "max_choices": 3}}'
)
REST = b"POST /v1/models/m:"
REGRESSIONS = [
    # Exceptions of libraries, at Python's limits, of values of other types than was thought.
    ("vocabulary", b"\x00" + VOCAB + b"the\n##s\x00un\n##want"),
    ("config", b"\x01hidden_size: " + HEX),
    ("config", b"\x01label_names: [a, !!int '']"),
    ("config", b"\x01layer_norm_eps: !!timestamp x"),
    ("config", b"\x01!!bool x: 1"),
    ("tokenizer", b"\x00" + ADDED),
    ("corpus", b"\x03" + DEEP),
    ("text", b'\x01{"text": ' + DEEP),
    ("tables", b'\x04{"text": "a", "text_pair": "b", "label": ' + NUMBER[:400] + b"}"),
    ("tables", b'\x04{"text": "a", "text_pair": "b", "label": "' + NUMBER + b'"}'),
    ("tables", b'\x06{"text": "a", "choices": ["b", "c"], "label": "' + NUMBER + b'"}'),
    ("task", b'\x00{"task": "qa", "max_seq_length": 16, "max_answ_length": 5}'),
    ("task", b'\x00{"task": ' + DEEP),
    ("checkpoint", b"\x02" + DEEP),
    ("cluster", b'{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 1e999}}'),
    ("cluster", DEEP),
    ("log", b"\x00" + DEEP),
    ("flags", b"\x00--input=\x80"),
    ("flags", b"\x00--input=x\n--save_every_steps=" + HEX),
    ("flags", b"\x00--flagfile=\x00"),
    ("weights_export", b"\x01" + EXPORT % (b"4", b"{}", b"[{}]")),
    ("weights_export", b"\x01" + EXPORT % (b"{}", b"{}", b"[]")),
    ("weights_export", b"\x01" + EXPORT % (b"4", b'{"a": "\\ud800"}', b"[]")),
    ("weights_export", b"\x01" + EXPORT % (b"4", b'{"a": [1, 2]}', b"[]")),
    (
        "rest",
        REST + b'predict\n{"signature_name": "halves", "inputs": {"x": [1], "y": [2], "z": ['
        b"%s]}}" % NUMBER[:400],
    ),
    (
        "rest",
        REST + b'classify\n{"signature_name": "from_examples", "examples": [{"text": "a"}]}',
    ),
    # Messages that were too long, or more than a line.
    ("config", b'\x00{"vocab_size": "' + LONG + b'"}'),
    ("config", b'\x00{"' + LONG + b'": 1}'),
    ("config", b"\x01" + BOMB + b"vocab_size: *i\n"),
    ("config", b"\x01" + BOMB + b"label_names: *i\n"),
    ("tables", b'\x04{"text": "a", "text_pair": "b", "label": 1}\n{"' + LONG + b'": 1}'),
    (
        "squad",
        b'\x00{"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "b", "'
        + LONG
        + b'\\n": 1}, {"question": "c", "answers": []}]}]}]}',
    ),
    ("checkpoint", b'\x02{"format": "' + LONG + b'"}'),
    ("rest", b"G\x00T /v1/models\x07"),
    ("models_config", b"\x00" + LONG.replace(b" ", b"") + b" {}"),
]
