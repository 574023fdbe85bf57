"""The matrix products of BERT and their floating-point operations, 2 per multiply-add.

The counts follow from the shapes and are the same for every library. Unnecessary operations, such
as operations on padding, or the MLM head at tokens that are not masked, are not counted. `model` is
a dict of sizes with HF's names. Dimensions: B batch, L length in tokens, M masked slots, D width, H
heads, F inner width, V vocabulary, N layers, C classes.
"""

import typing


class Product(typing.NamedTuple):
    """Batches of matrix products (m, k) x (k, n).

    Attributes:
        count: number of batches.
        batch: products per batch.
        m, k, n: sizes of the matrices.
        transpose_a, transpose_b: whether the first or the second matrix is stored transposed.
    """

    count: int
    batch: int
    m: int
    k: int
    n: int
    transpose_a: bool = False
    transpose_b: bool = False


def count_flops(products):
    """Returns the number of floating-point operations of a list of products."""
    return sum(2 * p.count * p.batch * p.m * p.k * p.n for p in products)


def model_of(layers, width, heads=None, vocab=30522):
    """Returns the sizes of a BERT with heads of width 64 by default and an inner width of 4 D."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads or width // 64,
        "intermediate_size": 4 * width,
        "vocab_size": vocab,
    }


def encoder(model, B, L):
    """Returns the products of the encoder's forward pass."""
    N, D = model["num_hidden_layers"], model["hidden_size"]
    H, F = model["num_attention_heads"], model["intermediate_size"]
    return [
        Product(4 * N, 1, B * L, D, D),  # query, key, value, output
        Product(N, B * H, L, D // H, L, transpose_b=True),  # scores
        Product(N, B * H, L, L, D // H),  # context
        Product(N, 1, B * L, D, F),
        Product(N, 1, B * L, F, D),
    ]


def pretraining_heads(model, B, M):
    """Returns the products of the MLM head, at the masked slots only, and of the NSP head."""
    D, V = model["hidden_size"], model["vocab_size"]
    return [
        Product(1, 1, B * M, D, D),
        Product(1, 1, B * M, D, V, transpose_b=True),  # word embeddings
        Product(1, 1, B, D, D),  # pooler
        Product(1, 1, B, D, 2),
    ]


def classifier_head(model, B, C=2):
    """Returns the products of the pooler and a head for C classes."""
    D = model["hidden_size"]
    return [Product(1, 1, B, D, D), Product(1, 1, B, D, C)]


def with_backward(products):
    """Returns the forward products, followed by the two gradient products of each."""
    result = list(products)
    for p in products:
        result.append(p._replace(k=p.n, n=p.k, transpose_b=not p.transpose_b))  # dA = dC B^T
        m, n = (p.n, p.k) if p.transpose_b else (p.k, p.n)
        result.append(p._replace(m=m, k=p.m, n=n, transpose_a=True, transpose_b=False))
    return result


def pretraining_step(model, B, L, M):
    """Returns the products of a training step with MLM and NSP."""
    return with_backward(encoder(model, B, L) + pretraining_heads(model, B, M))


def classification(model, B, L, train=False):
    """Returns the products of a classifier's forward pass, or of its training step."""
    products = encoder(model, B, L) + classifier_head(model, B)
    return with_backward(products) if train else products
