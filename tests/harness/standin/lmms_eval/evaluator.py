"""One task, evaluated: documents to requests, replies to a mean score."""

from lmms_eval.api.instance import Instance


def evaluate(lm, name, docs, doc_to_text, doc_to_visual, process_results, generation_kwargs):
    """Returns (replies, mean of ``process_results(doc, reply)``)."""
    lm.task_dict[name] = {"test": docs}
    requests = [
        Instance(
            "generate_until",
            (doc_to_text(doc), dict(generation_kwargs), doc_to_visual, doc_id, name, "test"),
            0,
            {"task": name, "doc_id": doc_id, "repeats": 1},
        )
        for doc_id, doc in enumerate(docs)
    ]
    replies = lm.generate_until(requests)
    scores = [process_results(doc, reply) for doc, reply in zip(docs, replies, strict=True)]
    return replies, sum(scores) / len(scores)


def likelihoods(lm, name, docs, doc_to_text, doc_to_visual, continuations):
    """Per document and continuation (log-likelihood, whether it is greedy)."""
    lm.task_dict[name] = {"test": docs}
    requests = [
        Instance("loglikelihood", (doc_to_text(doc), target, doc_to_visual, doc_id, name, "test"), i)
        for doc_id, doc in enumerate(docs)
        for i, target in enumerate(continuations)
    ]
    return lm.loglikelihood(requests)
