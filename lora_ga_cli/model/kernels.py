from lora_ga_cli.model.unsupported import Unsupported


def use_liger(model):
    raise Unsupported("stand-in")
