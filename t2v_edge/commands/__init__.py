"""The subcommands of ``t2v-edge``, one a module: `add_parser` says what it takes, `run` does it."""
