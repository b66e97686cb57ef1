"""What each kind of part promises, as tests that its author runs: pytest collects a subclass like any test class.

    class TestMyEncoder(VisionEncoderContract):
        def make(self):
            return MyEncoder(depth=3)        # the real class, as small as it can be made

Every clause is what some part of the library relies on, and a failure says which promise is broken and what to do about
it. A part is judged from outside, so that any way to write one may pass; pytest is not imported, so that this needs no
more than the library does.
"""

from dslight.testing.data import DataContract
from dslight.testing.language_model import LanguageModelContract
from dslight.testing.metric import MetricContract
from dslight.testing.model import ModelContract
from dslight.testing.operation import OperationContract
from dslight.testing.projector import ProjectorContract
from dslight.testing.schedule import ScheduleContract
from dslight.testing.template import TemplateContract
from dslight.testing.tiny import byte_tokenizer, tiny_model
from dslight.testing.views import ViewPolicyContract
from dslight.testing.vision_encoder import VisionEncoderContract, pixels

__all__ = [
    "DataContract",
    "LanguageModelContract",
    "MetricContract",
    "ModelContract",
    "OperationContract",
    "ProjectorContract",
    "ScheduleContract",
    "TemplateContract",
    "ViewPolicyContract",
    "VisionEncoderContract",
    "byte_tokenizer",
    "pixels",
    "tiny_model",
]
