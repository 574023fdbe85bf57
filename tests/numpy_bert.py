"""BERT in plain numpy, float64, after Devlin et al. 2019: the reference of test_model.py."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def gelu(x, exact):
    """Hendrycks and Gimpel 2016, exact or with their tanh approximation."""
    if exact:
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    """Over the last axis."""
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def bert(weights, config, features):
    """All outputs of pretraining.

    Args:
        weights: dict of `named_weights` arrays. config: BertConfig.
        features: input_ids, attention_mask, token_type_ids, all (B, L), masked_positions (B, M).

    Returns:
        dict of hidden_states, attentions (lists), pooler_output, mlm_logits, nsp_logits.
    """
    exact = config.hidden_act == "gelu"

    def dense(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    def norm(x, name):
        mean = x.mean(axis=-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
        x = (x - mean) / np.sqrt(variance + config.layer_norm_eps)
        return x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    tables = {
        name: weights[f"bert/embeddings/{name}_embeddings/embeddings"]
        for name in ("word", "position", "token_type")
    }
    ids = features["input_ids"]
    B, L = ids.shape
    x = tables["word"][ids] + tables["token_type"][features["token_type_ids"]]
    x = norm(x + tables["position"][:L], "bert/embeddings/layer_norm")
    hidden_states, attentions = [x], []
    K = config.hidden_size // config.num_attention_heads
    padding = features["attention_mask"][:, None, :] == 0  # (B, 1, L)
    for i in range(config.num_hidden_layers):
        layer = f"bert/encoder/layer_{i}"
        query, key, value = (
            dense(x, f"{layer}/attention/{name}") for name in ("query", "key", "value")
        )
        contexts, maps = [], []
        for head in range(config.num_attention_heads):
            part = slice(head * K, (head + 1) * K)
            scores = query[..., part] @ key[..., part].transpose(0, 2, 1) / math.sqrt(K)
            maps.append(softmax(np.where(padding, -np.inf, scores)))
            contexts.append(maps[-1] @ value[..., part])
        attended = dense(np.concatenate(contexts, axis=-1), f"{layer}/attention/output")
        x = norm(x + attended, f"{layer}/attention_norm")
        inner = gelu(dense(x, f"{layer}/intermediate"), exact)
        x = norm(x + dense(inner, f"{layer}/output"), f"{layer}/output_norm")
        hidden_states.append(x)
        attentions.append(np.stack(maps, axis=1))
    pooled = np.tanh(dense(x[:, 0], "bert/pooler/dense"))
    gathered = x[np.arange(B)[:, None], features["masked_positions"]]
    gathered = norm(gelu(dense(gathered, "mlm/transform"), exact), "mlm/layer_norm")
    return {
        "hidden_states": hidden_states,
        "attentions": attentions,
        "pooler_output": pooled,
        "mlm_logits": gathered @ tables["word"].T + weights["mlm/output_bias"],
        "nsp_logits": dense(pooled, "nsp/classifier"),
    }
