"""The weights of a kbert model in HF's BertForPreTraining (torch), to compare with."""

import numpy as np
import torch
import transformers

DENSE, NORM = (("kernel", "weight"), ("bias", "bias")), (("gamma", "weight"), ("beta", "bias"))
EMBEDDINGS = (("embeddings", "weight"),)
LAYER = {
    "attention/query": ("attention.self.query", DENSE),
    "attention/key": ("attention.self.key", DENSE),
    "attention/value": ("attention.self.value", DENSE),
    "attention/output": ("attention.output.dense", DENSE),
    "attention_norm": ("attention.output.LayerNorm", NORM),
    "intermediate": ("intermediate.dense", DENSE),
    "output": ("output.dense", DENSE),
    "output_norm": ("output.LayerNorm", NORM),
}
OTHERS = {
    "bert/embeddings/word_embeddings": ("bert.embeddings.word_embeddings", EMBEDDINGS),
    "bert/embeddings/position_embeddings": ("bert.embeddings.position_embeddings", EMBEDDINGS),
    "bert/embeddings/token_type_embeddings": ("bert.embeddings.token_type_embeddings", EMBEDDINGS),
    "bert/embeddings/layer_norm": ("bert.embeddings.LayerNorm", NORM),
    "bert/pooler/dense": ("bert.pooler.dense", DENSE),
    "mlm/transform": ("cls.predictions.transform.dense", DENSE),
    "mlm/layer_norm": ("cls.predictions.transform.LayerNorm", NORM),
    "mlm": ("cls.predictions", (("output_bias", "bias"),)),
    "nsp/classifier": ("cls.seq_relationship", DENSE),
}


def names(config):
    """dict of kbert's name -> HF's name; kernels are transposed."""
    table = dict(OTHERS)
    for i in range(config.num_hidden_layers):
        for ours, (theirs, kind) in LAYER.items():
            table[f"bert/encoder/layer_{i}/{ours}"] = (f"bert.encoder.layer.{i}.{theirs}", kind)
    return {
        f"{ours}/{a}": f"{theirs}.{b}" for ours, (theirs, kind) in table.items() for a, b in kind
    }


def transposed(name, value):
    """A weight as the other side has it."""
    return np.ascontiguousarray(value.T) if name.endswith("/kernel") else value


def hf_model(weights, config):
    """HF's model with these weights (dict of kbert's names -> arrays), in eval mode, float32."""
    hf_config = transformers.BertConfig(
        **config.to_dict(),
        attn_implementation="eager",
        pad_token_id=None,  # else torch gives the embedding of [PAD] no gradient
    )
    model = transformers.BertForPreTraining(hf_config)
    state = {
        theirs: torch.tensor(transposed(ours, weights[ours]))
        for ours, theirs in names(config).items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("decoder" in name for name in missing), (missing, unexpected)
    return model.eval()
