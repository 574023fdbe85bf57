"""OpenVINO with HF's model: dynamic shapes and the defaults of the CPU plugin.

By default, the plugin computes in bfloat16 if the CPU supports it; the float32 row sets float32.
"""

import os

import numpy as np
import openvino
import torch
import transformers

from benchmarks import data
from benchmarks.worker import Work, serve


def infer(settings):
    """Returns the Work of classifying all texts, given their ids, in order. Units: texts."""
    examples = data.read_examples(settings["examples"])
    options = {"INFERENCE_NUM_THREADS": int(os.environ["OMP_NUM_THREADS"])}
    if settings["precision"] == "float32":
        options["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(converted(f"{settings['folder']}/hf"), "CPU", options)

    def logits():
        return np.concatenate(
            [
                compiled(data.padded(part))[0]
                for part in data.split_into_batches(examples, settings["batch_size"])
            ]
        )

    def run(steps):
        for _ in range(steps):
            logits()
        return {"units": steps * len(examples)}

    hints = [compiled.get_property(f"{n}_HINT") for n in ("INFERENCE_PRECISION", "PERFORMANCE")]
    notes = f"{hints[0].get_type_name()}, hint {hints[1]}; padded to the longest"
    return Work(run, notes, lambda path: np.save(path, logits()))


def converted(folder):
    """Converts a folder of HF transformers to an OpenVINO model."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    names = ("input_ids", "attention_mask", "token_type_ids")
    example = {name: torch.ones((2, 16), dtype=torch.long) for name in names}
    return openvino.convert_model(model, example_input=example)


if __name__ == "__main__":
    serve({"infer": infer}, ["openvino", "torch", "transformers"])
