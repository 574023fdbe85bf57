"""What the Predictor says, against the models themselves and against HF transformers."""

import warnings

import keras
import numpy as np
import pytest
import transformers

import kbert
from kbert.data.tag_schemes import tag_scheme
from kbert.errors import UserError
from kbert.tasks.outputs import softmax
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "un", "##want", "##ed", ".", ","]
TEXTS = ["the cat sat.", "a dog", "the unwanted dog ran on the mat, the cat sat on a dog."] * 3
PAIRS = ["a mat", "the dog ran on the mat.", "dog"] * 3
BERT = {
    **{"vocab_size": 18, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
    **{"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.5},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    write_vocab([*SPECIAL_TOKENS, *WORDS], path)
    return kbert.BertTokenizer(path)


def model_of(name, **config):
    keras.utils.set_random_seed(0)
    return getattr(kbert, name)(kbert.BertConfig(**BERT, **config))


def predictor_of(name, tokenizer, settings=None, **config):
    return kbert.Predictor(model_of(name, **config), tokenizer, settings, batch_size=4)


def one_by_one(predictor, texts, pairs=None):
    """The model's outputs for each text, computed alone and without padding."""
    for i, text in enumerate(texts):
        features = predictor.tokenizer([text], pairs and [pairs[i]], max_length=32)
        length = int(np.sum(features["attention_mask"]))
        yield predictor.model({name: value[:, :length] for name, value in features.items()})


@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_classes(tokenizer, pairs):
    predictor = predictor_of("BertForSequenceClassification", tokenizer, num_labels=3)
    found = predictor.classify(TEXTS, pairs)
    assert len(found) == 9
    for row, outputs in zip(found, one_by_one(predictor, TEXTS, pairs), strict=True):
        expected = softmax(outputs["logits"].numpy()[0])
        np.testing.assert_allclose(list(row["scores"].values()), expected, atol=1e-5)
        assert row["label"] == str(expected.argmax()) and row["score"] == max(
            row["scores"].values()
        )


def test_names_of_classes_numbers_and_several_labels(tokenizer):
    names = {"num_labels": 2, "label_names": ("no", "yes")}
    name = "BertForSequenceClassification"
    assert predictor_of(name, tokenizer, **names).classify(["a"])[0]["label"] in ("no", "yes")
    several = predictor_of(name, tokenizer, **names, problem_type="multi_label_classification")
    (found,) = several.classify(["a"])
    assert found["labels"] == [n for n, score in found["scores"].items() if score > 0.5]
    number = predictor_of(name, tokenizer, num_labels=1)
    (found,), (outputs,) = number.classify(["a"]), one_by_one(number, ["a"])
    assert found == {"score": pytest.approx(float(outputs["logits"][0, 0]), abs=1e-5)}


def test_embeddings_and_similarity(tokenizer):
    """Mean over the tokens, and [CLS], of HF's model with the same weights."""
    predictor = predictor_of("BertModel", tokenizer)
    outputs = list(one_by_one(predictor, TEXTS))
    for pooling, pool in (("mean", lambda x: x.mean(axis=0)), ("cls", lambda x: x[0])):
        expected = np.stack([pool(o["last_hidden_state"].numpy()[0]) for o in outputs])
        found = predictor.embed(TEXTS, pooling, normalize=False)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(predictor.embed(TEXTS, pooling), expected, atol=1e-5)
    (found,) = predictor.similarity(["a dog"], ["a dog"])
    assert found["similarity"] == pytest.approx(1, abs=1e-5)
    found = predictor.similarity(TEXTS, PAIRS)
    vectors = predictor.embed(TEXTS) * predictor.embed(PAIRS)
    np.testing.assert_allclose([f["similarity"] for f in found], vectors.sum(axis=1), atol=1e-5)
    assert predictor.embed([]).shape == (0, 24)
    with pytest.raises(UserError, match=r"pooling must be one of mean, cls, max; got 'min'"):
        predictor.embed(["a"], "min")


def test_masks_are_filled_as_hf_does(tokenizer, tmp_path):
    model = model_of("BertForMaskedLM")
    model.save_pretrained(tmp_path, format="hf")
    tokenizer.save_pretrained(tmp_path, format="hf")
    predictor = kbert.Predictor(model, tokenizer)
    texts = ["the [MASK] sat.", "[MASK] dog ran on [MASK]"]
    found = predictor.fill_mask(texts, top_k=3)
    theirs = transformers.pipeline("fill-mask", str(tmp_path), top_k=3)(texts)
    for ours, expected in zip(found[0]["masks"], [theirs[0]], strict=True):
        assert [w["token"] for w in ours] == [w["token_str"] for w in expected]
        np.testing.assert_allclose(
            [w["score"] for w in ours], [w["score"] for w in expected], atol=1e-5
        )
    for ours, expected in zip(found[1]["masks"], theirs[1], strict=True):
        assert [w["token"] for w in ours] == [w["token_str"] for w in expected]
    first, second = (mask[0]["token"] for mask in found[1]["masks"])
    assert found[1]["text"] == f"{first} dog ran on {second}"


def test_targets_of_masks_are_those_of_hf(tokenizer, tmp_path):
    model = model_of("BertForMaskedLM")
    model.save_pretrained(tmp_path, format="hf")
    tokenizer.save_pretrained(tmp_path, format="hf")
    predictor = kbert.Predictor(model, tokenizer)
    texts = ["the [MASK] sat.", "[MASK] dog ran on [MASK]"]
    pipeline = transformers.pipeline("fill-mask", str(tmp_path))
    for targets, top_k in ((["cat", "dog", "the", "mat"], 3), ("unwanted", 5), (["cat", "cat"], 5)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = predictor.fill_mask(texts, top_k, targets)
        assert [str(w.message) for w in caught if "target" in str(w.message)] == [
            "the target 'unwanted' is not in the vocabulary; 'un' is used instead"
        ] * (targets == "unwanted")
        theirs = pipeline(texts, targets=targets, top_k=top_k)
        for ours, expected in zip(
            [found[0]["masks"][0], *found[1]["masks"]], [theirs[0], *theirs[1]], strict=True
        ):
            assert [w["token"] for w in ours] == [w["token_str"] for w in expected]
            np.testing.assert_allclose(
                [w["score"] for w in ours], [w["score"] for w in expected], atol=1e-5
            )
    with (
        pytest.warns(UserWarning, match="the target ' ' is not in the vocabulary; it is ignored"),
        pytest.raises(UserError, match=r"targets must have at least one word; got \[' '\]"),
    ):
        predictor.fill_mask(texts, targets=[" "])


def test_pieces_are_joined_to_words(tokenizer):
    predictor = predictor_of("BertForMaskedLM", tokenizer)
    (found,) = predictor.fill_mask("the un [MASK] [MASK] dog", targets=["##want"])
    assert found["text"] == "the unwantwant dog"
    assert [mask[0]["word"] for mask in found["masks"]] == ["unwant", "unwantwant"]
    assert found["masks"][0][0]["token"] == "##want"
    (found,) = predictor.fill_mask("天[MASK] dog", targets=["##want", "cat"])
    words = {word["token"]: word["word"] for word in found["masks"][0]}
    assert words == {"##want": "want", "cat": "cat"}


@pytest.mark.parametrize("text", ["the cat", "[MASK] " * 17, "the " * 40 + "[MASK]"])
def test_texts_without_a_mask_or_with_too_many(tokenizer, text):
    with pytest.raises(UserError, match=r"must have 1 to 16 \[MASK\] within its first 32 tokens"):
        predictor_of("BertForMaskedLM", tokenizer).fill_mask(["a [MASK]", text])


def test_next_sentences(tokenizer):
    predictor = predictor_of("BertForNextSentencePrediction", tokenizer)
    found = predictor.next_sentence(TEXTS, PAIRS)
    for row, outputs in zip(found, one_by_one(predictor, TEXTS, PAIRS), strict=True):
        expected = softmax(outputs["logits"].numpy()[0])[0]
        assert row["is_next"] == pytest.approx(expected, abs=1e-5)


def test_tags(tokenizer):
    names = ("B-X", "I-X", "O")
    predictor = predictor_of(
        "BertForTokenClassification", tokenizer, num_labels=3, label_names=names
    )
    text = "The unwanted  Cat sat."
    ((found), _) = predictor.tag([text, ""])
    for span in found:
        assert text[span["start"] : span["end"]] == span["text"]
        assert text.encode()[span["byte_start"] : span["byte_end"]].decode() == span["text"]
    (outputs,) = one_by_one(predictor, [text])
    best = outputs["logits"].numpy()[0].argmax(axis=-1)
    words = [1, 2, 5, 6, 7]  # places of the, un, cat, sat and .
    expected = tag_scheme(names).spans([names[best[i]] for i in words])
    assert len(found) == len(expected) > 0
    assert predictor.tag_words([["the", "unwanted", "cat"], ["dog"]])[1][0] in names


def test_answers(tokenizer):
    predictor = predictor_of("BertForQuestionAnswering", tokenizer)
    context = "the cat sat on a mat, a dog ran. " * 5
    found = predictor.answer(["the dog", "a cat"], [context, "a mat"])
    for answer, text in zip(found, [context, "a mat"], strict=True):
        assert text[answer["start"] : answer["end"]] == answer["text"] != ""
    with pytest.raises(UserError, match=r"as many contexts as questions; got 1 and 2"):
        predictor.answer(["a", "b"], ["c"])


def test_options_of_an_answer(tokenizer):
    """They hold for one call."""
    predictor = predictor_of("BertForQuestionAnswering", tokenizer)
    question, context = "the dog", "the cat sat on a mat"
    (before,) = predictor.answer(question, context)
    (found,) = predictor.answer(question, context, top_k=3)
    assert found["candidates"][0]["text"] == before["text"]
    assert len(found["candidates"]) == 3
    (found,) = predictor.answer(question, context, max_answer_length=1)
    assert found["text"] in context.split()
    (found,) = predictor.answer(question, context, allow_no_answer=True)
    assert "" in [c["text"] for c in found["candidates"]]
    assert predictor.answer(question, context) == [before]
    with pytest.raises(UserError, match=r"top_k must be at least 1; got 0\."):
        predictor.answer(question, context, top_k=0)
    with pytest.raises(UserError, match=r"the task tag has no option 'top_k'; it has: none\."):
        predictor_of("BertForTokenClassification", tokenizer).predict("tag", ["a"], top_k=2)


def test_offsets_in_characters(tokenizer):
    predictor = predictor_of("BertForQuestionAnswering", tokenizer)
    (found,) = predictor.answer("the dog", "é天 the cat, a mat")
    assert "é天 the cat, a mat"[found["start"] : found["end"]] == found["text"]
    text = "é天 the cat, a mat".encode()
    assert text[found["byte_start"] : found["byte_end"]].decode() == found["text"]


def test_choices(tokenizer):
    predictor = predictor_of("BertForMultipleChoice", tokenizer)
    found = predictor.choose(["the cat", "a dog"], [["sat", "ran on a mat"], ["a", "mat"]])
    for row, text, choices in zip(
        found, ["the cat", "a dog"], [["sat", "ran on a mat"], ["a", "mat"]], strict=True
    ):
        features = tokenizer([text] * 2, choices, max_length=32)
        logits = predictor.model({name: value[None] for name, value in features.items()})["logits"]
        assert row["choice"] == int(np.argmax(logits)) and row["text"] == choices[row["choice"]]
        assert row["score"] == pytest.approx(float(softmax(logits.numpy()[0]).max()), abs=1e-5)


def test_choices_of_different_numbers(tokenizer):
    predictor = predictor_of("BertForMultipleChoice", tokenizer)
    with pytest.raises(UserError, match=r"the same number of choices, at least 2; got \[2, 3\]"):
        predictor.choose(["the"] * 2, [["a", "cat"], ["a", "cat", "dog"]])


def test_order_and_progress(tokenizer):
    steps = []
    predictor = predictor_of("BertForQuestionAnswering", tokenizer)
    predictor.advance = steps.append
    predictor.answer(["the dog"], ["the cat"])
    assert steps.pop() == 1
    predictor.answer(["the dog"] * 7, ["the cat sat on a mat, a dog ran. " * 6] * 7)
    assert sum(steps) == 7
    embedder = predictor_of("BertModel", tokenizer)
    embedder.advance = steps.append
    whole = embedder.embed(TEXTS)
    assert sum(steps) == 7 + 9
    for text, vector in zip(TEXTS, whole, strict=True):
        np.testing.assert_allclose(embedder.embed([text])[0], vector, atol=1e-5)


def test_folders_give_the_head_that_is_asked_for(tokenizer, tmp_path, recwarn):
    model = model_of("BertForPreTraining")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    predictor = kbert.Predictor.from_pretrained(tmp_path)
    ours = kbert.Predictor(model, tokenizer)
    assert predictor.embed(["a dog"]).shape == (1, 24)
    with pytest.raises(UserError, match=r"must be a BertForEmbedding; it is a BertForPre"):
        ours.embed(["a dog"])
    logits = model(tokenizer(["the"], ["a dog"], max_length=7))["nsp_logits"].numpy()[0]
    (found,) = predictor.next_sentence(["the"], ["a dog"])
    assert found["is_next"] == pytest.approx(float(softmax(logits)[0]), abs=1e-5)
    assert predictor.fill_mask(["a [MASK]"])[0]["masks"]
    with pytest.raises(UserError) as caught:
        predictor.tag(["a dog"])
    message = (
        "has no token_classifier, which BertForTokenClassification requires; it has bert/embedd"
    )
    assert message in str(caught.value)
    assert "Fine-tune it for the task with kbert.finetune." in str(caught.value)
    assert not [w for w in recwarn if "are randomly initialized" in str(w.message)]


def test_a_single_text_is_a_batch_of_one(tokenizer):
    classifier = predictor_of("BertForSequenceClassification", tokenizer, num_labels=3)
    assert classifier.classify("the cat") == classifier.classify(["the cat"])
    assert classifier.classify("the cat", "a mat") == classifier.classify(["the cat"], ["a mat"])
    chooser = predictor_of("BertForMultipleChoice", tokenizer)
    choices = ["a mat", "a dog"]
    assert chooser.choose("the cat", choices) == chooser.choose(["the cat"], [choices])
    filler = predictor_of("BertForMaskedLM", tokenizer)
    assert filler.fill_mask("a [MASK]") == filler.fill_mask(("a [MASK]",))
    with pytest.raises(UserError, match="for each text; got the str 'a mat'"):
        chooser.choose(["the cat", "the mat"], choices)
    with pytest.raises(UserError, match="got a list of texts, and one text as a str: 'a mat'"):
        classifier.classify(["the cat"], "a mat")
    with pytest.raises(UserError, match=r"texts must be a str or a list of str; got the shape"):
        classifier.classify("the cat", ["a mat"])


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [((5,), "int: '5'"), (([b"a"],), "bytes"), ((["a", None],), "NoneType"), ((["a"], [5]), "int")],
)
def test_what_is_no_text_is_an_error(tokenizer, arguments, shown):
    predictor = predictor_of("BertForSequenceClassification", tokenizer)
    with pytest.raises(UserError, match=f"^texts must be a str or a list of str; got {shown}"):
        predictor.classify(*arguments)


def test_words_of_a_sentence_are_a_list(tokenizer):
    predictor = predictor_of("BertForTokenClassification", tokenizer, num_labels=3)
    with pytest.raises(UserError, match="sentences must be lists of words; got the str 'the cat'"):
        predictor.tag_words(["the cat"])


@pytest.mark.parametrize(
    ("name", "method", "arguments"),
    [
        ("BertForSequenceClassification", "classify", ["the cat"]),
        ("BertForQuestionAnswering", "answer", ["the cat", "a dog sat on a mat"]),
        ("BertForMaskedLM", "fill_mask", ["the [MASK]"]),
        ("BertModel", "embed", ["the cat"]),
    ],
)
def test_the_default_method_is_that_of_the_heads(tokenizer, tmp_path, name, method, arguments):
    """In memory and from a folder that names no task, as after Keras' fit."""
    predictor = predictor_of(name, tokenizer)
    assert repr(predictor) == f"Predictor('{name}', {method})"
    predictor.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    read = kbert.Predictor.from_pretrained(tmp_path)
    assert repr(read) == f"Predictor('{tmp_path}', {method})"
    np.testing.assert_equal(read(*arguments), getattr(read, method)(*arguments))


def test_no_texts(tokenizer):
    assert predictor_of("BertForSequenceClassification", tokenizer).classify([]) == []
    assert predictor_of("BertForMaskedLM", tokenizer).fill_mask([]) == []
    tagger = predictor_of("BertForTokenClassification", tokenizer)
    assert tagger.tag([]) == [] and tagger.tag_words([]) == []
