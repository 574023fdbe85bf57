"""HF transformers on torch, in eager mode; mixed precision with autocast, as in HF's examples."""

import os
import types

import numpy as np
import torch
import transformers

from benchmarks import data
from benchmarks.worker import Work, serve

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
torch.set_num_interop_threads(1)
transformers.logging.set_verbosity_error()


class Trainer:
    """Takes training steps: forward pass, backward pass, clipping, AdamW."""

    def __init__(self, model, precision):
        self.model = model.train()
        self.autocast = torch.autocast("cpu", torch.bfloat16, precision == "mixed_bfloat16")
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
            lr=1e-6,
            eps=1e-6,
            fused=True,
        )
        self.notes = f"{model.config._attn_implementation} attention, fused AdamW"

    def step(self, batch):
        """Takes a step; returns the loss."""
        with self.autocast:
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class AtMaskedTokens(torch.nn.Module):
    """BertForPreTraining whose MLM head computes only the masked tokens; HF's head computes all."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, labels, next_sentence_label, masked_positions, **features):
        x, pooled = self.model.bert(**features, return_dict=False)[:2]
        x = torch.take_along_dim(x, masked_positions[:, :, None], dim=1)  # (B, M, D)
        mlm_logits, nsp_logits = self.model.cls(x, pooled)
        entropy = torch.nn.functional.cross_entropy
        labels = torch.take_along_dim(labels, masked_positions, dim=1)
        loss = entropy(mlm_logits.flatten(0, 1), labels.flatten())
        return types.SimpleNamespace(loss=loss + entropy(nsp_logits, next_sentence_label))


def train(settings):
    """Returns the Work of pretraining steps. Units: sequences."""
    model = transformers.BertForPreTraining(transformers.BertConfig(**settings["model"]))
    gather = settings["gather"]
    trainer = Trainer(AtMaskedTokens(model) if gather else model, settings["precision"])
    batches = [pretraining_batch(batch, gather) for batch in data.pretraining_batches(settings)]
    taken = 0

    def run(steps):
        nonlocal taken
        for _ in range(steps):
            loss = trainer.step(batches[taken % len(batches)])
            taken += 1
        return {"units": steps * settings["batch_size"], "loss": loss}

    tokens = "masked tokens only, by code of this benchmark" if gather else "all tokens"
    return Work(run, f"{trainer.notes}; MLM logits of {tokens}")


def pretraining_batch(batch, gather):
    """Returns the inputs of BertForPreTraining; labels are -100 at tokens that are not masked."""
    labels = np.full(batch["input_ids"].shape, -100)
    rows, slots = np.nonzero(batch["masked_weights"])
    labels[rows, batch["masked_positions"][rows, slots]] = batch["masked_ids"][rows, slots]
    names = ("input_ids", "attention_mask", "token_type_ids")
    features = {name: batch[name] for name in (*names, *["masked_positions"] * gather)}
    features |= {"labels": labels, "next_sentence_label": batch["next_sentence_labels"]}
    return {name: torch.tensor(value).long() for name, value in features.items()}


def finetune(settings):
    """Returns the Work of fine-tuning; each shuffled batch is padded to its longest example.

    A step is an epoch. Units: examples.
    """
    examples = data.read_examples(settings["examples"])
    config = transformers.BertConfig(**settings["model"])
    model = transformers.BertForSequenceClassification(config)
    trainer = Trainer(model, settings["precision"])
    loader = torch.utils.data.DataLoader(
        examples, settings["batch_size"], shuffle=True, collate_fn=labeled_batch
    )

    def run(steps):
        for _ in range(steps):
            for batch in loader:
                loss = trainer.step(batch)
        return {"units": steps * len(examples), "loss": loss}

    return Work(run, f"{trainer.notes}; padded to the longest, shuffled")


def labeled_batch(examples):
    """Returns the features and labels of examples."""
    return tensors(examples) | {"labels": torch.tensor([label for _, label in examples])}


def tensors(examples):
    """Returns the features of examples, padded to the longest one."""
    return {name: torch.from_numpy(value) for name, value in data.padded(examples).items()}


def infer(settings):
    """Returns the Work of classifying all texts, given their ids, in order. Units: texts."""
    dtype = torch.bfloat16 if settings["precision"] == "mixed_bfloat16" else torch.float32
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        f"{settings['folder']}/hf", dtype=dtype
    ).eval()
    examples = data.read_examples(settings["examples"])

    @torch.inference_mode()
    def logits():
        return np.concatenate(
            [
                model(**tensors(part)).logits.float().numpy()
                for part in data.split_into_batches(examples, settings["batch_size"])
            ]
        )

    def run(steps):
        for _ in range(steps):
            logits()
        return {"units": steps * len(examples)}

    notes = f"{model.config._attn_implementation} attention, {str(dtype)[6:]} weights"
    return Work(run, f"{notes}; padded to the longest", lambda path: np.save(path, logits()))


def tokenizer(settings):
    """Returns the Work of tokenizing lines in batches with the fast tokenizer. Units: bytes."""
    fast = transformers.AutoTokenizer.from_pretrained(settings["folder"])
    lines = data.read_lines(settings["text"], settings["size"])

    def batches():
        for part in data.split_into_batches(lines, settings["batch_size"]):
            yield fast(
                part,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]

    def run(steps):
        for _ in range(steps):
            for _ in batches():
                pass
        return {"units": steps * sum(len(line.encode()) for line in lines)}

    def save(path):
        rows = [row for batch in batches() for row in batch]
        np.savez(path, ids=np.concatenate(rows), lengths=[len(row) for row in rows])

    return Work(run, "ids as Python lists", save)


def pipeline(settings):
    """Returns the Work of making MLM batches, as in HF's example run_mlm.py.

    The lines are tokenized in advance, joined and cut into sequences of L tokens; masks are drawn
    on the fly. A step is 50 batches. Units: tokens without padding.
    """
    fast = transformers.AutoTokenizer.from_pretrained(settings["folder"])
    lines = data.read_lines(settings["text"], settings["size"])
    whole_words = settings["whole_word_mask"]  # the collator recognizes words by token offsets
    names = ("input_ids", "offset_mapping") if whole_words else ("input_ids",)
    encoded = fast(lines, return_offsets_mapping=whole_words)
    joined = {name: [value for row in encoded[name] for value in row] for name in names}
    L = settings["length"]
    sequences = [
        {name: joined[name][i : i + L] for name in names}
        for i in range(0, len(joined["input_ids"]) - L + 1, L)
    ]
    collate = transformers.DataCollatorForLanguageModeling(fast, whole_word_mask=whole_words)
    loader = torch.utils.data.DataLoader(
        sequences, settings["batch_size"], shuffle=True, drop_last=True, collate_fn=collate
    )
    batches = forever(loader)

    def run(steps):
        tokens = sum(next(batches)["input_ids"].numel() for _ in range(50 * steps))
        return {"units": tokens}

    return Work(run, "text tokenized in advance; no NSP")


def forever(loader):
    """Yields batches without end, epoch by epoch."""
    while True:
        yield from loader


AREAS = {
    "train": train,
    "finetune": finetune,
    "infer": infer,
    "tokenizer": tokenizer,
    "pipeline": pipeline,
}

if __name__ == "__main__":
    serve(AREAS, ["torch", "transformers"])
