"""What every model of the kit is called through."""


class BaseModel:
    """Turns what a data set gives into a list of typed parts, and asks for the answer."""

    INTERLEAVE = False
    allowed_types = ("text", "image", "video")

    def __init__(self):
        self.dump_image_func = None

    def set_dump_image(self, dump_image_func):
        self.dump_image_func = dump_image_func

    def generate(self, message, dataset=None):
        parts = [{"type": "text", "value": message}] if isinstance(message, str) else message
        assert all(part["type"] in self.allowed_types for part in parts)
        return self.generate_inner(parts, dataset)
