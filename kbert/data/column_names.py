"""Known names of text and label columns in published datasets and tools.

The names are as `normalize_name` returns them. TEXTS, SECOND_TEXTS and the values of LABELS are
tuples of names: an earlier tuple takes precedence, and the names of one tuple are equivalent. An
earlier pair of PAIRS takes precedence.
"""

TEXTS = (
    ("text",),
    (
        *("sentence", "sentence1", "sentence_a", "text_a", "text1", "question", "question1"),
        *("premise", "#1_string", "review", "review_text", "reviewtext", "review_body", "content"),
        *("title", "headline", "comment", "comment_text", "tweet", "body", "message", "document"),
        *("description", "phrase", "utterance", "post", "article", "passage", "query", "abstract"),
        *("文本", "评论", "内容", "标题", "句子"),
    ),
)
TITLES = ("title", "headline", "标题")  # ambiguous if another column may be the text
PAIRS = (
    *(("sentence1", "sentence2"), ("sentence_a", "sentence_b"), ("text_a", "text_b")),
    *(("text1", "text2"), ("question1", "question2"), ("premise", "hypothesis")),
    *(("premise", "hypo"), ("#1_string", "#2_string"), ("text", "text_pair")),
    *(("question", "sentence"), ("question", "passage"), ("query", "passage")),
    *(("question", "context"), ("query", "document")),
)
SECOND_TEXTS = (tuple(second for _, second in PAIRS[:9]),)
_OTHER_LABELS = (
    *("class", "class_index", "category", "quality", "target", "sentiment", "rating", "stars"),
    "star_rating",
    *("emotion", "intent", "polarity", "topic", "is_duplicate", "airline_sentiment"),
    *("entailment_judgment", "entailment_label", "标签", "类别", "情感", "评分", "answer"),
)
SCORES = ("score", "similarity", "similarity_score", "relatedness_score")
STANCES = ("stance", "annotation")
# Other columns may also have these names, such as the target of a stance or the score of a post.
VAGUE_LABELS = {"target", "topic", "rating", "answer", *SCORES}
LABELS = {
    "class": (
        *(("gold_label",), ("label_text", "label_name"), ("label",), ("labels",), STANCES),
        (*_OTHER_LABELS, *SCORES),
    ),
    "number": (("label", *SCORES), ("labels", *_OTHER_LABELS)),
    "list": (
        ("label_names",),
        ("labels",),
        ("label",),
        ("accept",),
        (*_OTHER_LABELS, "tags", "topics"),
    ),
}
KNOWN = frozenset(
    name for tiers in (TEXTS, SECOND_TEXTS, *LABELS.values()) for names in tiers for name in names
)
