"""The toolchain's commands of ``t2v-edge``, one a module; `t2v_edge.commands` lists them."""
