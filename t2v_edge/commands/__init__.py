"""The commands of ``t2v-edge`` as data. A command's module has DESCRIPTION, EXAMPLES, `add_arguments` and `run`."""

from __future__ import annotations

from typing import NamedTuple, Optional


class Command(NamedTuple):
    """One command of the command line.

    module: imported only when the command is asked for. help: a few words for ``t2v-edge --help``. extra: what it
    needs besides the core; None where the core is enough, or where any inference engine will do.
    """

    name: str
    module: str
    help: str
    extra: Optional[str] = None

    @property
    def line(self) -> str:
        """The command's line in ``t2v-edge --help``."""
        return self.help if self.extra is None else f"{self.help} (needs t2v-edge[{self.extra}])"

    @property
    def remedy(self) -> str:
        """What to type where packages are missing. The toolchain's own need a newer Python than the runtime."""
        python = ", with Python 3.10 or later" if self.module.startswith("t2v_export.") else ""
        return f"pip install 't2v-edge[{self.extra}]'{python}"


COMMANDS = {
    command.name: command
    for command in (
        Command("export", "t2v_export.commands.export", "turn a checkpoint into a bundle", "export"),
        Command("compress", "t2v_export.commands.compress", "make a checkpoint smaller", "export"),
        Command("compare", "t2v_export.commands.compare", "measure how near a bundle's variants are to FP32", "export"),
        Command("build", "t2v_edge.commands.build", "build TensorRT engines for this machine", "tensorrt"),
        Command("run", "t2v_edge.commands.run", "play captions: write a video, or show it"),
        Command("serve", "t2v_edge.commands.serve", "stream live: captions in, frames out", "serve"),
        Command("bench", "t2v_edge.commands.bench.frames", "measure speed, memory and power on this machine"),
        Command("inspect", "t2v_edge.commands.inspect", "show what a bundle holds, and check it"),
        Command("devices", "t2v_edge.commands.devices", "list device profiles, estimate a bundle on them"),
        Command("doctor", "t2v_edge.commands.doctor", "find what works on this machine, and what to type"),
    )
}
"""Name -> command, in the order of ``t2v-edge --help``."""
