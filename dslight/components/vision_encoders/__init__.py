"""The vision encoders of this library: small final classes of :class:`~dslight.components.VisionEncoder`."""

from dslight.components.vision_encoders.fused import FusedEncoder
from dslight.components.vision_encoders.hugging_face import HFVisionEncoder
from dslight.components.vision_encoders.naflex import NaFlexEncoder
from dslight.components.vision_encoders.native import NativeVisionEncoder
from dslight.components.vision_encoders.timm_features import TimmFeatureMaps
from dslight.components.vision_encoders.timm_vit import TimmEncoder

__all__ = ["FusedEncoder", "HFVisionEncoder", "NaFlexEncoder", "NativeVisionEncoder", "TimmEncoder", "TimmFeatureMaps"]
