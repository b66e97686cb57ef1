"""The base of every model."""

import abc


class lmms(abc.ABC):  # noqa: N801
    """What the evaluator calls, and what it sets: ``task_dict[task][split][doc_id]`` is a document."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, arg_string, additional_config=None):
        """``--model_args a=1,b=2`` and what the command line says besides."""
        given = dict(part.split("=") for part in arg_string.split(","))
        return cls(**given, **{k: v for k, v in (additional_config or {}).items() if v is not None})

    @property
    def rank(self):
        return self._rank

    @property
    def world_size(self):
        return self._world_size

    def clean(self):
        del self.task_dict
