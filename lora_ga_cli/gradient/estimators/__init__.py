"""The estimators of the gradient, one file each; `lora_ga_cli.registry.ESTIMATORS` finds them by name."""
