"""The toolchain's subcommands of ``t2v-edge``, one a module."""
