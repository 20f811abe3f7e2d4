"""``loraga env``"""

from __future__ import annotations

from typing import Any

from lora_ga_cli.cli.output import with_json


@with_json
def command() -> dict[str, Any]:
    """Show versions, GPUs and settings of this machine, for a bug report. Secrets are left out.

    Example: loraga env --json
    """
    from lora_ga_cli.report.console import say, size
    from lora_ga_cli.report.environment import environment

    found = environment()
    lines = {
        "loraga": found["loraga"],
        "python": f"{found['python']} ({found['executable']})",
        **found["packages"],
        "platform": found["platform"],
        "cpu": f"{found['cpu']['name']}, {found['cpu']['cores']} cores, {size(found['cpu']['memory'])}, "
        f"{found['cpu']['threads']} threads",
        "cuda": f"{found['cuda'] or 'none'}, driver {found['driver'] or 'none'}",
        **{
            f"gpu {number}": f"{gpu['name']}, {size(gpu['memory'])}, compute capability {gpu['capability']}"
            for number, gpu in enumerate(found["gpus"])
        },
        "cache": found["cache"],
        **found["variables"],
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        say(f"{name:<{width}}  {value}")
    return found
