"""What a way to save time or memory says where it does not work."""


class Unsupported(Exception):
    """A model or device for which a way to save time or memory does not work; the message says why, for people."""
