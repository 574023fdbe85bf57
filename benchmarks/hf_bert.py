"""HF's BertForPreTraining (torch) with a kbert model's weights, trained with BERT's recipe."""

import tempfile

import numpy as np
import torch
import transformers

from kbert.model.weights import Tensors, write_weights


def hf_model(weights, config):
    """Returns HF's model with the given weights, in float32 and eval mode.

    Args:
        weights: dict of name in kbert -> array.
        config: BertConfig.
    """
    shapes = {name: array.shape for name, array in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        write_weights(folder, "hf", config, Tensors(shapes, weights.__getitem__))
        return transformers.BertForPreTraining.from_pretrained(
            folder,
            attn_implementation="eager",
            pad_token_id=None,  # otherwise torch computes no gradient for the [PAD] embedding
        ).eval()


class HfTraining:
    """Training steps of HF's model: AdamW as in BERT, gradients clipped to a global norm of 1.

    Args:
        weights, config: initial weights and BertConfig, as for `hf_model`.
        schedule: function from the step, from 0, to the learning rate.
        bias_correction: see `kbert.train.AdamW`.
    """

    def __init__(self, weights, config, schedule, bias_correction=False):
        self.model = hf_model(weights, config).train()
        self._schedule, self._correct = schedule, bias_correction
        self._slots = {
            name: (torch.zeros_like(p), torch.zeros_like(p))
            for name, p in self.model.named_parameters()
        }

    def step(self, batch, number):
        """Takes a training step; returns the loss.

        Args:
            batch: dict of arrays, the `PRETRAINING_FEATURES`.
            number: number of the step, from 0.
        """
        labels = np.full(batch["input_ids"].shape, -100)
        rows, columns = np.nonzero(batch["masked_weights"])
        labels[rows, batch["masked_positions"][rows, columns]] = batch["masked_ids"][rows, columns]
        loss = self.model(
            **{
                name: torch.tensor(batch[name]).long()
                for name in ("input_ids", "attention_mask", "token_type_ids")
            },
            labels=torch.tensor(labels),
            next_sentence_label=torch.tensor(batch["next_sentence_labels"]).long(),
        ).loss
        self.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._update(float(self._schedule(number)), number + 1)
        return loss.item()

    @torch.no_grad()
    def _update(self, rate, count):
        for name, parameter in self.model.named_parameters():
            m, v = self._slots[name]
            m.lerp_(parameter.grad, 0.1)
            v.lerp_(parameter.grad**2, 0.001)
            mean, square = m, v
            if self._correct:
                mean, square = m / (1 - 0.9**count), v / (1 - 0.999**count)
            update = mean / (square.sqrt() + 1e-6)
            if "LayerNorm" not in name and "bias" not in name:
                update = update + 0.01 * parameter
            parameter -= rate * update
