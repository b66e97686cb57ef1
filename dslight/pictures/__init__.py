"""What a model sees of a picture and where an answer comes from: numbers, and figures of matplotlib."""
