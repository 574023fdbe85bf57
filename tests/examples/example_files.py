"""What the tests of examples share."""

import json
import types

CONTEXT = "the cat sat on the mat"


def settings(task, **changed):
    names = ("text_column", "text_pair_column", "label_column")
    names += ("label_columns", "choice_columns", "labels")
    fields = dict.fromkeys(names) | {"header": "auto", "skip_bad_lines": False}
    fields["first_choice"] = "auto"
    return types.SimpleNamespace(task=task, **fields | changed)


def rows(*objects):
    return "".join(json.dumps(o) + "\n" for o in objects)


def squad_file(*questions, context=CONTEXT):
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [*questions]}]}]})
