"""`Predictor` makes predictions for texts; it has a method for each task."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kbert.config import POOLINGS
from kbert.errors import UserError
from kbert.inference.fill_mask import MaskFiller
from kbert.inference.model_runner import ModelRunner
from kbert.inference.search import nearest_texts
from kbert.model.models import (
    BertForEmbedding,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from kbert.tasks.arguments import as_batch, same_length
from kbert.tasks.encoding import encode_texts
from kbert.tasks.outputs import embeddings, l2_normalize, similarities, softmax
from kbert.tasks.registry import BUILT_IN, get_task, method_of_heads
from kbert.tokenizer.tokenizer import BertTokenizer


class Predictor(ModelRunner):
    """Makes predictions for texts with a model and its tokenizer.

    The methods take a text or a list of texts of any length. The texts are sorted by length and
    computed in batches; the results are in the order of the texts. Texts longer than
    `max_seq_length` are truncated, except in `tag` and `answer`, which split them into overlapping
    windows. All methods raise UserError if an argument is not a str or a list of str where one is
    expected, if lists of texts differ in length, or if the model lacks the head that the method
    requires.

    Args:
        model: one of kbert's models.
        tokenizer: BertTokenizer.
        settings: settings of the task that the model was fine-tuned for, as in `task.json`; None
            for a model without a task.
        batch_size: maximum number of texts in a batch; two batches are computed concurrently.
        advance: called with the number of texts done since the last call, to show progress; None:
            not called.
        backend: "tensorflow"; "openvino" (CPU only; requires `kbert[openvino]`); "auto", which is
            OpenVINO if it is installed and there is no GPU, else TensorFlow; or "keras", which
            calls the Keras model and gives the same results as evaluation in training. "openvino"
            and, on the CPU, "tensorflow" freeze the weights at the first call of a method, so that
            later changes of the model have no effect. All backends compute in the model's dtype,
            except that OpenVINO computes in float32 unless this dtype is bfloat16 and the CPU
            supports it. The results of the backends differ by about 1e-6 in float32 and by a few
            1e-2 in bfloat16.
        max_seq_length: maximum number of tokens in a sequence; None for the length used in
            fine-tuning, else the length in the config's `embedding` settings, else the model's
            maximum, at most 512.

    Attributes:
        folder: ModelFolder of the weights; None if the model was passed as an argument.

    Raises:
        UserError: the backend is unknown, or OpenVINO is requested but not installed.
    """

    def __repr__(self) -> str:
        return f"Predictor({str(self.folder or type(self.model).__name__)!r}, {self.method})"

    @property
    def method(self) -> str:
        """Name of the default method.

        It is the method of the task or, for a model without a task, a method for its heads.
        """
        if self.settings:
            return get_task(self.settings["task"]).method
        parts = self.folder.parts if self.folder else self.model.task_heads
        return method_of_heads(parts, (self.folder or self.model).config)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        """Calls the default method; see `method`."""
        if self.settings:
            return self.predict(self.settings["task"], *texts, **options)
        return getattr(self, self.method)(*texts, **options)

    def classify(
        self, texts: str | Sequence[str], text_pairs: str | Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Classifies texts or pairs of texts.

        Args:
            texts: a text or a list of texts.
            text_pairs: the second texts of the pairs; None for single texts.

        Returns:
            list of dicts of `label`, its probability `score`, and `scores`, a dict of label ->
            probability. Multi-label models: `labels` and `scores`. Regression models: `score` or,
            with several outputs, `scores`.
        """
        return self.predict(self.classifier(), texts, text_pairs)

    def classifier(self) -> str:
        """Returns the task of a sequence classifier: "classify", "regress" or "multilabel"."""
        config = self.load(BertForSequenceClassification).config
        if config.problem_type is None:
            return "regress" if config.num_labels == 1 else "classify"
        return next(kind.name for kind in BUILT_IN if kind.problem_type == config.problem_type)

    def predict(
        self,
        name: str,
        *texts: Sequence[str] | Sequence[Sequence[str]] | None,
        **options: Any,
    ) -> list[Any]:
        """Makes predictions with the method of a task.

        Args:
            name: name of the task, such as "classify".
            *texts: arguments of the task's method, such as texts and text pairs.
            **options: values of the task's `call_options` for this call; with None, an option keeps
                its value in `task.json` or its default.

        Returns:
            list of the results of the method, one per text.

        Raises:
            UserError: the task is unknown or does not have an option, the model lacks the task's
                head, or the arguments are invalid.
        """
        self.load(get_task(name).model_class)
        task = self.task(name)
        for option, value in options.items():
            if option not in task.call_options:
                known = ", ".join(task.call_options) or "none"
                raise UserError(f"the task {name} has no option {option!r}; it has: {known}.")
            if value is not None:
                setattr(task, option, value)
        return task.predict(self, *as_batch(*texts))

    def tag(self, texts: str | Sequence[str]) -> list[list[dict[str, Any]]]:
        """Finds the entities in each text or, if the labels mark no entities, tags each word.

        Returns:
            For each text a list of dicts, one per span: `label`, `text`, the offsets `start` and
            `end` in characters (end exclusive) and `byte_start` and `byte_end` in bytes of the
            UTF-8 text, and `score`, the mean probability of the labels of its words.
        """
        return self.predict("tag", texts)

    def tag_words(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns the tag of each word of sentences that are already split into words.

        Words that do not fit into `max_seq_length` tokens get the tag outside of entities or, if
        the labels mark no entities, the first label.

        Raises:
            UserError: a sentence is a str, or the model does not predict tags.
        """
        self.load(BertForTokenClassification)
        for words in sentences:
            if isinstance(words, str):
                raise UserError(f"sentences must be lists of words; got the str {words[:60]!r}.")
        task = self.task("tag")
        predictions = self.predictions(task, task.examples(sentences))
        return [prediction["tags"] for prediction in predictions]

    def answer(
        self,
        questions: str | Sequence[str],
        contexts: str | Sequence[str],
        top_k: int | None = None,
        max_answer_length: int | None = None,
        allow_no_answer: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Extracts the answer to each question from its context.

        Args:
            questions, contexts: a text each, or lists of equal length.
            top_k: maximum number of spans to return as candidates; they may overlap. None: at most
                20 spans that do not overlap.
            max_answer_length: maximum length of an answer in tokens; None: as in fine-tuning.
            allow_no_answer: whether the answer may be "" (no answer); None: True if the model was
                fine-tuned on questions without an answer.

        Returns:
            list of dicts: see `kbert.tasks.answers.best_answers`.
        """
        options = {"top_k": top_k, "max_answer_length": max_answer_length}
        return self.predict("qa", questions, contexts, **options, allow_no_answer=allow_no_answer)

    def choose(
        self, texts: str | Sequence[str], choices: Sequence[Sequence[str]]
    ) -> list[dict[str, Any]]:
        """Selects the best choice for each text.

        Args:
            texts: a text, or a list of texts.
            choices: the list of choices for the text; or a list of such lists of equal length, one
                per text.

        Returns:
            list of dicts of `choice`, the index from 0, and its `text` and probability `score`.
        """
        return self.predict("choice", texts, choices)

    def rerank(
        self, query: str, texts: Sequence[str], top_k: int | None = None
    ) -> list[dict[str, Any]]:
        """Sorts texts by their relevance to a query, such as the results of `search`.

        The model must be a cross-encoder: a sequence classifier with one output, fine-tuned by
        kbert, HF transformers or sentence-transformers.

        Args:
            query: the query.
            texts: N texts.
            top_k: maximum number of texts to return; None for all.

        Returns:
            list of dicts, best first: `index`, the number of the text in `texts`, from 0; `score`,
            the sigmoid of the logit, from 0 to 1; and `text`.

        Raises:
            UserError: the query is not a str, `top_k` is below 1, or the model has several outputs.
        """
        if not isinstance(query, str):
            raise UserError(f"query must be a str; got {type(query).__name__}.")
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k must be at least 1; got {top_k}.")
        (texts,) = as_batch(texts)
        results = self.predict("rerank", [query] * len(texts), texts)
        scores = np.array([result["score"] for result in results])
        order = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [{"index": i, **results[i], "text": texts[i]} for i in order]

    def next_sentence(
        self, texts: str | Sequence[str], text_pairs: str | Sequence[str]
    ) -> list[dict[str, float]]:
        """Returns dicts of `is_next`, the probability that the second text follows the first.

        Args:
            texts, text_pairs: a text each, or lists of equal length.
        """
        model = self.load(BertForNextSentencePrediction)
        texts, text_pairs = as_batch(texts, text_pairs)
        text_pairs = same_length(texts, text_pairs, "text_pairs")
        items = encode_texts(self.tokenizer, texts, text_pairs, self.max_seq_length)

        def compute(features):
            return {"logits": model(features, training=False)["logits"]}

        outputs = self._runner("nsp", model, compute)(items, self.advance)
        return [{"is_next": float(softmax(output["logits"])[0])} for output in outputs]

    def embed(
        self,
        texts: str | Sequence[str],
        pooling: str | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
    ) -> np.ndarray:
        """Computes an embedding of each text, as the `embedding` settings of the config specify.

        For a sentence-transformers folder, these settings are read from its files, so the vectors
        are the same as with that library. Without settings, an embedding is the mean over the
        tokens, scaled to length 1.

        Args:
            texts: N texts.
            pooling: "mean" over the tokens, including [CLS] and [SEP]; "cls", the last hidden state
                of [CLS]; "max" over the tokens; or None for the model's setting.
            normalize: whether to scale each vector to length 1; None for the model's setting.
            prompt_name: name of the prompt that is prepended to each text, such as "query"; None
                for the default prompt, if the model has one.

        Returns:
            (N, E) float32 array; E is the width of the dense layer if there is one, else D.

        Raises:
            UserError: `pooling` or `prompt_name` is unknown.
        """
        if pooling not in (None, *POOLINGS):
            raise UserError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}.")
        model, (texts,) = self._embedder(), as_batch(texts)
        settings = model.config.embedding_settings
        prompt = settings.prompt_named(prompt_name)
        texts = [prompt + text for text in texts]
        items = encode_texts(self.tokenizer, texts, None, self.max_seq_length)
        function = functools.partial(embeddings, model)
        outputs = self._runner("embed", model, function)(items, self.advance)
        if not outputs:
            return np.zeros((0, settings.dense_size or model.config.hidden_size), np.float32)
        vectors = np.stack([output[pooling or settings.pooling] for output in outputs])
        normalize = settings.normalize if normalize is None else normalize
        return l2_normalize(vectors) if normalize else vectors

    def _embedder(self):
        is_encoder = isinstance(self.model, BertModel) and self.folder is None
        if is_encoder and not self.model.config.embedding_settings.dense_size:
            return self.load(BertModel)  # the head has no weights
        return self.load(BertForEmbedding)

    def similarity(
        self,
        texts: str | Sequence[str],
        text_pairs: str | Sequence[str],
        pooling: str | None = None,
    ) -> list[dict[str, float]]:
        """Returns dicts of `similarity`, the similarity of the embeddings of two texts.

        It is their cosine, unless the config's `embedding` settings specify another function.

        Args:
            texts, text_pairs: a text each, or lists of equal length.
            pooling: as for `embed`.
        """
        texts, text_pairs = as_batch(texts, text_pairs)
        text_pairs = same_length(texts, text_pairs, "text_pairs")
        vectors = self.embed([*texts, *text_pairs], pooling)
        kind = self.model.config.embedding_settings.similarity
        values = similarities(vectors[: len(texts)], vectors[len(texts) :], kind)
        return [{"similarity": float(value)} for value in values]

    def search(
        self,
        queries: str | Sequence[str],
        corpus: Iterable[str],
        top_k: int = 10,
        query_prompt_name: str | None = None,
        corpus_prompt_name: str | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Finds the texts whose embeddings are the most similar to each query; the search is exact.

        The corpus is read, embedded and compared in parts, so the memory required does not depend
        on its size.

        Args:
            queries: a text or a list of texts.
            corpus: texts to search in, such as a list or a generator.
            top_k: number of texts to return per query.
            query_prompt_name, corpus_prompt_name: prompts of the queries and of the corpus; see
                `prompt_name` of `embed`.

        Returns:
            For each query a list of dicts, best first: `index`, the number of the text in the
            corpus, from 0; `text`; and `similarity`, as in the method `similarity`.

        Raises:
            UserError: top_k is below 1, a prompt is unknown, or a text is not a str.
        """
        vectors = self.embed(queries, prompt_name=query_prompt_name)
        kind = self.model.config.embedding_settings.similarity
        embed = functools.partial(self.embed, prompt_name=corpus_prompt_name)
        return nearest_texts(vectors, corpus, embed, top_k, kind, 32 * self._batch_size)

    def fill_mask(
        self,
        texts: str | Sequence[str],
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Predicts the top_k most probable tokens for each [MASK] in each text.

        Args:
            texts: a text or a list of texts, each with 1 to 16 [MASK]; other special tokens in a
                text are plain text.
            top_k: number of tokens per [MASK], at most the size of the vocabulary.
            targets: words to choose from; their scores are still probabilities over the whole
                vocabulary. As in Hugging Face's pipeline, a word that is not in the vocabulary is
                replaced by its first WordPiece, with a warning.

        Returns:
            For each text a dict of `masks` and `text`. `masks` has a list for each [MASK], with
            dicts of `token`, its probability `score`, and `word`, the word that it completes
            ("playing" for "##ing" after "play"), best first. In `text`, each [MASK] within
            `max_seq_length` tokens is replaced by the best token.

        Raises:
            UserError: a text has no [MASK], or more than 16, within `max_seq_length` tokens;
                `top_k` is out of range; or no target has a WordPiece in the vocabulary.
        """
        model, (texts,) = self.load(BertForMaskedLM), as_batch(texts)
        filler = MaskFiller(model, self._mask_tokenizer, self.max_seq_length, self._runner)
        return filler(texts, top_k, targets, self.advance)

    @functools.cached_property
    def _mask_tokenizer(self):
        return BertTokenizer(
            self.tokenizer.vocab, special_tokens_in_text=("[MASK]",), **self.tokenizer.settings
        )
