"""Values in, renderables out: nothing here reads a store, a clock or the terminal."""
